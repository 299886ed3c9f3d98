"""A run goes on when the examples of what it has learned are gone: it learns, measures what it can,
and says so.
"""

import functools
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_runs import RANDOM_FEATURES, answers, contents, differing, recipe, table
from tables import write

import perdure
from perdure import (
    DataError,
    FetchError,
    InputError,
    PeftMethod,
    PerdureWarning,
    Recipe,
    Run,
    RunError,
    TaskStream,
    UnknownName,
    diagnose,
    evaluate_run,
    forget,
    learn_more,
    names,
    past_tasks,
    registry,
    verify,
)
from perdure.bundled.parts import packages
from perdure.checks.models import toy_task
from perdure.methods.isolated import Isolated
from perdure.report import FORMATS, summary, terminal
from perdure.runs import derived

GONE = "cannot be measured now, but is used as it was learned"
QUICK = {"epochs": 1, "batch_size": 16}


def method(name: str) -> dict[str, Any]:
    """A method's section of a recipe, with settings that are quick."""
    found = registry.find("method", name)
    if "method" in registry.options(found):
        few = {"per_class": 3} if "per_class" in registry.options(found) else {}
        return {"name": name, "method": method("lwf"), **few}
    if issubclass(found, PeftMethod):
        return {"name": name, "rank": 2}
    return {"name": name, **({"features": 50} if name in RANDOM_FEATURES else {})}


def learned(folder: Path, backbone: Path, *tables: str, **settings: Any) -> Run:
    """A run that has learned tables, which lie beside it."""
    folder.mkdir(exist_ok=True)
    values = recipe(folder, list(tables), backbone, **{"method": method("isolated"), **settings})
    return Recipe.parse(values | {"training": QUICK}).run(folder / "run")


def measured(run: Run) -> set[tuple[int, str]]:
    return {(row["step"], row["task"]) for row in run.scores()}


@pytest.fixture(scope="module")
def fruit(pico, tmp_path_factory) -> Path:
    """A folder with a run that has learned `fruit`, and its table."""
    folder = tmp_path_factory.mktemp("fruit")
    learned(folder, pico("bert"), "fruit")
    return folder


@pytest.fixture
def home(fruit, tmp_path, monkeypatch) -> Path:
    """A copy of the run, whose table is gone."""
    folder = tmp_path / "home"
    shutil.copytree(fruit, folder)
    (folder / "fruit.csv").unlink()
    recipe_path = folder / "run" / "recipe.yaml"
    recipe_path.write_text(recipe_path.read_text().replace(str(fruit), str(folder)))
    monkeypatch.chdir(folder)
    return folder


# -- the next task


@pytest.mark.parametrize("name", names("method"))
def test_every_method_that_keeps_no_data_learns_the_same_without_it(name, pico, tmp_path):
    run = learned(
        tmp_path, pico("bert"), "fruit", method=method(name), evaluation={"steps": "last"}
    )
    colour = {"data": table(tmp_path, "colour")}
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    if name != "joint":
        with_data = learn_more(tmp_path / "other", colour)
    (tmp_path / "fruit.csv").unlink()
    if name == "joint":
        before = contents(run)
        with pytest.raises(
            InputError, match="`joint` trains on the examples of all tasks, but those of `fruit`"
        ):
            learn_more(run.folder, colour)
        assert contents(run) == before
        return
    with pytest.warns(PerdureWarning, match=f"Task `fruit` {GONE}. There is no file `.*fruit.csv`"):
        learn_more(run.folder, colour)
    assert run.tasks == ["fruit", "colour"] and measured(run) == {(1, "fruit"), (2, "colour")}
    assert differing(run, with_data) == ["answers.json", "scores.csv"]
    assert [
        row for row in with_data.scores() if (row["step"], row["task"]) != (2, "fruit")
    ] == run.scores()
    assert verify(run.folder).faults == []


def test_the_month_after_and_the_one_after_that(home):
    for name in ("colour", "texture", "size"):
        with pytest.warns(PerdureWarning, match=GONE.replace("is used as it was", ".*")):
            learn_more(Path("run"), {"data": table(home, name)})
        (home / f"{name}.csv").unlink()
    run = Run("run")
    assert measured(run) == {(1, "fruit"), (2, "colour"), (3, "texture"), (4, "size")}
    assert np.isfinite(np.diag(run.matrix())).all()
    assert len(answers(run)) == 30


