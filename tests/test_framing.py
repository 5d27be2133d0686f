"""Parts come back as they were packed, and nothing else is read as a frame."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward.common import framing
from fedward.common.errors import PayloadRefused
from fedward.common.files import canonical_json
from fedward.common.framing import MAGIC, MOST_FRAME_BYTES, MOST_PARTS, pack, unpack

NAMES = st.text("abc/-é", min_size=1, max_size=8)
PARTS = st.dictionaries(NAMES, st.binary(max_size=40), max_size=6)


def framed(header: object, rest: bytes = b"") -> bytes:
    spelled = header if isinstance(header, bytes) else canonical_json(header)
    return MAGIC + len(spelled).to_bytes(4, "big") + spelled + rest


@given(PARTS)
def test_parts_come_back(parts: dict[str, bytes]) -> None:
    assert {name: bytes(view) for name, view in unpack(pack(parts)).items()} == parts


@given(PARTS)
def test_the_order_of_naming_changes_nothing(parts: dict[str, bytes]) -> None:
    assert pack(dict(reversed(parts.items()))) == pack(parts)


@given(PARTS, st.data())
def test_what_is_read_is_spelled_in_one_way(parts: dict[str, bytes], data: st.DataObject) -> None:
    frame = pack(parts)
    place = data.draw(st.integers(0, len(frame) - 1))
    changed = frame[:place] + data.draw(st.binary(max_size=3)) + frame[place + data.draw(st.integers(0, 3)) :]
    try:
        read = unpack(changed)
    except PayloadRefused:
        return
    assert pack({name: bytes(view) for name, view in read.items()}) == changed


@given(st.binary(max_size=100))
def test_noise_is_refused(noise: bytes) -> None:
    for data in (noise, MAGIC + noise, framed([["a", 1]], noise)):
        if not (data == framed([["a", 1]], noise) and len(noise) == 1):
            with pytest.raises(PayloadRefused):
                unpack(data)


@pytest.mark.parametrize(
    "header",
    [
        {},
        [["a"]],
        [["a", -1]],
        [["a", True]],
        [["a", 1.0]],
        [["a", 2**40]],
        [["", 0]],
        [["x" * 101, 0]],
        [["a\n", 0]],
        [[1, 0]],
        [["a", 0], ["a", 0]],
        [["b", 0], ["a", 0]],
        [[f"{index:03}", 0] for index in range(MOST_PARTS + 1)],
        b'[["a", 0]]',
        b"[",
    ],
)
def test_another_header_is_refused(header: object) -> None:
    with pytest.raises(PayloadRefused, match="malformed"):
        unpack(framed(header))


def test_sizes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PayloadRefused, match="cut or too long"):
        unpack(MAGIC + (2**32 - 1).to_bytes(4, "big") + b"[]")
    with pytest.raises(PayloadRefused, match="cut, or longer"):
        unpack(framed([["a", MOST_FRAME_BYTES]], b"x"))
    with pytest.raises(PayloadRefused, match="parts of at most"):
        pack({str(index): b"" for index in range(MOST_PARTS + 1)})
    with pytest.raises(PayloadRefused, match="no name"):
        pack({"": b""})
    monkeypatch.setattr(framing, "MOST_FRAME_BYTES", 20)
    with pytest.raises(PayloadRefused, match="is over"):
        pack({"a": b"12"})
    with pytest.raises(PayloadRefused, match="is over"):
        unpack(bytes(21))
