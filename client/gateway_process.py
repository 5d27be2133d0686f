"""The hospital's gateway as a program that a supervisor runs, and what keeps it up to date.

    python -m fedward.client.gateway_process --state FOLDER --port PORT

It writes the configuration and becomes nginx. Whoever watches it is told of its end as of any program's.
"""

import argparse
import logging
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fedward.client.gateway import HospitalGateway
from fedward.client.membership import Membership, node_public_pem
from fedward.common.errors import Refusal
from fedward.common.instants import utc_now
from fedward.common.logs import log_to_stderr, told
from fedward.common.nginx import program
from fedward.common.supervision import Program

SUPERNODE = "supernode"
_LOOK_SECONDS, _AGAIN_SECONDS, _LOOKUP_SECONDS, _REFRESH_SECONDS = 1.0, 10.0, 60.0, 3600.0
_log = logging.getLogger(__name__)


def gateway_program(folder: Path, port: int) -> Program:
    """The gateway, as a supervisor runs it.

    Raises:
        EnrolmentRefused: the hospital is in no federation.
        GatewayFailed: nginx is not installed.
    """
    Membership.load(folder)
    program()
    own = [sys.executable, "-m", "fedward.client.gateway_process"]
    return Program("gateway", [*own, "--state", str(folder), "--port", str(port)])


def addresses(member: Membership) -> frozenset[str]:
    """Where the coordinator's name leads now; empty where the name server does not say."""
    try:
        found = socket.getaddrinfo(member.federation.host, member.federation.port, type=socket.SOCK_STREAM)
    except OSError:
        return frozenset()
    return frozenset(str(entry[4][0]) for entry in found)


class MembershipWatch:
    """Has the processes take over a renewed place: the gateway its certificate, the SuperNode its key.

    nginx looks a name up once, when it reads its configuration: so where the coordinator's addresses change,
    it is made to read it again.

    Only a new node's key restarts the SuperNode; the round that it was in is asked again, and answered with
    the reply that the daemon stored. Each hour the gateway drops authorities that ended.
    """

    def __init__(self, folder: Path, port: int, restart: Callable[[str], None]) -> None:
        """Watch a hospital's state folder; `restart` ends a program of this name, to be started anew."""
        self._folder, self._restart = folder, restart
        self._gateway = HospitalGateway(folder, port)
        self._place = Membership.load(folder).folder
        self._node = node_public_pem(Membership.load(folder).node_key)
        self._addresses = addresses(Membership.load(folder))
        self._next_look, self._next_refresh = 0.0, time.monotonic() + _REFRESH_SECONDS
        self._next_lookup = time.monotonic() + _LOOKUP_SECONDS

    def tick(self) -> None:
        """Look, at most once a second; a refusal is logged, and tried again."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        try:
            member = Membership.load(self._folder)
            self._renew_node(member)
            if now >= self._next_lookup:
                self._follow_name(member)
                self._next_lookup = time.monotonic() + _LOOKUP_SECONDS
            if (member.folder != self._place or now >= self._next_refresh) and self._take_over():
                self._place, self._next_refresh = member.folder, now + _REFRESH_SECONDS
        except Refusal as refusal:
            _log.warning(
                "the gateway was not taken over",
                extra={"fields": told(refusal)},
            )
            self._next_look = now + _AGAIN_SECONDS

    def _take_over(self) -> bool:
        """Says whether a gateway runs; one that is just being started may have read what counted before."""
        if self._gateway.nginx.pid is None:
            return False
        self._gateway.refresh(utc_now())
        self._gateway.nginx.rotate_logs()
        return True

    def _follow_name(self, member: Membership) -> None:
        found = addresses(member)
        if found and found != self._addresses and self._gateway.nginx.pid is not None:
            self._gateway.nginx.reload()
            self._addresses = found

    def _renew_node(self, member: Membership) -> None:
        if (node := node_public_pem(member.node_key)) != self._node:
            _log.info("the node has a new key")
            self._restart(SUPERNODE)
            self._node = node


def main() -> int:
    """Become nginx; returns the exit code of a refusal."""
    parser = argparse.ArgumentParser(prog="fedward.client.gateway_process", description="A gateway.")
    parser.add_argument("--state", type=Path, required=True, help="The hospital's state folder.")
    parser.add_argument("--port", type=int, required=True, help="Of loopback, for the SuperNode.")
    options = parser.parse_args()
    log_to_stderr()
    try:
        HospitalGateway(options.state, options.port).become(utc_now())
    except Refusal as refusal:
        print(f"{refusal.name}: {refusal}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
