"""A study as whoever watches sees it: its ``progress.jsonl`` followed, and added up, as it grows.

The file only shows, so a line that is damaged, or of a version that knew fewer fields, is passed over.
"""

from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from fedward.common import errors
from fedward.common.config import Study
from fedward.common.errors import Refusal
from fedward.common.instants import parsed
from fedward.server.orders import Orders, Report
from fedward.server.progress import read_events
from fedward.server.study_folder import PROGRESS, StudyFolder

# What hospitals' replies were lost for; a hospital could send any text as a name.
REASONS = frozenset(
    {kind.__name__ for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Refusal)}
    | {"NotConnected", "NoReply", "UnknownNode", "HospitalFailed"}
    | {"Unproven", "BundleNotApproved", "DaemonSilent"}  # as `refusal_text` has them
)
OTHER = "other"


class Followed:
    """One study, followed.

    Attributes:
        study: its settings.
        phase: what it does now, in one word or two.
        closed: the last closed round.
        open_round: the round that is open, or 0.
        online: names of the hospitals that were connected when the last round opened.
        answered: names of those whose reply was folded in since.
        replies, received, sent: usable replies, and bytes in and out, of all closed rounds.
        round_seconds: of the last closed round; `seconds` of all of them.
        epsilon: spent of each hospital's budget; None without privacy, or where nothing was closed.
        lost: replies that did not count, by the name of the reason, over all closed rounds.
        last_lost: those of the last closed round, as they stand in its row.
        stopped: how often the study itself was refused, by name.
        last_seen: when each hospital was last connected at a round's opening, or answered.
    """

    def __init__(self, folder: StudyFolder) -> None:
        """Follow from the beginning.

        Raises:
            CheckpointRefused: the folder holds no study.
        """
        self.study: Study = folder.study()
        self.phase = "waiting"
        self.closed = self.open_round = self.replies = self.received = self.sent = 0
        self.round_seconds: float | None = None
        self.seconds = 0.0
        self.epsilon: float | None = None
        self.online: set[str] = set()
        self.answered: set[str] = set()
        self.lost: Counter[str] = Counter()
        self.last_lost: list[dict[str, Any]] = []
        self.stopped: Counter[str] = Counter()
        self.last_seen: dict[str, datetime] = {}
        self._path, self._offset = folder.path / PROGRESS, 0
        self._names = {hospital.name for hospital in self.study.hospitals}
        self._kinds: dict[str, Callable[[dict[str, Any]], None]] = {
            "enrolling": lambda event: self._enter("enrolling"),
            "enrolled": self._enrolled,
            "round": self._opened,
            "reply": self._replied,
            "closed": self._closed,
            "measuring": lambda event: self._enter("measuring"),
            "measured": self._measured,
            "refused": self._refused,
            "finished": lambda event: self._enter("finished"),
        }

    def look(self) -> "Followed":
        """Read what is new."""
        events, self._offset = read_events(self._path, self._offset)
        for event in events:
            take = self._kinds.get(str(event["event"]))
            try:
                if take is not None:
                    take(event)
            except (KeyError, TypeError, ValueError, AttributeError):
                continue
        return self

    def _enter(self, phase: str) -> None:
        self.phase, self.open_round = phase, 0

    def _enrolled(self, event: dict[str, Any]) -> None:
        self.received += int(event["bytes"])

    def _opened(self, event: dict[str, Any]) -> None:
        self._enter("training")
        self.open_round, self.answered = int(event["round"]), set()
        self.online = self._names & set(event["online"])
        for name in self.online:
            self.last_seen[name] = parsed(event["time"])

    def _replied(self, event: dict[str, Any]) -> None:
        if event["hospital"] in self._names:
            self.answered.add(event["hospital"])
            self.last_seen[event["hospital"]] = parsed(event["time"])

    def _closed(self, event: dict[str, Any]) -> None:
        self.closed, self.open_round = int(event["round"]), 0
        self.replies += int(event["replies"])
        self._count_bytes(event)
        self.round_seconds = float(event["seconds"])
        self.seconds += self.round_seconds
        self.last_lost = list(event["refusals"])
        self.lost.update(_reason(lost["name"]) for lost in self.last_lost)
        self.epsilon = event["epsilon"]

    def _measured(self, event: dict[str, Any]) -> None:
        self._count_bytes(event)
        self.epsilon = event["epsilon"]

    def _count_bytes(self, event: dict[str, Any]) -> None:
        self.received += int(event["uplink_bytes"])
        self.sent += int(event["downlink_bytes"])

    def _refused(self, event: dict[str, Any]) -> None:
        self._enter("stopped")
        self.stopped[_reason(event["name"])] += 1


class FollowedOrders:
    """All studies of a coordinator's orders, followed."""

    def __init__(self, state: Path) -> None:
        """Look in the state folder `state`."""
        self._state = state
        self._followed: dict[str, Followed] = {}

    def look(self) -> list[tuple[Report, Followed]]:
        """What became of each order, and its study; without those whose folder is gone or damaged.

        Raises:
            CheckpointRefused: an order is damaged.
        """
        orders = Orders(self._state)
        return [
            (orders.report_of(order), followed)
            for order in orders.all()
            if (followed := self._look(order.folder)) is not None
        ]

    def _look(self, folder: str) -> Followed | None:
        try:
            if folder not in self._followed:
                self._followed[folder] = Followed(StudyFolder(Path(folder)))
            return self._followed[folder].look()
        except Refusal:
            return None


def _reason(name: object) -> str:
    return name if isinstance(name, str) and name in REASONS else OTHER
