"""Check that the code can be read at reading speed: its density, lines, comments, names and words.

    budgets.py [ROOT]

Measures each Python file below `ROOT/src`, and searches the documentation for words that read as
translated. Prints the figures of the tree, and whatever exceeds a budget with its file and line;
the exit status is then 1. `make check` runs it.
"""

import argparse
import ast
import io
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
NOT_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}

OBLIQUE = ("Of ", "What ", "How ", "Whether ", "In ", "By ", "Those ", "Where ")
"""Beginnings of docstrings without a subject or an imperative."""

VAGUE = {"found", "wanted", "held"}
"""Names that suit any value; a local says what it holds."""

TRANSLATED = "so many"
DOCUMENTATION = ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "src/**/*.py")


@dataclass(frozen=True)
class Budgets:
    """The largest values that are allowed (of comments the smallest); shares are in percent."""

    density: float = 10
    density_of_a_file: float = 15
    nested: int = 10
    long_lines: float = 3
    comments: float = 4
    oblique: float = 2
    vague: int = 9
    any: int = 120
    lines_of_a_file: int = 500


class Place(NamedTuple):
    path: Path
    line: int
    text: str


class Density(NamedTuple):
    """Syntax nodes per line of a function's body."""

    value: float
    place: Place


@dataclass
class Measures:
    """What was counted in one file, or in all of them.

    Attributes
    ----------
    code
        The number of lines that hold code; docstrings count as code, comments do not.
    nodes, height
        Syntax nodes in the bodies of functions, and their lines of code, without docstrings.
    functions
        The density of each function of at least five lines.
    """

    code: int = 0
    comments: int = 0
    docstrings: int = 0
    nodes: int = 0
    height: int = 0
    functions: list[Density] = field(default_factory=list)
    nested: list[Place] = field(default_factory=list)
    long_lines: list[Place] = field(default_factory=list)
    oblique: list[Place] = field(default_factory=list)
    vague: list[Place] = field(default_factory=list)
    any: list[Place] = field(default_factory=list)

    @property
    def density(self) -> float:
        return self.nodes / max(1, self.height)

    def add(self, other: "Measures") -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def measure(path: Path) -> Measures:
    text = path.read_text(encoding="utf-8")
    measures = Measures()
    code = read_tokens(path, text, measures)
    read_tree(path, ast.parse(text), code, measures)
    lines = text.split("\n")
    for number in sorted(code):
        length = len(lines[number - 1].strip())
        if length > 90:
            measures.long_lines.append(Place(path, number, f"{length} characters"))
    return measures


def read_tokens(path: Path, text: str, measures: Measures) -> set[int]:
    """Count comments and names; return the numbers of the lines that hold code."""
    code = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        line, name = token.start[0], token.string
        if token.type == tokenize.COMMENT:
            measures.comments += 1
        if token.type not in NOT_CODE:
            code.update(range(line, token.end[0] + 1))
        if token.type == tokenize.NAME and name in VAGUE:
            measures.vague.append(Place(path, line, f"the name `{name}`"))
        # An import alone gives no value a type.
        if token.type == tokenize.NAME and name == "Any" and " import " not in token.line:
            measures.any.append(Place(path, line, "the type `Any`"))
    measures.code = len(code)
    return code


def read_tree(path: Path, tree: ast.Module, code: set[int], measures: Measures) -> None:
    """Count docstrings, comprehensions and the nodes of functions."""
    for node in ast.walk(tree):
        if isinstance(node, COMPREHENSIONS) and is_nested(node):
            measures.nested.append(Place(path, node.lineno, "a comprehension with two loops"))
        if not isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)):
            continue
        docstring = ast.get_docstring(node)
        if docstring:
            measures.docstrings += 1
        if docstring and docstring.startswith(OBLIQUE):
            beginning = docstring.splitlines()[0]
            line = node.body[0].lineno
            measures.oblique.append(Place(path, line, f"a docstring begins “{beginning}”"))
        body = node.body[1:] if docstring else node.body
        if not isinstance(node, FUNCTIONS) or not body:
            continue
        nodes = sum(len(list(ast.walk(statement))) for statement in body)
        height = len(code.intersection(range(body[0].lineno, body[-1].end_lineno + 1)))
        measures.nodes += nodes
        measures.height += height
        if height >= 5:
            density = nodes / height
            place = Place(path, node.lineno, f"`{node.name}` has {density:.1f} nodes a line")
            measures.functions.append(Density(density, place))


