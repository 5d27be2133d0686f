"""`fedward coordinator up`: Flower's SuperLink and SuperExec on loopback, and the studies that are wanted.

SuperLink's one port carries the fleet, which hospitals reach by the gateway, and the control and runtime
routes, which they must never reach: so it is bound to loopback. A SuperExec takes the ServerApps' tasks with
a secret; nothing is installed at run time.
"""

import threading
from dataclasses import dataclass
from pathlib import Path

from fedward.common.errors import SettingRefused
from fedward.common.files import make_folder
from fedward.common.flower_tools import LOOPBACK, SUPERLINK_PORT, keep_secret, quiet_environment, tool
from fedward.common.locks import only_holder
from fedward.common.supervision import Program, Supervisor
from fedward.server.control import Control
from fedward.server.launching import Launcher
from fedward.server.orders import Orders

_SECRET_FILE = "superexec.secret"  # noqa: S105 - a file's name
# Not the lock that `enrol` and `revoke` take, which work while this one is held.
_LOCK, _LOCK_SECONDS = "up.lock", 2.0


@dataclass(frozen=True)
class Link:
    """How SuperLink serves; always on loopback.

    Attributes:
        port: of loopback.
        certificate, key, authority: PEM files for TLS, all or none; with TLS only nodes whose keys are
            registered are let in.
    """

    port: int = SUPERLINK_PORT
    certificate: Path | None = None
    key: Path | None = None
    authority: Path | None = None

    def __post_init__(self) -> None:
        """Check that the parts fit together.

        Raises:
            SettingRefused: some, but not all three, of TLS's files; or no port.
        """
        given = [file is not None for file in (self.certificate, self.key, self.authority)]
        if any(given) and not all(given):
            raise SettingRefused("TLS needs all three: --certificate, --key and --authority.")
        if not 1 <= self.port <= 65535:
            raise SettingRefused("--port is from 1 to 65535.")

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{LOOPBACK}:{self.port}"

    def server_options(self) -> list[str]:
        """As `flower-superlink` takes them."""
        if self.authority is None:
            return ["--insecure"]
        files = ["--ssl-certfile", str(self.certificate), "--ssl-keyfile", str(self.key)]
        return [*files, "--ssl-ca-certfile", str(self.authority), "--enable-supernode-auth"]

    def client_options(self) -> list[str]:
        """As `flower-superexec` takes them."""
        return ["--insecure"] if self.authority is None else ["--root-certificates", str(self.authority)]


def run_coordinator(state: Path, link: Link, until: threading.Event) -> None:
    """Keep the coordinator's processes and wanted studies running until the event is set.

    Raises:
        OutputRefused: the state folder is in use, or cannot be written.
        EngineFailed: Flower is not installed.
    """
    make_folder(state, 0o700)
    state = state.resolve()
    sentence = f"{state} is up already: stop the other `fedward coordinator up`, or name another folder."
    with only_holder(state / _LOCK, _LOCK_SECONDS, sentence):
        state.chmod(0o700)
        keep_secret(state / _SECRET_FILE)
        launcher = Launcher(Orders(state), Control(link.address, link.authority))
        Supervisor(state, _programs(state, link), {"address": link.address}).run(until, launcher.tick)


def _programs(state: Path, link: Link) -> list[Program]:
    environment = quiet_environment(state / "flower")
    guarded = ["--superexec-auth-secret-file", str(state / _SECRET_FILE)]
    superlink = [
        tool("flower-superlink", "coordinator"), *link.server_options(), "--isolation", "process", *guarded,
        "--host", LOOPBACK, "--port", str(link.port), "--database", str(state / "superlink.db"),
        "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    superexec = [
        tool("flower-superexec", "coordinator"), *link.client_options(), *guarded,
        "--runtime-api-address", link.address,
    ]  # fmt: skip
    polling = {**environment, "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}
    return [Program("superlink", superlink, environment), Program("superexec", superexec, polling)]
