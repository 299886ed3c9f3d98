"""Run folders → one plain dict, which JSON can hold."""

import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from perdure import metrics
from perdure.errors import RunError
from perdure.report.folder import Files, read

METRICS = {
    "average_accuracy": "Average accuracy",
    "average_incremental_accuracy": "Average incremental accuracy",
    "backward_transfer": "Backward transfer",
    "forgetting": "Forgetting",
    "forward_transfer": "Forward transfer",
}
TASK_IDS = {"given": "task given", "posterior": "task posterior", "concatenated": "heads concatenated"}
POINTS = 100  # of a loss curve


def summarize(folders: Sequence[str | Path]) -> dict[str, Any]:
    """All that a report says about one or several runs, as plain lists, dicts, strings and numbers (None: not measured).

    Raises
    ------
    RunError
        There is no folder, or one is not a run or is damaged.
    """
    if not folders:
        raise RunError("There is nothing to report. Give at least one run folder.")
    files = [read(folder) for folder in folders]
    runs = [_run(one, title) for one, title in zip(files, _titles(files), strict=True)]
    for run in runs:
        for result in run["results"]:
            result["label"] = " · ".join(part for part in _label(result, run["title"] if len(runs) > 1 else "") if part)
    measured = {name for run in runs for result in run["results"] for name in result["metrics"]}
    return {"metrics": {name: _metric(name) for name in METRICS if name in measured}, "runs": runs}


def _titles(files: Sequence[Files]) -> list[str]:
    """The recipe's name, else the folder's; the folder is added where two are the same."""
    titles = [str(one.recipe.get("name") or one.folder.resolve().name) for one in files]
    return [t if titles.count(t) == 1 else f"{t} ({one.folder})" for t, one in zip(titles, files, strict=True)]


def _label(result: Mapping[str, Any], title: str) -> tuple[str, ...]:
    metric = "" if result["metric"] == "accuracy" else result["metric"]
    return title, result["rule"], metric, TASK_IDS.get(result["task_id"], result["task_id"])


def _metric(name: str) -> dict[str, str]:
    definition = (inspect.getdoc(getattr(metrics, name)) or "").split("\n\n")[0]
    return {"title": METRICS[name], "definition": " ".join(definition.split())}


def _run(files: Files, title: str) -> dict[str, Any]:
    seconds = {e.get("task"): e for e in files.events if e.get("event") == "task"}
    tasks = [
        {**task, **{name: seconds.get(task["name"], {}).get(name) for name in ("seconds", "examples", "trained")}}
        for task in files.tasks
    ]
    return {
        "title": title,
        "folder": str(files.folder),
        "sentence": _sentence(files),
        "rule": files.combined.get("label", files.combined.get("name")),
        "tasks": tasks,
        "results": _results(files),
        "search": _search(files.combined),
        "losses": _losses(files),
        "recipe": files.recipe,
        "environment": files.environment,
    }


# -- scores


def _results(files: Files) -> list[dict[str, Any]]:
    """One for each rule, way to know the task, and metric."""
    keys = dict.fromkeys((row["rule"], row["task_id"], row["metric"]) for row in files.scores if row["step"] > 0)
    order = [*TASK_IDS]
    ranked = sorted(keys, key=lambda key: order.index(key[1]) if key[1] in order else len(order))
    rules = list(dict.fromkeys(rule for rule, _, _ in keys))
    return [_result(files, *key) for key in sorted(ranked, key=lambda key: rules.index(key[0]))] if files.tasks else []


def _result(files: Files, rule: str, task_id: str, metric: str) -> dict[str, Any]:
    names = [task["name"] for task in files.tasks]
    rows = [r for r in files.scores if (r["task_id"], r["metric"]) == (task_id, metric) and r["task"] in names]
    R = np.full((len(names), len(names)), np.nan)
    zero_shot = np.full(len(names), np.nan)
    for row in rows:
        if row["step"] == 0:  # nothing was combined yet: the same for every rule
            zero_shot[names.index(row["task"])] = row["value"]
        elif row["rule"] == rule and row["step"] <= len(names):
            R[row["step"] - 1, names.index(row["task"])] = row["value"]
    values = metrics.summary(R, None if np.isnan(zero_shot).all() else zero_shot)
    last = len(names) - 1
    return {
        "rule": rule,
        "task_id": task_id,
        "metric": metric,
        "scenario": next((row["scenario"] for row in rows if row["step"] > 0), None),
        "tasks": names,
        "matrix": [_numbers(row) for row in R],
        "metrics": dict(zip(values, _numbers(values.values()), strict=True)),
        "seen": _numbers(R[i, : i + 1].mean() for i in range(len(R))),
        "forgetting": _numbers(R[j:last, j].max() - R[last, j] for j in range(last)),
    }


def _numbers(values: Any) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]


# -- the rest of the folder


def _search(combined: Mapping[str, Any]) -> dict[str, Any] | None:
    found = sorted((float(scale), score) for scale, score in (combined.get("candidates") or {}).items())
    if not found:
        return None
    chosen = combined.get("options", {}).get("scale")
    return {"scales": [scale for scale, _ in found], "scores": [score for _, score in found], "chosen": chosen}


def _losses(files: Files) -> list[dict[str, Any]]:
    """A loss curve for each task, as means over at most `POINTS` parts."""
    curves: dict[str, dict[int, float]] = {task["name"]: {} for task in files.tasks}
    for event in files.events:
        if event.get("event") == "step" and event.get("task") in curves:  # of a task learned twice the last time counts
            curves[event["task"]][event["step"]] = event["loss"]
    return [{"task": name, **_thinned(curve)} for name, curve in curves.items() if curve]


def _thinned(curve: Mapping[int, float]) -> dict[str, list[float]]:
    steps = sorted(step for step, loss in curve.items() if math.isfinite(loss))
    parts: list[Float[ndarray, "steps"]] = np.array_split(np.array(steps), min(POINTS, max(1, len(steps))))
    return {
        "steps": [float(part.mean()) for part in parts if len(part)],
        "loss": [float(np.mean([curve[step] for step in part])) for part in parts if len(part)],
    }


def _sentence(files: Files) -> str:
    """What was run."""
    recipe, names = files.recipe, [task["name"] for task in files.tasks]
    stream = recipe.get("stream")
    scenario = f", {stream['scenario']}-incremental" if isinstance(stream, dict) and stream.get("scenario") else ""
    tasks = f"{len(names)} task{'' if len(names) == 1 else 's'}"
    parts = [
        f"{tasks} of {_name(stream)}{scenario} ({', '.join(names) or 'none finished'})",
        f"learned one after another on {_name(recipe.get('backbone'))}",
        f"by method {_name(recipe.get('method'))}",
        f"and combined by rule {files.combined.get('name') or _name(recipe.get('rule'))}{_scale(files.combined)}",
        f"with seed {recipe.get('seed', 'unknown')}.",
    ]
    return " ".join(parts)


def _name(value: Any) -> str:
    """What a part of the recipe is called."""
    if isinstance(value, dict):
        value = next((value[key] for key in ("name", "model", "source", "benchmark") if value.get(key)), None)
    return "an unnamed one" if value is None or isinstance(value, list) else str(value)


def _scale(combined: Mapping[str, Any]) -> str:
    scale = combined.get("options", {}).get("scale")
    number = f"{scale:.3g}" if isinstance(scale, float) else scale
    searched = ", found by search on validation data" if combined.get("candidates") else ""
    return "" if scale is None else f" (λ = {number}{searched})"
