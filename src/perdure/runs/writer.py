"""The writer of a run folder. It writes in the first process; in the others its methods do nothing.

Every file is written under a temporary name, synced and renamed. The formats are
safetensors, JSON, YAML and CSV only.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from perdure.errors import OutputError, RunError
from perdure.evaluation.measure import Measurement
from perdure.evaluation.score import TaskId
from perdure.evaluation.system import System
from perdure.learning import engine
from perdure.learning.snapshot import Snapshot
from perdure.models.backbone import Backbone
from perdure.runs import forget, layout, put, sources, task_folder
from perdure.runs.environment import environment
from perdure.runs.job import Plan
from perdure.runs.layout import UNFINISHED, reading
from perdure.runs.state import RunState, read
from perdure.storage import files, lock, partial, staging


class Writer:
    """The writer of a run folder that this process has locked; see `writing`.

    Attributes
    ----------
    writes
        True in the first process; the others write nothing.
    state
        The folder as it was when it was opened.
    """

    def __init__(self, folder: Path, *, writes: bool = True):
        self.folder, self.writes = folder, writes
        self.state = read(folder)

    @property
    def hint(self) -> str:
        """A sentence on how to resume the run, shown when it is stopped."""
        if self.state.made_in_python:
            return "Call it again with the same `output`."
        return f"Go on with `perdure run {self.folder}`."

    def task(self, system: System) -> None:
        """Write the folder of the task that a system learned last: all of it, or nothing.

        The state inside that task is removed.

        Raises
        ------
        OutputError
            The disk is full, or writing is not allowed.
        """
        if not self.writes:
            return
        backbone = system.backbone
        learned = system.learned[-1]
        state = read(self.folder)
        if not system.rule.searches:  # a search has its result only when the step is measured
            put.combined(self.folder, put.described(system.rule, state.searches))
        folder = self.folder / "tasks" / f"{len(state.tasks):02d}-{learned.name}"
        # a folder of that name can only be one without a manifest, which was never finished
        put.removed(folder)
        task_folder.save(
            folder,
            learned,
            base=backbone.published,
            head=backbone.stock_head(learned.name),
            task_type=backbone.task_type,
        )
        # Last: a process that ends before this line leaves a state that belongs to a finished task,
        # which `resume` recognizes. The other order could lose the task.
        self.unfinished(None)

    def unfinished(self, snapshot: Snapshot | None) -> None:
        """Save the state partway through a task; None removes it."""
        if not self.writes:
            return
        if snapshot:
            snapshot.save(self.folder / UNFINISHED)
        else:
            put.removed(self.folder / UNFINISHED)

    def measurement(self, measurement: Measurement, *, own: bool = True) -> None:
        """Add the values of a measurement.

        They replace earlier values of the same step, task, rule and `task_id`.

        Parameters
        ----------
        own
            True if the rule is the run's own, which `predict` and `export` will use.
        """
        if not self.writes:
            return
        state = read(self.folder)
        self._combined(state, measurement, own=own)
        if not measurement.scores:
            return
        # Before the scores: `trim_events` drops an evaluation without scores, so a process that
        # ends between the two leaves no trace. In the other order the event would be lost for good.
        self.event(
            {
                "event": "evaluation",
                "step": measurement.step,
                "seconds": measurement.seconds,
                "rule": measurement.rule.label,
                "options": dict(measurement.applied.options),
                "candidates": measurement.candidates,
            }
        )
        rows = {_key(row): row for row in state.scores}
        for score in measurement.scores:
            row = vars(score)
            rows[_key(row)] = row
        put.scores(self.folder, rows.values())

    def _combined(self, state: RunState, measurement: Measurement, *, own: bool) -> None:
        """Write how the adapters are combined now, the search's result, and the answers."""
        path = self.folder / "combined.json"
        searches = _with_search(state, measurement)
        candidates = measurement.candidates
        # an earlier step may be measured later, and its scale is not that of the final model
        newest = own and measurement.step == len(state.tasks) > 0
        exists = layout.is_there(path)
        if newest or (own and not exists and candidates):
            rule = put.described(measurement.applied, searches)
            # `applied` has the scale that was found; the label is that of the rule with its search
            rule["label"] = measurement.rule.label
            rule["candidates"] = candidates
            put.combined(self.folder, rule)
        elif exists and candidates:
            rule = state.combined | {"searches": searches}
            put.combined(self.folder, rule)
        if newest and measurement.scores:
            answers = _answers(self.folder, measurement)
            content = files.to_json(answers)
            files.write(self.folder / "answers.json", content)

    def event(self, values: Mapping[str, object]) -> None:
        """Add one line to events.jsonl."""
        if not self.writes:
            return
        path = self.folder / "events.jsonl"
        try:
            files.append(path, layout.line(dict(values)))
        except OSError as error:
            raise OutputError(
                f"`{path}` cannot be written: {error.strerror}. Finished tasks are kept."
            ) from error

    def forget(self, recipe: Mapping[str, object]) -> None:
        """Remove the tasks that a recipe lists as forgotten.

        They count as forgotten from the moment at which the recipe is written: if the process ends
        after that, the next one that opens the run does the rest.
        """
        if not self.writes:
            return
        put.recipe(self.folder, recipe)
        forget.finish(self.folder)

    def recipe(self, values: Mapping[str, object] | None) -> None:
        """Write another recipe, if one is given and it differs."""
        if self.writes and values and read(self.folder).recipe != values:
            put.recipe(self.folder, values)

    def begin(self, plan: Plan, inside: Snapshot | None) -> None:
        """Undo what a stopped process wrote beyond its last save; record where the run continues.

        The run has the plan's recipe from now on. Until something is learned, the hashes of the
        backbone's files are recorded as well.
        """
        engine.wait()  # until the other processes have read where they go on
        if not self.writes:
            return
        self._note_environment()
        if inside:
            begun = list(inside.about["belongs_to"]["tasks"])[-1]
            self.trim_events(begun, inside.about["step"])
        else:
            self.trim_events(None, 0)
            self.unfinished(None)
        self._note_backbone(plan.backbone)
        self.recipe(plan.recipe)

    def _note_environment(self) -> None:
        """Log versions and hardware if they have changed since they were last logged."""
        present = files.plain(environment())
        noted = layout.environment(self.folder)  # at the beginning of the run
        for event in layout.events(self.folder):
            if event.get("event") == "environment":
                noted = event
        before = dict(noted)
        for key in ("format", "event"):  # these say nothing about the machine
            before.pop(key, None)
        if present != before:
            self.event({"event": "environment", **present})

    def _note_backbone(self, backbone: Backbone) -> None:
        """Record the files of the backbone, unless something was learned on it already."""
        if not backbone.files or read(self.folder).stands_on_a_model:
            return
        content = {
            "source": backbone.source,
            "revision": backbone.revision,
            "files": backbone.hashes,
        }
        files.write(self.folder / layout.BACKBONE, files.to_json(content))

    def trim_events(self, task: str | None, step: int) -> None:
        """Drop the events of work that was not saved: unfinished tasks, and evaluations without
        scores.

        A killed process may have logged more than it saved, and part of a line. Those events would
        be logged twice when the run continues.

        Parameters
        ----------
        task, step
            The unfinished task that goes on, and its last saved step: events up to it are kept.
        """
        state = read(self.folder)
        measured = {(row["step"], row["rule"]) for row in state.scores}
        if not layout.is_there(self.folder / "events.jsonl"):
            return
        events = []
        for event in layout.events(self.folder):
            kind = event.get("event")
            name = event.get("task")
            if kind == "evaluation":
                counts = (event.get("step"), event.get("rule")) in measured
            elif name is None or name in state.tasks:
                counts = True
            else:
                counts = kind == "step" and name == task and event.get("step", 0) <= step
            if counts:
                events.append(event)
        put.events(self.folder, events)


