"""A hospital's local round: Poisson sample, per-unit gradients, clip, noise, latent step, proximal EWC.

Nothing about the private records shapes the mechanism: rates, denominators, the number of steps and the
learning rate are public constants of the study; an empty sample is a step of pure noise like any other.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from opacus.accountants import PRVAccountant
from torch import Tensor

from fedward.client.dp_sgd import KeyedDPOptimizer
from fedward.client.ewc import ElasticPull
from fedward.client.latent import LatentSGD
from fedward.common.config import LocalSettings
from fedward.common.datasets import Split
from fedward.common.images import augment, to_tensor
from fedward.common.losses import classification, distillation, prior_offset
from fedward.common.models import build_student, flatten, load_vector, split, unflatten
from fedward.common.per_sample import PerSampleGradients
from fedward.common.quantization import behind, load_latents
from fedward.common.randomness import KeyedGenerator

PHYSICAL_ROWS = 64  # rows (units * views) of every forward pass, whatever the Poisson draw


@dataclass(frozen=True)
class LocalRound:
    """What a round computes with, beside the hospital's records.

    Attributes:
        settings: the study's public constants.
        learning_rate: of this round.
        num_examples: the declared count, frozen for the study.
        latents: the global model, float32 (n,).
        pull: EWC's anchor and Fisher diagonal, or None.
        teacher: a public teacher's latents, float32 (n,), of the same student at fp32; or None.
    """

    settings: LocalSettings
    learning_rate: float
    num_examples: int
    latents: Tensor
    pull: ElasticPull | None = None
    teacher: Tensor | None = None


def train(work: LocalRound, records: Split, generator: KeyedGenerator) -> tuple[Tensor, PRVAccountant]:
    """Run the round's noised steps on `records`.

    Returns:
        the change of the trained latents, float32 (m,), and the accountant that saw every step.
    """
    torch.set_num_threads(1)  # the sum's order, and so the last bit, must not depend on the machine's cores
    settings = work.settings
    model = build_student(settings.spec)
    latents = [part.clone() for part in unflatten(work.latents, list(model.parameters()))]
    load_latents(model, latents, settings.spec.precisions)
    body, trained = split(model, settings.trained)
    latents = latents[len(list(body.parameters())) :]
    before = flatten(latents)
    precision = behind(settings.spec.precisions, list(body.parameters()))
    step = LatentSGD(trained, latents, precision, work.learning_rate, work.pull)
    optimizer = KeyedDPOptimizer(
        step,
        generator.derive("noise"),
        settings.noise_multiplier,
        settings.max_grad_norm,
        settings.sample_rate * work.num_examples,
    )
    accountant = PRVAccountant()
    # Not q = 1/len(loader), which is wrong for small hospitals: the study's public rate.
    optimizer.attach_step_hook(accountant.get_optimizer_hook_fn(sample_rate=settings.sample_rate))
    gradients = UnitGradients(model, work, records, generator)
    for local_step in range(settings.local_steps):
        gradients.accumulate(optimizer, local_step)
    return flatten(latents) - before, accountant


class UnitGradients:
    """Clipped per-unit gradients of Poisson-sampled units, in physical batches of one public shape.

    The last batch is filled up with blank images whose gradients are dropped. For batches of another size a
    processor takes other kernels, which round otherwise, and a hostile model can blow that up until one
    unit's coming flips another's clipped gradient. In one shape a unit's gradient is the same bits in any
    company.
    """

    def __init__(
        self, model: torch.nn.Sequential, work: LocalRound, records: Split, generator: KeyedGenerator
    ) -> None:
        """Prepare the gradients of what `model` trains on `records`; draws come from `generator`."""
        self._body, trained = split(model, work.settings.trained)
        self._engine = PerSampleGradients(trained)
        self._settings = work.settings
        self._records = records
        self._generator = generator
        # Public bound: records beyond the declared count take no part.
        self._population = min(len(records.images), work.num_examples)
        self._offset = prior_offset(work.settings.class_prior, work.settings.task)
        self._teacher = _frozen_teacher(work)

    def accumulate(self, optimizer: KeyedDPOptimizer, local_step: int) -> None:
        """One logical step: sample, clip and sum part by part, noise, step."""
        draws = self._generator.derive("step", local_step)
        units = draws.derive("poisson").poisson_sample(self._population, self._settings.sample_rate)
        size = max(1, PHYSICAL_ROWS // self._settings.views)
        views = draws.derive("views")
        for start in range(0, len(units), size):
            for gradients in self._parts(units[start : start + size], views):
                optimizer.accumulate(gradients)
        optimizer.finish()

    def _parts(self, units: np.ndarray, draws: KeyedGenerator) -> Iterator[list[Tensor]]:
        """Gradients of `units`, some after others; those of the blanks behind them are zero."""
        rows, views = np.repeat(units, self._settings.views), self._settings.views
        size = max(1, PHYSICAL_ROWS // views) * views
        images = augment(
            filled(to_tensor(self._records.images[rows]), size), self._settings.augmentation, draws
        )
        labels = filled(torch.from_numpy(self._records.labels[rows]), size)
        teacher = None if self._teacher is None else self._teacher(images)
        with torch.no_grad():
            seen = self._body(images)
        parts = self._engine.in_parts(seen, lambda logits: self._loss(logits, labels, teacher), views)
        yield from blanks_zeroed(parts, len(units))

    def _loss(self, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> Tensor:
        settings, alpha = self._settings, self._settings.distillation_alpha
        loss = classification(logits, labels, settings.task, self._offset)
        if teacher_logits is None or alpha == 0.0:
            return loss
        soft = distillation(logits, teacher_logits, settings.distillation_temperature, settings.task)
        return (1.0 - alpha) * loss + alpha * soft


def filled(rows: Tensor, size: int) -> Tensor:
    """`rows` with zeros behind them, (size, ...): the one public shape of every pass over records."""
    return torch.cat([rows, rows.new_zeros(size - len(rows), *rows.shape[1:])])


def blanks_zeroed(parts: Iterator[list[Tensor]], units: int) -> Iterator[list[Tensor]]:
    """Per-unit gradients in parts, (units of the part, *shape) each, those behind the first `units` zeroed.

    These blanks stay, so that clipping has one public shape too.
    """
    left = units
    for part in parts:
        for gradient in part:
            gradient[max(0, left) :] = 0.0
        left -= len(part[0])
        yield part


def _frozen_teacher(work: LocalRound) -> torch.nn.Sequential | None:
    if work.teacher is None:
        return None
    model = build_student(work.settings.spec)
    load_vector(model, work.teacher.numpy())
    return model.requires_grad_(False).eval()
