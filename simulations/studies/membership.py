"""Membership inference on released students: LiRA (Carlini et al. 2022, arXiv 2112.03570), in simulation.

Many students are trained by the hospital's own training code, each on a random half of one pool of public
records, without privacy and at several epsilons. The attacker has them all but one, knows of each which
records it saw, and says of the last which records it saw, from the released (quantised) student's confidence
in each record's label. A tenth of the labels are wrong: records that only memory explains are what such
attacks find first.

Without privacy the attack must work, or the study would show nothing. With privacy its true positives may
not exceed e^epsilon times its false ones plus delta, and since a fair coin chose each student's records, its
guesses bound epsilon from below as in `fedward.simulations.audit_bounds`.

    python -m fedward.simulations.studies.membership --json [--quick] [--out FOLDER]
"""

import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from fedward.client.training import LocalRound, train
from fedward.common.config import LocalSettings
from fedward.common.datasets import ImageDataset, Split, fingerprint
from fedward.common.errors import CheckpointRefused, SettingRefused
from fedward.common.files import canonical_json, make_folder, read_bounded, write_atomically
from fedward.common.metrics import roc_auc, roc_curve
from fedward.common.models import build_student, flatten, initialise
from fedward.common.privacy import noise_multiplier
from fedward.common.randomness import KeyedGenerator
from fedward.server.reference import student_logits
from fedward.simulations.audit_bounds import epsilon_lower_bound, right_guesses
from fedward.simulations.options import Options, plan_study
from fedward.simulations.sources import find_dataset
from fedward.simulations.studies.rows import run_study

