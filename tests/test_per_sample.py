"""Per-sample gradients: equal to batches of one, layer by layer, or refused by name."""

import itertools
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedward.common import per_sample
from fedward.common.errors import SettingRefused
from fedward.common.models import FAMILIES, StudentSpec, build_student, initialise
from fedward.common.per_sample import PerSampleGradients, parametric_layers
from fedward.common.randomness import KeyedGenerator
from fedward.common.transformer import Size, vision_transformer

torch.set_num_threads(1)
Loss = Callable[[Tensor], Tensor]
KERNELS: st.SearchStrategy[Any] = st.sampled_from([1, 3, 5, (1, 3), (3, 1)])
STEPS: st.SearchStrategy[Any] = st.sampled_from([1, 2, (1, 2)])
PADDINGS: st.SearchStrategy[Any] = st.sampled_from([0, 1, 2, (0, 1)])


def weights_of(rows: Tensor) -> Tensor:
    """A loss by row without symmetry: a fixed quadratic of whatever the model puts out."""
    flat = rows.flatten(1)
    slope = torch.linspace(-1, 1, flat.shape[1], dtype=flat.dtype)
    return (flat * slope).sum(dim=1) + (flat.square() * slope.flip(0)).sum(dim=1)


def batches_of_one(model: nn.Module, images: Tensor, views: int = 1, loss: Loss = weights_of) -> list[Tensor]:
    """The definition: each row alone through plain autograd, averaged over a unit's rows."""
    parameters = list(model.parameters())
    by_row = []
    for row in range(len(images)):
        alone = loss(model(images[row : row + 1])).sum()
        by_row.append(torch.autograd.grad(alone, parameters))
    stacked = [torch.stack(gradients) for gradients in zip(*by_row, strict=True)]
    return [gradient.unflatten(0, (-1, views)).mean(dim=1) for gradient in stacked]  # type: ignore[no-untyped-call]


def assert_exact(model: nn.Module, images: Tensor, views: int = 1, tolerance: float = 1e-9) -> None:
    expected = batches_of_one(model, images, views)
    actual = PerSampleGradients(model).compute(images, weights_of, views)
    for one, other in zip(actual, expected, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, rtol=tolerance, atol=tolerance)


def inputs(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_convolution_equals_batches_of_one(data: st.DataObject) -> None:
    draw = data.draw
    groups, views = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 3]))
    layer = nn.Conv2d(
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 3)),
        draw(KERNELS),
        stride=draw(STEPS),
        padding=draw(PADDINGS),
        dilation=draw(st.sampled_from([1, 1, 2])),
        groups=groups,
        bias=draw(st.booleans()),
    )
    height, width = draw(st.integers(9, 12)), draw(st.integers(9, 12))
    images = inputs(views * draw(st.integers(1, 3)), layer.in_channels, height, width)
    assert_exact(nn.Sequential(layer, nn.Tanh()).double(), images, views)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 3), st.booleans(), st.sampled_from([1, 3]), st.sampled_from([0, 1, 4])
)
def test_any_depthwise_convolution_equals_batches_of_one(
    channels: int, multiplier: int, bias: bool, views: int, units: int
) -> None:
    layer = nn.Conv2d(channels, channels * multiplier, 3, padding=1, groups=channels, bias=bias)
    model = nn.Sequential(layer, nn.Tanh()).double()
    if units:
        assert_exact(model, inputs(views * units, channels, 6, 5), views)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.booleans(),
    st.lists(st.integers(1, 3), max_size=2),
    st.sampled_from([1, 3]),
    st.integers(1, 3),
)
def test_any_linear_layer_on_rows_and_on_tokens_equals_batches_of_one(
    features: int, outputs: int, bias: bool, tokens: list[int], views: int, units: int
) -> None:
    model = nn.Sequential(nn.Linear(features, outputs, bias=bias), nn.Tanh()).double()
    assert_exact(model, inputs(views * units, *tokens, features), views)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(2, 3),
    st.booleans(),
    st.lists(st.integers(2, 4), min_size=1, max_size=2),
    st.sampled_from([1, 3]),
    st.integers(1, 3),
)
def test_any_group_norm_equals_batches_of_one(
    groups: int, by_group: int, bias: bool, positions: list[int], views: int, units: int
) -> None:
    layer = nn.GroupNorm(groups, groups * by_group, eps=1e-3, bias=bias)
    nn.init.normal_(layer.weight)
    model = nn.Sequential(layer, nn.Tanh()).double()
    assert_exact(model, inputs(views * units, groups * by_group, *positions), views)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([nn.RMSNorm, nn.LayerNorm]),
    st.integers(2, 5),
    st.lists(st.integers(1, 4), max_size=2),
    st.sampled_from([1, 3]),
    st.integers(1, 3),
    st.booleans(),
)
def test_any_norm_of_tokens_equals_batches_of_one(
    kind: type[nn.RMSNorm] | type[nn.LayerNorm],
    width: int,
    tokens: list[int],
    views: int,
    units: int,
    bias: bool,
) -> None:
    shape = [tokens[-1], width] if len(tokens) > 1 else width
    layer = nn.RMSNorm(shape, eps=1e-3) if kind is nn.RMSNorm else nn.LayerNorm(shape, eps=1e-3, bias=bias)
    nn.init.normal_(layer.weight)
    assert_exact(nn.Sequential(layer, nn.Tanh()).double(), inputs(views * units, *tokens, width), views)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([1, 3]),
    st.integers(4, 17),
    st.integers(4, 17),
    st.builds(
        lambda heads, of_head, depth, expansion, shared: Size(
            heads * of_head, depth, heads, expansion, shared
        ),
        st.integers(1, 3),
        st.integers(1, 4),
        st.integers(1, 2),
        st.integers(1, 4),
        st.booleans(),
    ),
    st.sampled_from([1, 3]),
)
def test_any_vision_transformer_equals_batches_of_one(
    channels: int, height: int, width: int, size: Size, views: int
) -> None:
    model = vision_transformer(channels, height, width, 3, size)
    initialise(model, KeyedGenerator.from_seed(1))
    assert_exact(model.double(), inputs(2 * views, channels, height, width), views, tolerance=1e-7)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(1, 14), st.sampled_from([1, 2]))
