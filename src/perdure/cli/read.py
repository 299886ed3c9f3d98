"""The commands that examine or use a run, or list methods, rules, benchmarks and scores."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    template,
)
from perdure.cli.outcome import say

if TYPE_CHECKING:
    from perdure.data.rows import Table
    from perdure.runs.model import Model

# Commands import the library when they run: see `perdure.cli.train`.


def verify(run: RunFolder, as_json: AsJson = False) -> None:
    """Check every file of a run: hashes, shapes, and that all values are finite."""
    from perdure.cli.listing import listing
    from perdure.runs.verify import verify

    result = verify(run)
    if as_json:
        typer.echo(json.dumps(vars(result), indent=2))
    else:
        listing(f"\n{run}", result.sound.items())
        say(*result.notes, _verdict(len(result.faults)))
    for fault in result.faults:
        typer.secho(fault, fg="red", err=True)  # stdout stays JSON with `--json`
    if result.faults:
        raise typer.Exit(1)  # so that a script notices


def _verdict(faults: int) -> str:
    if not faults:
        return "Everything is as it was written."
    return "1 fault." if faults == 1 else f"{faults} faults."


def evaluate(
    run: RunFolder,
    rule: RuleName = None,
    settings: Settings = [],
    trust: Trust = False,
    last: Annotated[
        bool, typer.Option("--last", help="Evaluate only after the last task.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate a run again, or with another rule (--set scale=0.3, --set space=factor)."""
    from perdure.report import FORMATS, report
    from perdure.runs.extend import evaluate_run

    steps = "last" if last else "all"
    evaluate_run(run, rule, settings, steps=steps, trust=trust, quiet=quiet or as_json)
    if not outcome.is_first():
        return None
    summary = report([run], run / "report.html")  # now with the new scores
    if as_json:
        return typer.echo(FORMATS["json"](summary), nl=False)
    outcome.show(summary, run)


def diagnose(
    run: RunFolder,
    rule: RuleName = None,
    settings: Settings = [],
    trust: Trust = False,
    examples: Annotated[
        int, typer.Option(min=4, help="The maximum number of examples to read per task and split.")
    ] = 100,
    only: Annotated[
        list[str],
        typer.Option(
            help="One diagnostic, such as interference or zones. Repeatable; by default, all.",
            autocompletion=parts,
        ),
    ] = [],
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Diagnose why the tasks of a run interfere with each other.

    The diagnostics examine task vectors, features, probes and the task posterior.
    """
    from perdure.analysis.diagnose import diagnose
    from perdure.report import diagnostics_terminal

    quiet = quiet or as_json  # no progress output
    results = diagnose(run, rule, settings, examples=examples, only=only, trust=trust, quiet=quiet)
    if as_json:
        return typer.echo(json.dumps(results, indent=2))
    diagnostics_terminal.show(results)
    say("", f"All numbers: {run / 'diagnostics.json'}")


def predict(
    run: RunFolder,
    file: Annotated[
        Path | None, typer.Argument(help="A CSV, TSV, JSON(-lines) or Parquet file.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A .csv, .tsv, .jsonl, .json or .parquet file."),
    ] = None,
    text: Texts = [],
    image: Image = None,
    prompt_template: Annotated[
        str | None,
        typer.Option(
            help=r"For a language model: a template that builds the prompt from columns, such as "
            r"'Review: {body}\nStars:', where \n is a line break."
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="A single prompt, or text, to answer instead of a file.")
    ] = None,
    task: KnownTask = None,
    encoding: Encoding = "utf-8",
    delimiter: Delimiter = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="The number of rows that the model reads at a time.")
    ] = 64,
    unknown: Annotated[
        float | None,
        typer.Option(
            help="Answer `unknown` to inputs that belong to no task. This share of known inputs, "
            "such as 0.05, is lost. Needs a run with posterior.temperature=fitted."
        ),
    ] = None,
    min_probability: Annotated[
        float | None, typer.Option(help="Leave the label empty if its probability is lower.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1, mps; or auto: the accelerator if there is one.")
    ] = "auto",
    trust: Trust = False,
    quiet: Quiet = False,
) -> None:
    """Make predictions for a table: add the columns label, probability and task.

    A language model adds the columns answer, score (its log-probability per token) and task.
    """
    from perdure.data.rows import Table
    from perdure.errors import InputError
    from perdure.runs.prediction import Withheld
    from perdure.runs.predictions import predict_one, predict_table

    withheld = Withheld(unknown, min_probability)
    if (file is None) == (prompt is None):
        raise InputError("Give either a file to predict for, or one text with `--prompt`.")
    if file is None:
        predict_it = partial(predict_one, prompt=prompt or "", task=task, withheld=withheld)
        return _answer(run, predict_it, trust=trust, device=device, quiet=quiet)
    table = Table.open(file, encoding=encoding, delimiter=delimiter)
    predict = partial(predict_table, text=text, image=image, template=template(prompt_template))
    predict = partial(predict, task=task, batch_size=batch_size, withheld=withheld, quiet=quiet)
    _write_predictions(run, table, output or _beside(file), predict, trust=trust, device=device)


def _beside(file: Path) -> Path:
    """Return where to write predictions by default: `mail.csv` becomes `mail.predicted.csv`."""
    return file.with_suffix(f".predicted{file.suffix}")


def _answer(
    run: Path,
    predict: Callable[["Model"], tuple[str, str]],
    *,
    trust: bool,
    device: str,
    quiet: bool,
) -> None:
    """Print the answer to a single prompt."""
    from perdure.runs.model import Model

    model = Model(run, trust=trust, device=device)
    answer, about = predict(model)
    if not outcome.is_first():
        return
    if quiet:
        say(answer)
    else:
        say(answer, about)


def _write_predictions(
    run: Path,
    table: "Table",
    output: Path,
    predict: Callable[["Model", "Table", Path], int],
    *,
    trust: bool,
    device: str,
) -> None:
    """Write a copy of a table with the predictions of a run's model."""
    from perdure.data.table_output import check_output
    from perdure.runs.model import Model

    check_output(output)  # before the model is loaded, which takes seconds
    model = Model(run, trust=trust, device=device)
    count = predict(model, table, output)
    if outcome.is_first():
        say(f"{count} rows: {output}")


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…")],
    output: Output = None,
    format: Annotated[
        Format, typer.Option(help="All formats but html are printed unless --output is given.")
    ] = "html",
    as_json: AsJson = False,
) -> None:
    """Report on a run, or compare several runs or a sweep, including unfinished ones."""
    from perdure.report import FORMATS, report, summary

    format = "json" if as_json else format
    if format == "html":
        # the report on a single run is in its folder; a comparison belongs to none of the runs
        output = output or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    if output is None:
        return typer.echo(FORMATS[format](summary.summarise(runs)), nl=False)
    report(runs, output, FORMATS[format])
    say(output)


