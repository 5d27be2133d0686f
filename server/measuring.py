"""The measurement behind the last round: asked of each hospital once, screened, summed, and kept.

Sums are of whole numbers, so the order of the answers changes no bit. Whatever is made of them is
post-processing and free: `fedward.server.private_figures`, and the Fisher for a later study's EWC.
"""

import io
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from flwr.app import Message, Metadata
from flwr.serverapp import Grid

from fedward.common.codec import Vector, encode
from fedward.common.config import EnrolledHospital, LocalSettings, Study
from fedward.common.errors import CheckpointRefused, PayloadRefused, QuorumMissed, Refusal, UpdateRefused
from fedward.common.files import canonical_json, read_bounded, write_atomically
from fedward.common.measure_messages import CODEC, MEASURE, MeasureReply, MeasureRequest
from fedward.common.measurement import (
    FISHER,
    FISHER_GRID,
    METRIC,
    channel_of_weights,
    channel_ranges,
    measured_sizes,
    measurement_round,
    noise_deviations,
)
from fedward.common.message_parts import addressed
from fedward.common.messages import refusal_text
from fedward.server.checkpoint import Progress, save_checkpoint, study_digest
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
from fedward.server.study_folder import StudyFolder

_TAIL = 13.5  # standard deviations; the keyed generator's noise ends at 13
_LIMIT = 1 << 26
_UNREADABLE = PayloadRefused("The answer cannot be read; its sender is broken or hostile.")
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Measured:
    """What the hospitals answered.

    Attributes:
        hospitals: who answered, by name, sorted.
        num_examples: their declared counts, added up.
        sums: kind -> int64 (n,), over the hospitals.
        refusals: answers that did not count, as in a round's row.
        uplink_bytes, downlink_bytes: of all messages, as they travelled.
    """

    hospitals: list[str]
    num_examples: int
    sums: dict[str, Ints]
    refusals: list[dict[str, str]]
    uplink_bytes: int = 0
    downlink_bytes: int = 0


class Measurement:
    """Asks every enrolled hospital that is connected, and adds up what they answer.

    Args:
        study: the frozen study.
        nodes: Flower node id -> hospital, from enrolment.
        latents: the released model, float32 (n,).
        anchors: of each hospital's last reply, by name; those of the answers are entered.
    """

    def __init__(
        self, study: Study, nodes: dict[int, EnrolledHospital], latents: Vector, anchors: dict[str, str]
    ) -> None:
        """Prepare to ask."""
        self.anchors = dict(anchors)
        self._study, self._nodes = study, nodes
        self._record = MeasureRequest(study.name, study.local, encode(latents, CODEC)).to_records()
        self._asked: list[Metadata] = []
        self._lost: list[LostReply] = []
        self._answered: dict[str, int] = {}
        sizes = measured_sizes(study.local)
        self._sums = {kind: np.zeros(size, np.int64) for kind, size in sizes.items()}

    def configure(self, grid: Grid) -> Iterable[Message]:
        """One message to every enrolled hospital that is connected, each with its own last anchor.

        They are made as they are taken.
        """
        speaking = speakers(self._nodes, set(grid.get_node_ids()))
        self._lost = not_connected(self._study.hospitals, speaking)
        self._asked = []
        return (self.question(node_id) for node_id in speaking.values())

    def question(self, node_id: int) -> Message:
        """The message to one node; it ends with the measurement, wherever it is then."""
        record = addressed(self._record, self.anchors.get(self._nodes[node_id].name, ""))
        message = Message(record, node_id, MEASURE, ttl=self._study.round_timeout)
        self._asked.append(message.metadata)
        return message

    def needs_more(self) -> bool:
        """Whether there are fewer usable answers so far than the quorum."""
        return len(self._answered) < self._study.quorum

    def aggregate(self, replies: Iterable[Message]) -> Measured:
        """Add up the answers.

        Raises:
            QuorumMissed: fewer usable ones than the quorum.
        """
        for reply in replies:
            hospital = sender_of(reply, self._nodes, self._asked)
            if hospital is None:
                self._lost.append(stranger(reply))
            else:
                self._fold(reply, hospital)
        heard = {*self._answered, *(lost.hospital for lost in self._lost)}
        self._lost += silent(self._nodes.values(), heard)
        if self.needs_more():
            raise QuorumMissed(self._missed())
        return Measured(
            sorted(self._answered),
            sum(self._answered.values()),
            self._sums,
            [asdict(lost) for lost in self._lost],
        )

    def _fold(self, reply: Message, hospital: EnrolledHospital) -> None:
        if reply.has_error():
            self._lost.append(LostReply(hospital.name, *refusal_text(reply)))
            return
        try:
            content = self._checked(reply, hospital)
        except Refusal as refusal:
            self._lost.append(LostReply(hospital.name, refusal.name, str(refusal)))
            return
        self._answered[hospital.name] = hospital.num_examples
        self._lost = returned(self._lost, hospital.name)
        self.anchors |= {hospital.name: content.anchor} if content.anchor else {}
        for kind, values in content.measured.items():
            self._sums[kind] += values

    def _checked(self, reply: Message, hospital: EnrolledHospital) -> MeasureReply:
        study = self._study
        content = readable(lambda: MeasureReply.from_records(reply.content, study.local), _UNREADABLE)
        if hospital.name in self._answered:
            raise UpdateRefused("The hospital answered twice; the first answer counts.")
        expected = (study.name, measurement_round(study.local), hospital.name, hospital.num_examples)
        if (content.study, content.server_round, content.hospital, content.num_examples) != expected:
            raise UpdateRefused("The answer is of another study, round, hospital or declared count.")
        screen_measured(study.local, content.measured, hospital.num_examples)
        return content

    def _missed(self) -> str:
        return (
            f"The measurement has {len(self._answered)} usable answers; its quorum asks for "
            f"{self._study.quorum} ({reasons(self._lost)}). Nothing is lost: mend the hospitals and go on "
            "with --resume."
        )


