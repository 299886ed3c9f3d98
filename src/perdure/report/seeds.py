"""Groups of runs that differ only in their seed, with means and standard deviations."""

import json
import os
from collections.abc import Sequence

import numpy as np

from perdure.report.plain import Record

SEEDS = ("seed", "order_seed")
TOLD = ("name", "about")  # texts of a recipe that may mention the seed


def groups(runs: Sequence[Record]) -> list[Record]:
    """Group the runs that differ only in their seed.

    A group has a `title`, the indices of its `runs`, and `results` over seeds. Each
    number in a result is given by its mean, its standard deviation (with n - 1) and n: it
    was measured in n `of` the runs of the group.
    """
    numbers = _grouped(runs)
    titles = _titles(runs, numbers)
    made = []
    for title, group in zip(titles, numbers, strict=True):
        results = _results([runs[number] for number in group])
        made.append({"title": title, "runs": group, "results": results})
    return made


def _grouped(runs: Sequence[Record]) -> list[list[int]]:
    """Return lists with the indices of runs that differ only in their seed."""
    members: dict[tuple[str, int], list[int]] = {}
    seen = []
    for number, run in enumerate(runs):
        recipe = dict(run["recipe"])
        for name in TOLD:
            recipe.pop(name, None)
        whole = json.dumps(recipe, sort_keys=True)
        # A run whose recipe cannot be read is not grouped with any other.
        settings = _settings(recipe) or number
        key = json.dumps(settings, sort_keys=True)
        # The same seed is not another sample, so copies of a run are in separate groups.
        copies = seen.count(whole)
        seen.append(whole)
        group = members.setdefault((key, copies), [])
        group.append(number)
    return list(members.values())


def _titles(runs: Sequence[Record], groups: Sequence[Sequence[int]]) -> list[str]:
    """Return the title of each group: that of its only run, or the name that its runs share.

    Groups with the same title are distinguished by the settings in which their recipes
    differ, or by a folder.
    """
    firsts = [runs[numbers[0]] for numbers in groups]
    titles = [_title(runs, numbers) for numbers in groups]
    settings = []
    for run in firsts:
        recipe = _settings(run["recipe"])
        settings.append(_flat(recipe))
    ambiguous = {title for title in titles if titles.count(title) > 1}
    # One title at a time, because settings that distinguish two groups may be equal in others.
    for title in ambiguous:
        same = [group for group, other in enumerate(titles) if other == title]
        differing = _differing([settings[group] for group in same])
        for group in same:
            said = _said(settings[group], differing)
            folder = firsts[group]["folder"]
            titles[group] = f"{title}: {said}" if said else f"{title} ({folder})"
    return titles


def _differing(settings: Sequence[Record]) -> list[str]:
    """Return the names of the settings in which recipes differ."""
    names = set[str]()
    for flat in settings:
        names.update(flat)
    differing = []
    for name in sorted(names):
        values = {str(flat.get(name)) for flat in settings}
        if len(values) > 1:
            differing.append(name)
    # If the methods differ, so do their settings, and the name is enough.
    main = [name for name in differing if name.endswith(("name", "method", "rule"))]
    return main or differing


def _said(flat: Record, names: Sequence[str]) -> str:
    """Return the first three of the named settings, with their values, as text."""
    words = []
    for name in names[:3]:
        if name in flat:
            section = name.removesuffix(".name")
            words.append(f"{section} {flat[name]}")
    return ", ".join(words)


def _title(runs: Sequence[Record], numbers: Sequence[int]) -> str:
    first = runs[numbers[0]]
    if len(numbers) == 1:
        return first["title"]
    names = [str(runs[number]["recipe"].get("name") or "") for number in numbers]
    # "mine-0" and "mine-1" share "mine-".
    shared = os.path.commonprefix(names).rstrip(" ,:-_")
    if shared:
        return shared
    method = first["recipe"].get("method")
    if isinstance(method, dict):
        method = method.get("name")
    return str(method or first["title"])


def _settings(recipe: Record) -> Record:
    """Return a recipe, or a section of one, without its seeds."""
    settings = {}
    for key, inner in recipe.items():
        if key in SEEDS:
            continue
        settings[str(key)] = _settings(inner) if isinstance(inner, dict) else inner
    return settings


def _flat(settings: Record, before: str = "") -> Record:
    """Flatten nested settings; the names become, for example, `method.rank`."""
    flat = {}
    for key, inner in settings.items():
        name = f"{before}{key}"
        if isinstance(inner, dict):
            flat |= _flat(inner, f"{name}.")
        else:
            flat[name] = inner
    return flat


def _results(runs: Sequence[Record]) -> list[Record]:
    """Return one result for each combination of rule, `task_id` and metric that any run has."""
    by_kind: dict[tuple[str, ...], list[Record]] = {}
    for run in runs:
        for result in run["results"]:
            kind = (
                result["rule"],
                result["task_id"],
                result["metric"],
            )
            same = by_kind.setdefault(kind, [])
            same.append(result)
    own_rules = {run["rule"] for run in runs}
    return [_result(results, own_rules, len(runs)) for results in by_kind.values()]


def _result(results: Sequence[Record], own_rules: set[str | None], runs: int) -> Record:
    first = results[0]
    averages = {}
    for name in _metrics(results):
        values = [result["metrics"].get(name) for result in results]
        averages[name] = _spread(values, runs)
    errors = [result["standard_error"] for result in results]
    learned = [result["learned"] for result in results]
    curves = [result["seen"] for result in results]
    return {
        "name": first["name"],
        "rule": first["rule"],
        "task_id": first["task_id"],
        "known": first["known"],
        "metric": first["metric"],
        "tasks": first["tasks"],
        "scores": first["scores"],
        # If no run names its own rule, all rules are compared.
        "own": first["rule"] in own_rules or own_rules == {None},
        "metrics": averages,
        "examples": first["examples"],
        "standard_error": _spread(errors, runs)["mean"],
        "learned": _spread(learned, runs),
        "seen": _seen(curves, runs),
    }


def _metrics(results: Sequence[Record]) -> list[str]:
    """Return the names of the metrics that any of the results has, in the order they appear."""
    names = {}
    for result in results:
        names |= dict.fromkeys(result["metrics"])
    return list(names)


def _seen(curves: Sequence[Sequence[float | None]], runs: int) -> list[Record]:
    """Average curves step by step; an unfinished run has a shorter curve."""
    spreads = []
    length = max(len(curve) for curve in curves)
    for step in range(length):
        values = [curve[step] for curve in curves if step < len(curve)]
        spreads.append(_spread(values, runs))
    return spreads


def _spread(values: Sequence[float | None], runs: int) -> Record:
    known = [value for value in values if value is not None]
    mean = None
    sd = None
    if known:
        mean = float(np.mean(known))
    # A single sample has no standard deviation.
    if len(known) > 1:
        sd = float(np.std(known, ddof=1))
    return {
        "mean": mean,
        "sd": sd,
        "n": len(known),
        "of": runs,
    }
