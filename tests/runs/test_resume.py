"""A run goes on where it stopped: which changes it allows, what a signal does,
and what a kill may leave behind.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import forked
import pytest
import torch
import yaml
from filelock import FileLock
from small_runs import answers, contents, differing, make, recipe, stopped, table

from perdure import OutputError, PerdureWarning, Recipe, Run, RunError, Stopped, Training, run
from perdure.learning.stopping import stopping
from perdure.methods.isolated import Isolated
from perdure.runs.changes import check_changes, differences
from perdure.runs.extend import evaluate_run, learn_more
from perdure.runs.streams import own_stream
from perdure.runs.verify import verify
from perdure.runs.writer import Writer, create, writing
from perdure.storage import lock, partial

NAMES = ("fruit", "colour")
MOMENTUM = str(Path(__file__).parents[1] / "momentum.py")
"""A method with an optimizer of its own."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


@pytest.fixture(scope="module")
def values(home, pico):
    return recipe(home, NAMES, pico("bert"), training={"checkpoint_steps": 2})


@pytest.fixture(scope="module")
def whole(home, values):
    return make(home, "whole", values)


@pytest.fixture
def finished(whole, tmp_path):
    return Run(shutil.copytree(whole.folder, tmp_path / "finished"))


@pytest.fixture(scope="module")
def half(home, values):
    """A run that was stopped inside its second task, after the fourth of six steps."""
    return stopped(make, home, "half", values, task="colour", step=4)


@pytest.fixture
def part(half, tmp_path):
    return Run(shutil.copytree(half.folder, tmp_path / "part"))


# -- going on


def test_a_run_that_was_stopped_goes_on_by_its_folder_or_by_its_recipe(
    part, whole, values, tmp_path, perdure
):  # noqa: F811
    other = shutil.copytree(part.folder, tmp_path / "other")
    assert part.tasks == ["fruit"] and part.begun() == "colour"
    steps = [
        event["step"]
        for event in part.events()
        if event["event"] == "step" and event["task"] == "colour"
    ]
    assert steps[-1] in (4, 5)  # the signal came when the fourth was done, or while the next was
    assert perdure("run", part.folder, "-q")[0] == 0
    (tmp_path / "it.yaml").write_text(yaml.safe_dump(values))
    status, out, err = perdure("run", tmp_path / "it.yaml", "-o", other, "-q")
    assert (status, err) == (0, "") and "Nothing was left" not in out
    assert differing(part, whole) == differing(other, whole) == [] and answers(part) == answers(
        whole
    )


@pytest.fixture(scope="module")
def by_momentum(home, pico):
    method = {"name": MOMENTUM, "rank": 2}
    return recipe(home, NAMES, pico("bert"), method=method, training={"checkpoint_steps": 2})


@pytest.fixture(scope="module")
def half_by_momentum(home, by_momentum):
    return stopped(make, home, "half-by-momentum", by_momentum, task="colour", step=4)


def test_a_method_with_an_optimizer_of_its_own_goes_on(by_momentum, half_by_momentum, tmp_path):
    whole = make(tmp_path, "whole", by_momentum)
    part = Run(shutil.copytree(half_by_momentum.folder, tmp_path / "part"))
    snapshot = part.load_unfinished()
    assert (
        "optimizer/0/momentum_buffer" in snapshot.tensors
        and "optimizer/group/0/scales" in snapshot.tensors
    )
    assert not any("exp_avg" in name for name in snapshot.tensors)
    assert differing(make(tmp_path, "part", by_momentum), whole) == []
    assert whole.load_task("colour").state["scales"].min() > 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimizer/0/momentum_buffer", torch.zeros(1)),
        ("optimizer/0/momentum_buffer", None),
        ("optimizer/0/exp_avg", torch.zeros(1)),
        ("optimizer/99/momentum_buffer", torch.zeros(1)),
        ("optimizer/x/momentum_buffer", torch.zeros(1)),
        ("optimizer/group/0/scales", torch.zeros(2**20)),
        ("optimizer/group/0/scales", torch.zeros(4, dtype=torch.int64)),
        ("optimizer/group/0/scales", None),
        ("optimizer/group/7/scales", torch.zeros(1)),
        ("momentum", 0.5),
        ("scales", [1.0]),
    ],
)
def test_what_such_an_optimizer_does_not_keep_is_refused(
    name, value, by_momentum, half_by_momentum, tmp_path
):
    part = Run(shutil.copytree(half_by_momentum.folder, tmp_path / "part"))
    snapshot = part.load_unfinished()
    if not name.startswith("optimizer/"):
        snapshot.about["groups"][0][name] = value
    elif value is None:  # a number where a tensor was
        del snapshot.tensors[name]
        snapshot.about["optimizer"][name.removeprefix("optimizer/")] = 1.0
    else:
        snapshot.tensors[name] = value
    snapshot.save(part.folder / "unfinished.safetensors")
    with pytest.raises(
        RunError, match="The saved state of task `colour` was made with other settings"
    ):
        make(tmp_path, "part", by_momentum)


