"""Check every file of a run: hashes, shapes, and finite values."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from perdure import registry
from perdure.data.rows import ENDINGS
from perdure.errors import PerdureError
from perdure.evaluation.system import Learned
from perdure.models import model_files
from perdure.models.backbone import Backbone
from perdure.models.load import load_with
from perdure.runs import backbones, derived, layout, sources, task_folder
from perdure.runs.layout import UNFINISHED, is_there
from perdure.runs.recipe import Recipe
from perdure.runs.resume import check_fits, check_model
from perdure.runs.state import RunState, read
from perdure.settings import checked, named
from perdure.storage import files, lock
from perdure.storage.tensors import is_finite

SHOWN = 5  # names in a message: a damaged file may have thousands


@dataclass
class Verification:
    """The result of `verify`.

    Attributes
    ----------
    sound
        The intact files and folders, each with one sentence about it.
    faults
        The faults found, one sentence each.
    notes
        Remarks on things that are not wrong, but worth knowing.
    """

    sound: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def attempt(self, what: str, check: Callable[[], str]) -> None:
        """Run a check and record its result; an error that it raises is recorded as a fault."""
        try:
            self.sound[what] = check()
        except PerdureError as error:
            self.faults.append(str(error))


def verify(folder: str | Path, *, backbone: bool = True) -> Verification:
    """Check all files of a run: sizes, SHA-256, shapes, finite values and consistency.

    Parameters
    ----------
    backbone
        Also compare the pre-trained model with the hashes that the run recorded, and
        check that adapters and heads fit its shapes. The model must be on this machine:
        nothing is downloaded.

    Raises
    ------
    RunError
        The folder is not a run, or has an unknown format.
    """
    folder = Path(folder)
    result = Verification()
    layout.check_run(folder)
    # a run may be verified while it is being written: then a fault may be a file still to come
    if holder := lock.holder(folder):
        result.notes.append(f"Process {holder['pid']} on `{holder['host']}` is writing it now.")
    result.attempt("recipe.yaml", lambda: _recipe(folder))
    if result.faults:  # the other files are checked against the recipe
        return result
    run = read(folder)
    tasks = _check_written(run, result)
    _check_derived(run, result)
    # after a fault above, shapes that do not fit would only repeat it
    if backbone and tasks and not result.faults:
        _check_backbone(run, tasks, result)
    result.notes += _notes(run)
    return result


def _check_written(run: RunState, result: Verification) -> list[Learned]:
    """Check the files that cannot be regenerated; return the intact tasks."""
    tasks: list[Learned] = []
    for name, folder in run.places.items():
        # `name=name`: otherwise, the lambda would see the last name of the loop
        result.attempt(f"tasks/{folder.name}", lambda name=name: _task(run, name, tasks))
    result.attempt("tasks", lambda: _together(tasks))
    result.attempt("scores.csv", lambda: _scores(run))
    result.attempt("events.jsonl", lambda: _events(run))
    if _needs_combined(run):
        result.attempt("combined.json", lambda: _combined(run))
    elif tasks:
        result.notes.append("The scale has not been searched yet: `perdure run` will do that.")
    if is_there(run.folder / UNFINISHED):
        result.attempt(UNFINISHED, lambda: _unfinished(run))
    return tasks


def _needs_combined(run: RunState) -> bool:
    """Return True if combined.json must be intact: after a measurement, or if it exists.

    A rule that searches for its scale writes the file only after the search; until then,
    the file may be that of another rule.
    """
    try:
        rows = run.scores
    except PerdureError:  # reported already
        rows = []
    tasks = len(run.tasks)
    if any(row["step"] == tasks > 0 for row in rows):
        return True
    exists = is_there(run.folder / "combined.json")
    return exists and not run.recipe["rule"].get("search")


def _check_derived(run: RunState, result: Verification) -> None:
    """Check the files that can be regenerated, and that the tasks they describe still exist."""
    if is_there(run.folder / "diagnostics.json"):
        result.attempt("diagnostics.json", lambda: _diagnostics(run))
    if is_there(run.folder / "answers.json"):
        result.attempt("answers.json", lambda: ", ".join(derived.answers(run.folder)))
    for name, gone in sources.stale(run.folder).items():
        result.sound.pop(name, None)
        result.faults.append(
            f"`{run.folder / name}` was made from the task `{gone[0]}`, "
            "which was forgotten or learned again since. Remove it, or recreate it."
        )


# -- notes


def _notes(run: RunState) -> list[str]:
    """Return remarks on Python files, leftovers, missing tables and traces."""
    notes: list[str] = []
    for name in dict.fromkeys(registry.python_files(run.recipe)):
        notes.append(
            f"The recipe names the Python file `{name}`, which is run only with `--trust`. "
            "It was not run."
        )
    notes += _leftovers(run)
    for path in _tables(run.recipe["stream"]):
        # unlike pathlib's, this `exists` never raises, whatever path a damaged recipe names
        if not os.path.exists(path):
            notes.append(
                f"`{path}` is missing: what was learned from it is complete, "
                "but cannot be measured again."
            )
    tasks = run.tasks
    for name, position in (run.recipe.get("traces") or {}).items():
        later = tasks[position:]
        if name not in tasks and later:
            notes.append(
                f"Something of `{name}`, which was forgotten, remains in {', '.join(later)}. To "
                f"learn these again without it: `perdure forget {run.folder} {name} "
                "--retrain-later`."
            )
    return notes


def _leftovers(run: RunState) -> list[str]:
    """Return a note for each task folder that was never finished, or whose task was forgotten."""
    home = run.folder / "tasks"
    complete = layout.task_folders(run.folder, []).values()  # including forgotten tasks
    with layout.reading(home):
        present = set(home.iterdir()) if home.exists() else set[Path]()
    notes = []
    for path in sorted(present - set(run.places.values())):
        if path in complete:
            notes.append(
                f"`{path}` is forgotten, and will be removed when the run is next written."
            )
        else:
            notes.append(f"`{path}` is ignored: it was never finished.")
    return notes


def _tables(stream: object) -> list[str]:
    """Return the paths of the tables in a recipe's stream.

    A relative name without a known file extension is left out, because it may be on the hub.
    """
    paths: list[object] = []
    for entry in stream if isinstance(stream, list) else []:
        source = entry.get("data") if isinstance(entry, dict) else None
        if isinstance(source, dict):  # a table for each split
            paths += source.values()
        else:
            paths.append(source)
    tables = []
    for path in paths:
        if not isinstance(path, str):
            continue
        if Path(path).suffix.lower() in ENDINGS or Path(path).is_absolute():
            tables.append(path)
    return tables


# -- the check of each file: each returns a remark on a sound file


def _recipe(folder: Path) -> str:
    # `whole_recipe` rejects a recipe without a rule. `Recipe.parse` alone would run the
    # method's file to get its usual rule, but verifying a folder does not mean trusting
    # it.
    recipe = layout.whole_recipe(folder)
    Recipe.parse(recipe, where=f"`{folder / 'recipe.yaml'}`")
    environment = layout.environment(folder)
    return f"format {environment.get('format', 1)}"  # format 1 did not record its number


def _task(run: RunState, name: str, tasks: list[Learned]) -> str:
    """Check a task, and add it to the list of intact tasks."""
    learned = run.load_task(name)
    folder = run.places[name]
    wrong = task_folder.not_finite(learned)
    if wrong:
        names = ", ".join(wrong[:SHOWN])
        raise PerdureError(f"`{folder}` holds values that are not finite: {names}.")
    tasks.append(learned)
    manifest = layout.manifest(folder)
    size = sum(file["size"] for file in manifest.values())
    return f"{len(learned.classes)} classes, {size / 1e6:.1f} MB"


def _together(tasks: list[Learned]) -> str:
    # each task may be sound, but not all of them may come from the same backbone
    widths = {task.name: task.statistics.sums.shape[1] for task in tasks}
    different = set(widths.values())
    if len(different) > 1:
        raise PerdureError(f"The statistics of the tasks have different widths: {widths}.")
    without = [task.name for task in tasks if task.validation is None]
    if 0 < len(without) < len(tasks):
        raise PerdureError(
            "Some tasks have `validation.safetensors`, and others do not: "
            f"{', '.join(without[:SHOWN])}."
        )
    return f"{len(tasks)} learned"


def _scores(run: RunState) -> str:
    path = run.folder / "scores.csv"
    # a task that is forgotten but not removed yet still counts as a step
    last_step = len(layout.task_folders(run.folder, []))
    for number, row in enumerate(run.scores, start=2):  # line 1 has the names of the columns
        step = row["step"]
        value = row["value"]
        if not math.isfinite(value) or not 0 <= step <= last_step:
            raise PerdureError(
                f"Line {number} of `{path}` has step {step} of {len(run.tasks)}, value {value}."
            )
    return f"{len(run.scores)} values"


def _events(run: RunState) -> str:
    path = run.folder / "events.jsonl"
    line = b""
    with layout.reading(path):
        lines = files.read_lines(path) if path.exists() else ()
        for number, line in enumerate(lines, start=1):
            if line.endswith(b"\n"):  # the last one may be incomplete after a kill: not a fault
                files.parse_json(line, f"line {number} of `{path}`")
    whole = layout.events(run.folder)
    if line and not line.endswith(b"\n"):
        return f"{len(whole)} events, and one incomplete line"
    return f"{len(whole)} events"


def _combined(run: RunState) -> str:
    path = run.folder / "combined.json"
    rule = run.combined
    layout.searches(run.folder)  # reading them also checks them
    if not rule["name"].endswith(".py"):  # a user's Python file would have to be run
        known = registry.options(registry.find("rule", rule["name"]))
        if unknown := rule["options"].keys() - known.keys():
            raise PerdureError(
                f"`{path}`: the rule `{rule['name']}` has no setting `{min(unknown)}`."
            )
    scales = rule["options"].get("scale")
    if isinstance(scales, dict):
        for name in run.tasks:
            if name not in scales:
                raise PerdureError(f"`{path}` has no scale for the task `{name}`.")
    return rule["label"]


def _unfinished(run: RunState) -> str:
    snapshot = run.unfinished
    if snapshot is None:
        return "removed in the meantime: the task is finished"
    wrong = []
    for name, value in snapshot.tensors.items():
        if value.is_floating_point() and not is_finite(value):
            wrong.append(name)
    if wrong:
        raise PerdureError(
            f"`{run.folder / UNFINISHED}` holds values that are not finite: "
            f"{', '.join(wrong[:SHOWN])}."
        )
    return f"in the middle of a task, after step {snapshot.about.get('step')}"


def _diagnostics(run: RunState) -> str:
    return ", ".join(derived.diagnostics(run.folder).get("parts", []))


# -- the pre-trained model


def _check_backbone(run: RunState, tasks: list[Learned], result: Verification) -> None:
    where = f"`{run.folder / 'recipe.yaml'}`: backbone"
    backbones.check(run.recipe["backbone"], where)
    if backbones.is_network(run.recipe["backbone"]):
        result.attempt(
            "the network",
            lambda: _backbone(run, tasks, backbones.make(run.recipe["backbone"], where)),
        )
        return
    source, section = named(run.recipe["backbone"], "backbone", key="model")
    settings = checked(Backbone.load, section, where)
    try:
        model = model_files.find(source, settings.pop("revision", None), fetch=False)
    except PerdureError as error:
        # a model on the hub may be downloaded later; a missing folder is a fault
        if not model_files.HUB_ID.fullmatch(source):
            result.faults.append(str(error))
            return
        result.notes.append(
            f"The pre-trained model `{source}` is not on this machine (nothing is downloaded to "
            "verify a run), so the run was not compared with it."
        )
        return
    result.attempt(
        "the pre-trained model",
        lambda: _backbone(run, tasks, load_with(model, settings)),
    )


def _backbone(run: RunState, tasks: list[Learned], model: Backbone) -> str:
    check_model(run, model)
    for task in tasks:
        check_fits(model, task)
    if not layout.backbone(run.folder):  # older versions did not record hashes
        return f"`{model.source}` fits adapters and heads"
    return f"`{model.source}` has the files that the run began with, and fits adapters and heads"
