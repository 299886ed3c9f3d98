"""Where task vectors lie in the pre-trained weights: shown."""

from collections.abc import Sequence

import numpy as np

from perdure.report.diagnostics.parts import figures
from perdure.report.diagnostics.parts.declaration import Diagnostic, Part, Table
from perdure.report.diagnostics.parts.numbers import array
from perdure.report.diagnostics.parts.pictures import TASKS, by_layer, drawn, series, up_to
from perdure.report.markdown import percent
from perdure.report.picture import Picture

READING = (
    "Shares of ‖ΔW‖²: zone I among the leading singular vectors of the pre-trained weights (half of the "
    "singular values' sum), II among the others, III outside of them; more than by chance in I means that "
    "what the pre-trained model does most is changed."
)


def table(part: Part, tasks: Sequence[str]) -> Table:
    chance, width = ["by chance", *map(percent, part["by_chance"])], ["task", "zone I", "II", "III"]
    rows = [
        [task, *map(percent, shares)] for task, shares in zip(tasks, part["shares"], strict=True)
    ]
    return Table("Where ΔW lies in the pre-trained weights (% of ‖ΔW‖²)", width, [chance, *rows])


def pictures(part: Part, tasks: Sequence[str]) -> list[Picture]:
    names = ["by chance", *tasks[:TASKS]]
    values = np.vstack([array(part["by_chance"]), array(part["shares"])[:TASKS]])
    zones = {f"zone {name}": values[:, i] for i, name in enumerate(("I", "II", "III"))}
    svg = figures.bars(zones, names, "share of ‖ΔW‖², %", percent=True, stacked=True)
    shown = [series(svg, "Share of ‖ΔW‖² in each zone", names, zones)]
    if layers := part["layers"]:
        first = array(part["layer_shares"])[:, :TASKS, 0]
        shown.append(by_layer("Share in zone I, %: layer × task", first, layers, tasks[:TASKS],
                                  limits=up_to(first), percent=True))  # fmt: skip
    return drawn(shown)


DIAGNOSTIC = Diagnostic(
    position=2,
    title="Where task vectors lie in the pre-trained weights",
    reading=READING,
    axes={"shares": "tz", "mixed": "t", "by_chance": "z", "layer_shares": "ltz"},
    table=table,
    pictures=pictures,
)
