"""`fedward coordinator up`: SuperLink and SuperExec on loopback, the gateway in front, the wanted studies.

SuperLink's one port carries the fleet, which hospitals reach by the gateway, and the control and runtime
routes, which they must never reach: so it is bound to loopback, where with TLS it lets in registered nodes
alone. A SuperExec takes the ServerApps' tasks with a secret; nothing is installed at run time.
"""

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fedward.common.errors import EnrolmentRefused, SettingRefused
from fedward.common.files import make_folder
from fedward.common.flower_tools import LOOPBACK, SUPERLINK_PORT, keep_secret, quiet_environment, tool
from fedward.common.locks import only_holder
from fedward.common.nginx import program
from fedward.common.supervision import Program, Supervisor
from fedward.server.control import Control
from fedward.server.coordinator import COORDINATOR_STATE, LOOPBACK_FOLDER, PROFILE, Coordinator
from fedward.server.gateway_process import GatewayRefresh
from fedward.server.launching import Launcher
from fedward.server.orders import Orders
from fedward.server.publisher import Publisher
from fedward.server.registrar import Registrar

_SECRET_FILE = "superexec.secret"  # noqa: S105 - a file's name
# Not the lock that `enrol` and `revoke` take, which work while this one is held.
_LOCK, _LOCK_SECONDS = "up.lock", 2.0


@dataclass(frozen=True)
class Link:
    """How SuperLink serves; always on loopback.

    Attributes:
        port: of loopback.
        identity: folder with superlink.key and superlink.pem, by which it serves TLS and lets in only nodes
            whose keys are registered; None is plain and open to every process of this host, for trials.
    """

    port: int = SUPERLINK_PORT
    identity: Path | None = None

    def __post_init__(self) -> None:
        """Check the port.

        Raises:
            SettingRefused: it is none.
        """
        if not 1 <= self.port <= 65535:
            raise SettingRefused("--port is from 1 to 65535.")

    @classmethod
    def of(cls, coordinator: Coordinator) -> "Link":
        """As the coordinator's folder says."""
        return cls(coordinator.address.superlink_port, coordinator.folder.resolve() / LOOPBACK_FOLDER)

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def authority(self) -> Path | None:
        """What proves SuperLink to the other processes of this host: its certificate signs itself."""
        return None if self.identity is None else self.identity / "superlink.pem"

    def server_options(self) -> list[str]:
        """As `flower-superlink` takes them."""
        if self.identity is None:
            return ["--insecure"]
        certificate, key = self.identity / "superlink.pem", self.identity / "superlink.key"
        files = ["--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)]
        return [*files, "--ssl-ca-certfile", str(certificate), "--enable-supernode-auth"]

    def client_options(self) -> list[str]:
        """As `flower-superexec` takes them."""
        return ["--insecure"] if self.identity is None else ["--root-certificates", str(self.authority)]


def run_coordinator(state: Path, until: threading.Event, trial_port: int | None = None) -> None:
    """Keep the coordinator's processes and wanted studies running until the event is set.

    Args:
        state: the coordinator's folder, as `init` made it.
        until: ends all.
        trial_port: SuperLink's, for a trial on loopback without a federation: no TLS, no gateway, no
            release; the folder is made where it is missing.

    Raises:
        EnrolmentRefused: the folder holds no coordinator, or holds one where a trial was asked for.
        OutputRefused: the state folder is in use, or cannot be written.
        EngineFailed, GatewayFailed: Flower or nginx is not installed.
    """
    if trial_port is not None:
        _refuse_trial(state)
        make_folder(state, 0o700)
    state = state.resolve()
    coordinator = Coordinator(state) if trial_port is None else None
    link = Link(trial_port or SUPERLINK_PORT) if coordinator is None else Link.of(coordinator)
    sentence = f"{state} is up already: stop the other `fedward coordinator up`, or name another folder."
    with only_holder(state / _LOCK, _LOCK_SECONDS, sentence):
        state.chmod(0o700)
        keep_secret(state / _SECRET_FILE)
        control = Control(link.address, link.authority)
        programs, ticks = _programs(state, link), [Launcher(Orders(state), control).tick]
        if coordinator is not None:
            programs.append(_gateway(state))
            launcher = Launcher(Orders(state), control, Publisher(state))
            ticks = [launcher.tick, Registrar(state, control).tick, GatewayRefresh(state).tick]
        about = {"address": link.address}
        Supervisor(state, programs, about).run(until, partial(_all, ticks))


def _all(ticks: Sequence[Callable[[], None]]) -> None:
    for tick in ticks:
        tick()


def _refuse_trial(state: Path) -> None:
    if (state / PROFILE).exists():
        raise EnrolmentRefused(
            f"{state} holds a federation's coordinator, which is never run without its gateway: leave out "
            "--trial-port, or name another --state folder."
        )


def _gateway(state: Path) -> Program:
    program()  # refused here, by name, where it is not installed
    return Program("gateway", [sys.executable, "-m", "fedward.server.gateway_process", "--state", str(state)])


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
    if link.identity is not None:
        polling[COORDINATOR_STATE] = str(state)
    return [Program("superlink", superlink, environment), Program("superexec", superexec, polling)]
