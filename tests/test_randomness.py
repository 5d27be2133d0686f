"""The keyed generator: the standard's keystream, independent streams, and draws of the right law."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import ndtri

from fedward.common import randomness
from fedward.common.randomness import KEY_BYTES, KeyedGenerator

# RFC 8439, appendix A.1, test vectors 1 and 2: key and nonce of zeros, block counters 0 and 1.
RFC_8439_BLOCKS = bytes.fromhex(
    "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
    "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
    "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"
)
KEYS = st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES)
LABELS = st.lists(st.one_of(st.text(max_size=4), st.integers(-3, 300)), max_size=3).map(tuple)


def fixed() -> KeyedGenerator:
    return KeyedGenerator.from_seed(2024, "tests")


def test_the_stream_is_chacha20_of_rfc_8439() -> None:
    assert KeyedGenerator(bytes(KEY_BYTES)).bytes(128) == RFC_8439_BLOCKS


def test_words_are_the_stream_in_little_endian() -> None:
    words = KeyedGenerator(bytes(KEY_BYTES)).words(2)
    assert words.tolist() == [int.from_bytes(RFC_8439_BLOCKS[i : i + 8], "little") for i in (0, 8)]


@settings(max_examples=30, deadline=None)
@given(KEYS, st.integers(0, 200), st.integers(0, 200))
def test_the_stream_does_not_depend_on_how_it_is_cut(key: bytes, first: int, second: int) -> None:
    parts = KeyedGenerator(key)
    assert parts.bytes(first) + parts.bytes(second) == KeyedGenerator(key).bytes(first + second)


def test_a_long_draw_is_the_same_stream_as_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fixed().bytes(1000)
    monkeypatch.setattr(randomness, "_BLOCK", 64)
    assert fixed().bytes(1000) == expected


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_a_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        KeyedGenerator(bytes(length))


@settings(max_examples=40, deadline=None)
@given(KEYS, LABELS, st.integers(0, 100))
def test_derive_does_not_depend_on_draws_and_takes_none(
    key: bytes, labels: tuple[str | int, ...], drawn: int
) -> None:
    generator = KeyedGenerator(key)
    before = generator.derive(*labels).bytes(32)
    head = generator.bytes(drawn)
    assert generator.derive(*labels).bytes(32) == before
    assert head + generator.bytes(8) == KeyedGenerator(key).bytes(drawn + 8)


@settings(max_examples=40, deadline=None)
@given(LABELS, LABELS)
def test_different_labels_give_different_streams(
    one: tuple[str | int, ...], other: tuple[str | int, ...]
) -> None:
    same = fixed().derive(*one).bytes(32) == fixed().derive(*other).bytes(32)
    assert same == (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("1",), (1,)),
        (("a", "bc"), ("ab", "c")),
        (("a",), ("a", "")),
        ((), ("",)),
        (("str:a",), ("a",)),
        (("a", "b"), ("astr:b",)),
        ((1, 23), (12, 3)),
    ],
)
def test_labels_that_look_alike_are_told_apart(
    one: tuple[str | int, ...], other: tuple[str | int, ...]
) -> None:
    assert fixed().derive(*one).bytes(32) != fixed().derive(*other).bytes(32)


def test_a_chain_of_purposes_is_not_one_purpose_with_two_labels() -> None:
    assert fixed().derive("a").derive("b").bytes(32) != fixed().derive("a", "b").bytes(32)


def test_seeds_and_their_labels_give_different_streams_and_repeat() -> None:
    streams = [
        KeyedGenerator.from_seed(seed, *labels).bytes(32) for seed in (-1, 0, 1) for labels in ((), ("a",))
    ]
    assert len(set(streams)) == len(streams)
    assert KeyedGenerator.from_seed(1, "a").bytes(32) == streams[-1]


def test_the_systems_keys_are_never_the_same() -> None:
    assert len({KeyedGenerator.from_system().bytes(32) for _ in range(8)}) == 8


def test_the_key_digest_names_the_key_and_does_not_show_it() -> None:
    key = bytes(range(32))
    digest = KeyedGenerator(key).key_digest
    assert digest == KeyedGenerator(key).key_digest != KeyedGenerator(key[::-1]).key_digest
    assert key.hex() not in digest
    assert bytes.fromhex(digest) != KeyedGenerator(key).derive().bytes(32)


@pytest.mark.parametrize("word", [0, 1, 2**63, 2**64 - 2**12, 2**64 - 1])
def test_uniforms_stay_inside_the_open_interval_for_every_word(
    word: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stream(self: KeyedGenerator, count: int) -> bytearray:
        return bytearray(word.to_bytes(8, "little") * (count // 8))

    monkeypatch.setattr(KeyedGenerator, "_next", stream)
    generator = fixed()
    assert 0.0 < generator.uniform(1)[0] < 1.0
    assert math.isfinite(generator.normal(1)[0])
    assert generator.poisson_sample(3, 1.0).tolist() == [0, 1, 2]


def test_uniforms_are_uniform() -> None:
    draws = fixed().uniform(20_000)
    assert draws.min() > 0.0
    assert draws.max() < 1.0
    assert stats.kstest(draws, "uniform").pvalue > 0.01


def test_normals_are_standard_and_uncorrelated() -> None:
    draws = fixed().normal(20_000)
    assert abs(draws.mean()) < 4 / math.sqrt(20_000)
    assert draws.std() == pytest.approx(1.0, abs=0.02)
    assert stats.kstest(draws, "norm").pvalue > 0.01
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.03
    assert np.abs(draws).max() > 3.5


def test_a_normal_is_the_quantile_of_its_two_words_to_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    edges = [
        0,
        1,
        2**53 + 1,
        2**53 + 3,
        2**54 + 6,
        2**63,
        2**63 + 1024,
        2**63 + 3072,
        2**64 - 1025,
        2**64 - 1,
    ]
    rng = np.random.default_rng(0).integers(0, 2**64, 2000, np.uint64)
    words = np.concatenate([np.array([[a, b] for a in edges for b in edges], np.uint64), rng.reshape(-1, 2)])
    generator = fixed()
    monkeypatch.setattr(generator, "_next", lambda count: bytearray(words.astype("<u8").tobytes()))
    lows = np.array([float(int(low)) for low in words[:, 1]])  # Python rounds to nearest, ties to even
    halves = [float(int(high) >> 1) for high in words[:, 0]]
    quantiles = ndtri(np.minimum(((lows + 0.5) * 2.0**-64 + halves) * 2.0**-64, 0.5))
    expected = np.where(words[:, 0] & np.uint64(1), quantiles, -quantiles)
    assert np.array_equal(generator.normal(len(words)), expected)


def test_normals_of_two_purposes_are_uncorrelated() -> None:
    one, other = (fixed().derive("purpose", name).normal(20_000) for name in ("a", "b"))
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.03


@settings(max_examples=30, deadline=None)
@given(KEYS, st.integers(0, 300), st.floats(0.0, 1.0))
def test_a_poisson_sample_is_sorted_distinct_and_in_range(key: bytes, population: int, rate: float) -> None:
    sample = KeyedGenerator(key).poisson_sample(population, rate)
    assert sample.dtype == np.int64
    assert (np.diff(sample) > 0).all()
    assert sample.size == 0 or (sample[0] >= 0 and sample[-1] < population)


@settings(max_examples=20, deadline=None)
@given(KEYS, st.integers(0, 300))
def test_rate_one_takes_all_and_rate_zero_none(key: bytes, population: int) -> None:
    assert KeyedGenerator(key).poisson_sample(population, 1.0).tolist() == list(range(population))
    assert KeyedGenerator(key).poisson_sample(population, 0.0).size == 0


def test_a_poisson_sample_has_binomial_size_and_every_unit_its_rate() -> None:
    generator, population, rate, trials = fixed(), 200, 0.1, 2000
    counts = np.zeros(population)
    sizes = np.zeros(trials)
    for trial in range(trials):
        sample = generator.poisson_sample(population, rate)
        counts[sample] += 1
        sizes[trial] = len(sample)
    spread = population * rate * (1 - rate)
    assert sizes.mean() == pytest.approx(population * rate, abs=4 * math.sqrt(spread / trials))
    assert sizes.var() == pytest.approx(spread, rel=0.15)
    assert np.abs(counts / trials - rate).max() < 5 * math.sqrt(rate * (1 - rate) / trials)


@settings(max_examples=30, deadline=None)
@given(KEYS, st.integers(0, 200))
def test_a_permutation_holds_every_index_once(key: bytes, count: int) -> None:
    assert sorted(KeyedGenerator(key).permutation(count).tolist()) == list(range(count))


def test_permutations_are_uniform_over_orders() -> None:
    generator = fixed()
    seen = [tuple(generator.permutation(3).tolist()) for _ in range(1200)]
    _, counts = np.unique(seen, axis=0, return_counts=True)
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 0.01
