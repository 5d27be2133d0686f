"""A model answers only after its bundle verified and its golden outputs came out right."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedward.client.edge import runtime
from fedward.client.edge.runtime import EdgeModel
from fedward.common.bundle import pack_tar
from fedward.common.errors import (
    BundleRefused,
    GoldenRefused,
    ImageRefused,
    SettingRefused,
    SignatureRefused,
)
from fedward.common.signing import Signer

ReleaseMaker = Callable[..., Path]


@pytest.fixture(scope="module")
def release(make_release: ReleaseMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_release(tmp_path_factory.mktemp("release") / "bundle")


@pytest.fixture(scope="module")
def model(release: Path, signer: Signer) -> EdgeModel:
    return EdgeModel.open(release, [signer.public()])


@given(arrays(np.float32, (3, 1, 4, 4), elements=st.floats(-1, 1, width=32)))
def test_the_model_computes_what_it_was_made_to(model: EdgeModel, images: npt.NDArray[np.float32]) -> None:
    logits = model.predict(images)
    assert logits.shape == (3, 2)
    assert np.allclose(logits[:, 0], 0)
    assert np.allclose(logits[:, 1], images.sum(axis=(1, 2, 3)) / 4, atol=1e-5)
    assert np.allclose([answer.logits for answer in model.answers(images)], logits, atol=1e-5)


def test_each_image_is_timed_alone(model: EdgeModel) -> None:
    answers = model.answers(np.zeros((4, 1, 4, 4), np.float32))
    assert len(answers) == 4
    assert all(0 < answer.seconds < 1 for answer in answers)
    assert model.answers(np.zeros((0, 1, 4, 4), np.float32)) == []


def test_a_tar_answers_like_its_directory(
    release: Path, tmp_path: Path, signer: Signer, model: EdgeModel
) -> None:
    (tmp_path / "b.tar").write_bytes(pack_tar(release))
    images = np.full((1, 1, 4, 4), 0.5, np.float32)
    packed = EdgeModel.open(tmp_path / "b.tar", [signer.public()])
    assert np.array_equal(packed.predict(images), model.predict(images))


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 1, 4, 4)),
        np.zeros((1, 4, 4), np.float32),
        np.zeros((1, 3, 4, 4), np.float32),
        np.zeros((1, 1, 4, 5), np.float32),
        np.full((1, 1, 4, 4), np.nan, np.float32),
    ],
)
def test_images_that_the_release_does_not_take_are_refused(
    model: EdgeModel, images: npt.NDArray[np.float32]
) -> None:
    with pytest.raises(ImageRefused):
        model.predict(images)


def test_nothing_is_decompressed_or_run_before_the_bundle_verifies(
    release: Path, stranger: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise RuntimeError("touched an unverified model")

    for name in ("model_bytes", "_session", "read_golden"):
        monkeypatch.setattr(runtime, name, never)
    with pytest.raises(SignatureRefused):
        EdgeModel.open(release, [stranger.public()])


def test_an_expired_release_does_not_open(make_release: ReleaseMaker, tmp_path: Path, signer: Signer) -> None:
    release = make_release(tmp_path / "b", expires="2030-01-01T00:00:00Z")
    EdgeModel.open(release, [signer.public()], now=datetime(2029, 12, 31, tzinfo=UTC))
    with pytest.raises(BundleRefused, match="expired"):
        EdgeModel.open(release, [signer.public()], now=datetime(2030, 1, 1, tzinfo=UTC))


def test_golden_outputs_must_come_out_within_the_tolerance(
    make_release: ReleaseMaker, tmp_path: Path, signer: Signer
) -> None:
    EdgeModel.open(make_release(tmp_path / "within", golden_error=0.5e-4), [signer.public()])
    with pytest.raises(GoldenRefused, match="differ by"):
        EdgeModel.open(make_release(tmp_path / "beyond", golden_error=3e-4), [signer.public()])


def test_golden_outputs_of_another_shape_are_refused(
    make_release: ReleaseMaker, tmp_path: Path, signer: Signer
) -> None:
    wider = {"channels": 1, "height": 4, "width": 5, "mean": [0.5], "std": [0.5]}
    with pytest.raises(GoldenRefused, match="not for this release"):
        EdgeModel.open(make_release(tmp_path / "b", preprocessing=wider), [signer.public()])


@pytest.mark.parametrize("raw", [b"no onnx", b"\x08\x0a"])
def test_a_signed_model_that_is_none_is_refused(
    make_release: ReleaseMaker, tmp_path: Path, signer: Signer, raw: bytes
) -> None:
    with pytest.raises(BundleRefused, match="does not load"):
        EdgeModel.open(make_release(tmp_path / "b", model=raw), [signer.public()])


@pytest.mark.filterwarnings("error")  # refused before onnxruntime gets to warn
@pytest.mark.parametrize("providers", [("CUDAExecutionProvider", "CPUExecutionProvider"), ("Nonsense",), ()])
def test_a_missing_provider_is_refused_and_not_replaced(
    release: Path, signer: Signer, providers: tuple[str, ...]
) -> None:
    if set(providers) and set(providers) <= set(ort.get_available_providers()):
        pytest.skip("this machine has it")
    with pytest.raises(SettingRefused, match="CPUExecutionProvider"):
        EdgeModel.open(release, [signer.public()], providers=providers)


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_falls_away_while_loading_is_refused(
    release: Path, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        ort, "get_available_providers", lambda: ["OtherExecutionProvider", "CPUExecutionProvider"]
    )
    with pytest.raises(SettingRefused, match="OtherExecutionProvider"):
        EdgeModel.open(
            release, [signer.public()], providers=("OtherExecutionProvider", "CPUExecutionProvider")
        )
