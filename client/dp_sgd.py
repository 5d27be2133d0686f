"""DP-SGD (Abadi et al. 2016, arXiv 1607.00133) through Opacus' DPOptimizer, noised by the keyed generator.

Formal guarantee. One step releases sum_i z_i + round(N(0, (sigma*C)^2 I)) on the grid of `grid_step`, where i
runs over a Poisson sample of privacy units and z_i is a unit's clipped gradient, cut to the grid. Adding or
removing one unit moves the sum by z_i, at most C in L2; so the step is a Poisson-subsampled Gaussian
mechanism with noise multiplier sigma, followed by post-processing:

- each z_i is computed from its own unit alone, and the sum of all has no rounding error at all: 32 integers
  of at most 2^19 add up exactly in float32, and any number of such sums exactly in float64;
- cutting to the grid is toward zero, so it lengthens no gradient; for the rounding of its norm and of the
  division units are clipped to C' < C (`clip_below`);
- sum and noise meet as integers, and round(s + x) = s + round(x) for an integer s, so rounding the noise is
  post-processing of a Gaussian that was added to a sum on the grid (Mironov 2012 is why it has to be said);
- a unit whose gradient is not finite counts as zero, whatever model made it so;
- the sum is divided by a public constant, never by the number of units that came.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor
from torch.optim import Optimizer

from fedward.common.randomness import KeyedGenerator

_FLOAT32 = 2.0**-24  # unit roundoff
_BLOCK = 512  # float32 squares summed before float64 takes over
_EXACT = 32  # units whose integers, at most 2^19, float32 adds without rounding
_SMALL = 2048  # parameters of fewer values are clipped as one


def grid_step(max_grad_norm: float) -> float:
    """2^-19 of the power of two at or above C: multiples of it are exact in binary, and C is at most 2^19."""
    return 2.0 ** (math.ceil(math.log2(max_grad_norm)) - 19)


def clip_below(max_grad_norm: float) -> float:
    """C': what units are clipped to, so that a clipped one, as computed, is at most `max_grad_norm`, C.

    With u = 2^-24: a norm over blocks of 512 errs by at most 2^9 u relatively, a divisor and the division by
    2u (Higham 2002, section 3.1).
    """
    return max_grad_norm / (1.0 + (_BLOCK + 4) * _FLOAT32)


def clip_divisors(gradients: Sequence[Tensor], clip: float) -> Tensor:
    """What each unit is divided by so that its norm is at most C': max(1, norm / C'), float64 (units,).

    Args:
        gradients: float32 (units, values) each, which make up the units together. Where one is not finite,
            or its norm is not in float32, all of its unit is set to zero in place.
        clip: C', of `clip_below`.
    """
    norms = torch.linalg.vector_norm(torch.stack([_norms(gradient) for gradient in gradients]), dim=0)
    finite = norms.isfinite()
    if not finite.all():
        for gradient in gradients:
            gradient[~finite] = 0.0
        norms = norms.where(finite, 0.0)
    divisors: Tensor = (norms / clip).clamp(min=1.0)
    return divisors


class KeyedDPOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimizer with noise from a `KeyedGenerator`, and exact sums of clipped units.

    Args:
        optimizer: what steps on the private gradient.
        generator: the round's keyed generator.
        noise_multiplier: sigma, the noise's standard deviation over the clip; 0 only without privacy.
        max_grad_norm: C, the sensitivity of the sum: at most this is added by one unit.
        denominator: public constant that the noised sum is divided by (rate * declared units).
    """

    def __init__(
        self,
        optimizer: Optimizer,
        generator: KeyedGenerator,
        noise_multiplier: float,
        max_grad_norm: float,
        denominator: float,
    ) -> None:
        """Wrap `optimizer`."""
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=None,
            loss_reduction="sum",
        )
        self._keyed = generator
        self._denominator = denominator
        self._clip = clip_below(max_grad_norm)
        self._grid = grid_step(max_grad_norm)

    def accumulate(self, gradients: Iterable[Tensor]) -> None:
        """Clip units' gradients, one tensor (units, *shape) a parameter, and add them to the step's sum."""
        self._hand_over(gradients, is_last=False)

    def finish(self) -> None:
        """Noise the sum of all units since the last step, and take the step."""
        self._hand_over([parameter.new_zeros(0, *parameter.shape) for parameter in self.params], is_last=True)

    def _hand_over(self, gradients: Iterable[Tensor], is_last: bool) -> None:
        for parameter, gradient in zip(self.params, gradients, strict=True):
            parameter.grad_sample = gradient
        self.signal_skip_step(do_skip=not is_last)
        self.step()
        for (
            parameter
        ) in self.params:  # not `zero_grad`: it also writes zeros where the next step writes anyway
            parameter.grad_sample = None
            if is_last:
                parameter.summed_grad = None

    def clip_and_accumulate(self) -> None:
        """Clip units, cut them to the grid, and add them to the running sum; they are overwritten."""
        if len(self.grad_samples[0]) == 0:
            return
        small = [parameter for parameter in self.params if parameter.numel() < _SMALL]
        alone = [[parameter] for parameter in self.params if parameter.numel() >= _SMALL]
        groups = [*alone, small] if small else alone
        gradients = [_rows(parameters) for parameters in groups]
        divisors = self._divisors(gradients)
        for parameters, gradient in zip(groups, gradients, strict=True):
            self._add(parameters, self._sum(gradient, divisors))

    def _sum(self, gradient: Tensor, divisors: Tensor) -> Tensor:
        """The exact sum of units cut to the grid, float64 (values,); block by block while it is in cache."""
        sums = []
        for block, own in zip(torch.split(gradient, _EXACT), torch.split(divisors, _EXACT), strict=True):
            torch.div(block, own, rounding_mode="trunc", out=block)
            sums.append(block.new_full((len(block),), self._grid) @ block)
        return torch.stack(sums).sum(dim=0, dtype=torch.float64)

    def _add(self, parameters: Sequence[Any], multiples: Tensor) -> None:
        """Add multiples of the grid, (values of all parameters,), which float64 does without rounding."""
        for parameter, own in zip(parameters, _split(multiples, parameters), strict=True):
            if parameter.summed_grad is None:
                parameter.summed_grad = torch.zeros_like(parameter, dtype=torch.float64)
            parameter.summed_grad += own.view_as(parameter)

    def _divisors(self, gradients: list[Tensor]) -> Tensor:
        """What turns each unit into clipped grid steps: max(1, norm / C') * grid, float32 (units, 1)."""
        steps = clip_divisors(gradients, self._clip) * self._grid
        return steps.to(torch.float32)[:, None]

    def add_noise(self) -> None:
        """Add integer noise to the sum on the grid, exactly."""
        noise = torch.from_numpy(self._keyed.normal(sum(parameter.numel() for parameter in self.params)))
        deviation = self.noise_multiplier * self.max_grad_norm / self._grid
        self._add(self.params, noise.mul_(deviation).round_().mul_(self._grid))
        for parameter in self.params:
            parameter.grad = parameter.summed_grad.to(torch.float32)

    def scale_grad(self) -> None:
        """Divide by the public denominator."""
        for parameter in self.params:
            parameter.grad /= self._denominator


def _rows(parameters: Sequence[Tensor]) -> Tensor:
    """The parameters' per-unit gradients side by side, (units, values)."""
    parts = [parameter.grad_sample.flatten(1) for parameter in parameters]  # type: ignore[attr-defined]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _split(values: Tensor, parameters: Sequence[Tensor]) -> Sequence[Tensor]:
    return values.split_with_sizes([parameter.numel() for parameter in parameters])


def _norms(gradient: Tensor) -> Tensor:
    """L2 norm of each row, float64 (units,): float32 within blocks, float64 over them."""
    whole = gradient.shape[1] // _BLOCK * _BLOCK
    if whole == 0:
        short: Tensor = torch.linalg.vector_norm(gradient, dim=1)
        return short.double()
    blocks = gradient[:, :whole].reshape(len(gradient), whole // _BLOCK, _BLOCK)
    parts = [torch.linalg.vector_norm(blocks, dim=2).double()]
    if whole < gradient.shape[1]:
        parts.append(torch.linalg.vector_norm(gradient[:, whole:], dim=1)[:, None].double())
    norms: Tensor = torch.linalg.vector_norm(torch.cat(parts, dim=1), dim=1)
    return norms
