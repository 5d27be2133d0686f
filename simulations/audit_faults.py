"""The faults that the audit plants, each for as long as its context lasts; nothing shipped knows of them.

Each is a mistake that a system in use has made, or that a well-meant change could make. A fault patches a
name where the real code looks it up, so that all else that runs is the real code.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from fedward.client import training
from fedward.client.dp_sgd import KeyedDPOptimizer
from fedward.client.round_keys import RoundKeys
from fedward.common.models import build_student
from fedward.common.randomness import KeyedGenerator

Plant = Callable[[], AbstractContextManager[object]]


def optimizer(replacement: type[DPOptimizer]) -> Plant:
    """Let the training step use another optimizer."""
    return lambda: mock.patch.object(training, "KeyedDPOptimizer", replacement)


def _weighted(parameter: Any, factors: Tensor) -> None:
    """Add sum_i factors_i * gradient_i to the parameter's running sum."""
    added = torch.einsum("i,i...", factors, parameter.grad_sample).double()
    parameter.summed_grad = added if parameter.summed_grad is None else parameter.summed_grad + added


def _factors(gradients: list[Tensor], clip: float) -> Tensor:
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    factors: Tensor = clip / norms.clamp(min=clip)
    return factors


# Faults of the clip


class NoClip(KeyedDPOptimizer):
    """Sums the gradients as they are."""

    def clip_and_accumulate(self) -> None:
        """Add every unit's gradient."""
        for parameter in self.params:
            _weighted(parameter, torch.ones(len(parameter.grad_sample)))


class ClipAfterSum(NoClip):
    """Clips the sum, as plain training clips a batch's gradient."""

    def add_noise(self) -> None:
        """Scale the sum to the clip, then go on."""
        norm = torch.stack([parameter.summed_grad.norm() for parameter in self.params]).norm()
        for parameter in self.params:
            parameter.summed_grad *= self.max_grad_norm / norm.clamp(min=self.max_grad_norm)
        super().add_noise()


class ClipByLayer(KeyedDPOptimizer):
    """Clips each layer's gradient by itself to the whole clip."""

    def clip_and_accumulate(self) -> None:
        """Add the gradients, each parameter under its own factor."""
        for parameter in self.params:
            _weighted(parameter, _factors([parameter.grad_sample], self.max_grad_norm))


class PenaltyInLoss(KeyedDPOptimizer):
    """EWC's penalty in the loss, where each unit's clip factor multiplies it, as in ghost clipping."""

    def clip_and_accumulate(self) -> None:
        """The right sum, and the penalty's gradient once for each unit, times its factor."""
        step, units = self.original_optimizer, len(self.grad_samples[0])
        weight = _factors(self.grad_samples, self.max_grad_norm).sum()  # before they are overwritten
        super().clip_and_accumulate()
        if (pull := step._proximal) is None or units == 0:
            return
        weight *= pull.ewc_lambda
        for parameter, latent, anchor, fisher in zip(
            self.params, step.latents, pull.anchor, pull.fisher_diagonal, strict=True
        ):
            parameter.summed_grad = parameter.summed_grad + weight * fisher * (latent - anchor)


class OverflowPasses(KeyedDPOptimizer):
    """Opacus' own clip, which an infinite gradient turns into NaN."""

    def clip_and_accumulate(self) -> None:
        """Clip without looking whether the gradient is finite."""
        DPOptimizer.clip_and_accumulate(self)


class _ViewsAsUnits(training.UnitGradients):
    """Treats each view of a unit as a unit of its own."""

    def _parts(self, units: np.ndarray, draws: KeyedGenerator) -> Iterator[list[Tensor]]:
        """One gradient a view."""
        settings = self._settings
        self._settings = dataclasses.replace(settings, views=1)
        try:
            yield from super()._parts(np.repeat(units, settings.views), draws)
        finally:
            self._settings = settings


def clip_by_view() -> AbstractContextManager[object]:
    """Each view is clipped, and a unit has several."""
    return mock.patch.object(training, "UnitGradients", _ViewsAsUnits)


class _BatchStatistics(nn.Module):
    """BatchNorm without parameters, buffers or its name."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> the same, by the batch's own mean and variance."""
        return F.batch_norm(x, None, None, training=True) if len(x) > 1 else x


