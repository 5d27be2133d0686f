"""Certificates are for one use, end with their authority, and are read strictly."""

import base64
import contextlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from fedward.common.certificates import (
    client_certificate,
    host_name,
    is_due,
    issued_by,
    loopback_identity,
    new_authority,
    new_key,
    revocation_list,
    server_identity,
    signing_request,
)
from fedward.common.errors import EnrolmentRefused
from fedward.common.instants import parsed, spelled, utc_now
from fedward.common.key_files import (
    Identity,
    certificate_of,
    load_key,
    pem,
    private_pem,
    public_key_of,
    public_pem,
    request_of,
)

NOW, YEAR = utc_now(), timedelta(days=365)
AUTHORITY = new_authority("authority", NOW, 10 * YEAR)


def _uses(certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
    return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_a_certificate_is_for_one_use_and_signs_no_other() -> None:
    client = client_certificate(AUTHORITY, new_key().public_key(), "site-1", NOW, YEAR)
    server = server_identity(AUTHORITY, ["localhost"], NOW, YEAR).certificate
    local = loopback_identity(NOW, YEAR).certificate
    assert _uses(client) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert _uses(server) == _uses(local) == [ExtendedKeyUsageOID.SERVER_AUTH]
    for one in (client, server, local):
        assert not one.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    own = AUTHORITY.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (own.critical, own.value.ca, own.value.path_length) == (True, True, 0)


def test_no_certificate_outlives_its_authority() -> None:
    late = NOW + 10 * YEAR - timedelta(days=1)
    certificate = client_certificate(AUTHORITY, new_key().public_key(), "site-1", late, YEAR)
    assert certificate.not_valid_after_utc == AUTHORITY.certificate.not_valid_after_utc


def test_an_authority_of_the_same_name_has_not_issued_it() -> None:
    certificate = client_certificate(AUTHORITY, new_key().public_key(), "site-1", NOW, YEAR)
    assert issued_by(certificate, AUTHORITY.certificate)
    assert not issued_by(certificate, new_authority("authority", NOW, YEAR).certificate)


def test_a_list_of_revoked_certificates_is_good_as_long_as_its_authority() -> None:
    """An expired list, or one of the future, would lock every site out."""
    listed = x509.load_pem_x509_crl(revocation_list(AUTHORITY, [7, 3]))
    assert sorted(one.serial_number for one in listed) == [3, 7]
    assert listed.last_update_utc == AUTHORITY.certificate.not_valid_before_utc
    assert listed.next_update_utc == AUTHORITY.certificate.not_valid_after_utc
    assert listed.is_signature_valid(AUTHORITY.key.public_key())


def test_a_certificate_is_due_in_its_last_third() -> None:
    certificate = loopback_identity(NOW, 90 * timedelta(days=1)).certificate
    assert not is_due(certificate, NOW + timedelta(days=59))
    assert is_due(certificate, NOW + timedelta(days=61))


@pytest.mark.parametrize("name", ["localhost", "federation.example.org", "127.0.0.1", "::1", "a-1.b"])
def test_a_host_is_a_name_or_an_address(name: str) -> None:
    assert host_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "a b", "a..b", "-a.b", "a.b-", "a;b", "a\nb", "ü.de", "a" * 64, "*"]
)
def test_what_a_configuration_could_read_as_more_than_a_host_is_refused(name: str) -> None:
    with pytest.raises(EnrolmentRefused):
        host_name(name)


def test_keys_are_read_as_they_were_written_and_nothing_else_is(tmp_path: Path) -> None:
    identity = loopback_identity(NOW, YEAR)
    key, certificate = tmp_path / "a.key", tmp_path / "a.pem"
    identity.save(key, certificate)
    assert key.stat().st_mode & 0o777 == 0o600
    assert Identity.load(key, certificate).certificate == identity.certificate
    new = new_key()
    key.write_bytes(private_pem(new))
    with pytest.raises(EnrolmentRefused, match="not the certificate"):
        Identity.load(key, certificate)
    for data in (b"", b"no key", private_pem(ec.generate_private_key(ec.SECP256R1())), _ed25519()):  # type: ignore[arg-type]
        key.write_bytes(data)
        with pytest.raises(EnrolmentRefused):
            load_key(key)
    with pytest.raises(EnrolmentRefused):
        certificate_of(b"none")
    assert public_key_of(public_pem(new.public_key())) == new.public_key()
    assert request_of(signing_request(new)) == new.public_key()
    for data in (b"", public_pem(ec.generate_private_key(ec.SECP256R1()).public_key())):
        with pytest.raises(EnrolmentRefused):
            public_key_of(data)
        with pytest.raises(EnrolmentRefused):
            request_of(data)


KEY = new_key()
PEMS = {
    certificate_of: pem(client_certificate(AUTHORITY, KEY.public_key(), "site-1", NOW, YEAR)),
    request_of: signing_request(KEY),
    public_key_of: public_pem(KEY.public_key()),
}


@given(st.sampled_from(list(PEMS)), st.integers(0, 10_000), st.integers(1, 255))
def test_what_a_stranger_sends_is_read_or_refused_whatever_byte_is_wrong(
    read: Callable[[bytes], object], at: int, change: int
) -> None:
    kind, text, end = _lines(PEMS[read])
    raw = bytearray(base64.b64decode(text))
    raw[at % len(raw)] ^= change
    spelled_out = base64.encodebytes(bytes(raw)).decode()
    with contextlib.suppress(EnrolmentRefused):
        read(f"{kind}\n{spelled_out}{end}\n".encode())


def _lines(data: bytes) -> tuple[str, str, str]:
    first, *middle, last = data.decode().strip().splitlines()
    return first, "".join(middle), last


@given(st.datetimes(timezones=st.just(NOW.tzinfo), min_value=NOW.replace(tzinfo=None, year=1000)))
def test_a_moment_is_read_as_it_was_spelled(moment: object) -> None:
    whole = moment.replace(microsecond=0)  # type: ignore[attr-defined]
    assert parsed(spelled(whole)) == whole


@pytest.mark.parametrize("text", [None, 3, "", "2026-01-01", "2026-13-01T00:00:00Z", "2026-1-1T00:00:00Z"])
def test_another_spelling_of_a_moment_is_refused(text: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - its callers name it
        parsed(text)


def _ed25519() -> bytes:
    return ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
