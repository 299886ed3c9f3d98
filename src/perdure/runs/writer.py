"""The writer of a run folder, which writes only in the first process.

Every file is written under a temporary name, synced and renamed. The only formats are
safetensors, JSON, YAML and CSV.
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
from perdure.runs import derived, forget, layout, put, sources, task_folder
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
        The contents of the folder when it was opened.
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
        """Write the folder of the task that a system learned last, completely or not at all.

        The checkpoint of this task is removed.

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
        if not system.rule.searches:  # a search gets its result only when the step is measured
            put.combined(self.folder, put.described(system.rule, state.searches))
        folder = self.folder / "tasks" / f"{len(state.tasks):02d}-{learned.name}"
        # an existing folder of that name has no manifest, so it was never finished
        put.removed(folder)
        task_folder.save(
            folder,
            learned,
            base=backbone.published,
            head=backbone.stock_head(learned.name),
            task_type=backbone.task_type,
        )
        # Last: a process that dies before this line leaves the checkpoint of a finished
        # task, which `resume` recognizes. The reverse order could lose the task.
        self.unfinished(None)

    def unfinished(self, snapshot: Snapshot | None) -> None:
        """Save a checkpoint in the middle of a task; None removes the existing one."""
        if not self.writes:
            return
        if snapshot:
            snapshot.save(self.folder / UNFINISHED)
        else:
            put.removed(self.folder / UNFINISHED)

    def measurement(self, measurement: Measurement, *, own: bool = True) -> None:
        """Add the values of a measurement to the run.

        They replace earlier values with the same step, task, rule, `task_id` and metric.

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
        # Before the scores: `trim_events` drops an evaluation without scores, so a
        # process that dies in between leaves no trace. In the reverse order, the event
        # would be lost for good.
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
        """Write the rule as it was applied, the result of its search, and the counts of answers."""
        path = self.folder / "combined.json"
        searches = _with_search(state, measurement)
        candidates = measurement.candidates
        # an earlier step may be measured later, but its scale is not that of the final model
        newest = own and measurement.step == len(state.tasks) > 0
        exists = layout.is_there(path)
        if newest or (own and not exists and candidates):
            rule = put.described(measurement.applied, searches)
            # `applied` has the scale that was found; the label is that of the rule that searches
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
        """Append one line to events.jsonl."""
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

        They count as forgotten once the recipe has been written: if the process dies
        after that, the next process that opens the run for writing finishes the removal.
        """
        if not self.writes:
            return
        put.recipe(self.folder, recipe)
        forget.finish(self.folder)

    def recipe(self, values: Mapping[str, object] | None) -> None:
        """Write another recipe, if one is given and it differs from the current one."""
        if self.writes and values and read(self.folder).recipe != values:
            put.recipe(self.folder, values)

    def begin(self, plan: Plan, inside: Snapshot | None) -> None:
        """Discard what a stopped process wrote after its last checkpoint, and prepare to continue.

        From now on, the run has the plan's recipe. If nothing has been learned yet, the
        hashes of the backbone's files are recorded, too.
        """
        engine.wait()  # until the other processes have read where to continue
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
        """Log versions and hardware if they have changed since they were last recorded."""
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
        """Record the hashes of the backbone's files, unless something was already learned on it."""
        if not backbone.files or read(self.folder).stands_on_a_model:
            return
        content = {
            "source": backbone.source,
            "revision": backbone.revision,
            "files": backbone.hashes,
        }
        files.write(self.folder / layout.BACKBONE, files.to_json(content))

    def trim_events(self, task: str | None, step: int) -> None:
        """Drop the events of unsaved work: unfinished tasks, and evaluations without scores.

        A killed process may have logged more than it saved, and may have left an
        incomplete line. When the run continues, those events would be logged a second
        time.

        Parameters
        ----------
        task, step
            The unfinished task that continues, and the step of its checkpoint: events up
            to this step are kept.
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
    """Lock a run for writing, and remove what dead processes left behind.

    No other process can write to the run in the meantime. If several processes train one
    model, the first one takes the lock while the others wait.

    Raises
    ------
    RunError
        Another process is writing to the run, or one of its files is a symbolic link.
    """
    folder = Path(folder)
    if not engine.first():
        engine.wait()
        yield Writer(folder, writes=False)
        return
    layout.check_no_links(folder)
    with lock.held(folder):
        # only now: the temporary files of a running process must not be removed
        partial.sweep(folder)
        partial.sweep(folder / "tasks")
        forget.finish(folder)  # a process may have ended while it was forgetting a task
        # a derived file may have been written at the moment when one of its tasks was removed
        for name in sources.stale(folder):
            put.removed(folder / name)
        engine.wait()
        yield Writer(folder)


def create(folder: Path, recipe: Mapping[str, object]) -> None:
    """Create a run folder unless it already exists; only the first of several processes does so.

    Raises
    ------
    OutputError
        The folder has other contents, which are never overwritten, or it cannot be written.
    """
    if engine.first() and not layout.is_run(folder):
        try:
            _check_free(folder)
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"`{error.filename}` cannot be created: {error.strerror}.") from error
        with lock.held(folder):
            _check_free(folder)  # another process may have created it in the meantime
            about = {"format": layout.FORMAT, **environment()}
            files.write(folder / "environment.json", files.to_json(about))
            put.recipe(folder, recipe)  # the last file, which makes the folder a run
    engine.wait()


def _check_free(folder: Path) -> None:
    """Raise `OutputError` if a folder contains more than the remains of an interrupted `create`."""
    with reading(folder):
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    for name in names:
        remains = name in (lock.NAME, "environment.json") or name.endswith(partial.ENDING)
        if not remains:
            staging.check_free(folder)


def _key(row: Mapping[str, object]) -> tuple[str, ...]:
    """Return the key that identifies a row of scores: everything but the value."""
    names = layout.COLUMNS[:-1]  # the last column has the value
    return tuple(str(row[name]) for name in names)


def _with_search(state: RunState, measurement: Measurement) -> list[dict[str, object]]:
    """Return a run's searches, including the search of a measurement if it made one."""
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
    """Return the content of answers.json: counts of the answers, and of unknown inputs caught.

    A task that cannot be measured now, because its examples are gone, keeps its earlier
    counts if they are from the same model.
    """
    label = measurement.rule.label
    step = measurement.step
    try:
        before = derived.answers(folder, rule=label, step=step)
        caught = derived.caught(folder, rule=label, step=step)
    except RunError:  # the file is damaged; it is derived, and will be replaced
        before = {}
        caught = {}
    for name, recognition in measurement.recognised.items():
        caught[name] = list(recognition.caught)
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
    # A folder from before the setting existed has no such key, and neither has a run without it.
    shares = {"caught": caught} if caught else {}
    return {"rule": label, "step": step, "answers": counts, **shares}
