"""What a round costs beside training: real processes on loopback, two hospitals over TLS.

    python -m fedward.simulations.studies.round_overhead --json [--rounds 10] [--out FOLDER]

A round's overhead is its seconds at the coordinator less the seconds of the slowest hospital's answer, which
the daemon's log tells. Flower as shipped is measured in the same run, with an app that does no work.
"""

import json
import sys
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from fedward.client.hospital import create_hospital
from fedward.common.config import EnrolledHospital, LocalSettings, Study, declared_count
from fedward.common.datasets import ImageDataset, Split
from fedward.common.errors import EngineFailed
from fedward.server.study_folder import StudyFolder
from fedward.simulations.deployment import deployed
from fedward.simulations.phantoms import make_phantoms
from fedward.simulations.shipped_flower import shipped_rounds
from fedward.simulations.studies.rows import Row, Target, conclude, measured, run_study

SITES, IMAGES = 2, 50
SECONDS_TARGET = 5.0
FEDWARD, SHIPPED = "fedward", "flower-as-shipped"
_SEED = 0
_OUT = Path("runs/round_overhead")


def overhead_study(rounds: int, name: str = "round overhead") -> Study:
    """A small study whose rounds train in well under a second."""
    local = LocalSettings(
        student="fp32-cnn",
        channels=1,
        height=16,
        width=16,
        classes=("no lesion", "lesion"),
        task="binary",
        unit="image",
        sample_rate=0.25,
        local_steps=1,
        rounds=rounds,
        noise_multiplier=4.0,
        max_grad_norm=1.0,
        target_delta=1e-5,
        views=1,
        augmentation="none",
        class_prior=None,
        ewc_lambda=0.0,
        distillation_alpha=0.0,
        distillation_temperature=2.0,
    )
    return Study(
        name=name,
        dataset="phantom",
        local=local,
        hospitals=tuple(EnrolledHospital(f"hospital-{i}", declared_count(IMAGES)) for i in range(SITES)),
        target_epsilon=50.0,
        learning_rate=0.5,
        schedule="constant",
        server_learning_rate=1.0,
        server_momentum=0.0,
        averaged_rounds=1,
        uplink_codec="fp32",
        downlink_codec="fp32",
        quorum=SITES,
        round_timeout=600.0,
        decision="balanced",
        seed=_SEED,
        parent=None,
        version=1,
    )


def make_federation(
    path: Path, study: Study, dataset: ImageDataset, reference: Split | None = None
) -> StudyFolder:
    """The study's folder, and a hospital's state folder for each of its hospitals."""
    folder = StudyFolder(path)
    folder.create(study, reference)
    for index, hospital in enumerate(study.hospitals):
        rows = slice(index * IMAGES, (index + 1) * IMAGES)
        records = Split(dataset.train.images[rows], dataset.train.labels[rows])
        create_hospital(path / "hospitals" / str(index), hospital.name, records, 50.0, 1e-5, _SEED)
    return folder


def fedward_rounds(work: Path, rounds: int) -> list[dict[str, float]]:
    """Seconds of each round, of its slowest answer, and the difference.

    Raises:
        EngineFailed: the study did not finish.
    """
    dataset = make_phantoms(size=16, counts=(SITES * IMAGES, 20, 20), seed=_SEED)
    folder = make_federation(work / "s", overhead_study(rounds), dataset)
    with deployed(folder, work, is_secured=True) as deployment:
        ordered = deployment.order("start", str(folder.path), "--wait")
        if ordered.returncode != 0:
            raise EngineFailed(f"The study did not finish ({ordered.stderr.strip()}); see {work}.")
        closed = [float(event["seconds"]) for event in deployment.events("closed")]
    answers = [_answers(hospital / "logs" / "daemon.log") for hospital in deployment.hospitals]
    return [
        {"round": seconds, "training": max(slowest), "overhead": seconds - max(slowest)}
        for seconds, *slowest in zip(closed, *answers, strict=True)
    ]


def _answers(log: Path) -> list[float]:
    """Seconds of each answered round, in order."""
    entries = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [float(entry["seconds"]) for entry in entries if entry.get("kind") == "train"]


def _measure(key: Row, out: Path) -> Row:
    rounds, work = key["rounds"], out / key["engine"]
    if key["engine"] == SHIPPED:
        return {"seconds": shipped_rounds(work, rounds)}
    work.mkdir(parents=True, exist_ok=True)
    found = fedward_rounds(work, rounds)
    return {"seconds": [one["overhead"] for one in found], "rounds": found}


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each.")] = 10,
    out: Annotated[Path, typer.Option(help="Folder for the rows and the logs.")] = _OUT,
) -> None:
    """Measure the overhead of a round, and Flower as shipped beside it."""
    keys: list[Row] = [{"engine": engine, "rounds": rounds} for engine in (FEDWARD, SHIPPED)]
    rows = measured(out, keys, lambda key: _measure(key, out), lambda said: print(said, file=sys.stderr))
    medians: dict[str, Any] = {row["key"]["engine"]: median(row["seconds"]) for row in rows}
    targets = [Target("seconds of overhead a round", medians[FEDWARD], SECONDS_TARGET, at_least=False)]
    raise typer.Exit(conclude("round_overhead", rows, targets, as_json, median_seconds=medians))


if __name__ == "__main__":
    run_study(main)
