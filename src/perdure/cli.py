"""The command line. Commands hold no logic: they read options, call the library, and print what it returns."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from perdure import outcome, shell
from perdure.options import (
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
    Seed,
    Settings,
    Texts,
    Trust,
    names_of,
)
from perdure.outcome import say

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown" if shell.is_wide() else None,  # its panels cut names where there is little room
    help="Teach one pre-trained transformer new tasks, one after another, without forgetting the old ones.",
)
app.callback()(shell.take_options)


@app.command()
def demo(
    vision: Annotated[bool, typer.Option("--vision", help="Handwritten digits on DINOv2, with InfLoRA.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="By default runs/demo, or runs/demo-vision.")
    ] = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    download: Annotated[bool, typer.Option("--download", help="Only fetch the model and the data.")] = False,
) -> None:
    """Learn five real tasks on a real transformer, and see what is forgotten (minutes on a laptop)."""
    from perdure import demo
    from perdure.report import terminal

    if download:
        return demo.download(vision=vision)
    output = output or Path("runs/demo-vision" if vision else "runs/demo")
    summary = demo.demo(output, vision=vision, seed=seed, quiet=quiet)
    terminal.matrices(summary)
    terminal.overview(summary)
    say("", f"Report: {output / 'report.html'}")


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml|RUN", help="A recipe; or a run, to go on with it.")],
    output: Output = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    settings: Settings = [],
    trust: Trust = False,
    quiet: Quiet = False,
) -> None:
    """Do what a recipe says: learn its tasks in order, combine them, measure after each. Or go on where it stopped."""
    from perdure.recipe import Recipe

    changes = [*settings, *([f"seed={seed}"] if seed is not None else [])]
    output = output or (recipe if recipe.is_dir() else Path("runs") / recipe.stem)
    before = outcome.done(output)
    Recipe.read(recipe, changes, trust=trust).run(output, quiet=quiet)
    outcome.report(output)
    if outcome.done(output) == before:
        say("Nothing was left to do.")


@app.command()
def tune(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml")],
    output: Output = None,
    trials: Annotated[int, typer.Option(min=1, help="The number of settings that are tried.")] = 10,
    tasks: Annotated[int, typer.Option(min=1, help="The number of tasks, from the first on, that are looked at.")] = 2,
    settings: Settings = [],
    trust: Trust = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Search the learning rate and the method's main coefficient, on validation data of the first tasks."""
    from perdure.recipe import Recipe
    from perdure.report import terminal
    from perdure.tune import Protocol, tune

    output = output or Path("runs") / f"{recipe.stem}-tune"
    protocol = Protocol(tasks=tasks, trials=trials)
    source = Recipe.read(recipe, settings, trust=trust)
    found = tune(source, output, protocol=protocol, quiet=quiet or as_json)
    if as_json:
        return typer.echo(json.dumps({"recipe": found.recipe, "trials": found.trials}, indent=2))
    if not quiet:
        terminal.listing(f"\n{len(found.trials)} trials on {tasks} tasks (validation accuracy, %)", found.lines())
    say(output / "tuned.yaml")


