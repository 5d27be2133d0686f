"""A message's records as bytes and back, in the one framing (`fedward.common.framing`).

Parts are named ``array/RECORD/NAME`` and ``config/RECORD/NAME``. What they mean is `fedward.common.messages`'
to check: `TrainRequest.from_records(unpack_records(data))`.
"""

import re

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedward.common.errors import PayloadRefused
from fedward.common.framing import pack, unpack

_NAME = re.compile(r"(array|config)/([^/]+)/([^/]+)")


def pack_records(content: RecordDict) -> bytes:
    """`content` as bytes; the same content gives the same bytes.

    Raises:
        PayloadRefused: it holds more than packed uint8 vectors and configuration in bytes, or is too large.
    """
    parts: dict[str, bytes] = {}
    for record, arrays in content.array_records.items():
        for name, array in arrays.items():
            vector = array.numpy()
            _require(vector.dtype == np.uint8 and vector.ndim == 1, f"{name} is not one packed uint8 array")
            parts[f"array/{record}/{name}"] = vector.tobytes()
    for record, values in content.config_records.items():
        for name, value in values.items():
            _require(isinstance(value, bytes), f"{name} is not in bytes")
            parts[f"config/{record}/{name}"] = value  # type: ignore[assignment]
    _require(not content.metric_records, "metrics do not travel")
    _require(all(map(_NAME.fullmatch, parts)), "a record's name has a slash in it, or none")
    return pack(parts)


def unpack_records(data: bytes) -> RecordDict:
    """The inverse of `pack_records`.

    Raises:
        PayloadRefused: malformed.
    """
    arrays: dict[str, dict[str, Array]] = {}
    configs: dict[str, dict[str, bytes]] = {}
    for part, view in unpack(data).items():
        found = _NAME.fullmatch(part)
        if found is None:
            raise PayloadRefused(
                "A message's records are malformed: a part is neither array nor configuration."
            )
        kind, record, name = found.groups()
        if kind == "array":
            arrays.setdefault(record, {})[name] = Array(np.frombuffer(view, np.uint8))
        else:
            configs.setdefault(record, {})[name] = bytes(view)
    _require(not set(arrays) & set(configs), "two records have one name")
    records = {name: ArrayRecord(values) for name, values in arrays.items()}
    return RecordDict({**records, **{name: ConfigRecord(dict(values)) for name, values in configs.items()}})


def _require(holds: bool, why: str) -> None:
    if not holds:
        raise PayloadRefused(f"A message's records are malformed: {why}.")
