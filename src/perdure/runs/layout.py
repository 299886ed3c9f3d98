"""Read the files of a run folder as plain values, without torch.

    recipe.yaml · environment.json   the settings; the software, hardware and folder format
    backbone.json                    SHA-256 of the pre-trained model's files, and its revision
    tasks/00-name/                   one folder per task, complete or absent (`task_folder.py`)
        task.json · manifest.json    name, classes, …; size and SHA-256 of each file
    unfinished.safetensors           the checkpoint of an unfinished task (`learning/snapshot.py`)
    combined.json                    the rule as last applied, with the scale that was found
    scores.csv · events.jsonl        measured values; losses, times and sizes
    answers.json                     counts of the answers, by class, at the last measurement
    report.html · diagnostics.json   derived files, which may be deleted
    lock.json                        the process that is writing, if any (`storage/lock.py`)

There are two formats: format 1 (perdure 0.1.0), which `environment.json` does not
mention, and format 2. Both can be read; only format 2 is written. `perdure.runs.schema`
describes and checks the content of each file.
"""

import contextlib
import csv
import errno
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from perdure import registry
from perdure.errors import CheckpointError, PerdureError, RunError
from perdure.runs import old_names, schema
from perdure.settings import inside, kinds_of, sentence
from perdure.storage.files import TASK_NAME, parse_json, read_json, read_lines, read_text, read_yaml

M = TypeVar("M", bound=BaseModel)

Settings = dict[str, Any]
"""The content of `recipe.yaml`, by section."""
Content = dict[str, Any]
"""A JSON object or a CSV row from the folder, with keys that `schema` describes."""

FORMAT = 2
COLUMNS = ("step", "task", "scenario", "task_id", "rule", "metric", "value")
BACKBONE = "backbone.json"
DERIVED = ("report.html", "diagnostics.json", "answers.json")
UNFINISHED = "unfinished.safetensors"
WRITTEN = (
    "recipe.yaml",
    "environment.json",
    "tasks",
    UNFINISHED,
    BACKBONE,
    "combined.json",
    "scores.csv",
    "events.jsonl",
    *DERIVED,
)
"""The files and folders that perdure writes, replaces or removes in a run folder."""
NUMBERED = re.compile(r"(\d{2,6})-(.+)", re.DOTALL)
"""The name of a task folder: the task's number in the order of learning, and its name."""
UNREADABLE = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ArithmeticError,
    csv.Error,
    RecursionError,
)
"""The exceptions that are raised if a file is damaged or was changed."""


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn any error about a run's file into a `RunError` that names the file.

    Raises
    ------
    RunError
        The file cannot be read, is damaged or was changed.
    """
    try:
        yield
    except RunError:
        raise
    except PerdureError as error:
        # If the system refuses access, that says nothing about the content of the file.
        refused = isinstance(error.__cause__, OSError)
        complete = refused or "damaged" in str(error)
        text = str(error) if complete else f"{error} It is damaged or was changed."
        raise RunError(text) from error
    except OSError as error:
        name = error.filename or path
        raise RunError(f"`{name}` cannot be read: {error.strerror or error}.") from error
    except UNREADABLE as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise RunError(f"`{path}` cannot be read: {why}. It is damaged or was changed.") from error


def check(path: Path, kind: type[M], values: Mapping[str, object]) -> M:
    """Check the content of a file against the class that describes it.

    Raises
    ------
    PerdureError
        The content does not match; `reading` adds that the file is damaged.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        # `sentence` would ask the user for a missing setting; a file just lacks a key.
        complaints = error.errors()
        missing = [each["loc"] for each in complaints if each["type"] == "missing"]
        if missing:
            name = ".".join(map(str, missing[0]))
            raise CheckpointError(f"`{path}` has no `{name}`.") from error
        kinds = kinds_of(kind)
        # In a mapping with arbitrary keys, all values are of the same kind.
        if "root" in kinds:
            kinds = {name: inside(kinds["root"], name) for name in values}
        raise sentence(error, f"`{path}`", kinds, values) from error


# -- the folder


