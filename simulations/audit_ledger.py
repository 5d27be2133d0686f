"""Probe (d): the ledger holds what happened.

A hospital with keys of the operating system's answers two studies, is asked twice for one round, and fails
once while it stores a reply. A witness beside it notes what no setting and no ledger entry can gloss over:
each training run with its key and its output, each step that the accountant saw, each value of noise that
was drawn, each pass of gradients over the records, each reply. What they cost is then set against the
charges, read from the ledger's lines and not by the code that wrote them.
"""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from fedward.client import hospital as hospital_module
from fedward.client.hospital import Hospital, create_hospital
from fedward.client.replies import ReplyStore
from fedward.common.codec import encode
from fedward.common.config import LocalSettings
from fedward.common.errors import OutputRefused
from fedward.common.messages import LATENTS, TrainRequest
from fedward.common.per_sample import PerSampleGradients
from fedward.common.privacy import Mechanism, epsilon
from fedward.common.randomness import KeyedGenerator
from fedward.simulations.audit_step import Check, audit_settings, phantoms, start

STEPS, ROUNDS = 4, 3
_SIGMA, _RATE, _BUDGET, _RECORDS = 3.0, 0.5, 30.0, 24

Steps = Counter[tuple[float, float]]  # (noise multiplier, sample rate) -> steps
_Round = tuple[str, int]


@dataclass
class Witness:
    """What was seen to happen.

    Attributes:
        runs: each distinct (key, output) of a training run, with its accountant's steps. The same key and
            output again, as after a crash, releases nothing new.
        noise_values: drawn in each of `runs`.
        stray_passes: gradients taken over records outside of a training run.
        left: digests of the replies that left, by round.
    """

    runs: dict[tuple[str, str], Steps] = field(default_factory=dict)
    noise_values: dict[tuple[str, str], int] = field(default_factory=dict)
    stray_passes: int = 0
    left: dict[_Round, set[str]] = field(default_factory=dict)
    _inside: bool = False
    _drawn: int = 0

    def steps(self) -> Steps:
        """All steps of distinct runs."""
        return sum(self.runs.values(), Steps())

    @contextmanager
    def watching(self) -> Iterator["Witness"]:
        """Note what the hospital's code does."""
        with ExitStack() as patches:
            for owner, name, around in (
                (hospital_module, "train", self._around_train),
                (KeyedGenerator, "normal", self._around_normal),
                (PerSampleGradients, "in_parts", self._around_compute),
            ):
                patches.enter_context(mock.patch.object(owner, name, around(getattr(owner, name))))
            yield self

    def answered(self, request: TrainRequest, hospital: Hospital) -> None:
        """Ask for a round and note what leaves."""
        digest = hashlib.sha256(hospital.answer(request).update.tobytes()).hexdigest()
        self.left.setdefault((request.study, request.server_round), set()).add(digest)

    def _around_train(self, train: Any) -> Any:
        def watched(work: Any, records: Any, generator: KeyedGenerator) -> Any:
            self._inside, self._drawn = True, 0
            try:
                change, accountant = train(work, records, generator)
            finally:
                self._inside = False
            run = (generator.key_digest, hashlib.sha256(change.numpy().tobytes()).hexdigest())
            self.runs[run] = Steps({(sigma, rate): count for sigma, rate, count in accountant.history})
            self.noise_values[run] = self._drawn
            return change, accountant

        return watched

    def _around_normal(self, normal: Any) -> Any:
        def watched(generator: KeyedGenerator, count: int) -> Any:
            self._drawn += count
            return normal(generator, count)

        return watched

    def _around_compute(self, compute: Any) -> Any:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.stray_passes += not self._inside
            return compute(*args, **kwargs)

        return watched


def ledger(seed: int) -> Iterator[Check]:
    """Run the hospital and compare."""
    settings = audit_settings(
        noise_multiplier=_SIGMA, sample_rate=_RATE, local_steps=STEPS, rounds=ROUNDS, target_delta=1e-5
    )
    with tempfile.TemporaryDirectory() as name:
        folder, witness = Path(name), Witness()
        with witness.watching():
            hospital = _run(folder, settings, seed, witness)
        yield from _compared(folder, settings, hospital, witness)


def _run(folder: Path, settings: LocalSettings, seed: int, witness: Witness) -> Hospital:
    records = phantoms(_RECORDS, seed).train
    create_hospital(folder, "audited", records, _BUDGET, settings.target_delta, None)
    hospital = Hospital(folder)
    packed = {LATENTS: encode(start(settings, seed).numpy(), "fp32")}
    requests = [
        TrainRequest(study, server_round, settings, 1.0, ("fp32", "int8"), packed)
        for study, server_round in (("first", 1), ("first", 2), ("second", 1))
    ]
    witness.answered(requests[0], hospital)
    witness.answered(requests[0], hospital)  # the coordinator lost the reply
    with suppress(OutputRefused), _disk_full():
        witness.answered(requests[1], hospital)
    hospital = Hospital(folder)  # a restart
    witness.answered(requests[1], hospital)
    witness.answered(requests[2], hospital)
    return hospital


def _disk_full() -> Any:
    return mock.patch.object(ReplyStore, "store", side_effect=OutputRefused("The disk is full."))


def _compared(folder: Path, settings: LocalSettings, hospital: Hospital, witness: Witness) -> Iterator[Check]:
    charges, happened = charges_on_disk(folder), witness.steps()
    charged = _steps_of(charges, "dp-sgd")
    yield Check("steps that ran and are not charged", sum((happened - charged).values()), high=0)
    values = len(start(settings, 0)) * sum(charged.values())
    drawn = sum(witness.noise_values.values())
    yield Check("noise drawn for steps that are not charged", max(0, drawn - values), high=0)
    uncharged = 0 if any(charge["kind"] == "fisher" for charge in charges) else witness.stray_passes
    yield Check("gradient passes over the records outside of a charged step", uncharged, high=0)
    yield Check("replies to one round", max(map(len, witness.left.values())), 1, 1)
    rounds = {(charge["study"], charge["round"]) for charge in charges}
    stored = set(replies_on_disk(folder)) | set(witness.left)
    yield Check("replies without a charge", len(stored - rounds), high=0)
    spent = hospital.budget.spent() if hospital.budget is not None else 0.0
    yield Check(
        "epsilon of what happened, over the ledger's", _epsilon(happened, settings) / spent, high=1.001
    )


def charges_on_disk(folder: Path) -> list[dict[str, Any]]:
    """The charges in a hospital's folder, from the ledger's lines."""
    lines = [line for path in folder.glob("*/*/ledger.jsonl") for line in path.read_bytes().splitlines()]
    entries = [json.loads(line) for line in lines]
    return [entry["body"] for entry in entries if entry["kind"] == "charge"]


def replies_on_disk(folder: Path) -> list[_Round]:
    """The rounds whose reply a hospital's folder keeps."""
    headers = [json.loads(path.read_bytes().partition(b"\n")[0]) for path in folder.glob("replies/*.reply")]
    return [(str(header["study"]), int(header["round"])) for header in headers]


def _steps_of(charges: list[dict[str, Any]], kind: str) -> Steps:
    steps = Steps()
    for charge in charges:
        mechanism = charge["mechanism"]
        if charge["kind"] == kind:
            steps[mechanism["noise_multiplier"], mechanism["sample_rate"]] += mechanism["steps"]
    return steps


def _epsilon(steps: Steps, settings: LocalSettings) -> float:
    mechanisms = [Mechanism(*key, count) for key, count in steps.items()]
    return epsilon(mechanisms, settings.target_delta)
