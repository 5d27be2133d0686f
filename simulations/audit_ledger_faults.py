"""Faults of a hospital's bookkeeping, planted as in `fedward.simulations.audit_faults`."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

from fedward.client import hospital as hospital_module
from fedward.client.budget import Budget
from fedward.client.hospital import Hospital
from fedward.client.replies import ReplyStore
from fedward.client.round_keys import RoundKeys
from fedward.client.training import LocalRound, train
from fedward.common.datasets import Split
from fedward.common.images import to_tensor
from fedward.common.losses import classification
from fedward.common.messages import TrainReply, TrainRequest
from fedward.common.models import build_student, initialise
from fedward.common.per_sample import PerSampleGradients
from fedward.common.privacy import Mechanism
from fedward.common.randomness import KeyedGenerator


def _charging(change: Callable[[Mechanism], Mechanism]) -> AbstractContextManager[object]:
    charge = Budget.charge

    def changed(
        self: Budget, study: str, server_round: int, content: str, step: Mechanism, **more: Any
    ) -> Any:
        return charge(self, study, server_round, content, change(step), **more)

    return mock.patch.object(Budget, "charge", changed)


def fewer_steps() -> AbstractContextManager[object]:
    """The ledger is charged half of the steps."""
    return _charging(lambda step: dataclasses.replace(step, steps=step.steps // 2))


def more_noise_charged() -> AbstractContextManager[object]:
    """The ledger is told of twice the noise."""
    return _charging(lambda step: dataclasses.replace(step, noise_multiplier=2 * step.noise_multiplier))


def not_charged() -> AbstractContextManager[object]:
    """The ledger is told nothing."""
    return mock.patch.object(Budget, "charge", return_value=None)


@contextmanager
def fresh_noise() -> Iterator[None]:
    """A round that is asked for again is trained again, with a new key, on the old charge."""
    charge = Budget.charge

    def same_charge(self: Budget, *given: Any, **more: Any) -> Any:
        return charge(self, *given, **{**more, "extra": {}})

    with ExitStack() as patches:
        for owner, name, replacement in (
            (ReplyStore, "get", lambda self, *given, **more: None),
            (RoundKeys, "open", lambda self, name, is_charged: KeyedGenerator.from_system()),
            (Budget, "charge", same_charge),
        ):
            patches.enter_context(mock.patch.object(owner, name, replacement))
        yield


def unseen_run() -> AbstractContextManager[object]:
    """Each round is the mean of two training runs, of which the accountant sees one."""

    def mean_of_two(work: LocalRound, records: Split, generator: KeyedGenerator) -> Any:
        second, _ = train(work, records, generator.derive("second"))
        first, accountant = train(work, records, generator)
        return (first + second) / 2, accountant

    return mock.patch.object(hospital_module, "train", mean_of_two)


def uncharged_fisher() -> AbstractContextManager[object]:
    """Beside each round the hospital computes a noised Fisher on its own records, without a charge."""
    answer = Hospital.answer

    def with_fisher(self: Hospital, request: TrainRequest) -> TrainReply:
        private_fisher(self, request)
        return answer(self, request)

    return mock.patch.object(Hospital, "answer", with_fisher)


def private_fisher(hospital: Hospital, request: TrainRequest) -> torch.Tensor:
    """The noised sum of squared clipped gradients of the hospital's records, (n,)."""
    settings, records = request.settings, hospital._records
    model = build_student(settings.spec)
    initialise(model, KeyedGenerator.from_seed(0, "fisher"))
    labels = torch.from_numpy(records.labels)
    gradients = PerSampleGradients(model).compute(
        to_tensor(records.images), lambda logits: classification(logits, labels, settings.task)
    )
    flat = torch.cat([gradient.flatten(1) for gradient in gradients], dim=1)
    clipped = flat * (settings.max_grad_norm / flat.norm(dim=1, keepdim=True)).clamp(max=1.0)
    noise = torch.from_numpy(KeyedGenerator.from_system().normal(flat.shape[1]))
    total: torch.Tensor = clipped.square().sum(dim=0)
    return total + noise * settings.noise_multiplier * settings.max_grad_norm**2
