"""A report's dict → a self-contained HTML page, which needs no network and no other files."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from perdure.errors import OutputError
from perdure.report import (
    calibration,
    classes,
    costs,
    diagnostics_page,
    figures,
    general,
    heat_map,
    sweeps,
    unknown,
)
from perdure.report.markdown import note, percent, table
from perdure.report.picture import Picture, Section
from perdure.report.plain import Record, Summary
from perdure.report.series import Way, ways
from perdure.report.summary import summarise
from perdure.runs.sources import Sources
from perdure.storage import files

FEW = 4
"""The maximum number of runs that are shown with all their rules."""
CELLS = 120_000
"""The maximum number of table cells on a page; with more, it takes too long to open."""


def report(
    folders: Sequence[str | Path],
    output: str | Path,
    to_text: Callable[[Summary], str] | None = None,
) -> Record:
    """Write a report on one run, or on several runs side by side.

    Parameters
    ----------
    folders
        The run folders; a folder of a sweep stands for all runs in it. For a run that is
        damaged or in progress, the report shows what can be read.
    output
        The file to write; an existing one is replaced.
    to_text
        The function that renders the numbers as text; the default produces an HTML page.

    Returns
    -------
    dict
        The numbers in the report, as returned by `perdure.report.summary.summarise`.

    Raises
    ------
    RunError
        A folder is not a run, or a task was forgotten while the report was generated. In
        that case nothing is written.
    OutputError
        The report cannot be written.
    """
    # Recorded before anything is read, so that `write` notices a task that is forgotten meanwhile.
    sources = [Sources.readable(folder) for folder in sweeps.runs_of(folders)]
    summary = summarise(folders)
    text = (to_text or to_html)(summary)
    write(output, text, sources)
    return summary


def write(output: str | Path, text: str, sources: Sequence[Sources]) -> None:
    """Write the text of a report, if all of its tasks still exist.

    Raises
    ------
    OutputError
        The file cannot be written.
    RunError
        A task no longer exists.
    """

    def check() -> None:
        for run in sources:
            run.check()

    output = Path(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"`{output.parent}` cannot be created: {error.strerror}.") from error
    files.write(output, text, check=check)


def to_html(summary: Summary) -> str:
    """Return the HTML page for the dict of a report."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        # A misspelt name in the template is an error rather than an empty string.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["yaml"] = _yaml
    environment.filters["svg"] = Markup  # names in it were escaped when it was drawn
    environment.filters["cell"] = _cell
    titles = [group["title"] for group in summary["groups"]]
    title = ", ".join(titles)
    if len(titles) > FEW:
        title = f"{len(summary['runs'])} runs"
    symbols = {metric["title"]: metric["symbol"] for metric in summary["metrics"].values()}
    template = environment.get_template("report.html")
    return template.render(
        summary,
        title=title,
        results=table(summary),
        symbols=symbols,
        note=note(summary),
        # Read by `perdure forget`, which has to know the pages that mention a task.
        made_of=[json.dumps(_made_of(run)) for run in summary["runs"]],
        sections=_fitting(_sections(summary)),
    )


def _made_of(run: Record) -> dict[str, str]:
    """Return the SHA-256 of the manifest of each task that a run had when it was read."""
    return {task["name"]: task["manifest"] for task in run["tasks"] if task["manifest"]}


def _yaml(value: object) -> str:
    # In the order of the recipe, and with all letters unescaped.
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


def _cell(value: object) -> str:
    """Format a table cell as text, with a readable number of digits."""
    if value is None:
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _sections(summary: Summary) -> list[Section]:
    sections = [
        _over_the_stream(summary),
        _stability(summary),
        _matrices(summary),
        _classes(summary),
        calibration.section(summary),
        general.section(summary),
        Section(
            title="Search of the scale",
            note="Measured on validation examples; the filled point is the chosen scale.",
            pictures=_drawn([costs.search(summary)]),
        ),
        Section(
            title="Training",
            pictures=_drawn([figures.losses(summary)]),
        ),
        Section(
            title="Cost",
            note="Trained: the maximum number of parameters over all tasks.",
            pictures=_drawn([costs.cost(summary)]),
        ),
    ]
    shown = [section for section in sections if section.pictures]
    # A diagnostic that was left out has no pictures, but its section says why.
    diagnostics = _diagnostics(summary)
    # Behind the diagnostics, which end with the reliability of the task posterior.
    outside = unknown.section(summary)
    return [*shown, *diagnostics, *([outside] if outside.pictures else [])]


def _several_groups(summary: Summary) -> bool:
    return len(summary["groups"]) > 1


def _figures_of_ways(summary: Summary) -> list[list[Way]]:
    """Return the `task_id`s, grouped by the figure in which they are drawn.

    With several groups of runs, each figure has only one `task_id`, so that its lines can
    represent the groups.
    """
    known = ways(summary)
    return [[way] for way in known] if _several_groups(summary) else [known]


