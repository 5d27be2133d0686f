"""Packed codes: they come back, their layout never changes, and nothing hostile takes memory."""

import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedward.common.entropy_coding import LARGEST_CODE, Codes, pack, packed, unpack
from fedward.common.errors import PayloadRefused

WIDTHS = st.sampled_from([4, 8])
CODES = hnp.arrays(
    np.int16,
    st.integers(0, 300),
    elements=st.one_of(st.integers(-9, 9), st.integers(-130, 130), st.integers(-LARGEST_CODE, LARGEST_CODE)),
)


def frame_of(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(data)


def gaussian(count: int, step: float) -> Codes:
    return np.rint(np.random.default_rng(0).standard_normal(count) / step).astype(np.int16)


@settings(max_examples=80, deadline=None)
@given(CODES, WIDTHS)
def test_every_code_comes_back(codes: Codes, width: int) -> None:
    assert unpack(pack(codes, width), len(codes), width).tolist() == codes.tolist()


@pytest.mark.parametrize("width", [4, 8])
def test_every_code_that_there_is_comes_back(width: int) -> None:
    codes = np.arange(-LARGEST_CODE, LARGEST_CODE + 1).astype(np.int16)
    assert (unpack(pack(codes, width), len(codes), width) == codes).all()


def test_the_layout_of_4_bits_worked_out_by_hand() -> None:
    codes = np.array([1, -1, 7, -7, 8, -32767, 0], np.int16)
    # The first of a pair in the low half; 8 is the escape -8, and what it stands for follows as int16.
    assert packed(codes, 4) == bytes([0xF1, 0x97, 0x88, 0x00]) + bytes([8, 0, 1, 0x80])


def test_the_layout_of_8_bits_worked_out_by_hand() -> None:
    codes = np.array([1, -1, 127, -127, 128, -300], np.int16)
    assert packed(codes, 8) == bytes([1, 255, 127, 129, 128, 128]) + bytes([128, 0]) + bytes([0xD4, 0xFE])


GOLDEN = {
    4: "28b52ffd2054f5010042850e18c025ad010fc4115784c252555555559d37f8a66441449614675058e6e38071213e1eeeb2"
    "5d327cb6ec23587761e94c2ea0982ed58658b4719900",
    8: "28b52ffd20a2bd010092840912b025690c3a09691886011c866118569c4d530904a89fe2a30cfa907ef4b14fc837bef8250"
    "405000017b00f0a15000e93b5ec01",
}


@pytest.mark.parametrize("width", GOLDEN)
def test_frames_of_this_version_are_read_for_ever(width: int) -> None:
    """Another version of zstd may write other frames; it reads these."""
    places = np.arange(160)
    codes = ((places * places % 11 - 5) // 2 * (places % 7 < 3)).astype(np.int16)
    codes[50], codes[100] = 9, -300
    assert (unpack(bytes.fromhex(GOLDEN[width]), 160, width) == codes).all()


@pytest.mark.parametrize(("width", "step"), [(4, 9 / 8), (4, 9 / 16), (8, 9 / 32), (8, 9 / 256)])
def test_gaussian_noise_takes_little_more_than_its_entropy(width: int, step: float) -> None:
    codes = gaussian(300_000, step)
    shares = np.unique(codes, return_counts=True)[1] / len(codes)
    entropy = -(shares * np.log2(shares)).sum()
    assert entropy < 8 * len(pack(codes, width)) / len(codes) < 1.025 * entropy


@pytest.mark.parametrize("width", [4, 8])
def test_a_frame_cut_anywhere_or_extended_is_refused(width: int) -> None:
    codes = gaussian(200, 0.5)
    frame = pack(codes, width)
    for length in range(len(frame)):
        with pytest.raises(PayloadRefused):
            unpack(frame[:length], 200, width)
    for extra in (b"\0", b"trailing", frame, frame_of(b"")):
        with pytest.raises(PayloadRefused):
            unpack(frame + extra, 200, width)


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("count", [0, 1, 198, 202, 10**12])
def test_another_number_of_codes_is_refused(width: int, count: int) -> None:
    with pytest.raises(PayloadRefused):
        unpack(pack(gaussian(200, 0.5), width), count, width)


BOMB = frame_of(bytes(1 << 28))


@pytest.mark.parametrize("width", [4, 8])
def test_a_frame_that_decompresses_without_end_is_refused_before_memory_is_taken(width: int) -> None:
    tracemalloc.start()
    with pytest.raises(PayloadRefused, match="do not fit"):
        unpack(BOMB, 1000, width)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_a_frame_that_claims_a_terabyte_or_does_not_say_is_refused() -> None:
    stream = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(bytes(500))
    claims = b"\x28\xb5\x2f\xfd\xe0" + (10**12).to_bytes(8, "little") + pack(gaussian(1000, 0.5), 4)[7:]
    for frame in (stream, claims):
        with pytest.raises(PayloadRefused, match="do not fit"):
            unpack(frame, 1000, 4)


def test_a_small_frame_that_says_less_than_it_holds_is_refused() -> None:
    frame = bytearray(frame_of(np.random.default_rng(0).bytes(200)))
    assert frame[5] == 200
    frame[5] = 100
    with pytest.raises(PayloadRefused):
        unpack(bytes(frame), 100, 8)


def test_a_frame_of_empty_blocks_is_refused_by_its_length() -> None:
    frame = frame_of(np.random.default_rng(0).bytes(200))
    padded = frame[:6] + bytes(3) * 1000 + frame[6:]  # a raw block of no bytes, a thousand times
    assert zstandard.ZstdDecompressor().decompress(padded) == zstandard.ZstdDecompressor().decompress(frame)
    with pytest.raises(PayloadRefused, match="do not fit"):
        unpack(padded, 200, 8)


@pytest.mark.parametrize(
    ("width", "count", "data"),
    [
        (8, 1, b"\x80\x05\x00"),  # 5 needs no escape
        (8, 1, b"\x80\x00\x80"),  # -32768
        (8, 2, b"\x80\x01\xff\x7f\xff\x7f"),  # two long codes for one escape
        (8, 2, b"\x80\x80\xff\x7f"),  # one for two
        (8, 1, b"\x01\xff\x7f"),  # one for none
        (8, 1, b"\x80\xff\x7f\x00"),  # half a code behind
        (4, 1, b"\x08\x07\x00"),
        (4, 1, b"\x08\x00\x80"),
        (4, 1, b"\x11"),  # a code behind the last one
    ],
)
def test_codes_out_of_range_are_refused(width: int, count: int, data: bytes) -> None:
    with pytest.raises(PayloadRefused):
        unpack(frame_of(data), count, width)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 40), WIDTHS, st.booleans())
def test_arbitrary_bytes_are_codes_in_range_or_refused(
    data: bytes, count: int, width: int, is_frame: bool
) -> None:
    try:
        codes = unpack(frame_of(data) if is_frame else data, count, width)
    except PayloadRefused:
        return
    assert codes.shape == (count,)
    assert packed(codes, width) == (data if count else b"")
