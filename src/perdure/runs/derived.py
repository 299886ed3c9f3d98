"""Read the derived files of a run folder, which can be measured again if they are deleted.

answers.json       counts of the answers, and how unknown inputs were told, as last measured
diagnostics.json   the results of `perdure diagnose`
"""

from pathlib import Path

from perdure.errors import RunError
from perdure.runs import old_names, schema
from perdure.runs.layout import Content, check, reading
from perdure.storage.files import read_json

Answers = dict[str, dict[str, dict[str, dict[str, int]]]]
"""Counts of answers, by `task_id`, task, true class and predicted class."""


def answers(folder: Path, *, rule: str | None = None, step: int | None = None) -> Answers:
    """Return counts of the answers to the test examples, as last measured with the run's own rule.

    Parameters
    ----------
    rule, step
        If given, the result is empty if the counts were made with another rule or after
        another step.

    Raises
    ------
    RunError
        The file is damaged.
    """
    path = folder / "answers.json"
    with reading(path):
        by_way = _answers(path, rule, step).answers
        return {old_names.task_id(way): of_way for way, of_way in by_way.items()}


def caught(
    folder: Path, *, rule: str | None = None, step: int | None = None
) -> dict[str, list[float]]:
    """Return the shares of unknown inputs that were caught, by the name of the score.

    There are 101 shares for each score: those caught where 0, 1, …, 100 % of the known
    inputs are kept. The result is empty if they were not measured.

    Parameters
    ----------
    rule, step
        As for `answers`.

    Raises
    ------
    RunError
        The file is damaged.
    """
    path = folder / "answers.json"
    with reading(path):
        return _answers(path, rule, step).caught or {}


def _answers(path: Path, rule: str | None, step: int | None) -> schema.Answers:
    """Return the content of answers.json; empty if it is missing, or of another rule or step."""
    if not path.exists():
        return schema.Answers(answers={})
    values = read_json(path)
    if rule is not None and (values.get("rule"), values.get("step")) != (rule, step):
        return schema.Answers(answers={})
    return check(path, schema.Answers, values)


def diagnostics(folder: Path) -> Content:
    """Return the results of `perdure diagnose`; empty if there are none.

    The keys are described in docs/run-folder.md.

    Raises
    ------
    RunError
        The file is damaged, or has an unknown format.
    """
    path = folder / "diagnostics.json"
    with reading(path):
        if not path.exists():
            return {}
        values = read_json(path)
        if values.get("format") != 1:
            number = str(values.get("format"))[:100]
            raise RunError(
                f"`{path}` has format {number}, but only format 1 can be read. "
                "Recreate it with `perdure diagnose`."
            )
        check(path, schema.Diagnostics, values)
        return values
