"""The results of `perdure diagnose` → sections of the page: figures with their numbers."""

from perdure import registry
from perdure.report.diagnostics.parts.declaration import Diagnostic
from perdure.report.diagnostics.parts.pictures import TASKS
from perdure.report.picture import Section
from perdure.report.plain import Record


def sections(diagnostics: Record) -> list[Section]:
    """Return a section for each part, with a sentence on how to read it, or why it was left out.

    Parameters
    ----------
    diagnostics
        As `perdure.runs.layout.diagnostics` reads them; without any there are no sections.
    """
    parts = diagnostics.get("parts", {})
    left_out = diagnostics.get("left_out", {})
    tasks = diagnostics.get("tasks", [])
    made = []
    # In the order of the page. A part that is in neither was not asked for.
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
    """Say how a part was computed, and which tasks are not drawn."""
    text = f"(Rule {diagnostics['rule']}"
    if diagnostic.reads_examples:
        text += f", at most {diagnostics['examples']} examples of each task and split"
    text += ".)"
    count = len(diagnostics["tasks"])
    if count > TASKS:
        text += f" Drawn are the first {TASKS} of {count} tasks; all are in diagnostics.json."
    return text