def _over_the_stream(summary: Summary) -> Section:
    together = _figures_of_ways(summary)
    pictures = [figures.seen(summary, known) for known in together]
    pictures += [figures.tasks(summary, known) for known in together]
    note = ""
    if _several_groups(summary):
        note = "A colour represents the same run and rule on the whole page."
    return Section("Over the stream", note, _drawn(pictures))


def _stability(summary: Summary) -> Section:
    pictures = [figures.plane(summary, known) for known in _figures_of_ways(summary)]
    pictures.append(figures.forgetting(summary))
    return Section(
        title="Stability and plasticity",
        note="Runs further to the right learn new tasks better; runs further down forget less.",
        pictures=_drawn(pictures),
    )


def _diagnostics(summary: Summary) -> list[Section]:
    diagnosed = [run for run in summary["runs"] if run["diagnostics"]]
    if len(diagnosed) > FEW:
        note = f"{len(diagnosed)} runs were diagnosed: see the report of each."
        return [Section("Diagnostics", note)]
    several = len(summary["runs"]) > 1
    sections = []
    for run in diagnosed:
        for section in diagnostics_page.sections(run["diagnostics"]):
            title = f"{section.title}: {run['title']}" if several else section.title
            sections.append(replace(section, title=title, folded=several))
    return sections


def _drawn(pictures: Iterable[Picture | None]) -> list[Picture]:
    return [picture for picture in pictures if picture]


def _shown(summary: Summary) -> list[tuple[Record, Record]]:
    """Return the results that are shown individually, each together with its run.

    With many runs, these are only the results of each run's own rule for the main `task_id`.
    """
    few = len(summary["runs"]) <= FEW
    first_way = [key for key, _ in ways(summary)][:1]
    pairs = []
    for run in summary["runs"]:
        for result in run["results"]:
            main = result["rule"] == run["rule"] and [result["task_id"]] == first_way
            if few or main:
                pairs.append((run, result))
    return pairs


def _matrices(summary: Summary) -> Section:
    shown = _shown(summary)
    # The same colour scale for all of them, so that they can be compared.
    limits = heat_map.limits([result for _, result in shown])
    low, high = limits
    note = "Row: after learning this task. Column: the score on this task."
    note += f" Dark is {percent(low)} %, light {percent(high)} %."
    if any(_has_gaps(result["matrix"]) for _, result in shown):
        note += " A blank below the diagonal was not measured."
    several = len(summary["runs"]) > 1
    pictures = []
    for run, result in shown:
        picture = heat_map.matrix(result, limits)
        pictures.append(_titled(picture, run, several))
    usual = all(result["metric"] == "accuracy" for _, result in shown)
    word = "Accuracy" if usual else "Score"
    title = f"{word} matrix" if len(pictures) == 1 else f"{word} matrices"
    return Section(
        title,
        note,
        pictures,
        folded=several,
    )


def _has_gaps(matrix: Sequence[Sequence[float | None]]) -> bool:
    """Return True if the score of a task that was already learned is missing."""
    return any(None in row[: step + 1] for step, row in enumerate(matrix))


def _titled(picture: Picture, run: Record, several: bool) -> Picture:
    """Put the title of the run before the caption of a picture, if there are several runs."""
    if not several:
        return picture
    return replace(picture, caption=f"{run['title']} · {picture.caption}")


def _classes(summary: Summary) -> Section:
    """Return the section on the classes of each run, for the first `task_id` that was measured."""
    several = len(summary["runs"]) > 1
    pictures = []
    if len(summary["runs"]) <= FEW:
        for run in summary["runs"]:
            measured = [way for way in ways(summary) if way[0] in run["classes"]]
            if not measured:
                continue
            task_id, known = measured[0]
            picture = classes.picture(run, task_id, known)
            if picture:
                pictures.append(_titled(picture, run, several))
    note = (
        "Each row adds up to 100 %. The table lists the recall of each class, and the class that "
        "was most often given instead."
    )
    return Section(
        "Classes",
        note,
        pictures,
        folded=several,
    )


def _fitting(sections: Sequence[Section]) -> list[Section]:
    """Drop the largest tables, if all of them together are too large for a page."""
    # Pictures contain lists, which cannot be hashed, so they are identified by `id`.
    sizes: dict[int, int] = {}
    for section in sections:
        for picture in section.pictures:
            sizes[id(picture)] = len(picture.header) * len(picture.rows)
    room = CELLS
    kept = set[int]()
    # The smallest first, so that as many tables as possible are kept.
    for key in sorted(sizes, key=sizes.__getitem__):
        room -= sizes[key]
        if room >= 0:
            kept.add(key)
    fitting = []
    for section in sections:
        pictures = []
        for picture in section.pictures:
            fits = id(picture) in kept
            pictures.append(picture if fits else replace(picture, rows=[]))
        fitting.append(replace(section, pictures=pictures))
    return fitting
