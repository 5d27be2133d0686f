"""The private step: no unit weighs more than C, the noise is the key's, and public constants divide."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from fedward.client.dp_sgd import GRID, KeyedDPOptimizer, clip_below
from fedward.common.randomness import KeyedGenerator

torch.set_num_threads(1)
SIZES = (7, 5)  # two parameters: the clip is over both


def key(seed: int = 0) -> KeyedGenerator:
    return KeyedGenerator.from_seed(seed, "noise")


class Step:
    """A KeyedDPOptimizer over plain parameters, with the gradient that the inner optimizer was given."""

    def __init__(
        self,
        sigma: float = 0.0,
        clip: float = 1.0,
        denominator: float = 1.0,
        seed: int = 0,
        sizes: tuple[int, ...] = SIZES,
        bound: int = 64,
    ) -> None:
        self.parameters = [nn.Parameter(torch.zeros(size)) for size in sizes]
        inner = torch.optim.SGD(self.parameters, lr=1.0)
        self.optimizer = KeyedDPOptimizer(inner, key(seed), sigma, clip, bound, denominator)

    def hand_over(self, batch: Tensor) -> None:
        parts = batch.split([parameter.numel() for parameter in self.parameters], dim=1)  # type: ignore[no-untyped-call]
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.grad_sample = part.clone()  # type: ignore[attr-defined]

    def grid_sum(self, batch: Tensor) -> Tensor:
        """What the noise is added to: the clipped sum in whole grid steps, float64 (d,)."""
        self.hand_over(batch)
        self.optimizer.clip_and_accumulate()
        summed = torch.cat([parameter.summed_grad for parameter in self.parameters])  # type: ignore[attr-defined]
        return torch.round(summed / (GRID * self.optimizer.max_grad_norm))

    def __call__(self, *batches: Tensor) -> Tensor:
        """The gradient (d,) after one logical step over batches (n, d)."""
        for number, batch in enumerate(batches):
            self.optimizer.signal_skip_step(do_skip=number + 1 < len(batches))
            self.hand_over(batch)
            self.optimizer.step()
            if number + 1 < len(batches):
                self.optimizer.zero_grad()
        gradient = torch.cat([parameter.grad for parameter in self.parameters])  # type: ignore[misc]
        self.optimizer.zero_grad()
        return gradient


def units(count: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(count, sum(SIZES), generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 40),
    st.integers(0, 40),
    st.sampled_from([1e-6, 0.3, 1.0, 50.0]),
    st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e8, 1e18, 1e25, math.inf, math.nan]),
    st.integers(0, 1000),
)
def test_one_unit_more_moves_the_sum_by_at_most_the_clip(
    count: int, place: int, clip: float, magnitude: float, seed: int
) -> None:
    there, extra = units(count, 10 * clip, seed), units(1, seed=seed + 1) * magnitude
    more = torch.cat([there[:place], extra, there[place:]])
    with_it, without = Step(clip=clip).grid_sum(more), Step(clip=clip).grid_sum(there)
    assert with_it.isfinite().all()
    assert (with_it - without).norm() <= 1 / GRID  # exactly C: rounding has its room already


@pytest.mark.parametrize("scale", [0.05, 0.3, 3.0])
def test_many_units_of_many_parameters_keep_to_the_clip_in_spite_of_rounding(scale: float) -> None:
    sizes, count = (3000, 700), 63
    generator = torch.Generator().manual_seed(0)
    batch = scale * torch.randn(count, sum(sizes), generator=generator)
    batch[-1] = batch[:-1].sum(dim=0)  # the unit that rounding helps most points along the sum
    steps = [Step(sizes=sizes).grid_sum(rows) for rows in (batch, batch[:-1])]
    norm = float((steps[0] - steps[1]).norm() * GRID)
    assert 0.99 < norm <= 1.0


def test_a_unit_within_the_clip_counts_whole_and_a_larger_one_counts_c() -> None:
    small = torch.zeros(1, 12)
    small[0, 0], small[0, 9] = 0.3, -0.4
    assert torch.allclose(Step(clip=1.0)(small), small[0], atol=2e-6)
    assert torch.allclose(Step(clip=0.25)(small), small[0] / 2, rtol=1e-3)


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-6, 1e6), st.integers(1, 10**6), st.integers(1, 10**8))
def test_units_are_clipped_below_c_by_a_margin_that_grows_with_what_is_summed(
    clip: float, bound: int, coordinates: int
) -> None:
    below = clip_below(clip, bound, coordinates)
    assert 0 < below < clip
    assert clip_below(clip, 2 * bound, coordinates) <= below
    assert clip_below(clip, bound, 2 * coordinates) <= below


def test_the_margin_costs_a_hospital_of_600_records_less_than_a_thousandth() -> None:
    assert clip_below(1.0, 600, 62_000) > 0.999


def test_the_clip_is_by_unit_and_not_by_batch() -> None:
    opposite = torch.zeros(2, 12)
    opposite[0, 0], opposite[1, 0] = 100.0, -0.5
    assert Step(clip=1.0)(opposite)[0].item() == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_unit_with_a_gradient_that_is_not_finite_counts_as_zero(bad: float) -> None:
    batch = units(4)
    rest = Step()(batch[[0, 2, 3]])
    batch[1, 8] = bad
    assert torch.equal(Step()(batch), rest)


def test_noise_has_standard_deviation_sigma_times_c_over_the_denominator() -> None:
    size, sigma, clip, denominator = 20_000, 1.7, 0.4, 25.0
    noise = Step(sigma, clip, denominator, sizes=(size,))(torch.zeros(0, size)).double().numpy()
    expected = sigma * clip / denominator
    assert noise.std() == pytest.approx(expected, rel=0.03)
    assert abs(noise.mean()) < 4 * expected / math.sqrt(size)
    assert stats.kstest(noise / expected, "norm").pvalue > 0.01


def test_noise_is_drawn_once_a_step_however_many_batches_and_units_came() -> None:
    alone = Step(1.0)(torch.zeros(0, 12))
    for batches in ([torch.zeros(5, 12)], [torch.zeros(3, 12), torch.zeros(0, 12), torch.zeros(2, 12)]):
        assert torch.equal(Step(1.0)(*batches), alone)


def test_an_empty_batch_is_a_step_of_pure_noise_from_the_key() -> None:
    noise = Step(2.0, 0.5, 10.0)(torch.zeros(0, 12))
    draws = key().normal(12)
    expected = np.rint(draws * 2.0 / GRID) * GRID * 0.5 / 10.0
    assert torch.allclose(noise, torch.from_numpy(expected).float(), rtol=1e-6)


def test_the_same_key_gives_the_same_bits_whatever_torchs_own_generator_did() -> None:
    torch.manual_seed(1)
    one = Step(1.0)(units(3))
    torch.manual_seed(2)
    torch.randn(100)
    assert torch.equal(Step(1.0)(units(3)), one)


def test_another_key_another_step_and_another_parameter_give_other_noise() -> None:
    step = Step(1.0, sizes=(6, 6))
    first, second = step(torch.zeros(0, 12)), step(torch.zeros(0, 12))
    other = Step(1.0, seed=1, sizes=(6, 6))(torch.zeros(0, 12))
    halves = [first[:6], first[6:], second[:6], second[6:], other[:6], other[6:]]
    for i, one in enumerate(halves):
        for two in halves[i + 1 :]:
            assert not torch.isclose(one, two).any()


def test_sum_and_noise_lie_on_the_public_grid() -> None:
    clip = 0.7
    gradient = Step(0.5, clip)(units(6)).double() / (GRID * clip)
    assert (gradient - gradient.round()).abs().max() < 0.05  # float32 holds the product to 2^-24
    assert gradient.abs().max() > 1000


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 20), st.sampled_from([0.5, 10.0, 147.0]))
def test_the_denominator_is_the_public_constant_and_not_the_batch(count: int, denominator: float) -> None:
    batch = units(count)
    summed = Step()(batch)
    assert torch.allclose(Step(denominator=denominator)(batch) * denominator, summed, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 15), st.lists(st.integers(0, 15), max_size=3), st.integers(0, 100))
def test_physical_batches_change_no_more_than_rounding(count: int, cuts: list[int], seed: int) -> None:
    batch = units(count, seed=seed)
    edges = [0, *sorted(min(cut, count) for cut in cuts), count]
    parts = [batch[start:stop] for start, stop in itertools.pairwise(edges)]
    assert torch.allclose(Step(1.0)(*parts), Step(1.0)(batch), atol=4 * GRID)


def test_one_step_leaves_nothing_in_the_next() -> None:
    step = Step()
    step(units(5, scale=9.0))
    assert torch.equal(step(torch.zeros(0, 12)), torch.zeros(12))


def test_the_hook_runs_once_a_logical_step() -> None:
    step, seen = Step(1.5), []
    step.optimizer.attach_step_hook(lambda optimizer: seen.append(optimizer.noise_multiplier))
    step(units(2), units(3), units(1))
    step(torch.zeros(0, 12))
    assert seen == [1.5, 1.5]
