"""Fetching one of MedMNIST's official files, within a time limit and never half.

The address and the digest are those that the installed medmnist lists. medmnist's own download is not called:
it needs torchvision, which does not import with every build of torch, and leaves a cut file behind when it is
stopped. The transfer runs in a process of its own, because a name look-up cannot be timed out from within.
"""

import hashlib
import http.client
import importlib.util
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import IO, Any

from fedward.common.errors import DatasetRefused
from fedward.common.files import sync_folder

CONNECT_SECONDS = 10  # for each silence on the line, so that a machine without a network learns it soon
_CHUNK = 2**20


def download_medmnist(name: str, size: int, folder: Path, limit_seconds: float) -> Path:
    """Fetch ``name.npz`` (``name_SIZE.npz`` for another size than 28) into `folder`, and check its MD5.

    Args:
        name: one of `fedward.common.medmnist_sets.MEDMNIST_SETS`.
        size: side in pixels: 28, 64, 128 or 224.
        folder: made if it does not exist.
        limit_seconds: for the whole transfer.

    Returns:
        The file's path.

    Raises:
        DatasetRefused: medmnist is not installed or lists no such file, there is no network, the limit has
            passed, the folder cannot be written, or the digest differs.
    """
    url, md5 = _address(name, size)
    target = folder / url.partition("?")[0].rpartition("/")[2]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as draft_folder:
            draft = Path(draft_folder) / target.name
            _fetch_apart(url, draft, limit_seconds)
            check_md5(draft, md5, f"What {url} sent")
            draft.replace(target)
        sync_folder(folder)
    except OSError as error:
        raise DatasetRefused(f"{name} cannot be stored in {folder}: {error.strerror or error}.") from error
    return target


def check_md5(path: Path, md5: str, what: str) -> None:
    """Compare a file with the digest that its publisher lists.

    MD5 is what MedMNIST publishes: it catches a damaged file, not a forger.

    Raises:
        DatasetRefused: the digests differ, or the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise DatasetRefused(f"{what} cannot be read: {error.strerror or error}.") from error
    if found != md5:
        raise DatasetRefused(
            f"{what} is not the official file: its MD5 is {found}, not {md5}; fetch it again,"
            " or name it by its path if it is your own."
        )


def fetch(url: str, target: Path) -> None:
    """Copy what `url` sends into `target`, synced; raises OSError or HTTPException when that fails."""
    request = urllib.request.Request(url, headers={"User-Agent": "fedward"})  # noqa: S310 (checked by _address)
    with urllib.request.urlopen(request, timeout=CONNECT_SECONDS) as reply, target.open("xb") as file:  # noqa: S310
        _copy(reply, file)
        file.flush()
        os.fsync(file.fileno())


def _copy(reply: IO[bytes], file: IO[bytes]) -> None:
    while chunk := reply.read(_CHUNK):
        file.write(chunk)


def _address(name: str, size: int) -> tuple[str, str]:
    suffix = "" if size == 28 else f"_{size}"
    info = _medmnist_info().get(name, {})
    url, md5 = info.get(f"url{suffix}"), info.get(f"MD5{suffix}")
    if not url or not md5:
        raise DatasetRefused(f"The installed medmnist lists no {name} of {size} pixels; try another size.")
    if not url.startswith("https://"):
        raise DatasetRefused(f"The installed medmnist lists no https address for {name}; it is not fetched.")
    return url, md5


def _medmnist_info() -> dict[str, dict[str, Any]]:
    """medmnist's table of files, read from its one light module: importing the package costs seconds."""
    package = importlib.util.find_spec("medmnist")
    origin = package.origin if package else None
    spec = importlib.util.spec_from_file_location("medmnist_info", Path(origin or "").with_name("info.py"))
    if origin is None or spec is None or spec.loader is None:
        raise DatasetRefused("medmnist is not installed, so no address is known; pip install medmnist.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    table: dict[str, dict[str, Any]] = module.INFO
    return table


def _fetch_apart(url: str, target: Path, limit_seconds: float) -> None:
    command = [sys.executable, "-P", "-m", "fedward.simulations.download", url, str(target)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=limit_seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise DatasetRefused(f"{url} did not send its file within {limit_seconds:g} s.") from error
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise DatasetRefused(f"{url} cannot be fetched: {reason}.")


if __name__ == "__main__":
    try:
        fetch(sys.argv[1], Path(sys.argv[2]))
    except (OSError, http.client.HTTPException) as error:
        sys.exit(str(error).strip("<>"))
