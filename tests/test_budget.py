"""A budget is charged before the work, once for each round, and follows the images wherever they go."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward.client import budget as budget_module
from fedward.client.budget import Budget
from fedward.client.identity import DataIdentity
from fedward.client.registry import Registry
from fedward.client.spending import mechanisms_of, steps_of
from fedward.common.chain import Head
from fedward.common.errors import (
    BudgetRefused,
    DatasetRefused,
    LedgerRefused,
    Refusal,
    RequestRefused,
    UnknownName,
)
from fedward.common.ledger import verify
from fedward.common.privacy import Mechanism, epsilon, within

DELTA = 1e-5
ROUND = Mechanism(2.1, 0.109, 3)
Images = npt.NDArray[np.uint8]


def pictures(count: int, seed: int = 0) -> Images:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)


def content(number: int) -> str:
    return f"{number:064x}"


def put(registry: Registry, name: str, images: Images, total: float = 3.0) -> Budget:
    return registry.import_dataset(name, registry.identity.digests(images), total_epsilon=total, delta=DELTA)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "budget")


@pytest.fixture
def budget(registry: Registry) -> Budget:
    return put(registry, "chest", pictures(20))


def reopened(registry: Registry, name: str = "chest") -> Budget:
    return Registry(registry.folder).budget(name)


def entries(budget: Budget) -> list[str]:
    return [entry.kind for entry in budget.ledger.entries]


# Charging


def test_every_round_is_composed_with_all_before(budget: Budget, registry: Registry) -> None:
    for number in range(4):
        budget.charge("a", number, content(number), ROUND)
    assert budget.spent() == epsilon([Mechanism(2.1, 0.109, 12)], DELTA)
    assert reopened(registry).mechanisms() == (Mechanism(2.1, 0.109, 12),)


def test_a_charge_is_on_the_disk_when_it_returns(budget: Budget) -> None:
    charge = budget.charge("a", 1, content(1), ROUND, extra={"key": "k", "snapshot": "s"})
    assert verify(budget.ledger.path) == charge.head
    assert charge.head == budget.ledger.head


def test_all_kinds_of_work_share_the_budget(budget: Budget) -> None:
    budget.charge("a", 1, content(1), ROUND)
    budget.charge("a", 1, content(1), Mechanism(4.0, 1.0, 1), kind="fisher")
    assert budget.spent() == epsilon([ROUND, Mechanism(4.0, 1.0, 1)], DELTA)


def charges_until_refused(choose: Callable[[int], Budget]) -> int:
    """Charge rounds by the number from 0 on until one is refused; how many went through."""
    for number in range(200):
        try:
            choose(number).charge("ab"[number % 2], number, content(number), ROUND)
        except BudgetRefused:
            return number
    raise AssertionError("no round was ever refused")


def test_two_studies_and_five_restarts_stay_within_one_budget(budget: Budget, registry: Registry) -> None:
    """A budget of 3: the first round that would pass it is refused, and the sum is an independent one's."""
    running: list[Budget] = []

    def restarted(number: int) -> Budget:
        if number % 10 == 0:
            running.append(reopened(registry))
        return running[-1]

    charged = charges_until_refused(restarted)
    assert len(running) == 6  # five restarts
    assert reopened(registry).mechanisms() == (Mechanism(2.1, 0.109, 3 * charged),)
    # dp_accounting 0.6.0, PLD, add or remove one, discretisation 1e-4: 150 steps cost this, 153 cost 3.0044.
    assert 3 * charged == 150
    assert 2.973046752 <= budget.spent() <= 1.01 * 2.973046752


def test_the_refusal_names_what_is_left_and_what_was_asked(budget: Budget) -> None:
    budget.charge("a", 1, content(1), ROUND)
    with pytest.raises(BudgetRefused) as refused:
        budget.charge("a", 2, content(2), Mechanism(0.5, 0.5, 10))
    sentence = str(refused.value)
    spent = budget.spent()
    for part in ("10 steps at noise multiplier 0.5 and sample rate 0.5", "of 3 ", f"{3 - spent:.4g} is left"):
        assert part in sentence


def test_a_refused_round_leaves_no_entry(budget: Budget) -> None:
    before = budget.ledger.head
    with pytest.raises(BudgetRefused):
        budget.charge("a", 1, content(1), Mechanism(0.1, 1.0, 10))
    assert budget.ledger.head == before


