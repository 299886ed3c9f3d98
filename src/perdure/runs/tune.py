"""Tune a method fairly: its learning rate and main coefficient, on validation data of the first tasks alone.

Who tunes on the whole stream, or on test data, has looked ahead. So here only the first tasks are learned, scored are
their validation examples, and every method has the same number of trials.

    OUTPUT/trials.jsonl   what is tuned, then one trial a line: settings, score, seconds
    OUTPUT/tuned.yaml     the recipe with the best settings
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

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

TRIALS, TUNED = "trials.jsonl", "tuned.yaml"
RATE = "training.learning_rate"


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a method is tuned; the same for all that are to be compared.

    Parameters
    ----------
    tasks
        Only so many of the stream's first tasks are looked at.
    trials
        How many settings are tried: first the recipe's own.
    task_id
        How the task of a validation example is known when it is scored.
    lowest, highest
        The learning rate is searched from so many times the recipe's to so many times, on a logarithmic scale.
    seed
        Of the search.
    """

    tasks: int = 2
    trials: int = 10
    task_id: TaskId = "posterior"
    lowest: float = 1 / 30
    highest: float = 10.0
    seed: int = 0


@dataclass
class Tuning:
    """What came of it.

    Attributes
    ----------
    trials
        Each with its `settings`, `score` (average validation accuracy; nothing if training failed) and `seconds`.
    recipe
        The recipe with the best settings: of equally good ones those that were tried first.
    """

    recipe: dict[str, Any]
    trials: list[dict[str, Any]] = field(default_factory=list)

    @property
    def best(self) -> dict[str, Any]:
        """The best trial."""
        return max(
            self.trials, key=lambda trial: -1.0 if trial["score"] is None else trial["score"]
        )

    def lines(self) -> list[tuple[str, str]]:
        """Score and settings of each trial, the best first."""
        order = sorted(self.trials, key=lambda trial: -(trial["score"] or 0.0))
        shown = [
            ", ".join(f"{name}={value:g}" for name, value in trial["settings"].items())
            for trial in order
        ]
        scores = [
            "failed" if trial["score"] is None else f"{100 * trial['score']:.1f}" for trial in order
        ]
        return list(zip(scores, shown, strict=True))


def tune(
    recipe: Recipe,
    output: str | Path,
    *,
    protocol: Protocol | None = None,
    stream: TaskStream | None = None,
    backbone: Backbone | None = None,
    quiet: bool = True,
) -> Tuning:
    """Search a recipe's learning rate and its method's main coefficient (`Method.tuned`).

    One that was stopped goes on: trials that are in `output` are not made again.

    Parameters
    ----------
    output
        A folder for the trials and the tuned recipe.
    stream, backbone
        Those of the recipe, where they are there already.

    Raises
    ------
    InputError
        Optuna is not installed, the stream has fewer tasks, or the method has nothing to tune.
    RunError
        `output` holds the trials of another recipe or protocol, or all trials failed.
    """
    if engine.count() > 1:
        raise InputError(
            "`tune` is for one process: start it without `accelerate launch` or `torchrun`."
        )
    protocol, output = protocol or Protocol(), Path(output)
    ranges = searched(recipe, protocol)
    needed("optuna", "`tune`")  # not after the first trial
    stream = stream or recipe.make_stream()
    if protocol.tasks > len(stream):
        raise InputError(f"`tasks` is {protocol.tasks}, but the stream has {len(stream)}.")
    plan = recipe.plan(stream, backbone)
    plan = replace(plan, stream=stream.until(protocol.tasks), evaluation=Evaluation(steps="none"))
    about = files.plain({"recipe": recipe.resolved(plan), "protocol": vars(protocol)})
    with files.refusing(output, verb="made"):
        output.mkdir(parents=True, exist_ok=True)
    files.check_place(output / TUNED)  # not after hours
    with lock.held(output):  # two processes would make each other's trials
        trials = _begun(output, about)[: protocol.trials]
        progress = Progress("Tuning", protocol.trials, done=len(trials), quiet=quiet, bar=False)
        for number in range(len(trials), protocol.trials):
            settings = _asked(recipe, protocol, ranges, trials, number)
            started = time.perf_counter()
            score = _score(_changed(recipe, settings), plan, output, protocol.task_id, quiet=quiet)
            trials.append(
                {
                    "settings": settings,
                    "score": score,
                    "seconds": round(time.perf_counter() - started, 3),
                }
            )
            with files.refusing(output / TRIALS):
                files.append(output / TRIALS, json.dumps(trials[-1]) + "\n")
            said = "failed" if score is None else f"validation accuracy {100 * score:.1f} %"
            progress.to(
                number + 1, f"trial {number + 1} of {protocol.trials}, {said}", reached=True
            )
        return _finished(recipe, output, trials)


