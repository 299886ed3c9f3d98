"""Which task is found for an input, and how well confidence is calibrated: shown."""

from collections.abc import Sequence

from perdure.report.diagnostics.parts import figures
from perdure.report.diagnostics.parts.declaration import Diagnostic, Part, Table
from perdure.report.diagnostics.parts.numbers import array, none, shares
from perdure.report.diagnostics.parts.pictures import cells, drawn, square
from perdure.report.markdown import percent
from perdure.report.picture import Picture

READING = (
    "Row: the true task, column: the task that was found. A calibration error of 0 means that of the "
    "answers given with confidence p, a share p is right."
)


def table(part: Part, tasks: Sequence[str]) -> Table:
    rows = []
    for i, row in enumerate(shares(part["confusion"])):
        others = [j for j in range(len(tasks)) if j != i and row[j] > 0]
        taken = max(others, key=lambda j, row=row: row[j], default=None)
        rows.append(
            [
                tasks[i],
                percent(none(row[i])),
                "" if taken is None else f"{percent(row[taken])} {tasks[taken]}",
            ]
        )
    errors = f"task {percent(part['task_ece'])}, class {percent(part['class_ece'])}"
    return Table(
        f"Task found (%); calibration error: {errors}",
        ["true task", "found", "most often taken for"],
        rows,
        texts=("most often taken for",),
    )


def pictures(part: Part, tasks: Sequence[str]) -> list[Picture]:
    confusion = shares(part["confusion"])
    shown = [
        square(
            "True task (row) × task found, % of the row",
            confusion,
            tasks,
            limits=(0.0, 1.0),
            percent=True,
        )
    ]
    for kind, label in {"task": "p(task | x)", "class": "p(class | x)"}.items():
        bins, error = array(part[f"{kind}_bins"]), part[f"{kind}_ece"]
        caption = f"Reliability of {label}" + (
            "" if error is None else f": calibration error {100 * error:.1f} %"
        )
        header = ["from", "to", "examples", "confidence", "right"]
        svg = figures.reliability(bins, f"confidence, {label}, %")
        shown.append(Picture(caption, svg, header, cells(bins)))
    return drawn(shown)


DIAGNOSTIC = Diagnostic(
    position=5,
    title="The task posterior",
    reading=READING,
    axes={
        "confusion": "tt",
        **dict.fromkeys(("task_ece", "class_ece"), ""),
        **dict.fromkeys(("task_bins", "class_bins"), "bc"),
    },
    table=table,
    pictures=pictures,
    reads_examples=True,
)
