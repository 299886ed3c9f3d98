"""The commands that combine what was learned into one model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from perdure.cli import outcome
from perdure.cli.options import Output, Quiet, RuleName, RunFolder, Settings, Trust, names_of
from perdure.cli.outcome import say

# Commands import the library when they run: see `perdure.cli.train`.


def merge(
    base: Annotated[
        str,
        typer.Argument(metavar="BASE|RUN", help="A model's folder or hub id; or just a run."),
    ],
    adapters: Annotated[
        list[Path], typer.Argument(metavar="ADAPTER", help="PEFT LoRA folders.")
    ] = [],
    rule: Annotated[
        str,
        typer.Option(
            "--rule",
            help="The rule that combines the adapters.",
            autocompletion=names_of("rule"),
        ),
    ] = "task_arithmetic",
    settings: Settings = [],
    trust: Trust = False,
    output: Output = None,
    form: Annotated[
        Literal["model", "adapter"], typer.Option("--as", help="What to write.")
    ] = "model",
    rank: Annotated[
        int | None, typer.Option(help="The rank of an adapter to write; by default exact.")
    ] = None,
    saved_modules: Annotated[
        str | None,
        typer.Option(help="Whose heads (modules_to_save) to take: an adapter's name, or none."),
    ] = None,
    any_base: Annotated[
        bool, typer.Option("--any-base", help="Accept adapters that name another base.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Merge PEFT adapters, made anywhere, into their base; or try another rule on a run."""
    from perdure.checkpoints.merge import merge_checkpoint
    from perdure.settings import section

    options: dict[str, Any] = {"rank": rank, "saved_modules": saved_modules}
    options |= {"any_base": any_base, "dry_run": dry_run}
    if not adapters and (Path(base) / "recipe.yaml").is_file():  # a run, and not a base
        _check_none(options | {"as": form != "model"})
        return _try_rule(Path(base), rule, settings, output, trust=trust, quiet=quiet)
    combination = section(rule, settings)
    merged = merge_checkpoint(
        base, adapters, combination, output, form=form, **options, quiet=quiet
    )
    # with `--quiet` only the path, for scripts; but a dry run is asked for its words
    lines = [merged.output] if quiet and merged.written else str(merged).splitlines()
    say(*lines)


def _check_none(options: Mapping[str, object]) -> None:
    """Refuse the options that only adapters take, rather than ignore them for a run."""
    from perdure.errors import InputError

    for name, value in options.items():
        if value:  # none of them has a default that counts as true
            raise InputError(
                f"`--{name.replace('_', '-')}` is for adapters. With a run the rule is measured, "
                "and exported to `--output`."
            )


def _try_rule(
    run: Path,
    rule: str,
    settings: list[str],
    output: Path | None,
    *,
    trust: bool,
    quiet: bool,
) -> None:
    """Measure a run with another rule, and export it if there is an output."""
    from perdure.runs.extend import try_rule

    with outcome.reported(run):
        try_rule(run, rule, settings, output, trust=trust, quiet=quiet)
    if output:
        say(f"Model: {output}")


def export(
    run: RunFolder,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write.")],
    rule: RuleName = None,
    settings: Settings = [],
    form: Annotated[
        Literal["model", "adapter"],
        typer.Option("--as", help="What to write: the adapter is for language models."),
    ] = "model",
    rank: Annotated[
        int | None, typer.Option(min=1, help="The rank of the adapter; by default exact.")
    ] = None,
    pad_rank: Annotated[
        bool,
        typer.Option("--pad-rank", help="Fill the adapter with zeros to a rank that vLLM knows."),
    ] = False,
    trust: Trust = False,
    quiet: Quiet = False,
) -> None:
    """Write the combined model as a stock checkpoint; say what it cannot do.

    It is a checkpoint of transformers, or of sentence-transformers; or one PEFT adapter.
    """
    from perdure.runs.extend import rule_of
    from perdure.runs.model import Model
    from perdure.runs.state import read

    state = read(run, trust=trust)
    # nothing is computed that an accelerator would speed up
    model = Model(run, rule=rule_of(state, rule, settings), device="cpu")
    model.export(output, form=form, rank=rank, pad_rank=pad_rank)
    if not quiet:
        say(*model.exported(output).sentences())
    say(output)
