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
"""

import contextlib
import csv
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perdure import registry
from perdure.errors import PerdureError, RunError
from perdure.storage.files import TASK_NAME, parse_json, read_json, read_lines, read_text, read_yaml

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
        refused = isinstance(error.__cause__, OSError)  # by the system: that says nothing of what is in the file
        said = refused or "damaged" in str(error)
        raise RunError(str(error) if said else f"{error} It is damaged or was changed.") from error
    except OSError as error:
        raise RunError(f"`{error.filename or path}` cannot be read: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, csv.Error, RecursionError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise RunError(f"`{path}` cannot be read: {why}. It is damaged or was changed.") from error


def check_run(folder: Path) -> None:
    """Raise `RunError` if a folder is no run, or one of a format that is not known here."""
    if not is_run(folder):
        raise RunError(f"`{folder}` is not a run: it has no `recipe.yaml`. Give the folder that `perdure run` wrote.")
    found = environment(folder).get("format", 1)
    if type(found) is not int or not 1 <= found <= FORMAT:
        raise RunError(
            f"`{folder}` is a run of format {found!r}; this version of perdure reads the formats 1 to {FORMAT}. "
            "Install a newer one."
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
    """Whether there is a run in a folder."""
    with reading(path := folder / "recipe.yaml"):
        return path.is_file()


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


SECTIONS: dict[str, type | tuple[type, ...]] = {
    "stream": (str, dict, list),
    "backbone": dict,
    "method": dict,
    "rule": dict,
    "training": dict,
    "evaluation": dict,
    "seed": int,
}
EVENT: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("event", "task", "rule"), str),
    **dict.fromkeys(("step", "epoch", "examples", "trained", "state_bytes", "store_bytes"), int),
    **dict.fromkeys(("loss", "learning_rate", "seconds"), (int, float)),
    "options": dict,
}


def whole_recipe(folder: Path) -> dict[str, Any]:
    """The resolved recipe, if it has every section that a run writes: to do something by it, not only to show it.

    Raises
    ------
    RunError
        It has not.
    """
    with reading(path := folder / "recipe.yaml"):
        found = recipe(folder)
        for section, kind in SECTIONS.items():
            if section not in found:
                raise RunError(f"`{path}` has no `{section}`. It is damaged or was changed.")
            if not isinstance(found[section], kind):
                raise RunError(f"`{path}`: `{section}` is {str(found[section])[:100]}. It is damaged or was changed.")
        names = [found["backbone"]["model"], found["method"]["name"], found["rule"]["name"]]
        if not all(isinstance(name, str) for name in names):
            raise RunError(f"`{path}`: a name is no text. It is damaged or was changed.")
        entries = found["stream"] if isinstance(found["stream"], list) else []
        if not all(isinstance(entry, dict) for entry in entries):
            raise RunError(f"`{path}`: an entry of `stream` is no mapping. It is damaged or was changed.")
        _check_tasks(path, found)
        return found


def _check_tasks(path: Path, found: dict[str, Any]) -> None:
    """Check what a recipe says of tasks that are gone."""
    gone, traces = found.get("forgotten") or [], found.get("traces") or {}
    if not isinstance(gone, list) or not isinstance(traces, dict):
        raise RunError(f"`{path}`: `forgotten` is no list, or `traces` no mapping. It is damaged or was changed.")
    for name in [*gone, *traces]:
        if not isinstance(name, str) or not TASK_NAME.fullmatch(name):
            raise RunError(f"`{path}`: no task can be called `{str(name)[:100]}`. It is damaged or was changed.")
    for name, number in traces.items():
        if type(number) is not int or number < 0:
            raise RunError(f"`{path}`: `traces`: `{name}` is {str(number)[:100]}. It is damaged or was changed.")


def environment(folder: Path) -> dict[str, Any]:
    """Versions and hardware, and the format; empty if the file is not there."""
    path = folder / "environment.json"
    with reading(path):
        return read_json(path) if path.exists() else {}


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
        hashes = read_json(path)["files"]
        if not isinstance(hashes, dict) or not all(isinstance(value, str) for value in hashes.values()):
            raise RunError(f"`{path}`: `files` is no table of names and hashes. It is damaged or was changed.")
        return hashes


def task_folders(folder: Path, forgotten: list[str]) -> dict[str, Path]:
    """The folders of the tasks that are complete, by name, in the order in which they were learned."""
    with reading(home := folder / "tasks"):
        if home.is_symlink():
            raise RunError(f"`{home}` is a link. Put the folder itself there.")
        places = sorted(home.iterdir()) if home.is_dir() else []  # `glob` would pass over what may not be read
        found = [place for place in places if PLACE.fullmatch(place.name) and (place / "manifest.json").exists()]
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
            raise RunError(f"`{path}` has no column `{min(missing)}`. It is damaged or was changed.")
        return [{**{name: row[name] or "" for name in COLUMNS}, **_numbers(row)} for row in rows]


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    return {"step": int(row["step"]), "value": float(row["value"])}


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
    for name, kind in EVENT.items():
        value = event.get(name)
        if value is not None and (not isinstance(value, kind) or (isinstance(value, int) and abs(value) > 2**53)):
            raise RunError(f"`{path}`: `{name}` is {str(value)[:100]} in a line. It is damaged or was changed.")
    return [event]


def combined(folder: Path) -> dict[str, Any]:
    """How the adapters are combined: name, options, space, since, and the candidates of a search.

    Raises
    ------
    RunError
        There is none, because no task was finished; or it cannot be read.
    """
    with reading(path := folder / "combined.json"):
        if not path.exists():
            raise RunError(f"`{folder}` holds no combined model: no task is learned and measured yet.")
        rule = read_json(path)
        registry.named_by_run(rule, folder)
        for key, usual in {"label": rule["name"], "options": {}, "space": "delta", "since": "pretrained"}.items():
            rule.setdefault(key, usual)
        found = rule.get("candidates", [])
        if isinstance(found, dict):  # as version 0.1 wrote them
            found = [{"scale": float(scale), "score": score} for scale, score in found.items()]
        rule["candidates"] = [{"scale": _scale(one["scale"]), "score": float(one["score"])} for one in found]
        for key, kind in {"name": str, "label": str, "options": dict, "space": str, "since": str}.items():
            if not isinstance(rule[key], kind):
                raise RunError(f"`{path}`: `{key}` is {str(rule[key])[:100]}. It is damaged or was changed.")
        return rule


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
        found = read_json(path)
        if rule is not None and (found.get("rule"), found.get("step")) != (rule, step):
            return {}
        ways = found["answers"]
        for tasks in ways.values():
            for classes in tasks.values():
                for counts in classes.values():
                    if not all(type(count) is int and count > 0 for count in counts.values()):
                        raise RunError(f"`{path}`: {str(counts)[:100]} are no counts. It is damaged or was changed.")
        return ways


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
        found = read_json(path)
        if found.get("format") != 1:
            number = str(found.get("format"))[:100]
            raise RunError(f"`{path}` has the format {number}, but 1 is read. Make it again with `perdure diagnose`.")
        declared = registry.diagnostics()
        for name, part in found["parts"].items():
            tasks, layers = _texts(found["tasks"]), _texts(part.get("layers", []))
            sizes = {"t": tasks, "p": tasks * (tasks - 1) // 2, "s": tasks + 1, "l": layers, "z": 3, "b": 15, "c": 5}
            for key, axes in declared[name].axes.items():
                if not _is_array(part[key], [sizes[axis] for axis in axes]):
                    raise RunError(f"`{path}`: `{key}` of `{name}` has not its shape. It is damaged or was changed.")
            _texts([part["reading"]])
        _texts([found["rule"], *found["left_out"].values()])
        if type(found["examples"]) is not int:
            raise RunError(f"`{path}`: `examples` is no number. It is damaged or was changed.")
        return found


def _texts(values: list[Any]) -> int:
    """How many texts they are."""
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{str(values)[:100]} are no texts")
    return len(values)


def _is_array(value: Any, sizes: list[int]) -> bool:
    """Whether these are lists within each other, of such lengths, with finite numbers in them, or None."""
    if sizes:
        return isinstance(value, list) and len(value) == sizes[0] and all(_is_array(one, sizes[1:]) for one in value)
    return value is None or (type(value) in (int, float) and math.isfinite(value))


def _scale(value: Any) -> float | dict[str, Any]:
    """One number, or those of each task."""
    return value if isinstance(value, dict) else float(value)


def manifest(place: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each file of a task's folder, by its name.

    Raises
    ------
    RunError
        It is damaged, or names a file outside the folder.
    """
    with reading(path := place / "manifest.json"):
        found = read_json(path)
        for name, about in found.items():
            if not re.fullmatch(r"(adapter/)?[A-Za-z]\w*\.(json|safetensors)", name, flags=re.ASCII):
                raise RunError(f"`{path}` names the file {name!r}, which no task has. It is damaged or was changed.")
            if type(about["size"]) is not int or not isinstance(about["sha256"], str):
                raise RunError(f"`{path}`: {name!r} is {str(about)[:100]}. It is damaged or was changed.")
        return found


def task(place: Path) -> dict[str, Any]:
    """What `task.json` says: `name`, `classes`, `digests` of the examples, and the method's `state`.

    Raises
    ------
    RunError
        It is damaged.
    """
    with reading(path := place / "task.json"):
        found = read_json(path)
        wanted: dict[str, Any] = {"name": str, "classes": list, "digests": dict, "state": dict}
        for key, kind in wanted.items():
            if not isinstance(found[key], kind):
                raise RunError(f"`{path}`: `{key}` is no {kind.__name__}. It is damaged or was changed.")
        if found["name"] != place.name.split("-", 1)[1] or not all(isinstance(c, str) for c in found["classes"]):
            raise RunError(f"`{path}` does not belong to its folder, or its classes are no texts.")
        return found


def line(event: dict[str, Any]) -> str:
    """An event as a line."""
    return json.dumps(event) + "\n"
