"""Schemas of the files in a run folder. These classes both describe the contents and check them.

They are as strict as JSON: a number is not a string, and `true` is not a number. A file
may have additional keys, which are preserved. `perdure.runs.layout` reads the files.
"""

import math
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Gt, Le, MaxLen, MinLen
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


def _one_by_one(values: object, check: Callable[[object], dict[str, T]]) -> dict[str, T]:
    """Check the entries of a mapping one at a time, and stop at the first one that is wrong.

    pydantic itself would collect an error for every entry, and a damaged file with a
    million entries would fill the memory. (It has `fail_fast` for lists, but nothing
    similar for mappings.)
    """
    if not isinstance(values, dict):
        return check(values)  # raises an error: it is not a mapping
    checked: dict[str, T] = {}
    for name, value in values.items():
        checked |= check({name: value})
    return checked


def _task_name(name: str) -> str:
    if not TASK_NAME.fullmatch(name):
        raise ValueError("a task cannot have this name")
    return name


Table = Annotated[dict[str, T], WrapValidator(_one_by_one)]
Items = Annotated[list[T], Field(fail_fast=True)]
Count = Annotated[int, Ge(0)]
Whole = Annotated[int, Ge(-(2**53)), Le(2**53)]
"""An integer that every JSON reader restores exactly, because a double can represent it."""
TaskName = Annotated[str, AfterValidator(_task_name)]


class Schema(BaseModel):
    """The base class for the schema of a file or of a part of a file."""

    # Additional keys are allowed, so that an older version can read what a newer one wrote.
    model_config = ConfigDict(strict=True, extra="allow")


# -- recipe.yaml


class Named(Schema):
    """A method or a rule, with its settings."""

    name: str


class PreTrained(Schema):
    """The pre-trained model, with settings for reading its input."""

    model: str


class FromScratch(Schema):
    """A network that is trained from scratch, with the settings that determine its weights."""

    network: str
    classes: Items[str]
    seed: int


def _backbone(values: object, check: Callable[[object], PreTrained]) -> PreTrained | FromScratch:
    """Check a backbone by the class for its kind, so that an error names a key of that class."""
    if isinstance(values, dict) and "network" in values:
        return FromScratch.model_validate(values)
    return check(values)


class Recipe(Schema):
    """`recipe.yaml`: all sections, with all defaults filled in.

    The settings in a section are checked only when the method, rule or other object that
    they belong to is created.
    """

    stream: str | dict[str, object] | Items[dict[str, object]]
    backbone: Annotated[PreTrained, WrapValidator(_backbone)]
    method: Named
    rule: Named
    training: dict[str, object]
    evaluation: dict[str, object]
    posterior: dict[str, object] = {}
    seed: int
    forgotten: Items[TaskName] | None = None
    """The tasks that were removed from the run."""
    traces: Annotated[dict[TaskName, Count], WrapValidator(_one_by_one)] | None = None
    """The forgotten tasks that left traces in later ones, with the former position of each."""


# -- environment.json · backbone.json


class Environment(Schema):
    """The software and hardware on which a run began.

    Only the format affects how the folder is read; the rest is only displayed and compared.
    """

    format: int = 1
    python: str | None = None
    versions: Table[str] | None = None
    """The versions of perdure and of the packages that it uses."""
    revision: str | None = None
    """The git revision of perdure's source, if it runs from a checkout."""
    machine: str | None = None
    system: str | None = None
    cpus: int | None = None
    threads: int | None = None
    accelerator: str | None = None


class Backbone(Schema):
    """The pre-trained model of a run."""

    source: str | None = None
    revision: str | None = None
    files: Table[str]
    """The SHA-256 of each file, by file name."""


# -- tasks/00-name/: task.json · manifest.json


class Task(Schema):
    """The plain values that are stored for a task."""

    name: str
    classes: Items[str]
    digests: Table[str]
    """The SHA-256 of each split of the task's examples."""
    state: dict[str, object]
    """The state of the method, except for tensors."""


def _task_file(name: str) -> str:
    # the files that a manifest names are opened, so none may be outside the task's folder
    if not re.fullmatch(r"(adapter/)?[A-Za-z]\w*\.(json|safetensors)", name, flags=re.ASCII):
        raise ValueError("no task has a file of this name")
    return name


class File(Schema):
    """The size and the SHA-256 that a file had when it was written."""

    size: int
    sha256: str


TaskFile = Annotated[str, AfterValidator(_task_file)]


class Manifest(RootModel[Annotated[dict[TaskFile, File], WrapValidator(_one_by_one)]]):
    """The files of a task folder, by file name."""


# -- unfinished.safetensors


class BelongsTo(Schema):
    """The conditions for resuming training in the middle of a task."""

    tasks: Annotated[Table[Table[str]], MinLen(1)]
    """The SHA-256 of each split of each task; the last task is the one being learned."""


class Unfinished(Schema):
    """The header of the checkpoint of an unfinished task.

    The method and the optimizer check their own parts of the checkpoint.
    """

    step: Count
    seconds: float
    belongs_to: BelongsTo


# -- combined.json


class Candidate(Schema):
    """A scale that a search tried, with its score."""

    scale: float | dict[str, object]
    """A number, or a mapping with a number for each task."""
    score: float


