"""What stands where in a hospital's state folder, for processes that load neither torch nor the data."""

import os
from pathlib import Path

from fedward.common.errors import DatasetRefused, OutputRefused

PROFILE, BUDGETS, REPLICAS = "hospital.json", "budget", "replicas"
SOCKET, DAEMON_LOCK, SITE_LOCK = "daemon.sock", "daemon.lock", "site.lock"
NODE_ID = "node-id"
SECRET_FILE = "superexec.secret"  # noqa: S105 - a file's name
_LONGEST_PATH = 100  # bytes; the kernel takes 107


def require_hospital(folder: Path) -> Path:
    """The folder's absolute path.

    Raises:
        DatasetRefused: it is no hospital's.
        OutputRefused: its path is longer than a socket's name may be.
    """
    if not (folder / PROFILE).is_file():
        raise DatasetRefused(f"{folder} is no hospital's state folder: name one with --state.")
    socket_address(folder)
    return folder.resolve()


def socket_address(folder: Path) -> str:
    """gRPC's name of the daemon's socket, which must be an absolute path.

    Raises:
        OutputRefused: the path is longer than a socket's name may be.
    """
    path = folder.resolve() / SOCKET
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise OutputRefused(f"{path} is too long for a socket; name a state folder with a shorter path.")
    return f"unix:{path}"
