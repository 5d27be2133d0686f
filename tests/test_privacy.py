"""What a history costs: bounds that hold, agree with an independent accountant, and never err downwards."""

import importlib
import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants.analysis import rdp as opacus_rdp
from scipy.special import ndtr

from fedward.common.errors import SettingRefused
from fedward.common.privacy import (
    Accountant,
    Mechanism,
    affordable_steps,
    epsilon,
    merged,
    noise_multiplier,
    within,
)

DELTA = 1e-5

ACCOUNTANTS: tuple[Accountant, ...] = ("prv", "rdp", "gaussian")
Entries = list[tuple[float, float, int]]

# epsilon at 1e-5 by dp_accounting 0.6.0, pld.PLDAccountant, add or remove one, discretisation 1e-4.
DP_ACCOUNTING: list[tuple[Entries, float]] = [
    ([(9.57, 1.0, 40)], 2.7263513225698097),
    ([(25.9, 1.0, 40)], 0.9027653125432531),
    ([(2.1, 0.109, 60)], 1.8556947985285457),
    ([(2.1, 0.109, 1)], 0.364795698241409),
    ([(2.1, 0.9375, 10)], 6.6833320173573165),
    ([(0.8, 0.02, 400)], 4.248549503020644),
    ([(1.1, 0.0234, 300), (9.57, 1.0, 20)], 2.8688075368761345),
    ([(1.0, 0.01, 1000), (3.0, 0.3, 30), (8.0, 1.0, 2)], 3.180214650432764),
]


def history(entries: Entries) -> list[Mechanism]:
    return [Mechanism(*entry) for entry in entries]


mechanisms = st.builds(
    Mechanism,
    noise_multiplier=st.floats(0.5, 50),
    sample_rate=st.one_of(st.just(1.0), st.floats(0.001, 0.999)),
    steps=st.integers(0, 200),
)


@pytest.mark.parametrize(("entries", "independent"), DP_ACCOUNTING)
def test_prv_is_an_upper_bound_within_one_percent_of_dp_accounting(
    entries: Entries, independent: float
) -> None:
    found = epsilon(history(entries), DELTA)
    assert independent <= found <= 1.01 * independent


@pytest.mark.skipif(importlib.util.find_spec("dp_accounting") is None, reason="dp-accounting is optional")
def test_the_recorded_figures_are_dp_accountings_own() -> None:
    dp_accounting: Any = importlib.import_module("dp_accounting")
    pld: Any = importlib.import_module("dp_accounting.pld")

    for entries, recorded in DP_ACCOUNTING[:2]:
        relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
        accountant = pld.PLDAccountant(relation, value_discretization_interval=1e-4)
        for sigma, rate, steps in entries:
            event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma))
            accountant.compose(event, steps)
        assert accountant.get_epsilon(DELTA) == pytest.approx(recorded, rel=1e-3)


