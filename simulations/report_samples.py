"""The report's sample images, with what the release said about each, right and wrong."""

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from fedward.common.metrics import Ints
from fedward.simulations.markup import Section, escaped, missing
from fedward.simulations.report_details import ReportDetails
from fedward.simulations.wording import counted, listed, percent

SHOWN = 8  # images of each kind


def samples_section(details: ReportDetails) -> Section:
    """Right and wrong answers, evenly spaced through the split, so that nobody picked the pretty ones."""
    title, count = "Sample images", len(details.images)
    if count == 0:
        return Section("samples", title, missing("No images were kept, so none are shown."))
    right = _all_right(details)[:count]
    body = f'<p class="note">Taken at even steps through {counted(count, "test image")}, not by hand. The '
    body += "percentage is the student&#x27;s own score for its answer, and not a clinical probability.</p>"
    body += _group(details, np.flatnonzero(right), "right", "Answered right")
    body += _group(details, np.flatnonzero(~right), "wrong", "Answered wrong")
    return Section("samples", title, body)


def evenly_spaced(candidates: Ints, most: int) -> Ints:
    """At most `most` of the candidates (n,), the first and the last among them."""
    if len(candidates) <= most:
        return candidates
    return np.asarray(candidates[np.linspace(0, len(candidates) - 1, most).round().astype(np.int64)])


def _group(details: ReportDetails, candidates: Ints, kind: str, title: str) -> str:
    total = f"{len(candidates):,} of {len(details.images):,}"
    head = f'<h3><span class="{kind}">{title}</span> <span class="note">{total}</span></h3>'
    if len(candidates) == 0:
        return head + missing("There are none among these images.")
    items = "".join(_sample(details, int(index)) for index in evenly_spaced(candidates, SHOWN))
    return f'{head}<ul class="samples">{items}</ul>'


def _sample(details: ReportDetails, index: int) -> str:
    said, truth = _names(details, details.decisions[index]), _names(details, details.labels[index])
    score = _score(details, index)
    sure = "" if score is None else f" {percent(score)}"
    alt = f"Test image {index}: answered {said}, shows {truth}"
    return (
        f'<li><img src="{png_uri(details.images[index])}" alt="{escaped(alt)}">'
        f'<p class="said">{escaped(said)}{sure}<br>'
        f'<span class="truth">shows: {escaped(truth)}</span></p></li>'
    )


def png_uri(image: npt.NDArray[np.uint8]) -> str:
    """An image (height, width, 1 or 3) as a PNG inside an address."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[2] == 1 else image)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _all_right(details: ReportDetails) -> npt.NDArray[np.bool_]:
    same = details.decisions == details.labels
    return np.asarray(same.all(axis=1) if same.ndim == 2 else same)


def _names(details: ReportDetails, answer: npt.NDArray[np.int64]) -> str:
    if answer.ndim == 0:
        return details.classes[int(answer)]
    present = [name for name, there in zip(details.classes, answer, strict=True) if there]
    return listed(present) if present else "none of the labels"


def _score(details: ReportDetails, index: int) -> float | None:
    """Softmax probability of the class decided for; None for several labels or a lone output."""
    logits = details.logits[index].astype(np.float64)
    if details.task == "multi-label" or len(logits) == 1:
        return None
    shares = np.exp(logits - logits.max())
    return float(shares[details.decisions[index]] / shares.sum())
