"""Tune a method's learning rate and main coefficient fairly, using only validation data.

Tuning on the whole stream, or on test data, would be looking ahead. Therefore, only the
first tasks are learned here, scores come from their validation examples, and every method
gets the same number of trials.

    OUTPUT/trials.jsonl  the recipe and protocol, then one trial per line: settings, score, seconds
    OUTPUT/tuned.yaml    the recipe with the best settings
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypedDict

from perdure.data.task import TaskStream
from perdure.errors import InputError, RunError, Stopped, TrainingError
from perdure.evaluation.measure import Evaluation
from perdure.evaluation.progress_bar import Progress
from perdure.evaluation.scales import with_best_scale
from perdure.evaluation.score import TaskId
from perdure.evaluation.system import System
from perdure.learning import engine
from perdure.learning.method import Method, Tuned
from perdure.merging.tpe import TPE, needed
from perdure.models.backbone import Backbone
from perdure.runs import story
from perdure.runs.job import Plan
from perdure.runs.recipe import Recipe
from perdure.seeds import derived
from perdure.settings import named
from perdure.storage import files, lock, staging

TRIALS = "trials.jsonl"
TUNED = "tuned.yaml"
RATE = "training.learning_rate"


class Trial(TypedDict):
    """One line of trials.jsonl.

    The score is measured on validation examples; it is None if the trial failed.
    """

    settings: dict[str, float]
    score: float | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The rules for tuning, which are the same for all methods in a comparison.

    Parameters
    ----------
    tasks
        The number of tasks to learn, from the beginning of the stream.
    trials
        The number of settings to try, including those of the recipe.
    task_id
        The `task_id` with which validation examples are scored.
    lowest, highest
        The range of the learning rate, as multiples of the recipe's. The search is on a
        logarithmic scale.
    seed
        Seed for the search.
    """

    tasks: int = 2
    trials: int = 10
    task_id: TaskId = "posterior"
    lowest: float = 1 / 30
    highest: float = 10.0
    seed: int = 0


@dataclass
class Tuning:
    """The result of `tune`.

    Attributes
    ----------
    trials
        All trials, each with its `settings`, `score` (the average on validation examples;
        None if training failed) and `seconds`.
    recipe
        The recipe with the best settings. Ties go to the settings that were tried first.
    """

    recipe: dict[str, object]
    trials: list[Trial] = field(default_factory=list)

    @property
    def best(self) -> Trial:
        """The trial with the highest score."""
        # a failed trial is worse than one that got every example wrong
        return max(
            self.trials, key=lambda trial: -1.0 if trial["score"] is None else trial["score"]
        )

    def lines(self) -> list[tuple[str, str]]:
        """Return each trial's score and settings as text, with the best trial first."""
        rows = []
        best_first = sorted(self.trials, key=lambda trial: -(trial["score"] or 0.0))
        for trial in best_first:
            score = trial["score"]
            percent = "failed" if score is None else f"{100 * score:.1f}"
            settings = []
            for name, value in trial["settings"].items():
                settings.append(f"{name}={value:g}")
            rows.append((percent, ", ".join(settings)))
        return rows


def tune(
    recipe: Recipe,
    output: str | Path,
    *,
    protocol: Protocol | None = None,
    stream: TaskStream | None = None,
    backbone: Backbone | None = None,
    quiet: bool = True,
) -> Tuning:
    """Search for the best learning rate and main coefficient (`Method.tuned`) of a recipe's method.

    A search that was stopped is resumed: trials that are already in `output` are not repeated.

    Parameters
    ----------
    output
        A folder for the trials and the tuned recipe.
    stream, backbone
        The recipe's stream and backbone, if the caller has already created them.

    Raises
    ------
    InputError
        Optuna is not installed, the stream has fewer tasks than the protocol, or the
        method has nothing to tune.
    RunError
        `output` contains trials of another recipe or protocol, or all trials failed.
    """
    if engine.count() > 1:
        raise InputError(
            "`tune` runs in a single process: start it without `accelerate launch` or `torchrun`."
        )
    protocol = protocol or Protocol()
    output = Path(output)
    # everything that can be rejected is rejected before the first trial, not after hours
    ranges = searched(recipe, protocol)
    needed("optuna", "`tune`")
    stream = stream or recipe.make_stream()
    if protocol.tasks > len(stream):
        raise InputError(f"`tasks` is {protocol.tasks}, but the stream has {len(stream)}.")
    plan = recipe.plan(stream, backbone)
    # nothing is measured on test data: `validation_score` computes the score of a trial
    plan = replace(
        plan,
        stream=stream.until(protocol.tasks),
        evaluation=Evaluation(steps="none"),
    )
    about = files.plain({"recipe": recipe.resolved(plan), "protocol": vars(protocol)})
    with files.refusing(output, verb="made"):
        output.mkdir(parents=True, exist_ok=True)
    files.check_place(output / TUNED)
    with lock.held(output):  # two processes would run the same trials
        trials = _begun(output, about)[: protocol.trials]
        progress = Progress(
            "Tuning",
            protocol.trials,
            done=len(trials),
            quiet=quiet,
            bar=False,
        )
        for number in range(len(trials), protocol.trials):
            settings = _asked(recipe, protocol, ranges, trials, number)
            trial = _trial(recipe, settings, plan, output, protocol.task_id, quiet=quiet)
            trials.append(trial)
            # each trial is on the disk before the next one begins
            with files.refusing(output / TRIALS):
                files.append(output / TRIALS, json.dumps(trial) + "\n")
            said = _said(number, protocol.trials, trial["score"])
            progress.to(number + 1, said, reached=True)
        return _finished(recipe, output, trials)