def is_nested(node: ast.AST) -> bool:
    inner = [other for other in ast.walk(node) if other is not node]
    return len(node.generators) > 1 or any(isinstance(other, COMPREHENSIONS) for other in inner)


def faults_of_files(files: dict[Path, Measures], budgets: Budgets) -> Iterator[Place]:
    """Yield what is over in a single file."""
    for path, measures in files.items():
        # A file with hardly any functions has no density worth a figure.
        if measures.height >= 10 and measures.density > budgets.density_of_a_file:
            text = f"the file has {measures.density:.1f} nodes a line"
            yield Place(path, 1, f"{text}; at most {budgets.density_of_a_file:g}")
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > budgets.lines_of_a_file:
            text = f"the file has {lines} lines; at most {budgets.lines_of_a_file}"
            yield Place(path, budgets.lines_of_a_file + 1, text)


def faults_of_the_tree(files: dict[Path, Measures], budgets: Budgets) -> Iterator[Place]:
    """Yield what there is too much of in all files together, each place of it."""
    tree = total(files)
    if tree.density > budgets.density:
        densest = sorted(tree.functions, reverse=True)[:20]
        places = [function.place for function in densest]
        yield from because(places, f"the tree has {tree.density:.2f}, at most {budgets.density:g}")
    share = percent(tree.comments, tree.code)
    if share < budgets.comments:
        reason = f"the tree has {share:.1f}, at least {budgets.comments:g}"
        yield from because(without_comments(files), reason)
    share = percent(len(tree.long_lines), tree.code)
    if share > budgets.long_lines:
        reason = f"{share:.1f} % of the lines have over 90, at most {budgets.long_lines:g} %"
        yield from because(tree.long_lines, reason)
    share = percent(len(tree.oblique), tree.docstrings)
    if share > budgets.oblique:
        reason = f"{share:.1f} % of the docstrings, at most {budgets.oblique:g} %"
        yield from because(tree.oblique, reason)
    for name in ("nested", "vague", "any"):
        places, most = getattr(tree, name), getattr(budgets, name)
        if len(places) > most:
            yield from because(places, f"there are {len(places)}, at most {most}")


def because(places: Iterable[Place], reason: str) -> Iterator[Place]:
    for place in places:
        yield place._replace(text=f"{place.text} ({reason})")


def without_comments(files: dict[Path, Measures]) -> list[Place]:
    """Return the 20 files that lack the most comments."""
    budget = Budgets().comments / 100
    missing = {path: budget * one.code - one.comments for path, one in files.items()}
    places = []
    for path in sorted(missing, key=missing.get, reverse=True)[:20]:
        share = percent(files[path].comments, files[path].code)
        places.append(Place(path, 1, f"{share:.1f} comments in a hundred lines"))
    return places


def translated(root: Path) -> Iterator[Place]:
    """Yield each line of source or documentation that has the words of a translation."""
    for pattern in DOCUMENTATION:
        for path in sorted(root.glob(pattern)):
            lines = path.read_text(encoding="utf-8").split("\n")
            for number, line in enumerate(lines, start=1):
                if TRANSLATED in line.lower():
                    yield Place(path, number, f"“{TRANSLATED}”: say the number of what")


def total(files: dict[Path, Measures]) -> Measures:
    tree = Measures()
    for measures in files.values():
        tree.add(measures)
    return tree


def percent(part: int, whole: int) -> float:
    return 100 * part / max(1, whole)


def figures(files: dict[Path, Measures]) -> str:
    tree = total(files)
    return " · ".join(
        [
            f"{tree.density:.2f} nodes a line",
            f"{len(tree.nested)} nested comprehensions",
            f"{percent(len(tree.long_lines), tree.code):.1f} % of lines over 90 characters",
            f"{percent(tree.comments, tree.code):.1f} comments in a hundred lines",
            f"{len(tree.oblique)} of {tree.docstrings} docstrings oblique",
            f"{len(tree.vague)} vague names",
            f"{len(tree.any)} times `Any`",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("root", type=Path, nargs="?", default=Path(__file__).parents[1])
    root = parser.parse_args(arguments).root
    files = {path: measure(path) for path in sorted((root / "src").rglob("*.py"))}
    if not files:
        print(f"There is no Python file below {root / 'src'}.")
        return 1
    budgets = Budgets()
    faults = [*faults_of_files(files, budgets), *faults_of_the_tree(files, budgets)]
    faults += translated(root)
    for fault in faults:
        print(f"{fault.path.relative_to(root)}:{fault.line}: {fault.text}")
    print(figures(files))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
