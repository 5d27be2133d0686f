"""The two files of an enrolment: a hospital's signed request, and the coordinator's signed answer.

Both are envelopes of `fedward.common.signing` (DSSE, Ed25519 and ML-DSA-65) around an in-toto statement
whose predicate is

    request  {schema, site, name, num_examples, made, tls, node, signing}
    answer   {schema, site, name, num_examples, request, certificate, coordinator, host, port, generations}

A first request (site is null) is signed with the key that it brings, which proves possession only: whether
it is the hospital's is for two people on the telephone, who compare `fingerprint`s. A renewal is signed
with a key that the coordinator holds for the site already. An answer names the SHA-256 of the very
request that it answers, so it is good for no other.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography import x509

from fedward.common.declared import MAXIMUM_DECLARED
from fedward.common.errors import EnrolmentRefused, SignatureRefused, TrustRefused
from fedward.common.federation import Federation, spoken
from fedward.common.files import canonical_json, parse_canonical
from fedward.common.instants import parsed, spelled
from fedward.common.key_files import certificate_of, pem, public_key_of, request_of
from fedward.common.signing import STATEMENT_TYPE, Signer, verify
from fedward.common.trust import TrustedKey, decode_base64, key_of

LIMIT_BYTES = 1 << 18
_REQUEST, _ANSWER = "urn:fedward:enrolment-request:1", "urn:fedward:enrolment-answer:1"


@dataclass(frozen=True)
class JoinRequest:
    """What a hospital asks for.

    Attributes:
        site: None at first; at a renewal the name that the coordinator gave the site.
        num_examples: the declared count, public and frozen.
        tls: a request (PKCS 10, PEM) for the certificate with which the site's gateway calls.
        node: public key (PEM) of the site's SuperNode.
        signing: with which the site signs its messages from now on.
    """

    site: str | None
    name: str
    num_examples: int
    made: datetime
    tls: bytes
    node: bytes
    signing: TrustedKey

    def statement(self) -> dict[str, Any]:
        """What is signed."""
        predicate = {
            "schema": 1,
            "site": self.site,
            "name": self.name,
            "num_examples": self.num_examples,
            "made": spelled(self.made),
            "tls": self.tls.decode(),
            "node": self.node.decode(),
            "signing": self.signing.entry(),
        }
        return _statement(_REQUEST, predicate)

    def signed(self, signer: Signer) -> bytes:
        """The file."""
        return signer.sign(self.statement())

    @property
    def fingerprint(self) -> str:
        """What both sides compare by telephone: it covers every field."""
        return spoken(hashlib.sha256(canonical_json(self.statement())).hexdigest())


@dataclass(frozen=True)
class Answer:
    """What the coordinator gives a site.

    Attributes:
        request: SHA-256, in hex, of the request's file.
        certificate: of the site's gateway, CN=site.
    """

    site: str
    name: str
    num_examples: int
    request: str
    certificate: x509.Certificate
    federation: Federation

    def statement(self) -> dict[str, Any]:
        """What is signed."""
        predicate = {
            "schema": 1,
            "site": self.site,
            "name": self.name,
            "num_examples": self.num_examples,
            "request": self.request,
            "certificate": pem(self.certificate).decode(),
            **self.federation.entry(),
        }
        return _statement(_ANSWER, predicate)

    def signed(self, signer: Signer) -> bytes:
        """The file."""
        return signer.sign(self.statement())


def read_request(
    file: bytes, keys_of: Callable[[str], Sequence[TrustedKey]]
) -> tuple[JoinRequest, TrustedKey]:
    """A request whose signatures hold, and the key that made them.

    Args:
        file: as `JoinRequest.signed` wrote it.
        keys_of: the keys that a site, by its name at the coordinator, may sign a renewal with.

    Raises:
        EnrolmentRefused: malformed, changed, or not signed by the key that it must be signed by.
    """
    request = _read(file, _REQUEST, _request_of, "request")
    keys = [request.signing] if request.site is None else keys_of(request.site)
    return request, _signer_of(file, request.statement(), keys, "request")


def read_answer(file: bytes, known: Sequence[TrustedKey] | None) -> tuple[Answer, TrustedKey]:
    """An answer whose signatures hold, and the key that made them.

    Args:
        known: whom the site believes already; None where it knows nobody yet, and a person compares the
            fingerprint of the key that comes back.

    Raises:
        EnrolmentRefused: malformed, changed, or signed by another.
    """
    answer = _read(file, _ANSWER, _answer_of, "answer")
    own = [one.signing for one in answer.federation.generations]
    keys = own if known is None else [key for key in known if key in own]
    return answer, _signer_of(file, answer.statement(), keys, "answer")


def _statement(kind: str, predicate: dict[str, Any]) -> dict[str, Any]:
    sha256 = hashlib.sha256(canonical_json(predicate)).hexdigest()
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": "predicate", "digest": {"sha256": sha256}}],
        "predicateType": kind,
        "predicate": predicate,
    }


def _read(file: bytes, kind: str, build: Callable[[Any], Any], what: str) -> Any:
    """What the file says, before any signature is looked at."""
    try:
        statement = parse_canonical(decode_base64(parse_canonical(file)["payload"]))
        _require(statement["predicateType"] == kind, "the kind")
        _require(statement["predicate"]["schema"] == 1, "the schema")
        return build(statement["predicate"])
    except (ValueError, KeyError, TypeError, AttributeError, TrustRefused) as error:
        raise EnrolmentRefused(
            f"The file is no {what} to join a federation, or is damaged: get it again."
        ) from error


def _signer_of(file: bytes, statement: dict[str, Any], keys: Sequence[TrustedKey], what: str) -> TrustedKey:
    refused = f"The {what} is not signed by a key that is known here, or it was changed: get it again."
    for key in keys:
        try:
            if verify(file, [key]) == statement:
                return key
        except SignatureRefused:
            continue
    raise EnrolmentRefused(refused)


def _request_of(fields: Any) -> JoinRequest:
    tls, node = _bytes(fields["tls"]), _bytes(fields["node"])
    request_of(tls)
    public_key_of(node)
    return JoinRequest(
        site=None if fields["site"] is None else _text(fields["site"]),
        name=_name(fields["name"]),
        num_examples=_count(fields["num_examples"]),
        made=parsed(fields["made"]),
        tls=tls,
        node=node,
        signing=key_of(fields["signing"], "a request"),
    )


def _answer_of(fields: Any) -> Answer:
    return Answer(
        site=_text(fields["site"]),
        name=_name(fields["name"]),
        num_examples=_count(fields["num_examples"]),
        request=_text(fields["request"]),
        certificate=certificate_of(_bytes(fields["certificate"])),
        federation=Federation.of(fields),
    )


def _text(value: object) -> str:
    _require(isinstance(value, str), "a text")
    return str(value)


def _bytes(value: object) -> bytes:
    return _text(value).encode("ascii")


def _name(value: object) -> str:
    _require(isinstance(value, str) and 0 < len(value) <= 200, "a name")
    return str(value)


def _count(value: object) -> int:
    whole = isinstance(value, int) and not isinstance(value, bool)
    _require(whole and 0 < int(str(value)) <= MAXIMUM_DECLARED, "a count")
    return int(str(value))


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"{what} is not what it must be")