def test_prv_covers_both_directions_of_adjacency_at_one_step() -> None:
    """delta(epsilon) of one subsampled step by integration, for adding and for removing a unit."""
    sigma, rate = 1.3, 0.4
    z = np.linspace(-15, 16, 400_001)
    base = np.exp(-(z**2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
    mixed = (1 - rate) * base + rate * np.exp(-((z - 1) ** 2) / (2 * sigma**2)) / (
        sigma * math.sqrt(2 * math.pi)
    )
    bound = math.exp(epsilon([Mechanism(sigma, rate, 1)], DELTA))
    for first, second in ((mixed, base), (base, mixed)):
        assert np.trapezoid(np.maximum(first - bound * second, 0), z) <= DELTA * (1 + 1e-6)


@pytest.mark.parametrize(("sigma", "steps"), [(9.57, 40), (25.9, 40), (1.0, 1), (300.0, 7)])
def test_the_exact_gaussian_bound_lies_just_below_prv(sigma: float, steps: int) -> None:
    found = [Mechanism(sigma, 1.0, steps)]
    exact, mu = epsilon(found, DELTA, "gaussian"), math.sqrt(steps) / sigma
    delta = ndtr(mu / 2 - exact / mu) - math.exp(exact) * ndtr(-mu / 2 - exact / mu)
    assert delta == pytest.approx(DELTA, rel=1e-6)
    assert exact <= epsilon(found, DELTA) <= exact + 0.003
    assert exact <= epsilon(found, DELTA, "rdp")


@settings(max_examples=25, deadline=None)
@given(sigma=st.floats(0.6, 20), rate=st.floats(0.005, 1.0), order=st.integers(2, 32))
def test_rdp_is_that_of_the_sampled_gaussian_mechanism(sigma: float, rate: float, order: int) -> None:
    divergence = opacus_rdp.compute_rdp(q=rate, noise_multiplier=sigma, steps=5, orders=float(order))
    at_order, _ = opacus_rdp.get_privacy_spent(orders=float(order), rdp=divergence, delta=DELTA)
    assert epsilon([Mechanism(sigma, rate, 5)], DELTA, "rdp") <= max(at_order, 0) + 1e-9


@pytest.mark.parametrize("entries", [entries for entries, _ in DP_ACCOUNTING])
def test_rdp_is_as_tight_as_opacus_own(entries: Entries) -> None:
    orders = [1 + x / 10 for x in range(1, 100)] + list(range(12, 64))
    total = sum(
        opacus_rdp.compute_rdp(q=rate, noise_multiplier=sigma, steps=steps, orders=orders)
        for sigma, rate, steps in entries
    )
    theirs, _ = opacus_rdp.get_privacy_spent(orders=orders, rdp=total, delta=DELTA)
    assert epsilon(history(entries), DELTA, "rdp") == pytest.approx(theirs, rel=0.02)


def test_nothing_done_costs_nothing() -> None:
    for accountant in ACCOUNTANTS:
        assert epsilon([], DELTA, accountant) == 0.0
        assert epsilon([Mechanism(1.0, 0.5, 0)], DELTA, accountant) == 0.0


@settings(max_examples=25, deadline=None)
@given(st.lists(mechanisms, max_size=4), mechanisms)
def test_more_work_never_costs_less(before: list[Mechanism], more: Mechanism) -> None:
    assert epsilon([*before, more], DELTA, "rdp") >= epsilon(before, DELTA, "rdp") - 1e-12


@settings(max_examples=25, deadline=None)
@given(mechanisms, st.floats(1.01, 3.0))
def test_more_noise_or_a_smaller_rate_never_costs_more(mechanism: Mechanism, factor: float) -> None:
    quieter = Mechanism(mechanism.noise_multiplier * factor, mechanism.sample_rate, mechanism.steps)
    rarer = Mechanism(mechanism.noise_multiplier, mechanism.sample_rate / factor, mechanism.steps)
    cost = epsilon([mechanism], DELTA, "rdp") + 1e-9
    assert epsilon([quieter], DELTA, "rdp") <= cost
    assert epsilon([rarer], DELTA, "rdp") <= cost


@settings(max_examples=25, deadline=None)
@given(st.lists(mechanisms, max_size=5), st.randoms())
def test_order_and_splitting_of_a_history_do_not_matter(entries: list[Mechanism], rng: Any) -> None:
    halves = [
        Mechanism(m.noise_multiplier, m.sample_rate, part)
        for m in entries
        for part in (m.steps // 2, m.steps - m.steps // 2)
    ]
    rng.shuffle(halves)
    assert merged(halves) == merged(entries)
    assert epsilon(halves, DELTA, "rdp") == epsilon(entries, DELTA, "rdp")


@pytest.mark.parametrize("steps", [1, 20, 60])
def test_many_rounds_are_one_composition_not_one_rounds_epsilon(steps: int) -> None:
    rounds = [Mechanism(2.1, 0.109, 1)] * steps
    assert epsilon(rounds, DELTA) == epsilon([Mechanism(2.1, 0.109, steps)], DELTA)
    if steps > 1:
        assert epsilon(rounds, DELTA) > 2 * epsilon(rounds[:1], DELTA)


def test_the_sampling_rate_is_the_one_that_is_stated_not_a_loaders() -> None:
    """64 units and an expected batch of 60 are a rate of .9375; a loader of 2 batches would claim .5."""
    assert Mechanism(2.1, 60 / 64, 10).sample_rate == 0.9375
    stated = epsilon([Mechanism(2.1, 60 / 64, 10)], DELTA)
    assert stated == pytest.approx(6.6833, rel=0.01)
    assert stated > 1.5 * epsilon([Mechanism(2.1, 1 / 2, 10)], DELTA)


@pytest.mark.parametrize(
    ("target", "rate", "steps", "spent"),
    [
        (3.0, 1.0, 40, []),
        (3.0, 0.109, 60, []),
        (1.0, 0.9375, 60, []),
        (0.05, 0.1, 60, []),
        (3.0, 0.109, 30, [(2.1, 0.109, 60)]),
    ],
)
def test_planned_noise_meets_the_target_and_a_thousandth_less_does_not(
    target: float, rate: float, steps: int, spent: Entries
) -> None:
    before = history(spent)
    sigma = noise_multiplier(target, DELTA, rate, steps, before)
    assert epsilon([*before, Mechanism(sigma, rate, steps)], DELTA) <= target
    assert epsilon([*before, Mechanism(sigma * 0.9989, rate, steps)], DELTA) > target


def test_affordable_steps_are_the_last_that_fit() -> None:
    spent, step = history([(9.57, 1.0, 10)]), Mechanism(2.1, 0.109, 3)
    count = affordable_steps(spent, step, 3.0, DELTA)
    assert within([*spent, Mechanism(2.1, 0.109, 3 * count)], DELTA, 3.0)
    assert not within([*spent, Mechanism(2.1, 0.109, 3 * (count + 1))], DELTA, 3.0)
    assert affordable_steps(history([(0.5, 1.0, 10)]), step, 3.0, DELTA) == 0


def test_within_is_the_same_answer_as_prvs() -> None:
    for entries, independent in DP_ACCOUNTING:
        exact = epsilon(history(entries), DELTA)
        assert within(history(entries), DELTA, exact)
        assert not within(history(entries), DELTA, independent * 0.999)


@pytest.mark.parametrize(
    "entries",
    [[(1e-200, 0.5, 3)], [(1e200, 1.0, 3)], [(1e-3, 1.0, 10**9)], [(1.0, 1e-300, 5)], [(0.01, 0.999999, 1)]],
)
def test_extreme_settings_give_a_bound_not_a_crash(entries: Entries) -> None:
    for accountant in ACCOUNTANTS[:2]:
        found = epsilon(history(entries), DELTA, accountant)
        assert found >= 0
        assert not math.isnan(found)


def test_a_tiny_delta_falls_back_to_a_bound_that_holds() -> None:
    one = [Mechanism(9.57, 1.0, 40)]
    assert epsilon(one, 1e-12, "gaussian") <= epsilon(one, 1e-12) == epsilon(one, 1e-12, "rdp")


@pytest.mark.parametrize(
    "bad",
    [
        (0.0, 0.5, 1), (-1.0, 0.5, 1), (math.nan, 0.5, 1), (math.inf, 0.5, 1), ("2", 0.5, 1), (True, 0.5, 1),
        (1.0, 0.0, 1), (1.0, 1.0001, 1), (1.0, math.nan, 1), (1.0, None, 1), (1.0, 0.5, -1), (1.0, 0.5, 1.0),
        (1.0, 0.5, True), (1.0, 0.5, 10**10), ([1.0], 0.5, 1), (10**400, 0.5, 1),
    ],
)  # fmt: skip
def test_a_mechanism_out_of_range_is_refused(bad: Any) -> None:
    with pytest.raises(SettingRefused):
        Mechanism(*bad)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan, math.inf, "1e-5"])
def test_a_delta_out_of_range_is_refused(delta: Any) -> None:
    with pytest.raises(SettingRefused):
        epsilon([Mechanism(1.0, 0.5, 1)], delta)


def test_what_cannot_be_planned_is_refused_with_its_figures() -> None:
    with pytest.raises(SettingRefused, match=r"Epsilon 35\.\d+ of 3 is spent already"):
        noise_multiplier(3.0, DELTA, 0.1, 10, history([(0.3, 0.5, 3)]))
    with pytest.raises(SettingRefused, match="not even with a noise multiplier of 1e"):
        noise_multiplier(1e-12, 1e-5, 1.0, 10**9)
    for target in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(SettingRefused):
            noise_multiplier(target, DELTA, 0.1, 10)
    with pytest.raises(SettingRefused):
        noise_multiplier(3.0, DELTA, 0.1, 0)
    with pytest.raises(SettingRefused):
        affordable_steps([], Mechanism(1.0, 0.1, 0), 3.0, DELTA)
    with pytest.raises(SettingRefused):
        epsilon([Mechanism(1.0, 0.1, 1)], DELTA, "gdp")  # type: ignore[arg-type]
    with pytest.raises(SettingRefused):
        epsilon([Mechanism(1.0, 0.1, 1)], DELTA, "gaussian")


def test_mechanisms_can_be_read_without_torch() -> None:
    source = (Path(__file__).parents[1] / "common" / "mechanisms.py").read_text()
    assert "opacus" not in source
    assert "import torch" not in source
