"""Starts Flower's SuperNode, after the last one's farewell.

    python -m fedward.client.supernode --state FOLDER --gateway PORT -- OPTIONS OF flower-supernode

A SuperNode that was killed stays connected in SuperLink's eyes for up to a minute, and until then SuperLink
lets no other in under the same key. So the node is signed off first, in its own name and with its own key,
which is the one before the last where a renewal has brought a new one.
"""

import argparse
import contextlib
import os
import socket
import sys
import time
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedward.client.membership import node_keys
from fedward.client.state_folder import NODE_ID
from fedward.client.uplink import Uplink, add_options, uplink_of
from fedward.common.errors import Refusal, SettingRefused
from fedward.common.flower_tools import tool

_GATEWAY_SECONDS, _PAUSE_SECONDS = 10.0, 0.05


def sign_off(folder: Path, uplink: Uplink) -> None:
    """Tell SuperLink that the folder's last node is gone; where it cannot be told, Flower's minute passes.

    Raises:
        SettingRefused: the node's key cannot be read.
    """
    node_id = _last_node(folder)
    if node_id is None or uplink.node_key is None:
        return
    for path in dict.fromkeys([uplink.node_key, *node_keys(folder)]):
        if _signed_off(uplink, read_node_key(path), node_id):
            return


def _signed_off(uplink: Uplink, key: EllipticCurvePrivateKey, node_id: int) -> bool:
    client = FleetHttpClient.from_server_address(
        uplink.superlink,
        False,
        str(uplink.root_certificates),
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(key, key.public_key()),
        ],
    )
    with client, contextlib.suppress(httpx.HTTPError, ValueError):
        client.DeactivateNode(DeactivateNodeRequest(node_id=node_id))
        return True
    return False


def read_node_key(path: Path) -> EllipticCurvePrivateKey:
    """A node's private key, as OpenSSH writes it.

    Raises:
        SettingRefused: it cannot be read, or is of another kind.
    """
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
    except (OSError, ValueError) as error:
        raise SettingRefused(f"{path} holds no private key that can be read; name the node's own.") from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise SettingRefused(f"{path} holds a key of another kind; the node's is an elliptic curve's.")
    return key


def _last_node(folder: Path) -> int | None:
    try:
        return int((folder / NODE_ID).read_text())
    except (OSError, ValueError):
        return None


def _await(uplink: Uplink) -> None:
    """The hospital's own gateway is started at the same time."""
    host, _, port = uplink.superlink.rpartition(":")
    deadline = time.monotonic() + _GATEWAY_SECONDS
    while uplink.node_key is not None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), 1.0):
            return
        time.sleep(_PAUSE_SECONDS)


def main() -> int:
    """Sign off and become the SuperNode; returns the exit code of a refusal."""
    parser = argparse.ArgumentParser(prog="fedward.client.supernode", description="A site's SuperNode.")
    parser.add_argument("--state", type=Path, required=True, help="The hospital's state folder.")
    add_options(parser)
    parser.add_argument("rest", nargs="*", help="Further options of flower-supernode, after --.")
    options = parser.parse_args()
    try:
        uplink = uplink_of(options, options.state)
        _await(uplink)
        sign_off(options.state, uplink)
        program = [tool("flower-supernode", "hospital"), *uplink.flower_options(), *options.rest]
    except Refusal as refusal:
        print(f"{refusal.name}: {refusal}", file=sys.stderr)
        return 1
    os.execv(program[0], program)  # noqa: S606 - Flower's own program, with this process's id


if __name__ == "__main__":
    sys.exit(main())
