"""Everything that varies in a sweep → trials, with their settings, labels and folders."""

import copy
import hashlib
import itertools
import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from perdure.errors import InputError
from perdure.runs.recipe import Recipe
from perdure.seeds import derived
from perdure.settings import Section
from perdure.sweeps.orders import in_order
from perdure.sweeps.sweep_file import Random, Range, SweepFile

SEEDS = ("seed", "order_seed")
"""Settings that the report averages over, so that they are not part of a label."""
LONGEST = 60
"""The maximum number of characters of a label in the name of a folder."""

Settings = dict[str, object]
"""Settings by the names that `--set` uses, and `order`."""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes
    ----------
    name
        The name of the run's folder. It depends only on the settings, so that a sweep can
        be extended: trials that both versions have in common are not repeated.
    label
        What distinguishes the trial from others, without its seeds: its name in the report.
    settings
        The settings that vary.
    """

    name: str
    label: str
    settings: Settings


def count(sweep: SweepFile) -> int:
    """Return the number of trials, without making them."""
    combinations = math.prod(len(choices) for choices in sweep.grid.values())
    draws = sweep.random.trials if sweep.random else 1
    return combinations * draws * max(1, len(sweep.entries))


def trials(sweep: SweepFile) -> list[Trial]:
    """Return all trials of a sweep. Draws that happen to be equal are one trial.

    Raises
    ------
    InputError
        A setting varies in two sections.
    """
    draws = drawn(sweep.random) if sweep.random else [{}]
    by_name = {}
    for entry in sweep.entries or [{}]:
        for draw in draws:
            for values in itertools.product(*sweep.grid.values()):
                combination = dict(zip(sweep.grid, values, strict=True))
                trial = _trial(sweep.recipe, [entry, draw, combination])
                by_name[trial.name] = trial
    return list(by_name.values())


def drawn(draws: Random) -> list[Settings]:
    """Draw settings at random. Each number depends only on the seed, its draw and its setting.

    Examples
    --------
    >>> rank = Range(low=2, high=32, log=True, whole=True)
    >>> drawn(Random({"method.rank": rank, "method.peft": ["lora", "full"]}, trials=2))
    [{'method.rank': 3, 'method.peft': 'full'}, {'method.rank': 17, 'method.peft': 'full'}]
    """
    rows = []
    for number in range(draws.trials):
        row: Settings = {}
        for name, choices in draws.settings.items():
            generator = random.Random(derived(draws.seed, number, name))
            if isinstance(choices, Range):
                row[name] = _number(choices, generator.random())
            else:
                row[name] = generator.choice(choices)
        rows.append(row)
    return rows


def _number(choices: Range, share: float) -> float:
    """Return the number that divides a range in the given share."""
    if choices.log:
        number = choices.low * (choices.high / choices.low) ** share
    else:
        number = choices.low + (choices.high - choices.low) * share
    # three digits are enough and fit into a table; rounding may lead out of the range
    number = round(number) if choices.whole else float(f"{number:.3g}")
    return min(max(number, choices.low), choices.high)


def _trial(recipe: Mapping[str, object], parts: Sequence[Settings]) -> Trial:
    entry, draw, combination = parts
    settings: Settings = {}
    for part in parts:
        for name, value in part.items():
            if name in settings:
                raise InputError(
                    f"`{name}` varies in two sections of the sweep. Remove it from one of them."
                )
            settings[name] = value
    told = {**draw, **combination}
    title = entry.get("name")
    if title is None:
        told = {**entry, **told}
    labels = [str(title)] if title is not None else []
    seeds = []
    for name, value in told.items():
        where = seeds if _is_seed(name, value, recipe) else labels
        where.append(_said(name, value))
    whole = json.dumps(settings, sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
    words = re.sub(r"[^A-Za-z0-9.]+", "-", " ".join([*labels, *seeds]))
    name = f"{words[:LONGEST].strip('-.')}-{digest}".lstrip("-")
    return Trial(name=name, label=", ".join(labels), settings=settings)


def _is_seed(name: str, value: object, recipe: Mapping[str, object]) -> bool:
    if name == "order" and "stream" in recipe:
        name, _ = in_order(recipe["stream"], value)
    return name.split(".")[-1] in SEEDS


def _said(name: str, value: object) -> str:
    """Return a setting and its value as words of a label.

    Examples
    --------
    >>> _said("method", {"name": "replay", "method": "lwf"}), _said("method.rank", 4)
    ('replay(method=lwf)', 'rank 4')
    """
    words = _words(value)
    if name in ("method", "rule", "stream"):
        return words
    return f"{name.split('.')[-1]} {words}"


def _words(value: object) -> str:
    if isinstance(value, list):
        return " ".join(_words(entry) for entry in value)
    if not isinstance(value, dict):
        return str(value)
    options = dict(value)
    name = options.pop("name", options.pop("model", ""))
    pairs = [f"{key}={_words(inner)}" for key, inner in options.items()]
    return f"{name}({', '.join(pairs)})" if pairs else str(name)


def assignments(recipe: Mapping[str, object], trial: Trial) -> list[str]:
    """Return the settings of a trial in the form `key=value`, as `Recipe.parse` takes them.

    Raises
    ------
    InputError
        The recipe is not valid with these settings, or its stream has no such order.
    """
    settings = dict(trial.settings)
    if trial.label:
        settings["name"] = trial.label
    order = settings.pop("order", None)
    # a section comes before the settings in it, which it would otherwise replace
    by_depth = sorted(settings, key=lambda name: name.count("."))
    lines = [f"{name}={json.dumps(settings[name])}" for name in by_depth]
    if order is not None:
        # the stream may itself be one of the settings
        stream = Recipe.parse(copy.deepcopy(dict(recipe)), lines).stream
        name, value = in_order(stream, order)
        lines.append(f"{name}={json.dumps(value)}")
    return lines


def check(recipe: Mapping[str, object], settings: Sequence[str], checked: set[str]) -> None:
    """Check all sections of a trial's recipe, except whether they suit each other.

    Parameters
    ----------
    checked
        The sections that were already checked in other trials; updated in place.

    Raises
    ------
    InputError
        A section has an unknown name or setting, or a value that is not allowed.
    """
    made = Recipe.parse(dict(recipe), settings)
    makers = {
        "method": made.make_method,
        "rule": made.make_rule,
        "training": made.make_training,
        "evaluation": made.make_evaluation,
    }
    for section, make in makers.items():
        whole = json.dumps([section, getattr(made, section)], sort_keys=True, default=str)
        if whole not in checked:
            make()
            checked.add(whole)


def rule_sections(rules: Sequence[Section]) -> list[Section]:
    """Return the further rules of a sweep.

    Raises
    ------
    InputError
        A rule is unknown, or one of its settings is.
    """
    from perdure.merging.rule_settings import Rule

    for rule in rules:
        Rule.of(rule)
    return list(rules)
