"""One round's model on its way down: packed in full, and where the study asks for it, as a difference.

There is one replica, not one a hospital: what every hospital unpacked in the last closed round. Whoever said
that it holds that one gets the difference to it. Whoever did not gets the next one in full, to the very same
bits, and with it the study's fixed vectors, which nobody needs twice. Both follow from the checkpoint, so a
study that was killed sends the same again.
"""

from dataclasses import dataclass, replace

from fedward.common.codec import PLAIN_CODECS, Payload, Vector, decode, encode
from fedward.common.differences import decode_difference, encode_difference, replica_digest
from fedward.common.messages import LATENTS, Replica, TrainRequest, packed_digest
from fedward.server.checkpoint import Progress

FIRST, LATER = "int8", "fp32"  # a first model may be rounded; a later one is the replica to the bit


@dataclass(frozen=True)
class Outgoing:
    """A model as it travels in one round.

    Attributes:
        model: what every hospital unpacks, float32 (n,).
        full: packed to stand alone.
        difference: packed as the difference to the model named `base`, or None.
        digest: of `model`, where models travel as differences; else empty.
        base: of the model that `difference` is to, or empty.
    """

    model: Vector
    full: Payload
    difference: Payload | None = None
    digest: str = ""
    base: str = ""

    def questions(self, request: TrainRequest) -> dict[str, TrainRequest]:
        """What a hospital may be asked in place of `request`, which brings all vectors in full: by the digest
        of the model that it must hold, or "" for none.
        """
        if not self.digest:
            return {"": request}
        fixed = {name: packed_digest(one) for name, one in request.vectors.items() if name != LATENTS}
        questions = {"": replace(request, replica=Replica(self.digest, "", fixed))}
        if self.difference is not None:
            named = Replica(self.digest, self.base, fixed)
            questions[self.base] = replace(request, vectors={LATENTS: self.difference}, replica=named)
        return questions


def outgoing(progress: Progress, codec: str) -> Outgoing:
    """The model of the round after `progress`, in one of `DOWNLINK_CODECS`.

    Raises:
        PayloadRefused: the model is not finite.
    """
    latents, replica = progress.latents, progress.replica
    if codec in PLAIN_CODECS:
        return Outgoing(*_alone(latents, codec))
    if replica is None:
        model, full = _alone(latents, FIRST)
        return Outgoing(model, full, digest=replica_digest(model))
    difference = encode_difference(latents, replica, codec)
    model = decode_difference(difference, replica, codec)
    digest, base = replica_digest(model), replica_digest(replica)
    return Outgoing(model, encode(model, LATER), difference, digest, base)


def _alone(latents: Vector, codec: str) -> tuple[Vector, Payload]:
    full = encode(latents, codec)
    return decode(full, len(latents), codec), full
