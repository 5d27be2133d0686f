"""Recipes by name: what they set, what a person set comes first, and where distilling gives way."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fedward.common.codec import Vector, decode, encode
from fedward.common.config import LocalSettings
from fedward.common.errors import CheckpointRefused, DatasetRefused, Refusal, SettingRefused, StartRefused
from fedward.common.metrics import balanced_accuracy
from fedward.common.models import build_student, frozen_count, parameter_count
from fedward.common.randomness import KeyedGenerator
from fedward.server import distilling
from fedward.server.checkpoint import load_checkpoint
from fedward.server.distilling import error_of_difference, start_or_reason
from fedward.server.recipes import DISTILLED, FROM_SCRATCH, IMAGENET, RECIPES, sampled
from fedward.server.rounds import start_latents
from fedward.server.start_file import save_start
from fedward.server.study_folder import StudyFolder
from fedward.simulations import public_starts
from fedward.simulations.options import Options, local_settings
from fedward.simulations.prepare import prepare, reference_records
from fedward.simulations.public_starts import settle
from fedward.simulations.simulate import run
from fedward.simulations.sources import find_dataset

DATA, COLOUR = "phantom:train=60,val=60,test=40", "phantom-colour:train=60,val=60,test=40"
Command = Callable[..., Any]


def options(**changes: Any) -> Options:
    values: dict[str, Any] = {
        "dataset": DATA,
        "public": "phantom:seed=3,train=40,val=30,test=10",
        "hospitals": 2,
    }
    return Options(**RECIPES[DISTILLED] | values | changes, recipe=DISTILLED)


def imagenet(**changes: Any) -> Options:
    values = {"dataset": DATA, "hospitals": 2} | RECIPES[IMAGENET] | changes
    return Options(**values, recipe=IMAGENET)


def settled(asked: Options) -> tuple[Options, Vector | None, list[str]]:
    dataset = find_dataset(asked.dataset)
    said: list[str] = []
    return *settle(asked, dataset, reference_records(asked, dataset), said.append), said


def start_of(asked: Options, value: float = 0.0) -> Vector:
    dataset = find_dataset(asked.dataset)
    local = local_settings(asked, dataset, reference_records(asked, dataset))
    return np.full(parameter_count(build_student(local.spec)), value, np.float32)


class Unseen:
    """The teacher has seen nothing yet."""

    key, images = None, None


@pytest.fixture
def never_distil(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        pytest.fail("a public start was made")

    monkeypatch.setattr(distilling, "public_start", never)
    monkeypatch.setattr(distilling, "public_images", never)
    monkeypatch.setattr(distilling, "imagenet_start", never)


@pytest.mark.usefixtures("never_distil")
@pytest.mark.parametrize(
    ("recipe", "changes", "words"),
    [
        (DISTILLED, {"dataset": COLOUR}, "grey"),
        (DISTILLED, {"public": DATA}, "the study's own"),
        (DISTILLED, {"reference": "none", "prior": "none"}, "reference records"),
        (DISTILLED, {"dataset": "phantom:train=60,val=12,test=40"}, "at least 20"),
        (DISTILLED, {"dataset": "phantom:train=90,val=60,test=40,imbalance=25"}, "at least 3 of each"),
        (IMAGENET, {"reference": "none", "prior": "none"}, "the recipe imagenet needs at least 20"),
        (IMAGENET, {"dataset": "phantom:train=60,val=12,test=40"}, "at least 20"),
    ],
)
def test_where_there_are_no_public_images_of_the_kind_it_says_so_and_trains_from_scratch(
    recipe: str, changes: dict[str, Any], words: str
) -> None:
    used, start, said = settled((imagenet if recipe == IMAGENET else options)(**changes))
    assert start is None
    assert words in used.recipe_note
    assert used.recipe_note in said[-1]
    plain = Options(**{"dataset": DATA, "hospitals": 2, "public": used.public} | changes)
    assert dataclasses.replace(used, recipe_note="") == plain


def right_in(share: float, labels: np.ndarray) -> np.ndarray:
    """Decisions between two classes that are right in so large a share of each."""
    decided = labels.copy()
    for label in (0, 1):
        own = np.flatnonzero(labels == label)
        decided[own[round(share * len(own)) :]] = 1 - label
    return decided


def _judged(monkeypatch: pytest.MonkeyPatch, start: float, plain: float) -> None:
    """Nothing is distilled, and half B says this of the start and of a student without it."""
    monkeypatch.setattr(distilling, "public_images", lambda *_: None)
    monkeypatch.setattr(distilling, "_Shown", Unseen)
    monkeypatch.setattr(distilling, "public_start", lambda *_, **__: start_of(options()))
    monkeypatch.setattr(
        distilling,
        "_decided",
        lambda local, _, records: right_in(start if local.trained == "head" else plain, records.labels),
    )
    monkeypatch.setattr(distilling, "_PLAIN_STEPS", 1)


def test_a_start_worse_than_without_public_images_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    _judged(monkeypatch, start=0.6, plain=0.8)
    used, start, _ = settled(options())
    assert start is None
    assert used.recipe == FROM_SCRATCH
    assert "60.0%" in used.recipe_note
    assert "80.0%" in used.recipe_note


def test_a_start_as_good_as_chance_allows_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    _judged(monkeypatch, start=0.85, plain=0.9)
    used, start, said = settled(options())
    assert start is not None
    assert used.recipe == DISTILLED
    assert not said


@pytest.mark.usefixtures("never_distil")
def test_public_images_that_would_judge_what_was_learned_from_them_are_not_learned_from() -> None:
    asked, dataset = options(), find_dataset(DATA)
    public = dataclasses.replace(dataset, train=dataset.val)
    local, generator = local_settings(asked, dataset, dataset.val), KeyedGenerator.from_seed(0, "start")
    start, why = start_or_reason(DISTILLED, local, public, dataset.val, generator, lambda _: None)
    assert start is None
    assert why.startswith(f"60 images of {public.name} are reference records")


def test_of_two_equally_good_models_few_are_refused_though_classes_are_rare() -> None:
    """Counts as of DermaMNIST's validation: the error of plain accuracy would refuse one in six."""
    random, refused = np.random.default_rng(0), 0
    labels = np.repeat(np.arange(7), [16, 26, 55, 6, 55, 335, 7])
    for _ in range(60):
        ours, theirs = (
            np.where(random.random(len(labels)) < 0.75, labels, (labels + 1) % 7) for _ in range(2)
        )
        gap = balanced_accuracy(ours, labels) - balanced_accuracy(theirs, labels)
        refused += gap < -2 * error_of_difference(ours, theirs, labels)
    assert refused <= 4


