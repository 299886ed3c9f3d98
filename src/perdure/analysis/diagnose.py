"""Diagnose a run: why its tasks interfere, how its features moved, how well it recognises the task.

RUN/diagnostics.json   the results (docs/run-folder.md has its keys); derived, may be deleted
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
from perdure.runs import layout
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
    """Diagnose a run, finished or not, and write `diagnostics.json` into its folder.

    Time grows with the square of the number of tasks; a part that makes no sense for the method is
    left out.

    Parameters
    ----------
    rule, settings
        A rule to use instead of the run's own (a `Rule`, its name, or a mapping of `name` and
        settings), and settings such as `scale=0.3`.
    examples
        The most examples that are read of each task and split, drawn with the run's seed.
    only
        The parts to compute, such as `interference` or `zones`; by default all. Other parts that
        the file already has are kept, if rule, examples and tasks are the same.
    stream
        The tasks; needed if the run's recipe does not say how they are made.
    quiet
        Do not show progress.
    trust
        Allow running the Python files that the run's recipe names.

    Returns
    -------
    dict
        The contents of the file: by part the numbers, as plain lists, and a sentence on how to
        read them.

    Raises
    ------
    RunError
        The tasks are not those that the run learned, or it has learned none. Or a task was
        forgotten meanwhile: then nothing is written.
    InputError
        There is no such part, or `examples` is less than 4.
    OutputError
        The file cannot be written.
    """
    # Several processes would all compute the same, and write the same file.
    if engine.count() > 1:
        raise InputError(
            "`diagnose` is for one process: start it without `accelerate launch` or `torchrun`."
        )
    declared = registry.diagnostics()
    for name in only:
        if name not in declared:
            raise UnknownName("part of the diagnostics", name, declared)
    if examples < 4:
        raise InputError(f"`examples` must be at least 4, got {examples}: fewer say nothing.")
    # Checked before the computation, so that a bad path does not cost minutes.
    files.check_place(Path(folder) / FILE)
    run = read(folder, trust=trust)
    # The tasks are noted before anything is computed: a `forget` that comes in between is noticed.
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
    # `plain` has made None of what is undefined, for JSON has no nan.
    text = json.dumps(_with_earlier(subject.run.folder, results), allow_nan=False)
    files.write(subject.run.folder / FILE, text + "\n", check=sources.check)
    return results


def _reading(diagnostic: Any, subject: Subject) -> str:
    """Say how a part is read, and which tasks it lacks because their examples are gone."""
    missing = subject.stream.missing
    if not (diagnostic.reads_examples and missing):
        return diagnostic.reading
    if not subject.present:
        reason = next(iter(missing.values()))
        raise LeftOut(f"It reads examples, and none are here. {reason}")
    return f"{diagnostic.reading} Without examples of {', '.join(missing)}, which are not here."


def _with_earlier(folder: Path, results: Results) -> Results:
    """Add those other parts of the existing file that were computed in the same way."""
    try:
        earlier = layout.diagnostics(folder)
    except RunError:
        # A damaged file is derived data; it is replaced.
        return results
    if _circumstances(earlier) != _circumstances(results):
        return results
    # A part that was left out now must not come back from the other section, and vice versa.
    new = {*results["parts"], *results["left_out"]}
    merged = dict(results)
    for section in ("parts", "left_out"):
        entries = {key: value for key, value in earlier[section].items() if key not in new}
        entries |= results[section]
        # The order on the page, whichever part was computed first.
        order = [name for name in registry.diagnostics() if name in entries]
        merged[section] = {name: entries[name] for name in order}
    return merged


def _circumstances(results: Results) -> Results:
    """Return everything but the results themselves: tasks, rule, seed, number of examples."""
    return {key: value for key, value in results.items() if key not in ("parts", "left_out")}
