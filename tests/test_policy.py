"""A site's rules: each binds at its limit, names itself, and a file with a slip in it allows nothing."""

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward.client.egress_fields import ENROL, TRAIN
from fedward.client.hours import DAYS, Hours
from fedward.client.policy import CONSENTABLE, Policy, settings_digest
from fedward.client.policy_file import POLICY_FILE, read_policy
from fedward.common.config import LocalSettings
from fedward.common.errors import ApprovalMissing, PolicyRefused, RequestRefused
from fedward.common.measure_messages import MeasureRequest
from fedward.common.mechanisms import Mechanism
from fedward.common.messages import LATENTS, TrainRequest
from fedward.common.privacy import epsilon

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)  # a Wednesday
Ask = Callable[..., TrainRequest]


@pytest.fixture(scope="module")
def ask(make_local: Callable[..., LocalSettings]) -> Ask:
    """ask(study=..., codec=..., **settings) -> a request: fp32-cnn, sigma 4, rate .25, 1 step, 3 rounds."""

    def make(study: str = "chest", codec: tuple[str, str] = ("fp32", "int8"), **changes: Any) -> TrainRequest:
        vectors = {LATENTS: np.zeros(3, np.uint8)}
        return TrainRequest(study, 1, make_local(**changes), 0.5, codec, vectors)

    return make


def allowed(policy: Policy, request: TrainRequest | MeasureRequest, **known: Any) -> bool:
    try:
        policy.check(request, known.pop("now", NOON), **known)
    except PolicyRefused:
        return False
    return True


def test_without_rules_everything_is_allowed(ask: Ask) -> None:
    for request in (ask(), ask(noise_multiplier=0.0), ask(noise_multiplier=1e3, rounds=100_000)):
        Policy().check(request, NOON, open_studies=[str(index) for index in range(100)])
    Policy().require_bundle("x")
    Policy().require_fields(ENROL)


@pytest.mark.parametrize(
    ("rule", "limit", "field", "inside", "outside"),
    [
        ("min_noise_multiplier", 2.0, "noise_multiplier", 2.0, 1.999),
        ("max_noise_multiplier", 8.0, "noise_multiplier", 8.0, 8.001),
        ("max_delta", 1e-5, "target_delta", 1e-5, 1.1e-5),
        ("max_rounds", 3, "rounds", 3, 4),
        ("max_local_steps", 2, "local_steps", 2, 3),
        ("students", ("fp32-cnn", "int8-cnn"), "student", "int8-cnn", "ternary-cnn"),
    ],
)
def test_a_limit_binds_where_it_is_set_and_names_itself(
    ask: Ask, rule: str, limit: Any, field: str, inside: Any, outside: Any
) -> None:
    policy = Policy(**{rule: limit})
    policy.check(ask(**{field: inside}), NOON)
    with pytest.raises(PolicyRefused, match=f"rule {rule} .*asks for"):
        policy.check(ask(**{field: outside}), NOON)
    assert issubclass(PolicyRefused, RequestRefused)  # so that its sentence may leave


def test_both_directions_codecs_must_be_allowed(ask: Ask) -> None:
    policy = Policy(codecs=("int8",))
    policy.check(ask(codec=("int8", "int8")), NOON)
    for codec in (("fp32", "int8"), ("int8", "fp32")):
        with pytest.raises(PolicyRefused, match="rule codecs allows int8"):
            policy.check(ask(codec=codec), NOON)


@settings(max_examples=8, deadline=None)
@given(st.floats(0.5, 20), st.integers(1, 5), st.integers(1, 50), st.floats(0.05, 5))
def test_epsilon_is_that_of_the_accountant_over_a_round_and_over_the_study(
    ask: Ask, sigma: float, steps: int, rounds: int, limit: float
) -> None:
    request = ask(noise_multiplier=sigma, local_steps=steps, rounds=rounds)
    for rule, count in (("max_round_epsilon", steps), ("max_study_epsilon", steps * rounds)):
        cost = epsilon([Mechanism(sigma, 0.25, count)], 1e-5)
        assert allowed(Policy(**{rule: limit}), request) == (cost <= limit)


