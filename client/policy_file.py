"""``hospital.toml``: a site's policy as its administrator writes it, read strictly (TOML 1.0).

    max_study_epsilon = 3.0
    min_noise_multiplier = 0.8
    students = ["ternary-cnn", "int8-cnn"]
    hours = ["mon-fri 20:00-06:00", "sat,sun 00:00-24:00"]
    time_zone = "Europe/Berlin"
    approval = true

Without the file everything is allowed that the budget allows. A file that is there and cannot be read, or
that has a key nobody knows, allows nothing: a rule that was misspelled must not be a rule that is missing.
"""

import dataclasses
import os
import tomllib
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from fedward.client.hours import Hours
from fedward.client.policy import Policy
from fedward.common.errors import PolicyRefused
from fedward.common.files import read_bounded

POLICY_FILE = "hospital.toml"
_LIMIT_BYTES = 1 << 16
_RULES = tuple(field.name for field in dataclasses.fields(Policy))
_WHOLE = {"max_rounds", "max_local_steps", "max_studies"}
_LISTS = {"students", "codecs", "hours", "bundles", "consented_fields"}


def read_policy(folder: Path) -> Policy:
    """The policy in a hospital's state folder; without one, the policy that forbids nothing.

    Raises:
        PolicyRefused: the file cannot be read, is not TOML, has an unknown key, a value of a wrong type or
            out of range, or forbids everything.
    """
    path = folder / POLICY_FILE
    if not os.path.lexists(path):
        return Policy()
    data = read_bounded(path, _LIMIT_BYTES, refusal=PolicyRefused)
    try:
        rules = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise PolicyRefused(f"{path} is not TOML: {error}.") from error
    return Policy(**{rule: _value(rule, found) for rule, found in rules.items()})


def _value(rule: str, found: Any) -> Any:
    if rule not in _RULES:
        raise PolicyRefused(f"{POLICY_FILE} has an unknown key {rule[:40]!r}: there are {', '.join(_RULES)}.")
    if rule in _LISTS:
        return _listed(rule, found)
    if rule == "approval":
        return _typed(rule, found, bool, "true or false")
    if rule == "time_zone":
        return _zone(_typed(rule, found, str, 'a time zone such as "Europe/Berlin"'))
    if rule in _WHOLE:
        return _typed(rule, found, int, "a whole number")
    return float(_typed(rule, found, (int, float), "a number"))


def _listed(rule: str, found: Any) -> tuple[Any, ...]:
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise PolicyRefused(f'{POLICY_FILE}: {rule} must be a list of texts, such as ["..."].')
    return tuple(Hours.parse(item) for item in found) if rule == "hours" else tuple(found)


def _typed(rule: str, found: Any, kind: Any, what: str) -> Any:
    if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
        raise PolicyRefused(f"{POLICY_FILE}: {rule} must be {what}.")
    return found


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise PolicyRefused(
            f"{POLICY_FILE}: there is no time zone {name[:40]!r} on this machine: write one such as "
            '"Europe/Berlin", or leave the rule out for the machine\'s own.'
        ) from error
    return name
