"""A task that was forgotten: the run is the one that never learned it, byte for byte,
or says what remains.
"""

import json
import shutil
import sys
from dataclasses import replace

import pytest
import yaml
from small_runs import TABLES, TEXTS, answers, contents, differing, make, recipe, table
from tables import read_table, write

from perdure import (
    InputError,
    Model,
    Recipe,
    Rule,
    Run,
    RunError,
    Stopped,
    Training,
    UnknownName,
    run,
)
from perdure.methods.isolated import Isolated
from perdure.methods.sequential import Sequential
from perdure.report import report
from perdure.runs.extend import evaluate_run, forget, learn_more
from perdure.runs.verify import verify
from perdure.runs.writer import writing

NAMES = ("fruit", "colour", "texture")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


@pytest.fixture(scope="module")
def learned(home, pico):
    """A run of three isolated tasks; copy it before changing it."""
    return make(home, "three", recipe(home, NAMES, pico("bert")))


@pytest.fixture
def three(learned, tmp_path):
    return Run(shutil.copytree(learned.folder, tmp_path / "three"))


@pytest.mark.parametrize("method", ["isolated", "sequential", "inflora", "joint"])
def test_the_last_task_leaves_nothing_whatever_the_method(method, home, pico, tmp_path):
    settings = {"method": {"name": method, "rank": 2}, "training": {"epochs": 1}}
    before = make(tmp_path, "two", recipe(home, NAMES[:2], pico("bert"), **settings))
    kept = shutil.copytree(before.folder, tmp_path / "kept")
    learn_more(before.folder, {"data": table(home, "texture")})
    assert before.tasks == list(NAMES) and differing(before, kept)
    found = forget(before.folder, "texture")
    assert not found.traces and "as if it had never been learned" in str(found)
    assert differing(before, kept) == []
    assert answers(before) == answers(kept)


@pytest.mark.parametrize("task", NAMES)
def test_isolated_tasks_leave_nothing_wherever_they_were(task, three, home, pico, tmp_path):
    never = make(
        tmp_path, "never", recipe(home, [name for name in NAMES if name != task], pico("bert"))
    )
    found = forget(three.folder, task)
    assert not found.traces and three.tasks == never.tasks
    assert not [path for path in three.folder.rglob("*") if task in path.name]
    assert set(differing(three, never)) <= {
        "scores.csv",
        "events.jsonl",
    }  # what has to be measured again
    assert answers(three) == answers(never)
    evaluate_run(three.folder)
    assert set(differing(three, never)) <= {"events.jsonl"}
    assert {row["task"] for row in three.scores()} == set(never.tasks)
    by_step = [
        {json.dumps(event) for event in contents(one)["events.jsonl"]} for one in (three, never)
    ]
    assert by_step[0] == by_step[1]
    assert {label for label, _, _ in answers(three)} <= {
        label for name in never.tasks for label in TABLES[name]
    }
    for path in three.folder.rglob(
        "*"
    ):  # nor is it named anywhere but in the list of what was forgotten
        if path.is_file() and path.name != "recipe.yaml":
            assert task.encode() not in path.read_bytes(), path
    assert verify(three.folder).faults == []


def test_a_stream_made_in_python(toy, bert, tmp_path):
    training, method = Training(epochs=1, batch_size=8), Isolated(rank=2)
    whole = run(toy, bert, method, training=training, output=tmp_path / "whole")
    without = replace(toy, tasks=(toy[0], toy[2]))
    never = run(without, bert, method, training=training, output=tmp_path / "never")
    forget(whole.folder, "colour")
    evaluate_run(whole.folder, stream=without)
    assert set(differing(whole, never)) <= {"events.jsonl"}
    run(
        without, bert, method, training=training, output=whole.folder
    )  # the same call goes on, and finds nothing to do
    assert set(differing(whole, never)) <= {"events.jsonl"} and whole.recipe["forgotten"] == [
        "colour"
    ]
    before = contents(whole)
    with pytest.raises(RunError, match=r"`forgotten`: \['colour'\] before, nothing now"):
        run(toy, bert, method, training=training, output=whole.folder)
    assert contents(whole) == before


