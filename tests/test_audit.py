import json
import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from fedward.client import hospital as hospital_module
from fedward.client import measuring, training
from fedward.client.budget import Budget
from fedward.client.hospital import Hospital
from fedward.client.replies import ReplyStore
from fedward.client.round_keys import RoundKeys
from fedward.common import cli
from fedward.common.accountants import gaussian_epsilon
from fedward.common.errors import SettingRefused
from fedward.common.models import FAMILIES
from fedward.common.per_sample import PerSampleGradients
from fedward.common.privacy import Mechanism
from fedward.common.randomness import KeyedGenerator
from fedward.simulations import audit_canaries, audit_probes
from fedward.simulations.audit_bounds import (
    chance_of,
    epsilon_lower_bound,
    gaussian_estimate,
    right_guesses,
)
from fedward.simulations.audit_canaries import FULL, SAMPLED, Design, audit
from fedward.simulations.audit_ledger import ledger
from fedward.simulations.audit_noise import moments, noise
from fedward.simulations.audit_probes import PROBES, Fault, Probe, rates, run_probe
from fedward.simulations.audit_sensitivity import CASES, CLIP, adjacent_pairs, sensitivity
from fedward.simulations.audit_step import (
    Check,
    audit_settings,
    keyed,
    no_records,
    phantoms,
    released,
    start,
    take,
)

ROOMS = Path(training.__file__).resolve().parent.parent


# The bound


def _chance_by_hand(right: int, guesses: int, canaries: int, eps: float, delta: float) -> float:
    """Theorem 5.2 written out term by term."""
    rate = math.exp(eps) / (1 + math.exp(eps))
    terms = [binom.pmf(k, guesses, rate) for k in range(guesses + 1)]
    steepest = 0.0
    for i in range(1, canaries + 1):
        between = sum(terms[k] for k in range(max(0, right - i), right))
        steepest = max(steepest, between / i)
    return min(1.0, sum(terms[right:]) + 2 * canaries * delta * steepest)


@settings(deadline=None)
@given(
    guesses=st.integers(1, 25),
    more=st.integers(0, 15),
    share=st.floats(0, 1),
    eps=st.floats(0, 6),
    delta=st.sampled_from([0.0, 1e-6, 1e-3]),
)
def test_the_chance_is_that_of_the_theorem(
    guesses: int, more: int, share: float, eps: float, delta: float
) -> None:
    right = round(share * guesses)
    mine = chance_of(right, guesses, guesses + more, eps, delta)
    assert mine == pytest.approx(_chance_by_hand(right, guesses, guesses + more, eps, delta), abs=1e-9)


@settings(deadline=None)
@given(guesses=st.integers(1, 300), delta=st.sampled_from([0.0, 1e-6, 1e-5]), data=st.data())
def test_one_more_right_guess_never_lowers_the_bound(guesses: int, delta: float, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, guesses - 1))
    assert epsilon_lower_bound(right, guesses, 1000, delta) <= epsilon_lower_bound(
        right + 1, guesses, 1000, delta
    )


@settings(deadline=None)
@given(guesses=st.integers(1, 300), right=st.integers(0, 300))
def test_a_larger_delta_or_confidence_never_raises_the_bound(guesses: int, right: int) -> None:
    right = min(right, guesses)
    bound = epsilon_lower_bound(right, guesses, 1000, 1e-6)
    assert epsilon_lower_bound(right, guesses, 1000, 1e-4) <= bound
    assert epsilon_lower_bound(right, guesses, 1000, 1e-6, confidence=0.999) <= bound


def test_the_bound_of_randomised_response_is_just_below_its_epsilon() -> None:
    right = round(10_000 * math.exp(2) / (1 + math.exp(2)))
    assert 1.9 < epsilon_lower_bound(right, 10_000, 10_000, 0.0) < 2.0


@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_the_bound_exceeds_a_gaussian_mechanisms_epsilon_in_at_most_5_percent_of_runs(sigma: float) -> None:
    canaries, each, delta = 2000, 60, 1e-5
    exact = gaussian_epsilon((Mechanism(sigma, 1.0, 1),), delta)
    rng = np.random.default_rng(7)
    bounds = []
    for _ in range(100):
        included = rng.random(canaries) < 0.5
        scores = rng.standard_normal(canaries) + included / sigma
        bounds.append(epsilon_lower_bound(right_guesses(scores, included, each), 2 * each, canaries, delta))
    assert np.mean(np.array(bounds) > exact) <= 0.05
    assert np.mean(bounds) > 0.3 * exact  # a bound that is always 0 would hold as well


def test_the_bound_exceeds_randomised_responses_epsilon_in_at_most_5_percent_of_runs() -> None:
    # Here the theorem is tight, so that a bound that is a little too bold shows.
    rng, rate = np.random.default_rng(8), 1 / (1 + math.exp(-1.0))
    rights = rng.binomial(400, rate, size=600)
    bold = np.mean([epsilon_lower_bound(int(right), 400, 400, 0.0) > 1.0 for right in rights])
    assert 0.01 < bold <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)


