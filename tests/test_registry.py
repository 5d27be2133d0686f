"""A hospital trains only on images whose spending its registry counts."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward.client import hospital as hospital_module
from fedward.client.hospital import Hospital, create_hospital
from fedward.client.registry import Registry
from fedward.common.codec import encode
from fedward.common.config import LocalSettings
from fedward.common.datasets import ImageDataset, Split, save_npz
from fedward.common.errors import BudgetRefused, DatasetRefused, OutputRefused, UnknownName
from fedward.common.messages import LATENTS, TrainRequest
from fedward.common.models import build_student, parameter_count

DELTA = 1e-5


@pytest.fixture
def site(tmp_path: Path, phantom: ImageDataset) -> Path:
    """A hospital of the phantom's first 20 images."""
    create_hospital(tmp_path / "site", "north", _records(phantom, 0, 20), 50.0, DELTA, None)
    return tmp_path / "site"


@pytest.fixture
def ask(make_local: Callable[..., LocalSettings]) -> Callable[[int], TrainRequest]:
    local = make_local()
    packed = encode(np.zeros(parameter_count(build_student(local.spec)), np.float32), "fp32")
    return lambda number: TrainRequest("study", number, local, 0.5, ("fp32", "fp32"), {LATENTS: packed})


def _records(phantom: ImageDataset, first: int, last: int) -> Split:
    return Split(phantom.train.images[first:last], phantom.train.labels[first:last])


def _put(site: Path, records: Split) -> None:
    save_npz(site / "data.npz", records)


def test_images_that_were_put_into_the_file_by_hand_are_refused(site: Path, phantom: ImageDataset) -> None:
    _put(site, _records(phantom, 20, 40))
    with pytest.raises(DatasetRefused, match=r"20 of 20 images .* import these images first"):
        Hospital(site)


def test_one_strange_image_among_known_ones_is_refused(site: Path, phantom: ImageDataset) -> None:
    _put(site, _records(phantom, 1, 21))
    with pytest.raises(DatasetRefused, match="1 of 20 images"):
        Hospital(site)


def test_one_changed_pixel_is_another_image(site: Path, phantom: ImageDataset) -> None:
    records = _records(phantom, 0, 20)
    images = records.images.copy()
    images[7, 3, 3, 0] ^= 1
    _put(site, Split(images, records.labels))
    with pytest.raises(DatasetRefused, match="1 of 20 images"):
        Hospital(site)


def test_more_copies_of_known_images_than_were_declared_are_refused(
    site: Path, phantom: ImageDataset
) -> None:
    """Records beyond the declared count would take another's place when one is removed."""
    records = _records(phantom, 0, 20)
    _put(site, Split(np.repeat(records.images, 2, axis=0), np.repeat(records.labels, 2)))
    with pytest.raises(DatasetRefused, match="more images than the 20 that were declared"):
        Hospital(site)


def test_other_labels_another_order_and_fewer_images_are_the_same_data_set(
    site: Path, phantom: ImageDataset
) -> None:
    records = _records(phantom, 0, 20)
    _put(site, Split(records.images[::-1], 1 - records.labels))
    Hospital(site)
    _put(site, _records(phantom, 3, 17))
    Hospital(site)


def test_images_that_are_registered_first_are_trained_on_and_keep_the_ledger(
    site: Path, phantom: ImageDataset, ask: Callable[[int], TrainRequest]
) -> None:
    Hospital(site).answer(ask(1))
    grown = _records(phantom, 0, 30)
    create_hospital(site, "north", grown, 50.0, DELTA, None)
    hospital = Hospital(site)
    assert hospital.budget is not None
    assert hospital.budget.find("study", 1) is not None
    assert hospital.budget.state.image_count == len(np.unique(grown.images, axis=0))
    assert hospital.answer(ask(2)).num_examples == 30


def test_growth_registers_before_it_writes_so_a_crash_between_leaves_a_folder_that_opens(
    site: Path, phantom: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (site / "data.npz").read_bytes()

    def full(*arguments: object) -> None:
        raise OutputRefused("The disk is full.")

    with monkeypatch.context() as patched:
        patched.setattr(hospital_module, "save_npz", full)
        with pytest.raises(OutputRefused):
            create_hospital(site, "north", _records(phantom, 0, 30), 50.0, DELTA, None)
    assert (site / "data.npz").read_bytes() == before
    Hospital(site)


def test_an_import_on_other_terms_changes_nothing(site: Path, phantom: ImageDataset) -> None:
    before = {path: path.read_bytes() for path in (site / "data.npz", site / "hospital.json")}
    with pytest.raises(BudgetRefused, match="terms"):
        create_hospital(site, "north", _records(phantom, 20, 40), 3.0, DELTA, None)
    assert {path: path.read_bytes() for path in before} == before


def test_a_hospital_without_a_budget_registers_nothing_and_opens(
    tmp_path: Path, phantom: ImageDataset
) -> None:
    create_hospital(tmp_path / "open", "south", _records(phantom, 0, 20), None, DELTA, 7)
    _put(tmp_path / "open", _records(phantom, 20, 40))
    Hospital(tmp_path / "open")


@given(st.sets(st.integers(0, 15)), st.sets(st.integers(0, 15)))
def test_whatever_is_in_the_file_is_accepted_exactly_where_all_of_it_is_registered(
    tmp_path_factory: Any, registered: set[int], found: set[int]
) -> None:
    digests = [bytes([number]) * 16 for number in range(16)]
    registry = Registry(tmp_path_factory.mktemp("site") / "budget")
    known = {digests[number] for number in registered | {0}}
    registry.import_dataset("chest", known, total_epsilon=3.0, delta=DELTA)
    images = {digests[number] for number in found}
    if images <= known:
        registry.require_registered("chest", images)
    else:
        with pytest.raises(DatasetRefused, match=f"{len(images - known)} of {len(images)} images"):
            registry.require_registered("chest", images)


def test_images_of_another_data_set_of_the_site_are_not_this_ones(site: Path) -> None:
    registry = Registry(site / "budget")
    registry.import_dataset("other", [b"o" * 16], total_epsilon=3.0, delta=DELTA)
    with pytest.raises(DatasetRefused):
        registry.require_registered("records", [b"o" * 16])
    with pytest.raises(UnknownName):
        registry.require_registered("brain", [b"o" * 16])


def test_the_check_is_cheap(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20_000, 28, 28, 1), dtype=np.uint8)
    registry = Registry(tmp_path / "budget")
    registry.import_dataset("chest", registry.identity.digests(images), total_epsilon=3.0, delta=DELTA)
    started = time.perf_counter()
    registry.require_registered("chest", registry.identity.digests(images))
    assert time.perf_counter() - started < 2.0  # about .1 s; a hundred thousand images take .8 s
