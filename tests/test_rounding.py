"""Updates rounded at a public step: what they cost in bits and noise, and that nobody chooses the step."""

import math
import struct
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedward.common.codec import CODECS, DOWNLINK_CODECS, LARGEST_STEP, SMALLEST_STEP, Vector, decode, encode
from fedward.common.config import LocalSettings
from fedward.common.errors import PayloadRefused, SettingRefused
from fedward.common.rounding import STEPS, noise_deviation, uplink_step

LocalMaker = Callable[..., LocalSettings]
CODED = tuple(STEPS)
NAMES = st.sampled_from(CODED)
HEADER = 16
VECTORS = hnp.arrays(np.float32, st.integers(0, 300), elements=st.floats(-1e4, 1e4, width=32))


def noise(count: int, seed: int = 0) -> Vector:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def rounded(vector: Vector, codec: str, step: float) -> Vector:
    return decode(encode(vector, codec, step), len(vector), codec, step)


# The step


def test_the_step_is_a_fixed_part_of_the_noise_worked_out_by_hand(make_local: LocalMaker) -> None:
    local = make_local(noise_multiplier=5.0, max_grad_norm=0.4, sample_rate=0.25, local_steps=4)
    # .5 * 5 * .4 * sqrt(4) / (.25 * 100)
    assert noise_deviation(local, 0.5, 100) == pytest.approx(0.08)
    assert uplink_step("coded2", local, 0.5, 100) == pytest.approx(0.09)
    assert {name: STEPS[name] * 256 / 9 for name in CODED} == {
        "coded8": 1,
        "coded4": 8,
        "coded3": 16,
        "coded2": 32,
    }


def test_codecs_that_travel_down_have_no_step_and_all_others_do(make_local: LocalMaker) -> None:
    steps = {name: uplink_step(name, make_local(), 0.5, 100) for name in CODECS}
    assert {name for name, step in steps.items() if step is None} == set(DOWNLINK_CODECS)


def test_without_noise_there_is_nothing_to_round_at(make_local: LocalMaker) -> None:
    for name in CODED:
        with pytest.raises(SettingRefused, match="int8 or fp32"):
            uplink_step(name, make_local(noise_multiplier=0.0), 0.5, 100)


@pytest.mark.parametrize("sigma", [1e-300, 1e-35])
def test_a_step_too_small_for_float32_is_refused(make_local: LocalMaker, sigma: float) -> None:
    with pytest.raises(SettingRefused, match="out of range"):
        uplink_step("coded2", make_local(noise_multiplier=sigma), 0.5, 100)


# What rounding does


@settings(max_examples=60, deadline=None)
@given(VECTORS, NAMES, st.floats(1.0, 1e3))
def test_every_value_is_within_half_a_step(vector: Vector, name: str, step: float) -> None:
    error = np.abs(rounded(vector, name, step).astype(np.float64) - vector)
    assert (error <= step / 2 + 1e-6 * np.abs(vector)).all()


@settings(max_examples=60, deadline=None)
@given(VECTORS, NAMES, st.floats(1e-3, 1e3))
def test_packing_what_was_unpacked_gives_the_same_bytes(vector: Vector, name: str, step: float) -> None:
    once = encode(vector, name, step)
    assert encode(decode(once, len(vector), name, step), name, step).tobytes() == once.tobytes()


@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize("step", [SMALLEST_STEP, LARGEST_STEP])
def test_the_extreme_steps_give_finite_values_and_the_same_bytes(name: str, step: float) -> None:
    vector = np.array([0.0, 1e-30, -7e-30, 3.39e38, -1e33], np.float32)
    once = rounded(vector, name, step)
    assert np.isfinite(once).all()
    assert (rounded(once, name, step) == once).all()


def test_values_beyond_the_codes_are_cut_to_the_largest() -> None:
    assert rounded(np.array([1e9, -1e9], np.float32), "coded2", 0.5).tolist() == [16383.5, -16383.5]


@pytest.mark.parametrize("name", CODED)
def test_it_takes_no_more_bits_than_its_name_says_and_little_more_than_the_entropy(name: str) -> None:
    ratio, count = STEPS[name], 62_000
    bits = 8 * len(encode(noise(count), name, ratio)) / count
    assert bits <= int(name[-1])
    edges = (np.arange(-1000, 1001) - 0.5) * ratio
    shares = np.diff([0.5 * math.erfc(-edge / math.sqrt(2)) for edge in edges])
    shares = shares[shares > 0]
    assert bits < 1.025 * -(shares * np.log2(shares)).sum()


@pytest.mark.parametrize("name", CODED)
def test_the_noise_dithers_so_rounding_moves_no_mean_and_adds_a_twelfth_of_a_square(name: str) -> None:
    ratio, drawn = STEPS[name], noise(1_000_000)
    for signal in (0.0, 0.1, 0.37, 0.5, 3.21):
        vector = drawn + np.float32(signal)
        error = rounded(vector, name, ratio).astype(np.float64) - vector
        deviation = ratio / math.sqrt(12)
        assert abs(error.mean()) < 5 * deviation / 1000
        assert error.var() == pytest.approx(deviation**2, rel=0.01)
        assert abs((error * vector).mean()) < 5 * deviation * (1 + signal) / 1000


def test_a_step_that_is_too_coarse_for_the_noise_would_lose_the_mean() -> None:
    """The reason for the largest step of 9/8: at four deviations the rounding is no longer dithered."""
    vector = noise(1_000_000) + np.float32(1.0)
    assert abs((rounded(vector, "coded2", 4.0).astype(np.float64) - vector).mean()) > 0.2


