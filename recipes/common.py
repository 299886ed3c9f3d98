"""What the scripts beside it share: making a run, measuring it by many rules, writing a table."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from perdure import Recipe, Run
from perdure.evaluation.measure import measure
from perdure.runs import layout, story
from perdure.runs.extend import rule_of
from perdure.runs.job import Plan
from perdure.runs.resume import restored
from perdure.runs.state import read
from perdure.runs.writer import writing


def run_plan(plan: Plan, recipe: Recipe, folder: Path) -> Run:
    """Learn the tasks of a plan, whose stream and backbone other runs may share."""
    story.run(replace(plan, recipe=recipe.resolved(plan)), folder)
    return Run(folder)


def stored_bytes(run: Run) -> int:
    """Return the bytes of all task folders of a run."""
    manifests = [layout.manifest(place) for place in run.task_folders().values()]
    return sum(file["size"] for files in manifests for file in files.values())


def measure_all(results: Run, rules: Sequence[tuple[str, list[str]]]) -> None:
    """Measure the rules that have not been measured yet, after the last task.

    The model and the examples are loaded once for all of them.
    """
    recipe = Recipe.parse(results.recipe)
    stream, backbone = recipe.make_stream(), recipe.make_backbone()
    state = read(results.folder)
    system = restored(state, backbone, recipe.make_rule())
    done = {row["rule"] for row in results.scores()}
    for name, settings in rules:
        rule = rule_of(state, name, settings)
        if rule and rule.label not in done:
            measurement = measure(
                system.with_rule(rule), stream, recipe.make_evaluation(), recipe.seed
            )
            with writing(results.folder) as writer:
                writer.measurement(measurement, own=False)


def rows_of(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table, or none if it was not written yet."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_over(
    path: Path, rows: Sequence[Mapping[str, str]], key: Sequence[str]
) -> list[dict[str, str]]:
    """Write rows into a table, each in place of the earlier one with the same values in `key`.

    Returns all rows: the earlier ones in their order, then those that are new.
    """
    table: dict[tuple[str, ...], Mapping[str, str]] = {}
    for row in [*rows_of(path), *rows]:
        table[tuple(str(row[name]) for name in key)] = row
    # Some rows may lack a column, such as the time where it was not measured.
    columns = list(dict.fromkeys(name for row in table.values() for name in row))
    whole = [{name: row.get(name, "") for name in columns} for row in table.values()]
    write(path, whole)
    return whole


def write(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write a table as CSV, with the first row's keys as its columns."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