def test_a_benchmark(toy, pico, tmp_path, monkeypatch):
    from perdure import registry

    find = registry.find

    def benchmark(*, seed: int = 0):
        return toy

    monkeypatch.setattr(
        registry, "find", lambda kind, name: benchmark if kind == "benchmark" else find(kind, name)
    )
    values = {
        "backbone": {"model": str(pico("bert")), "pooling": "mean"},
        "training": {"epochs": 1},
        "stream": "toy",
    }
    whole = make(tmp_path, "whole", values)
    never = make(tmp_path, "never", values | {"forgotten": ["fruit"]})
    forget(whole.folder, "fruit")
    Recipe.read(whole.folder / "recipe.yaml").run(whole.folder)  # measures what is left
    assert set(differing(whole, never)) <= {"events.jsonl"} and whole.tasks == ["colour", "shape"]
    with pytest.raises(RunError, match=r"`forgotten`: \['fruit'\] before, nothing now"):
        make(tmp_path, "whole", values)
    learn_more(
        whole.folder,
        {
            "data": write(
                tmp_path / "fruit.csv", [(t, "x" if i % 2 else "y") for i, t in enumerate(TEXTS)]
            )
        },
    )
    assert whole.tasks == ["colour", "shape", "fruit"] and "forgotten" not in whole.recipe


