"""Losses by row: cross-entropy under a public prior, and distillation from a public teacher.

Logit adjustment (Menon et al. 2021, arXiv 2007.07314) adds the log of the public class prior to the logits
in training only, so that the released logits decide under a balanced prior with threshold 0.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def prior_offset(prior: tuple[float, ...] | None, task: str) -> Tensor | None:
    """What the prior adds to training logits, shape (classes,): log p, or logit p for multi-label."""
    if prior is None:
        return None
    p = torch.tensor(prior, dtype=torch.float32)
    return torch.logit(p, eps=1e-6) if task == "multi-label" else torch.log(p)


def classification(logits: Tensor, labels: Tensor, task: str, offset: Tensor | None = None) -> Tensor:
    """Cross-entropy of each row, shape (m,); for multi-label the mean over labels of binary cross-entropy.

    Args:
        logits: (m, classes).
        labels: (m,) int64 class indices, or (m, classes) of 0/1 for multi-label.
        task: binary, multi-class or multi-label.
        offset: of `prior_offset`.
    """
    adjusted = logits if offset is None else logits + offset
    if task == "multi-label":
        return F.binary_cross_entropy_with_logits(adjusted, labels.to(logits.dtype), reduction="none").mean(
            dim=1
        )
    return F.cross_entropy(adjusted, labels, reduction="none")


def distillation(logits: Tensor, teacher_logits: Tensor, temperature: float, task: str) -> Tensor:
    """T^2 * KL(teacher || student) at temperature T (Hinton et al. 2015, arXiv 1503.02531), shape (m,)."""
    student, teacher = logits / temperature, teacher_logits / temperature
    if task == "multi-label":
        target = torch.sigmoid(teacher)
        cross = F.binary_cross_entropy_with_logits(student, target, reduction="none")
        entropy = F.binary_cross_entropy_with_logits(teacher, target, reduction="none")
        return (cross - entropy).mean(dim=1) * temperature**2
    log_teacher = F.log_softmax(teacher, dim=1)
    divergence = (log_teacher.exp() * (log_teacher - F.log_softmax(student, dim=1))).sum(dim=1)
    return divergence * temperature**2
