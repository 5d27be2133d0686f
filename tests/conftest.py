"""A tiny signed release for the tests of bundles and of the edge: bright images are of class 1."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from onnx import TensorProto, helper, numpy_helper

from fedward.common.bundle import write_bundle
from fedward.common.golden import Golden, golden_bytes
from fedward.common.manifest import GOLDEN, MODEL
from fedward.common.signing import Signer
from fedward.common.trust import write_trust

SIDE = 4
FAR_FUTURE = "2999-01-01T00:00:00Z"
ReleaseMaker = Callable[..., Path]


def pytest_configure(config: pytest.Config) -> None:
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
    """make_release(directory, signer=..., golden_error=..., model=..., **manifest changes) -> directory."""

    def make(
        directory: Path,
        *,
        by: Signer = signer,
        golden_error: float = 0.0,
        model: bytes | None = None,
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
            GOLDEN: golden_bytes(Golden(inputs, logits, 1e-4)),
        }
        return write_bundle(directory, tiny_manifest(raw, **changes), files, by)

    return make
