"""From nothing to a site by two files and two calls; and whatever is forged, replayed or taken is refused."""

import base64
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedward.client import enrolment as hospital_side
from fedward.client.membership import NODE_KEY, Membership, node_public_pem
from fedward.common import roles
from fedward.common.certificates import client_certificate, new_authority, new_key, signing_request
from fedward.common.enrolment import Answer, JoinRequest, read_request
from fedward.common.errors import EnrolmentRefused, OutputRefused
from fedward.common.federation import same_fingerprint, spoken
from fedward.common.instants import utc_now
from fedward.common.key_files import load_key, public_pem, request_of
from fedward.common.ledger import Ledger
from fedward.common.signing import Signer
from fedward.server import enrolment as office_side
from fedward.server.coordinator import Coordinator
from fedward.server.sites import Sites

NOW = utc_now()
SECOND, DAY = timedelta(seconds=1), timedelta(days=1)
Done = Any


@pytest.fixture
def coordinator(tmp_path: Path, make_coordinator: Callable[..., Coordinator]) -> Coordinator:
    return make_coordinator(tmp_path / "coordinator", now=NOW)


@pytest.fixture
def member(coordinator: Coordinator, tmp_path: Path, join_federation: Callable[..., Any]) -> Any:
    return join_federation(coordinator, tmp_path / "first", "first", NOW)


def _asked(tmp_path: Path, name: str = "second") -> tuple[JoinRequest, bytes]:
    return hospital_side.join(tmp_path / name, name, 95, NOW)


def _answered(coordinator: Coordinator, request: JoinRequest, file: bytes, at: Any = NOW) -> bytes:
    seen = office_side.review(coordinator, file, at)
    return office_side.answer(coordinator, seen, request.fingerprint, at, "tests")


def _renewed(coordinator: Coordinator, member: Any, at: Any, **options: Any) -> Membership:
    request, file = hospital_side.renew(member.state, at, **options)
    return hospital_side.accept(member.state, _answered(coordinator, request, file, at), None, at)


# As typed


def test_two_commands_a_side_make_a_site(fedward: Callable[..., Done], tmp_path: Path) -> None:
    office, state = tmp_path / "office", tmp_path / "state"
    request, answered = tmp_path / "request.json", tmp_path / "answer.json"

    def told(*arguments: object) -> dict[str, Any]:
        done = fedward(*arguments, "--json")
        assert done.code == 0, done.err
        return dict(json.loads(done.out))

    made = told("coordinator", "init", "--name", "office", "--host", "localhost", "--state", office)
    asked = told("hospital", "join", "--name", "St. Mary", "--images", 95, "--state", state, "--out", request)
    fingerprint = ["--fingerprint", asked["fingerprint"].upper().replace(" ", "-")]
    told("coordinator", "enrol", request, "--out", answered, *fingerprint, "--state", office)
    joined = told("hospital", "accept", answered, "--state", state, "--fingerprint", made["fingerprint"])
    listed = told("coordinator", "sites", "--state", office)["sites"]
    assert [(one["id"], one["name"], one["num_examples"]) for one in listed] == [
        (joined["site"], "St. Mary", 100)
    ]
    told("hospital", "renew", "--state", state, "--out", request)
    told("coordinator", "rotate", "--state", office)
    shown = fedward("coordinator", "sites", "--state", office).out
    assert "has not" in shown
    told("coordinator", "revoke", "St. Mary", "--state", office)
    entries = told("coordinator", "log", "--state", office)["entries"]
    assert [entry["kind"] for entry in entries] == ["genesis", "joined", "rotated", "revoked"]
    assert {entry["user"] for entry in entries[1:]} == {roles.acting_user()}
    refused = fedward("coordinator", "enrol", request, "--state", office, "--out", answered, "--json")
    assert (refused.code, json.loads(refused.out)["error"]) == (1, "EnrolmentRefused")


