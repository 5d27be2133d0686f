"""Recipes: settings that go together, by name. What is said beside `--recipe` comes before a recipe's own.

``from-scratch``: every weight from a random start, under privacy. ``distilled``: the body learns from a
public teacher on public images and from public reference records; under privacy only the head is trained, so
the noise meets a few hundred values instead of tens of thousands. ``imagenet``: the body has the public
teacher's own weights, and needs no public images but the reference records; again only the head is trained.
"""

import dataclasses
from collections.abc import Set
from typing import Any, TypeVar

from fedward.common.config import LocalSettings
from fedward.common.errors import SettingRefused, UnknownName

Settings = TypeVar("Settings")  # a dataclass with the fields that recipes set, `recipe` and `kept`

FROM_SCRATCH, DISTILLED, IMAGENET = "from-scratch", "distilled", "imagenet"
# Recipes whose first model is what public data taught, and the family of their students.
PUBLIC_STARTS = {DISTILLED: "embed", IMAGENET: "mobile"}
RECIPES: dict[str, dict[str, Any]] = {
    FROM_SCRATCH: {},
    DISTILLED: {
        "student": "ternary-embed",
        "trained": "head",
        "rounds": 20,
        "sample_rate": 1.0,
        "max_grad_norm": 0.4,
        "views": 4,
        "schedule": "constant",
        "server_momentum": 0.9,
        "averaged_rounds": 10,
        "uplink": "int8",
        "downlink": "diff4",
    },
    IMAGENET: {
        "student": "ternary-mobile",
        "trained": "head",
        "rounds": 20,
        "sample_rate": 1.0,
        "schedule": "constant",
        "server_momentum": 0.6,
        "averaged_rounds": 10,
    },
}
_FULL_BATCH = 10_000  # images of all hospitals that a step looks at; noise rules out what more would gain


def values_of(name: str, typed: Set[str]) -> dict[str, Any]:
    """The fields that recipe `name` sets: its own settings but for those `typed` beside it, which are kept.

    Raises:
        UnknownName: there is no such recipe.
    """
    if name not in RECIPES:
        raise UnknownName(f"There is no recipe {name!r}; choose one of {', '.join(RECIPES)}.")
    own = {key: value for key, value in RECIPES[name].items() if key not in typed}
    return {**own, "recipe": name, "kept": tuple(sorted(typed & set(RECIPES[name])))}


def check_family(recipe: str, settings: LocalSettings) -> None:
    """Refuse a student that takes no public start of `recipe`, one of `PUBLIC_STARTS`.

    Raises:
        SettingRefused: it is of another family.
    """
    family = PUBLIC_STARTS[recipe]
    if settings.spec.family != family:
        raise SettingRefused(
            f"The recipe {recipe} is for {family} students, not {settings.student}: take ternary-{family}."
        )


def sampled(settings: Settings, images: int) -> Settings:
    """`settings` with the sampling rate of a recipe with a public start for so many images in all hospitals,
    a public constant; where a person set another rate, that one stays, and so do other recipes'.
    """
    own = RECIPES[settings.recipe]  # type: ignore[attr-defined]
    if settings.recipe not in PUBLIC_STARTS:  # type: ignore[attr-defined]
        return settings
    is_own = settings.sample_rate != own["sample_rate"]  # type: ignore[attr-defined]
    if is_own or "sample_rate" in settings.kept:  # type: ignore[attr-defined]
        return settings
    rate = min(1.0, _FULL_BATCH / max(1, images))
    return dataclasses.replace(settings, sample_rate=rate)  # type: ignore[type-var]


def back_to_scratch(settings: Settings, plain: Settings, **changes: Any) -> Settings:
    """`settings` of a recipe with a public start for training from scratch: what a person set (`kept`) stays,
    the recipe's own goes back to what `plain` has, and so does a student of the recipe's family, in its own
    precision. Without a start there is no body that a head alone could be trained on, whoever asked for it.
    """
    own = RECIPES[settings.recipe]  # type: ignore[attr-defined]
    changed = {name for name, value in own.items() if getattr(settings, name) == value}
    kept = set(settings.kept)  # type: ignore[attr-defined]
    back = {name: getattr(plain, name) for name in changed - kept | changed & {"trained"}}
    precision, network = settings.student.split("-", 1)  # type: ignore[attr-defined]
    if "student" not in kept and network == PUBLIC_STARTS[settings.recipe]:  # type: ignore[attr-defined]
        back["student"] = f"{precision}-{plain.student.split('-', 1)[1]}"  # type: ignore[attr-defined]
    return dataclasses.replace(settings, **back, recipe=FROM_SCRATCH, **changes)  # type: ignore[type-var]
