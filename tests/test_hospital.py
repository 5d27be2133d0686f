"""A hospital charges before it computes, answers a round once, and refuses before anything is spent."""

import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedward.client import hospital as hospital_module
from fedward.client.hospital import Hospital, create_hospital
from fedward.client.training import LocalRound, train
from fedward.common.codec import Vector, decode, encode
from fedward.common.config import LocalSettings
from fedward.common.datasets import ImageDataset, Split, save_npz
from fedward.common.errors import (
    BudgetRefused,
    DatasetRefused,
    OutputRefused,
    PayloadRefused,
    Refusal,
    RequestRefused,
)
from fedward.common.messages import ANCHOR, FISHER, LATENTS, TEACHER, TrainReply, TrainRequest
from fedward.common.models import build_student, flatten, initialise
from fedward.common.randomness import KeyedGenerator
from fedward.common.rounding import uplink_step
from fedward.simulations.phantoms import make_phantoms

LocalMaker = Callable[..., LocalSettings]
Opener = Callable[..., Hospital]
DELTA = 1e-5


class Crash(BaseException):
    """The process dies here."""


@pytest.fixture
def records(phantom: ImageDataset) -> Split:
    return Split(phantom.train.images[:20], phantom.train.labels[:20])


@pytest.fixture
def opened(tmp_path: Path, records: Split) -> Opener:
    """opened(budget=50.0, seed=None, records=...) -> the hospital; called again, the same one restarted."""

    def open_it(budget: float | None = 50.0, seed: int | None = None, own: Split = records) -> Hospital:
        folder = tmp_path / "hospital"
        if not folder.exists():
            create_hospital(folder, "hospital-0", own, budget, DELTA, seed)
        return Hospital(folder)

    return open_it


@pytest.fixture(scope="module")
def latents(make_local: LocalMaker) -> Vector:
    model = build_student(make_local().spec)
    initialise(model, KeyedGenerator.from_seed(0))
    return flatten(list(model.parameters())).numpy()


@pytest.fixture
def ask(make_local: LocalMaker, latents: Vector) -> Callable[..., TrainRequest]:
    """ask(server_round=1, **changes of the settings) -> a request."""

    def make(server_round: int = 1, rate: float = 0.5, **changes: Any) -> TrainRequest:
        vectors = {LATENTS: encode(latents, "fp32")}
        return TrainRequest("study", server_round, make_local(**changes), rate, ("fp32", "fp32"), vectors)

    return make


@pytest.fixture
def never_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        pytest.fail("a gradient was computed")

    monkeypatch.setattr(hospital_module, "train", fail)


def _charges(hospital: Hospital) -> list[tuple[str, int]]:
    assert hospital.budget is not None
    entries = hospital.budget.ledger.entries
    return [(entry.body["study"], entry.body["round"]) for entry in entries if entry.kind == "charge"]


def _keys(hospital: Hospital) -> list[Path]:
    return sorted((hospital._keys._folder).iterdir())


def _refused(hospital: Hospital, request: TrainRequest, kind: type[Refusal], words: str) -> None:
    """Refused by name, with nothing charged, kept or stored."""
    before = _charges(hospital) if hospital.budget else []
    with pytest.raises(kind, match=words):
        hospital.answer(request)
    assert (_charges(hospital) if hospital.budget else []) == before
    assert _keys(hospital) == []


def _same_reply(first: TrainReply, second: TrainReply) -> bool:
    return first.to_bytes() == second.to_bytes()


# Answer once


@pytest.mark.parametrize("seed", [None, 7])
def test_the_same_request_gives_the_same_bytes_and_is_charged_once(
    opened: Opener, ask: Callable[..., TrainRequest], seed: int | None
) -> None:
    first = opened(seed=seed).answer(ask())
    again = [opened(seed=seed).answer(ask()) for _ in range(2)]
    assert all(_same_reply(first, reply) for reply in again)
    assert _charges(opened(seed=seed)) == [("study", 1)]


def test_a_reply_says_the_public_name_and_the_declared_count_only(
    opened: Opener, ask: Callable[..., TrainRequest], latents: Vector
) -> None:
    reply = opened().answer(ask())
    assert (reply.study, reply.server_round, reply.hospital, reply.codec) == (
        "study",
        1,
        "hospital-0",
        "fp32",
    )
    assert reply.num_examples == 20
    update = decode(reply.update, len(latents), "fp32")
    assert np.isfinite(update).all()
    assert np.abs(update).max() > 0


