"""The cells of the study `medmnist`: what its options ask for, as rows' keys, and a key as `Options`."""

from typing import Any

from fedward.common.errors import SettingRefused, UnknownName
from fedward.common.medmnist_sets import MEDMNIST_SETS
from fedward.server.recipes import FROM_SCRATCH, RECIPES
from fedward.simulations.options import Options
from fedward.simulations.sources import find_dataset
from fedward.simulations.studies.rows import Row

HOSPITALS = {"central": 1, "federated": 8}
# Sets of more than 30,000 training images, by MedMNIST's published counts: smaller steps, and more of them,
# for 6 passes over the images in place of 15. A step still has more images than one on PneumoniaMNIST.
LARGE_SETS = ("chestmnist", "octmnist", "organamnist", "pathmnist", "tissuemnist")
LARGE_SAMPLE_RATE, LARGE_ROUNDS = 0.05, 120
QUICK_ROUNDS = 2


def settings(name: str, recipe: str, is_quick: bool) -> Row:
    """The public constants of a set that its rows are told apart by; a named recipe brings its own."""
    is_large = name in LARGE_SETS
    chosen: Row = {"rounds": None, "sample_rate": None}
    if recipe == FROM_SCRATCH:
        defaults = Options()
        chosen = {
            "rounds": LARGE_ROUNDS if is_large else defaults.rounds,
            "sample_rate": LARGE_SAMPLE_RATE if is_large else defaults.sample_rate,
        }
    return chosen | {"rounds": QUICK_ROUNDS} if is_quick else chosen


def options_of(key: Row) -> Options:
    """What a row's key asks of `fedward simulate`.

    Raises:
        UnknownName: it names no recipe.
    """
    asked: dict[str, Any] = {name: key[name] for name in ("rounds", "sample_rate") if key[name] is not None}
    asked |= {name: key[name] for name in ("student", "epsilon", "recipe", "seed")}
    asked |= {"dataset": key["set"], "hospitals": HOSPITALS[key["mode"]]}
    return Options(**RECIPES.get(key["recipe"], {}) | asked)


def chosen_names(text: str, known: tuple[str, ...] | None, what: str) -> list[str]:
    """Names between commas, each once.

    Raises:
        UnknownName: one is not `known`, or there is none.
    """
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if known and (strange := [name for name in names if name not in known]):
        raise UnknownName(f"There is no {what} {strange[0]!r}; choose of {', '.join(known)}.")
    if not names:
        raise UnknownName(f"No {what} is named; name one, or several with commas between.")
    return names


def chosen_sets(text: str) -> list[str]:
    """The sets that ``--sets`` names: MedMNIST's, ``all`` of them, or what `find_dataset` takes.

    Raises:
        UnknownName, DatasetRefused: a name that is none of MedMNIST's stands for no data.
    """
    names = chosen_names(text, None, "set")
    if names == ["all"]:
        return sorted(MEDMNIST_SETS)
    for name in names:
        if name not in MEDMNIST_SETS:
            find_dataset(name)  # refuses what is a slip of the pen, before hours of runs
    return names


def chosen_epsilons(text: str) -> list[float | None]:
    """The epsilons that ``--epsilons`` names, ``none`` among them.

    Raises:
        SettingRefused: one is no number.
    """
    try:
        values = [None if name == "none" else float(name) for name in chosen_names(text, None, "epsilon")]
    except ValueError:
        raise SettingRefused(f"--epsilons are numbers or none, with commas between; not {text!r}.") from None
    return list(dict.fromkeys(values))


def cell_keys(
    sets: list[str],
    modes: list[str],
    students: list[str],
    epsilons: list[float | None],
    recipe: str,
    is_quick: bool,
) -> list[Row]:
    """A key for every cell, of seed 0, set by set.

    Raises:
        UnknownName, SettingRefused: a value that no set could be run with.
    """
    keys = [
        {"set": name, "mode": mode, "student": student, "epsilon": epsilon, "recipe": recipe, "seed": 0}
        | settings(name, recipe, is_quick)
        for name in sets
        for epsilon in epsilons
        for student in students
        for mode in modes
    ]
    for key in keys[: len(epsilons) * len(students) * len(modes)]:
        options_of(key)  # refuses before the first run what would refuse every one
    return keys
