"""The commands that train a run, or make it forget a task."""

from pathlib import Path
from typing import Annotated

import typer

from perdure.cli import outcome
from perdure.cli.options import (
    Answer,
    Delimiter,
    Encoding,
    Image,
    Label,
    Output,
    Prompt,
    Quiet,
    RunFolder,
    Score,
    Seed,
    Settings,
    Texts,
    Trust,
    template,
)
from perdure.cli.outcome import say

# Commands import the library only when they run: importing torch, transformers and peft
# takes seconds, and `--help` and shell completion do not need them.


def demo(
    vision: Annotated[
        bool, typer.Option("--vision", help="Handwritten digits on DINOv2, with InfLoRA.")
    ] = False,
    language: Annotated[
        bool, typer.Option("--language", help="Questions that SmolLM2, a language model, answers.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="By default, runs/demo, runs/demo-vision and so on."),
    ] = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    download: Annotated[
        bool, typer.Option("--download", help="Only download the model and the data.")
    ] = False,
) -> None:
    """Train a real transformer on real tasks, and see what it forgets.

    This takes minutes on a laptop.
    """
    from perdure.cli import demo
    from perdure.report import terminal

    if vision and language:
        raise typer.BadParameter("`--vision` and `--language` are two demos. Choose one.")
    kind: demo.Kind = "images" if vision else "language" if language else "texts"
    if download:
        return demo.download(kind)  # for a machine that will have no network later
    output = output or Path("runs") / demo.DEMOS[kind].folder
    summary = demo.demo(output, kind, seed=seed, quiet=quiet)
    terminal.matrices(summary)
    terminal.overview(summary)
    say("", f"Report: {output / 'report.html'}")


def run(
    recipe: Annotated[
        Path,
        typer.Argument(metavar="RECIPE.yaml|RUN", help="A recipe, or a run to resume."),
    ],
    output: Output = None,
    # None instead of 0, so that the seed of the recipe is used
    seed: Annotated[int | None, typer.Option(help="Seed to use instead of the recipe's.")] = None,
    settings: Settings = [],
    trust: Trust = False,
    quiet: Quiet = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only check the recipe, and count parameters and steps."),
    ] = False,
) -> None:
    """Run a recipe, or resume its run.

    Learn the tasks in order, combine them, and evaluate after each task.
    """
    from perdure.runs.recipe import Recipe

    changes = list(settings)
    if seed is not None:
        changes.append(f"seed={seed}")
    # a run is resumed in its folder
    output = output or (recipe if recipe.is_dir() else Path("runs") / recipe.stem)
    source = Recipe.read(recipe, changes, trust=trust)
    if dry_run:
        return say(*str(source.dry_run(output)).splitlines())
    before = outcome.done(output)
    source.run(output, quiet=quiet)
    outcome.report(output)
    if outcome.done(output) == before:
        say("Nothing was left to do.")


def learn(
    run: RunFolder,
    data: Annotated[
        str,
        typer.Option(
            help="A CSV, TSV, JSON(-lines) or Parquet file, a folder of images, or a hub id."
        ),
    ],
    validation: Annotated[str | None, typer.Option(help="A file of validation examples.")] = None,
    test: Annotated[
        str | None, typer.Option(help="A file of test examples; by default, a fifth of the data.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="The name of the task; by default, the name of the file."),
    ] = None,
    text: Texts = [],
    image: Image = None,
    prompt: Prompt = None,
    answer: Answer = None,
    label: Label = None,
    score: Score = None,
    encoding: Encoding = "utf-8",
    delimiter: Delimiter = None,
    config: Annotated[str | None, typer.Option(help="The configuration of a hub data set.")] = None,
    task_column: Annotated[
        str | None, typer.Option(help="The column that names each row's task.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="For a new run: the folder or hub id of a model; by default, minilm."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="For a new run: the seed.")] = None,
    settings: Settings = [],
    trust: Trust = False,
    quiet: Quiet = False,
) -> None:
    """Learn a task from your own data, as the next task of a run or the first of a new run."""
    from perdure.runs.extend import entry_of, learn_more

    # in a recipe, `name` is the name of the task, and `task` is a column
    columns = {"text": text, "image": image, "label": label, "task": task_column}
    columns |= {"prompt": template(prompt), "answer": template(answer), "score": score}
    reading = {"config": config, "encoding": encoding, "delimiter": delimiter}
    splits = {"train": data, "validation": validation, "test": test}
    entry = entry_of(splits, {"name": task} | columns | reading)
    with outcome.reported(run):
        learn_more(
            run, entry, backbone=backbone, seed=seed, settings=settings, trust=trust, quiet=quiet
        )


def forget(
    run: RunFolder,
    task: Annotated[
        str, typer.Argument(metavar="TASK", help="The name of a task that the run has learned.")
    ],
    retrain_later: Annotated[
        bool,
        typer.Option(
            "--retrain-later",
            help="Retrain the tasks in which traces of the forgotten task remain.",
        ),
    ] = False,
    trust: Trust = False,
    quiet: Quiet = False,
) -> None:
    """Remove a task from a run: its adapter, head and statistics, and all of its scores.

    Tasks that were learned on top of it retain traces of it (except with the method
    `isolated`); the command says which tasks.
    """
    from perdure.runs.extend import forget

    forgotten = forget(run, task, retrain_later=retrain_later, trust=trust, quiet=quiet)
    say(*str(forgotten).splitlines())
