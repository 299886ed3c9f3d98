"""The public face: names, and what the house has agreed on."""

import ast
from pathlib import Path

import perdure

SOURCE = Path(perdure.__file__).parent


def test_all_is_what_is_there_sorted():
    public = {
        name for name, value in vars(perdure).items() if not name.startswith("_") and not hasattr(value, "__path__")
    }
    modules = {path.stem for path in SOURCE.glob("*.py")} | {"benchmarks", "merging", "methods", "report"}
    assert perdure.__all__ == sorted(perdure.__all__) == sorted(public - modules | {"learn", "run"})


def test_every_public_name_is_explained():
    for name in perdure.__all__:
        assert (getattr(perdure, name).__doc__ or "").strip(), name


def test_files_are_short():
    limits = {"methods": 150, "merging": 60}
    for path in SOURCE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= limits.get(path.parent.name, 400), path


def test_commands_are_short():
    tree = ast.parse((SOURCE / "cli.py").read_text())
    for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        body = [
            node for node in function.body if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant)
        ]
        lines = body[-1].end_lineno - body[0].lineno + 1
        assert lines <= 15, f"{function.name} has {lines} lines"
