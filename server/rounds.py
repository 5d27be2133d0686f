"""The study's loop: enrol, then round by round push, fold, step, measure, checkpoint; then, where the study
asks for it, the measurement behind the last round.

Flower's `Strategy.start` counts from round 1 and keeps nothing, so the loop is ours; messages, nodes and
the strategy are Flower's. A study goes on from its last checkpoint wherever it was cut off.
"""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord
from flwr.serverapp import Grid

from fedward.common.codec import Vector, encode, fixed_codec
from fedward.common.config import Study
from fedward.common.datasets import Split
from fedward.common.errors import CheckpointRefused, DatasetRefused
from fedward.common.messages import ANCHOR, FISHER, TEACHER
from fedward.common.models import build_student, flatten, initialise, parameter_count
from fedward.common.npz_files import read_archive
from fedward.common.randomness import KeyedGenerator
from fedward.server.asking import Asking
from fedward.server.checkpoint import Progress, load_checkpoint, save_checkpoint
from fedward.server.letters import Letters
from fedward.server.measuring import Measurement, keep
from fedward.server.post import Post
from fedward.server.reference import halve, measure
from fedward.server.roster import Roster, enrol
from fedward.server.spent import noted_cost
from fedward.server.strategy import FedwardAvg, released_latents
from fedward.server.study_folder import START, StudyFolder

_ENROLMENT_SECONDS = 120.0


def run_rounds(grid: Grid, folder: StudyFolder, coordinator: Path | None = None) -> Vector:
    """Run a study to its last round and return the released latents, float32 (n,).

    Args:
        grid: Flower's.
        folder: the study's.
        coordinator: state folder of a coordinator whose sites take envelopes only; None in a simulation.

    Raises:
        Refusal: a quorum is missed, a checkpoint is damaged, the folder cannot be written; what was closed
            stays on disk.
    """
    study, reference = folder.study(), folder.reference()
    evaluation = None if reference is None else halve(reference).evaluation
    fixed = _fixed_vectors(folder, study)
    progress = _begin_or_resume(folder, study, fixed.pop(START))
    if progress.server_round >= study.rounds and _is_measured(folder, study):
        return released_latents(progress, study)  # all is closed: no hospital needs to be there any more
    folder.note("enrolling", hospitals=len(study.hospitals))
    post = _post(grid, folder, study, coordinator)
    roster = Roster(post, study)
    try:
        enrol(roster, study, _ENROLMENT_SECONDS)
    finally:
        folder.note("enrolled", bytes=post.received)
    extras = {name: encode(vector, fixed_codec(study.downlink_codec)) for name, vector in fixed.items()}
    strategy = FedwardAvg(
        study, progress, roster.nodes, extras, lambda name: folder.note("reply", hospital=name)
    )
    arrays = strategy.arrays()
    for server_round in range(progress.server_round + 1, study.rounds + 1):
        started, before = time.monotonic(), (post.received, post.sent)
        roster.look()
        folder.note("round", round=server_round, online=sorted(roster.online))
        messages = strategy.configure_train(server_round, arrays, ConfigRecord(), grid)
        asking = Asking(
            post,
            roster,
            strategy.question,
            strategy.needs_more,
            study.round_timeout,
            strategy.wants_full,
        )
        new_arrays, _ = strategy.aggregate_train(server_round, asking.replies(messages))
        arrays = new_arrays or arrays
        traffic = post.received - before[0], post.sent - before[1]
        row = _row(strategy, server_round, traffic, time.monotonic() - started, evaluation)
        strategy.progress.history.append(row)
        save_checkpoint(folder.checkpoint, strategy.progress, study)
        folder.note("closed", **row, epsilon=noted_cost(study, server_round))
    if not _is_measured(folder, study):
        _measure(post, folder, study, strategy.progress, roster)
    return released_latents(strategy.progress, study)


def _post(grid: Grid, folder: StudyFolder, study: Study, coordinator: Path | None) -> Post:
    letters = None if coordinator is None else Letters(coordinator, study.name, folder.path)
    return Post(grid, letters, lambda node, why: folder.note("unproven", node=node, why=why))


