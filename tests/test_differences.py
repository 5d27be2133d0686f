"""Differences: both sides hold the same model to the bit, and its errors do not add up."""

import hashlib
import struct
import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedward.common.codec import DIFFERENCES, PLAIN_CODECS, Payload, Vector, encode, plain_codec_of
from fedward.common.differences import PARTS, decode_difference, encode_difference, replica_digest
from fedward.common.entropy_coding import pack
from fedward.common.errors import PayloadRefused

HEADER, STEP = 16, 8
NAMES = st.sampled_from(DIFFERENCES)
COUNTS = st.integers(0, 300)
ELEMENTS = st.floats(-1e4, 1e4, width=32)
VECTORS = hnp.arrays(np.float32, COUNTS, elements=ELEMENTS)


def gaussian(count: int, seed: int = 0, deviation: float = 1.0) -> Vector:
    return (np.random.default_rng(seed).standard_normal(count) * deviation).astype(np.float32)


def step_of(payload: Payload) -> float:
    return float(struct.unpack_from("<d", payload.tobytes(), HEADER)[0])


def with_step(payload: Payload, step: float) -> Payload:
    data = payload.tobytes()
    return np.frombuffer(data[:HEADER] + struct.pack("<d", step) + data[HEADER + STEP :], np.uint8)


def sent(model: Vector, replica: Vector, codec: str) -> tuple[Payload, Vector]:
    payload = encode_difference(model, replica, codec)
    return payload, decode_difference(payload, replica, codec)


# The laws


@settings(max_examples=80, deadline=None)
@given(VECTORS, NAMES, st.integers(0, 99))
def test_the_replica_is_within_half_a_step_of_the_model(model: Vector, codec: str, seed: int) -> None:
    replica = gaussian(len(model), seed, 100.0)
    payload, found = sent(model, replica, codec)
    assert found.dtype == np.float32
    rounding = 2.0**-22 * (np.abs(model.astype(np.float64)) + np.abs(replica))  # of two sums in float32
    assert (np.abs(found.astype(np.float64) - model) <= 0.5 * step_of(payload) + rounding).all()


@settings(max_examples=80, deadline=None)
@given(VECTORS, NAMES)
def test_the_error_is_a_fixed_part_of_the_difference_at_most(model: Vector, codec: str) -> None:
    found = sent(model, np.zeros_like(model), codec)[1].astype(np.float64)
    size = float(np.linalg.norm(model.astype(np.float64)))
    assert np.linalg.norm(found - model) <= (PARTS[codec] / 2 + 1e-6) * size + 1e-28


@settings(max_examples=80, deadline=None)
@given(VECTORS, NAMES)
def test_the_step_is_a_part_of_the_differences_size_to_eight_bits(difference: Vector, codec: str) -> None:
    step = step_of(encode_difference(difference, np.zeros_like(difference), codec))
    size = float(np.sqrt(np.mean(np.square(difference.astype(np.float64))))) if len(difference) else 0.0
    if size > 1e-29:
        assert step == pytest.approx(PARTS[codec] * size, rel=2.0**-7)
    assert step == 1e-30 or float(np.frexp(step)[0] * 256).is_integer()


@pytest.mark.parametrize("codec", DIFFERENCES)
def test_over_many_rounds_both_sides_hold_the_same_bits_and_errors_do_not_add_up(codec: str) -> None:
    count = 5000
    model = gaussian(count, 1, 0.1)
    server = hospital = encode_first(model)
    errors = []
    for server_round in range(60):
        model = model + gaussian(count, 100 + server_round, 0.014)
        payload, server = sent(model, server, codec)
        hospital = decode_difference(payload, hospital, codec)
        assert server.tobytes() == hospital.tobytes()
        assert replica_digest(server) == replica_digest(hospital)
        errors.append(float(np.std(server - model)) / 0.014)
    expected = {"diff4": 0.082, "diff3": 0.165, "diff2": 0.343}[codec]
    assert errors[1:] == pytest.approx([expected] * 59, rel=0.06)


def encode_first(model: Vector) -> Vector:
    return np.round(model, 3).astype(np.float32)


