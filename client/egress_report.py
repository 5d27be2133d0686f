"""What left a hospital: as tables, and in plain words for a data protection officer."""

import math
from typing import Any

from rich.markup import escape
from rich.table import Table

from fedward.client.egress import ENROL, JOIN, REFUSAL, TRAIN
from fedward.client.egress_sums import Row
from fedward.common.printing import printable

_WHAT = {
    ENROL: "enrolment",
    JOIN: "request to join or renew, carried by hand",
    TRAIN: "reply to a round",
    REFUSAL: "refusal",
}
_SEEDED = (
    "BUT the noise was drawn from a seed, because this is a simulation or a test: whoever knows the seed can "
    "take the noise off again, so it protects nobody, and the figures below hold for the method only."
)


def tables(found: Row) -> list[str | Table]:
    """The messages in full, each a line and a table of its fields, then the totals."""
    shown: list[str | Table] = _missing(found)
    for message in found["messages"]:
        shown += [_line(message), _fields(message)]
    left_out = found["totals"]["messages"] - sum(message["times"] for message in found["messages"])
    if left_out:
        shown.append(f"Not shown: {_count(left_out, 'earlier message')}; --last N shows more.")
    return [*shown, _by_kind(found), _by_class(found)]


def explanation(found: Row) -> list[str]:
    """What left and what did not, in plain words: one paragraph an item, without jargon."""
    totals, gap = found["totals"], [str(line) for line in _missing(found)]
    if not totals["messages"]:
        return gap or ["Nothing has left this hospital through this program."]
    return [
        *gap,
        f"From {_day(totals['first'])} to {_day(totals['last'])} this hospital sent "
        f"{_count(totals['messages'], 'message')} to the study's coordinator, {totals['bytes']:,} bytes in "
        "all. Each was written to a log before it left, and the log shows if anybody changes it afterwards.",
        *_enrolment(totals),
        *_updates(found),
        *_refusals(found),
        *_held(found),
        "What did not leave: no image and no part of one; no diagnosis, name, date or number of a patient; "
        "not the exact number of images; no result of the model on your images, such as its accuracy or its "
        "errors; no measured times; no text of a software error; no line of a log file. The program sends "
        "the fields that are listed here and refuses to send any other.",
        "What the coordinator can see besides: that your computer was connected, and when an answer arrived.",
    ]


def _missing(found: Row) -> list[Any]:
    row = found["missing"]
    if not row:
        return []
    return [
        f"[bold]ENTRIES ARE MISSING from this log:[/bold] it had at least {row['entry'] + 1:,} on "
        f"{_day(row['time'])}, as the privacy budget's ledger notes at round {row['round']} of "
        f'"{_text(row["study"])}", and the last of those is not here. It was deleted, cut or '
        "exchanged since: put back its newest copy. What is listed is not all that left."
    ]


def _line(message: Row) -> str:
    about, charge = message["about"], message["charge"]
    what = _WHAT.get(message["message"], message["message"])
    study = f" {about['round']} of {_text(about['study'])}" if "study" in about and "round" in about else ""
    refusal = f" {_text(about['refusal'])}" if "refusal" in about else ""
    paid = ", nothing charged" if charge is None else f", {_charged(charge)}"
    again = f", {_count(message['times'], 'time')} in all" if message["times"] > 1 else ""
    said = f"{message['bytes']:,} bytes{paid}{again}"
    return f"{_text(message['time'])}  [bold]{what}{study}{refusal}[/bold]: {said}"


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
    count = sum(totals["by_message"].get(kind, {}).get("messages", 0) for kind in (ENROL, JOIN))
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
    return [*said, *(_cost_said(cost) for cost in found["costs"])]


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
    count = found["held_unwritten"] + sum(row["times"] for row in found["held"])
    return [
        f"Held back: {_count(count, 'message')} would have carried something that has no place "
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
