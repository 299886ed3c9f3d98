"""Run folders → one plain dict, which can be written as JSON."""

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from perdure.errors import RunError
from perdure.evaluation import metrics
from perdure.evaluation.metrics import is_score
from perdure.report import classes, general, sweeps, unknown
from perdure.report.folder import Files, read
from perdure.report.markdown import few, kind_of_score
from perdure.report.plain import Record, plain
from perdure.report.seeds import groups
from perdure.report.sentence import sentence

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
    "none": "not known",
}
NOTHING = "Nothing has been measured yet for the current tasks. `perdure evaluate` does it."
POINTS = 100
"""The maximum number of points of a loss curve."""
ALL_POINTS = 8000
"""The approximate total number of points of all loss curves on a page."""


def summarise(folders: Sequence[str | Path]) -> Record:
    """Return everything that a report shows about runs, as plain lists, dicts, text and numbers.

    `runs` has one entry for each folder; `groups` has one for each set of runs that
    differ only in their seed. A number that was not measured is None. The folder of a
    sweep stands for all runs in it; `failed` has an entry for each trial that failed.

    Raises
    ------
    RunError
        No folder is given, or one of them is not a run.
    """
    if not folders:
        raise RunError("There is nothing to report. Give at least one run folder.")
    files = [read(folder) for folder in sweeps.runs_of(folders)]
    # Many long streams would make a page too large to open, but each curve needs some points.
    curves = max(1, sum(len(run.tasks) for run in files))
    share = ALL_POINTS // curves
    points = max(8, min(POINTS, share))
    runs = []
    for run, title in zip(files, _titles(files), strict=True):
        whole = _run(run, title, points)
        runs.append(plain(whole))
    measured = set[str]()
    scores = set[str]()
    for run in runs:
        for result in run["results"]:
            measured.update(result["metrics"])
            scores.add(result["metric"])
    word = "accuracy" if scores == {"accuracy"} else "score"
    shown = {name: _metric(name, word) for name in METRICS if name in measured}
    summary: Record = {"metrics": shown, "runs": runs, "groups": groups(runs)}
    failed = sweeps.failures(folders)
    if failed:
        summary["failed"] = plain(failed)
    return summary


def _titles(files: Sequence[Files]) -> list[str]:
    """Return the title of each run: the name in its recipe, or else the name of its folder.

    If several runs have the same name, their folders are added.
    """
    names = []
    for run in files:
        name = run.recipe.get("name") or run.folder.resolve().name
        names.append(str(name))
    titles = []
    for name, run in zip(names, files, strict=True):
        title = name
        if names.count(name) > 1:
            title = f"{name} ({run.folder})"
        titles.append(title)
    return titles


def _metric(name: str, word: str = "accuracy") -> dict[str, str]:
    """Return the title, the symbol and the definition of a metric.

    The definition is the first paragraph of the metric's docstring. In the title, `word`
    replaces "accuracy".
    """
    docstring = inspect.getdoc(getattr(metrics, name)) or ""
    paragraph = docstring.split("\n\n")[0]
    definition = " ".join(paragraph.split())
    # Each definition starts with a formula: "AA = …".
    symbol = definition.split(" = ")[0]
    title = METRICS[name].replace("accuracy", word)
    return {"title": title, "symbol": symbol, "definition": definition}


def _run(files: Files, title: str, points: int) -> Record:
    tasks = _tasks(files)
    results = _results(files)
    return {
        "title": title,
        "folder": str(files.folder),
        "sentence": sentence(files),
        "status": _status(files),
        "problems": [*files.problems, *_not_measured(files, results)],
        "rule": files.combined.get("label", files.combined.get("name")),
        "tasks": tasks,
        "results": results,
        "classes": classes.summarise(files.answers),
        "general": general.summarise(files),
        "unknown": unknown.summarise(files),
        "search": _search(files.combined),
        "losses": _losses(files, points),
        "cost": _cost(tasks),
        "diagnostics": files.diagnostics,
        "recipe": files.recipe,
        "environment": files.environment,
    }


def _tasks(files: Files) -> list[Record]:
    """Return the tasks, with their scores and what the events say about learning them."""
    learned = {}
    for event in files.events:
        if event.get("event") == "task":
            name = event.get("task")
            learned[name] = event
    scores = files.score_names
    tasks = []
    for task in files.tasks:
        event = learned.get(task["name"], {})
        tasks.append(
            {
                **task,
                "score": scores.get(task["name"]),
                "seconds": event.get("seconds"),
                "examples": event.get("examples"),
                "trained": event.get("trained"),
                "state_bytes": event.get("state_bytes"),
                "store_bytes": event.get("store_bytes"),
            }
        )
    return tasks


# -- scores


