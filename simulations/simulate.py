"""One simulated study from start to report: prepare, run, release, evaluate once, write."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from fedward.client.hospital import open_hospital
from fedward.common.bundle import Bundle, model_bytes, read_bundle
from fedward.common.codec import Vector
from fedward.common.config import Study
from fedward.common.decision import decide
from fedward.common.errors import BundleRefused
from fedward.common.files import read_bounded
from fedward.common.manifest import release_digest
from fedward.common.signing import ensure_default_keys
from fedward.common.trust import load_trust
from fedward.server.checkpoint import load_checkpoint
from fedward.server.release import SitePrivacy, final_latents, make_release
from fedward.server.spent import spent_after
from fedward.server.study_folder import StudyFolder
from fedward.simulations.comparison import compare
from fedward.simulations.evaluation import REPORT_IMAGES, hospital_entries, metrics_of, release_entry
from fedward.simulations.federation import run_in_process
from fedward.simulations.flower_simulation import run_on_ray
from fedward.simulations.measurement_entry import measurement_entry
from fedward.simulations.metrics_file import check_metrics, write_metrics
from fedward.simulations.prepare import Simulation
from fedward.simulations.report import ReportDetails, write_report
from fedward.simulations.run_folder import HOSPITALS, METRICS, PROGRESS, REPORT
from fedward.simulations.watching import progress_bars

_METRICS_LIMIT = 256 << 20  # bytes


@dataclass(frozen=True)
class Finished:
    """A finished run: metrics.json's content and the bundle's path."""

    metrics: dict[str, Any]
    bundle: Path


def run(simulation: Simulation, console: Console) -> Finished:
    """Run what `prepare` or `reopen` gave, from wherever it stands; a finished run is left as it is.

    Raises:
        Refusal: by name; what was closed stays on disk, to be resumed.
    """
    folder, study = simulation.folder, simulation.folder.study()
    signer = ensure_default_keys()  # before the rounds: a missing key must not cost a run
    if finished := _already_finished(folder):
        console.print("This run is finished already; nothing was done again.")
        return finished
    started = time.monotonic()
    if not folder.final.exists():
        _engine(simulation, study, console)
    progress = load_checkpoint(folder.checkpoint, study)
    latents = final_latents(folder, study)
    sites = _sites(simulation, study)
    if not folder.release.exists():
        console.print("Calibrating, exporting and signing the release ...")
        make_release(folder, latents, sites, signer, {"engine": simulation.options.engine})
    bundle = _own_bundle(folder)
    console.print("Reading the test split, once ...")
    release, logits = release_entry(folder, study, latents, simulation.dataset, bundle)
    _tell_of_bytes(simulation.options.model_bytes, release["bytes"], console)
    hospitals = hospital_entries(simulation, study, sites, model_bytes(bundle))
    comparison = _compare(simulation, study, console)
    rounds = [{**row, "epsilon": spent_after(study, row["round"])} for row in progress.history]
    timing = _timing(rounds, time.monotonic() - started)
    metrics = metrics_of(simulation, study, rounds, hospitals, release, comparison, timing)
    metrics |= measurement_entry(folder, study)
    write_metrics(folder.path / METRICS, metrics)
    write_report(folder.path / REPORT, metrics, _details(simulation, study, bundle, logits))
    return Finished(metrics, folder.release)


def _already_finished(folder: StudyFolder) -> Finished | None:
    """What the report was written from, if the run got that far and its release is still there."""
    metrics_file = folder.path / METRICS
    if not (metrics_file.exists() and (folder.path / REPORT).exists() and folder.release.exists()):
        return None
    digest = release_digest(_own_bundle(folder).manifest)
    try:
        metrics = json.loads(read_bounded(metrics_file, _METRICS_LIMIT))
        check_metrics(metrics)
    except ValueError:
        return None  # damaged: written again
    return Finished(metrics, folder.release) if metrics["release"]["digest"] == digest else None


def _own_bundle(folder: StudyFolder) -> Bundle:
    try:
        return read_bundle(folder.release, load_trust())
    except BundleRefused as refusal:
        raise type(refusal)(
            f"{refusal} It is this run's own release: delete {folder.release} and go on with --resume."
        ) from refusal


def _tell_of_bytes(most: int | None, taken: int, console: Console) -> None:
    """Bits are chosen before the rounds, and what the rounds make of the weights may pack worse."""
    if most is not None and taken > most:
        console.print(
            f"The model file takes {taken:,} bytes, more than the {most:,} of --model-bytes: ask for fewer."
        )


def _timing(rounds: list[dict[str, Any]], seconds: float) -> dict[str, float]:
    """Training is the sum of the rounds, whenever they ran; the rest of this process's time is overhead."""
    trained = sum(row["seconds"] for row in rounds)
    return {"train_seconds": round(trained, 3), "overhead_seconds": round(max(0.0, seconds - trained), 3)}


def _engine(simulation: Simulation, study: Study, console: Console) -> None:
    folder = simulation.folder.path
    with progress_bars(study, folder / PROGRESS, console):
        if simulation.options.engine == "ray":
            run_on_ray(simulation.folder, len(study.hospitals))
        else:
            run_in_process(folder, len(study.hospitals))


def _sites(simulation: Simulation, study: Study) -> list[SitePrivacy]:
    """What each hospital's own ledger says it spent, by PRV."""
    return [_site(simulation.folder.path / HOSPITALS / str(index)) for index in range(len(study.hospitals))]


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
