"""Options and arguments shared by several commands."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from perdure import registry
from perdure.registry import Kind


def names_of(*kinds: Kind) -> Callable[[str], list[str]]:
    """Return a function that completes names of the given kinds in the shell."""

    def completions(incomplete: str) -> list[str]:
        names = []
        for kind in kinds:
            names += registry.names(kind)
        return [name for name in names if name.startswith(incomplete)]

    return completions


def template(text: str | None) -> str | None:
    r"""Replace `\n`, which a shell passes as two characters, with line breaks in a template."""
    return text.replace("\\n", "\n") if text else text


def parts(incomplete: str) -> list[str]:
    """Return the names of the diagnostics that start with `incomplete`, for shell completion."""
    return [name for name in registry.diagnostic_names() if name.startswith(incomplete)]


# Aliases, so that an option has the same name and the same help in every command. Options
# that may be repeated have an empty list as default, as typer requires; no command
# modifies the list.
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Where to write.")]
Seed = Annotated[
    int, typer.Option(help="Seed for the splits, the initial weights and the order of examples.")
]
Settings = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a setting: method.rank=4, or scale=0.3 for a rule. Repeatable.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Run the Python files named in the run's recipe. Use only if you trust their author.",
    ),
]
RuleName = Annotated[
    str | None,
    typer.Option(
        "--rule",
        help="The rule that combines the adapters; by default, the rule of the run.",
        autocompletion=names_of("rule"),
    ),
]
Texts = Annotated[
    list[str],
    typer.Option("--text", help="The column with the text. Give it twice for pairs, in order."),
]
Delimiter = Annotated[
    str | None,
    typer.Option(help="The separator of a CSV file; by default, detected from the header."),
]
Encoding = Annotated[str, typer.Option(help="The encoding of a text file.")]
Image = Annotated[str | None, typer.Option(help="The column with the image.")]
Prompt = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN|TEMPLATE",
        help=r"For a language model: the column with the prompt, or a template such as "
        r"'Review: {body}\nStars:', where \n is a line break.",
    ),
]
Answer = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN|TEMPLATE",
        help="The column with the free-text answer, or a template for it.",
    ),
]
Label = Annotated[
    str | None, typer.Option(help="The column with the class; by default, label if it exists.")
]
Score = Annotated[
    str | None,
    typer.Option(
        help="The metric for the answers, such as exact_match or rouge_l; by default, accuracy.",
        autocompletion=names_of("score"),
    ),
]
Format = Literal["html", "markdown", "latex", "json"]
KnownTask = Annotated[
    str | None, typer.Option("--task", help="The task of all rows, if it is known.")
]
