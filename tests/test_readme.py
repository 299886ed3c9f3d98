"""The README's promises: its Python runs and prints what it says, its YAML is a recipe, its tables are complete."""

import doctest
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from perdure import Recipe, names, read_tasks

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.real
def test_python(demo_cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, tried = doctest.testfile(str(README), module_relative=False, optionflags=options)
    assert tried >= 8 and failed == 0


def test_five_lines_of_yaml(tmp_path, monkeypatch):
    from test_data import ROWS, write

    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```yaml\n(.*?)```", README.read_text(), re.S)
    assert len(block.splitlines()) == 5
    recipe = Recipe.parse(yaml.safe_load(block))
    for entry in recipe.stream:
        write(tmp_path / entry["data"], ROWS, (entry["text"], entry["label"]))
        assert read_tasks(**entry)
    assert len(recipe.make_stream()) == 2 and recipe.make_method() and recipe.make_rule()


def test_the_methods_page():
    """Its YAML is of recipes, and its table names every method."""
    text = (README.parent / "docs/methods.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.S)
    found = [Recipe.parse({"stream": "demo", "backbone": "minilm", **yaml.safe_load(block)}) for block in blocks]
    assert [recipe.make_method().trains and bool(recipe.make_training()) for recipe in found] == [True, True]
    for name in names("method"):
        assert f"`{name}`" in text, name


def test_the_tables_name_everything():
    text = README.read_text()
    for kind in ("method", "rule", "benchmark"):
        for name in names(kind):
            assert f"`{name}`" in text, f"{kind} `{name}` is not in the README"


def test_its_files_are_there():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target


def test_a_run_cannot_be_lost(pico, tmp_path, monkeypatch, capsys):
    """The commands of that section, one after the other."""
    from runs import recipe
    from test_data import ROWS, write

    from perdure import Run, cli

    monkeypatch.chdir(tmp_path)
    section = README.read_text().split("## A run cannot be lost\n")[1].split("\n## ")[0]
    commands = [shlex.split(line, comments=True) for line in section.splitlines() if line.startswith("    perdure ")]
    assert [command[1] for command in commands] == ["run", "learn", "forget", "evaluate", "verify"]
    for name, columns in {
        "support": ("message", "queue"),
        "reviews": ("body", "stars"),
        "refunds": ("message", "queue"),
    }.items():
        write(tmp_path / f"{name}.csv", ROWS, columns)
    entries = [{"data": f"{name}.csv", "text": text, "label": label}
               for name, text, label in (("support", "message", "queue"), ("reviews", "body", "stars"))]  # fmt: skip
    Recipe.parse(recipe(tmp_path, entries, pico("bert"), training={"epochs": 1})).run("runs/mine")
    for command in commands:
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code, (command, capsys.readouterr())
    assert Run("runs/mine").tasks == ["support", "refunds"]