def test_the_same_round_asked_again_spends_nothing(budget: Budget, registry: Registry) -> None:
    first = budget.charge("a", 1, content(1), ROUND, extra={"key": "k"})
    for asked in (budget, reopened(registry)):
        assert asked.charge("a", 1, content(1), ROUND, extra={"key": "k"}) == first
    assert budget.find("a", 1) == first
    assert budget.find("a", 2) is None
    assert budget.mechanisms() == (ROUND,)


def test_the_same_round_with_other_content_is_refused_and_logged(budget: Budget) -> None:
    budget.charge("a", 1, content(1), ROUND)
    for kind in ("dp-sgd", "fisher"):
        with pytest.raises(RequestRefused, match="other content"):
            budget.charge("a", 1, content(2), ROUND, kind=kind)
    assert entries(budget)[-2:] == ["refused", "refused"]
    assert budget.ledger.entries[-1].body["content"] == content(2)
    for number in range(50):
        with pytest.raises(RequestRefused):
            budget.charge("a", 1, content(100 + number), ROUND)
    assert entries(budget).count("refused") == 8
    assert budget.mechanisms() == (ROUND,)


@pytest.mark.parametrize(
    ("mechanism", "extra"),
    [(ROUND, {"key": "other"}), (ROUND, {}), (Mechanism(2.1, 0.109, 1), {"key": "k"}), (ROUND, {"key": b""})],
)
def test_a_round_is_not_run_again_with_another_key_or_other_work(
    budget: Budget, mechanism: Mechanism, extra: dict[str, Any]
) -> None:
    budget.charge("a", 1, content(1), ROUND, extra={"key": "k"})
    with pytest.raises(RequestRefused, match="new round"):
        budget.charge("a", 1, content(1), mechanism, extra=extra)


def test_a_full_disk_in_the_middle_of_a_charge_spends_nothing(
    budget: Budget, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:40]))
    with pytest.raises(LedgerRefused, match="nothing may start"):
        budget.charge("a", 1, content(1), ROUND)
    monkeypatch.undo()
    assert budget.spent() == reopened(registry).spent() == 0.0
    budget.charge("a", 1, content(1), ROUND)
    assert reopened(registry).mechanisms() == (ROUND,)


@pytest.mark.parametrize(
    "bad",
    [
        {"study": ""}, {"study": "x" * 201}, {"study": "a\nb"}, {"study": None}, {"server_round": -1},
        {"server_round": 1.0}, {"server_round": True}, {"server_round": 1 << 60}, {"content_digest": "ab"},
        {"content_digest": "A" * 64}, {"kind": "DP"}, {"kind": ""}, {"kind": None},
    ],
)  # fmt: skip
def test_a_malformed_request_is_refused(budget: Budget, bad: dict[str, Any]) -> None:
    request: dict[str, Any] = {
        "study": "a",
        "server_round": 1,
        "content_digest": content(1),
        "mechanism": ROUND,
    }
    with pytest.raises(RequestRefused):
        budget.charge(**{**request, **bad})
    assert entries(budget) == ["genesis", "terms", "images"]


def test_two_processes_cannot_spend_the_same_budget_twice(budget: Budget, registry: Registry) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from fedward.client.registry import Registry\n"
        "from fedward.common.errors import BudgetRefused\n"
        "from fedward.common.privacy import Mechanism\n"
        "budget = Registry(Path(sys.argv[1])).budget('chest')\n"
        "for number in range(30):\n"
        "    try:\n"
        "        budget.charge(sys.argv[2], number, '%064x' % number, Mechanism(10.0, 1.0, 4))\n"
        "    except BudgetRefused:\n"
        "        break\n"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, str(registry.folder), name]) for name in "ab"]
    assert [child.wait(timeout=120) for child in children] == [0, 0]
    (spent,) = budget.mechanisms()
    assert epsilon([spent], DELTA) <= 3.0 < epsilon([Mechanism(10.0, 1.0, spent.steps + 4)], DELTA)


@settings(max_examples=8, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"), st.integers(0, 5), st.integers(0, 1), st.sampled_from([1.5, 4.0, 20.0])
        ),
        max_size=12,
    )
)
def test_whatever_is_asked_the_total_holds_and_restarts_agree(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[str, int, int, float]]
) -> None:
    registry = Registry(tmp_path_factory.mktemp("law") / "budget")
    budget = put(registry, "chest", pictures(3), total=1.0)
    done: dict[tuple[str, int], Mechanism] = {}
    for study, number, variant, sigma in asked:
        try:
            charge = budget.charge(study, number, content(variant), Mechanism(sigma, 0.5, 2))
        except Refusal:
            continue
        assert done.setdefault((study, number), charge.mechanism) == charge.mechanism
    expected = mechanisms_of(steps_of(done.values()))
    assert budget.mechanisms() == reopened(registry).mechanisms() == expected
    assert epsilon(expected, DELTA) <= 1.0


