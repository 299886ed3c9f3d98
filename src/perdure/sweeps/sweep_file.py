"""Read a sweep from YAML: a recipe, and what varies.

recipe: mine.yaml                       # or the recipe itself
grid: {method: [ewc, lwf], seed: [0, 1, 2]}
list:
- {name: slow, training.learning_rate: 1.0e-4}
- {name: fast, training.learning_rate: 1.0e-2}
random: {trials: 8, settings: {method.rank: {low: 2, high: 32, log: true, whole: true}}}
rules: [sum, {name: ties, density: 0.3}]
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from perdure import registry
from perdure.errors import CheckpointError, InputError
from perdure.settings import Section, validated
from perdure.storage import files


@dataclass(frozen=True)
class Range:
    """A range of numbers to draw from.

    Parameters
    ----------
    low, high
        The smallest and the largest number.
    log
        Draw the logarithm uniformly, as suits learning rates.
    whole
        Draw whole numbers.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Random:
    """Settings that are drawn at random.

    Parameters
    ----------
    settings
        For each setting, a list of values to choose from, or a `Range`.
    trials
        The number of draws.
    seed
        The seed of the draws. A larger number of trials begins with the same draws.
    """

    settings: dict[str, list[object] | Range]
    trials: Annotated[int, Ge(1)]
    seed: Annotated[int, Ge(0)] = 0


@dataclass(frozen=True)
class SweepFile:
    """The content of SWEEP.yaml.

    The trials are all combinations of the grid, the entries of the list and the random
    draws: three seeds in the grid and five entries in the list are fifteen trials.

    Attributes
    ----------
    recipe
        The recipe's sections, as in its own file, before anything varies.
    grid
        The values of each setting, of which every combination is tried.
    entries
        Settings that belong together. `name` gives an entry its name in the report.
    rules
        Further rules with which each finished run is measured, without training again.
    """

    recipe: dict[str, Any]
    grid: dict[str, list[object]]
    entries: list[dict[str, object]]
    random: Random | None
    rules: list[Section]


FIELDS = {
    "recipe": (str | dict[str, object], ...),
    "grid": (dict[str, list[object]], {}),
    "list": (list[dict[str, object]], []),
    "random": (Random | None, None),
    "rules": (list[str | dict[str, object]], []),
}
"""The type and the default of each section of SWEEP.yaml."""


def read(path: str | Path) -> SweepFile:
    """Read a sweep and its recipe. Python files that they name may be run, as with a recipe.

    Raises
    ------
    InputError
        A file is missing or is not valid YAML, or a section is unknown or empty.
    """
    path = Path(path)
    values = _yaml(path)
    sections = validated(FIELDS, values, f"`{path}`")
    recipe = sections["recipe"]
    if isinstance(recipe, str):
        # relative to the sweep's own file, so that both can be moved together
        recipe = _yaml(path.parent / recipe)
    registry.trust(values)
    registry.trust(recipe)
    sweep = SweepFile(
        recipe=recipe,
        grid=sections.get("grid", {}),
        entries=sections.get("list", []),
        random=sections.get("random"),
        rules=sections.get("rules", []),
    )
    _check(sweep, path)
    return sweep


def _yaml(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise InputError(f"`{path}` is a folder. Give a YAML file.")
    if not path.exists():
        raise InputError(f"There is no file `{path}`.")
    try:
        return files.read_yaml(path)
    except CheckpointError as error:
        raise InputError(str(error)) from error


def _check(sweep: SweepFile, path: Path) -> None:
    """Check what types cannot say: that no list is empty, and that ranges are in order."""
    for name, choices in sweep.grid.items():
        if not choices:
            raise InputError(f"`{path}`: `grid`: `{name}` has no values. Give at least one.")
    if not sweep.random:
        return
    for name, choices in sweep.random.settings.items():
        where = f"`{path}`: `random`: `{name}`"
        if not choices:
            raise InputError(f"{where} has no values. Give at least one.")
        if isinstance(choices, Range):
            if choices.low > choices.high:
                raise InputError(f"{where}: `low` is {choices.low}, above `high` {choices.high}.")
            if choices.log and choices.low <= 0:
                raise InputError(f"{where}: `low` must be more than 0 with `log: true`.")
