"""FedAvg (McMahan et al. 2017, arXiv 1602.05629) over declared counts, exact in any order of arrival.

A subclass of Flower's FedAvg: what differs is that weights are those frozen at enrolment and not claimed by
a reply, that updates are screened and dequantised before they are summed, that the sum is one of integers
and takes one reply at a time, and that a quorum closes a round. An optional server momentum is FedAvgM
(Hsu et al. 2019, arXiv 1909.06335); the released model is a mean over the last rounds (both post-processing).
"""

from collections.abc import Callable, Iterable

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedward.common.codec import Payload, Vector, decode, fixed_codec
from fedward.common.config import EnrolledHospital, Study
from fedward.common.errors import QuorumMissed, Refusal, ReplicaUnknown, UpdateRefused
from fedward.common.messages import (
    LATENTS,
    MODEL,
    TrainReply,
    TrainRequest,
    addressed,
    refusal_text,
)
from fedward.common.models import frozen_count
from fedward.common.rounding import uplink_step
from fedward.server.aggregation import IntegerMean, norm_bound, screen
from fedward.server.checkpoint import Progress
from fedward.server.downlink import outgoing
from fedward.server.senders import (
    LostReply,
    not_connected,
    readable,
    reasons,
    returned,
    sender_of,
    silent,
    speakers,
    stranger,
)

_UNREADABLE = UpdateRefused("The reply cannot be read; its sender is broken or hostile.")


