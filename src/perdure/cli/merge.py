"""The commands that merge adapters or export a model."""

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
        typer.Argument(metavar="BASE|RUN", help="The folder or hub id of a model, or a run."),
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
        int | None, typer.Option(help="The rank of the adapter to write; by default, exact.")
    ] = None,
    saved_modules: Annotated[
        str | None,
        typer.Option(help="The adapter whose heads (modules_to_save) to use: its name, or none."),
    ] = None,
    any_base: Annotated[
        bool, typer.Option("--any-base", help="Accept adapters that name another base.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Merge any PEFT LoRA adapters into their base model, or try another rule on a run."""
    from perdure.checkpoints.merge import merge_checkpoint
    from perdure.settings import section

    options: dict[str, Any] = {"rank": rank, "saved_modules": saved_modules}
    options |= {"any_base": any_base, "dry_run": dry_run}
    if not adapters and (Path(base) / "recipe.yaml").is_file():  # a run, not a base model
        _check_none(options | {"as": form != "model"})
        return _try_rule(Path(base), rule, settings, output, trust=trust, quiet=quiet)
    combination = section(rule, settings)
    merged = merge_checkpoint(
        base, adapters, combination, output, form=form, **options, quiet=quiet
    )
    # `--quiet` prints only the path, for scripts; a dry run exists for its text
    lines = [merged.output] if quiet and merged.written else str(merged).splitlines()
    say(*lines)


def _check_none(options: Mapping[str, object]) -> None:
    """Raise an error for options that only apply to adapters, instead of ignoring them."""
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
    """Evaluate a run with another rule, and export the model if `output` is given."""
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
        typer.Option("--as", help="What to write; an adapter is only for language models."),
    ] = "model",
    heads: Annotated[
        Literal["closed_form", "joined"] | None,
        typer.Option(
            help="How to make the one head of an encoder: in closed form from the statistics of "
            "all tasks, or by joining their heads; by default, the first if it applies."
        ),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="The rank of the adapter; by default, exact.")
    ] = None,
    pad_rank: Annotated[
        bool,
        typer.Option("--pad-rank", help="Pad the adapter to a rank that vLLM supports."),
    ] = False,
    trust: Trust = False,
    quiet: Quiet = False,
) -> None:
    """Write the combined model as a standard checkpoint, and print its limitations.

    The checkpoint is for transformers or sentence-transformers, or is a single PEFT adapter.
    """
    from perdure.runs.export_run import Request, exported
    from perdure.runs.extend import rule_of
    from perdure.runs.model import Model
    from perdure.runs.state import read

    state = read(run, trust=trust)
    # an accelerator would not make this faster
    model = Model(run, rule=rule_of(state, rule, settings), device="cpu")
    request = Request(output=output, form=form, heads=heads, rank=rank, pad_rank=pad_rank)
    check = model.sources.check
    about = exported(model.system, model.state, model.label, request, check=check)
    if not quiet:
        say(*about.sentences(), *about.measured.unmeasured)
    say(output)