def test_the_teacher_looks_again_where_the_public_images_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    monkeypatch.setattr(distilling, "load_teacher", lambda: None)
    monkeypatch.setattr(distilling, "_Shown", Unseen)
    monkeypatch.setattr(distilling, "public_images", lambda _, public, *__: seen.append(public.images))
    val = find_dataset(DATA).val
    sets = [find_dataset(f"phantom:seed={seed},train=40,val=30,test=10").train for seed in (1, 1, 2)]
    for public in sets:
        distilling._shown(public, val, lambda _: None)
    assert [images.tobytes() for images in seen] == [sets[index].images.tobytes() for index in (0, 2)]


@pytest.mark.usefixtures("never_distil")
def test_a_set_cut_from_the_public_set_s_own_collection_is_not_distilled_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    named = {DATA: "chestmnist", "phantom:seed=3,train=40,val=30,test=10": "mednist"}
    monkeypatch.setattr(
        public_starts,
        "find_dataset",
        lambda spec: dataclasses.replace(find_dataset(spec), name=named[spec]),
    )
    asked, said = options(), list[str]()
    dataset = dataclasses.replace(find_dataset(DATA), name="chestmnist")
    used, start = settle(asked, dataset, dataset.val, said.append)
    assert start is None
    assert "the collection that chestmnist was cut from" in used.recipe_note