@pytest.mark.parametrize("by", ["folder", "recipe"])
def test_a_finished_run_says_so(by, finished, values, tmp_path, perdure):  # noqa: F811
    before = contents(finished)
    (tmp_path / "it.yaml").write_text(yaml.safe_dump(values))
    given = [finished.folder] if by == "folder" else [tmp_path / "it.yaml", "-o", finished.folder]
    status, out, err = perdure("run", *given)
    assert (status, err) == (0, "") and out.endswith("Nothing was left to do.\n")
    assert contents(finished) == before


def test_a_run_in_python_goes_on_by_the_same_call(toy, bert, tmp_path):
    def begin(folder, name):
        options = {
            "training": Training(epochs=2, batch_size=8, checkpoint_steps=3),
            "output": folder / name,
        }
        return run(toy.until(2), bert, Isolated(rank=2), **options)

    one = begin(tmp_path, "one")
    event = Writer.event

    def noted(self, values):
        event(self, values)
        if values.get("task") == "colour" and values.get("step") == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(Stopped, match="Call it again with the same `output`"),
    ):
        patch.setattr(Writer, "event", noted)
        begin(tmp_path, "other")
    assert differing(begin(tmp_path, "other"), one) == []


def test_a_stop_while_it_is_measured(values, whole, tmp_path, monkeypatch):
    module = sys.modules["perdure.runs.story"]
    measure = module.measure

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        measure(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(Stopped) as stop:
        patch.setattr(module, "measure", interrupted)
        make(tmp_path, "r", values)
    assert stop.value.signal == signal.SIGINT and Run(tmp_path / "r").tasks == ["fruit"]
    assert differing(make(tmp_path, "r", values), whole) == []


def test_a_search_that_was_stopped(home, pico, tmp_path, monkeypatch, perdure):  # noqa: F811
    """A task is learned, but nobody knows its scale yet."""
    rule = {"name": "task_arithmetic", "scale": "search"}
    values = recipe(home, NAMES, pico("bert"), rule=rule, training={"epochs": 1})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            sys.modules["perdure.runs.story"],
            "measure",
            lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt),
        )
        make(tmp_path, "r", values)
    assert verify(tmp_path / "r").faults == []
    assert perdure("verify", tmp_path / "r")[0] == 0
    assert perdure("report", tmp_path / "r")[0] == 0
    assert "Nothing has been measured yet" in (tmp_path / "r" / "report.html").read_text(
        encoding="utf-8"
    )
    assert differing(make(tmp_path, "r", values), make(tmp_path, "whole", values)) == []


def acting(run: Run) -> dict:
    """How the adapters are combined now, but for what was found at other steps."""
    return {key: value for key, value in run.combined().items() if key != "searches"}


def test_measuring_an_earlier_step_later_changes_no_model(home, pico, tmp_path):
    rule = {"name": "task_arithmetic", "scale": "search"}
    last = recipe(
        home, NAMES, pico("bert"), rule=rule, training={"epochs": 1}, evaluation={"steps": "last"}
    )
    results = make(tmp_path, "r", last)
    before = acting(results)
    make(tmp_path, "r", last | {"evaluation": {"steps": "all"}})
    assert {row["step"] for row in results.scores()} == {1, 2} and acting(results) == before
    assert [search["step"] for search in results.combined()["searches"]] == [1, 2]


def test_tasks_to_come_can_be_measured_afterwards(home, pico, tmp_path):
    def future(wanted):
        return recipe(
            home, NAMES, pico("bert"), training={"epochs": 1}, evaluation={"future": wanted}
        )

    at_once, later = make(tmp_path, "at-once", future(True)), make(tmp_path, "later", future(False))
    make(tmp_path, "later", future(True))
    assert sorted(map(str, later.scores())) == sorted(map(str, at_once.scores()))
    before = later.scores()
    evaluate_run(later.folder)
    assert later.scores() == before


