"""The hospital's side of an enrolment: ask to join, accept the answer, renew before the certificate ends."""

import hashlib
from datetime import datetime
from pathlib import Path

from fedward.client.membership import (
    ANSWER,
    NODE_KEY,
    REQUEST,
    TLS_CERTIFICATE,
    TLS_KEY,
    Membership,
    copy_keys,
    current_folder,
    membership_of,
    move_to,
    next_folder,
    node_public_pem,
    pending_folder,
    write_node_key,
)
from fedward.common.certificates import issued_by, new_key, signing_request
from fedward.common.declared import declared_count
from fedward.common.enrolment import LIMIT_BYTES, Answer, JoinRequest, read_answer, read_request
from fedward.common.errors import EnrolmentRefused
from fedward.common.federation import Generation, same_fingerprint
from fedward.common.files import read_bounded, write_atomically
from fedward.common.key_files import load_key, pem, private_pem
from fedward.common.signing import Signer, create_keys
from fedward.common.trust import TrustedKey


def join(state: Path, name: str, images: int, now: datetime, anew: bool = False) -> tuple[JoinRequest, bytes]:
    """Make all keys and a first request; an earlier one that was not answered is given up.

    Args:
        images: how many there are; what is told is rounded up to the next ten.
        anew: also where the hospital is in a federation, which goes on until the new answer is accepted.

    Raises:
        EnrolmentRefused: the hospital is in a federation already, or name or count are none.
        OutputRefused: the state folder cannot be written.
    """
    if not 0 < len(name) <= 200 or not name.isprintable():
        raise EnrolmentRefused("A hospital's name has 1 to 200 printable characters: name it with --name.")
    if images < 1:
        raise EnrolmentRefused("Say with --images how many images this hospital has.")
    if not anew and current_folder(state) is not None:
        raise EnrolmentRefused(
            "This hospital is in a federation already: run `fedward hospital renew`; if it was revoked or "
            "its certificate has expired, `fedward hospital join --anew`."
        )
    folder = next_folder(state)
    signer = create_keys(folder, name)
    write_node_key(folder / NODE_KEY, new_key())
    return _request(folder, None, name, declared_count(images), now, signer)


def renew(state: Path, now: datetime, new_keys: bool = False) -> tuple[JoinRequest, bytes]:
    """Ask for a new certificate, for a new key, in good time; everything goes on until it is accepted.

    Args:
        new_keys: of the SuperNode and of the messages' signatures too.

    Raises:
        EnrolmentRefused: the hospital is in no federation.
        OutputRefused: the state folder cannot be written.
    """
    member = Membership.load(state)
    folder = next_folder(state)
    if new_keys:
        create_keys(folder, member.name)
        write_node_key(folder / NODE_KEY, new_key())
    else:
        copy_keys(member.folder, folder)
    return _request(folder, member.site, member.name, member.num_examples, now, member.signer())


def look(state: Path, file: bytes, now: datetime) -> tuple[Answer, Generation, bool]:
    """An answer to this hospital's request, whose keys it is signed by, and whether a call must tell whose.

    Raises:
        EnrolmentRefused: malformed, changed, to another request, or signed by a stranger.
    """
    folder = _pending(state)
    own = read_bounded(folder / REQUEST, LIMIT_BYTES, refusal=EnrolmentRefused)
    request = _own_request(state, own)
    known = None if request.site is None else Membership.load(state).coordinator_keys(now)
    answer, signer = read_answer(file, known)
    if answer.request != hashlib.sha256(own).hexdigest():
        raise EnrolmentRefused("This answers another request than this hospital's last one: ask for its own.")
    _check_terms(answer, request)
    _check_certificate(answer, folder, now)
    generation = _generation(answer, signer)
    if not generation.holds(now):
        raise EnrolmentRefused("The answer is signed by a key that was rotated out: ask for a new answer.")
    return answer, generation, known is None


def accept(state: Path, file: bytes, read_out: str | None, now: datetime) -> Membership:
    """Take an answer over.

    Args:
        read_out: the coordinator's fingerprint, as its people read it out; needed the first time.

    Raises:
        EnrolmentRefused: as `look`, or the fingerprint is another.
        OutputRefused: the state folder cannot be written.
    """
    answer, generation, needs_call = look(state, file, now)
    if needs_call and (read_out is None or not same_fingerprint(read_out, generation.fingerprint)):
        raise EnrolmentRefused(
            f"The coordinator in this answer has the fingerprint {generation.fingerprint}, which is not what "
            "was read out: the answer may be another's. Ask the coordinator to send it again."
        )
    folder = _pending(state)
    write_atomically(folder / TLS_CERTIFICATE, pem(answer.certificate))
    write_atomically(folder / ANSWER, file, 0o600)
    move_to(folder)
    return membership_of(folder, answer)


def _request(
    folder: Path, site: str | None, name: str, count: int, now: datetime, signer: Signer
) -> tuple[JoinRequest, bytes]:
    key = new_key()
    write_atomically(folder / TLS_KEY, private_pem(key), 0o600)
    request = JoinRequest(
        site=site,
        name=name,
        num_examples=count,
        made=now,
        tls=signing_request(key),
        node=node_public_pem(folder / NODE_KEY),
        signing=Signer.load(folder).public(),
    )
    file = request.signed(signer)
    write_atomically(folder / REQUEST, file, 0o600)
    return request, file


def _pending(state: Path) -> Path:
    folder = pending_folder(state)
    if folder is None:
        raise EnrolmentRefused(
            f"{state} has no request that waits for an answer: run `fedward hospital join`, or `renew`."
        )
    return folder


def _own_request(state: Path, file: bytes) -> JoinRequest:
    return read_request(file, lambda _: [Membership.load(state).signer().public()])[0]


def _check_terms(answer: Answer, request: JoinRequest) -> None:
    if (answer.name, answer.num_examples) != (request.name, request.num_examples) or (
        request.site is not None and answer.site != request.site
    ):
        raise EnrolmentRefused("The answer has another name or count than was asked for: ask for a new one.")


def _check_certificate(answer: Answer, folder: Path, now: datetime) -> None:
    certificate = answer.certificate
    authorities = [one.authority for one in answer.federation.current(now)]
    if certificate.public_key() != load_key(folder / TLS_KEY).public_key():
        raise EnrolmentRefused("The certificate in the answer is for another key: ask for a new answer.")
    if certificate.subject.rfc4514_string() != f"CN={answer.site}":
        raise EnrolmentRefused("The certificate in the answer names another site: ask for a new answer.")
    if not any(issued_by(certificate, authority) for authority in authorities):
        raise EnrolmentRefused("The certificate in the answer is of another authority: ask for a new answer.")
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        raise EnrolmentRefused("The certificate in the answer is not valid now: compare both hosts' clocks.")


def _generation(answer: Answer, signer: TrustedKey) -> Generation:
    return next(one for one in answer.federation.generations if one.signing == signer)
