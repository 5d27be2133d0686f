"""A vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) of layers with exact per-sample gradients.

Projections are layers of their own, since attention in one block has no per-sample gradient; the key has no
bias, whose gradient is identically zero; normalisation is RMSNorm (Zhang & Sennrich 2019) before each half
of a block; tokens are averaged, so there is no class token. All heads may share one key and one value
(multi-query attention, Shazeer 2019, arXiv 1911.02150).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST_PATCH = 32
_SMALLEST_PATCH = 4
_MOST_PATCHES = 14  # a side: 224 pixels in patches of 16


@dataclass(frozen=True)
class Size:
    """How large a vision transformer is.

    Attributes:
        width: of a token; `heads` divides it.
        depth: number of blocks.
        heads: of each attention.
        expansion: the perceptron's width over the token's.
        is_multi_query: whether the heads share one key and one value.
    """

    width: int
    depth: int
    heads: int
    expansion: int
    is_multi_query: bool = False


def patch_side(height: int, width: int) -> int:
    """Pixels a side of what becomes a token: 4 at 28 pixels, 8 at 64, 16 at 224, at most `LARGEST_PATCH`."""
    patch = _SMALLEST_PATCH
    while patch < LARGEST_PATCH and max(height, width) > patch * _MOST_PATCHES:
        patch *= 2
    return patch


class Position(nn.Module):
    """x + a learned vector for each token.

    The vectors are one axis, channel by channel, and called a bias: like one they start at zero, train in
    fp32 in a quantised student, and belong to the channels of the layer before.
    """

    def __init__(self, tokens: int, width: int) -> None:
        """Make the (width * tokens,) parameter."""
        super().__init__()
        self.tokens, self.width = tokens, width
        self.bias = nn.Parameter(torch.zeros(width * tokens))

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, width) -> the same."""
        return x + self.bias.view(self.width, self.tokens).T


class Attention(nn.Module):
    """Scaled dot-product attention of all tokens (Vaswani et al. 2017, arXiv 1706.03762)."""

    def __init__(self, size: Size) -> None:
        """Make the four projections."""
        super().__init__()
        self.width, self.heads, self.of_head = size.width, size.heads, size.width // size.heads
        shared = self.of_head if size.is_multi_query else size.width
        self.query, self.value = nn.Linear(size.width, size.width), nn.Linear(size.width, shared)
        self.key = nn.Linear(size.width, shared, bias=False)
        self.out = nn.Linear(size.width, size.width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, width) -> the same."""
        query, key, value = (self._by_head(part(x)) for part in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(query, key.expand_as(query), value.expand_as(query))
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def _by_head(self, x: Tensor) -> Tensor:
        return x.view(len(x), x.shape[1], -1, self.of_head).transpose(1, 2)


class Block(nn.Module):
    """Attention and a two-layer perceptron, each behind a norm and beside an identity."""

    def __init__(self, size: Size) -> None:
        """Make the block."""
        super().__init__()
        width, inner = size.width, size.expansion * size.width
        self.mix = nn.Sequential(nn.RMSNorm(width, eps=1e-6), Attention(size))
        perceptron = nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width)
        self.think = nn.Sequential(nn.RMSNorm(width, eps=1e-6), *perceptron)

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, width) -> the same."""
        mixed = x + self.mix(x)
        out: Tensor = mixed + self.think(mixed)
        return out


class Tokens(nn.Module):
    """(n, width, rows, columns) -> (n, rows*columns, width)."""

    def forward(self, x: Tensor) -> Tensor:
        """Turn positions into tokens."""
        return x.flatten(2).transpose(1, 2)


class Mean(nn.Module):
    """(n, tokens, width) -> (n, width)."""

    def forward(self, x: Tensor) -> Tensor:
        """Average over the tokens."""
        return x.mean(dim=1)


def vision_transformer(channels: int, height: int, width: int, classes: int, size: Size) -> nn.Sequential:
    """The network, with undefined weights: images (n, channels, height, width) -> logits (n, classes).

    Sides that the patch does not divide are filled up with zeros, half of them on each side.
    """
    patch = patch_side(height, width)
    grid = [-(-side // patch) for side in (height, width)]
    missing = [-(-(count * patch - side) // 2) for count, side in zip(grid, (height, width), strict=True)]
    embed = nn.Conv2d(channels, size.width, patch, patch, (missing[0], missing[1]))
    blocks = [Block(size) for _ in range(size.depth)]
    head = nn.RMSNorm(size.width, eps=1e-6), Mean(), nn.Linear(size.width, classes)
    return nn.Sequential(embed, Tokens(), Position(grid[0] * grid[1], size.width), *blocks, *head)
