"""A run folder from a stranger may name Python files: without `--trust` no command runs them."""

import shutil
import sys
from pathlib import Path

import pytest
import yaml
from small_runs import make, recipe

from perdure import (
    InputError,
    Model,
    Recipe,
    Run,
    RunError,
    evaluate_run,
    find,
    forget,
    registry,
    verify,
)

MARK = "from pathlib import Path\nwith Path({mark!r}).open('a') as file:\n    file.write('ran ')\n"
CODE = {
    "method": """
from dataclasses import dataclass
from perdure.methods.isolated import Isolated

@dataclass(kw_only=True)
class Mine(Isolated):
    pass
""",
    "rule": """
from perdure.rules.task_arithmetic import task_arithmetic

def mine(vectors):
    return task_arithmetic(vectors, scale=0.5)
""",
    "stream": """
from perdure import TaskStream, read_tasks

def mine():
    return TaskStream("mine", tuple(task for table in {tables} for task in read_tasks(table)))
""",
}
RUN = ("r",)
COMMANDS = {
    "predict": ("predict", "r", "texts.csv", "-o", "out.csv"),
    "evaluate": ("evaluate", "r"),
    "export": ("export", "r", "-o", "out"),
    "diagnose": ("diagnose", "r"),
    "forget": ("forget", "r", "colour"),
    "forget a planned one": ("forget", "r", "other"),
    "run": ("run", "r", "--quiet"),
    "run its recipe": ("run", "r/recipe.yaml", "-o", "r", "--quiet"),
    "learn": ("learn", "r", "--data", "more.csv", "--quiet"),
    "merge": ("merge", "r", "--rule", "ties"),
    "tune": ("tune", "r", "--trials", "1", "--set", "training.epochs=1", "-o", "t", "--quiet"),
    "verify": ("verify", "r"),
    "report": ("report", "r"),
    "show": ("show", "r"),
}
NEEDS = {  # the files that a command needs; where it needs one, it is refused
    "method": {"forget", "run", "run its recipe", "learn", "tune"},
    "rule": {"predict", "evaluate", "export", "diagnose", "run", "run its recipe", "learn", "tune"},
    "stream": {
        "evaluate",
        "diagnose",
        "forget a planned one",
        "run",
        "run its recipe",
        "learn",
        "merge",
        "tune",
    },
}


@pytest.fixture(scope="module")
def made(pico, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trust")
    make(folder, "r", recipe(folder, ["fruit", "colour"], pico("bert"), training={"epochs": 1}))
    return folder


@pytest.fixture
def stranger(made, tmp_path, monkeypatch):
    """A function that makes a run, in the folder where the tests go on,
    whose recipe names `mine.py` as some part.
    """
    monkeypatch.chdir(tmp_path)
    for collection in ("_named_by_runs", "_loaded"):
        monkeypatch.setattr(registry, collection, {})
    monkeypatch.setattr(registry, "_trusted", set())
    shutil.copytree(made / "r", "r")
    for name in ("texts", "more"):
        shutil.copy(made / "fruit.csv", f"{name}.csv")

    def name_code(kind, name="r/mine.py"):
        tables = [str(made / "fruit.csv"), str(made / "colour.csv")]
        code = MARK.format(mark=str(tmp_path / "mark")) + CODE[kind].replace(
            "{tables}", str(tables)
        )
        Path(name).write_text(code)
        values = yaml.safe_load(Path("r/recipe.yaml").read_text())
        values[kind] = {"name": name} | (values[kind] if kind == "method" else {}) | {"name": name}
        Path("r/recipe.yaml").write_text(yaml.safe_dump(values))
        if kind == "rule":
            Path("r/combined.json").write_text(
                f'{{"name": "{name}", "label": "{name}", "options": {{}}}}'
            )
        return name

    return name_code


def ran():
    return Path("mark").exists()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", CODE)
def test_no_command_runs_it_unasked(kind, command, stranger, perdure):  # noqa: F811
    name = stranger(kind)
    status, out, err = perdure(*COMMANDS[command])
    assert not ran(), (status, out, err)
    if command in NEEDS[kind]:
        assert status == 1 and f"names the Python file `{name}`" in err and "--trust" in err
        assert err.count("\n") == 1
    elif command != "forget a planned one":
        assert status == 0, err


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("rule", "predict"),
        ("stream", "evaluate"),
        ("method", "forget"),
        ("method", "run"),
        ("stream", "merge"),
    ],
)
def test_with_trust_it_is_run(kind, command, stranger, perdure):  # noqa: F811
    stranger(kind)
    status, _, err = perdure(*COMMANDS[command], "--trust")
    assert (status, err) == (0, "") and ran()


def test_the_same_in_python(stranger):
    stranger("rule")
    for act in (Model, evaluate_run, lambda folder: Recipe.read(folder).make_rule()):
        with pytest.raises(RunError, match="trust=True"):
            act("r")
    assert not ran() and Run("r").tasks == ["fruit", "colour"]
    assert Model("r", trust=True).predict(["w1"]) and ran()


