"""The public face: names, and what the house has agreed on."""

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

import perdure
from perdure.cli import app
from perdure.evaluation import metrics

SOURCE = Path(perdure.__file__).parent


def test_all_is_what_is_there_sorted():
    homes = {name: home for home, names in perdure._HOMES.items() for name in names}
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    imported = [
        node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 0
    ]
    ours = {
        alias.name: node.module
        for node in imported
        if "perdure." in node.module
        for alias in node.names
    }
    assert perdure.__all__ == sorted(perdure.__all__) == sorted(homes)
    assert {
        name: f"perdure.{home}" for name, home in homes.items()
    } == ours  # what pyright reads is what happens


def test_importing_is_cheap():
    code = "import sys, perdure; print({'torch', 'peft', 'transformers'} & set(sys.modules), "
    code += "getattr(perdure, 'nothing', None), perdure.names.__module__)"
    source = {"PYTHONPATH": str(SOURCE.parent)}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | source
    )
    assert out.stdout.split() == ["set()", "None", "perdure.registry"], out.stderr


def test_annotations_are_checked_in_tests():
    """In whatever process they run, if they give the shape of something."""
    assert metrics.average_accuracy(np.eye(2)) == 0.5
    with pytest.raises(jaxtyping.TypeCheckError):
        metrics.average_accuracy(np.zeros(2))


def test_every_public_name_is_explained():
    for name in perdure.__all__:
        assert (getattr(perdure, name).__doc__ or "").strip(), name


def test_files_are_short():
    limits = {"methods": 200, "rules": 80}
    for path in SOURCE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= limits.get(path.parent.name, 500), path


def test_commands_are_short():
    commands = [info.callback for info in app.app.registered_commands]
    for command in commands:
        function = ast.parse(inspect.getsource(command)).body[0]
        body = [
            node
            for node in function.body
            if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant)
        ]
        lines = body[-1].end_lineno - body[0].lineno + 1
        assert lines <= 15, f"{function.name} has {lines} lines"
