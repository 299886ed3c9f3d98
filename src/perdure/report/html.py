"""A report's dict → one HTML page that needs nothing else: no network, no scripts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from perdure import files
from perdure.errors import OutputError
from perdure.report import figures
from perdure.report.markdown import percent, table
from perdure.report.summary import summarise


def report(folders: Sequence[str | Path], output: str | Path) -> dict[str, Any]:
    """Write the page of one run, or of several side by side.

    Parameters
    ----------
    folders
        The run folders.
    output
        The HTML file; one that is there is replaced.

    Returns
    -------
    dict
        The numbers on the page (`perdure.report.summary`).

    Raises
    ------
    RunError
        A folder is not a run, or is damaged.
    OutputError
        The page cannot be written.
    """
    summary = summarise(folders)
    output = Path(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"`{output.parent}` cannot be made: {error.strerror}.") from error
    files.write(output, to_html(summary))
    return summary


def to_html(summary: Mapping[str, Any]) -> str:
    """The page as text."""
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["yaml"] = lambda value: yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    header, rows = table(summary)
    values = {"header": header, "rows": rows, "sections": _sections(summary)}
    return environment.get_template("report.html").render(summary, **values)


def _sections(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Title, note and figures (caption → SVG) of each part of the page that has any."""
    runs = summary["runs"]
    low, high = limits = figures.limits(result for run in runs for result in run["results"])
    colours = f"Colours go from {percent(low)} % (dark) to {percent(high)} % (light)."
    note = f"Row: after learning this task. Column: the score on this task. {colours}"
    sections = []
    for run in runs:
        sections.append({"title": _title(summary, run), "note": note, "figures": _matrices(run, limits)})
    over_time = {"Mean score on the tasks seen": figures.accuracy, "Forgetting": figures.forgetting}
    training = {"Training loss": figures.losses, "Time to learn each task": figures.seconds}
    for title, note, drawings in [
        ("Over time", "", over_time),
        ("Search of the scale", "On validation examples; the filled point was taken.", {"": figures.search}),
        ("Training", "", training),
    ]:
        images = {caption: Markup(image) for caption, draw in drawings.items() if (image := draw(summary))}
        sections.append({"title": title, "note": note, "figures": images})
    return [section for section in sections if section["figures"]]


def _title(summary: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    return "Accuracy matrix" + (f": {run['title']}" if len(summary["runs"]) > 1 else "")


def _matrices(run: Mapping[str, Any], limits: tuple[float, float]) -> dict[str, Markup]:
    # matplotlib has escaped the names in the SVG
    return {result["name"]: Markup(figures.matrix(result, limits)) for result in run["results"]}