def test_the_declared_count_is_not_the_private_one(tmp_path: Path, records: Split) -> None:
    for count, declared in ((1, 10), (10, 10), (11, 20)):
        own = Split(records.images[:count], records.labels[:count])
        profile = create_hospital(tmp_path / str(count), "h", own, None, DELTA, None)
        assert profile.num_examples == declared


def test_the_stored_reply_is_sent_without_training(
    opened: Opener, ask: Callable[..., TrainRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened().answer(ask())
    monkeypatch.setattr(hospital_module, "train", lambda *args: pytest.fail("trained again"))
    assert _same_reply(opened().answer(ask()), first)


@pytest.mark.parametrize("change", [{"rate": 0.25}, {"max_grad_norm": 2.0}, {"augmentation": "shift"}])
def test_other_content_for_an_answered_round_is_refused(
    opened: Opener, ask: Callable[..., TrainRequest], change: dict[str, Any]
) -> None:
    hospital = opened()
    hospital.answer(ask())
    _refused(hospital, ask(**change), RequestRefused, "other content")


def test_another_model_for_an_answered_round_is_refused(
    opened: Opener, ask: Callable[..., TrainRequest], latents: Vector
) -> None:
    """The difference of two answers about one model and another would be one round's noise for two."""
    hospital, request = opened(), ask()
    hospital.answer(request)
    other = dataclasses.replace(request, vectors={LATENTS: encode(latents + np.float32(1), "fp32")})
    _refused(hospital, other, RequestRefused, "other content")


def test_rounds_and_studies_are_charged_each(opened: Opener, ask: Callable[..., TrainRequest]) -> None:
    hospital = opened()
    replies = [hospital.answer(ask(1)), hospital.answer(ask(2))]
    replies.append(hospital.answer(dataclasses.replace(ask(1), study="another")))
    assert _charges(hospital) == [("study", 1), ("study", 2), ("another", 1)]
    assert len({reply.update.tobytes() for reply in replies}) == 3


# Charge before work


def test_the_charge_stands_in_the_ledger_before_a_gradient_is_computed(
    opened: Opener, ask: Callable[..., TrainRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital, seen = opened(), []

    def look(work: LocalRound, own: Split, generator: KeyedGenerator) -> Any:
        charge = opened().budget.find("study", 1)  # as another process reads it from the disk
        seen.append((charge.extra["key"] == generator.key_digest, len(charge.extra["snapshot"])))
        return train(work, own, generator)

    monkeypatch.setattr(hospital_module, "train", look)
    hospital.answer(ask())
    assert seen == [(True, 64)]


@pytest.mark.usefixtures("never_trains")
def test_a_budget_that_does_not_cover_the_study_is_refused_before_any_gradient(
    opened: Opener, ask: Callable[..., TrainRequest]
) -> None:
    _refused(opened(budget=0.01), ask(), BudgetRefused, "left")


def test_a_budget_that_ends_in_the_middle_refuses_the_next_round_before_any_gradient(
    opened: Opener, ask: Callable[..., TrainRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = opened()
    hospital.answer(ask(1, local_steps=4, rounds=3))
    # Twelve steps as well, but in rounds that do not come out even: 8 are left, and these ask for 12.
    monkeypatch.setattr(hospital_module, "train", lambda *args: pytest.fail("a gradient was computed"))
    _refused(hospital, ask(2, local_steps=12, rounds=1), BudgetRefused, "8 steps left")


@pytest.mark.usefixtures("never_trains")
@pytest.mark.parametrize("sigma", [1e-6, 0.01])
def test_noise_that_protects_nobody_is_refused(
    opened: Opener, ask: Callable[..., TrainRequest], sigma: float
) -> None:
    _refused(opened(), ask(noise_multiplier=sigma), BudgetRefused, "noise")


@pytest.mark.usefixtures("never_trains")
@pytest.mark.parametrize(("budget", "seed"), [(50.0, None), (50.0, 7), (None, None)])
def test_no_noise_is_refused_by_whoever_has_a_budget_or_no_seed(
    opened: Opener, ask: Callable[..., TrainRequest], budget: float | None, seed: int | None
) -> None:
    _refused(opened(budget, seed), ask(noise_multiplier=0.0), RequestRefused, "without noise")


def test_a_simulated_hospital_without_a_budget_trains_on_public_data_without_noise(
    opened: Opener, ask: Callable[..., TrainRequest]
) -> None:
    request = ask(noise_multiplier=0.0, sample_rate=1.0)
    assert _same_reply(opened(None, 7).answer(request), opened(None, 7).answer(request))


@pytest.mark.usefixtures("never_trains")
def test_a_hospital_without_a_budget_does_not_spend(opened: Opener, ask: Callable[..., TrainRequest]) -> None:
    _refused(opened(budget=None), ask(), BudgetRefused, "no budget")


@pytest.mark.usefixtures("never_trains")
def test_a_study_at_another_delta_is_refused(opened: Opener, ask: Callable[..., TrainRequest]) -> None:
    _refused(opened(), ask(target_delta=1e-4), BudgetRefused, "delta")


# What does not fit is refused before it costs anything


@pytest.mark.usefixtures("never_trains")
@pytest.mark.parametrize("change", [{"height": 20}, {"width": 28}, {"channels": 3}])
def test_images_of_another_shape_are_refused(
    opened: Opener, ask: Callable[..., TrainRequest], change: dict[str, Any]
) -> None:
    _refused(opened(), ask(**change), RequestRefused, "shape")


@pytest.mark.usefixtures("never_trains")
def test_another_number_of_classes_is_refused_before_the_charge(
    tmp_path: Path, ask: Callable[..., TrainRequest], records: Split
) -> None:
    """Found out in the middle of the training, it would have cost the round's budget."""
    own = Split(records.images, np.arange(20) % 3)
    create_hospital(tmp_path / "three", "h", own, 50.0, DELTA, None, classes=3)
    _refused(Hospital(tmp_path / "three"), ask(), RequestRefused, "task")


@pytest.mark.usefixtures("never_trains")
def test_a_refusal_does_not_tell_whether_a_declared_class_occurs(
    tmp_path: Path, ask: Callable[..., TrainRequest], records: Split
) -> None:
    """A coordinator that asks with fewer classes must not learn whether any record has a rare one."""
    sentences = set()
    for occurs in (True, False):
        own = Split(records.images, np.arange(20) % (3 if occurs else 2))
        create_hospital(tmp_path / str(occurs), "h", own, 50.0, DELTA, None, classes=3)
        with pytest.raises(RequestRefused) as refused:
            Hospital(tmp_path / str(occurs)).answer(ask())
        sentences.add(str(refused.value))
    assert len(sentences) == 1


def test_labels_outside_the_declared_classes_are_refused_at_the_import(
    tmp_path: Path, records: Split
) -> None:
    own = Split(records.images, np.arange(20) % 3)
    with pytest.raises(DatasetRefused, match="3 classes where 2"):
        create_hospital(tmp_path / "three", "h", own, 50.0, DELTA, None, classes=2)
    assert not (tmp_path / "three").exists()


@pytest.mark.usefixtures("never_trains")
def test_one_label_is_not_several_nor_several_one(
    tmp_path: Path, opened: Opener, ask: Callable[..., TrainRequest]
) -> None:
    several = ask(task="multi-label", classes=("a", "b", "c"))
    _refused(opened(), several, RequestRefused, "task")
    findings = make_phantoms("findings", size=16, counts=(20, 3, 3)).train
    create_hospital(tmp_path / "several", "h", findings, 50.0, DELTA, None, classes=3)
    _refused(Hospital(tmp_path / "several"), ask(), RequestRefused, "task")
    two = ask(task="multi-label", classes=("a", "b"))
    _refused(Hospital(tmp_path / "several"), two, RequestRefused, "task")


@pytest.mark.usefixtures("never_trains")
@pytest.mark.parametrize("codec", [("fp32", "fp64"), ("int8", "fp32"), ("none", "fp32")])
def test_codecs_that_do_not_exist_or_do_not_fit_are_refused(
    opened: Opener, ask: Callable[..., TrainRequest], codec: tuple[str, str]
) -> None:
    _refused(opened(), dataclasses.replace(ask(), codec=codec), Refusal, "codec")


@pytest.mark.usefixtures("never_trains")
@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, []),
        ({}, [LATENTS, ANCHOR]),
        ({}, [LATENTS, TEACHER]),
        ({}, [LATENTS, "patients"]),
        ({"ewc_lambda": 1.0}, [LATENTS]),
        ({"ewc_lambda": 1.0}, [LATENTS, ANCHOR]),
        ({"ewc_lambda": 1.0}, [LATENTS, FISHER]),
        ({"distillation_alpha": 0.5}, [LATENTS]),
        ({"distillation_alpha": 0.5}, [LATENTS, ANCHOR, FISHER, TEACHER]),
    ],
)
def test_vectors_that_are_missing_or_not_asked_for_are_refused(
    opened: Opener,
    ask: Callable[..., TrainRequest],
    latents: Vector,
    settings: dict[str, Any],
    names: list[str],
) -> None:
    vectors = {name: encode(latents, "fp32") for name in names}
    request = dataclasses.replace(ask(**settings), vectors=vectors)
    _refused(opened(), request, RequestRefused, "settings need")


@pytest.mark.usefixtures("never_trains")
@pytest.mark.parametrize("length", [0, 1, -1])
def test_a_model_of_another_length_is_refused(
    opened: Opener, ask: Callable[..., TrainRequest], latents: Vector, length: int
) -> None:
    vectors = {LATENTS: encode(latents[:length] if length <= 0 else np.append(latents, latents), "fp32")}
    _refused(opened(), dataclasses.replace(ask(), vectors=vectors), PayloadRefused, "values")


@pytest.mark.usefixtures("never_trains")
def test_a_model_whose_shapes_are_not_those_that_its_message_names_is_refused(
    opened: Opener, ask: Callable[..., TrainRequest]
) -> None:
    _refused(opened(), ask(widths=(32, 16, 32)), PayloadRefused, "values")


def test_a_pruned_student_with_its_own_bits_is_tuned_and_charged(
    opened: Opener, ask: Callable[..., TrainRequest], make_local: LocalMaker
) -> None:
    changes = {"student": "int8-cnn", "widths": (16, 8, 16), "bits": (8, 2, 4, 8)}
    model = build_student(make_local(**changes).spec)
    initialise(model, KeyedGenerator.from_seed(0))
    narrow = flatten(list(model.parameters())).numpy()
    request = dataclasses.replace(ask(**changes), vectors={LATENTS: encode(narrow, "fp32")})
    hospital = opened()
    reply = hospital.answer(request)
    change = decode(reply.update, len(narrow), "fp32")
    assert np.isfinite(change).all()
    assert change.any()
    assert _charges(hospital) == [("study", 1)]


@pytest.mark.parametrize(
    ("settings", "names"),
    [({"ewc_lambda": 0.5}, (ANCHOR, FISHER)), ({"distillation_alpha": 0.5}, (TEACHER,))],
)
def test_vectors_that_the_settings_ask_for_are_used(
    opened: Opener,
    ask: Callable[..., TrainRequest],
    latents: Vector,
    tmp_path: Path,
    records: Split,
    settings: dict[str, Any],
    names: tuple[str, ...],
) -> None:
    """The same draws give another update once there is an anchor, or a teacher."""
    create_hospital(tmp_path / "plain", "hospital-0", records, 50.0, DELTA, 7)
    plain = Hospital(tmp_path / "plain").answer(ask())
    far = {name: encode(np.abs(latents) + np.float32(1), "fp32") for name in names}
    request = ask(**settings)
    led = opened(seed=7).answer(dataclasses.replace(request, vectors={**request.vectors, **far}))
    assert led.update.tobytes() != plain.update.tobytes()


# Keys of the operating system's


def _expected(hospital: Hospital, request: TrainRequest, key: bytes, latents: Vector) -> bytes:
    work = LocalRound(request.settings, request.learning_rate, 20, torch.from_numpy(latents))
    change, _ = train(work, hospital._records, KeyedGenerator(key))
    return encode(change.numpy(), "fp32").tobytes()


def test_each_round_has_a_fresh_key_that_is_gone_once_the_reply_is_stored(
    opened: Opener, ask: Callable[..., TrainRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[bytes] = []

    def look(work: LocalRound, own: Split, generator: KeyedGenerator) -> Any:
        (key,) = _keys(opened())
        assert key.stat().st_mode & 0o777 == 0o600
        kept.append(key.read_bytes())
        return train(work, own, generator)

    monkeypatch.setattr(hospital_module, "train", look)
    for server_round in (1, 2):
        opened().answer(ask(server_round))
        assert _keys(opened()) == []
    assert len(set(kept)) == 2
    for file in opened().budget.ledger.path.parents[1].rglob("*"):
        assert not file.is_file() or all(key not in file.read_bytes() for key in kept)


def test_a_round_that_crashed_is_run_again_with_the_same_key_bit_for_bit(
    opened: Opener, ask: Callable[..., TrainRequest], latents: Vector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*args: object) -> None:
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(hospital_module, "train", crash)
        with pytest.raises(Crash):
            opened().answer(ask())
    hospital = opened()
    (key,) = (file.read_bytes() for file in _keys(hospital))
    assert _charges(hospital) == [("study", 1)]
    assert hospital.answer(ask()).update.tobytes() == _expected(hospital, ask(), key, latents)
    assert _charges(hospital) == [("study", 1)]
    assert _keys(hospital) == []


def test_a_crash_between_store_and_destroy_leaves_no_key_behind_for_long(
    opened: Opener, ask: Callable[..., TrainRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = opened()

    def crash(name: str) -> None:
        raise Crash

    monkeypatch.setattr(hospital._keys, "destroy", crash)
    with pytest.raises(Crash):
        hospital.answer(ask())
    assert len(_keys(hospital)) == 1
    again = opened().answer(ask())
    assert _keys(opened()) == []
    assert again.update.tobytes() == opened().answer(ask()).update.tobytes()


def test_a_charged_round_whose_key_is_gone_is_refused(
    opened: Opener, ask: Callable[..., TrainRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second key for the same charge would be a second release of the same query."""

    def crash(*args: object) -> None:
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(hospital_module, "train", crash)
        with pytest.raises(Crash):
            opened().answer(ask())
    _keys(opened())[0].unlink()
    with monkeypatch.context() as patched:
        patched.setattr(hospital_module, "train", lambda *args: pytest.fail("trained with another key"))
        _refused(opened(), ask(), RequestRefused, "key is gone")
    opened().answer(ask(2))
    assert _charges(opened()) == [("study", 1), ("study", 2)]


def test_a_round_that_crashed_is_not_run_for_other_content(
    opened: Opener, ask: Callable[..., TrainRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*args: object) -> None:
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(hospital_module, "train", crash)
        with pytest.raises(Crash):
            opened().answer(ask())
    monkeypatch.setattr(hospital_module, "train", lambda *args: pytest.fail("trained on other content"))
    with pytest.raises(RequestRefused, match="other content"):
        opened().answer(ask(rate=0.25))
    assert len(_keys(opened())) == 1  # the crashed round's own, which may still be run


def test_a_round_that_crashed_is_run_on_the_same_records_or_not_at_all(
    tmp_path: Path,
    opened: Opener,
    ask: Callable[..., TrainRequest],
    latents: Vector,
    records: Split,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def crash(*args: object) -> None:
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(hospital_module, "train", crash)
        with pytest.raises(Crash):
            opened().answer(ask())
    (key,) = (file.read_bytes() for file in _keys(opened()))
    # The same images, so the same budget; but with a corrected label it is another query.
    save_npz(tmp_path / "hospital" / "data.npz", Split(records.images, 1 - records.labels))
    with monkeypatch.context() as patched:
        patched.setattr(hospital_module, "train", lambda *args: pytest.fail("trained on other records"))
        with pytest.raises(RequestRefused, match="other data"):
            opened().answer(ask())
    save_npz(tmp_path / "hospital" / "data.npz", records)
    assert opened().answer(ask()).update.tobytes() == _expected(opened(), ask(), key, latents)


def test_a_reply_that_cannot_be_stored_does_not_leave_and_is_the_same_later(
    opened: Opener, ask: Callable[..., TrainRequest], latents: Vector, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = opened()

    def full(*args: object, **kwargs: object) -> None:
        raise OutputRefused("The disk is full.")

    with monkeypatch.context() as patched:
        patched.setattr(hospital._replies, "store", full)
        with pytest.raises(OutputRefused):
            hospital.answer(ask())
    (key,) = (file.read_bytes() for file in _keys(hospital))
    assert opened().answer(ask()).update.tobytes() == _expected(hospital, ask(), key, latents)
    assert _charges(opened()) == [("study", 1)]


@pytest.mark.usefixtures("never_trains")
def test_a_key_that_cannot_be_kept_costs_nothing(
    opened: Opener, ask: Callable[..., TrainRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital, real = opened(), os.open

    def full(path: Any, *arguments: Any, **more: Any) -> int:
        if "keys" in str(path):
            raise OSError(errno.ENOSPC, "full")
        return real(path, *arguments, **more)

    monkeypatch.setattr(os, "open", full)
    _refused(hospital, ask(), OutputRefused, "disk is full")


def test_steps_that_were_not_charged_do_not_leave(
    opened: Opener, ask: Callable[..., TrainRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more step than the charge, as the accountant saw it."""

    def greedy(work: LocalRound, own: Split, generator: KeyedGenerator) -> Any:
        change, accountant = train(work, own, generator)
        accountant.history = [(sigma, rate, steps + 1) for sigma, rate, steps in accountant.history]
        return change, accountant

    monkeypatch.setattr(hospital_module, "train", greedy)
    with pytest.raises(RequestRefused, match="not those that were charged"):
        opened().answer(ask())
    assert list((opened()._replies.folder).glob("*.reply")) == []


def test_two_seeded_hospitals_of_one_study_draw_different_noise(
    tmp_path: Path, records: Split, ask: Callable[..., TrainRequest]
) -> None:
    for name in ("a", "b"):
        create_hospital(tmp_path / name, name, records, 50.0, DELTA, 7)
    first, second = (Hospital(tmp_path / name).answer(ask()) for name in ("a", "b"))
    assert first.update.tobytes() != second.update.tobytes()


def test_a_folder_that_cannot_be_made_is_refused_by_name(tmp_path: Path, records: Split) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputRefused, match="cannot be written"):
        create_hospital(tmp_path / "file" / "hospital", "h", records, 3.0, DELTA, None)


# The update rounded at a part of the noise


@pytest.mark.parametrize("codec", ["coded8", "coded4", "coded3", "coded2"])
def test_a_coded_update_is_the_same_rounds_update_within_half_a_public_step(
    tmp_path: Path, records: Split, ask: Callable[..., TrainRequest], latents: Vector, codec: str
) -> None:
    updates = []
    for name in ("fp32", codec):
        create_hospital(tmp_path / name, "hospital-0", records, 50.0, DELTA, 7)
        request = dataclasses.replace(ask(), codec=("fp32", name))
        reply = Hospital(tmp_path / name).answer(request)
        assert reply.codec == name
        step = uplink_step(name, request.settings, request.learning_rate, reply.num_examples)
        updates.append(decode(reply.update, len(latents), name, step))
        assert _same_reply(Hospital(tmp_path / name).answer(request), reply)
    assert step is not None
    assert 0 < np.abs(updates[0] - updates[1]).max() <= step * 0.5001


def test_a_crashed_round_run_again_rounds_to_the_same_bytes(
    opened: Opener, ask: Callable[..., TrainRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No state is kept from one round to the next: none can be lost, or be taken twice."""
    request, seen = dataclasses.replace(ask(), codec=("fp32", "coded2")), []

    def dies(vector: Vector, codec: str, step: float | None = None) -> Any:
        seen.append(encode(vector, codec, step).tobytes())
        raise Crash

    monkeypatch.setattr(hospital_module, "encode", dies)
    with pytest.raises(Crash):
        opened().answer(request)
    monkeypatch.setattr(hospital_module, "encode", encode)
    assert [opened().answer(request).update.tobytes()] == seen


@pytest.mark.usefixtures("never_trains")
@pytest.mark.parametrize(
    ("codec", "sigma", "words"),
    [
        (("fp32", "coded4"), 0.0, "without noise"),
        (("fp32", "coded4"), 1e-300, "out of range"),
        (("coded4", "fp32"), 1.0, "step"),
    ],
)
def test_what_cannot_be_rounded_is_refused_before_the_charge(
    opened: Opener,
    ask: Callable[..., TrainRequest],
    codec: tuple[str, str],
    sigma: float,
    words: str,
) -> None:
    request = dataclasses.replace(ask(noise_multiplier=sigma), codec=codec)
    _refused(opened(), request, Refusal, words)