def test_without_a_terminal_a_fingerprint_is_not_guessed(
    fedward: Callable[..., Done], tmp_path: Path, coordinator: Coordinator
) -> None:
    request, file = _asked(tmp_path)
    (tmp_path / "request").write_bytes(file)
    done = fedward("coordinator", "enrol", tmp_path / "request", "--state", coordinator.folder)
    assert (done.code, "--fingerprint" in done.err) == (1, True)
    (tmp_path / "answer").write_bytes(_answered(coordinator, request, file))
    done = fedward("hospital", "accept", tmp_path / "answer", "--state", tmp_path / "second")
    assert (done.code, "--fingerprint" in done.err) == (1, True)


# What a place is


def test_a_site_has_what_it_needs_and_the_coordinator_knows_the_same(
    coordinator: Coordinator, member: Any
) -> None:
    place: Membership = Membership.load(member.state)
    site = Sites(coordinator.folder).find(place.site)
    assert (place.name, place.num_examples) == (site.name, site.num_examples) == ("first", 100)
    assert site.keys(NOW) == [place.signer().public()]
    assert site.node_keys(NOW) == [node_public_pem(place.node_key).decode()]
    assert place.coordinator_keys(NOW) == [coordinator.signer(NOW).public()]
    assert place.certificate.public_key() == load_key(place.tls_key).public_key()
    assert place.certificate.subject.rfc4514_string() == f"CN={site.id}"
    assert place.certificate.serial_number == site.certificates[-1].value.serial


def test_secrets_are_for_their_owner_and_do_not_travel(
    coordinator: Coordinator, member: Any, tmp_path: Path
) -> None:
    for folder in (coordinator.folder, member.state):
        for path in (folder, *folder.rglob("*")):
            public = path.suffix == ".pem"
            allowed = 0o700 if path.is_dir() else 0o644 if public else 0o600
            assert path.stat().st_mode & 0o777 == allowed, path
    _, file = hospital_side.renew(member.state, NOW + SECOND)
    pending = member.state / "federation" / "2"
    answered = b"".join(path.read_bytes() for path in (coordinator.folder / "answers").iterdir())
    travels = base64.b64decode(json.loads(file)["payload"]) + answered
    for secret in ("tls.key", NODE_KEY):
        assert (pending / secret).read_bytes().splitlines()[1] not in travels
    assert b"PRIVATE" not in travels
    seeds = json.loads((pending / "signing-key.json").read_bytes())
    assert seeds["ed25519"].encode() not in travels
    assert seeds["mldsa65"].encode() not in travels


def test_what_is_written_for_others_to_read_is_refused(member: Any) -> None:
    place = Membership.load(member.state)
    place.tls_key.chmod(0o640)
    with pytest.raises(EnrolmentRefused, match="chmod 600"):
        load_key(place.tls_key)


# Forged, changed, replayed


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_request_with_any_byte_changed_is_refused_or_has_another_fingerprint(
    tmp_path: Path, data: st.DataObject
) -> None:
    state = tmp_path / "changed"
    stored = state / "federation" / "1" / "request.json"
    file = stored.read_bytes() if stored.exists() else hospital_side.join(state, "a", 10, NOW)[1]
    at = data.draw(st.integers(0, len(file) - 1))
    changed = file[:at] + bytes([file[at] ^ data.draw(st.integers(1, 255))]) + file[at + 1 :]
    with pytest.raises(EnrolmentRefused):
        read_request(changed, lambda _: [])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_answer_with_any_byte_changed_is_refused(
    tmp_path: Path, coordinator: Coordinator, data: st.DataObject
) -> None:
    kept = tmp_path / "answer"
    if not kept.exists():
        kept.write_bytes(_answered(coordinator, *_asked(tmp_path)))
    file = kept.read_bytes()
    at = data.draw(st.integers(0, len(file) - 1))
    changed = file[:at] + bytes([file[at] ^ data.draw(st.integers(1, 255))]) + file[at + 1 :]
    own = coordinator.federation(NOW).generations[0].fingerprint
    with pytest.raises(EnrolmentRefused):
        hospital_side.accept(tmp_path / "second", changed, own, NOW)


