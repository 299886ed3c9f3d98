"""Tune a method's learning rate and main coefficient fairly, using only validation data.

Tuning on the whole stream, or on test data, would be looking ahead. Therefore, only the
first tasks are learned here, scores come from their validation examples, and every method
gets the same number of trials. It is a sweep whose trials depend on each other: the
settings of the next one are chosen when there is room for it.

    OUTPUT/trials.jsonl  the recipe and protocol, then one trial per line: settings, score, seconds
    OUTPUT/tuned.yaml    the recipe with the best settings
    OUTPUT/log.txt       what the processes of the executor `local` printed, if there are any
"""

import functools
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from perdure.data.task import TaskStream
from perdure.errors import InputError, PerdureWarning, RunError
from perdure.evaluation.progress_bar import Progress
from perdure.learning import engine
from perdure.learning.method import Tuned
from perdure.merging.tpe import needed
from perdure.models.backbone import Backbone
from perdure.runs.recipe import Recipe
from perdure.storage import files, lock
from perdure.sweeps import first_tasks, tuning_file
from perdure.sweeps.executor import Executor, FirstTasks, Job, Outcome
from perdure.sweeps.in_process import InProcess
from perdure.sweeps.performing import perform_all
from perdure.sweeps.search_space import RATE, asked, assigned, searched
from perdure.sweeps.tuning import Protocol, Tried, Tuning
from perdure.sweeps.tuning_file import TuningFile

TUNED = "tuned.yaml"
KEPT = "Finished trials are kept."


def tune(
    recipe: Recipe,
    output: str | Path,
    *,
    protocol: Protocol | None = None,
    executor: Executor | None = None,
    stream: TaskStream | None = None,
    backbone: Backbone | None = None,
    quiet: bool = True,
) -> Tuning:
    """Search for the best learning rate and main coefficient (`Method.tuned`) of a recipe's method.

    A search that was stopped is resumed: trials that are already in `output` are not
    repeated. The result depends on the protocol, but not on the executor.

    Parameters
    ----------
    output
        A folder for the trials and the tuned recipe.
    executor
        Where the trials are performed; by default, in this process. It performs at most
        `protocol.parallel` at a time.
    stream, backbone
        The recipe's stream and backbone, if the caller has already created them. Other
        processes make their own from the recipe.

    Raises
    ------
    InputError
        Optuna is not installed, the stream has fewer tasks than the protocol, the method
        has nothing to tune, or the executor cannot be used.
    RunError
        `output` contains trials of another recipe or protocol, or all trials failed.
    Stopped
        The search was asked to stop.
    """
    if engine.count() > 1:
        raise InputError(
            "`tune` starts its own processes: start it without `accelerate launch` or `torchrun`, "
            "and with `--workers`."
        )
    protocol = protocol or Protocol()
    output = Path(output)
    # everything that can be rejected is rejected before the first trial, not after hours
    ranges = searched(recipe, protocol)
    needed("optuna", "`tune`")
    plan = first_tasks.plan_of(recipe, protocol.tasks, stream, backbone)
    resolved = recipe.resolved(plan)
    if executor is None:
        score = functools.partial(first_tasks.score, plan=plan, quiet=quiet)
        executor = InProcess(score)
        bar = False  # each trial has its own
    else:
        executor.connect()
        bar = True
    del plan  # whose model takes memory that other processes need
    with files.refusing(output, verb="made"):
        output.mkdir(parents=True, exist_ok=True)
    files.check_place(output / TUNED)
    with lock.held(output):  # two processes would run the same trials
        file = tuning_file.opened(output / tuning_file.NAME, resolved, protocol)
        search = Search(recipe, protocol, ranges, file)
        done = len(search.known)

        def show(outcome: Outcome | None) -> None:
            if outcome:
                progress.to(len(search.known), search.said, reached=True)

        with Progress("Tuning", protocol.trials, done=done, quiet=quiet, bar=bar) as progress:
            perform_all(executor, search.jobs(), output, record=search.tell, show=show, kept=KEPT)
        return _finished(recipe, output, search)


