"""The files of a run folder as plain values, read without torch.

    recipe.yaml · environment.json   what was run, and on what; the format of the folder
    backbone.json                    SHA-256 of the pre-trained model's files, and its revision
    tasks/00-name/                   one folder per task, complete or absent (`task_folder.py`)
        task.json · manifest.json    name, classes, …; size and SHA-256 of each file
    unfinished.safetensors           where training was stopped (`learning/snapshot.py`)
    combined.json                    the rule as last applied, with the scale that was found
    scores.csv · events.jsonl        measured values; losses, times and sizes
    answers.json                     how each class was answered, at the last measurement
    report.html · diagnostics.json   derived; may be deleted
    lock.json                        who is writing, while somebody is (`storage/lock.py`)

Formats: 1 (perdure 0.1.0), whose `environment.json` does not name it; 2. All are read, the
newest is written. `perdure.runs.schema` describes the content of each file, and checks it.
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
"""A JSON object or a CSV row of the folder, by the keys that `schema` describes."""

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
"""The files and folders that are written, replaced or removed in a run's folder."""
NUMBERED = re.compile(r"(\d{2,6})-(.+)", re.DOTALL)
"""The name of a task's folder: its number in the order of learning, and its name."""
UNREADABLE = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ArithmeticError,
    csv.Error,
    RecursionError,
)
"""The errors that occur when a file is not as it was written."""


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn any error about a run's file into one sentence that names the file.

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
        # What the system refuses says nothing about what is in the file.
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
    """Check the content of a file by the class that describes it.

    Raises
    ------
    PerdureError
        The content is something else; `reading` adds that the file is damaged.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        # `sentence` speaks of a setting that a user has to give; a file just lacks a key.
        complaints = error.errors()
        missing = [each["loc"] for each in complaints if each["type"] == "missing"]
        if missing:
            name = ".".join(map(str, missing[0]))
            raise CheckpointError(f"`{path}` has no `{name}`.") from error
        kinds = kinds_of(kind)
        # In a mapping whose names are free, each entry is of the same kind.
        if "root" in kinds:
            kinds = {name: inside(kinds["root"], name) for name in values}
        raise sentence(error, f"`{path}`", kinds, values) from error


# -- the folder


def check_run(folder: Path) -> None:
    """Raise `RunError` if a folder is not a run, or is one of an unknown format."""
    if not is_run(folder):
        raise RunError(
            f"`{folder}` is not a run: it has no `recipe.yaml`. "
            "Give the folder that `perdure run` wrote."
        )
    path = folder / "environment.json"
    with reading(path):
        version = read_json(path).get("format", 1) if path.exists() else 1
    # By type, not by `isinstance`, for which `true` is a number.
    if type(version) is not int or not 1 <= version <= FORMAT:
        raise RunError(
            f"`{folder}` is a run of format {str(version)[:100]}; this version of perdure reads "
            f"the formats 1 to {FORMAT}. Install a newer one."
        )


def check_no_links(folder: Path) -> None:
    """Check that no file of a run is a link, so that all writing stays in its folder.

    The folder itself may be a link: the user named it, not the maker of the run.

    Raises
    ------
    RunError
        A file is a link.
    """
    for name in WRITTEN:
        path = folder / name
        with reading(path):
            if path.is_symlink():
                raise RunError(
                    f"`{path}` is a link. A run is written in its own folder only: "
                    "put what it points to there, or remove the link."
                )


def is_run(folder: Path) -> bool:
    """Return True if there is a run in a folder."""
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
    """Return True if a file exists; raise an error if the system refuses to tell."""
    with reading(path):
        return path.exists()


def task_folders(folder: Path, forgotten: list[str]) -> dict[str, Path]:
    """Return the folders of the complete tasks, by name, in the order of learning."""
    home = folder / "tasks"
    folders = []
    with reading(home):
        if home.is_symlink():
            raise RunError(f"`{home}` is a link. Put the folder itself there.")
        # Not by `glob`, which would silently skip what may not be read.
        for path in sorted(home.iterdir()) if home.is_dir() else []:
            # The manifest is written last: a folder without one is not complete.
            if NUMBERED.fullmatch(path.name) and (path / "manifest.json").exists():
                folders.append(path)
        for path in folders:
            _check_task_folder(path)
    by_name = {}
    # By number, not by name: in an alphabet, task 100 stands before task 99.
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
    """Return the resolved recipe."""
    path = folder / "recipe.yaml"
    with reading(path):
        values = read_yaml(path)
        # Python files that a stranger's recipe names are not run unless the user trusts it.
        registry.named_by_run(values, folder)
        return old_names.recipe(values)


def whole_recipe(folder: Path) -> Settings:
    """Return the resolved recipe, checked to have every section: for more than showing it.

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
    """Return the names of the tasks that were taken out of the run."""
    names = recipe.get("forgotten") or []
    return names if isinstance(names, list) else []