def check_run(folder: Path) -> None:
    """Raise `RunError` if a folder is not a run, or has an unknown format."""
    if not is_run(folder):
        raise RunError(
            f"`{folder}` is not a run: it has no `recipe.yaml`. "
            "Give the folder that `perdure run` wrote."
        )
    path = folder / "environment.json"
    with reading(path):
        version = read_json(path).get("format", 1) if path.exists() else 1
    # By type, because `isinstance` accepts `true` as a number.
    if type(version) is not int or not 1 <= version <= FORMAT:
        raise RunError(
            f"`{folder}` is a run of format {str(version)[:100]}; this version of perdure reads "
            f"formats 1 to {FORMAT}. Install a newer version."
        )


def check_no_links(folder: Path) -> None:
    """Check that no file of a run is a symbolic link, so that all writing stays in its folder.

    The folder itself may be a link, because the user chose it, not whoever created the run.

    Raises
    ------
    RunError
        A file is a symbolic link.
    """
    for name in WRITTEN:
        path = folder / name
        with reading(path):
            if path.is_symlink():
                raise RunError(
                    f"`{path}` is a link, and a run is written only inside its own folder: "
                    "replace the link with its target, or remove it."
                )


def is_run(folder: Path) -> bool:
    """Return True if a folder contains a run."""
    path = folder / "recipe.yaml"
    with reading(path):
        try:
            return path.is_file()
        except OSError as error:
            # No run can exist under a path that is too long for the system.
            if error.errno == errno.ENAMETOOLONG:
                return False
            raise


def is_there(path: Path) -> bool:
    """Return True if a path exists; raise `RunError` if the system refuses access to it."""
    with reading(path):
        return path.exists()


def task_folders(folder: Path, forgotten: list[str]) -> dict[str, Path]:
    """Return the folder of each complete task by name, in order, without forgotten tasks."""
    home = folder / "tasks"
    folders = []
    with reading(home):
        if home.is_symlink():
            raise RunError(f"`{home}` is a link. Put the folder itself there.")
        # Not with `glob`, which would silently skip folders that cannot be read.
        for path in sorted(home.iterdir()) if home.is_dir() else []:
            # The manifest is written last: a folder without one is not complete.
            if NUMBERED.fullmatch(path.name) and (path / "manifest.json").exists():
                folders.append(path)
        for path in folders:
            _check_task_folder(path)
    by_name = {}
    # By number, because in alphabetical order task 100 comes before task 99.
    for path in sorted(folders, key=lambda path: int(path.name.split("-", 1)[0])):
        name = path.name.split("-", 1)[1]
        by_name[name] = path
    return {name: path for name, path in by_name.items() if name not in forgotten}


def _check_task_folder(path: Path) -> None:
    if path.is_symlink():
        raise RunError(f"`{path}` is a link. Put the folder itself there.")
    if not TASK_NAME.fullmatch(path.name.split("-", 1)[1]):
        shown = str(path).encode("utf-8", "backslashreplace").decode()
        raise RunError(
            f"`{shown}` cannot be the folder of a task, whose name has letters, digits, `-` and "
            "`_` only. It is damaged or was changed."
        )


# -- recipe.yaml · environment.json · backbone.json


def recipe(folder: Path) -> Settings:
    """Return the recipe with all defaults filled in, without checking its sections."""
    path = folder / "recipe.yaml"
    with reading(path):
        values = read_yaml(path)
        # Python files that a stranger's recipe names are not run unless the user trusts them.
        registry.named_by_run(values, folder)
        return old_names.recipe(values)


def whole_recipe(folder: Path) -> Settings:
    """Return the recipe with all defaults filled in, after checking that it has every section.

    Raises
    ------
    RunError
        A section is missing.
    """
    path = folder / "recipe.yaml"
    with reading(path):
        values = recipe(folder)
        check(path, schema.Recipe, values)
        return values


def forgotten(recipe: Mapping[str, object]) -> list[str]:
    """Return the names of the tasks that were removed from the run, as its recipe lists them."""
    names = recipe.get("forgotten") or []
    return names if isinstance(names, list) else []


def innermost(method: Settings) -> Settings:
    """Return the settings of a method; if it wraps another method, those of the innermost one."""
    while isinstance(method.get("method"), dict):
        method = method["method"]
    return method


def environment(folder: Path) -> Content:
    """Return the recorded versions, hardware and format; empty if the file is missing."""
    path = folder / "environment.json"
    with reading(path):
        values = read_json(path) if path.exists() else {}
        check(path, schema.Environment, values)
        return values


