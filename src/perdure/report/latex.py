"""A report's dict → a LaTeX table (packages `booktabs`)."""

import re
from collections.abc import Mapping
from typing import Any

from perdure.report.markdown import note, table, unfinished

SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "–": "--",
    "±": r"$\pm$", "λ": r"$\lambda$", "·": r"$\cdot$", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "[": "{[}", "]": "{]}",
    **{character: "\\" + character for character in "&%$#_{}"},
}  # fmt: skip


def to_latex(summary: Mapping[str, Any]) -> str:
    """The table, to be pasted: metrics are right-aligned, and what is in common stands in the caption."""
    results = table(summary)
    numbers = len(results.header) - results.texts
    lines = [
        " & ".join(escaped(cell) for cell in row) + r" \\"
        for row in [results.header, *results.rows]
    ]
    return "\n".join([
        *(f"% {' '.join(said.split())}" for said in unfinished(summary)),
        r"\begin{table}", r"\centering", rf"\caption{{{escaped(note(summary))}}}",
        rf"\begin{{tabular}}{{{'l' * results.texts}{'r' * numbers}}}", r"\toprule", lines[0], r"\midrule",
        *lines[1:], r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
    ])  # fmt: skip


def escaped(text: str) -> str:
    r"""Text with what LaTeX reads as commands escaped.

    Examples
    --------
    >>> print(escaped("50 % of a_b"))
    50 \% of a\_b
    """
    one = " ".join(text.split())
    return re.sub("|".join(map(re.escape, SPECIAL)), lambda found: SPECIAL[found[0]], one)
