"""Packed vectors: round-trip laws, bytes that never change for a version, and hostile payloads."""

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedward.common import codec as module
from fedward.common.codec import (
    BLOCK,
    CODECS,
    MAXIMUM_COUNT,
    PLAIN_CODECS,
    Payload,
    Vector,
    codec_id,
    decode,
    encode,
)
from fedward.common.errors import PayloadRefused, UnknownName

HEADER = 16
VECTORS = hnp.arrays(np.float32, st.integers(0, 300), elements=st.floats(-(2.0**100), 2.0**100, width=32))
NAMES = sorted(PLAIN_CODECS)  # the others round at a step: test_rounding.py, test_differences.py


def gaussian(count: int, seed: int = 0) -> Vector:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def changed(payload: Payload, position: int, value: int) -> Payload:
    copy = payload.copy()
    copy[position] = value
    return copy


@settings(max_examples=40, deadline=None)
@given(VECTORS)
def test_fp32_gives_every_bit_back(vector: np.ndarray) -> None:
    assert decode(encode(vector, "fp32"), len(vector), "fp32").tobytes() == vector.tobytes()


@settings(max_examples=40, deadline=None)
@given(VECTORS)
def test_int8_is_within_half_a_step_of_its_block(vector: np.ndarray) -> None:
    decoded = decode(encode(vector, "int8"), len(vector), "int8")
    assert decoded.dtype == np.float32
    step = np.abs(vector).max(initial=0.0) / 127
    assert (np.abs(decoded.astype(np.float64) - vector) <= 0.5001 * step + 1e-43).all()


def test_int8_steps_belong_to_blocks_so_one_large_value_coarsens_only_its_own() -> None:
    vector = gaussian(3 * BLOCK + 5)
    vector[BLOCK] = 1e6
    error = np.abs(decode(encode(vector, "int8"), len(vector), "int8") - vector)
    assert error[:BLOCK].max() < 0.05
    assert error[2 * BLOCK :].max() < 0.05
    assert error[BLOCK : 2 * BLOCK].max() > 1.0


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(vector=hnp.arrays(np.float32, st.integers(0, 300), elements=st.floats(-1e4, 1e4, width=32)))
def test_packing_what_was_unpacked_gives_the_same_bytes(name: str, vector: np.ndarray) -> None:
    vector[np.abs(vector) < 1e-30] = 0.0  # float32's denormals have too few bits for a step of 1/127
    once = encode(vector, name)
    assert encode(decode(once, len(vector), name), name).tobytes() == once.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_packing_is_deterministic_and_leaves_its_input_alone(name: str) -> None:
    vector = gaussian(BLOCK + 1)
    before = vector.copy()
    assert encode(vector, name).tobytes() == encode(vector, name).tobytes()
    assert (vector == before).all()


def test_the_bytes_of_fp32_version_1_worked_out_by_hand() -> None:
    expected = b"FWD1" + b"\x01\0\0\0" + struct.pack("<Q", 3) + struct.pack("<3f", 1.0, -2.0, 0.5)
    assert encode(np.array([1.0, -2.0, 0.5], np.float32), "fp32").tobytes() == expected


@pytest.mark.parametrize(("place", "written"), [(HEADER, struct.pack("<f", -1.0)), (HEADER + 4, b"\x80")])
def test_an_int8_step_or_code_that_no_encoder_gives_is_refused(place: int, written: bytes) -> None:
    payload = encode(np.ones(5, np.float32), "int8").copy()
    payload[place : place + len(written)] = np.frombuffer(written, np.uint8)
    with pytest.raises(PayloadRefused, match="out of range"):
        decode(payload, 5, "int8")


def test_the_bytes_of_int8_version_1_worked_out_by_hand() -> None:
    vector = np.array([127.0, -254.0, 3.0, 0.0], np.float32)
    expected = b"FWD1" + b"\x02\0\0\0" + struct.pack("<Q", 4) + struct.pack("<f", 2.0)
    # 127 / 2 and 3 / 2 lie between two codes: the even one is taken.
    assert encode(vector, "int8").tobytes() == expected + struct.pack("<4b", 64, -127, 2, 0)


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("fp32", "a80a01565b8e292e667b61e2023fbd6a3aad714a518bc469bc0a86a2def5845d"),
        ("int8", "672a3ec0bf517d2131eecb2d31e44fb5d0f919412b46982960327689e46f82f9"),
    ],
)
def test_the_bytes_of_two_blocks_never_change(name: str, sha256: str) -> None:
    whole = np.arange(5000, dtype=np.int64) * 7919 % 10007 - 5003
    vector = (whole / 4096).astype(np.float32)  # exact: a power of two divides
    assert hashlib.sha256(encode(vector, name).tobytes()).hexdigest() == sha256


def test_ids_of_codecs_never_change() -> None:
    ids = {"fp32": 1, "int8": 2, "coded8": 3, "coded4": 4, "coded3": 5, "coded2": 6}
    assert ids.items() <= CODECS.items()
    assert len(set(CODECS.values())) == len(CODECS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1])
