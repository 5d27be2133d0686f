"""A data set's privacy budget: charged before the work, over all studies, jobs, restarts and processes.

Images that belong to several data sets keep what was spent on them in each. So a budget is checked on
its *cells*: a cell is a group of data sets that have an image in common, and its history is all that was
spent, and is still planned, in any of them. No cell may pass the total of any of its data sets.
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn, Protocol

from fedward.client.spending import (
    DP_SGD,
    Charge,
    Spending,
    Steps,
    Terms,
    key_of,
    mechanism_json,
    mechanisms_of,
    steps_of,
)
from fedward.common.chain import Head
from fedward.common.digests import is_digest
from fedward.common.errors import BudgetRefused, LedgerRefused, RequestRefused
from fedward.common.files import canonical_json
from fedward.common.ledger import Ledger
from fedward.common.privacy import Mechanism, affordable_steps, epsilon, within

_STUDY = re.compile(r"[^\x00-\x1f\x7f]{1,200}")
_KIND = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
# A coordinator that sends other content for one round again and again must not fill the disk.
_REFUSALS_LOGGED = 8

Cell = tuple["Budget", ...]


class Site(Protocol):
    """What a budget needs of the hospital that it belongs to: a lock over all its budgets, and overlaps."""

    def __enter__(self) -> object:
        """Take the site's lock and read what other processes have changed."""

    def __exit__(self, *error: Any) -> None:
        """Give it back."""

    def cells(self, name: str) -> Sequence[Cell]:
        """The largest groups of data sets that share an image with this one, itself included in each."""