def test_parts_are_of_one_size_within_the_limit_and_together_the_whole(
    units: int, most: int, views: int
) -> None:
    model, images = small(), torch.randn(units * views, 1, 6, 6)
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    whole = PerSampleGradients(model).compute(images, weights_of, views)
    with mock.patch.object(per_sample, "PART_BYTES", most * size + 3):
        parts = list(PerSampleGradients(model).in_parts(images, weights_of, views))
    lengths = {len(part[0]) for part in parts}
    assert len(lengths) == 1
    assert lengths.pop() <= most
    for one, other in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.allclose(one, torch.cat(other), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("family", "channels", "views"), itertools.product(FAMILIES, (1, 3), (1, 3)))
def test_every_family_of_students_equals_batches_of_one(family: str, channels: int, views: int) -> None:
    model = build_student(StudentSpec(f"fp32-{family}", channels, 16, 17, 3))
    initialise(model, KeyedGenerator.from_seed(1))
    assert_exact(model.double(), inputs(2 * views, channels, 16, 17), views)


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def test_an_empty_batch_gives_gradients_of_no_unit() -> None:
    model = small()
    gradients = PerSampleGradients(model).compute(torch.zeros(0, 1, 6, 6), weights_of, 3)
    assert [g.shape for g in gradients] == [(0, *p.shape) for p in model.parameters()]


def test_the_parameters_and_the_model_are_left_as_they_were() -> None:
    model = small()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    engine = PerSampleGradients(model)
    engine.compute(torch.ones(2, 1, 6, 6), weights_of)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert all(not layer._forward_hooks for layer in model.modules())


def test_a_failing_loss_leaves_no_hook_and_no_frozen_parameter() -> None:
    model = small()

    def fails(rows: Tensor) -> Tensor:
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        PerSampleGradients(model).compute(torch.ones(2, 1, 6, 6), fails)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(not layer._forward_hooks for layer in model.modules())


def test_a_second_call_gives_the_same_gradients() -> None:
    engine, images = PerSampleGradients(small()), torch.ones(2, 1, 6, 6)
    one, two = engine.compute(images, weights_of), engine.compute(images, weights_of)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e38])
def test_a_broken_record_does_not_touch_the_gradients_of_others(family: str, views: int, bad: float) -> None:
    model = build_student(StudentSpec(f"fp32-{family}", 1, 16, 16, 3))
    initialise(model, KeyedGenerator.from_seed(1))
    images = inputs(3 * views, 1, 16, 16).float()
    clean = PerSampleGradients(model).compute(images, weights_of, views)
    images[views : 2 * views] = bad
    dirty = PerSampleGradients(model).compute(images, weights_of, views)
    for one, other in zip(clean, dirty, strict=True):
        assert torch.allclose(one[[0, 2]], other[[0, 2]], atol=1e-5)


