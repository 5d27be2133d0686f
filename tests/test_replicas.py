"""A hospital trains from the model that a request names, or refuses by name and spends nothing."""

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from fedward.client import hospital as hospital_module
from fedward.client import replicas as replicas_module
from fedward.client.hospital import Hospital, create_hospital
from fedward.common.codec import Payload, Vector, encode
from fedward.common.config import LocalSettings
from fedward.common.datasets import ImageDataset, Split
from fedward.common.differences import decode_difference, encode_difference, replica_digest
from fedward.common.errors import (
    BudgetRefused,
    OutputRefused,
    PayloadRefused,
    Refusal,
    ReplicaUnknown,
    RequestRefused,
)
from fedward.common.messages import LATENTS, TEACHER, Replica, TrainReply, TrainRequest, packed_digest
from fedward.common.models import build_student, parameter_count

CODEC, ROUNDS = "diff3", 4
Ask = Callable[..., TrainRequest]


class Crash(BaseException):
    """The process dies here."""


@pytest.fixture
def site(tmp_path: Path, phantom: ImageDataset) -> Path:
    records = Split(phantom.train.images[:20], phantom.train.labels[:20])
    create_hospital(tmp_path / "site", "north", records, 50.0, 1e-5, None)
    return tmp_path / "site"


@pytest.fixture(scope="module")
def local(make_local: Callable[..., LocalSettings]) -> LocalSettings:
    return make_local(rounds=ROUNDS)


@pytest.fixture(scope="module")
def models(local: LocalSettings) -> list[tuple[Vector, Payload]]:
    """Each round's model, and what leads to it from the one before."""
    rng, count = np.random.default_rng(0), parameter_count(build_student(local.spec))
    exact = rng.standard_normal(count).astype(np.float32)
    found = [(exact, np.zeros(0, np.uint8))]
    for _ in range(ROUNDS - 1):
        exact = exact + (rng.standard_normal(count) * 0.01).astype(np.float32)
        payload = encode_difference(exact, found[-1][0], CODEC)
        found.append((decode_difference(payload, found[-1][0], CODEC), payload))
    return found


@pytest.fixture(scope="module")
def ask(local: LocalSettings, models: list[tuple[Vector, Payload]]) -> Ask:
    """ask(server_round, is_full, study) -> the round's request, as a difference where it is not full."""

    def make(server_round: int, is_full: bool = False, study: str = "study") -> TrainRequest:
        model, payload = models[server_round - 1]
        base = "" if is_full else replica_digest(models[server_round - 2][0])
        vectors = {LATENTS: encode(model, "fp32") if is_full else payload}
        named = Replica(replica_digest(model), base)
        return TrainRequest(study, server_round, local, 0.5, (CODEC, "fp32"), vectors, replica=named)

    return make


def kept(site: Path) -> list[str]:
    return sorted(path.stem.rpartition("-")[2] for path in (site / "replicas").glob("*"))


def charged(site: Path) -> list[int]:
    budget = Hospital(site).budget
    assert budget is not None
    return [entry.body["round"] for entry in budget.ledger.entries if entry.kind == "charge"]


def refused(site: Path, request: TrainRequest, kind: type[Refusal], words: str) -> None:
    """Refused by name, with nothing charged, kept or written."""
    before = charged(site), kept(site)
    with pytest.raises(kind, match=words):
        Hospital(site).answer(request)
    assert (charged(site), kept(site)) == before
    assert list((site / "keys").iterdir()) == []


# What a hospital keeps


def test_a_hospital_follows_differences_keeps_the_last_two_models_and_says_which_it_holds(
    site: Path, ask: Ask, models: list[tuple[Vector, Payload]]
) -> None:
    names = [replica_digest(model) for model, _ in models]
    for server_round, expected in ((1, names[:1]), (2, names[:2]), (3, names[1:3])):
        reply = Hospital(site).answer(ask(server_round, is_full=server_round == 1))
        assert reply.replica == names[server_round - 1]
        assert kept(site) == sorted(expected)
    assert charged(site) == [1, 2, 3]


def _trained_with(monkeypatch: pytest.MonkeyPatch, name: str) -> list[bytes]:
    """The vector of this name that each round trains with, as the rounds come."""
    seen: list[bytes] = []
    train = hospital_module.train

    def watched(work: Any, *rest: Any) -> Any:
        seen.append(getattr(work, name).numpy().tobytes())
        return train(work, *rest)

    monkeypatch.setattr(hospital_module, "train", watched)
    return seen