@contextlib.contextmanager
def writing(folder: str | Path) -> Iterator[Writer]:
    """Lock a run, so that no other process writes it, and remove what dead processes left behind.

    If several processes train one model, the first locks it, and the others wait for that.

    Raises
    ------
    RunError
        Another process is writing it, or one of its files is a link.
    """
    folder = Path(folder)
    if not engine.first():
        engine.wait()
        yield Writer(folder, writes=False)
        return
    layout.check_no_links(folder)
    with lock.held(folder):
        # only now: the temporary files of a living process are not to be swept
        partial.sweep(folder)
        partial.sweep(folder / "tasks")
        forget.finish(folder)  # a process may have ended while it was forgetting a task
        # a derived file may have been written in the instant in which one of its tasks went
        for name in sources.stale(folder):
            put.removed(folder / name)
        engine.wait()
        yield Writer(folder)


def create(folder: Path, recipe: Mapping[str, object]) -> None:
    """Make a new run folder, unless it already exists; among several processes only the first does.

    Raises
    ------
    OutputError
        The folder has other contents, which are never overwritten; or it cannot be written.
    """
    if engine.first() and not layout.is_run(folder):
        try:
            _check_free(folder)
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"`{error.filename}` cannot be made: {error.strerror}.") from error
        with lock.held(folder):
            _check_free(folder)  # another process may have made it meanwhile
            about = {"format": layout.FORMAT, **environment()}
            files.write(folder / "environment.json", files.to_json(about))
            put.recipe(folder, recipe)  # the last file: with it the folder is a run
    engine.wait()