def _results(files: Files) -> list[Record]:
    """Return a result for each rule and `task_id`, with each task measured by its own score."""
    names = {task["name"] for task in files.tasks}
    # Dicts rather than sets, to keep the order of the file.
    keys = {}
    rules = {}
    ways = dict.fromkeys(TASK_IDS)
    for row in files.scores:
        # Rows of tasks that were forgotten, or of steps with them, do not belong to any result.
        current = 0 < row["step"] <= len(names) and row["task"] in names
        if not current or not is_score(row) or not math.isfinite(row["value"]):
            continue
        rule = row["rule"]
        way = row["task_id"]
        keys[rule, way] = None
        rules[rule] = None
        ways[way] = None
    # For each rule, the `task_id`s that perdure knows come first.
    rule_order = list(rules)
    way_order = list(ways)

    def position(key: tuple[str, str]) -> tuple[int, int]:
        rule, way = key
        return rule_order.index(rule), way_order.index(way)

    return [_result(files, *key) for key in sorted(keys, key=position)]


def _result(files: Files, rule: str, task_id: str) -> Record:
    names = [task["name"] for task in files.tasks]
    of_tasks = files.score_names
    rows = []
    for row in files.scores:
        if row["task_id"] == task_id and row["metric"] == of_tasks.get(row["task"]):
            rows.append(row)
    # A single name if all tasks have the same score, otherwise all names: scores are averaged.
    scores = [of_tasks.get(name) for name in names]
    metric = ", ".join(dict.fromkeys(score for score in scores if score))
    R, zero_shot = _scores(rows, rule, names)
    before = None if np.isnan(zero_shot).all() else zero_shot
    values = metrics.summary(R, before)

    examples = None
    standard_error = None
    counts = classes.examples(files.answers)
    # The formula is for a share of right answers, and needs the number of test examples
    # of every task. Those with answers in free text are not counted.
    if metric == "accuracy" and all(counts.get(name) for name in names):
        sizes = np.array([counts[name] for name in names])
        examples = int(sizes.sum())
        error = metrics.standard_error(R[-1], sizes)
        standard_error = _number(error)

    known = TASK_IDS.get(task_id, task_id)
    title = f"{rule} · {known}"
    if metric != "accuracy":
        title += f" · {kind_of_score(metric)}"
    return {
        "name": title,
        "rule": rule,
        "task_id": task_id,
        "known": known,
        "metric": metric,
        "scenario": rows[-1]["scenario"],
        "tasks": names,
        "scores": scores,
        "matrix": [_numbers(row) for row in R],
        "metrics": dict(zip(values, _numbers(values.values()), strict=True)),
        "examples": examples,
        "standard_error": standard_error,
        "learned": _number(np.diag(R).mean()),
        "seen": _seen(R),
        "forgetting": _forgetting(R),
        "calibration": _calibration(files, rule, task_id, names),
    }


def _calibration(
    files: Files, rule: str, task_id: str, names: Sequence[str]
) -> list[list[float | None]]:
    """Return the calibration error on each task after each task; empty if it was not measured."""
    rows = []
    for row in files.scores:
        if row["task_id"] == task_id and row["metric"] == metrics.CALIBRATION_ERROR:
            rows.append(row)
    errors, _ = _scores(rows, rule, names)
    if np.isnan(errors).all():
        return []
    return [_numbers(row) for row in errors]


def _seen(R: Float[ndarray, "steps tasks"]) -> list[float | None]:
    """Return the mean score on the tasks seen so far, after each task."""
    means = []
    for step, scores in enumerate(R):
        seen = scores[: step + 1]
        means.append(_number(seen.mean()))
    return means


def _forgetting(R: Float[ndarray, "steps tasks"]) -> list[float | None]:
    """Return, for each task but the last, its best earlier score minus its last score."""
    last = len(R) - 1
    losses = []
    for task in range(last):
        best = R[task:last, task].max()
        losses.append(_number(best - R[last, task]))
    return losses


def _scores(
    rows: Sequence[Record], rule: str, names: Sequence[str]
) -> tuple[Float[ndarray, "steps tasks"], Float[ndarray, " tasks"]]:
    """Return the accuracy matrix R of a rule, and the scores of tasks before any was learned."""
    index = {name: number for number, name in enumerate(names)}
    count = len(names)
    R = np.full((count, count), np.nan)
    zero_shot = np.full(count, np.nan)
    for row in rows:
        if row["task"] not in index:
            continue
        step = row["step"]
        task = index[row["task"]]
        if step == 0:  # nothing was combined yet: the same for every rule
            zero_shot[task] = row["value"]
        elif row["rule"] == rule and step <= count:
            R[step - 1, task] = row["value"]
    return R, zero_shot


