"""DP-SGD (Abadi et al. 2016, arXiv 1607.00133) through Opacus' DPOptimizer, noised by the keyed generator.

Formal guarantee: one step releases sum_i clip(g_i, C) + N(0, (sigma*C)^2 I), rounded to an integer grid of
2^-20 * C, where i runs over a Poisson sample of privacy units and g_i is a unit's gradient. Adding or
removing one unit moves the sum by at most C, so the step is a Poisson-subsampled Gaussian mechanism with
noise multiplier sigma. The sum is divided by a public constant, never by the number of units that came.
"""

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor
from torch.optim import Optimizer

from fedward.common.randomness import KeyedGenerator

GRID = 2.0**-20


class KeyedDPOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimizer with noise from a `KeyedGenerator`.

    Args:
        optimizer: what steps on the private gradient.
        generator: the round's keyed generator.
        noise_multiplier: sigma, the noise's standard deviation over the clip; 0 only without privacy.
        max_grad_norm: C, the largest L2 norm of one unit's gradient over all parameters.
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

    def clip_and_accumulate(self) -> None:
        """Opacus' clipped sum, where a unit whose gradient is not finite counts as zero.

        A model made to overflow on chosen records would else turn the sum into NaN, and the round that then
        fails would tell, without noise, that such a record is here.
        """
        if len(self.grad_samples[0]) > 0:
            norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in self.grad_samples])
            broken = ~norms.isfinite().all(dim=0)
            if broken.any():
                for parameter in self.params:
                    parameter.grad_sample[broken] = 0.0
        super().clip_and_accumulate()

    def add_noise(self) -> None:
        """Put sum and noise on the integer grid and add them there, exactly."""
        for parameter in self.params:
            parameter.grad = self._noised(parameter.summed_grad)

    def _noised(self, clipped_sum: Tensor) -> Tensor:
        grid: float = GRID * self.max_grad_norm
        noise = torch.from_numpy(self._keyed.normal(clipped_sum.numel())).view_as(clipped_sum)
        steps = torch.round(clipped_sum.double() / grid)
        steps += torch.round(noise * (self.noise_multiplier / GRID))
        return (steps * grid).to(torch.float32)

    def scale_grad(self) -> None:
        """Divide by the public denominator."""
        for parameter in self.params:
            parameter.grad /= self._denominator
