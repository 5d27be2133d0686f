"""How a hospital reaches the coordinator: its address, and what proves each to the other."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from fedward.client.membership import Membership, loopback_certificate
from fedward.common.errors import SettingRefused
from fedward.common.flower_tools import LOOPBACK


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
        """As Fedward's own programs take them."""
        trust = [] if self.root_certificates is None else ["--root-certificates", str(self.root_certificates)]
        key = [] if self.node_key is None else ["--node-key", str(self.node_key)]
        return ["--superlink", self.superlink, *trust, *key]

    def flower_options(self) -> list[str]:
        """As `flower-supernode` takes them."""
        plain = self.root_certificates is None
        trust = ["--insecure"] if plain else ["--root-certificates", str(self.root_certificates)]
        key = [] if self.node_key is None else ["--auth-supernode-private-key", str(self.node_key)]
        return ["--superlink", self.superlink, *trust, *key]


def member_uplink(state: Path, port: int) -> Uplink:
    """By way of the hospital's own gateway, on this port of loopback, with the node key that counts now.

    Raises:
        EnrolmentRefused: the hospital is in no federation, or its folder is damaged.
    """
    return Uplink(f"{LOOPBACK}:{port}", loopback_certificate(state), Membership.load(state).node_key)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a program that needs an uplink."""
    parser.add_argument("--gateway", type=int, default=0, help="Port of the hospital's own gateway.")
    parser.add_argument("--superlink", help="In a trial: SuperLink's address, host:port.")
    parser.add_argument("--root-certificates", type=Path, help="PEM file to check its certificate with.")
    parser.add_argument("--node-key", type=Path, help="The node's registered private key.")


def uplink_of(options: argparse.Namespace, state: Path) -> Uplink:
    """The uplink that the options name.

    Raises:
        SettingRefused: they do not fit together.
        EnrolmentRefused: as `member_uplink`.
    """
    if options.gateway:
        return member_uplink(state, options.gateway)
    return Uplink(options.superlink or "", options.root_certificates, options.node_key)
