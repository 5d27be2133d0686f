"""A release is what was trained: signed, opened by the edge, honest about its privacy, repeatable."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward.client.edge.runtime import EdgeModel
from fedward.common.bundle import model_bytes, read_bundle
from fedward.common.config import LocalSettings, Study
from fedward.common.datasets import ImageDataset
from fedward.common.errors import GoldenRefused, OutputRefused, SignatureRefused
from fedward.common.golden import read_golden
from fedward.common.images import to_tensor
from fedward.common.manifest import GOLDEN, Manifest, release_digest
from fedward.common.models import build_student, flatten, initialise
from fedward.common.onnx_wire import FLOAT16, tensors
from fedward.common.randomness import KeyedGenerator
from fedward.common.signing import Signer
from fedward.server import release as release_module
from fedward.server.export import latents_of, to_onnx
from fedward.server.leftovers import rounded
from fedward.server.reference import halve, measure, student_logits
from fedward.server.release import SitePrivacy, make_release
from fedward.server.study_folder import StudyFolder
from fedward.simulations.phantoms import make_phantoms

SITES = [SitePrivacy("hospital-0", 2.5, 1e-5), SitePrivacy("hospital-1", None, None)]
Maker = Callable[..., StudyFolder]


def _latents(local: LocalSettings, seed: int = 0) -> np.ndarray:
    model = build_student(local.spec)
    initialise(model, KeyedGenerator.from_seed(seed))
    return flatten(list(model.parameters())).numpy()


@pytest.fixture
def released(
    tmp_path: Path,
    make_study: Callable[..., Study],
    make_local: Callable[..., LocalSettings],
    phantom: ImageDataset,
    signer: Signer,
) -> Maker:
    """released(host, with_reference=True, by=signer, engine="inproc", local={...}, **study) -> its folder."""

    def make(
        host: str = "study",
        with_reference: bool = True,
        by: Signer = signer,
        engine: str = "inproc",
        data: ImageDataset = phantom,
        local: dict[str, Any] | None = None,
        **changes: Any,
    ) -> StudyFolder:
        settings = make_local(**{"student": "ternary-cnn", **(local or {})})
        folder = StudyFolder(tmp_path / host)
        folder.create(make_study(settings, **changes), data.val if with_reference else None)
        make_release(folder, _latents(settings), SITES, by, {"engine": engine, "host": host})
        return folder

    return make


def _manifest(folder: StudyFolder, signer: Signer) -> Manifest:
    return read_bundle(folder.release, [signer.public()]).manifest


@pytest.mark.parametrize(
    "student",
    [
        "ternary-cnn",
        "int8-depthwise",
        "fp32-cnn",
        "ternary-mobile",
        "ternary-vit",
        "ternary-vit-s-mq",
        "int8-vit",
    ],
)
def test_the_edge_opens_the_release_and_predicts_what_was_trained(
    released: Maker, signer: Signer, phantom: ImageDataset, student: str
) -> None:
    folder = released(local={"student": student})
    model = EdgeModel.open(folder.release, [signer.public()])
    found = model.predict(to_tensor(phantom.test.images).numpy())
    local = folder.study().local
    expected = student_logits(local, rounded(local, _latents(local)), phantom.test.images)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(("kind", "task"), [("cell", "multi-class"), ("findings", "multi-label")])
def test_every_task_is_released_and_opened(released: Maker, signer: Signer, kind: str, task: str) -> None:
    data = make_phantoms(kind, classes=4 if kind == "cell" else None, size=16, counts=(4, 12, 4))
    channels = data.val.images.shape[-1]
    local = {"task": task, "classes": data.classes, "channels": channels}
    folder = released(data=data, local=local, decision="calibrated")
    manifest = EdgeModel.open(folder.release, [signer.public()]).manifest
    assert manifest["task"] == task
    assert manifest["decision"]["rule"] == ("argmax" if task == "multi-class" else "threshold")
    assert len(manifest["decision"]["thresholds"]) == len(data.classes)
    assert manifest["preprocessing"]["channels"] == channels


def test_a_transformers_release_is_of_its_rounded_student(released: Maker, signer: Signer) -> None:
    graph = model_bytes(read_bundle(released(local={"student": "ternary-vit"}).release, [signer.public()]))
    scales = [one for one in tensors(graph) if one.name.endswith("weight.scale")]
    assert len(scales) == 2 + 4 * 6  # patch embedding, head, and six in each of four blocks
    assert {one.data_type for one in scales} == {FLOAT16}


@pytest.mark.parametrize("student", ["ternary-vit", "ternary-cnn"])
def test_whether_it_may_compute_in_int8_is_found_out_on_reference_records(
    released: Maker, signer: Signer, student: str
) -> None:
    data = make_phantoms(size=16, counts=(4, 400, 4))
    bundle = read_bundle(released(data=data, local={"student": student}).release, [signer.public()])
    tolerance = read_golden(bundle.files[GOLDEN]).form_tolerance
    if student == "ternary-cnn":
        assert (tolerance, "forms" in bundle.manifest["metrics"]) == (None, False)
        return
    found = bundle.manifest["metrics"]["forms"]["int8"]
    assert found["images"] == 200
    assert found["allowed"] == (found["agreement"] >= 0.995 and found["auc_lost"] <= 0.002)
    assert (tolerance is not None) == found["allowed"]


def test_nobody_else_signed_it(released: Maker, stranger: Signer) -> None:
    with pytest.raises(SignatureRefused):
        read_bundle(released().release, [stranger.public()])


def test_the_digest_is_the_same_for_runs_that_differ_in_engine_host_time_and_keys(
    released: Maker, signer: Signer, stranger: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _manifest(released("here", engine="inproc"), signer)
    monkeypatch.setattr(release_module, "_time", lambda days: "2199-01-01T00:00:00Z")
    monkeypatch.setattr(release_module, "_tools", lambda: {"python": "4.0"})
    second = _manifest(released("there", engine="ray", by=stranger), stranger)
    assert first["provenance"] != second["provenance"]
    assert first["expires"] != second["expires"]
    assert release_digest(first) == release_digest(second)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "another"},
        {"version": 2},
        {"parent": "c" * 64},
        {"seed": None},
        {"local": {"student": "fp32-cnn"}},
    ],
)
def test_the_digest_of_another_release_is_another(
    released: Maker, signer: Signer, change: dict[str, Any]
) -> None:
    digests = {
        release_digest(_manifest(released("first"), signer)),
        release_digest(_manifest(released("second", **change), signer)),
    }
    assert len(digests) == 2


def test_no_path_host_or_time_stands_in_what_the_digest_is_of(
    released: Maker, signer: Signer, tmp_path: Path
) -> None:
    manifest = _manifest(released("here"), signer)
    kept = {key: value for key, value in manifest.items() if key not in ("provenance", "expires")}
    assert str(tmp_path) not in json.dumps(kept)
    assert "inproc" not in json.dumps(kept)


def test_a_seeded_study_says_that_its_noise_protects_nobody(released: Maker, signer: Signer) -> None:
    privacy = _manifest(released(seed=3), signer)["privacy"]
    assert privacy["reproducible_noise"] is True
    assert "protects nobody" in privacy["statement"]


def test_a_study_by_the_systems_keys_gives_its_guarantee_by_site(released: Maker, signer: Signer) -> None:
    privacy = _manifest(released(seed=None), signer)["privacy"]
    assert privacy["reproducible_noise"] is False
    assert "differentially private" in privacy["statement"]
    assert "nobody" not in privacy["statement"]
    assert privacy["sites"] == [
        {"name": "hospital-0", "epsilon": 2.5, "delta": 1e-5},
        {"name": "hospital-1", "epsilon": None, "delta": None},
    ]
    assert privacy["unit"] == "image"


def test_a_study_without_noise_claims_no_privacy(released: Maker, signer: Signer) -> None:
    privacy = _manifest(released(local={"noise_multiplier": 0.0}, seed=None), signer)["privacy"]
    assert "without differential privacy" in privacy["statement"]


def test_figures_are_of_half_b_and_calibration_of_half_a(
    released: Maker, signer: Signer, phantom: ImageDataset
) -> None:
    folder = released(decision="calibrated")
    manifest, halves = _manifest(folder, signer), halve(phantom.val)
    local = folder.study().local
    thresholds = tuple(manifest["decision"]["thresholds"])
    assert manifest["metrics"]["reference_b"] == measure(
        local, _latents(local), halves.evaluation, thresholds
    )
    assert manifest["calibration"]["images"] == len(halves.calibration.images)
    assert manifest["decision"]["source"] == "reference half A"


def test_without_reference_data_the_release_says_so(released: Maker, signer: Signer) -> None:
    manifest = _manifest(released(with_reference=False, decision="calibrated"), signer)
    assert manifest["calibration"]["temperature"] is None
    assert "no reference data" in manifest["calibration"]["note"]
    assert "no reference data" in manifest["metrics"]["note"]
    assert manifest["decision"]["thresholds"] == [0.0]


@pytest.mark.parametrize(("prior", "said"), [(None, "training"), ((0.5, 0.5), "balanced")])
def test_the_prior_of_the_decision_is_named(
    released: Maker, signer: Signer, prior: tuple[float, float] | None, said: str
) -> None:
    assert _manifest(released(local={"class_prior": prior}), signer)["decision"]["prior"] == said


def test_golden_inputs_are_noise_and_of_nobody(
    released: Maker, signer: Signer, phantom: ImageDataset
) -> None:
    """The same for every study of this shape, so they cannot hold anything of its records."""
    one = read_bundle(released("one").release, [signer.public()])
    other = read_bundle(released("other", with_reference=False, name="x").release, [signer.public()])
    golden = read_golden(one.files[GOLDEN])
    np.testing.assert_array_equal(golden.inputs, read_golden(other.files[GOLDEN]).inputs)
    np.testing.assert_allclose(
        EdgeModel.open(released("two").release, [signer.public()]).predict(golden.inputs),
        golden.logits,
        atol=golden.tolerance,
    )


def test_the_released_graph_gives_back_the_student(released: Maker, signer: Signer) -> None:
    folder = released()
    local, bundle = folder.study().local, read_bundle(folder.release, [signer.public()])
    graph = model_bytes(bundle)
    assert to_onnx(local, latents_of(graph, local)) == graph == to_onnx(local, _latents(local))


def test_a_graph_that_computes_something_else_is_not_released(
    released: Maker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def wrong(local: LocalSettings, latents: np.ndarray) -> bytes:
        return to_onnx(local, latents + np.float32(0.5) * (np.arange(len(latents)) % 3 == 0))

    monkeypatch.setattr(release_module, "to_onnx", wrong)
    with pytest.raises(GoldenRefused, match="nothing was released"):
        released()
    assert not (tmp_path / "study" / "release").exists()


def test_latents_that_are_not_finite_are_not_released(
    tmp_path: Path,
    make_study: Callable[..., Study],
    make_local: Callable[..., LocalSettings],
    signer: Signer,
) -> None:
    folder = StudyFolder(tmp_path)
    local = make_local()
    folder.create(make_study(local), None)
    latents = _latents(local)
    latents[0] = np.nan
    with pytest.raises(GoldenRefused):
        make_release(folder, latents, SITES, signer, {})
    assert not folder.release.exists()


def test_a_release_is_never_written_over(released: Maker, signer: Signer) -> None:
    folder = released()
    before = {file.name: file.read_bytes() for file in folder.release.iterdir()}
    with pytest.raises(OutputRefused, match="never overwritten"):
        make_release(folder, _latents(folder.study().local, 1), SITES, signer, {})
    assert {file.name: file.read_bytes() for file in folder.release.iterdir()} == before
