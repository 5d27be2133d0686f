"""Which studies were asked for here, and which of them the hospital's administrator approved by hand.

    {"schema": "fedward.studies/1", "asked": [{"study", "digest", "time", "codec", "settings"}, ...],
     "approved": [...]}

A study is approved with its settings (`fedward.client.policy.settings_digest`): with others it is another
study. Of what was asked, the last `MOST_ASKED` are kept, so that a coordinator cannot fill the disk.
"""

import logging
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedward.client.charging import Request
from fedward.client.policy import Policy, settings_digest
from fedward.client.policy_file import read_policy
from fedward.common.errors import ApprovalMissing, LedgerRefused, PolicyRefused, UnknownName
from fedward.common.files import canonical_json, parse_canonical, read_bounded, write_atomically
from fedward.common.locks import FileLock
from fedward.common.logs import told
from fedward.common.messages import TrainRequest
from fedward.common.printing import unmistakable

STUDIES_FILE = "studies.json"
MOST_ASKED = 32
_SCHEMA = "fedward.studies/1"
_LIMIT_BYTES = 1 << 26
_FIELDS = {"study", "digest", "time", "codec", "settings"}
_log = logging.getLogger(__name__)

Study = dict[str, Any]


def require_allowed(
    folder: Path, request: Request, open_studies: Collection[str], now: datetime | None = None
) -> None:
    """Hold a request against the policy in `folder`, and note a study that waits for approval.

    Raises:
        PolicyRefused: a rule forbids it, or the policy cannot be read: then nothing is answered.
        LedgerRefused, OutputRefused: the list of studies is damaged, or cannot be written.
    """
    policy = policy_for_others(folder)
    now = now or datetime.now(UTC)
    studies = Studies(folder)
    approved = studies.approved() if policy.approval else {}
    try:
        policy.check(request, now, open_studies=open_studies, approved=approved)
    except ApprovalMissing:
        if isinstance(request, TrainRequest):
            studies.note(request, now)
        raise


def policy_for_others(folder: Path) -> Policy:
    """The policy in `folder`; where it cannot be read, the refusal says nothing of what stands in it.

    Raises:
        PolicyRefused: it cannot be read.
    """
    try:
        return read_policy(folder)
    except PolicyRefused as refusal:
        _log.error("the policy cannot be read", extra={"fields": told(refusal)})
        raise PolicyRefused(
            "This hospital's policy cannot be read, so it answers nothing: its administrator sees why with "
            "`fedward hospital studies`."
        ) from refusal


class Studies:
    """The list of studies in a hospital's state folder."""

    def __init__(self, folder: Path) -> None:
        """Name the folder; nothing is read or made yet."""
        self._path = folder / STUDIES_FILE
        self._lock = FileLock(folder / "studies.lock")

    def approved(self) -> dict[str, str]:
        """Digest of the approved settings, by study.

        Raises:
            LedgerRefused: the list is damaged.
        """
        return {study["study"]: study["digest"] for study in self.listed()["approved"]}

    def note(self, request: TrainRequest, now: datetime) -> None:
        """Keep what was asked for, once, for `approve`.

        Raises:
            LedgerRefused: the list is damaged, or busy.
            OutputRefused: it cannot be written.
        """
        found = {
            "study": request.study,
            "digest": settings_digest(request),
            "time": now.astimezone(UTC).isoformat(timespec="seconds"),
            "codec": list(request.codec),
            "settings": request.settings.to_dict(),
        }
        with self._lock:
            listed = self.listed()
            if all(_key(study) != _key(found) for study in listed["asked"]):
                self._write({**listed, "asked": [*listed["asked"], found][-MOST_ASKED:]})

    def approve(self, study: str, digest: str = "") -> Study:
        """Approve a study that was asked for, in place of what was approved under its name before.

        Args:
            study: its name, or the name as it is printed.
            digest: the beginning of its settings' digest, needed where it was asked for with several.

        Raises:
            UnknownName: no such study was asked for, or more than one.
            LedgerRefused, OutputRefused: as above.
        """
        with self._lock:
            listed = self.listed()
            chosen = _chosen(listed["asked"], study, digest)
            others = [one for one in listed["approved"] if one["study"] != chosen["study"]]
            asked = [one for one in listed["asked"] if _key(one) != _key(chosen)]
            self._write({"asked": asked, "approved": [*others, chosen]})
        return chosen

    def withdraw(self, study: str) -> Study:
        """Take an approval back; a round that has begun ends, later ones are refused.

        Raises:
            UnknownName: no such study is approved.
            LedgerRefused, OutputRefused: as above.
        """
        with self._lock:
            listed = self.listed()
            chosen = _chosen(listed["approved"], study, "")
            approved = [one for one in listed["approved"] if one is not chosen]
            self._write({"asked": [*listed["asked"], chosen][-MOST_ASKED:], "approved": approved})
        return chosen

    def listed(self) -> dict[str, list[Study]]:
        """The studies under ``asked``, oldest first, and ``approved``.

        Raises:
            LedgerRefused: the list is damaged.
        """
        if not self._path.exists():
            return {"asked": [], "approved": []}
        try:
            document = parse_canonical(read_bounded(self._path, _LIMIT_BYTES, refusal=LedgerRefused))
            lists = {name: document[name] for name in ("asked", "approved")}
            fields = [set(study) for studies in lists.values() for study in studies]
            if document["schema"] == _SCHEMA and all(names == _FIELDS for names in fields):
                return lists
        except (KeyError, TypeError, ValueError):
            pass
        raise LedgerRefused(
            f"{STUDIES_FILE} is damaged: put back its newest copy, or remove it and approve studies again."
        )

    def _write(self, lists: dict[str, list[Study]]) -> None:
        write_atomically(self._path, canonical_json({"schema": _SCHEMA, **lists}), 0o600)


def _key(study: Study) -> tuple[str, str]:
    return study["study"], study["digest"]


def _chosen(studies: list[Study], name: str, digest: str) -> Study:
    named = [one for one in studies if name in (one["study"], unmistakable(one["study"]))]
    found = [one for one in named if one["digest"].startswith(digest)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UnknownName(
            f"Study {unmistakable(name)} was asked for with several settings; name one with --settings: "
            f"{', '.join(one['digest'][:12] for one in found)}."
        )
    known = ", ".join(sorted({unmistakable(one["study"]) for one in studies})) or "none"
    raise UnknownName(f"There is no such study {unmistakable(name)}; there are: {known}.")
