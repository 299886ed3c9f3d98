"""Perform a whole run: learn, measure, and measure with other rules."""

import time
from collections.abc import Sequence
from pathlib import Path

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
from perdure.sweeps.executor import Outcome, WholeRun

PATIENCE = 120.0
"""Seconds to wait for a process of an earlier, killed sweep that is still saving its progress."""


def perform(job: WholeRun) -> Outcome:
    """Run a trial's recipe in its folder, or continue the run that is already there.

    The scores are the average ones after the last task.
    """
    recipe = Recipe.parse(job.recipe, job.settings)
    folder = Path(job.folder)
    _wait_for_writer(folder)
    run = recipe.run(folder, features=Path(job.features))
    measure_with(job.rules, folder)
    scores = run.accuracies(recipe.make_rule().label)
    return Outcome(job.trial, "finished", scores=scores)


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