def gate(
    run: RunFolder,
    forgetting: Annotated[
        float, typer.Option(help="The maximum number of points that a task may have lost.")
    ] = 2.0,
    drift: Annotated[
        float | None,
        typer.Option(help="The maximum increase of the loss on plain text, in nats per token."),
    ] = None,
    task_id: Annotated[
        str | None, typer.Option(help="The source of the task id: given, posterior or none.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Decide, task by task, whether the model may be shipped. If not, the exit status is 1."""
    from perdure.report import gate

    verdict = gate.gate(run, forgetting=forgetting, drift=drift, task_id=task_id)
    if as_json:
        typer.echo(json.dumps(verdict.plain(), indent=2))
    else:
        gate.show(verdict)
    if not verdict.passes:
        raise typer.Exit(1)  # so that a pipeline stops


def check(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE",
            help="A method or a rule, or the Python file that defines one.",
            autocompletion=names_of("method", "rule"),
        ),
    ],
    settings: Settings = [],
    as_json: AsJson = False,
) -> None:
    """Check that a method or rule keeps the promises that all of them make, on a tiny model."""
    from perdure.checks import suite

    outcomes = []
    for checked in suite.outcomes(name, settings):
        outcomes.append(checked)
        # printed immediately: `outcomes` is a generator, and each check takes some time
        if not as_json:
            say(*checked.lines())
    if as_json:
        typer.echo(json.dumps([checked.plain() for checked in outcomes], indent=2))
    suite.require(name, outcomes)


# `app` names this command `list`, which would shadow the built-in here
def list_(as_json: AsJson = False) -> None:
    """List all methods, rules, benchmarks and scores."""
    from perdure import registry
    from perdure.cli.listing import listing

    summaries = {kind: registry.summaries(kind) for kind in registry.SHOWN}
    if as_json:
        return typer.echo(json.dumps(summaries, indent=2))
    for kind, things in summaries.items():
        listing(f"\n{kind.capitalize()}s", things.items())


def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|RUN",
            help="A method, a rule, a benchmark, a score, or a run folder.",
            autocompletion=names_of("method", "rule", "benchmark", "score"),
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Describe a method, rule, benchmark or score, or show the scores of a run."""
    from perdure import registry
    from perdure.cli.listing import listing, prose

    # a path that does not exist also means a run; the error then says what is missing
    if Path(name).is_dir() or ("/" in name and not name.endswith(".py")):
        return _show_run(Path(name), as_json)
    about = registry.about(name)
    if as_json:
        return typer.echo(json.dumps(about, indent=2))
    prose(about["text"])
    listing("\nSettings", about["settings"].items())


def _show_run(run: Path, as_json: bool) -> None:
    """Show the scores of a run."""
    from perdure.report import FORMATS, summary

    measured = summary.summarise([run])
    if as_json:
        return typer.echo(FORMATS["json"](measured), nl=False)
    outcome.show(measured)
