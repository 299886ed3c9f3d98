"""Perform one trial of a sweep, in whatever process: learn, measure, measure with other rules."""

import os
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from perdure import registry
from perdure.errors import PerdureError, Stopped
from perdure.evaluation.measure import measure
from perdure.merging.rule_settings import Rule
from perdure.runs.folder import Run
from perdure.runs.recipe import Recipe
from perdure.runs.resume import restored
from perdure.runs.state import RunState, read
from perdure.runs.streams import never_trained, with_unknown
from perdure.runs.writer import writing
from perdure.settings import Section
from perdure.storage import lock
from perdure.sweeps.executor import Job, Outcome

PATIENCE = 120.0
"""Seconds to wait for a process of an earlier, killed sweep that is still saving its progress."""
LONGEST = 10_000
"""The maximum number of characters of a traceback that are kept, from its end."""


def perform(values: dict) -> dict[str, object]:
    """Perform a trial, given as a JSON object (see `Job`), and return its `Outcome` as one.

    Every error is an outcome: a trial that fails does not end its sweep. A run that is
    already in the folder is continued.
    """
    job = Job(**values)
    started = time.monotonic()
    try:
        os.chdir(job.directory)
        scores = _scores(job)
        outcome = Outcome(job.trial, "finished", scores=scores)
    except Stopped:
        outcome = Outcome(job.trial, "stopped")
    except PerdureError as error:
        outcome = Outcome(job.trial, "failed", reason=str(error))
    except Exception as error:
        reason = registry.fault(error) or f"{type(error).__name__}: {error}"
        trace = traceback.format_exc()[-LONGEST:]
        outcome = Outcome(job.trial, "failed", reason=_line(reason), traceback=trace)
    seconds = round(time.monotonic() - started, 3)
    return outcome.plain() | {"seconds": seconds}


def _line(text: str) -> str:
    return " ".join(text.split())[:500]


def _scores(job: Job) -> dict[str, float]:
    """Run a trial's recipe in its folder, and return the average scores after the last task."""
    # the user named these files in the sweep, in a process that is not this one
    registry.trust(job.recipe)
    registry.trust(job.rules)
    recipe = Recipe.parse(job.recipe, job.settings)
    folder = Path(job.folder)
    _wait_for_writer(folder)
    run = recipe.run(folder)
    measure_with(job.rules, folder)
    return run.accuracies(recipe.make_rule().label)


def _wait_for_writer(folder: Path) -> None:
    """Wait while another process writes the run; give up, and let the run report it, in the end."""
    deadline = time.monotonic() + PATIENCE
    while lock.holder(folder) is not None and time.monotonic() < deadline:
        time.sleep(0.5)


def measure_with(rules: Sequence[Section], folder: Path) -> None:
    """Measure a finished run with further rules, unless it was already measured with them.

    The model and the examples are loaded once for all rules.
    """
    state = read(folder)
    evaluation = Recipe.parse(state.recipe).make_evaluation()
    tasks = len(state.tasks)
    steps = [step for step in range(1, tasks + 1) if evaluation.due(step, tasks)]
    missing = []
    for section in rules:
        rule = Rule.of(section)
        measured = {row["step"] for row in state.scores if row["rule"] == rule.label}
        missing += [(rule, step) for step in steps if step not in measured]
    if missing:
        _measure(missing, state, Run(folder))


def _measure(missing: Sequence[tuple[Rule, int]], state: RunState, run: Run) -> None:
    recipe = Recipe.parse(state.recipe)
    evaluation = recipe.make_evaluation()
    stream = with_unknown(recipe.make_stream(state), evaluation, recipe.stream)
    never = never_trained(evaluation, recipe.seed)
    system = restored(state, recipe.make_backbone(), recipe.make_rule(), stream)
    for rule, step in missing:
        combined = system.with_rule(rule).until(step)
        measurement = measure(combined, stream, evaluation, recipe.seed, never=never)
        with writing(run.folder) as writer:
            writer.measurement(measurement, own=False)
