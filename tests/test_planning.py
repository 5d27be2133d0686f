"""A study is planned from public data and the sites that are enrolled, each within its epsilon."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward.common.config import LocalSettings
from fedward.common.datasets import ImageDataset, save_npz
from fedward.common.instants import utc_now
from fedward.common.models import build_student, parameter_count
from fedward.common.release_index import Listed
from fedward.server import planning
from fedward.server.coordinator import Coordinator
from fedward.server.enrolment import revoke
from fedward.server.publishing import site_costs
from fedward.server.recipes import RECIPES
from fedward.server.rounds import start_latents
from fedward.server.shelf import put
from fedward.server.study_folder import StudyFolder


@pytest.fixture
def office(
    tmp_path: Path,
    phantom: ImageDataset,
    make_coordinator: Callable[..., Coordinator],
    join_federation: Callable[..., Any],
) -> Coordinator:
    """A coordinator with three sites, and public data beside it."""
    coordinator = make_coordinator(tmp_path / "c")
    for name in ("a", "b", "c"):
        join_federation(coordinator, tmp_path / name, name)
    save_npz(tmp_path / "public.npz", phantom)
    return coordinator


@pytest.fixture
def plan(office: Coordinator, tmp_path: Path, fedward: Callable[..., Any]) -> Callable[..., Any]:
    """plan("--rounds", 3) -> what the command says."""

    def run(*arguments: object) -> Any:
        known = ("--reference", tmp_path / "public.npz", "--state", office.folder, "--student", "fp32-cnn")
        return fedward("coordinator", "plan", tmp_path / "lungs", *known, *arguments)

    return run


def test_the_sites_that_are_enrolled_take_part_with_their_declared_counts(
    plan: Callable[..., Any], office: Coordinator, tmp_path: Path
) -> None:
    revoke(office, "b", utc_now(), "tests")
    assert plan("--rounds", 2, "--epsilon", 5).code == 0
    study = StudyFolder(tmp_path / "lungs").study()
    assert [(one.name, one.num_examples) for one in study.hospitals] == [("a", 100), ("c", 100)]
    assert (study.name, study.rounds, study.seed, study.version) == ("lungs", 2, None, 1)
    assert all(4.5 < site.epsilon <= 5 for site in site_costs(study) if site.epsilon is not None)
    assert StudyFolder(tmp_path / "lungs").reference() is not None


def test_chosen_sites_alone_take_part_and_a_stranger_is_refused(
    plan: Callable[..., Any], tmp_path: Path
) -> None:
    assert plan("--site", "nobody").err.startswith("EnrolmentRefused")
    assert plan("--site", "c", "--rounds", 2).code == 0
    assert [one.name for one in StudyFolder(tmp_path / "lungs").study().hospitals] == ["c"]


def test_updates_and_models_travel_in_about_three_bits_a_weight_untold(
    plan: Callable[..., Any], tmp_path: Path
) -> None:
    assert plan("--rounds", 2).code == 0
    study = StudyFolder(tmp_path / "lungs").study()
    assert (study.uplink_codec, study.downlink_codec) == ("coded3", "diff3")


def test_updates_and_models_travel_as_was_planned(plan: Callable[..., Any], tmp_path: Path) -> None:
    assert plan("--uplink-codec", "zip").err.startswith(
        "SettingRefused: uplink_codec must be one of fp32, int8"
    )
    assert plan("--downlink-codec", "coded2").err.startswith(
        "SettingRefused: downlink_codec must be one of fp32, int8, diff4, diff3, diff2"
    )
    assert plan("--uplink-codec", "coded2", "--downlink-codec", "diff3", "--rounds", 2).code == 0
    study = StudyFolder(tmp_path / "lungs").study()
    assert (study.uplink_codec, study.downlink_codec) == ("coded2", "diff3")


def test_a_study_of_a_name_that_was_released_is_its_next_version(
    plan: Callable[..., Any], office: Coordinator, tmp_path: Path
) -> None:
    put(office, Listed("lungs", 3, "d", f"{'a' * 64}.tar", 1, "2026-01-01T00:00:00Z"), b"x")
    plan("--rounds", 2)
    assert StudyFolder(tmp_path / "lungs").study().version == 4


def test_a_study_that_is_there_is_not_planned_over(plan: Callable[..., Any]) -> None:
    assert plan("--rounds", 2).code == 0
    assert plan("--rounds", 3).err.startswith("OutputRefused")


def test_a_federation_without_sites_plans_nothing(
    tmp_path: Path,
    phantom: ImageDataset,
    make_coordinator: Callable[..., Coordinator],
    fedward: Callable[..., Any],
) -> None:
    save_npz(tmp_path / "public.npz", phantom)
    make_coordinator(tmp_path / "c")
    asked = ("--reference", tmp_path / "public.npz", "--state", tmp_path / "c")
    assert "enrol" in fedward("coordinator", "plan", tmp_path / "s", *asked).err


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the coordinator's distillation gives instead of minutes of work: {"start": ..., "why": ...}."""
    given: dict[str, Any] = {"start": None, "why": ""}

    def distilled(recipe: str, local: LocalSettings, *_: object) -> tuple[Any, str]:
        given["recipe"], given["local"] = recipe, local
        if given["why"]:
            return None, given["why"]
        return np.full(parameter_count(build_student(local.spec)), 0.5, np.float32), ""

    monkeypatch.setattr(planning, "start_or_reason", distilled)
    return given


