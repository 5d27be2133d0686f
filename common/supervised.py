"""What a supervisor's state folder tells a monitoring system on either side: its processes and its disk."""

import importlib.metadata
import shutil
from collections.abc import Iterator
from pathlib import Path

from fedward.common.exposition import Metric, Sample
from fedward.common.supervision import is_alive, read_processes

_INFO = Metric("fedward_build_info", "gauge", "Always 1; the version that runs.", ("version",))
_ALIVE = Metric("fedward_process_up", "gauge", "1 while the supervised process runs.", ("process",))
_RESTARTS = Metric(
    "fedward_process_restarts_total", "counter", "Restarts since the supervisor began.", ("process",)
)
_DISK = Metric("fedward_disk_free_bytes", "gauge", "Free on the state folder's file system.")
SUPERVISED = (_INFO, _ALIVE, _RESTARTS, _DISK)


def supervised(folder: Path) -> Iterator[Sample]:
    """Samples of a supervisor's processes and disk.

    Raises:
        OSError: the folder is gone.
    """
    yield Sample(_INFO, (importlib.metadata.version("fedward"),), 1)
    found = read_processes(folder)
    for name, child in sorted(({} if found is None else found["children"]).items()):
        yield Sample(_ALIVE, (name,), float(is_alive(child["pid"])))
        yield Sample(_RESTARTS, (name,), child["restarts"])
    yield Sample(_DISK, (), shutil.disk_usage(folder).free)
