"""The settings that tuning searches, and the choice of the next ones to try."""

from collections.abc import Mapping, Sequence

from perdure.errors import InputError
from perdure.learning.method import Method, Tuned
from perdure.merging.tpe import TPE, needed
from perdure.runs.recipe import Recipe
from perdure.seeds import derived
from perdure.settings import named
from perdure.sweeps.tuning import Protocol, Tried

RATE = "training.learning_rate"
STARTUP = 4
"""The trials whose scores TPE needs: the recipe's own settings, and three random ones."""


def searched(recipe: Recipe, protocol: Protocol) -> dict[str, Tuned]:
    """Return the settings to search, with their ranges, by the names used with `--set`.

    Raises
    ------
    InputError
        The method trains nothing and has no main coefficient, or the recipe sets the
        coefficient to 0.
    """
    method = recipe.make_method()
    where = "method"
    # for a method that wraps another, the inner method is tuned
    while isinstance(inner := getattr(method, "method", None), Method):
        method = inner
        where = f"{where}.method"
    ranges = {}
    if method.trains:
        rate = recipe.make_training().learning_rate
        ranges[RATE] = Tuned(RATE, protocol.lowest * rate, protocol.highest * rate)
    if method.tuned:
        tuned = method.tuned
        name = f"{where}.{tuned.name}"
        value = getattr(method, tuned.name)
        if not value:
            raise InputError(
                f"`{name}` is 0 in the recipe, but it is searched on a logarithmic scale. "
                "Give another value."
            )
        # the recipe's own value is the first trial, so the range must include it
        ranges[name] = Tuned(tuned.name, min(value, tuned.low), max(value, tuned.high))
    if not ranges:
        name, _ = named(recipe.method, "method")
        raise InputError(f"The method `{name}` trains nothing: there is nothing to tune.")
    return ranges


def asked(
    recipe: Recipe,
    protocol: Protocol,
    ranges: Mapping[str, Tuned],
    told: Sequence[Tried],
    number: int,
) -> dict[str, float]:
    """Return the settings for a trial: the recipe's own, then random ones, then suggestions by TPE.

    The random numbers depend only on the seed and on the trial's number, so a search that
    was stopped continues as if it had never stopped.

    Parameters
    ----------
    told
        The earlier trials whose scores may be used.
    """
    if number == 0:
        return {name: _value_in(recipe, name) for name in ranges}
    searcher = TPE(
        {name: (tuned.low, tuned.high) for name, tuned in ranges.items()},
        derived(protocol.seed, number),
        optuna=needed("optuna", "`tune`"),
        logarithmic=True,
        startup=STARTUP,
    )
    for trial in told:
        searcher.add(trial["settings"], trial["score"] or 0.0)
    candidate = searcher.ask()
    settings = {}
    for name, tuned in ranges.items():
        # three digits are enough and fit into a table; rounding may lead out of the range
        rounded = float(f"{candidate[name]:.3g}")
        settings[name] = min(max(rounded, tuned.low), tuned.high)
    return settings


def _value_in(recipe: Recipe, name: str) -> float:
    """Return the recipe's value for a setting."""
    if name == RATE:
        return recipe.make_training().learning_rate
    _, *above, last = name.split(".")  # `method`, perhaps `method` again, and the field
    method: object = recipe.make_method()
    for key in above:
        method = getattr(method, key)
    return getattr(method, last)


def assigned(settings: Mapping[str, float]) -> list[str]:
    """Return settings in the form `key=value`; `repr` keeps every digit of a number."""
    return [f"{name}={value!r}" for name, value in settings.items()]
