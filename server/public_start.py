"""A public start for an `embed` student: what it knows before the first private record is looked at.

Everything here is public and costs no privacy: the teacher and its ImageNet weights, public images, and half
A of the study's reference records. Three steps, the student quantised throughout (straight-through):

1. Each column of it learns the teacher's features on public images: mean squared error against the leading
   principal components, half whitened (feature distillation, Romero et al. 2015, arXiv 1412.6550).
2. Embedding and head go on together: cross-entropy on half A under strong augmentation, and the first step's
   loss beside it, so that a few hundred labelled images do not undo what thousands taught.
3. The norm before the head takes the mean embedding of half A away and brings lengths to about 1: then no
   common direction fills the clip of the head's gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedward.common.codec import Vector
from fedward.common.config import LocalSettings
from fedward.common.convolutions import COLUMNS, EMBEDDING
from fedward.common.datasets import Split
from fedward.common.errors import SettingRefused
from fedward.common.images import augment, to_tensor
from fedward.common.losses import classification, prior_offset
from fedward.common.models import build_student, flatten, initialise, parameter_count
from fedward.common.quantization import load_latents
from fedward.common.randomness import KeyedGenerator
from fedward.server.public_images import PublicImages
from fedward.server.recipes import DISTILLED, check_family
from fedward.server.teacher import Descent, drawn_rows

_VALUES = EMBEDDING * COLUMNS
_SCALE = _VALUES**-0.5  # a normalised embedding's length is then 1
_HEAD_SCALE = 4.0  # of the head's step beside the body's
_TUNING = (300, 5000)  # fewest and most steps
_CONTRAST, _BRIGHTNESS = (0.6, 1.5), (-0.25, 0.25)


@dataclass(frozen=True)
class StartPlan:
    """How long and how fast; the defaults were chosen on PneumoniaMNIST's reference records alone.

    Attributes:
        steps, rate, batch: of the distillation: AdamW with a cosine to zero.
        tuning_steps, tuning_rate, tuning_batch: of the second step; `tuning_batch` labelled images and as
            many public ones. None: one step for each labelled image there is, within `_TUNING`.
    """

    steps: int = 5000
    rate: float = 3e-3
    batch: int = 128
    tuning_steps: int | None = None
    tuning_rate: float = 1e-3
    tuning_batch: int = 64

    def steps_of_tuning(self, labelled: int) -> int:
        """For so many labelled images: a few hundred are learned by heart soon, thousands are not."""
        if self.tuning_steps is not None:
            return self.tuning_steps
        fewest, most = _TUNING
        return min(max(fewest, labelled), most)


def public_start(
    settings: LocalSettings,
    public: PublicImages,
    labelled: Split,
    generator: KeyedGenerator,
    plan: StartPlan | None = None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> Vector:
    """Latents of the student to start a study of the head from, float32 (n,).

    Args:
        settings: the study's; its student is an `embed`.
        public: images and targets.
        labelled: half A of the reference records.
        tell: takes a sentence about the progress, now and then.

    Raises:
        SettingRefused: another student, or images of another shape than the study's.
    """
    _check(settings, public)
    torch.set_num_threads(1)
    training = _Training(settings, public, labelled, generator)
    chosen = plan or StartPlan()
    training.distil(chosen, tell)
    training.tune(chosen, tell)
    return training.centred()


def _check(settings: LocalSettings, public: PublicImages) -> None:
    check_family(DISTILLED, settings)
    shape = (settings.channels, settings.height, settings.width)
    if tuple(public.images.shape[1:]) != shape:
        raise SettingRefused(
            f"The public images have shape {tuple(public.images.shape[1:])}, and the study's {shape}."
        )


class _Training:
    """The student's latents on their way; the last two are the head's."""

    def __init__(
        self, settings: LocalSettings, public: PublicImages, labelled: Split, generator: KeyedGenerator
    ) -> None:
        self._settings, self._public, self._labelled = settings, public, labelled
        self._model = build_student(settings.spec)
        initialise(self._model, generator.derive("student"))
        self._latents = [parameter.detach().clone() for parameter in self._model.parameters()]
        self._draws = generator.derive("batches")
        self._embedding = self._model[:-2]
        self._body = len(list(self._embedding.parameters()))  # parameters below norm and head
        self._parameters = list(self._embedding.parameters())
        self._head = [latent * _HEAD_SCALE**-1 for latent in self._latents[-2:]]
        self._offset = prior_offset(settings.class_prior, settings.task)

    def distil(self, plan: StartPlan, tell: Callable[[str], None]) -> None:
        step = Descent(self._latents[: self._body], plan.rate, plan.steps)
        for number in range(plan.steps):
            self._load()
            loss = self._distance(plan.batch)
            step(torch.autograd.grad(loss, self._parameters))
            if number % 500 == 499:
                tell(f"distilling, step {number + 1} of {plan.steps}: loss {float(loss.detach()):.3f}")

    def tune(self, plan: StartPlan, tell: Callable[[str], None]) -> None:
        steps = plan.steps_of_tuning(len(self._labelled.images))
        step = Descent([*self._latents[: self._body], *self._head], plan.tuning_rate, steps)
        for _ in range(steps):
            self._load()
            head = [latent.detach().requires_grad_() for latent in self._head]
            loss = self._entropy(head, plan.tuning_batch) + self._distance(plan.tuning_batch)
            step(torch.autograd.grad(loss, [*self._parameters, *head]))
        tell(f"tuned on {len(self._labelled.images)} labelled public images")

    def centred(self) -> Vector:
        """Norm and head that compute what the tuned ones do, about the mean embedding of half A."""
        self._load()
        with torch.no_grad():
            mean = self._normalised(to_tensor(self._labelled.images)).mean(dim=0)
        weight, bias = (_HEAD_SCALE * latent for latent in self._head)
        norm = [torch.full_like(mean, _SCALE), -mean]
        latents = [*self._latents[: self._body], *norm, weight, bias + weight @ mean]
        vector: Vector = flatten(latents).numpy()
        if len(vector) != parameter_count(self._model):
            raise ValueError("an embed student ends in a norm and a linear head")
        return vector

    def _load(self) -> None:
        load_latents(self._embedding, self._latents[: self._body], self._settings.spec.precision)

    def _distance(self, batch: int) -> Tensor:
        rows = torch.from_numpy(drawn_rows(self._draws, batch, len(self._public.images)))
        images, targets = self._public.images[rows].float(), self._public.targets[rows]
        distance: Tensor = F.mse_loss(self._embedding(images), targets.repeat(1, COLUMNS))
        return distance

    def _normalised(self, images: Tensor) -> Tensor:
        normalised: Tensor = F.layer_norm(self._embedding(images), (_VALUES,)) * _SCALE
        return normalised

    def _entropy(self, head: list[Tensor], batch: int) -> Tensor:
        rows = drawn_rows(self._draws, batch, len(self._labelled.images))
        images = self._altered(to_tensor(self._labelled.images[rows]))
        weight, bias = head
        logits = _HEAD_SCALE * F.linear(self._normalised(images), weight, bias)
        labels = torch.from_numpy(self._labelled.labels[rows])
        return classification(logits, labels, self._settings.task, self._offset).mean()

    def _altered(self, images: Tensor) -> Tensor:
        """Hospitals' augmentation, and contrast and brightness as of another scanner."""
        moved, count = augment(images, "affine", self._draws), len(images)
        draws = torch.from_numpy(self._draws.uniform(2 * count)).float().view(2, count, 1, 1, 1)
        contrast, brightness = (
            low + (high - low) * own for own, (low, high) in zip(draws, (_CONTRAST, _BRIGHTNESS), strict=True)
        )
        altered: Tensor = (moved * contrast + brightness).clamp(-1.0, 1.0)
        return altered