@pytest.mark.parametrize(
    ("method", "least"),
    [
        ({"name": "sequential"}, "colour"),
        ({"name": "joint"}, "fruit"),
        ({"name": "inflora"}, "fruit"),
        ({"name": "vcl", "coreset": 2, "coreset_epochs": 1}, "colour"),
        ({"name": "td_vcl", "n": 2, "kept": 6}, "colour"),
        ({"name": "bgd", "samples": 1}, "colour"),
        ({"name": "badam", "samples": 1}, "colour"),
        ({"name": "online_replay", "memory": 8}, "colour"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else value,
)
def test_what_depends_on_it_is_said_and_learned_again_on_demand(
    method, least, home, pico, tmp_path
):
    settings = {"method": {"rank": 2, **method}, "training": {"epochs": 1}}
    if method["name"] == "inflora":
        settings["training"]["alignment"] = {}
    whole = make(tmp_path, "whole", recipe(home, NAMES, pico("bert"), **settings))
    left = [one for one in NAMES if one != least]
    never = make(tmp_path, "never", recipe(home, left, pico("bert"), **settings))
    found = forget(whole.folder, least)
    after = tuple(NAMES[NAMES.index(least) + 1 :])
    assert (
        found.traces == after
        and "`--retrain-later`" in str(found)
        and ", ".join(after) in str(found)
    )
    classes = {label for one in left for label in TABLES[one]}
    assert {
        label for label, _, _ in answers(whole)
    } <= classes  # though later folders may still hold its head
    checked = verify(whole.folder)
    assert not checked.faults and any(
        f"`{least}`, which was forgotten, remains in" in note for note in checked.notes
    )
    assert forget(whole.folder, least).traces == after  # asked again, it says it again
    assert forget(whole.folder, least, retrain_later=True).relearned == after
    assert differing(whole, never) == [] and answers(whole) == answers(never)
    assert verify(whole.folder).notes == []


def test_learning_again_at_once(home, pico, tmp_path):
    settings = {
        "method": {"name": "isolated", "rank": 2, "start": "previous"},
        "training": {"epochs": 1},
    }
    whole = make(tmp_path, "whole", recipe(home, NAMES, pico("bert"), **settings))
    never = make(tmp_path, "never", recipe(home, NAMES[1:], pico("bert"), **settings))
    found = forget(whole.folder, "fruit", retrain_later=True)
    assert found.relearned == NAMES[1:] and "Learned again without it: colour, texture." in str(
        found
    )
    assert differing(whole, never) == []
    found = forget(whole.folder, "texture", retrain_later=True)
    assert not found.relearned and not found.traces


def test_aligned_heads_depend_on_each_other(home, pico, tmp_path):
    values = recipe(home, NAMES, pico("bert"), training={"epochs": 1, "alignment": {}})
    whole = make(tmp_path, "whole", values)
    found = forget(whole.folder, "fruit")
    assert found.traces == ("colour", "texture") and "their aligned heads" in str(found)
    never = make(
        tmp_path,
        "never",
        recipe(home, NAMES[1:], pico("bert"), training={"epochs": 1, "alignment": {}}),
    )
    forget(whole.folder, "fruit", retrain_later=True)
    assert differing(whole, never) == []


def test_without_the_data_nothing_is_removed(home, pico, tmp_path):
    own = tmp_path / "tables"
    own.mkdir()
    values = recipe(
        own, NAMES, pico("bert"), method={"name": "sequential", "rank": 2}, training={"epochs": 1}
    )
    whole = make(tmp_path, "whole", values)
    (own / "texture.csv").unlink()
    before = contents(whole)
    with pytest.raises(InputError, match=r"There is no file .*texture\.csv"):
        forget(whole.folder, "colour", retrain_later=True)
    assert contents(whole) == before
    assert forget(whole.folder, "colour").traces == ("texture",)
    assert forget(whole.folder, "fruit").traces == ("texture",)
    assert whole.recipe["traces"] == {"colour": 0, "fruit": 0}
    assert (
        not forget(whole.folder, "texture").traces and "traces" not in whole.recipe
    )  # it held all of them
    assert whole.tasks == []


def test_traces_do_not_vanish_when_a_task_is_learned_again(home, pico, tmp_path):
    values = recipe(
        home,
        NAMES[:2],
        pico("bert"),
        method={"name": "sequential", "rank": 2},
        training={"epochs": 1},
    )
    whole = make(tmp_path, "whole", values)
    forget(whole.folder, "fruit")
    learn_more(whole.folder, {"data": table(home, "fruit")})
    assert whole.tasks == ["colour", "fruit"] and "forgotten" not in whole.recipe
    assert forget(whole.folder, "fruit").traces == ("colour",)


def test_retraining_that_is_stopped_goes_on(home, pico, tmp_path, monkeypatch):
    values = recipe(
        home, NAMES, pico("bert"), method={"name": "sequential", "rank": 2}, training={"epochs": 1}
    )
    whole = make(tmp_path, "whole", values)
    never = make(tmp_path, "never", values | {"stream": values["stream"][1:]})

    def stop(*arguments, **options):
        raise Stopped("Stopped.", signal=2)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(sys.modules["perdure.runs.story"], "learn_next", stop)
        forget(whole.folder, "fruit", retrain_later=True)
    assert whole.tasks == [] and "traces" not in whole.recipe
    Recipe.read(whole.folder / "recipe.yaml").run(whole.folder)
    assert differing(whole, never) == []


# -- killed on the way


@pytest.mark.parametrize(
    "where", ["scores.csv", "events.jsonl", "combined.json", "rmtree", "rename"]
)
def test_a_kill_on_the_way_is_made_up_for(where, three, learned, tmp_path, monkeypatch):
    """Once the recipe says that a task is forgotten, it is;
    the next one to write finishes what is left to do.
    """
    whole = Run(shutil.copytree(learned.folder, tmp_path / "whole"))
    forget(whole.folder, "fruit")
    results = sys.modules["perdure.runs.put"]
    write_file = results.files.write

    class Kill(BaseException):
        pass

    def die(*arguments):
        raise Kill

    with monkeypatch.context() as patch, pytest.raises(Kill):
        if where == "rmtree":
            patch.setattr(results.shutil, "rmtree", die)
        elif where == "rename":
            patch.setattr(results, "renamed", die)
        else:
            patch.setattr(
                results.files,
                "write",
                lambda path, content: (die if path.name == where else write_file)(path, content),
            )
            if where == "combined.json":  # which is not written again here
                patch.setattr(sys.modules["perdure.runs.forget"], "_combine_without", die)
        forget(three.folder, "fruit")
    assert three.tasks == ["colour", "texture"]
    assert {label for label, _, _ in answers(three)} <= {*TABLES["colour"], *TABLES["texture"]}
    checked = verify(three.folder)
    assert not checked.faults, checked.faults
    if where in ("scores.csv", "combined.json"):
        assert any("is forgotten, and will be removed when" in note for note in checked.notes)
    with writing(three.folder):
        pass
    assert differing(three, whole) == []


def test_a_kill_before_it_counts_changes_nothing(three, monkeypatch):
    before, results = contents(three), sys.modules["perdure.runs.put"]

    def die(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(results.files, "write", die)
        forget(three.folder, "fruit")
    assert contents(three) == before


# -- rules


def test_a_scale_that_was_searched(home, pico, tmp_path):
    """The last task's is taken back; without another task the scale is searched again when it is
    measured.
    """
    searched = {"rule": {"name": "task_arithmetic", "scale": "search"}, "training": {"epochs": 1}}
    two = make(tmp_path, "two", recipe(home, NAMES[:2], pico("bert"), **searched))
    whole = shutil.copytree(two.folder, tmp_path / "whole")
    learn_more(whole, {"data": table(home, "texture")})
    other = Run(shutil.copytree(whole, tmp_path / "other"))
    forget(whole, "texture")
    assert differing(whole, two) == []
    forget(other.folder, "fruit")
    assert other.combined()["candidates"] == [] and "scale" not in other.combined()["options"]
    assert len(answers(other)) == len(TEXTS)  # by 1/n, until then
    evaluate_run(other.folder)
    never = make(tmp_path, "never", recipe(home, NAMES[1:], pico("bert"), **searched))
    assert set(differing(other, never)) <= {"events.jsonl"} and answers(other) == answers(never)


def test_a_scale_for_each_task(home, pico, tmp_path):
    def scaled(names):
        scale = {"fruit": 0.25, "colour": 0.5, "texture": 0.75}
        rule = {"name": "task_arithmetic", "scale": {name: scale[name] for name in names}}
        return recipe(home, names, pico("bert"), rule=rule, training={"epochs": 1})

    whole, never = (
        make(tmp_path, "whole", scaled(NAMES)),
        make(tmp_path, "never", scaled(["fruit", "texture"])),
    )
    forget(whole.folder, "colour")
    assert "colour" not in (whole.folder / "combined.json").read_text()
    assert answers(whole) == answers(never)
    evaluate_run(whole.folder)
    assert set(differing(whole, never)) <= {"events.jsonl"}
    assert "colour" not in (whole.folder / "events.jsonl").read_text()


def test_other_rules(three, home, pico, tmp_path):
    never = make(tmp_path, "never", recipe(home, ["fruit", "texture"], pico("bert")))
    evaluate_run(three.folder, "oracle")
    forget(three.folder, "colour")
    evaluate_run(three.folder)
    rows = []
    for one in (three, never):
        for rule in ("oracle", "opcm", "ties", "routed", "smile"):
            evaluate_run(one.folder, rule, steps="all" if rule == "oracle" else "last")
        rows.append(sorted(map(str, one.scores())))
    assert rows[0] == rows[1] and len(rows[0]) == 9 + 9 + 4 * 6
    for rule in ("oracle", "smile"):
        found = [Model(one, rule=Rule(name=rule)).predict(TEXTS) for one in (three, never)]
        assert found[0] == found[1]


def test_tasks_to_come_were_measured_too(home, pico, tmp_path):
    """Forward transfer: before the first task all heads of the stream are asked,
    so these values go too.
    """

    def values(names):
        return recipe(
            home, names, pico("bert"), evaluation={"future": True}, training={"epochs": 1}
        )

    whole, never = (
        make(tmp_path, "whole", values(NAMES)),
        make(tmp_path, "never", values(["fruit", "texture"])),
    )
    forget(whole.folder, "colour")
    assert {row["step"] for row in whole.scores()} == {1}
    evaluate_run(whole.folder)
    rows = [sorted(map(str, one.scores())) for one in (whole, never)]
    assert rows[0] == rows[1]


# -- names and classes


def test_a_class_that_another_task_has_too_stays(home, pico, tmp_path):
    rows = [(text, "apple" if i % 2 else "plum") for i, text in enumerate(TEXTS)]
    entries = ["fruit", {"data": write(tmp_path / "more.csv", rows)}]
    whole = make(tmp_path, "whole", recipe(home, entries, pico("bert")))
    forget(whole.folder, "fruit")
    assert {label for label, _, _ in answers(whole)} == {"apple", "plum"}
    assert {task for _, _, task in answers(whole)} == {"more"}
    with pytest.raises(UnknownName, match="No task named `fruit`"):
        Model(whole).predict(TEXTS, task="fruit")


def test_an_unknown_name(three):
    before = contents(three)
    with pytest.raises(UnknownName, match="No task named `colours`. Did you mean `colour`?"):
        forget(three.folder, "colours")
    assert contents(three) == before


def test_one_table_with_several_tasks(home, pico, tmp_path):
    rows = [
        (text, label, task)
        for task in ("mail", "chart")
        for i, text in enumerate(TEXTS)
        for label in [f"{task}{i % 2}"]
    ]
    both = {"data": write(tmp_path / "both.csv", rows, ("text", "label", "topic")), "task": "topic"}
    whole = make(
        tmp_path, "whole", recipe(home, [both, "fruit"], pico("bert"), training={"epochs": 1})
    )
    forget(whole.folder, "chart")
    assert whole.tasks == ["mail", "fruit"] and whole.recipe["stream"][0] == both
    evaluate_run(whole.folder)
    learn_more(whole.folder, both)
    assert whole.tasks == ["mail", "fruit", "chart"] and "forgotten" not in whole.recipe
    forget(whole.folder, "chart")
    forget(whole.folder, "mail")
    learn_more(whole.folder, both)
    assert whole.tasks == ["fruit", "mail", "chart"]
    evaluate_run(whole.folder)
    assert verify(whole.folder).faults == []


def test_what_was_forgotten_is_learned_again(three, learned, home):
    forget(three.folder, "texture")
    learn_more(three.folder, {"data": table(home, "texture")})
    assert differing(three, learned) == []
    forget(three.folder, "fruit")
    learn_more(three.folder, {"data": table(home, "fruit")})
    assert three.tasks == ["colour", "texture", "fruit"] and answers(three)


def test_a_task_that_was_only_begun(three, learned, home, monkeypatch):
    """After Ctrl-C its table is still in the recipe: to forget it is to give it up."""

    def stop(*arguments, **options):
        raise Stopped("Stopped.", signal=2)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(sys.modules["perdure.runs.story"], "learn_next", stop)
        learn_more(three.folder, {"data": table(home, "size")})
    assert len(three.recipe["stream"]) == 4 and three.tasks == list(NAMES)
    forget(three.folder, "size")
    assert differing(three, learned) == []


def test_the_only_task(home, pico, tmp_path, perdure):  # noqa: F811
    values = recipe(home, ["fruit"], pico("bert"), seed=3)
    whole = make(tmp_path, "whole", values)
    found = forget(whole.folder, "fruit")
    assert found.traces == () and whole.tasks == [] and "has learned no other task" in str(found)
    assert not (whole.folder / "combined.json").exists()
    words = {"show": "none finished", "report": "report.html", "verify": "Everything is as it was"}
    for command, word in words.items():
        status, out, err = perdure(command, whole.folder)
        assert (status, err) == (0, "") and word in " ".join(out.split()), command
    for command in (("evaluate",), ("run",), ("export", "-o", tmp_path / "out")):
        status, out, err = perdure(command[0], whole.folder, *command[1:])
        assert status == 1 and err.startswith("Error: ") and err.count("\n") == 1, command
    learn_more(whole.folder, {"data": table(home, "fruit")})
    assert answers(whole) == answers(
        make(tmp_path, "again", values)
    )  # on the backbone and seed that it had


# -- the command line


def test_commands_after_forgetting(three, home, tmp_path, perdure):  # noqa: F811
    report([three.folder], three.folder / "report.html")
    status, out, err = perdure("forget", three.folder, "colour")
    assert (status, err) == (0, "") and "`colour` is forgotten" in out
    assert not (three.folder / "report.html").exists()  # it told of the task
    for command in ("show", "report", "verify", "evaluate", "run"):
        status, out, err = perdure(command, three.folder)
        assert (status, err) == (0, "") and "colour" not in out, (command, err)
    assert (three.folder / "report.html").read_text().count(
        "colour"
    ) == 1  # in the recipe, as forgotten
    table_of_it, out = table(home, "colour"), tmp_path / "out.csv"
    assert perdure("predict", three.folder, table_of_it, "-o", out)[0] == 0
    assert not {row["predicted_label"] for row in read_table(out)} & set(TABLES["colour"])
    assert perdure("export", three.folder, "-o", tmp_path / "export")[0] == 0
    assert perdure("learn", three.folder, "--data", table(home, "size"), "-q")[0] == 0
    assert three.tasks == ["fruit", "texture", "size"]
    status, _, err = perdure("forget", three.folder, "colou")
    assert status == 1 and "No task named `colou`" in err


def test_the_recipe_of_before_is_refused(three, learned, tmp_path, perdure):  # noqa: F811
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(learned.recipe))
    forget(three.folder, "colour")
    before = contents(three)
    status, _, err = perdure("run", tmp_path / "old.yaml", "-o", three.folder)
    assert status == 1 and "`forgotten`: ['colour'] before, nothing now" in err
    assert f"`perdure run {three.folder}`" in err and contents(three) == before


def test_a_method_that_is_not_here_is_taken_to_depend(home, pico, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom perdure import PeftMethod\n\n"
        "@dataclass(kw_only=True)\nclass Mine(PeftMethod):\n    '''As usual.'''\n"
    )
    method = {"name": str(tmp_path / "mine.py"), "rank": 2}
    whole = make(
        tmp_path,
        "whole",
        recipe(home, NAMES[:2], pico("bert"), method=method, training={"epochs": 1}),
    )
    (tmp_path / "mine.py").unlink()
    assert forget(whole.folder, "fruit").traces == ("colour",)


def test_the_last_state_of_a_sequence_needs_its_stream_again(toy, bert, tmp_path):
    training = Training(epochs=1, batch_size=8)
    whole = run(toy, bert, Sequential(rank=2), training=training, output=tmp_path / "whole")
    never = run(
        replace(toy, tasks=toy.tasks[1:]),
        bert,
        Sequential(rank=2),
        training=training,
        output=tmp_path / "n",
    )
    with pytest.raises(InputError, match="was made in Python"):
        forget(whole.folder, "fruit", retrain_later=True)
    forget(
        whole.folder, "fruit", retrain_later=True, stream=toy
    )  # what is forgotten is left out of it
    assert differing(whole, never) == []