@pytest.mark.parametrize("garbage", [b"", b"{}", b"[]", b"null", b'{"payload":"AAAA"}', b"\xff" * 40])
def test_what_is_no_file_of_ours_is_refused(coordinator: Coordinator, tmp_path: Path, garbage: bytes) -> None:
    with pytest.raises(EnrolmentRefused):
        office_side.review(coordinator, garbage, NOW)
    _asked(tmp_path)
    with pytest.raises(EnrolmentRefused):
        hospital_side.look(tmp_path / "second", garbage, NOW)


def test_a_request_signed_by_another_key_than_it_brings_is_refused(
    coordinator: Coordinator, tmp_path: Path, stranger: Signer
) -> None:
    request, _ = _asked(tmp_path)
    with pytest.raises(EnrolmentRefused, match="not signed"):
        office_side.review(coordinator, request.signed(stranger), NOW)


def test_a_renewal_in_another_site_s_name_is_refused(
    coordinator: Coordinator, member: Any, tmp_path: Path, join_federation: Callable[..., Any]
) -> None:
    other = join_federation(coordinator, tmp_path / "other", "other", NOW)
    request, _ = hospital_side.renew(other.state, NOW + SECOND)
    posing = dataclasses.replace(request, site=member.place.site, name="first")
    with pytest.raises(EnrolmentRefused, match="not signed"):
        office_side.review(coordinator, posing.signed(other.place.signer()), NOW + SECOND)


@pytest.mark.parametrize("read_out", [None, "", "0000 0000 0000 0000 0000 0000 0000 0000"])
def test_nobody_joins_whose_fingerprint_was_not_read_out(
    coordinator: Coordinator, tmp_path: Path, read_out: str | None
) -> None:
    request, file = _asked(tmp_path)
    seen = office_side.review(coordinator, file, NOW)
    with pytest.raises(EnrolmentRefused, match="fingerprint"):
        office_side.answer(coordinator, seen, read_out, NOW, "tests")
    assert not list(Sites(coordinator.folder))
    answered = _answered(coordinator, request, file)
    with pytest.raises(EnrolmentRefused, match="fingerprint"):
        hospital_side.accept(tmp_path / "second", answered, read_out, NOW)
    with pytest.raises(EnrolmentRefused, match="in no federation"):
        Membership.load(tmp_path / "second")


@given(st.text("0123456789abcdef", min_size=64, max_size=64), st.text(max_size=40))
def test_a_fingerprint_is_its_digits_however_they_are_grouped(digits: str, typed: str) -> None:
    own = spoken(digits)
    assert same_fingerprint(digits[:32].upper(), own)
    assert same_fingerprint(own.replace(" ", "-"), own)
    assert same_fingerprint(typed, own) == ("".join(typed.split()).replace("-", "").lower() == digits[:32])


