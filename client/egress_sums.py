"""What left a hospital, added up: each message with the reasons of its fields, totals, and what it cost."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fedward.client.budget import Budget
from fedward.client.egress_fields import FIELDS, PUBLIC, REFUSAL, SEEDED, SEEDED_MEASUREMENT, WAIVED
from fedward.client.egress_log import HELD, LOG_HEAD, Counts, counts
from fedward.client.spending import Charge, mechanism_from, mechanisms_of, steps_of
from fedward.common.chain import Entry, Head
from fedward.common.ledger import Ledger
from fedward.common.letters import ENVELOPE
from fedward.common.privacy import epsilon

Row = dict[str, Any]
_FROM_A_SEED = (SEEDED, SEEDED_MEASUREMENT)
# Of a refusal without an envelope; the counts do not tell the two apart.
_REFUSALS_FIELDS = [name for kind, name in FIELDS if kind == REFUSAL and name != ENVELOPE]
_NOT_LISTED = "not in this version's list"


@dataclass(frozen=True)
class Cost:
    """What the replies to one study cost, by the charges that stand beside them in the log.

    Attributes:
        study: its name.
        replies: that left, with those that were sent again.
        charges: how many of them were paid for; one that is sent again is the same bytes and costs nothing.
        epsilon: of these charges together; None where no budget's ledger holds them.
        delta: at which it is stated.
        total: the data set's limit, over all studies.
    """

    study: str
    replies: int
    charges: int
    epsilon: float | None
    delta: float | None
    total: float | None


def summary(log: Ledger, budgets: Sequence[Budget], last: int | None = None) -> Row:
    """All that left, as a JSON object: totals and costs over everything, and the `last` messages in full."""
    counted = counts(log)
    left = [_message(entry, counted) for entry in log.entries if entry.kind == "left"]
    held = [
        {"time": entry.time, **entry.body, "times": _times(entry, counted)}
        for entry in log.entries
        if entry.kind == HELD
    ]
    unwritten = {name: count for name, count in counted.items() if not name.isdigit()}
    return {
        "schema": 1,
        "log": {"entries": len(log.entries), "head": log.head.hash},
        "missing": missing(log, budgets),
        "totals": _totals(left, {name: count for name, count in unwritten.items() if name != HELD}),
        "costs": [vars(cost) for cost in costs(left, budgets)],
        "held": held,
        "held_unwritten": unwritten.get(HELD, (0, 0))[0],
        "messages": left if last is None else left[max(0, len(left) - last) :],
    }


def missing(log: Ledger, budgets: Iterable[Budget]) -> Row | None:
    """The last entry that a charge saw in the log and that is not there; None where all are."""
    charges = [charge for budget in budgets for charge in budget.state.charges.values()]
    gone = [charge for charge in charges if (end := _end(charge)) and not log.contains(end)]
    if not gone:
        return None
    last = max(gone, key=lambda charge: charge.extra[LOG_HEAD]["entry"])
    entry = last.extra[LOG_HEAD]["entry"]
    return {"entry": entry, "time": last.time, "study": last.study, "round": last.server_round}


def _end(charge: Charge) -> Head | None:
    noted = charge.extra.get(LOG_HEAD)
    return Head(noted["entry"], noted["hash"]) if noted else None


def costs(left: Iterable[Row], budgets: Sequence[Budget]) -> list[Cost]:
    """One entry a study, in the order of their first reply."""
    by_study: dict[str, list[Row]] = {}
    for message in left:
        if message["charges"]:
            by_study.setdefault(message["charges"][0]["study"], []).append(message)
    return [_cost(study, messages, budgets) for study, messages in by_study.items()]


def _message(entry: Entry, counted: Counts) -> Row:
    body = entry.body
    fields = [{**field, "why": _why(body["message"], field)} for field in body["fields"]]
    # An earlier version wrote one charge, or none.
    charges = body["charges"] if "charges" in body else list(filter(None, [body.get("charge")]))
    of_entry = {"fields": fields, "charges": charges, "times": _times(entry, counted)}
    return {"time": entry.time, "entry": entry.seq, **body, **of_entry}


def _times(entry: Entry, counted: Counts) -> int:
    """How often this very message left, those aside that have a line of their own."""
    return 1 + counted.get(str(entry.seq), (0, 0))[0]


def _why(kind: str, field: Row) -> str:
    return str(field.get("why") or FIELDS.get((kind, field["name"]), ("", _NOT_LISTED))[1])


def _totals(left: Sequence[Row], refused: Counts) -> Row:
    """Sums over all that left: by its lines, and by the counts of refusals that have no line."""
    kinds: Counter[str] = Counter()
    kind_bytes: Counter[str] = Counter()
    classes: Counter[str] = Counter()
    class_bytes: Counter[str] = Counter()
    for message in left:
        kinds[message["message"]] += message["times"]
        kind_bytes[message["message"]] += message["times"] * message["bytes"]
        for field in message["fields"]:
            classes[field["class"]] += message["times"]
            class_bytes[field["class"]] += message["times"] * field["bytes"]
    for times, size in refused.values():
        kinds[REFUSAL] += times
        kind_bytes[REFUSAL] += size
        classes[PUBLIC] += times * len(_REFUSALS_FIELDS)
        class_bytes[PUBLIC] += size
    return {
        "messages": sum(kinds.values()),
        "bytes": sum(kind_bytes.values()),
        "first": left[0]["time"] if left else None,
        "last": left[-1]["time"] if left else None,
        "by_message": {kind: {"messages": kinds[kind], "bytes": kind_bytes[kind]} for kind in kinds},
        "by_class": {name: {"fields": classes[name], "bytes": class_bytes[name]} for name in classes},
        "refusals": _refused(left, refused),
        "without_noise": sum(m["times"] for m in left if any(f["why"] == WAIVED for f in m["fields"])),
        "measured": {
            part: sum(m["times"] for m in left if any(f["name"] == f"measured.{part}" for f in m["fields"]))
            for part in ("metric", "fisher")
        },
        "seeded": sum(m["times"] for m in left if any(f["why"] in _FROM_A_SEED for f in m["fields"])),
    }


def _refused(left: Sequence[Row], unwritten: Counts) -> dict[str, int]:
    names: Counter[str] = Counter()
    for message in left:
        if message["message"] == REFUSAL:
            names[message["about"]["refusal"]] += message["times"]
    for name, (times, _) in unwritten.items():
        names[name] += times
    return dict(names)


def _cost(study: str, messages: list[Row], budgets: Sequence[Budget]) -> Cost:
    """Of one study, from the charges of each reply."""
    distinct = {charge["hash"]: charge for message in messages for charge in message["charges"]}
    paid = len({message["charges"][0]["hash"] for message in messages})
    replies = sum(message["times"] for message in messages)
    heads = [Head(charge["entry"], charge["hash"]) for charge in distinct.values()]
    budget = next((one for one in budgets if all(map(one.ledger.contains, heads))), None)
    if budget is None:
        return Cost(study, replies, paid, None, None, None)
    spent = steps_of(mechanism_from(charge["mechanism"]) for charge in distinct.values())
    terms = budget.terms
    figure = epsilon(mechanisms_of(spent), terms.delta)
    figure_or_none = figure if math.isfinite(figure) else None
    return Cost(study, replies, paid, figure_or_none, terms.delta, terms.total_epsilon)