class Search:
    """A search that is asked for jobs, and told their outcomes.

    Attributes
    ----------
    known
        The outcomes that are known, by the number of the trial.
    said
        A description of the last outcome.
    """

    def __init__(
        self, recipe: Recipe, protocol: Protocol, ranges: Mapping[str, Tuned], file: TuningFile
    ):
        self.known: dict[int, Tried] = {}
        self.said = ""
        self._recipe = recipe
        self._protocol = protocol
        self._ranges = ranges
        self._file = file
        self._asked: dict[str, dict[str, float]] = {}
        for number, trial in file.tried.items():
            # trials that failed for other reasons than their settings are repeated
            if number < protocol.trials and trial.get("state") != "failed":
                self.known[number] = trial
        if file.parallel < protocol.parallel:
            self._warn()

    def _warn(self) -> None:
        begun = self._file.parallel
        warnings.warn(
            f"The search in `{self._file.path.parent}` began with `--workers {begun}` (in Python, "
            "`parallel`), which its result depends on, and goes on with as many. For more, choose "
            "another `--output`.",
            PerdureWarning,
            stacklevel=4,
        )

    def jobs(self) -> Iterator[Job | None]:
        """Yield the job of each trial that is missing; None as long as earlier ones are awaited."""
        recipe = files.plain(self._recipe.model_dump(exclude_none=True))
        for number in range(self._protocol.trials):
            if number in self.known:
                continue
            earlier = range(number - self._file.parallel + 1)
            while not all(before in self.known for before in earlier):
                yield None
            told = [self.known[before] for before in earlier]
            settings = asked(self._recipe, self._protocol, self._ranges, told, number)
            self._asked[str(number)] = settings
            yield FirstTasks(
                trial=str(number),
                recipe=recipe,
                settings=assigned(settings),
                directory=str(Path.cwd()),
                folder=str(self._file.path.parent.resolve()),
                tasks=self._protocol.tasks,
                task_id=self._protocol.task_id,
            )

    def tell(self, outcome: Outcome) -> None:
        """Record the outcome of a trial."""
        number = int(outcome.trial)
        score = outcome.scores.get(self._protocol.task_id)
        trial: Tried = {
            "settings": self._asked[outcome.trial],
            "score": score,
            "seconds": outcome.seconds,
        }
        if outcome.reason:
            trial["reason"] = outcome.reason
        if outcome.state == "failed":
            trial["state"] = outcome.state
        if outcome.traceback:
            trial["traceback"] = outcome.traceback
        # each trial is on the disk before the next one begins
        self._file.add(number, trial)
        self.known[number] = trial
        said = f"failed: {outcome.reason}" if score is None else _percent(score)
        self.said = f"trial {number + 1} of {self._protocol.trials}, {said}"


def _percent(score: float) -> str:
    return f"validation score {100 * score:.1f} %"


def _finished(recipe: Recipe, output: Path, search: Search) -> Tuning:
    """Write the recipe with the best settings, and return it with the trials.

    Raises
    ------
    RunError
        All trials failed.
    """
    trials = [search.known[number] for number in sorted(search.known)]
    best = Tuning({}, trials).best
    if best["score"] is None:
        reason = trials[0].get("reason", "The loss was not a number.")
        raise RunError(
            f"All {len(trials)} trials failed; the first one: {reason} "
            f"See `{output / tuning_file.NAME}`. If the loss was not a number, lower `{RATE}` in "
            "the recipe."
        )
    values = recipe.model_dump(exclude_none=True)
    changed = Recipe.parse(values, assigned(best["settings"]))
    tuned = changed.model_dump(exclude_none=True, exclude_defaults=True)
    # only what differs from the defaults, as a user would write it
    files.write(output / TUNED, files.to_yaml(files.plain(tuned)))
    return Tuning(tuned, trials)
