"""The check of the budgets finds a fault of each kind, with its file and line."""

from pathlib import Path

import budgets
import pytest

SOUND = '''"""Add numbers."""


def total(numbers):
    """Return the sum of numbers."""
    # Whole numbers are added exactly.
    result = 0
    for number in numbers:
        result += number
    return result
'''
DENSE = "".join(f"    v{i} = [f(x + {i}) * (a[x] - b[x]) for x in c[1:] if x]\n" for i in range(12))
NESTED = "    pairs = [(x, y) for x in range(3) for y in range(3)]\n"


def tree(folder: Path, text: str = "", *, sound: int = 1, **documents: str) -> Path:
    """Make a checkout of some sound files, and of one that ends with `text`."""
    (folder / "src").mkdir()
    (folder / "docs").mkdir()
    (folder / "src" / "planted.py").write_text(SOUND + text)
    for number in range(sound):
        (folder / "src" / f"sound{number}.py").write_text(SOUND)
    for name, content in documents.items():
        (folder / "docs" / f"{name}.md").write_text(content)
    return folder


def faults(root: Path, capsys: pytest.CaptureFixture) -> list[str]:
    status = budgets.main([str(root)])
    *lines, figures = capsys.readouterr().out.splitlines()
    assert "nodes a line · " in figures
    assert status == (1 if lines else 0)
    return lines


def test_a_sound_tree(tmp_path, capsys):
    assert faults(tree(tmp_path, page="How to add."), capsys) == []


@pytest.mark.parametrize(
    "text, sound, expected",
    [
        (f"\n\ndef f(a, b, c):\n{DENSE}", 1, "13: `f` has "),
        (f"\n\ndef f(a, b, c):\n{DENSE}", 200, "1: the file has "),
        (f"\n\ndef f():\n{NESTED * 11}", 20, "14: a comprehension with two loops (there are 11,"),
        (f"\n\nLONG = '{'x' * 90}'\n", 1, "13: 99 characters ("),
        ("\n\nbare = 1\n" * 50, 0, "1: 1.8 comments in a hundred lines ("),
        ('\n\ndef f():\n    """Of numbers."""\n', 1, "14: a docstring begins “Of numbers.” ("),
        ("\n\nfound = 1\n" * 10, 20, "13: the name `found` (there are 10,"),
        ("\n\nx: Any = 1\n" * 121, 20, "13: the type `Any` (there are 121,"),
        ("\n" * 491, 1, "501: the file has 501 lines"),
        ("\n\n# There are so many.\n", 1, "13: “so many”"),
    ],
)
def test_a_planted_fault(text, sound, expected, tmp_path, capsys):
    lines = faults(tree(tmp_path, text, sound=sound), capsys)
    assert any(line.startswith(f"src/planted.py:{expected}") for line in lines), lines


def test_words_in_the_documentation(tmp_path, capsys):
    (line,) = faults(tree(tmp_path, page="A page.\n\nSo many tasks."), capsys)
    assert line.startswith("docs/page.md:3: “so many”")


def test_an_import_of_any_and_an_empty_tree(tmp_path, capsys):
    text = "\nfrom typing import Any\n" * 121
    assert faults(tree(tmp_path, text, sound=20), capsys) == []
    assert budgets.main([str(tmp_path / "docs")]) == 1


def test_density_counts_no_docstring(tmp_path):
    """Count the assignment (4 nodes), the loop (11) and the return (3) of `total`."""
    path = tree(tmp_path) / "src" / "sound0.py"
    measures = budgets.measure(path)
    assert (measures.nodes, measures.height, measures.docstrings) == (18, 4, 2)
