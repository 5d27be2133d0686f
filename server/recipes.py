"""Recipes: settings that go together, by name. What is said beside `--recipe` comes before a recipe's own.

``from-scratch``: every weight from a random start, under privacy. ``distilled``: the body learns from a
public teacher on public images and from public reference records; under privacy only the head is trained, so
the noise meets a few hundred values instead of tens of thousands.
"""

import dataclasses
from typing import Any, TypeVar

Settings = TypeVar("Settings")  # a dataclass with the fields `recipe` and `kept`

FROM_SCRATCH, DISTILLED = "from-scratch", "distilled"
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
        "downlink": "diff4",
    },
}
_FULL_BATCH = 10_000  # images of all hospitals that a step looks at; noise rules out what more would gain


def sample_rate(images: int) -> float:
    """The distilled recipe's sampling rate for so many images in all hospitals, a public constant."""
    return min(1.0, _FULL_BATCH / max(1, images))


def back_to_scratch(settings: Settings, plain: Settings, **changes: Any) -> Settings:
    """`settings` of the distilled recipe for training from scratch: what a person set (`kept`) stays, the
    recipe's own goes back to what `plain` has.
    """
    own = RECIPES[DISTILLED]
    changed = [name for name, value in own.items() if getattr(settings, name) == value]
    kept = settings.kept  # type: ignore[attr-defined]
    back = {name: getattr(plain, name) for name in changed if name not in kept}
    return dataclasses.replace(settings, **back, recipe=FROM_SCRATCH, **changes)  # type: ignore[type-var]
