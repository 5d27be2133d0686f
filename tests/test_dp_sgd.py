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

from fedward.client.dp_sgd import KeyedDPOptimizer, clip_below, grid_step
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
    ) -> None:
        self.parameters = [nn.Parameter(torch.zeros(size)) for size in sizes]
        inner = torch.optim.SGD(self.parameters, lr=1.0)
        self.optimizer = KeyedDPOptimizer(inner, key(seed), sigma, clip, denominator)

    def by_parameter(self, batch: Tensor) -> list[Tensor]:
        return [
            part.clone() for part in torch.split(batch, [part.numel() for part in self.parameters], dim=1)
        ]

    def clipped_sum(self, *batches: Tensor) -> Tensor:
        """What the noise is added to, float64 (d,)."""
        for batch in batches:
            self.optimizer.accumulate(self.by_parameter(batch))
        none = [torch.zeros(part.numel(), dtype=torch.float64) for part in self.parameters]
        held = [part.summed_grad for part in self.parameters]  # type: ignore[attr-defined]
        return torch.cat([own if own is not None else zero for own, zero in zip(held, none, strict=True)])

    def __call__(self, *batches: Tensor) -> Tensor:
        """The gradient (d,) after one logical step over batches (n, d)."""
        for batch in batches:
            self.optimizer.accumulate(self.by_parameter(batch))
        self.optimizer.finish()
        moved = -torch.cat([part.detach().clone() for part in self.parameters])
        for part in self.parameters:
            part.data.zero_()
        return moved


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
    with_it, without = Step(clip=clip).clipped_sum(more), Step(clip=clip).clipped_sum(there)
    assert with_it.isfinite().all()
    assert (with_it - without).norm() <= clip  # exactly C: rounding has its room already


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 80),
    st.integers(0, 80),
    st.sampled_from([1e-6, 0.3, 0.7, 1.0, 50.0]),
    st.sampled_from([1e-3, 1.0, 1e3]),
    st.integers(0, 1000),
)
def test_a_sum_of_units_has_no_rounding_of_its_own(
    one: int, two: int, clip: float, magnitude: float, seed: int
) -> None:
    """Bit for bit: what a unit adds is the same in any company, so sensitivity is one unit's length."""
    here, there = units(one, clip * magnitude, seed), units(two, clip * magnitude, seed + 1)
    both = Step(clip=clip).clipped_sum(torch.cat([here, there]))
    assert torch.equal(both, Step(clip=clip).clipped_sum(here) + Step(clip=clip).clipped_sum(there))
    assert torch.equal(both, Step(clip=clip).clipped_sum(there, here))


def test_the_largest_units_that_float32_must_add_are_added_exactly() -> None:
    same = torch.zeros(64, 12)
    same[:, 3] = 1e6
    for clip in (1.0, 0.7, 1.9999):
        alone = Step(clip=clip).clipped_sum(same[:1])
        assert torch.equal(Step(clip=clip).clipped_sum(same), 64 * alone)


@pytest.mark.parametrize("scale", [0.05, 0.3, 3.0])
def test_a_unit_of_many_parameters_keeps_to_the_clip_in_spite_of_rounding(scale: float) -> None:
    sizes = (3000, 700, 40)
    unit = scale * torch.randn(1, sum(sizes), generator=torch.Generator().manual_seed(0))
    assert 0.99 < float(Step(sizes=sizes).clipped_sum(unit).norm()) <= 1.0


def test_a_unit_within_the_clip_counts_whole_and_a_larger_one_counts_c() -> None:
    small = torch.zeros(1, 12)
    small[0, 0], small[0, 9] = 0.3, -0.4
    assert torch.allclose(Step(clip=1.0)(small), small[0], atol=2e-6)
    assert torch.allclose(Step(clip=0.25)(small), small[0] / 2, rtol=1e-3)


@given(st.floats(1e-6, 1e6))
def test_the_margin_for_rounding_costs_less_than_a_ten_thousandth_of_the_clip(clip: float) -> None:
    assert 0.9999 * clip < clip_below(clip) < clip


@pytest.mark.parametrize("scale", [0.001, 0.05, 3.0])
def test_the_grid_lengthens_no_coordinate(scale: float) -> None:
    unit = scale * torch.randn(1, 3740, generator=torch.Generator().manual_seed(0))
    cut = Step(sizes=(3000, 700, 40)).clipped_sum(unit)
    assert (cut.abs() <= unit[0].abs().double() * (1 + 2.0**-22)).all()
    assert (cut * unit[0] >= 0).all()


@given(st.floats(1e-6, 1e6))
def test_the_clip_is_at_most_2_to_the_19_steps_of_a_grid_that_binary_holds_exactly(clip: float) -> None:
    step = grid_step(clip)
    assert math.frexp(step)[0] == 0.5
    assert 2**18 < clip / step <= 2**19


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
    grid = grid_step(0.5)
    expected = np.rint(draws * 2.0 * 0.5 / grid) * grid / 10.0
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
    gradient = Step(0.5, clip)(units(6)).double() / grid_step(clip)
    assert torch.equal(gradient, gradient.round())
    assert gradient.abs().max() > 1000


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 20), st.sampled_from([0.5, 10.0, 147.0]))
def test_the_denominator_is_the_public_constant_and_not_the_batch(count: int, denominator: float) -> None:
    batch = units(count)
    summed = Step()(batch)
    assert torch.allclose(Step(denominator=denominator)(batch) * denominator, summed, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 15), st.lists(st.integers(0, 15), max_size=3), st.integers(0, 100))
def test_physical_batches_change_nothing(count: int, cuts: list[int], seed: int) -> None:
    batch = units(count, seed=seed)
    edges = [0, *sorted(min(cut, count) for cut in cuts), count]
    parts = [batch[start:stop] for start, stop in itertools.pairwise(edges)]
    assert torch.equal(Step(1.0)(*parts), Step(1.0)(batch))


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
