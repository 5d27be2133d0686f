"""An older ledger is noticed by the head that comes back from elsewhere, and nobody can forge one."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward.client import hospital as hospital_module
from fedward.client.anchors import Anchors
from fedward.client.hospital import Hospital, create_hospital
from fedward.client.registry import Registry
from fedward.common.bundle import read_bundle
from fedward.common.chain import Head
from fedward.common.codec import encode
from fedward.common.config import LocalSettings, Study
from fedward.common.datasets import ImageDataset, Split
from fedward.common.errors import LedgerRefused, PayloadRefused, RequestRefused
from fedward.common.manifest import release_digest
from fedward.common.messages import CONFIG, LATENTS, LEDGER_ANCHOR, TrainReply, TrainRequest, wire_bytes
from fedward.common.models import build_student, parameter_count
from fedward.common.privacy import Mechanism
from fedward.common.signing import Signer
from fedward.common.trust import write_trust
from fedward.server.checkpoint import load_checkpoint
from fedward.server.release import SitePrivacy, make_release
from fedward.server.study_folder import StudyFolder
from fedward.simulations.federation import run_in_process

DELTA = 1e-5
Ask = Callable[..., TrainRequest]
Command = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: Path, phantom: ImageDataset) -> Path:
    records = Split(phantom.train.images[:20], phantom.train.labels[:20])
    create_hospital(tmp_path / "site", "north", records, 50.0, DELTA, None)
    return tmp_path / "site"


@pytest.fixture
def ask(make_local: Callable[..., LocalSettings]) -> Ask:
    def make(server_round: int = 1, anchor: str = "", study: str = "study", **changes: Any) -> TrainRequest:
        local = make_local(**changes)
        packed = encode(np.zeros(parameter_count(build_student(local.spec)), np.float32), "fp32")
        return TrainRequest(study, server_round, local, 0.5, ("fp32", "fp32"), {LATENTS: packed}, anchor)

    return make


def _restored(folder: Path, answer: Callable[[Hospital], str]) -> str:
    """Answer, then put back the folder as it was before; the anchor that was given out."""
    copy = folder.with_name("backup")
    shutil.copytree(folder, copy)
    anchor = answer(Hospital(folder))
    shutil.rmtree(folder)
    copy.rename(folder)
    return anchor


def _never_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hospital_module, "train", lambda *args: pytest.fail("a gradient was computed"))


def test_a_reply_anchors_its_own_charge_and_the_next_request_brings_it_back(folder: Path, ask: Ask) -> None:
    hospital = Hospital(folder)
    anchor = hospital.answer(ask(1)).anchor
    assert hospital.budget is not None
    charge = hospital.budget.find("study", 1)
    assert charge is not None
    assert Anchors(Registry(folder / "budget")).opened(anchor) == (hospital.budget.ledger.id, charge.head)
    assert hospital.answer(ask(2, anchor)).anchor != anchor


def test_an_older_ledger_is_noticed_and_refuses_all_work_of_every_study_until_re_entered(
    folder: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    Hospital(folder).answer(ask(1))
    anchor = _restored(folder, lambda hospital: hospital.answer(ask(2)).anchor)
    with monkeypatch.context() as patched:
        _never_train(patched)
        with pytest.raises(LedgerRefused, match="older copy"):
            Hospital(folder).answer(ask(3, anchor))
        for request in (ask(2), ask(3), ask(1, study="another")):  # without the anchor as well
            with pytest.raises(LedgerRefused, match="older copy"):
                Hospital(folder).answer(request)
    site = Anchors(Registry(folder / "budget"))
    site.budget(anchor).recover(site.opened(anchor)[1], [Mechanism(4.0, 0.25, 1)])
    hospital = Hospital(folder)
    assert hospital.answer(ask(3, anchor)).server_round == 3
    assert hospital.budget is not None
    assert sum(mechanism.steps for mechanism in hospital.budget.mechanisms()) == 3


def test_a_ledger_that_was_started_anew_is_noticed(folder: Path, ask: Ask, phantom: ImageDataset) -> None:
    """All of it is gone but the site's secret: a new budget must not go on as if nothing had been spent."""
    anchor = Hospital(folder).answer(ask(1)).anchor
    for path in (folder / "budget").iterdir():
        if path.name != "image.key":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    records = Split(phantom.train.images[:20], phantom.train.labels[:20])
    create_hospital(folder, "north", records, 50.0, DELTA, None)
    for request in (ask(2, anchor), ask(2)):
        with pytest.raises(LedgerRefused):
            Hospital(folder).answer(request)


