"""The fastest form that still reproduces the golden outputs is found, remembered, and checked again."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward.client.edge import tuning
from fedward.client.edge.runtime import Answer, EdgeModel
from fedward.client.edge.tuning import CHOICES, open_tuned, tune
from fedward.common.bundle import read_bundle
from fedward.common.config import LocalSettings
from fedward.common.errors import BundleRefused, GoldenRefused
from fedward.common.golden import Golden
from fedward.common.graph_forms import FORMS, FP32, FUSED, INT8_PRODUCTS
from fedward.common.models import build_student, flatten, initialise
from fedward.common.randomness import KeyedGenerator
from fedward.common.signing import Signer
from fedward.server.export import to_onnx
from fedward.server.release import run_onnx

Maker = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDWARD_CONFIG", str(tmp_path / "config"))


@pytest.fixture(scope="module")
def graph(make_local: Callable[..., LocalSettings]) -> bytes:
    local = make_local(student="ternary-vit")
    model = build_student(local.spec)
    initialise(model, KeyedGenerator.from_seed(0))
    return to_onnx(local, flatten(list(model.parameters())).numpy())


@pytest.fixture(scope="module")
def golden(graph: bytes) -> Golden:
    inputs = np.random.default_rng(0).uniform(-1, 1, (4, 1, 16, 16)).astype(np.float32)
    return Golden(inputs, run_onnx(graph, inputs), 1e-3, 0.2)


@pytest.fixture(scope="module")
def vit(
    graph: bytes, golden: Golden, make_release: Maker, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """vit(form_tolerance) -> a release whose golden outputs allow that in another form."""
    shown = {"channels": 1, "height": 16, "width": 16, "mean": [0.5], "std": [0.5]}

    def make(form_tolerance: float | None) -> Path:
        own = replace(golden, form_tolerance=form_tolerance)
        place = tmp_path_factory.mktemp("vit") / "release"
        return make_release(place, model=graph, golden=own, preprocessing=shown, student="ternary-vit")

    return make


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """How many seconds an answer in each form is said to take."""
    seconds = {FP32: 3.0, INT8_PRODUCTS: 2.0, FUSED: 1.0}

    def answers(self: EdgeModel, images: np.ndarray) -> list[Answer]:
        return [Answer(row, seconds[self.form]) for row in self.predict(images)]

    monkeypatch.setattr(EdgeModel, "answers", answers)
    return seconds


@pytest.mark.parametrize("fastest", FORMS)
def test_the_fastest_form_is_used_from_then_on(
    vit: Callable[..., Path], signer: Signer, slow: dict[str, float], fastest: str
) -> None:
    slow[fastest] = 0.5
    release = vit(0.2)
    assert open_tuned(release, [signer.public()]).form == FP32
    tried = tune(read_bundle(release, [signer.public()]), 0.01)
    assert [one.milliseconds for one in tried] == sorted(1000 * own for own in slow.values())
    assert tried[0].form == fastest
    assert open_tuned(release, [signer.public()]).form == fastest


def test_a_form_beyond_its_tolerance_is_not_used_however_fast(
    vit: Callable[..., Path], signer: Signer, slow: dict[str, float]
) -> None:
    for release in (vit(1e-6), vit(None)):
        tried = tune(read_bundle(release, [signer.public()]), 0.01)
        assert [(one.form, one.milliseconds) for one in tried] == [
            (FP32, 3000.0),
            (INT8_PRODUCTS, None),
            (FUSED, None),
        ]
        assert all(one.refusal for one in tried[1:])
        assert open_tuned(release, [signer.public()]).form == FP32


def test_a_choice_that_no_longer_reproduces_the_golden_outputs_gives_way(
    vit: Callable[..., Path], signer: Signer, slow: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    release = vit(0.2)
    tune(read_bundle(release, [signer.public()]), 0.01)
    opened = EdgeModel.of

    def refuse(bundle: Any, *rest: Any, form: str = FP32) -> EdgeModel:
        if form != FP32:
            raise GoldenRefused("differs")
        return opened(bundle, *rest, form=form)

    monkeypatch.setattr(EdgeModel, "of", refuse)
    assert open_tuned(release, [signer.public()]).form == FP32


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"a":1}', b'{"a":"nonsense"}', b"\xff" * 9])
def test_a_damaged_memory_costs_speed_alone(
    vit: Callable[..., Path], signer: Signer, slow: dict[str, float], tmp_path: Path, damage: bytes
) -> None:
    release = vit(0.2)
    tune(read_bundle(release, [signer.public()]), 0.01)
    path = tmp_path / "config" / CHOICES
    assert path.exists()
    path.write_bytes(damage)
    assert open_tuned(release, [signer.public()]).form == FP32
    tune(read_bundle(release, [signer.public()]), 0.01)
    assert open_tuned(release, [signer.public()]).form == FUSED


def test_a_choice_is_of_one_model_and_one_onnxruntime(
    vit: Callable[..., Path], make_release: Maker, signer: Signer, slow: dict[str, float], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    release = vit(0.2)
    tune(read_bundle(release, [signer.public()]), 0.01)
    tune(read_bundle(make_release(tmp_path / "other"), [signer.public()]), 0.01)
    assert open_tuned(tmp_path / "other", [signer.public()]).form == FP32
    assert open_tuned(release, [signer.public()]).form == FUSED
    monkeypatch.setattr(tuning.ort, "__version__", "99")
    assert open_tuned(release, [signer.public()]).form == FP32


def test_in_int8_an_images_answer_does_not_depend_on_its_company(
    vit: Callable[..., Path], signer: Signer, golden: Golden
) -> None:
    model = EdgeModel.open(vit(0.2), [signer.public()], form=INT8_PRODUCTS)
    together = model.predict(golden.inputs * np.array([1, 9, 1, 9], np.float32)[:, None, None, None])
    np.testing.assert_array_equal(together[:1], model.predict(golden.inputs[:1]))


def test_a_release_that_is_wrong_as_shipped_is_not_tuned(
    vit: Callable[..., Path],
    graph: bytes,
    golden: Golden,
    make_release: Maker,
    signer: Signer,
    tmp_path: Path,
) -> None:
    shown = {"channels": 1, "height": 16, "width": 16, "mean": [0.5], "std": [0.5]}
    wrong = replace(golden, logits=golden.logits + np.float32(1), form_tolerance=9.0)
    release = make_release(tmp_path / "wrong", model=graph, golden=wrong, preprocessing=shown)
    with pytest.raises(GoldenRefused):
        tune(read_bundle(release, [signer.public()]), 0.01)
    assert not (tmp_path / "config").exists()


def test_an_unreadable_model_is_refused_in_any_form(
    make_release: Maker, signer: Signer, tmp_path: Path
) -> None:
    release = make_release(tmp_path / "b", model=b"no onnx")
    for form in FORMS:
        with pytest.raises(BundleRefused, match="model"):
            EdgeModel.open(release, [signer.public()], form=form)


def test_the_command_prints_every_form_and_predict_uses_the_fastest(
    vit: Callable[..., Path], trust_file: Path, fedward: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    release = vit(0.2)
    monkeypatch.setenv("FEDWARD_CONFIG", str(tmp_path / "config"))
    told = fedward("edge", "tune", release, "--trust", trust_file, "--seconds", 0.1, "--json")
    assert told.code == 0, told.err
    found = json.loads(told.out)
    assert {one["form"] for one in found["forms"]} == set(FORMS)
    assert found["fastest"] == min(found["forms"], key=lambda one: one["milliseconds"])["form"]
    plain = fedward("edge", "tune", release, "--trust", trust_file, "--seconds", 0.1)
    assert (plain.code, plain.out.count("ms an image")) == (0, 3)