def test_what_is_new_has_to_be_there(home):
    before = contents(Run("run"))
    with pytest.raises(DataError, match="There is no file `nowhere.csv`"):
        learn_more(Path("run"), {"data": "nowhere.csv"})
    assert contents(Run("run")) == before


def test_a_table_that_has_changed(home):
    write(home / "fruit.csv", [("w1 w2", "apple"), ("w3 w4", "pear")] * 6)
    with pytest.warns(
        PerdureWarning, match="examples of task `fruit` are not those that the run learned"
    ):
        run = learn_more(Path("run"), {"data": table(home, "colour")})
    assert measured(run) == {(1, "fruit"), (2, "colour")}
    with pytest.warns(PerdureWarning, match="current test examples may have been trained on"):
        evaluate_run("run")
    assert measured(run) == {(1, "fruit"), (2, "colour")}


def test_another_table_of_that_name_in_a_recipe_is_refused(home, pico, tmp_path):
    write(tmp_path / "fruit.csv", [("w1 w2", "apple"), ("w3 w4", "pear")] * 6)
    values = recipe(tmp_path, ["fruit"], pico("bert"), method=method("isolated")) | {
        "training": QUICK
    }
    with pytest.raises(RunError, match="Put the old data back, or start a new run"):
        Recipe.parse(values).run("run")


def test_a_folder_of_pictures(pico, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for place in ("old/dark", "old/light", "new/red", "new/blue"):
        Path(place).mkdir(parents=True)
        for number in range(6):
            pixels = random.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(f"{place}/{number}.png")
    settings = [f"training.{name}={value}" for name, value in QUICK.items()]
    learn_more(Path("run"), {"data": "old"}, backbone=str(pico("vit")), settings=settings)
    shutil.rmtree("old")
    with pytest.warns(PerdureWarning, match=f"Task `old` {GONE}"):
        run = learn_more(Path("run"), {"data": "new"})
    assert measured(run) == {(1, "old"), (2, "new")}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            DataError("`somebody/fruit` could not be read: the network is down."),
            "the network is down",
        ),
        (
            PermissionError(13, "Permission denied", "fruit.csv"),
            "`fruit.csv` cannot be read: Permission denied",
        ),
    ],
)
def test_what_keeps_a_table_from_being_read(error, said, home, monkeypatch):
    read_tasks = perdure.read_tasks

    def refused(source: str, **options: Any) -> Any:
        if "fruit" in source:
            raise error
        return read_tasks(source, **options)

    monkeypatch.setattr("perdure.runs.streams.read_tasks", functools.wraps(read_tasks)(refused))
    with pytest.warns(PerdureWarning, match=said):
        run = learn_more(Path("run"), {"data": table(home, "colour")})
    assert run.tasks == ["fruit", "colour"]