def test_the_model_trained_from_is_the_one_named_whichever_way_it_came(
    site: Path, ask: Ask, models: list[tuple[Vector, Payload]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _trained_with(monkeypatch, "latents")
    for server_round, is_full in ((1, True), (2, False), (3, True)):
        Hospital(site).answer(ask(server_round, is_full))
    assert seen == [model.tobytes() for model, _ in models[:3]]


def test_a_model_on_disk_is_its_values_little_endian_for_its_owner_only(
    site: Path, ask: Ask, models: list[tuple[Vector, Payload]]
) -> None:
    Hospital(site).answer(ask(1, is_full=True))
    (path,) = (site / "replicas").iterdir()
    assert path.read_bytes() == models[0][0].astype("<f4").tobytes()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_each_study_has_its_own_models_and_the_last_round_ends_them(site: Path, ask: Ask) -> None:
    for study in ("study", "other"):
        Hospital(site).answer(ask(1, is_full=True, study=study))
    assert len(kept(site)) == 2
    for server_round in (2, 3, 4):
        Hospital(site).answer(ask(server_round))
    (left,) = (site / "replicas").iterdir()
    assert left.stem.startswith(replicas_module._key("other"))
    again = Hospital(site).answer(ask(4))  # asked again, it is the stored reply
    assert again.replica == ask(4).replica.digest  # type: ignore[union-attr]


def test_a_study_without_differences_keeps_no_model(site: Path, ask: Ask) -> None:
    plain = replace(ask(1, is_full=True), codec=("fp32", "fp32"), replica=None)
    assert Hospital(site).answer(plain).replica == ""
    assert not (site / "replicas").exists()


# What a hospital lacks


def test_a_difference_to_an_unknown_model_is_refused_and_the_full_one_is_the_same_round(
    site: Path, ask: Ask
) -> None:
    refused(site, ask(2), ReplicaUnknown, "does not hold: send the model in full")
    first = Hospital(site).answer(ask(2, is_full=True))
    assert charged(site) == [2]
    assert Hospital(site).answer(ask(2)).to_bytes() == first.to_bytes()
    assert Hospital(site).answer(ask(3)).replica == ask(3).replica.digest  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [0, 5, 10**6])
def test_a_damaged_model_counts_as_lost_and_the_full_one_mends_it(site: Path, ask: Ask, size: int) -> None:
    Hospital(site).answer(ask(1, is_full=True))
    (path,) = (site / "replicas").iterdir()
    path.write_bytes((path.read_bytes() * 50)[:size])
    refused(site, ask(2), ReplicaUnknown, "does not hold")
    Hospital(site).answer(ask(2, is_full=True))
    Hospital(site).answer(ask(3))
    assert charged(site) == [1, 2, 3]


def test_another_studys_model_is_no_base(site: Path, ask: Ask) -> None:
    Hospital(site).answer(ask(1, is_full=True, study="other"))
    refused(site, ask(2), ReplicaUnknown, "does not hold")


def test_a_hospital_killed_between_the_charge_and_training_answers_when_asked_again(
    site: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*arguments: Any) -> Any:
        raise Crash

    Hospital(site).answer(ask(1, is_full=True))
    for module, name in ((replicas_module, "write_atomically"), (hospital_module, "train")):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, die)
            with pytest.raises(Crash):
                Hospital(site).answer(ask(2))
    assert Hospital(site).answer(ask(2)).replica == ask(2).replica.digest  # type: ignore[union-attr]
    assert charged(site) == [1, 2]


