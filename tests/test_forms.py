"""A release may compute in int8 on a device only where public records showed that it decides alike."""

from collections.abc import Callable

import numpy as np
import pytest

from fedward.common.config import LocalSettings
from fedward.common.datasets import Split
from fedward.common.golden import Golden
from fedward.common.graph_forms import INT8_PRODUCTS, in_form
from fedward.common.images import to_tensor
from fedward.common.models import build_student, flatten, initialise
from fedward.common.randomness import KeyedGenerator
from fedward.server.export import to_onnx
from fedward.server.forms import LEAST_IMAGES, with_forms
from fedward.server.release import run_onnx

LocalMaker = Callable[..., LocalSettings]
FAR = (-100.0,)  # a threshold that every image passes


def _graph(local: LocalSettings) -> bytes:
    model = build_student(local.spec)
    initialise(model, KeyedGenerator.from_seed(0))
    latents = flatten(list(model.parameters())).numpy()
    return to_onnx(local, (latents + 0.05 * np.random.default_rng(0).normal(size=len(latents))).astype("f4"))


@pytest.fixture(scope="module")
def vit(make_local: LocalMaker) -> LocalSettings:
    return make_local(student="ternary-vit")


@pytest.fixture(scope="module")
def graph(vit: LocalSettings) -> bytes:
    return _graph(vit)


def _margins(graph: bytes, images: np.ndarray) -> np.ndarray:
    logits = run_onnx(graph, to_tensor(images).numpy())
    return np.asarray(logits[:, 1] - logits[:, 0])


@pytest.fixture(scope="module")
def images(graph: bytes) -> np.ndarray:
    """600 images, in the order of the network's answers."""
    drawn = np.random.default_rng(0).integers(0, 256, (600, 16, 16, 1), np.uint8)
    return drawn[np.argsort(_margins(graph, drawn))]


@pytest.fixture(scope="module")
def clear(images: np.ndarray) -> Split:
    """Records that the network ranks rightly, and by far."""
    kept = np.concatenate([images[:120], images[-120:]])
    return Split(kept, np.arange(240) // 120)


@pytest.fixture(scope="module")
def golden(graph: bytes, images: np.ndarray) -> Golden:
    inputs = to_tensor(images[::200]).numpy()
    return Golden(inputs, run_onnx(graph, inputs), 1e-3)


def test_where_it_decides_alike_the_golden_outputs_get_a_tolerance(
    vit: LocalSettings, graph: bytes, clear: Split, golden: Golden
) -> None:
    found, figures = with_forms(golden, graph, vit, clear, FAR)
    assert figures["int8"] == {"images": 240, "agreement": 1.0, "auc_lost": 0.0, "allowed": True}
    assert found.form_tolerance is not None
    assert golden.tolerance < found.form_tolerance < 0.5 * np.ptp(golden.logits)
    assert (found.inputs is golden.inputs, found.tolerance) == (True, golden.tolerance)


def test_where_it_decides_otherwise_it_gets_none(
    vit: LocalSettings, graph: bytes, images: np.ndarray, golden: Golden
) -> None:
    middle = images[180:420]
    margins = _margins(graph, middle)
    close = Split(middle, (margins > np.median(margins)).astype(np.int64))
    found, figures = with_forms(golden, graph, vit, close, (float(np.median(margins)),))
    assert found is golden
    assert figures["int8"]["agreement"] < 0.995
    assert figures["int8"]["allowed"] is False


def test_where_its_ranking_is_worse_it_gets_none(
    vit: LocalSettings, graph: bytes, images: np.ndarray, golden: Golden
) -> None:
    in_int8 = in_form(graph, INT8_PRODUCTS)
    ranked = np.concatenate([_margins(in_int8, image[None]) for image in images])
    low = int(np.flatnonzero(np.diff(ranked) < 0)[0])  # it changes the order of this image and the next
    records = Split(np.repeat(images[low : low + 2], 120, axis=0), np.arange(240) // 120)
    found, figures = with_forms(golden, graph, vit, records, FAR)
    assert found is golden
    assert figures["int8"] == {"images": 240, "agreement": 1.0, "auc_lost": 1.0, "allowed": False}


def test_records_of_one_class_show_no_ranking(
    vit: LocalSettings, graph: bytes, clear: Split, golden: Golden
) -> None:
    found, _ = with_forms(golden, graph, vit, Split(clear.images, np.zeros(240, np.int64)), FAR)
    assert found is golden


def test_too_few_records_or_none_show_nothing(
    vit: LocalSettings, graph: bytes, clear: Split, golden: Golden
) -> None:
    few = Split(clear.images[: LEAST_IMAGES - 1], clear.labels[: LEAST_IMAGES - 1])
    for records in (few, None):
        assert with_forms(golden, graph, vit, records, FAR) == (golden, {})


@pytest.mark.parametrize("student", ["ternary-cnn", "int8-depthwise", "fp32-vit"])
def test_a_student_without_such_products_is_not_asked(
    make_local: LocalMaker, clear: Split, golden: Golden, student: str
) -> None:
    local = make_local(student=student)
    assert with_forms(golden, _graph(local), local, clear, FAR) == (golden, {})