class FedwardAvg(FedAvg):
    """The study's strategy; its state is a `Progress`.

    Args:
        study: the frozen study.
        progress: state to continue from; replaced round by round.
        nodes: Flower node id -> hospital, from enrolment.
        extras: further packed vectors of every request (anchor, Fisher, teacher).
        on_reply: called with a hospital's name as its reply is folded in.
    """

    def __init__(
        self,
        study: Study,
        progress: Progress,
        nodes: dict[int, EnrolledHospital],
        extras: dict[str, Payload] | None = None,
        on_reply: Callable[[str], None] = lambda name: None,
    ) -> None:
        """Prepare for round ``progress.server_round + 1``."""
        super().__init__(
            min_train_nodes=study.quorum,
            min_available_nodes=study.quorum,
            weighted_by_key="num_examples",
            arrayrecord_key=MODEL,
        )
        self.study = study
        self.progress = progress
        self.lost: list[LostReply] = []
        self.replies = self.usable = 0
        self._nodes = nodes
        self._extras = extras or {}
        self._on_reply = on_reply
        self._count = len(progress.latents) - frozen_count(study.local.spec, study.local.trained)
        self._outgoing = outgoing(progress, study.downlink_codec)
        self._records: dict[str, RecordDict] = {}  # by the model that a hospital must hold for it
        self._without_base: set[str] = set()
        self._asked: list[Metadata] = []  # not the messages: a thousand would lie here for a round
        self._anchors: dict[str, str] = {}
        self._held: dict[str, str] = {}

    def arrays(self) -> ArrayRecord:
        """The global model and the study's fixed vectors, packed for the downlink."""
        packed = {LATENTS: self._outgoing.full, **self._extras}
        return ArrayRecord({name: Array(vector) for name, vector in packed.items()})

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One TRAIN message to every enrolled hospital that is connected, each with its own last anchor, and
        with the difference to the model that it holds, or the model in full.

        They are made as they are taken.
        """
        study = self.study
        request = TrainRequest(
            study.name,
            server_round,
            study.local,
            study.learning_rate_at(server_round),
            (study.downlink_codec, study.uplink_codec),
            {name: array.numpy() for name, array in arrays.items()},
        )
        questions = self._outgoing.questions(request)
        self._records = {base: question.to_records() for base, question in questions.items()}
        connected = set(grid.get_node_ids())
        speaking = speakers(self._nodes, connected)
        self.lost = not_connected(study.hospitals, speaking)
        self._asked, self.usable, self._without_base = [], 0, set()
        return (self.question(node_id) for node_id in speaking.values())

    def question(self, node_id: int) -> Message:
        """This round's TRAIN message to one node; it ends with the round, wherever it is then."""
        name = self._nodes[node_id].name
        record = addressed(self._records[self._base(name)], self.progress.anchors.get(name, ""))
        (message,) = self._construct_messages(record, [node_id], MessageType.TRAIN)
        message.metadata.ttl = self.study.round_timeout
        self._asked.append(message.metadata)
        return message

    def _base(self, name: str) -> str:
        """The model that the question to a hospital builds on; empty where it brings the model in full."""
        held = self.progress.held.get(name, "")
        return held if held in self._records and name not in self._without_base else ""

    def wants_full(self, node_id: int, reply: Message) -> bool:
        """Whether a hospital has lost the model that it was sent the difference to: then the next question to
        it brings the model in full. Of one that got it in full it is no such answer.
        """
        name = self._nodes[node_id].name
        is_asked_for = reply.has_error() and refusal_text(reply)[0] == ReplicaUnknown.__name__
        if not (is_asked_for and self._base(name)):
            return False
        self._without_base.add(name)
        return True

    def needs_more(self) -> bool:
        """Whether the round has fewer usable replies so far than the quorum."""
        return self.usable < self.study.quorum

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold replies in one at a time and take the server's step.

        Raises:
            QuorumMissed: fewer usable replies than the quorum; the state is unchanged.
        """
        mean = IntegerMean(self._count)
        heard = {lost.hospital for lost in self.lost}
        answered: set[str] = set()
        self._anchors, self._held = {}, {}
        for reply in replies:
            hospital = sender_of(reply, self._nodes, self._asked)
            if hospital is None:
                self.lost.append(stranger(reply))
            else:
                heard.add(hospital.name)
                self._fold(reply, hospital, server_round, mean, answered)
            _empty(reply)
        self.lost += silent(self._nodes.values(), heard)
        if mean.replies < self.study.quorum:
            raise QuorumMissed(self._missed(server_round, mean.replies))
        self.replies = mean.replies
        self._step(server_round, mean.mean())
        return self.arrays(), MetricRecord({"replies": mean.replies, "num_examples": mean.weight})

    def _fold(
        self,
        reply: Message,
        hospital: EnrolledHospital,
        server_round: int,
        mean: IntegerMean,
        answered: set[str],
    ) -> None:
        if reply.has_error():
            self.lost.append(LostReply(hospital.name, *refusal_text(reply)))
            return
        try:
            content = readable(lambda: TrainReply.from_records(reply.content), _UNREADABLE)
            if hospital.name in answered:
                raise UpdateRefused("The hospital replied twice; the first reply counts.")
            mean.add(self._update(content, hospital, server_round), hospital.num_examples)
        except Refusal as refusal:
            self.lost.append(LostReply(hospital.name, refusal.name, str(refusal)))
            return
        answered.add(hospital.name)
        self.usable += 1
        self.lost = returned(self.lost, hospital.name)
        if content.anchor:
            self._anchors[hospital.name] = content.anchor
        if content.replica:
            self._held[hospital.name] = content.replica
        self._on_reply(hospital.name)  # outside: what it refuses is no fault of the hospital's

    def _update(self, content: TrainReply, hospital: EnrolledHospital, server_round: int) -> Vector:
        expected = (
            self.study.name,
            server_round,
            hospital.name,
            hospital.num_examples,
            self.study.uplink_codec,
            self._outgoing.digest,
        )
        given = (
            content.study,
            content.server_round,
            content.hospital,
            content.num_examples,
            content.codec,
            content.replica,
        )
        for what, want, got in zip(
            ("study", "round", "sender", "declared count", "codec", "model"), expected, given, strict=True
        ):
            if want != got:
                raise UpdateRefused(f"The reply is of {what} {got!r}, where {want!r} was asked for.")
        rate = self.study.learning_rate_at(server_round)
        step = uplink_step(content.codec, self.study.local, rate, hospital.num_examples)
        update = decode(content.update, self._count, content.codec, step)
        screen(update, self._bound(server_round, hospital.num_examples))
        return update

    def _bound(self, server_round: int, num_examples: int) -> float:
        local, count = self.study.local, self._count
        rate, codec = self.study.learning_rate_at(server_round), self.study.uplink_codec
        bound = norm_bound(local, rate, num_examples, count, codec)
        if local.ewc_lambda == 0.0:
            return bound
        # EWC's pull moves each latent toward the anchor, never past it.
        anchor = decode(self._extras["anchor"], count, fixed_codec(self.study.downlink_codec))
        # Hospitals answer relative to what they receive, which the downlink's codec may have rounded.
        return bound + float(np.linalg.norm(self._outgoing.model - anchor))

    def _missed(self, server_round: int, replies: int) -> str:
        return (
            f"Round {server_round} has {replies} usable replies; its quorum asks for {self.study.quorum} "
            f"({reasons(self.lost)}). Nothing is lost: mend the hospitals and go on with --resume."
        )

    def _step(self, server_round: int, mean: Vector) -> None:
        study, now = self.study, self.progress
        mean = np.pad(mean, (len(now.latents) - len(mean), 0))  # what is not trained stays
        momentum = (np.float32(study.server_momentum) * now.momentum + mean).astype(np.float32)
        latents = (self._start() + np.float32(study.server_learning_rate) * momentum).astype(np.float32)
        average = now.average
        if server_round > study.rounds - study.averaged_rounds:
            average = average + latents
        self.progress = Progress(
            server_round,
            latents,
            momentum,
            average,
            now.history,
            {**now.anchors, **self._anchors},
            self._outgoing.model if self._outgoing.digest else None,
            {**now.held, **self._held},
        )
        self._outgoing = outgoing(self.progress, study.downlink_codec)

    def _start(self) -> Vector:
        """What the server's step sets out from. Where models travel as differences, a study's first one is
        taken as hospitals got it: else what 8 bits lost of weights that nobody trains would be sent after it.
        """
        is_first = self._outgoing.digest and self.progress.replica is None
        return self._outgoing.model if is_first else self.progress.latents


def _empty(reply: Message) -> None:
    """Let go of a reply's arrays: Flower's records lie in reference cycles, so updates would pile up until
    the garbage collector comes by.
    """
    if reply.has_content():
        for record in reply.content.array_records.values():
            record.clear()


def released_latents(progress: Progress, study: Study) -> Vector:
    """The mean of the models after the last `averaged_rounds` rounds, float32 (n,)."""
    counted = min(study.averaged_rounds, study.rounds)
    return (progress.average / counted).astype(np.float32)