class TwoLinears(nn.Module):
    """Two layers of one shape, used in an order that a subclass chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)


class Backwards(TwoLinears):
    def forward(self, x: Tensor) -> Tensor:
        return self.first(torch.tanh(self.second(x)))  # type: ignore[no-any-return]


class OneTwiceOtherNever(TwoLinears):
    def forward(self, x: Tensor) -> Tensor:
        return self.first(torch.tanh(self.first(x)))  # type: ignore[no-any-return]


class BothButOneTwice(TwoLinears):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(torch.tanh(self.first(x))))  # type: ignore[no-any-return]


class OneNever(TwoLinears):
    def forward(self, x: Tensor) -> Tensor:
        return self.first(x)  # type: ignore[no-any-return]


class AddedInPlace(TwoLinears):
    def forward(self, x: Tensor) -> Tensor:
        out = self.second(torch.tanh(self.first(x)))
        out += x
        return out.tanh_()  # type: ignore[no-any-return]


class BareParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def test_layers_used_in_another_order_than_they_are_listed_get_their_own_gradient() -> None:
    assert_exact(Backwards().double(), inputs(3, 4))


@pytest.mark.parametrize("model", [OneTwiceOtherNever(), BothButOneTwice(), OneNever()])
def test_a_layer_used_twice_or_never_is_refused(model: nn.Module) -> None:
    with pytest.raises(SettingRefused, match="exactly once"):
        PerSampleGradients(model).compute(torch.ones(2, 4), weights_of)


@pytest.mark.parametrize(
    "model",
    [
        AddedInPlace(),
        nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)),
    ],
)
def test_in_place_steps_behind_a_layer_are_refused(model: nn.Module) -> None:
    with pytest.raises(SettingRefused, match="in-place"):
        PerSampleGradients(model).compute(torch.ones(2, 4), weights_of)


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), "BatchNorm2d"),
        (nn.BatchNorm2d(2, affine=False), "BatchNorm2d"),
        (nn.BatchNorm1d(2, affine=False, track_running_stats=False), "BatchNorm1d"),
        (nn.SyncBatchNorm(2), "SyncBatchNorm"),
        (nn.MultiheadAttention(4, 2), "MultiheadAttention"),
        (nn.InstanceNorm2d(4, affine=True), "InstanceNorm2d"),
        (nn.Embedding(4, 2), "Embedding"),
        (nn.Conv1d(1, 1, 1), "Conv1d"),
        (nn.ConvTranspose2d(1, 1, 1), "ConvTranspose2d"),
        (nn.Sequential(nn.Linear(4, 4), BareParameter()), "BareParameter"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "ParametrizedLinear"),
        (type("OwnLinear", (nn.Linear,), {})(4, 4), "OwnLinear"),
        (tied(), "share a parameter"),
    ],
)
def test_a_layer_without_an_exact_gradient_is_refused_by_name(model: nn.Module, named: str) -> None:
    for refuse in (parametric_layers, PerSampleGradients):
        with pytest.raises(SettingRefused, match=named):
            refuse(model)


def test_a_range_observer_on_activations_is_refused_by_name() -> None:
    observer = torch.ao.quantization.FakeQuantize()  # type: ignore[no-untyped-call]
    with pytest.raises(SettingRefused, match=r"FakeQuantize|Observer"):
        PerSampleGradients(nn.Sequential(nn.Linear(4, 4), observer, nn.Linear(4, 2)))


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.Conv2d(1, 2, 3, padding="same")],
)
def test_a_padding_without_a_rule_is_refused(layer: nn.Module) -> None:
    with pytest.raises(SettingRefused, match="padding"):
        PerSampleGradients(layer).compute(torch.ones(1, 1, 5, 5), weights_of)


def test_layers_come_in_the_order_of_parameters() -> None:
    model = build_student(StudentSpec("fp32-depthwise", 1, 28, 28, 2))
    owned = [p for layer in parametric_layers(model) for p in layer.parameters(recurse=False)]
    assert all(a is b for a, b in zip(owned, model.parameters(), strict=True))


def test_rows_that_do_not_fill_whole_units_are_refused() -> None:
    for rows, views in ((3, 2), (2, 3), (5, 2)):
        with pytest.raises(ValueError, match="views"):
            PerSampleGradients(nn.Linear(4, 2)).compute(torch.ones(rows, 4), weights_of, views)


def test_a_loss_that_is_already_a_mean_is_refused() -> None:
    # Its gradients would shrink with the batch, and with them everything that the clip is chosen for.
    labels = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="one value"):
        PerSampleGradients(nn.Linear(4, 2)).compute(
            torch.ones(3, 4), lambda rows: F.cross_entropy(rows, labels)
        )
