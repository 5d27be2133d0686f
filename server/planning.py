"""Planning a study: the least noise that keeps each site within its epsilon, and a step that fits it."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scipy.special import ndtri

from fedward.common.config import MOST_NOISE, EnrolledHospital, LocalSettings, Study
from fedward.common.datasets import ImageDataset
from fedward.common.errors import SettingRefused
from fedward.common.files import make_folder
from fedward.common.measurement import measurements
from fedward.common.models import build_student, frozen_count, parameter_count
from fedward.common.privacy import noise_multiplier
from fedward.common.randomness import KeyedGenerator
from fedward.common.rounding import noise_deviation
from fedward.server.coordinator import Coordinator
from fedward.server.distilling import start_or_reason
from fedward.server.recipes import DISTILLED, FROM_SCRATCH, PUBLIC_STARTS, back_to_scratch, sampled
from fedward.server.reference import class_prior, halve
from fedward.server.shelf import published
from fedward.server.sites import Site, Sites
from fedward.server.study_folder import START, StudyFolder

HIGHEST_PLANNED = 2.0  # learning rate
UPLINK, DOWNLINK = "coded3", "diff3"  # how updates and models travel, a tenth of fp32 in both together
_HIGHEST_OF_HEAD = 8.0  # with a server momentum of .9 behind it
_LARGEST_STEP = 2.0**9  # what the coordinator's sum takes for one weight in one round


@dataclass(frozen=True)
class Plan:
    """What a coordinator says of a new study; all else is the recipe that README's figures come from.

    Attributes:
        name: of the study.
        sites: names or ids of those that take part; empty for all that are enrolled and not revoked.
        quorum: fewest usable replies that close a round; None for half of the sites.
        uplink, downlink: of `fedward.common.codec.UPLINK_CODECS` and `DOWNLINK_CODECS`.
        recipe: of `fedward.server.recipes.RECIPES`; what it sets stands in the fields behind it, and above.
        kept: settings that a person set beside the recipe, which it does not change.
    """

    name: str
    sites: tuple[str, ...] = ()
    student: str = "ternary-cnn"
    rounds: int = 60
    epsilon: float = 3.0
    delta: float = 1e-5
    local_steps: int = 1
    sample_rate: float = 0.25
    quorum: int | None = None
    round_timeout: float = 3600.0
    uplink: str = UPLINK
    downlink: str = DOWNLINK
    recipe: str = FROM_SCRATCH
    trained: str = "all"
    max_grad_norm: float = 1.0
    views: int = 1
    schedule: str = "cosine"
    server_momentum: float = 0.0
    averaged_rounds: int = 20
    kept: tuple[str, ...] = ()


def plan_deployed(
    plan: Plan,
    coordinator: Coordinator,
    dataset: ImageDataset,
    path: Path,
    public: ImageDataset | None = None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> Study:
    """Write a study's folder for a federation's sites and return the study.

    Args:
        dataset: public, of the task's kind: it gives classes, pictures' size and, by its validation split,
            the reference records that calibrate and measure the release.
        public: images to distil on, of the task's kind; for the distilled recipe, and no other.
        tell: takes a sentence about the progress of a public start, and why there is none.

    Raises:
        SettingRefused: a setting is out of range, a target that no noise reaches, or no site is there.
        EnrolmentRefused: a site is not enrolled.
        DatasetRefused: fewer than two reference records.
        OutputRefused: the folder holds a study already, or cannot be written.
        TeacherRefused: the public teacher is not installed, or is another.
    """
    halve(dataset.val)  # refuses what the rounds would refuse
    sites = _chosen(plan, Sites(coordinator.folder))
    enrolled = tuple(EnrolledHospital(site.name, site.num_examples) for site in sites)
    earlier = [one.version for one in published(coordinator) if one.study == plan.name]
    folder, version = StudyFolder(path), max(earlier, default=0) + 1
    folder.check_free()
    if plan.recipe == DISTILLED and public is None:
        raise SettingRefused("The distilled recipe needs public images: name an npz of them with --public.")
    if plan.recipe != DISTILLED and public is not None:
        raise SettingRefused(f"The recipe {plan.recipe} takes no public images: leave out --public.")
    fixed = {}
    images = sum(site.num_examples for site in enrolled)
    study = _study(sampled(plan, images), dataset, enrolled, version)
    if plan.recipe in PUBLIC_STARTS:
        make_folder(path)  # refuses now what would else be refused after minutes of work
        generator = KeyedGenerator.from_system()
        start, why = start_or_reason(plan.recipe, study.local, public, dataset.val, generator, tell)
        fixed = {} if start is None else {START: start}
        if start is None:
            tell(f"Training from scratch instead: {why}")
            study = _study(back_to_scratch(plan, Plan(plan.name)), dataset, enrolled, version)
    folder.create(study, dataset.val, fixed)
    return study


def _study(plan: Plan, dataset: ImageDataset, enrolled: tuple[EnrolledHospital, ...], version: int) -> Study:
    """The plan for these sites, with its noise."""
    study = Study(
        name=plan.name,
        dataset=dataset.name,
        local=_local(plan, dataset),
        hospitals=enrolled,
        target_epsilon=plan.epsilon,
        learning_rate=HIGHEST_PLANNED,
        schedule=plan.schedule,
        server_learning_rate=1.0,
        server_momentum=plan.server_momentum,
        averaged_rounds=plan.averaged_rounds,
        uplink_codec=plan.uplink,
        downlink_codec=plan.downlink,
        quorum=math.ceil(len(enrolled) / 2) if plan.quorum is None else plan.quorum,
        round_timeout=plan.round_timeout,
        decision="balanced",
        seed=None,
        parent=None,
        version=version,
    )
    return with_planned_noise(study, plan.epsilon)


def with_planned_noise(study: Study, epsilon: float, learning_rate: float | None = None) -> Study:
    """`study` with the least noise that its epsilon allows, by PRV, and the learning rate or a planned one.

    Raises:
        SettingRefused: a target that no noise reaches, or noise that no student survives.
    """
    local = study.local
    steps = study.rounds * local.local_steps
    spent = list(measurements(local).values())
    sigma = noise_multiplier(epsilon, local.target_delta, local.sample_rate, steps, spent)
    if sigma > MOST_NOISE:
        raise SettingRefused(
            f"Epsilon {epsilon:g} over {steps} steps needs a noise multiplier of {sigma:g}, and "
            f"{MOST_NOISE:g} is the most that the noise's grid carries: raise epsilon or take fewer rounds."
        )
    local = dataclasses.replace(local, noise_multiplier=sigma)
    planned = planned_learning_rate(local, study.hospitals)
    rate = planned if learning_rate is None else learning_rate
    study = dataclasses.replace(study, local=local, learning_rate=rate)
    _check_noise(study)
    return study


def planned_learning_rate(local: LocalSettings, hospitals: tuple[EnrolledHospital, ...]) -> float:
    """2, or less where the noise would then move a coordinate by more than .014 a round; 8 and .05 for a
    study of the head, whose weights are larger.

    From public constants only: the mean update's noise has standard deviation
    sigma * C * sqrt(hospitals) / (rate * declared images of all), for one local step.
    """
    total = sum(hospital.num_examples for hospital in hospitals)
    noise = (
        local.noise_multiplier * local.max_grad_norm * math.sqrt(len(hospitals)) / (local.sample_rate * total)
    )
    highest, most = (_HIGHEST_OF_HEAD, 0.05) if local.trained == "head" else (HIGHEST_PLANNED, 0.014)
    return min(highest, most / noise) if noise > 0 else highest


def _check_noise(study: Study) -> None:
    """Refuse noise so large that too few hospitals' updates would pass the coordinator's screening.

    A round adds Gaussian noise of deviation lr sigma C sqrt(steps) / (q n) to each weight. Among the tens of
    thousands of a small student one or two pass four deviations, among millions five; in any honest study
    that is far below 1.
    """
    local = study.local
    count = parameter_count(build_student(local.spec)) - frozen_count(local.spec, local.trained)
    passed = max(4.0, -float(ndtri(2.0 / count)))
    largest = sorted(hospital.num_examples for hospital in study.hospitals)[-study.quorum]
    deviation = noise_deviation(local, study.learning_rate, largest)
    if passed * deviation > _LARGEST_STEP:
        raise SettingRefused(
            f"With these settings a round's noise alone moves each weight by {deviation:.3g}, and nothing is "
            "learned: raise epsilon, or lower the learning rate, max-grad-norm or rounds."
        )


def _chosen(plan: Plan, sites: Sites) -> list[Site]:
    chosen = [sites.find(site) for site in plan.sites] or sites.active()
    if not chosen:
        raise SettingRefused("No site is enrolled: `fedward coordinator enrol` takes a hospital's request.")
    for site in chosen:
        if site.revoked is not None:
            raise SettingRefused(f"{site.id} was revoked: leave it out of the study.")
    return chosen


def _local(plan: Plan, dataset: ImageDataset) -> LocalSettings:
    return LocalSettings(
        student=plan.student,
        channels=dataset.val.images.shape[3],
        height=dataset.val.images.shape[1],
        width=dataset.val.images.shape[2],
        classes=dataset.classes,
        task=dataset.task,
        unit="image",
        sample_rate=plan.sample_rate,
        local_steps=plan.local_steps,
        rounds=plan.rounds,
        noise_multiplier=1.0,
        max_grad_norm=plan.max_grad_norm,
        target_delta=plan.delta,
        views=plan.views,
        augmentation="affine",
        class_prior=class_prior(dataset.val, len(dataset.classes)),
        ewc_lambda=0.0,
        distillation_alpha=0.0,
        distillation_temperature=2.0,
        trained=plan.trained,
    )