class Budget:
    """One data set's budget, from `fedward.client.registry.Registry`. Safe between processes and threads."""

    def __init__(self, ledger: Ledger, site: Site) -> None:
        """Open the budget that `ledger` records."""
        self.ledger = ledger
        self._site = site
        self._spending = Spending()
        self._applied = 0
        self._applying = threading.RLock()

    @property
    def folder(self) -> str:
        """The name of the ledger's folder, by which the registry knows this budget."""
        return self.ledger.path.parent.name

    @property
    def terms(self) -> Terms:
        """The limit that the hospital set."""
        terms = self.state.terms
        if terms is None:
            raise LedgerRefused(f"{self.ledger.path} sets no budget: put back its newest copy.")
        return terms

    @property
    def state(self) -> Spending:
        """What the ledger's entries add up to, as far as this process has read; not to be changed."""
        with self._applying:
            for entry in self.ledger.entries[self._applied :]:
                self._spending.apply(entry)
                self._applied += 1
        return self._spending

    def charge(
        self,
        study: str,
        server_round: int,
        content_digest: str,
        mechanism: Mechanism,
        kind: str = DP_SGD,
        extra: Mapping[str, Any] | None = None,
    ) -> Charge:
        """Enter what a round is about to spend; the work may start once this returns.

        The same round with the same content, kind, mechanism and extra gives the first charge again and
        spends nothing, so a crashed round is asked for again without fear. A crashed round is not refunded.

        Args:
            study: the study's name.
            server_round: 0 or more.
            content_digest: SHA-256 in hex of the whole request.
            mechanism: all that this kind of work spends in this round.
            kind: ``dp-sgd``, ``fisher``, ``metric`` and so on; a round may charge each once.
            extra: JSON that is synced with the charge, for example the digests of the generator's key and of
                the data snapshot.

        Raises:
            BudgetRefused: it would pass the total, or what is reserved for the study. Nothing was entered.
            RequestRefused: the round was charged with other content, key, snapshot or mechanism.
            LedgerRefused: busy, damaged, or an anchored head is missing from it: no work at all.
        """
        _check_request(study, server_round, content_digest, kind)
        body = {
            "study": study, "round": server_round, "content": content_digest, "kind": kind,
            "mechanism": mechanism_json(mechanism), "extra": dict(extra or {}),
        }  # fmt: skip
        with self._held() as cells:
            self._refuse_if_suspended(cells)
            if known := self._known(body, mechanism):
                return known
            self._refuse_unless_covered(study, mechanism, cells)
            self.ledger.append("charge", body)
            return self.state.charges[study, server_round, kind]

    def find(self, study: str, server_round: int, kind: str = DP_SGD) -> Charge | None:
        """What was charged for a round, or None. A round that is run again takes its key and data from it."""
        with self._held():
            return self.state.charges.get((study, server_round, kind))

    def charges(self, study: str, server_round: int) -> tuple[Charge, ...]:
        """All that was charged for a round, by kind, in their order."""
        with self._held():
            found = [c for key, c in self.state.charges.items() if key[:2] == (study, server_round)]
        return tuple(sorted(found, key=lambda charge: charge.head.seq))

    def reserve(self, study: str, mechanisms: Mechanism | Iterable[Mechanism]) -> None:
        """Plan a whole study once, by PRV; its rounds then draw from the plan, each in under a millisecond.

        A reservation is not spending, but other studies cannot have it, and the study cannot pass it. The
        same plan again changes nothing; another plan replaces what was left of the first.

        Raises:
            BudgetRefused: it does not fit beside what is spent and reserved.
            LedgerRefused: as in `charge`.
        """
        _check_study(study)
        plan = steps_of([mechanisms] if isinstance(mechanisms, Mechanism) else mechanisms)
        with self._held() as cells:
            self._refuse_if_suspended(cells)
            if self.state.plans.get(study) == plan:
                return
            given_up = self.state.reserved.get(study, Steps())
            for cell in cells:
                self._refuse_if_passed(cell, _planned(cell) - given_up, plan, f"Study {study!r}")
            body = {"study": study, "mechanisms": [mechanism_json(m) for m in mechanisms_of(plan)]}
            self.ledger.append("reserved", body)

    def release(self, study: str) -> tuple[Mechanism, ...]:
        """Give up what is left of a study's reservation, for other studies to use, and say what that was."""
        with self._held():
            freed = mechanisms_of(self.state.reserved.get(study, Steps()))
            if study in self.state.reserved:
                self.ledger.append("released", {"study": study})
        return freed

    def spent(self, delta: float | None = None) -> float:
        """Epsilon of the image on which most was spent, at `delta` or the budget's own, by PRV."""
        return self._worst(lambda cell: _spent(cell), delta)

    def planned(self, delta: float | None = None) -> float:
        """The same with all that is still reserved."""
        return self._worst(lambda cell: _planned(cell), delta)

    def left(self) -> float:
        """The total less what is spent; epsilons do not simply add up, so see `rounds_affordable`."""
        return max(0.0, self.terms.total_epsilon - self.spent())

    def rounds_affordable(self, mechanism: Mechanism) -> int:
        """How many more rounds of `mechanism` fit beside all that is spent and reserved."""
        with self._held() as cells:
            return min(
                affordable_steps(mechanisms_of(_planned(cell)), mechanism, terms.total_epsilon, terms.delta)
                for cell in cells
                for terms in (member.terms for member in cell)
            )

    def mechanisms(self) -> tuple[Mechanism, ...]:
        """All that was spent in this data set's own ledger, merged: for an independent recount."""
        with self._held():
            return mechanisms_of(self.state.spent)

    def set_total(self, total_epsilon: float) -> None:
        """Change the limit, which is the hospital's decision alone; the ledger keeps both.

        Raises:
            BudgetRefused: not positive and finite.
        """
        with self._held():
            self.ledger.append("terms", terms_body(total_epsilon, self.terms.delta, self.terms.unit))

    def require_anchor(self, anchor: Head) -> None:
        """Compare with a head of this ledger that a reply or a release carried.

        Only heads that this hospital has signed should come here: one that is missing stops all work.

        Raises:
            LedgerRefused: the ledger does not contain it, so it is an older copy. From now on every charge is
                refused, in every process, until `recover`.
        """
        with self._held():
            if self._accounted(anchor):
                return
            if anchor not in self.state.suspended:
                self.ledger.append("suspended", {"seq": anchor.seq, "hash": anchor.hash})
            self.ledger.require(anchor)

    def require_whole(self) -> None:
        """Refuse all work while an anchored head is missing.

        Raises:
            LedgerRefused: one is, of this ledger or of one that shares an image.
        """
        with self._held() as cells:
            self._refuse_if_suspended(cells)

    def recover(self, anchor: Head, mechanisms: Iterable[Mechanism]) -> None:
        """Enter again what was spent up to `anchor`, a head that an older copy of the ledger lacks.

        Raises:
            LedgerRefused: the head is not missing.
        """
        lost = [mechanism_json(m) for m in mechanisms_of(steps_of(mechanisms))]
        with self._held():
            if self._accounted(anchor):
                raise LedgerRefused(f"Entry {anchor.seq} is not missing: there is nothing to enter again.")
            self.ledger.append("recovered", {"seq": anchor.seq, "hash": anchor.hash, "mechanisms": lost})

    @contextmanager
    def _held(self) -> Iterator[Sequence[Cell]]:
        """Hold the site and every ledger that shares an image, all read to their ends."""
        with self._site, ExitStack() as held:
            cells = self._site.cells(self.folder)
            for member in _members(cells):
                held.enter_context(member.ledger)
            yield cells

    def _accounted(self, anchor: Head) -> bool:
        return self.ledger.contains(anchor) or any(anchor == head for head, _ in self.state.recovered)

    def _refuse_if_suspended(self, cells: Sequence[Cell]) -> None:
        for member in _members(cells):
            for anchor in member.state.suspended:
                raise LedgerRefused(
                    f"The ledger of {_name(member)!r} is an older copy: entry {anchor.seq} "
                    f"({anchor.hash[:12]}), which a reply or release names, is missing. Put back the newest "
                    "copy, or enter again what was spent since; until then nothing is trained."
                )

    def _known(self, body: Mapping[str, Any], mechanism: Mechanism) -> Charge | None:
        """The charge that was made before for this round and kind, if it was for the very same work."""
        study, server_round = body["study"], body["round"]
        if self.state.contents.get((study, server_round), body["content"]) != body["content"]:
            self._refuse_content(body)
        known = self.state.charges.get((study, server_round, body["kind"]))
        if known is None:
            return None
        if known.mechanism != mechanism or not _same_json(known.extra, body["extra"]):
            raise RequestRefused(
                f"Round {server_round} of study {study!r} was charged for other work, another key or other "
                "data: it cannot be run again. Ask for a new round, with a new charge."
            )
        return known

    def _refuse_content(self, body: Mapping[str, Any]) -> NoReturn:
        study, server_round = body["study"], body["round"]
        if self.state.refusals[study, server_round] < _REFUSALS_LOGGED:
            self.ledger.append("refused", {key: body[key] for key in ("study", "round", "content", "kind")})
        raise RequestRefused(
            f"Round {server_round} of study {study!r} was asked before with other content: only that is "
            "answered again. Ask for a new round."
        )

    def _refuse_unless_covered(self, study: str, mechanism: Mechanism, cells: Sequence[Cell]) -> None:
        reserved = self.state.reserved.get(study)
        if reserved is not None and reserved[key_of(mechanism)] < mechanism.steps:
            raise BudgetRefused(
                f"Study {study!r} has {reserved[key_of(mechanism)]} steps left of those reserved for it at "
                f"{_said(mechanism)}; {mechanism.steps} were asked. Reserve more before asking for the round."
            )
        # What is drawn from a reservation is in the plan already, so the plan is what is checked again.
        new = Steps() if reserved is not None else steps_of([mechanism])
        for cell in cells:
            self._refuse_if_passed(cell, _planned(cell), new, f"Study {study!r}")

    def _refuse_if_passed(self, cell: Cell, before: Steps, new: Steps, who: str) -> None:
        history = mechanisms_of(before + new)
        for member in cell:
            terms = member.terms
            if within(history, terms.delta, terms.total_epsilon):
                continue
            used = epsilon(mechanisms_of(before), terms.delta)
            asked = "; ".join(f"{m.steps} steps at {_said(m)}" for m in mechanisms_of(new)) or "nothing new"
            raise BudgetRefused(
                f"{who} asks of {_name(self)!r} for {asked}, which would bring epsilon to "
                f"{epsilon(history, terms.delta):.4g} of {terms.total_epsilon:g} (delta {terms.delta:g}); "
                f"{used:.4g} is spent or reserved, so {max(0.0, terms.total_epsilon - used):.4g} is left. "
                "Ask for fewer steps or more noise."
            )

    def _worst(self, history: Callable[[Cell], Steps], delta: float | None) -> float:
        with self._held() as cells:
            at = self.terms.delta if delta is None else delta
            return max(epsilon(mechanisms_of(history(cell)), at) for cell in cells)