def _of_version_0_1(candidates: object) -> object:
    """Convert candidates from version 0.1, which wrote a mapping from scale to score."""
    if not isinstance(candidates, dict):
        return candidates
    return [{"scale": float(scale), "score": score} for scale, score in candidates.items()]


class Combined(Schema):
    """The rule that combines the adapters."""

    name: str
    label: str
    """The rule's name with its non-default settings; only the name if no label was stored."""
    options: dict[str, object] = {}
    space: str = "delta"
    since: str = "pretrained"
    candidates: Annotated[Items[Candidate], BeforeValidator(_of_version_0_1)] = []

    @model_validator(mode="before")
    @classmethod
    def _label(cls, values: dict[str, object]) -> dict[str, object]:
        return {"label": values.get("name")} | values


class Search(Schema):
    """The result of a search for a rule's scale, after `step` tasks."""

    rule: str
    """The label of the rule."""
    step: int
    options: dict[str, object]
    candidates: Items[Candidate]


class Searches(Schema):
    """All searches in `combined.json`; older folders do not have this key."""

    searches: Items[Search]


# -- scores.csv · events.jsonl · answers.json


class Score(Schema):
    """A row of `scores.csv`: `value` was measured on `task` after `step` tasks had been learned."""

    model_config = ConfigDict(strict=False)  # in CSV, numbers are texts, too

    step: int
    task: str
    scenario: str
    task_id: str
    rule: str
    metric: str
    value: float


class Event(Schema):
    """A line of `events.jsonl`: the kind of event, and the keys that events of this kind have."""

    event: str | None = None
    task: str | None = None
    rule: str | None = None
    step: Whole | None = None
    epoch: Whole | None = None
    examples: Whole | None = None
    trained: Whole | None = None
    """The number of parameters that were trained."""
    state_bytes: Whole | None = None
    """The size of the tensors and texts in the method's state, in bytes."""
    store_bytes: Whole | None = None
    """The size of the old examples that the method stores, in bytes."""
    loss: float | None = None
    learning_rate: float | None = None
    seconds: float | None = None
    options: dict[str, object] | None = None


Answered = Annotated[Table[Annotated[int, Gt(0)]], MinLen(1)]
Ways = Table[Table[Table[Answered]]]
"""Counts of answers, by `task_id`, task, true class and predicted class."""

Share = Annotated[float, Ge(0), Le(1)]
Shares = Annotated[Items[Share], MinLen(101), MaxLen(101)]


class Answers(Schema):
    """The answers to the test examples at the last measurement with the run's own rule."""

    rule: str | None = None
    step: int | None = None
    answers: Ways
    caught: Table[Shares] | None = None
    """The share of unknown inputs that are caught where 0, 1, …, 100 % of the known ones are
    kept, by the name of the score; missing unless `evaluation.unknown` is set.
    """


# -- diagnostics.json


class Part(Schema):
    """A part of the diagnostics: numbers, and one sentence on how to read them."""

    reading: str
    layers: Items[str] = []


class Diagnostics(Schema):
    """The results of `perdure diagnose`. All keys are described in docs/run-folder.md."""

    format: Literal[1]
    tasks: Items[str]
    rule: str
    examples: int
    parts: Table[Part]
    left_out: Table[str]

    @field_validator("parts")
    @classmethod
    def _shapes(cls, parts: dict[str, Part], info: Any) -> dict[str, Part]:
        """Check each part's arrays against the axes that its diagnostic declares."""
        # `info` is a `ValidationInfo`, a protocol that cannot be checked at runtime
        declared = registry.diagnostics()
        # fields are checked in the order of their declaration; a list of tasks that is
        # not valid is not in `data`
        tasks = info.data.get("tasks", [])
        for name, part in parts.items():
            if name not in declared:
                raise ValueError(f"there is no diagnostic `{name[:100]}`")
            sizes = _sizes(len(tasks), len(part.layers))
            numbers = part.model_extra or {}
            diagnostic = declared[name]
            for key, axes in diagnostic.axes.items():
                shape = [sizes[axis] for axis in axes]
                has_shape = key in numbers and _is_array(numbers[key], shape)
                if not has_shape:
                    raise ValueError(f"`{key}` of `{name}` has the wrong shape")
        return parts


def _sizes(tasks: int, layers: int) -> dict[str, int]:
    """Return the length of each axis of the diagnostics, by the letter of the axis.

    The letters are t: tasks, p: pairs of tasks, s: steps, including the one before any
    task, l: layers, z: zones, b: bins of a calibration curve, c: columns of a calibration
    curve.
    """
    return {
        "t": tasks,
        "p": tasks * (tasks - 1) // 2,
        "s": tasks + 1,
        "l": layers,
        "z": 3,
        "b": 15,
        "c": 5,
    }


def _is_array(value: object, shape: list[int]) -> bool:
    """Return True if nested lists have the given shape and contain only finite numbers or None."""
    if not shape:
        if value is None:  # not measured
            return True
        if isinstance(value, bool):  # true and false are numbers for Python
            return False
        return isinstance(value, int | float) and math.isfinite(value)
    if not isinstance(value, list) or len(value) != shape[0]:
        return False
    return all(_is_array(row, shape[1:]) for row in value)
