"""Keys and certificates as files: EC P-384 in PEM, read strictly, written for their owner alone."""

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedward.common.errors import EnrolmentRefused
from fedward.common.files import read_bounded, write_atomically

_LIMIT_BYTES = 1 << 16
# What the library raises of what it cannot read; the last three are no ValueErrors.
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
)


@dataclass(frozen=True)
class Identity:
    """A private key and its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def load(cls, key: Path, certificate: Path) -> "Identity":
        """Read both.

        Raises:
            EnrolmentRefused: missing, damaged, readable by others, or they do not belong together.
        """
        found = cls(load_key(key), certificate_of(_read(certificate)))
        if found.key.public_key() != found.certificate.public_key():
            raise EnrolmentRefused(f"{certificate} is not the certificate of {key}: put back their backup.")
        return found

    def save(self, key: Path, certificate: Path) -> None:
        """Write the key (mode 0600), then the certificate.

        Raises:
            OutputRefused: they cannot be written.
        """
        write_atomically(key, private_pem(self.key), 0o600)
        write_atomically(certificate, pem(self.certificate))


def pem(certificate: x509.Certificate | x509.CertificateSigningRequest) -> bytes:
    """A certificate, or a request for one, in PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    """A public key as SubjectPublicKeyInfo, in PEM: as Flower names a SuperNode."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as PKCS 8, in PEM, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A P-384 key in PEM.

    Raises:
        EnrolmentRefused: missing, damaged, of another kind, or readable by others than its owner.
    """
    data = _read(path)
    if path.stat().st_mode & 0o077:
        raise EnrolmentRefused(f"{path} may be read or changed by others: run `chmod 600` on it.")
    try:
        key = serialization.load_pem_private_key(data, None)
    except _UNREADABLE as error:
        raise EnrolmentRefused(f"{path} holds no private key: put back its backup.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise EnrolmentRefused(f"{path} holds a key of another kind than EC P-384: put back its backup.")
    return key


def public_key_of(data: bytes) -> ec.EllipticCurvePublicKey:
    """The P-384 key that `public_pem` spelled.

    Raises:
        EnrolmentRefused: something else, or another spelling of one: a gateway compares the spelling.
    """
    try:
        key = serialization.load_pem_public_key(data)
    except _UNREADABLE as error:
        raise EnrolmentRefused("A node's public key is not in PEM: make the request again.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise EnrolmentRefused("A node's public key is not EC P-384: make the request again.")
    if public_pem(key) != data:
        raise EnrolmentRefused("A node's public key has an unusual spelling: make the request again.")
    return key


def certificate_of(data: bytes) -> x509.Certificate:
    """One certificate in PEM.

    Raises:
        EnrolmentRefused: it is none.
    """
    try:
        certificate = x509.load_pem_x509_certificate(data)
        # Read now what would be read later: a part that is malformed shows only then.
        _ = (certificate.public_key(), certificate.subject, certificate.issuer, certificate.extensions)
        _ = (certificate.not_valid_before_utc, certificate.not_valid_after_utc)
    except _UNREADABLE as error:
        raise EnrolmentRefused("This is no certificate in PEM: get the file again.") from error
    return certificate


def request_of(data: bytes) -> ec.EllipticCurvePublicKey:
    """The P-384 key that asks for a certificate, by a request (PKCS 10) that it signed itself.

    Raises:
        EnrolmentRefused: no request, another kind of key, or the signature is not that key's.
    """
    try:
        request = x509.load_pem_x509_csr(data)
        key, is_signed = request.public_key(), request.is_signature_valid
    except _UNREADABLE as error:
        raise EnrolmentRefused("The certificate's request is malformed: make it again.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise EnrolmentRefused("The certificate's request is not of an EC P-384 key: make it again.")
    if not is_signed:
        raise EnrolmentRefused("The certificate's request is not signed by its own key: make it again.")
    return key


def _read(path: Path) -> bytes:
    return read_bounded(path, _LIMIT_BYTES, refusal=EnrolmentRefused)
