"""What the federation is compared with: public data alone, one hospital alone, all data without privacy."""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from fedward.client.training import LocalRound, train
from fedward.common.codec import Vector
from fedward.common.config import Study
from fedward.common.datasets import Split
from fedward.common.randomness import KeyedGenerator
from fedward.server.reference import halve, measure
from fedward.server.rounds import start_latents
from fedward.server.teacher import train_plainly
from fedward.simulations.prepare import Simulation

_PLAIN_STEPS = 600


def compare(simulation: Simulation, study: Study) -> dict[str, dict[str, float | None] | None]:
    """Test figures of the same student: public_only, one_hospital (same epsilon), pooled (no privacy)."""
    seed, local, test = simulation.options.seed, study.local, simulation.dataset.test

    def plain(records: Split, label: str) -> dict[str, float | None]:
        generator = KeyedGenerator.from_seed(seed, "comparison", label)
        return measure(local, train_plainly(local, records, _PLAIN_STEPS, generator), test)

    reference = simulation.reference
    generator = KeyedGenerator.from_seed(seed, "comparison", "alone")
    alone = _one_hospital(study, start_latents(simulation.folder), simulation.hospitals[0], generator)
    return {
        "public_only": None if reference is None else plain(halve(reference).calibration, "public"),
        "one_hospital": measure(local, alone, test),
        "pooled": plain(simulation.dataset.train, "pooled"),
    }


def _one_hospital(study: Study, start: Vector, records: Split, generator: KeyedGenerator) -> Vector:
    """The first hospital's own run: the study's rounds, noise and averaging, without the others."""
    local = replace(study.local, ewc_lambda=0.0, distillation_alpha=0.0)
    latents = torch.from_numpy(start)
    kept: list[torch.Tensor] = []
    for server_round in range(1, study.rounds + 1):
        rate = study.learning_rate_at(server_round)
        work = LocalRound(local, rate, study.hospitals[0].num_examples, latents)
        change = train(work, records, generator.derive(server_round))[0]
        latents = latents + F.pad(change, (len(latents) - len(change), 0))
        kept = [*kept, latents][-study.averaged_rounds :]
    return np.asarray(torch.stack(kept).mean(dim=0).numpy(), np.float32)
