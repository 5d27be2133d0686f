"""A study's settings: the one place where each is named, bounded and turned to and from JSON.

`LocalSettings` is what a hospital must agree to: every public constant that shapes its private mechanism,
and the student it trains. `Study` adds what only the coordinator decides.
"""

import math
from dataclasses import dataclass
from typing import Any, Self

from fedward.common.codec import DOWNLINK_CODECS, PLAIN_CODECS, UPLINK_CODECS
from fedward.common.datasets import MAX_CLASSES, TASKS
from fedward.common.declared import MAXIMUM_DECLARED as MAXIMUM_DECLARED
from fedward.common.declared import declared_count as declared_count
from fedward.common.errors import SettingRefused
from fedward.common.models import STUDENTS, TRAINED, StudentSpec, check_shape
from fedward.common.setting_checks import Settings, check_text, in_range, one_of

PRIVACY_UNITS = ("image",)
AUGMENTATIONS = ("none", "shift", "affine")
SCHEDULES = ("constant", "cosine")
# The more noise, the fewer doubles a cell of its grid holds. Up to here a cell's mass is right to 2e-7, and
# what that could tell of a record is less than a thousandth of what the mechanism is charged.
MOST_NOISE = 1e3


@dataclass(frozen=True)
class LocalSettings(Settings):
    """What a hospital trains and under which mechanism; every value is public.

    Attributes:
        student: one of `fedward.common.models.STUDENTS`.
        channels, height, width: of the images.
        classes: names, in label order.
        task: binary, multi-class or multi-label.
        unit: the privacy unit that sampling, clipping and accounting are keyed by.
        sample_rate: Poisson sampling probability of a unit a step; 1 takes all.
        local_steps: noised steps a round.
        rounds: of the whole study; with local_steps what a hospital reserves of its budget at the start.
        noise_multiplier: sigma; 0 is training without privacy, for public data in simulations only.
        max_grad_norm: clip C of a unit's gradient.
        target_delta: delta of the (epsilon, delta) guarantee.
        views: augmented views of a unit averaged inside its clip.
        augmentation: of `fedward.common.images.augment`.
        class_prior: public class probabilities for logit adjustment (Menon et al. 2021), or None.
        ewc_lambda: strength of EWC's pull; 0 is none.
        distillation_alpha: weight of the teacher's part of the loss; 0 is no teacher.
        distillation_temperature: of the softened logits (Hinton et al. 2015).
        metric_noise_multiplier: of the counts that the study asks each hospital for once, after the last
            round (`fedward.common.measurement`); 0 asks for none.
        fisher_noise_multiplier: of the Fisher by output channel, asked for likewise; 0 asks for none.
        trained: all, or head: the last layer alone, behind a body that stays as it came.
        widths: of a pruned convolutional student (`fedward.common.convolutions`); None for its own.
        bits: of each weight of an int8 student, 2, 4 or 8; None for 8.
    """

    student: str
    channels: int
    height: int
    width: int
    classes: tuple[str, ...]
    task: str
    unit: str
    sample_rate: float
    local_steps: int
    rounds: int
    noise_multiplier: float
    max_grad_norm: float
    target_delta: float
    views: int
    augmentation: str
    class_prior: tuple[float, ...] | None
    ewc_lambda: float
    distillation_alpha: float
    distillation_temperature: float
    metric_noise_multiplier: float = 0.0
    fisher_noise_multiplier: float = 0.0
    trained: str = "all"
    widths: tuple[int, ...] | None = None
    bits: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Check every range.

        Raises:
            SettingRefused: a value is out of its range.
        """
        one_of("student", self.student, STUDENTS)
        one_of("task", self.task, TASKS)
        one_of("unit", self.unit, PRIVACY_UNITS)
        one_of("augmentation", self.augmentation, AUGMENTATIONS)
        one_of("trained", self.trained, TRAINED)
        in_range("sample_rate", self.sample_rate, 1e-6, 1.0)
        in_range("local_steps", self.local_steps, 1, 1000, int)
        in_range("rounds", self.rounds, 1, 100_000, int)
        in_range("noise_multiplier", self.noise_multiplier, 0.0, MOST_NOISE)
        in_range("max_grad_norm", self.max_grad_norm, 1e-6, 1e6)
        in_range("target_delta", self.target_delta, 1e-12, 1e-2)
        in_range("views", self.views, 1, 64, int)
        in_range("ewc_lambda", self.ewc_lambda, 0.0, 1e9)
        in_range("distillation_alpha", self.distillation_alpha, 0.0, 1.0)
        in_range("distillation_temperature", self.distillation_temperature, 0.1, 100.0)
        in_range("metric_noise_multiplier", self.metric_noise_multiplier, 0.0, MOST_NOISE)
        in_range("fisher_noise_multiplier", self.fisher_noise_multiplier, 0.0, MOST_NOISE)
        if self.measures and self.noise_multiplier == 0.0:
            raise SettingRefused(
                "A private metric or Fisher is noised, but noise_multiplier is 0: train with noise too, or "
                "ask for neither."
            )
        if self.trained == "head" and self.ewc_lambda > 0.0:
            raise SettingRefused("ewc_lambda keeps what a whole student knows: leave it out, or train all.")
        _check_classes(self.classes, self.task)
        check_shape(self.spec)
        if self.class_prior is not None:
            _check_prior(self.class_prior, self.task, len(self.classes))

    @property
    def measures(self) -> bool:
        """Whether the study asks each hospital for a measurement after the last round."""
        return self.metric_noise_multiplier > 0.0 or self.fisher_noise_multiplier > 0.0

    @property
    def spec(self) -> StudentSpec:
        """The student's shapes."""
        shape = self.channels, self.height, self.width, len(self.classes)
        return StudentSpec(self.student, *shape, self.widths, self.bits)


