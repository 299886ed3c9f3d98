"""The commands that combine what was learned into one model."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from perdure.cli import outcome
from perdure.cli.options import Output, Quiet, RuleName, RunFolder, Settings, Trust, names_of
from perdure.cli.outcome import say


def merge(
    base: Annotated[
        str, typer.Argument(metavar="BASE|RUN", help="A model's folder or hub id; or a run, alone.")
    ],
    adapters: Annotated[
        list[Path], typer.Argument(metavar="ADAPTER", help="PEFT LoRA folders.")
    ] = [],
    rule: Annotated[
        str,
        typer.Option(
            "--rule", help="How the adapters are combined.", autocompletion=names_of("rule")
        ),
    ] = "task_arithmetic",
    settings: Settings = [],
    trust: Trust = False,
    output: Output = None,
    form: Annotated[
        Literal["model", "adapter"], typer.Option("--as", help="What is written.")
    ] = "model",
    rank: Annotated[
        int | None, typer.Option(help="The rank of the adapter that is written; by default exact.")
    ] = None,
    saved_modules: Annotated[
        str | None,
        typer.Option(help="Whose heads (modules_to_save) are taken: an adapter's name, or none."),
    ] = None,
    any_base: Annotated[
        bool, typer.Option("--any-base", help="Take adapters that name another base.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Merge PEFT adapters, made anywhere, into their base model; or try another rule on a finished run."""
    from perdure.checkpoints.merge import merge_checkpoint
    from perdure.settings import section

    options: dict[str, Any] = {
        "rank": rank,
        "saved_modules": saved_modules,
        "any_base": any_base,
        "dry_run": dry_run,
    }
    if not adapters and (Path(base) / "recipe.yaml").is_file():
        options["as"] = form if form != "model" else None
        return _try_rule(Path(base), rule, settings, output, options, trust=trust, quiet=quiet)
    options["form"] = form
    merged = merge_checkpoint(
        base, adapters, section(rule, settings), output, **options, quiet=quiet
    )
    say(*([merged.output] if quiet and merged.written else str(merged).splitlines()))


def _try_rule(
    run: Path,
    rule: str,
    settings: list[str],
    output: Path | None,
    options: dict[str, Any],
    *,
    trust: bool,
    quiet: bool,
) -> None:
    from perdure.errors import InputError
    from perdure.runs.extend import try_rule

    if given := [name for name, value in options.items() if value]:
        option = given[0].replace("_", "-")
        raise InputError(
            f"`--{option}` is for adapters. With a run the rule is measured, and exported to `--output`."
        )
    with outcome.reported(run):
        try_rule(run, rule, settings, output, trust=trust, quiet=quiet)
    if output:
        say(f"Model: {output}")


def export(
    run: RunFolder,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write.")],
    rule: RuleName = None,
    settings: Settings = [],
    trust: Trust = False,
    quiet: Quiet = False,
) -> None:
    """Write the combined model as a stock checkpoint (transformers, or sentence-transformers); say what it loses."""
    from perdure.runs.extend import rule_of
    from perdure.runs.model import Model
    from perdure.runs.state import read

    state = read(run, trust=trust)
    model = Model(run, rule=rule_of(state, rule, settings), device="cpu")
    model.export(output)
    if not quiet:
        say(*model.exported(output).sentences())
    say(output)
