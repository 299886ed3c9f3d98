"""A report's dict → one HTML page that needs nothing else: no network, no files beside it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from perdure.errors import OutputError
from perdure.report import classes, costs, diagnostics_page, figures, heat_map
from perdure.report.markdown import note, percent, table
from perdure.report.picture import Picture, Section
from perdure.report.series import ways
from perdure.report.summary import summarise
from perdure.runs.sources import Sources
from perdure.storage import files

FEW = 4  # up to so many runs each is shown with all its rules
CELLS = 120_000  # of all tables on a page: more make it too large to open


def report(
    folders: Sequence[str | Path],
    output: str | Path,
    to_text: Callable[[Mapping[str, Any]], str] | None = None,
) -> dict[str, Any]:
    """Write the page of one run, or of several side by side.

    Parameters
    ----------
    folders
        The run folders. One that is damaged, or still running, is shown as far as it is.
    output
        The HTML file; one that is there is replaced.
    to_text
        How the numbers become text; by default that of the page.

    Returns
    -------
    dict
        The numbers on the page (`perdure.report.summary`).

    Raises
    ------
    RunError
        A folder is not a run, or a task was forgotten while its report was made: then nothing is written.
    OutputError
        The page cannot be written.
    """
    sources = [Sources.readable(folder) for folder in folders]
    summary = summarise(folders)
    write(output, (to_text or to_html)(summary), sources)
    return summary


def write(output: str | Path, text: str, sources: Sequence[Sources]) -> None:
    """Write a report's text, if the tasks that it was made of are still there.

    Raises
    ------
    OutputError
        It cannot be written.
    RunError
        A task is gone.
    """

    def check() -> None:
        for run in sources:
            run.check()

    output = Path(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"`{output.parent}` cannot be made: {error.strerror}.") from error
    files.write(output, text, check=check)


def to_html(summary: Mapping[str, Any]) -> str:
    """The page as text."""
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["yaml"] = lambda value: yaml.safe_dump(
        value, sort_keys=False, allow_unicode=True
    )
    environment.filters["svg"] = Markup  # names in it are escaped by those who drew it
    environment.filters["cell"] = _cell
    titles = [group["title"] for group in summary["groups"]]
    values = {
        "title": ", ".join(titles) if len(titles) <= FEW else f"{len(summary['runs'])} runs",
        "results": table(summary),
        "symbols": {metric["title"]: metric["symbol"] for metric in summary["metrics"].values()},
        "note": note(summary),
        "made_of": [json.dumps(_made_of(run)) for run in summary["runs"]],
        "sections": _fitting(_sections(summary)),
    }
    return environment.get_template("report.html").render(summary, **values)


def _made_of(run: Mapping[str, Any]) -> dict[str, str]:
    """Return the tasks that a run had when it was read, with the SHA-256 of their manifests."""
    return {task["name"]: task["manifest"] for task in run["tasks"] if task["manifest"]}


def _cell(value: Any) -> str:
    """A table's value as text: numbers with as many digits as anybody reads."""
    if value is None:
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _sections(summary: Mapping[str, Any]) -> list[Section]:
    known = ways(summary)
    several = len(summary["groups"]) > 1
    parts = [[way] for way in known] if several else [known]
    sections = [
        Section(
            "Over the stream",
            "A colour stands for one run and rule on the whole page." if several else "",
            _there(
                *(figures.seen(summary, part) for part in parts),
                *(figures.tasks(summary, part) for part in parts),
            ),
        ),
        Section(
            "Stability and plasticity",
            "To the right a run learns new tasks better, below it forgets less.",
            _there(*(figures.plane(summary, part) for part in parts), figures.forgetting(summary)),
        ),
        _matrices(summary),
        _classes(summary),
        Section(
            "Search of the scale",
            "On validation examples; the filled point was taken.",
            _there(costs.search(summary)),
        ),
        Section("Training", "", _there(figures.losses(summary))),
        Section(
            "Cost", "Trained: the most parameters for any one task.", _there(costs.cost(summary))
        ),
    ]
    return [section for section in sections if section.pictures] + _diagnostics(summary)


def _diagnostics(summary: Mapping[str, Any]) -> list[Section]:
    diagnosed = [run for run in summary["runs"] if run["diagnostics"]]
    if len(diagnosed) > FEW:
        return [
            Section("Diagnostics", f"{len(diagnosed)} runs were diagnosed: see the report of each.")
        ]
    several = len(summary["runs"]) > 1
    sections = []
    for run in diagnosed:
        for section in diagnostics_page.sections(run["diagnostics"]):
            title = f"{section.title}: {run['title']}" if several else section.title
            sections.append(replace(section, title=title, folded=several))
    return sections


def _there(*pictures: Picture | None) -> list[Picture]:
    return [picture for picture in pictures if picture]


def _shown(summary: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Run and result of what is shown one by one: of many runs only their own rule, in one way to know the task."""
    pairs = [(run, result) for run in summary["runs"] for result in run["results"]]
    if len(summary["runs"]) <= FEW:
        return pairs
    first = [key for key, _ in ways(summary)][:1]
    return [
        (run, result)
        for run, result in pairs
        if result["rule"] == run["rule"] and [result["task_id"]] == first
    ]


def _matrices(summary: Mapping[str, Any]) -> Section:
    shown = _shown(summary)
    low, high = limits = heat_map.limits([result for _, result in shown])
    colours = f"Dark is {percent(low)} %, light {percent(high)} %."
    gaps = any(
        None in row[: step + 1] for _, result in shown for step, row in enumerate(result["matrix"])
    )
    blank = " Below the diagonal a blank was not measured." if gaps else ""
    note = f"Row: after learning this task. Column: the score on this task. {colours}{blank}"
    several = len(summary["runs"]) > 1
    pictures = []
    for run, result in shown:
        picture = heat_map.matrix(result, limits)
        caption = f"{run['title']} · {picture.caption}" if several else picture.caption
        pictures.append(replace(picture, caption=caption))
    title = "Accuracy matrix" if len(pictures) == 1 else "Accuracy matrices"
    return Section(title, note, pictures, folded=several)


def _classes(summary: Mapping[str, Any]) -> Section:
    """Show how the classes of each run were answered, without the task where that was measured."""
    several = len(summary["runs"]) > 1
    pictures = []
    for run in summary["runs"] if len(summary["runs"]) <= FEW else []:
        way = next((way for way in ways(summary) if way[0] in run["classes"]), None)
        picture = classes.picture(run, *way) if way else None
        if picture:
            caption = f"{run['title']} · {picture.caption}" if several else picture.caption
            pictures.append(replace(picture, caption=caption))
    note = "Each row adds up to 100 %. The table has each class's recall, and what it was most often taken for."
    return Section("Classes", note, pictures, folded=several)


def _fitting(sections: Sequence[Section]) -> list[Section]:
    """The sections without the largest tables, where all together are too much for a page."""
    size = {
        id(picture): len(picture.header) * len(picture.rows)
        for one in sections
        for picture in one.pictures
    }
    left, kept = CELLS, set()
    for key in sorted(size, key=size.__getitem__):
        left -= size[key]
        if left >= 0:
            kept.add(key)
    return [
        replace(one, pictures=[p if id(p) in kept else replace(p, rows=[]) for p in one.pictures])
        for one in sections
    ]
