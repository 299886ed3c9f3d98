"""A run folder's files as plain values, read without torch (`perdure.results` describes the folder)."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from perdure.errors import RunError


@dataclass(frozen=True)
class Files:
    """What a report needs of a run folder.

    Attributes
    ----------
    combined
        The rule as it was last applied, `candidates` with numbers as keys; empty if no task was finished.
    tasks
        Name, number of classes and bytes on disk of each complete task, in the order of learning.
    """

    folder: Path
    recipe: dict[str, Any]
    environment: dict[str, Any]
    scores: list[dict[str, Any]]
    events: list[dict[str, Any]]
    combined: dict[str, Any]
    tasks: list[dict[str, Any]]


def read(folder: str | Path) -> Files:
    """Read a run folder.

    Raises
    ------
    RunError
        A file is missing or cannot be understood; the message names it.
    """
    folder = Path(folder)
    if not (folder / "recipe.yaml").is_file():
        raise RunError(f"`{folder}` is not a run: it has no `recipe.yaml`. Give the folder that `perdure run` wrote.")
    manifests = folder.glob("tasks/[0-9]*-*/manifest.json")
    return Files(
        folder=folder,
        recipe=_parsed(folder / "recipe.yaml", _yaml),
        environment=_parsed(folder / "environment.json", lambda text: _mapping(json.loads(text)), {}),
        scores=_parsed(folder / "scores.csv", _scores),
        events=_parsed(folder / "events.jsonl", _events, []),
        combined=_parsed(folder / "combined.json", _combined, {}),
        tasks=[_task(path.parent) for path in sorted(manifests, key=lambda path: int(path.parent.name.split("-")[0]))],
    )


def _parsed(path: Path, parse: Callable[[str], Any], missing: Any = None) -> Any:
    """The file's content, or `missing` if that is given and there is no file."""
    if missing is not None and not path.exists():
        return missing
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"`{path}` is missing, so there is nothing to report. Was the run ever evaluated?") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError, csv.Error) as error:
        why = " ".join(str(error).split())
        raise RunError(
            f"`{path}` cannot be read: {type(error).__name__}: {why}. It is damaged or was changed."
        ) from error


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected names and values, got {type(value).__name__}")
    return value


def _yaml(text: str) -> dict[str, Any]:
    return json.loads(json.dumps(_mapping(yaml.safe_load(text)), default=str))  # a date becomes its text


def _scores(text: str) -> list[dict[str, Any]]:
    columns = ("task", "scenario", "task_id", "rule", "metric")
    rows = csv.DictReader(text.splitlines(), strict=True)
    if missing := {"step", "value", *columns} - set(rows.fieldnames or ()):
        raise ValueError(f"it has no column `{min(missing)}`")
    named = (
        {name: row[name] for name in columns} | {"step": int(row["step"]), "value": float(row["value"])} for row in rows
    )
    return list(named)


def _combined(text: str) -> dict[str, Any]:
    rule = _mapping(json.loads(text))
    found = rule.get("candidates", [])
    if isinstance(found, dict):  # as version 0.1 wrote them
        found = [{"scale": float(scale), "score": score} for scale, score in found.items()]
    candidates = [{"scale": one["scale"], "score": float(one["score"])} for one in found]
    return {**rule, "options": _mapping(rule.get("options", {})), "candidates": candidates}


def _events(text: str) -> list[dict[str, Any]]:
    """The lines that are whole: a run that was killed may leave a part of one."""
    events = []
    for line in text.splitlines():
        try:
            events.append(_mapping(json.loads(line)))
        except ValueError:
            continue
    return events


def _task(folder: Path) -> dict[str, Any]:
    size = _parsed(folder / "manifest.json", lambda text: sum(file["size"] for file in json.loads(text).values()))
    classes = _parsed(folder / "task.json", lambda text: len(json.loads(text)["classes"]), "")
    return {"name": folder.name.split("-", 1)[1], "classes": classes or None, "bytes": size}