def _check_free(folder: Path) -> None:
    """Raise `OutputError` if a folder holds anything but the remains of an interrupted `create`."""
    with reading(folder):
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    for name in names:
        remains = name in (lock.NAME, "environment.json") or name.endswith(partial.ENDING)
        if not remains:
            staging.check_free(folder)


def _key(row: Mapping[str, object]) -> tuple[str, ...]:
    """Return the key of a row of scores: everything but the value."""
    names = layout.COLUMNS[:-1]  # the last column has the value
    return tuple(str(row[name]) for name in names)


def _with_search(state: RunState, measurement: Measurement) -> list[dict[str, object]]:
    """Return a run's searches, with that of a measurement added if it made one."""
    if not measurement.candidates:
        return state.searches
    search = {
        "rule": measurement.rule.label,
        "step": measurement.step,
        "options": dict(measurement.applied.options),
        "candidates": measurement.candidates,
    }
    by_step = {(before["rule"], before["step"]): before for before in state.searches}
    by_step[search["rule"], search["step"]] = search
    # sorted, so that the file does not depend on the order in which the steps were measured
    return [by_step[key] for key in sorted(by_step)]


def _answers(folder: Path, measurement: Measurement) -> dict[str, object]:
    """Count the answers to the examples of each class, by `task_id` and task.

    A task that cannot be measured now, because its examples are gone, keeps its earlier counts if
    they are from the same model.
    """
    label = measurement.rule.label
    step = measurement.step
    try:
        before = layout.answers(folder, rule=label, step=step)
    except RunError:  # a damaged file: it is derived, and replaced
        before = {}
    counts = {}
    task_ids: dict[TaskId, None] = {}
    for answers in measurement.answers.values():
        task_ids |= dict.fromkeys(answers.answered)
    for task_id in task_ids:
        by_task = dict(before.get(task_id, {}))
        for task, answers in measurement.answers.items():
            # free text has no classes to count, and a routed rule may have no answer without a task
            if task_id in answers.answered:
                by_task[task] = answers.counts(task_id)
        counts[task_id] = by_task
    return {"rule": label, "step": step, "answers": counts}
