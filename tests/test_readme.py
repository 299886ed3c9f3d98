"""The README's promises: its Python prints what it says, its recipe can be run,
its tables are complete.

Its commands are run, and its links followed, as those of the other pages: test_docs.
"""

import doctest
import re
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
    from tables import ROWS, write

    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```yaml\n(.*?)```", README.read_text(), re.S)
    assert len(block.splitlines()) == 5
    recipe = Recipe.parse(yaml.safe_load(block))
    for entry in recipe.stream:
        write(tmp_path / entry["data"], ROWS, (entry["text"], entry["label"]))
        assert read_tasks(**entry)
    assert len(recipe.make_stream()) == 2 and recipe.make_method() and recipe.make_rule()


def test_the_methods_page():
    """Its table names every method."""
    text = (README.parent / "docs/methods.md").read_text()
    for name in names("method"):
        assert f"`{name}`" in text, name


def test_the_tables_name_everything():
    text = README.read_text()
    for kind in ("method", "rule", "benchmark"):
        for name in names(kind):
            assert f"`{name}`" in text, f"{kind} `{name}` is not in the README"
