"""Who replied to what was asked, and whose reply did not count."""

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from typing import TypeVar

from flwr.app import Message, Metadata

from fedward.common.config import EnrolledHospital
from fedward.common.errors import Refusal
from fedward.common.messages import refusal_text

Content = TypeVar("Content")
_AWAY = "NotConnected"
_LONGEST_NAME, _LONGEST_SENTENCE = 80, 400  # characters


@dataclass(frozen=True)
class LostReply:
    """A hospital whose reply did not count, and why, in public words.

    The words may be the sender's own, so they are cut to lengths that a record or a terminal bears.
    """

    hospital: str
    name: str
    message: str

    def __post_init__(self) -> None:
        """Cut the texts."""
        object.__setattr__(self, "name", self.name[:_LONGEST_NAME])
        object.__setattr__(self, "message", self.message[:_LONGEST_SENTENCE])


def sender_of(
    reply: Message, nodes: dict[int, EnrolledHospital], asked: Iterable[Metadata]
) -> EnrolledHospital | None:
    """Who replied; Flower's own errors come from its SuperLink, so they are known by what was asked."""
    node_id, question = reply.metadata.src_node_id, reply.metadata.reply_to_message_id
    if reply.has_error() and node_id not in nodes:
        # A message has its id once it is pushed.
        of_question = (one.dst_node_id for one in asked if one.message_id == question)
        node_id = next(of_question, node_id)
    return nodes.get(node_id)


def speakers(nodes: dict[int, EnrolledHospital], connected: set[int]) -> dict[str, int]:
    """One node a hospital, of those that are connected: the last one that spoke for it."""
    return {hospital.name: node_id for node_id, hospital in nodes.items() if node_id in connected}


def not_connected(hospitals: Iterable[EnrolledHospital], speaking: Container[str]) -> list[LostReply]:
    """The study's hospitals that were not there when something was asked."""
    return [
        LostReply(hospital.name, _AWAY, "The hospital was not connected when the round opened.")
        for hospital in hospitals
        if hospital.name not in speaking
    ]


def returned(lost: Iterable[LostReply], hospital: str) -> list[LostReply]:
    """Without the entry of a hospital that was away when the round opened, and came back in time."""
    return [one for one in lost if (one.hospital, one.name) != (hospital, _AWAY)]


def silent(hospitals: Iterable[EnrolledHospital], heard: Container[str]) -> list[LostReply]:
    """The hospitals that were asked and of which nothing came."""
    names = sorted({hospital.name for hospital in hospitals if hospital.name not in heard})
    return [LostReply(name, "NoReply", "The hospital did not reply in time.") for name in names]


def reasons(lost: Iterable[LostReply]) -> str:
    """Why replies did not count, the first eight, for the sentence that names a missed quorum."""
    return "; ".join(f"{one.hospital}: {one.name}: {one.message}" for one in [*lost][:8])


def readable(read: Callable[[], Content], otherwise: Refusal) -> Content:
    """What `read` makes of a reply.

    Raises:
        Refusal: as `read`; `otherwise` where it fails in any other way.
    """
    try:
        return read()
    except Refusal:
        raise
    except Exception as error:
        # Anybody's bytes, read by libraries that raise what they like (a zip where an array should be, a
        # header that claims a petabyte): one hospital's reply must not end the study.
        raise type(otherwise)(str(otherwise)) from error


def stranger(reply: Message) -> LostReply:
    """A reply of no hospital of the study."""
    node = f"node {reply.metadata.src_node_id}"
    if reply.has_error():
        return LostReply(node, *refusal_text(reply))
    return LostReply(node, "UnknownNode", "A node that is no hospital of this study replied.")
