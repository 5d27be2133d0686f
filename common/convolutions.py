"""The convolutional students: plain, depthwise, `embed`, and `mobile`, of inverted residuals (MobileNetV2,
Sandler et al. 2018, arXiv 1801.04381; EfficientNet-Lite's blocks, without squeeze-excitation).

A network is its structure and its `widths`: the number of channels wherever it may be chosen freely, in the
order of the forward pass. A residual block's output has its input's width, a depthwise convolution its own
input's; they stand there once. So a student with fewer channels is the same network with other widths.
"""

from dataclasses import dataclass

from torch import Tensor, nn

EMBEDDING = 128  # values that a column of an `embed` student gives
COLUMNS = 3  # of an `embed` student
STEP = 8  # every width is a multiple of it: what GroupNorm's groups and a processor's vectors divide by


@dataclass(frozen=True)
class Pictures:
    """What a network takes and gives: images (n, channels, height, width), logits (n, classes)."""

    channels: int
    height: int
    width: int
    classes: int


class Residual(nn.Module):
    """x + body(x)."""

    def __init__(self, body: nn.Module) -> None:
        """Wrap `body`, which keeps its input's shape."""
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, h, w)."""
        out: Tensor = x + self.body(x)
        return out


def _normed(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, norms: int | None = None
) -> list[nn.Module]:
    """A convolution and GroupNorm of `norms` groups; up to 8 by default, of at least four channels each."""
    # No bias: GroupNorm's own shift follows.
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.GroupNorm(norms or min(8, outputs // 4), outputs)]


def _conv(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, norms: int | None = None
) -> nn.Sequential:
    return nn.Sequential(*_normed(inputs, outputs, kernel, stride, groups, norms), nn.ReLU())


def _pooled(pictures: Pictures, halvings: int = 2) -> tuple[list[nn.Module], tuple[int, int]]:
    """What pools a map, whose sides were halved so often, to about 7 by 7, and the sides that come out.

    What follows decides on position and channel.
    A mean over all positions costs 15 points of validation AUC at epsilon 3: its features share one large
    common direction, which takes up the clip.
    """
    height, width = (-(-side // 2**halvings) for side in (pictures.height, pictures.width))
    kernel = max(1, round(height / 7)), max(1, round(width / 7))
    pool: list[nn.Module] = [nn.AvgPool2d(kernel)] if max(kernel) > 1 else []
    return pool, (height // kernel[0], width // kernel[1])


def _head(channels: int, pictures: Pictures, halvings: int = 2) -> list[nn.Module]:
    pool, (height, width) = _pooled(pictures, halvings)
    return [*pool, nn.Flatten(), nn.Linear(channels * height * width, pictures.classes)]


def _cnn(pictures: Pictures, widths: tuple[int, ...]) -> nn.Sequential:
    first, second, third = widths
    body = [_conv(pictures.channels, first, 3, stride=2), _conv(first, second, 3, stride=2)]
    return nn.Sequential(*body, _conv(second, third, 3), *_head(third, pictures))


def _separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, inputs, 3, stride, groups=inputs), _conv(inputs, outputs, 1))


def _depthwise(pictures: Pictures, widths: tuple[int, ...]) -> nn.Sequential:
    stem, trunk, last = widths
    body = [
        _conv(pictures.channels, stem, 3, stride=2),
        _separable(stem, trunk, 2),
        Residual(_separable(trunk, trunk, 1)),
        Residual(_separable(trunk, trunk, 1)),
        Residual(_separable(trunk, trunk, 1)),
        _separable(trunk, last, 1),
    ]
    return nn.Sequential(*body, *_head(last, pictures))


def _embed(pictures: Pictures, _: tuple[int, ...]) -> nn.Sequential:
    """A body whose embedding is normalised and then read by a small head: made to have its head alone trained
    under privacy (`fedward.common.models.TRAINED`), behind a body that is distilled on public images.

    The body is columns side by side that see each other nowhere: grouped convolutions, each column with norms
    of its own. What one of them learns by the luck of its start, the others make up for.
    """
    norms = 8 * COLUMNS
    stem, trunk = 32 * COLUMNS, 64 * COLUMNS

    def look() -> Residual:
        return Residual(_conv(trunk, trunk, 3, groups=COLUMNS, norms=norms))

    body = [
        _conv(pictures.channels, stem, 3, stride=2, norms=norms),
        _conv(stem, trunk, 3, stride=2, groups=COLUMNS, norms=norms),
        nn.Sequential(look(), look()),
    ]
    pool, sides = _pooled(pictures)
    values = EMBEDDING * COLUMNS
    embedding = nn.Conv2d(trunk, values, sides, groups=COLUMNS), nn.Flatten(), nn.LayerNorm(values)
    return nn.Sequential(*body, *pool, *embedding, nn.Linear(values, pictures.classes))


_BLOCKS = (1, 2, 2, 1)  # of each stage of `mobile`
_HALVED = (1, 2, 3, 0)  # stages that halve the map beside the stem: the first for 28 pixels, all for 224


def _halvings(pictures: Pictures) -> int:
    """How often `mobile` halves a picture's sides, so that about 7 by 7 are left: 2 to 5."""
    halvings = 2
    while halvings <= len(_HALVED) and min(pictures.height, pictures.width) >= 7 * 1.5 * 2**halvings:
        halvings += 1
    return halvings


