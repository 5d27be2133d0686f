"""What the messages of a study have in common: record keys, and how their headers and vectors are read.

All that is read here comes from another machine: whatever does not fit is refused by name.
"""

import re
from typing import cast

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from fedward.common.codec import DOWNLINK_CODECS, Payload, codec_id
from fedward.common.errors import PayloadRefused, SettingRefused
from fedward.common.files import parse_canonical

MODEL, CONFIG = "model", "config"
LATENTS, ANCHOR, FISHER, TEACHER = "latents", "anchor", "fisher", "teacher"
LEDGER_ANCHOR = "ledger_anchor"  # in a request, beside the header that all hospitals get
_ANCHOR_TOKEN = re.compile(r"([0-9a-f]{48}:[0-9a-f]{64}:[0-9a-f]{64})?")


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


def read_header(content: RecordDict, key: str, names: set[str]) -> dict[str, object]:
    """A message's header, which has exactly the fields `names`.

    Raises:
        PayloadRefused: missing, not canonical JSON, or with other fields.
    """
    try:
        data = cast(bytes, content.config_records[CONFIG][key])
    except (KeyError, TypeError, AttributeError):
        data = b""
    return parsed_header(data, key, names)


def parsed_header(data: bytes, key: str, names: set[str]) -> dict[str, object]:
    """The same from the header's bytes."""
    try:
        value = parse_canonical(data)
    except (TypeError, ValueError, AttributeError) as error:
        raise PayloadRefused(
            f"A message carries no readable {key}; its sender is of another version."
        ) from error
    if not isinstance(value, dict) or set(value) != names:
        raise PayloadRefused(f"A message's {key} has other fields than this version's.")
    return value


def read_codecs(value: object) -> tuple[str, str]:
    """(downlink, uplink) of a header's field.

    Raises:
        PayloadRefused: no pair, or the first is one for updates only.
        UnknownName: a codec that does not exist.
    """
    if not isinstance(value, list) or len(value) != 2:
        raise PayloadRefused("A message's field codec is not the names of two codecs.")
    names = str(value[0]), str(value[1])
    for name in names:
        codec_id(name)  # refused here, before anything is charged
    if names[0] not in DOWNLINK_CODECS:
        raise PayloadRefused(f"A model does not travel in codec {names[0]!r}: that is for noised updates.")
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
