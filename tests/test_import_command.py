"""`fedward hospital init` makes a hospital that allows nothing by itself; `join` declares what it holds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward.client.hospital import Hospital
from fedward.client.policy_file import read_policy
from fedward.common.datasets import ImageDataset, Split, save_npz


@pytest.fixture
def data(tmp_path: Path, phantom: ImageDataset) -> Path:
    path = tmp_path / "images.npz"
    save_npz(path, Split(phantom.train.images[:33], phantom.train.labels[:33]))
    return path


def _init(fedward: Callable[..., Any], state: Path, data: Path, *more: object) -> Any:
    asked = ("--name", "St. Mary", "--data", data, "--classes", 2, "--epsilon", 3, "--state", state)
    return fedward("hospital", "init", *asked, *more)


def test_a_hospital_is_made_with_a_budget_a_real_generator_and_studies_that_wait_for_approval(
    tmp_path: Path, data: Path, fedward: Callable[..., Any]
) -> None:
    state = tmp_path / "h"
    made = json.loads(_init(fedward, state, data, "--json").out)
    assert (made["images"], made["declared"]) == (33, 40)
    hospital = Hospital(state)
    assert hospital.profile.seed is None
    assert hospital.budget is not None
    assert hospital.budget.terms.total_epsilon == 3
    assert read_policy(state).approval
    assert state.stat().st_mode & 0o777 == 0o700


def test_a_hospital_that_is_there_is_not_made_again(
    tmp_path: Path, data: Path, fedward: Callable[..., Any]
) -> None:
    state = tmp_path / "h"
    _init(fedward, state, data)
    assert _init(fedward, state, data).err.startswith("OutputRefused")


def test_a_policy_that_the_administrator_wrote_before_stays(
    tmp_path: Path, data: Path, fedward: Callable[..., Any]
) -> None:
    state = tmp_path / "h"
    state.mkdir()
    (state / "hospital.toml").write_text("max_rounds = 7\n")
    assert _init(fedward, state, data).code == 0
    assert read_policy(state).max_rounds == 7


def test_a_file_with_anything_but_images_and_labels_makes_no_hospital(
    tmp_path: Path, fedward: Callable[..., Any]
) -> None:
    images, labels = np.zeros((9, 16, 16), np.uint8), np.zeros(9, np.int64)
    np.savez(tmp_path / "more.npz", images=images, labels=labels, names=np.array(["x"] * 9))
    assert _init(fedward, tmp_path / "h", tmp_path / "more.npz").err.startswith("DatasetRefused")
    assert not (tmp_path / "h" / "hospital.json").exists()


def test_join_declares_the_name_and_count_that_the_folder_has(
    tmp_path: Path, data: Path, fedward: Callable[..., Any]
) -> None:
    state, out = tmp_path / "h", ("--out", tmp_path / "request.json")
    _init(fedward, state, data)
    for wrong in (("--name", "St. Joan"), ("--images", 400)):
        assert fedward("hospital", "join", *wrong, *out, "--state", state).err.startswith("EnrolmentRefused")
    assert fedward("hospital", "join", *out, "--state", state).code == 0
    asked = (tmp_path / "request.json").read_text()
    assert "payload" in asked


def test_join_without_images_says_which_command_comes_first(
    tmp_path: Path, fedward: Callable[..., Any]
) -> None:
    assert "fedward hospital init" in fedward("hospital", "join", "--state", tmp_path / "h").err


def test_up_without_a_federation_says_which_command_comes_first(
    tmp_path: Path, data: Path, fedward: Callable[..., Any]
) -> None:
    state = tmp_path / "h"
    _init(fedward, state, data)
    assert "fedward hospital join" in fedward("hospital", "up", "--state", state).err
    refused = fedward("hospital", "up", "--node-key", tmp_path / "k", "--state", state)
    assert refused.err.startswith("SettingRefused")
