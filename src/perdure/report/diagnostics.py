"""What `perdure diagnose` found → sections of a report."""

from collections.abc import Mapping
from typing import Any

from perdure.report.picture import Section


def sections(diagnostics: Mapping[str, Any]) -> list[Section]:
    """One for each part; none if it was not asked."""
    return []