def test_a_measurement_behind_the_rounds_is_held_to_the_same_rules(ask: Ask) -> None:
    measuring = {"metric_noise_multiplier": 3.0, "fisher_noise_multiplier": 5.0}
    question = MeasureRequest("chest", ask(**measuring).settings, np.zeros(3, np.uint8))
    together = epsilon([Mechanism(3.0, 1.0, 1), Mechanism(5.0, 1.0, 1)], 1e-5)
    with_rounds = epsilon([Mechanism(4.0, 0.25, 3), Mechanism(3.0, 1.0, 1), Mechanism(5.0, 1.0, 1)], 1e-5)
    for request in (ask(**measuring), question):
        assert allowed(Policy(min_noise_multiplier=3.0), request)
        assert not allowed(Policy(min_noise_multiplier=3.01), request)
        assert not allowed(Policy(max_round_epsilon=0.99 * together), request)
        assert allowed(Policy(max_study_epsilon=1.01 * with_rounds), request)
        assert not allowed(Policy(max_study_epsilon=0.99 * with_rounds), request)
        assert not allowed(Policy(approval=True), request)
        assert allowed(Policy(approval=True), request, approved={"chest": settings_digest(ask(**measuring))})


def test_what_one_round_may_cost_binds_beside_the_study(ask: Ask) -> None:
    with pytest.raises(PolicyRefused, match=r"rule max_round_epsilon is 0.1 at delta 1e-05; one round"):
        Policy(max_round_epsilon=0.1, max_study_epsilon=100.0).check(ask(), NOON)
    with pytest.raises(PolicyRefused, match=r"rule max_study_epsilon is 0.3 .*all of it"):
        Policy(max_round_epsilon=0.3, max_study_epsilon=0.3).check(ask(), NOON)


@pytest.mark.parametrize("rule", ["max_round_epsilon", "max_study_epsilon", "min_noise_multiplier"])
def test_training_without_noise_passes_no_rule_of_privacy(ask: Ask, rule: str) -> None:
    with pytest.raises(PolicyRefused, match=rule):
        Policy(**{rule: 0.001 if rule.startswith("min") else 1000.0}).check(ask(noise_multiplier=0.0), NOON)


RULES: dict[str, Any] = {
    "max_round_epsilon": st.floats(0.01, 2),
    "max_study_epsilon": st.floats(0.01, 2),
    "min_noise_multiplier": st.floats(0.1, 5),
    "max_noise_multiplier": st.floats(5, 50),
    "max_rounds": st.integers(1, 10),
    "max_studies": st.integers(1, 3),
    "students": st.sampled_from([("fp32-cnn",), ("fp32-cnn", "int8-cnn")]),
    "codecs": st.sampled_from([("int8",), ("int8", "fp32")]),
    "approval": st.booleans(),
}


@settings(max_examples=40, deadline=None)
@given(st.fixed_dictionaries({}, optional=RULES), st.floats(0.2, 60), st.integers(1, 12), st.integers(0, 4))
def test_one_more_rule_never_allows_more(
    ask: Ask, rules: dict[str, Any], sigma: float, rounds: int, going: int
) -> None:
    request, known = ask(noise_multiplier=sigma, rounds=rounds), {"open_studies": [*"abcd"][:going]}
    each = [allowed(Policy(**{rule: value}), request, **known) for rule, value in rules.items()]
    assert allowed(Policy(**rules), request, **known) == all(each)


def test_a_study_that_goes_on_does_not_count_against_itself(ask: Ask) -> None:
    policy = Policy(max_studies=2)
    policy.check(ask("c"), NOON, open_studies=["a"])
    policy.check(ask("a"), NOON, open_studies=["a", "b"])
    with pytest.raises(PolicyRefused, match="rule max_studies is 2"):
        policy.check(ask("c"), NOON, open_studies=["a", "b"])


def test_a_new_study_waits_for_approval_with_these_very_settings(ask: Ask) -> None:
    policy, request = Policy(approval=True), ask()
    with pytest.raises(ApprovalMissing, match="wait"):
        policy.check(request, NOON)
    known = {"chest": settings_digest(request)}
    policy.check(request, NOON, approved=known)
    later = dataclasses.replace(request, server_round=3, learning_rate=0.1, vectors={}, anchor="")
    policy.check(later, NOON, approved=known)
    for other in (ask(rounds=4), ask(codec=("fp32", "fp32"))):
        with pytest.raises(ApprovalMissing, match="other settings"):
            policy.check(other, NOON, approved=known)
    with pytest.raises(ApprovalMissing):
        policy.check(ask("skin"), NOON, approved=known)


