"""Elastic weight consolidation (Kirkpatrick et al. 2017, arXiv 1612.00796) as a proximal step.

The penalty lambda/2 * F * (theta - anchor)^2 never enters the loss: there Opacus' hooks would drop it in
silence, and ghost clipping would scale it by the clip factors and break the sensitivity bound. It acts on
the latents after the noise instead, as an implicit step, which is stable for any lambda.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ElasticPull:
    """theta <- (theta + p*anchor) / (1 + p), elementwise, with the pull p = lr*lambda*F.

    Computed as a step from theta to the anchor with the weight 1 / (1 + 1/p), which is exact at the anchor,
    for no pull, and for one too large for float32.

    Attributes:
        anchor: latents of the earlier task, float32, one tensor a parameter.
        fisher_diagonal: non-negative float32 of the same shapes, from public reference data.
        ewc_lambda: strength, at least 0.
    """

    anchor: list[Tensor]
    fisher_diagonal: list[Tensor]
    ewc_lambda: float

    @torch.no_grad()
    def __call__(self, latents: list[Tensor], learning_rate: float) -> None:
        """Pull `latents` toward the anchor, in place."""
        for latent, anchor, fisher in zip(latents, self.anchor, self.fisher_diagonal, strict=True):
            pull = learning_rate * self.ewc_lambda * fisher
            latent.lerp_(anchor, 1.0 / (1.0 + 1.0 / pull))
