"""What left a hospital: as JSON, as tables, and in plain words for a data protection officer."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from fedward.client.budget import Budget
from fedward.client.egress import ENROL, FIELDS, MEASURE, REFUSAL, SEEDED, SEEDED_MEASUREMENT, TRAIN, WAIVED
from fedward.client.spending import mechanism_from, mechanisms_of, steps_of
from fedward.common.chain import Entry, Head
from fedward.common.ledger import Ledger
from fedward.common.printing import printable
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
_SEEDED = (
    "BUT the noise was drawn from a seed, because this is a simulation or a test: whoever knows the seed can "
    "take the noise off again, so it protects nobody, and the figures below hold for the method only."
)


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
        shown.append(f"Not shown: {_count(left_out, 'earlier message')}; --last N shows more.")
    return [*shown, _by_kind(found), _by_class(found)]


def explanation(found: Row) -> list[str]:
    """What left and what did not, in plain words: one paragraph an item, without jargon."""
    totals = found["totals"]
    if not totals["messages"]:
        return ["Nothing has left this hospital through this program."]
    return [
        f"From {_day(totals['first'])} to {_day(totals['last'])} this hospital sent "
        f"{_count(totals['messages'], 'message')} to the study's coordinator, {totals['bytes']:,} bytes in "
        "all. Each was written to a log before it left, and the log shows if anybody changes it afterwards.",
        *_enrolment(totals),
        *_updates(found),
        *_measurements(found["totals"]),
        *(_cost_said(cost) for cost in found["costs"]),
        *_refusals(found),
        *_held(found),
        "What did not leave: no image and no part of one; no diagnosis, name, date or number of a patient; "
        f"not the exact number of images; {_no_result(totals)}; no measured times; no text of a software "
        "error; no line of a log file. The program sends the fields that are listed here and refuses to send "
        "any other.",
        "What the coordinator can see besides: that your computer was connected, and when an answer arrived.",
    ]


def _no_result(totals: Row) -> str:
    if totals["measured"]["metric"]:
        return "no exact result of the model on your images, only the noised counts named above"
    return "no result of the model on your images, such as its accuracy or its errors"


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
    study = f" {about['round']} of {_text(about['study'])}" if "study" in about and "round" in about else ""
    refusal = f" {_text(about['refusal'])}" if "refusal" in about else ""
    paid = "; ".join(map(_charged, message["charges"])) or "nothing charged"
    return (
        f"{_text(message['time'])}  [bold]{what}{study}{refusal}[/bold]: {message['bytes']:,} bytes, {paid}"
    )


def _charged(charge: Row) -> str:
    mechanism = charge["mechanism"]
    return (
        f"charged {_count(mechanism['steps'], 'step')} at noise {mechanism['noise_multiplier']:g} and rate "
        f"{mechanism['sample_rate']:g} (entry {charge['entry']} of the budget's ledger)"
    )


def _fields(message: Row) -> Table:
    table = Table("field", "class", "bytes", "sha-256", "why")
    for field in message["fields"]:
        name, kind = _text(field["name"]), _text(field["class"])
        table.add_row(name, kind, f"{field['bytes']:,}", field["sha256"][:12], _text(field["why"]))
    return table


def _by_kind(found: Row) -> Table:
    totals = found["totals"]
    table = Table("message", "sent", "bytes", title="All that left, by message", title_justify="left")
    for kind, row in totals["by_message"].items():
        table.add_row(_text(_WHAT.get(kind, kind)), f"{row['messages']:,}", f"{row['bytes']:,}")
    table.add_row("all", f"{totals['messages']:,}", f"{totals['bytes']:,}")
    return table


def _by_class(found: Row) -> Table:
    table = Table("class", "fields", "bytes", title="All that left, by class", title_justify="left")
    for name, row in found["totals"]["by_class"].items():
        table.add_row(_text(name), f"{row['fields']:,}", f"{row['bytes']:,}")
    return table


def _enrolment(totals: Row) -> list[str]:
    count = totals["by_message"].get(ENROL, {}).get("messages", 0)
    if not count:
        return []
    return [
        f"Enrolment ({_count(count, 'time')}): the name under which the hospital takes part, and the number "
        "of its images, rounded up to the next ten. Both left because the hospital agreed to it by enrolling."
    ]


def _updates(found: Row) -> list[str]:
    totals, said = found["totals"], []
    count = totals["by_message"].get(TRAIN, {}).get("messages", 0)
    if bare := totals["without_noise"]:
        said.append(
            f"Without protection: {_count(bare, 'answer')} left WITHOUT noise, because this is a simulation "
            "without privacy, which is meant for public images only. If these are images of patients, stop."
        )
    if count > bare:
        said.append(
            f"Training ({_count(count - bare, 'answer')}): each says how the shared model should change. "
            "Images were picked by lot, what any one of them could contribute was cut to a fixed size, and "
            "random noise, made to hide a contribution of that size, was added. "
            + (_SEEDED if totals["seeded"] else "How well that hides an image is counted, study by study:")
        )
    return said


def _measurements(totals: Row) -> list[str]:
    said = []
    if count := totals["measured"]["metric"]:
        said.append(
            f"Check of the finished model ({_count(count, 'answer')}): how often it was right on your "
            "images, as counts. What one image changes in all the counts together is known beforehand, and "
            "random noise, made to hide such a change, was added. The exact counts did not leave."
        )
    if count := totals["measured"]["fisher"]:
        said.append(
            f"What matters in the model ({_count(count, 'answer')}): how strongly the finished model leans "
            "on each of its parts for your images, so that a later study can keep what was learned. What any "
            "one image could contribute was cut to a fixed size, and random noise, made to hide a "
            "contribution of that size, was added."
        )
    if said and totals["seeded"]:
        said.append(_SEEDED)
    return said


def _cost_said(cost: Row) -> str:
    name = f'"{_text(cost["study"])}"'
    again = cost["replies"] - cost["charges"]
    repeated = (
        f" {_count(again, 'answer')} of these left again, byte for byte, at no further cost." if again else ""
    )
    if cost["epsilon"] is None:
        return (
            f"Study {name}: {_count(cost['replies'], 'answer')}, but the privacy budget's ledger does not "
            f"hold all that was charged for them: compare it with its newest copy.{repeated}"
        )
    return (
        f"Study {name}: {_count(cost['charges'], 'answer')} cost epsilon {cost['epsilon']:.2f} of the "
        f"{cost['total']:g} that the hospital allows these images over all studies. It means: whatever "
        "anyone concludes from these answers, that any one image was among yours changes the odds of it by a "
        f"factor of at most {_factor(cost['epsilon'])}, with a chance of 1 in {1 / cost['delta']:,.0f} that "
        f"this does not hold.{repeated}"
    )


def _factor(value: float) -> str:
    return f"{math.exp(value):,.1f}" if value < 20 else "more than 100 million, which protects nobody"


def _refusals(found: Row) -> list[str]:
    refusals = found["totals"]["refusals"]
    if not refusals:
        return []
    names = ", ".join(f"{_text(name)} ({count})" for name, count in refusals.items())
    return [
        f"Refusals: {_count(sum(refusals.values()), 'request')} got no answer but the reason's name and at "
        f"most a sentence about the request or the budget: {names}."
    ]


def _held(found: Row) -> list[str]:
    if not found["held"]:
        return []
    last = found["held"][-1]
    return [
        f"Held back: {_count(len(found['held']), 'message')} would have carried something that has no place "
        f"in this list, so nothing of it was sent. The last one, on {_day(last['time'])}: "
        f"{_text(last['why'])} This is a fault of the program: tell its makers."
    ]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _day(time: str) -> str:
    return _text(time[:16].replace("T", " ")) + " UTC"


def _text(name: object) -> str:
    """A name from elsewhere that can steer neither the terminal nor the table's markup."""
    return escape(printable(str(name)))