@pytest.mark.parametrize(
    ("right", "guesses", "canaries", "eps", "delta"),
    [
        (3, 2, 9, 1.0, 0.0),
        (-1, 2, 9, 1.0, 0.0),
        (1, 9, 2, 1.0, 0.0),
        (1, 2, 3, -1.0, 0.0),
        (1, 2, 3, 1.0, 2.0),
        (1, 2, 3, math.nan, 0.0),
    ],
)
def test_an_impossible_outcome_is_refused(
    right: int, guesses: int, canaries: int, eps: float, delta: float
) -> None:
    with pytest.raises(SettingRefused):
        chance_of(right, guesses, canaries, eps, delta)


def test_the_gaussian_estimate_finds_a_gaussian_mechanisms_epsilon() -> None:
    rng = np.random.default_rng(1)
    included = rng.random(200_000) < 0.5
    scores = rng.standard_normal(200_000) + included / 2.0
    exact = gaussian_epsilon((Mechanism(2.0, 1.0, 1),), 1e-5)
    assert gaussian_estimate(scores, included, 1e-5) == pytest.approx(exact, rel=0.03)


# What the probes look through


def test_the_released_sum_is_the_sum_of_clipped_gradients() -> None:
    plain = audit_settings(max_grad_norm=CLIP)
    pool, latents = phantoms(8, 0).train, start(audit_settings(), 0)
    each = [released(plain, latents, take(pool, [i]), keyed(0), 64) for i in range(3)]
    together = released(plain, latents, take(pool, range(3)), keyed(0), 64)
    assert all(np.linalg.norm(one) == pytest.approx(CLIP, rel=1e-3) for one in each)
    np.testing.assert_allclose(together, sum(each), atol=1e-5)
    assert not released(plain, latents, no_records(pool), keyed(0), 64).any()


def test_the_pairs_are_adjacent_and_open_a_physical_batch() -> None:
    pairs = adjacent_pairs(0)
    assert all(len(pair.unit.images) == 1 for pair in pairs)
    assert len(pairs[-1].records.images) == training.PHYSICAL_ROWS
    assert len(pairs[0].records.images) == 0


def test_a_canary_is_one_pixel_and_grey_adds_up_to_nothing() -> None:
    pixels = np.arange(0, 1024, 2)
    images = audit_canaries._images(pixels, keyed(0))
    flat = images.reshape(len(pixels), -1).astype(float) / 127.5 - 1
    assert (flat[np.arange(len(pixels)), pixels] == 1).all()
    flat[np.arange(len(pixels)), pixels] = 0
    assert np.abs(flat).max() < 0.004
    assert np.abs(flat.sum(axis=0)).max() < 0.004 * 6 * len(pixels) ** 0.5


def test_canaries_that_are_in_score_a_clip_higher_than_those_that_are_out() -> None:
    included, scores = audit_canaries._one_hospital(
        Design("silent", Mechanism(0.05, 1.0, 1), hospitals=1, guesses_each=1), 0, 0
    )
    inside, outside = scores[included], scores[~included]
    assert inside.mean() - outside.mean() == pytest.approx(1 / 0.05, rel=0.02)


@settings(deadline=None)
@given(st.floats(allow_nan=True, allow_infinity=True))
def test_a_check_passes_only_what_lies_within_and_never_nan(value: float) -> None:
    check = Check("x", value, low=-1.0, high=1.0)
    assert check.passed == (not math.isnan(value) and -1 <= value <= 1)
    json.dumps(check.to_dict(), allow_nan=False)


def test_gaussian_values_pass_and_other_laws_fail() -> None:
    rng = np.random.default_rng(3)
    assert all(check.passed for check in moments("x", rng.standard_normal(60_000)))
    others = [
        rng.laplace(scale=0.5**0.5, size=60_000),
        rng.standard_t(8, 60_000) * (6 / 8) ** 0.5,
        np.clip(rng.standard_normal(60_000), -3, 3),
        rng.standard_normal(60_000) + 0.05,
    ]
    for values in others:
        assert not all(check.passed for check in moments("x", values))


# The right code, and every planted fault


def test_the_right_code_moves_by_the_clip_and_no_more() -> None:
    for check in sensitivity(3):
        assert check.passed, check
        assert check.value > 0.99 or "overflows" in check.name  # the probe is as sharp as the claim


@pytest.mark.parametrize("measure", [noise, ledger], ids=["noise", "ledger"])
def test_the_right_code_passes(measure: audit_probes.Measure) -> None:
    failed = [check for check in measure(5) if not check.passed]
    assert not failed


@pytest.mark.parametrize("design", [FULL, SAMPLED], ids=["full", "sampled"])
def test_the_right_code_stays_under_its_claim_and_the_audit_is_not_blind(design: Design) -> None:
    outcome = audit(design, 5)
    assert 0.1 * design.claimed < outcome.lower_bound <= design.claimed
    assert outcome.estimate <= 1.1 * design.claimed


FAULTS = [(probe, fault) for probe in PROBES for fault in probe.faults]


