"""Check every file of a run: hashes, shapes, and that all values are finite."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perdure import registry
from perdure.data.rows import ENDINGS
from perdure.errors import PerdureError
from perdure.evaluation.system import Learned
from perdure.models import model_files
from perdure.models.backbone import Backbone
from perdure.models.load import load_files
from perdure.runs import layout, sources, task_folder
from perdure.runs.layout import UNFINISHED, is_there
from perdure.runs.recipe import Recipe
from perdure.runs.resume import check_fits, check_model
from perdure.runs.state import RunState, read
from perdure.settings import checked, named
from perdure.storage import files, lock
from perdure.storage.tensors import is_finite


@dataclass
class Verification:
    """What was found.

    Attributes
    ----------
    sound
        What is as it should be: by file or folder, one sentence each.
    faults
        What is not.
    notes
        What is no fault, but worth knowing.
    """

    sound: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def attempt(self, what: str, check: Callable[[], str]) -> None:
        """Note what a check says; whatever is wrong with it is a fault."""
        try:
            self.sound[what] = check()
        except PerdureError as error:
            self.faults.append(str(error))


def verify(folder: str | Path, *, backbone: bool = True) -> Verification:
    """Read all of a run: each file's size and SHA-256, shapes, finite values, and that its parts fit each other.

    Parameters
    ----------
    backbone
        Also compare the pre-trained model with the hashes that the run keeps of it, and adapters and heads with its
        shapes. It has to be on this machine: nothing is fetched, and nobody is asked.

    Raises
    ------
    RunError
        The folder is no run at all, or one of a format that is not known here.
    """
    folder, found = Path(folder), Verification()
    layout.check_run(folder)
    if holder := lock.holder(folder):
        found.notes.append(f"Process {holder['pid']} on `{holder['host']}` is writing it now.")
    found.attempt("recipe.yaml", lambda: _recipe(folder))
    if found.faults:  # nothing can be compared with it
        return found
    run = read(folder)
    tasks: list[Learned] = []
    for name, place in run.places.items():
        found.attempt(f"tasks/{place.name}", lambda name=name: _task(run, name, tasks))
    found.attempt("tasks", lambda: _together(tasks))
    found.attempt("scores.csv", lambda: _scores(run))
    found.attempt("events.jsonl", lambda: _events(run))
    measured = any(row["step"] == len(run.tasks) > 0 for row in _rows(run))
    if measured or (
        is_there(run.folder / "combined.json") and not run.recipe["rule"].get("search")
    ):
        found.attempt("combined.json", lambda: _combined(run))
    elif tasks:
        found.notes.append("The scale is not searched yet: `perdure run` goes on with that.")
    if is_there(run.folder / UNFINISHED):
        found.attempt(UNFINISHED, lambda: _unfinished(run))
    _check_derived(run, found)
    if backbone and tasks and not found.faults:
        _check_backbone(run, tasks, found)
    found.notes += _notes(run)
    return found


def _check_derived(run: RunState, found: Verification) -> None:
    """Check what can be made again, and that it tells of no task which is gone."""
    if is_there(run.folder / "diagnostics.json"):
        found.attempt(
            "diagnostics.json", lambda: ", ".join(layout.diagnostics(run.folder).get("parts", []))
        )
    if is_there(run.folder / "answers.json"):
        found.attempt("answers.json", lambda: ", ".join(layout.answers(run.folder)))
    for name, gone in sources.stale(run.folder).items():
        found.sound.pop(name, None)
        found.faults.append(
            f"`{run.folder / name}` was made of the task `{gone[0]}`, which was forgotten or learned again since. "
            "Remove it, or make it again."
        )


def _notes(run: RunState) -> list[str]:
    """What is left of tasks that were never finished, or were forgotten; and the code that the recipe names."""
    recipe, tasks, home, notes = run.recipe, run.tasks, run.folder / "tasks", []
    for name in dict.fromkeys(registry.python_files(recipe)):
        notes.append(
            f"The recipe names the Python file `{name}`, which only `--trust` runs. It was not run."
        )
    gone = layout.task_folders(run.folder, []).values()
    with layout.reading(home):
        places = set(home.iterdir()) if home.exists() else set[Path]()
    for path in sorted(places - set(run.places.values())):
        if path in gone:
            notes.append(f"`{path}` is forgotten, and removed as soon as the run is written again.")
        else:
            notes.append(f"`{path}` counts for nothing: it was never finished.")
    notes += [
        f"`{path}` is not there: what was learned of it is whole, but cannot be measured again."
        for path in _tables(recipe["stream"])
        if not os.path.exists(
            path
        )  # unlike pathlib's it raises nothing, whatever a damaged recipe names
    ]
    for name, place in (recipe.get("traces") or {}).items():
        if name not in tasks and tasks[place:]:
            notes.append(
                f"Something of `{name}`, which was forgotten, remains in {', '.join(tasks[place:])}. To learn these "
                f"again without it: `perdure forget {run.folder} {name} --retrain-later`."
            )
    return notes


def _tables(stream: Any) -> list[str]:
    """Return the paths of a recipe's tables. A name without an ending or a root may as well be one on the hub."""
    paths: list[Any] = []
    for entry in stream if isinstance(stream, list) else []:
        source = entry.get("data") if isinstance(entry, dict) else None
        paths += source.values() if isinstance(source, dict) else [source]
    texts = [path for path in paths if isinstance(path, str)]
    return [
        path for path in texts if Path(path).suffix.lower() in ENDINGS or Path(path).is_absolute()
    ]