def test_wherever_it_stands(stranger, monkeypatch):
    """In a method that another wraps, in an entry of a stream, and in `combined.json` alone."""
    name = stranger("method")
    values = Run("r").recipe
    wrapped = values | {"method": {"name": "replay", "method": {"name": name}, "per_class": 2}}
    Path("r/recipe.yaml").write_text(yaml.safe_dump(wrapped))
    with pytest.raises(RunError, match="--trust"):
        forget("r", "fruit")
    Path("r/recipe.yaml").write_text(yaml.safe_dump(values | {"stream": [{"benchmark": name}]}))
    with pytest.raises(RunError, match="--trust"):
        evaluate_run("r")
    Path("r/recipe.yaml").write_text(
        yaml.safe_dump(values | {"method": {"name": "isolated", "rank": 2}})
    )
    Path("r/combined.json").write_text(f'{{"name": "{name}", "options": {{}}}}')
    with pytest.raises(RunError, match="but the recipe"):
        Model("r", trust=True)
    assert not ran()


def test_going_elsewhere_meanwhile_changes_nothing(stranger, monkeypatch, tmp_path):
    """A path is relative to where the process is: trust in one file is none in another of the same
    name.
    """
    name = stranger("rule", "mine.py")
    (tmp_path / "own").mkdir()
    monkeypatch.chdir(tmp_path / "own")
    Path(name).write_text("def mine(vectors):\n    return vectors\n")
    assert find("rule", name)  # the user's own
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="--trust"):
        Model("r")
    assert not ran()


def test_ones_own_file_needs_no_trust(stranger, perdure, made, pico):  # noqa: F811
    """Named in one's own recipe, on the command line, or in Python;
    also where a run names it too.
    """
    name = stranger("rule", "mine.py")
    assert perdure("evaluate", "r", "--last", "--rule", "mine.py")[0] == 0 and ran()
    Path("mark").unlink()
    registry._trusted.clear()
    assert perdure("export", "r", "-o", "out", "--set", "name=mine.py")[0] == 0
    registry._trusted.clear()
    values = recipe(made, ["fruit", "colour"], pico("bert"), training={"epochs": 1}) | {
        "rule": name
    }
    Path("own.yaml").write_text(yaml.safe_dump(values))
    assert Run("r").recipe["rule"] == {"name": name}
    assert perdure("run", "own.yaml", "-o", "own", "--quiet")[0] == 0
    assert Model("own").predict(["w1"])  # this process ran it for the user


def test_verify_says_that_it_is_there(stranger):
    name = stranger("method")
    (note,) = [note for note in verify("r").notes if "Python file" in note]
    assert f"`{name}`" in note and "was not run" in note and not ran()


# -- a file that fails


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import nothing_of_that_name\n",
            "line 1: ModuleNotFoundError: No module named 'nothing_of_that_name'",
        ),
        ("\n\nx = 1 / 0\n", "line 3: ZeroDivisionError: division by zero"),
        ("raise SystemExit(0)\n", "line 1: SystemExit: 0"),
        ("def f():\n    raise KeyError\nf()\n", "line 2: KeyError"),
        ("def (", "is not Python"),
        ("\0", "mine.py"),
    ],
)
@pytest.mark.parametrize("kind", ["method", "rule", "benchmark"])
def test_a_file_that_cannot_be_run_is_one_sentence(kind, code, message, tmp_path):
    (path := tmp_path / "mine.py").write_text(code)
    with pytest.raises(InputError, match=message) as refused:
        find(kind, str(path))
    assert str(path) in str(refused.value)


def test_a_hook_that_fails_names_its_line(stranger, perdure):  # noqa: F811
    name = stranger("rule")
    Path(name).write_text("def mine(vectors):\n    some = {}\n    return some['scale']\n")
    assert perdure("predict", "r", "texts.csv", "--trust")[::2] == (
        1,
        f"Error: `{name}`, line 3: KeyError: 'scale'.\n",
    )


@pytest.mark.parametrize("name", ["torch", "json", "perdure", "yaml"])
def test_it_shadows_no_module(name, tmp_path):
    before = sys.modules[name]
    (path := tmp_path / f"{name}.py").write_text(
        f"import {name} as other\n\ndef {name}(vectors):\n    return other\n"
    )
    assert find("rule", str(path))({}) is before
    assert sys.modules[name] is before and str(tmp_path) not in sys.path


def test_it_is_run_again_only_when_it_has_changed(tmp_path):
    (path := tmp_path / "mine.py").write_text("def mine(vectors):\n    return 1\n")
    assert find("rule", str(path)) is find("rule", str(path))
    path.write_text("def mine(vectors):\n    return 22\n")
    assert find("rule", str(path))({}) == 22
