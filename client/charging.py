"""What a hospital does before it works: look at the anchor, keep the key, plan the study, charge the work.

Of a round's work nothing is drawn and no record is read before its charges, its key and the digest of the
records stand in the synced ledger.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from fedward.client.anchors import Anchors
from fedward.client.budget import Budget
from fedward.client.egress_log import LOG_HEAD, LogEnd
from fedward.client.registry import Registry
from fedward.client.round_keys import RoundKeys
from fedward.client.spending import DP_SGD, Charge, Spending, steps_of
from fedward.common.config import LocalSettings
from fedward.common.errors import BudgetRefused, RequestRefused
from fedward.common.files import canonical_json
from fedward.common.measure_messages import MeasureRequest
from fedward.common.measurement import measurements
from fedward.common.mechanisms import Mechanism
from fedward.common.messages import TrainRequest
from fedward.common.randomness import KeyedGenerator

Request = TrainRequest | MeasureRequest
DATASET = "records"  # the name of a hospital's data set among its budgets


@dataclass(frozen=True)
class Work:
    """A round's work as the ledger knows it.

    Attributes:
        study, server_round, settings: as they were asked.
        digest: of the request's content.
        mechanisms: what it spends, by the kind of the charge.
    """

    study: str
    server_round: int
    settings: LocalSettings
    digest: str
    mechanisms: Mapping[str, Mechanism]

    @classmethod
    def of(cls, request: Request) -> "Work":
        """The work that `request` asks for."""
        settings = request.settings
        asked = measurements(settings) if isinstance(request, MeasureRequest) else _steps(settings)
        return cls(request.study, request.server_round, settings, request.content_digest, asked)

    @property
    def settings_digest(self) -> str:
        """SHA-256, in hex, of the public constants: noted with each charge, for the measurement."""
        return hashlib.sha256(canonical_json(self.settings.to_dict())).hexdigest()

    @property
    def key_name(self) -> str:
        """Stands for the round and its content wherever a file is named after them."""
        return hashlib.sha256(f"{self.study}\n{self.server_round}\n{self.digest}".encode()).hexdigest()


def _steps(settings: LocalSettings, rounds: int = 1) -> dict[str, Mechanism]:
    if settings.noise_multiplier == 0.0:
        return {}
    steps = settings.local_steps * rounds
    return {DP_SGD: Mechanism(settings.noise_multiplier, settings.sample_rate, steps)}


class Account:
    """A hospital's budget, its anchors and its rounds' keys.

    Attributes:
        budget: of the hospital's records; None where nothing is charged.
    """

    def __init__(
        self,
        hospital: str,
        seed: int | None,
        snapshot: str,
        keys: RoundKeys,
        registry: Registry | None,
        log_end: LogEnd,
    ) -> None:
        """Charge work on the records whose digest is `snapshot`.

        Args:
            hospital: its name.
            seed: of a simulation or test folder, whose keys are derived from it; else None.
            registry: of its budgets; None where nothing is charged.
            log_end: of the log of what left it, which each charge notes.
        """
        self.budget: Budget | None = None
        self._hospital, self._seed = hospital, seed
        self._snapshot = snapshot
        self._keys = keys
        self._log_end = log_end
        if registry is not None:
            self._registry = registry
            self.anchors = Anchors(registry)
            self.budget = registry.budget(DATASET)

    def require_anchor(self, token: str) -> None:
        """Compare the anchor that came back with the ledger.

        Raises:
            LedgerRefused: the ledger is an older copy: no work at all.
            RequestRefused: no anchor of this hospital's.
        """
        if not token:
            return
        if self.budget is None:
            raise RequestRefused("The request brings an anchor, but this hospital has no budget to anchor.")
        self.anchors.require(token, self.budget)

    def charges(self, study: str, server_round: int) -> tuple[Charge, ...]:
        """What the ledger says that a round cost; empty where it holds no such charge."""
        return () if self.budget is None else self.budget.charges(study, server_round)

    def refuse_other_content(self, work: Work) -> None:
        """Let the ledger refuse, and log, other content for a round that was charged, answered or not."""
        for known in self.charges(work.study, work.server_round):
            if self.budget is not None and known.content_digest != work.digest:
                self.budget.charge(
                    work.study, work.server_round, work.digest, known.mechanism, kind=known.kind
                )

    def open(self, work: Work) -> tuple[KeyedGenerator, str]:
        """The work's generator, once its key is kept and it is charged, and the last charge's anchor.

        Raises:
            BudgetRefused, RequestRefused, LedgerRefused: nothing is computed.
        """
        if self.budget is not None:
            self.budget.require_whole()  # before a key is kept, which nothing would be drawn from
        was_kept = self._keys.holds(work.key_name)
        generator = self._generator(work)
        try:
            charge = self._charge(work, generator)
        except (BudgetRefused, RequestRefused):
            # Where nothing was entered, nothing will ever be drawn from a key that was made just now.
            if not was_kept and not self.charges(work.study, work.server_round):
                self._keys.destroy(work.key_name)
            raise
        if charge is None or self.budget is None:
            return generator, ""
        # The charge's own entry, not the newest: run again after a crash, the reply is the same to the bit.
        return generator, self.anchors.token(self.budget.ledger.id, charge.head)

    def close_after_last(self, work: Work) -> None:
        """Give back what is left of a study's plan once all that it may ask of this hospital is answered."""
        last = work.settings.rounds + work.settings.measures
        if self.budget is not None and work.server_round == last:
            self.budget.release(work.study)

    def _generator(self, work: Work) -> KeyedGenerator:
        if self._seed is not None:
            return KeyedGenerator.from_seed(self._seed, work.study, self._hospital, work.server_round)
        charges = self.charges(work.study, work.server_round)
        return self._keys.open(work.key_name, any(charge.content_digest == work.digest for charge in charges))

    def _charge(self, work: Work, generator: KeyedGenerator) -> Charge | None:
        """Write all that the work spends before any record is read; the last charge, if there is one."""
        settings, charge = work.settings, None
        if not work.mechanisms:
            return None
        if self.budget is None or self.budget.terms.unit != settings.unit:
            raise BudgetRefused(
                f"This hospital has no budget by {settings.unit} for its records; import them first."
            )
        if settings.target_delta != self.budget.terms.delta:
            raise BudgetRefused(f"The study's delta is {settings.target_delta:g}, the budget's another.")
        self._plan(work, self.budget)
        for kind, mechanism in sorted(work.mechanisms.items()):
            noted = self._log_head(self.budget.find(work.study, work.server_round, kind))
            extra = {
                "key": generator.key_digest,
                "snapshot": self._snapshot,
                "settings": work.settings_digest,
                **noted,
            }
            charge = self.budget.charge(
                work.study, work.server_round, work.digest, mechanism, kind=kind, extra=extra
            )
        return charge

    def _log_head(self, known: Charge | None) -> dict[str, object]:
        """Where the log of what left ended at a charge: of one that is known, after a crash, where then."""
        if known is not None:
            return {LOG_HEAD: known.extra[LOG_HEAD]} if LOG_HEAD in known.extra else {}
        return self._log_end.noted()

    def _plan(self, work: Work, budget: Budget) -> None:
        """Reserve the whole study with its first request, once: all its rounds, and its measurement.

        The number of rounds is the coordinator's own. If it could be changed, one study could take all of
        the budget from the others, or fill the disk with plans.
        """
        settings = work.settings
        steps = _steps(settings, settings.rounds)
        plan = [*steps.values(), *measurements(settings).values()]
        with self._registry:
            known = budget.charges(work.study, work.server_round)
            if {charge.kind for charge in known} >= set(work.mechanisms):
                return  # charged before a crash; to run it again spends nothing
            _refuse_unless_trained(work, budget.state)
            frozen = budget.state.plans.get(work.study)
            if frozen is None and _is_over(budget.state, work.study):
                raise RequestRefused(
                    f"Study {work.study!r} has had its last round here, or its plan was given up: "
                    "nothing more is charged to it. Go on under a new study's name."
                )
            if frozen is not None and frozen != steps_of(plan):
                raise RequestRefused(_other_plan(work.study, steps[DP_SGD]))
            budget.reserve(work.study, plan)


def _refuse_unless_trained(work: Work, spending: Spending) -> None:
    """A measurement asks what its study's rounds, with the very same settings, had announced."""
    trained = {
        charge.extra.get("settings")
        for (study, _, kind), charge in spending.charges.items()
        if study == work.study and kind == DP_SGD
    }
    if DP_SGD not in work.mechanisms and work.settings_digest not in trained:
        raise RequestRefused(
            f"Study {work.study!r} has trained here in no round with these settings: its measurement comes "
            "behind its rounds, with their settings. Ask for a round first, or as before."
        )


def _is_over(spending: Spending, study: str) -> bool:
    """Given up before or after its first charge; an older version charged without a plan."""
    return study in spending.released or any(charged == study for charged, _, _ in spending.charges)


def _other_plan(study: str, steps: Mechanism) -> str:
    return (
        f"Study {study!r} was planned here as other steps than the {steps.steps} at noise "
        f"multiplier {steps.noise_multiplier:g} and sample rate {steps.sample_rate:g} that are "
        "asked now: its plan is frozen with its first round. Ask as before, or under a new name."
    )
