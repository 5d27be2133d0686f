"""DP-SGD (Abadi et al. 2016, arXiv 1607.00133) through Opacus' DPOptimizer, noised by the keyed generator.

Formal guarantee. One step releases round(sum_i clip(g_i) + N(0, (sigma*C)^2 I)) on a grid of 2^-20 * C, where
i runs over a Poisson sample of privacy units and g_i is a unit's gradient. Adding or removing one unit moves
the sum that is noised, as it was computed and rounded, by at most C in L2; so the step is a
Poisson-subsampled Gaussian mechanism with noise multiplier sigma, followed by post-processing:

- sum and noise meet as integers, and round(s + x) = s + round(x) for an integer s, so rounding the noise is
  post-processing of a Gaussian that was added to a sum on the grid (Mironov 2012 is why it has to be said);
- units are clipped to C' < C, and `clip_below` leaves exactly the room that rounding errors can take;
- a unit whose gradient is not finite counts as zero, whatever model made it so;
- the sum is divided by a public constant, never by the number of units that came.
"""

import math

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor
from torch.optim import Optimizer

from fedward.common.randomness import KeyedGenerator

GRID = 2.0**-20
_FLOAT32 = 2.0**-24  # unit roundoff
_BLOCK = 512  # float32 squares summed before float64 takes over
_ROWS = 8  # float32 rows summed before float64 takes over


def clip_below(max_grad_norm: float, units: int, coordinates: int) -> float:
    """C': what units are clipped to, so that the computed sum's sensitivity is at most `max_grad_norm`.

    With u = 2^-24: a norm over blocks of 512 errs by at most 2^9 u relatively, a factor by 2u, a sum of 8
    float32 terms by 8u of their magnitudes (Higham 2002, section 3.1), which for either of two adjacent data
    sets is 8u * units * C' in L2, and each grid rounding by half a grid step a coordinate.

    Args:
        max_grad_norm: C.
        units: public bound on how many units can be in the sum.
        coordinates: number of parameters.
    """
    relative = (_BLOCK + 4 + 2.02 * _ROWS * units) * _FLOAT32
    grid = GRID * math.sqrt(coordinates)
    return max_grad_norm * max(0.0, 1.0 - grid) / (1.0 + relative)


class KeyedDPOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimizer with noise from a `KeyedGenerator`, and sums whose rounding is accounted for.

    Args:
        optimizer: what steps on the private gradient.
        generator: the round's keyed generator.
        noise_multiplier: sigma, the noise's standard deviation over the clip; 0 only without privacy.
        max_grad_norm: C, the sensitivity of the sum: at most this is added by one unit.
        units: public bound on how many units a step can sum.
        denominator: public constant that the noised sum is divided by (rate * declared units).
    """

    def __init__(
        self,
        optimizer: Optimizer,
        generator: KeyedGenerator,
        noise_multiplier: float,
        max_grad_norm: float,
        units: int,
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
        self._clip = clip_below(max_grad_norm, units, sum(parameter.numel() for parameter in self.params))

    def clip_and_accumulate(self) -> None:
        """Clip the batch's units and add them to the running sum, which is float64."""
        gradients = [gradient.flatten(1) for gradient in self.grad_samples]
        factors = self._factors(gradients)
        for parameter, gradient in zip(self.params, gradients, strict=True):
            added = _weighted_sum(factors, gradient).view_as(parameter)
            held = parameter.summed_grad
            parameter.summed_grad = added if held is None else held + added

    def _factors(self, gradients: list[Tensor]) -> Tensor:
        """min(1, C' / norm) of each unit, float32 (units,); a gradient that is not finite is set to zero."""
        norms = torch.linalg.vector_norm(torch.stack([_norms(gradient) for gradient in gradients]), dim=0)
        finite = norms.isfinite()
        if not finite.all():
            for gradient in gradients:
                gradient[~finite] = 0.0
            norms = norms.where(finite, 0.0)
        factors: Tensor = self._clip / norms.clamp(min=self._clip)
        return factors.to(torch.float32)

    def add_noise(self) -> None:
        """Put the sum on the integer grid and add integer noise there, exactly."""
        for parameter in self.params:
            parameter.grad = self._noised(parameter.summed_grad)

    def _noised(self, clipped_sum: Tensor) -> Tensor:
        grid: float = GRID * self.max_grad_norm
        noise = torch.from_numpy(self._keyed.normal(clipped_sum.numel())).view_as(clipped_sum)
        steps = torch.round(clipped_sum / grid) + torch.round(noise * (self.noise_multiplier / GRID))
        noised: Tensor = steps * grid
        return noised.to(torch.float32)

    def scale_grad(self) -> None:
        """Divide by the public denominator."""
        for parameter in self.params:
            parameter.grad /= self._denominator


def _norms(gradient: Tensor) -> Tensor:
    """L2 norm of each row, float64 (units,): float32 within blocks, float64 over them."""
    whole = gradient.shape[1] // _BLOCK * _BLOCK
    if whole == 0:
        short: Tensor = torch.linalg.vector_norm(gradient, dim=1)
        return short.double()
    blocks = gradient[:, :whole].reshape(len(gradient), whole // _BLOCK, _BLOCK)
    parts = [
        torch.linalg.vector_norm(blocks, dim=2),
        torch.linalg.vector_norm(gradient[:, whole:], dim=1)[:, None],
    ]
    norms: Tensor = torch.linalg.vector_norm(torch.cat(parts, dim=1).double(), dim=1)
    return norms


def _weighted_sum(factors: Tensor, gradient: Tensor) -> Tensor:
    """sum_i factors_i * gradient_i, float64 (coordinates,): float32 within eight rows, float64 over them."""
    whole = len(gradient) // _ROWS * _ROWS
    eights = torch.bmm(
        factors[:whole].view(-1, 1, _ROWS), gradient[:whole].reshape(-1, _ROWS, gradient.shape[1])
    )
    total: Tensor = eights.double().sum(dim=(0, 1)) + (factors[whole:] @ gradient[whole:]).double()
    return total
