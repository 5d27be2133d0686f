"""The sum of updates is exact in any order and keeps no update; screening is honest to honest sites."""

import random
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward.common.codec import Vector, decode, encode
from fedward.common.config import LocalSettings
from fedward.common.errors import UpdateRefused
from fedward.common.rounding import uplink_step
from fedward.server.aggregation import IntegerMean, norm_bound, screen

Drawn = list[tuple[list[float], int]]
LocalMaker = Callable[..., LocalSettings]
GRID = 2.0**-24
VALUES = st.floats(-500.0, 500.0, width=32)
UPDATES = st.lists(
    st.tuples(st.lists(VALUES, min_size=4, max_size=4), st.integers(1, 1_000_000)), min_size=1, max_size=12
)


def _folded(updates: list[tuple[Vector, int]]) -> IntegerMean:
    mean = IntegerMean(len(updates[0][0]))
    for update, weight in updates:
        mean.add(update, weight)
    return mean


@given(UPDATES, st.randoms(use_true_random=False))
def test_no_order_of_arrival_changes_a_bit(
    drawn: list[tuple[list[float], int]], order: random.Random
) -> None:
    updates = [(np.array(values, np.float32), weight) for values, weight in drawn]
    shuffled = order.sample(updates, len(updates))
    assert _folded(updates).mean().tobytes() == _folded(shuffled).mean().tobytes()


def test_a_float_sum_of_the_same_updates_would_depend_on_the_order() -> None:
    """The reason for the integers: what the property above holds for is not true of every sum."""
    updates = np.random.default_rng(0).normal(size=(20, 1000)).astype(np.float32)
    forward = sum(updates[1:], updates[0].copy())
    backward = sum(updates[-2::-1], updates[-1].copy())
    assert forward.tobytes() != backward.tobytes()
    weighted = [(update, 7) for update in updates]
    assert _folded(weighted).mean().tobytes() == _folded(weighted[::-1]).mean().tobytes()


@given(UPDATES)
def test_the_mean_is_the_weighted_mean_to_the_grid(drawn: Drawn) -> None:
    updates = [(np.array(values, np.float32), weight) for values, weight in drawn]
    weights = np.array([weight for _, weight in updates], np.float64)
    exact = np.average([update.astype(np.float64) for update, _ in updates], axis=0, weights=weights)
    error = np.abs(_folded(updates).mean() - exact)
    assert (error <= GRID / 2 + np.abs(exact) * 2.0**-23).all()


def test_values_below_the_grid_are_rounded_to_it_and_not_cut_off() -> None:
    """Cutting off would pull every mean toward nought."""
    update = np.array([0.75, -0.75, 0.25, 1.5], np.float32) * np.float32(GRID)
    assert (_folded([(update, 3)]).mean() / GRID).tolist() == [1.0, -1.0, 0.0, 2.0]


def test_the_largest_sum_that_is_let_in_does_not_overflow() -> None:
    largest = np.nextafter(np.float32(512), np.float32(0))
    mean = IntegerMean(2)
    mean.add(np.array([largest, -largest]), 2**29)
    mean.add(np.array([largest, -largest]), 2**29 - 1)
    assert mean.mean().tolist() == [largest, -largest]


@pytest.mark.parametrize("value", [512.0, -512.0, 3e38, np.inf, -np.inf, np.nan])
def test_a_value_that_the_grid_does_not_hold_is_refused_and_changes_nothing(value: float) -> None:
    mean = _folded([(np.array([1.0, 2.0], np.float32), 3)])
    with pytest.raises(UpdateRefused, match="512"):
        mean.add(np.array([0.0, value], np.float32), 1)
    assert (mean.mean().tolist(), mean.weight, mean.replies) == ([1.0, 2.0], 3, 1)


@pytest.mark.parametrize("weight", [0, -1, 2**30 - 3, 2**63])
def test_a_weight_that_could_overflow_is_refused_and_changes_nothing(weight: int) -> None:
    mean = _folded([(np.array([1.0, 2.0], np.float32), 3)])
    with pytest.raises(UpdateRefused, match="weight"):
        mean.add(np.array([0.0, 0.0], np.float32), weight)
    assert (mean.mean().tolist(), mean.weight, mean.replies) == ([1.0, 2.0], 3, 1)


def test_memory_does_not_grow_with_the_number_of_updates() -> None:
    assert _peak_bytes(100) < 1.2 * _peak_bytes(3)


