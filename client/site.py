"""`fedward hospital up`: the daemon, Flower's SuperNode and the task runner, kept running as three processes.

The SuperNode only dials out. Its own port, on loopback, takes tasks with a secret that stands in the state
folder; the daemon has no port at all.
"""

import argparse
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from fedward.client.state_folder import SECRET_FILE, SITE_LOCK, require_hospital
from fedward.common.errors import Refusal, SettingRefused
from fedward.common.flower_tools import LOOPBACK, free_port, keep_secret, quiet_environment, tool
from fedward.common.locks import only_holder
from fedward.common.supervision import Program, Supervisor, log_to_stderr, until_signalled

_LOCK_SECONDS = 2.0


@dataclass(frozen=True)
class Uplink:
    """How the SuperNode reaches the coordinator.

    Attributes:
        superlink: address, ``host:port``; with TLS by way of the hospital's own gateway.
        root_certificates: PEM file that the coordinator's certificate is checked with; None is no TLS, for
            trials on loopback only.
        node_key: file of the node's registered private key, for which TLS is needed; None registers a new
            key at each start.
    """

    superlink: str
    root_certificates: Path | None = None
    node_key: Path | None = None

    def __post_init__(self) -> None:
        """Check that the parts fit together.

        Raises:
            SettingRefused: no host and port, or a plain connection where there must be none.
        """
        host, colon, port = self.superlink.rpartition(":")
        if not (host and colon and port.isdigit()):
            raise SettingRefused(f"--superlink is host:port, not {self.superlink!r}.")
        if self.root_certificates is None and host not in (LOOPBACK, "localhost", "[::1]"):
            raise SettingRefused(
                "A coordinator on another machine is reached by TLS only: name its --root-certificates."
            )
        if self.root_certificates is None and self.node_key is not None:
            raise SettingRefused("A node key needs TLS: name --root-certificates too.")

    def options(self) -> list[str]:
        """As `flower-supernode` takes them."""
        plain = self.root_certificates is None
        trust = ["--insecure"] if plain else ["--root-certificates", str(self.root_certificates)]
        key = [] if self.node_key is None else ["--auth-supernode-private-key", str(self.node_key)]
        return ["--superlink", self.superlink, *trust, *key]


def command(folder: Path, uplink: Uplink, approved: list[str]) -> list[str]:
    """This module as a program: it loads neither torch nor the data, and stays small for months."""
    parts = [sys.executable, "-m", "fedward.client.site", "--state", str(folder)]
    parts += ["--superlink", uplink.superlink]
    if uplink.root_certificates is not None:
        parts += ["--root-certificates", str(uplink.root_certificates)]
    if uplink.node_key is not None:
        parts += ["--node-key", str(uplink.node_key)]
    return parts + [part for bundle in approved for part in ("--approve", bundle)]


def run_site(folder: Path, uplink: Uplink, approved: list[str], until: threading.Event) -> None:
    """Keep a hospital's processes running until the event is set.

    Args:
        folder: the hospital's state folder.
        uplink: how the coordinator is reached.
        approved: SHA-256 of further bundles than this version's own.
        until: ends all.

    Raises:
        DatasetRefused: the folder is no hospital's.
        OutputRefused: it is in use, or cannot be written.
        EngineFailed: Flower is not installed.
    """
    folder = require_hospital(folder)
    sentence = f"{folder} is up already: stop the other `fedward hospital up`, or name another state folder."
    with only_holder(folder / SITE_LOCK, _LOCK_SECONDS, sentence):
        folder.chmod(0o700)
        keep_secret(folder / SECRET_FILE)
        port = free_port()
        about = {"superlink": uplink.superlink, "port": port}
        Supervisor(folder, _programs(folder, uplink, approved, port), about).run(until)


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="fedward.client.site", description="A hospital's processes.")
    parser.add_argument("--state", type=Path, required=True, help="The hospital's state folder.")
    parser.add_argument("--superlink", required=True, help="The coordinator's address, host:port.")
    parser.add_argument("--root-certificates", type=Path, help="PEM file to check its certificate with.")
    parser.add_argument("--node-key", type=Path, help="The node's registered private key.")
    parser.add_argument("--approve", action="append", default=[], help="SHA-256 of a further bundle.")
    options = parser.parse_args()
    log_to_stderr()
    try:
        uplink = Uplink(options.superlink, options.root_certificates, options.node_key)
        run_site(options.state, uplink, options.approve, until_signalled())
    except Refusal as refusal:
        print(f"{refusal.name}: {refusal}", file=sys.stderr)
        return 1
    return 0


def _programs(folder: Path, uplink: Uplink, approved: list[str], port: int) -> list[Program]:
    environment = quiet_environment(folder / "flower")
    runtime = f"{LOOPBACK}:{port}"
    own = [sys.executable, "-m"]
    supernode = [
        tool("flower-supernode", "hospital"), *uplink.options(), "--isolation", "process",
        "--superexec-auth-secret-file", str(folder / SECRET_FILE), "--host", LOOPBACK, "--port", str(port),
    ]  # fmt: skip
    runner = [*own, "fedward.client.task_runner", "--state", str(folder), "--runtime", runtime]
    for bundle in approved:
        runner += ["--approve", bundle]
    return [
        Program("daemon", [*own, "fedward.client.daemon", "--state", str(folder)]),
        Program("supernode", supernode, environment),
        # The SuperNode would wait a minute, or for ever, for the reply that a dead task runner had in hand.
        Program("task-runner", runner, environment, ends=("supernode",)),
    ]


if __name__ == "__main__":
    sys.exit(main())