def test_a_table_of_several_tasks(pico, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [(f"w{i} w{i + 1}", "xy"[i % 2], ("mail", "chat")[i % 4 // 2]) for i in range(40)]
    write(tmp_path / "both.csv", rows, columns=("text", "label", "topic"))
    entries = [{"data": table(tmp_path, "size")}, {"data": "both.csv", "task": "topic"}]
    learned(tmp_path, pico("bert"), *entries)
    learn_more(Path("run"), {"data": table(tmp_path, "fruit")})
    Path("both.csv").unlink()
    with pytest.warns(PerdureWarning, match="Tasks `mail`, `chat` cannot be measured now"):
        run = learn_more(Path("run"), {"data": table(tmp_path, "colour")})
    assert run.tasks == ["size", "mail", "chat", "fruit", "colour"]
    assert {task for step, task in measured(run) if step == 5} == {"size", "fruit", "colour"}


def test_a_benchmark(digits, pico, tmp_path, monkeypatch):
    stream = {"name": "split_mnist", "train": 8, "validation": 4, "test": 4, "scenario": "task"}
    values = {"stream": stream, "backbone": str(pico("vit")), "method": method("ncm")}
    run = Recipe.parse(values).run(tmp_path / "run")
    tasks = run.tasks

    def absent(package: Any) -> None:
        raise FetchError("The package is not in the cache.")

    before = contents(run)
    monkeypatch.setattr(packages, "fetch", absent)
    Recipe.read(run.folder).run(run.folder)
    assert contents(run) == before
    for place in ("red", "blue"):
        (tmp_path / "colours" / place).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (16, 16), (40 * number, 0, 0)).save(
                tmp_path / "colours" / place / f"{number}.png"
            )
    with pytest.warns(
        PerdureWarning, match="cannot be measured now.*The package is not in the cache"
    ):
        learn_more(run.folder, {"data": str(tmp_path / "colours")})
    assert run.tasks == [*tasks, "colours"] and run.recipe["scenario"] == "task"


def test_a_stream_made_in_python(bert, toy, tmp_path):
    training = perdure.Training(**QUICK)
    perdure.run(toy.until(1), bert, Isolated(rank=2), training=training, output=tmp_path / "run")
    shape = toy_task("shape", ["round", "square"], 3)
    stream = TaskStream("toy", (*past_tasks(tmp_path / "run"), shape))
    with pytest.warns(PerdureWarning, match="They were not given"):
        run = perdure.run(
            stream, bert, Isolated(rank=2), training=training, output=tmp_path / "run"
        )
    assert measured(run) == {(1, "fruit"), (2, "shape")}


# -- methods and rules that need old examples


def test_a_search_needs_them(pico, tmp_path):
    rule = {"name": "task_arithmetic", "scale": "search"}
    run = learned(tmp_path, pico("bert"), "fruit", rule=rule)
    (tmp_path / "fruit.csv").unlink()
    before = contents(run)
    wanted = "searches its scale on the validation examples of all tasks, "
    wanted += "but those of `fruit` are missing: There is"
    with pytest.raises(InputError, match=wanted):
        learn_more(run.folder, {"data": table(tmp_path, "colour")})
    with pytest.raises(RunError, match="no examples are available. There is no file"):
        evaluate_run(run.folder)
    assert contents(run) == before
    shutil.copytree(run.folder, tmp_path / "other")
    with pytest.warns(PerdureWarning, match=GONE):
        other = Recipe.read(tmp_path / "other", ["rule=task_arithmetic"]).run(tmp_path / "other")
    assert other.combined()["candidates"] == [] and other.recipe["rule"].get("scale") != "search"
    with pytest.warns(PerdureWarning, match=GONE):
        learn_more(other.folder, {"data": table(tmp_path, "colour")})
    assert measured(other) == {(1, "fruit"), (2, "colour")}
    later = learn_more(
        run.folder, {"data": table(tmp_path, "colour")}, settings=["evaluation.steps=none"]
    )
    assert later.tasks == ["fruit", "colour"]
    with pytest.raises(InputError, match=wanted):
        evaluate_run(run.folder)
    with pytest.warns(PerdureWarning, match=GONE):
        evaluate_run(run.folder, "task_arithmetic", ["scale=0.5"])


# -- everything else that can be done with such a run


@pytest.fixture
def two(home) -> Run:
    with pytest.warns(PerdureWarning, match=GONE):
        return learn_more(Path("run"), {"data": table(home, "colour")})


def test_evaluate_measures_what_is_there(two, home):
    before = two.scores()
    with pytest.warns(PerdureWarning, match=GONE):
        evaluate_run("run")
    assert two.scores() == before
    with pytest.warns(PerdureWarning, match=GONE):
        evaluate_run("run", "sum")
    new = [row for row in two.scores() if row["rule"] == "sum"]
    assert {(row["step"], row["task"]) for row in new} == {(2, "colour")}
    table(home, "fruit")  # it is there again
    evaluate_run("run")
    assert measured(two) == {(1, "fruit"), (2, "fruit"), (2, "colour")}


def test_nothing_of_it_can_be_measured(home):
    before = contents(Run("run"))
    with pytest.raises(
        RunError,
        match="Nothing in `run` can be measured, because no examples are available. There is no",
    ):
        evaluate_run("run")
    assert contents(Run("run")) == before


def test_how_classes_were_answered_is_kept_of_what_is_not_measured_again(pico, tmp_path):
    run = learned(tmp_path, pico("bert"), "fruit", "colour")
    before = derived.answers(run.folder)
    (tmp_path / "fruit.csv").unlink()
    with pytest.warns(PerdureWarning, match=GONE):
        evaluate_run(run.folder)
    assert derived.answers(run.folder) == before and set(before["posterior"]) == {"fruit", "colour"}
    with pytest.warns(PerdureWarning, match=GONE):
        learn_more(run.folder, {"data": table(tmp_path, "size")})
    assert set(derived.answers(run.folder)["posterior"]) == {
        "colour",
        "size",
    }  # of another model those of before


def test_run_has_nothing_left_to_do(two):
    before = contents(two)
    Recipe.read("run").run("run")
    assert contents(two) == before


def test_learned_already_is_said_as_ever(two):
    with pytest.raises(InputError, match="has already learned these tasks: fruit, colour"):
        learn_more(Path("run"), {"data": str(Path("colour.csv").absolute())})


def test_learn_goes_on_after_a_kill_before_it_had_measured(home, monkeypatch):
    """The same command does what is left, also where the new table is all that is there."""

    def killed(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    entry = {"data": table(home, "colour")}
    with (
        monkeypatch.context() as patch,
        pytest.raises(KeyboardInterrupt),
        pytest.warns(PerdureWarning, match=GONE),
    ):
        patch.setattr(sys.modules["perdure.runs.story"], "measure", killed)
        learn_more(Path("run"), entry)
    run = Run("run")
    assert run.tasks == ["fruit", "colour"] and measured(run) == {(1, "fruit")}
    spelled_otherwise = {"data": os.path.relpath(entry["data"]), "label": "label"}
    with pytest.warns(PerdureWarning, match=GONE):
        learn_more(Path("run"), spelled_otherwise)
    assert measured(run) == {(1, "fruit"), (2, "colour")}
    with pytest.raises(InputError, match="has already learned these tasks: fruit, colour"):
        learn_more(Path("run"), entry)


def test_new_examples_under_an_old_name_are_a_task_of_another_name(home):
    before = contents(Run("run"))
    shutil.copy(table(home, "colour"), home / "fruit.csv")
    with pytest.raises(
        InputError, match="has already learned these tasks: fruit. If there are new .*--task"
    ):
        learn_more(Path("run"), {"data": str(home / "fruit.csv")})
    (home / "february").mkdir()
    (home / "fruit.csv").rename(home / "february" / "fruit.csv")
    with pytest.raises(
        InputError, match="already has a task `fruit`, .* from another table .*--task"
    ):
        learn_more(Path("run"), {"data": "february/fruit.csv"})
    assert contents(Run("run")) == before
    with pytest.warns(PerdureWarning, match=GONE):
        learn_more(Path("run"), {"data": "february/fruit.csv", "name": "february"})
    assert measured(Run("run")) == {(1, "fruit"), (2, "february")}


def test_forget_needs_none(two, home):
    (home / "colour.csv").unlink()
    with pytest.raises(UnknownName, match="No task named `size`"):
        forget("run", "size")
    forget("run", "fruit")
    assert two.tasks == ["colour"] and len(answers(two)) == 30


def test_learning_again_needs_those_that_are_learned_again(pico, tmp_path):
    run = learned(
        tmp_path, pico("bert"), "size", "fruit", "colour", "texture", method=method("sequential")
    )
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    (tmp_path / "size.csv").unlink()
    with pytest.warns(PerdureWarning, match="Task `size` cannot be measured now"):
        assert forget(run.folder, "fruit", retrain_later=True).relearned == ("colour", "texture")
    (tmp_path / "texture.csv").unlink()
    before = contents(tmp_path / "other")
    with pytest.raises(
        InputError,
        match="Task `texture` is to be learned, but its examples are missing: There is no",
    ):
        forget(tmp_path / "other", "fruit", retrain_later=True)
    assert contents(tmp_path / "other") == before


def test_predict_and_export_read_no_table(two, home):
    (home / "colour.csv").unlink()
    model = perdure.Model("run")
    assert model.predict(["w1 w2"])[0].task in two.tasks
    model.export("checkpoint")
    assert Path("checkpoint", "config.json").is_file()


def test_diagnose_uses_what_is_there(two, home):
    found = diagnose("run", examples=8)["parts"]
    assert found["interference"]["cosine"][0][1] is not None
    assert (
        found["posterior"]["confusion"][0] == [0, 0] and sum(found["posterior"]["confusion"][1]) > 0
    )
    subset = np.array(found["probe"]["subset"], dtype=float)
    assert np.isnan(subset[:, 0]).all() and np.isfinite(subset[:, 1]).all()
    assert found["probe"]["accuracy"] == pytest.approx(subset[:, 1])
    for part in ("cka", "probe", "posterior"):
        assert "Without examples of fruit, which are missing." in found[part]["reading"]
    FORMATS["html"](summary.summarise(["run"]))
    (home / "colour.csv").unlink()
    found = diagnose("run", examples=8)
    assert set(found["left_out"]) == {"cka", "probe", "posterior"}
    assert "none are available. There is no file" in found["left_out"]["probe"]


def test_verify_notes_it(two, home):
    notes = verify("run").notes
    assert notes == [
        f"`{home / 'fruit.csv'}` is missing: what was learned from it is complete, "
        f"but cannot be measured "
        "again."
    ]
    table(home, "fruit")
    assert verify("run").notes == []


# -- what a report says


def test_no_average_over_fewer_tasks(two, capsys):
    found = summary.summarise(["run"])
    run = found["runs"][0]
    for result in run["results"]:
        assert (
            result["metrics"]["average_accuracy"] is None
            and result["metrics"]["forgetting"] is None
        )
        assert result["seen"][0] is not None and result["seen"][1] is None
        assert result["matrix"][1][0] is None and result["matrix"][1][1] is not None
        assert result["learned"] == pytest.approx(
            (result["matrix"][0][0] + result["matrix"][1][1]) / 2
        )
    said = (
        "After the last task, `fruit` was not measured, so averages over all 2 tasks are not given"
    )
    assert said in run["problems"][0]
    for form in ("html", "json"):
        assert said in FORMATS[form](found).replace("&#39;", "'"), form
    assert "After the last task, \\`fruit\\` was not measured" in FORMATS["markdown"](found)
    assert "After the last task, `fruit` was not measured" in FORMATS["latex"](found)
    assert "A blank below the diagonal was not measured." in FORMATS["html"](found)
    terminal.show(found)
    out = " ".join(capsys.readouterr().out.split())
    last = 100 * run["results"][0]["matrix"][1][1]
    assert (
        said in out
        and "scores after the last task (%)" in out
        and f"fruit – – – colour {last:.1f}" in out
    )
    terminal.matrices(found)
    assert any(line.split()[:2] == ["colour", "–"] for line in capsys.readouterr().out.splitlines())
    assert json.loads(FORMATS["json"](found))["runs"][0]["problems"] == run["problems"]


def test_after_forget_nothing_is_measured_yet_until_it_is(pico, tmp_path, capsys):
    """Whoever shows the run says the same, in one sentence."""
    run = learned(tmp_path, pico("bert"), "fruit", "colour", "texture")

    def said() -> list[str]:
        found = summary.summarise([run.folder])
        terminal.show(found)
        out = " ".join(capsys.readouterr().out.split())
        (problems,) = (shown["problems"] for shown in found["runs"])
        for sentence in problems:
            assert sentence in out and out.count("evaluate") == 1
            assert sentence in FORMATS["html"](found) and json.dumps(sentence) in FORMATS["json"](
                found
            )
        return problems

    assert said() == []
    forget(run.folder, "colour")
    assert said() == [summary.NOTHING]
    forget(run.folder, "fruit")
    assert said() == [summary.NOTHING]
    evaluate_run(run.folder)
    assert said() == [] and measured(run) == {(1, "texture")}


def test_seeds_of_which_one_was_not_measured(fruit, two, tmp_path):
    folders = [tmp_path / "0", tmp_path / "1"]
    for seed, source in enumerate((fruit / "run", fruit / "run")):
        shutil.copytree(source, folders[seed])
        text = (folders[seed] / "recipe.yaml").read_text()
        (folders[seed] / "recipe.yaml").write_text(text.replace("seed: 0", f"seed: {seed}"))
    scores = (folders[1] / "scores.csv").read_text().splitlines(keepends=True)
    (folders[1] / "scores.csv").write_text(
        "".join(line for line in scores if ",posterior," not in line)
    )
    found = summary.summarise(folders)
    (group,) = found["groups"]
    counts = {result["known"]: result["metrics"]["average_accuracy"] for result in group["results"]}
    assert (counts["task posterior"]["n"], counts["task posterior"]["of"]) == (1, 2)
    assert (counts["task given"]["n"], counts["task given"]["of"]) == (2, 2)
    assert "(1 of 2)" in FORMATS["markdown"](found)
