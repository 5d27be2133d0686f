"""The one reply of each round, kept before it leaves: asked again, a hospital sends the very same bytes.

One file a round: a line of canonical JSON ``{content, kind, length, round, sha256, study}``, then the reply.
"""

import hashlib
from pathlib import Path

from fedward.common.digests import is_digest
from fedward.common.errors import RequestRefused
from fedward.common.files import (
    canonical_json,
    make_folder,
    parse_canonical,
    read_bounded,
    write_atomically,
)
from fedward.common.locks import FileLock

MOST_REPLY_BYTES = 1 << 28
_MOST_HEADER_BYTES = 4096


class ReplyStore:
    """The stored replies of one hospital."""

    def __init__(self, folder: Path) -> None:
        """Keep replies in `folder`, which is made if it is missing.

        Raises:
            OutputRefused: it cannot be made.
        """
        make_folder(folder, 0o700)
        self.folder = folder
        self._lock = FileLock(folder / "replies.lock")

    def store(
        self, study: str, server_round: int, content_digest: str, reply: bytes, kind: str = "train"
    ) -> bytes:
        """Keep `reply`, synced, and return what may leave: the first reply that was stored for the round.

        Raises:
            RequestRefused: the round was answered for other content, or the reply is too large.
            OutputRefused: it could not be written; then nothing may leave.
        """
        if not 0 < len(reply) <= MOST_REPLY_BYTES:
            raise RequestRefused(f"A reply has 1 to {MOST_REPLY_BYTES} bytes, not {len(reply)}.")
        header = _header(study, server_round, content_digest, kind, reply)
        with self._lock:
            first = self.get(study, server_round, content_digest, kind)
            if first is not None:
                return first
            write_atomically(self._path(study, server_round, kind), header + b"\n" + reply, 0o600)
        return reply

    def get(self, study: str, server_round: int, content_digest: str, kind: str = "train") -> bytes | None:
        """The stored reply, or None where the round was not answered yet.

        Raises:
            RequestRefused: the round was answered for other content, or the stored reply is damaged.
        """
        path = self._path(study, server_round, kind)
        if not path.exists():
            return None
        data = read_bounded(path, MOST_REPLY_BYTES + _MOST_HEADER_BYTES, refusal=RequestRefused)
        header, _, reply = data.partition(b"\n")
        if header == _header(study, server_round, content_digest, kind, reply):
            return reply
        if _other_content(header, content_digest):
            raise RequestRefused(
                f"Round {server_round} of study {study!r} was answered for other content: only that is "
                "answered again. Ask for a new round."
            )
        raise RequestRefused(
            f"The stored reply to round {server_round} of study {study!r} is damaged, and a second one must "
            "not leave: ask for a new round."
        )

    def _path(self, study: str, server_round: int, kind: str) -> Path:
        name = hashlib.sha256(canonical_json([study, server_round, kind])).hexdigest()
        return self.folder / f"{name}.reply"


def _header(study: str, server_round: int, content_digest: str, kind: str, reply: bytes) -> bytes:
    if not is_digest(content_digest):
        raise RequestRefused("A round's content is named by a SHA-256 in 64 hexadecimal digits.")
    return canonical_json(
        {
            "study": study,
            "round": server_round,
            "kind": kind,
            "content": content_digest,
            "length": len(reply),
            "sha256": hashlib.sha256(reply).hexdigest(),
        }
    )


def _other_content(header: bytes, content_digest: str) -> bool:
    try:
        return bool(parse_canonical(header)["content"] != content_digest)
    except (KeyError, TypeError, ValueError):
        return False
