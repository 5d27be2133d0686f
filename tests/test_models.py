"""The students: shapes, size, no statistic of the batch, and refusals of what none takes."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedward.common.convolutions import COLUMNS, WIDTHS
from fedward.common.errors import SettingRefused, UnknownName
from fedward.common.models import (
    FAMILIES,
    SMALLEST,
    StudentSpec,
    build_student,
    check_shape,
    flatten,
    initialise,
    parameter_count,
    unflatten,
)
from fedward.common.per_sample import RULES, parametric_layers
from fedward.common.randomness import KeyedGenerator

torch.set_num_threads(1)


def spec(name: str = "ternary-cnn", channels: int = 1, side: int = 16, classes: int = 2) -> StudentSpec:
    return StudentSpec(name, channels, side, side, classes)


def ready(shape: StudentSpec, seed: int = 0) -> nn.Sequential:
    model = build_student(shape)
    initialise(model, KeyedGenerator.from_seed(seed))
    return model


def images(count: int, shape: StudentSpec, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(count, shape.channels, shape.height, shape.width, generator=generator) - 1


@pytest.mark.parametrize(("name", "channels"), itertools.product(SMALLEST, (1, 3)))
def test_every_student_gives_one_logit_a_class(name: str, channels: int) -> None:
    shape = spec(name, channels, classes=7)
    assert ready(shape)(images(3, shape)).shape == (3, 7)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(FAMILIES), st.integers(16, 70), st.integers(16, 70), st.integers(2, 12))
def test_every_side_from_16_pixels_fits(family: str, height: int, width: int, classes: int) -> None:
    shape = StudentSpec(f"fp32-{family}", 1, height, width, classes)
    assert ready(shape)(images(1, shape)).shape == (1, classes)


def test_the_convolutional_student_has_about_60_thousand_parameters() -> None:
    assert 50_000 < parameter_count(build_student(spec(side=28))) < 70_000


def test_the_mobile_student_has_about_a_quarter_of_a_million_parameters() -> None:
    assert 200_000 < parameter_count(build_student(spec("fp32-mobile", side=28))) < 600_000


@pytest.mark.parametrize(("side", "left"), [(16, 4), (28, 7), (64, 8), (112, 7), (224, 7), (512, 16)])
def test_the_mobile_student_looks_at_about_7_by_7_places_at_last(side: int, left: int) -> None:
    last = list(ready(spec("fp32-mobile", side=side)).children())
    body = nn.Sequential(
        *[layer for layer in last if not isinstance(layer, nn.AvgPool2d | nn.Flatten | nn.Linear)]
    )
    assert body(torch.zeros(1, 1, side, side)).shape[2:] == (left, left)


WIDTHS_OF = st.sampled_from(sorted(WIDTHS)).flatmap(
    lambda family: st.tuples(
        st.just(family),
        st.tuples(*[st.integers(1, own // 8).map(lambda eighth: 8 * eighth) for own in WIDTHS[family]]),
    )
)


@settings(max_examples=30, deadline=None)
@given(WIDTHS_OF, st.sampled_from([16, 28, 40]))
def test_every_narrower_student_is_built_with_its_widths(
    chosen: tuple[str, tuple[int, ...]], side: int
) -> None:
    family, widths = chosen
    shape = StudentSpec(f"fp32-{family}", 1, side, side, 3, widths)
    model = ready(shape)
    assert model(images(2, shape)).shape == (2, 3)
    found = {layer.out_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)}
    assert found == set(widths)


@pytest.mark.parametrize("family", sorted(WIDTHS))
def test_a_students_own_widths_are_the_student_itself(family: str) -> None:
    own, named = (ready(StudentSpec(f"fp32-{family}", 1, 28, 28, 2, w)) for w in (None, WIDTHS[family]))
    assert torch.equal(flatten(list(own.parameters())), flatten(list(named.parameters())))


@pytest.mark.parametrize("column", range(COLUMNS))
def test_the_columns_of_an_embedding_see_each_other_nowhere(column: int) -> None:
    shape = spec("fp32-embed", side=28)
    model, seen = ready(shape), images(2, shape)
    body = model[:-2]  # without norm and head
    before = body(seen).chunk(COLUMNS, dim=1)
    with torch.no_grad():
        for parameter in body.parameters():  # every layer's output channels are the columns', one by one
            own = parameter.chunk(COLUMNS)[column]
            own += 0.1 * torch.randn(own.shape, generator=torch.Generator().manual_seed(0))
    after = body(seen).chunk(COLUMNS, dim=1)
    assert [torch.equal(*pair) for pair in zip(before, after, strict=True)] == [
        other != column for other in range(COLUMNS)
    ]


@pytest.mark.parametrize(
    "widths",
    [(), (0, 64, 64), (32, 64), (40, 64, 64), (32, 64, 60), (32, 64, True), (32, 64, "8"), [32, 64, 64], 5],
)
def test_widths_that_no_student_has_are_refused_with_its_own(widths: Any) -> None:
    with pytest.raises(SettingRefused, match=r"3 multiples of 8, none above its own, \[32, 64, 64\]"):
        build_student(StudentSpec("fp32-cnn", 1, 28, 28, 2, widths))


def test_a_transformer_has_no_widths_to_choose() -> None:
    with pytest.raises(SettingRefused, match="family vit has no widths"):
        build_student(StudentSpec("fp32-vit", 1, 28, 28, 2, (8,)))


@pytest.mark.parametrize(
    "bits", [(), (8,) * 3, (8,) * 5, (8, 8, 8, 3), (8, 8, 8, True), (8, 8, 8, "4"), [8] * 4, 8]
)
def test_bits_that_an_int8_student_cannot_have_are_refused(bits: Any) -> None:
    with pytest.raises(SettingRefused, match="4 numbers, each 2, 4 or 8"):
        build_student(StudentSpec("int8-cnn", 1, 28, 28, 2, None, bits))


@pytest.mark.parametrize("name", ["ternary-cnn", "fp32-cnn"])
def test_only_an_int8_students_weights_take_fewer_bits(name: str) -> None:
    with pytest.raises(SettingRefused, match="for an int8 student"):
        build_student(StudentSpec(name, 1, 28, 28, 2, None, (8,) * 4))


def test_precision_changes_no_shape_so_a_teacher_of_fp32_fits() -> None:
    for family in FAMILIES:
        shapes = [
            [p.shape for p in build_student(spec(f"{kind}-{family}")).parameters()]
            for kind in ("ternary", "int8", "fp32")
        ]
        assert shapes[0] == shapes[1] == shapes[2]


@pytest.mark.parametrize("name", SMALLEST)
def test_no_student_keeps_a_statistic_of_what_it_saw(name: str) -> None:
    model = ready(spec(name))
    assert list(model.buffers()) == []
    assert {type(layer) for layer in parametric_layers(model)} <= set(RULES)
    before = flatten(list(model.parameters()))
    model.train()(images(5, spec(name)))
    assert torch.equal(flatten(list(model.parameters())), before)


@pytest.mark.parametrize("name", SMALLEST)
def test_an_images_logits_do_not_depend_on_the_rest_of_the_batch(name: str) -> None:
    shape = spec(name, 3)
    model, mine = ready(shape).train(), images(1, shape, 1)
    alone = model(mine)
    for others in (
        torch.zeros(4, 3, 16, 16),
        1e3 * images(4, shape, 2),
        torch.full((4, 3, 16, 16), torch.nan),
    ):
        assert torch.allclose(model(torch.cat([others, mine]))[-1:], alone, atol=1e-5)


def test_training_and_evaluation_mode_compute_the_same() -> None:
    model = ready(spec())
    batch = images(2, spec())
    assert torch.equal(model.train()(batch), model.eval()(batch))


def test_initial_weights_come_from_the_key_and_nothing_else() -> None:
    torch.manual_seed(1)
    one = flatten(list(ready(spec()).parameters()))
    torch.manual_seed(2)
    assert torch.equal(flatten(list(ready(spec()).parameters())), one)
    assert not torch.equal(flatten(list(ready(spec(), seed=1).parameters())), one)


def test_initial_weights_have_hes_variance_and_norms_start_at_identity() -> None:
    for layer in ready(spec("fp32-cnn")).modules():
        if isinstance(layer, nn.GroupNorm):
            assert layer.weight.eq(1).all()
            assert layer.bias.eq(0).all()
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 5000:
            fan_in = layer.weight[0].numel()
            assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
        if isinstance(layer, nn.Linear):
            assert layer.bias.eq(0).all()


def test_two_layers_of_one_shape_start_with_different_weights() -> None:
    layers = [layer for layer in ready(spec("fp32-depthwise")).modules() if isinstance(layer, nn.Conv2d)]
    same = [(a, b) for a, b in itertools.combinations(layers, 2) if a.weight.shape == b.weight.shape]
    assert same
    assert not any(torch.equal(a.weight, b.weight) for a, b in same)


@pytest.mark.parametrize("name", ["", "cnn", "ternary-resnet", "TERNARY-CNN", "ternary-cnn "])
def test_an_unknown_student_is_refused_with_the_names_that_exist(name: str) -> None:
    with pytest.raises(UnknownName, match="ternary-cnn, ternary-depthwise"):
        build_student(spec(name))


@pytest.mark.parametrize(
    "bad",
    [
        StudentSpec("fp32-cnn", 2, 28, 28, 2),
        StudentSpec("fp32-cnn", 0, 28, 28, 2),
        StudentSpec("fp32-cnn", 1, 28, 28, 1),
        StudentSpec("fp32-cnn", 1, 15, 28, 2),
        StudentSpec("fp32-cnn", 1, 28, 513, 2),
        StudentSpec("fp32-cnn", 1, 10**12, 28, 2),
        StudentSpec("fp32-cnn", True, 28, 28, 2),
        StudentSpec("fp32-cnn", 1, 28.0, 28, 2),  # type: ignore[arg-type]
        StudentSpec("fp32-cnn", 1, "28", 28, 2),  # type: ignore[arg-type]
        StudentSpec("fp32-cnn", None, 28, 28, 2),  # type: ignore[arg-type]
    ],
)
def test_a_shape_that_no_student_takes_is_refused_before_anything_is_built(bad: StudentSpec) -> None:
    for refuse in (check_shape, build_student):
        with pytest.raises(SettingRefused, match="student"):
            refuse(bad)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(1, 4), min_size=0, max_size=3), min_size=1, max_size=5))
def test_unflatten_undoes_flatten(shapes: list[list[int]]) -> None:
    tensors = [torch.randn(shape) for shape in shapes]
    vector = flatten(tensors)
    assert vector.dtype == torch.float32
    assert vector.shape == (sum(tensor.numel() for tensor in tensors),)
    assert all(torch.equal(a, b) for a, b in zip(unflatten(vector, tensors), tensors, strict=True))


@pytest.mark.parametrize("size", [0, 5, 7])
def test_a_vector_of_another_length_does_not_unflatten(size: int) -> None:
    with pytest.raises(ValueError, match=f"{size} values"):
        unflatten(torch.zeros(size), [torch.zeros(2, 3)])
