"""A coordinator and its hospitals as real processes on loopback, to be watched, killed and ended by id."""

import contextlib
import datetime
import hashlib
import ipaddress
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.proto.control_pb2 import RegisterNodeRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fedward.common.flower_tools import LOOPBACK, free_port
from fedward.server.study_folder import StudyFolder

COMMAND = [sys.executable, "-c", "from fedward.common.cli import main; main()"]


def wait_for(what: Callable[[], Any], seconds: float = 120.0) -> Any:
    """The first true value of `what`; a test fails where none comes in time."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain")
        time.sleep(0.05)
    return found


@dataclass
class Deployment:
    """State folders of processes that run."""

    coordinator: Path
    hospitals: list[Path]
    study: StudyFolder
    address: str

    def pid(self, folder: Path, program: str) -> int:
        """The process that `folder` says runs as `program`; "serverapp" is SuperExec's child."""
        if program == "serverapp":
            return int(wait_for(lambda: _serverapp_of(self.pid(folder, "superexec"))))

        def found() -> int | None:
            with contextlib.suppress(OSError, ValueError, KeyError):
                return int(json.loads((folder / "processes.json").read_bytes())["children"][program]["pid"])
            return None

        return int(wait_for(found))

    def kill(self, folder: Path, program: str) -> None:
        """kill -9, and nothing else."""
        os.kill(self.pid(folder, program), signal.SIGKILL)

    def events(self, name: str) -> list[dict[str, Any]]:
        """The study's events of one name, so far."""
        path = self.study.path / "progress.jsonl"
        lines = path.read_bytes().splitlines() if path.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def opened(self, server_round: int) -> Callable[[], bool]:
        """Whether a round was opened."""
        return lambda: any(event["round"] == server_round for event in self.events("round"))

    def order(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """`fedward coordinator ...` on this coordinator's folder."""
        command = [*COMMAND, "coordinator", *arguments, "--state", str(self.coordinator)]
        return subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)

    def digest(self) -> str:
        """SHA-256 of the study's model."""
        return hashlib.sha256(self.study.final.read_bytes()).hexdigest()


def _serverapp_of(superexec: int) -> int | None:
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(entry.read_text().rpartition(")")[2].split()[1]) == superexec:
                return int(entry.parent.name)
    return None


@contextmanager
def deployed(
    study: StudyFolder, path: Path, apart: tuple[int, ...] = (), is_secured: bool = False
) -> Iterator[Deployment]:
    """A coordinator and the study's hospitals, up for the length of the block; those in `apart` stay down.

    `is_secured` gives SuperLink a certificate and each hospital's node a registered key.
    """
    port = free_port()
    folders = sorted((study.path / "hospitals").iterdir())
    coordinator = path / "c"
    keys = [path / f"node-{number}" for number in range(len(folders))]
    trust = _trust(path) if is_secured else None
    commands = [["coordinator", "up", "--state", str(coordinator), "--port", str(port)]]
    if trust is not None:
        for name in ("certificate", "key", "authority"):
            commands[0] += [f"--{name}", str(path / f"{name}.pem")]
    for number, folder in enumerate(folders):
        if number not in apart:
            commands.append(["hospital", "up", "--state", str(folder), "--superlink", f"{LOOPBACK}:{port}"])
            if trust is not None:
                commands[-1] += ["--root-certificates", str(trust), "--node-key", str(keys[number])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with contextlib.ExitStack() as running:
        for number, command in enumerate(commands):
            log = running.enter_context((path / f"up-{number}.log").open("wb"))
            process = subprocess.Popen(
                [*COMMAND, *command], stdout=log, stderr=subprocess.STDOUT, env=environment
            )
            running.callback(_ended, process)
            if number == 0 and trust is not None:
                _register(f"{LOOPBACK}:{port}", trust, keys)
        yield Deployment(coordinator, folders, study, f"{LOOPBACK}:{port}")


def _trust(path: Path) -> Path:
    """An authority, and SuperLink's certificate for loopback, as PEM files in `path`."""
    authority, server = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    own, name = _named("authority"), _named(LOOPBACK)
    addresses = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(LOOPBACK))])
    for_authority = x509.BasicConstraints(ca=True, path_length=None)
    top = _certificate(own, authority, own, authority, for_authority)
    below = _certificate(name, server, own, authority, addresses)
    (path / "authority.pem").write_bytes(top.public_bytes(Encoding.PEM))
    (path / "certificate.pem").write_bytes(below.public_bytes(Encoding.PEM))
    plain = server.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (path / "key.pem").write_bytes(plain)
    return path / "authority.pem"


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _certificate(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    by: ec.EllipticCurvePrivateKey,
    extension: x509.ExtensionType,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(minutes=5))
    builder = builder.not_valid_after(now + datetime.timedelta(hours=1))
    return builder.add_extension(extension, critical=False).sign(by, hashes.SHA256())


def _register(address: str, trust: Path, keys: list[Path]) -> None:
    """Make each node's key and tell SuperLink of it."""
    control = ControlHttpClient.from_server_address(
        server_address=address,
        insecure=False,
        root_certificates=str(trust),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
    )
    for path in keys:
        key = ec.generate_private_key(ec.SECP384R1())
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        request = RegisterNodeRequest(public_key=public_key_to_bytes(key.public_key()))
        wait_for(lambda request=request: _answered(control, request))  # type: ignore[misc]


def _answered(control: ControlHttpClient, request: RegisterNodeRequest) -> bool:
    try:
        control.RegisterNode(request)
    except httpx.TransportError:
        return False
    return True


def _ended(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