def _said(number: int, trials: int, score: float | None) -> str:
    outcome = "failed" if score is None else f"validation score {100 * score:.1f} %"
    return f"trial {number + 1} of {trials}, {outcome}"


def _finished(recipe: Recipe, output: Path, trials: list[Trial]) -> Tuning:
    """Write the recipe with the best settings, and return it with the trials."""
    best = Tuning({}, trials).best
    if best["score"] is None:
        raise RunError(
            f"All {len(trials)} trials failed: see `{output / TRIALS}`. "
            f"Lower `{RATE}` in the recipe."
        )
    tuned = _changed(recipe, best["settings"]).model_dump(exclude_none=True, exclude_defaults=True)
    # only what differs from the defaults, as a user would write it
    files.write(output / TUNED, files.to_yaml(files.plain(tuned)))
    return Tuning(tuned, trials)


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


def _begun(output: Path, about: dict[str, dict[str, object]]) -> list[Trial]:
    """Return the trials of an earlier search; create the file if there is none.

    Raises
    ------
    RunError
        The file contains trials of another recipe or protocol.
    """
    path = output / TRIALS
    if not path.exists():
        files.write(path, json.dumps(about) + "\n")
        return []
    lines = []
    whole = []
    for line in files.read_lines(path):
        if line.endswith(b"\n"):  # the last line is incomplete if the process was killed
            lines.append(files.parse_json(line, f"`{path}`"))
            whole.append(line)
    # scores of other settings, data or protocols cannot be compared with new ones
    if not lines or _without_trials(lines[0]) != _without_trials(about):
        raise RunError(
            f"`{output}` contains trials of another recipe or protocol. Choose another `--output`."
        )
    # rewritten without an incomplete line, which would make the file unreadable
    files.write(path, b"".join(whole))
    return lines[1:]


def _without_trials(about: dict[str, dict[str, object]]) -> dict[str, object]:
    """Return a header with its number of trials set to 0, because a search can be extended."""
    protocol = {**about.get("protocol", {}), "trials": 0}
    return {**about, "protocol": protocol}


def _asked(
    recipe: Recipe,
    protocol: Protocol,
    ranges: dict[str, Tuned],
    trials: Sequence[Trial],
    number: int,
) -> dict[str, float]:
    """Return the settings for a trial: the recipe's own, then random ones, then suggestions by TPE.

    The random numbers depend only on the seed and on the trial's number, so a search that
    was stopped continues as if it had never stopped.
    """
    if number == 0:
        return {name: _value_in(recipe, name) for name in ranges}
    searcher = TPE(
        {name: (tuned.low, tuned.high) for name, tuned in ranges.items()},
        derived(protocol.seed, number),
        optuna=needed("optuna", "`tune`"),
        logarithmic=True,
        startup=4,  # trials before TPE is used: the recipe's own, and three random ones
    )
    for trial in trials:
        searcher.add(trial["settings"], trial["score"] or 0.0)
    asked = searcher.ask()
    settings = {}
    for name, tuned in ranges.items():
        # three digits are enough and fit into a table; rounding may lead out of the range
        rounded = float(f"{asked[name]:.3g}")
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


def _changed(recipe: Recipe, settings: dict[str, float]) -> Recipe:
    values = recipe.model_dump(exclude_none=True)
    changes = []
    for name, value in settings.items():
        changes.append(f"{name}={value!r}")  # `repr` keeps every digit of a number
    return Recipe.parse(values, changes)


def _trial(
    recipe: Recipe,
    settings: dict[str, float],
    plan: Plan,
    output: Path,
    task_id: TaskId,
    *,
    quiet: bool,
) -> Trial:
    """Learn the first tasks with these settings, and score the result."""
    started = time.perf_counter()
    changed = _changed(recipe, settings)
    score = _score(changed, plan, output, task_id, quiet=quiet)
    seconds = time.perf_counter() - started
    return {
        "settings": settings,
        "score": score,
        "seconds": round(seconds, 3),
    }


def _score(
    changed: Recipe, plan: Plan, output: Path, task_id: TaskId, *, quiet: bool
) -> float | None:
    """Return the average validation score of the first tasks; None if training failed."""
    plan = replace(plan, method=changed.make_method(), training=changed.make_training())
    plan = replace(plan, recipe=changed.resolved(plan))
    with staging.hidden_folder(output) as folder:
        try:
            system = story.run(plan, folder / "trial", quiet=quiet)
        except TrainingError:  # the loss is not a number: the learning rate is too high
            return None
        except Stopped as stop:  # its own hint names the trial's folder, which no longer exists
            raise Stopped(
                "Stopped. Finished trials are kept. Continue with the same command.",
                signal=stop.signal,
            ) from None
        return validation_score(system, plan.stream, task_id)


def validation_score(system: System, stream: TaskStream, task_id: TaskId) -> float:
    """Return the mean of all tasks' scores on their validation examples.

    If the rule searches for its scale, the best scale is used.
    """
    acting, _ = with_best_scale(system, stream)
    scores = []
    for task in stream:
        answers = acting.answer(task, "validation", [task_id])
        scores.append(answers.scores()[task_id])
    return sum(scores) / len(scores)
