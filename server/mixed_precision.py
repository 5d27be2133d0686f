"""Bits for each weight of an int8 student, by what public reference data say that it bears (HAWQ's idea, Dong
et al. 2019, arXiv 1905.03696, with the loss itself in place of its curvature), under a budget of bytes.

Every weight begins with 8 bits. One after another is brought down to 4 or to 2 (ternary), wherever the public
loss rises least for the bytes that are saved, until the release's model file is within the budget. A model
that cost privacy is read, no record of a hospital's: this is post-processing and costs nothing.
"""

from bisect import bisect_left
from dataclasses import replace

import torch

from fedward.common.codec import Vector
from fedward.common.compression import compressed
from fedward.common.config import LocalSettings
from fedward.common.datasets import Split
from fedward.common.errors import SettingRefused
from fedward.common.models import build_student
from fedward.common.quantization import is_quantized
from fedward.server.export import to_onnx
from fedward.server.pruning import public_loss

_LEVELS = (2, 4, 8)
_SPARED = 0.97  # of a budget: what is then trained with its bits packs a little worse
_PACKED = {2: 1.6, 4: 3.6, 8: 7.4}  # bits that a weight takes in the file, about
_TOLD_APART = 1e-4  # nats; smaller rises of a few hundred records' loss are taken for none
Rises = list[dict[int, float]]


def with_bits_within(
    settings: LocalSettings, latents: Vector, records: Split, most_bytes: int
) -> LocalSettings:
    """`settings` with the bits that its weights may keep for a model file of at most `most_bytes`, three
    hundredths of it spared for what training will add.

    Args:
        latents: float32 (n,) of the student.
        records: public and labelled.

    Raises:
        SettingRefused: no int8 student, or a budget that even ternary weights pass.
    """
    if settings.spec.precision != "int8":
        raise SettingRefused(
            f"Bytes are divided among the weights of an int8 student, and this is a {settings.student}: "
            f"take int8-{settings.spec.network}."
        )
    torch.set_num_threads(1)
    sizes = _sizes(settings)
    least = replace(settings, bits=(_LEVELS[0],) * len(sizes))
    if (fewest := model_bytes(least, latents)) > most_bytes:
        raise SettingRefused(
            f"With every weight ternary the model still takes {fewest:,} bytes, more than {most_bytes:,}: "
            "allow more, or prune channels."
        )
    within_bytes = max(fewest, int(_SPARED * most_bytes))
    rises = bit_sensitivities(settings, latents, records)
    within = [replace(settings, bits=bits) for bits in _steps_down(rises, sizes)]
    # Each step's file is smaller than the one before; weighing one takes up to seconds.
    return within[bisect_left(within, -within_bytes, key=lambda one: -model_bytes(one, latents))]


def _steps_down(rises: Rises, sizes: list[int]) -> list[tuple[int, ...]]:
    """Bits from all 8 to all 2."""
    steps = [(_LEVELS[-1],) * len(sizes)]
    while any(bits > _LEVELS[0] for bits in steps[-1]):
        steps.append(_one_lower(steps[-1], rises, sizes))
    return steps


def model_bytes(settings: LocalSettings, latents: Vector) -> int:
    """Bytes of the release's model file."""
    return len(compressed(to_onnx(settings, latents), settings.spec.family))


def bit_sensitivities(settings: LocalSettings, latents: Vector, records: Split) -> Rises:
    """For each weight the rise of the public loss when it alone has 2, 4 or 8 bits and the others 8, in nats;
    fewer bits never rise less."""
    count = len(_sizes(settings))
    start = public_loss(replace(settings, bits=None), latents, records)
    return [_rises_of(settings, latents, records, place, count, start) for place in range(count)]


def _rises_of(
    settings: LocalSettings, latents: Vector, records: Split, place: int, count: int, start: float
) -> dict[int, float]:
    rises = {_LEVELS[-1]: 0.0}
    for bits in reversed(_LEVELS[:-1]):
        alone = (*(8,) * place, bits, *(8,) * (count - place - 1))
        rise = public_loss(replace(settings, bits=alone), latents, records) - start
        rises[bits] = max(rise, *rises.values())
    return rises


def _one_lower(bits: tuple[int, ...], rises: Rises, sizes: list[int]) -> tuple[int, ...]:
    """The bits with the one step down that costs least loss a byte."""
    steps = [
        (_price(rises[place], own, fewer) / sizes[place], place, fewer)
        for place, own in enumerate(bits)
        for fewer in _LEVELS
        if fewer < own
    ]
    _, place, fewer = min(steps)
    return (*bits[:place], fewer, *bits[place + 1 :])


def _price(rises: dict[int, float], bits: int, fewer: int) -> float:
    """Of a step down, a bit saved of each weight."""
    return (rises[fewer] - rises[bits] + _TOLD_APART) / (_PACKED[bits] - _PACKED[fewer])


def _sizes(settings: LocalSettings) -> list[int]:
    model = build_student(settings.spec)
    return [parameter.numel() for parameter in model.parameters() if is_quantized(parameter)]
