"""A report's dict → a LaTeX table, which needs the package `booktabs`."""

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
    # In braces, because LaTeX would treat a bracket after `\\` as an argument.
    "[": "{[}",
    "]": "{]}",
    **{character: "\\" + character for character in "&%$#_{}"},
}


def to_latex(summary: Summary) -> str:
    """Return the results as a LaTeX table, with the note on how to read them as its caption."""
    results = table(summary)
    numbers = len(results.header) - results.texts
    columns = "l" * results.texts + "r" * numbers
    lines = []
    for sentence in unfinished(summary):
        # On one line, because the rest would not be a comment.
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
    # A single pass over all characters, so that no replacement is escaped again.
    pattern = "|".join(re.escape(character) for character in SPECIAL)
    return re.sub(pattern, lambda match: SPECIAL[match[0]], line)