def _check_classes(classes: tuple[str, ...], task: str) -> None:
    if not isinstance(classes, tuple) or not 2 <= len(classes) <= MAX_CLASSES:
        raise SettingRefused(f"classes must be a list of 2 to {MAX_CLASSES} names.")
    for name in classes:
        check_text("a name in classes", name)
    if len(set(classes)) != len(classes):
        raise SettingRefused("Two classes have the same name; give each its own.")
    if (task == "binary" and len(classes) != 2) or (task == "multi-class" and len(classes) == 2):
        raise SettingRefused(
            f"The task of {len(classes)} classes is not {task}: two are binary, more multi-class."
        )


def _check_prior(prior: tuple[float, ...], task: str, classes: int) -> None:
    if not isinstance(prior, tuple) or len(prior) != classes:
        raise SettingRefused(f"class_prior must be a list of {classes} values, one a class.")
    for value in prior:
        in_range("a value of class_prior", value, 1e-6, 1.0)
    if task != "multi-label" and abs(sum(prior) - 1.0) > 1e-6:
        raise SettingRefused(f"class_prior must sum to 1, not {sum(prior):g}.")


@dataclass(frozen=True)
class EnrolledHospital(Settings):
    """A hospital of the study: its public name and declared count (`declared_count`), the frozen weight."""

    name: str
    num_examples: int


def _check_hospitals(hospitals: tuple[EnrolledHospital, ...]) -> None:
    if not isinstance(hospitals, tuple) or not hospitals:
        raise SettingRefused("hospitals must be a list of at least one hospital.")
    for hospital in hospitals:
        check_text("a hospital's name", hospital.name)
        in_range(f"num_examples of {hospital.name}", hospital.num_examples, 1, MAXIMUM_DECLARED, int)
    if len({hospital.name for hospital in hospitals}) != len(hospitals):
        raise SettingRefused("Two hospitals of the study have the same name; give each its own.")