def _finished(recipe: Recipe, output: Path, trials: list[dict[str, Any]]) -> Tuning:
    """Write the recipe with the best settings."""
    best = Tuning({}, trials).best
    if best["score"] is None:
        raise RunError(
            f"All {len(trials)} trials failed: see `{output / TRIALS}`. Lower `{RATE}` in the recipe."
        )
    tuned = _changed(recipe, best["settings"]).model_dump(exclude_none=True, exclude_defaults=True)
    files.write(output / TUNED, files.to_yaml(files.plain(tuned)))
    return Tuning(tuned, trials)


def searched(recipe: Recipe, protocol: Protocol) -> dict[str, Tuned]:
    """What is searched, by its name as `--set` takes it.

    Raises
    ------
    InputError
        The method trains nothing and has no main coefficient, or the recipe has it at 0.
    """
    method, where = recipe.make_method(), "method"
    while isinstance(inner := getattr(method, "method", None), Method):
        method, where = inner, f"{where}.method"
    found = {}
    if method.trains:
        rate = recipe.make_training().learning_rate
        found[RATE] = Tuned(RATE, protocol.lowest * rate, protocol.highest * rate)
    if method.tuned:
        name, own = f"{where}.{method.tuned.name}", getattr(method, method.tuned.name)
        if not own:
            raise InputError(
                f"`{name}` is 0 in the recipe, and is searched on a logarithmic scale. Give another value."
            )
        found[name] = Tuned(
            method.tuned.name, min(own, method.tuned.low), max(own, method.tuned.high)
        )
    if not found:
        raise InputError(
            f"The method `{named(recipe.method, 'method')[0]}` trains nothing: there is nothing to tune."
        )
    return found


def _begun(output: Path, about: dict[str, Any]) -> list[dict[str, Any]]:
    """The trials that were made before; begins the file if there are none."""
    path = output / TRIALS
    if not path.exists():
        files.write(path, json.dumps(about) + "\n")
        return []
    whole = [
        line for line in files.read_lines(path) if line.endswith(b"\n")
    ]  # a kill may cut the last one off
    lines = [files.parse_json(line, f"`{path}`") for line in whole]
    if not lines or {**lines[0], "protocol": {**lines[0].get("protocol", {}), "trials": 0}} != {
        **about, "protocol": {**about["protocol"], "trials": 0}
    }:  # fmt: skip
        raise RunError(
            f"`{output}` holds trials of another recipe or protocol. Give another `--output`."
        )
    files.write(path, b"".join(whole))
    return lines[1:]


def _asked(
    recipe: Recipe,
    protocol: Protocol,
    ranges: dict[str, Tuned],
    trials: Sequence[dict[str, Any]],
    number: int,
) -> dict[str, float]:
    """The settings of a trial: the recipe's own first, then three that are random, then those that Optuna's TPE asks.

    Its random numbers follow the trial's number, so that a search that was stopped goes on as if it had not been.
    """
    if number == 0:
        return {name: _own(recipe, name) for name in ranges}
    searcher = TPE(
        {name: (tuned.low, tuned.high) for name, tuned in ranges.items()},
        derived(protocol.seed, number),
        optuna=needed("optuna", "`tune`"),
        logarithmic=True,
        startup=4,
    )
    for trial in trials:
        searcher.add(trial["settings"], trial["score"] or 0.0)
    asked = searcher.ask()
    return {
        name: min(max(float(f"{asked[name]:.3g}"), t.low), t.high) for name, t in ranges.items()
    }


def _own(recipe: Recipe, name: str) -> float:
    """A setting as the recipe has it."""
    if name == RATE:
        return recipe.make_training().learning_rate
    method: Any = recipe.make_method()
    for key in name.split(".")[1:]:
        method = getattr(method, key)
    return method


def _changed(recipe: Recipe, settings: dict[str, float]) -> Recipe:
    return Recipe.parse(
        recipe.model_dump(exclude_none=True),
        [f"{name}={value!r}" for name, value in settings.items()],
    )


def _score(
    changed: Recipe, plan: Plan, output: Path, task_id: TaskId, *, quiet: bool
) -> float | None:
    """The average validation accuracy of the first tasks; nothing if training failed."""
    plan = replace(plan, method=changed.make_method(), training=changed.make_training())
    with staging.hidden_folder(output) as folder:
        try:
            system = story.run(
                replace(plan, recipe=changed.resolved(plan)), folder / "trial", quiet=quiet
            )
        except TrainingError:
            return None
        except Stopped as stop:  # the trial's own hint names a folder that is gone then
            raise Stopped(
                "Stopped. Finished trials are kept. Go on with the same command.",
                signal=stop.signal,
            ) from None
        return validation_accuracy(system, plan.stream, task_id)


def validation_accuracy(system: System, stream: TaskStream, task_id: TaskId) -> float:
    """Return the mean over a stream's tasks of the accuracy on their validation examples."""
    acting, _ = with_best_scale(system, stream)
    scores = [acting.answer(task, "validation", [task_id]).accuracy()[task_id] for task in stream]
    return sum(scores) / len(scores)
