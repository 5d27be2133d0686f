"""What left a hospital: as tables. `fedward.client.egress_words` says it in plain words."""

from rich.table import Table

from fedward.client.egress_fields import ENROL, JOIN, MEASURE, REFUSAL, TRAIN
from fedward.client.egress_sums import Row
from fedward.client.egress_words import missing_said, text, told

_WHAT = {
    ENROL: "enrolment",
    JOIN: "request to join or renew, carried by hand",
    TRAIN: "reply to a round",
    MEASURE: "measurement behind round",
    REFUSAL: "refusal",
}


def tables(found: Row) -> list[str | Table]:
    """The messages in full, each a line and a table of its fields, then the totals."""
    shown: list[str | Table] = missing_said(found)
    for message in found["messages"]:
        shown += [_line(message), _fields(message)]
    left_out = found["totals"]["messages"] - sum(message["times"] for message in found["messages"])
    if left_out:
        shown.append(f"Not shown: {told(left_out, 'earlier message')}; --last N shows more.")
    return [*shown, _by_kind(found), _by_class(found)]


def _line(message: Row) -> str:
    about = message["about"]
    what = _WHAT.get(message["message"], message["message"])
    study = f" {about['round']} of {text(about['study'])}" if "study" in about and "round" in about else ""
    refusal = f" {text(about['refusal'])}" if "refusal" in about else ""
    paid = "; ".join(map(_charged, message["charges"])) or "nothing charged"
    again = f", {told(message['times'], 'time')} in all" if message["times"] > 1 else ""
    said = f"{message['bytes']:,} bytes, {paid}{again}"
    return f"{text(message['time'])}  [bold]{what}{study}{refusal}[/bold]: {said}"


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
