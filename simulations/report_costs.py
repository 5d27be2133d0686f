"""The report's sections on what the release cost: privacy, traffic, size and time."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedward.simulations.figures import Bars, bars_figure, budget_figure
from fedward.simulations.markup import Section, chart, missing, pair, paragraph, table
from fedward.simulations.wording import (
    counted,
    decimal,
    duration,
    listed,
    milliseconds,
    percent,
    size,
    small,
    spent,
    times,
)


def privacy_section(metrics: Mapping[str, Any]) -> Section:
    """Epsilon by hospital against its budget, with the privacy unit and delta beside it."""
    hospitals, title = metrics["hospitals"], "Privacy spent by hospital"
    charged = [hospital for hospital in hospitals if hospital["epsilon"] is not None]
    if not charged:
        text = "No epsilon is shown, because this study trained without differential privacy: nothing bounds "
        text += "what the release may reveal about a patient."
        return Section("privacy", title, missing(text))
    drawn = budget_figure(
        [hospital["name"] for hospital in charged],
        [float(hospital["epsilon"]) for hospital in charged],
        [hospital["budget"] for hospital in charged],
    )
    body = paragraph(_privacy_in_words(charged))
    if len(charged) < len(hospitals):
        without = [hospital["name"] for hospital in hospitals if hospital["epsilon"] is None]
        body += missing(f"Without an epsilon, since trained without differential privacy: {listed(without)}.")
    described = "; ".join(f"{h['name']} {spent(h['epsilon'])} of {small(h['budget'])}" for h in charged)
    caption = "Smaller is more private. A hospital refuses to train on once its budget is used up."
    return Section("privacy", title, body + pair(chart(drawn, described, caption), _privacy_table(hospitals)))


def traffic_section(metrics: Mapping[str, Any]) -> Section:
    """Bytes up and down over the study, against what fp32 would have taken."""
    rounds, title = metrics["rounds"], "Data moved"
    up, down = (sum(int(entry[f"{way}link_bytes"]) for entry in rounds) for way in ("up", "down"))
    if not up and not down:
        return Section("traffic", title, missing("No round moved any data, so there is nothing to compare."))
    replies, fp32 = sum(int(entry["replies"]) for entry in rounds), metrics["release"]["fp32_bytes"]
    sent = len(rounds) * len(metrics["hospitals"])
    panels = [
        _against_fp32("From the hospitals (updates)", "this study", up, replies * fp32),
        _against_fp32("To the hospitals (models)", "this study", down, sent * fp32),
    ]
    described = "; ".join(f"{panel.title}: {panel.texts[0]}, in fp32 {panel.texts[1]}" for panel in panels)
    caption = (
        f"In {counted(len(rounds), 'round')}. The fp32 bars are computed: one fp32 model ({size(fp32)}) "
    )
    caption += f"for each of {replies:,} replies up, and to every hospital in every round down."
    drawn = chart(bars_figure(panels), described, caption)
    return Section("traffic", title, pair(drawn, _traffic_table(rounds, up, down)))


def release_section(metrics: Mapping[str, Any]) -> Section:
    """The release's size and speed against the same student in fp32, its digest and its fidelity."""
    release, timing = metrics["release"], metrics["timing"]
    panels = [_against_fp32("Model file", "this release", release["bytes"], release["fp32_bytes"])]
    notes = ""
    if release["latency_ms"] is None or release["fp32_latency_ms"] is None:
        notes = missing("Speed is not compared, because the latency of one image was not measured.")
    else:
        latencies = (float(release["latency_ms"]), float(release["fp32_latency_ms"]))
        texts = [milliseconds(value) for value in latencies]
        panels.append(Bars("Time for one image", ("this release", "fp32"), latencies, texts))
    described = "; ".join(f"{panel.title}: {panel.texts[0]}, in fp32 {panel.texts[1]}" for panel in panels)
    caption = "The same student exported as this release and in fp32."
    drawn = chart(bars_figure(panels), described, caption) + notes
    rows = [*_release_rows(release), *_timing_rows(timing), ("Digest (SHA-256)", release["digest"])]
    return Section(
        "release",
        "The release",
        pair(drawn, table("In figures", ("What", "Value"), rows, texts=2, kind="full facts")),
    )


def _privacy_in_words(charged: Sequence[Mapping[str, Any]]) -> str:
    units = sorted({hospital["unit"] for hospital in charged})
    deltas = sorted({hospital["delta"] for hospital in charged if hospital["delta"] is not None})
    most = max(float(hospital["epsilon"]) for hospital in charged)
    text = f"At most {spent(most)} per {listed(units)}"
    if deltas:
        text += f", at delta {listed([small(delta) for delta in deltas])}"
    over = [h["name"] for h in charged if h["budget"] is not None and h["epsilon"] > h["budget"]]
    unlimited = sum(hospital["budget"] is None for hospital in charged)
    if over:
        return f"{text}. OVER BUDGET: {listed(over)}."
    if unlimited:
        return f"{text}. {counted(unlimited, 'hospital')} set no budget."
    return f"{text}; every hospital stayed within its budget."


def _privacy_table(hospitals: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            hospital["name"],
            hospital["unit"],
            "without privacy" if hospital["epsilon"] is None else spent(hospital["epsilon"]),
            "none set" if hospital["budget"] is None else small(hospital["budget"]),
            "none" if hospital["delta"] is None else small(hospital["delta"]),
        )
        for hospital in hospitals
    ]
    columns = ("Hospital", "Privacy unit", "Epsilon", "Budget", "Delta")
    return table("Epsilon by hospital", columns, rows, texts=2, kind="full")


def _against_fp32(title: str, name: str, count: int, fp32: int) -> Bars:
    less = f" ({times(fp32 / count)} less)" if count and fp32 > count else ""
    return Bars(title, (name, "fp32"), (count, fp32), (size(count) + less, size(fp32)))


def _traffic_table(rounds: Sequence[Mapping[str, Any]], up: int, down: int) -> str:
    replies = sum(int(entry["replies"]) for entry in rounds)
    rows = [
        ("Rounds", f"{len(rounds):,}"),
        ("Replies", f"{replies:,}"),
        ("From the hospitals, a round", size(up / len(rounds))),
        ("From a hospital, a reply", size(up / replies) if replies else "no reply"),
        ("To the hospitals, a round", size(down / len(rounds))),
    ]
    return table("In figures", ("What", "Value"), rows, kind="full")


def _release_rows(release: Mapping[str, Any]) -> list[tuple[str, str]]:
    agreement = release["agreement"]
    return [
        ("Model file", size(release["bytes"])),
        ("Whole bundle, with tests and signatures", size(release["bundle_bytes"])),
        ("The same student in fp32", size(release["fp32_bytes"])),
        ("Agreement with the trained model", percent(agreement)),
        ("AUC of the exported file", decimal(release["auc"], 4)),
        ("Bundle", release["bundle"]),
    ]


def _timing_rows(timing: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("Time spent training", duration(timing["train_seconds"])),
        ("Time spent on everything else", duration(timing["overhead_seconds"])),
    ]