def _recipe(folder: Path) -> str:
    # one without a rule is damaged: no method's file is run to ask for its usual one, for to verify is not to trust
    Recipe.parse(layout.whole_recipe(folder), where=f"`{folder / 'recipe.yaml'}`")
    return f"format {layout.environment(folder).get('format', 1)}"


def _task(run: RunState, name: str, tasks: list[Learned]) -> str:
    learned = run.load_task(name)
    place = run.places[name]
    if wrong := task_folder.not_finite(learned):
        raise PerdureError(f"`{place}` holds values that are not finite: {', '.join(wrong[:5])}.")
    tasks.append(learned)
    size = sum(about["size"] for about in layout.manifest(place).values())
    return f"{len(learned.classes)} classes, {size / 1e6:.1f} MB"


def _together(tasks: list[Learned]) -> str:
    features = {task.name: task.statistics.sums.shape[1] for task in tasks}
    if len(set(features.values())) > 1:
        raise PerdureError(f"The statistics of the tasks are of different widths: {features}.")
    return f"{len(tasks)} learned"


def _scores(run: RunState) -> str:
    rows, most = run.scores, len(layout.task_folders(run.folder, []))
    for number, row in enumerate(rows, start=2):
        if not math.isfinite(row["value"]) or not 0 <= row["step"] <= most:
            raise PerdureError(f"Line {number} of `{run.folder / 'scores.csv'}` has step {row['step']} of "
                               f"{len(run.tasks)}, value {row['value']}.")  # fmt: skip
    return f"{len(rows)} values"


def _rows(run: RunState) -> list[dict[str, Any]]:
    try:
        return run.scores
    except PerdureError:  # reported already
        return []


def _events(run: RunState) -> str:
    path = run.folder / "events.jsonl"
    whole, line = 0, b""
    with layout.reading(path):
        for number, line in enumerate(files.read_lines(path) if path.exists() else (), start=1):
            if line.endswith(b"\n"):  # a kill may cut the last one off
                files.parse_json(line, f"line {number} of `{path}`")
                whole += 1
    return f"{len(layout.events(run.folder))} events" + (
        ", and a part of one" if line and not line.endswith(b"\n") else ""
    )


def _combined(run: RunState) -> str:
    rule, path = run.combined, run.folder / "combined.json"
    layout.searches(run.folder)
    if not rule["name"].endswith(".py"):
        unknown = (
            rule["options"].keys() - registry.options(registry.find("rule", rule["name"])).keys()
        )
        if unknown:
            raise PerdureError(
                f"`{path}`: the rule `{rule['name']}` has no setting `{min(unknown)}`."
            )
    scales = rule["options"].get("scale")
    if isinstance(scales, dict) and (missing := [name for name in run.tasks if name not in scales]):
        raise PerdureError(f"`{path}` has no scale for the task `{missing[0]}`.")
    return rule["label"]


def _unfinished(run: RunState) -> str:
    snapshot = run.unfinished
    if snapshot is None:
        return "gone meanwhile: the task is finished"
    wrong = [
        name
        for name, value in snapshot.tensors.items()
        if value.is_floating_point() and not is_finite(value)
    ]
    if wrong:
        raise PerdureError(
            f"`{run.folder / UNFINISHED}` holds values that are not finite: {', '.join(wrong[:5])}."
        )
    return f"inside a task, after step {snapshot.about.get('step')}"


def _check_backbone(run: RunState, tasks: list[Learned], found: Verification) -> None:
    source, settings = named(run.recipe["backbone"], "backbone", key="model")
    settings = checked(Backbone.load, settings, f"`{run.folder / 'recipe.yaml'}`: backbone")
    try:
        files = model_files.find(source, settings.pop("revision", None), fetch=False)
    except PerdureError as error:
        if not model_files.HUB_ID.fullmatch(source):
            found.faults.append(str(error))
            return
        found.notes.append(
            f"The pre-trained model `{source}` is not on this machine (nothing is fetched to verify a run), so the run "
            "was not compared with it."
        )
        return
    found.attempt(
        "the pre-trained model", lambda: _backbone(run, tasks, load_files(files, **settings))
    )


def _backbone(run: RunState, tasks: list[Learned], model: Backbone) -> str:
    check_model(run, model)
    for task in tasks:
        check_fits(model, task)
    known = "has the files that the run began with, and " if layout.backbone(run.folder) else ""
    return f"`{model.source}` {known}fits adapters and heads"
