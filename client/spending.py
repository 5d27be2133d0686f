"""What a budget ledger's entries add up to. Each entry kind has one method, named after it.

terms      {total_epsilon, delta, unit}                             the hospital's own limit
images     {name, count, sha256}                                    which images, under which name
reserved   {study, mechanisms}                                      planned for a study, not spent
released   {study}                                                  the plan is given up
charge     {study, round, content, kind, mechanism, extra}          spent, before the work
refused    {study, round, content, kind}                            a round asked again with other content
suspended  {seq, hash}                                              an anchored head that is not in this chain
recovered  {seq, hash, mechanisms}                                  what that head stood for, entered again
genesis, torn-tail                                                  the ledger's own
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fedward.common.chain import Entry, Head
from fedward.common.errors import LedgerRefused, Refusal
from fedward.common.mechanisms import Mechanism

DP_SGD = "dp-sgd"  # the kind of a charge for training steps
Steps = Counter[tuple[float, float]]  # (noise multiplier, sample rate) -> steps


@dataclass(frozen=True)
class Terms:
    """A hospital's limit for one data set.

    Attributes:
        total_epsilon: over all studies, for ever.
        delta: at which epsilon is stated.
        unit: the privacy unit: what may be added or removed without showing.
    """

    total_epsilon: float
    delta: float
    unit: str

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: a value is out of range.
        """
        if not (0 < self.total_epsilon < math.inf and 0 < self.delta < 1 and self.unit):
            raise ValueError(f"no terms of a budget: {self}")


@dataclass(frozen=True)
class Charge:
    """What was entered before a round's work.

    Attributes:
        study: the study's name.
        server_round: of the study.
        content_digest: of the request.
        kind: which mechanism of the round, for example ``dp-sgd``.
        mechanism: what is spent.
        extra: what was synced with it, for example digests of the generator's key and of the data.
        head: of the ledger once it stood there; it travels in the reply.
        time: ISO 8601, for people.
    """

    study: str
    server_round: int
    content_digest: str
    kind: str
    mechanism: Mechanism
    extra: Mapping[str, Any]
    head: Head
    time: str


class Spending:
    """The state after some entries; `apply` takes the next."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.terms: Terms | None = None
        self.names: list[str] = []
        self.images_sha256 = ""
        self.image_count = 0
        self.charges: dict[tuple[str, int, str], Charge] = {}
        self.contents: dict[tuple[str, int], str] = {}
        self.refusals: Counter[tuple[str, int]] = Counter()
        self.spent: Steps = Counter()
        self.reserved: dict[str, Steps] = {}
        self.plans: dict[str, Steps] = {}
        self.released: set[str] = set()
        self.recovered: list[tuple[Head, tuple[Mechanism, ...]]] = []
        self.suspended: dict[Head, None] = {}
        self._kinds: dict[str, Callable[[Entry, Mapping[str, Any]], None]] = {
            "genesis": self._nothing,
            "torn-tail": self._nothing,
            "terms": self._terms,
            "images": self._images,
            "reserved": self._reserved,
            "released": self._released,
            "charge": self._charge,
            "refused": self._refused,
            "suspended": self._suspended,
            "recovered": self._recovered,
        }

    def apply(self, entry: Entry) -> None:
        """Take the next entry.

        Raises:
            LedgerRefused: of an unknown kind, or malformed: what it spent would be missed.
        """
        if entry.kind not in self._kinds:
            raise LedgerRefused(
                f"Entry {entry.seq} is of the kind {entry.kind!r}, which this version does not know: "
                "update Fedward."
            )
        try:
            self._kinds[entry.kind](entry, entry.body)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, Refusal) as error:
            raise LedgerRefused(
                f"Entry {entry.seq} is no {entry.kind!r} entry of a budget: {error}."
            ) from error

    def planned(self) -> Steps:
        """All that is spent, and all that is still reserved."""
        return sum(self.reserved.values(), self.spent.copy())

    def _nothing(self, entry: Entry, body: Mapping[str, Any]) -> None:
        pass

    def _terms(self, entry: Entry, body: Mapping[str, Any]) -> None:
        self.terms = Terms(float(body["total_epsilon"]), float(body["delta"]), str(body["unit"]))

    def _images(self, entry: Entry, body: Mapping[str, Any]) -> None:
        self.images_sha256, self.image_count = str(body["sha256"]), int(body["count"])
        if body["name"] not in self.names:
            self.names.append(str(body["name"]))

    def _reserved(self, entry: Entry, body: Mapping[str, Any]) -> None:
        self.plans[body["study"]] = steps_of(map(mechanism_from, body["mechanisms"]))
        self.reserved[body["study"]] = self.plans[body["study"]].copy()

    def _released(self, entry: Entry, body: Mapping[str, Any]) -> None:
        del self.reserved[body["study"]], self.plans[body["study"]]
        self.released.add(body["study"])

    def _charge(self, entry: Entry, body: Mapping[str, Any]) -> None:
        study, server_round, mechanism = (
            str(body["study"]),
            int(body["round"]),
            mechanism_from(body["mechanism"]),
        )
        self.charges[study, server_round, str(body["kind"])] = Charge(
            study, server_round, str(body["content"]), str(body["kind"]), mechanism, dict(body["extra"]),
            entry.head, entry.time,
        )  # fmt: skip
        self.contents[study, server_round] = str(body["content"])
        self.spent[key_of(mechanism)] += mechanism.steps
        if study in self.reserved:
            self.reserved[study] -= steps_of([mechanism])

    def _refused(self, entry: Entry, body: Mapping[str, Any]) -> None:
        self.refusals[str(body["study"]), int(body["round"])] += 1

    def _suspended(self, entry: Entry, body: Mapping[str, Any]) -> None:
        self.suspended[_head(body)] = None

    def _recovered(self, entry: Entry, body: Mapping[str, Any]) -> None:
        head, mechanisms = _head(body), tuple(map(mechanism_from, body["mechanisms"]))
        self.recovered.append((head, mechanisms))
        self.spent += steps_of(mechanisms)
        self.suspended.pop(head, None)


def key_of(mechanism: Mechanism) -> tuple[float, float]:
    """By what equal mechanisms are added up."""
    return mechanism.noise_multiplier, mechanism.sample_rate


def steps_of(mechanisms: Iterable[Mechanism]) -> Steps:
    """Mechanisms as steps by (noise multiplier, sample rate)."""
    steps: Steps = Counter()
    for mechanism in mechanisms:
        steps[key_of(mechanism)] += mechanism.steps
    return +steps


def mechanisms_of(steps: Steps) -> tuple[Mechanism, ...]:
    """The inverse of `steps_of`, sorted."""
    return tuple(sorted(Mechanism(*key, count) for key, count in steps.items() if count > 0))


def mechanism_from(value: Mapping[str, Any]) -> Mechanism:
    """A mechanism from its JSON object."""
    return Mechanism(value["noise_multiplier"], value["sample_rate"], value["steps"])


def mechanism_json(mechanism: Mechanism) -> dict[str, float | int]:
    """A mechanism as a JSON object."""
    return {
        "noise_multiplier": mechanism.noise_multiplier,
        "sample_rate": mechanism.sample_rate,
        "steps": mechanism.steps,
    }


def _head(body: Mapping[str, Any]) -> Head:
    return Head(int(body["seq"]), str(body["hash"]))
