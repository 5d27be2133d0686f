"""How Flower's own programs are started: from this environment, on loopback, telling nobody about it."""

import contextlib
import os
import secrets
import socket
import sys
from pathlib import Path

from fedward.common.errors import EngineFailed
from fedward.common.files import write_atomically

LOOPBACK = "127.0.0.1"
SUPERLINK_PORT = 9091  # where nobody names another
_FIRST_PORT, _PORTS = 20_000, 12_000
_SECRET_BYTES = 32


def tool(name: str, extra: str) -> str:
    """The path of a console script of this very environment; `extra` is what installs it.

    Raises:
        EngineFailed: it is not installed.
    """
    script = Path(sys.executable).with_name(name)
    if not script.exists():
        raise EngineFailed(f"{script} does not exist: run `pip install 'fedward[{extra}]'`.")
    return str(script)


def quiet_environment(home: Path) -> dict[str, str]:
    """Flower's environment: its files in `home`, no telemetry, no question about updates."""
    return {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        **_past_proxies(),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def _past_proxies() -> dict[str, str]:
    """A proxy, common in hospitals' networks, cannot reach this machine's own loopback."""
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    own = ",".join(filter(None, (known, LOOPBACK, "localhost")))
    return {"no_proxy": own, "NO_PROXY": own}


def free_port() -> int:
    """A port of loopback that nothing listens on at this moment.

    Below those that the kernel gives to outgoing connections, which could take it before its server does.
    """
    while True:
        port = _FIRST_PORT + secrets.randbelow(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((LOOPBACK, port))
            return port


def keep_secret(path: Path) -> None:
    """Make the secret between a Flower server and what takes its tasks, once; Flower reads the raw bytes.

    Raises:
        OutputRefused: it cannot be written.
    """
    if not path.exists():
        write_atomically(path, secrets.token_hex(_SECRET_BYTES).encode(), 0o600)
