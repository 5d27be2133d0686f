"""A vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) of layers with exact per-sample gradients.

Projections are layers of their own, since attention in one block has no per-sample gradient; the key has no
bias, whose gradient is identically zero; normalisation is RMSNorm (Zhang & Sennrich 2019) before each half
of a block; tokens are averaged, so there is no class token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Position(nn.Module):
    """x + a learned vector for each token."""

    def __init__(self, tokens: int, width: int) -> None:
        """Make the (tokens, width) parameter, of zeros."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(tokens, width))

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, width) -> the same."""
        return x + self.weight


class Attention(nn.Module):
    """Scaled dot-product attention of all tokens (Vaswani et al. 2017, arXiv 1706.03762)."""

    def __init__(self, width: int, heads: int) -> None:
        """Make the four projections; `heads` divides `width`."""
        super().__init__()
        self.heads = heads
        self.query, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, width) -> the same."""
        query, key, value = (self._by_head(part(x)) for part in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def _by_head(self, x: Tensor) -> Tensor:
        return x.view(len(x), x.shape[1], self.heads, -1).transpose(1, 2)


class Block(nn.Module):
    """Attention and a two-layer perceptron, each behind a norm and beside an identity."""

    def __init__(self, width: int, heads: int) -> None:
        """Make the block; the perceptron is twice as wide."""
        super().__init__()
        self.mix = nn.Sequential(nn.RMSNorm(width, eps=1e-6), Attention(width, heads))
        perceptron = nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
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


def vision_transformer(
    channels: int, side: int, classes: int, patch: int = 4, width: int = 96, depth: int = 4, heads: int = 3
) -> nn.Sequential:
    """The network, with undefined weights; at the defaults 300 thousand parameters.

    Args:
        channels, side: of square images (n, channels, side, side); `patch` divides `side`.
        classes: logits are (n, classes).
        patch: pixels a side of what becomes a token.
        width: of a token; `heads` divides it.
        depth: number of blocks.
    """
    embed = nn.Conv2d(channels, width, patch, patch), Tokens(), Position((side // patch) ** 2, width)
    blocks = [Block(width, heads) for _ in range(depth)]
    return nn.Sequential(*embed, *blocks, nn.RMSNorm(width, eps=1e-6), Mean(), nn.Linear(width, classes))
