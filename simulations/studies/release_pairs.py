"""Two releases, one after the other, and the patch between them: rows of the study `sizes`."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from fedward.common.bundle import model_bytes, pack_tar, unverified_tar
from fedward.common.codec import Vector
from fedward.common.config import EnrolledHospital, LocalSettings, Study
from fedward.common.datasets import save_npz
from fedward.common.models import StudentSpec, build_student, flatten, unflatten
from fedward.common.patch import make_patch
from fedward.common.quantization import is_quantized, ternary
from fedward.common.randomness import KeyedGenerator
from fedward.common.signing import Signer
from fedward.server.export import latents_of, to_onnx
from fedward.server.release import SitePrivacy, make_release
from fedward.server.study_folder import StudyFolder
from fedward.simulations.options import Options
from fedward.simulations.phantoms import make_phantoms
from fedward.simulations.prepare import prepare
from fedward.simulations.simulate import run
from fedward.simulations.studies.rows import Row
from fedward.simulations.studies.untrained import settings_of, start_latents

FLIPS = (0.02, 0.03, 0.04)  # shares of ternary weights that change
_FEW, _SMALL = 6, "ternary-vit"  # rounds of each of two trained releases; trained for all rounds, a student
_BISECTIONS = 12
_TOLD = ("auc", "torch_auc", "agreement")  # of the second release, on the test phantoms
_COUNTS = (600, 400, 400)  # phantoms to train on, of reference, to test on


def keys(student: str, side: int, channels: int) -> list[Row]:
    """Of the rows that `sizes` adds."""
    same = {"student": student, "side": side, "channels": channels}
    return [{**same, "flips": flips} for flips in FLIPS] + [
        {**same, "rounds": _FEW},
        {**same, "student": _SMALL, "rounds": Options().rounds},
    ]


def simulated(key: Row) -> Row:
    """A release, and one whose latents are moved by Gaussian noise until that share of its codes differs."""
    spec = StudentSpec(key["student"], key["channels"], key["side"], key["side"], 2)
    old, settings = start_latents(spec), settings_of(spec, spec.name)
    moved = _moved_until(spec, old, key["flips"])
    signer = Signer("sizes", bytes(range(32)), bytes(range(32)))
    tars = [_released(settings, one, version, signer) for version, one in enumerate((old, moved), 1)]
    fp32_bytes = len(to_onnx(settings_of(spec, f"fp32-{spec.network}"), old))
    return _row(tars, _differing(settings, tars), fp32_bytes)


def trained(key: Row) -> Row:
    """A release trained on phantoms at epsilon 3, and one of a second study that continues from it."""
    kind, classes = ("cell", 2) if key["channels"] == 3 else ("xray", None)
    data = make_phantoms(kind, classes, size=key["side"], counts=_COUNTS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_npz(folder / "data.npz", data)
        fixed: dict[str, Any] = {"dataset": str(folder / "data.npz"), "student": key["student"]}
        fixed |= {"hospitals": 2, "epsilon": 3.0, "averaged_rounds": 1, "seed": 0}
        console = Console(stderr=True)
        fixed |= {"rounds": key["rounds"]}
        first = run(prepare(Options(**fixed), folder / "1", None), console)
        later = Options(continue_from=str(first.bundle), **fixed)
        second = run(prepare(later, folder / "2", None), console)
        tars = [pack_tar(one.bundle) for one in (first, second)]
        settings, entry = StudyFolder(folder / "1").study().local, first.metrics["release"]
        told = {name: second.metrics["release"][name] for name in _TOLD}
        told["forms"] = unverified_tar(tars[1]).manifest["metrics"].get("forms")
        return {**_row(tars, _differing(settings, tars), entry["fp32_bytes"]), **told}


def _moved_until(spec: StudentSpec, latents: Vector, share: float) -> Vector:
    """`latents` moved by Gaussian noise, each tensor by the same part of its own deviation."""
    like = list(build_student(spec).parameters())
    draws = KeyedGenerator.from_seed(0, "next release").normal(len(latents))
    parts = unflatten(torch.from_numpy(latents), like)
    noise = flatten([part.std(correction=0).expand_as(part) for part in parts]).numpy() * draws
    codes, low, high = _codes(spec, latents), 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        differ = float((_codes(spec, np.asarray(latents + middle * noise, np.float32)) != codes).mean())
        low, high = (middle, high) if differ < share else (low, middle)
    return np.asarray(latents + high * noise, np.float32)


def _codes(spec: StudentSpec, latents: Vector) -> npt.NDArray[np.int8]:
    """All ternary codes, in order."""
    parts = unflatten(torch.from_numpy(latents), list(build_student(spec).parameters()))
    return np.concatenate([ternary(part).codes.numpy().ravel() for part in parts if is_quantized(part)])


def _differing(settings: LocalSettings, tars: list[bytes]) -> float:
    """The share of ternary codes in which two releases differ."""
    before, after = (
        _codes(settings.spec, latents_of(model_bytes(unverified_tar(tar)), settings)) for tar in tars
    )
    return float((before != after).mean())


def _row(tars: list[bytes], flipped: float, fp32_bytes: int) -> Row:
    size = len(make_patch(*tars))  # it has applied the patch and compared what that gives
    return {
        "flipped": flipped,
        "release_bytes": len(tars[1]),
        "patch_bytes": size,
        "fp32_bytes": fp32_bytes,
        "patch_ratio": fp32_bytes / size,
    }


def _released(settings: LocalSettings, latents: Vector, version: int, signer: Signer) -> bytes:
    """The tar of a release that was not trained."""
    with tempfile.TemporaryDirectory() as name:
        folder = StudyFolder(Path(name))
        folder.create(_study(settings, version), None)
        make_release(folder, latents, [SitePrivacy("hospital-0", None, None)], signer, {"engine": "none"})
        return pack_tar(folder.release)


def _study(settings: LocalSettings, version: int) -> Study:
    return Study(
        name="sizes",
        dataset="none",
        local=settings,
        hospitals=(EnrolledHospital("hospital-0", 100),),
        target_epsilon=None,
        learning_rate=1.0,
        schedule="constant",
        server_learning_rate=1.0,
        server_momentum=0.0,
        averaged_rounds=1,
        uplink_codec="fp32",
        downlink_codec="fp32",
        quorum=1,
        round_timeout=60.0,
        decision="balanced",
        seed=0,
        parent=None,
        version=version,
    )