def _inverted(inputs: int, inner: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Expand, look at the neighbours, project and normalise; no activation behind the projection.

    One norm a block, where its map is smallest, and over all channels at once, which is one operator of
    ONNX: on a CPU a norm of a small map costs as much as a convolution, one in groups twice that.
    """
    expand = nn.Sequential(nn.Conv2d(inputs, inner, 1), nn.ReLU())
    look = nn.Sequential(nn.Conv2d(inner, inner, 3, stride, 1, groups=inner), nn.ReLU())
    return nn.Sequential(expand, look, nn.Sequential(*_normed(inner, outputs, 1, norms=1)))


def _mobile(pictures: Pictures, widths: tuple[int, ...]) -> nn.Sequential:
    halvings, left = _halvings(pictures), iter(widths)
    channels = next(left)
    layers: list[nn.Module] = [_conv(pictures.channels, channels, 3, stride=2, norms=1)]
    for stage, blocks in enumerate(_BLOCKS):
        stride = 2 if stage in _HALVED[: halvings - 1] else 1
        inner, outputs = next(left), next(left)
        layers.append(_inverted(channels, inner, outputs, stride))
        layers += [Residual(_inverted(outputs, next(left), outputs)) for _ in range(blocks - 1)]
        channels = outputs
    last = next(left)
    return nn.Sequential(*layers, _conv(channels, last, 1, norms=1), *_head(last, pictures, halvings))


_NETWORKS = {"cnn": _cnn, "depthwise": _depthwise, "embed": _embed, "mobile": _mobile}
# The stem; of each stage the first block's inner width, the stage's, and its further blocks' inner widths;
# the last convolution.
_MOBILE = (32, 128, 32, 160, 48, 192, 256, 96, 384, 384, 128, 256)
WIDTHS = {"cnn": (32, 64, 64), "depthwise": (32, 96, 128), "mobile": _MOBILE}  # of those that have any
CONVOLUTIONAL = tuple(_NETWORKS)


def convolutional(family: str, pictures: Pictures, widths: tuple[int, ...] | None) -> nn.Sequential:
    """The network of `family`, one of `CONVOLUTIONAL`, with its own widths where `widths` is None."""
    return _NETWORKS[family](pictures, WIDTHS.get(family, ()) if widths is None else widths)


def free_convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """By name, the convolutions whose output channels are the model's widths, in their order.

    A depthwise convolution has its input's channels, and the last one of a residual block its block's.
    """
    bound = [
        [layer for layer in residual.body.modules() if isinstance(layer, nn.Conv2d)][-1]
        for residual in model.modules()
        if isinstance(residual, Residual)
    ]
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer not in bound
    }
