"""Runs that differ in their seed only, as one: means and standard deviations."""

import json
import os
from collections.abc import Sequence

import numpy as np

from perdure.report.plain import Record

SEEDS = ("seed", "order_seed")
TOLD = ("name", "about")  # texts of a recipe that may mention the seed


def groups(runs: Sequence[Record]) -> list[Record]:
    """Return the groups of runs: title, numbers of the `runs`, and results over seeds.

    Each number of a result has its mean, its standard deviation (n - 1) and n: it was measured in
    n `of` the group's runs.
    """
    members: dict[tuple[str, int], list[int]] = {}
    seen: list[str] = []
    for number, run in enumerate(runs):
        recipe = {name: value for name, value in run["recipe"].items() if name not in TOLD}
        # A recipe that cannot be read says nothing about the run, which then stands alone.
        key = json.dumps(_settings(recipe) or number, sort_keys=True)
        whole = json.dumps(recipe, sort_keys=True)
        # The same seed again is not another sample: copies of a run form a group of their own.
        copies = seen.count(whole)
        seen.append(whole)
        members.setdefault((key, copies), []).append(number)
    titles = _titles(runs, list(members.values()))
    made = []
    for title, numbers in zip(titles, members.values(), strict=True):
        results = _results([runs[number] for number in numbers])
        made.append({"title": title, "runs": numbers, "results": results})
    return made


def _titles(runs: Sequence[Record], groups: Sequence[Sequence[int]]) -> list[str]:
    """Return a run's own title where it stands alone, else the name that its group shares.

    Groups of the same title get what differs between their recipes, or a folder.
    """
    titles = [_title(runs, numbers) for numbers in groups]
    settings = [_flat(_settings(runs[numbers[0]]["recipe"])) for numbers in groups]
    ambiguous = {title for title in titles if titles.count(title) > 1}
    for title in ambiguous:
        same = [group for group, other in enumerate(titles) if other == title]
        differing = _differing([settings[group] for group in same])
        for group in same:
            folder = runs[groups[group][0]]["folder"]
            said = _said(settings[group], differing)
            titles[group] = f"{title}: {said}" if said else f"{title} ({folder})"
    return titles


def _differing(settings: Sequence[Record]) -> list[str]:
    """Return the names of the settings in which some recipes differ."""
    names = set[str]()
    for flat in settings:
        names.update(flat)
    differing = []
    for name in sorted(names):
        if len({str(flat.get(name)) for flat in settings}) > 1:
            differing.append(name)
    # The settings of a method differ with its name, which is enough.
    main = [name for name in differing if name.endswith(("name", "method", "rule"))]
    return main or differing


def _said(flat: Record, names: Sequence[str]) -> str:
    """Return the first three of these settings as text."""
    words = []
    for name in names[:3]:
        if name in flat:
            words.append(f"{name.removesuffix('.name')} {flat[name]}")
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
        if key not in SEEDS:
            settings[str(key)] = _settings(inner) if isinstance(inner, dict) else inner
    return settings


def _flat(settings: Record, before: str = "") -> Record:
    """Return nested settings in one level, with names such as `method.rank`."""
    flat = {}
    for key, inner in settings.items():
        if isinstance(inner, dict):
            flat |= _flat(inner, f"{before}{key}.")
        else:
            flat[f"{before}{key}"] = inner
    return flat


def _results(runs: Sequence[Record]) -> list[Record]:
    """Return a result for each rule, way to know the task, and metric that any run has."""
    by_kind: dict[tuple[str, ...], list[Record]] = {}
    for run in runs:
        for result in run["results"]:
            kind = (result["rule"], result["task_id"], result["metric"])
            by_kind.setdefault(kind, []).append(result)
    own = {run["rule"] for run in runs}
    return [_result(results, own, len(runs)) for results in by_kind.values()]


def _result(results: Sequence[Record], own: set[str | None], runs: int) -> Record:
    first = results[0]
    result: Record = {}
    for key in ("name", "rule", "task_id", "known", "metric"):
        result[key] = first[key]
    # Where no run says which rule is its own, every rule is compared.
    result["own"] = first["rule"] in own or own == {None}
    names = dict.fromkeys(name for other in results for name in other["metrics"])
    averages = {}
    for name in names:
        averages[name] = _spread([other["metrics"].get(name) for other in results], runs)
    result["metrics"] = averages
    result["examples"] = first["examples"]
    errors = [other["standard_error"] for other in results]
    result["standard_error"] = _spread(errors, runs)["mean"]
    result["learned"] = _spread([other["learned"] for other in results], runs)
    result["seen"] = _seen([other["seen"] for other in results], runs)
    return result


def _seen(curves: Sequence[Sequence[float | None]], runs: int) -> list[Record]:
    """Average curves step by step; a run that is not finished has a shorter one."""
    spreads = []
    for step in range(max(len(curve) for curve in curves)):
        values = [curve[step] for curve in curves if step < len(curve)]
        spreads.append(_spread(values, runs))
    return spreads


def _spread(values: Sequence[float | None], runs: int) -> Record:
    known = [value for value in values if value is not None]
    mean = float(np.mean(known)) if known else None
    sd = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return {"mean": mean, "sd": sd, "n": len(known), "of": runs}
