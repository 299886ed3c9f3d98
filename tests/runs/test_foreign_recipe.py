"""A recipe of a run whose values are of wrong kinds: every command says so in a sentence,
or works.
"""

import copy
import os
import shutil
from pathlib import Path
from random import Random

import pytest
import yaml

from perdure import (
    Backbone,
    Evaluation,
    InputError,
    Model,
    PerdureError,
    Recipe,
    Rule,
    RunError,
    Training,
    forget,
    verify,
)
from perdure.methods.isolated import Isolated
from perdure.report.summary import summarise
from perdure.runs.extend import learn_more
from perdure.runs.job import Plan, check
from perdure.runs.streams import own_stream
from perdure.storage.files import read_yaml

HERE = Path(__file__).parents[1]
STRANGE = [
    None,
    True,
    -1,
    0,
    2**32,
    10**25,
    1e308,
    float("nan"),
    "",
    " ",
    "x",
    "a.b",
    "..",
    "a" * 300,
    "\x1b[2J",
    [],
    [[]],
    [None],
    {},
    {"": {}},
    {"a": [1]},
    "\0",
    "-1",
    "1e5",
]
MUTATIONS = 2000 if os.environ.get("PERDURE_SOAK") else 60


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(HERE / "formats" / "1", "here")
    monkeypatch.chdir("here")
    return Path("isolated")


def changed(values, random):
    """The values with one of them, anywhere, replaced, removed, or put under a strange name."""
    values = copy.deepcopy(values)
    places = list(_places(values))
    holder, key = random.choice(places)
    how = random.random()
    if how < 0.7:
        holder[key] = random.choice(STRANGE)
    elif how < 0.85:
        del holder[key]
    elif isinstance(holder, dict):
        holder[random.choice(["x", "self", "name", "seed", "a.b"])] = holder[key]
    return values


def _places(values):
    entries = (
        values.items()
        if isinstance(values, dict)
        else enumerate(values)
        if isinstance(values, list)
        else ()
    )
    for key, value in list(entries):
        yield values, key
        yield from _places(value)


def test_a_recipe_changed_anywhere(folder):
    """Seeded: what comes of each is a result or a sentence."""
    sound = read_yaml(folder / "recipe.yaml") | {"forgotten": ["gone"], "traces": {"gone": 1}}
    seed = os.environ.get("PERDURE_SEED", "0")
    for number in range(MUTATIONS):
        random = Random(f"{seed} {number}")
        (folder / "recipe.yaml").write_text(yaml.safe_dump(changed(sound, random)))
        acts = [
            lambda: verify(folder, backbone=False),
            lambda: summarise([folder]),
            lambda: Recipe.read(folder).plan(),
        ]
        acts += [lambda: Model(folder)] * (random.random() < 0.3)
        for act in acts:
            try:
                act()
            except PerdureError as error:
                assert str(error).isprintable() and len(str(error)) < 2000, number
            except Exception as error:
                raise AssertionError(f"PERDURE_SEED={seed}, number {number}: {error!r}") from error


@pytest.mark.parametrize("entry", [None, 0, "fruit.csv", ["fruit.csv"]])
def test_an_entry_of_a_stream_that_is_no_mapping(entry, folder):
    values = read_yaml(folder / "recipe.yaml")
    values["stream"].append(entry)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    for act in (lambda: forget(folder, "fruit"), lambda: learn_more(folder, {"data": "fruit.csv"})):
        with pytest.raises(
            RunError, match="`.*recipe.yaml`: `stream.2` is .*, but must be a mapping"
        ):
            act()
    assert any("recipe.yaml" in fault for fault in verify(folder, backbone=False).faults)


@pytest.mark.parametrize(
    "traces", [["a"], "x", {"a": "b"}, {"a": -1}, {"a": True}, {"a.b": 0}, {"..": 0}, {"a": [0]}]
)
def test_traces_of_a_wrong_type(traces, folder):
    values = read_yaml(folder / "recipe.yaml") | {"traces": traces}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    for act in (lambda: forget(folder, "fruit"), lambda: Model(folder)):
        with pytest.raises(RunError, match="`.*recipe.yaml`.*(damaged|traces)"):
            act()
    (fault,) = verify(folder, backbone=False).faults
    assert "recipe.yaml" in fault


@pytest.mark.parametrize("name", ["a.b", "..", ".", "a b", "-a", "a\x1b[2Jb", "a\nb"])
def test_a_folder_of_a_task_that_no_task_can_have(name, folder):
    shutil.copytree(folder / "tasks" / "00-fruit", folder / "tasks" / f"02-{name}")
    for act in (lambda: Model(folder), lambda: forget(folder, "fruit"), lambda: verify(folder)):
        with pytest.raises(RunError, match="cannot be the folder of a task"):
            act()


@pytest.mark.parametrize("data", ["", " ", "\t\n", "a\0b", {"train": "", "test": "x.csv"}])
def test_data_that_names_nothing(data):
    with pytest.raises(InputError, match="`data` is .*, but must be a file, a folder, or a hub id"):
        own_stream([{"data": data}])


def unchecked(kind, **values):
    """An object as it is where nobody checks annotations, as these tests do."""
    made = object.__new__(kind)
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stream": "demo"}, "`stream` must be a `perdure.TaskStream`, got 'demo'"),
        ({"backbone": "minilm"}, "`backbone` must be a `perdure.Backbone`, got 'minilm'"),
        ({"method": "isolated"}, "`method` must be a `perdure.Method`, got 'isolated'"),
        ({"seed": 2**32}, "`seed` must be a whole number from 0 to 4294967295"),
        ({"seed": -1}, "`seed` must be a whole number"),
        ({"training": {"epochs": 1}}, "`training` must be a `perdure.Training`"),
        (
            {"training": Training(epochs=0)},
            "training: `epochs` is 0, but must be a whole number of at least 1",
        ),
        (
            {"evaluation": unchecked(Evaluation, steps="never")},
            "`steps` is 'never', but must be `all`, `last` or `none`",
        ),
    ],
)
def test_python_is_told_the_same(given, message, toy, pico):
    usual = {
        "stream": toy,
        "backbone": Backbone.load(pico("bert")),
        "method": Isolated(rank=2),
        "rule": Rule("sum"),
    }
    values = usual | {"training": Training(), "evaluation": Evaluation(), "seed": 0}
    check(unchecked(Plan, **values))
    with pytest.raises(InputError, match=message):
        check(unchecked(Plan, **values | given))
