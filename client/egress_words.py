"""What left a hospital, in plain words for a data protection officer: a paragraph an item, no jargon."""

import math
from typing import Any

from rich.markup import escape

from fedward.client.egress_fields import ENROL, JOIN, TRAIN
from fedward.client.egress_sums import Row
from fedward.common.printing import printable

_SEEDED = (
    "BUT the noise was drawn from a seed, because this is a simulation or a test: whoever knows the seed can "
    "take the noise off again, so it protects nobody, and the figures below hold for the method only."
)


def explanation(found: Row) -> list[str]:
    """What left and what did not, in plain words: one paragraph an item, without jargon."""
    totals, gap = found["totals"], missing_said(found)
    if not totals["messages"]:
        return gap or ["Nothing has left this hospital through this program."]
    return [
        *gap,
        f"From {day(totals['first'])} to {day(totals['last'])} this hospital sent "
        f"{told(totals['messages'], 'message')} to the study's coordinator, {totals['bytes']:,} bytes in "
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


def missing_said(found: Row) -> list[Any]:
    """That entries are missing from the log, if any are."""
    row = found["missing"]
    if not row:
        return []
    return [
        f"[bold]ENTRIES ARE MISSING from this log:[/bold] it had at least {row['entry'] + 1:,} on "
        f"{day(row['time'])}, as the privacy budget's ledger notes at round {row['round']} of "
        f'"{text(row["study"])}", and the last of those is not here. It was deleted, cut or '
        "exchanged since: put back its newest copy. What is listed is not all that left."
    ]


def _no_result(totals: Row) -> str:
    if totals["measured"]["metric"]:
        return "no exact result of the model on your images, only the noised counts named above"
    return "no result of the model on your images, such as its accuracy or its errors"


def _enrolment(totals: Row) -> list[str]:
    count = sum(totals["by_message"].get(kind, {}).get("messages", 0) for kind in (ENROL, JOIN))
    if not count:
        return []
    return [
        f"Enrolment ({told(count, 'time')}): the name under which the hospital takes part, and the number "
        "of its images, rounded up to the next ten. Both left because the hospital agreed to it by enrolling."
    ]


def _updates(found: Row) -> list[str]:
    totals, said = found["totals"], []
    count = totals["by_message"].get(TRAIN, {}).get("messages", 0)
    if bare := totals["without_noise"]:
        said.append(
            f"Without protection: {told(bare, 'answer')} left WITHOUT noise, because this is a simulation "
            "without privacy, which is meant for public images only. If these are images of patients, stop."
        )
    if count > bare:
        said.append(
            f"Training ({told(count - bare, 'answer')}): each says how the shared model should change. "
            "Images were picked by lot, what any one of them could contribute was cut to a fixed size, and "
            "random noise, made to hide a contribution of that size, was added. "
            + (
                _SEEDED
                if totals["seeded"]
                else "How well that hides an image is counted below, study by study."
            )
        )
    return said


def _measurements(totals: Row) -> list[str]:
    said = []
    if count := totals["measured"]["metric"]:
        said.append(
            f"Check of the finished model ({told(count, 'answer')}): how often it was right on your "
            "images, as counts. What one image changes in all the counts together is known beforehand, and "
            "random noise, made to hide such a change, was added. The exact counts did not leave."
        )
    if count := totals["measured"]["fisher"]:
        said.append(
            f"What matters in the model ({told(count, 'answer')}): how strongly the finished model leans "
            "on each of its parts for your images, so that a later study can keep what was learned. What any "
            "one image could contribute was cut to a fixed size, and random noise, made to hide a "
            "contribution of that size, was added."
        )
    if said and totals["seeded"] and TRAIN not in totals["by_message"]:
        said.append(_SEEDED)
    return said


def _cost_said(cost: Row) -> str:
    name = f'"{text(cost["study"])}"'
    again = cost["replies"] - cost["charges"]
    repeated = (
        f" {told(again, 'answer')} of these left again, byte for byte, at no further cost." if again else ""
    )
    if cost["epsilon"] is None:
        return (
            f"Study {name}: {told(cost['replies'], 'answer')}, but the privacy budget's ledger does not "
            f"hold all that was charged for them: compare it with its newest copy.{repeated}"
        )
    return (
        f"Study {name}: {told(cost['charges'], 'answer')} cost epsilon {cost['epsilon']:.2f} of the "
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
    names = ", ".join(f"{text(name)} ({count})" for name, count in refusals.items())
    return [
        f"Refusals: {told(sum(refusals.values()), 'request')} got no answer but the reason's name and at "
        f"most a sentence about the request, the budget or the policy: {names}."
    ]


def _held(found: Row) -> list[str]:
    if not found["held"]:
        return []
    last = found["held"][-1]
    count = found["held_unwritten"] + sum(row["times"] for row in found["held"])
    return [
        f"Held back: {told(count, 'message')} would have carried something that has no place "
        f"in this list, so nothing of it was sent. The last one, on {day(last['time'])}: "
        f"{text(last['why'])} This is a fault of the program: tell its makers."
    ]


def told(number: int, what: str) -> str:
    """A number with its noun."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def day(time: str) -> str:
    """A time for people, to the minute."""
    return text(time[:16].replace("T", " ")) + " UTC"


def text(name: object) -> str:
    """A name from elsewhere that can steer neither the terminal nor the table's markup."""
    return escape(printable(str(name)))
