"""A tiny signed release (bright images are of class 1) for bundles and the edge, and a tiny federation."""

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from flwr.supercore.task_identity import TaskIdentity
from onnx import TensorProto, helper, numpy_helper

from fedward.client import enrolment as client_enrolment
from fedward.client.egress import open_gate
from fedward.client.hospital import create_hospital, open_hospital
from fedward.client.membership import Membership
from fedward.common import cli
from fedward.common.bundle import write_bundle
from fedward.common.config import EnrolledHospital, LocalSettings, Study
from fedward.common.datasets import ImageDataset, Split
from fedward.common.golden import Golden, golden_bytes
from fedward.common.instants import utc_now
from fedward.common.manifest import GOLDEN, MODEL
from fedward.common.signing import Signer
from fedward.common.trust import write_trust
from fedward.server.coordinator import Address, Coordinator
from fedward.server.enrolment import answer, review
from fedward.server.study_folder import StudyFolder
from fedward.simulations import sources
from fedward.simulations.phantoms import make_phantoms

SIDE = 4
FAR_FUTURE = "2999-01-01T00:00:00Z"
ReleaseMaker = Callable[..., Path]


@pytest.fixture
def flower_node() -> Iterator[None]:
    """This process as a Flower node that opened no hospital yet."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    open_hospital.cache_clear()
    open_gate.cache_clear()
    yield
    open_hospital.cache_clear()
    open_gate.cache_clear()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: kills real processes, minutes each; run with -m slow")
    config.addinivalue_line("markers", "network: fetches packages; deselect with -m 'not network'")


def _tiny_model(channels: int, weights: np.ndarray) -> bytes:
    """logits = flatten(images) @ weights."""
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["images"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", channels, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", weights.shape[1]])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString(deterministic=True))


def tiny_manifest(model: bytes, **changes: Any) -> dict[str, Any]:
    manifest = {
        "schema": "fedward.release/1",
        "study": "tiny",
        "student": "fp32-cnn",
        "version": 1,
        "parent": None,
        "dataset": "phantom",
        "task": "binary",
        "classes": ["normal", "pneumonia"],
        "preprocessing": {"channels": 1, "height": SIDE, "width": SIDE, "mean": [0.5], "std": [0.5]},
        "decision": {"rule": "threshold", "thresholds": [0.0], "prior": "balanced", "source": "default"},
        "calibration": {"temperature": None},
        "privacy": {
            "unit": "image",
            "sites": [{"name": "a", "epsilon": 3.0, "delta": 1e-5}],
            "reproducible_noise": True,
            "statement": "a test",
        },
        "metrics": {"auc": 0.5},
        "model": {"format": "onnx+zstd", "sha256": hashlib.sha256(model).hexdigest(), "size": len(model)},
        "provenance": {"engine": "inproc"},
        "expires": FAR_FUTURE,
    }
    return manifest | changes


@pytest.fixture(scope="session")
def signer() -> Signer:
    return Signer("tests", b"\x01" * 32, b"\x02" * 32)


@pytest.fixture(scope="session")
def stranger() -> Signer:
    return Signer("stranger", b"\x03" * 32, b"\x04" * 32)


@pytest.fixture
def trust_file(tmp_path: Path, signer: Signer) -> Path:
    path = tmp_path / "trust.json"
    write_trust(path, [signer.public()])
    return path


@pytest.fixture(scope="session")
def make_release(signer: Signer) -> ReleaseMaker:
    """make_release(directory, by, golden_error, model, golden, **manifest changes) -> directory."""

    def make(
        directory: Path,
        *,
        by: Signer = signer,
        golden_error: float = 0.0,
        model: bytes | None = None,
        golden: Golden | None = None,
        **changes: Any,
    ) -> Path:
        classes = len(changes.get("classes", ["normal", "pneumonia"]))
        channels = changes.get("preprocessing", {"channels": 1})["channels"]
        weights = np.zeros((channels * SIDE * SIDE, classes), dtype=np.float32)
        weights[:, -1] = 0.25
        raw = _tiny_model(channels, weights) if model is None else model
        inputs = np.linspace(-1, 1, 2 * weights.shape[0], dtype=np.float32).reshape(2, channels, SIDE, SIDE)
        logits = inputs.reshape(2, -1) @ weights + np.float32(golden_error)
        files = {
            MODEL: zstandard.ZstdCompressor(level=19).compress(raw),
            GOLDEN: golden_bytes(golden or Golden(inputs, logits, 1e-4)),
        }
        return write_bundle(directory, tiny_manifest(raw, **changes), files, by)

    return make


def _local_settings(**changes: Any) -> LocalSettings:
    values: dict[str, Any] = {
        "student": "fp32-cnn",
        "channels": 1,
        "height": 16,
        "width": 16,
        "classes": ("no lesion", "lesion"),
        "task": "binary",
        "unit": "image",
        "sample_rate": 0.25,
        "local_steps": 1,
        "rounds": 3,
        "noise_multiplier": 4.0,
        "max_grad_norm": 1.0,
        "target_delta": 1e-5,
        "views": 1,
        "augmentation": "none",
        "class_prior": None,
        "ewc_lambda": 0.0,
        "distillation_alpha": 0.0,
        "distillation_temperature": 2.0,
    }
    return LocalSettings(**(values | changes))


def _study(local: LocalSettings, counts: Sequence[int] = (30, 50, 20), **changes: Any) -> Study:
    values: dict[str, Any] = {
        "name": "tiny study",
        "dataset": "phantom",
        "local": local,
        "hospitals": tuple(EnrolledHospital(f"hospital-{i}", count) for i, count in enumerate(counts)),
        "target_epsilon": None if local.noise_multiplier == 0.0 else 50.0,
        "learning_rate": 0.5,
        "schedule": "constant",
        "server_learning_rate": 1.0,
        "server_momentum": 0.0,
        "averaged_rounds": 1,
        "uplink_codec": "fp32",
        "downlink_codec": "fp32",
        "quorum": 2,
        "round_timeout": 60.0,
        "decision": "balanced",
        "seed": 0,
        "parent": None,
        "version": 1,
    }
    return Study(**(values | changes))


@pytest.fixture(scope="session")
def make_local() -> Callable[..., LocalSettings]:
    """make_local(**changes) -> settings of a tiny student whose budget is checked in microseconds."""
    return _local_settings


@pytest.fixture(scope="session")
def make_study() -> Callable[..., Study]:
    """make_study(local, counts, **changes) -> a study of hospital-0, hospital-1, ..."""
    return _study


@pytest.fixture(scope="session")
def phantom() -> ImageDataset:
    """100, 24 and 20 grey images of 16 x 16 pixels."""
    return make_phantoms(size=16, counts=(100, 24, 20), seed=3)


@pytest.fixture(scope="session")
def make_federation(phantom: ImageDataset) -> Callable[..., StudyFolder]:
    """make_federation(path, study, budget=50.0, seed=0, with_reference=True) -> a folder ready to run."""

    def make(
        path: Path,
        study: Study,
        budget: float | None = 50.0,
        seed: int | None = 0,
        with_reference: bool = True,
    ) -> StudyFolder:
        start = 0
        for index, hospital in enumerate(study.hospitals):
            rows = slice(start, start + hospital.num_examples)
            records = Split(phantom.train.images[rows], phantom.train.labels[rows])
            create_hospital(path / "hospitals" / str(index), hospital.name, records, budget, 1e-5, seed)
            start += hospital.num_examples
        folder = StudyFolder(path)
        folder.create(study, phantom.val if with_reference else None)
        return folder

    return make


@dataclass(frozen=True)
class Done:
    """A command that ended: its exit code and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def fedward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Done]]:
    """fedward("simulate", "--rounds", 2) as typed, in this process, with keys of its own and no network."""

    def run(*arguments: object) -> Done:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.run([str(argument) for argument in arguments])
        return Done(code, out.getvalue(), err.getvalue())

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDWARD_CONFIG", str(tmp_path_factory.mktemp("config")))
        patch.setattr(sources, "download_medmnist", lambda *_: pytest.fail("a test asked for the network"))
        yield run


NOW = utc_now()


@dataclass
class Member:
    """A hospital of a test federation: its state folder and its place."""

    state: Path
    place: Membership


@pytest.fixture(scope="session")
def make_coordinator() -> Callable[..., Coordinator]:
    """make_coordinator(folder, port=..., superlink_port=...) -> a coordinator."""

    def make(folder: Path, port: int = 8443, superlink_port: int = 9091, now: datetime = NOW) -> Coordinator:
        address = Address("localhost", port, "127.0.0.1", superlink_port)
        return Coordinator.create(folder, "study office", address, now)

    return make


@pytest.fixture(scope="session")
def join_federation() -> Callable[..., Member]:
    """join_federation(coordinator, state, name, now=...) -> a hospital that joined it."""

    def enter(coordinator: Coordinator, state: Path, name: str, now: datetime = NOW) -> Member:
        request, file = client_enrolment.join(state, name, 100, now, anew=True)
        seen = review(coordinator, file, now)
        answered = answer(coordinator, seen, request.fingerprint, now, "tests")
        own = coordinator.federation(now).generations[0].fingerprint
        return Member(state, client_enrolment.accept(state, answered, own, now))

    return enter
