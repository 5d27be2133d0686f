"""The public step at which a hospital's noised update is rounded for its way up.

A round adds Gaussian noise of deviation s = lr sigma C sqrt(steps) / (q n) to each weight, and all of these
are public constants. So the step, a fixed part of s, tells nothing of the records, and rounding is
post-processing. The noise is also the rounding's dither (Schuchman 1964; Gray & Stockham 1993): for a step
of r*s the mean of the rounded value departs from the value before the noise by less than
(r*s/pi) exp(-2 pi^2 / r^2), for r = 9/8 a ten-millionth of s, whatever that value is. What is left is an
error of variance (r*s)^2 / 12, unrelated to the update: 10.5% of the noise's variance at `coded2`, as if
sigma were 5% larger, 2.6% at `coded3`, 0.7% at `coded4`, .01% at `coded8`. So there is nothing for error
feedback to feed back, and no state to keep.

One step for the whole vector: a step by block would be coarser where an update is large, and give up what
the noise has left there, to save bits that are few.
"""

import math

from fedward.common.codec import LARGEST_STEP, SMALLEST_STEP
from fedward.common.config import LocalSettings
from fedward.common.errors import SettingRefused

# Parts of the noise's deviation. Of pure noise, entropy: 6.88, 3.88, 2.90 and 1.95 bits a value.
STEPS = {"coded8": 9 / 256, "coded4": 9 / 32, "coded3": 9 / 16, "coded2": 9 / 8}


def noise_deviation(settings: LocalSettings, learning_rate: float, num_examples: int) -> float:
    """Standard deviation of a round's noise on each weight of one hospital's update.

    Args:
        learning_rate: of the round.
        num_examples: the hospital's declared count.
    """
    deviation = learning_rate * settings.noise_multiplier * settings.max_grad_norm
    return deviation * math.sqrt(settings.local_steps) / (settings.sample_rate * num_examples)


def uplink_step(codec: str, settings: LocalSettings, learning_rate: float, num_examples: int) -> float | None:
    """The step that `codec` rounds a hospital's update at; None where it rounds at none that is agreed.

    Raises:
        SettingRefused: the codec's step follows from the noise, and the study has none, or next to none.
    """
    if codec not in STEPS:
        return None
    if settings.noise_multiplier == 0.0:
        raise SettingRefused(
            f"Codec {codec} rounds at a part of the noise, and without privacy there is none: choose int8 or "
            "fp32 for the update."
        )
    step = STEPS[codec] * noise_deviation(settings, learning_rate, num_examples)
    if not SMALLEST_STEP <= step <= LARGEST_STEP:
        raise SettingRefused(
            f"With these settings codec {codec} would round at steps of {step:g}, which is out of range: "
            "change the learning rate, max_grad_norm or the codec."
        )
    return step
