"""A hospital's name and declared count as its state folder has them, read without torch or the data."""

import json
from pathlib import Path

from fedward.client.state_folder import PROFILE
from fedward.common.errors import DatasetRefused
from fedward.common.files import read_bounded

_LIMIT_BYTES = 1 << 16


def named_and_counted(folder: Path) -> tuple[str, int] | None:
    """The public name and the declared count; None where no images were imported.

    Raises:
        DatasetRefused: the profile is damaged.
    """
    path = folder / PROFILE
    if not path.exists():
        return None
    try:
        found = json.loads(read_bounded(path, _LIMIT_BYTES, refusal=DatasetRefused))
        return str(found["name"]), int(found["num_examples"])
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetRefused(f"{path} is damaged: put back its newest copy.") from error