DELTA = 1e-5
CONFIDENCE = 0.95  # of all private students' bounds together
ATTACK_AUC = 0.6  # what the attack must reach without privacy
FALSE_POSITIVES = 0.05  # rate at which true positives are reported
_WRONG_LABELS = 0.1
_GUESSED = 0.1  # share of the pool guessed on each side
_MOST_BYTES = 1 << 26

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What the study does; a folder goes on only with the plan that it was begun with.

    Attributes:
        dataset: as `find_dataset` takes it.
        pool: records, half of which each student sees.
        students: at each epsilon; at least 4.
        epsilons: None is without privacy.
        seed: of everything.
    """

    dataset: str
    pool: int
    students: int
    epsilons: tuple[float | None, ...]
    seed: int
    private_steps: int = 60
    plain_steps: int = 250
    sample_rate: float = 0.5


QUICK = Plan("auto", 200, 12, (None, 8.0, 1.0), 0, private_steps=40, plain_steps=150)
WHOLE = Plan("auto", 500, 48, (None, 8.0, 3.0, 1.0), 0)


def membership(plan: Plan, folder: Path) -> Row:
    """Run the study in `folder`, from where it was cut off.

    Raises:
        Refusal: the data, a setting, or a folder that holds another plan.
    """
    dataset = find_dataset(plan.dataset)
    pool = _pool(plan, dataset)
    _claim(folder, {**dataclasses.asdict(plan), "pool_sha256": fingerprint(pool)})
    rows = [row for epsilon in plan.epsilons for row in _attacked(plan, dataset, pool, epsilon, folder)]
    figures = _figures(plan, rows)
    return {
        "schema": 1,
        "study": "membership",
        "settings": {**dataclasses.asdict(plan), "delta": DELTA, "source": dataset.source},
        "figures": figures,
        "passed": all(figure["met"] for figure in figures.values() if figure["target"] is not None),
        "rows": rows,
    }


def _pool(plan: Plan, dataset: ImageDataset) -> Split:
    """The records, some labels moved on by one class."""
    if dataset.task == "multi-label" or len(dataset.train.images) < plan.pool:
        raise SettingRefused(
            f"The attack needs {plan.pool} records of one label each; name another data set."
        )
    draws = KeyedGenerator.from_seed(plan.seed, "membership")
    chosen = draws.derive("pool").permutation(len(dataset.train.images))[: plan.pool]
    labels = dataset.train.labels[chosen]
    wrong = draws.derive("wrong").uniform(plan.pool) < _WRONG_LABELS
    return Split(dataset.train.images[chosen], np.where(wrong, (labels + 1) % len(dataset.classes), labels))


def members(plan: Plan, student: int) -> Bools:
    """Which records a student sees, (pool,): fair coins, the same at every epsilon."""
    return KeyedGenerator.from_seed(plan.seed, "membership", "coins", student).uniform(plan.pool) < 0.5


def _settings(plan: Plan, dataset: ImageDataset, epsilon: float | None) -> LocalSettings:
    steps = plan.plain_steps if epsilon is None else plan.private_steps
    options = Options(epsilon=None, prior="none", delta=DELTA)
    planned = plan_study(options, dataset, [dataset.train], None, None).local
    rate = plan.sample_rate
    return dataclasses.replace(
        planned,
        sample_rate=rate,
        local_steps=steps,
        rounds=1,
        views=1,
        augmentation="none",
        # Without privacy the clip only tames; it is small because the sum's grid is a fraction of it.
        max_grad_norm=10.0 if epsilon is None else 1.0,
        noise_multiplier=0.0 if epsilon is None else noise_multiplier(epsilon, DELTA, rate, steps),
    )


def _attacked(
    plan: Plan, dataset: ImageDataset, pool: Split, epsilon: float | None, folder: Path
) -> list[Row]:
    """Train the students of one epsilon, and attack each with all the others."""
    # Planning the noise takes seconds, and where every student is kept there is nothing to plan.
    settings = functools.cache(lambda: _settings(plan, dataset, epsilon))
    confidences = np.stack(
        [_confidence(plan, settings, pool, epsilon, student, folder) for student in range(plan.students)]
    )
    seen = np.stack([members(plan, student) for student in range(plan.students)])
    return [_attack(plan, epsilon, confidences, seen, target) for target in range(plan.students)]


def _confidence(
    plan: Plan,
    planned: Callable[[], LocalSettings],
    pool: Split,
    epsilon: float | None,
    student: int,
    folder: Path,
) -> Floats:
    """Log-odds of each record's label by one released student, (pool,); kept in the folder."""
    kept = folder / f"student-{'none' if epsilon is None else format(epsilon, 'g')}-{student}.json"
    if kept.exists():
        return np.array(json.loads(read_bounded(kept, _MOST_BYTES, refusal=CheckpointRefused)))
    settings, seen = planned(), members(plan, student)
    records = Split(pool.images[seen], pool.labels[seen])
    model = build_student(settings.spec)
    initialise(model, KeyedGenerator.from_seed(plan.seed, "membership", "start"))
    latents = flatten(list(model.parameters()))
    draws = KeyedGenerator.from_seed(plan.seed, "membership", "train", str(epsilon), student)
    rate = 0.05 if epsilon is None else 1.0
    change, _ = train(LocalRound(settings, rate, plan.pool // 2, latents), records, draws)
    logits = student_logits(settings, (latents + change).numpy(), pool.images).astype(np.float64)
    confidence = np.round(_log_odds(logits, pool.labels), 6)
    write_atomically(kept, canonical_json(confidence.tolist()))
    return confidence


def _log_odds(logits: Floats, labels: npt.NDArray[np.int64]) -> Floats:
    """log p / (1 - p) of each label, (n,): nearly Gaussian over students, which is what LiRA rests on."""
    rows = np.arange(len(labels))
    others = logits.copy()
    others[rows, labels] = -np.inf
    odds: Floats = logits[rows, labels] - np.logaddexp.reduce(others, axis=1)
    return odds


def likelihood_ratios(confidences: Floats, seen: Bools, target: int) -> Floats:
    """LiRA's score of each record for one student, (pool,): log density if seen less log density if not.

    Online, with one variance over all records, as its authors advise for few students.

    Args:
        confidences: (students, pool).
        seen: (students, pool).
        target: the student attacked, whose own row of `seen` is not read.
    """
    others = np.arange(len(confidences)) != target
    inside, outside = _fit(confidences[others], seen[others]), _fit(confidences[others], ~seen[others])
    return _log_density(confidences[target], *inside) - _log_density(confidences[target], *outside)


def _fit(confidences: Floats, chosen: Bools) -> tuple[Floats, float]:
    """Mean of each record over the chosen students, (pool,), and one variance over all."""
    counts = chosen.sum(axis=0)
    overall = float(confidences[chosen].mean())
    sums = np.where(chosen, confidences, 0.0).sum(axis=0)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), overall)
    spread = float(np.where(chosen, (confidences - means) ** 2, 0.0).sum() / chosen.sum())
    return means, max(spread, 1e-12)


