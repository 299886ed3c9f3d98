"""The table and the figures of the diagnostic `zones`, on where task vectors change weights."""

from collections.abc import Sequence

import numpy as np

from perdure.report.diagnostics.parts import figures
from perdure.report.diagnostics.parts.declaration import Diagnostic, Part, Table
from perdure.report.diagnostics.parts.numbers import array
from perdure.report.diagnostics.parts.pictures import TASKS, by_layer, drawn, series, up_to
from perdure.report.markdown import percent
from perdure.report.picture import Picture

READING = (
    "Shares of ‖ΔW‖²: zone I is among the leading singular vectors of the pre-trained weights "
    "(half of the sum of singular values), II among the others, III outside of them. A larger "
    "share in I than by chance means that the tasks change what the pre-trained model does most."
)


def table(numbers: Part, tasks: Sequence[str]) -> Table:
    """Return the table for the terminal: a row for a random change, and one for each task."""
    rows = [_row("by chance", numbers["by_chance"])]
    for task, shares in zip(tasks, numbers["shares"], strict=True):
        rows.append(_row(task, shares))
    return Table(
        title="Where ΔW lies in the pre-trained weights (% of ‖ΔW‖²)",
        header=["task", "zone I", "II", "III"],
        rows=rows,
    )


def _row(name: str, shares: Sequence[float | None]) -> list[str]:
    return [name, *(percent(share) for share in shares)]


def pictures(numbers: Part, tasks: Sequence[str]) -> list[Picture]:
    """Return bars of the zones of each task, and a heat map of zone I by layer."""
    # The shares of a random change are shown next to those of the tasks.
    names = ["by chance", *tasks[:TASKS]]
    chance = array(numbers["by_chance"])
    shares = np.vstack([chance, array(numbers["shares"])[:TASKS]])
    zones = {
        "zone I": shares[:, 0],
        "zone II": shares[:, 1],
        "zone III": shares[:, 2],
    }
    svg = figures.bars(
        zones,
        names,
        "share of ‖ΔW‖², %",
        percent=True,
        stacked=True,
    )
    shown = [
        series(
            svg,
            "Share of ‖ΔW‖² in each zone",
            names,
            zones,
        )
    ]
    # With very many tasks, the values of single layers are not computed.
    if numbers["layers"]:
        zone_1 = array(numbers["layer_shares"])[:, :TASKS, 0]
        shown.append(
            by_layer(
                "Share in zone I, %: layer × task",
                zone_1,
                numbers["layers"],
                tasks[:TASKS],
                limits=up_to(zone_1),
                percent=True,
            )
        )
    return drawn(shown)


DIAGNOSTIC = Diagnostic(
    position=2,
    title="Where task vectors lie in the pre-trained weights",
    reading=READING,
    axes={"shares": "tz", "mixed": "t", "by_chance": "z", "layer_shares": "ltz"},
    table=table,
    pictures=pictures,
)
