"""The function that computes the diagnostics of a run and stores them in its folder.

RUN/diagnostics.json   the results (docs/run-folder.md lists the keys), which can be recomputed
"""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perdure import registry
from perdure.analysis.shared import LeftOut
from perdure.analysis.subject import EXAMPLES, Subject, subject_of
from perdure.data.task import TaskStream
from perdure.errors import InputError, RunError, UnknownName
from perdure.evaluation.progress_bar import Progress
from perdure.learning import engine
from perdure.merging.rule_settings import RuleLike
from perdure.runs import derived
from perdure.runs.extend import rule_of
from perdure.runs.sources import Sources
from perdure.runs.state import read
from perdure.storage import files

FILE = "diagnostics.json"
Results = dict[str, Any]
"""The contents of diagnostics.json."""


def diagnose(
    folder: str | Path,
    rule: RuleLike | None = None,
    settings: Sequence[str] = (),
    *,
    examples: int = EXAMPLES,
    only: Sequence[str] = (),
    stream: TaskStream | None = None,
    quiet: bool = True,
    trust: bool = False,
) -> Results:
    """Compute the diagnostics of a run, finished or not, and write them to `diagnostics.json`.

    The file is written to the run folder. The time grows with the square of the number of
    tasks. Diagnostics that make no sense for the method are left out.

    Parameters
    ----------
    rule, settings
        A rule to use instead of the run's (a `Rule`, its name, or a mapping with `name`
        and settings), and settings such as `scale=0.3`.
    examples
        The maximum number of examples to read per task and split, drawn with the run's seed.
    only
        The names of the diagnostics to compute, such as `interference` or `zones`; by
        default, all. Other diagnostics already in the file are kept if the tasks, the
        rule, the seed and `examples` are the same.
    stream
        The tasks; required if the run's recipe does not describe where they come from.
    quiet
        Do not show progress.
    trust
        Allow running the Python files that the run's recipe names.

    Returns
    -------
    dict
        The contents of the file: for each diagnostic, its numbers as plain lists, and a
        sentence on how to read them.

    Raises
    ------
    RunError
        The tasks are not the ones that the run has learned, or it has not learned any.
        The error is also raised if a task is forgotten in the meantime; nothing is
        written then.
    InputError
        A name in `only` is unknown, `examples` is less than 4, or there are several processes.
    OutputError
        The file cannot be written.
    """
    # Several processes would all compute the same and write the same file.
    if engine.count() > 1:
        raise InputError(
            "`diagnose` runs in one process: start it without `accelerate launch` or `torchrun`."
        )
    declared = registry.diagnostics()
    for name in only:
        if name not in declared:
            raise UnknownName("part of the diagnostics", name, declared)
    if examples < 4:
        raise InputError(f"`examples` must be at least 4, got {examples}: fewer say too little.")
    # Checked before the computation, so that a bad path does not cost minutes.
    files.check_place(Path(folder) / FILE)
    run = read(folder, trust=trust)
    # The tasks are recorded before anything is computed, to notice a `forget` in between.
    sources = Sources.of(folder)
    subject = subject_of(run, rule_of(run, rule, settings), stream, examples)
    results: Results = {
        "format": 1,
        "tasks": subject.tasks,
        "made_of": dict(sources.tasks),
        "rule": subject.rule.label,
        "since": subject.rule.since,
        "seed": subject.seed,
        "examples": subject.examples,
        "parts": {},
        "left_out": {},
    }
    chosen = [name for name in declared if name in (only or declared)]
    with Progress("Diagnosing", len(chosen), quiet=quiet) as progress:
        for done, name in enumerate(chosen):
            progress.to(done, name, reached=True)
            try:
                reading = _reading(declared[name], subject)
                module = importlib.import_module(f"perdure.analysis.{name}")
                numbers = module.compute(subject)
                results["parts"][name] = {"reading": reading, **numbers}
            except LeftOut as reason:
                results["left_out"][name] = str(reason)
    # `plain` has replaced undefined values by None, because JSON has no nan.
    text = json.dumps(_with_earlier(subject.run.folder, results), allow_nan=False)
    files.write(subject.run.folder / FILE, text + "\n", check=sources.check)
    return results


def _reading(diagnostic: Any, subject: Subject) -> str:
    """Return how to read a diagnostic, and which tasks it lacks because examples are missing."""
    missing = subject.stream.missing
    if not (diagnostic.reads_examples and missing):
        return diagnostic.reading
    if not subject.present:
        reason = next(iter(missing.values()))
        raise LeftOut(f"It needs examples, and none are available. {reason}")
    return f"{diagnostic.reading} Without examples of {', '.join(missing)}, which are missing."


def _with_earlier(folder: Path, results: Results) -> Results:
    """Add the other diagnostics of the existing file, if they were computed in the same way."""
    try:
        earlier = derived.diagnostics(folder)
    except RunError:
        # The file can be recomputed, so a damaged one is replaced.
        return results
    if _circumstances(earlier) != _circumstances(results):
        return results
    # A diagnostic that was left out now must not reappear from the old `parts`, and vice versa.
    new = {*results["parts"], *results["left_out"]}
    merged = dict(results)
    for section in ("parts", "left_out"):
        entries = {key: value for key, value in earlier[section].items() if key not in new}
        entries |= results[section]
        # In the order of the page, regardless of what was computed first.
        order = [name for name in registry.diagnostics() if name in entries]
        merged[section] = {name: entries[name] for name in order}
    return merged


def _circumstances(results: Results) -> Results:
    """Return everything except the numbers: the tasks, the rule, the seed, and `examples`."""
    return {key: value for key, value in results.items() if key not in ("parts", "left_out")}
