"""Settings: every range is kept, JSON gives them back, and what does not fit is refused by name."""

import dataclasses
import itertools
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward.common.codec import CODECS, DIFFERENCES, DOWNLINK_CODECS, UPLINK_CODECS
from fedward.common.config import (
    AUGMENTATIONS,
    MAXIMUM_DECLARED,
    EnrolledHospital,
    LocalSettings,
    Study,
    declared_count,
)
from fedward.common.errors import SettingRefused
from fedward.common.models import STUDENTS

LOCAL: dict[str, Any] = {
    "student": "ternary-cnn",
    "channels": 1,
    "height": 28,
    "width": 28,
    "classes": ("normal", "pneumonia"),
    "task": "binary",
    "unit": "image",
    "sample_rate": 0.25,
    "local_steps": 2,
    "rounds": 60,
    "noise_multiplier": 1.1,
    "max_grad_norm": 1.0,
    "target_delta": 1e-5,
    "views": 1,
    "augmentation": "none",
    "class_prior": (0.25, 0.75),
    "ewc_lambda": 0.0,
    "distillation_alpha": 0.0,
    "distillation_temperature": 2.0,
    "metric_noise_multiplier": 0.0,
    "fisher_noise_multiplier": 0.0,
    "trained": "all",
    "widths": None,
    "bits": None,
}
STUDY: dict[str, Any] = {
    "name": "chest",
    "dataset": "pneumoniamnist",
    "local": LocalSettings(**LOCAL),
    "hospitals": (EnrolledHospital("a", 590), EnrolledHospital("b", 10)),
    "target_epsilon": 3.0,
    "learning_rate": 0.5,
    "schedule": "cosine",
    "server_learning_rate": 1.0,
    "server_momentum": 0.0,
    "averaged_rounds": 20,
    "uplink_codec": "int8",
    "downlink_codec": "fp32",
    "quorum": 2,
    "round_timeout": 60.0,
    "decision": "balanced",
    "seed": 0,
    "parent": None,
    "version": 1,
}
# Numbers: the smallest and the largest that are allowed, and whether only whole ones are.
LOCAL_RANGES = {
    "sample_rate": (1e-6, 1.0, False),
    "local_steps": (1, 1000, True),
    "rounds": (1, 100_000, True),
    "noise_multiplier": (0.0, 1e3, False),
    "max_grad_norm": (1e-6, 1e6, False),
    "target_delta": (1e-12, 1e-2, False),
    "views": (1, 64, True),
    "ewc_lambda": (0.0, 1e9, False),
    "distillation_alpha": (0.0, 1.0, False),
    "distillation_temperature": (0.1, 100.0, False),
    "metric_noise_multiplier": (0.0, 1e3, False),
    "fisher_noise_multiplier": (0.0, 1e3, False),
    "height": (16, 512, True),
    "width": (16, 512, True),
}
STUDY_RANGES = {
    "target_epsilon": (1e-3, 1e3, False),
    "learning_rate": (1e-9, 1e4, False),
    "server_learning_rate": (1e-9, 1e4, False),
    "server_momentum": (0.0, 0.9999, False),
    "averaged_rounds": (1, 100_000, True),
    "quorum": (1, 2, True),
    "round_timeout": (0.1, 1e6, False),
    "version": (1, 2**31, True),
    "seed": (-(2**63), 2**63, True),
}
NO_NUMBERS = [math.nan, math.inf, -math.inf, 10**400, -(10**400), True, "1", [1], {}]
BAD_COUNTS: list[Any] = [0, -10, 2_000_000, 1.5, True, None, "10"]
CHOICES: dict[str, list[Any]] = {
    "student": ["ternary", "", None, 3, ["ternary-cnn"]],
    "task": ["Binary", "regression", None],
    "unit": ["patient", "", None],
    "trained": ["body", "", None],
    "augmentation": ["flip", "", None, 1],
    "channels": [0, 2, 4, -1, 10**12, 1.0, "1", None, True],
    "classes": [(), ("one",), "ab", None, 2, ("a", "a"), ("a", ""), ("a", 1), ("a", "b\n"), ("a", "b", "c")],
    "widths": [(), 0, "8, 8, 8", [8, 8, 8], (8, 8), (32, 64, 72), (32, 64, 4), (0, 64, 64), (32, 64, 8.0)],
    "bits": [(8, 8, 8, 8)],  # of a ternary student; those of an int8 one: test_models
    "class_prior": [(), (1.0,), (0.5, 0.6), (0.0, 1.0), (-0.5, 1.5), (math.nan, 0.5), ("a", "b"), 0.5, "ab"],
}
STUDY_CHOICES: dict[str, list[Any]] = {
    "name": ["", None, 3, "a\nb", "x" * 201],
    "dataset": ["", None, "\x00"],
    "schedule": ["linear", "", None],
    "decision": ["best", None],
    "uplink_codec": ["int4", "", None, 8, *DIFFERENCES],
    "downlink_codec": ["int4", "", None, 8, *sorted(set(CODECS) - set(DOWNLINK_CODECS))],
    "parent": ["", 5, "x" * 1000],
    "local": [None, {}, LOCAL],
    "hospitals": [
        (),
        None,
        (EnrolledHospital("a", 10), EnrolledHospital("a", 20)),
        (EnrolledHospital("", 10), EnrolledHospital("b", 10)),
        *[(EnrolledHospital("a", count), EnrolledHospital("b", 10)) for count in BAD_COUNTS],
    ],
}