# -- other settings


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"seed": 1}, "`seed`: 0 before, 1 now"),
        ({"method": {"name": "isolated", "rank": 4}}, "`method.rank`: 2 before, 4 now"),
        (
            {"method": "sequential", "rule": "last"},
            "`method.name`: isolated before, sequential now",
        ),
        ({"training": {"epochs": 3}}, "`training.epochs`: 2 before, 3 now"),
        ({"training": {"alignment": {}}}, "`training.alignment.temperature`: nothing before, "),
        ({"training": {"keep_inputs": True}}, "`training.keep_inputs`: False before, True now"),
        ({"backbone": {"max_length": 9}}, "`backbone.max_length`: 8 before, 9 now"),
        ({"scenario": "task"}, "`scenario`: nothing before, task now"),
    ],
)
def test_what_touches_what_was_learned_is_refused(change, line, part, values):
    before = contents(part)
    with pytest.raises(RunError) as refused:
        make(part.folder.parent, "part", merged(values, change))
    assert line in str(refused.value) and f"`perdure run {part.folder}`" in str(refused.value)
    assert contents(part) == before


@pytest.mark.parametrize(
    "change",
    [
        {"name": "mine", "about": "Something."},
        {"training": {"checkpoint_steps": 3}},
        {"evaluation": {"task_ids": ["given"]}},
    ],
)
def test_what_does_not_is_not(change, part, whole, values):
    changed = make(part.folder.parent, "part", merged(values, change))
    assert {name for name in differing(changed, whole) if name.startswith("tasks/")} == set()
    for section, value in change.items():
        found = changed.recipe[section]
        assert found == value if isinstance(value, str) else value.items() <= found.items()
    assert answers(changed) == answers(whole)


def test_another_rule_is_measured_and_used_from_then_on(finished, values):
    changed = make(
        finished.folder.parent,
        "finished",
        values | {"rule": {"name": "task_arithmetic", "scale": 0.25}},
    )
    assert {row["rule"] for row in changed.scores()} == {
        "task_arithmetic",
        "task_arithmetic(scale=0.25)",
    }
    assert changed.combined()["options"] == {"scale": 0.25}


def test_another_rule_touches_aligned_heads():
    plain, aligned = (
        {"rule": {"name": "sum"}, "training": {"alignment": one}} for one in (None, {"epochs": 1})
    )
    check_changes(Path("r"), plain, plain | {"rule": {"name": "ties"}})
    with pytest.raises(RunError, match=r"`rule\.name`: sum before, ties now"):
        check_changes(Path("r"), aligned, aligned | {"rule": {"name": "ties"}})


def test_long_values_are_cut():
    ((_, line),) = differences({"about": "x" * 999}, {"about": ["y"] * 999})
    assert len(line) < 500


def test_a_table_that_was_moved(part, whole, values, tmp_path):
    moved = [{"data": shutil.copy(entry["data"], tmp_path)} for entry in values["stream"]]
    changed = make(part.folder.parent, "part", values | {"stream": moved})
    assert differing(changed, whole) == ["recipe.yaml"] and changed.recipe["stream"] == moved


def test_a_table_that_has_changed_leaves_the_recipe_as_it_was(part, values, home, tmp_path):
    other = tmp_path / "fruit.csv"
    shutil.copy(table(home, "texture"), other)
    before = contents(part)
    with pytest.raises(
        RunError, match="The examples of task `fruit` are not those that the run learned"
    ):
        make(
            part.folder.parent,
            "part",
            values | {"stream": [{"data": str(other)}, values["stream"][1]]},
        )
    assert contents(part) == before


def test_examples_of_the_task_that_was_begun_have_changed(part, values, home, tmp_path):
    other = tmp_path / "colour.csv"
    shutil.copy(table(home, "size"), other)
    with pytest.warns(PerdureWarning, match="it starts again from the beginning"):
        make(
            part.folder.parent,
            "part",
            values | {"stream": [values["stream"][0], {"data": str(other)}]},
        )
    assert part.tasks == ["fruit", "colour"] and verify(part.folder).faults == []


def test_a_shorter_stream(finished, values):
    before = contents(finished)
    with pytest.raises(
        RunError, match=r"has learned the tasks .* Keep their order, and put new ones after them"
    ):
        make(finished.folder.parent, "finished", values | {"stream": values["stream"][:1]})
    assert contents(finished) == before


def merged(values, change):
    """Of sections the settings named, of others all."""
    change = {
        key: values[key] | value if key in ("training", "backbone") else value
        for key, value in change.items()
    }
    return values | change


# -- what a kill leaves


