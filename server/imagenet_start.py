"""A `mobile` student that starts from the public teacher's ImageNet weights, whatever its widths.

Where the student has more channels than the teacher gives (`fedward.server.imagenet_weights`), they are
random, and nothing of them reaches the teacher's. A batch norm's statistics are of photographs; each
channel gets its mean back on public images of the study's kind, and its deviation where it varies there as
much as the median channel or more (AdaBN, Li et al. 2016, arXiv 1603.04779).

The last convolution is random, and its norm cuts each channel off one deviation above its mean: features that
are mostly zero have no large direction in common, which would fill the clip of the head's gradient. The head
learns on half A of the reference records. All of it is public and costs no privacy.
"""

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedward.common.codec import Vector, decode, encode
from fedward.common.config import LocalSettings
from fedward.common.datasets import Split
from fedward.common.images import to_tensor
from fedward.common.losses import classification, prior_offset
from fedward.common.models import build_student, flatten, initialise, load_vector
from fedward.common.quantization import fake_quantize, load_latents
from fedward.common.randomness import KeyedGenerator
from fedward.server.imagenet_weights import sources
from fedward.server.recipes import IMAGENET, check_family
from fedward.server.teacher import Descent, drawn_rows

_LOOKED_AT = 256  # public images, for the channels' means and deviations
_SIZE = 0.1  # median of a layer's weights behind which a norm follows, which makes up for any factor
_LENGTH = 4.0  # of the features that the head reads
_CUT_OFF = 0.0754  # mean square of max(0, z - 1) for a standard normal z
_HEAD_STEPS, _HEAD_RATE, _HEAD_BATCH = 1000, 3e-3, 64
_MOST_LABELLED = 4000  # images the head learns on: their features are kept in memory


def imagenet_start(
    settings: LocalSettings, teacher: nn.Module, labelled: Split, generator: KeyedGenerator
) -> Vector:
    """Latents of a `mobile` student to start a study of the head from, float32 (n,).

    Args:
        settings: the study's.
        teacher: of `load_teacher`.
        labelled: half A of the reference records.

    Raises:
        SettingRefused: another student.
    """
    check_family(IMAGENET, settings)
    torch.set_num_threads(1)
    start = _Start(settings, to_tensor(labelled.images[:_LOOKED_AT]), generator.derive("student"))
    start.take(teacher)
    start.cut_off()
    start.round_as_sent()
    start.learn_head(labelled, generator.derive("head"))
    return flatten(list(start.latents.parameters())).numpy()


