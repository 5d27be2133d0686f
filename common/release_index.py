"""``releases/index.json``: what a coordinator has published, as its sites read it."""

import re
from dataclasses import dataclass
from typing import Any

from fedward.common.files import parse_canonical

INDEX = "index.json"
INDEX_LIMIT_BYTES = 8 << 20
_FILE = re.compile(r"[0-9a-f]{64}\.tar", re.ASCII)


@dataclass(frozen=True)
class Listed:
    """A release that can be fetched.

    Attributes:
        study, version: as its manifest says.
        digest: of its manifest, in hex.
        file: its name beside the index: SHA-256 of its bytes, in hex, and ``.tar``.
        bytes: how many.
        published: when, as `instants.spelled`.
    """

    study: str
    version: int
    digest: str
    file: str
    bytes: int
    published: str

    def __post_init__(self) -> None:
        """Refuse a name that could lead elsewhere.

        Raises:
            ValueError: it is no such entry.
        """
        words = (self.study, self.digest, self.file, self.published)
        numbers = (self.version, self.bytes)
        is_entry = all(isinstance(one, str) for one in words) and all(type(one) is int for one in numbers)
        # A reader sets that many bytes aside; of a negative number it would read without end.
        if not is_entry or not _FILE.fullmatch(self.file) or self.bytes < 0:
            raise ValueError("a release's file, version or size is not what it must be")


def patch_name(base: str, result: str) -> str:
    """The file, beside the index, of the patch between two releases' files."""
    return f"{base.removesuffix('.tar')}-{result.removesuffix('.tar')}.patch"


def listed(data: bytes) -> list[Listed]:
    """The releases of an index, oldest first.

    Raises:
        ValueError: it is no index.
    """
    try:
        found: Any = parse_canonical(data)
        return [Listed(**entry) for entry in found["releases"]]
    except (TypeError, KeyError) as error:
        raise ValueError("it is no index of releases") from error
