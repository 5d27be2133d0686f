"""Starting and stopping runs by SuperLink's Control API, which is on the coordinator's loopback alone."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import httpx
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from fedward.common.errors import EngineFailed
from fedward.common.thin_app import STUDY_FOLDER, bundle, bundle_hash

_UNREGISTERED = "unregistered"  # a node that was taken off stays on Flower's list for a while


class Control:
    """The runs of one SuperLink.

    Args:
        address: of SuperLink, on loopback.
        root_certificates: PEM file, where SuperLink serves TLS.
    """

    def __init__(self, address: str, root_certificates: Path | None = None) -> None:
        """Prepare; nothing is connected yet."""
        self._client = ControlHttpClient.from_server_address(
            server_address=address,
            insecure=root_certificates is None,
            root_certificates=None if root_certificates is None else str(root_certificates),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )

    def start(self, study_folder: Path) -> int:
        """Start a run of the study, with the bundle that carries no code, and return its id.

        Raises:
            EngineFailed: SuperLink does not answer or did not take the run.
        """
        return self.start_bundle(bundle(), {STUDY_FOLDER: str(study_folder)})

    def start_bundle(self, content: bytes, config: dict[str, bool | float | int | str]) -> int:
        """Start a run of any bundle, with entries of its configuration replaced, and return its id.

        Raises:
            EngineFailed: SuperLink does not answer or did not take the run.
        """
        request = StartRunRequest(
            fab=fab_to_proto(Fab(bundle_hash(content), content, {})),
            override_config=user_config_to_proto(config),
        )
        with _answered("Flower's SuperLink did not take the run ({}); see its log."):
            started = self._client.StartRun(request)
        if not started.HasField("run_id"):
            raise EngineFailed("Flower's SuperLink did not take the run; see its log.")
        return int(started.run_id)

    def register(self, public_key: bytes) -> None:
        """Let the SuperNode with this key (EC P-384, PEM) take part.

        Raises:
            EngineFailed: SuperLink does not answer or did not take the key.
        """
        with _answered("Flower's SuperLink did not take the node's key ({})."):
            self._client.RegisterNode(RegisterNodeRequest(public_key=public_key))

    def nodes(self) -> dict[bytes, int]:
        """Registered nodes: public key (PEM) -> Flower's node id.

        Raises:
            EngineFailed: SuperLink does not answer.
        """
        with _answered("Flower's SuperLink did not list its nodes ({})."):
            found = self._client.ListNodes(ListNodesRequest()).nodes_info
        return {node.public_key: node.node_id for node in found if node.status != _UNREGISTERED}

    def unregister(self, node_id: int) -> None:
        """Let a node in no more.

        Raises:
            EngineFailed: SuperLink does not answer, or knows no such node.
        """
        with _answered("Flower's SuperLink did not take the node off ({})."):
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def stop(self, run_id: int) -> None:
        """Stop a run, so that nobody works for it any more.

        Raises:
            EngineFailed: SuperLink does not answer, or the run has ended.
        """
        with _answered("Flower's SuperLink did not stop the run ({})."):
            self._client.StopRun(StopRunRequest(run_id=run_id))


@contextlib.contextmanager
def _answered(sentence: str) -> Iterator[None]:
    """A SuperLink that does not answer, or refuses, is refused with `sentence`, which has a place for why."""
    try:
        yield
    except (httpx.HTTPError, ValueError) as error:
        raise EngineFailed(sentence.format(error)) from error
