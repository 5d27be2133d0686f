"""The vision transformer: every pixel in one token, attention by its definition, sizes as named."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedward.common.models import PRECISIONS, StudentSpec, build_student, initialise, parameter_count
from fedward.common.quantization import is_quantized
from fedward.common.randomness import KeyedGenerator
from fedward.common.transformer import (
    LARGEST_PATCH,
    Attention,
    Position,
    Size,
    patch_side,
    vision_transformer,
)

torch.set_num_threads(1)
SIDES = st.integers(16, 512)
TINY = Size(width=8, depth=1, heads=2, expansion=2)


def count(name: str, channels: int = 1, side: int = 28, classes: int = 2) -> int:
    return parameter_count(build_student(StudentSpec(name, channels, side, side, classes)))


@pytest.mark.parametrize(("side", "patch", "tokens"), [(28, 4, 49), (64, 8, 64), (224, 16, 196)])
def test_the_patch_follows_the_side(side: int, patch: int, tokens: int) -> None:
    embed, _, position, *_ = vision_transformer(1, side, side, 2, TINY)
    assert patch_side(side, side) == patch
    assert isinstance(embed, nn.Conv2d)
    assert (embed.kernel_size, embed.stride, embed.padding) == ((patch, patch), (patch, patch), (0, 0))
    assert isinstance(position, Position)
    assert position.tokens == tokens


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES)
def test_every_pixel_is_in_exactly_one_token(height: int, width: int) -> None:
    embed = vision_transformer(1, height, width, 2, TINY)[0]
    image = torch.zeros(1, 1, height, width, requires_grad=True)
    nn.init.ones_(embed.weight)  # type: ignore[arg-type]
    out: Tensor = embed(image)[:, 0]
    (seen,) = torch.autograd.grad(out.sum(), image)
    assert seen.eq(1).all()
    assert out.shape[1:] == (-(-height // embed.stride[0]), -(-width // embed.stride[1]))  # type: ignore[index,operator]


@given(SIDES, SIDES)
def test_no_image_has_more_tokens_than_attention_bears(height: int, width: int) -> None:
    patch = patch_side(height, width)
    assert patch == patch_side(width, height)
    assert patch in (4, 8, 16, LARGEST_PATCH)
    assert -(-height // patch) * -(-width // patch) <= 256


@pytest.mark.parametrize(
    ("network", "millions"), [("vit", 0.30), ("vit-s", 1.00), ("vit-m", 2.68), ("vit-l", 8.65)]
)
def test_the_named_sizes_have_the_parameters_that_the_documents_say(network: str, millions: float) -> None:
    for precision in PRECISIONS:
        assert round(count(f"{precision}-{network}") / 1e6, 2) == millions
    assert count(f"ternary-{network}-mq") < count(f"ternary-{network}")


def test_the_medium_size_has_2_69_million_parameters_on_colour_images() -> None:
    assert [round(count("ternary-vit-m", 3, 28, classes) / 1e6, 2) for classes in (2, 9)] == [2.69, 2.69]


@pytest.mark.parametrize("shared", [False, True])
def test_only_norms_positions_and_biases_stay_fp32(shared: bool) -> None:
    size = Size(8, 2, 2, 2, shared)
    model = vision_transformer(1, 28, 28, 2, size)
    for layer in model.modules():
        for parameter in layer.parameters(recurse=False):
            is_weight = isinstance(layer, nn.Conv2d | nn.Linear) and parameter is layer.weight
            assert is_quantized(parameter) == is_weight


def test_a_student_starts_without_positions_and_with_norms_at_identity() -> None:
    model = build_student(StudentSpec("ternary-vit", 1, 28, 28, 2))
    initialise(model, KeyedGenerator.from_seed(0))
    for layer in model.modules():
        if isinstance(layer, Position):
            assert layer.bias.eq(0).all()
        if isinstance(layer, nn.RMSNorm):
            assert layer.weight.eq(1).all()


def test_a_position_is_added_to_its_own_token_and_channel() -> None:
    layer = Position(tokens=2, width=3)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([0.0, 1.0, 10.0, 11.0, 20.0, 21.0]))  # channel by channel
    expected = torch.tensor([[0.0, 10.0, 20.0], [1.0, 11.0, 21.0]])
    assert torch.equal(layer(torch.zeros(1, 2, 3))[0], expected)


def test_the_key_has_no_bias() -> None:
    assert Attention(TINY).key.bias is None


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.booleans())
def test_attention_is_a_mean_of_values_by_the_softmax_of_scaled_products(
    heads: int, of_head: int, tokens: int, shared: bool
) -> None:
    layer = Attention(Size(heads * of_head, 1, heads, 1, shared)).double()
    x = torch.randn(2, tokens, heads * of_head, dtype=torch.float64)
    query, key, value = layer.query(x), layer.key(x), layer.value(x)
    mixed = []
    for head in range(heads):
        own = slice(head * of_head, (head + 1) * of_head)
        other = slice(0, of_head) if shared else own
        weights = (query[..., own] @ key[..., other].transpose(1, 2) / of_head**0.5).softmax(dim=2)
        mixed.append(weights @ value[..., other])
    assert torch.allclose(layer(x), layer.out(torch.cat(mixed, dim=2)), atol=1e-9)


def test_tokens_in_another_order_give_the_same_logits_but_for_their_positions() -> None:
    model = vision_transformer(1, 28, 28, 2, TINY)
    initialise(model, KeyedGenerator.from_seed(0))
    images = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    turned = images.roll(4, dims=3)  # by one patch
    assert torch.allclose(model(images), model(turned), atol=1e-5)
    with torch.no_grad():
        model[2].bias.copy_(torch.randn(8 * 49, generator=torch.Generator().manual_seed(1)))  # type: ignore[operator,union-attr]
    assert not torch.allclose(model(images), model(turned), atol=1e-3)