def _planned(fedward: Callable[..., Any], office: Coordinator, tmp_path: Path, *arguments: object) -> Any:
    reference = ("--reference", tmp_path / "public.npz", "--state", office.folder)
    return fedward("coordinator", "plan", tmp_path / "lungs", *reference, "--recipe", "distilled", *arguments)


def test_a_distilled_study_starts_from_public_data_and_trains_the_head(
    office: Coordinator, tmp_path: Path, fedward: Callable[..., Any], start: dict[str, Any]
) -> None:
    public = ("--public", tmp_path / "public.npz")
    assert _planned(fedward, office, tmp_path, *public, "--rounds", 4).code == 0
    study = StudyFolder(tmp_path / "lungs").study()
    own = {**RECIPES["distilled"], "rounds": 4}
    of_local = {name: own[name] for name in ("student", "trained", "max_grad_norm", "views", "sample_rate")}
    assert {name: getattr(study.local, name) for name in of_local} == of_local
    assert (study.rounds, study.server_momentum, study.schedule) == (4, 0.9, "constant")
    assert np.all(start_latents(StudyFolder(tmp_path / "lungs")) == 0.5)
    assert start["local"].trained == "head"


def test_a_study_from_imagenet_weights_needs_no_public_images_but_the_reference(
    office: Coordinator, tmp_path: Path, fedward: Callable[..., Any], start: dict[str, Any]
) -> None:
    asked = "--recipe", "imagenet"
    done = _planned(fedward, office, tmp_path, *asked, "--public", tmp_path / "public.npz")
    assert done.err.startswith("SettingRefused: The recipe imagenet takes no public images")
    assert not (tmp_path / "lungs").exists()
    assert _planned(fedward, office, tmp_path, *asked).code == 0
    study = StudyFolder(tmp_path / "lungs").study()
    assert (study.local.student, study.local.trained, study.rounds) == ("ternary-mobile", "head", 20)
    assert (study.uplink_codec, study.downlink_codec) == ("coded3", "diff3")
    assert start["recipe"] == "imagenet"


def test_a_distilled_study_without_a_start_says_why_and_is_planned_from_scratch(
    office: Coordinator, tmp_path: Path, fedward: Callable[..., Any], start: dict[str, Any]
) -> None:
    start["why"] = "the public images are of cats."
    done = _planned(fedward, office, tmp_path, "--public", tmp_path / "public.npz")
    assert done.code == 0
    assert "Training from scratch instead: the public images are of cats." in done.err
    local = StudyFolder(tmp_path / "lungs").study().local
    assert (local.student, local.trained, local.rounds) == ("ternary-cnn", "all", 60)
    assert not StudyFolder(tmp_path / "lungs").fixed.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--quorum", 9), "quorum"), (("--epsilon", 1e-9), "epsilon"), (("--rounds", 10**6), "rounds")],
)
def test_what_no_study_takes_is_refused_before_minutes_of_distilling(
    office: Coordinator,
    tmp_path: Path,
    fedward: Callable[..., Any],
    start: dict[str, Any],
    arguments: tuple[object, ...],
    words: str,
) -> None:
    done = _planned(fedward, office, tmp_path, "--public", tmp_path / "public.npz", *arguments)
    assert done.code == 1
    assert words in done.err
    assert "local" not in start  # nothing was distilled
    assert not (tmp_path / "lungs").exists()


def test_a_folder_in_use_is_refused_before_minutes_of_distilling(
    office: Coordinator, tmp_path: Path, fedward: Callable[..., Any], start: dict[str, Any]
) -> None:
    (tmp_path / "lungs").mkdir()
    (tmp_path / "lungs" / "study.json").write_text("{}")
    done = _planned(fedward, office, tmp_path, "--public", tmp_path / "public.npz")
    assert done.err.startswith("OutputRefused")
    assert "local" not in start


def test_a_file_in_the_folders_place_is_refused_before_minutes_of_distilling(
    office: Coordinator, tmp_path: Path, fedward: Callable[..., Any], start: dict[str, Any]
) -> None:
    (tmp_path / "lungs").write_text("notes")
    done = _planned(fedward, office, tmp_path, "--public", tmp_path / "public.npz")
    assert done.err.startswith("OutputRefused")
    assert "local" not in start
    assert (tmp_path / "lungs").read_text() == "notes"


def test_a_distilled_study_needs_public_images_and_a_recipe_that_exists(
    office: Coordinator, tmp_path: Path, fedward: Callable[..., Any]
) -> None:
    assert _planned(fedward, office, tmp_path).err.startswith("SettingRefused: The distilled recipe needs")
    done = _planned(fedward, office, tmp_path, "--recipe", "magic")
    assert done.err.startswith("UnknownName: There is no recipe 'magic'; choose one of from-scratch")
    assert not (tmp_path / "lungs").exists()