@given(at=st.integers(0, 177), digit=st.sampled_from("0123456789abcdef"))
def test_a_token_with_any_digit_changed_is_not_this_sites(anchors: Anchors, at: int, digit: str) -> None:
    token = anchors.token("ab" * 16, Head(7, "c" * 64))
    changed = token[:at] + digit + token[at + 1 :]
    assert anchors.is_own(changed) == (changed == token)


@pytest.fixture(scope="module")
def anchors(tmp_path_factory: pytest.TempPathFactory) -> Anchors:
    return Anchors(Registry(tmp_path_factory.mktemp("site")))


@given(st.integers(0, 2**53), st.binary(min_size=32, max_size=32), st.binary(min_size=16, max_size=16))
def test_a_token_opens_to_what_it_stands_for(
    anchors: Anchors, seq: int, entry_hash: bytes, name: bytes
) -> None:
    head = Head(seq, entry_hash.hex())
    assert anchors.opened(anchors.token(name.hex(), head)) == (name.hex(), head)


@given(st.one_of(st.text(max_size=300), st.none(), st.integers()))
def test_no_other_text_is_a_token(anchors: Anchors, text: object) -> None:
    assert not anchors.is_own(text)


def test_a_forged_anchor_is_refused_and_stops_nothing(folder: Path, ask: Ask, tmp_path: Path) -> None:
    hospital = Hospital(folder)
    hospital.answer(ask(1))
    assert hospital.budget is not None
    stranger = Anchors(Registry(tmp_path / "elsewhere"))
    forged = stranger.token(hospital.budget.ledger.id, Head(10**6, "f" * 64))
    before = len(hospital.budget.ledger.entries)
    with pytest.raises(RequestRefused, match="none that this hospital made"):
        hospital.answer(ask(2, forged))
    assert len(hospital.budget.ledger.entries) == before
    assert hospital.answer(ask(2)).server_round == 2


def test_a_token_tells_neither_how_long_the_ledger_is_nor_which_it_is(anchors: Anchors) -> None:
    """The number of entries would tell of other studies, the ledger's name would join two of them."""
    first, second = (anchors.token("ab" * 16, Head(seq, f"{seq:064x}")).split(":") for seq in (7, 8))
    assert sum(a != b for a, b in zip(first[0], second[0], strict=True)) > 30
    assert "ab" * 4 not in first[0]
    assert len(first[0]) == 48


def test_the_anchor_is_no_part_of_the_rounds_content(folder: Path, ask: Ask) -> None:
    hospital = Hospital(folder)
    anchor = hospital.answer(ask(1)).anchor
    assert ask(2, anchor).content_digest == ask(2).content_digest
    first = hospital.answer(ask(2, anchor)).to_bytes()
    assert Hospital(folder).answer(ask(2)).to_bytes() == first


@pytest.mark.parametrize("value", [b"x", b"\xff", b"a" * 10**6, 7, b"0" * 48 + b":" + b"0" * 64])
def test_an_anchor_of_another_form_is_refused_by_both_ends(ask: Ask, value: Any) -> None:
    content = ask(1).to_records()
    content.config_records[CONFIG][LEDGER_ANCHOR] = value
    with pytest.raises(PayloadRefused, match="anchor"):
        TrainRequest.from_records(content)
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    reply = TrainReply("s", 1, "h", 10, "fp32", encode(np.zeros(1, np.float32), "fp32"), text)
    with pytest.raises(PayloadRefused, match="anchor"):
        TrainReply.from_records(reply.to_records())


