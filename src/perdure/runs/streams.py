"""Streams of tasks from the entries of a recipe: the user's own data, or a benchmark."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from perdure import registry
from perdure.data.inputs import read_inputs
from perdure.data.table import read_tasks
from perdure.data.task import Scenario, Task, TaskStream
from perdure.errors import DataError, InputError, NotHere
from perdure.evaluation import general, open_set
from perdure.evaluation.measure import Evaluation
from perdure.runs.expected import expected
from perdure.runs.inputs import input_columns
from perdure.runs.past import UNREADABLE, Past, Unreadable, as_entry
from perdure.settings import Section, checked, named


def own_stream(
    entries: Sequence[Mapping[str, object]],
    *,
    scenario: Scenario = "class",
    seed: int = 0,
    past: Past | None = None,
    outline: bool = False,
) -> TaskStream:
    """Return a stream of the user's own data, with the tasks of each entry, in order.

    An entry can also name a `benchmark`, and list tasks to leave out (`without`).

    Parameters
    ----------
    outline
        Use placeholders for data that would have to be downloaded.
    past
        The tasks that the run has already learned; entries with these tasks need not be readable.
    """
    past = past or Past()
    tasks_by_entry: list[list[Task] | Unreadable] = []
    for entry in entries:
        try:
            tasks = past.compared(entry, _tasks_of(entry, seed))
        except UNREADABLE as error:
            if outline and isinstance(error, NotHere):
                tasks = _expected(entry, error, past)
            else:
                tasks = past.instead_of(entry, error)
        tasks_by_entry.append(tasks)
    return TaskStream("own", tuple(past.completed(tasks_by_entry)), scenario)


def never_trained(evaluation: Evaluation, seed: int) -> tuple[Task, ...]:
    """Return the tasks that `evaluation.general` names, which are measured but never trained on.

    Raises
    ------
    InputError
        An entry is not valid, or two tasks have the same name.
    """
    asked = general.source(evaluation.general)
    if asked is None or not asked.tasks:
        return ()
    return own_stream(asked.tasks, seed=seed).tasks


def with_unknown(stream: TaskStream, evaluation: Evaluation, section: object = None) -> TaskStream:
    """Return a stream with the inputs that belong to no task, if `evaluation.unknown` names any.

    Parameters
    ----------
    section
        The stream in the recipe, whose entries name the columns of the tasks' own tables.

    Raises
    ------
    DataError
        The file is missing, or cannot be read.
    InputError
        The table does not have the columns, or they are of another kind than the tasks.
    """
    source = open_set.source(evaluation.unknown)
    known = [task for task in stream if not task.missing]
    # Without known examples, nothing is measured.
    if source is None or not source.data or not known:
        return stream
    kind = known[0].kind
    if (source.image and kind == "text") or (source.text and kind == "image"):
        raise InputError(
            f"`evaluation.unknown`: the tasks are learned from {kind}s, so name the column with "
            f"`{kind}`."
        )

    def columns(names: Sequence[str], table: str) -> tuple[str, ...]:
        return input_columns(
            names,
            source.columns,
            table,
            stream=section,
            kind=kind,
            option=f"evaluation.unknown.{kind}",
        )

    try:
        inputs = read_inputs(
            source.data,
            kind,
            columns,
            encoding=source.encoding,
            delimiter=source.delimiter,
        )
    except DataError as error:
        raise DataError(
            f"`evaluation.unknown`: {error} Put it right, or leave the setting out: "
            "`--set evaluation.unknown=null`."
        ) from error
    return replace(stream, unknown=inputs)


def _tasks_of(entry: Mapping[str, object], seed: int) -> list[Task]:
    """Read the tasks of one entry in a stream."""
    options = dict(entry)
    _check_sources(options.get("data"))
    left_out = options.pop("without", [])
    if not isinstance(left_out, list):
        raise InputError(
            f"`stream`: `without` is {left_out!r}, but should be a list of task names."
        )
    source = options.get("data")
    if "benchmark" in options:
        name, settings = named(options, "stream", key="benchmark")
        tasks = _benchmark(name, settings, seed).tasks
    elif isinstance(source, (str, dict)):
        del options["data"]
        # the data is split with the run's seed, unless the entry has a seed
        settings = checked(read_tasks, {"seed": seed} | options, "stream")
        tasks = read_tasks(source, **settings)
    else:
        raise InputError(
            f"`stream`: the entry {options} has no `data` (a file, a folder, or a hub id)."
        )
    return [task for task in tasks if task.name not in left_out]


def _expected(entry: Mapping[str, object], error: NotHere, past: Past) -> list[Task]:
    """Return the tasks of an entry that is not here: those learned so far, and placeholders."""
    tasks: list[Task] = []
    for task in expected(entry, error):
        tasks.append(past.tasks.get(task.name, task))
    return tasks


def past_benchmark(section: Section, seed: int, past: Past, outline: bool) -> TaskStream:
    """Create a benchmark's stream; if it cannot be read, use the tasks learned so far."""
    name, options = named(section, "stream")
    entry = as_entry(section)
    try:
        stream = _benchmark(name, options, seed)
    except UNREADABLE as error:
        if outline and isinstance(error, NotHere):
            tasks = _expected(entry, error, past)
        else:
            tasks = past.completed([past.instead_of(entry, error)])
        return TaskStream(name, tuple(tasks), _scenario(section))
    tasks = past.compared(entry, stream.tasks)
    return replace(stream, tasks=tuple(tasks))


def _scenario(section: Section) -> Scenario:
    """Return the scenario of a benchmark without creating its stream."""
    name, options = named(section, "stream")
    parameter = registry.options(registry.find("benchmark", name)).get("scenario")
    usual = parameter.default if parameter else "class"
    return options.get("scenario", usual)


def _check_sources(data: object) -> None:
    """Check the file names in `data`; an empty one would mean the current folder."""
    # `data` is one source, or one for each split
    for source in data.values() if isinstance(data, Mapping) else [data]:
        # the system truncates a path at a null byte
        if isinstance(source, str) and (not source.strip() or "\0" in source):
            raise InputError(
                f"`stream`: `data` is {source!r}, but must be a file, a folder, or a hub id."
            )


def _benchmark(name: str, options: Mapping[str, object], seed: int) -> TaskStream:
    """Create a benchmark's stream. If the benchmark has a `seed`, it defaults to the run's seed."""
    if "tasks_made_in_python" in options:
        raise InputError(
            f"The stream `{name}` was made in Python, not by a recipe: give it as `stream=…`."
        )
    function = registry.find("benchmark", name)
    if "seed" in registry.options(function):
        options = {"seed": seed} | dict(options)
    return function(**checked(function, options, f"stream `{name}`"))