def test_a_full_disk_stops_the_round_and_costs_nothing_twice(
    site: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OutputRefused("The disk is full.")

    with monkeypatch.context() as patched:
        patched.setattr(replicas_module, "write_atomically", full)
        with pytest.raises(OutputRefused):
            Hospital(site).answer(ask(1, is_full=True))
    Hospital(site).answer(ask(1, is_full=True))
    assert charged(site) == [1]


# What a hospital is sent


def truncated(request: TrainRequest) -> Payload:
    return request.vectors[LATENTS][:-1]


def claiming(request: TrainRequest) -> Payload:
    data = request.vectors[LATENTS].tobytes()
    return np.frombuffer(data[:8] + struct.pack("<Q", 10**12) + data[16:], np.uint8)


def bomb(request: TrainRequest) -> Payload:
    frame = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    return np.concatenate([request.vectors[LATENTS][:24], np.frombuffer(frame, np.uint8)])


def of_another_student(request: TrainRequest) -> Payload:
    return encode_difference(np.ones(7, np.float32), np.zeros(7, np.float32), CODEC)


def of_another_model(request: TrainRequest) -> Payload:
    payload = request.vectors[LATENTS].copy()
    payload[22] ^= 1  # of the step
    return payload


def noised_update(request: TrainRequest) -> Payload:
    return encode(np.zeros(10, np.float32), "coded3", 1.0)


BAD: dict[str, tuple[Callable[[TrainRequest], Payload], str]] = {
    "nothing": (lambda request: np.zeros(0, np.uint8), "cut short|in full"),
    "cut": (truncated, "."),
    "10^12 values": (claiming, "claims 1000000000000 values"),
    "another student's": (of_another_student, "claims 7 values|in full"),
    "an update": (noised_update, "not in codec|in full"),
}


@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_a_malformed_model_is_refused_before_anything_is_charged(
    site: Path, ask: Ask, case: str, is_full: bool
) -> None:
    Hospital(site).answer(ask(1, is_full=True))
    make, words = BAD[case]
    request = ask(2, is_full)
    refused(site, replace(request, vectors={LATENTS: make(request)}), PayloadRefused, words)
    Hospital(site).answer(request)


@pytest.mark.parametrize(("make", "words"), [(bomb, "do not fit"), (of_another_model, "not the one")])
def test_a_bomb_and_another_models_difference_are_refused_likewise(
    site: Path, ask: Ask, make: Callable[[TrainRequest], Payload], words: str
) -> None:
    Hospital(site).answer(ask(1, is_full=True))
    request = ask(2)
    refused(site, replace(request, vectors={LATENTS: make(request)}), PayloadRefused, words)
    Hospital(site).answer(request)


@pytest.mark.parametrize("is_full", [False, True])
def test_a_model_that_is_not_the_one_named_is_refused(site: Path, ask: Ask, is_full: bool) -> None:
    Hospital(site).answer(ask(1, is_full=True))
    request = ask(2, is_full)
    assert request.replica is not None
    wrong = replace(request, replica=replace(request.replica, digest="ab" * 32))
    refused(site, wrong, PayloadRefused, "not the one that the request names")


def test_what_is_not_charged_is_not_written(site: Path, ask: Ask) -> None:
    """Else a coordinator could fill the disk with models of studies that are refused."""
    request = ask(1, is_full=True)
    dearer = replace(request, settings=replace(request.settings, target_delta=1e-4))
    refused(site, dearer, BudgetRefused, "delta")
    assert not (site / "replicas").exists()


def test_a_round_that_was_answered_is_not_answered_for_another_model(site: Path, ask: Ask) -> None:
    first = Hospital(site).answer(ask(1, is_full=True))
    other = ask(2, is_full=True)
    with pytest.raises(Refusal):
        Hospital(site).answer(replace(other, server_round=1))
    assert charged(site) == [1]
    assert TrainReply.from_bytes(first.to_bytes()).replica == first.replica


def test_a_difference_without_the_names_of_its_models_is_refused(site: Path, ask: Ask) -> None:
    refused(site, replace(ask(2), replica=None), PayloadRefused, "names its base")


# Fixed vectors


@pytest.fixture
def taught(ask: Ask, models: list[tuple[Vector, Payload]]) -> Ask:
    """taught(server_round, is_full) -> a request of a study with a teacher, which comes with a full model."""
    teacher = encode(models[0][0], "int8")

    def make(server_round: int, is_full: bool = False) -> TrainRequest:
        asked = ask(server_round, is_full)
        assert asked.replica is not None
        return replace(
            asked,
            settings=replace(asked.settings, distillation_alpha=0.2),
            vectors={**asked.vectors, **({TEACHER: teacher} if is_full else {})},
            replica=replace(asked.replica, fixed={TEACHER: packed_digest(teacher)}),
        )

    return make


def test_a_teacher_comes_once_and_is_used_in_every_round(
    site: Path, taught: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _trained_with(monkeypatch, "teacher")
    for server_round, count in ((1, 2), (2, 3), (3, 3), (4, 0)):
        Hospital(site).answer(taught(server_round, is_full=server_round == 1))
        assert len(kept(site)) == count
    assert len(set(seen)) == 1
    assert len(seen) == 4


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_a_lost_teacher_is_refused_by_name_and_comes_again_with_the_full_model(
    site: Path, taught: Ask, how: str
) -> None:
    Hospital(site).answer(taught(1, is_full=True))
    assert taught(1).replica is not None
    (path,) = (site / "replicas").glob(f"*{taught(2).replica.fixed[TEACHER]}*")  # type: ignore[union-attr]
    path.unlink() if how == "missing" else path.write_bytes(path.read_bytes()[:-1])
    refused(site, taught(2), ReplicaUnknown, "does not hold: send the model in full")
    Hospital(site).answer(taught(2, is_full=True))
    Hospital(site).answer(taught(3))
    assert charged(site) == [1, 2, 3]


def test_another_teacher_than_the_one_named_is_refused(site: Path, taught: Ask) -> None:
    request = taught(1, is_full=True)
    other = {**request.vectors, TEACHER: request.vectors[LATENTS]}
    refused(site, replace(request, vectors=other), PayloadRefused, "teacher that came is not the one")


def test_a_fixed_vector_that_the_settings_do_not_ask_for_or_that_is_not_named_is_refused(
    site: Path, ask: Ask, taught: Ask
) -> None:
    plain, full = ask(1, is_full=True), taught(1, is_full=True)
    refused(site, replace(plain, replica=full.replica), RequestRefused, "settings need")
    refused(site, replace(plain, vectors=full.vectors), RequestRefused, "settings need")
    refused(site, replace(full, replica=plain.replica), RequestRefused, "settings need")
    refused(site, replace(full, vectors={TEACHER: full.vectors[TEACHER]}), RequestRefused, "settings need")
