"""EWC's pull: exactly its closed form, stable for any strength, still at the anchor."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedward.client.ewc import ElasticPull

torch.set_num_threads(1)
VALUES = st.lists(st.floats(-10, 10, width=32), min_size=5, max_size=5)
FISHER = st.lists(st.floats(0, 16, width=32), min_size=5, max_size=5)


def pulled(latent: Tensor, anchor: Tensor, fisher: Tensor, ewc_lambda: float, rate: float) -> Tensor:
    latents = [latent.clone()]
    ElasticPull([anchor], [fisher], ewc_lambda)(latents, rate)
    return latents[0]


@settings(max_examples=40, deadline=None)
@given(VALUES, VALUES, FISHER, st.floats(0, 1e9), st.floats(1e-6, 10.0))
def test_the_pull_is_the_closed_form(
    latent: list[float], anchor: list[float], fisher: list[float], ewc_lambda: float, rate: float
) -> None:
    theta, start, weight = (torch.tensor(values, dtype=torch.float64) for values in (latent, anchor, fisher))
    pull = rate * ewc_lambda * weight
    expected = (theta + pull * start) / (1 + pull)
    actual = pulled(theta.float(), start.float(), weight.float(), ewc_lambda, rate)
    assert torch.allclose(actual.double(), expected, rtol=1e-6, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(VALUES, VALUES, FISHER, st.floats(0, 1e9), st.floats(1e-6, 10.0))
def test_the_pull_minimises_the_penalty_around_the_step(
    latent: list[float], anchor: list[float], fisher: list[float], ewc_lambda: float, rate: float
) -> None:
    theta, start, weight = (torch.tensor(values, dtype=torch.float64) for values in (latent, anchor, fisher))
    best = pulled(theta, start, weight, ewc_lambda, rate)
    # Zero gradient of |x - theta|^2 / (2 rate) + lambda/2 F (x - anchor)^2, in units of its own curvature.
    slope = (best - theta) / rate + ewc_lambda * weight * (best - start)
    assert (slope / (1 / rate + ewc_lambda * weight)).abs().max() < 1e-12


@settings(max_examples=30, deadline=None)
@given(VALUES, FISHER, st.floats(0, 1e9), st.floats(1e-6, 1e4))
def test_the_anchor_is_a_fixed_point_to_the_last_bit(
    anchor: list[float], fisher: list[float], ewc_lambda: float, rate: float
) -> None:
    start = torch.tensor(anchor)
    assert torch.equal(pulled(start, start, torch.tensor(fisher), ewc_lambda, rate), start)


@settings(max_examples=30, deadline=None)
@given(VALUES, VALUES, st.floats(0, 1e9), st.floats(1e-6, 1e4))
def test_no_fisher_is_no_pull_to_the_last_bit(
    latent: list[float], anchor: list[float], ewc_lambda: float, rate: float
) -> None:
    theta = torch.tensor(latent)
    assert torch.equal(pulled(theta, torch.tensor(anchor), torch.zeros(5), ewc_lambda, rate), theta)


def test_lambda_0_is_no_pull() -> None:
    theta = torch.tensor([1.0, -2.0])
    assert torch.equal(pulled(theta, torch.zeros(2), torch.ones(2), 0.0, 1.0), theta)


@pytest.mark.parametrize("ewc_lambda", [1e9, 1e30, 1e300])
@pytest.mark.parametrize("fisher", [1.0, 1e30])
def test_the_strongest_pull_lands_on_the_anchor_and_nowhere_beyond(ewc_lambda: float, fisher: float) -> None:
    anchor = torch.tensor([3.0, -1e4, 0.0])
    actual = pulled(torch.tensor([1e6, 5.0, -2.0]), anchor, torch.full((3,), fisher), ewc_lambda, 1.0)
    assert torch.allclose(actual, anchor, atol=1e-2)


def test_a_thousand_strong_steps_do_not_swing() -> None:
    latents, anchor = [torch.tensor([5.0])], torch.tensor([1.0])
    pull = ElasticPull([anchor], [torch.tensor([1.0])], 1e9)
    for _ in range(1000):
        latents[0].add_(0.1)
        pull(latents, 1.0)
    assert latents[0].item() == pytest.approx(1.0, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(VALUES, VALUES, FISHER, st.floats(0, 1e9))
def test_the_pull_stays_between_latent_and_anchor(
    latent: list[float], anchor: list[float], fisher: list[float], ewc_lambda: float
) -> None:
    theta, start = torch.tensor(latent), torch.tensor(anchor)
    actual = pulled(theta, start, torch.tensor(fisher), ewc_lambda, 0.5)
    assert (actual >= torch.minimum(theta, start) - 1e-5).all()
    assert (actual <= torch.maximum(theta, start) + 1e-5).all()


def test_each_parameter_has_its_own_anchor_and_neither_is_changed() -> None:
    anchors, fishers = [torch.zeros(2), torch.ones(1)], [torch.ones(2), torch.tensor([3.0])]
    latents = [torch.full((2,), 4.0), torch.tensor([5.0])]
    ElasticPull(anchors, fishers, 1.0)(latents, 1.0)
    assert latents[0].tolist() == [2.0, 2.0]
    assert latents[1].tolist() == [2.0]
    assert [a.tolist() for a in anchors] == [[0.0, 0.0], [1.0]]
    assert [f.tolist() for f in fishers] == [[1.0, 1.0], [3.0]]


def test_a_missing_anchor_is_an_error_not_a_parameter_without_pull() -> None:
    with pytest.raises(ValueError, match=r"longer|shorter"):
        ElasticPull([torch.zeros(2)], [torch.ones(2)], 1.0)([torch.zeros(2), torch.zeros(2)], 1.0)