def _log_density(values: Floats, means: Floats, variance: float) -> Floats:
    density: Floats = -((values - means) ** 2) / (2.0 * variance) - 0.5 * np.log(variance)
    return density


def _attack(plan: Plan, epsilon: float | None, confidences: Floats, seen: Bools, target: int) -> Row:
    scores, truth = likelihood_ratios(confidences, seen, target), seen[target]
    each = max(1, int(_GUESSED * plan.pool))
    right = right_guesses(scores, truth, each)
    private = sum(value is not None for value in plan.epsilons) * plan.students
    confidence = 1.0 - (1.0 - CONFIDENCE) / max(1, private)
    return {
        "epsilon": epsilon,
        "student": target,
        "auc": roc_auc(scores, truth),
        "true_positives": _true_positives(scores, truth),
        "guesses": 2 * each,
        "right": right,
        "lower_bound": epsilon_lower_bound(right, 2 * each, plan.pool, DELTA, confidence),
    }


def _true_positives(scores: Floats, truth: Bools) -> float:
    """The largest rate of true positives at a rate of false ones of at most `FALSE_POSITIVES`."""
    false, true, _ = roc_curve(scores, truth)
    return float(true[false <= FALSE_POSITIVES].max())


def _figures(plan: Plan, rows: list[Row]) -> dict[str, Row]:
    figures: dict[str, Row] = {}
    for epsilon in plan.epsilons:
        mine = [row for row in rows if row["epsilon"] == epsilon]
        auc = float(np.mean([row["auc"] for row in mine]))
        found = float(np.mean([row["true_positives"] for row in mine]))
        bound = max(row["lower_bound"] for row in mine)
        if epsilon is None:
            figures["auc_without_privacy"] = _figure(auc, ATTACK_AUC, auc >= ATTACK_AUC)
            figures["true_positives_without_privacy"] = _figure(found, None, True)
            figures["lower_bound_without_privacy"] = _figure(bound, None, True)
            continue
        allowed = min(1.0, float(np.exp(epsilon)) * FALSE_POSITIVES + DELTA)
        figures[f"auc_at_{epsilon:g}"] = _figure(auc, None, True)
        figures[f"true_positives_at_{epsilon:g}"] = _figure(found, allowed, found <= allowed)
        figures[f"lower_bound_at_{epsilon:g}"] = _figure(bound, epsilon, bound <= epsilon)
    return figures


def _figure(value: float, target: float | None, met: bool) -> Row:
    return {"value": value, "target": target, "met": met}


def _claim(folder: Path, plan: Row) -> None:
    """Begin in an empty folder, or go on in one that this plan was begun in."""
    kept, spelled = folder / "plan.json", canonical_json(plan)
    if kept.exists():
        if read_bounded(kept, _MOST_BYTES, refusal=CheckpointRefused) != spelled:
            raise CheckpointRefused(f"{folder} holds the study with other settings: name another folder.")
        return
    write_atomically(kept, spelled)


def _folder(path: Path) -> Path:
    make_folder(path)
    return path


def _main(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer students and records: minutes.")] = False,
    dataset: Annotated[str, typer.Option(help="Public data: a MedMNIST name, phantom, auto.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of everything.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Keep the students here, and go on from them.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Attack released students of public data and set what is found beside what privacy allows."""
    plan = dataclasses.replace(QUICK if quick else WHOLE, dataset=dataset, seed=seed)
    with tempfile.TemporaryDirectory() as spare:
        result = membership(plan, _folder(out or Path(spare)))
    if as_json:
        typer.echo(json.dumps(result))
    else:
        for name, figure in result["figures"].items():
            target = "" if figure["target"] is None else f" (target {figure['target']:.4g})"
            typer.echo(f"{name}: {figure['value']:.4g}{target}")
    raise typer.Exit(0 if result["passed"] else 1)


def main() -> None:
    """Run the command."""
    run_study(_main)


if __name__ == "__main__":
    main()
