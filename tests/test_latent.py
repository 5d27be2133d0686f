"""The latent optimizer: straight-through training to the last digits; the parameter is always Q(latent)."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from fedward.client.latent import LatentSGD
from fedward.common.models import PRECISIONS, SMALLEST, StudentSpec, build_student, initialise
from fedward.common.quantization import fake_quantize
from fedward.common.randomness import KeyedGenerator

torch.set_num_threads(1)


def student(name: str) -> nn.Sequential:
    model = build_student(StudentSpec(name, 1, 16, 16, 3))
    initialise(model, KeyedGenerator.from_seed(5))
    return model


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(6, 1, 16, 16, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2])


def decay(latents: list[Tensor], learning_rate: float) -> None:
    latents[0].mul_(1 - 0.1 * learning_rate)


def tenfold(latents: list[Tensor], learning_rate: float) -> None:
    latents[0].mul_(10.0)


def straight_through(latent: Tensor, precision: str) -> Tensor:
    """Bengio et al. 2013: forward Q(w), backward the identity."""
    return latent + (fake_quantize(latent, precision) - latent).detach()


@pytest.mark.parametrize("name", SMALLEST)
def test_five_steps_equal_straight_through_quantisation_aware_training(name: str) -> None:
    precision, (images, labels) = name.split("-")[0], batch()
    model = student(name)
    names = [key for key, _ in model.named_parameters()]
    theirs = [parameter.detach().clone().requires_grad_(True) for parameter in model.parameters()]
    ours = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer, reference = LatentSGD(model, ours, precision, 0.05), torch.optim.SGD(theirs, lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        reference.zero_grad()
        weights = {key: straight_through(w, precision) for key, w in zip(names, theirs, strict=True)}
        F.cross_entropy(functional_call(model, weights, (images,)), labels).backward()  # type: ignore[no-untyped-call]
        reference.step()
    moved = max(
        float((a - b.detach()).abs().max()) for a, b in zip(ours, student(name).parameters(), strict=True)
    )
    assert moved > 1e-3
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other.detach(), atol=1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(max_examples=20, deadline=None)
@given(rates=st.lists(st.floats(1e-3, 2.0), min_size=1, max_size=4), seed=st.integers(0, 1000))
def test_the_parameter_is_always_exactly_the_image_of_the_latent(
    precision: str, rates: list[float], seed: int
) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 3), nn.GroupNorm(1, 3))
    latents = [torch.randn_like(parameter) for parameter in model.parameters()]
    optimizer = LatentSGD(model, latents, precision, 0.1, decay)
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        for parameter, latent in zip(model.parameters(), latents, strict=True):
            assert torch.equal(parameter.detach(), fake_quantize(latent, precision))
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    for parameter, latent in zip(model.parameters(), latents, strict=True):
        assert torch.equal(parameter.detach(), fake_quantize(latent, precision))


def test_a_step_is_plain_descent_on_the_latent_not_on_its_image() -> None:
    model = nn.Linear(3, 1, bias=False)
    latents = [torch.tensor([[0.1, -0.5, 0.9]])]
    optimizer = LatentSGD(model, latents, "ternary", 0.5)
    model.weight.grad = torch.tensor([[1.0, 0.0, -2.0]])
    optimizer.step()
    assert torch.allclose(latents[0], torch.tensor([[-0.4, -0.5, 1.9]]))


def test_small_steps_add_up_in_the_latent_until_the_code_flips() -> None:
    model = nn.Linear(2, 1, bias=False)
    latents = [torch.tensor([[1.0, 0.5]])]
    optimizer = LatentSGD(model, latents, "ternary", 0.01)
    seen = []
    for _ in range(10):
        model.weight.grad = torch.tensor([[0.0, -1.0]])
        seen.append(bool(model.weight[0, 1] != 0))
        optimizer.step()
    assert not seen[0]
    assert seen[-1]


def test_a_parameter_without_gradient_keeps_its_latent_but_is_still_pulled() -> None:
    model = nn.Linear(2, 2, bias=False)
    latents = [torch.ones(2, 2)]
    seen: list[float] = []

    def halve(values: list[Tensor], rate: float) -> None:
        seen.append(rate)
        values[0].div_(2.0)

    LatentSGD(model, latents, "fp32", 0.25, halve).step()
    assert seen == [0.25]
    assert latents[0].eq(0.5).all()
    assert model.weight.eq(0.5).all()


def test_the_pull_comes_after_the_gradient_step() -> None:
    model = nn.Linear(1, 1, bias=False)
    latents = [torch.tensor([[1.0]])]
    optimizer = LatentSGD(model, latents, "fp32", 1.0, tenfold)
    model.weight.grad = torch.tensor([[0.5]])
    optimizer.step()
    assert latents[0].item() == 5.0


def test_latents_of_another_number_than_parameters_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"longer|shorter"):
        LatentSGD(nn.Linear(2, 2), [torch.zeros(2, 2)], "fp32", 0.1)
