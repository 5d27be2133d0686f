"""Probe (d): the ledger holds what happened.

A hospital with keys of the operating system's answers two studies, is asked twice for one round, fails once
while it stores a reply, and is asked twice for a measurement. A witness beside it notes what no setting and
no ledger entry can gloss over: each training run and each measurement with its key and its output, each step
that the accountant saw, each value of noise that was drawn, each pass of gradients over the records, each
reply. What they cost is then set against the charges, read from the ledger's lines and not by the code that
wrote them.
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
from fedward.client.spending import DP_SGD
from fedward.common.codec import encode
from fedward.common.config import LocalSettings
from fedward.common.errors import OutputRefused
from fedward.common.measure_messages import MeasureRequest
from fedward.common.measurement import FISHER, METRIC, measured_sizes
from fedward.common.messages import LATENTS, TrainRequest
from fedward.common.per_sample import PerSampleGradients
from fedward.common.privacy import Mechanism, epsilon
from fedward.common.randomness import KeyedGenerator
from fedward.simulations.audit_step import Check, audit_settings, phantoms, start

STEPS, ROUNDS = 4, 3
_METRIC_SIGMA, _FISHER_SIGMA = 6.0, 7.0
_SIGMA, _RATE, _BUDGET, _RECORDS = 3.0, 0.5, 30.0, 24

Steps = Counter[tuple[float, float]]  # (noise multiplier, sample rate) -> steps
_Round = tuple[str, int]


@dataclass
class Witness:
    """What was seen to happen.

    Attributes:
        runs: each distinct (key, output) of a training run, with its accountant's steps. The same key and
            output again, as after a crash, releases nothing new.
        measured: likewise for measurements, with the noise multiplier of each kind that came out.
        noise_values: drawn in each of `runs` and `measured`.
        stray_passes: gradients taken over records outside of both.
        left: digests of the replies that left, by round.
    """

    runs: dict[tuple[str, str], Steps] = field(default_factory=dict)
    measured: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    noise_values: dict[tuple[str, str], int] = field(default_factory=dict)
    stray_passes: int = 0
    left: dict[_Round, set[str]] = field(default_factory=dict)
    _inside: bool = False
    _drawn: int = 0

    def steps(self) -> Steps:
        """All steps of distinct runs."""
        return sum(self.runs.values(), Steps())

    def measurements(self, kind: str) -> Steps:
        """All distinct measurements of a kind."""
        return Steps((found[kind], 1.0) for found in self.measured.values() if kind in found)

    @contextmanager
    def watching(self) -> Iterator["Witness"]:
        """Note what the hospital's code does."""
        with ExitStack() as patches:
            for owner, name, around in (
                (hospital_module, "train", self._around_train),
                (hospital_module, "measure", self._around_measure),
                (KeyedGenerator, "normal", self._around_normal),
                (PerSampleGradients, "in_parts", self._around_compute),
            ):
                patches.enter_context(mock.patch.object(owner, name, around(getattr(owner, name))))
            yield self

    def answered(self, request: TrainRequest | MeasureRequest, hospital: Hospital) -> None:
        """Ask for a round, or for the measurement behind the last, and note what leaves."""
        if isinstance(request, MeasureRequest):
            digest = _digest(hospital.measure(request).measured)
        else:
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

    def _around_measure(self, measure: Any) -> Any:
        def watched(settings: LocalSettings, *given: Any) -> Any:
            self._inside, self._drawn = True, 0
            try:
                found = measure(settings, *given)
            finally:
                self._inside = False
            run = (given[-1].key_digest, _digest(found))
            asked = {METRIC: settings.metric_noise_multiplier, FISHER: settings.fisher_noise_multiplier}
            self.measured[run] = {kind: asked[kind] for kind in found}
            self.noise_values[run] = self._drawn
            return found

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


def _digest(measured: dict[str, Any]) -> str:
    return hashlib.sha256(b"".join(measured[kind].tobytes() for kind in sorted(measured))).hexdigest()


def ledger(seed: int) -> Iterator[Check]:
    """Run the hospital and compare."""
    settings = audit_settings(
        noise_multiplier=_SIGMA, sample_rate=_RATE, local_steps=STEPS, rounds=ROUNDS, target_delta=1e-5,
        metric_noise_multiplier=_METRIC_SIGMA, fisher_noise_multiplier=_FISHER_SIGMA,
    )  # fmt: skip
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
    measurement = MeasureRequest("first", settings, packed[LATENTS])
    witness.answered(measurement, hospital)
    witness.answered(measurement, hospital)
    return hospital


def _disk_full() -> Any:
    return mock.patch.object(ReplyStore, "store", side_effect=OutputRefused("The disk is full."))


def _compared(folder: Path, settings: LocalSettings, hospital: Hospital, witness: Witness) -> Iterator[Check]:
    charges, happened = charges_on_disk(folder), witness.steps()
    charged = _steps_of(charges, DP_SGD)
    yield Check("steps that ran and are not charged", sum((happened - charged).values()), high=0)
    for kind in (METRIC, FISHER):
        uncharged = witness.measurements(kind) - _steps_of(charges, kind)
        yield Check(f"measurements of kind {kind} that are not charged", sum(uncharged.values()), high=0)
    yield Check(
        "noise drawn for steps that are not charged", max(0, _overdrawn(charges, settings, witness)), high=0
    )
    yield Check("gradient passes over the records outside of charged work", witness.stray_passes, high=0)
    yield Check("replies to one round", max(map(len, witness.left.values())), 1, 1)
    rounds = {(charge["study"], charge["round"]) for charge in charges}
    stored = set(replies_on_disk(folder)) | set(witness.left)
    yield Check("replies without a charge", len(stored - rounds), high=0)
    happened = sum((witness.measurements(kind) for kind in (METRIC, FISHER)), happened)
    spent = hospital.budget.spent() if hospital.budget is not None else 0.0
    yield Check(
        "epsilon of what happened, over the ledger's", _epsilon(happened, settings) / spent, high=1.001
    )


def _overdrawn(charges: list[dict[str, Any]], settings: LocalSettings, witness: Witness) -> int:
    """Values of noise that were drawn beyond one for each coordinate of each charged mechanism."""
    sizes = {DP_SGD: len(start(settings, 0)), **measured_sizes(settings)}
    paid = sum(size * sum(_steps_of(charges, kind).values()) for kind, size in sizes.items())
    return sum(witness.noise_values.values()) - paid


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