class _Start:
    """The student's latents on their way, in a network's place, and the quantised network they stand for."""

    def __init__(self, settings: LocalSettings, images: Tensor, generator: KeyedGenerator) -> None:
        self.latents, self._network = build_student(settings.spec), build_student(settings.spec)
        self.latents.requires_grad_(False)
        initialise(self.latents, generator)
        self._settings, self._images = settings, images
        # Each convolution with what gives its channels their means: its norm, or itself.
        self._layers: list[tuple[str, str]] = [
            (name, after if isinstance(follower, nn.GroupNorm) else name)
            for (name, layer), (after, follower) in pairwise(self.latents.named_modules())
            if isinstance(layer, nn.Conv2d)
        ]
        self._means: dict[str, Tensor] = {}  # wanted behind each layer, by channel
        self._head: Any = self.latents[-1]

    def take(self, teacher: nn.Module) -> None:
        """The teacher's weights, and its channels' means and deviations, layer by layer from the image up."""
        widths = [len(self._weight(name)) for name, _ in self._layers]
        given = sources(teacher, self._settings.channels, widths)
        for (name, last), source in zip(self._layers[:-1], given, strict=True):
            _place(self._weight(name), source.weights)
            # Further channels vary as much, about zero.
            mean = torch.zeros(len(self._weight(name)))
            deviation = torch.full_like(mean, float(source.deviation.abs().mean()))
            count = min(len(mean), len(source.mean))
            mean[:count], deviation[:count] = source.mean[:count], source.deviation[:count]
            self._set(name, last, mean, deviation)

    def cut_off(self) -> None:
        """Cut the last convolution's channels off one deviation above their means."""
        name, last = self._layers[-1]
        size = _LENGTH / math.sqrt(_CUT_OFF * self._head.in_features)
        deviation = torch.full((len(self._weight(name)),), size)
        self._set(name, last, -deviation, deviation)

    def round_as_sent(self) -> None:
        """Round all values as the first download does: so the hospitals' body is the very one that the head
        is read behind. What rounding does to the channels' means is mended from the image up.
        """
        self._round()
        for last, mean in self._means.items():
            bias = self.latents.get_submodule(last).get_parameter("bias")
            bias.add_(mean - self._seen(last).mean(dim=(0, 2, 3)))
        self._round()

    def _round(self) -> None:
        self._load()
        vector = flatten(list(self._network.parameters())).numpy()
        load_vector(self.latents, decode(encode(vector, "int8"), len(vector), "int8"))

    def learn_head(self, labelled: Split, draws: KeyedGenerator) -> None:
        """The head's weights on the labelled images, quantised throughout (straight-through)."""
        settings, head = self._settings, self._head
        head.weight.zero_()
        self._load()
        kept = to_tensor(labelled.images[:_MOST_LABELLED])
        with torch.no_grad():
            parts = [kept[at : at + _LOOKED_AT] for at in range(0, len(kept), _LOOKED_AT)]
            features = torch.cat([self._network[:-1](part) for part in parts])
        labels = torch.from_numpy(labelled.labels[:_MOST_LABELLED])
        offset = prior_offset(settings.class_prior, settings.task)
        step = Descent([head.weight, head.bias], _HEAD_RATE, _HEAD_STEPS)
        for _ in range(_HEAD_STEPS):
            rows = torch.from_numpy(drawn_rows(draws, _HEAD_BATCH, len(features)))
            weight = fake_quantize(head.weight, settings.spec.precision).requires_grad_()
            bias = head.bias.detach().clone().requires_grad_()
            logits = F.linear(features[rows], weight, bias)
            loss = classification(logits, labels[rows], settings.task, offset).mean()
            step(torch.autograd.grad(loss, [weight, bias]))

    def _set(self, name: str, last: str, mean: Tensor, deviation: Tensor) -> None:
        """Give what comes out of layer `last`, the convolution `name` or its norm, this mean by channel, and
        this deviation where it varies enough (`_deviation`).

        A norm leaves the weights to tell its channels apart: its own gains are then nearly alike, and no
        value of the packed vector is so large that the small ones beside it are lost in transport.
        """
        self._means[last] = mean
        if last != name:
            relative = deviation / _deviation(self._seen(name))
            weight = self._weight(name).mul_(relative.view(-1, 1, 1, 1))
            weight.mul_(_SIZE / weight.square().mean(dim=(1, 2, 3)).sqrt().median())
        seen, layer = self._seen(last), self.latents.get_submodule(last)
        gain, bias = deviation / _deviation(seen), layer.get_parameter("bias")
        self._weight(last).mul_(gain.view(-1, 1, 1, 1) if last == name else gain)
        bias.copy_(mean - gain * seen.mean(dim=(0, 2, 3)))

    def _weight(self, name: str) -> Tensor:
        return self.latents.get_submodule(name).get_parameter("weight")

    @torch.no_grad()
    def _seen(self, name: str) -> Tensor:
        """What comes out of a layer of the quantised network, (images, channels, height, width)."""
        self._load()
        found: list[Tensor] = []
        layer = self._network.get_submodule(name)
        handle = layer.register_forward_hook(lambda *given: found.append(given[2]))
        self._network(self._images)
        handle.remove()
        return found[0]

    def _load(self) -> None:
        load_latents(self._network, list(self.latents.parameters()), self._settings.spec.precision)


def _deviation(seen: Tensor) -> Tensor:
    """Of each channel of (n, channels, h, w), the median channel's at least, (channels,): what hardly varies
    on these images is not blown up.
    """
    deviation = seen.std(dim=(0, 2, 3), correction=0)
    return deviation.clamp(min=max(1e-9, float(deviation.median())))


def _place(latent: Tensor, weights: Tensor) -> None:
    """Write `weights` over the latent's first channels; no further input reaches these."""
    outputs, inputs = (min(sides) for sides in zip(latent.shape[:2], weights.shape[:2], strict=True))
    edge = (weights.shape[2] - latent.shape[2]) // 2
    middle = slice(edge, edge + latent.shape[2])
    latent[:outputs] = 0.0
    latent[:outputs, :inputs] = weights[:outputs, :inputs, middle, middle]