def test_a_part_of_a_line_and_events_beyond_what_was_saved(part, whole, values, perdure):  # noqa: F811
    path = part.folder / "events.jsonl"
    beyond = [
        {"event": "step", "task": "colour", "epoch": 1, "step": n, "loss": 9.0} for n in (1, 2)
    ]
    for one in beyond:
        one["step"] += part.load_unfinished().about["step"]
    path.write_text(
        path.read_text() + "".join(json.dumps(one) + "\n" for one in beyond) + '{"event": "st'
    )
    status, out, _ = perdure("verify", part.folder)
    assert (
        status == 0
        and "and one incomplete line" in out
        and "in the middle of a task, after step" in out
    )
    assert perdure("show", part.folder)[0] == 0
    assert differing(make(part.folder.parent, "part", values), whole) == []


def test_values_beyond_what_was_saved(finished, whole, values):
    """A task's folder that never got its manifest counts for nothing, nor do events of it."""
    (finished.folder / "tasks" / "01-colour" / "manifest.json").unlink()
    rows = (finished.folder / "scores.csv").read_text().splitlines()
    (finished.folder / "scores.csv").write_text(
        "\n".join(row for row in rows if not row.startswith("2")) + "\n"
    )
    assert differing(make(finished.folder.parent, "finished", values), whole) == []
    tasks = [event for event in finished.events() if event["event"] in ("task", "step")]
    assert len(tasks) == len(
        [event for event in whole.events() if event["event"] in ("task", "step")]
    )


@pytest.mark.parametrize(
    "left", [[], ["environment.json"], ["lock.json", partial.new_path(Path()).name]]
)
def test_a_folder_that_was_being_made(left, whole, tmp_path):
    folder = tmp_path / "r"
    folder.mkdir()
    for name in left:
        (folder / name).write_text("")
    create(folder, whole.recipe)
    assert sorted(path.name for path in folder.iterdir()) == ["environment.json", "recipe.yaml"]


def test_a_folder_that_is_no_run(tmp_path, perdure):  # noqa: F811
    (tmp_path / "r").mkdir()
    status, _, err = perdure("run", tmp_path / "r")
    assert status == 1 and f"`{tmp_path / 'r'}` is a folder but not a run" in err


# -- learning more


def test_learning_more_that_fails_leaves_the_recipe_as_it_was(finished, home, perdure):  # noqa: F811
    before = contents(finished)
    hot = ("--set", "training.learning_rate=1e37", "--set", "training.epochs=4")
    status, _, err = perdure("learn", finished.folder, "--data", table(home, "size"), *hot, "-q")
    assert status == 1 and "Lower `learning_rate`" in err
    after = contents(finished)
    assert {name for name in {*after, *before} if after.get(name) != before.get(name)} == {
        "events.jsonl"
    }


def test_learning_more_that_is_stopped_goes_on(finished, home, tmp_path, perdure):  # noqa: F811
    entry = {"data": table(home, "size")}
    more = shutil.copytree(finished.folder, tmp_path / "more")
    learn_more(more, entry)
    stopped(
        lambda folder, name: learn_more(folder / name, entry),
        tmp_path,
        "finished",
        task="size",
        step=2,
    )
    assert finished.recipe["stream"][-1] == entry and finished.begun() == "size"
    assert perdure("run", finished.folder, "-q")[0] == 0
    assert differing(finished, more) == []


def test_the_first_task_that_is_stopped_is_not_thrown_away(home, pico, tmp_path):
    settings = ["training.epochs=2", "training.batch_size=8"]
    first, second = ({"data": table(home, name)} for name in NAMES)

    def learn(folder, name, entry=first):
        return learn_more(folder / name, entry, backbone=str(pico("bert")), settings=settings)

    stopped(learn, tmp_path, "r", task="fruit", step=2)
    assert learn(tmp_path, "r", second).tasks == ["fruit", "colour"]
    whole = learn(tmp_path, "whole")
    learn(tmp_path, "whole", second)
    assert differing(tmp_path / "r", whole) == []


def test_two_tables_at_once_do_not_lose_one_of_each_other(finished, home, monkeypatch):
    """What another process has written meanwhile is not taken back by one that could not write."""
    before = finished.recipe
    with writing(finished.folder) as writer:
        writer.recipe(before | {"about": "by another"})
        with (
            monkeypatch.context() as patch,
            pytest.raises(RunError, match="is being written by process"),
        ):
            # as another process sees it
            patch.setattr(
                lock,
                "FileLock",
                lambda path, **more: FileLock(path, **more | {"is_singleton": False}),
            )
            learn_more(finished.folder, {"data": table(home, "size")})
        assert finished.recipe["about"] == "by another"


