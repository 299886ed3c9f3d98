"""A report's dict → one HTML page that needs nothing else: no network, no scripts."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from perdure.report import figures
from perdure.report.markdown import percent, table
from perdure.report.summary import summarize


def write_report(folders: Sequence[str | Path], output: str | Path) -> Path:
    """Write the page of one run, or of several side by side.

    Parameters
    ----------
    folders
        The run folders.
    output
        The HTML file; one that is there is replaced.

    Raises
    ------
    RunError
        A folder is not a run, or is damaged.
    """
    page = to_html(summarize(folders))
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    temporary.write_text(page, encoding="utf-8")
    return temporary.replace(output)


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
    """Title, note and figures (caption, SVG) of each part of the page that has any."""
    runs = summary["runs"]
    low, high = limits = figures.limits(result for run in runs for result in run["results"])
    note = f"Row: after this task. Column: score on this task. {percent(low)} % is dark, {percent(high)} % light."
    sections = [(_title(summary, run), note, _matrices(run, limits)) for run in runs]
    over_time = {"Mean score on the tasks seen": figures.accuracy, "Forgetting": figures.forgetting}
    training = {"Training loss": figures.losses, "Time to learn each task": figures.seconds}
    for title, note, drawings in [
        ("Over time", "", over_time),
        ("Search of the scale", "On validation examples; the filled point was taken.", {"": figures.search}),
        ("Training", "", training),
    ]:
        sections.append((title, note, {caption: draw(summary) for caption, draw in drawings.items()}))
    return [
        {"title": title, "note": note, "figures": f}
        for title, note, images in sections
        if (f := _drawn(images))
    ]


def _title(summary: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    return "Accuracy matrix" + (f": {run['title']}" if len(summary["runs"]) > 1 else "")


def _matrices(run: Mapping[str, Any], limits: tuple[float, float]) -> dict[str, str | None]:
    return {result["name"]: figures.matrix(result, limits) for result in run["results"]}


def _drawn(images: Mapping[str, str | None]) -> dict[str, Markup]:
    """The images that there are, as what needs no escaping: matplotlib has escaped the names in them."""
    return {caption: Markup(image) for caption, image in images.items() if image}
