"""What left a hospital: as JSON and as tables. `fedward.client.egress_words` says it in plain words."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from fedward.client.budget import Budget
from fedward.client.egress_fields import (
    ENROL,
    FIELDS,
    MEASURE,
    REFUSAL,
    SEEDED,
    SEEDED_MEASUREMENT,
    TRAIN,
    WAIVED,
)
from fedward.client.egress_words import text, told
from fedward.client.spending import mechanism_from, mechanisms_of, steps_of
from fedward.common.chain import Entry, Head
from fedward.common.ledger import Ledger
from fedward.common.privacy import epsilon

Row = dict[str, Any]
_FROM_A_SEED = (SEEDED, SEEDED_MEASUREMENT)
_WHAT = {
    ENROL: "enrolment",
    TRAIN: "reply to a round",
    MEASURE: "measurement behind round",
    REFUSAL: "refusal",
}
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
    left = [_message(entry) for entry in log.entries if entry.kind == "left"]
    held = [{"time": entry.time, **entry.body} for entry in log.entries if entry.kind == "held"]
    return {
        "schema": 1,
        "log": {"entries": len(log.entries), "head": log.head.hash},
        "totals": _totals(left),
        "costs": [vars(cost) for cost in costs(left, budgets)],
        "held": held,
        "messages": left if last is None else left[max(0, len(left) - last) :],
    }


def costs(left: Iterable[Row], budgets: Sequence[Budget]) -> list[Cost]:
    """One entry a study, in the order of their first reply."""
    by_study: dict[str, list[list[Row]]] = {}
    for message in left:
        if message["charges"]:
            by_study.setdefault(message["charges"][0]["study"], []).append(message["charges"])
    return [_cost(study, replies, budgets) for study, replies in by_study.items()]


def tables(found: Row) -> list[str | Table]:
    """The messages in full, each a line and a table of its fields, then the totals."""
    shown: list[str | Table] = []
    for message in found["messages"]:
        shown += [_line(message), _fields(message)]
    left_out = found["totals"]["messages"] - len(found["messages"])
    if left_out:
        shown.append(f"Not shown: {told(left_out, 'earlier message')}; --last N shows more.")
    return [*shown, _by_kind(found), _by_class(found)]


def _message(entry: Entry) -> Row:
    body = entry.body
    fields = [{**field, "why": _why(body["message"], field)} for field in body["fields"]]
    # An earlier version wrote one charge, or none.
    charges = body["charges"] if "charges" in body else list(filter(None, [body.get("charge")]))
    return {"time": entry.time, "entry": entry.seq, **body, "fields": fields, "charges": charges}


def _why(kind: str, field: Row) -> str:
    return str(field.get("why") or FIELDS.get((kind, field["name"]), ("", _NOT_LISTED))[1])


def _totals(left: Sequence[Row]) -> Row:
    kinds: Counter[str] = Counter()
    kind_bytes: Counter[str] = Counter()
    classes: Counter[str] = Counter()
    class_bytes: Counter[str] = Counter()
    for message in left:
        kinds[message["message"]] += 1
        kind_bytes[message["message"]] += message["bytes"]
        for field in message["fields"]:
            classes[field["class"]] += 1
            class_bytes[field["class"]] += field["bytes"]
    return {
        "messages": len(left),
        "bytes": sum(kind_bytes.values()),
        "first": left[0]["time"] if left else None,
        "last": left[-1]["time"] if left else None,
        "by_message": {kind: {"messages": kinds[kind], "bytes": kind_bytes[kind]} for kind in kinds},
        "by_class": {name: {"fields": classes[name], "bytes": class_bytes[name]} for name in classes},
        "refusals": dict(Counter(m["about"]["refusal"] for m in left if m["message"] == REFUSAL)),
        "without_noise": sum(any(f["why"] == WAIVED for f in m["fields"]) for m in left),
        "measured": {
            part: sum(any(f["name"] == f"measured.{part}" for f in m["fields"]) for m in left)
            for part in ("metric", "fisher")
        },
        "seeded": sum(any(f["why"] in _FROM_A_SEED for f in m["fields"]) for m in left),
    }


def _cost(study: str, replies: list[list[Row]], budgets: Sequence[Budget]) -> Cost:
    """Of one study, from the charges of each reply."""
    distinct = {charge["hash"]: charge for charges in replies for charge in charges}
    paid = len({charges[0]["hash"] for charges in replies})
    heads = [Head(charge["entry"], charge["hash"]) for charge in distinct.values()]
    budget = next((one for one in budgets if all(map(one.ledger.contains, heads))), None)
    if budget is None:
        return Cost(study, len(replies), paid, None, None, None)
    spent = steps_of(mechanism_from(charge["mechanism"]) for charge in distinct.values())
    terms = budget.terms
    figure = epsilon(mechanisms_of(spent), terms.delta)
    figure_or_none = figure if math.isfinite(figure) else None
    return Cost(study, len(replies), paid, figure_or_none, terms.delta, terms.total_epsilon)


def _line(message: Row) -> str:
    about = message["about"]
    what = _WHAT.get(message["message"], message["message"])
    study = f" {about['round']} of {text(about['study'])}" if "study" in about and "round" in about else ""
    refusal = f" {text(about['refusal'])}" if "refusal" in about else ""
    paid = "; ".join(map(_charged, message["charges"])) or "nothing charged"
    return f"{text(message['time'])}  [bold]{what}{study}{refusal}[/bold]: {message['bytes']:,} bytes, {paid}"


def _charged(charge: Row) -> str:
    mechanism = charge["mechanism"]
    return (
        f"charged {told(mechanism['steps'], 'step')} at noise {mechanism['noise_multiplier']:g} and rate "
        f"{mechanism['sample_rate']:g} (entry {charge['entry']} of the budget's ledger)"
    )


def _fields(message: Row) -> Table:
    table = Table("field", "class", "bytes", "sha-256", "why")
    for field in message["fields"]:
        name, kind = text(field["name"]), text(field["class"])
        table.add_row(name, kind, f"{field['bytes']:,}", field["sha256"][:12], text(field["why"]))
    return table


def _by_kind(found: Row) -> Table:
    totals = found["totals"]
    table = Table("message", "sent", "bytes", title="All that left, by message", title_justify="left")
    for kind, row in totals["by_message"].items():
        table.add_row(text(_WHAT.get(kind, kind)), f"{row['messages']:,}", f"{row['bytes']:,}")
    table.add_row("all", f"{totals['messages']:,}", f"{totals['bytes']:,}")
    return table


def _by_class(found: Row) -> Table:
    table = Table("class", "fields", "bytes", title="All that left, by class", title_justify="left")
    for name, row in found["totals"]["by_class"].items():
        table.add_row(text(name), f"{row['fields']:,}", f"{row['bytes']:,}")
    return table
