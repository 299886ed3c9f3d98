"""The files of a run folder as plain values, read without torch: what everything that comes after training begins with.

    recipe.yaml · environment.json                    what was run, and on what; the format of the folder
    backbone.json                                     the SHA-256 of the pre-trained model's files, and its revision
    tasks/00-name/                                    one folder per task, complete or absent (`runs/task_folder.py`)
        task.json · manifest.json                     name, classes, …; size and SHA-256 of each file
    unfinished.safetensors                            where the training of a task was stopped (`learning/snapshot.py`)
    combined.json                                     the rule as it was last applied, with the scale that was found
    scores.csv · events.jsonl                         measured values; losses, times and sizes
    answers.json                                      how each class was answered, at the last measurement
    report.html · diagnostics.json                    derived; may be deleted
    lock.json                                         who is writing, while somebody is (`storage/lock.py`)

Formats: 1 (perdure 0.1.0), whose `environment.json` does not name it; 2. All are read, the newest is written.
`perdure.runs.schema` describes the content of each file, and checks it.
"""

import contextlib
import csv
import errno
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from perdure import registry
from perdure.errors import CheckpointError, PerdureError, RunError
from perdure.runs import schema
from perdure.settings import inside, kinds_of, sentence
from perdure.storage.files import TASK_NAME, parse_json, read_json, read_lines, read_text, read_yaml

M = TypeVar("M", bound=BaseModel)

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
"""What is written, replaced or removed in a run's folder."""
PLACE = re.compile(r"(\d{2,6})-(.+)", re.DOTALL)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever is wrong with a file of a run, as one sentence that names it."""
    try:
        yield
    except RunError:
        raise
    except PerdureError as error:
        refused = isinstance(
            error.__cause__, OSError
        )  # by the system: that says nothing of what is in the file
        said = refused or "damaged" in str(error)
        raise RunError(str(error) if said else f"{error} It is damaged or was changed.") from error
    except OSError as error:
        raise RunError(
            f"`{error.filename or path}` cannot be read: {error.strerror or error}."
        ) from error
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        ArithmeticError,
        csv.Error,
        RecursionError,
    ) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise RunError(f"`{path}` cannot be read: {why}. It is damaged or was changed.") from error


def check(path: Path, kind: type[M], values: dict[str, Any]) -> M:
    """Check what a file says, by the class that describes it.

    Raises
    ------
    PerdureError
        It is something else; `reading` adds that the file is damaged.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        missing = [each["loc"] for each in error.errors() if each["type"] == "missing"]
        if missing:
            name = ".".join(map(str, missing[0]))
            raise CheckpointError(f"`{path}` has no `{name}`.") from error
        kinds = kinds_of(kind)
        if "root" in kinds:  # of a mapping whose names are free
            kinds = {name: inside(kinds["root"], name) for name in values}
        raise sentence(error, f"`{path}`", kinds, values) from error


def check_run(folder: Path) -> None:
    """Raise `RunError` if a folder is no run, or one of a format that is not known here."""
    if not is_run(folder):
        raise RunError(
            f"`{folder}` is not a run: it has no `recipe.yaml`. Give the folder that `perdure run` wrote."
        )
    with reading(path := folder / "environment.json"):
        found = read_json(path).get("format", 1) if path.exists() else 1
    if type(found) is not int or not 1 <= found <= FORMAT:
        raise RunError(
            f"`{folder}` is a run of format {str(found)[:100]}; this version of perdure reads the formats "
            f"1 to {FORMAT}. Install a newer one."
        )


