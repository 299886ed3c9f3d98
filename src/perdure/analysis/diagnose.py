"""Diagnose a run: why its tasks disturb each other, how its features moved, how well it knows the task.

RUN/diagnostics.json   what was found (docs/run-folder.md has its keys); derived, may be deleted
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
) -> dict[str, Any]:
    """Diagnose a run, finished or part-way, and write `diagnostics.json` into its folder.

    Time grows with the square of the number of tasks; a part that makes no sense for the method is left out.

    Parameters
    ----------
    rule, settings
        Another rule than the run's own (a `Rule`, its name, or a mapping of `name` and settings), and settings such as
        `scale=0.3`.
    examples
        At most so many of each task and split are read, drawn with the run's seed.
    only
        Only these parts, such as `interference` or `zones`. Others that are in the file already are kept, if rule,
        examples and tasks are the same.
    stream
        The tasks, where the run's recipe does not say how they are made.
    quiet
        Do not tell how far it is.
    trust
        Whether Python files that the run's recipe names may be run.

    Returns
    -------
    dict
        What is in the file: by part the numbers, as plain lists, and a sentence on how to read them.

    Raises
    ------
    RunError
        The tasks are not those that the run learned, or it has learned none. Or one was forgotten meanwhile: then
        nothing is written.
    InputError
        There is no such part, or `examples` is less than 4.
    OutputError
        The file cannot be written.
    """
    if engine.count() > 1:
        raise InputError(
            "`diagnose` is for one process: start it without `accelerate launch` or `torchrun`."
        )
    declared = registry.diagnostics()
    if unknown := [name for name in only if name not in declared]:
        raise UnknownName("part of the diagnostics", unknown[0], declared)
    if examples < 4:
        raise InputError(f"`examples` must be at least 4, got {examples}: fewer say nothing.")
    files.check_place(Path(folder) / FILE)  # not after minutes
    run = read(folder, trust=trust)
    sources = Sources.of(folder)
    subject = subject_of(run, rule_of(run, rule, settings), stream, examples)
    found: dict[str, Any] = {
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
    asked = [name for name in declared if name in (only or declared)]
    with Progress("Diagnosing", len(asked), quiet=quiet) as progress:
        for done, name in enumerate(asked):
            progress.to(done, name, reached=True)
            try:
                reading = _reading(declared[name], subject)
                compute = importlib.import_module(f"perdure.analysis.{name}").compute
                found["parts"][name] = {"reading": reading, **compute(subject)}
            except LeftOut as reason:
                found["left_out"][name] = str(reason)
    text = json.dumps(_with_earlier(subject.run.folder, found), allow_nan=False)
    files.write(subject.run.folder / FILE, text + "\n", check=sources.check)
    return found


def _reading(diagnostic: Any, subject: Subject) -> str:
    """How a part is read, and which tasks are not in it because their examples are gone."""
    missing = subject.stream.missing
    if not (diagnostic.reads_examples and missing):
        return diagnostic.reading
    if not subject.present:
        raise LeftOut(f"It reads examples, and none are here. {next(iter(missing.values()))}")
    return f"{diagnostic.reading} Without examples of {', '.join(missing)}, which are not here."


def _with_earlier(folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    """What was found, and of the file that is there those other parts that were computed in the same way."""
    sections = ("parts", "left_out")
    try:
        earlier = layout.diagnostics(folder)
    except RunError:  # it is replaced
        return found
    if {**earlier, **{name: {} for name in sections}} != {
        **found,
        **{name: {} for name in sections},
    }:
        return found
    new = [*found["parts"], *found["left_out"]]
    kept = {
        name: {k: v for k, v in earlier[name].items() if k not in new} | found[name]
        for name in sections
    }
    order = list(registry.diagnostics())
    return found | {
        name: {part: kept[name][part] for part in order if part in kept[name]} for name in sections
    }
