"""One hospital: its records, its declared count, its budget, and its one answer to each round.

Order of a round: the anchor that came back is compared with the ledger; an earlier reply is returned as it
is; the request is checked; the key is kept; budget, key and data snapshot are charged to the ledger, synced;
training runs; the whole reply is stored, synced; the key is destroyed; the reply leaves.
"""

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from fedward.client.anchors import Anchors
from fedward.client.approvals import policy_for_others, require_allowed
from fedward.client.budget import Budget
from fedward.client.egress import ENROL, SEEDED, WAIVED
from fedward.client.egress_log import LOG_HEAD, LogEnd
from fedward.client.ewc import ElasticPull
from fedward.client.registry import Registry
from fedward.client.replies import ReplyStore
from fedward.client.round_keys import RoundKeys
from fedward.client.spending import Charge, Spending, steps_of
from fedward.client.training import LocalRound, train
from fedward.common.codec import CODECS, Vector, decode, encode
from fedward.common.config import MAXIMUM_DECLARED, LocalSettings, declared_count
from fedward.common.datasets import Split, fingerprint, read_split, save_npz
from fedward.common.errors import BudgetRefused, DatasetRefused, LedgerRefused, RequestRefused
from fedward.common.files import canonical_json, make_folder, write_atomically
from fedward.common.locks import FileLock
from fedward.common.mechanisms import Mechanism
from fedward.common.messages import ANCHOR, FISHER, LATENTS, TEACHER, TrainReply, TrainRequest
from fedward.common.models import build_student, parameter_count, unflatten
from fedward.common.randomness import KeyedGenerator