def check_no_links(folder: Path) -> None:
    """Check that what is written of a run lies in its folder, so that nothing is written or removed anywhere else.

    The folder itself may be a link: its name was given by whoever gave the command, not by whoever made the run.

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
                    f"`{path}` is a link. A run is written in its own folder only: put what it points to there, or "
                    "remove the link."
                )


def is_run(folder: Path) -> bool:
    """Whether there is a run in a folder. Where the path is too long for the system, there can be none."""
    with reading(path := folder / "recipe.yaml"):
        try:
            return path.is_file()
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return False
            raise


def is_there(path: Path) -> bool:
    """Whether there is such a file; one that may not be asked for is an error."""
    with reading(path):
        return path.exists()


def recipe(folder: Path) -> dict[str, Any]:
    """The resolved recipe."""
    with reading(path := folder / "recipe.yaml"):
        values = read_yaml(path)
        registry.named_by_run(values, folder)
        return values


def whole_recipe(folder: Path) -> dict[str, Any]:
    """The resolved recipe, if it has every section that a run writes: to do something by it, not only to show it.

    Raises
    ------
    RunError
        It has not.
    """
    with reading(path := folder / "recipe.yaml"):
        values = recipe(folder)
        check(path, schema.Recipe, values)
        return values


def environment(folder: Path) -> dict[str, Any]:
    """Versions and hardware, and the format; empty if the file is not there."""
    path = folder / "environment.json"
    with reading(path):
        values = read_json(path) if path.exists() else {}
        check(path, schema.Environment, values)
        return values


def backbone(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of the pre-trained model, by name; empty for a run that kept none, as older ones.

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


def task_folders(folder: Path, forgotten: list[str]) -> dict[str, Path]:
    """The folders of the tasks that are complete, by name, in the order in which they were learned."""
    with reading(home := folder / "tasks"):
        if home.is_symlink():
            raise RunError(f"`{home}` is a link. Put the folder itself there.")
        places = (
            sorted(home.iterdir()) if home.is_dir() else []
        )  # `glob` would pass over what may not be read
        found = [
            place
            for place in places
            if PLACE.fullmatch(place.name) and (place / "manifest.json").exists()
        ]
        for place in found:
            _check_task_folder(place)
    found.sort(key=lambda place: int(place.name.split("-", 1)[0]))
    names = {place.name.split("-", 1)[1]: place for place in found}
    return {name: place for name, place in names.items() if name not in forgotten}


def _check_task_folder(place: Path) -> None:
    if place.is_symlink():
        raise RunError(f"`{place}` is a link. Put the folder itself there.")
    if not TASK_NAME.fullmatch(place.name.split("-", 1)[1]):
        shown = str(place).encode("utf-8", "backslashreplace").decode()
        raise RunError(
            f"`{shown}` cannot be the folder of a task, whose name has letters, digits, `-` and `_` only. "
            "It is damaged or was changed."
        )


def forgotten(recipe: dict[str, Any]) -> list[str]:
    """The tasks that were taken out of the run."""
    names = recipe.get("forgotten") or []
    return names if isinstance(names, list) else []


def innermost(method: dict[str, Any]) -> dict[str, Any]:
    """The settings of a method; of one that wraps another, those of the other."""
    while isinstance(method.get("method"), dict):
        method = method["method"]
    return method


def scores(folder: Path) -> list[dict[str, Any]]:
    """The rows of scores.csv: `step` tasks had been learned when `value` was measured on `task`."""
    with reading(path := folder / "scores.csv"):
        if not path.exists():
            return []
        rows = csv.DictReader(read_text(path).splitlines(), strict=True)
        if missing := set(COLUMNS) - set(rows.fieldnames or ()):
            raise RunError(
                f"`{path}` has no column `{min(missing)}`. It is damaged or was changed."
            )
        return [_score(path, row) for row in rows]


def _score(path: Path, row: dict[str, Any]) -> dict[str, Any]:
    values = {name: row[name] or "" for name in COLUMNS}
    score = check(path, schema.Score, values)
    return values | {"step": score.step, "value": score.value}


def events(folder: Path) -> list[dict[str, Any]]:
    """The lines of events.jsonl that are whole: a run that was killed may leave a part of one."""
    with reading(path := folder / "events.jsonl"):
        if not path.exists():
            return []
        return [event for line in read_lines(path) for event in _event(path, line)]


def _event(path: Path, line: bytes) -> list[dict[str, Any]]:
    try:
        event = parse_json(line, "a line")
    except PerdureError:
        return []
    check(path, schema.Event, event)
    return [event]  # as it was written: it may be written again


def combined(folder: Path) -> dict[str, Any]:
    """How the adapters are combined: name, options, space, since, and the candidates of a search.

    Raises
    ------
    RunError
        There is none, because no task was finished; or it cannot be read.
    """
    with reading(path := folder / "combined.json"):
        if not path.exists():
            raise RunError(
                f"`{folder}` holds no combined model: no task is learned and measured yet."
            )
        values = read_json(path)
        registry.named_by_run(values, folder)
        return values | check(path, schema.Combined, values).model_dump()


def searches(folder: Path) -> list[dict[str, Any]]:
    """Return what each search for a scale found: `rule` (its label), `step`, `options` and `candidates`.

    Folders from before `combined.json` had them say it in their log.

    Raises
    ------
    RunError
        They cannot be read.
    """
    with reading(path := folder / "combined.json"):
        if not path.exists():
            return []
        values = read_json(path)
        if "searches" not in values:
            return _logged_searches(folder)
        return check(path, schema.Searches, values).model_dump()["searches"]


def _logged_searches(folder: Path) -> list[dict[str, Any]]:
    """Return what searches found, as the log of an older folder says it; the last one of a rule and step counts."""
    logged = {}
    for event in events(folder):
        if event.get("event") != "evaluation" or not event.get("candidates"):
            continue
        search = {key: event.get(key) for key in schema.Search.model_fields}
        if isinstance(search["candidates"], dict):  # as version 0.1 wrote them
            tried = search["candidates"].items()
            search["candidates"] = [
                {"scale": float(scale), "score": score} for scale, score in tried
            ]
        logged[search["rule"], search["step"]] = search
    return list(logged.values())


Answers = dict[str, dict[str, dict[str, dict[str, int]]]]
"""How often each class was answered: by the way to know the task, by task, true class, and class that was answered."""


def answers(folder: Path, *, rule: str | None = None, step: int | None = None) -> Answers:
    """Return how the test examples were answered at the last measurement with the run's own rule; empty if unknown.

    Parameters
    ----------
    rule, step
        Only if it was with this rule, after so many tasks.

    Raises
    ------
    RunError
        It is damaged.
    """
    with reading(path := folder / "answers.json"):
        if not path.exists():
            return {}
        values = read_json(path)
        if rule is not None and (values.get("rule"), values.get("step")) != (rule, step):
            return {}
        return check(path, schema.Answers, values).answers


def diagnostics(folder: Path) -> dict[str, Any]:
    """What `perdure diagnose` has found (docs/run-folder.md has its keys); empty if it has not been asked.

    Raises
    ------
    RunError
        It is damaged, or of a format that is not known here.
    """
    with reading(path := folder / "diagnostics.json"):
        if not path.exists():
            return {}
        values = read_json(path)
        if values.get("format") != 1:
            number = str(values.get("format"))[:100]
            raise RunError(
                f"`{path}` has the format {number}, but 1 is read. Make it again with `perdure diagnose`."
            )
        check(path, schema.Diagnostics, values)
        return values


def manifest(place: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each file of a task's folder, by its name.

    Raises
    ------
    RunError
        It is damaged, or names a file outside the folder.
    """
    with reading(path := place / "manifest.json"):
        values = read_json(path)
        check(path, schema.Manifest, values)
        return values


def task(place: Path) -> dict[str, Any]:
    """What `task.json` says: `name`, `classes`, `digests` of the examples, and the method's `state`.

    Raises
    ------
    RunError
        It is damaged.
    """
    with reading(path := place / "task.json"):
        values = read_json(path)
        about = check(path, schema.Task, values)
        if about.name != place.name.split("-", 1)[1]:
            raise CheckpointError(
                f"`{path}` belongs to the task `{about.name[:100]}`, not to its folder."
            )
        return values


def line(event: dict[str, Any]) -> str:
    """An event as a line."""
    return json.dumps(event) + "\n"