@pytest.mark.usefixtures("never_distil")
@pytest.mark.parametrize("precision", ["ternary", "int8", "fp32"])
def test_a_fallback_trains_a_whole_cnn_of_the_same_precision_whoever_asked_for_the_head(
    precision: str,
) -> None:
    used, _, _ = settled(options(student=f"{precision}-embed", dataset=COLOUR, kept=("trained",)))
    assert (used.student, used.trained, used.rounds) == (f"{precision}-cnn", "all", Options().rounds)
    kept, _, _ = settled(options(student=f"{precision}-embed", dataset=COLOUR, kept=("student",)))
    assert kept.student == f"{precision}-embed"


@pytest.mark.usefixtures("never_distil")
@pytest.mark.parametrize(
    "changes",
    [
        {"server_momentum": 2.0},
        {"averaged_rounds": 0},
        {"epsilon": 1e-3, "rounds": 90_000},
        {"hospitals": 9999},
    ],
)
def test_what_no_study_takes_is_refused_before_minutes_of_distilling(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(Refusal):
        prepare(options(**changes), tmp_path / "run", None)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("never_distil")
def test_a_run_from_a_start_in_a_file_trains_its_head_alone(tmp_path: Path) -> None:
    asked = options(rounds=2, averaged_rounds=1, start=str(tmp_path / "start.npz"), views=2)
    dataset = find_dataset(asked.dataset)
    local = local_settings(asked, dataset, reference_records(asked, dataset))
    start = np.random.default_rng(0).normal(size=parameter_count(build_student(local.spec)))
    save_start(tmp_path / "start.npz", local, start.astype(np.float32), "noise")
    simulation = prepare(asked, tmp_path / "run", None)
    metrics = run(simulation, Console(quiet=True)).metrics
    folder = StudyFolder(tmp_path / "run")
    after = load_checkpoint(folder.checkpoint, folder.study()).latents
    frozen = frozen_count(local.spec, "head")
    assert np.array_equal(after[:frozen], _as_it_travels(start.astype(np.float32))[:frozen])
    assert not np.array_equal(after[frozen:], start[frozen:].astype(np.float32))
    uplink = sum(row["uplink_bytes"] for row in metrics["rounds"])
    assert uplink < 2 * 2 * 2000  # two rounds, two hospitals: the head, and a header


def _as_it_travels(start: Vector) -> Vector:
    """A study whose model travels as differences starts from what hospitals get of its first model."""
    return decode(encode(start, "int8"), len(start), "int8")


def test_a_start_of_another_student_is_refused(tmp_path: Path) -> None:
    asked = options(start=str(tmp_path / "start.npz"))
    dataset = find_dataset(asked.dataset)
    local = local_settings(asked, dataset, reference_records(asked, dataset))
    save_start(tmp_path / "start.npz", local, start_of(asked), "zeros")
    with pytest.raises(StartRefused, match="ternary-embed"):
        settled(dataclasses.replace(asked, student="int8-embed"))


def test_large_federations_look_at_as_many_images_a_step_and_small_ones_at_all() -> None:
    rates = {images: sampled(options(), images).sample_rate for images in (0, 4708, 40_000)}
    assert rates == {0: 1.0, 4708: 1.0, 40_000: 0.25}
    big = dataclasses.replace(options(), sample_rate=0.5)
    assert settled(dataclasses.replace(big, dataset=COLOUR))[0].sample_rate == 0.5  # one's own is kept


@pytest.mark.usefixtures("never_distil")
def test_what_is_typed_comes_before_the_recipe(
    fedward: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Options] = []

    def record(asked: Options, *_: object) -> None:
        seen.append(asked)
        raise StartRefused("That is enough.")

    monkeypatch.setattr("fedward.simulations.commands.prepare", record)
    done = fedward("simulate", "--recipe", "distilled", "--rounds", 3, "--out", tmp_path / "run")
    assert done.code == 1
    (asked,) = seen
    assert asked.rounds == 3
    assert {name: getattr(asked, name) for name in RECIPES[DISTILLED]} == {**RECIPES[DISTILLED], "rounds": 3}


def test_an_unknown_recipe_is_refused_with_those_that_exist(fedward: Command, tmp_path: Path) -> None:
    done = fedward("simulate", "--recipe", "magic", "--out", tmp_path / "run")
    assert done.code == 1
    assert "from-scratch, distilled" in done.err


def test_the_head_and_ewc_do_not_go_together(make_local: Callable[..., LocalSettings]) -> None:
    with pytest.raises(Exception, match="ewc_lambda"):
        make_local(trained="head", ewc_lambda=0.5)


def test_public_images_that_a_person_named_and_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetRefused):
        settled(options(public=str(tmp_path / "typo.npz")))


