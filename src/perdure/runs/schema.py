"""What stands in each file of a run folder: the check, and the description, are these classes.

They are strict, as JSON is: a number is no text, and true is no number. More than they name may
stand in a file, and is kept. `perdure.runs.layout` reads the files.
"""

import math
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    RootModel,
    WrapValidator,
    field_validator,
    model_validator,
)

from perdure import registry
from perdure.storage.files import TASK_NAME

T = TypeVar("T")


def _one_by_one(values: Any, check: Callable[[Any], Any]) -> Any:
    """Check the entries of a mapping until one is wrong: a million complaints would fill memory."""
    if not isinstance(values, dict):
        return check(values)
    checked = {}
    for name, value in values.items():
        checked |= check({name: value})
    return checked


def _task_name(name: str) -> str:
    if not TASK_NAME.fullmatch(name):
        raise ValueError("no task can be called so")
    return name


Table = Annotated[dict[str, T], WrapValidator(_one_by_one)]
Items = Annotated[list[T], Field(fail_fast=True)]
Count = Annotated[int, Ge(0)]
Whole = Annotated[int, Ge(-(2**53)), Le(2**53)]
"""A number that any program reads from JSON as it was written."""
TaskName = Annotated[str, AfterValidator(_task_name)]


class Schema(BaseModel):
    """A file, or a part of one."""

    model_config = ConfigDict(strict=True, extra="allow")


# -- recipe.yaml


class Named(Schema):
    """A method or a rule, and its settings."""

    name: str


class PreTrained(Schema):
    """The pre-trained model, and how it is read."""

    model: str


class Recipe(Schema):
    """`recipe.yaml` has every section, with all defaults; their settings are checked when they are used."""

    stream: str | dict[str, Any] | Items[dict[str, Any]]
    backbone: PreTrained
    method: Named
    rule: Named
    training: dict[str, Any]
    evaluation: dict[str, Any]
    seed: int
    forgotten: Items[TaskName] | None = None
    """The tasks that were taken out."""
    traces: Annotated[dict[TaskName, Count], WrapValidator(_one_by_one)] | None = None
    """The tasks of which something remains in later ones, and the place that each had."""


# -- environment.json · backbone.json


class Environment(Schema):
    """Where a run was begun. Only the format decides anything; the rest is shown, and compared."""

    format: int = 1
    python: str | None = None
    versions: Table[str] | None = None
    """Of perdure and the packages that it computes with."""
    revision: str | None = None
    """Of perdure's source, where that is a git checkout."""
    machine: str | None = None
    system: str | None = None
    cpus: int | None = None
    threads: int | None = None
    accelerator: str | None = None


class Backbone(Schema):
    """The pre-trained model that a run stands on."""

    source: str | None = None
    revision: str | None = None
    files: Table[str]
    """The SHA-256 of each."""


# -- tasks/00-name/: task.json · manifest.json


class Task(Schema):
    """What is kept of a task as plain values."""

    name: str
    classes: Items[str]
    digests: Table[str]
    """The SHA-256 of each split of its examples."""
    state: dict[str, Any]
    """What the method remembers, but for tensors."""


def _task_file(name: str) -> str:
    if not re.fullmatch(r"(adapter/)?[A-Za-z]\w*\.(json|safetensors)", name, flags=re.ASCII):
        raise ValueError("no task has a file of this name")
    return name


class File(Schema):
    """A file as it was written."""

    size: int
    sha256: str


TaskFile = Annotated[str, AfterValidator(_task_file)]


class Manifest(RootModel[Annotated[dict[TaskFile, File], WrapValidator(_one_by_one)]]):
    """The files of a task's folder, by their names in it."""


# -- unfinished.safetensors


class BelongsTo(Schema):
    """What has to be the same for the training of a task to go on inside it, the tasks among that."""

    tasks: Annotated[Table[Table[str]], MinLen(1)]
    """The SHA-256 of each split of each task; the last one is being learned."""


class Unfinished(Schema):
    """What the header says of the state inside a task; the method and the optimizer check theirs."""

    step: Count
    seconds: float
    belongs_to: BelongsTo


# -- combined.json