def test_a_study_without_privacy_has_no_anchor(folder: Path, ask: Ask, phantom: ImageDataset) -> None:
    records = Split(phantom.train.images[:20], phantom.train.labels[:20])
    create_hospital(folder / "open", "south", records, None, DELTA, 7)
    hospital, settings = Hospital(folder / "open"), {"noise_multiplier": 0.0, "sample_rate": 1.0}
    assert hospital.answer(ask(1, **settings)).anchor == ""
    with pytest.raises(RequestRefused, match="no budget to anchor"):
        hospital.answer(ask(2, ":".join(("0" * 48, "0" * 64, "0" * 64)), **settings))


@pytest.fixture
def study(make_study: Callable[..., Study], make_local: Callable[..., LocalSettings]) -> Study:
    return make_study(make_local(rounds=2))


@pytest.fixture
def run_folder(
    tmp_path: Path, study: Study, make_federation: Callable[..., StudyFolder], signer: Signer
) -> StudyFolder:
    """A finished federation and its release."""
    return _released(make_federation(tmp_path / "run", study), study, signer)


def _released(folder: StudyFolder, study: Study, signer: Signer) -> StudyFolder:
    hospital_module.open_hospital.cache_clear()
    run_in_process(folder.path, len(study.hospitals))
    sites = [SitePrivacy(hospital.name, 1.0, DELTA) for hospital in study.hospitals]
    make_release(folder, np.load(folder.final), sites, signer, {})
    return folder


def test_a_coordinator_keeps_sends_and_releases_the_last_anchors(
    run_folder: StudyFolder, study: Study, signer: Signer
) -> None:
    kept = load_checkpoint(run_folder.checkpoint, study).anchors
    assert sorted(kept) == [hospital.name for hospital in study.hospitals]
    released = read_bundle(run_folder.release, [signer.public()]).manifest["provenance"]["anchors"]
    assert released == kept
    for index, token in enumerate(kept.values()):
        hospital = Hospital(run_folder.path / "hospitals" / str(index))
        assert hospital.budget is not None
        last = hospital.budget.find(study.name, study.rounds)
        assert last is not None
        assert hospital._account.anchors.opened(token) == (hospital.budget.ledger.id, last.head)


def test_anchors_differ_between_runs_of_one_seed_and_the_releases_digest_does_not(
    tmp_path: Path,
    run_folder: StudyFolder,
    study: Study,
    make_federation: Callable[..., StudyFolder],
    signer: Signer,
) -> None:
    again = _released(make_federation(tmp_path / "again", study), study, signer)
    first, second = (read_bundle(one.release, [signer.public()]).manifest for one in (run_folder, again))
    assert first["provenance"]["anchors"] != second["provenance"]["anchors"]
    assert release_digest(first) == release_digest(second)


