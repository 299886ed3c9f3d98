"""Perform a sweep: all of its trials that are missing, on any executor."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perdure.errors import InputError, RunError
from perdure.learning import engine
from perdure.runs.changes import differences
from perdure.settings import Section, put
from perdure.storage import files, lock
from perdure.sweeps import folder as sweep_folder
from perdure.sweeps import sweep_file
from perdure.sweeps.executor import Executor, Outcome, WholeRun
from perdure.sweeps.local import Local
from perdure.sweeps.performing import perform_all
from perdure.sweeps.progress import SweepProgress
from perdure.sweeps.trials import Trial, assignments, check, count, rule_sections, trials

MANY = 10_000
"""The number of trials above which a sweep has to be confirmed."""
KEPT = "Finished trials are kept, and running ones have saved their progress."


@dataclass(frozen=True)
class Sweep:
    """The result of `sweep`.

    Attributes
    ----------
    runs
        The run folder of each finished trial, by the name of the trial.
    failed
        The reason of each trial that failed, as one sentence.
    performed
        The number of trials that were missing, and were performed by this call.
    """

    folder: Path
    runs: dict[str, Path]
    failed: dict[str, str]
    performed: int


def sweep(
    file: str | Path,
    output: str | Path,
    *,
    executor: Executor | None = None,
    settings: Sequence[str] = (),
    many: bool = False,
    quiet: bool = True,
) -> Sweep:
    """Perform the trials of a sweep that are missing in a folder.

    Each trial is a run of the sweep's recipe with other settings, in a folder of its own.
    A trial that fails does not end the sweep; it is tried again when the sweep is. A sweep
    that was stopped or killed continues when it is started again, and it may have more
    trials by then. `perdure report OUTPUT` compares all runs.

    Parameters
    ----------
    file
        A YAML file; see `perdure.sweeps.sweep_file`.
    output
        The folder of the sweep.
    executor
        Where the trials are performed; by default, in one process on this machine.
    settings
        Changes to the recipe of all trials, each as `key=value`.
    many
        Allow more than 10,000 trials.

    Raises
    ------
    InputError
        The file, its recipe or a setting is not valid, there are too many trials, or the
        executor cannot be used.
    RunError
        Another process performs a sweep in the folder, or the folder contains a sweep of
        another recipe, or all trials failed.
    Stopped
        The sweep was asked to stop; trials that were running have saved their progress.
    """
    # everything that can be rejected is rejected before the first trial, not after hours
    if engine.count() > 1:
        raise InputError(
            "`sweep` starts its own processes: start it without `accelerate launch` or `torchrun`."
        )
    source = sweep_file.read(file)
    for setting in settings:
        put(source.recipe, setting)
    number = count(source)
    if number > MANY and not many:
        raise InputError(
            f"The sweep has {number:,} trials. If that is what you want, add `--yes` "
            "(in Python, `many=True`)."
        )
    rules = rule_sections(source.rules)
    varied = trials(source)
    assigned = _checked(source.recipe, varied)
    output = Path(output)
    executor = executor or Local()
    executor.connect()
    with files.refusing(output, verb="made"):
        output.mkdir(parents=True, exist_ok=True)
    with lock.held(output):  # two processes would perform the same trials
        finished = _begun(output, source.recipe, varied, rules)
        jobs = []
        for trial in varied:
            if trial.name not in finished:
                job = _job(output, source.recipe, trial, assigned[trial.name], rules)
                jobs.append(job)
        measured = {"rules": rules} if rules else {}

        def record(outcome: Outcome) -> None:
            sweep_folder.append(output, outcome.plain() | measured)

        with SweepProgress(output, varied, finished, quiet=quiet) as progress:
            perform_all(executor, jobs, output, record=record, show=progress.to, kept=KEPT)
        outcomes = progress.outcomes
    return _result(output, varied, outcomes, performed=len(jobs))


def _checked(recipe: dict[str, object], varied: Sequence[Trial]) -> dict[str, list[str]]:
    """Return the settings of each trial as `key=value`, after checking its recipe.

    Raises
    ------
    InputError
        The recipe of a trial is not valid; the message names the trial.
    """
    checked = set[str]()
    assigned = {}
    for trial in varied:
        try:
            assigned[trial.name] = assignments(recipe, trial)
            check(recipe, assigned[trial.name], checked)
        except InputError as error:
            raise InputError(f"Trial `{trial.name}` of the sweep: {error}") from error
    return assigned


def _job(
    output: Path,
    recipe: dict[str, object],
    trial: Trial,
    settings: list[str],
    rules: list[Section],
) -> WholeRun:
    return WholeRun(
        trial=trial.name,
        folder=str(sweep_folder.run_folder(output, trial.name).resolve()),
        features=str((output / sweep_folder.FEATURES).resolve()),
        recipe=recipe,
        settings=settings,
        rules=rules,
        directory=str(Path.cwd()),
    )


def _begun(
    output: Path, recipe: dict[str, object], varied: Sequence[Trial], rules: list[Section]
) -> dict[str, Outcome]:
    """Write what the sweep consists of, and return the trials that are already finished.

    Raises
    ------
    RunError
        The folder contains a sweep of another recipe, or something else.
    """
    finished = {}
    if sweep_folder.is_sweep(output):
        before = sweep_folder.about(output)
        changes = differences(before["recipe"], recipe)
        if changes:
            lines = "; ".join(line for _, line in changes)
            raise RunError(
                f"`{output}` contains a sweep of another recipe: {lines}. "
                "Choose another `--output`, or vary these settings in the sweep."
            )
        for entry in sweep_folder.entries(output):
            outcome = dict(entry.outcome)
            # finished runs still have to be measured with rules that were added
            if entry.finished and outcome.pop("rules", []) == rules:
                finished[entry.name] = Outcome(**outcome)
    else:
        _check_empty(output)
    described = [vars(trial) for trial in varied]
    record = {"recipe": recipe, "rules": rules, "trials": described}
    sweep_folder.write(output, files.plain(record))
    names = {trial.name for trial in varied}
    return {name: outcome for name, outcome in finished.items() if name in names}


def _check_empty(output: Path) -> None:
    """Check that a new sweep does not mix with other files."""
    others = {path.name for path in output.iterdir()} - {lock.NAME, sweep_folder.LOG}
    if others:
        raise RunError(
            f"`{output}` is not empty, and not a sweep: it contains `{min(others)}`. "
            "Choose another `--output`."
        )


def _result(
    output: Path, varied: Sequence[Trial], outcomes: dict[str, Outcome], *, performed: int
) -> Sweep:
    """Return the result of a sweep.

    Raises
    ------
    RunError
        All trials failed.
    """
    runs = {}
    failed = {}
    for trial in varied:
        outcome = outcomes[trial.name]
        if outcome.state == "finished":
            runs[trial.name] = sweep_folder.run_folder(output, trial.name)
        else:
            failed[trial.name] = outcome.reason
    if not runs:
        name, reason = next(iter(failed.items()))
        raise RunError(f"All {len(failed)} trials failed; the first one, `{name}`: {reason}")
    return Sweep(output, runs, failed, performed)