def _student_after(first: Callable[[int], nn.Module]) -> Plant:
    return lambda: mock.patch.object(
        training, "build_student", lambda spec: nn.Sequential(first(spec.channels), *build_student(spec))
    )


batch_norm = _student_after(lambda channels: nn.BatchNorm2d(channels, affine=False))
disguised_batch_norm = _student_after(lambda channels: _BatchStatistics())


class DenominatorByDraw(KeyedDPOptimizer):
    """Divides by the number of units that were drawn, which is private."""

    _drawn = 0

    def clip_and_accumulate(self) -> None:
        """Count the units."""
        self._drawn += int(self.grad_samples[0].flatten(1).any(dim=1).sum())  # a blank's gradient is zero
        super().clip_and_accumulate()

    def scale_grad(self) -> None:
        """Divide by the count."""
        for parameter in self.params:
            parameter.grad /= max(1, self._drawn)
        self._drawn = 0


# Faults of the noise


class _WithNoise(KeyedDPOptimizer):
    """Draws the noise at another multiplier than the accountant is told, or by itself."""

    noise_multiplier: float
    _steps = 0

    def own_generator(self) -> KeyedGenerator:
        """Another generator for each step, the same ones in each run."""
        self._steps += 1
        return KeyedGenerator.from_seed(self._steps, "fault")

    def noised_at(self, multiplier: float) -> None:
        """Add noise of `multiplier`."""
        told, self.noise_multiplier = self.noise_multiplier, multiplier
        super().add_noise()
        self.noise_multiplier = told

    def add_to_gradients(self, draw: Callable[[int], np.ndarray]) -> None:
        """Add values of `draw`, of variance 1, at the right standard deviation."""
        for parameter in self.params:
            values = torch.from_numpy(draw(parameter.numel())).view_as(parameter)
            parameter.grad += (values * self.noise_multiplier * self.max_grad_norm).float()


class HalfNoise(_WithNoise):
    """Half the noise."""

    def add_noise(self) -> None:
        """Add it."""
        self.noised_at(self.noise_multiplier / 2)


class NoNoise(_WithNoise):
    """None at all."""

    def add_noise(self) -> None:
        """Add nothing."""
        self.noised_at(0.0)


class NoNoiseWhenEmpty(_WithNoise):
    """Skips the noise where no unit was drawn, and so tells that none was."""

    def add_noise(self) -> None:
        """Add it if there is a unit."""
        self.noised_at(0.0 if self.params[0].summed_grad is None else self.noise_multiplier)


class NoiseByPhysicalBatch(_WithNoise):
    """Adds the noise to every physical batch, so that how much there is tells how many units came."""

    def pre_step(self, closure: Any = None) -> Any:
        """Noise the running sum of a batch that is not the last."""
        goes_on = super().pre_step(closure)
        if not goes_on:
            drawn = self.own_generator().normal
            for parameter in self.params:
                values = torch.from_numpy(drawn(parameter.numel())).view_as(parameter)
                parameter.summed_grad += values * self.noise_multiplier * self.max_grad_norm
        return goes_on


class SameNoiseEveryStep(_WithNoise):
    """Starts its generator anew in every step."""

    def add_noise(self) -> None:
        """Add the step's noise, which is the last step's."""
        self.noised_at(0.0)
        self.add_to_gradients(KeyedGenerator.from_seed(0, "stuck").normal)


class SameNoiseEveryLayer(_WithNoise):
    """Starts its generator anew for every parameter."""

    def add_noise(self) -> None:
        """Add it."""
        self.noised_at(0.0)
        step = self.own_generator()
        self.add_to_gradients(lambda count: step.derive("layer").normal(count))


class UniformNoise(_WithNoise):
    """Noise of the right variance and another law."""

    def add_noise(self) -> None:
        """Add it."""
        self.noised_at(0.0)
        step = self.own_generator()
        self.add_to_gradients(lambda count: (2.0 * step.uniform(count) - 1.0) * 3.0**0.5)


def fixed_key() -> AbstractContextManager[object]:
    """A hospital that draws every round from one key."""
    return mock.patch.object(RoundKeys, "open", return_value=KeyedGenerator.from_seed(0, "fixed"))


def no_subsampling() -> AbstractContextManager[object]:
    """Every unit takes part in every step."""
    return mock.patch.object(
        KeyedGenerator, "poisson_sample", lambda self, population, rate: np.arange(population)
    )
