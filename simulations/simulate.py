"""One simulated study from start to report: prepare, run, release, evaluate once, write."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from fedward.client.hospital import open_hospital
from fedward.common.bundle import Bundle, model_bytes, read_bundle
from fedward.common.codec import Vector
from fedward.common.config import Study
from fedward.common.decision import decide
from fedward.common.errors import CheckpointRefused
from fedward.common.signing import ensure_default_keys
from fedward.common.trust import load_trust
from fedward.server.checkpoint import load_checkpoint
from fedward.server.release import SitePrivacy, make_release
from fedward.simulations.comparison import compare
from fedward.simulations.evaluation import REPORT_IMAGES, hospital_entries, metrics_of, release_entry
from fedward.simulations.federation import run_in_process
from fedward.simulations.flower_simulation import run_on_ray
from fedward.simulations.metrics_file import write_metrics
from fedward.simulations.prepare import Simulation
from fedward.simulations.report import ReportDetails, write_report
from fedward.simulations.watching import progress_bars, spent_after


@dataclass(frozen=True)
class Finished:
    """A finished run: metrics.json's content and the bundle's path."""

    metrics: dict[str, Any]
    bundle: Path


def run(simulation: Simulation, console: Console) -> Finished:
    """Run what `prepare` or `reopen` gave, from wherever it stands.

    Raises:
        Refusal: by name; what was closed stays on disk, to be resumed.
    """
    folder, study = simulation.folder, simulation.folder.study()
    signer = ensure_default_keys()  # before the rounds: a missing key must not cost a run
    started = time.monotonic()
    if not folder.final.exists():
        _engine(simulation, study, console)
    latents = _final(folder.final, study)
    trained = time.monotonic()
    rounds = _rounds(simulation, study)
    sites = _sites(simulation, study)
    if not folder.release.exists():
        console.print("Calibrating, exporting and signing the release ...")
        make_release(folder, latents, sites, signer, {"engine": simulation.options.engine})
    bundle = read_bundle(folder.release, load_trust())
    console.print("Reading the test split, once ...")
    release, logits = release_entry(folder, study, latents, simulation.dataset, bundle)
    hospitals = hospital_entries(simulation, study, sites, model_bytes(bundle))
    comparison = _compare(simulation, study, console)
    timing = {
        "train_seconds": round(trained - started, 3),
        "overhead_seconds": round(time.monotonic() - trained, 3),
    }
    metrics = metrics_of(simulation, study, rounds, hospitals, release, comparison, timing)
    write_metrics(folder.path / "metrics.json", metrics)
    write_report(folder.path / "report.html", metrics, _details(simulation, study, bundle, logits))
    return Finished(metrics, folder.release)


def _engine(simulation: Simulation, study: Study, console: Console) -> None:
    folder = simulation.folder.path
    with progress_bars(study, folder / "progress.jsonl", console):
        if simulation.options.engine == "ray":
            run_on_ray(simulation.folder, len(study.hospitals))
        else:
            run_in_process(folder, len(study.hospitals))


def _final(path: Path, study: Study) -> Vector:
    try:
        return np.asarray(np.load(path, allow_pickle=False), np.float32)
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointRefused(f"{path} is damaged; delete it and go on with --resume.") from error


def _rounds(simulation: Simulation, study: Study) -> list[dict[str, Any]]:
    history = load_checkpoint(simulation.folder.checkpoint, study).history
    return [{**row, "epsilon": spent_after(study, row["round"])} for row in history]


def _sites(simulation: Simulation, study: Study) -> list[SitePrivacy]:
    """What each hospital's own ledger says it spent, by PRV."""
    return [_site(simulation.folder.path / "hospitals" / str(index)) for index in range(len(study.hospitals))]


def _site(folder: Path) -> SitePrivacy:
    hospital = open_hospital(folder)
    if hospital.budget is None:
        return SitePrivacy(hospital.profile.name, None, None)
    return SitePrivacy(hospital.profile.name, hospital.budget.spent(), hospital.budget.terms.delta)


def _compare(simulation: Simulation, study: Study, console: Console) -> dict[str, Any] | None:
    if not simulation.options.compare:
        return None
    console.print("Comparing with public data alone, one hospital alone, and all data without privacy ...")
    return compare(simulation, study)


def _details(simulation: Simulation, study: Study, bundle: Bundle, logits: Vector) -> ReportDetails:
    test, task = simulation.dataset.test, study.local.task
    decisions = decide(logits, task, tuple(bundle.manifest["decision"]["thresholds"]))
    return ReportDetails(
        logits, test.labels, test.images[:REPORT_IMAGES], decisions, study.local.classes, task
    )