def _not_measured(files: Files, results: Sequence[Record]) -> list[str]:
    """Return sentences on scores that are missing after the last task, so there is no average."""
    rule = files.combined.get("label")
    # A run in progress may still measure them; without its rule, it is not known what is missing.
    if files.running or (results and rule is None):
        return []
    if not files.tasks:
        return ["No task has been learned yet, so nothing was measured."]
    by_way: dict[str, set[str]] = {}
    for result in results:
        if result["rule"] != rule:
            continue
        of_way = by_way.setdefault(result["task_id"], set())
        for name, value in zip(result["tasks"], result["matrix"][-1], strict=True):
            if value is not None:
                of_way.add(name)
    measured = set[str]().union(*by_way.values())
    missing = [f"`{task['name']}`" for task in files.tasks if task["name"] not in measured]
    if not missing:
        return _not_answered(str(rule), measured, by_way.get("none", measured))
    if not measured:
        return [NOTHING]
    verb = "was" if len(missing) == 1 else "were"
    return [
        f"After the last task, {few(missing)} {verb} not measured, so averages over all "
        f"{len(files.tasks)} tasks are not given (–). The scores of each task are in the matrix of "
        "scores."
    ]


def _not_answered(rule: str, measured: set[str], without_task: set[str]) -> list[str]:
    """Return a sentence on free-text tasks that a routed rule cannot answer if none is given."""
    missing = [f"`{name}`" for name in sorted(measured - without_task)]
    if not missing:
        return []
    return [
        f"The rule `{rule}` has a model for each task, but none for all tasks: if the task is not "
        f"known at all, {few(missing)} cannot be answered with free text (–)."
    ]


def _numbers(values: Iterable[float]) -> list[float | None]:
    return [_number(value) for value in values]


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


# -- the rest of the folder


def _status(files: Files) -> str:
    """Describe what an unfinished run is doing, or where it stopped; empty for a finished run."""
    finished = {task["name"] for task in files.tasks}
    count = len(finished)
    verb = " is" if count == 1 else "s are"
    done = f"{count} task{verb} finished"
    inside = _unfinished_task(files.events, finished)
    if inside:
        done += f", and {inside}"
    if files.running:
        return f"Running now: {done}."
    # A run that no process is writing, and that is not in the middle of a task, is finished.
    return f"Stopped: {done}." if inside else ""


def _unfinished_task(events: Sequence[Record], finished: set[str]) -> str:
    """Describe which step of an unfinished task a run has reached; empty if there is none."""
    steps = [event for event in events if event.get("event") == "step"]
    if not steps:
        return ""
    task = steps[-1].get("task")
    if not task or task in finished:
        return ""
    return f"task {task} is at step {steps[-1].get('step')}"


def _search(combined: Record) -> Record | None:
    """Return the scales that the last search tried, their scores, and the scale that was chosen.

    Return None if there was no search, or if it was for one scale per task.
    """
    candidates = combined.get("candidates", [])
    if not candidates:
        return None
    # One scale per task is a point in many dimensions, for which no curve can be drawn.
    if any(isinstance(candidate["scale"], dict) for candidate in candidates):
        return None
    candidates = sorted(candidates, key=lambda candidate: candidate["scale"])
    return {
        "scales": [candidate["scale"] for candidate in candidates],
        "scores": _numbers(candidate["score"] for candidate in candidates),
        "chosen": combined["options"].get("scale"),
    }


def _losses(files: Files, points: int) -> list[Record]:
    """Return the loss curve of each task, finished or not, averaged to at most `points` points."""
    curves: dict[str, dict[int, float]] = {task["name"]: {} for task in files.tasks}
    for event in files.events:
        if event.get("event") != "step":
            continue
        step = event.get("step")
        loss = event.get("loss")
        # The event log is a file that anybody may have written.
        if not isinstance(step, int) or not isinstance(loss, float):
            continue
        if math.isfinite(loss):
            name = str(event.get("task"))
            curve = curves.setdefault(name, {})
            # A task that was started again has some steps twice; the later ones count.
            curve[step] = loss
    losses = []
    for name, curve in curves.items():
        if curve:
            losses.append({"task": name, **_thinned(curve, points)})
    return losses


def _thinned(curve: Mapping[int, float], points: int) -> dict[str, list[float]]:
    # Means over several steps, because the losses of single mini-batches are noisy.
    steps = np.array(sorted(curve.items()))
    stretches = np.array_split(steps, min(points, len(steps)))
    means = [stretch.mean(axis=0) for stretch in stretches]
    return {
        "steps": [float(step) for step, _ in means],
        "loss": [float(loss) for _, loss in means],
    }


def _cost(tasks: Sequence[Record]) -> Record:
    """Return the total cost of all tasks; for trained parameters, the maximum over tasks."""
    seconds = _known(tasks, "seconds")
    sizes = _known(tasks, "bytes")
    states = _known(tasks, "state_bytes")
    stores = _known(tasks, "store_bytes")
    return {
        "seconds": sum(seconds) if seconds else None,
        "trained": max(_known(tasks, "trained"), default=None),
        "bytes": sum(sizes) if sizes else None,
        # These are the sizes of everything that is kept after a task, so the last ones count.
        "state_bytes": states[-1] if states else None,
        "store_bytes": stores[-1] if stores else None,
    }


def _known(tasks: Sequence[Record], key: str) -> list[float]:
    values = [task.get(key) for task in tasks]
    return [value for value in values if value is not None]
