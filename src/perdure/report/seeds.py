"""Runs that differ in their seed only, as one: means and standard deviations."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SEEDS = ("seed", "order_seed")
TOLD = ("name", "about")  # they may tell of the seed


def groups(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Title, places of the `runs`, and results; each number with its mean, standard deviation (n - 1) and n.

    It is from n `of` the group's runs: in the others it was not measured.
    """
    found: dict[tuple[str, int], list[int]] = {}
    seeds: list[str] = []
    for place, run in enumerate(runs):
        recipe = {name: value for name, value in run["recipe"].items() if name not in TOLD}
        key = json.dumps(_settings(recipe) or place, sort_keys=True)
        seeds.append(json.dumps(recipe, sort_keys=True))
        copies = sum(
            seed == seeds[-1] for seed in seeds[:-1]
        )  # the same seed again is no other sample
        found.setdefault((key, copies), []).append(place)
    titles = _titles(runs, list(found.values()))
    return [
        {"title": title, "runs": places, "results": _results([runs[place] for place in places])}
        for title, places in zip(titles, found.values(), strict=True)
    ]


def _titles(runs: Sequence[Mapping[str, Any]], places: Sequence[Sequence[int]]) -> list[str]:
    """A run's own title, where it stands alone; of several their recipe's name, and what is different in it."""
    titles = [_title(runs, group) for group in places]
    flat = [_flat(_settings(runs[group[0]]["recipe"])) for group in places]
    for title in {title for title in titles if titles.count(title) > 1}:
        same = [i for i, other in enumerate(titles) if other == title]
        names = sorted({name for i in same for name in flat[i]})
        differ = [name for name in names if len({str(flat[i].get(name)) for i in same}) > 1]
        # a method's settings differ with its name, which is enough
        differ = [name for name in differ if name.endswith(("name", "method", "rule"))] or differ
        for i in same:
            said = ", ".join(
                f"{name.removesuffix('.name')} {flat[i][name]}"
                for name in differ[:3]
                if name in flat[i]
            )
            titles[i] = f"{title}: {said}" if said else f"{title} ({runs[places[i][0]]['folder']})"
    return titles


def _title(runs: Sequence[Mapping[str, Any]], group: Sequence[int]) -> str:
    run = runs[group[0]]
    if len(group) == 1:
        return run["title"]
    same = os.path.commonprefix(
        [str(runs[place]["recipe"].get("name") or "") for place in group]
    ).rstrip(" ,:-_")
    method = run["recipe"].get("method")
    return same or str(
        (method.get("name") if isinstance(method, Mapping) else method) or run["title"]
    )


def _settings(value: Any) -> Any:
    """A recipe without its seeds."""
    if isinstance(value, Mapping):
        return {str(key): _settings(inner) for key, inner in value.items() if key not in SEEDS}
    return value


def _flat(value: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found = {}
    for key, inner in value.items():
        found |= (
            _flat(inner, f"{before}{key}.")
            if isinstance(inner, Mapping)
            else {f"{before}{key}": inner}
        )
    return found


def _results(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One for each rule, way to know the task, and metric that any of the runs has."""
    found: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for run in runs:
        for result in run["results"]:
            found.setdefault((result["rule"], result["task_id"], result["metric"]), []).append(
                result
            )
    own = {run["rule"] for run in runs}
    return [_result(results, own, len(runs)) for results in found.values()]


def _result(
    results: Sequence[Mapping[str, Any]], own: set[str | None], runs: int
) -> dict[str, Any]:
    names = dict.fromkeys(name for result in results for name in result["metrics"])
    length = max(len(result["seen"]) for result in results)
    return {
        **{key: results[0][key] for key in ("name", "rule", "task_id", "known", "metric")},
        "own": results[0]["rule"] in own or own == {None},
        "metrics": {
            name: _spread([result["metrics"].get(name) for result in results], runs)
            for name in names
        },
        "examples": results[0]["examples"],
        "standard_error": _spread([result["standard_error"] for result in results], runs)["mean"],
        "learned": _spread([result["learned"] for result in results], runs),
        "seen": [
            _spread([r["seen"][i] if i < len(r["seen"]) else None for r in results], runs)
            for i in range(length)
        ],
    }


def _spread(values: Sequence[float | None], runs: int) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    mean = float(np.mean(known)) if known else None
    sd = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return {"mean": mean, "sd": sd, "n": len(known), "of": runs}
