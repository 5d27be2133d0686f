"""From the last round's latents to a signed bundle: calibrate on A, measure on B, export, check, sign."""

import hashlib
import io
import platform
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any

import numpy as np

from fedward.common.bundle import write_bundle
from fedward.common.codec import Vector
from fedward.common.compression import compressed
from fedward.common.config import LocalSettings, Study
from fedward.common.datasets import Split
from fedward.common.errors import CheckpointRefused, GoldenRefused
from fedward.common.files import read_bounded
from fedward.common.golden import Golden, golden_bytes
from fedward.common.images import MEAN, STD
from fedward.common.manifest import GOLDEN, MODEL, SCHEMA
from fedward.common.onnx_options import onnx_session
from fedward.common.randomness import KeyedGenerator
from fedward.common.signing import Signer
from fedward.server.calibration import Calibration, calibrate
from fedward.server.checkpoint import load_checkpoint
from fedward.server.export import INPUT, to_onnx
from fedward.server.forms import with_forms
from fedward.server.leftovers import rounded
from fedward.server.reference import EXPLANATION, halve, measure, student_logits
from fedward.server.strategy import released_latents
from fedward.server.study_folder import StudyFolder

_VALID_DAYS = 365
_GOLDEN_IMAGES = 4
_FINAL_LIMIT = 4 << 30  # bytes
_TOLERANCE = 1e-3
_REPRODUCIBLE = (
    "The noise of this release was drawn from a seed, so that the run can be repeated: it protects nobody. "
    "Train with hospitals' own generators for a guarantee."
)
_PRIVATE = "Each site's DP-SGD steps are (epsilon, delta)-differentially private: add or remove one unit."
_PRIVATE_MEASURED = (
    "Each site's DP-SGD steps and its measurement of the model together are (epsilon, delta)-differentially "
    "private: add or remove one unit."
)
_NOT_PRIVATE = "This release was trained without differential privacy, on data that must be public."


@dataclass(frozen=True)
class SitePrivacy:
    """What the study cost a site: epsilon at delta, or None without privacy."""

    name: str
    epsilon: float | None
    delta: float | None


def make_release(
    folder: StudyFolder, latents: Vector, sites: list[SitePrivacy], signer: Signer, provenance: dict[str, Any]
) -> None:
    """Write the study's signed bundle to ``release/``.

    With it go the anchors of the hospitals' last replies, signed, so that each can hold its budget's ledger
    against them. They stand outside of the digest: ledgers have random names, so two runs have other anchors.

    Raises:
        CheckpointRefused: the study's checkpoint, which holds the anchors, is damaged.
        GoldenRefused: the exported graph does not compute what the student computes.
        OutputRefused: the folder cannot be written.
    """
    study, reference = folder.study(), folder.reference()
    local = study.local
    latents = rounded(local, latents)
    graph = to_onnx(local, latents)
    golden = _golden(local, latents, graph)
    halves = None if reference is None else halve(reference)
    found = calibrate(study, latents, None if halves is None else halves.calibration)
    records = None if halves is None else halves.evaluation
    golden, forms = with_forms(golden, graph, local, records, found.thresholds)
    manifest = {
        "schema": SCHEMA,
        "study": study.name,
        "student": local.student,
        "version": study.version,
        "parent": study.parent,
        "dataset": study.dataset,
        "task": local.task,
        "classes": list(local.classes),
        "preprocessing": _preprocessing(local),
        "decision": _decision(study, found),
        "calibration": found.calibration,
        "privacy": _privacy(study, sites),
        "metrics": {**_metrics(local, latents, records, found), **({"forms": forms} if forms else {})},
        "model": {"format": "onnx+zstd", "sha256": hashlib.sha256(graph).hexdigest(), "size": len(graph)},
        "provenance": {**_tools(), **provenance, "anchors": _anchors(folder, study), "created": _time(0)},
        "expires": _time(_VALID_DAYS),
    }
    model = compressed(graph, local.spec.family)
    write_bundle(folder.release, manifest, {MODEL: model, GOLDEN: golden_bytes(golden)}, signer)


def final_latents(folder: StudyFolder, study: Study) -> Vector:
    """The released latents, float32 (n,), which must be those of the last checkpoint, to the bit.

    Raises:
        CheckpointRefused: they are not, or cannot be read.
    """
    expected, stored = released_latents(load_checkpoint(folder.checkpoint, study), study), io.BytesIO()
    np.save(stored, expected)
    if read_bounded(folder.final, _FINAL_LIMIT, refusal=CheckpointRefused) != stored.getvalue():
        raise CheckpointRefused(
            f"{folder.final} is not what the rounds gave; delete it and resume the study."
        )
    return expected


def run_onnx(graph: bytes, inputs: np.ndarray) -> Vector:
    """Logits of an ONNX student, float32 (n, classes), on prepared inputs float32 (n, c, h, w)."""
    return np.asarray(onnx_session(graph).run(None, {INPUT: inputs})[0], np.float32)


def _golden(local: LocalSettings, latents: Vector, graph: bytes) -> Golden:
    """Keyed noise as input, so that no image of anybody stands in a release."""
    shape = (_GOLDEN_IMAGES, local.height, local.width, local.channels)
    drawn = KeyedGenerator.from_seed(0, "golden inputs").bytes(int(np.prod(shape)))
    images = np.frombuffer(drawn, np.uint8).reshape(shape)
    inputs = ((images.transpose(0, 3, 1, 2).astype(np.float32) / 255.0) - MEAN) / STD
    logits = run_onnx(graph, np.ascontiguousarray(inputs, np.float32))
    expected = student_logits(local, latents, images)
    if not np.allclose(logits, expected, atol=_TOLERANCE):
        worst = float(np.abs(logits - expected).max())
        raise GoldenRefused(
            f"The exported graph differs from the student by {worst:.2g}; nothing was released."
        )
    return Golden(inputs, logits, _TOLERANCE)


def _anchors(folder: StudyFolder, study: Study) -> dict[str, str]:
    return load_checkpoint(folder.checkpoint, study).anchors if folder.checkpoint.exists() else {}


def _preprocessing(local: LocalSettings) -> dict[str, Any]:
    return {
        "channels": local.channels,
        "height": local.height,
        "width": local.width,
        "mean": [MEAN] * local.channels,
        "std": [STD] * local.channels,
    }


def _decision(study: Study, found: Calibration) -> dict[str, Any]:
    return {
        "rule": "argmax" if study.local.task == "multi-class" else "threshold",
        "thresholds": list(found.thresholds),
        "prior": "training" if study.local.class_prior is None else "balanced",
        "source": found.source,
    }


def _privacy(study: Study, sites: list[SitePrivacy]) -> dict[str, Any]:
    seeded = study.seed is not None
    private = _PRIVATE_MEASURED if study.local.measures else _PRIVATE
    statement = _NOT_PRIVATE if study.target_epsilon is None else (_REPRODUCIBLE if seeded else private)
    return {
        "unit": study.local.unit,
        "sites": [{"name": site.name, "epsilon": site.epsilon, "delta": site.delta} for site in sites],
        "reproducible_noise": seeded,
        "statement": statement,
    }


def _metrics(
    local: LocalSettings, latents: Vector, records: Split | None, found: Calibration
) -> dict[str, Any]:
    if records is None:
        return {"note": EXPLANATION}
    return {"reference_b": measure(local, latents, records, found.thresholds)}


def _tools() -> dict[str, str]:
    names = ("fedward", "torch", "opacus", "flwr", "onnx", "onnxruntime")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _time(days: int) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")
