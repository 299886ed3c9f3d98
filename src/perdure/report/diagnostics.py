"""What `perdure diagnose` has found → sections of the page: figures, each with the numbers that it was drawn from."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from perdure.report import diagnostic_figures as draw
from perdure.report.diagnostics_terminal import array, none, shares
from perdure.report.heat_map import heat
from perdure.report.picture import Cell, Picture, Section

TASKS = 40  # drawn at most: a page of 300 × 300 cells is none
LAYERS = 60
Part = Mapping[str, Any]
TITLES = {
    "interference": "Interference of task vectors",
    "zones": "Where task vectors lie in the pre-trained weights",
    "cka": "How far the features moved (CKA)",
    "probe": "Probes: what a linear classifier reads from the features",
    "posterior": "The task posterior",
}


def sections(diagnostics: Part) -> list[Section]:
    """A section for each part, with a sentence on how it is read; one that was left out says why.

    Parameters
    ----------
    diagnostics
        As `perdure.runs.layout.diagnostics` reads them; of an empty one there are no sections.
    """
    found, tasks = [], diagnostics.get("tasks", [])
    for name, title in TITLES.items():
        if name in diagnostics.get("parts", {}):
            part = diagnostics["parts"][name]
            pictures = PICTURES[name](part, tasks)
            found.append(Section(title, f"{part['reading']} {_about(diagnostics, name)}", pictures))
        elif name in diagnostics.get("left_out", {}):
            found.append(Section(title, f"Left out. {diagnostics['left_out'][name]}"))
    return found


def _about(diagnostics: Part, name: str) -> str:
    """What a part was computed with, and what of it is not drawn."""
    count, reads = len(diagnostics["tasks"]), name in ("cka", "probe", "posterior")
    examples = f", at most {diagnostics['examples']} examples of each task and split" if reads else ""
    capped = f" Drawn are the first {TASKS} of {count} tasks; all are in diagnostics.json." if count > TASKS else ""
    return f"(Rule {diagnostics['rule']}{examples}.){capped}"


def _interference(part: Part, tasks: Sequence[str]) -> list[Picture]:
    kinds = {
        "cosine": ("Cosine", (-1.0, 1.0), False),
        "overlap_left": ("Overlap of what layers write (left singular vectors)", (0.0, 1.0), False),
        "overlap_right": ("Overlap of what layers read (right singular vectors)", (0.0, 1.0), False),
        "sign_conflict": ("Sign conflict, %", (0.0, 1.0), True),
        "weighted_sign_conflict": ("Sign conflict, weighted by size, %", (0.0, 1.0), True),
    }
    look = {key: {"limits": limits, "percent": percent} for key, (_, limits, percent) in kinds.items()}
    pictures = [
        _square(f"{caption}: task × task", part[key], tasks, **look[key]) for key, (caption, *_) in kinds.items()
    ]
    names, norms = tasks[:TASKS], {"‖ΔW‖": array(part["norms"])[:TASKS]}
    pictures.append(_series(draw.bars(norms, names, "‖ΔW‖"), "Norm of each task vector", names, norms))
    if layers := part["layers"]:
        norms = array(part["layer_norms"])[:, :TASKS]
        pictures.append(_by_layer("Norm: layer × task", norms, layers, names, limits=_up_to(norms)))
        chosen, pairs = _pairs(array(part["cosine"]), tasks)
        strongest = "" if len(chosen) == len(tasks) * (len(tasks) - 1) // 2 else f" ({len(chosen)} strongest)"
        for key, (caption, *_) in kinds.items():
            values, about = array(part[f"layer_{key}"])[:, chosen], f"{caption}: layer × pair of tasks{strongest}"
            pictures.append(_by_layer(about, values, layers, pairs, **look[key]))
    return _drawn(pictures)


def _pairs(cosine: Float[ndarray, "tasks tasks"], tasks: Sequence[str]) -> tuple[list[int], list[str]]:
    """Which pairs are drawn, of which there may be too many: those with the greatest cosines; and their names."""
    every = list(itertools.combinations(range(len(tasks)), 2))
    order = sorted(range(len(every)), key=lambda i: -np.nan_to_num(abs(cosine[every[i]])))
    chosen = sorted(order[:TASKS])
    return chosen, [" – ".join(tasks[i][:13] for i in every[k]) for k in chosen]


def _zones(part: Part, tasks: Sequence[str]) -> list[Picture]:
    names = ["by chance", *tasks[:TASKS]]
    values = np.vstack([array(part["by_chance"]), array(part["shares"])[:TASKS]])
    zones = {f"zone {name}": values[:, i] for i, name in enumerate(("I", "II", "III"))}
    drawn = draw.bars(zones, names, "share of ‖ΔW‖², %", percent=True, stacked=True)
    pictures = [_series(drawn, "Share of ‖ΔW‖² in each zone", names, zones)]
    if layers := part["layers"]:
        first = array(part["layer_shares"])[:, :TASKS, 0]
        pictures.append(_by_layer("Share in zone I, %: layer × task", first, layers, tasks[:TASKS],
                                  limits=_up_to(first), percent=True))  # fmt: skip
    return _drawn(pictures)


def _cka(part: Part, tasks: Sequence[str]) -> list[Picture]:
    names = tasks[:TASKS]
    steps = {
        "with the pre-trained model": array(part["to_pretrained"])[:TASKS],
        "with the step before": array(part["to_previous"])[:TASKS],
    }
    kept = _spread(len(part["layers"]), TASKS)
    matrix, layers = array(part["matrix"])[np.ix_(kept, kept)], [part["layers"][i] for i in kept]
    return _drawn([
        _series(draw.lines(steps, names, "CKA"), "CKA of the features after each task", names, steps),
        _heat("CKA: layer of the pre-trained model (row) × of the last one", matrix, layers, layers, limits=(0.0, 1.0)),
    ])  # fmt: skip


def _probe(part: Part, tasks: Sequence[str]) -> list[Picture]:
    steps, names = ["(pre-trained)", *tasks][: TASKS + 1], tasks[:TASKS]
    accuracy = {"all tasks": array(part["accuracy"])[: TASKS + 1]}
    changes = {key: array(part[key])[:TASKS] for key in ("plasticity", "stability")}
    return _drawn([
        _series(draw.lines(accuracy, steps, "probe accuracy, %", percent=True), "Probe accuracy on all tasks", steps,
                accuracy),
        _heat("Probe accuracy, %: after this task (row) × on that", array(part["subset"])[: TASKS + 1, :TASKS], steps,
              names, limits=(0.0, 1.0), percent=True),
        _series(draw.bars(changes, names, "points", percent=True), "Plasticity (while a task is learned) and stability "
                "(after it)", names, changes),
    ])  # fmt: skip


def _posterior(part: Part, tasks: Sequence[str]) -> list[Picture]:
    confusion = shares(part["confusion"])
    pictures = [
        _square("True task (row) × task found, % of the row", confusion, tasks, limits=(0.0, 1.0), percent=True)
    ]
    for kind, label in {"task": "p(task | x)", "class": "p(class | x)"}.items():
        bins, error = array(part[f"{kind}_bins"]), part[f"{kind}_ece"]
        caption = f"Reliability of {label}" + ("" if error is None else f": calibration error {100 * error:.1f} %")
        header = ["from", "to", "examples", "confidence", "right"]
        drawn = draw.reliability(bins, f"confidence, {label}, %")
        pictures.append(Picture(caption, drawn, header, _cells(bins)))
    return _drawn(pictures)


PICTURES: dict[str, Callable[[Part, Sequence[str]], list[Picture]]] = {
    "interference": _interference,
    "zones": _zones,
    "cka": _cka,
    "probe": _probe,
    "posterior": _posterior,
}


# -- figures with their tables


def _heat(
    caption: str,
    values: Float[ndarray, "rows columns"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    limits: tuple[float, float],
    percent: bool = False,
) -> Picture:
    """A heat map, if anything in it is defined."""
    found = np.isfinite(values).any()
    colours = "RdBu_r" if limits[0] < 0 else "viridis"  # from blue over white to red around 0
    scale, digits = (100, 0) if percent else (1, 2)
    drawn = heat(values, rows, columns, limits=limits, colours=colours, scale=scale, digits=digits)
    table = [[name, *cells] for name, cells in zip(rows, _cells(values), strict=True)]
    return Picture(caption, drawn if found else "", ["", *columns], table)


def _square(
    caption: str, values: Any, tasks: Sequence[str], *, limits: tuple[float, float], percent: bool = False
) -> Picture:
    """A heat map of the first tasks by themselves."""
    names = tasks[:TASKS]
    return _heat(caption, array(values)[:TASKS, :TASKS], names, names, limits=limits, percent=percent)


def _by_layer(
    caption: str,
    values: Float[ndarray, "layers columns"],
    layers: Sequence[str],
    columns: Sequence[str],
    *,
    limits: tuple[float, float],
    percent: bool = False,
) -> Picture:
    """A heat map whose rows are layers, of many some evenly over the depth."""
    kept, names = _spread(len(layers), LAYERS), _ends(layers)
    rows, some = [names[i] for i in kept], f" ({LAYERS} of {len(layers)} layers)" if len(layers) > LAYERS else ""
    return _heat(caption + some, values[kept], rows, columns, limits=limits, percent=percent)


def _spread(count: int, most: int) -> list[int]:
    """At most so many of so many things, evenly spread, with the first and the last.

    Examples
    --------
    >>> _spread(7, 3), _spread(2, 3)
    ([0, 3, 6], [0, 1])
    """
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))})


def _up_to(values: Float[ndarray, "..."]) -> tuple[float, float]:
    return 0.0, float(np.nanmax(values, initial=1e-12))


def _series(svg: str, caption: str, names: Sequence[str], series: Mapping[str, draw.Values]) -> Picture:
    """A figure of series over names, which are its table's columns and rows."""
    rows = [[name, *cells] for name, cells in zip(names, _cells(np.stack(list(series.values())).T), strict=True)]
    return Picture(caption, svg, ["", *series], rows)


def _cells(values: Float[ndarray, "rows columns"]) -> list[list[Cell]]:
    return [[none(value) for value in row] for row in values]


def _drawn(pictures: Sequence[Picture]) -> list[Picture]:
    """Those in which there is something."""
    return [picture for picture in pictures if picture.svg]


def _ends(names: Sequence[str]) -> list[str]:
    """The names of layers without the parts with which they all begin."""
    parts = [name.split(".") for name in names]
    same = 0
    while all(len(part) > same + 1 and part[same] == parts[0][same] for part in parts):
        same += 1
    return [".".join(part[same:]) for part in parts]
