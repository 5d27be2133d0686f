"""What a person asks of `fedward simulate`, and the study that follows from it."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedward.common.codec import DOWNLINK_CODECS, PLAIN_CODECS, UPLINK_CODECS
from fedward.common.config import (
    AUGMENTATIONS,
    SCHEDULES,
    EnrolledHospital,
    LocalSettings,
    Study,
    declared_count,
)
from fedward.common.datasets import ImageDataset, Split
from fedward.common.errors import SettingRefused, UnknownName
from fedward.common.models import STUDENTS, TRAINED
from fedward.server.planning import DOWNLINK, UPLINK, planned_learning_rate, with_planned_noise
from fedward.server.recipes import FROM_SCRATCH, PUBLIC_STARTS, RECIPES
from fedward.server.reference import class_prior
from fedward.simulations.partitions import partition

ENGINES = ("inproc", "ray")
TEACHERS = ("none", "reference")
PRIORS = ("reference", "none")
DECISIONS = ("balanced", "calibrated")
_KNOWN = {
    "student": STUDENTS,
    "recipe": tuple(RECIPES),
    "trained": TRAINED,
    "engine": ENGINES,
    "teacher": TEACHERS,
    "prior": PRIORS,
    "decision": DECISIONS,
    "schedule": SCHEDULES,
    "augmentation": AUGMENTATIONS,
    "uplink": ("auto", *UPLINK_CODECS),
    "downlink": ("auto", *DOWNLINK_CODECS),
}
# Settings of a study that the command calls otherwise.
_OPTION_OF = {
    "target_delta": "delta",
    "uplink_codec": "uplink",
    "downlink_codec": "downlink",
    "metric_noise_multiplier": "private_metrics",
    "fisher_noise_multiplier": "private_fisher",
}


@dataclass(frozen=True)
class Options:
    """The command's options; the defaults are the recipe `from-scratch`.

    Attributes, of those that are not the command's own words:
        recipe_note: why another recipe than the wanted one is used; empty where the wanted one is.
        kept: settings that a person set beside the recipe, which it does not change.
    """

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
    learning_rate: float | None = None  # None: `planning.planned_learning_rate`
    max_grad_norm: float = 1.0
    views: int = 1
    augmentation: str = "affine"
    schedule: str = "cosine"
    server_learning_rate: float = 1.0
    server_momentum: float = 0.0
    averaged_rounds: int = 20
    uplink: str = "auto"
    downlink: str = "auto"
    reference: str = "val"
    prior: str = "reference"
    decision: str = "balanced"
    teacher: str = "none"
    distillation_alpha: float = 0.3
    distillation_temperature: float = 2.0
    continue_from: str | None = None
    prune: float = 0.0
    model_bytes: int | None = None
    ewc_lambda: float = 0.0
    ewc_reference: str | None = None
    ewc_fisher: str | None = None
    private_metrics: float = 0.0
    private_fisher: float = 0.0
    quorum: int | None = None
    round_timeout: float = 3600.0
    compare: bool = False
    recipe: str = FROM_SCRATCH
    public: str = "auto"
    start: str | None = None
    trained: str = "all"
    recipe_note: str = ""
    kept: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check all that can be checked before a data set is read.

        Raises:
            UnknownName: a student, engine, codec, partition and so on that does not exist; the sentence
                lists those that do.
            SettingRefused: a value out of range, or one that contradicts another.
        """
        object.__setattr__(self, "kept", tuple(self.kept))  # a list where it comes out of a file
        for what, known in _KNOWN.items():
            if (value := getattr(self, what)) not in known:
                name = f"{what} codec" if what in ("uplink", "downlink") else what
                raise UnknownName(f"There is no {name} {value!r}; choose one of {', '.join(known)}.")
        if not 1 <= self.hospitals <= 10_000:
            raise SettingRefused(f"A simulation has 1 to 10,000 hospitals, not {self.hospitals}.")
        if self.epsilon is not None and not (math.isfinite(self.epsilon) and 1e-3 <= self.epsilon <= 1e3):
            raise SettingRefused(f"epsilon is from 0.001 to 1000, or none; not {self.epsilon}.")
        if self.quorum is not None and not 1 <= self.quorum <= self.hospitals:
            raise SettingRefused(
                f"--quorum is from 1 to the number of hospitals, {self.hospitals}; not {self.quorum}."
            )
        partition(np.zeros(1, np.int64), self.partition, 1, self.seed)  # for its refusals
        self._check_texts()
        self._check_company()

    def _check_texts(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            try:
                str(value).encode()
            except UnicodeEncodeError as error:
                raise SettingRefused(
                    f"{field.name} is not valid Unicode: {value!r}; rename the file."
                ) from error

    def _check_company(self) -> None:
        """Refuse an option without what it needs: it would be dropped in silence, or fail after minutes."""
        if not 0.0 <= self.prune < 1.0:
            raise SettingRefused(f"--prune is a share of the channels from 0 to below 1, not {self.prune}.")
        if self.prune > 0 and self.continue_from is None:
            raise SettingRefused("--prune needs --continue-from: channels go from a trained student.")
        if self.model_bytes is not None:
            self._check_model_bytes()
        if self.ewc_lambda > 0 and self.continue_from is None:
            raise SettingRefused("--ewc-lambda needs --continue-from: EWC pulls toward an earlier release.")
        if self.ewc_reference is not None and not self.ewc_lambda > 0:
            raise SettingRefused(
                "--ewc-reference needs --ewc-lambda: it gives the Fisher that EWC pulls with."
            )
        if self.ewc_fisher is not None and not self.ewc_lambda > 0:
            raise SettingRefused("--ewc-fisher needs --ewc-lambda: it is the Fisher that EWC pulls with.")
        if self.ewc_fisher is not None and self.ewc_reference is not None:
            raise SettingRefused("--ewc-fisher is a Fisher already: leave out --ewc-reference, or that.")
        if self.start is not None and self.continue_from is not None:
            raise SettingRefused("--start and --continue-from both say where to start: leave out one.")
        if self.recipe in PUBLIC_STARTS and self.continue_from is not None:
            raise SettingRefused(
                f"--recipe {self.recipe} starts from public data: leave out --continue-from."
            )
        if self.trained == "head" and not self.has_body:
            raise SettingRefused(
                "--trained head needs a body that learned something: add --recipe distilled or imagenet, "
                "--start or --continue-from."
            )
        if self.epsilon is None and self.uplink not in ("auto", *PLAIN_CODECS):
            raise SettingRefused(
                f"--uplink-codec {self.uplink} rounds at a part of the noise: leave out --epsilon none."
            )
        for flag, sigma in (
            ("--private-metrics", self.private_metrics),
            ("--private-fisher", self.private_fisher),
        ):
            if sigma != 0 and self.epsilon is None:
                raise SettingRefused(f"{flag} is charged to a budget: leave out --epsilon none.")
        if self.views > 1 and self.augmentation == "none":
            raise SettingRefused(
                f"--views {self.views} needs --augmentation shift or affine: else all views of an image are "
                "the same."
            )
        if self.teacher != "none" and self.distillation_alpha == 0:
            raise SettingRefused("--teacher needs a --distillation-alpha above 0, the teacher's weight.")
        if self.reference == "none":
            self._check_without_reference()

    def _check_model_bytes(self) -> None:
        if self.continue_from is None:
            raise SettingRefused("--model-bytes needs --continue-from: bits go from a trained student.")
        if not self.student.startswith("int8-"):
            raise SettingRefused(
                f"--model-bytes takes bits from an int8 student, and this is a {self.student}."
            )

    @property
    def codecs(self) -> tuple[str, str]:
        """How updates and models travel: auto is as in a federation, or int8 where there is no noise."""
        uplink, downlink = ("int8", "int8") if self.epsilon is None else (UPLINK, DOWNLINK)
        return (
            uplink if self.uplink == "auto" else self.uplink,
            downlink if self.downlink == "auto" else self.downlink,
        )

    @property
    def has_public_start(self) -> bool:
        """Whether the first model is what public data taught."""
        return self.recipe in PUBLIC_STARTS or self.start is not None

    @property
    def has_body(self) -> bool:
        """Whether the first model is more than random numbers."""
        return self.has_public_start or self.continue_from is not None

    def _check_without_reference(self) -> None:
        for flag, needs_it in (
            ("--teacher reference", self.teacher == "reference"),
            ("--decision calibrated", self.decision == "calibrated"),
            ("--prune", self.prune > 0),
            ("--model-bytes", self.model_bytes is not None),
            (
                "--ewc-lambda without --ewc-reference or --ewc-fisher",
                self.ewc_lambda > 0 and self.ewc_reference is None and self.ewc_fisher is None,
            ),
        ):
            if needs_it:
                raise SettingRefused(f"{flag} needs public reference data: leave out --reference none.")

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
    """The study that `options` ask for: noise planned by PRV, class prior from public reference data.

    Args:
        parent: digest and version of the release to continue from.

    Raises:
        SettingRefused: a setting out of range, a target that no noise reaches, or noise that no student
            survives.
    """
    with _named_as_typed():
        study = _before_noise(
            options, local_settings(options, dataset, reference), dataset, hospitals, parent
        )
    if options.epsilon is None:
        return study
    # Last, since it takes seconds: all else is refused before it.
    return with_planned_noise(study, options.epsilon, options.learning_rate)


@contextlib.contextmanager
def _named_as_typed() -> Iterator[None]:
    """Put the flag that a person typed before a refusal that begins with a setting's name."""
    try:
        yield
    except SettingRefused as refusal:
        setting = str(refusal).partition(" ")[0]
        option = _OPTION_OF.get(setting, setting)
        if option not in {field.name for field in dataclasses.fields(Options)}:
            raise
        raise SettingRefused(f"--{option.replace('_', '-')}: {refusal}") from refusal


def local_settings(options: Options, dataset: ImageDataset, reference: Split | None) -> LocalSettings:
    """What every hospital of the study agrees to, but for the noise, which is planned later."""
    return LocalSettings(
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
        noise_multiplier=0.0 if options.epsilon is None else 1.0,
        max_grad_norm=options.max_grad_norm,
        target_delta=options.delta,
        views=options.views,
        augmentation=options.augmentation,
        class_prior=_prior(options, reference, len(dataset.classes)),
        ewc_lambda=options.ewc_lambda,
        distillation_alpha=0.0 if options.teacher == "none" else options.distillation_alpha,
        distillation_temperature=options.distillation_temperature,
        metric_noise_multiplier=options.private_metrics,
        fisher_noise_multiplier=options.private_fisher,
        trained=options.trained,
    )


def _before_noise(
    options: Options,
    local: LocalSettings,
    dataset: ImageDataset,
    hospitals: list[Split],
    parent: tuple[str, int] | None,
) -> Study:
    enrolled = tuple(
        EnrolledHospital(f"hospital-{index + 1:02d}", declared_count(len(records.images)))
        for index, records in enumerate(hospitals)
    )
    planned = planned_learning_rate(local, enrolled)
    rate = planned if options.learning_rate is None else options.learning_rate
    return Study(
        name=f"{dataset.name}-{options.student}-seed{options.seed}",
        dataset=dataset.name,
        local=local,
        hospitals=enrolled,
        target_epsilon=options.epsilon,
        learning_rate=rate,
        schedule=options.schedule,
        server_learning_rate=options.server_learning_rate,
        server_momentum=options.server_momentum,
        averaged_rounds=options.averaged_rounds,
        uplink_codec=options.codecs[0],
        downlink_codec=options.codecs[1],
        quorum=math.ceil(len(enrolled) / 2) if options.quorum is None else options.quorum,
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
