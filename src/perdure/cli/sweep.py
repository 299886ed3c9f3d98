"""The command that performs a sweep."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from perdure.cli.options import Output, Quiet, Settings
from perdure.cli.outcome import say

if TYPE_CHECKING:
    from perdure.sweeps.executor import Executor

MANY = 100
"""The number of runs above which a sweep does not write a page of its own accord."""

# The command imports the library when it runs: see `perdure.cli.train`.


def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.yaml")],
    output: Output = None,
    executor: Annotated[
        Literal["local", "ray"],
        typer.Option(help="Where to run: processes on this machine, or a Ray cluster."),
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The number of trials at a time: by default, 1, or what fits the Ray cluster.",
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="The address of a Ray cluster; by default, a Ray for this sweep alone."),
    ] = None,
    cpus: Annotated[float, typer.Option(min=0, help="With Ray: the CPUs of each trial.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="With Ray: the GPUs of each trial.")] = 0,
    settings: Settings = [],
    yes: Annotated[bool, typer.Option("--yes", help="Allow more than 10,000 trials.")] = False,
    quiet: Quiet = False,
) -> None:
    """Run a recipe with many settings, in several processes or on a Ray cluster.

    Started again, a sweep performs only the trials that are missing or failed.
    """
    from perdure.sweeps.sweep import sweep

    output = output or Path("runs") / file.stem
    where = _local(workers, address) if executor == "local" else _ray(workers, address, cpus, gpus)
    done = sweep(file, output, executor=where, settings=settings, many=yes, quiet=quiet)
    _report(output, len(done.runs))
    if not done.performed:
        say("Nothing was left to do.")


def _report(output: Path, runs: int) -> None:
    """Print the results of a sweep, and write them as a page, unless that would be too large."""
    from perdure.report import report, summary, terminal

    if runs > MANY:
        terminal.over_seeds(summary.summarise([output]))
        return say("", f"A page with {runs} runs is large: `perdure report {output}` writes it.")
    page = output / "report.html"
    terminal.over_seeds(report([output], page))
    say("", f"Report: {page}")


def _local(workers: int | None, address: str | None) -> "Executor":
    from perdure.sweeps.local import Local

    if address:
        raise typer.BadParameter("`--address` is for a Ray cluster: add `--executor ray`.")
    return Local(workers or 1)


def _ray(workers: int | None, address: str | None, cpus: float, gpus: float) -> "Executor":
    from perdure.sweeps.on_ray import OnRay

    return OnRay(address, workers=workers, cpus=cpus, gpus=gpus)