def test_a_hospital_with_a_restored_backup_is_lost_by_name_in_the_middle_of_a_study(
    tmp_path: Path, study: Study, make_federation: Callable[..., StudyFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_federation(tmp_path / "run", study)
    site = folder.path / "hospitals" / "0"
    shutil.copytree(site / "budget", tmp_path / "backup")
    answer = Hospital.answer

    def restoring(self: Hospital, request: TrainRequest) -> TrainReply:
        if request.server_round == 2 and self.profile.name == "hospital-0":
            shutil.rmtree(site / "budget")
            shutil.copytree(tmp_path / "backup", site / "budget")
            self = Hospital(site)  # a restart on the old copy
        return answer(self, request)

    monkeypatch.setattr(Hospital, "answer", restoring)
    hospital_module.open_hospital.cache_clear()
    run_in_process(folder.path, len(study.hospitals))
    budget = Hospital(site).budget
    assert budget is not None
    assert [entry.kind for entry in budget.ledger.entries][-1] == "suspended"
    first, second = load_checkpoint(folder.checkpoint, study).history
    assert first["refusals"] == []
    assert [(lost["hospital"], lost["name"]) for lost in second["refusals"]] == [
        ("hospital-0", "LedgerRefused")
    ]


def test_requests_share_their_arrays_and_differ_by_the_anchor_only(
    run_folder: StudyFolder, study: Study, ask: Ask
) -> None:
    anchor = next(iter(load_checkpoint(run_folder.checkpoint, study).anchors.values()))
    plain, own = ask(1).to_records(), ask(1, anchor).to_records()
    assert wire_bytes(own) - wire_bytes(plain) == len(anchor) == 178


# The commands


@pytest.fixture
def trust(tmp_path: Path, signer: Signer) -> Path:
    write_trust(tmp_path / "trust.json", [signer.public()])
    return tmp_path / "trust.json"


def test_check_holds_a_ledger_against_a_release_and_recover_enters_what_is_lost(
    tmp_path: Path, fedward: Command, run_folder: StudyFolder, study: Study, trust: Path
) -> None:
    site = run_folder.path / "hospitals" / "1"
    arguments = ("hospital", "check", run_folder.release, "--state", site, "--trust", trust)
    done = fedward(*arguments)
    assert (done.code, done.err) == (0, "")
    assert "which the release names" in done.out
    # An older copy: the ledger as it was before the last charge.
    (ledger,) = site.glob("budget/*/ledger.jsonl")
    lines = ledger.read_bytes().splitlines(keepends=True)
    last = max(number for number, line in enumerate(lines) if b'"kind":"charge"' in line)
    ledger.write_bytes(b"".join(lines[:last]))
    ledger.with_name("ledger.jsonl.head").unlink()
    done = fedward(*arguments)
    assert done.code == 1
    assert "LedgerRefused" in done.err
    assert "older copy" in done.err
    token = load_checkpoint(run_folder.checkpoint, study).anchors["hospital-1"]
    given = ("--anchor", token, "--sigma", 4.0, "--rate", 0.25, "--steps", 1, "--state", site)
    done = fedward("hospital", "recover", *given)
    assert (done.code, done.err) == (0, "")
    assert "of 50 is spent" in done.out
    assert fedward(*arguments).code == 0
    assert "nothing to enter again" in fedward("hospital", "recover", *given).err


def test_check_refuses_a_release_that_is_not_signed_or_names_another_site(
    tmp_path: Path, fedward: Command, run_folder: StudyFolder, folder: Path, trust: Path, stranger: Signer
) -> None:
    done = fedward("hospital", "check", run_folder.release, "--state", folder, "--trust", trust)
    assert (done.code, done.err.partition(":")[0]) == (1, "BundleRefused")
    write_trust(tmp_path / "other.json", [stranger.public()])
    site = run_folder.path / "hospitals" / "0"
    done = fedward(
        "hospital", "check", run_folder.release, "--state", site, "--trust", tmp_path / "other.json"
    )
    assert (done.code, done.err.partition(":")[0]) == (1, "SignatureRefused")


def test_recover_refuses_a_forged_anchor_and_uneven_lists(fedward: Command, folder: Path) -> None:
    forged = ":".join(("0" * 48, "0" * 64, "0" * 64))
    given = ("--anchor", forged, "--sigma", 4, "--rate", 0.25, "--state", folder)
    assert "RequestRefused" in fedward("hospital", "recover", *given, "--steps", 1).err
    assert "SettingRefused" in fedward("hospital", "recover", *given, "--steps", 1, "--steps", 2).err


def test_the_same_bytes_come_back_even_if_the_hospital_was_renamed(folder: Path, ask: Ask) -> None:
    first = Hospital(folder).answer(ask(1))
    hospital = Hospital(folder)
    hospital.profile = dataclasses.replace(hospital.profile, name="south", num_examples=990)
    assert hospital.answer(ask(1)).to_bytes() == first.to_bytes()
