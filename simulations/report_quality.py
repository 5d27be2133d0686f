"""The report's sections on how well the release diagnoses, and for whom."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedward.simulations.figures import dots_figure
from fedward.simulations.markup import Section, chart, missing, pair, paragraph, table
from fedward.simulations.wording import counted, decimal, percent

_COMPARED = {
    "public_only": "Public data alone",
    "one_hospital": "One hospital alone",
    "pooled": "All images pooled, without privacy",
}


def hospitals_section(metrics: Mapping[str, Any]) -> Section:
    """AUC by hospital, each on its own share of the test split, with the spread."""
    hospitals, title = metrics["hospitals"], "AUC by hospital"
    known = [hospital for hospital in hospitals if hospital["auc"] is not None]
    if not known:
        text = "No hospital has an AUC of its own: none has test images of more than one class."
        return Section("hospitals", title, missing(text) + _hospitals_table(hospitals))
    names, aucs = [hospital["name"] for hospital in known], [float(hospital["auc"]) for hospital in known]
    text = _spread(aucs)
    if len(known) < len(hospitals):
        undefined = counted(len(hospitals) - len(known), "hospital")
        text += f" Undefined at {undefined}, without test images of more than one class."
    caption = "Every hospital's AUC of the same release on its own share of the test split."
    drawn = chart(dots_figure(names, aucs, "AUC"), text, caption)
    return Section("hospitals", title, paragraph(text) + pair(drawn, _hospitals_table(hospitals)))


def comparison_section(metrics: Mapping[str, Any]) -> Section:
    """The same student from public data alone, one hospital alone, and pooled without privacy."""
    compared, title = metrics["comparison"], "Against other ways to train"
    if not compared:
        text = "Not compared with training alone or pooled: the run was not asked to (--compare)."
        return Section("comparison", title, missing(text))
    rows = [(name, *_figures(compared.get(key))) for key, name in _COMPARED.items()]
    rows.append(("Federated: this release", *_figures(metrics["release"])))
    caption = "The same student on the same test split, trained four ways"
    columns = ("Trained on", "AUC", "Accuracy", "Balanced accuracy")
    return Section("comparison", title, table(caption, columns, rows, kind="full", marked=len(rows) - 1))


def _spread(aucs: Sequence[float]) -> str:
    if len(aucs) == 1:
        return f"One hospital has an AUC of its own: {decimal(aucs[0])}."
    deviation = decimal(float(np.std(aucs, ddof=1)))
    return (
        f"From {decimal(min(aucs))} to {decimal(max(aucs))} over {len(aucs)} hospitals: mean "
        f"{decimal(float(np.mean(aucs)))}, standard deviation {deviation}."
    )


def _hospitals_table(hospitals: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            hospital["name"],
            f"{hospital['num_examples']:,}",
            f"{hospital['declared']:,}",
            "undefined" if hospital["auc"] is None else decimal(hospital["auc"]),
        )
        for hospital in hospitals
    ]
    columns = ("Hospital", "Training images", "Declared", "AUC")
    return table("Every hospital", columns, rows, kind="full")


def _figures(figures: Mapping[str, Any] | None) -> tuple[str, str, str]:
    figures = figures or dict.fromkeys(("auc", "accuracy", "balanced_accuracy"))
    return decimal(figures["auc"]), percent(figures["accuracy"]), percent(figures["balanced_accuracy"])