def test_a_set_that_is_not_at_hand_by_itself_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = options(public="auto")
    dataset = find_dataset(asked.dataset)
    monkeypatch.setattr(public_starts, "AUTO", str(tmp_path / "mednist.npz"))
    used, start = settle(asked, dataset, reference_records(asked, dataset), print)
    assert start is None
    assert "no public images" in used.recipe_note


def test_what_was_typed_stays_when_the_recipe_gives_way() -> None:
    used, _, _ = settled(options(dataset=COLOUR, kept=("rounds", "sample_rate")))
    assert (used.rounds, used.sample_rate) == (20, 1.0)
    assert (used.student, used.trained) == ("ternary-cnn", "all")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recipe": DISTILLED, "continue_from": "r"}, "leave out --continue-from"),
        ({"trained": "head"}, "needs a body"),
        ({"start": "s.npz", "continue_from": "r"}, "leave out one"),
    ],
)
def test_starts_that_contradict_each_other_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingRefused, match=words):
        Options(**{"dataset": DATA} | changes)


def test_a_study_from_imagenet_weights_trains_its_head_from_what_half_a_taught(tmp_path: Path) -> None:
    simulation = prepare(imagenet(rounds=2, averaged_rounds=1), tmp_path / "run", None)
    first = start_latents(simulation.folder)
    metrics = run(simulation, Console(quiet=True)).metrics
    assert metrics["study"]["simulation"]["recipe"] == IMAGENET
    after = load_checkpoint(simulation.folder.checkpoint, simulation.folder.study()).latents
    body = frozen_count(simulation.folder.study().local.spec, "head")
    assert np.array_equal(after[:body], _as_it_travels(first)[:body])
    assert not np.array_equal(after[body:], first[body:])


def test_imagenet_weights_that_do_worse_than_half_a_alone_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    _judged(monkeypatch, start=0.6, plain=0.8)
    used, start, _ = settled(imagenet())
    assert start is None
    assert "the start of the recipe imagenet is right in 60.0%" in used.recipe_note


def test_imagenet_weights_are_for_a_mobile_student(tmp_path: Path) -> None:
    with pytest.raises(SettingRefused, match="take ternary-mobile"):
        prepare(imagenet(student="ternary-cnn"), tmp_path / "run", None)


def test_a_student_without_an_embedding_is_refused_before_the_teacher_looks() -> None:
    with pytest.raises(SettingRefused, match="embed student"):
        settled(options(student="ternary-cnn"))


def test_a_study_of_the_head_whose_body_is_lost_does_not_begin(
    make_study: Callable[..., Any], make_local: Callable[..., LocalSettings], tmp_path: Path
) -> None:
    folder = StudyFolder(tmp_path / "study")
    folder.create(make_study(make_local(student="ternary-embed", trained="head"), (30, 20)), None)
    with pytest.raises(CheckpointRefused, match="vector start"):
        start_latents(folder)
