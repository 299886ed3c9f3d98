"""How task vectors agree or oppose each other, pair by pair: shown."""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from perdure.report.diagnostics.parts import figures
from perdure.report.diagnostics.parts.declaration import Diagnostic, Part, Table
from perdure.report.diagnostics.parts.numbers import array, mean
from perdure.report.diagnostics.parts.pictures import (
    TASKS,
    by_layer,
    drawn,
    series,
    square,
    up_to,
)
from perdure.report.markdown import number, percent
from perdure.report.picture import Picture

READING = (
    "Cosine 0: two tasks change the weights independently; above 0 they agree, below they oppose each "
    "other. Overlap is the mean squared cosine between their leading singular subspaces (0 orthogonal, 1 "
    "equal). Sign conflict is the share of weights that they change in opposite directions (50 % is "
    "chance)."
)


def table(part: Part, tasks: Sequence[str]) -> Table:
    cosine = array(part["cosine"])
    overlap = (array(part["overlap_left"]) + array(part["overlap_right"])) / 2
    conflict, rows = array(part["sign_conflict"]), []
    for i, task in enumerate(tasks):
        others = [j for j in range(len(tasks)) if j != i]
        close = max(
            others, key=lambda j, i=i: -2.0 if np.isnan(cosine[i, j]) else abs(cosine[i, j])
        )
        means = [mean(value[i, others]) for value in (cosine, overlap, conflict)]
        rows.append([task, number(part["norms"][i], 3), number(means[0]), f"{number(cosine[i, close])} {tasks[close]}",
                     number(means[1]), percent(means[2])])  # fmt: skip
    header = ["task", "‖ΔW‖", "cosine", "greatest with", "overlap", "sign conflict"]
    return Table("Task vectors: means over the other tasks", header, rows, texts=("greatest with",))


def pictures(part: Part, tasks: Sequence[str]) -> list[Picture]:
    kinds = {
        "cosine": ("Cosine", (-1.0, 1.0), False),
        "overlap_left": ("Overlap of what layers write (left singular vectors)", (0.0, 1.0), False),
        "overlap_right": (
            "Overlap of what layers read (right singular vectors)",
            (0.0, 1.0),
            False,
        ),
        "sign_conflict": ("Sign conflict, %", (0.0, 1.0), True),
        "weighted_sign_conflict": ("Sign conflict, weighted by size, %", (0.0, 1.0), True),
    }
    look = {
        key: {"limits": limits, "percent": percent} for key, (_, limits, percent) in kinds.items()
    }
    shown = [
        square(f"{caption}: task × task", part[key], tasks, **look[key])
        for key, (caption, *_) in kinds.items()
    ]
    names, norms = tasks[:TASKS], {"‖ΔW‖": array(part["norms"])[:TASKS]}
    shown.append(
        series(figures.bars(norms, names, "‖ΔW‖"), "Norm of each task vector", names, norms)
    )
    if layers := part["layers"]:
        norms = array(part["layer_norms"])[:, :TASKS]
        shown.append(by_layer("Norm: layer × task", norms, layers, names, limits=up_to(norms)))
        chosen, pairs = _pairs(array(part["cosine"]), tasks)
        strongest = (
            ""
            if len(chosen) == len(tasks) * (len(tasks) - 1) // 2
            else f" ({len(chosen)} strongest)"
        )
        for key, (caption, *_) in kinds.items():
            values, about = (
                array(part[f"layer_{key}"])[:, chosen],
                f"{caption}: layer × pair of tasks{strongest}",
            )
            shown.append(by_layer(about, values, layers, pairs, **look[key]))
    return drawn(shown)


def _pairs(
    cosine: Float[ndarray, "tasks tasks"], tasks: Sequence[str]
) -> tuple[list[int], list[str]]:
    """Which pairs are drawn, of which there may be too many: those with the greatest cosines; and their names."""
    every = list(itertools.combinations(range(len(tasks)), 2))
    order = sorted(range(len(every)), key=lambda i: -np.nan_to_num(abs(cosine[every[i]])))
    chosen = sorted(order[:TASKS])
    return chosen, [" – ".join(tasks[i][:13] for i in every[k]) for k in chosen]


DIAGNOSTIC = Diagnostic(
    position=1,
    title="Interference of task vectors",
    reading=READING,
    axes={
        "norms": "t",
        **dict.fromkeys(("cosine", "overlap_left", "overlap_right"), "tt"),
        **dict.fromkeys(("sign_conflict", "weighted_sign_conflict"), "tt"),
        "layer_norms": "lt",
        **dict.fromkeys(("layer_cosine", "layer_overlap_left", "layer_overlap_right"), "lp"),
        **dict.fromkeys(("layer_sign_conflict", "layer_weighted_sign_conflict"), "lp"),
    },
    table=table,
    pictures=pictures,
)
