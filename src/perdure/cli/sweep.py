"""The commands that perform many trials: sweeps, and the tuning of settings."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from perdure.cli.options import AsJson, Output, Quiet, Settings, Trust
from perdure.cli.outcome import say

if TYPE_CHECKING:
    from perdure.sweeps.executor import Executor
    from perdure.sweeps.tuning import Tuning

Place = Annotated[
    Literal["local", "ray"],
    typer.Option("--executor", help="Where to run: processes on this machine, or a Ray cluster."),
]
Address = Annotated[
    str | None,
    typer.Option(help="The address of a Ray cluster; by default, a Ray for this command alone."),
]
Cpus = Annotated[float, typer.Option(min=0, help="With Ray: the CPUs of each trial.")]
Gpus = Annotated[float, typer.Option(min=0, help="With Ray: the GPUs of each trial.")]

MANY = 100
"""The number of runs above which a sweep does not write a page of its own accord."""

# The commands import the library when they run: see `perdure.cli.train`.


def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.yaml")],
    output: Output = None,
    executor: Place = "local",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The number of trials at a time: by default, 1, or what fits the Ray cluster.",
        ),
    ] = None,
    address: Address = None,
    cpus: Cpus = 1,
    gpus: Gpus = 0,
    settings: Settings = [],
    yes: Annotated[bool, typer.Option("--yes", help="Allow more than 10,000 trials.")] = False,
    quiet: Quiet = False,
) -> None:
    """Run a recipe with many settings, in several processes or on a Ray cluster.

    Started again, a sweep performs only the trials that are missing or failed.
    """
    from perdure.sweeps.sweep import sweep

    output = output or Path("runs") / file.stem
    where = _executor(executor, workers, address, cpus, gpus)
    done = sweep(file, output, executor=where, settings=settings, many=yes, quiet=quiet)
    _report(output, len(done.runs))
    if not done.performed:
        say("Nothing was left to do.")


def tune(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml")],
    output: Output = None,
    trials: Annotated[int, typer.Option(min=1, help="The number of settings to try.")] = 10,
    tasks: Annotated[
        int, typer.Option(min=1, help="The number of tasks to learn, starting with the first.")
    ] = 2,
    executor: Place = "local",
    workers: Annotated[
        int,
        typer.Option(min=1, help="The number of trials at a time; one is performed right here."),
    ] = 1,
    address: Address = None,
    cpus: Cpus = 1,
    gpus: Gpus = 0,
    settings: Settings = [],
    trust: Trust = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Tune the learning rate and the method's main coefficient on validation data.

    Only the first tasks of the stream are used. Started again, the search performs only the
    trials that are missing.
    """
    from perdure.runs.recipe import Recipe
    from perdure.sweeps.tune import tune
    from perdure.sweeps.tuning import Protocol

    output = output or Path("runs") / f"{recipe.stem}-tune"
    protocol = Protocol(tasks=tasks, trials=trials, parallel=workers)
    source = Recipe.read(recipe, settings, trust=trust)
    where = _elsewhere(executor, workers, address, cpus, gpus)
    # with `--json`, the output must be nothing but JSON
    quiet = quiet or as_json
    tuning = tune(source, output, protocol=protocol, executor=where, quiet=quiet)
    if as_json:
        return typer.echo(json.dumps(vars(tuning), indent=2))
    _list(tuning, tasks, quiet)
    say(output / "tuned.yaml")


def _list(tuning: "Tuning", tasks: int, quiet: bool) -> None:
    """Print all trials of a search, the best one first."""
    from perdure.cli.listing import listing

    if quiet:
        return
    title = f"\n{len(tuning.trials)} trials on {tasks} tasks (validation score, %)"
    listing(title, tuning.lines())


def _report(output: Path, runs: int) -> None:
    """Print the results of a sweep, and write them as a page, unless that would be too large."""
    from perdure.report import report, summary, terminal

    if runs > MANY:
        terminal.over_seeds(summary.summarise([output]))
        return say("", f"A page with {runs} runs is large: `perdure report {output}` writes it.")
    page = output / "report.html"
    terminal.over_seeds(report([output], page))
    say("", f"Report: {page}")


def _elsewhere(
    name: str, workers: int, address: str | None, cpus: float, gpus: float
) -> "Executor | None":
    """Return an executor; None if this process is enough."""
    where = _executor(name, workers, address, cpus, gpus)
    return None if name == "local" and workers == 1 else where


def _executor(
    name: str, workers: int | None, address: str | None, cpus: float, gpus: float
) -> "Executor":
    if name == "ray":
        from perdure.sweeps.on_ray import OnRay

        return OnRay(address, workers=workers, cpus=cpus, gpus=gpus)
    from perdure.sweeps.local import Local

    if address:
        raise typer.BadParameter("`--address` is for a Ray cluster: add `--executor ray`.")
    return Local(workers or 1)