@pytest.mark.parametrize("codec", DIFFERENCES)
def test_a_model_that_stands_still_is_reached_to_the_bit_and_then_costs_nothing(codec: str) -> None:
    model, replica = gaussian(5000, 1), gaussian(5000, 2)
    for _ in range(40):
        payload, replica = sent(model, replica, codec)
    assert replica.tobytes() == model.tobytes()
    assert len(payload) < 60


@pytest.mark.parametrize(("codec", "bits"), [("diff4", 3.97), ("diff3", 2.98), ("diff2", 2.03)])
def test_a_difference_takes_about_as_many_bits_as_its_name_says(codec: str, bits: float) -> None:
    payload, _ = sent(gaussian(62_178, 1), np.zeros(62_178, np.float32), codec)
    assert bits - 0.1 < 8 * len(payload) / 62_178 < bits


@pytest.mark.parametrize("codec", DIFFERENCES)
def test_weights_that_no_study_trains_cost_next_to_nothing(codec: str) -> None:
    """Only the last layer's 130 values of 62,178 change."""
    replica = gaussian(62_178, 1)
    model = replica.copy()
    model[-130:] += gaussian(130, 2, 0.01)
    payload, found = sent(model, replica, codec)
    assert len(payload) < 330
    assert (found[:-130] == replica[:-130]).all()
    wide = np.zeros(8_650_000, np.float32)
    assert len(encode_difference(wide, wide, codec)) < 400


@pytest.mark.parametrize("codec", DIFFERENCES)
def test_one_huge_value_coarsens_the_rounds_until_it_has_arrived_and_no_others(codec: str) -> None:
    model, replica = gaussian(300, 3, 0.01), np.zeros(300, np.float32)
    model[7] = 1e9
    _, first = sent(model, replica, codec)
    assert (np.delete(first, 7) == 0.0).all()
    for _ in range(60):
        _, replica = sent(model, replica, codec)
    assert replica.tobytes() == model.tobytes()


# The bytes


def test_the_bytes_of_version_1_worked_out_by_hand() -> None:
    model = np.array([1.0, -1.0, 1.0, 5.0], np.float32)
    # Root mean square sqrt(7); 9/8 of it is 2.97646..., to eight bits 190/64 = 2.96875.
    payload = encode_difference(model, np.zeros(4, np.float32), "diff2").tobytes()
    assert payload[:24] == b"FWD1" + b"\x09\0\0\0" + struct.pack("<Qd", 4, 190 / 64)
    assert zstandard.ZstdDecompressor().decompress(payload[24:]) == bytes([0x00, 0x20])


IDS = {"diff4": (7, 8), "diff3": (8, 4), "diff2": (9, 4)}


@pytest.mark.parametrize("codec", DIFFERENCES)
def test_what_version_1_wrote_is_read_for_ever(codec: str) -> None:
    identity, width = IDS[codec]
    frame = bytes.fromhex({8: "28b52ffd2005290000ff0203fd00", 4: "28b52ffd20031900002fd300"}[width])
    payload = b"FWD1" + bytes([identity, 0, 0, 0]) + struct.pack("<Qd", 5, 0.25) + frame
    replica = np.array([1.0, 1.0, 1.0, 1.0, -3.0], np.float32)
    found = decode_difference(np.frombuffer(payload, np.uint8), replica, codec)
    assert found.tolist() == [0.75, 1.5, 1.75, 0.25, -3.0]


def test_a_models_name_is_the_digest_of_its_little_endian_values() -> None:
    assert (
        replica_digest(np.array([1.0, -2.0], np.float32))
        == hashlib.sha256(struct.pack("<2f", 1.0, -2.0)).hexdigest()
    )


@pytest.mark.parametrize("codec", DIFFERENCES)
def test_the_difference_of_two_models_never_changes(codec: str) -> None:
    whole = np.arange(2000, dtype=np.int64) * 7919 % 10007 - 5003
    model = (whole / 2048).astype(np.float32)
    step = {"diff4": 203 / 512, "diff3": 203 / 256, "diff2": 203 / 128}[codec]
    payload, found = sent(model, np.zeros(2000, np.float32), codec)
    assert step_of(payload) == step
    assert (found == (np.rint(whole / 2048 / step) * step).astype(np.float32)).all()


