"""The commands that read what is there: a run, or the names of methods, rules and benchmarks."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from perdure.cli import outcome
from perdure.cli.options import (
    AsJson,
    Delimiter,
    Encoding,
    Format,
    Image,
    KnownTask,
    Output,
    Quiet,
    RuleName,
    RunFolder,
    Settings,
    Texts,
    Trust,
    names_of,
    parts,
)
from perdure.cli.outcome import say


def verify(run: RunFolder, as_json: AsJson = False) -> None:
    """Check every file of a run: hashes, shapes, and that all values are finite."""
    from perdure.report import terminal
    from perdure.runs.verify import verify

    found = verify(run)
    if as_json:
        typer.echo(
            json.dumps(
                {"sound": found.sound, "faults": found.faults, "notes": found.notes}, indent=2
            )
        )
    else:
        terminal.listing(f"\n{run}", found.sound.items())
        count = len(found.faults)
        said = (
            f"{count} fault{'s' if count > 1 else ''}."
            if count
            else "Everything is as it was written."
        )
        say(*found.notes, said)
    for fault in found.faults:
        typer.secho(fault, fg="red", err=True)
    if found.faults:
        raise typer.Exit(1)


def evaluate(
    run: RunFolder,
    rule: RuleName = None,
    settings: Settings = [],
    trust: Trust = False,
    last: Annotated[bool, typer.Option("--last", help="Only after the last task.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure a run again, or with another rule (--set scale=0.3, --set space=factor)."""
    from perdure.report import FORMATS, report
    from perdure.runs.extend import evaluate_run

    steps = "last" if last else "all"
    evaluate_run(run, rule, settings, steps=steps, trust=trust, quiet=quiet or as_json)
    summary = report([run], run / "report.html")
    typer.echo(FORMATS["json"](summary), nl=False) if as_json else outcome.show(summary, run)


def diagnose(
    run: RunFolder,
    rule: RuleName = None,
    settings: Settings = [],
    trust: Trust = False,
    examples: Annotated[
        int, typer.Option(min=4, help="The most examples of each task and split that are read.")
    ] = 100,
    only: Annotated[
        list[str],
        typer.Option(
            help="A part, such as interference or zones; by default all. Repeatable.",
            autocompletion=parts,
        ),
    ] = [],
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Say why tasks disturb each other: task vectors, features, probes and the task posterior of a run."""
    from perdure.analysis.diagnose import diagnose
    from perdure.report import diagnostics_terminal

    found = diagnose(
        run, rule, settings, examples=examples, only=only, trust=trust, quiet=quiet or as_json
    )
    if as_json:
        return typer.echo(json.dumps(found, indent=2))
    diagnostics_terminal.show(found)
    say("", f"All numbers: {run / 'diagnostics.json'}")


def predict(
    run: RunFolder,
    file: Annotated[Path, typer.Argument(help="A CSV, TSV, JSON(-lines) or Parquet file.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A .csv, .tsv, .jsonl, .json or .parquet file."),
    ] = None,
    text: Texts = [],
    image: Image = None,
    task: KnownTask = None,
    encoding: Encoding = "utf-8",
    delimiter: Delimiter = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="The number of rows that the model reads at a time.")
    ] = 64,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1, mps; or auto, the accelerator if one is here.")
    ] = "auto",
    trust: Trust = False,
    quiet: Quiet = False,
) -> None:
    """Add the columns label, probability and task to a table."""
    from perdure.data.rows import Table
    from perdure.data.table_output import check_output
    from perdure.runs.model import Model
    from perdure.runs.predictions import predict_table

    output = output or file.with_suffix(f".predicted{file.suffix}")
    table = Table.open(file, encoding=encoding, delimiter=delimiter)
    check_output(output)  # before the model is loaded
    columns: Any = {"text": text, "image": image}
    model = Model(run, trust=trust, device=device)
    count = predict_table(
        model, table, output, **columns, task=task, batch_size=batch_size, quiet=quiet
    )
    say(f"{count} rows: {output}")


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…")],
    output: Output = None,
    format: Annotated[
        Format, typer.Option(help="All but html are printed, unless --output is given.")
    ] = "html",
    as_json: AsJson = False,
) -> None:
    """Report one run, or compare several; one that is still running as far as it is."""
    from perdure.report import FORMATS, report, summary

    format = "json" if as_json else format
    if format == "html":
        output = output or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    if output is None:
        return typer.echo(FORMATS[format](summary.summarise(runs)), nl=False)
    report(runs, output, FORMATS[format])
    say(output)


def check(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE",
            help="A method or a rule, or the Python file that holds one.",
            autocompletion=names_of("method", "rule"),
        ),
    ],
    settings: Settings = [],
    as_json: AsJson = False,
) -> None:
    """Check that a method or a rule keeps what all of them promise, on a tiny model that is made for it."""
    from perdure.checks import suite

    outcomes = []
    for checked in suite.outcomes(name, settings):
        outcomes.append(checked)
        if not as_json:
            say(*checked.lines())
    if as_json:
        typer.echo(json.dumps([checked.plain() for checked in outcomes], indent=2))
    suite.require(name, outcomes)


def list_(as_json: AsJson = False) -> None:
    """List all methods, rules and benchmarks."""
    from perdure import registry
    from perdure.report import terminal

    found = {
        kind: {name: registry.summary(registry.find(kind, name)) for name in registry.names(kind)}
        for kind in registry.SHOWN
    }
    if as_json:
        return typer.echo(json.dumps(found, indent=2))
    for kind, things in found.items():
        terminal.listing(f"\n{kind.capitalize()}s", things.items())


def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|RUN",
            help="A method, rule or benchmark, or a run folder.",
            autocompletion=names_of("method", "rule", "benchmark"),
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Show what a method, rule or benchmark does and its settings, or what a run measured."""
    from perdure import registry
    from perdure.report import FORMATS, summary, terminal

    is_file = name.endswith(".py")
    if Path(name).is_dir() or ("/" in name and not is_file):
        found = summary.summarise([Path(name)])
        return typer.echo(FORMATS["json"](found), nl=False) if as_json else outcome.show(found)
    about = registry.about(name)
    if as_json:
        return typer.echo(json.dumps(about, indent=2))
    terminal.prose(about["text"])
    terminal.listing("\nSettings", about["settings"].items())