def backbone(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of the pre-trained model, by file name.

    The result is empty for older runs, which did not record any.

    Raises
    ------
    RunError
        `backbone.json` is damaged.
    """
    path = folder / BACKBONE
    with reading(path):
        if not path.exists():
            return {}
        return check(path, schema.Backbone, read_json(path)).files


# -- scores.csv · events.jsonl


def scores(folder: Path) -> list[Content]:
    """Return the rows of scores.csv.

    In each row, `value` was measured on `task` after `step` tasks had been learned.
    """
    path = folder / "scores.csv"
    with reading(path):
        if not path.exists():
            return []
        rows = csv.DictReader(read_text(path).splitlines(), strict=True)
        missing = set(COLUMNS) - set(rows.fieldnames or ())
        if missing:
            raise RunError(
                f"`{path}` has no column `{min(missing)}`. It is damaged or was changed."
            )
        return [_score(path, row) for row in rows]


def _score(path: Path, row: Mapping[str, str | None]) -> Content:
    # An incomplete line lacks cells, for which `csv` returns None.
    values = {name: row[name] or "" for name in COLUMNS}
    score = check(path, schema.Score, values)
    task_id = old_names.task_id(score.task_id)
    return values | {"step": score.step, "task_id": task_id, "value": score.value}


def events(folder: Path) -> list[Content]:
    """Return the events in events.jsonl, without incomplete lines that a killed run may leave."""
    path = folder / "events.jsonl"
    with reading(path):
        if not path.exists():
            return []
        events = []
        for line in read_lines(path):
            event = _event(path, line)
            if event is not None:
                events.append(event)
        return events


def _event(path: Path, line: bytes) -> Content | None:
    try:
        event = parse_json(line, "a line")
    except PerdureError:
        return None
    check(path, schema.Event, event)
    # As written, not as the schema parsed it, because the event may be written back.
    return event


def line(event: Content) -> str:
    """Format an event as a line of events.jsonl."""
    return json.dumps(event) + "\n"


# -- combined.json


def combined(folder: Path) -> Content:
    """Return the rule that combines the adapters, with its settings and the scales it has tried.

    Raises
    ------
    RunError
        No task has been finished yet, or the file cannot be read.
    """
    path = folder / "combined.json"
    with reading(path):
        if not path.exists():
            raise RunError(
                f"`{folder}` has no combined model yet: no task has been learned and measured."
            )
        values = read_json(path)
        registry.named_by_run(values, folder)
        return values | check(path, schema.Combined, values).model_dump()


def searches(folder: Path) -> list[Content]:
    """Return the result of each search for a scale.

    The keys of a result are `rule` (the rule's label), `step`, `options` and
    `candidates`. In older folders, whose `combined.json` has no searches, the results are
    read from the event log.

    Raises
    ------
    RunError
        A file cannot be read.
    """
    path = folder / "combined.json"
    with reading(path):
        if not path.exists():
            return []
        values = read_json(path)
        if "searches" not in values:
            return _logged_searches(folder)
        return check(path, schema.Searches, values).model_dump()["searches"]


def _logged_searches(folder: Path) -> list[Content]:
    """Return the searches in an older folder's event log, the last one for each rule and step."""
    searches = {}
    for event in events(folder):
        if event.get("event") != "evaluation" or not event.get("candidates"):
            continue
        search = {key: event.get(key) for key in schema.Search.model_fields}
        candidates = search["candidates"]
        if isinstance(candidates, dict):  # as version 0.1 wrote them
            search["candidates"] = [
                {"scale": float(scale), "score": score} for scale, score in candidates.items()
            ]
        searches[search["rule"], search["step"]] = search
    return list(searches.values())


# -- the folder of a task


def manifest(folder: Path) -> dict[str, Content]:
    """Return the size and SHA-256 of each file in a task folder, by file name.

    Raises
    ------
    RunError
        The manifest is damaged or names a file outside the folder.
    """
    path = folder / "manifest.json"
    with reading(path):
        values = read_json(path)
        check(path, schema.Manifest, values)
        return values


def task(folder: Path) -> Content:
    """Return the content of `task.json`: the task's name, classes, digests and method state.

    Raises
    ------
    RunError
        The file is damaged.
    """
    path = folder / "task.json"
    with reading(path):
        values = read_json(path)
        name = check(path, schema.Task, values).name
        if name != folder.name.split("-", 1)[1]:
            raise CheckpointError(
                f"`{path}` belongs to the task `{name[:100]}`, not to its folder."
            )
        return values