def bad_numbers(ranges: dict[str, tuple[float, float, bool]]) -> list[tuple[str, Any]]:
    cases: list[tuple[str, Any]] = []
    for name, (low, high, whole) in ranges.items():
        around = [low - 1, high + 1] if whole else [math.nextafter(low, -1), math.nextafter(high, math.inf)]
        cases += [(name, value) for value in [*around, *NO_NUMBERS]]
        cases += [(name, low + 0.5)] if whole else []
    return cases


def bad_choices(choices: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    return [(name, value) for name, values in choices.items() for value in values]


def local(**changes: Any) -> LocalSettings:
    return LocalSettings(**(LOCAL | changes))


def study(**changes: Any) -> Study:
    return Study(**(STUDY | changes))


def name_of(case: Any) -> str:
    return repr(case)[:30]


@pytest.mark.parametrize(("name", "value"), [*bad_numbers(LOCAL_RANGES), *bad_choices(CHOICES)], ids=name_of)
def test_a_local_setting_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(SettingRefused):
        local(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [*bad_numbers(STUDY_RANGES), *bad_choices(STUDY_CHOICES)], ids=name_of
)
def test_a_study_setting_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(SettingRefused):
        study(**{name: value})


@pytest.mark.parametrize("name", [name for name in LOCAL if name not in ("class_prior", "widths", "bits")])
def test_no_local_setting_may_be_missing(name: str) -> None:
    with pytest.raises(SettingRefused):
        local(**{name: None})


@pytest.mark.parametrize("name", [name for name in STUDY if name not in ("target_epsilon", "seed", "parent")])
def test_no_study_setting_may_be_missing(name: str) -> None:
    with pytest.raises(SettingRefused):
        study(**{name: None})


def test_every_setting_is_checked_by_some_case_above() -> None:
    assert set(LOCAL) == {*LOCAL_RANGES, *CHOICES} == {f.name for f in dataclasses.fields(LocalSettings)}
    assert set(STUDY) == {*STUDY_RANGES, *STUDY_CHOICES} == {f.name for f in dataclasses.fields(Study)}


@pytest.mark.parametrize("name", ["metric_noise_multiplier", "fisher_noise_multiplier"])
def test_a_measurement_that_is_off_leaves_no_trace_in_a_studys_json(name: str) -> None:
    """Digests of studies without it are those of before it existed."""
    off, on = study(), study(local=local(**{name: 5.0}))
    assert name not in off.to_dict()["local"]
    assert on.to_dict()["local"] == {**off.to_dict()["local"], name: 5.0}
    for one in (off, on):
        assert Study.from_dict(one.to_dict()) == one
    assert (off.local.measures, on.local.measures) == (False, True)


@pytest.mark.parametrize("name", ["metric_noise_multiplier", "fisher_noise_multiplier"])
def test_a_study_without_noise_measures_nothing(name: str) -> None:
    with pytest.raises(SettingRefused, match="train with noise too"):
        local(noise_multiplier=0.0, **{name: 5.0})


@pytest.mark.parametrize("name", LOCAL_RANGES)
def test_the_ends_of_every_local_range_are_allowed(name: str) -> None:
    low, high, _ = LOCAL_RANGES[name]
    assert getattr(local(**{name: low}), name) == low
    assert getattr(local(**{name: high}), name) == high


@pytest.mark.parametrize("name", STUDY_RANGES)
def test_the_ends_of_every_study_range_are_allowed(name: str) -> None:
    low, high, _ = STUDY_RANGES[name]
    assert getattr(study(**{name: low}), name) == low
    assert getattr(study(**{name: high}), name) == high


def test_noise_is_zero_exactly_without_a_target_epsilon() -> None:
    assert study(target_epsilon=None, local=local(noise_multiplier=0.0)).target_epsilon is None
    for epsilon, noise in ((3.0, 0.0), (None, 1.0)):
        with pytest.raises(SettingRefused, match="noise_multiplier"):
            study(target_epsilon=epsilon, local=local(noise_multiplier=noise))


def test_a_prior_of_labels_need_not_sum_to_one_and_one_of_classes_must() -> None:
    assert local(task="multi-label", class_prior=(0.9, 0.9)).class_prior == (0.9, 0.9)
    with pytest.raises(SettingRefused, match="sum to 1"):
        local(class_prior=(0.9, 0.9))


@pytest.mark.parametrize(("task", "classes"), [("binary", 3), ("multi-class", 2)])
def test_a_task_has_its_number_of_classes(task: str, classes: int) -> None:
    with pytest.raises(SettingRefused, match="task"):
        local(task=task, classes=tuple("abc"[:classes]), class_prior=None)


def test_refusals_name_the_setting_the_range_and_what_was_given() -> None:
    with pytest.raises(SettingRefused, match=r"views must be a whole number from 1 to 64, not 65\."):
        local(views=65)
    with pytest.raises(SettingRefused, match=r"schedule must be one of constant, cosine, not 'linear'\."):
        study(schedule="linear")


LOCALS = st.builds(
    local,
    student=st.sampled_from(STUDENTS),
    augmentation=st.sampled_from(AUGMENTATIONS),
    sample_rate=st.floats(1e-6, 1.0),
    noise_multiplier=st.floats(0.1, 1e3),
    max_grad_norm=st.floats(1e-6, 1e6),
    rounds=st.integers(1, 100_000),
    class_prior=st.one_of(st.none(), st.floats(0.01, 0.99).map(lambda p: (p, 1 - p))),
    classes=st.lists(st.text("aé漢 b", min_size=1, max_size=5), min_size=2, max_size=2, unique=True).map(
        tuple
    ),
)
STUDIES = st.builds(
    study,
    local=LOCALS,
    name=st.text("aé漢-", min_size=1, max_size=9),
    seed=st.one_of(st.none(), st.integers(-(2**63), 2**63)),
    parent=st.one_of(st.none(), st.just("f" * 64)),
    uplink_codec=st.sampled_from(UPLINK_CODECS),
    learning_rate=st.floats(1e-9, 1e4),
)


@settings(max_examples=30, deadline=None)
@given(LOCALS)
def test_local_settings_come_back_from_json(value: LocalSettings) -> None:
    back = LocalSettings.from_dict(json.loads(json.dumps(value.to_dict())))
    assert back == value
    assert hash(back) == hash(value)


@settings(max_examples=30, deadline=None)
@given(STUDIES)
def test_a_study_comes_back_from_json(value: Study) -> None:
    back = Study.from_dict(json.loads(json.dumps(value.to_dict())))
    assert back == value
    assert isinstance(back.local, LocalSettings)
    assert all(isinstance(hospital, EnrolledHospital) for hospital in back.hospitals)


def test_widths_and_bits_come_back_and_nothing_is_written_where_there_are_none() -> None:
    pruned = local(widths=(16, 64, 8))
    assert LocalSettings.from_dict(json.loads(json.dumps(pruned.to_dict()))) == pruned
    assert pruned.spec.widths == (16, 64, 8)
    mixed = local(student="int8-cnn", bits=(8, 4, 2, 8))
    assert LocalSettings.from_dict(json.loads(json.dumps(mixed.to_dict()))) == mixed
    assert mixed.spec.precisions == ("int8", "int4", "ternary", "int8")
    assert not {"widths", "bits"} & set(local().to_dict())


def test_an_enrolled_hospital_comes_back_from_json() -> None:
    value = EnrolledHospital("north", 590)
    assert EnrolledHospital.from_dict(json.loads(json.dumps(value.to_dict()))) == value


@pytest.mark.parametrize("kind", [LocalSettings, Study, EnrolledHospital])
@pytest.mark.parametrize("values", [None, 3, "text", [], [["a", 1]], {}])
def test_what_is_no_object_of_settings_is_refused(kind: Any, values: Any) -> None:
    with pytest.raises(SettingRefused):
        kind.from_dict(values)


@pytest.mark.parametrize("value", [local(), study(), EnrolledHospital("a", 10)])
def test_unknown_and_missing_keys_are_refused_by_name(value: Any) -> None:
    fields = value.to_dict()
    for name in fields:
        lacking = {key: item for key, item in fields.items() if key != name}
        with pytest.raises(
            SettingRefused,
            match="hospitals" if name == "hospitals" else rf"missing \['{name}'\]|LocalSettings",
        ):
            type(value).from_dict(lacking)
    with pytest.raises(SettingRefused, match=r"unknown \['sigma'\]"):
        type(value).from_dict(fields | {"sigma": 0.0})


def test_a_studys_inner_settings_are_checked_too() -> None:
    fields = study().to_dict()
    with pytest.raises(SettingRefused, match="sample_rate"):
        Study.from_dict(fields | {"local": fields["local"] | {"sample_rate": 2.0}})
    for hospitals in (
        [None],
        [{"name": "a"}],
        [{"name": "a", "num_examples": "10"}],
        [{"name": [], "num_examples": 1}],
    ):
        with pytest.raises(SettingRefused):
            Study.from_dict(fields | {"hospitals": hospitals})


def test_settings_cannot_be_changed_after_they_were_checked() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        local().noise_multiplier = 0.0  # type: ignore[misc]


def test_a_constant_schedule_is_constant() -> None:
    plan = study(schedule="constant", learning_rate=0.3)
    assert {plan.learning_rate_at(number) for number in (1, 30, 60)} == {0.3}


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 500), st.floats(1e-3, 10.0))
def test_the_cosine_schedule_falls_from_the_rate_towards_a_tenth(rounds: int, rate: float) -> None:
    plan = study(learning_rate=rate, local=local(rounds=rounds))
    rates = [plan.learning_rate_at(number) for number in range(1, rounds + 1)]
    assert rates[0] == pytest.approx(rate)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates))
    assert rates[-1] > 0.1 * rate
    assert plan.learning_rate_at(rounds + 1) == pytest.approx(0.1 * rate)
    assert rates[rounds // 2] == pytest.approx(0.55 * rate) or rounds % 2


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2 * MAXIMUM_DECLARED))
def test_a_declared_count_is_a_public_multiple_of_ten_not_below_the_count(count: int) -> None:
    declared = declared_count(count)
    assert declared >= 10
    assert declared % 10 == 0
    assert declared <= MAXIMUM_DECLARED
    if count <= MAXIMUM_DECLARED:
        assert count <= declared
        assert declared - count < 10 or count == 0
    assert declared_count(declared) == declared
    assert declared_count(count + 1) >= declared


@pytest.mark.parametrize(
    ("count", "declared"),
    [
        (0, 10),
        (1, 10),
        (3, 10),
        (10, 10),
        (11, 20),
        (588, 590),
        (10**6, 10**6),
        (10**6 + 1, 10**6),
        (10**12, 10**6),
    ],
)
def test_declared_counts_worked_out_by_hand(count: int, declared: int) -> None:
    assert declared_count(count) == declared


@pytest.mark.parametrize("codec", sorted(set(CODECS) - set(DOWNLINK_CODECS)))
def test_a_study_without_noise_does_not_round_at_it(codec: str) -> None:
    assert study(uplink_codec=codec).uplink_codec == codec
    plain = local(noise_multiplier=0.0)
    with pytest.raises(SettingRefused, match="int8 or fp32"):
        study(uplink_codec=codec, local=plain, target_epsilon=None)