def test_bundles_and_fields_that_were_not_agreed_to_are_refused(ask: Ask) -> None:
    policy = Policy(bundles=("a" * 64,))
    policy.require_bundle("a" * 64)
    with pytest.raises(PolicyRefused, match="rule bundles does not list"):
        policy.require_bundle("b" * 64)
    trains = tuple(name for name in CONSENTABLE if name.startswith("reply."))
    Policy(consented_fields=trains).check(ask(), NOON)
    with pytest.raises(PolicyRefused, match=r"rule consented_fields does not let profile\.name"):
        Policy(consented_fields=trains).require_fields(ENROL)
    with pytest.raises(PolicyRefused, match=r"reply\.num_examples"):
        Policy(consented_fields=trains[:1]).check(ask(), NOON)
    assert trains
    Policy(consented_fields=CONSENTABLE).require_fields(TRAIN)


# Hours


def minutes_of_week(text: str) -> set[int]:
    window, monday = Hours.parse(text), datetime(2026, 3, 2)
    return {minute for minute in range(0, 7 * 1440, 5) if window.hold(monday + timedelta(minutes=minute))}


def span(day: int, start: int, end: int) -> set[int]:
    return {(day * 1440 + minute) % (7 * 1440) for minute in range(start * 60, end * 60, 5)}


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("wed 08:00-10:00", span(2, 8, 10)),
        ("sun 22:00-06:00", span(6, 22, 30)),
        ("sat,tue 00:00-24:00", span(5, 0, 24) | span(1, 0, 24)),
        ("sat-mon 20:00-24:00", span(5, 20, 24) | span(6, 20, 24) | span(0, 20, 24)),
        ("23:00-01:00", set().union(*(span(day, 23, 25) for day in range(7)))),
        ("00:00-24:00", set(range(0, 7 * 1440, 5))),
    ],
)
def test_hours_hold_exactly_what_they_say(text: str, held: set[int]) -> None:
    assert minutes_of_week(text) == held


@given(st.sampled_from(DAYS), st.integers(0, 1438), st.integers(1, 1439))
def test_a_window_and_its_opposite_fill_the_day_once(day: str, start: int, end: int) -> None:
    if start >= end:
        return
    spelled = [f"{minute // 60:02}:{minute % 60:02}" for minute in (start, end)]
    inside = Hours.parse(f"{day} {spelled[0]}-{spelled[1]}")
    outside = Hours.parse(f"{day} {spelled[1]}-{spelled[0]}")
    begins = datetime(2026, 3, 2 + DAYS.index(day)) + timedelta(minutes=start)
    for minute in (0, end - start - 1, end - start, 1439):
        moment = begins + timedelta(minutes=minute)
        assert inside.hold(moment) == (minute < end - start)
        assert outside.hold(moment) == (minute >= end - start)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mon",
        "mon 8:00-9:00",
        "mon 08:00-08:00",
        "mon 24:00-08:00",
        "mon 25:00-08:00",
        "mon 08:00-24:01",
        "mon 08:60-09:00",
        "Mon 08:00-09:00",
        "mon-tue,wed 08:00-09:00",
        "mon 08:00-09:00 ",
        "mon  08:00-09:00",
    ],
)
def test_hours_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(PolicyRefused, match="hours"):
        Hours.parse(text)


def test_hours_go_by_the_policys_own_clock(ask: Ask) -> None:
    noon_only = (Hours.parse("12:00-13:00"),)
    Policy(hours=noon_only, time_zone="UTC").check(ask(), NOON)
    with pytest.raises(PolicyRefused, match=r"rule hours is 12:00-13:00 \(Asia/Tokyo\): ask again then"):
        Policy(hours=noon_only, time_zone="Asia/Tokyo").check(ask(), NOON)
    Policy(hours=noon_only, time_zone="Asia/Tokyo").check(ask(), NOON - timedelta(hours=9))
    local = NOON.astimezone()
    Policy(hours=(Hours.parse(f"{local:%H}:00-{local:%H}:59"),)).check(ask(), NOON)
    with pytest.raises(ValueError, match="time zone"):
        Policy().check(ask(), datetime(2026, 3, 4))


# The file


def written(folder: Path, text: str) -> Policy:
    (folder / POLICY_FILE).write_text(text)
    return read_policy(folder)


