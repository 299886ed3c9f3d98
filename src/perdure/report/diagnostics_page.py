"""Results of `perdure diagnose` → sections of the page, with figures and their numbers."""

from perdure import registry
from perdure.report.diagnostics.parts.declaration import Diagnostic
from perdure.report.diagnostics.parts.pictures import TASKS
from perdure.report.picture import Section
from perdure.report.plain import Record


def sections(diagnostics: Record) -> list[Section]:
    """Return a section for each diagnostic, which says how to read it, or why it was left out.

    Parameters
    ----------
    diagnostics
        The results as `perdure.runs.derived.diagnostics` returns them; empty if there are none.
    """
    parts = diagnostics.get("parts", {})
    left_out = diagnostics.get("left_out", {})
    tasks = diagnostics.get("tasks", [])
    made = []
    # In the order of the page. A diagnostic that is in neither was not requested.
    for name, diagnostic in registry.diagnostics().items():
        if name in parts:
            numbers = parts[name]
            note = f"{numbers['reading']} {_about(diagnostics, diagnostic)}"
            pictures = diagnostic.pictures(numbers, tasks)
            made.append(Section(diagnostic.title, note, pictures))
        elif name in left_out:
            made.append(Section(diagnostic.title, f"Left out. {left_out[name]}"))
    return made


def _about(diagnostics: Record, diagnostic: Diagnostic) -> str:
    """Return a note on how a diagnostic was computed, and on how many of the tasks are drawn."""
    text = f"(Rule {diagnostics['rule']}"
    if diagnostic.reads_examples:
        text += f", at most {diagnostics['examples']} examples of each task and split"
    text += ".)"
    count = len(diagnostics["tasks"])
    if count > TASKS:
        text += f" Only the first {TASKS} of {count} tasks are drawn; all are in diagnostics.json."
    return text