def _peak_bytes(updates: int) -> int:
    rng = np.random.default_rng(0)
    tracemalloc.start()
    mean = IntegerMean(10_000)
    for _ in range(updates):
        mean.add(rng.normal(size=10_000).astype(np.float32), 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def _worst_honest_update(
    local: LocalSettings, learning_rate: float, records: int, declared: int, seed: int
) -> Vector:
    """Every drawn unit's gradient is as long as the clip allows, and all point the same way in every step."""
    rng = np.random.default_rng(seed)
    count, clip = 2000, local.max_grad_norm
    direction = rng.normal(size=count)
    direction *= clip / np.linalg.norm(direction)
    update = np.zeros(count)
    for _ in range(local.local_steps):
        drawn = rng.binomial(records, local.sample_rate)
        noise = rng.normal(size=count) * local.noise_multiplier * clip
        update += learning_rate * (drawn * direction + noise) / (local.sample_rate * declared)
    return decode(encode(update.astype(np.float32), "int8"), count, "int8")


@pytest.mark.parametrize(
    ("records", "declared"), [(1, 10), (3, 10), (10, 10), (588, 590), (100_000, 100_000)]
)
@pytest.mark.parametrize("rate", [0.01, 0.25, 1.0])
@pytest.mark.parametrize(("sigma", "steps"), [(0.0, 1), (0.7, 5), (9.57, 1), (60.0, 40)])
def test_no_honest_update_is_refused(
    make_local: LocalMaker, records: int, declared: int, rate: float, sigma: float, steps: int
) -> None:
    local = make_local(sample_rate=rate, noise_multiplier=sigma, local_steps=steps, max_grad_norm=0.4)
    bound = norm_bound(local, 0.3, declared, 2000)
    for seed in range(5):
        screen(_worst_honest_update(local, 0.3, records, declared, seed), bound)


@given(
    st.sampled_from([10, 590, 1_000_000]),
    st.floats(0.05, 1.0),
    st.floats(0.0, 60.0),
    st.integers(1, 40),
    st.floats(0.01, 10.0),
)
@settings(max_examples=60)
def test_the_bound_is_public_and_no_more_than_a_few_times_an_honest_norm(
    make_local: LocalMaker, declared: int, rate: float, sigma: float, steps: int, clip: float
) -> None:
    local = make_local(sample_rate=rate, noise_multiplier=sigma, local_steps=steps, max_grad_norm=clip)
    bound = norm_bound(local, 0.3, declared, 60_000)
    fully_drawn_and_aligned = declared
    honest = 0.3 * steps * (fully_drawn_and_aligned + sigma * 60_000**0.5) * clip / (rate * declared)
    assert bound <= 1.2 * honest
    update = np.full(60_000, np.float32(2 * honest / 60_000**0.5))
    with pytest.raises(UpdateRefused, match="above"):
        screen(update, bound)


def test_without_noise_a_large_site_moves_by_its_clip_a_step(
    make_local: LocalMaker,
) -> None:
    local = make_local(noise_multiplier=0.0, sample_rate=0.1, local_steps=3, max_grad_norm=2.0)
    assert 3 * 0.5 * 2.0 < norm_bound(local, 0.5, 100_000, 60_000) < 1.2 * 3 * 0.5 * 2.0


def test_a_small_site_is_allowed_its_larger_noise(make_local: LocalMaker) -> None:
    local = make_local(noise_multiplier=5.0)
    small, large = (norm_bound(local, 1.0, count, 60_000) for count in (10, 10_000))
    assert small > 200 * large


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_whatever_the_bound(value: float) -> None:
    with pytest.raises(UpdateRefused, match="NaN or infinite"):
        screen(np.array([0.0, value], np.float32), float("inf"))


def test_a_norm_too_large_for_float32_is_still_a_norm() -> None:
    with pytest.raises(UpdateRefused, match="above"):
        screen(np.full(1000, 3e38, np.float32), 1.0)


@pytest.mark.parametrize("codec", ["coded8", "coded4", "coded3", "coded2"])
@pytest.mark.parametrize("declared", [10, 590, 100_000])
@pytest.mark.parametrize(("sigma", "steps"), [(0.7, 5), (9.57, 1), (60.0, 40)])
@pytest.mark.parametrize("count", [3, 2000])
def test_no_honest_update_is_refused_for_being_rounded_at_the_public_step(
    make_local: LocalMaker, codec: str, declared: int, sigma: float, steps: int, count: int
) -> None:
    """Even one whose norm is at the bound before it is rounded, wherever its values lie in their steps."""
    local = make_local(noise_multiplier=sigma, local_steps=steps, max_grad_norm=0.4)
    step, plain = uplink_step(codec, local, 0.3, declared), norm_bound(local, 0.3, declared, count)
    for seed in range(20):
        direction = np.random.default_rng(seed).normal(size=count)
        update = (direction * plain / np.linalg.norm(direction)).astype(np.float32)
        rounded = decode(encode(update, codec, step), count, codec, step)
        screen(rounded, norm_bound(local, 0.3, declared, count, codec))


@pytest.mark.parametrize(
    ("codec", "most"), [("coded8", 1.001), ("coded4", 1.01), ("coded3", 1.02), ("coded2", 1.06)]
)
def test_rounding_widens_the_bound_by_little(make_local: LocalMaker, codec: str, most: float) -> None:
    local = make_local(noise_multiplier=4.0, sample_rate=0.25)
    plain, wide = norm_bound(local, 0.3, 590, 60_000), norm_bound(local, 0.3, 590, 60_000, codec)
    assert plain < wide < most * plain
    assert norm_bound(local, 0.3, 590, 60_000, "int8") == plain


@given(st.permutations(range(6)), st.sampled_from(["coded8", "coded4", "coded3", "coded2"]))
@settings(max_examples=20, deadline=None)
def test_the_sum_of_rounded_updates_is_exact_in_any_order(order: list[int], codec: str) -> None:
    step = 0.37
    drawn = [np.random.default_rng(seed).normal(size=50).astype(np.float32) for seed in range(6)]
    updates = [
        (decode(encode(one, codec, step), 50, codec, step), 590 + 10 * k) for k, one in enumerate(drawn)
    ]
    shuffled = _folded([updates[place] for place in order])
    assert shuffled.mean().tobytes() == _folded(updates).mean().tobytes()
    exact = np.average([one for one, _ in updates], axis=0, weights=[weight for _, weight in updates])
    assert np.abs(shuffled.mean() - exact).max() <= GRID
