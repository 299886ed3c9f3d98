"""The table that shows how far a sweep is: on a terminal, and as lines in a log."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from perdure.errors import printable
from perdure.evaluation.progress_bar import Progress
from perdure.evaluation.score import TASK_IDS
from perdure.sweeps import folder as sweep_folder
from perdure.sweeps.executor import Outcome
from perdure.sweeps.trials import Trial

RESERVED = 6
"""The lines of a terminal that the table leaves free, for its own header and the prompt."""
LOOKS = 200
"""The maximum number of unfinished trials whose folders are looked at in each update."""


class SweepProgress:
    """Show the state of every trial while a sweep is performed.

    Parameters
    ----------
    outcomes
        The outcomes that are already known, by the name of the trial.
    """

    def __init__(
        self, folder: Path, trials: Sequence[Trial], outcomes: dict[str, Outcome], *, quiet: bool
    ):
        self.folder = folder
        self.trials = trials
        self.outcomes = dict(outcomes)
        self.console = Console()
        live = self.console.is_terminal and not self.console.is_dumb_terminal and not quiet
        self._live = Live(console=self.console, auto_refresh=False) if live else None
        # prints a line for each trial, but nothing on a terminal
        self._lines = Progress("The sweep", len(trials), done=len(outcomes), quiet=quiet, bar=False)

    def __enter__(self) -> "SweepProgress":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.update(self.table(), refresh=True)
            self._live.stop()

    def to(self, outcome: Outcome | None) -> None:
        """Report an outcome; None only updates the table."""
        if outcome:
            self.outcomes[outcome.trial] = outcome
            done = len(self.outcomes)
            said = f"{done} of {len(self.trials)} trials, {outcome.trial} {_state(outcome)}"
            self._lines.to(done, said, reached=True)
        if self._live:
            self._live.update(self.table(), refresh=True)

    def table(self) -> Table:
        """Return the table: failed and running trials first, then those finished last."""
        rows = self._rows()
        counts = Counter(row.kind for row in rows)
        caption = ", ".join(f"{number} {kind}" for kind, number in counts.items())
        table = Table(box=None, caption=caption, caption_justify="left", padding=(0, 2, 0, 0))
        ways = [way for way in TASK_IDS if any(way in row.scores for row in rows)]
        table.add_column("trial", overflow="fold")
        table.add_column("state", overflow="fold")
        for way in ways:
            table.add_column(way, justify="right")
        room = max(3, self.console.height - RESERVED)
        for row in rows[:room]:
            cells = [Text(printable(row.trial)), Text(printable(row.said))]
            for way in ways:
                cells.append(Text(f"{100 * row.scores[way]:.1f}" if way in row.scores else ""))
            table.add_row(*cells)
        return table

    def _rows(self) -> "list[Row]":
        """Return the row of each trial, the most telling ones first."""
        rows: dict[Kind, list[Row]] = {kind: [] for kind in get_args(Kind)}
        looks = 0
        for trial in self.trials:
            outcome = self.outcomes.get(trial.name)
            if outcome:
                kind = "finished" if outcome.state == "finished" else "failed"
                row = Row(kind, trial.name, _state(outcome), outcome.scores)
            else:
                looks += 1
                learned = self._learned(trial) if looks <= LOOKS else None
                row = Row("waiting", trial.name, "waiting", {})
                if learned is not None:
                    tasks = "1 task" if learned == 1 else f"{learned} tasks"
                    row = Row("running", trial.name, f"{tasks} learned", {})
            rows[row.kind].append(row)
        # the trial that was finished last is the most interesting of them
        rows["finished"].reverse()
        return list(itertools.chain.from_iterable(rows.values()))

    def _learned(self, trial: Trial) -> int | None:
        """Return the number of tasks that a trial has learned; None if it has not begun."""
        tasks = sweep_folder.run_folder(self.folder, trial.name) / "tasks"
        try:
            return sum(not path.name.startswith(".") for path in tasks.iterdir())
        except OSError:
            return 0 if tasks.parent.exists() else None


Kind = Literal["failed", "running", "finished", "waiting"]
"""The kinds of rows, in the order of the table."""


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    kind: Kind
    trial: str
    said: str
    scores: dict[str, float]


def _state(outcome: Outcome) -> str:
    return f"failed: {outcome.reason}" if outcome.state == "failed" else outcome.state
