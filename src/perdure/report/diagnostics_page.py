"""What `perdure diagnose` has found → sections of the page: figures, each with the numbers that it was drawn from."""

from collections.abc import Mapping
from typing import Any

from perdure import registry
from perdure.report.diagnostics.parts.declaration import Diagnostic
from perdure.report.diagnostics.parts.pictures import TASKS
from perdure.report.picture import Section


def sections(diagnostics: Mapping[str, Any]) -> list[Section]:
    """A section for each part, with a sentence on how it is read; one that was left out says why.

    Parameters
    ----------
    diagnostics
        As `perdure.runs.layout.diagnostics` reads them; of an empty one there are no sections.
    """
    found, tasks = [], diagnostics.get("tasks", [])
    for name, diagnostic in registry.diagnostics().items():
        if name in diagnostics.get("parts", {}):
            part = diagnostics["parts"][name]
            about = f"{part['reading']} {_about(diagnostics, diagnostic)}"
            found.append(Section(diagnostic.title, about, diagnostic.pictures(part, tasks)))
        elif name in diagnostics.get("left_out", {}):
            found.append(Section(diagnostic.title, f"Left out. {diagnostics['left_out'][name]}"))
    return found


def _about(diagnostics: Mapping[str, Any], diagnostic: Diagnostic) -> str:
    """What a part was computed with, and what of it is not drawn."""
    count = len(diagnostics["tasks"])
    most = f", at most {diagnostics['examples']} examples of each task and split"
    examples = most if diagnostic.reads_examples else ""
    capped = (
        f" Drawn are the first {TASKS} of {count} tasks; all are in diagnostics.json."
        if count > TASKS
        else ""
    )
    return f"(Rule {diagnostics['rule']}{examples}.){capped}"