class Candidate(Schema):
    """A scale that a search tried."""

    scale: float | dict[str, Any]
    """One number, or those of each task."""
    score: float


def _of_version_0_1(candidates: Any) -> Any:
    """Return candidates as they are written now, not as scores by scale."""
    if not isinstance(candidates, dict):
        return candidates
    return [{"scale": float(scale), "score": score} for scale, score in candidates.items()]


class Combined(Schema):
    """How the adapters are combined."""

    name: str
    label: str
    """With the settings that are not the usual ones; the name, where an older version wrote none."""
    options: dict[str, Any] = {}
    space: str = "delta"
    since: str = "pretrained"
    candidates: Annotated[Items[Candidate], BeforeValidator(_of_version_0_1)] = []

    @model_validator(mode="before")
    @classmethod
    def _label(cls, values: Any) -> Any:
        return {"label": values.get("name")} | values


class Search(Schema):
    """What the search of a rule's scale found after a number of tasks."""

    rule: str
    """The label of the rule."""
    step: int
    options: dict[str, Any]
    candidates: Items[Candidate]


class Searches(Schema):
    """All searches of `combined.json`; folders from before it had them lack the key."""

    searches: Items[Search]


# -- scores.csv · events.jsonl · answers.json


class Score(Schema):
    """A row of `scores.csv`: after `step` tasks had been learned, `value` was measured on `task`."""

    model_config = ConfigDict(strict=False)  # CSV knows texts only

    step: int
    task: str
    scenario: str
    task_id: str
    rule: str
    metric: str
    value: float


class Event(Schema):
    """A line of `events.jsonl`: what happened, and by its kind what is said of it."""

    event: str | None = None
    task: str | None = None
    rule: str | None = None
    step: Whole | None = None
    epoch: Whole | None = None
    examples: Whole | None = None
    trained: Whole | None = None
    """How many parameters were trained."""
    state_bytes: Whole | None = None
    """What the method remembers."""
    store_bytes: Whole | None = None
    """Old examples among that."""
    loss: float | None = None
    learning_rate: float | None = None
    seconds: float | None = None
    options: dict[str, Any] | None = None


Answered = Annotated[Table[Annotated[int, Gt(0)]], MinLen(1)]
Ways = Table[Table[Table[Answered]]]
"""By the way to know the task, by task, true class, and class that was answered: how often."""


class Answers(Schema):
    """How the test examples were answered at the last measurement with the run's own rule."""

    rule: str | None = None
    step: int | None = None
    answers: Ways


# -- diagnostics.json


class Part(Schema):
    """A part of the diagnostics: beside its numbers, one sentence on how to read them."""

    reading: str
    layers: Items[str] = []


class Diagnostics(Schema):
    """What `perdure diagnose` has found (docs/run-folder.md has all keys)."""

    format: Literal[1]
    tasks: Items[str]
    rule: str
    examples: int
    parts: Table[Part]
    left_out: Table[str]

    @field_validator("parts")
    @classmethod
    def _shapes(cls, parts: dict[str, Part], info: Any) -> dict[str, Part]:
        declared = registry.diagnostics()
        for name, part in parts.items():
            if name not in declared:
                raise ValueError(f"there is no part `{name[:100]}`")
            sizes = _sizes(len(info.data.get("tasks", [])), len(part.layers))
            numbers = part.model_extra or {}
            for key, axes in declared[name].axes.items():
                shape = [sizes[axis] for axis in axes]
                if key not in numbers or not _is_array(numbers[key], shape):
                    raise ValueError(f"`{key}` of `{name}` has not its shape")
        return parts


def _sizes(tasks: int, layers: int) -> dict[str, int]:
    """Return the length of each axis of the diagnostics."""
    pairs = tasks * (tasks - 1) // 2
    return {"t": tasks, "p": pairs, "s": tasks + 1, "l": layers, "z": 3, "b": 15, "c": 5}


def _is_array(value: Any, shape: list[int]) -> bool:
    """Return whether lists within each other have a shape; their numbers are finite, or None."""
    if not shape:
        return value is None or (type(value) in (int, float) and math.isfinite(value))
    if not isinstance(value, list) or len(value) != shape[0]:
        return False
    return all(_is_array(row, shape[1:]) for row in value)
