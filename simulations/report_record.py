"""The report's record: settings, environment, refusals and lost replies, and a glossary in plain words."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedward.simulations.markup import Section, escaped, missing, paragraph, table
from fedward.simulations.wording import counted, setting_rows

MOST_REFUSALS = 200  # rows; a run that refuses everything must not make a page that no browser opens

_GLOSSARY = {
    "AUC": "Take one image with the finding and one without, at random: the AUC is how often the model "
    "scores the first one higher. 0.5 is a coin's toss, 1 is a perfect order. It does not depend on where "
    "the threshold is set.",
    "Accuracy": "The share of answers that are right. If most patients have the finding, always saying yes "
    "looks accurate.",
    "Balanced accuracy": "The share of right answers within each class, averaged, so that a frequent class "
    "cannot hide a rare one.",
    "Sensitivity, specificity": "The share of sick patients found, and the share of healthy ones cleared.",
    "ROC curve": "Every threshold at once: cases found against false alarms. Nearer to the upper left corner "
    "is better.",
    "Standard error": "How far a figure would typically move if other test images had been drawn. "
    "Differences smaller than twice this are not evidence.",
    "Epsilon": "How much the model may betray about any one privacy unit. With a small epsilon (around 1) "
    "an attacker who sees the model can hardly tell whether a given image was used; each further unit lets "
    "the odds shift by up to a factor of 2.7.",
    "Delta": "The small probability with which epsilon's promise may fail.",
    "Privacy unit": "What the promise covers: one image, or all images of one patient. A promise per image "
    "is weaker for patients with many images.",
    "Budget": "The most epsilon that a hospital agreed to spend. It refuses to go on beyond it.",
    "Federated": "The images stay in each hospital; only changes to the model travel, with noise added.",
    "Ternary": "Every weight of the model is -1, 0 or +1, with a scale. That takes a fraction of the space "
    "of ordinary numbers.",
    "fp32": "Weights stored as ordinary numbers of 32 bits, the usual way; the yardstick for size and speed.",
    "Reference half B": "Public images set aside to follow the training. No hospital's images and no test "
    "images are among them.",
}


def settings_section(metrics: Mapping[str, Any]) -> Section:
    """Every setting of the study, and the data set's fingerprint."""
    dataset = metrics["dataset"]
    about = {key: dataset[key] for key in ("name", "source", "sha256", "task", "classes")}
    rows = setting_rows({**metrics["study"], "dataset": about})
    return Section("settings", "Settings of the study", _settings_table("Every setting", rows))


def environment_section(metrics: Mapping[str, Any]) -> Section:
    """The versions and the machine that the run used."""
    rows, title = setting_rows(metrics["environment"]), "Environment"
    if not rows:
        return Section("environment", title, missing("The run recorded nothing about its environment."))
    return Section("environment", title, _settings_table("What the run ran on", rows))


def refusals_section(metrics: Mapping[str, Any]) -> Section:
    """Refused and lost replies by round."""
    rounds, hospitals, title = metrics["rounds"], len(metrics["hospitals"]), "Refusals and lost replies"
    rows = [row for entry in rounds for row in _refusal_rows(entry, hospitals)]
    if not rows:
        text = "Nothing was refused or lost: every one of the "
        text += f"{counted(hospitals, 'hospital')} was heard in every round."
        return Section("refusals", title, paragraph(text))
    shown = rows[:MOST_REFUSALS]
    body = table(
        "By round",
        ("Round", "Replies used", "Hospital", "Refusal", "What it said"),
        shown,
        texts=5,
        kind="messages",
    )
    if len(rows) > len(shown):
        body += missing(f"{len(rows) - len(shown):,} further rows are in metrics.json.")
    touched = len({row[0] for row in rows})
    text = f"{counted(touched, 'round')} of {len(rounds)} went on without some of the hospitals."
    return Section("refusals", title, paragraph(text) + body)


def glossary_section() -> Section:
    """The page's technical words for a reader who treats patients."""
    items = "".join(f"<dt>{escaped(term)}</dt><dd>{escaped(text)}</dd>" for term, text in _GLOSSARY.items())
    return Section("glossary", "Glossary", f'<dl class="glossary">{items}</dl>')


def _settings_table(caption: str, rows: Sequence[tuple[str, str]]) -> str:
    return table(caption, ("Setting", "Value"), rows, texts=2, kind="full settings")


def _refusal_rows(entry: Mapping[str, Any], hospitals: int) -> list[tuple[str, ...]]:
    number, used = str(entry["round"]), f"{entry['replies']} of {hospitals}"
    rows: list[tuple[str, ...]] = [
        (number, used, refusal["hospital"] or "unknown sender", refusal["name"], refusal["message"])
        for refusal in entry["refusals"]
    ]
    silent = hospitals - entry["replies"] - len(rows)
    if silent > 0:
        rows.append((number, used, counted(silent, "hospital"), "no reply", "Nothing usable came in time."))
    return rows
