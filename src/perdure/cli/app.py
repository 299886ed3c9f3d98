"""The command line.

Commands contain no logic: they read options, call the library, and print the results.
"""

import typer

from perdure import garbage
from perdure.cli import merge, read, shell, sweep, train

COMMANDS = (
    train.demo,
    train.run,
    sweep.sweep,
    sweep.tune,
    train.learn,
    train.forget,
    read.verify,
    read.evaluate,
    read.diagnose,
    read.predict,
    merge.export,
    merge.merge,
    read.report,
    read.gate,
    read.check,
)
"""The commands in the order in which `perdure --help` lists them."""

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # an error is one sentence; see `shell.run`
    # rich's panels truncate names in a narrow terminal; plain help does not
    rich_markup_mode="markdown" if shell.is_wide() else None,
    help="Teach one pre-trained transformer new tasks, one after another, without forgetting "
    "the old ones.",
)
app.callback()(shell.take_options)
for command in COMMANDS:
    app.command()(command)
app.command(name="list")(read.list_)
app.command()(read.show)


def main() -> None:
    """Run the command line."""
    garbage.search_less()
    shell.run(app)
