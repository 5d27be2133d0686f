"""X.509 certificates of a federation: its authority, its gateway, its sites, and each host's loopback.

All keys are EC P-384 with SHA-384 (RFC 5280, CNSA 1.0 suite). An authority signs ends only (path length
0); a site's certificate says `clientAuth` and the gateway's `serverAuth`, so that a site cannot stand in
for the coordinator with its own certificate. A loopback certificate signs itself, for two processes of one
host, and is trusted by nobody else.
"""

import hashlib
import ipaddress
from collections.abc import Iterable
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedward.common.errors import EnrolmentRefused
from fedward.common.key_files import Identity, pem

_CLOCKS_APART = timedelta(minutes=15)  # a host whose clock is late must not find a new certificate too new
_CLIENT, _SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
_GATEWAY = "Fedward gateway"  # a subject; who is called is checked by the names beside it
LOOPBACK_NAMES = ("localhost", "127.0.0.1")


def new_key() -> ec.EllipticCurvePrivateKey:
    """A new random key on P-384."""
    return ec.generate_private_key(ec.SECP384R1())


def signing_request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Ask for a certificate; its subject is the authority's business, so none is named. PKCS 10 in PEM."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return pem(builder.sign(key, hashes.SHA384()))


def new_authority(name: str, now: datetime, lifetime: timedelta) -> Identity:
    """A certificate authority that signs itself; `name` must differ from any earlier authority's."""
    key = new_key()
    builder = _builder(name, name, key.public_key(), now, now + lifetime)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(is_authority=True), critical=True)
    return Identity(key, builder.sign(key, hashes.SHA384()))


def client_certificate(
    authority: Identity, key: ec.EllipticCurvePublicKey, name: str, now: datetime, lifetime: timedelta
) -> x509.Certificate:
    """A certificate by which `name` (its whole subject is CN=name) may call a gateway."""
    return _issued(authority, key, name, now, lifetime, _CLIENT, ())


def server_identity(
    authority: Identity, names: Iterable[str], now: datetime, lifetime: timedelta
) -> Identity:
    """A new key and its certificate for a gateway of these DNS names or addresses, of which one is needed."""
    key = new_key()
    certificate = _issued(authority, key.public_key(), _GATEWAY, now, lifetime, _SERVER, tuple(names))
    return Identity(key, certificate)


def loopback_identity(now: datetime, lifetime: timedelta) -> Identity:
    """A certificate for localhost that signs itself, to be trusted as it is by processes of this host."""
    key = new_key()
    builder = _builder("localhost", "localhost", key.public_key(), now, now + lifetime)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_alternative(LOOPBACK_NAMES), critical=False)
    builder = builder.add_extension(x509.ExtendedKeyUsage([_SERVER]), critical=False)
    return Identity(key, builder.sign(key, hashes.SHA384()))


def revocation_list(authority: Identity, serials: Iterable[int]) -> bytes:
    """The list of revoked certificates, in PEM (RFC 5280, section 5).

    It is valid as long as the authority: the gateway reads it from its own disk, where it is never late,
    and a list that has expired, or is dated after a clock that was set back, would lock every site out.
    """
    start, end = authority.certificate.not_valid_before_utc, authority.certificate.not_valid_after_utc
    builder = x509.CertificateRevocationListBuilder(authority.certificate.subject, start, end)
    for serial in sorted(serials):
        entry = x509.RevokedCertificateBuilder(serial, start).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(authority.key, hashes.SHA384()).public_bytes(serialization.Encoding.PEM)


def issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether the authority signed the certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception:  # InvalidSignature, ValueError, TypeError: whatever it is, it is not issued by it
        return False
    return True


def is_due(certificate: x509.Certificate, now: datetime) -> bool:
    """Whether less than a third of its life is left: time for a new one."""
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return now > end - (end - start) / 3


def digest(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate's DER, in hex."""
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def host_name(name: str) -> x509.GeneralName:
    """A DNS name or an IP address, as a certificate names it.

    Raises:
        EnrolmentRefused: it is neither.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    labels = name.split(".")
    if len(name) <= 253 and all(_is_label(label) for label in labels):
        return x509.DNSName(name)
    raise EnrolmentRefused(f"{name!r} is neither a host's DNS name in plain letters nor its address.")


def _is_label(label: str) -> bool:
    plain = label.isascii() and label.replace("-", "").isalnum()
    return plain and len(label) <= 63 and not label.startswith("-") and not label.endswith("-")


def _issued(
    authority: Identity,
    key: ec.EllipticCurvePublicKey,
    name: str,
    now: datetime,
    lifetime: timedelta,
    purpose: x509.ObjectIdentifier,
    hosts: tuple[str, ...],
) -> x509.Certificate:
    # No end outlives its authority: a chain is as long as its shortest part anyway.
    until = min(now + lifetime, authority.certificate.not_valid_after_utc)
    issuer = authority.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    builder = _builder(name, str(issuer), key, now, until)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(is_authority=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=True)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False
    )
    if hosts:
        builder = builder.add_extension(_alternative(hosts), critical=False)
    return builder.sign(authority.key, hashes.SHA384())


def _builder(
    name: str, issuer: str, key: ec.EllipticCurvePublicKey, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(_named(name)).issuer_name(_named(issuer)).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - _CLOCKS_APART).not_valid_after(until)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative(hosts: Iterable[str]) -> x509.SubjectAlternativeName:
    """Each host as what it is, and as a DNS name: nginx compares an address with these alone."""
    names = [name for host in hosts for name in (host_name(host), x509.DNSName(host))]
    return x509.SubjectAlternativeName(dict.fromkeys(names))


def _key_usage(is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
