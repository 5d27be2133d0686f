"""After the last round: the test split, read once, and everything that metrics.json says."""

import os
import platform
import time
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np

from fedward.common.bundle import Bundle, model_bytes
from fedward.common.codec import Vector
from fedward.common.config import Study
from fedward.common.datasets import ImageDataset
from fedward.common.decision import decide
from fedward.common.errors import SettingRefused
from fedward.common.images import to_tensor
from fedward.common.manifest import MODEL, release_digest
from fedward.common.metrics import evaluate, macro_auc
from fedward.common.onnx_options import onnx_session
from fedward.server.export import to_onnx
from fedward.server.reference import student_logits
from fedward.server.release import SitePrivacy, run_onnx
from fedward.server.study_folder import StudyFolder
from fedward.simulations.metrics_file import SCHEMA
from fedward.simulations.options import Options
from fedward.simulations.partitions import make_hospitals
from fedward.simulations.prepare import Simulation

_BATCH = 256
_REPEATS = 60
REPORT_IMAGES = 256


def fp32_graph(study: Study, latents: Vector) -> bytes:
    """The same student's latents as an fp32 ONNX model: what sizes and speeds are compared with."""
    settings = replace(study.local, student=f"fp32-{study.local.spec.network}", bits=None)
    return to_onnx(settings, latents)


def onnx_logits(graph: bytes, images: np.ndarray) -> Vector:
    """Logits of a release on uint8 images (n, h, w, c), float32 (n, classes)."""
    batches = [
        run_onnx(graph, to_tensor(images[i : i + _BATCH]).numpy()) for i in range(0, len(images), _BATCH)
    ]
    return np.concatenate(batches)


def release_entry(
    folder: StudyFolder, study: Study, latents: Vector, dataset: ImageDataset, bundle: Bundle
) -> tuple[dict[str, Any], Vector]:
    """metrics.json's ``release``, measured on the verified bundle, and its test logits."""
    graph, fp32 = model_bytes(bundle), fp32_graph(study, latents)
    thresholds, test = tuple(bundle.manifest["decision"]["thresholds"]), dataset.test
    logits = onnx_logits(graph, test.images)
    trained = student_logits(study.local, latents, test.images)
    task = study.local.task
    decisions = decide(logits, task, thresholds)
    latency, fp32_latency = _latencies([graph, fp32], to_tensor(test.images[:1]).numpy())
    trained_auc = macro_auc(trained, test.labels, task)
    entry = {
        "bundle": folder.release.name,
        "digest": release_digest(bundle.manifest),
        "bundle_bytes": sum(file.stat().st_size for file in folder.release.iterdir()),
        "bytes": len(bundle.files[MODEL]),
        "fp32_bytes": len(fp32),
        **evaluate(logits, test.labels, task, decisions),
        "agreement": float((decisions == decide(trained, task, thresholds)).mean()),
        "torch_auc": trained_auc,
        "latency_ms": latency,
        "fp32_latency_ms": fp32_latency,
    }
    return entry, logits


def _latencies(graphs: list[bytes], image: np.ndarray) -> list[float]:
    """Median milliseconds of one image on one thread, the graphs taking turns."""
    sessions = [onnx_session(graph) for graph in graphs]
    times: list[list[float]] = [[] for _ in sessions]
    for _ in range(_REPEATS):
        for session, own in zip(sessions, times, strict=True):
            started = time.perf_counter()
            session.run(None, {"images": image})
            own.append(1000 * (time.perf_counter() - started))
    return [float(np.median(own)) for own in times]


def hospital_entries(
    simulation: Simulation, study: Study, sites: list[SitePrivacy], graph: bytes
) -> list[dict[str, Any]]:
    """metrics.json's ``hospitals``; AUC on each hospital's share of the test split, partitioned alike.

    ``num_examples`` is what a simulated hospital has, ``declared`` its public count and weight.
    """
    aucs = _share_aucs(simulation, study, graph)
    return [
        {
            "name": site.name,
            "num_examples": len(records.images),
            "declared": hospital.num_examples,
            "epsilon": site.epsilon,
            "delta": site.delta,
            "unit": study.local.unit,
            "budget": study.target_epsilon,
            "auc": auc,
        }
        for site, hospital, records, auc in zip(
            sites, study.hospitals, simulation.hospitals, aucs, strict=True
        )
    ]


def _share_aucs(simulation: Simulation, study: Study, graph: bytes) -> list[float | None]:
    options, test = simulation.options, simulation.dataset.test
    try:
        shares = make_hospitals(test, options.partition, options.hospitals, options.seed)
    except SettingRefused:  # more hospitals than test images
        return [None] * options.hospitals
    return [macro_auc(onnx_logits(graph, share.images), share.labels, study.local.task) for share in shares]


def metrics_of(
    simulation: Simulation,
    study: Study,
    rounds: list[dict[str, Any]],
    hospitals: list[dict[str, Any]],
    release: dict[str, Any],
    comparison: dict[str, Any] | None,
    timing: dict[str, float],
) -> dict[str, Any]:
    """All of metrics.json."""
    dataset = simulation.dataset
    counts = {name: len(getattr(dataset, name).images) for name in ("train", "val", "test")}
    return {
        "schema": SCHEMA,
        "dataset": {
            "name": dataset.name,
            "source": dataset.source,
            "sha256": dataset.sha256,
            "task": dataset.task,
            "classes": list(dataset.classes),
            "counts": counts,
        },
        "study": {**study.to_dict(), "simulation": simulation.options.to_dict()},
        "rounds": rounds,
        "hospitals": hospitals,
        "release": release,
        "comparison": comparison,
        "timing": timing,
        "environment": environment(simulation.options),
    }


def environment(options: Options) -> dict[str, Any]:
    """Versions and machine, for whoever repeats the run."""
    names = ("fedward", "torch", "opacus", "flwr", "onnxruntime", "numpy", "cryptography")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "engine": options.engine,
        **{name: version(name) for name in names},
    }