# Reservations


def test_a_round_of_a_reserved_study_asks_no_accountant_again(
    budget: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget.reserve("a", Mechanism(1.508, 0.109, 60))
    histories: set[object] = set()

    def noted(history: tuple[Mechanism, ...], delta: float, total: float) -> bool:
        histories.add(history)
        return within(history, delta, total)

    monkeypatch.setattr(budget_module, "within", noted)
    for number in range(60):
        budget.charge("a", number, content(number), Mechanism(1.508, 0.109, 1))
    assert len(histories) == 1  # one and the same history, which the accountant remembers
    assert 2.9 < budget.spent() <= 3.0


def test_a_reservation_is_not_spending_but_others_cannot_have_it(budget: Budget) -> None:
    budget.reserve("a", Mechanism(1.508, 0.109, 60))
    assert budget.spent() == 0.0
    assert budget.planned() > 2.9
    with pytest.raises(BudgetRefused, match="spent or reserved"):
        budget.charge("b", 1, content(1), ROUND)
    with pytest.raises(BudgetRefused):
        budget.reserve("b", ROUND)
    budget.release("a")
    budget.charge("b", 1, content(1), ROUND)


def test_a_study_cannot_pass_its_reservation(budget: Budget, registry: Registry) -> None:
    budget.reserve("a", Mechanism(2.1, 0.109, 6))
    for number in range(2):
        budget.charge("a", number, content(number), ROUND)
    for asked in (budget, reopened(registry)):
        with pytest.raises(BudgetRefused, match="0 steps left of those reserved"):
            asked.charge("a", 2, content(2), ROUND)
    with pytest.raises(BudgetRefused, match="0 steps left"):
        budget.charge("a", 3, content(3), Mechanism(50.0, 0.109, 1))


def test_the_same_plan_again_does_not_refill_it(budget: Budget, registry: Registry) -> None:
    budget.reserve("a", Mechanism(2.1, 0.109, 6))
    budget.charge("a", 0, content(0), ROUND)
    reopened(registry).reserve("a", [Mechanism(2.1, 0.109, 4), Mechanism(2.1, 0.109, 2)])
    budget.charge("a", 1, content(1), ROUND)
    with pytest.raises(BudgetRefused):
        budget.charge("a", 2, content(2), ROUND)
    assert entries(budget).count("reserved") == 1


def test_another_plan_replaces_what_was_left(budget: Budget) -> None:
    budget.reserve("a", Mechanism(1.508, 0.109, 60))
    budget.reserve("a", [ROUND, Mechanism(30.0, 1.0, 1)])
    assert budget.planned() == epsilon([ROUND, Mechanism(30.0, 1.0, 1)], DELTA)


def test_rounds_affordable_are_the_rounds_that_go_through(budget: Budget) -> None:
    budget.reserve("a", Mechanism(9.57, 1.0, 10))
    large = Mechanism(2.1, 0.109, 20)
    count = budget.rounds_affordable(large)
    assert count > 0
    for number in range(count):
        budget.charge("b", number, content(number), large)
    with pytest.raises(BudgetRefused):
        budget.charge("b", count, content(count), large)
    assert budget.left() == 3.0 - budget.spent()


def test_only_the_hospital_changes_the_total(budget: Budget, registry: Registry) -> None:
    with pytest.raises(BudgetRefused, match="import it on these terms"):
        put(registry, "chest", pictures(20), total=100.0)
    with pytest.raises(BudgetRefused):
        budget.set_total(float("nan"))
    budget.set_total(0.5)
    with pytest.raises(BudgetRefused):
        budget.charge("a", 1, content(1), Mechanism(2.1, 0.109, 20))
    assert reopened(registry).terms.total_epsilon == 0.5


# Identity


def test_the_same_images_under_another_name_find_the_same_budget(budget: Budget, registry: Registry) -> None:
    budget.charge("a", 1, content(1), ROUND)
    shuffled = pictures(20)[::-1].reshape(20, 64)
    again = put(Registry(registry.folder), "copy", np.concatenate([shuffled, shuffled]))
    assert again.ledger.id == budget.ledger.id
    assert again.mechanisms() == (ROUND,)
    assert reopened(registry, "copy").state.names == ["chest", "copy"]


def test_growth_keeps_the_ledger_and_the_images_that_left(budget: Budget, registry: Registry) -> None:
    budget.charge("a", 1, content(1), ROUND)
    grown = put(registry, "chest", pictures(40)[10:])
    assert grown is budget
    assert grown.state.image_count == len(
        registry.identity.digests(np.concatenate([pictures(20), pictures(40)[10:]]))
    )
    assert reopened(registry).mechanisms() == (ROUND,)
    # The ten that were taken out are imported elsewhere: what was spent on them went with them.
    assert put(registry, "taken out", pictures(20)[:10]).spent() == budget.spent()
    assert len(list(budget.ledger.path.parent.glob("images-*.bin"))) == 1


def test_overlap_keeps_what_was_spent_on_either_side(budget: Budget, registry: Registry) -> None:
    other = put(registry, "other", np.concatenate([pictures(20)[:5], pictures(10, seed=1)]))
    assert other is not budget
    budget.charge("a", 1, content(1), ROUND)
    assert other.spent() == budget.spent() > 0
    other.charge("a", 1, content(1), ROUND)
    assert budget.spent() == epsilon([ROUND, ROUND], DELTA)
    assert budget.mechanisms() == (ROUND,)
    charges_until_refused(lambda number: (budget, other)[number % 2])
    assert epsilon([*budget.mechanisms(), *other.mechanisms()], DELTA) <= 3.0


def test_disjoint_images_have_budgets_of_their_own(budget: Budget, registry: Registry) -> None:
    budget.charge("a", 1, content(1), ROUND)
    assert put(registry, "other", pictures(5, seed=1)).spent() == 0.0


def test_a_chain_of_overlaps_composes_only_what_touches_an_image(registry: Registry) -> None:
    images = pictures(30)
    left, middle, right = (put(registry, f"set {i}", images[i * 5 : i * 5 + 8]) for i in range(3))
    left.charge("a", 1, content(1), ROUND)
    right.charge("a", 1, content(1), Mechanism(4.0, 1.0, 1))
    assert left.spent() == epsilon([ROUND], DELTA)
    assert right.spent() == epsilon([Mechanism(4.0, 1.0, 1)], DELTA)
    assert middle.spent() == max(left.spent(), right.spent())


def test_an_overlap_is_bound_by_the_smaller_total(registry: Registry) -> None:
    put(registry, "strict", pictures(20), total=0.2)
    generous = put(registry, "generous", pictures(25, seed=0)[10:], total=8.0)
    shared = {*registry.identity.digests(pictures(25)[10:])} & {*registry.identity.digests(pictures(20))}
    assert shared
    with pytest.raises(BudgetRefused, match=r"of 0\.2"):
        generous.charge("a", 1, content(1), ROUND)


def test_an_import_elsewhere_is_noticed_before_the_next_charge(budget: Budget, registry: Registry) -> None:
    other = put(Registry(registry.folder), "other", pictures(21)[:20][:7])
    other.charge("a", 1, content(1), ROUND)
    assert budget.spent() == other.spent()
    budget.charge("a", 1, content(1), ROUND)
    assert other.spent() == epsilon([ROUND, ROUND], DELTA)


def test_digests_need_the_sites_key(tmp_path: Path) -> None:
    first, second = (DataIdentity.create(tmp_path / name) for name in "ab")
    assert not first.digests(pictures(5)) & second.digests(pictures(5))
    assert DataIdentity.open(tmp_path / "a").digests(pictures(5)) == first.digests(pictures(5))
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("images", [np.zeros((2, 3)), np.zeros(5, np.uint8), np.zeros((2, 2), np.int8)])
def test_what_is_no_image_is_refused(registry: Registry, images: Any) -> None:
    with pytest.raises(DatasetRefused):
        registry.identity.digests(images)


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb"])
def test_a_bad_name_or_no_images_are_refused(registry: Registry, name: str) -> None:
    with pytest.raises(DatasetRefused):
        put(registry, name, pictures(2))
    with pytest.raises(DatasetRefused):
        registry.import_dataset("empty", [], total_epsilon=3.0, delta=DELTA)
    with pytest.raises(DatasetRefused):
        registry.import_dataset("short", [b"x"], total_epsilon=3.0, delta=DELTA)
    assert registry.budgets() == ()


def test_an_unknown_name_lists_those_there_are(budget: Budget, registry: Registry) -> None:
    with pytest.raises(UnknownName, match="there are chest"):
        registry.budget("abdomen")


# Damage


def test_a_lost_key_does_not_mint_budgets(budget: Budget, registry: Registry) -> None:
    (registry.folder / "image.key").unlink()
    with pytest.raises(LedgerRefused, match=r"image\.key"):
        Registry(registry.folder)


def test_a_lost_ledger_does_not_mint_a_budget(budget: Budget, registry: Registry) -> None:
    for file in budget.ledger.path.parent.iterdir():
        file.unlink()
    with pytest.raises(LedgerRefused, match="no ledger"):
        Registry(registry.folder)


def test_a_changed_list_of_images_is_refused(budget: Budget, registry: Registry) -> None:
    (path,) = budget.ledger.path.parent.glob("images-*.bin")
    path.write_bytes(path.read_bytes()[:-16])
    with pytest.raises(LedgerRefused, match="list of images"):
        Registry(registry.folder)


def test_another_data_sets_ledger_in_its_place_is_refused(budget: Budget, registry: Registry) -> None:
    fresh = put(registry, "other", pictures(5, seed=1))
    for name in ("ledger.jsonl", "ledger.jsonl.head"):
        (budget.ledger.path.parent / name).write_bytes((fresh.ledger.path.parent / name).read_bytes())
    with pytest.raises(LedgerRefused, match="another data set"):
        Registry(registry.folder)


def test_an_import_that_crashed_halfway_is_taken_up(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, left = type(registry._log).append, [0]

    def dying(ledger: Any, kind: str, body: Any) -> Any:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return append(ledger, kind, body)

    for survived in range(3):
        monkeypatch.setattr(type(registry._log), "append", dying)
        left[0] = survived
        with pytest.raises(KeyboardInterrupt):
            put(Registry(registry.folder), "chest", pictures(5))
        monkeypatch.undo()
        Registry(registry.folder)
    put(Registry(registry.folder), "chest", pictures(5)).charge("a", 1, content(1), ROUND)
    assert reopened(registry).mechanisms() == (ROUND,)
    assert len(Registry(registry.folder).budgets()) == 1


def test_an_entry_of_an_unknown_kind_is_not_passed_over(budget: Budget, registry: Registry) -> None:
    budget.ledger.append("future", {})
    with pytest.raises(LedgerRefused, match="does not know"):
        Registry(registry.folder)


@pytest.mark.parametrize(
    "body", [{}, {"study": "a", "round": 1, "content": "", "kind": "", "mechanism": {}, "extra": {}}]
)
def test_a_charge_that_cannot_be_read_is_not_passed_over(
    budget: Budget, registry: Registry, body: dict[str, Any]
) -> None:
    budget.ledger.append("charge", body)
    with pytest.raises(LedgerRefused, match="no 'charge' entry"):
        Registry(registry.folder)


def test_an_older_copy_stops_all_work_until_the_spending_is_entered_again(
    budget: Budget, registry: Registry
) -> None:
    budget.charge("a", 1, content(1), ROUND)
    old = {path: path.read_bytes() for path in registry.folder.rglob("*") if path.is_file()}
    anchor = budget.charge("a", 2, content(2), ROUND).head
    budget.require_anchor(anchor)
    for path, data in old.items():
        path.write_bytes(data)
    restored = reopened(registry)
    with pytest.raises(LedgerRefused, match="older copy"):
        restored.require_anchor(anchor)
    for asked in (restored, reopened(registry)):
        with pytest.raises(LedgerRefused, match="older copy"):
            asked.charge("a", 3, content(3), ROUND)
        with pytest.raises(LedgerRefused, match="older copy"):
            asked.reserve("b", ROUND)
    restored.recover(anchor, [ROUND])
    reopened(registry).charge("a", 3, content(3), ROUND)
    assert restored.mechanisms() == (Mechanism(2.1, 0.109, 9),)
    restored.require_anchor(anchor)
    with pytest.raises(LedgerRefused, match="nothing to enter"):
        restored.recover(anchor, [ROUND])


def test_another_hospitals_head_stops_work_too(budget: Budget) -> None:
    with pytest.raises(LedgerRefused, match="another ledger"):
        budget.require_anchor(Head(1, "ab" * 32))
    with pytest.raises(LedgerRefused):
        budget.charge("a", 1, content(1), ROUND)
    with pytest.raises(LedgerRefused):
        budget.require_anchor(Head(1, "ab" * 32))
    assert entries(budget).count("suspended") == 1
