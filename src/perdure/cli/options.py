"""The options and arguments that several commands have in common."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer


def names_of(*kinds: Any) -> Any:
    """Complete the names of these kinds in the shell: `method`, `rule`, `benchmark`."""

    def known(incomplete: str) -> list[str]:
        from perdure import registry

        names = [name for kind in kinds for name in registry.names(kind)]
        return [name for name in names if name.startswith(incomplete)]

    return known


def parts(incomplete: str) -> list[str]:
    """Complete the names of the parts of the diagnostics in the shell."""
    from perdure import registry

    return [name for name in registry.diagnostics() if name.startswith(incomplete)]


RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Where to write.")]
Seed = Annotated[
    int, typer.Option(help="The seed of the splits, the initial weights and the order of examples.")
]
Settings = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a setting: method.rank=4, or of a rule scale=0.3. Repeatable.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Run the Python files that the run's recipe names: those of somebody you trust.",
    ),
]
RuleName = Annotated[
    str | None,
    typer.Option(
        "--rule",
        help="How adapters are combined; by default as the run did.",
        autocompletion=names_of("rule"),
    ),
]
Texts = Annotated[
    list[str],
    typer.Option(
        "--text", help="The column with the text; twice for pairs of texts, in that order."
    ),
]
Delimiter = Annotated[
    str | None,
    typer.Option(help="What separates the cells of a CSV file; by default its header decides."),
]
Encoding = Annotated[str, typer.Option(help="The encoding of a text file.")]
Image = Annotated[str | None, typer.Option(help="The column with the image.")]
Format = Literal["html", "markdown", "latex", "json"]
KnownTask = Annotated[
    str | None, typer.Option("--task", help="The task of all rows, if it is known.")
]