def _is_measured(folder: StudyFolder, study: Study) -> bool:
    return not study.local.measures or folder.measured.exists()


def _measure(post: Post, folder: StudyFolder, study: Study, progress: Progress, roster: Roster) -> None:
    folder.note("measuring")
    before = post.received, post.sent
    roster.look()
    measurement = Measurement(study, roster.nodes, released_latents(progress, study), progress.anchors)
    messages = measurement.configure(post.grid)
    asking = Asking(post, roster, measurement.question, measurement.needs_more, study.round_timeout)
    found = measurement.aggregate(asking.replies(messages))
    found = replace(found, uplink_bytes=post.received - before[0], downlink_bytes=post.sent - before[1])
    keep(folder, study, progress, measurement, found)
    cost = noted_cost(study, study.rounds, is_measured=True)
    folder.note(
        "measured", uplink_bytes=found.uplink_bytes, downlink_bytes=found.downlink_bytes, epsilon=cost
    )


def _fixed_vectors(folder: StudyFolder, study: Study) -> dict[str, Vector]:
    """Start and, where the study has them, anchor, Fisher and teacher.

    Raises:
        CheckpointRefused: a vector that the study needs is missing or damaged.
    """
    needed = {START} if study.parent is not None or study.local.trained == "head" else set()
    needed |= {ANCHOR, FISHER} if study.local.ewc_lambda > 0.0 else set()
    needed |= {TEACHER} if study.local.distillation_alpha > 0.0 else set()
    fixed = _read_fixed(folder.fixed) if folder.fixed.exists() else {}
    count = parameter_count(build_student(study.local.spec))
    for name in sorted(needed | set(fixed)):
        if name not in fixed or fixed[name].shape != (count,) or fixed[name].dtype != np.float32:
            raise CheckpointRefused(
                f"{folder.fixed} does not hold the vector {name}; restore it, or start the study anew."
            )
    return fixed if START in fixed else {**fixed, START: initial_latents(study)}


def _read_fixed(path: Path) -> dict[str, Vector]:
    try:
        return read_archive(path, (START, ANCHOR, FISHER, TEACHER)).arrays
    except DatasetRefused as refusal:
        raise CheckpointRefused(
            f"{path} is cut short or damaged; restore it from a copy, or start the study anew."
        ) from refusal


def start_latents(folder: StudyFolder) -> Vector:
    """What the study's first round starts from, float32 (n,).

    Raises:
        CheckpointRefused: it is missing or damaged.
    """
    return _fixed_vectors(folder, folder.study())[START]


def initial_latents(study: Study) -> Vector:
    """The student's random start, float32 (n,); the seed's in a simulation, else the operating system's."""
    system = KeyedGenerator.from_system() if study.seed is None else KeyedGenerator.from_seed(study.seed)
    model = build_student(study.local.spec)
    initialise(model, system.derive("student", study.name))
    return flatten(list(model.parameters())).numpy()


def _begin_or_resume(folder: StudyFolder, study: Study, start: Vector) -> Progress:
    if folder.checkpoint.exists():
        return load_checkpoint(folder.checkpoint, study)
    progress = Progress.start(start)
    save_checkpoint(folder.checkpoint, progress, study)
    return progress


def _row(
    strategy: FedwardAvg,
    server_round: int,
    traffic: tuple[int, int],
    seconds: float,
    evaluation: Split | None,
) -> dict[str, object]:
    figures: dict[str, float | None] = {"auc": None, "accuracy": None, "balanced_accuracy": None}
    if evaluation is not None:
        figures = measure(strategy.study.local, strategy.progress.latents, evaluation)
    return {
        "round": server_round,
        **figures,
        "uplink_bytes": traffic[0],
        "downlink_bytes": traffic[1],
        "seconds": round(seconds, 3),
        "replies": strategy.replies,
        "refusals": [lost.__dict__ for lost in strategy.lost],
    }