def screen_measured(settings: LocalSettings, measured: dict[str, Ints], num_examples: int) -> None:
    """Refuse what no honest hospital sends.

    A record adds at most 1 to a count, and at most C^2 to a channel; the noise has an end.

    Raises:
        UpdateRefused: a number is larger than all declared records and the noise can make it.
    """
    a_record = {METRIC: 1.0, FISHER: 1.0 / FISHER_GRID}
    for kind, deviation in noise_deviations(settings).items():
        bound = num_examples * a_record[kind] + _TAIL * deviation + 1
        if not bool((np.abs(measured[kind].astype(np.float64)) <= bound).all()):
            raise UpdateRefused(
                f"The answer's {kind} holds numbers above {bound:.3g}, the most there can be."
            )


def fisher_of_weights(settings: LocalSettings, sums: Ints, hospitals: int) -> Vector:
    """The Fisher by channel, summed over `hospitals`, as a diagonal: float32 (n,), scaled to a mean of 1.

    Each of a channel's weights gets the channel's mean. The noise is known, so each layer's channels are
    first drawn toward the layer's mean as far as the noise explains their spread (Efron & Morris 1973);
    without this the channels of few weights would be noise, and the largest. All 0 where noise won.
    """
    noise = noise_deviations(settings)[FISHER] * math.sqrt(hospitals)
    layers = dict.fromkeys(channel_ranges(settings.spec))
    drawn = np.concatenate([_drawn_together(sums[layer.start : layer.stop], noise) for layer in layers])
    channel = channel_of_weights(settings.spec)
    weights = (drawn / np.bincount(channel))[channel]
    mean = weights.mean()
    return (weights / mean if mean > 0 else weights).astype(np.float32)


def _drawn_together(sums: Ints, noise: float) -> npt.NDArray[np.float64]:
    """The posterior means of values under a Gaussian prior that is fitted to them; none is negative."""
    centre = max(0.0, float(sums.mean()))
    spread = max(0.0, float(((sums - centre) ** 2).mean()) - noise**2)
    kept = spread / (spread + noise**2)
    return np.asarray((centre + kept * (sums - centre)).clip(min=0.0))


def keep(folder: StudyFolder, study: Study, progress: Progress, done: Measurement, found: Measured) -> None:
    """Write the hospitals' anchors, the Fisher, and last ``measured.json``, by which it is all there.

    A coordinator that dies before asks again with the same content, byte for byte, and the hospitals send
    what they have stored.

    Raises:
        OutputRefused: the folder cannot be written.
    """
    save_checkpoint(folder.checkpoint, replace(progress, anchors=done.anchors), study)
    if FISHER in found.sums:
        write_atomically(
            folder.fisher, _npy(fisher_of_weights(study.local, found.sums[FISHER], len(found.hospitals)))
        )
    sums = {kind: values.tolist() for kind, values in found.sums.items()}
    body = {**found.__dict__, "sums": sums, "study": study_digest(study)}
    write_atomically(folder.measured, canonical_json(body))


def read_measured(folder: StudyFolder, study: Study) -> Measured:
    """What `keep` wrote.

    Raises:
        CheckpointRefused: missing, damaged, or of another study.
    """
    try:
        body = json.loads(read_bounded(folder.measured, _LIMIT, refusal=CheckpointRefused))
        digest, sums = body.pop("study"), body.pop("sums")
        found = Measured(**body, sums={kind: np.array(values, np.int64) for kind, values in sums.items()})
        if digest == study_digest(study) and measured_sizes(study.local) == {
            kind: len(values) for kind, values in found.sums.items()
        }:
            return found
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointRefused(_DAMAGED.format(folder.measured)) from error
    raise CheckpointRefused(_DAMAGED.format(folder.measured))


def read_fisher(path: Path, count: int) -> Vector:
    """A Fisher diagonal that `keep` wrote, float32 (count,).

    Raises:
        CheckpointRefused: unreadable, of another student, or with values that no Fisher has.
    """
    like = _npy(np.zeros(count, np.float32))  # nothing is parsed: the header is known to the byte
    data = read_bounded(path, len(like), refusal=CheckpointRefused)
    start = len(like) - 4 * count
    if len(data) != len(like) or data[:start] != like[:start]:
        raise CheckpointRefused(
            f"{path} is no Fisher of this student, which has {count:,} weights: name the fisher.npy of a "
            "study of the same student."
        )
    values = np.frombuffer(data[start:], "<f4").astype(np.float32)
    if not (np.isfinite(values).all() and (values >= 0).all() and (values > 0).any()):
        raise CheckpointRefused(
            f"{path} holds no usable Fisher: it has negative, infinite or only zero values."
        )
    return values


def _npy(vector: Vector) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, vector)
    return buffer.getvalue()


_DAMAGED = "{} is damaged or of another study; delete it and go on with --resume."
