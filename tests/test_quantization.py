"""The weight quantisers: codes in range, exact on what is quantised already, nothing hidden."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn

from fedward.common.models import PRECISIONS
from fedward.common.quantization import (
    QUANTIZERS,
    behind,
    dequantize,
    each_precision,
    fake_quantize,
    int4,
    int8,
    is_quantized,
    load_latents,
    ternary,
)

torch.set_num_threads(1)
LARGEST = {"ternary": 1, "int4": 7, "int8": 127}
SHAPES = st.one_of(
    st.tuples(st.integers(1, 4), st.integers(1, 20)),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
)
WEIGHTS = SHAPES.flatmap(
    lambda shape: hnp.arrays(np.float32, shape, elements=st.floats(-1e6, 1e6, width=32))
).map(torch.from_numpy)


@pytest.mark.parametrize("precision", sorted(QUANTIZERS))
@settings(max_examples=40, deadline=None)
@given(latent=WEIGHTS)
def test_codes_are_in_range_and_scales_are_not_negative(precision: str, latent: Tensor) -> None:
    quantized = QUANTIZERS[precision](latent)
    assert quantized.codes.dtype == torch.int8
    assert quantized.codes.shape == latent.shape
    assert quantized.codes.abs().max() <= LARGEST[precision]
    assert quantized.scale.dtype == torch.float32
    assert quantized.scale.shape == (len(latent),)
    assert (quantized.scale >= 0).all()


@pytest.mark.parametrize("precision", sorted(QUANTIZERS))
@settings(max_examples=40, deadline=None)
@given(latent=WEIGHTS)
def test_a_quantised_weight_is_its_own_image_to_the_last_bit(precision: str, latent: Tensor) -> None:
    once = fake_quantize(latent, precision)
    assert torch.equal(fake_quantize(once, precision), once)


@pytest.mark.parametrize("precision", sorted(QUANTIZERS))
def test_gaussian_weights_are_quantised_once_and_for_all(precision: str) -> None:
    latent = torch.randn(500, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    once = QUANTIZERS[precision](latent)
    again = QUANTIZERS[precision](dequantize(once))
    assert torch.equal(once.codes, again.codes)
    assert torch.equal(once.scale, again.scale)


def test_the_largest_weight_of_a_channel_has_the_largest_code() -> None:
    latent = torch.randn(200, 9, generator=torch.Generator().manual_seed(0))
    for precision, largest in LARGEST.items():
        assert QUANTIZERS[precision](latent).codes.abs().amax(dim=1).eq(largest).all()


def test_int4_rounds_to_the_nearest_of_fifteen_levels() -> None:
    quantized = int4(torch.tensor([[7.0, -3.4, 0.6, 0.4, -7.0]]))
    assert quantized.codes.tolist() == [[7, -3, 1, 0, -7]]
    assert quantized.scale.tolist() == [1.0]


def test_each_weight_has_its_own_precision_and_the_rest_stays() -> None:
    latents = [torch.randn(4, 3), torch.randn(4), torch.randn(2, 4)]
    assert each_precision("int8", latents) == ["int8", "fp32", "int8"]
    assert each_precision(("ternary", "int4"), latents) == ["ternary", "fp32", "int4"]
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))
    load_latents(model, latents, ("ternary", "int4"))
    expected = [fake_quantize(latents[0], "ternary"), latents[1], fake_quantize(latents[2], "int4")]
    assert all(torch.equal(p, e) for p, e in zip(model.parameters(), expected, strict=True))


def test_what_comes_behind_a_body_has_the_precisions_that_are_left() -> None:
    body = [torch.randn(4, 3), torch.randn(4)]
    assert behind("int8", body) == "int8"
    assert behind(("ternary", "int4", "int8"), body) == ("int4", "int8")
    assert behind(("ternary",), []) == ("ternary",)


@pytest.mark.parametrize("precision", [(), ("int8",), ("int8", "int8", "int8")])
def test_another_number_of_precisions_than_weights_is_refused(precision: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="do not fit 2 weights"):
        each_precision(precision, [torch.zeros(1, 1), torch.zeros(1), torch.zeros(1, 1)])


def test_ternary_follows_the_threshold_of_its_paper() -> None:
    quantized = ternary(torch.tensor([[0.1, -0.5, 0.9, -1.3]]))  # threshold .7 * .7 = .49
    assert quantized.codes.tolist() == [[0, -1, 1, -1]]
    assert quantized.scale.tolist() == pytest.approx([0.9])


def test_ternary_of_equal_magnitudes_keeps_them_all() -> None:
    assert ternary(torch.tensor([[0.3, -0.3, 0.3]])).codes.tolist() == [[1, -1, 1]]


def test_int8_is_within_half_a_step_and_reaches_127() -> None:
    latent = torch.randn(16, 100, generator=torch.Generator().manual_seed(1))
    quantized = int8(latent)
    error = (dequantize(quantized) - latent).abs()
    assert (error <= 0.5001 * quantized.scale[:, None]).all()
    assert quantized.codes.abs().amax(dim=1).eq(127).all()


@pytest.mark.parametrize("precision", sorted(QUANTIZERS))
def test_channels_do_not_mix(precision: str) -> None:
    latent = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    whole = fake_quantize(latent, precision)
    changed = fake_quantize(torch.cat([latent[:3], 100 * latent[3:]]), precision)
    assert torch.equal(whole[:3], changed[:3])


@pytest.mark.parametrize("precision", sorted(QUANTIZERS))
def test_an_all_zero_channel_stays_zero_with_scale_zero(precision: str) -> None:
    quantized = QUANTIZERS[precision](torch.tensor([[0.0, 0.0], [1.0, -1.0]]))
    assert quantized.scale[0] == 0
    assert dequantize(quantized)[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("precision", sorted(QUANTIZERS))
def test_channels_of_zeros_only_and_no_channel_at_all_are_all_right(precision: str) -> None:
    assert fake_quantize(torch.zeros(3, 2, 2), precision).eq(0).all()
    assert fake_quantize(torch.zeros(0, 4), precision).shape == (0, 4)


@pytest.mark.parametrize("precision", sorted(QUANTIZERS))
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_never_becomes_a_plausible_weight(precision: str, bad: float) -> None:
    weight = fake_quantize(torch.tensor([[1.0, bad, 2.0], [1.0, -1.0, 1.0]]), precision)
    assert not weight[0].isfinite().all()
    assert weight[1].isfinite().all()


@pytest.mark.parametrize("precision", sorted(QUANTIZERS))
@pytest.mark.parametrize("magnitude", [1e-45, 1e-38, 1e37])
def test_the_ends_of_float32_stay_finite(precision: str, magnitude: float) -> None:
    weight = fake_quantize(torch.tensor([[magnitude, -magnitude, magnitude / 3]]), precision)
    assert weight.isfinite().all()
    assert weight.abs().max() <= 1.01 * magnitude + 1e-44


@pytest.mark.parametrize("precision", PRECISIONS)
def test_norms_and_biases_stay_as_they_are(precision: str) -> None:
    bias = torch.tensor([0.1, -0.7])
    assert not is_quantized(bias)
    assert torch.equal(fake_quantize(bias, precision), bias)


def test_fp32_returns_a_copy_that_does_not_follow_the_latent() -> None:
    latent = torch.ones(2, 2)
    weight = fake_quantize(latent, "fp32")
    latent.fill_(5.0)
    assert weight.eq(1).all()


def test_an_unknown_precision_is_an_error_and_never_full_precision() -> None:
    with pytest.raises(KeyError):
        fake_quantize(torch.ones(2, 2), "int3")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_load_latents_writes_the_image_of_every_parameter(precision: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 3))
    latents = [torch.randn_like(parameter) for parameter in model.parameters()]
    load_latents(model, latents, precision)
    for parameter, latent in zip(model.parameters(), latents, strict=True):
        assert torch.equal(parameter.detach(), fake_quantize(latent, precision))


def test_load_latents_refuses_one_too_few() -> None:
    model = nn.Linear(2, 3)
    with pytest.raises(ValueError, match="shorter"):
        load_latents(model, [torch.zeros(3, 2)], "ternary")
