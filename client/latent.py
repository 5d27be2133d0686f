"""SGD on fp32 latents while the network computes with their quantised image.

Plain layers and an optimizer that writes Q(latent) into the parameter equal straight-through
quantisation-aware training (Bengio et al. 2013, arXiv 1308.3432), need no custom layer, and let Opacus
clip and noise exactly the gradient that is used. Quantising afterwards is post-processing.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fedward.common.quantization import Precision, each_precision, fake_quantize

Proximal = Callable[[list[Tensor], float], None]


class LatentSGD(Optimizer):
    """Gradient descent on latents; the parameter always holds Q(latent).

    Args:
        model: its parameters are overwritten with Q(latents).
        latents: float32, one a parameter, of the same shapes; updated in place.
        precision: of all weights, or of each (`fedward.common.quantization.Precision`).
        learning_rate: step size, in units of the latents.
        proximal: called with (latents, learning rate) after each gradient step, for example EWC's pull.
    """

    def __init__(
        self,
        model: nn.Module,
        latents: list[Tensor],
        precision: Precision,
        learning_rate: float,
        proximal: Proximal | None = None,
    ) -> None:
        """Write Q(latents) into the model."""
        super().__init__(list(model.parameters()), {"lr": learning_rate})
        self.latents = latents
        self._precisions = each_precision(precision, latents)
        self._proximal = proximal
        self._write()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """latent <- proximal(latent - lr * grad); parameter <- Q(latent)."""
        group = self.param_groups[0]
        for latent, parameter in zip(self.latents, group["params"], strict=True):
            if parameter.grad is not None:
                latent.sub_(parameter.grad, alpha=group["lr"])
        if self._proximal is not None:
            self._proximal(self.latents, group["lr"])
        self._write()

    @torch.no_grad()
    def _write(self) -> None:
        parameters = self.param_groups[0]["params"]
        for latent, parameter, own in zip(self.latents, parameters, self._precisions, strict=True):
            parameter.copy_(fake_quantize(latent, own))
