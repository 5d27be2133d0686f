"""The report's sections on the classes: which are found, and which are taken for which."""

from collections.abc import Sequence

from fedward.common.metrics import (
    Ints,
    class_aucs,
    class_members,
    confusion_matrix,
    one_vs_rest_scores,
    roc_curve,
)
from fedward.simulations.figures import MOST_ROWS, Line, dots_figure, roc_figure
from fedward.simulations.markup import Section, chart, escaped, missing, pair, paragraph, scrolling, table
from fedward.simulations.report_details import ReportDetails
from fedward.simulations.wording import decimal, listed, percent

MOST_COLUMNS = 5  # of a confusion matrix that leaves room beside it


def roc_section(details: ReportDetails, *, beside: bool) -> Section:
    """ROC curves on the test split, one against the rest; `beside` another section or on its own."""
    title = "ROC on the test split"
    lines, aucs = _roc_lines(details)
    if not lines:
        text = "There is no ROC curve, because the test split does not hold both a class and its rest."
        return Section("roc", title, missing(text))
    described = "ROC curves. " + "; ".join(line.name for line in lines) + "."
    caption = "Each curve trades false alarms against cases found; the dotted diagonal is a coin's toss."
    if details.task != "binary":
        caption += " One class against all the others."
    left_out = [name for name, auc in zip(details.classes, aucs, strict=False) if auc is None]
    body = chart(roc_figure(lines), described, caption)
    if left_out:
        body += missing(
            f"Without a curve, since the test split lacks them or their rest: {listed(left_out)}."
        )
    return Section("roc", title, body, half=beside)


def confusion_section(details: ReportDetails) -> Section:
    """Which class is taken for which; for multi-label tasks, AUC by label instead."""
    if details.task == "multi-label":
        return _labels_section(details)
    if len(details.labels) == 0:
        return Section("confusion", "Confusion matrix", missing("The test split is empty."))
    counts = confusion_matrix(details.decisions, details.labels, len(details.classes))
    matrix, found = _confusion_table(counts, details.classes), _found_table(counts, details)
    if details.task == "binary":
        found = paragraph(_sensitivity(counts, details.classes)) + found
    body = pair(matrix, found) if len(details.classes) <= MOST_COLUMNS else matrix + found
    return Section("confusion", "Confusion matrix", body)


def _roc_lines(details: ReportDetails) -> tuple[list[Line], list[float | None]]:
    """A line for each class that has one (of two classes, the positive one), and all AUCs in column order."""
    scores = one_vs_rest_scores(details.logits, details.task)
    members = class_members(details.labels, details.task, scores)
    aucs = class_aucs(details.logits, details.labels, details.task)
    lines = []
    for column in range(len(aucs) - 1 if details.task == "binary" else 0, len(aucs)):
        if (auc := aucs[column]) is not None:
            false_alarms, found, _ = roc_curve(scores[:, column], members[:, column])
            name = details.classes[column - len(aucs)]  # a lone output is the last class's
            lines.append(Line(f"{name}: AUC {decimal(auc)}", false_alarms, found))
    return lines, aucs


def _labels_section(details: ReportDetails) -> Section:
    text = "There is no confusion matrix, because an image of this task may carry several labels or none; "
    body = missing(text + "this is the AUC of each label instead.")
    aucs = class_aucs(details.logits, details.labels, details.task)
    labels = _labels_table(details, aucs)
    known = [(name, auc) for name, auc in zip(details.classes, aucs, strict=True) if auc is not None]
    if not known or len(known) > MOST_ROWS:
        return Section("confusion", "AUC by label", body + labels)
    drawn = dots_figure([name for name, _ in known], [auc for _, auc in known], "AUC by label")
    described = "; ".join(f"{name} {decimal(auc)}" for name, auc in known)
    figure = chart(drawn, f"AUC by label: {described}.", "Each label against its absence, on the test split.")
    return Section("confusion", "AUC by label", body + pair(figure, labels))


def _labels_table(details: ReportDetails, aucs: Sequence[float | None]) -> str:
    rows = [
        (name, f"{count:,}", "undefined" if auc is None else decimal(auc))
        for name, count, auc in zip(details.classes, details.labels.sum(axis=0).tolist(), aucs, strict=True)
    ]
    columns = ("Label", "Images with it", "AUC")
    return table("AUC is undefined for a label that all images have, or none", columns, rows, kind="full")


def _sensitivity(counts: Ints, classes: Sequence[str]) -> str:
    sentences = []
    for row, word in ((1, "sensitivity"), (0, "specificity")):
        total, right = int(counts[row].sum()), int(counts[row, row])
        if total:
            share = percent(right / total)
            sentences.append(f"The {word} is {share}: {right:,} of {total:,} images of {classes[row]}.")
    return " ".join(sentences)


def _found_table(counts: Ints, details: ReportDetails) -> str:
    """Each class's share found, and how often the release is right when it names the class."""
    aucs = class_aucs(details.logits, details.labels, details.task)
    aucs = aucs * (len(details.classes) // len(aucs))  # a lone output orders both of its classes
    rows = [
        (name, f"{real:,}", _share(right, real), _share(right, named), decimal(auc))
        for name, real, named, right, auc in zip(
            details.classes,
            counts.sum(axis=1).tolist(),
            counts.sum(axis=0).tolist(),
            counts.diagonal().tolist(),
            aucs,
            strict=True,
        )
    ]
    columns = ("Class", "Test images", "Found", "Right when named", "AUC")
    return table("Class by class", columns, rows, kind="full")


def _confusion_table(counts: Ints, classes: Sequence[str]) -> str:
    caption = "Rows: what the image shows. Columns: what the release says. Shading: share of the row."
    heads = "".join(f'<th scope="col">{escaped(name)}</th>' for name in classes)
    rows = "".join(
        f'<tr><th scope="row">{escaped(name)}</th>{"".join(_cell(int(n), int(row.sum())) for n in row)}</tr>'
        for name, row in zip(classes, counts, strict=True)
    )
    return paragraph(caption, "note") + scrolling(
        "Confusion matrix",
        f'<table class="confusion" aria-label="{caption}"><thead><tr>'
        f'<td class="corner"></td>{heads}</tr></thead><tbody>{rows}</tbody></table>',
    )


def _cell(count: int, total: int) -> str:
    share = count / total if total else 0.0
    return (
        f'<td style="--share:{share:.3f}">{count:,} <span class="percent">{_share(count, total)}</span></td>'
    )


def _share(count: int, total: int) -> str:
    return percent(count / total) if total else "none"
