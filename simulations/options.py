"""What a person asks of `fedward simulate`, and the study that follows from it."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from fedward.common.config import EnrolledHospital, LocalSettings, Study, declared_count
from fedward.common.datasets import ImageDataset, Split
from fedward.common.errors import SettingRefused, UnknownName
from fedward.common.privacy import noise_multiplier
from fedward.server.reference import class_prior

ENGINES = ("inproc", "ray")
TEACHERS = ("none", "reference")
PRIORS = ("reference", "none")


@dataclass(frozen=True)
class Options:
    """The command's options; the defaults are the recipe that README's figures come from."""

    dataset: str = "auto"
    hospitals: int = 8
    partition: str = "iid"
    rounds: int = 60
    epsilon: float | None = 3.0
    delta: float = 1e-5
    student: str = "ternary-cnn"
    engine: str = "inproc"
    seed: int = 0
    local_steps: int = 1
    sample_rate: float = 0.25
    learning_rate: float = 2.0
    max_grad_norm: float = 1.0
    views: int = 1
    augmentation: str = "affine"
    schedule: str = "cosine"
    server_learning_rate: float = 1.0
    server_momentum: float = 0.0
    averaged_rounds: int = 20
    uplink: str = "int8"
    downlink: str = "int8"
    reference: str = "val"
    prior: str = "reference"
    decision: str = "balanced"
    teacher: str = "none"
    distillation_alpha: float = 0.3
    distillation_temperature: float = 2.0
    continue_from: str | None = None
    ewc_lambda: float = 0.0
    ewc_reference: str | None = None
    quorum: int | None = None
    round_timeout: float = 3600.0
    compare: bool = False

    def __post_init__(self) -> None:
        """Check what no study setting checks.

        Raises:
            UnknownName: an engine, teacher or prior that does not exist.
            SettingRefused: a number of hospitals or an epsilon out of range.
        """
        for what, value, known in (
            ("engine", self.engine, ENGINES),
            ("teacher", self.teacher, TEACHERS),
            ("prior", self.prior, PRIORS),
        ):
            if value not in known:
                raise UnknownName(f"There is no {what} {value!r}; choose one of {', '.join(known)}.")
        if not 1 <= self.hospitals <= 10_000:
            raise SettingRefused(f"A simulation has 1 to 10,000 hospitals, not {self.hospitals}.")
        if self.epsilon is not None and not (math.isfinite(self.epsilon) and 1e-3 <= self.epsilon <= 1e3):
            raise SettingRefused(f"epsilon is from 0.001 to 1000, or none; not {self.epsilon}.")
        if self.ewc_lambda > 0 and self.continue_from is None:
            raise SettingRefused("--ewc-lambda needs --continue-from: EWC pulls toward an earlier release.")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)


def plan_study(
    options: Options,
    dataset: ImageDataset,
    hospitals: list[Split],
    reference: Split | None,
    parent: tuple[str, int] | None,
) -> Study:
    """The study that `options` ask for: noise planned by the PRV accountant, prior from public reference data.

    Args:
        parent: digest and version of the release to continue from.

    Raises:
        SettingRefused: a setting out of range, or a target that no noise reaches.
    """
    local = LocalSettings(
        student=options.student,
        channels=dataset.train.images.shape[3],
        height=dataset.train.images.shape[1],
        width=dataset.train.images.shape[2],
        classes=dataset.classes,
        task=dataset.task,
        unit="image",
        sample_rate=options.sample_rate,
        local_steps=options.local_steps,
        rounds=options.rounds,
        noise_multiplier=0.0,
        max_grad_norm=options.max_grad_norm,
        target_delta=options.delta,
        views=options.views,
        augmentation=options.augmentation,
        class_prior=_prior(options, reference, len(dataset.classes)),
        ewc_lambda=options.ewc_lambda,
        distillation_alpha=0.0 if options.teacher == "none" else options.distillation_alpha,
        distillation_temperature=options.distillation_temperature,
    )
    if options.epsilon is not None:
        steps = options.rounds * options.local_steps
        sigma = noise_multiplier(options.epsilon, options.delta, options.sample_rate, steps)
        local = dataclasses.replace(local, noise_multiplier=sigma)
    enrolled = tuple(
        EnrolledHospital(f"hospital-{index + 1:02d}", declared_count(len(records.images)))
        for index, records in enumerate(hospitals)
    )
    return Study(
        name=f"{dataset.name}-{options.student}-seed{options.seed}",
        dataset=dataset.name,
        local=local,
        hospitals=enrolled,
        target_epsilon=options.epsilon,
        learning_rate=options.learning_rate,
        schedule=options.schedule,
        server_learning_rate=options.server_learning_rate,
        server_momentum=options.server_momentum,
        averaged_rounds=options.averaged_rounds,
        uplink_codec=options.uplink,
        downlink_codec=options.downlink,
        quorum=options.quorum or math.ceil(len(enrolled) / 2),
        round_timeout=options.round_timeout,
        decision=options.decision,
        seed=options.seed,
        parent=None if parent is None else parent[0],
        version=1 if parent is None else parent[1] + 1,
    )


def _prior(options: Options, reference: Split | None, classes: int) -> tuple[float, ...] | None:
    if options.prior == "none" or reference is None:
        return None
    return class_prior(reference, classes)
