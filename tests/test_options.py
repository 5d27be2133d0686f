"""From options to a study: what is planned, and from what."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward.common.config import Study
from fedward.common.errors import Refusal, SettingRefused, UnknownName
from fedward.common.measurement import measurements
from fedward.common.mechanisms import Mechanism
from fedward.common.privacy import epsilon
from fedward.server import aggregation, planning
from fedward.server.planning import planned_learning_rate
from fedward.simulations import options as module
from fedward.simulations.options import Options, plan_study
from fedward.simulations.partitions import make_hospitals
from fedward.simulations.phantoms import make_phantoms

DATASET = make_phantoms(size=16, counts=(60, 20, 20), imbalance=3.0)
QUICK = Options(rounds=2, hospitals=3)


def plan(**changes: object) -> Study:
    options = dataclasses.replace(QUICK, **changes)  # type: ignore[arg-type]
    hospitals = make_hospitals(DATASET.train, options.partition, options.hospitals, options.seed)
    reference = None if options.reference == "none" else DATASET.val
    return plan_study(options, DATASET, hospitals, reference, None)


def test_the_noise_is_the_least_that_keeps_the_whole_study_in_its_budget() -> None:
    study = plan(epsilon=2.0, local_steps=3)
    local = study.local
    assert epsilon([Mechanism(local.noise_multiplier, 0.25, 6)], 1e-5) <= 2.0
    assert epsilon([Mechanism(local.noise_multiplier * 0.998, 0.25, 6)], 1e-5) > 2.0


@pytest.mark.parametrize("asked", [{"private_metrics": 8.0}, {"private_metrics": 8.0, "private_fisher": 6.0}])
def test_the_noise_is_planned_so_that_the_measurement_fits_beside_the_rounds(asked: dict[str, float]) -> None:
    plain, study = plan(), plan(**asked)
    local = study.local
    rounds = Mechanism(local.noise_multiplier, local.sample_rate, local.local_steps * local.rounds)
    whole = [rounds, *measurements(local).values()]
    assert len(whole) == 1 + len(asked)
    assert 0.98 * 3.0 < epsilon(whole, local.target_delta) <= 3.0
    assert local.noise_multiplier > plain.local.noise_multiplier
    assert study.to_dict()["local"]["metric_noise_multiplier"] == 8.0


@pytest.mark.parametrize("flag", ["private_metrics", "private_fisher"])
def test_a_measurement_needs_a_budget_and_one_that_holds_it(flag: str) -> None:
    with pytest.raises(SettingRefused, match="leave out --epsilon none"):
        plan(epsilon=None, **{flag: 8.0})
    with pytest.raises(SettingRefused, match="is spent already"):
        plan(**{flag: 0.5})
    with pytest.raises(SettingRefused):
        plan(**{flag: -1.0})


def test_the_learning_rate_is_planned_from_the_planned_noise() -> None:
    for changes in ({"epsilon": 3.0}, {"epsilon": 0.5}, {"epsilon": 3.0, "hospitals": 6}):
        study = plan(**changes)
        assert study.learning_rate == planned_learning_rate(study.local, study.hospitals)
        assert study.local.noise_multiplier != 1.0
        noise = study.local.noise_multiplier * math.sqrt(len(study.hospitals))
        total = sum(site.num_examples for site in study.hospitals)
        assert study.learning_rate * noise / (0.25 * total) == pytest.approx(0.014)
    assert plan(epsilon=None).learning_rate == 2.0
    assert plan(learning_rate=0.7).learning_rate == 0.7


def test_the_prior_is_the_references_and_never_the_hospitals() -> None:
    expected = np.bincount(DATASET.val.labels) / 20
    assert plan().local.class_prior == pytest.approx(tuple(expected))
    assert plan(prior="none").local.class_prior is None
    assert plan(reference="none").local.class_prior is None


def test_only_declared_counts_enter_the_study() -> None:
    study = plan(hospitals=7)  # 60 images: 9, 9, 9, 9, 8, 8, 8
    assert [site.num_examples for site in study.hospitals] == [10] * 7
    assert [site.name for site in study.hospitals][::6] == ["hospital-01", "hospital-07"]


@pytest.mark.parametrize(
    ("hospitals", "quorum", "expected"), [(3, None, 2), (4, None, 2), (1, None, 1), (3, 3, 3)]
)
def test_half_of_the_hospitals_are_a_quorum_unless_one_is_named(
    hospitals: int, quorum: int | None, expected: int
) -> None:
    assert plan(epsilon=None, hospitals=hospitals, quorum=quorum).quorum == expected


def test_a_teacher_that_is_not_there_weighs_nothing() -> None:
    assert plan(epsilon=None, distillation_alpha=0.7).local.distillation_alpha == 0.0
    assert plan(epsilon=None, teacher="reference", distillation_alpha=0.7).local.distillation_alpha == 0.7


def test_the_noise_that_is_refused_is_what_the_coordinators_sum_would_refuse() -> None:
    assert planning._LARGEST_STEP == aggregation._MAXIMUM_VALUE
    sigma = plan(learning_rate=1.0).local.noise_multiplier
    limit = 512 / 4 / (sigma / (0.25 * 20))
    assert plan(learning_rate=0.999 * limit).learning_rate
    with pytest.raises(SettingRefused, match="noise alone moves each weight by 128"):
        plan(learning_rate=1.001 * limit)


def test_the_more_weights_a_student_has_the_less_noise_passes() -> None:
    sigma = plan(learning_rate=1.0).local.noise_multiplier
    at_four = 512 / 4 / (sigma / (0.25 * 20))
    assert plan(student="fp32-vit-l", learning_rate=0.75 * at_four)
    with pytest.raises(SettingRefused, match="noise alone"):
        plan(student="fp32-vit-l", learning_rate=0.85 * at_four)  # 5.04 deviations


def test_a_bad_setting_is_refused_before_the_noise_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "noise_multiplier", lambda *_: pytest.fail("searched"))
    for changes in (
        {"learning_rate": -1.0}, {"server_momentum": 2.0}, {"round_timeout": 0.0}, {"averaged_rounds": 0},
        {"rounds": 0}, {"max_grad_norm": math.nan}, {"delta": 0.5}, {"seed": 2**64},
    ):  # fmt: skip
        with pytest.raises(SettingRefused):
            plan(**changes)


NAMED = (
    "student",
    "engine",
    "teacher",
    "prior",
    "decision",
    "schedule",
    "augmentation",
    "uplink",
    "downlink",
)


@pytest.mark.parametrize("name", NAMED)
def test_a_name_that_does_not_exist_is_told_with_those_that_do(name: str) -> None:
    with pytest.raises(UnknownName, match=r"There is no .*'nonsense'; choose one of \w+"):
        Options(**{name: "nonsense"})  # type: ignore[arg-type]


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "hospitals": st.integers(),
            "epsilon": st.floats(),
            "partition": st.text(max_size=12),
            "student": st.text(max_size=9),
            "seed": st.integers(),
            "quorum": st.integers(),
            "views": st.integers(),
            "ewc_lambda": st.floats(),
            "dataset": st.text(max_size=5) | st.just("\udcff"),
            "reference": st.sampled_from(["none", "val"]),
            "decision": st.sampled_from(["balanced", "calibrated"]),
        },
    )
)
@settings(max_examples=200, deadline=None)
def test_whatever_is_asked_for_is_taken_or_refused_by_name(asked: dict[str, object]) -> None:
    try:
        options = Options(**asked)  # type: ignore[arg-type]
    except Refusal:
        return
    assert Options(**options.to_dict()) == options


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"delta": 0.5}, "--delta: target_delta must be"),
        ({"max_grad_norm": 1e9}, "--max-grad-norm: max_grad_norm must be"),
        ({"sample_rate": 1.5}, "--sample-rate: sample_rate must be"),
        ({"local_steps": 10**6}, "--local-steps: local_steps must be"),
        ({"averaged_rounds": 0}, "--averaged-rounds: averaged_rounds must be"),
        ({"private_metrics": 1e9}, "--private-metrics: metric_noise_multiplier must be"),
        ({"private_fisher": 1e9}, "--private-fisher: fisher_noise_multiplier must be"),
    ],
)
def test_a_refusal_names_the_flag_that_was_typed_and_the_setting(change: dict[str, float], said: str) -> None:
    with pytest.raises(SettingRefused) as refused:
        plan(**change)
    assert str(refused.value).startswith(said)


def test_a_refusal_of_no_flags_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise SettingRefused("Two hospitals of the study have the same name; give each its own.")

    monkeypatch.setattr(module, "local_settings", refuse)
    with pytest.raises(SettingRefused, match=r"^Two hospitals"):
        plan()


def test_where_there_is_noise_updates_take_three_bits_and_models_come_as_differences_untold() -> None:
    known = {epsilon: plan(epsilon=epsilon) for epsilon in (1.0, None)}
    travels = {key: (study.uplink_codec, study.downlink_codec) for key, study in known.items()}
    assert travels == {1.0: ("coded3", "diff3"), None: ("int8", "int8")}
    said = plan(uplink="fp32", downlink="diff2")
    assert (said.uplink_codec, said.downlink_codec) == ("fp32", "diff2")