PROFILE, RECORDS, BUDGETS = "hospital.json", "data.npz", "budget"
_LONGEST_ROUND_SECONDS = 3600.0
_DATASET = "records"  # the name of a hospital's data set among its budgets


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
            _DATASET, registry.identity.digests(records.images), total_epsilon=budget, delta=delta
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
        self._log_end = LogEnd(folder)
        self.profile = Profile(**json.loads((folder / PROFILE).read_bytes()))
        self._records = read_split(folder / RECORDS)
        self._snapshot = fingerprint(self._records)
        self._replies = ReplyStore(folder / "replies")
        self._keys = RoundKeys(folder / "keys")
        self.budget: Budget | None = None
        if self.profile.budget is not None:
            self._registry = Registry(folder / BUDGETS)
            self._anchors = Anchors(self._registry)
            self.budget = self._registry.budget(_DATASET)
            self._refuse_unregistered()
        elif (folder / BUDGETS).exists():
            raise LedgerRefused(
                f"{folder} holds a privacy budget that its {PROFILE} knows nothing of: put back the newest "
                "copy of that, or simulate without privacy in a folder of its own."
            )

    def _refuse_unregistered(self) -> None:
        """Whoever puts other images into the file must not train on them at another data set's expense."""
        if len(self._records.images) > self.profile.num_examples:
            raise DatasetRefused(
                f"{RECORDS} holds more images than the {self.profile.num_examples} that were declared: put "
                "the imported file back, or import these images first."
            )
        self._registry.require_registered(_DATASET, self._registry.identity.digests(self._records.images))

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

    def charge_of(self, reply: TrainReply | TrainRequest) -> Charge | None:
        """What the ledger says that a round cost; None where it holds no such charge."""
        return None if self.budget is None else self.budget.find(reply.study, reply.server_round)

    def answer(self, request: TrainRequest) -> TrainReply:
        """Answer a round once; asked again, the stored reply, byte for byte, and nothing is spent.

        Raises:
            LedgerRefused: the request's anchor shows that the ledger is an older copy: no work at all.
            Refusal: the request does not fit this hospital's records, rules or budget; nothing was computed.
        """
        digest = request.content_digest
        key_name = hashlib.sha256(f"{request.study}\n{request.server_round}\n{digest}".encode()).hexdigest()
        self._require_anchor(request)
        self._refuse_other_content(request, digest)
        # A second daemon waits for the first one's reply, and sends the same. There are 256 locks, not one
        # for each request: a coordinator could fill the disk with those of requests that are refused.
        with FileLock(self._replies.folder / f"{key_name[:2]}.lock", _LONGEST_ROUND_SECONDS):
            stored = self._replies.get(request.study, request.server_round, digest)
            if stored is None:
                self._check(request)
                stored = self._compute(request, digest, key_name)
            # Also where the reply was stored before: a crash may have come between.
            self._keys.destroy(key_name)
        self._close_after_last(request)
        return TrainReply.from_bytes(stored)

    def _require_anchor(self, request: TrainRequest) -> None:
        if not request.anchor:
            return
        if self.budget is None:
            raise RequestRefused("The request brings an anchor, but this hospital has no budget to anchor.")
        self._anchors.require(request.anchor, self.budget)

    def _refuse_other_content(self, request: TrainRequest, digest: str) -> None:
        """Let the ledger refuse, and log, other content for a round that was charged, answered or not."""
        known = None if self.budget is None else self.budget.find(request.study, request.server_round)
        if self.budget is not None and known is not None and known.content_digest != digest:
            self.budget.charge(request.study, request.server_round, digest, known.mechanism)

    def _compute(self, request: TrainRequest, digest: str, key_name: str) -> bytes:
        """The stored reply, which is the first that was stored, whoever computed it."""
        work = self._work(request)
        if self.budget is not None:
            self.budget.require_whole()  # before a key is kept, which nothing would be drawn from
        generator, anchor = self._charged_generator(request, digest, key_name)
        change, accountant = train(work, self._records, generator)
        _recount(accountant.history, request.settings)
        reply = TrainReply(
            request.study,
            request.server_round,
            self.profile.name,
            self.profile.num_examples,
            request.codec[1],
            encode(change.numpy(), request.codec[1]),
            anchor,
        )
        return self._replies.store(request.study, request.server_round, digest, reply.to_bytes())

    def _close_after_last(self, request: TrainRequest) -> None:
        """Give back what is left of a study's plan once its last round is answered."""
        if self.budget is not None and request.server_round == request.settings.rounds:
            self.budget.release(request.study)

    def _check(self, request: TrainRequest) -> None:
        settings = request.settings
        shape = (settings.height, settings.width, settings.channels)
        if self._records.images.shape[1:] != shape:
            raise RequestRefused(
                f"The study trains on images of shape {shape}; this hospital's have another."
            )
        if not self._is_its_task(settings):
            raise RequestRefused(
                f"The study's task ({settings.task}, {len(settings.classes)} classes) is not this hospital's."
            )
        if request.codec[1] not in CODECS:
            raise RequestRefused(f"The reply is asked for in a codec that is none of {', '.join(CODECS)}.")
        if settings.noise_multiplier == 0.0 and (self.profile.seed is None or self.budget is not None):
            raise RequestRefused("The study asks for training without noise, which this hospital never does.")
        require_allowed(self._folder, request, () if self.budget is None else self.budget.state.reserved)

    def _is_its_task(self, settings: LocalSettings) -> bool:
        """By the declared number of classes: to compare with the labels would tell whether a class occurs."""
        is_multi_label = self._records.labels.ndim == 2
        return is_multi_label == (settings.task == "multi-label") and self.profile.classes == len(
            settings.classes
        )

    def _charged_generator(
        self, request: TrainRequest, digest: str, key_name: str
    ) -> tuple[KeyedGenerator, str]:
        """The round's generator, once its key is kept and the round is charged, and the charge's anchor."""
        was_kept = self._keys.holds(key_name)
        generator = self._generator(request, digest, key_name)
        try:
            charge = self._charge(request, digest, generator)
        except (BudgetRefused, RequestRefused):
            # Nothing was entered, so nothing will ever be drawn from a key that was made just now.
            if not was_kept:
                self._keys.destroy(key_name)
            raise
        if charge is None or self.budget is None:
            return generator, ""
        # The charge's own entry, not the newest: run again after a crash, the reply is the same to the bit.
        return generator, self._anchors.token(self.budget.ledger.id, charge.head)

    def _generator(self, request: TrainRequest, digest: str, key_name: str) -> KeyedGenerator:
        seed = self.profile.seed
        if seed is not None:
            return KeyedGenerator.from_seed(seed, request.study, self.profile.name, request.server_round)
        charge = None if self.budget is None else self.budget.find(request.study, request.server_round)
        return self._keys.open(key_name, charge is not None and charge.content_digest == digest)

    def _charge(self, request: TrainRequest, digest: str, generator: KeyedGenerator) -> Charge | None:
        """Write the round's spending before any gradient is computed."""
        settings = request.settings
        if settings.noise_multiplier == 0.0:
            return None
        if self.budget is None or self.budget.terms.unit != settings.unit:
            raise BudgetRefused(
                f"This hospital has no budget by {settings.unit} for its records; import them first."
            )
        if settings.target_delta != self.budget.terms.delta:
            raise BudgetRefused(f"The study's delta is {settings.target_delta:g}, the budget's another.")
        self._plan(request, self.budget)
        step = Mechanism(settings.noise_multiplier, settings.sample_rate, settings.local_steps)
        extra = {"key": generator.key_digest, "snapshot": self._snapshot, **self._log_head(request)}
        return self.budget.charge(request.study, request.server_round, digest, step, extra=extra)

    def _log_head(self, request: TrainRequest) -> dict[str, object]:
        """Where the log of what left ended at the round's charge: after a crash, where it ended then."""
        known = self.charge_of(request)
        if known is not None:
            return {LOG_HEAD: known.extra[LOG_HEAD]} if LOG_HEAD in known.extra else {}
        return self._log_end.noted()

    def _plan(self, request: TrainRequest, budget: Budget) -> None:
        """Reserve the whole study with its first round, once.

        The number of rounds is the coordinator's own. If it could be changed, one study could take all of
        the budget from the others, or fill the disk with plans.
        """
        settings = request.settings
        whole = settings.local_steps * settings.rounds
        plan = Mechanism(settings.noise_multiplier, settings.sample_rate, whole)
        with self._registry:
            if budget.find(request.study, request.server_round) is not None:
                return  # charged before a crash; to run it again spends nothing
            frozen = budget.state.plans.get(request.study)
            if frozen is None and _is_over(budget.state, request.study):
                raise RequestRefused(
                    f"Study {request.study!r} has had its last round here, or its plan was given up: "
                    "nothing more is charged to it. Go on under a new study's name."
                )
            if frozen is not None and frozen != steps_of([plan]):
                raise RequestRefused(
                    f"Study {request.study!r} was planned here as other steps than the {whole} at noise "
                    f"multiplier {plan.noise_multiplier:g} and sample rate {plan.sample_rate:g} that are "
                    "asked now: its plan is frozen with its first round. Ask as before, or under a new name."
                )
            budget.reserve(request.study, plan)

    def _work(self, request: TrainRequest) -> LocalRound:
        settings = request.settings
        like = list(build_student(settings.spec).parameters())
        vectors = {name: torch.from_numpy(vector) for name, vector in _unpack(request).items()}
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