def test_a_policy_is_read(tmp_path: Path) -> None:
    text = """
    max_round_epsilon = 1   # a whole number is a number
    max_study_epsilon = 3.5
    max_delta = 1e-5
    min_noise_multiplier = 0.8
    max_noise_multiplier = 100.0
    max_rounds = 60
    max_local_steps = 5
    max_studies = 2
    students = ["ternary-cnn"]
    codecs = ["int8", "fp32"]
    hours = ["mon-fri 20:00-06:00", "sat,sun 00:00-24:00"]
    time_zone = "Europe/Berlin"
    approval = true
    bundles = ["%s"]
    consented_fields = ["reply.hospital", "reply.num_examples"]
    """
    policy = written(tmp_path, text % ("a" * 64))
    assert dataclasses.asdict(policy) | {"hours": None} == {
        "max_round_epsilon": 1.0,
        "max_study_epsilon": 3.5,
        "max_delta": 1e-5,
        "min_noise_multiplier": 0.8,
        "max_noise_multiplier": 100.0,
        "max_rounds": 60,
        "max_local_steps": 5,
        "max_studies": 2,
        "students": ("ternary-cnn",),
        "codecs": ("int8", "fp32"),
        "hours": None,
        "time_zone": "Europe/Berlin",
        "approval": True,
        "bundles": ("a" * 64,),
        "consented_fields": ("reply.hospital", "reply.num_examples"),
    }
    assert [window.text for window in policy.hours or ()] == ["mon-fri 20:00-06:00", "sat,sun 00:00-24:00"]


def test_no_file_and_an_empty_one_forbid_nothing(tmp_path: Path) -> None:
    assert read_policy(tmp_path) == written(tmp_path, "# nothing yet") == Policy()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_epsilon_round = 1", "unknown key 'max_epsilon_round': there are max_round_epsilon"),
        ("zzz = 1", "unknown key 'zzz': there are max_round_epsilon"),
        ("[privacy]\nmax_rounds = 3", "unknown key 'privacy'"),
        ("max_rounds = 3.0", "max_rounds must be a whole number"),
        ("max_rounds = true", "max_rounds must be a whole number"),
        ("max_study_epsilon = '3'", "max_study_epsilon must be a number"),
        ("max_study_epsilon = false", "max_study_epsilon must be a number"),
        ("max_study_epsilon = nan", "max_study_epsilon must be from"),
        ("max_study_epsilon = inf", "max_study_epsilon must be from"),
        ("max_study_epsilon = 0", "max_study_epsilon must be from"),
        ("max_rounds = 0", "max_rounds must be from"),
        ("max_delta = 0.5", "max_delta must be from"),
        ("approval = 1", "approval must be true or false"),
        ("students = 'fp32-cnn'", "students must be a list"),
        ("students = [3]", "students must be a list"),
        ("students = []", "students is empty and so forbids everything"),
        ("codecs = []", "codecs is empty"),
        ("hours = []", "hours is empty"),
        ("bundles = []", "bundles is empty"),
        ("consented_fields = []", "consented_fields is empty"),
        ("students = ['resnet']", "students names 'resnet', which does not exist"),
        ("codecs = ['zip']", "codecs names 'zip'"),
        ("consented_fields = ['update.latents']", "consented_fields names"),
        ("bundles = ['abc']", "bundles are SHA-256"),
        ("hours = ['always']", "hours 'always' are none"),
        ("time_zone = 'Mars/Base'", "no time zone 'Mars/Base'"),
        ("time_zone = '../etc/passwd'", "no time zone"),
        ("time_zone = 3", "time_zone must be a time zone"),
        ("min_noise_multiplier = 9\nmax_noise_multiplier = 8", "forbids everything"),
        ("max_rounds = 3\nmax_rounds = 4", "is not TOML"),
        ("max_rounds", "is not TOML"),
        ("a = " + "[" * 5000, "is not TOML"),
    ],
)
def test_a_policy_with_a_slip_is_refused_and_says_where(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(PolicyRefused, match=words):
        written(tmp_path, text)


def test_a_policy_that_cannot_be_read_is_not_one_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / POLICY_FILE
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(PolicyRefused, match="not TOML"):
        read_policy(tmp_path)
    path.write_bytes(b"#" * (1 << 17))
    with pytest.raises(PolicyRefused, match="larger"):
        read_policy(tmp_path)
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(PolicyRefused, match="cannot be read"):
        read_policy(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(PolicyRefused, match="cannot be read"):
        read_policy(tmp_path)
