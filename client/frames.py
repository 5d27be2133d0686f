"""What a task runner and the hospital's daemon say to each other: a JSON header, then raw buffers.

One message is a length (8 bytes, big endian), so many bytes of JSON, and the buffers one after another; it
travels in chunks of 1 MiB. Version 1 of the header:

    {version, kind, seconds, records}          a request: Flower's message type, and what time is left
    {version, records} or {version, error: {code, reason}}      an answer

and ``records`` is a list of ``["array", record, name, dtype, shape, stype, bytes]``,
``["bytes", record, name, bytes]``, ``["value", record, name, value]`` and ``["record", kind, record]``.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict

from fedward.common.errors import PayloadRefused

VERSION = 1
ASK = "/fedward.Daemon/Ask"
HEALTH = "/fedward.Daemon/Health"
CHUNK_BYTES = 1 << 20
MOST_BYTES = 1 << 30
_LENGTH = 8
_MOST_HEADER_BYTES = 1 << 20
_KINDS = {"array": ArrayRecord, "config": ConfigRecord, "metric": MetricRecord}


@dataclass(frozen=True)
class Request:
    """A question for the daemon.

    Attributes:
        kind: Flower's message type.
        seconds: until nobody waits for the answer any more.
        content: the message's records.
    """

    kind: str
    seconds: float
    content: RecordDict


def pack_request(request: Request) -> Iterator[bytes]:
    """The chunks of a request."""
    entries, buffers = _entries(request.content)
    header = {"version": VERSION, "kind": request.kind, "seconds": request.seconds, "records": entries}
    return _chunks(header, buffers)


def unpack_request(chunks: Iterable[bytes]) -> Request:
    """The inverse of `pack_request`.

    Raises:
        PayloadRefused: too large, cut short, malformed, or of another version.
    """
    header, rest = _joined(chunks)
    kind, seconds = header.get("kind"), header.get("seconds")
    if not isinstance(kind, str) or not isinstance(seconds, int | float):
        raise _malformed()
    return Request(kind, float(seconds), _records(header, rest))


def pack_answer(answer: RecordDict | Error) -> Iterator[bytes]:
    """The chunks of an answer."""
    if isinstance(answer, Error):
        error = {"code": answer.code, "reason": answer.reason}
        return _chunks({"version": VERSION, "error": error}, [])
    entries, buffers = _entries(answer)
    return _chunks({"version": VERSION, "records": entries}, buffers)


def unpack_answer(chunks: Iterable[bytes]) -> RecordDict | Error:
    """The inverse of `pack_answer`.

    Raises:
        PayloadRefused: too large, cut short, malformed, or of another version.
    """
    header, rest = _joined(chunks)
    error = header.get("error")
    if error is None:
        return _records(header, rest)
    try:
        return Error(int(error["code"]), str(error["reason"]))
    except (KeyError, TypeError, ValueError) as failure:
        raise _malformed() from failure


def _entries(content: RecordDict) -> tuple[list[list[Any]], list[bytes]]:
    entries: list[list[Any]] = []
    buffers: list[bytes] = []
    for record, arrays in content.array_records.items():
        entries.append(["record", "array", record])
        for name, array in arrays.items():
            shape = list(array.shape)
            entries.append(["array", record, name, array.dtype, shape, array.stype, len(array.data)])
            buffers.append(array.data)
    for record, config in content.config_records.items():
        entries.append(["record", "config", record])
        for name, value in config.items():
            if isinstance(value, bytes):
                entries.append(["bytes", record, name, len(value)])
                buffers.append(value)
            else:
                entries.append(["value", record, name, value])
    for record, metrics in content.metric_records.items():
        entries.append(["record", "metric", record])
        entries += [["value", record, name, value] for name, value in metrics.items()]
    return entries, buffers


def _records(header: dict[str, Any], rest: memoryview) -> RecordDict:
    content, at = RecordDict(), 0
    try:
        for what, *entry in header["records"]:
            if what == "record":
                content[entry[1]] = _KINDS[entry[0]]()
                continue
            record = cast(dict[str, Any], content[entry[0]])
            if what == "value":
                record[entry[1]] = entry[2]
                continue
            length = entry[-1]
            if not (type(length) is int and 0 <= length <= len(rest) - at):
                raise _malformed()
            data = bytes(rest[at : at + length])
            at += length
            record[entry[1]] = data if what == "bytes" else Array(entry[2], tuple(entry[3]), entry[4], data)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise _malformed() from error
    if at != len(rest):
        raise _malformed()
    return content


def _chunks(header: dict[str, Any], buffers: list[bytes]) -> Iterator[bytes]:
    text = json.dumps(header).encode()
    yield len(text).to_bytes(_LENGTH, "big") + text
    for buffer in buffers:
        view = memoryview(buffer)
        for start in range(0, len(view), CHUNK_BYTES):
            yield bytes(view[start : start + CHUNK_BYTES])


def _joined(chunks: Iterable[bytes]) -> tuple[dict[str, Any], memoryview]:
    data = bytearray()
    for chunk in chunks:
        if len(data) + len(chunk) > MOST_BYTES:
            raise PayloadRefused(f"A message to the daemon has at most {MOST_BYTES} bytes.")
        data += chunk
    length = int.from_bytes(data[:_LENGTH], "big")
    if len(data) < _LENGTH or length > min(_MOST_HEADER_BYTES, len(data) - _LENGTH):
        raise _malformed()
    try:
        header = json.loads(data[_LENGTH : _LENGTH + length])
    except (ValueError, RecursionError) as error:
        raise _malformed() from error
    if not isinstance(header, dict) or header.get("version") != VERSION:
        raise PayloadRefused(
            "The daemon and the task runner are of different versions: start both anew with "
            "`fedward hospital up`."
        )
    return header, memoryview(data)[_LENGTH + length :]


def _malformed() -> PayloadRefused:
    return PayloadRefused("A message between the daemon and its task runner is cut short or malformed.")
