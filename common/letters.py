"""Which envelopes go between a coordinator and a hospital, and how one travels as a Flower message.

A question of Flower's type ``query``, ``train`` or ``query.measure`` is an envelope of kind ``enrol``,
``train`` or ``measure``; what answers it is of kind ``profile``, ``update`` or ``measurement``, or a
``refusal``: ``{"code": ..., "reason": ...}``. A question carries, beside its records, the key to which the
answer is to be sealed (`fedward.common.sealing_keys.announce`).
"""

from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, RecordDict

from fedward.common.errors import EnvelopeRefused, PayloadRefused
from fedward.common.files import canonical_json, parse_canonical
from fedward.common.message_parts import CONFIG
from fedward.common.records import pack_records, unpack_records

QUESTIONS = {"query": "enrol", "train": "train", "query.measure": "measure"}  # Flower's type -> kind
ANSWERS = {"enrol": "profile", "train": "update", "measure": "measurement"}
REFUSAL = "refusal"
PROFILE = "profile"
# What answers say of a hospital's records is sealed; who it is and that it refuses stands in the open.
SEALED = {"profile": False, "update": True, "measurement": True, REFUSAL: False}
ENVELOPE = "envelope"
_SEAL, _KEY = "seal", "key"
_HEADERS = ("request", "measure")  # of the questions that are about a round


def as_content(envelope: bytes) -> RecordDict:
    """The Flower content that carries an envelope."""
    return RecordDict({ENVELOPE: ArrayRecord({ENVELOPE: Array(np.frombuffer(envelope, np.uint8))})})


def is_enclosed(content: RecordDict) -> bool:
    """Whether a content claims to carry an envelope."""
    return ENVELOPE in content


def envelope_in(content: RecordDict) -> bytes:
    """The inverse of `as_content`.

    Raises:
        EnvelopeRefused: there is no envelope in it.
    """
    try:
        vector = content.array_records[ENVELOPE][ENVELOPE].numpy()
        if len(content) == 1 and vector.dtype == np.uint8 and vector.ndim == 1:
            return vector.tobytes()
    except Exception as error:
        # Anybody's bytes, read by a library that raises what it likes.
        raise EnvelopeRefused(_NONE) from error
    raise EnvelopeRefused(_NONE)


_NONE = "A message came without an envelope: its sender is in no federation, or of an earlier version."


def about(content: RecordDict) -> tuple[str, int]:
    """(study, round) that a question's header names; ("", 0) of one that has none."""
    try:
        config = content.config_records[CONFIG]
        header = parse_canonical(cast(bytes, config[next(key for key in _HEADERS if key in config)]))
        return str(header["study"]), int(header["round"])
    except (KeyError, StopIteration, ValueError, TypeError):
        return "", 0


def pack_question(content: RecordDict, sealing_key: bytes) -> bytes:
    """A question's payload: its records, and the announced key to seal the answer to."""
    seal = ConfigRecord({_KEY: sealing_key})
    return pack_records(RecordDict({**content, _SEAL: seal}))


def unpack_question(payload: bytes) -> tuple[RecordDict, bytes]:
    """The inverse of `pack_question`.

    Raises:
        PayloadRefused: malformed, or without a key.
    """
    content = unpack_records(payload)
    try:
        sealing_key = cast(bytes, content.config_records[_SEAL][_KEY])
    except KeyError as error:
        raise PayloadRefused("A question names no key to seal its answer to.") from error
    del content[_SEAL]
    return content, sealing_key


def pack_refusal(error: Error) -> bytes:
    """A refusal's payload."""
    return canonical_json({"code": error.code, "reason": error.reason or ""})


def unpack_refusal(payload: bytes) -> Error:
    """The inverse of `pack_refusal`.

    Raises:
        PayloadRefused: malformed.
    """
    try:
        body = parse_canonical(payload)
        code, reason = body["code"], body["reason"]
        if set(body) == {"code", "reason"} and type(code) is int and isinstance(reason, str):
            return Error(code, reason)
    except (ValueError, KeyError, TypeError) as error:
        raise PayloadRefused(_NO_REFUSAL) from error
    raise PayloadRefused(_NO_REFUSAL)


_NO_REFUSAL = "A refusal is malformed; its sender is of another version."