@dataclass(frozen=True)
class Study(Settings):
    """A study as its coordinator runs it.

    Attributes:
        name: identifies the study in messages, ledgers and releases.
        dataset: name of the task's data set, for people.
        local: what every hospital agrees to.
        hospitals: enrolled hospitals with frozen weights.
        target_epsilon: budget each hospital spends at most on this study; None trains without privacy.
        learning_rate: of the hospital's step, before the schedule.
        schedule: constant or cosine (to a tenth), over the rounds.
        server_learning_rate, server_momentum: of the coordinator's step on the mean update
            (Reddi et al. 2021, FedAvgM); 1 and 0 are plain FedAvg.
        averaged_rounds: the released latents are the mean of the models after the last so many rounds.
        uplink_codec, downlink_codec: of `fedward.common.codec.UPLINK_CODECS` and `DOWNLINK_CODECS`.
        quorum: fewest usable replies that close a round.
        round_timeout: seconds a round waits for replies.
        decision: balanced (threshold 0) or calibrated (thresholds from reference half A).
        seed: key of a simulation's generators; None draws every key from the operating system.
        parent: digest of the release that the study continues, or None.
        version: monotonic number of the release.
    """

    name: str
    dataset: str
    local: LocalSettings
    hospitals: tuple[EnrolledHospital, ...]
    target_epsilon: float | None
    learning_rate: float
    schedule: str
    server_learning_rate: float
    server_momentum: float
    averaged_rounds: int
    uplink_codec: str
    downlink_codec: str
    quorum: int
    round_timeout: float
    decision: str
    seed: int | None
    parent: str | None
    version: int

    def __post_init__(self) -> None:
        """Check every range.

        Raises:
            SettingRefused: a value is out of its range.
        """
        check_text("name", self.name)
        check_text("dataset", self.dataset)
        if not isinstance(self.local, LocalSettings):
            raise SettingRefused("local must be the settings that every hospital agrees to.")
        _check_hospitals(self.hospitals)
        in_range("learning_rate", self.learning_rate, 1e-9, 1e4)
        in_range("server_learning_rate", self.server_learning_rate, 1e-9, 1e4)
        in_range("server_momentum", self.server_momentum, 0.0, 0.9999)
        in_range("averaged_rounds", self.averaged_rounds, 1, 100_000, int)
        in_range("quorum", self.quorum, 1, max(1, len(self.hospitals)), int)
        in_range("round_timeout", self.round_timeout, 0.1, 1e6)
        in_range("version", self.version, 1, 2**31, int)
        one_of("schedule", self.schedule, SCHEDULES)
        one_of("decision", self.decision, ("balanced", "calibrated"))
        if self.target_epsilon is not None:
            in_range("target_epsilon", self.target_epsilon, 1e-3, 1e3)
        if (self.target_epsilon is None) != (self.local.noise_multiplier == 0.0):
            raise SettingRefused("noise_multiplier is 0 exactly where the study has no target_epsilon.")
        one_of("uplink_codec", self.uplink_codec, UPLINK_CODECS)
        one_of("downlink_codec", self.downlink_codec, DOWNLINK_CODECS)
        if self.target_epsilon is None and self.uplink_codec not in PLAIN_CODECS:
            raise SettingRefused(
                f"uplink_codec {self.uplink_codec} rounds at a part of the noise, and without target_epsilon "
                "there is none: choose int8 or fp32."
            )
        if self.seed is not None:
            in_range("seed", self.seed, -(2**63), 2**63, int)
        if self.parent is not None:
            check_text("parent", self.parent)

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """The inverse of `to_dict`.

        Raises:
            SettingRefused: keys unknown, missing, or values out of range.
        """
        if not isinstance(values, dict) or not isinstance(values.get("hospitals"), list):
            raise SettingRefused("A study is a JSON object with a list of hospitals.")
        local = LocalSettings.from_dict(values.get("local"))
        hospitals = [EnrolledHospital.from_dict(item) for item in values["hospitals"]]
        return super().from_dict({**values, "local": local, "hospitals": hospitals})

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return self.local.rounds

    def learning_rate_at(self, server_round: int) -> float:
        """The hospital's learning rate in round `server_round` (from 1)."""
        if self.schedule == "constant":
            return self.learning_rate
        progress = (server_round - 1) / self.rounds
        return self.learning_rate * (0.1 + 0.9 * 0.5 * (1.0 + math.cos(math.pi * progress)))