def innermost(method: Settings) -> Settings:
    """Return the settings of a method; if it wraps another, those of the inner one."""
    while isinstance(method.get("method"), dict):
        method = method["method"]
    return method


def environment(folder: Path) -> Content:
    """Return the versions, the hardware and the format; empty if the file is missing."""
    path = folder / "environment.json"
    with reading(path):
        values = read_json(path) if path.exists() else {}
        check(path, schema.Environment, values)
        return values


def backbone(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of the pre-trained model, by the file's name.

    Older runs kept none; for those, it is empty.

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

    In each, `value` was measured on `task` after `step` tasks had been learned.
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
    # A cut line lacks cells, for which `csv` gives None.
    values = {name: row[name] or "" for name in COLUMNS}
    score = check(path, schema.Score, values)
    task_id = old_names.task_id(score.task_id)
    return values | {"step": score.step, "task_id": task_id, "value": score.value}


def events(folder: Path) -> list[Content]:
    """Return the whole lines of events.jsonl; a run that was killed may leave a cut one."""
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
    # As it was written, not as the schema has it: it may be written again.
    return event


def line(event: Content) -> str:
    """Return an event as a line of events.jsonl."""
    return json.dumps(event) + "\n"


# -- combined.json


def combined(folder: Path) -> Content:
    """Return how the adapters are combined: name, options, space, since, and candidates.

    Raises
    ------
    RunError
        No task has been finished yet, or the file cannot be read.
    """
    path = folder / "combined.json"
    with reading(path):
        if not path.exists():
            raise RunError(
                f"`{folder}` holds no combined model: no task is learned and measured yet."
            )
        values = read_json(path)
        registry.named_by_run(values, folder)
        return values | check(path, schema.Combined, values).model_dump()


def searches(folder: Path) -> list[Content]:
    """Return the result of each search for a scale.

    Each has `rule` (its label), `step`, `options` and `candidates`. Folders from before
    `combined.json` had them say it in their log.

    Raises
    ------
    RunError
        They cannot be read.
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
    """Return the searches in an older folder's log, the last one of each rule and step."""
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


# -- answers.json · diagnostics.json

Answers = dict[str, dict[str, dict[str, dict[str, int]]]]
"""Counts by `task_id`, task, true class and answered class."""


def answers(folder: Path, *, rule: str | None = None, step: int | None = None) -> Answers:
    """Return how the test examples were answered when last measured with the run's own rule.

    It is empty if that is unknown.

    Parameters
    ----------
    rule, step
        If given, the result is also empty if the measurement was with another rule, or after
        another step.

    Raises
    ------
    RunError
        The file is damaged.
    """
    path = folder / "answers.json"
    with reading(path):
        if not path.exists():
            return {}
        values = read_json(path)
        if rule is not None and (values.get("rule"), values.get("step")) != (rule, step):
            return {}
        by_way = check(path, schema.Answers, values).answers
        return {old_names.task_id(way): of_way for way, of_way in by_way.items()}


def diagnostics(folder: Path) -> Content:
    """Return the results of `perdure diagnose`, if any (docs/run-folder.md has their keys).

    Raises
    ------
    RunError
        The file is damaged, or of an unknown format.
    """
    path = folder / "diagnostics.json"
    with reading(path):
        if not path.exists():
            return {}
        values = read_json(path)
        if values.get("format") != 1:
            number = str(values.get("format"))[:100]
            raise RunError(
                f"`{path}` has the format {number}, but 1 is read. "
                "Make it again with `perdure diagnose`."
            )
        check(path, schema.Diagnostics, values)
        return values


# -- the folder of a task


def manifest(folder: Path) -> dict[str, Content]:
    """Return the size and the SHA-256 of each file of a task's folder, by the file's name.

    Raises
    ------
    RunError
        It is damaged, or names a file outside the folder.
    """
    path = folder / "manifest.json"
    with reading(path):
        values = read_json(path)
        check(path, schema.Manifest, values)
        return values


def task(folder: Path) -> Content:
    """Return `task.json`: `name`, `classes`, `digests` of the examples, the method's `state`.

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
