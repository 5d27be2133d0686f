"""Pruning: what stays is a part of what was, whole channels at a time, and no layer is emptied."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedward.common.arithmetic import multiply_adds
from fedward.common.config import LocalSettings
from fedward.common.convolutions import STEP, WIDTHS, Residual, free_convolutions
from fedward.common.datasets import ImageDataset
from fedward.common.errors import SettingRefused
from fedward.common.images import to_tensor
from fedward.common.models import StudentSpec, build_student, flatten, initialise
from fedward.common.randomness import KeyedGenerator
from fedward.server.export import latents_of, to_onnx, widths_of
from fedward.server.pruning import (
    Sensitivity,
    narrowed,
    planned_widths,
    pruned,
    sensitivities,
    whole_widths,
)
from fedward.server.reference import student_logits
from fedward.server.release import run_onnx

LocalMaker = Callable[..., LocalSettings]
CONVOLUTIONAL = sorted(WIDTHS)


def start(local: LocalSettings) -> np.ndarray:
    model = build_student(local.spec)
    initialise(model, KeyedGenerator.from_seed(0))
    return flatten(list(model.parameters())).numpy()


class Marked:
    """A student whose weights say where they stood, and who has large channels in known places.

    Weight i is 1e6 + i, eight times that in the rows of channels that are to stay: all whole numbers, which
    float32 holds exactly. What must be left of it is worked out layer by layer, without torch-pruning.
    """

    def __init__(self, local: LocalSettings, widths: tuple[int, ...], seed: int) -> None:
        self.model, rng = build_student(local.spec), np.random.default_rng(seed)
        own = WIDTHS[local.spec.family]
        chosen = [
            np.sort(rng.choice(all_, kept, replace=False)) for all_, kept in zip(own, widths, strict=True)
        ]
        self._stays = dict(zip(free_convolutions(self.model).values(), chosen, strict=True))
        self._now: Any = None  # the channels of the map that stay; None are all
        self._entered: Any = None  # those of the residual block's input
        self._left: list[torch.Tensor] = []
        count = 0
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(1e6 + torch.arange(count, count + parameter.numel()).view_as(parameter))
                count += parameter.numel()
        self._walk(self.model)

    @property
    def whole(self) -> np.ndarray:
        return flatten(list(self.model.parameters())).numpy()

    @property
    def left(self) -> np.ndarray:
        return flatten(self._left).numpy()

    @torch.no_grad()
    def _walk(self, module: nn.Module) -> None:
        if isinstance(module, Residual):
            self._entered = self._now
        elif isinstance(module, nn.Conv2d):
            self._convolution(module)
        elif isinstance(module, nn.GroupNorm):
            self._left += [module.weight[self._now], module.bias[self._now]]
        elif isinstance(module, nn.Linear):
            rows = module.weight.view(len(module.weight), self._channels or 1, -1)
            self._left += [rows[:, self._now] if self._channels else rows, module.bias]
            self._channels = 0  # no map any more: all of what this layer gives stays
        elif isinstance(module, nn.LayerNorm):
            self._left += [module.weight, module.bias]
        for layer in module.children():
            self._walk(layer)

    def _convolution(self, layer: nn.Conv2d) -> None:
        bound = self._now if layer.groups > 1 else self._entered
        kept = self._stays.get(layer, bound)
        layer.weight[kept] *= 8
        inputs = slice(None) if layer.groups > 1 or self._now is None else self._now
        self._left.append(layer.weight[kept][:, inputs])
        if layer.bias is not None:
            self._left.append(layer.bias[kept])
        self._now, self._channels = kept, layer.out_channels


@st.composite
def narrower(draw: st.DrawFn, family: str) -> tuple[int, ...]:
    return tuple(STEP * draw(st.integers(1, own // STEP)) for own in WIDTHS[family])


@pytest.mark.parametrize("family", CONVOLUTIONAL)
@settings(max_examples=6, deadline=None)
@given(data=st.data(), seed=st.integers(0, 99), side=st.sampled_from([16, 28, 64]))
def test_the_largest_channels_stay_with_everything_that_belongs_to_them_and_nothing_else_does(
    make_local: LocalMaker, family: str, data: st.DataObject, seed: int, side: int
) -> None:
    local = make_local(student=f"fp32-{family}", height=side, width=side)
    widths = data.draw(narrower(family))
    marked = Marked(local, widths, seed)
    np.testing.assert_array_equal(narrowed(local, marked.whole, widths), marked.left)


@pytest.mark.parametrize("family", CONVOLUTIONAL)
def test_the_free_convolutions_have_the_widths(family: str) -> None:
    widths = tuple(STEP * (1 + place % (own // STEP)) for place, own in enumerate(WIDTHS[family]))
    model = build_student(StudentSpec(f"fp32-{family}", 3, 28, 28, 2, widths))
    assert tuple(layer.out_channels for layer in free_convolutions(model).values()) == widths


@pytest.mark.parametrize("family", CONVOLUTIONAL)
def test_nothing_changes_where_nothing_is_pruned(
    make_local: LocalMaker, family: str, phantom: ImageDataset
) -> None:
    local = make_local(student=f"ternary-{family}")
    settings, latents = pruned(local, start(local), phantom.val, 0.0)
    assert settings.spec.widths == WIDTHS[family]
    assert latents.tobytes() == start(local).tobytes()


@pytest.mark.parametrize("student", ["ternary-cnn", "int8-depthwise", "fp32-mobile"])
def test_a_pruned_student_is_exported_and_read_again(
    make_local: LocalMaker, student: str, phantom: ImageDataset
) -> None:
    local, latents = pruned(make_local(student=student), start(make_local(student=student)), phantom.val, 0.4)
    graph = to_onnx(local, latents)
    assert widths_of(graph, make_local(student=student).spec) == local.widths
    images = phantom.val.images[:4]
    found = run_onnx(graph, to_tensor(images).numpy())
    np.testing.assert_allclose(found, student_logits(local, latents, images), atol=1e-3)
    again = latents_of(graph, local)
    assert to_onnx(local, again) == graph
    with pytest.raises(ValueError, match="shape"):
        latents_of(graph, make_local(student=student))


def test_a_whole_student_names_no_widths(make_local: LocalMaker) -> None:
    for student in ("fp32-cnn", "ternary-vit"):
        local = make_local(student=student)
        assert widths_of(to_onnx(local, start(local)), local.spec) is None


def test_a_width_that_does_less_is_found_less_sensitive(
    make_local: LocalMaker, phantom: ImageDataset
) -> None:
    """The head reads only eight channels of the last convolution: the others may go for nothing."""
    local = make_local(student="fp32-cnn")
    model = build_student(local.spec)
    initialise(model, KeyedGenerator.from_seed(0))
    head = model[-1]
    assert isinstance(head, nn.Linear)
    places = head.in_features // 64
    with torch.no_grad():
        head.weight[:, 8 * places :] = 0.0
        model[2][0].weight[8:] *= 0.01
    latents = flatten(list(model.parameters())).numpy()
    *_, last = sensitivities(local, latents, phantom.val)
    first = sensitivities(local, latents, phantom.val)[0]
    assert last.kept == (16, 32, 48, 64)
    assert max(last.rise) < max(first.rise)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(CONVOLUTIONAL), st.floats(0.0, 0.6), st.integers(0, 99))
def test_the_share_goes_to_within_one_step_and_a_quarter_of_every_layer_stays(
    family: str, share: float, seed: int
) -> None:
    spec, found = _spec(family), _some_sensitivities(family, seed)
    widths = planned_widths(spec, found, share)
    assert replace(spec, widths=widths).widths == widths
    build_student(replace(spec, widths=widths))
    every = sum(WIDTHS[family])
    assert -0.5 <= sum(widths) - every * (1 - share) <= STEP
    assert all(
        width >= min(own, max(STEP, own / 4 - STEP / 2))
        for width, own in zip(widths, WIDTHS[family], strict=True)
    )
    assert widths == planned_widths(spec, found, share)
    more = planned_widths(spec, found, share + 0.05)
    assert multiply_adds(replace(spec, widths=more)) <= multiply_adds(replace(spec, widths=widths))


def _spec(family: str) -> StudentSpec:
    return StudentSpec(f"fp32-{family}", 1, 28, 28, 2)


def _some_sensitivities(family: str, seed: int) -> list[Sensitivity]:
    rng = np.random.default_rng(seed)
    found = []
    for own in WIDTHS[family]:
        kept = tuple(sorted({max(STEP, round(own * part / STEP) * STEP) for part in (0.25, 0.5, 0.75, 1.0)}))
        rises = np.sort(rng.exponential(size=len(kept) - 1))[::-1]
        found.append(Sensitivity(kept, (*map(float, rises), 0.0)))
    return found


def test_channels_go_where_the_public_loss_rises_least() -> None:
    kept = (16, 32, 48, 64)
    indifferent, sensitive = Sensitivity(kept, (0.0,) * 4), Sensitivity(kept, (3.0, 2.0, 1.0, 0.0))
    first = Sensitivity((8, 16, 24, 32), (3.0, 2.0, 1.0, 0.0))
    assert planned_widths(_spec("cnn"), [first, indifferent, sensitive], 0.3) == (32, 16, 64)
    assert planned_widths(_spec("cnn"), [first, sensitive, indifferent], 0.3) == (32, 64, 16)


@pytest.mark.parametrize("share", [0.9, 0.99, 0.76])
@pytest.mark.parametrize("family", CONVOLUTIONAL)
def test_a_share_that_would_empty_a_layer_is_refused_with_the_most(family: str, share: float) -> None:
    with pytest.raises(SettingRefused, match=r"empty layers: the most is 0\.7"):
        planned_widths(_spec(family), _some_sensitivities(family, 0), share)


@pytest.mark.parametrize("share", [1.0, -0.1, 2.0, float("nan"), float("inf")])
def test_what_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(SettingRefused, match="from 0 to below 1"):
        planned_widths(_spec("cnn"), _some_sensitivities("cnn", 0), share)


def test_a_transformer_has_no_channels_to_prune(make_local: LocalMaker, phantom: ImageDataset) -> None:
    local = make_local(student="ternary-vit")
    with pytest.raises(SettingRefused, match="ternary-vit has no channels to prune; those that have: cnn"):
        pruned(local, start(local), phantom.val, 0.3)
    with pytest.raises(SettingRefused):
        whole_widths(local.spec)


@pytest.mark.parametrize("widths", [(0, 64, 64), (32, 64), (40, 64, 64), (33, 64, 64)])
def test_widths_that_the_student_cannot_have_are_refused(make_local: LocalMaker, widths: Any) -> None:
    local = make_local(student="fp32-cnn")
    with pytest.raises(SettingRefused, match="multiples of 8"):
        narrowed(local, start(local), widths)
