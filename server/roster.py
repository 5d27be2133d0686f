"""Which node speaks for which hospital: asked when a node appears, and again when it was away.

A SuperNode that was restarted has lost what it was asked, and without a registered key it has another id
too. One that answers with an error (its daemon is away, or busy for longer than the question holds; what came
proves nothing) is asked again, after longer and longer pauses. A name belongs to the first node that claims
it for as long as that node is online; then to the next.
"""

import time

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedward.common.config import EnrolledHospital, Study
from fedward.common.errors import PayloadRefused, QuorumMissed
from fedward.common.files import parse_canonical
from fedward.common.messages import CONFIG
from fedward.server.pauses import Pauses
from fedward.server.post import Post

_QUESTION_SECONDS = 60.0
_PAUSE_SECONDS = 0.1


class Roster:
    """The nodes of a study's hospitals, kept up to date by `look`.

    Attributes:
        nodes: Flower node id -> hospital, of every node that ever spoke for one.
        online: the hospitals' nodes that are connected now, one a hospital: name -> node id.
        names: of all the study's hospitals.
    """

    def __init__(self, grid: Grid | Post, study: Study) -> None:
        """Nobody is known yet."""
        self.nodes: dict[int, EnrolledHospital] = {}
        self.online: dict[str, int] = {}
        self.names = {hospital.name for hospital in study.hospitals}
        self._grid = grid
        self._enrolled = {hospital.name: hospital for hospital in study.hospitals}
        self._claims: dict[int, EnrolledHospital] = {}
        self._asked: dict[str, int] = {}
        self._seen: dict[int, str] = {}
        self._failed: set[int] = set()
        self._pauses = Pauses()

    def look(self) -> set[str]:
        """Ask nodes that are new or were away, take what was answered, and name the hospitals that came.

        It does not wait: an answer that is not there yet is taken by a later look.
        """
        connected = {node.node_id: node.last_activated_at for node in self._grid.get_nodes()}
        new = [node_id for node_id, since in connected.items() if self._seen.get(node_id) != since]
        # A node that is away is forgotten, so that it is new when it comes back.
        self._seen = connected
        for node_id in set(self._claims) - (set(connected) - set(new)):
            del self._claims[node_id]
        self._leave(set(connected) - set(new))
        self._failed &= set(connected) - set(new)
        self._ask([*new, *filter(self._pauses.is_over, sorted(self._failed))])
        self._take_answers()
        return self._come()

    def _ask(self, nodes: list[int]) -> None:
        self._failed -= set(nodes)
        questions = [
            Message(RecordDict(), node_id, MessageType.QUERY, ttl=_QUESTION_SECONDS) for node_id in nodes
        ]
        if questions:
            ids = self._grid.push_messages(questions)
            self._asked |= {
                message_id: node_id for message_id, node_id in zip(ids, nodes, strict=False) if message_id
            }

    def _take_answers(self) -> None:
        for message_id, node_id in list(self._asked.items()):
            for reply in self._grid.pull_messages([message_id]):
                self._asked.pop(message_id, None)
                if reply.has_error():
                    self._failed.add(node_id)
                    self._pauses.failed(node_id)
                hospital = _named(reply, self._enrolled)
                if hospital is not None:
                    self._pauses.answered(node_id)
                    self._claims[node_id] = hospital

    def _leave(self, still: set[int]) -> None:
        self.online = {name: node_id for name, node_id in self.online.items() if node_id in still}

    def _come(self) -> set[str]:
        came = set()
        for node_id, hospital in self._claims.items():
            if hospital.name not in self.online:
                self.online[hospital.name] = node_id
                self.nodes[node_id] = hospital
                came.add(hospital.name)
        return came


def enrol(roster: Roster, study: Study, seconds: float) -> None:
    """Look until each hospital of the study is there or the time is up.

    A node that names no enrolled hospital, claims another count, or a name already taken, is left out.

    Raises:
        QuorumMissed: fewer hospitals than the quorum were found.
    """
    deadline = time.monotonic() + seconds
    roster.look()
    while len(roster.online) < len(study.hospitals) and time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)
        roster.look()
    if len(roster.online) < study.quorum:
        found = len(roster.online)
        raise QuorumMissed(
            f"{found} of the study's hospitals are connected; its quorum asks for {study.quorum}."
        )


def _named(reply: Message, enrolled: dict[str, EnrolledHospital]) -> EnrolledHospital | None:
    if reply.has_error():
        return None
    try:
        profile = parse_canonical(reply.content.config_records[CONFIG]["profile"])  # type: ignore[arg-type]
        hospital, count = enrolled.get(profile["name"]), profile["num_examples"]
    except (KeyError, TypeError, ValueError, PayloadRefused):
        return None
    # The study's own entry, never the claim: 10.0 equals 10, but is no weight of an integer sum.
    is_declared = hospital is not None and type(count) is int and count == hospital.num_examples
    return hospital if is_declared else None
