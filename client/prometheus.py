"""What a hospital shows its own monitoring system, and nobody else: the page is on loopback and never leaves.

It holds no record, no count of records, no result of training, no path and no text that a coordinator chose.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from fedward.client.budget_watch import BudgetWatch
from fedward.client.egress_log import COUNTS, LOG
from fedward.client.membership import Membership, current_folder
from fedward.common.errors import EnrolmentRefused
from fedward.common.exposition import Metric, Sample
from fedward.common.growing_files import new_lines
from fedward.common.logs import ANSWERED
from fedward.common.supervised import SUPERVISED, supervised
from fedward.common.supervision import LOGS

_ANSWERS = Metric(
    "fedward_answers_total", "counter", "Messages that the daemon answered, by Flower's type.", ("kind",)
)
_ERRORS = Metric(
    "fedward_answers_refused_total", "counter", "Those of them whose answer was an error.", ("kind",)
)
_LAST = Metric("fedward_last_answer_timestamp_seconds", "gauge", "When the daemon last answered.")
_LEFT = Metric(
    "fedward_left_messages_total", "counter", "Messages that left, by what they are.", ("message",)
)
_BYTES = Metric("fedward_left_bytes_total", "counter", "Bytes that left, by the record of what leaves.")
_HELD = Metric("fedward_held_messages_total", "counter", "Messages that were not let out.")
_LAST_LEFT = Metric("fedward_last_left_timestamp_seconds", "gauge", "When the last message left.")
_SPENT = Metric("fedward_budget_epsilon_spent", "gauge", "Local: spent of a data set's budget.", ("dataset",))
_RESERVED = Metric(
    "fedward_budget_epsilon_planned", "gauge", "Local: spent or reserved for studies.", ("dataset",)
)
_LEFT_OVER = Metric(
    "fedward_budget_epsilon_left", "gauge", "Local: the total less what is spent.", ("dataset",)
)
_SUSPENDED = Metric("fedward_budget_suspended", "gauge", "1 where the ledger is an older copy.", ("dataset",))
_KNOWN = Metric(
    "fedward_budget_current", "gauge", "1 where the budgets' figures are of the ledgers as they are."
)
_EXPIRY = Metric(
    "fedward_certificate_expiry_timestamp_seconds", "gauge", "When this site's certificate ends."
)
METRICS = (
    *SUPERVISED, _ANSWERS, _ERRORS, _LAST, _LEFT, _BYTES, _HELD, _LAST_LEFT, _SPENT, _RESERVED, _LEFT_OVER,
    _SUSPENDED, _KNOWN, _EXPIRY,
)  # fmt: skip
# Words for what a coordinator could choose: labels are from these lists, whatever was asked.
_KINDS = ("train", "query", "query.measure", "evaluate", "other")
_MESSAGES = ("train", "measure", "enrol", "join", "refusal", "other")


class HospitalMetrics:
    """The samples of one hospital's state folder, followed from scrape to scrape."""

    def __init__(self, folder: Path) -> None:
        """Look in `folder`."""
        self._folder = folder
        self._budgets = BudgetWatch(folder)
        self._answers, self._errors, self._left = Counter[str](), Counter[str](), Counter[str]()
        self._bytes = self._held = 0
        self._last: float | None = None
        self._last_left: float | None = None
        self._log_offset = self._egress_offset = 0

    def __call__(self) -> Iterator[Sample]:
        """All samples, now.

        Raises:
            OSError: the folder is gone.
        """
        yield from supervised(self._folder)
        self._follow()
        yield from (Sample(_ANSWERS, (kind,), self._answers[kind]) for kind in _KINDS)
        yield from (Sample(_ERRORS, (kind,), self._errors[kind]) for kind in _KINDS)
        repeated, their_bytes = self._repeated()
        left = self._left + Counter({"other": repeated})
        yield from (Sample(_LEFT, (message,), left[message]) for message in _MESSAGES)
        yield Sample(_BYTES, (), self._bytes + their_bytes)
        yield Sample(_HELD, (), self._held)
        moments = {_LAST: self._last, _LAST_LEFT: self._last_left, _EXPIRY: self._expiry()}
        yield from (Sample(metric, (), value) for metric, value in moments.items() if value is not None)
        yield from self._budget_samples()

    def close(self) -> None:
        """End what works for it."""
        self._budgets.close()

    def _follow(self) -> None:
        log, egress = self._folder / LOGS / "daemon.log", self._folder / LOG
        lines, self._log_offset = new_lines(log, self._log_offset)
        for line in _objects(lines):
            if line.get("event") == ANSWERED:
                self._answered(line)
        lines, self._egress_offset = new_lines(egress, self._egress_offset)
        for line in _objects(lines):
            self._noted(line)

    def _answered(self, line: dict[str, Any]) -> None:
        kind = _one_of(_KINDS, line.get("kind"))
        self._answers[kind] += 1
        self._errors[kind] += bool(line.get("reply"))
        self._last = _moment(line.get("time")) or self._last

    def _noted(self, line: dict[str, Any]) -> None:
        """A line of the record of what leaves."""
        body = line.get("body")
        if not isinstance(body, dict):
            return
        self._held += line.get("kind") == "held"
        if line.get("kind") == "left":
            self._left[_one_of(_MESSAGES, body.get("message"))] += 1
            self._bytes += int(body.get("bytes", 0))
            self._last_left = _moment(line.get("time")) or self._last_left

    def _repeated(self) -> tuple[int, int]:
        """Messages that left again and are only counted: how many, and their bytes."""
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            found = json.loads((self._folder / LOG).with_name(COUNTS).read_bytes())
            counted = [pair for name, pair in found.items() if name != "held"]
            return sum(times for times, _ in counted), sum(size for _, size in counted)
        return 0, 0

    def _expiry(self) -> float | None:
        """When the certificate ends; None of a site that is in no federation."""
        with contextlib.suppress(EnrolmentRefused, OSError, ValueError):
            if current_folder(self._folder) is not None:
                return Membership.load(self._folder).certificate.not_valid_after_utc.timestamp()
        return None

    def _budget_samples(self) -> Iterator[Sample]:
        budgets = self._budgets.look()
        yield Sample(_KNOWN, (), float(budgets.is_current))
        for name, found in sorted(budgets.found.items()):
            yield Sample(_SPENT, (name,), found["spent"])
            yield Sample(_RESERVED, (name,), found["planned"])
            yield Sample(_LEFT_OVER, (name,), max(0.0, found["total"] - found["spent"]))
            yield Sample(_SUSPENDED, (name,), float(found["suspended"]))


def _objects(lines: list[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        with contextlib.suppress(ValueError):
            if isinstance(found := json.loads(line), dict):
                yield found


def _one_of(words: tuple[str, ...], word: object) -> str:
    return word if isinstance(word, str) and word in words else words[-1]


def _moment(text: object) -> float | None:
    with contextlib.suppress(ValueError, TypeError):
        return datetime.fromisoformat(str(text)).timestamp()
    return None