# The bytes


def test_the_bytes_of_version_1_worked_out_by_hand() -> None:
    vector = np.array([1.0, -2.0, 0.75, 9.0], np.float32)
    codes = bytes([0xC2, 0x82]) + struct.pack("<h", 18)  # .75 lies between 1 and 2: the even one is taken
    payload = encode(vector, "coded2", 0.5).tobytes()
    assert payload[:24] == b"FWD1" + b"\x06\0\0\0" + struct.pack("<Qd", 4, 0.5)
    assert zstandard.ZstdDecompressor().decompress(payload[24:]) == codes


IDS = {"coded8": (3, 8), "coded4": (4, 8), "coded3": (5, 4), "coded2": (6, 4)}


@pytest.mark.parametrize("name", CODED)
def test_what_version_1_wrote_is_read_for_ever(name: str) -> None:
    identity, width = IDS[name]
    frame = bytes.fromhex({8: "28b52ffd2005290000ff0203fd00", 4: "28b52ffd20031900002fd300"}[width])
    payload = b"FWD1" + bytes([identity, 0, 0, 0]) + struct.pack("<Qd", 5, 0.25) + frame
    values = decode(np.frombuffer(payload, np.uint8), 5, name, 0.25)
    assert values.tolist() == [-0.25, 0.5, 0.75, -0.75, 0.0]


def test_an_empty_vector_has_no_codes() -> None:
    for name in CODED:
        payload = encode(np.zeros(0, np.float32), name, 0.5)
        assert len(payload) == HEADER + 8
        assert len(decode(payload, 0, name, 0.5)) == 0


@pytest.mark.parametrize("name", CODED)
def test_the_values_of_two_thousand_never_change(name: str) -> None:
    whole = np.arange(2000, dtype=np.int64) * 7919 % 10007 - 5003
    found = rounded((whole / 2048).astype(np.float32), name, STEPS[name])
    expected = np.rint(whole / 2048 / STEPS[name]) * STEPS[name]  # exact: the steps are whole 256ths
    assert (found == expected).all()


# What comes from others


@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize("other", [0.5, -1.0, math.nan, math.inf, 0.0])
def test_a_step_of_the_senders_own_choice_is_refused(name: str, other: float) -> None:
    payload = encode(noise(50), name, 1.0).copy()
    payload[HEADER : HEADER + 8] = np.frombuffer(struct.pack("<d", other), np.uint8)
    with pytest.raises(PayloadRefused, match="agreed step"):
        decode(payload, 50, name, 1.0)


@pytest.mark.parametrize("step", [0.0, -1.0, math.nan, math.inf, 1e-31, 1e31])
def test_no_vector_is_packed_or_read_at_a_step_out_of_range(step: float) -> None:
    payload = encode(noise(5), "coded2", 1.0)
    with pytest.raises(PayloadRefused, match="out of range"):
        encode(noise(5), "coded2", step)
    with pytest.raises(PayloadRefused, match="out of range"):
        decode(payload, 5, "coded2", step)


@pytest.mark.parametrize(("name", "step"), [("fp32", 1.0), ("int8", 1.0), ("coded4", None)])
def test_a_step_belongs_to_the_coded_codecs_only(name: str, step: float | None) -> None:
    with pytest.raises(PayloadRefused, match="step"):
        encode(noise(5), name, step)
    with pytest.raises(PayloadRefused, match="step"):
        decode(encode(noise(5), "fp32"), 5, name, step)


@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, np.finfo(np.float32).max])
def test_what_is_not_finite_is_not_packed(name: str, bad: float) -> None:
    with pytest.raises(PayloadRefused, match="not encoded"):
        encode(np.array([0.0, bad], np.float32), name, 1.0)


@pytest.mark.parametrize("name", CODED)
def test_a_payload_cut_anywhere_extended_or_changed_in_its_header_is_refused(name: str) -> None:
    payload = encode(noise(60), name, 1.0)
    for length in range(len(payload)):
        with pytest.raises(PayloadRefused):
            decode(payload[:length], 60, name, 1.0)
    for extra in (1, 4, 5):
        with pytest.raises(PayloadRefused):
            decode(np.concatenate([payload, np.zeros(extra, np.uint8)]), 60, name, 1.0)
    for bit in range(8 * (HEADER + 8)):
        changed = payload.copy()
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PayloadRefused):
            decode(changed, 60, name, 1.0)


@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize("claim", [0, 59, 61, 10**12, 2**64 - 1])
def test_a_false_claim_of_values_is_refused_before_memory_is_taken(name: str, claim: int) -> None:
    payload = encode(noise(60), name, 1.0).copy()
    payload[8:16] = np.frombuffer(struct.pack("<Q", claim), np.uint8)
    tracemalloc.start()
    for expected in (60, claim):
        with pytest.raises(PayloadRefused):
            decode(payload, expected, name, 1.0)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 20), NAMES)
def test_arbitrary_bytes_never_raise_anything_but_the_refusal(data: bytes, count: int, name: str) -> None:
    head = encode(noise(count), name, 1.0).tobytes()
    for candidate in (data, head[:HEADER] + data, head[: HEADER + 8] + data):
        try:
            vector = decode(np.frombuffer(candidate, np.uint8), count, name, 1.0)
        except PayloadRefused:
            continue
        assert vector.shape == (count,)
        assert np.isfinite(vector).all()
