"""Structured L1 pruning of a convolutional student (Li et al. 2017, arXiv 1608.08710), layer by layer as
much as public reference data say that it bears.

Which weights go together where a channel goes (norms, depthwise convolutions, residual sums, the head behind
a flattened map) is torch-pruning's business (Fang et al. 2023, DepGraph, arXiv 2301.12900). What comes out is
the same network with smaller `widths`, for a study to fine-tune. A model that cost privacy is read, no record
of a hospital's: pruning is post-processing and costs nothing.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
import torch_pruning as tp
from torch import nn

from fedward.common.arithmetic import map_values, multiply_adds
from fedward.common.codec import Vector
from fedward.common.config import LocalSettings
from fedward.common.convolutions import STEP, WIDTHS, free_convolutions
from fedward.common.datasets import Split
from fedward.common.errors import SettingRefused
from fedward.common.losses import classification
from fedward.common.models import StudentSpec, build_student, flatten, load_vector
from fedward.server.reference import student_logits

# A width keeps a quarter at least: sensitivities are measured one width at a time, and beyond this they say
# little about all together.
_PARTS_KEPT = (0.25, 0.5, 0.75, 1.0)
# Multiply-adds that a value of a map costs beside those it takes to make: norms, activations and layouts.
# Fitted to onnxruntime's times of two dozen random widths of `mobile`: 9, 19 and 21 at 28, 64, 224 pixels.
_VALUE = 16
_TOLD_APART = 1e-3  # nats: smaller rises of a few hundred records' loss are taken for none


@dataclass(frozen=True)
class Sensitivity:
    """The public loss by the channels that one width keeps, all others whole.

    Attributes:
        kept: numbers of channels, from the fewest to all.
        rise: of the loss over the whole student's, for each; more channels never rise more.
    """

    kept: tuple[int, ...]
    rise: tuple[float, ...]

    def at(self, channels: int) -> float:
        """The rise with so many channels, between those measured by a straight line."""
        return float(np.interp(channels, self.kept, self.rise))


def whole_widths(spec: StudentSpec) -> tuple[int, ...]:
    """The widths of `spec`, given or the network's own.

    Raises:
        SettingRefused: a student without widths.
    """
    if spec.family not in WIDTHS:
        raise SettingRefused(
            f"A {spec.name} has no channels to prune; those that have: {', '.join(WIDTHS)}, in any precision."
        )
    return WIDTHS[spec.family] if spec.widths is None else spec.widths


def narrowed(settings: LocalSettings, latents: Vector, widths: tuple[int, ...]) -> Vector:
    """The student's latents with only the channels of the largest L1 norm, as many as `widths` say.

    Args:
        latents: float32 (n,) of `settings`' own student.

    Returns:
        float32 (m,), the latents of the student with these widths.

    Raises:
        SettingRefused: widths that the student does not have.
    """
    build_student(replace(settings.spec, widths=widths))  # for its refusals
    model = build_student(settings.spec)
    load_vector(model, latents)
    example = torch.zeros(1, settings.channels, settings.height, settings.width)
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=example)
    for layer, width in zip(list(free_convolutions(model).values()), widths, strict=True):
        _keep_largest(graph, layer, width)
    return flatten(list(model.parameters())).numpy()


def _keep_largest(graph: tp.DependencyGraph, layer: nn.Conv2d, width: int) -> None:
    if width == layer.out_channels:
        return
    group = graph.get_pruning_group(layer, tp.prune_conv_out_channels, list(range(layer.out_channels)))
    norms = tp.importance.MagnitudeImportance(p=1)(group)
    smallest = torch.argsort(norms, stable=True)[: layer.out_channels - width]
    graph.get_pruning_group(layer, tp.prune_conv_out_channels, smallest.tolist()).prune()


def public_loss(settings: LocalSettings, latents: Vector, records: Split) -> float:
    """Mean classification loss of the quantised student on public records, in nats."""
    logits = torch.from_numpy(student_logits(settings, latents, records.images))
    return float(classification(logits, torch.from_numpy(records.labels), settings.task).mean())


def sensitivities(settings: LocalSettings, latents: Vector, records: Split) -> list[Sensitivity]:
    """For each width, how the public loss rises as it alone keeps three, two and one of its quarters.

    Raises:
        SettingRefused: a student without widths.
    """
    whole = whole_widths(settings.spec)
    start = public_loss(settings, latents, records)
    found = []
    for place, own in enumerate(whole):
        kept = sorted({max(STEP, round(own * part / STEP) * STEP) for part in _PARTS_KEPT})
        losses = [
            _loss_with(settings, latents, records, _but(whole, place, channels)) for channels in kept[:-1]
        ]
        rises = np.maximum.accumulate([0.0, *[loss - start for loss in reversed(losses)]])
        found.append(Sensitivity(tuple(kept), tuple(float(rise) for rise in reversed(rises))))
    return found


def _loss_with(settings: LocalSettings, latents: Vector, records: Split, widths: tuple[int, ...]) -> float:
    return public_loss(replace(settings, widths=widths), narrowed(settings, latents, widths), records)


def planned_widths(spec: StudentSpec, found: list[Sensitivity], share: float) -> tuple[int, ...]:
    """Widths without `share` of all channels: `STEP` channels go at a time, wherever the public loss rises
    least for the work that is saved.

    Raises:
        SettingRefused: no share of 0 to 1, or one that would empty a layer.
    """
    widths = list(whole_widths(spec))
    if not 0.0 <= share < 1.0:
        raise SettingRefused(f"The share of channels to prune is from 0 to below 1, not {share!r}.")
    least = [sensitivity.kept[0] for sensitivity in found]
    wanted, saved = round(sum(widths) * (1.0 - share)), _saved(spec)
    if sum(least) > wanted:
        raise SettingRefused(
            f"Pruning {share:g} of the channels would empty layers: the most is "
            f"{1 - sum(least) / sum(widths):.2f}, with a quarter of each layer left."
        )
    while sum(widths) - STEP >= wanted:
        prices = [
            (sensitivity.at(width - STEP) - sensitivity.at(width) + _TOLD_APART) / gain
            if width - STEP >= low
            else float("inf")
            for sensitivity, width, low, gain in zip(found, widths, least, saved, strict=True)
        ]
        widths[int(np.argmin(prices))] -= STEP
    return tuple(widths)


@lru_cache
def _saved(spec: StudentSpec) -> list[int]:
    """The work that `STEP` channels fewer of each width save, one width at a time."""
    whole = whole_widths(spec)
    fewer = [_but(whole, place, max(STEP, own - STEP)) for place, own in enumerate(whole)]
    return [max(1, _work(spec, whole) - _work(spec, widths)) for widths in fewer]


def _work(spec: StudentSpec, widths: tuple[int, ...]) -> int:
    narrower = replace(spec, widths=widths)
    return multiply_adds(narrower) + _VALUE * map_values(narrower)


def _but(widths: tuple[int, ...], place: int, channels: int) -> tuple[int, ...]:
    return (*widths[:place], channels, *widths[place + 1 :])


def pruned(
    settings: LocalSettings, latents: Vector, records: Split, share: float
) -> tuple[LocalSettings, Vector]:
    """The student without `share` of its channels, and its latents, to start a study from.

    Args:
        latents: float32 (n,) of `settings`' own student.
        records: public and labelled; they say which layers bear pruning.

    Raises:
        SettingRefused: a student without widths, or a share that would empty a layer.
    """
    torch.set_num_threads(1)
    widths = planned_widths(settings.spec, sensitivities(settings, latents, records), share)
    return replace(settings, widths=widths), narrowed(settings, latents, widths)
