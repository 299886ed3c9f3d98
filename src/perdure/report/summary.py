"""Run folders → one plain dict, which JSON can hold."""

import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perdure.errors import RunError
from perdure.evaluation import metrics
from perdure.report import classes
from perdure.report.folder import Files, read
from perdure.report.plain import plain
from perdure.report.seeds import groups

METRICS = {
    "average_accuracy": "Average accuracy",
    "average_incremental_accuracy": "Average incremental accuracy",
    "backward_transfer": "Backward transfer",
    "forgetting": "Forgetting",
    "forward_transfer": "Forward transfer",
}
TASK_IDS = {
    "given": "task given",
    "posterior": "task posterior",
    "concatenated": "heads concatenated",
}
NOTHING = "Nothing is measured yet of the tasks as they are now. `perdure evaluate` does it."
POINTS = 100  # of a loss curve, at most
ALL_POINTS = 8000  # of all of them, about


def summarise(folders: Sequence[str | Path]) -> dict[str, Any]:
    """All that a report says about runs, as plain lists, dicts, strings and numbers (None: not measured).

    `runs` has one entry for each folder; `groups` one for each set of runs that differ in their seed only.

    Raises
    ------
    RunError
        There is no folder, or one is not a run.
    """
    if not folders:
        raise RunError("There is nothing to report. Give at least one run folder.")
    files = [read(folder) for folder in folders]
    points = max(8, min(POINTS, ALL_POINTS // max(1, sum(len(one.tasks) for one in files))))
    runs = [
        plain(_run(one, title, points)) for one, title in zip(files, _titles(files), strict=True)
    ]
    measured = {name for run in runs for result in run["results"] for name in result["metrics"]}
    shown = {name: _metric(name) for name in METRICS if name in measured}
    return {"metrics": shown, "runs": runs, "groups": groups(runs)}


def _titles(files: Sequence[Files]) -> list[str]:
    """The recipe's name, else the folder's; the folder is added where two are the same."""
    titles = [str(one.recipe.get("name") or one.folder.resolve().name) for one in files]
    same = [titles.count(title) > 1 for title in titles]
    return [
        f"{t} ({one.folder})" if s else t for t, s, one in zip(titles, same, files, strict=True)
    ]


def _metric(name: str) -> dict[str, str]:
    definition = (inspect.getdoc(getattr(metrics, name)) or "").split("\n\n")[0]
    definition = " ".join(definition.split())
    return {"title": METRICS[name], "symbol": definition.split(" = ")[0], "definition": definition}


def _run(files: Files, title: str, points: int) -> dict[str, Any]:
    learned = {event.get("task"): event for event in files.events if event.get("event") == "task"}
    for task in (tasks := [dict(task) for task in files.tasks]):
        event = learned.get(task["name"], {})
        task |= {
            name: event.get(name) for name in ("seconds", "examples", "trained", "state_bytes")
        }
    results = _results(files)
    return {
        "title": title,
        "folder": str(files.folder),
        "sentence": _sentence(files),
        "status": _status(files),
        "problems": [*files.problems, *_not_measured(files, results)],
        "rule": files.combined.get("label", files.combined.get("name")),
        "tasks": tasks,
        "results": results,
        "classes": classes.summarise(files.answers),
        "search": _search(files.combined),
        "losses": _losses(files, points),
        "cost": _cost(tasks),
        "diagnostics": files.diagnostics,
        "recipe": files.recipe,
        "environment": files.environment,
    }


# -- scores


def _results(files: Files) -> list[dict[str, Any]]:
    """One for each rule, way to know the task, and metric."""
    names = {task["name"] for task in files.tasks}
    rows = [row for row in files.scores if 0 < row["step"] <= len(names) and row["task"] in names]
    measured = [row for row in rows if math.isfinite(row["value"])]
    keys = list(dict.fromkeys((row["rule"], row["task_id"], row["metric"]) for row in measured))
    rules = [rule for rule, _, _ in keys]
    ways = [*TASK_IDS, *(way for _, way, _ in keys)]
    keys.sort(key=lambda key: (rules.index(key[0]), ways.index(key[1])))
    return [_result(files, *key) for key in keys]


def _result(files: Files, rule: str, task_id: str, metric: str) -> dict[str, Any]:
    names = [task["name"] for task in files.tasks]
    place = {name: number for number, name in enumerate(names)}
    rows = [row for row in files.scores if (row["task_id"], row["metric"]) == (task_id, metric)]
    R = np.full((len(names), len(names)), np.nan)
    zero_shot = np.full(len(names), np.nan)
    for row in rows:
        if row["task"] not in place:
            continue
        if row["step"] == 0:  # nothing was combined yet: the same for every rule
            zero_shot[place[row["task"]]] = row["value"]
        elif row["rule"] == rule and row["step"] <= len(names):
            R[row["step"] - 1, place[row["task"]]] = row["value"]
    values = metrics.summary(R, None if np.isnan(zero_shot).all() else zero_shot)
    counts = classes.examples(files.answers)
    known_counts = metric == "accuracy" and set(names) <= counts.keys()
    examples = np.array([counts[name] for name in names]) if known_counts else None
    last = len(names) - 1
    known = TASK_IDS.get(task_id, task_id)
    return {
        "name": " · ".join([rule, known, *([metric] if metric != "accuracy" else [])]),
        "rule": rule,
        "task_id": task_id,
        "known": known,
        "metric": metric,
        "scenario": rows[-1]["scenario"],
        "tasks": names,
        "matrix": [_numbers(row) for row in R],
        "metrics": dict(zip(values, _numbers(values.values()), strict=True)),
        "examples": None if examples is None else int(examples.sum()),
        "standard_error": None
        if examples is None
        else _number(metrics.standard_error(R[-1], examples)),
        "learned": _number(np.diag(R).mean()),
        "seen": _numbers(R[i, : i + 1].mean() for i in range(len(R))),
        "forgetting": _numbers(R[j:last, j].max() - R[last, j] for j in range(last)),
    }


def _not_measured(files: Files, results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say what was not measured after the last task: an average over the tasks needs all of them."""
    rule = files.combined.get("label")
    if files.running or (
        results and rule is None
    ):  # it is not known yet, or no longer, what would be due
        return []
    if not files.tasks:
        return ["No task is learned yet, so nothing is measured."]
    measured = set[str]()
    for result in results:
        if result["rule"] == rule:
            last = zip(result["tasks"], result["matrix"][-1], strict=True)
            measured |= {name for name, value in last if value is not None}
    missing = [f"`{task['name']}`" for task in files.tasks if task["name"] not in measured]
    if not missing:
        return []
    if not measured:
        return [NOTHING]
    verb = "was" if len(missing) == 1 else "were"
    return [
        f"After the last task {_few(missing)} {verb} not measured, so averages over all {len(files.tasks)} tasks are "
        "not given (–). The scores of each task are in the accuracy matrix."
    ]


def _few(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _numbers(values: Any) -> list[float | None]:
    return [_number(value) for value in values]


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


# -- the rest of the folder


def _status(files: Files) -> str:
    """What a run does or did when it was read, if it is not finished; else nothing."""
    started = [event for event in files.events if event.get("event") == "step"]
    finished = {task["name"] for task in files.tasks}
    task, step = (started[-1].get("task"), started[-1].get("step")) if started else (None, None)
    inside = f"task {task} is at step {step}" if task and task not in finished else ""
    done = f"{len(finished)} task{' is' if len(finished) == 1 else 's are'} finished"
    if files.running:
        return f"Running now: {done}{', and ' if inside else ''}{inside}."
    return f"Stopped: {done}, and {inside}." if inside else ""


def _search(combined: Mapping[str, Any]) -> dict[str, Any] | None:
    """The candidates of the last search, their scores, and the one that was taken."""
    found = combined.get("candidates", [])
    if not found or any(
        isinstance(one["scale"], dict) for one in found
    ):  # one for each task is no curve
        return None
    found = sorted(found, key=lambda one: one["scale"])
    scores = _numbers(one["score"] for one in found)
    return {
        "scales": [one["scale"] for one in found],
        "scores": scores,
        "chosen": combined["options"].get("scale"),
    }


def _losses(files: Files, points: int) -> list[dict[str, Any]]:
    """A loss curve for each task, as means over so many parts at most; also of one that is not finished."""
    curves: dict[str, dict[int, float]] = {task["name"]: {} for task in files.tasks}
    for event in files.events:
        step, loss = event.get("step"), event.get("loss")
        if (
            event.get("event") == "step"
            and isinstance(step, int)
            and isinstance(loss, float)
            and math.isfinite(loss)
        ):
            # a task that was begun twice: the last time counts
            curves.setdefault(str(event.get("task")), {})[step] = loss
    return [{"task": name, **_thinned(curve, points)} for name, curve in curves.items() if curve]


def _thinned(curve: Mapping[int, float], points: int) -> dict[str, list[float]]:
    steps = np.array(sorted(curve.items()))
    means = [part.mean(axis=0) for part in np.array_split(steps, min(points, len(steps)))]
    return {"steps": [float(step) for step, _ in means], "loss": [float(loss) for _, loss in means]}


def _cost(tasks: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """What all tasks took together; of the parameters the most that were trained for one."""
    kept: dict[str, list[Any]] = {}
    for name in ("seconds", "trained", "bytes", "state_bytes"):
        kept[name] = [task.get(name) for task in tasks if task.get(name) is not None]
    return {
        "seconds": sum(kept["seconds"]) if kept["seconds"] else None,
        "trained": max(kept["trained"], default=None),
        "bytes": sum(kept["bytes"]) if kept["bytes"] else None,
        "state_bytes": kept["state_bytes"][-1] if kept["state_bytes"] else None,
    }


def _sentence(files: Files) -> str:
    """What was run."""
    recipe, names = files.recipe, [task["name"] for task in files.tasks]
    stream = recipe.get("stream")
    own = isinstance(stream, list)  # tables of one's own; the scenario then stands beside them
    scenario = (recipe if own else stream if isinstance(stream, dict) else {}).get("scenario")
    kind = f"{scenario}-incremental " if scenario else ""
    listed = ", ".join(names) if len(names) <= 20 else f"{', '.join(names[:18])} … {names[-1]}"
    order = "learned in this order" if len(names) > 1 else "learned"
    parts = [
        f"{len(names)} {kind}task{'' if len(names) == 1 else 's'} of {'own data' if own else _name(stream)}",
        f"({listed or 'none finished'}), {order} on {_name(recipe.get('backbone'))}",
        f"by method {_name(recipe.get('method'))},",
        f"combined by rule {files.combined.get('name') or _name(recipe.get('rule'))}",
        f"{_scale(files.combined)}with seed {recipe.get('seed', 'unknown')}.",
    ]
    return " ".join(parts)


def _name(value: Any) -> str:
    """What a part of the recipe is called: itself, or its name."""
    if isinstance(value, dict):
        value = value.get("name") or value.get("model")
    return "an unnamed one" if value is None else str(value)


def _text(scale: Any) -> str:
    """A scale, or those of tasks and their parts, as text."""
    if isinstance(scale, dict):
        return ", ".join(f"{task} {_text(value)}" for task, value in scale.items())
    if isinstance(scale, list):
        return "/".join(_text(value) for value in scale)
    return f"{scale:.3g}" if isinstance(scale, float) else str(scale)


def _scale(combined: Mapping[str, Any]) -> str:
    scale = combined.get("options", {}).get("scale")
    searched = ", found by search on validation data" if combined.get("candidates") else ""
    return "" if scale is None else f"(λ = {_text(scale)}{searched}) "
