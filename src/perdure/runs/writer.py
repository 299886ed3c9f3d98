"""The one that writes a run folder: the first process. In the others its verbs do nothing.

Every file is written under a temporary name, synced and renamed. safetensors, JSON, YAML and CSV only.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from perdure.errors import OutputError, RunError
from perdure.evaluation.measure import Measurement
from perdure.evaluation.system import System
from perdure.learning import engine
from perdure.learning.snapshot import Snapshot
from perdure.runs import forget, layout, put, sources, task_folder
from perdure.runs.environment import environment
from perdure.runs.job import Plan
from perdure.runs.layout import UNFINISHED, reading
from perdure.runs.state import RunState, read
from perdure.storage import files, lock, partial, staging


class Writer:
    """Writes a run folder that it holds; see `writing`.

    Attributes
    ----------
    writes
        Whether this is the first process: in the others nothing is written.
    state
        The folder as it was when it was opened.
    """

    def __init__(self, folder: Path, *, writes: bool = True):
        self.folder, self.writes = folder, writes
        self.state = read(folder)

    @property
    def hint(self) -> str:
        """How to go on with the run, for whoever stops it."""
        if self.state.made_in_python:
            return "Call it again with the same `output`."
        return f"Go on with `perdure run {self.folder}`."

    def task(self, system: System) -> None:
        """Write what a system learned last: the task's folder, all of it or nothing. The state inside it is over.

        Raises
        ------
        OutputError
            The disk is full, or writing is not allowed.
        """
        if not self.writes:
            return
        backbone, learned = system.backbone, system.learned[-1]
        state = read(self.folder)
        if not system.rule.searches:  # a search has its result only when it is measured
            put.combined(self.folder, put.described(system.rule, state.searches))
        place = self.folder / "tasks" / f"{len(state.tasks):02d}-{learned.name}"
        put.removed(place)  # what may be there has no manifest: it counts for nothing
        task_folder.save(
            place, learned, base=backbone.published, head=backbone.stock_head(learned.name)
        )
        self.unfinished(None)

    def unfinished(self, snapshot: Snapshot | None) -> None:
        """Write the state inside a task; or remove it, if there is none."""
        if not self.writes:
            return
        if snapshot:
            snapshot.save(self.folder / UNFINISHED)
        else:
            put.removed(self.folder / UNFINISHED)

    def measurement(self, measurement: Measurement, *, own: bool = True) -> None:
        """Add the values of a measurement; those of the same step, task, rule and way are replaced.

        Parameters
        ----------
        own
            The rule is the run's own: the one that `predict` and `export` will take.
        """
        if not self.writes:
            return
        state = read(self.folder)
        self._combined(state, measurement, own=own)
        if not measurement.scores:
            return
        about = {
            "event": "evaluation",
            "step": measurement.step,
            "seconds": measurement.seconds,
            "rule": measurement.rule.label,
            "options": dict(measurement.applied.options),
            "candidates": measurement.candidates,
        }
        # before the scores, with which alone it counts: so none is lost to a process that ends here
        self.event(about)
        rows = {_key(row): row for row in [*state.scores, *map(vars, measurement.scores)]}
        put.scores(self.folder, rows.values())

    def _combined(self, state: RunState, measurement: Measurement, *, own: bool) -> None:
        """Write how the adapters are combined now, what the search found, and how examples were answered."""
        searches = _with_search(state.searches, measurement)
        newest = (
            own and measurement.step == len(state.tasks) > 0
        )  # not an earlier step, measured later
        there = layout.is_there(self.folder / "combined.json")
        if newest or (own and not there and measurement.candidates):
            described = put.described(measurement.applied, searches)
            own_name = {"label": measurement.rule.label, "candidates": measurement.candidates}
            put.combined(self.folder, described | own_name)
        elif there and measurement.candidates:
            put.combined(self.folder, state.combined | {"searches": searches})
        if newest and measurement.scores:
            files.write(
                self.folder / "answers.json", files.to_json(_answers(self.folder, measurement))
            )

    def event(self, values: Mapping[str, Any]) -> None:
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

    def forget(self, recipe: Mapping[str, Any]) -> None:
        """Take out the tasks that a recipe lists as forgotten. It counts from the moment in which that is written."""
        if not self.writes:
            return
        put.recipe(self.folder, recipe)
        forget.finish(self.folder)

    def recipe(self, values: Mapping[str, Any] | None) -> None:
        """Write another recipe, if there is one and it differs."""
        if self.writes and values and read(self.folder).recipe != values:
            put.recipe(self.folder, values)

    def begin(self, plan: Plan, inside: Snapshot | None) -> None:
        """Take back what a process wrote beyond what it saved before it was stopped; note where the run goes on.

        The run has the plan's recipe from now on. Until something is learned, the hashes of the
        backbone's files are kept with it.
        """
        engine.wait()  # until the others have read where they go on
        if not self.writes:
            return
        self._note_environment()
        if inside:
            begun = list(inside.about["belongs_to"]["tasks"])[-1]
            self.trim_events(begun, inside.about["step"])
        else:
            self.trim_events(None, 0)
            self.unfinished(None)
        backbone = plan.backbone
        if backbone.files and not read(self.folder).stands_on_a_model:
            content = {
                "source": backbone.source,
                "revision": backbone.revision,
                "files": backbone.hashes,
            }
            files.write(self.folder / layout.BACKBONE, files.to_json(content))
        self.recipe(plan.recipe)

    def _note_environment(self) -> None:
        """Log versions and hardware where they are not those of before."""
        now = files.plain(environment())
        logged = [
            event for event in layout.events(self.folder) if event.get("event") == "environment"
        ]
        before = [layout.environment(self.folder), *logged][-1]
        if now != {key: value for key, value in before.items() if key not in ("format", "event")}:
            self.event({"event": "environment", **now})

    def trim_events(self, task: str | None, step: int) -> None:
        """Drop the events of tasks that are not finished, but for the first steps of `task`; and of what has no scores.

        A process that was killed may have written more than it saved, and a part of a line.
        """
        state = read(self.folder)
        measured = {(row["step"], row["rule"]) for row in state.scores}

        def counts(event: dict[str, Any]) -> bool:
            if event.get("event") == "evaluation":
                return (event.get("step"), event.get("rule")) in measured
            name = event.get("task")
            inside = event.get("event") == "step" and name == task and event.get("step", 0) <= step
            return name is None or name in state.tasks or inside

        if layout.is_there(self.folder / "events.jsonl"):
            put.events(self.folder, filter(counts, layout.events(self.folder)))


@contextlib.contextmanager
def writing(folder: str | Path) -> Iterator[Writer]:
    """Hold a run, so that no other process writes it, and remove what dead ones left.

    Of several processes that train one model the first holds it; the others wait until it does.

    Raises
    ------
    RunError
        Another process is writing it, or a file of it is a link.
    """
    folder = Path(folder)
    if not engine.first():
        engine.wait()
        yield Writer(folder, writes=False)
        return
    layout.check_no_links(folder)
    with lock.held(folder):
        for place in (folder, folder / "tasks"):
            partial.sweep(place)
        forget.finish(folder)
        for name in sources.stale(folder):  # written in the instant in which a task of theirs went
            put.removed(folder / name)
        engine.wait()
        yield Writer(folder)


def create(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Make a new run folder, if there is no run; of several processes the first does.

    Raises
    ------
    OutputError
        There is something else in the folder already, which is never overwritten; or it cannot be written.
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
            put.recipe(folder, recipe)  # the last: with it the folder is a run
    engine.wait()


def _check_free(folder: Path) -> None:
    """Raise `OutputError` if there is more than what a process leaves that dies while it makes a run."""
    with reading(folder):
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if not all(
        name in (lock.NAME, "environment.json") or name.endswith(partial.ENDING) for name in names
    ):
        staging.check_free(folder)


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in layout.COLUMNS[:-1])


def _with_search(searches: list[dict[str, Any]], measurement: Measurement) -> list[dict[str, Any]]:
    """Return what searches found, with that of a measurement, if it made one."""
    if not measurement.candidates:
        return searches
    search = {
        "rule": measurement.rule.label,
        "step": measurement.step,
        "options": dict(measurement.applied.options),
        "candidates": measurement.candidates,
    }
    by_step = {(old["rule"], old["step"]): old for old in searches}
    by_step[search["rule"], search["step"]] = search
    return [by_step[key] for key in sorted(by_step)]  # in whichever order the steps were measured


def _answers(folder: Path, measurement: Measurement) -> dict[str, Any]:
    """Count how each class was answered, by the way to know the task and by task.

    Tasks that are not measured now, for their examples are gone, keep what was counted before of the same model.
    """
    label, step = measurement.rule.label, measurement.step
    try:
        before = layout.answers(folder, rule=label, step=step)
    except RunError:  # what is damaged there is derived, and replaced
        before = {}
    counts = {}
    for task_id in next(iter(measurement.answers.values())).answered:
        new = {task: answers.counts(task_id) for task, answers in measurement.answers.items()}
        counts[task_id] = before.get(task_id, {}) | new
    return {"rule": label, "step": step, "answers": counts}