@app.command()
def learn(
    run: RunFolder,
    data: Annotated[
        str, typer.Option(help="A CSV, TSV, JSON(-lines) or Parquet file, a folder of images, or a hub id.")
    ],
    validation: Annotated[str | None, typer.Option(help="A file of validation examples.")] = None,
    test: Annotated[str | None, typer.Option(help="A file of test examples; by default a fifth of the data.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="The task's name; by default that of the file.")] = None,
    text: Texts = [],
    image: Image = None,
    label: Annotated[str, typer.Option(help="The column with the class.")] = "label",
    encoding: Encoding = "utf-8",
    delimiter: Delimiter = None,
    config: Annotated[str | None, typer.Option(help="The configuration of a hub data set.")] = None,
    task_column: Annotated[str | None, typer.Option(help="The column that names each row's task.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="For a new run: a model's folder or hub id; by default minilm.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="For a new run.")] = None,
    settings: Settings = [],
    trust: Trust = False,
    quiet: Quiet = False,
) -> None:
    """Learn a task from your own data: one more for a run, or the first of a new one."""
    from perdure.runs import entry_of, learn_more

    names = {"name": task, "text": text, "image": image, "label": label, "task": task_column, "config": config}
    splits = {"train": data, "validation": validation, "test": test}
    entry = entry_of(splits, names | {"encoding": encoding, "delimiter": delimiter})
    with outcome.reported(run):
        learn_more(run, entry, backbone=backbone, seed=seed, settings=settings, trust=trust, quiet=quiet)


@app.command()
def forget(
    run: RunFolder,
    task: Annotated[str, typer.Argument(metavar="TASK", help="The name of a task that the run has learned.")],
    retrain_later: Annotated[
        bool, typer.Option("--retrain-later", help="Learn the tasks again in which something of it remains.")
    ] = False,
    trust: Trust = False,
    quiet: Quiet = False,
) -> None:
    """Take a task out of a run: its adapter, head and statistics, and all that was measured of it.

    Tasks that were learned on top of it (not with the method `isolated`) keep something of it, which is said.
    """
    from perdure.forget import forget

    found = forget(run, task, retrain_later=retrain_later, trust=trust, quiet=quiet)
    say(*str(found).splitlines())


@app.command()
def verify(run: RunFolder, as_json: AsJson = False) -> None:
    """Check every file of a run: hashes, shapes, and that all values are finite."""
    from perdure.report import terminal
    from perdure.verify import verify

    found = verify(run)
    if as_json:
        typer.echo(json.dumps({"sound": found.sound, "faults": found.faults, "notes": found.notes}, indent=2))
    else:
        terminal.listing(f"\n{run}", found.sound.items())
        count = len(found.faults)
        said = f"{count} fault{'s' if count > 1 else ''}." if count else "Everything is as it was written."
        say(*found.notes, said)
    for fault in found.faults:
        typer.secho(fault, fg="red", err=True)
    if found.faults:
        raise typer.Exit(1)


@app.command()
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
    from perdure.runs import evaluate_run

    steps = "last" if last else "all"
    evaluate_run(run, rule, settings, steps=steps, trust=trust, quiet=quiet or as_json)
    summary = report([run], run / "report.html")
    typer.echo(FORMATS["json"](summary), nl=False) if as_json else outcome.show(summary, run)


@app.command()
def diagnose(
    run: RunFolder,
    rule: RuleName = None,
    settings: Settings = [],
    trust: Trust = False,
    examples: Annotated[int, typer.Option(min=4, help="The most examples of each task and split that are read.")] = 100,
    only: Annotated[
        list[str], typer.Option(help="interference, zones, cka, probe or posterior; by default all. Repeatable.")
    ] = [],
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Say why tasks disturb each other: task vectors, features, probes and the task posterior of a run."""
    from perdure.diagnose import diagnose
    from perdure.report import diagnostics_terminal

    found = diagnose(run, rule, settings, examples=examples, only=only, trust=trust, quiet=quiet or as_json)
    if as_json:
        return typer.echo(json.dumps(found, indent=2))
    diagnostics_terminal.show(found)
    say("", f"All numbers: {run / 'diagnostics.json'}")


@app.command()
def predict(
    run: RunFolder,
    file: Annotated[Path, typer.Argument(help="A CSV, TSV, JSON(-lines) or Parquet file.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A .csv, .tsv, .jsonl, .json or .parquet file.")
    ] = None,
    text: Texts = [],
    image: Image = None,
    task: KnownTask = None,
    encoding: Encoding = "utf-8",
    delimiter: Delimiter = None,
    batch_size: Annotated[int, typer.Option(min=1, help="The number of rows that the model reads at a time.")] = 64,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1, mps; or auto, the accelerator if one is here.")
    ] = "auto",
    trust: Trust = False,
    quiet: Quiet = False,
) -> None:
    """Add the columns label, probability and task to a table."""
    from perdure.model import Model
    from perdure.predictions import predict_table
    from perdure.table_output import check_output
    from perdure.tables import Table

    output = output or file.with_suffix(f".predicted{file.suffix}")
    table = Table.open(file, encoding=encoding, delimiter=delimiter)
    check_output(output)  # before the model is loaded
    columns: Any = {"text": text, "image": image}
    model = Model(run, trust=trust, device=device)
    count = predict_table(model, table, output, **columns, task=task, batch_size=batch_size, quiet=quiet)
    say(f"{count} rows: {output}")


@app.command()
def export(
    run: RunFolder,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write.")],
    rule: RuleName = None,
    settings: Settings = [],
    trust: Trust = False,
    quiet: Quiet = False,
) -> None:
    """Write the combined model as a stock checkpoint (transformers, or sentence-transformers); say what it loses."""
    from perdure.model import Model
    from perdure.results import Run
    from perdure.runs import rule_of

    results = Run(run, trust=trust)
    model = Model(results, rule=rule_of(results, rule, settings), device="cpu")
    model.export(output)
    if not quiet:
        say(*model.exported(output).sentences())
    say(output)


@app.command()
def merge(
    base: Annotated[str, typer.Argument(metavar="BASE|RUN", help="A model's folder or hub id; or a run, alone.")],
    adapters: Annotated[list[Path], typer.Argument(metavar="ADAPTER", help="PEFT LoRA folders.")] = [],
    rule: Annotated[
        str, typer.Option("--rule", help="How the adapters are combined.", autocompletion=names_of("rule"))
    ] = "task_arithmetic",
    settings: Settings = [],
    trust: Trust = False,
    output: Output = None,
    form: Annotated[Literal["model", "adapter"], typer.Option("--as", help="What is written.")] = "model",
    rank: Annotated[int | None, typer.Option(help="The rank of the adapter that is written; by default exact.")] = None,
    saved_modules: Annotated[
        str | None, typer.Option(help="Whose heads (modules_to_save) are taken: an adapter's name, or none.")
    ] = None,
    any_base: Annotated[bool, typer.Option("--any-base", help="Take adapters that name another base.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    quiet: Quiet = False,
) -> None:
    """Merge PEFT adapters, made anywhere, into their base model; or try another rule on a finished run."""
    from perdure.merge_checkpoint import merge_checkpoint
    from perdure.settings import section

    options: dict[str, Any] = {"rank": rank, "saved_modules": saved_modules, "any_base": any_base, "dry_run": dry_run}
    if not adapters and (Path(base) / "recipe.yaml").is_file():
        options["as"] = form if form != "model" else None
        return _try_rule(Path(base), rule, settings, output, options, trust=trust, quiet=quiet)
    options["form"] = form
    merged = merge_checkpoint(base, adapters, section(rule, settings), output, **options, quiet=quiet)
    say(*([merged.output] if quiet and merged.written else str(merged).splitlines()))


def _try_rule(
    run: Path, rule: str, settings: list[str], output: Path | None, options: dict[str, Any], *, trust: bool, quiet: bool
) -> None:
    from perdure.errors import InputError
    from perdure.runs import try_rule

    if given := [name for name, value in options.items() if value]:
        option = given[0].replace("_", "-")
        raise InputError(f"`--{option}` is for adapters. With a run the rule is measured, and exported to `--output`.")
    with outcome.reported(run):
        try_rule(run, rule, settings, output, trust=trust, quiet=quiet)
    if output:
        say(f"Model: {output}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…")],
    output: Output = None,
    format: Annotated[Format, typer.Option(help="All but html are printed, unless --output is given.")] = "html",
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


@app.command(name="list")
def list_(as_json: AsJson = False) -> None:
    """List all methods, rules and benchmarks."""
    from perdure import registry
    from perdure.report import terminal

    found = {
        kind: {name: registry.summary(registry.find(kind, name)) for name in registry.names(kind)}
        for kind in registry.PACKAGES
    }
    if as_json:
        return typer.echo(json.dumps(found, indent=2))
    for kind, things in found.items():
        terminal.listing(f"\n{kind.capitalize()}s", things.items())


@app.command()
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


def main() -> None:
    """Run the command line."""
    shell.run(app)
