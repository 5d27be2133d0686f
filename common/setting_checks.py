"""What every settings class does: JSON to and from a frozen dataclass, and checks of one value at a time."""

import dataclasses
import json
from typing import Any, Self

from fedward.common.errors import SettingRefused

_LONGEST = 200  # characters of a name


class Settings:
    """JSON to and from a frozen dataclass, with unknown and missing keys refused by name.

    A field with a default is left out where it has it. So a setting that is added later, and is off, changes
    no digest of any study.
    """

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types only."""
        kept = {
            field.name: _plain(value)
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
            if (value := getattr(self, field.name)) != field.default
        }
        return json.loads(json.dumps(kept))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """The inverse of `to_dict`.

        Raises:
            SettingRefused: not an object, or keys unknown, missing, or of a wrong type.
        """
        fields = {field.name: field.default for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        needed = {name for name, default in fields.items() if default is dataclasses.MISSING}
        given = set(values) if isinstance(values, dict) else set()
        if not isinstance(values, dict) or not needed <= given <= set(fields):
            raise SettingRefused(
                f"{cls.__name__} does not have the expected keys: missing {sorted(needed - given)}, "
                f"unknown {sorted(given - set(fields))}."
            )
        return cls(**{name: _tuples(value) for name, value in values.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.to_dict()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def in_range(name: str, value: object, low: float, high: float, kind: type = float) -> None:
    """Refuse what is no number of `kind` (float or int) from `low` to `high`.

    Raises:
        SettingRefused: naming the setting.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    whole = kind is float or isinstance(value, int)
    if not (number and whole and low <= value <= high):  # type: ignore[operator]
        what = "a whole number" if kind is int else "a number"
        raise SettingRefused(f"{name} must be {what} from {low:g} to {high:g}, not {value!r}.")


def one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse what is none of `choices`.

    Raises:
        SettingRefused: naming the setting and the choices.
    """
    if value not in choices:
        raise SettingRefused(f"{name} must be one of {', '.join(choices)}, not {value!r}.")


def check_text(name: str, value: object) -> None:
    """Refuse what is no name.

    Raises:
        SettingRefused: not text, empty, too long, or with characters that do not print.
    """
    if not (isinstance(value, str) and value.isprintable() and 0 < len(value) <= _LONGEST):
        raise SettingRefused(f"{name} must be printable text of 1 to {_LONGEST} characters.")