def test_a_list_of_tasks_to_leave_out(home):
    entry = {"data": table(home, "fruit")}
    assert own_stream([entry, {"data": table(home, "size"), "without": ["size"]}]).names == [
        "fruit"
    ]
    with pytest.raises(ValueError, match="`without` is 'fruit', but should be a list"):
        own_stream([entry | {"without": "fruit"}])
    with pytest.raises(
        ValueError, match=r"All tasks were forgotten: fruit\. Teach the run new tasks"
    ):
        Recipe.parse(
            {"stream": [entry], "backbone": "minilm", "forgotten": ["fruit"]}
        ).make_stream()


# -- signals, to a real process


def begin(values, folder, *, epochs=30):
    path = folder / "it.yaml"
    path.write_text(
        yaml.safe_dump(merged(values, {"training": {"epochs": epochs, "checkpoint_steps": 1000}}))
    )
    return forked.Process(forked.PERDURE, "run", path, "-o", folder / "r", "-q")


def until(process, found, seconds=90):
    end = time.monotonic() + seconds
    while not found():
        assert process.poll() is None and time.monotonic() < end, process.communicate(timeout=9)
        time.sleep(0.02)


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGHUP, 129)],
)
def test_a_signal_finishes_the_step_and_says_how_to_go_on(number, status, values, tmp_path):
    process = begin(values, tmp_path)
    until(process, lambda: lines(tmp_path / "r" / "events.jsonl") > 3)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status and "Traceback" not in err
    assert err == f"Stopped. What was learned is kept. Go on with `perdure run {tmp_path / 'r'}`.\n"
    results = Run(tmp_path / "r")
    assert results.begun() == "fruit" and not (results.folder / "lock.json").exists()
    assert results.load_unfinished().about["step"] == max(
        event["step"] for event in results.events()
    )
    if number == signal.SIGTERM:
        Recipe.read(results.folder / "recipe.yaml").run(results.folder)
        whole = Recipe.read(results.folder / "recipe.yaml").run(tmp_path / "whole")
        assert differing(results, whole) == []


def test_a_second_signal_stops_at_once(toy, bert, tmp_path, monkeypatch):
    """Inside the step: nothing is saved, and what was finished before is kept."""
    loss = Isolated.loss

    def twice(self, *arguments):
        found = loss(self, *arguments)
        if len(Run(tmp_path / "r").events()) > 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return found

    monkeypatch.setattr(Isolated, "loss", twice)
    with pytest.raises(Stopped):
        run(toy, bert, Isolated(rank=2), output=tmp_path / "r", training=Training(batch_size=8))
    assert Run(tmp_path / "r").begun() is None and len(Run(tmp_path / "r").events()) == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1"])
def test_a_signal_that_would_not_end_the_process_is_left_alone(name, monkeypatch):
    """`nohup` has SIGHUP ignored; a program may have a handler of its own;
    Windows has none of these signals.
    """
    number, came = getattr(signal, name), []
    before = signal.getsignal(number)
    try:
        for handler in (signal.SIG_IGN, lambda *arguments: came.append(number)):
            signal.signal(number, handler)
            with stopping("") as stop, stop.later():
                os.kill(os.getpid(), number)
            assert not stop.asked and signal.getsignal(number) is handler
        assert came == [number]
        signal.signal(number, signal.SIG_DFL)
        with pytest.raises(Stopped) as stopped, stopping("") as stop, stop.later():
            os.kill(os.getpid(), number)
        assert stopped.value.signal == number and signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    monkeypatch.delattr(signal, name)
    with stopping(""):
        pass


def test_learning_more_that_failed_inside_the_task_is_done_by_the_same_command(
    pico, tmp_path, monkeypatch
):
    """A full disk, say: the recipe is as it was before, but the state inside the task is still
    there.
    """
    home = tmp_path / "tables"
    home.mkdir()
    one = make(
        tmp_path,
        "one",
        recipe(home, ["fruit"], pico("bert"), training={"epochs": 1, "checkpoint_steps": 1}),
    )
    entry = {"data": table(home, "colour")}
    whole = shutil.copytree(one.folder, tmp_path / "whole")
    learn_more(whole, entry)

    def refuse(*given, **more):
        raise OutputError("no room")

    with monkeypatch.context() as refused:
        refused.setattr(Writer, "task", refuse)
        with pytest.raises(OutputError, match="no room"):
            learn_more(one.folder, entry)
    assert Run(one.folder).begun() and Run(one.folder).tasks == ["fruit"]
    learn_more(one.folder, entry)
    assert differing(one.folder, whole) == []
