"""What a coordinator shows a monitoring system: public figures only, those that its hospitals may all see.

Names of studies, hospitals and refusals are public. There is no path, no address, and nothing that a record
could change beyond what left its hospital under privacy.
"""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from fedward.common.exposition import Metric, Sample
from fedward.common.printing import unmistakable
from fedward.common.supervised import SUPERVISED, supervised
from fedward.server.following import Followed, FollowedOrders
from fedward.server.orders import FINISHED, REFUSED, RUNNING, STOPPED, WAITING, Report

_STATES = (WAITING, RUNNING, FINISHED, STOPPED, REFUSED)
_STUDY = ("study",)
_STATE = Metric(
    "fedward_study_state", "gauge", "1 for the state that an ordered study is in.", ("study", "state")
)
_CLOSED = Metric("fedward_rounds_closed", "gauge", "The study's last closed round.", _STUDY)
_PLANNED = Metric("fedward_rounds_planned", "gauge", "Rounds that the study has.", _STUDY)
_SECONDS = Metric("fedward_round_seconds", "gauge", "Length of the last closed round.", _STUDY)
_ALL_SECONDS = Metric("fedward_rounds_seconds_total", "counter", "Length of all closed rounds.", _STUDY)
_REPLIES = Metric("fedward_replies_total", "counter", "Usable replies in closed rounds.", _STUDY)
_LOST = Metric(
    "fedward_refusals_total",
    "counter",
    "Replies that did not count in closed rounds, by the refusal's name.",
    ("study", "refusal"),
)
_STOPS = Metric(
    "fedward_study_refusals_total",
    "counter",
    "How often the study itself was refused, by the refusal's name.",
    ("study", "refusal"),
)
_EPSILON = Metric(
    "fedward_epsilon_spent", "gauge", "Spent of each hospital by closed rounds, from public settings.", _STUDY
)
_TARGET = Metric("fedward_epsilon_planned", "gauge", "What the study's rounds may cost a hospital.", _STUDY)
_RECEIVED = Metric("fedward_received_bytes_total", "counter", "Bytes from hospitals.", _STUDY)
_SENT = Metric("fedward_sent_bytes_total", "counter", "Bytes to hospitals.", _STUDY)
_SITES = Metric("fedward_sites_enrolled", "gauge", "Hospitals that the study names.", _STUDY)
_ONLINE = Metric("fedward_sites_online", "gauge", "Those connected when the last round opened.", _STUDY)
_ANSWERED = Metric("fedward_sites_answered", "gauge", "Those that answered the last round to open.", _STUDY)
_SEEN = Metric(
    "fedward_site_last_seen_timestamp_seconds",
    "gauge",
    "When a hospital last answered, or was connected as a round opened.",
    ("study", "site"),
)
METRICS = (
    *SUPERVISED, _STATE, _CLOSED, _PLANNED, _SECONDS, _ALL_SECONDS, _REPLIES, _LOST, _STOPS, _EPSILON,
    _TARGET, _RECEIVED, _SENT, _SITES, _ONLINE, _ANSWERED, _SEEN,
)  # fmt: skip


class CoordinatorMetrics:
    """The samples of one coordinator's state folder; studies are followed from scrape to scrape."""

    def __init__(self, state: Path) -> None:
        """Look in `state`."""
        self._state, self._orders = state, FollowedOrders(state)

    def __call__(self) -> Iterator[Sample]:
        """All samples, now.

        Raises:
            Refusal: an order is damaged.
            OSError: the folder is gone.
        """
        yield from supervised(self._state)
        studies = self._orders.look()
        for (report, followed), name in zip(studies, _names(studies), strict=True):
            yield from (Sample(_STATE, (name, one), float(one == report.state)) for one in _STATES)
            yield from _of_study(name, followed)


def _names(studies: Iterable[tuple[Report, Followed]]) -> list[str]:
    """One name a study: of two folders with a study of one name, the second is numbered."""
    names: list[str] = []
    for _, followed in studies:
        name = unmistakable(followed.study.name)
        numbered = (name if number == 1 else f"{name} ({number})" for number in itertools.count(1))
        names.append(next(one for one in numbered if one not in names))
    return names


def _of_study(name: str, of: Followed) -> Iterator[Sample]:
    figures: dict[Metric, float | None] = {
        _CLOSED: of.closed,
        _PLANNED: of.study.rounds,
        _SECONDS: of.round_seconds,
        _ALL_SECONDS: of.seconds,
        _REPLIES: of.replies,
        _EPSILON: of.epsilon,
        _TARGET: of.study.target_epsilon,
        _RECEIVED: of.received,
        _SENT: of.sent,
        _SITES: len(of.study.hospitals),
        _ONLINE: len(of.online),
        _ANSWERED: len(of.answered),
    }
    for metric, value in figures.items():
        if value is not None:
            yield Sample(metric, (name,), value)
    yield from (Sample(_LOST, (name, reason), count) for reason, count in sorted(of.lost.items()))
    yield from (Sample(_STOPS, (name, reason), count) for reason, count in sorted(of.stopped.items()))
    for site, moment in sorted(of.last_seen.items()):
        yield Sample(_SEEN, (name, unmistakable(site)), moment.timestamp())