def test_an_answer_to_another_s_request_or_to_an_earlier_one_is_refused(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    first, second = _asked(tmp_path, "first"), _asked(tmp_path, "second")
    own = coordinator.federation(NOW).generations[0].fingerprint
    answered = _answered(coordinator, *second)
    with pytest.raises(EnrolmentRefused, match="another request"):
        hospital_side.accept(tmp_path / "first", answered, own, NOW)
    stale = _answered(coordinator, *first)
    hospital_side.join(tmp_path / "first", "first", 95, NOW)
    with pytest.raises(EnrolmentRefused, match="another request"):
        hospital_side.accept(tmp_path / "first", stale, own, NOW)


def test_a_renewal_answered_by_another_coordinator_is_refused(
    coordinator: Coordinator, member: Any, tmp_path: Path, make_coordinator: Callable[..., Coordinator]
) -> None:
    """Who has the request's file could set up a coordinator of the same name."""
    impostor = make_coordinator(tmp_path / "impostor", now=NOW)
    request, file = hospital_side.renew(member.state, NOW + SECOND)
    issuer, key, site = impostor.site_issuer(NOW), request_of(request.tls), member.place.site
    certificate = client_certificate(issuer, key, site, NOW, 365 * DAY)
    sha256 = hashlib.sha256(file).hexdigest()
    forged = Answer(site, "first", 100, sha256, certificate, impostor.federation(NOW)).signed(
        impostor.signer(NOW)
    )
    with pytest.raises(EnrolmentRefused, match="not signed by a key that is known"):
        hospital_side.accept(member.state, forged, None, NOW + SECOND)


@pytest.mark.parametrize("age", [timedelta(days=31), -timedelta(minutes=16)])
def test_a_request_of_another_time_is_refused(
    coordinator: Coordinator, tmp_path: Path, age: timedelta
) -> None:
    _, file = _asked(tmp_path)
    with pytest.raises(EnrolmentRefused, match="clocks"):
        office_side.review(coordinator, file, NOW + age)


def test_clocks_ten_minutes_apart_do_no_harm(coordinator: Coordinator, tmp_path: Path) -> None:
    request, file = hospital_side.join(tmp_path / "late", "late", 95, NOW - timedelta(minutes=10))
    answered = _answered(coordinator, request, file)
    own = coordinator.federation(NOW).generations[0].fingerprint
    hospital_side.accept(tmp_path / "late", answered, own, NOW - timedelta(minutes=10))
    request, file = hospital_side.join(tmp_path / "early", "early", 95, NOW + timedelta(minutes=10))
    hospital_side.accept(
        tmp_path / "early", _answered(coordinator, request, file), own, NOW + timedelta(minutes=10)
    )


def test_a_replayed_renewal_gives_no_new_certificate(coordinator: Coordinator, member: Any) -> None:
    """Else who stole a key that was renewed away would have it certified again."""
    first = hospital_side.renew(member.state, NOW + SECOND)
    second = hospital_side.renew(member.state, NOW + 2 * SECOND)
    _answered(coordinator, *first, NOW + SECOND)
    _answered(coordinator, *second, NOW + 2 * SECOND)
    with pytest.raises(EnrolmentRefused, match="newer request"):
        office_side.review(coordinator, first[1], NOW + 3 * SECOND)


# One name, one key, one site


def test_no_name_or_key_belongs_to_two(coordinator: Coordinator, member: Any, tmp_path: Path) -> None:
    place: Membership = member.place
    request, _ = _asked(tmp_path)
    signer = Signer.load(tmp_path / "second" / "federation" / "1")
    taken = [
        dataclasses.replace(request, name="first"),
        dataclasses.replace(request, node=node_public_pem(place.node_key)),
    ]
    for changed in taken:
        with pytest.raises(EnrolmentRefused, match="already that of"):
            office_side.review(coordinator, changed.signed(signer), NOW)
    again = dataclasses.replace(request, name="first", signing=place.signer().public())
    with pytest.raises(EnrolmentRefused, match="already"):
        office_side.review(coordinator, again.signed(place.signer()), NOW)


def test_a_revoked_site_renews_no_more_but_may_join_anew_with_new_keys(
    coordinator: Coordinator, member: Any
) -> None:
    request, file = hospital_side.renew(member.state, NOW + SECOND)
    office_side.revoke(coordinator, "first", NOW + SECOND, "tests")
    with pytest.raises(EnrolmentRefused, match="revoked"):
        office_side.review(coordinator, file, NOW + SECOND)
    with pytest.raises(EnrolmentRefused, match="already"):
        office_side.revoke(coordinator, member.place.site, NOW + SECOND, "tests")
    with pytest.raises(EnrolmentRefused, match="--anew"):
        hospital_side.join(member.state, "first", 95, NOW + 2 * SECOND)
    request, file = hospital_side.join(member.state, "first", 95, NOW + 2 * SECOND, anew=True)
    answered = _answered(coordinator, request, file, NOW + 2 * SECOND)
    own = coordinator.federation(NOW).generations[0].fingerprint
    place = hospital_side.accept(member.state, answered, own, NOW + 2 * SECOND)
    assert place.site != member.place.site
    assert [site.id for site in Sites(coordinator.folder).active()] == [place.site]
    revoked = Sites(coordinator.folder).find(member.place.site)
    assert (revoked.keys(NOW), revoked.node_keys(NOW)) == ([], [])
    assert revoked.revoked_serials(NOW) == [member.place.certificate.serial_number]


def test_a_site_that_is_revoked_while_its_renewal_is_looked_at_stays_revoked(
    coordinator: Coordinator, member: Any
) -> None:
    _, file = hospital_side.renew(member.state, NOW + SECOND)
    seen = office_side.review(coordinator, file, NOW + SECOND)
    office_side.revoke(coordinator, "first", NOW + SECOND, "tests")
    with pytest.raises(EnrolmentRefused, match="revoked"):
        office_side.answer(coordinator, seen, None, NOW + SECOND, "tests")
    assert Sites(coordinator.folder).active() == []


def test_name_and_count_are_frozen(coordinator: Coordinator, member: Any) -> None:
    request, _ = hospital_side.renew(member.state, NOW + SECOND)
    for changed in (
        dataclasses.replace(request, num_examples=110),
        dataclasses.replace(request, name="other"),
    ):
        with pytest.raises(EnrolmentRefused, match="frozen"):
            office_side.review(coordinator, changed.signed(member.place.signer()), NOW + SECOND)


@pytest.mark.parametrize(("name", "images"), [("", 10), ("x" * 201, 10), ("a\x1b[2J", 10), ("a", 0)])
def test_a_name_or_count_that_is_none_is_refused(tmp_path: Path, name: str, images: int) -> None:
    with pytest.raises(EnrolmentRefused):
        hospital_side.join(tmp_path, name, images, NOW)


# Keys that change


def test_a_renewal_changes_the_tls_key_and_others_when_asked(coordinator: Coordinator, member: Any) -> None:
    first = member.place
    keys = first.signer().public()
    second = _renewed(coordinator, member, NOW + SECOND)
    assert second.site == first.site
    assert second.certificate.public_key() != first.certificate.public_key()
    assert second.signer().public() == keys
    assert second.node_key.read_bytes() == first.node_key.read_bytes()
    third = _renewed(coordinator, member, NOW + 2 * SECOND, new_keys=True)
    assert third.site == first.site
    assert third.signer().public() != second.signer().public()
    site = Sites(coordinator.folder).find(first.site)
    soon, late = NOW + 3 * SECOND, NOW + 8 * DAY
    assert site.keys(soon) == [keys, third.signer().public()]
    assert site.keys(late) == [third.signer().public()]
    assert len(site.node_keys(soon)) == 2
    assert site.node_keys(late) == [node_public_pem(third.node_key).decode()]
    assert site.revoked_serials(soon) == []
    assert set(site.revoked_serials(late)) == {
        first.certificate.serial_number,
        second.certificate.serial_number,
    }


def test_a_compromised_key_can_be_ended_at_once(coordinator: Coordinator, member: Any) -> None:
    at = NOW + SECOND
    request, file = hospital_side.renew(member.state, at, new_keys=True)
    seen = office_side.review(coordinator, file, at)
    answered = office_side.answer(coordinator, seen, None, at, "tests", timedelta(0))
    hospital_side.accept(member.state, answered, None, at)
    site = Sites(coordinator.folder).find(member.place.site)
    assert site.keys(at) == [request.signing]
    assert site.revoked_serials(at) == [member.place.certificate.serial_number]


def test_rotated_keys_reach_a_site_with_its_renewal_and_end_by_themselves(
    coordinator: Coordinator, member: Any
) -> None:
    old = coordinator.signer(NOW).public()
    coordinator.rotate(NOW, "tests", 90 * DAY)
    with pytest.raises(EnrolmentRefused, match="being rotated"):
        coordinator.rotate(NOW, "tests", 90 * DAY)
    assert coordinator.signer(NOW).public() == old
    new = coordinator.signer(NOW + 91 * DAY).public()
    assert new != old
    place = _renewed(coordinator, member, NOW + SECOND)
    assert place.coordinator_keys(NOW) == [old, new]
    assert place.coordinator_keys(NOW + 91 * DAY) == [new]
    # A renewal under the new key alone, from a site that learned of it under the old one.
    later = _renewed(coordinator, member, NOW + 91 * DAY)
    assert later.coordinator_keys(NOW + 91 * DAY) == [new]
    coordinator.rotate(NOW + 92 * DAY, "tests", 90 * DAY)
    assert len(coordinator.federation(NOW + 92 * DAY).generations) == 2


def test_a_site_that_slept_through_a_rotation_is_told_so(coordinator: Coordinator, member: Any) -> None:
    coordinator.rotate(NOW, "tests", 90 * DAY)
    late = NOW + 91 * DAY
    request, file = hospital_side.renew(member.state, late)
    answered = _answered(coordinator, request, file, late)
    with pytest.raises(EnrolmentRefused, match="not signed by a key that is known"):
        hospital_side.accept(member.state, answered, None, late)
    assert Membership.load(member.state) == member.place


# Crashes


def test_the_same_request_gets_the_same_answer_again(coordinator: Coordinator, tmp_path: Path) -> None:
    request, file = _asked(tmp_path)
    first = _answered(coordinator, request, file)
    assert _answered(coordinator, request, file) == first
    assert len(Ledger.open(coordinator.folder / "enrolment.jsonl").entries) == 2


@pytest.mark.parametrize("broken", ["sites.json", "answers"])
def test_after_a_crash_at_the_coordinator_the_same_request_is_answered(
    coordinator: Coordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    request, file = _asked(tmp_path)

    def fails(path: Path, data: bytes, mode: int = 0o644) -> None:
        raise OutputRefused(f"{path} cannot be written: the disk is full.")

    with monkeypatch.context() as patch:
        where = "sites" if broken == "sites.json" else "enrolment"
        patch.setattr(f"fedward.server.{where}.write_atomically", fails)
        with pytest.raises(OutputRefused):
            _answered(coordinator, request, file)
    own = coordinator.federation(NOW).generations[0].fingerprint
    place = hospital_side.accept(tmp_path / "second", _answered(coordinator, request, file), own, NOW)
    assert [site.id for site in Sites(coordinator.folder).active()] == [place.site]
    # The certificate that a crash kept from leaving is not good for ever either.
    serials = [one.value.serial for one in Sites(coordinator.folder).find(place.site).certificates]
    assert place.certificate.serial_number == serials[-1]


def test_after_a_crash_at_the_hospital_it_has_its_old_place_and_accepts_again(
    coordinator: Coordinator, member: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, file = hospital_side.renew(member.state, NOW + SECOND, new_keys=True)
    answered = _answered(coordinator, request, file, NOW + SECOND)

    def dies(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fedward.client.enrolment.move_to", dies)
        with pytest.raises(KeyboardInterrupt):
            hospital_side.accept(member.state, answered, None, NOW + SECOND)
    assert Membership.load(member.state) == member.place
    assert hospital_side.accept(member.state, answered, None, NOW + SECOND).signer() is not None
    assert Membership.load(member.state) != member.place


def test_damaged_files_are_named(coordinator: Coordinator, member: Any) -> None:
    (member.state / "federation" / "current.json").write_bytes(b"{")
    with pytest.raises(EnrolmentRefused, match=r"current\.json"):
        Membership.load(member.state)
    (coordinator.folder / "sites.json").write_bytes(b"[{}]")
    with pytest.raises(EnrolmentRefused, match=r"sites\.json"):
        Sites(coordinator.folder)
    (coordinator.folder / "coordinator.json").write_bytes(b"{}")
    with pytest.raises(EnrolmentRefused, match=r"coordinator\.json"):
        Coordinator(coordinator.folder)
    with pytest.raises(EnrolmentRefused, match="coordinator init"):
        Coordinator(coordinator.folder / "nothing")


def test_a_coordinator_is_never_made_over_another(
    coordinator: Coordinator, make_coordinator: Callable[..., Coordinator]
) -> None:
    before = coordinator.federation(NOW)
    with pytest.raises(EnrolmentRefused, match="already"):
        make_coordinator(coordinator.folder)
    assert Coordinator(coordinator.folder).federation(NOW) == before
    os.unlink(coordinator.folder / "coordinator.json")  # a crash came before it was written
    assert make_coordinator(coordinator.folder).federation(NOW).generations[0].signing == (
        before.generations[0].signing
    )


# A request's own keys


def test_keys_of_another_kind_are_refused(tmp_path: Path) -> None:
    request, _ = _asked(tmp_path)
    signer = Signer.load(tmp_path / "second" / "federation" / "1")
    other = new_key()
    assert read_request(
        dataclasses.replace(request, node=public_pem(other.public_key())).signed(signer), lambda _: []
    )
    forged = signing_request(other).replace(b"M", b"N", 1)
    for changed in (
        dataclasses.replace(request, node=b"no key"),
        dataclasses.replace(request, node=request.node + b"\n"),
        dataclasses.replace(request, tls=b"no request"),
        dataclasses.replace(request, tls=forged),
        dataclasses.replace(request, num_examples=0),
        dataclasses.replace(request, num_examples=2_000_000),
    ):
        with pytest.raises(EnrolmentRefused):
            read_request(changed.signed(signer), lambda _: [])


def test_what_a_request_tells_is_in_the_log_of_what_left_before_it_leaves(
    fedward: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, out = tmp_path / "state", tmp_path / "request"
    typed = ("hospital", "join", "--name", "St. Mary", "--images", 95, "--state", state, "--out", out)
    with monkeypatch.context() as patch:
        patch.setattr("fedward.client.egress_log.EgressLog.write", _full_disk)
        assert fedward(*typed).code == 1
    assert not out.exists()
    assert fedward(*typed).code == 0
    left = json.loads(fedward("hospital", "egress", "--state", state, "--json").out)
    assert left["totals"]["by_message"]["join"]["messages"] == 1
    fields = {field["name"]: field["class"] for field in left["messages"][0]["fields"]}
    assert (fields["request.name"], fields["request.num_examples"]) == ("consented", "consented")
    assert "Enrolment (1 time)" in fedward("hospital", "egress", "--state", state, "--explain").out


def _full_disk(*_: object) -> None:
    raise OutputRefused("The disk is full.")


@pytest.mark.parametrize("kind", ["key", "subject", "authority", "expired", "name", "count", "site"])
def test_an_answer_that_is_not_what_was_asked_for_is_refused(
    coordinator: Coordinator, member: Any, kind: str
) -> None:
    """Though the coordinator itself signed it: a place that nginx would not start with is not taken."""
    at, site = NOW + SECOND, member.place.site
    request, file = hospital_side.renew(member.state, at)
    key, issuer = request_of(request.tls), coordinator.site_issuer(NOW)
    good = client_certificate(issuer, key, site, NOW, 365 * DAY)
    wrong = {
        "key": client_certificate(issuer, new_key().public_key(), site, NOW, 365 * DAY),
        "subject": client_certificate(issuer, key, "site-2", NOW, 365 * DAY),
        "authority": client_certificate(new_authority("other", NOW, 365 * DAY), key, site, NOW, 365 * DAY),
        "expired": client_certificate(issuer, key, site, NOW - 2 * DAY, DAY),
    }
    told = Answer(
        site if kind != "site" else "site-2",
        "first" if kind != "name" else "other",
        100 if kind != "count" else 110,
        hashlib.sha256(file).hexdigest(),
        wrong.get(kind, good),
        coordinator.federation(NOW),
    )
    with pytest.raises(EnrolmentRefused, match=r"answer has another|certificate in the answer"):
        hospital_side.accept(member.state, told.signed(coordinator.signer(NOW)), None, at)
    assert Membership.load(member.state) == member.place
