"""A report's dict → a LaTeX table (package `booktabs`)."""

import re

from perdure.report.markdown import note, table, unfinished
from perdure.report.plain import Summary

SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "–": "--",
    "±": r"$\pm$",
    "λ": r"$\lambda$",
    "·": r"$\cdot$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # In braces: LaTeX would take a bracket after `\\` for an argument.
    "[": "{[}",
    "]": "{]}",
    **{character: "\\" + character for character in "&%$#_{}"},
}


def to_latex(summary: Summary) -> str:
    """Return the table, ready to paste: numbers are right-aligned, and the note is the caption."""
    results = table(summary)
    numbers = len(results.header) - results.texts
    columns = "l" * results.texts + "r" * numbers
    lines = []
    for sentence in unfinished(summary):
        # On one line, or the rest would not be a comment.
        lines.append(f"% {' '.join(sentence.split())}")
    lines += [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped(note(summary))}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _row(results.header),
        r"\midrule",
    ]
    lines += [_row(row) for row in results.rows]
    lines += [
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
        "",
    ]
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return " & ".join(escaped(cell) for cell in cells) + r" \\"


def escaped(text: str) -> str:
    r"""Escape characters that are special in LaTeX.

    Examples
    --------
    >>> print(escaped("50 % of a_b"))
    50 \% of a\_b
    """
    line = " ".join(text.split())
    # One pass over all of them: what is put in for one is never escaped again.
    pattern = "|".join(re.escape(character) for character in SPECIAL)
    return re.sub(pattern, lambda match: SPECIAL[match[0]], line)
