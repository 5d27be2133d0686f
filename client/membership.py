"""What a hospital knows of its place in a federation, kept in ``federation/`` of its state folder.

    federation/current.json        {"folder": n}: which of the folders below counts
    federation/1/                  tls.key  tls.pem  node.key  signing-key.json  request.json  answer.json
    federation/loopback.{key,pem}  of the hop from SuperNode to the hospital's own gateway
    federation/gateway/            the hospital's nginx

A request makes the next folder with its keys; an answer completes it, and only then the pointer moves: so
a site has its old place or the new one whole, whenever a crash comes. Keys have mode 0600, folders 0700.
"""

import json
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedward.common.enrolment import LIMIT_BYTES, Answer, read_answer
from fedward.common.errors import EnrolmentRefused
from fedward.common.federation import Federation
from fedward.common.files import make_folder, read_bounded, write_atomically
from fedward.common.key_files import Identity, public_pem
from fedward.common.signing import KEY_FILE, Signer
from fedward.common.trust import TrustedKey

FOLDER = "federation"  # of a hospital's state folder
TLS_KEY, TLS_CERTIFICATE, NODE_KEY = "tls.key", "tls.pem", "node.key"
REQUEST, ANSWER = "request.json", "answer.json"
_CURRENT = "current.json"


@dataclass(frozen=True)
class Membership:
    """A site's place in a federation.

    Attributes:
        folder: where its keys are.
        site: the name that the coordinator gave it.
    """

    folder: Path
    site: str
    name: str
    num_examples: int
    certificate: x509.Certificate
    federation: Federation

    @classmethod
    def load(cls, state: Path) -> "Membership":
        """The place that counts now.

        Raises:
            EnrolmentRefused: the hospital has joined no federation, or its folder is damaged.
        """
        folder = current_folder(state)
        if folder is None:
            raise EnrolmentRefused(
                f"{state} is in no federation yet: run `fedward hospital join`, and `fedward hospital "
                "accept` with the answer."
            )
        file = read_bounded(folder / ANSWER, LIMIT_BYTES, refusal=EnrolmentRefused)
        return membership_of(folder, read_answer(file, None)[0])

    @property
    def node_key(self) -> Path:
        """The SuperNode's private key, as Flower reads it."""
        return self.folder / NODE_KEY

    @property
    def tls_key(self) -> Path:
        """The private key of the gateway's client certificate."""
        return self.folder / TLS_KEY

    @property
    def tls_certificate(self) -> Path:
        """The gateway's client certificate."""
        return self.folder / TLS_CERTIFICATE

    def signer(self) -> Signer:
        """Signs this site's messages."""
        return Signer.load(self.folder)

    def coordinator_keys(self, now: datetime) -> list[TrustedKey]:
        """Whose signatures are the coordinator's now; a key that was rotated out is not among them.

        Raises:
            EnrolmentRefused: all were rotated out.
        """
        return [one.signing for one in self.federation.current(now)]


def membership_of(folder: Path, answer: Answer) -> Membership:
    """What `answer` says, with the keys in `folder`."""
    return Membership(
        folder, answer.site, answer.name, answer.num_examples, answer.certificate, answer.federation
    )


def current_folder(state: Path) -> Path | None:
    """Where the keys and answer are that count; None before the first answer was accepted."""
    pointer = state / FOLDER / _CURRENT
    if not pointer.exists():
        return None
    try:
        number = json.loads(read_bounded(pointer, 100, refusal=EnrolmentRefused))["folder"]
        return state / FOLDER / str(int(number))
    except (ValueError, KeyError, TypeError) as error:
        raise EnrolmentRefused(f"{pointer} is damaged: put back its newest copy.") from error


def loopback_certificate(state: Path) -> Path:
    """What proves the hospital's gateway to its SuperNode: a certificate that signs itself."""
    return state / FOLDER / "loopback.pem"


def node_keys(state: Path) -> list[Path]:
    """Every node's key of this hospital that is still there, the one that counts now first."""
    current = current_folder(state)
    folders = [state / FOLDER / str(number) for number in reversed(_numbers(state))]
    folders.sort(key=lambda folder: folder != current)
    return [folder / NODE_KEY for folder in folders if (folder / NODE_KEY).exists()]


def pending_folder(state: Path) -> Path | None:
    """The folder of the last request, if it was not accepted yet."""
    numbers, current = _numbers(state), current_folder(state)
    last = state / FOLDER / str(max(numbers, default=0))
    return last if numbers and last != current and (last / REQUEST).exists() else None


def next_folder(state: Path) -> Path:
    """A new folder for a request's keys; a request that was never answered is given up.

    Raises:
        OutputRefused: it cannot be made.
    """
    make_folder(state, 0o700)
    make_folder(state / FOLDER, 0o700)
    current = current_folder(state)
    numbers = _numbers(state)
    for number in numbers:
        if current is None or number > int(current.name):
            shutil.rmtree(state / FOLDER / str(number))
    folder = state / FOLDER / str(max(numbers, default=0) + 1)
    make_folder(folder, 0o700)
    return folder


def move_to(folder: Path) -> None:
    """Let `folder` count from now on. The one before it stays for whoever still runs on it; older ones go.

    Raises:
        OutputRefused: the pointer cannot be written; what counted before counts.
    """
    state = folder.parent.parent
    before = current_folder(state)
    write_atomically(folder.parent / _CURRENT, json.dumps({"folder": int(folder.name)}).encode(), 0o600)
    for number in _numbers(state):
        if before is None or number < int(before.name):
            old = folder.parent / str(number)
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)


def write_node_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """A SuperNode's key in OpenSSH's format, which `--auth-supernode-private-key` reads.

    Raises:
        OutputRefused: it cannot be written.
    """
    data = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    write_atomically(path, data, 0o600)


def node_public_pem(path: Path) -> bytes:
    """The public half (PEM) of a key that `write_node_key` wrote.

    Raises:
        EnrolmentRefused: missing or damaged.
    """
    try:
        key = serialization.load_ssh_private_key(read_bounded(path, 1 << 14, refusal=EnrolmentRefused), None)
    except ValueError as error:
        raise EnrolmentRefused(f"{path} is damaged: put back its backup.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise EnrolmentRefused(f"{path} is no key of a SuperNode: put back its backup.")
    return public_pem(key.public_key())


def copy_keys(source: Path, target: Path) -> None:
    """Go on with the same node's and signing keys.

    Raises:
        EnrolmentRefused, OutputRefused: they cannot be read or written.
    """
    for name in (NODE_KEY, KEY_FILE):
        write_atomically(target / name, read_bounded(source / name, 1 << 14, refusal=EnrolmentRefused), 0o600)


def tls_identity(membership: Membership) -> Identity:
    """The gateway's client key and certificate.

    Raises:
        EnrolmentRefused: missing or damaged, or they do not belong together.
    """
    return Identity.load(membership.tls_key, membership.tls_certificate)


def _numbers(state: Path) -> list[int]:
    folder = state / FOLDER
    return (
        sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []
    )
