"""A run's numbers → yes or no: whether its current model is good enough to ship."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from perdure.errors import InputError, RunError
from perdure.report.markdown import number, percent
from perdure.report.plain import Record
from perdure.report.series import FIRST_WAYS
from perdure.report.summary import summarise
from perdure.report.terminal import say
from perdure.report.terminal_table import print_table

ROUNDING = 1e-9
"""The tolerance that lets a drop equal to the limit pass in spite of rounding errors."""


@dataclass(frozen=True)
class Kept:
    """The score of one task when it was learned and now.

    Attributes
    ----------
    score
        The name of the score.
    learned, now
        The score right after the task was learned, and after the last task; None if not measured.
    drop
        The drop of the score since the task was learned, in points: 100 · (learned - now).
    """

    task: str
    score: str | None
    learned: float | None
    now: float | None
    drop: float | None
    passes: bool


@dataclass(frozen=True)
class Verdict:
    """The verdict of `perdure gate`.

    Attributes
    ----------
    task_id
        The `task_id` of the scores that were compared.
    rise
        The rise of the cross-entropy on plain text, in nats per token; None if `drift` is None.
    """

    passes: bool
    rule: str
    task_id: str
    tasks: tuple[Kept, ...]
    forgetting: float
    drift: float | None
    rise: float | None

    def plain(self) -> Record:
        """Return the verdict as a dict that can be written as JSON."""
        return asdict(self)


def gate(
    folder: str | Path,
    *,
    forgetting: float = 2.0,
    drift: float | None = None,
    task_id: str | None = None,
) -> Verdict:
    """Decide whether the current model of a run is good enough on its tasks and on plain text.

    Tasks that were not measured do not pass.

    Parameters
    ----------
    forgetting
        The maximum number of points that the score of a task may drop after it was learned.
    drift
        The maximum rise of the cross-entropy on plain text since before the first task,
        in nats per token. It is measured by runs with `evaluation.general`. None skips
        this test.
    task_id
        The `task_id` of the scores to compare; by default, the first of `posterior`,
        `none` and `given` that was measured.

    Raises
    ------
    RunError
        The folder is not a run or is damaged, or no scores were measured that can be compared.
    InputError
        A limit is negative or not a number, or the run was not measured with that `task_id`.
    """
    for name, limit in (("forgetting", forgetting), ("drift", drift)):
        if limit is not None and not 0 <= limit < float("inf"):
            raise InputError(f"`{name}` is {limit}, but must be 0 or more.")
    run = summarise([folder])["runs"][0]
    result = _result(run, task_id)
    tasks = tuple(_kept(result, column, forgetting) for column in range(len(result["tasks"])))
    rise = None if drift is None else _rise(run)
    passes = all(task.passes for task in tasks)
    if drift is not None and rise is not None:
        passes = passes and rise <= drift + ROUNDING
    return Verdict(passes, run["rule"], result["task_id"], tasks, forgetting, drift, rise)


def _result(run: Record, task_id: str | None) -> Record:
    """Return the result with the scores to compare, for the run's own rule."""
    by_way = {}
    for result in run["results"]:
        if result["rule"] == run["rule"]:
            by_way[result["task_id"]] = result
    if not by_way:
        reason = " ".join(run["problems"]) or "Nothing was measured with its own rule."
        raise RunError(f"`{run['folder']}` cannot be judged: {reason}")
    if task_id is None:
        task_id = next((way for way in FIRST_WAYS if way in by_way), next(iter(by_way)))
    if task_id not in by_way:
        raise InputError(
            f"`{run['folder']}` was not measured with `task_id` `{task_id}`. "
            f"It was measured with: {', '.join(by_way)}."
        )
    return by_way[task_id]


def _kept(result: Record, column: int, limit: float) -> Kept:
    learned = result["matrix"][column][column]
    now = result["matrix"][-1][column]
    drop = None
    if learned is not None and now is not None:
        drop = 100 * (learned - now)
    return Kept(
        task=result["tasks"][column],
        score=result["scores"][column],
        learned=learned,
        now=now,
        drop=drop,
        passes=drop is not None and drop <= limit + ROUNDING,
    )


def _rise(run: Record) -> float:
    for values in run["general"]:
        rise = values["rise"][-1]
        if values["rule"] == run["rule"] and rise is not None:
            return rise
    raise RunError(
        f"`{run['folder']}` cannot be judged by `drift`: its loss on plain text was not measured "
        "before the first task and after the last. If it is a language model, "
        f"`perdure run {run['folder']} --set evaluation.general=true` measures it; an encoder has "
        "no such loss."
    )


def show(verdict: Verdict, console: Console | None = None) -> None:
    """Print yes or no for each task, and then the verdict."""
    console = console or Console()
    rows = []
    for task in verdict.tasks:
        score = f"{task.task} ({task.score})" if task.score else task.task
        # A drop is already in points.
        drop = number(task.drop, 1)
        answer = "yes" if task.passes else "no"
        rows.append([score, percent(task.learned), percent(task.now), drop, answer])
    header = ["task", "learned", "now", "drop", "kept"]
    print_table(console, header, rows, texts=(0, 4))
    for sentence in sentences(verdict):
        say(console, sentence)


def sentences(verdict: Verdict) -> Sequence[str]:
    """Return the verdict as sentences: yes, or no with the reasons."""
    limit = f"{verdict.forgetting:g}"
    points = "1 point" if limit == "1" else f"{limit} points"
    lost = [f"`{task.task}`" for task in verdict.tasks if task.drop is not None and not task.passes]
    unknown = [f"`{task.task}`" for task in verdict.tasks if task.drop is None]
    reasons = []
    if lost:
        reasons.append(f"more than {points} lost on {', '.join(lost)}")
    if unknown:
        reasons.append(f"not measured both when learned and now: {', '.join(unknown)}")
    if verdict.drift is not None and verdict.rise is not None:
        said = f"cross-entropy on plain text {number(verdict.rise, 3, signed=True)} nats per token"
        if verdict.rise > verdict.drift + ROUNDING:
            reasons.append(f"{said}, more than {verdict.drift:g}")
        else:
            points += f", and {said} (at most {verdict.drift:g})"
    if verdict.passes:
        return [f"Yes: no task has lost more than {points}."]
    return [f"No: {'; '.join(reasons)}."]
