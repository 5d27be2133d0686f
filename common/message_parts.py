"""What the messages of a study have in common: record keys, and how their headers and vectors are read.

All that is read here comes from another machine: whatever does not fit is refused by name.
"""

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from fedward.common.codec import DIFFERENCES, DOWNLINK_CODECS, UPLINK_CODECS, Payload, codec_id
from fedward.common.digests import is_digest
from fedward.common.errors import PayloadRefused, SettingRefused
from fedward.common.files import parse_canonical

MODEL, CONFIG = "model", "config"
LATENTS, ANCHOR, FISHER, TEACHER = "latents", "anchor", "fisher", "teacher"
LEDGER_ANCHOR = "ledger_anchor"  # in a request, beside the header that all hospitals get
REPLICA = "replica"  # in headers of studies whose model travels as differences, and in no others
_ANCHOR_TOKEN = re.compile(r"([0-9a-f]{48}:[0-9a-f]{64}:[0-9a-f]{64})?")


@dataclass(frozen=True)
class Replica:
    """Which model a request leads to, and from which (`fedward.common.differences.replica_digest`).

    Attributes:
        digest: of the model that every hospital trains from in this round.
        base: of the model that the request's difference is to; empty where the model travels in full.
        fixed: of the study's fixed vectors, by name: SHA-256 of each as it is packed. They travel with a full
            model, and whoever holds the base holds them.
    """

    digest: str
    base: str = ""
    fixed: dict[str, str] = field(default_factory=dict)


def packed_digest(vector: Payload) -> str:
    """SHA-256 of a packed vector, in hex."""
    return hashlib.sha256(vector.tobytes()).hexdigest()


def read_replica(header: dict[str, Any], codec: str) -> Replica | None:
    """The models that a request names, where its model travels in one of `DIFFERENCES`; else None.

    Raises:
        PayloadRefused: they are named by no digests, or where there are none, or not where there are some.
    """
    if codec not in DIFFERENCES:
        if REPLICA in header:
            raise PayloadRefused(f"A request in codec {codec} names a base, but its model comes in full.")
        return None
    value = header.get(REPLICA)
    if not isinstance(value, dict) or set(value) != {"base", "digest", "fixed"}:
        raise PayloadRefused("A request's vectors are named by digests: base, digest and fixed.")
    base, fixed = value["base"], value["fixed"]
    if not isinstance(fixed, dict) or not set(fixed) <= {ANCHOR, FISHER, TEACHER}:
        raise PayloadRefused("A request's fixed vectors are its anchor, Fisher and teacher, and no others.")
    return Replica(
        checked_digest(value["digest"]),
        base if base == "" else checked_digest(base),
        {name: checked_digest(digest) for name, digest in fixed.items()},
    )


def checked_digest(value: object) -> str:
    """`value`, if it is a SHA-256 in 64 hexadecimal digits.

    Raises:
        PayloadRefused: it is not.
    """
    if not is_digest(value):
        raise PayloadRefused("A message names a model or a vector by a SHA-256 in 64 hexadecimal digits.")
    return str(value)


def addressed(request: RecordDict, anchor: str) -> RecordDict:
    """The same request for one hospital: its arrays are shared, not copied; only the anchor is its own."""
    config = {name: value for name, value in request.config_records[CONFIG].items() if name != LEDGER_ANCHOR}
    if anchor:
        config[LEDGER_ANCHOR] = anchor.encode()
    return RecordDict({MODEL: request.array_records[MODEL], CONFIG: ConfigRecord(config)})


def request_anchor(content: RecordDict) -> str:
    """The anchor in a request, or empty.

    Raises:
        PayloadRefused: no token that a hospital makes.
    """
    value = content.config_records[CONFIG].get(LEDGER_ANCHOR, b"")
    return checked_anchor(value.decode("ascii", "replace") if isinstance(value, bytes) else None)


def checked_anchor(value: object) -> str:
    """`value`, if it is empty or a hospital's token.

    Raises:
        PayloadRefused: it is neither.
    """
    if not isinstance(value, str) or not _ANCHOR_TOKEN.fullmatch(value):
        raise PayloadRefused("A message's anchor is not the token that a hospital makes.")
    return value


def read_header(content: RecordDict, key: str, names: set[str], *optional: str) -> dict[str, object]:
    """A message's header, which has exactly the fields `names`, and of `optional` any.

    Raises:
        PayloadRefused: missing, not canonical JSON, or with other fields.
    """
    try:
        data = cast(bytes, content.config_records[CONFIG][key])
    except (KeyError, TypeError, AttributeError):
        data = b""
    return parsed_header(data, key, names, *optional)


def parsed_header(data: bytes, key: str, names: set[str], *optional: str) -> dict[str, object]:
    """The same from the header's bytes."""
    try:
        value = parse_canonical(data)
    except (TypeError, ValueError, AttributeError) as error:
        raise PayloadRefused(
            f"A message carries no readable {key}; its sender is of another version."
        ) from error
    if not isinstance(value, dict) or not names <= set(value) <= names | set(optional):
        raise PayloadRefused(f"A message's {key} has other fields than this version's.")
    return value


def read_codecs(value: object) -> tuple[str, str]:
    """(downlink, uplink) of a header's field.

    Raises:
        PayloadRefused: no pair, or one that does not travel in its direction.
        UnknownName: a codec that does not exist.
    """
    if not isinstance(value, list) or len(value) != 2:
        raise PayloadRefused("A message's field codec is not the names of two codecs.")
    names = str(value[0]), str(value[1])
    for name in names:
        codec_id(name)  # refused here, before anything is charged
    if names[0] not in DOWNLINK_CODECS:
        raise PayloadRefused(f"A model does not travel in codec {names[0]!r}: that is for noised updates.")
    if names[1] not in UPLINK_CODECS:
        raise PayloadRefused(f"An update does not travel in codec {names[1]!r}: that is for models.")
    return names


def typed(header: dict, name: str, kind: type):  # type: ignore[no-untyped-def, type-arg]
    """A header's field, if it is of `kind`.

    Raises:
        PayloadRefused: of another type.
    """
    value = header[name]
    if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
        raise PayloadRefused(f"A message's field {name} is not of type {kind.__name__}.")
    return value


def bounded(header: dict, name: str, kind: type, low: float, high: float):  # type: ignore[no-untyped-def, type-arg]
    """The same, and from `low` to `high`.

    Raises:
        PayloadRefused: of another type.
        SettingRefused: out of range.
    """
    value = typed(header, name, kind)
    if not low <= value <= high:
        raise SettingRefused(f"A message's field {name} must be from {low:g} to {high:g}.")
    return value


def read_vectors(content: RecordDict, key: str) -> dict[str, Payload]:
    """The packed arrays of a message's record `key`.

    Raises:
        PayloadRefused: unreadable, or an array that is not packed.
    """
    try:
        record = content.array_records[key]
        vectors = {name: array.numpy() for name, array in record.items()}
    except Exception as error:  # on hostile bytes numpy lets out errors of its tokenizer, zip and allocator
        raise PayloadRefused(f"A message carries no readable {key}.") from error
    for name, vector in vectors.items():
        if not isinstance(vector, np.ndarray) or vector.dtype != np.uint8 or vector.ndim != 1:
            raise PayloadRefused(f"A message's {name} is not one packed uint8 array.")
    return vectors