@pytest.mark.parametrize(
    ("probe", "fault"), FAULTS, ids=[f"{probe.name}: {fault.name}" for probe, fault in FAULTS]
)
def test_each_planted_fault_is_caught_by_its_probe_and_gone_afterwards(probe: Probe, fault: Fault) -> None:
    before = _patched()
    row = audit_probes._run_fault(probe, fault, 2)
    assert row["caught_by"] is not None, row
    assert row["caught_by"].startswith(probe.name)
    assert _patched() == before


def _patched() -> list[object]:
    """Everything that a fault or a witness replaces."""
    classes = (Budget, Hospital, KeyedGenerator, PerSampleGradients, ReplyStore, RoundKeys)
    return [dict(vars(owner)) for owner in (training, measuring, hospital_module, *classes)]


def test_every_fault_of_the_issue_is_planted() -> None:
    planted = {probe.name: {fault.name for fault in probe.faults} for probe in PROBES}
    assert planted["sensitivity"] >= {
        "no clip",
        "clip after the sum",
        "EWC's penalty multiplied by clip factors",
        "BatchNorm in the student",
        "a Fisher without a clip",
        "counts weighted by class",
    }
    assert planted["noise"] >= {
        "half the noise",
        "a fixed key",
        "no noise",
        "noise for each physical batch",
        "no noise for an empty sample",
        "a Fisher's noise by the clip",
        "counts' noise for one cell",
    }
    assert planted["canaries"] == {"no clip", "no subsampling", "half the noise"}
    assert planted["ledger"] >= {
        "a Fisher that was not charged",
        "a measurement that was not charged",
        "a round run twice with fresh noise",
        "a charge of fewer steps",
    }


def test_nothing_shipped_knows_of_the_faults() -> None:
    for room in ("client", "common", "server"):
        for path in (ROOMS / room).rglob("*.py"):
            assert "audit_faults" not in path.read_text()
            assert "audit_ledger_faults" not in path.read_text()
            assert "audit_measurement" not in path.read_text()


# The command


def _stub(right: float = 0.0, fault_value: float = 2.0, proof: bool = True) -> Probe:
    def measure(seed: int) -> Iterator[Check]:
        yield Check("right", right, high=1.0)

    def faulty(seed: int) -> Iterator[Check]:
        yield Check("wrong", fault_value, high=1.0, proof=proof)

    return Probe("stub", "nothing", measure, (Fault("a fault", lambda: nullcontext(), faulty),))


def _audit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], probe: Probe, *arguments: str
) -> tuple[int, str]:
    monkeypatch.setattr(audit_probes, "PROBES", (probe,))
    code = cli.run(["audit", "privacy", *arguments])
    return code, capsys.readouterr().out


def test_the_command_passes_when_the_fault_is_caught(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = _audit(monkeypatch, capsys, _stub(), "--json")
    report = json.loads(out)
    assert code == 0
    assert report["passed"]
    assert report["probes"][0]["faults"] == [
        {
            "name": "a fault",
            "caught_by": "stub: wrong",
            "figures": [
                {"check": "wrong", "value": 2.0, "low": None, "high": 1.0, "kind": "proof", "passed": False}
            ],
        }
    ]
    assert set(report) >= {
        "claimed_epsilon",
        "lower_bound_binomial",
        "diagnostic_gaussian",
        "seconds",
        "targets",
    }
    assert "caught by wrong" in _audit(monkeypatch, capsys, _stub())[1]


@pytest.mark.parametrize(
    "probe", [_stub(fault_value=0.5), _stub(right=2.0), _stub(right=math.nan), _stub(proof=False)]
)
def test_the_command_fails_on_an_escape_a_false_alarm_and_what_only_a_diagnostic_sees(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], probe: Probe
) -> None:
    code, out = _audit(monkeypatch, capsys, probe, "--json")
    assert code == 1
    assert not json.loads(out)["passed"]
    code, out = _audit(monkeypatch, capsys, probe)
    assert code == 1
    assert "ESCAPES" in out or "FAILS" in out


def test_seeds_are_counted_apart(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = _audit(monkeypatch, capsys, _stub(fault_value=0.5), "--json", "--seeds", "3")
    report = json.loads(out)
    assert code == 1
    assert report["rates"] == {"seeds": 3, "false_alarms": {"stub": 0}, "misses": {"stub: a fault": 3}}
    assert [one["seed"] for one in report["reports"]] == [0, 1, 2]
    assert rates(report["reports"]) == report["rates"]


def test_a_refusal_of_the_shipped_code_counts_as_caught_but_not_for_the_right_code() -> None:
    def refusing(seed: int) -> Iterator[Check]:
        yield Check("fine", 0.0, high=1.0)
        raise SettingRefused("no")

    fault = Fault("refused", lambda: nullcontext(), refusing)
    assert audit_probes._run_fault(_stub(), fault, 0)["caught_by"] == "stub: refused, SettingRefused"
    with pytest.raises(SettingRefused):
        run_probe(Probe("stub", "", refusing, ()), 0)


def test_the_cases_cover_every_family() -> None:
    assert {case.student.split("-", 1)[1] for case in CASES.values()} == set(FAMILIES)