# What comes from others


def good(codec: str, count: int = 60) -> tuple[Payload, Vector]:
    replica = gaussian(count, 5)
    return encode_difference(gaussian(count, 6), replica, codec), replica


@pytest.mark.parametrize("codec", DIFFERENCES)
def test_a_difference_cut_anywhere_or_extended_is_refused(codec: str) -> None:
    payload, replica = good(codec)
    for length in range(len(payload)):
        with pytest.raises(PayloadRefused):
            decode_difference(payload[:length], replica, codec)
    for extra in (1, 4, 5):
        with pytest.raises(PayloadRefused):
            decode_difference(np.concatenate([payload, np.zeros(extra, np.uint8)]), replica, codec)


def _refuse_before_memory_is_taken(forged: Payload, replica: Vector, codec: str, words: str) -> None:
    tracemalloc.start()
    with pytest.raises(PayloadRefused, match=words):
        decode_difference(forged, replica, codec)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


@pytest.mark.parametrize("codec", DIFFERENCES)
@pytest.mark.parametrize("claim", [0, 59, 61, 10**12, 2**64 - 1])
def test_a_false_claim_of_values_is_refused_before_memory_is_taken(codec: str, claim: int) -> None:
    payload, replica = good(codec)
    data = payload.tobytes()
    forged = np.frombuffer(data[:8] + struct.pack("<Q", claim) + data[16:], np.uint8)
    _refuse_before_memory_is_taken(forged, replica, codec, "claims")


@pytest.mark.parametrize("codec", DIFFERENCES)
def test_a_bomb_is_refused_before_memory_is_taken(codec: str) -> None:
    payload, replica = good(codec)
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    forged = np.concatenate([payload[: HEADER + STEP], np.frombuffer(bomb, np.uint8)])
    _refuse_before_memory_is_taken(forged, replica, codec, "do not fit")


@pytest.mark.parametrize("codec", DIFFERENCES)
@pytest.mark.parametrize("step", [0.0, -1.0, np.nan, np.inf, 1e-31, 1e31])
def test_a_step_out_of_range_is_refused(codec: str, step: float) -> None:
    payload, replica = good(codec)
    with pytest.raises(PayloadRefused, match="out of range"):
        decode_difference(with_step(payload, step), replica, codec)


def test_a_model_beyond_float32_is_refused() -> None:
    codes = np.array([32_767], np.int16)
    head = b"FWD1" + b"\x07\0\0\0" + struct.pack("<Qd", 1, 1e30)
    payload = np.frombuffer(head + pack(codes, 8), np.uint8)
    with pytest.raises(PayloadRefused, match="infinite"):
        decode_difference(payload, np.array([3.4028e38], np.float32), "diff4")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_a_model_that_is_not_finite_or_too_large_is_not_sent(bad: float) -> None:
    with pytest.raises(PayloadRefused, match=r"not encoded|out of range"):
        encode_difference(np.array([0.0, bad], np.float32), np.zeros(2, np.float32), "diff3")


def test_a_difference_is_not_read_in_another_codec() -> None:
    payload, replica = good("diff3")
    for other in ("diff4", "diff2"):
        with pytest.raises(PayloadRefused, match="not in codec"):
            decode_difference(payload, replica, other)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 20), NAMES)
def test_arbitrary_bytes_never_raise_anything_but_the_refusal(data: bytes, count: int, codec: str) -> None:
    payload, replica = good(codec, count)
    head = payload.tobytes()
    for candidate in (data, head[:HEADER] + data, head[: HEADER + STEP] + data):
        try:
            model = decode_difference(np.frombuffer(candidate, np.uint8), replica, codec)
        except PayloadRefused:
            continue
        assert model.shape == (count,)
        assert np.isfinite(model).all()


def test_a_payload_that_stands_alone_says_in_which_codec() -> None:
    for name in PLAIN_CODECS:
        assert plain_codec_of(encode(gaussian(3), name)) == name
    for payload in (
        good("diff3")[0],
        np.zeros(0, np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((5, 5), np.uint8),
    ):
        with pytest.raises(PayloadRefused, match="in full"):
            plain_codec_of(payload)
