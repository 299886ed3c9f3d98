"""What is printed on terminals of any width: words are folded, numbers never cut."""

import io
import re

import pytest
from rich.console import Console

from perdure.cli import listing
from perdure.report import terminal
from perdure.report.terminal_table import print_table

WIDTHS = [20, 40, 57, 80, 200]
HEADER = ["task", "‖ΔW‖", "cosine", "greatest with", "sign conflict"]
ROWS = [
    ["fruit", "1.954", "−0.08", "−0.17 colour", "52.7"],
    [
        "a_task_with_a_name_that_is_longer_than_a_narrow_line",
        "12.782",
        "+0.11",
        "−0.17 another_long_name",
        "50.0 ± 2.1",
    ],
    ["", "–", "0.00", "", "100.0"],
]


def console(width: int) -> Console:
    return Console(file=io.StringIO(), width=width, color_system=None)


def numbers(text: str) -> list[str]:
    return sorted(re.findall(r"[−+]?\d+\.\d+", text))


@pytest.mark.parametrize("width", WIDTHS)
def test_a_table_never_cuts_a_number(width):
    screen = console(width)
    print_table(screen, HEADER, ROWS, texts=(0, 3), title="Task vectors")
    out = screen.file.getvalue()
    assert max(map(len, out.splitlines())) <= width and "…" not in out
    assert numbers(out) == numbers(str(ROWS))
    letters = re.sub(r"\s", "", out)
    assert "anotherlongname" in letters.replace("_", "") or width < 80


@pytest.mark.parametrize("width", [20, 40])
def test_where_a_table_has_no_room_each_row_is_a_block(width):
    screen = console(width)
    print_table(
        screen,
        ["after", "apples", "a_longer_name_than_the_line", "c"],
        [["pears", "94.7", "68.0", "1.0"]],
    )
    lines = screen.file.getvalue().splitlines()
    assert lines[0] == "pears" and numbers("\n".join(lines)) == ["1.0", "68.0", "94.7"]
    assert all(line.startswith("  ") for line in lines[1:])


def test_what_fits_is_a_table_of_one_line_a_row():
    screen = console(80)
    print_table(screen, HEADER, [ROWS[0]], texts=(0, 3))
    lines = [line.split() for line in screen.file.getvalue().splitlines()]
    assert [" ".join(line) for line in lines] == [" ".join(HEADER), " ".join(ROWS[0])]


def test_a_long_rule_is_folded_before_its_settings():
    screen = console(38)
    print_table(screen, ["rule", "given"], [["task_arithmetic(scale=1/n)", "80.7 (2 of 3)"]])
    lines = [line.split("  ")[0] for line in screen.file.getvalue().splitlines()]
    assert lines == ["rule", "task_arithmetic", "(scale=1/n)"]


def test_cells_are_text():
    screen = console(80)
    print_table(screen, ["[red]a", "b"], [["\x1b[2J[bold]x", "1.0"]], title="\x1b[31mt")
    out = screen.file.getvalue()
    assert "\x1b" not in out and "\\x1b[2J[bold]x" in out and "[red]a" in out


DOCSTRING = """Do one thing, and say so in a sentence that is longer than a narrow terminal is wide.

Parameters
----------
rank, alpha
    The first words of a description that was folded by hand
    in the source, at another width.
scale
    Short.
"""


@pytest.mark.parametrize("width", [40, 80])
def test_prose_is_folded_between_words(width):
    screen = console(width)
    listing.prose(DOCSTRING, screen)
    out = screen.file.getvalue()
    assert max(map(len, out.splitlines())) <= width
    assert out.split() == DOCSTRING.split()
    lines = out.splitlines()
    assert (
        "Parameters" in lines
        and "----------" in lines
        and "rank, alpha" in lines
        and "    Short." in lines
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_examples_in_prose_keep_their_lines(width):
    screen = console(width)
    listing.prose("Add.\n\nExamples\n--------\n>>> a = 1\n>>> a + 1\n2\n\nThe end\nof it.", screen)
    lines = screen.file.getvalue().splitlines()
    start = lines.index(">>> a = 1")
    assert lines[start : start + 5] == [">>> a = 1", ">>> a + 1", "2", "", "The end of it."]


@pytest.mark.parametrize("width", [40, 80])
def test_a_title_may_be_wider_than_its_listing(width):
    screen = console(width)
    listing.listing("\n2 trials on 2 tasks (accuracy, %)", [("66.7", "[rank]=8")], screen)
    lines = [line.rstrip() for line in screen.file.getvalue().splitlines()]
    assert lines == ["", "2 trials on 2 tasks (accuracy, %)", "66.7  [rank]=8"]


def summary(metrics: dict) -> dict:
    """The least that is shown of a run."""
    from perdure.report.summary import _metric

    result = {
        "rule": "task_arithmetic(scale=0.3, density=0.25)",
        "known": "not known",
        "task_id": "none",
        "calibration": [],
        "metric": "accuracy",
        "metrics": metrics,
        "examples": None,
        "standard_error": None,
        "tasks": [],
        "scores": [],
    }
    run = {
        "title": "run",
        "sentence": "3 tasks.",
        "status": "",
        "problems": [],
        "results": [result | {"matrix": []}],
        "rule": "task_arithmetic",
        "tasks": [],
    }
    spread = {name: {"mean": value, "sd": None, "n": 1, "of": 1} for name, value in metrics.items()}
    group = {"title": "run", "runs": [0], "results": [result | {"metrics": spread}]}
    return {"runs": [run], "groups": [group], "metrics": {name: _metric(name) for name in metrics}}


@pytest.mark.parametrize("width", WIDTHS)
def test_the_scores_of_a_run_are_whole(width):
    screen = console(width)
    values = {"average_accuracy": 0.667, "backward_transfer": -0.25, "forgetting": 0.333}
    terminal.show(summary(values), screen)
    out = screen.file.getvalue()
    assert {"66.7", "−25.0", "33.3"} <= set(re.findall(r"[−+]?\d+\.\d(?!\d)", out))
    assert max(map(len, out.splitlines())) <= width and "…" not in out