def terms_body(total_epsilon: float, delta: float, unit: str) -> dict[str, Any]:
    """The body of a ``terms`` entry.

    Raises:
        BudgetRefused: a value out of range.
    """
    try:
        return dict(vars(Terms(float(total_epsilon), float(delta), unit)))
    except (TypeError, ValueError) as error:
        raise BudgetRefused(
            "A budget has a positive finite epsilon, a delta in (0, 1) and a unit, not "
            f"{total_epsilon}, {delta}, {unit!r}."
        ) from error


def _members(cells: Sequence[Cell]) -> list[Budget]:
    return list({member.folder: member for cell in cells for member in cell}.values())


def _spent(cell: Cell) -> Steps:
    return sum((member.state.spent for member in cell), Steps())


def _planned(cell: Cell) -> Steps:
    return sum((member.state.planned() for member in cell), Steps())


def _name(budget: Budget) -> str:
    return budget.state.names[0] if budget.state.names else budget.ledger.id


def _said(mechanism: Mechanism) -> str:
    return f"noise multiplier {mechanism.noise_multiplier:g} and sample rate {mechanism.sample_rate:g}"


def _same_json(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    try:
        return canonical_json(dict(first)) == canonical_json(dict(second))
    except (TypeError, ValueError):
        return False


def _check_study(study: str) -> None:
    if not isinstance(study, str) or not _STUDY.fullmatch(study):
        raise RequestRefused("A study's name has 1 to 200 printable characters.")


def _check_request(study: str, server_round: int, content_digest: str, kind: str) -> None:
    _check_study(study)
    if type(server_round) is not int or not 0 <= server_round < 1 << 53:
        raise RequestRefused(f"A round is numbered by a whole number from 0, not {server_round!r}.")
    if not is_digest(content_digest):
        raise RequestRefused("A round's content is named by a SHA-256 in 64 hexadecimal digits.")
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        raise RequestRefused("The kind of a charge has 1 to 40 lower-case letters, digits and dashes.")
