"""Whether a release may compute in int8 where it runs: found out on public records, and signed.

The tokens that a product takes are then rounded to eight bits, so the answers are not quite the student's.
On reference half B, one image at a time as on a device, they must decide alike on at least `LEAST_AGREEMENT`
of the images and lose no more than `MOST_AUC_LOST`. Fewer than `LEAST_IMAGES` cannot show that.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fedward.common.codec import Vector
from fedward.common.config import LocalSettings
from fedward.common.datasets import Split
from fedward.common.decision import decide
from fedward.common.golden import Golden
from fedward.common.graph_forms import FP32, FUSED, INT8_PRODUCTS, in_form
from fedward.common.images import to_tensor
from fedward.common.metrics import macro_auc
from fedward.common.onnx_options import onnx_session

LEAST_AGREEMENT, MOST_AUC_LOST, LEAST_IMAGES = 0.995, 0.002, 200
_ROUNDED = (INT8_PRODUCTS, FUSED)  # the forms that round what a product takes
_SLACK = 4.0  # a last bit of fp32 moves tokens to the next of 255 levels: another machine's answers differ


def with_forms(
    golden: Golden, graph: bytes, local: LocalSettings, records: Split | None, thresholds: Sequence[float]
) -> tuple[Golden, dict[str, Any]]:
    """The golden outputs with a tolerance for int8, where that holds what is asked above, and its figures.

    Args:
        golden: of the graph as it is shipped.
        graph: the ONNX student.
        local: the study's settings.
        records: reference half B, or None.
        thresholds: the release's own, by which it decides.
    """
    if records is None or len(records.images) < LEAST_IMAGES or in_form(graph, INT8_PRODUCTS) == graph:
        return golden, {}
    figures = _figures(graph, local, records, tuple(thresholds))
    if not figures["agreement"] >= LEAST_AGREEMENT or not figures["auc_lost"] <= MOST_AUC_LOST:
        return golden, {"int8": {**figures, "allowed": False}}
    answers = [_one_by_one(graph, form, golden.inputs) for form in _ROUNDED]
    distance = max(float(np.abs(own - golden.logits).max()) for own in answers)
    tolerance = golden.tolerance + _SLACK * distance
    return replace(golden, form_tolerance=tolerance), {"int8": {**figures, "allowed": True}}


def _figures(
    graph: bytes, local: LocalSettings, records: Split, thresholds: tuple[float, ...]
) -> dict[str, Any]:
    inputs = to_tensor(records.images).numpy()
    logits = [_one_by_one(graph, form, inputs) for form in (FP32, *_ROUNDED)]
    shipped, *others = [decide(own, local.task, thresholds) for own in logits]
    aucs = [macro_auc(own, records.labels, local.task) for own in logits]
    known = [auc for auc in aucs if auc is not None]
    return {  # of the form that fares worst
        "images": len(inputs),
        "agreement": min(float((shipped == own).mean()) for own in others),
        "auc_lost": known[0] - min(known[1:]) if len(known) == len(aucs) else 1.0,  # unknown is not shown
    }


def _one_by_one(graph: bytes, form: str, inputs: np.ndarray) -> Vector:
    session = onnx_session(in_form(graph, form))
    name = session.get_inputs()[0].name
    rows = [session.run(None, {name: inputs[row : row + 1]})[0] for row in range(len(inputs))]
    return np.concatenate(rows).astype(np.float32)