def test_lengths_around_a_block_come_back(name: str, count: int) -> None:
    payload = encode(gaussian(count), name)
    assert payload.dtype == np.uint8
    assert payload.ndim == 1
    assert decode(payload, count, name).shape == (count,)
    blocks = -(-count // BLOCK)
    assert len(payload) == HEADER + (4 * count if name == "fp32" else count + 4 * blocks)


@pytest.mark.parametrize("name", NAMES)
def test_zeros_stay_zeros(name: str) -> None:
    assert (decode(encode(np.zeros(10, np.float32), name), 10, name) == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_whatever_packs_also_unpacks(name: str) -> None:
    vector = np.array([3.39e38, -3.39e38, 1.0, 1e-45], np.float32)
    assert np.isfinite(decode(encode(vector, name), 4, name)).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, np.finfo(np.float32).max])
def test_a_vector_that_is_not_finite_or_would_overflow_is_not_packed(name: str, bad: float) -> None:
    with pytest.raises(PayloadRefused, match="not encoded"):
        encode(np.array([0.0, bad], np.float32), name)


@pytest.mark.parametrize("name", ["", "int4", "FP32", "ternary"])
def test_an_unknown_codec_is_refused_with_the_names_that_exist(name: str) -> None:
    payload = encode(gaussian(2), "fp32")
    for refuse in (
        lambda: codec_id(name),
        lambda: encode(gaussian(2), name),
        lambda: decode(payload, 2, name),
    ):
        with pytest.raises(UnknownName, match="fp32, int8"):
            refuse()


@pytest.mark.parametrize("name", NAMES)
def test_every_bit_of_the_header_counts(name: str) -> None:
    payload = encode(gaussian(5), name)
    for bit in range(8 * HEADER):
        with pytest.raises(PayloadRefused):
            decode(changed(payload, bit // 8, int(payload[bit // 8]) ^ (1 << bit % 8)), 5, name)


@pytest.mark.parametrize("name", NAMES)
def test_a_payload_cut_anywhere_or_extended_is_refused(name: str) -> None:
    payload = encode(gaussian(5), name)
    for length in range(len(payload)):
        with pytest.raises(PayloadRefused):
            decode(payload[:length], 5, name)
    for extra in (1, 4, 5):
        with pytest.raises(PayloadRefused):
            decode(np.concatenate([payload, np.zeros(extra, np.uint8)]), 5, name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("claim", [0, 4, 6, 10**12, 2**63, 2**64 - 1])
def test_a_false_claim_of_values_is_refused_before_memory_is_taken(name: str, claim: int) -> None:
    payload = encode(gaussian(5), name).copy()
    payload[8:16] = np.frombuffer(struct.pack("<Q", claim), np.uint8)
    with pytest.raises(PayloadRefused, match="claims"):
        decode(payload, 5, name)
    # Also where the reader expects that very number.
    with pytest.raises(PayloadRefused):
        decode(payload, claim, name)


def test_no_vector_is_longer_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAXIMUM_COUNT <= 1 << 30
    payload = encode(gaussian(9), "fp32")
    monkeypatch.setattr(module, "MAXIMUM_COUNT", 8)
    with pytest.raises(PayloadRefused):
        decode(payload, 9, "fp32")


@pytest.mark.parametrize("count", [-1, 4, 6])
@pytest.mark.parametrize("name", NAMES)
def test_another_count_than_the_expected_is_refused(name: str, count: int) -> None:
    with pytest.raises(PayloadRefused, match="claims 5 values"):
        decode(encode(gaussian(5), name), count, name)


def test_one_codecs_bytes_are_not_read_as_anothers() -> None:
    for name, other in (("fp32", "int8"), ("int8", "fp32")):
        with pytest.raises(PayloadRefused, match=other):
            decode(encode(gaussian(8), name), 8, other)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_and_steps_that_are_not_finite_are_refused(bad: float) -> None:
    for name in NAMES:
        payload = encode(gaussian(5), name).copy()
        payload[HEADER : HEADER + 4] = np.frombuffer(struct.pack("<f", bad), np.uint8)
        with pytest.raises(PayloadRefused, match=r"NaN or infinite|out of range"):
            decode(payload, 5, name)


def test_an_infinite_step_is_refused_even_where_every_code_is_zero() -> None:
    payload = encode(np.zeros(5, np.float32), "int8").copy()
    payload[HEADER : HEADER + 4] = np.frombuffer(struct.pack("<f", np.inf), np.uint8)
    with pytest.raises(PayloadRefused):
        decode(payload, 5, "int8")


def test_what_is_no_flat_array_of_bytes_is_refused() -> None:
    payload = encode(gaussian(8), "fp32")
    bad = (payload.astype(np.float32), payload.view(np.int8), payload.reshape(2, -1), payload[:0], payload[0])
    for array in bad:
        with pytest.raises(PayloadRefused, match="flat uint8"):
            decode(array, 8, "fp32")  # type: ignore[arg-type]


def test_a_payload_with_gaps_in_memory_is_read_right() -> None:
    payload = encode(gaussian(8), "int8")
    spread: Payload = np.repeat(payload, 2)[::2]
    assert (decode(spread, 8, "int8") == decode(payload, 8, "int8")).all()


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 20), st.sampled_from(NAMES))
def test_arbitrary_bytes_never_raise_anything_but_the_refusal(data: bytes, count: int, name: str) -> None:
    for candidate in (data, encode(gaussian(count), name).tobytes()[:HEADER] + data):
        try:
            vector = decode(np.frombuffer(candidate, np.uint8), count, name)
        except PayloadRefused:
            continue
        assert vector.shape == (count,)
        assert np.isfinite(vector).all()
