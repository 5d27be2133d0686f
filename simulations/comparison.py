"""What the federation is compared with: public data alone, one hospital alone, all data without privacy."""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from fedward.client.training import LocalRound, train
from fedward.common.codec import Vector
from fedward.common.config import LocalSettings, Study
from fedward.common.datasets import Split
from fedward.common.randomness import KeyedGenerator
from fedward.server.reference import halve, measure
from fedward.server.rounds import start_latents
from fedward.server.teacher import train_plainly
from fedward.simulations.prepare import Simulation

_PLAIN_STEPS = 600


def compare(simulation: Simulation, study: Study) -> dict[str, dict[str, float | None] | None]:
    """Test figures of the same student: public_only, one_hospital (same epsilon), pooled (no privacy).

    Public data alone are the study's public start, where it has one, else a student of half A.
    """
    local, test, pooled = study.local, simulation.dataset.test, simulation.dataset.train
    start = start_latents(simulation.folder)
    public = _public(simulation, study, start)
    alone = _one_hospital(study, start, simulation.hospitals[0], _generator(simulation, "alone"))
    return {
        "public_only": None if public is None else measure(local, public, test),
        "one_hospital": measure(local, alone, test),
        "pooled": measure(local, _plain(local, pooled, _generator(simulation, "pooled")), test),
    }


def _generator(simulation: Simulation, label: str) -> KeyedGenerator:
    return KeyedGenerator.from_seed(simulation.options.seed, "comparison", label)


def _plain(local: LocalSettings, records: Split, generator: KeyedGenerator) -> Vector:
    return train_plainly(local, records, _PLAIN_STEPS, generator)


def _public(simulation: Simulation, study: Study, start: Vector) -> Vector | None:
    if simulation.options.has_public_start:
        return start
    if simulation.reference is None:
        return None
    records = halve(simulation.reference).calibration
    return _plain(study.local, records, _generator(simulation, "public"))


def _one_hospital(study: Study, start: Vector, records: Split, generator: KeyedGenerator) -> Vector:
    """The first hospital's own run: the study's rounds, noise and averaging, without the others."""
    local = replace(study.local, ewc_lambda=0.0, distillation_alpha=0.0)
    latents = torch.from_numpy(start)
    momentum = torch.zeros_like(latents)
    kept: list[torch.Tensor] = []
    for server_round in range(1, study.rounds + 1):
        rate = study.learning_rate_at(server_round)
        work = LocalRound(local, rate, study.hospitals[0].num_examples, latents)
        change = train(work, records, generator.derive(server_round))[0]
        momentum = study.server_momentum * momentum + F.pad(change, (len(latents) - len(change), 0))
        latents = latents + study.server_learning_rate * momentum
        kept = [*kept, latents][-study.averaged_rounds :]
    return np.asarray(torch.stack(kept).mean(dim=0).numpy(), np.float32)