def _is_over(spending: Spending, study: str) -> bool:
    """Given up before or after its first charge; an older version charged without a plan."""
    return study in spending.released or any(charged == study for charged, _, _ in spending.charges)


def _unpack(request: TrainRequest) -> dict[str, Vector]:
    """The request's vectors, exactly those that its settings ask for.

    Raises:
        RequestRefused: one is missing or not asked for.
        PayloadRefused: one does not decode.
    """
    expected = {LATENTS}
    expected |= {ANCHOR, FISHER} if request.settings.ewc_lambda > 0.0 else set()
    expected |= {TEACHER} if request.settings.distillation_alpha > 0.0 else set()
    if set(request.vectors) != expected:
        raise RequestRefused(
            f"The study's settings need {sorted(expected)}, the request has {sorted(request.vectors)}."
        )
    count = parameter_count(build_student(request.settings.spec))
    return {name: decode(payload, count, request.codec[0]) for name, payload in request.vectors.items()}


def _recount(history: list[tuple[float, float, int]], settings: LocalSettings) -> None:
    """The accountant must have seen exactly the steps that were charged; otherwise nothing leaves."""
    expected = [(settings.noise_multiplier, settings.sample_rate, settings.local_steps)]
    if [tuple(entry) for entry in history] != expected:
        raise RequestRefused("The training steps that ran are not those that were charged; nothing was sent.")


@functools.lru_cache(maxsize=64)
def open_hospital(folder: Path) -> Hospital:
    """The hospital of a folder, read once a process."""
    return Hospital(folder)
