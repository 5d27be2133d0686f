"""One hospital: its records, its declared count, its budget, and its one answer to each request.

Order of a round, and of the measurement behind the last: the anchor that came back is compared with the
ledger; an earlier reply is returned as it is; the request is checked; the key is kept; budget, key and data
snapshot are charged to the ledger, synced; training or measuring runs; the whole reply is stored, synced; the
key is destroyed; the reply leaves.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from fedward.client.approvals import policy_for_others, require_allowed
from fedward.client.charging import DATASET, Account, Request, Work
from fedward.client.egress_fields import ENROL, SEEDED, WAIVED
from fedward.client.egress_log import LogEnd
from fedward.client.ewc import ElasticPull
from fedward.client.measuring import measure
from fedward.client.registry import Registry
from fedward.client.replicas import Replicas
from fedward.client.replies import ReplyStore
from fedward.client.round_keys import RoundKeys
from fedward.client.spending import Charge
from fedward.client.state_folder import BUDGETS, PROFILE, REPLICAS
from fedward.client.training import LocalRound, train
from fedward.common.codec import UPLINK_CODECS, decode, encode
from fedward.common.config import MAXIMUM_DECLARED, LocalSettings, declared_count
from fedward.common.datasets import Split, fingerprint, read_split, save_npz
from fedward.common.errors import DatasetRefused, LedgerRefused, RequestRefused
from fedward.common.files import canonical_json, make_folder, write_atomically
from fedward.common.locks import FileLock
from fedward.common.measure_messages import CODEC, MeasureReply, MeasureRequest
from fedward.common.messages import ANCHOR, FISHER, LATENTS, TEACHER, TrainReply, TrainRequest
from fedward.common.models import build_student, parameter_count, unflatten
from fedward.common.rounding import uplink_step

RECORDS = "data.npz"
_LONGEST_ROUND_SECONDS = 3600.0
Req = TypeVar("Req", bound=Request)


@dataclass(frozen=True)
class Profile:
    """What a hospital says of itself at enrolment, and its own rules.

    Attributes:
        name: public.
        num_examples: the declared count, public and frozen.
        budget: total epsilon of its data set over all studies; None for a simulation without privacy.
        delta: of the budget.
        classes: how many the hospital's labels distinguish, declared when its records are imported.
        seed: of a simulation or test folder, whose noise can be repeated and protects nobody; else None.
    """

    name: str
    num_examples: int
    budget: float | None
    delta: float
    seed: int | None
    classes: int


def create_hospital(
    folder: Path,
    name: str,
    records: Split,
    budget: float | None,
    delta: float,
    seed: int | None,
    classes: int = 2,
) -> Profile:
    """Write a hospital's state folder: its profile, its records and their budget.

    Args:
        classes: how many the hospital's labels distinguish, whether or not each occurs.

    Raises:
        DatasetRefused: a label is not one of the declared classes, or more images than can be declared.
        OutputRefused: the folder cannot be written.
        BudgetRefused: the folder has a budget for these records already, on other terms.
    """
    found = records.labels.shape[1] if records.labels.ndim == 2 else int(records.labels.max()) + 1
    if found > classes or (records.labels.ndim == 2 and found != classes):
        raise DatasetRefused(f"The records have labels of {found} classes where {classes} were declared.")
    if len(records.images) > MAXIMUM_DECLARED:
        raise DatasetRefused(f"A data set has at most {MAXIMUM_DECLARED:,} images; import it in parts.")
    make_folder(folder)
    profile = Profile(name, declared_count(len(records.images)), budget, delta, seed, classes)
    # The budget first: images that are not registered are not trained on, whenever a crash comes.
    if budget is not None:
        registry = Registry(folder / BUDGETS)
        registry.import_dataset(
            DATASET, registry.identity.digests(records.images), total_epsilon=budget, delta=delta
        )
    save_npz(folder / RECORDS, records)
    write_atomically(folder / PROFILE, canonical_json(profile.__dict__))
    return profile


class Hospital:
    """Answers requests from a state folder."""

    def __init__(self, folder: Path) -> None:
        """Open the folder that `create_hospital` made.

        Raises:
            DatasetRefused: its records cannot be read, or are not those that its budget is registered for.
            LedgerRefused: its budget does not verify, or is there although the profile knows of none.
        """
        self._folder = folder
        self.profile = Profile(**json.loads((folder / PROFILE).read_bytes()))
        self._records = read_split(folder / RECORDS)
        self._snapshot = fingerprint(self._records)
        self._replies = ReplyStore(folder / "replies")
        self._replicas = Replicas(folder / REPLICAS)
        self._keys = RoundKeys(folder / "keys")
        registry = None if self.profile.budget is None else Registry(folder / BUDGETS)
        self._account = Account(
            self.profile.name, self.profile.seed, self._snapshot, self._keys, registry, LogEnd(folder)
        )
        self.budget = self._account.budget
        if registry is not None:
            self._refuse_unregistered(registry)
        elif (folder / BUDGETS).exists():
            raise LedgerRefused(
                f"{folder} holds a privacy budget that its {PROFILE} knows nothing of: put back the newest "
                "copy of that, or simulate without privacy in a folder of its own."
            )

    def _refuse_unregistered(self, registry: Registry) -> None:
        """Whoever puts other images into the file must not train on them at another data set's expense."""
        if len(self._records.images) > self.profile.num_examples:
            raise DatasetRefused(
                f"{RECORDS} holds more images than the {self.profile.num_examples} that were declared: put "
                "the imported file back, or import these images first."
            )
        registry.require_registered(DATASET, registry.identity.digests(self._records.images))

    @property
    def enrolment(self) -> dict[str, object]:
        """What the hospital tells a coordinator of itself; the gate has a class for each field.

        Raises:
            PolicyRefused: the site's policy does not let it leave.
        """
        policy_for_others(self._folder).require_fields(ENROL)
        return {"name": self.profile.name, "num_examples": self.profile.num_examples}

    @property
    def remark(self) -> str:
        """What the log of what leaves says of this hospital's updates: nothing, where they are private."""
        if self.profile.seed is None:
            return ""
        return WAIVED if self.profile.budget is None else SEEDED

    def charges_of(self, reply: TrainReply | MeasureReply) -> tuple[Charge, ...]:
        """What the ledger says that a reply cost; empty where it holds no such charge."""
        return self._account.charges(reply.study, reply.server_round)

    def answer(self, request: TrainRequest) -> TrainReply:
        """Answer a round once; asked again, the stored reply, byte for byte, and nothing is spent.

        Raises:
            LedgerRefused: the request's anchor shows that the ledger is an older copy: no work at all.
            Refusal: the request does not fit this hospital's records, rules or budget; nothing was computed.
        """
        reply = TrainReply.from_bytes(self._answered_once(request, "train", self._train))
        if request.server_round == request.settings.rounds:
            self._replicas.forget(request.study)  # no difference follows
        return reply

    def measure(self, request: MeasureRequest) -> MeasureReply:
        """Answer the measurement behind the last round once, as `answer` does a round.

        Raises:
            Refusal: as `answer`.
        """
        return MeasureReply.from_bytes(self._answered_once(request, "measure", self._measure))

    def _answered_once(self, request: Req, kind: str, compute: Callable[[Req, Work], bytes]) -> bytes:
        work = Work.of(request)
        self._account.require_anchor(request.anchor)
        self._account.refuse_other_content(work)
        # A second daemon waits for the first one's reply, and sends the same. There are 256 locks, not one
        # for each request: a coordinator could fill the disk with those of requests that are refused.
        with FileLock(self._replies.folder / f"{work.key_name[:2]}.lock", _LONGEST_ROUND_SECONDS):
            stored = self._replies.get(work.study, work.server_round, work.digest, kind)
            if stored is None:
                self._check(request.settings)
                open_studies = () if self.budget is None else self.budget.state.reserved
                require_allowed(self._folder, request, open_studies)
                reply = compute(request, work)
                # What is stored is the first reply, whoever computed it.
                stored = self._replies.store(work.study, work.server_round, work.digest, reply, kind)
            # Also where the reply was stored before: a crash may have come between.
            self._keys.destroy(work.key_name)
        self._account.close_after_last(work)
        return stored

    def _train(self, request: TrainRequest, work: Work) -> bytes:
        if request.codec[1] not in UPLINK_CODECS:
            known = ", ".join(UPLINK_CODECS)
            raise RequestRefused(f"The reply is asked for in a codec that is none of {known}.")
        local_round = self._work(request)
        codec, profile = request.codec[1], self.profile
        step = uplink_step(codec, request.settings, request.learning_rate, profile.num_examples)
        generator, anchor = self._account.open(work)
        # Only now: what is charged is bounded, and so is what a coordinator can have written to the disk.
        self._replicas.keep(request, local_round.latents.numpy())
        change, accountant = train(local_round, self._records, generator)
        _recount(accountant.history, request.settings)
        return TrainReply(
            request.study,
            request.server_round,
            profile.name,
            profile.num_examples,
            codec,
            encode(change.numpy(), codec, step),
            anchor,
            "" if request.replica is None else request.replica.digest,
        ).to_bytes()

    def _measure(self, request: MeasureRequest, work: Work) -> bytes:
        settings = request.settings
        count = parameter_count(build_student(settings.spec))
        latents = torch.from_numpy(decode(request.latents, count, CODEC))
        generator, anchor = self._account.open(work)
        measured = measure(settings, latents, self._records, self.profile.num_examples, generator)
        return MeasureReply(
            request.study,
            request.server_round,
            self.profile.name,
            self.profile.num_examples,
            measured,
            anchor,
        ).to_bytes()

    def _check(self, settings: LocalSettings) -> None:
        shape = (settings.height, settings.width, settings.channels)
        if self._records.images.shape[1:] != shape:
            raise RequestRefused(
                f"The study trains on images of shape {shape}; this hospital's have another."
            )
        if not self._is_its_task(settings):
            raise RequestRefused(
                f"The study's task ({settings.task}, {len(settings.classes)} classes) is not this hospital's."
            )
        if settings.noise_multiplier == 0.0 and (self.profile.seed is None or self.budget is not None):
            raise RequestRefused("The study asks for training without noise, which this hospital never does.")

    def _is_its_task(self, settings: LocalSettings) -> bool:
        """By the declared number of classes: to compare with the labels would tell whether a class occurs."""
        is_multi_label = self._records.labels.ndim == 2
        return is_multi_label == (settings.task == "multi-label") and self.profile.classes == len(
            settings.classes
        )

    def _work(self, request: TrainRequest) -> LocalRound:
        settings = request.settings
        like = list(build_student(settings.spec).parameters())
        vectors = {name: torch.from_numpy(vector) for name, vector in self._replicas.unpack(request).items()}
        pull = None
        if settings.ewc_lambda > 0.0:
            anchor, fisher = unflatten(vectors[ANCHOR], like), unflatten(vectors[FISHER].clamp(min=0.0), like)
            pull = ElasticPull(anchor, fisher, settings.ewc_lambda)
        return LocalRound(
            settings,
            request.learning_rate,
            self.profile.num_examples,
            vectors[LATENTS],
            pull,
            vectors.get(TEACHER),
        )


def _recount(history: list[tuple[float, float, int]], settings: LocalSettings) -> None:
    """The accountant must have seen exactly the steps that were charged; otherwise nothing leaves."""
    expected = [(settings.noise_multiplier, settings.sample_rate, settings.local_steps)]
    if [tuple(entry) for entry in history] != expected:
        raise RequestRefused("The training steps that ran are not those that were charged; nothing was sent.")


@functools.lru_cache(maxsize=64)
def open_hospital(folder: Path) -> Hospital:
    """The hospital of a folder, read once a process."""
    return Hospital(folder)
