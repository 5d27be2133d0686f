"""The top of the report: what was trained on which data, what it may not be taken for, the key figures."""

from collections.abc import Mapping
from typing import Any

from fedward.common.metrics import macro_auc_standard_error
from fedward.server.recipes import PUBLIC_STARTS
from fedward.simulations.markup import escaped
from fedward.simulations.report_details import ReportDetails
from fedward.simulations.wording import counted, decimal, percent, size, small, spent, times


def header(metrics: Mapping[str, Any], details: ReportDetails) -> str:
    """The first line, the warnings and the row of key figures."""
    return "\n".join([_first_line(metrics), *_notices(metrics), _key_figures(metrics, details)])


def subject(metrics: Mapping[str, Any]) -> str:
    """What was trained on what, for the page's title and first line."""
    student = metrics["study"].get("student")
    trained = f"A {student} student" if student else "A student"
    hospitals = counted(len(metrics["hospitals"]), "simulated hospital")
    synthetic = "synthetic images: " if is_synthetic(metrics) else ""
    return f"{trained}, trained by {hospitals} on {synthetic}{metrics['dataset']['name']}"


def is_synthetic(metrics: Mapping[str, Any]) -> bool:
    """Whether the images were drawn by a program."""
    dataset = metrics["dataset"]
    described = f"{dataset['name']} {dataset['source']}".casefold()
    return "phantom" in described or "synthetic" in described


def _first_line(metrics: Mapping[str, Any]) -> str:
    dataset = metrics["dataset"]
    counts = dataset["counts"]
    images = f"{counts['train']:,} training, {counts['val']:,} validation and {counts['test']:,} test images"
    source = f"Where the data came from: {dataset['source']}. {images[0].upper()}{images[1:]}."
    return f'<h1>{escaped(subject(metrics))} <span class="source">{escaped(source)}</span></h1>'


def _notices(metrics: Mapping[str, Any]) -> list[str]:
    seed = metrics["study"].get("seed")
    from_seed = "from a seed" if seed is None else f"from its seed ({seed})"
    text = "One machine held every hospital's images, and the privacy noise can be reproduced "
    text += f"{from_seed}. The epsilons below are what the same settings would spend in a deployment, "
    text += "where each hospital draws noise that nobody can draw again."
    if all(hospital["epsilon"] is None for hospital in metrics["hospitals"]):
        text = "One machine held every hospital's images, no privacy noise was added, and all that was "
        text += f"drawn at random can be reproduced {from_seed}."
    notices = [_notice("This is a simulation, and it protects nobody.", text)]
    if is_synthetic(metrics):
        text = "A program drew these images; no patient stands behind them. The figures show that the "
        text += "system works, and nothing about diagnosis."
        notices.insert(0, _notice("SYNTHETIC DATA.", text, " loud"))
    return [*notices, *_recipe(metrics["study"].get("simulation", {}))]


def _recipe(options: Mapping[str, Any]) -> list[str]:
    """What a public start means, or why there is none."""
    if note := options.get("recipe_note"):
        text = f"A recipe with a public start was asked for and not used: {note}"
        return [_notice("Trained from scratch.", text)]
    if options.get("recipe") not in PUBLIC_STARTS and options.get("start") is None:
        return []
    text = "The first model had learned from public data before any hospital took part. What these alone "
    text += "reach is among the comparisons, where they were asked for."
    return [_notice("A public start.", text)]


def _notice(headline: str, text: str, kind: str = "") -> str:
    return f'<p class="notice{kind}"><strong>{headline}</strong> {escaped(text)}</p>'


def _key_figures(metrics: Mapping[str, Any], details: ReportDetails) -> str:
    release, test = metrics["release"], counted(metrics["dataset"]["counts"]["test"], "test image")
    epsilon, about_epsilon = _epsilon(metrics["hospitals"])
    cards: list[tuple[str, ...]] = [
        _auc_card(release["auc"], details),
        ("Accuracy", percent(release["accuracy"]), f"of {test}"),
        ("Balanced accuracy", percent(release["balanced_accuracy"]), "every class counts the same"),
        ("Epsilon (privacy)", epsilon, about_epsilon),
        ("Release size", size(release["bytes"]), "the compressed model file"),
    ]
    if release["bytes"] and release["fp32_bytes"]:
        ratio = times(release["fp32_bytes"] / release["bytes"])
        cards.append(("Smaller than fp32", ratio, f"fp32: {size(release['fp32_bytes'])}"))
    return f'<dl class="key">{"".join(_card(*card) for card in cards)}</dl>'


def _card(term: str, value: str, about: str, extra: str = "") -> str:
    extra = f' <span class="extra">{escaped(extra)}</span>' if extra else ""
    return (
        f'<div><dt>{escaped(term)}</dt><dd class="value">{escaped(value)}{extra}</dd>'
        f'<dd class="about">{escaped(about)}</dd></div>'
    )


def _auc_card(auc: float | None, details: ReportDetails) -> tuple[str, ...]:
    error = macro_auc_standard_error(details.logits, details.labels, details.task)
    term = "Test AUC"
    if auc is None or error is None:
        return term, decimal(auc), "undefined where the test split has one class only"
    about = "± standard error" if details.task == "binary" else "mean over classes; ± standard error at most"
    return term, decimal(auc), about, f"± {decimal(error)}"


def _epsilon(hospitals: list[Mapping[str, Any]]) -> tuple[str, str]:
    charged = [hospital for hospital in hospitals if hospital["epsilon"] is not None]
    if not charged:
        return "unlimited", "trained without differential privacy"
    most = max(charged, key=lambda hospital: float(hospital["epsilon"]))
    where = f"the most of {len(hospitals)} hospitals" if len(hospitals) > 1 else "one hospital"
    about = f"per {most['unit']}, delta {small(most['delta'])}; {where}"
    if len(charged) < len(hospitals):
        about += f"; {len(hospitals) - len(charged)} without privacy"
    return spent(most["epsilon"]), about
