"""Whatever a disk refuses: what was there stays readable, the error names the place, and the same
thing can be done again. Every file operation below the run folder is made to fail,
one after another.
"""

import csv
import json
import operator
import os
import random
import re
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from faults import Faults, watching

from perdure import (
    Backbone,
    Evaluation,
    Model,
    PerdureError,
    Recipe,
    Rule,
    Run,
    Training,
    forget,
    run,
    verify,
)
from perdure.evaluation.measure import measure
from perdure.learning.snapshot import Snapshot
from perdure.methods.isolated import Isolated
from perdure.report.html import report
from perdure.runs import put
from perdure.runs.forget import remove_last
from perdure.runs.layout import UNFINISHED
from perdure.runs.resume import restored
from perdure.runs.writer import Writer, create, writing
from perdure.storage import lock
from perdure.storage.tensors import TensorFile

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
SOAK = bool(os.environ.get("PERDURE_SOAK"))
FEW = Training(epochs=1, batch_size=16, learning_rate=0.01, checkpoint_steps=1)
ROWS = [
    {
        "step": 2,
        "task": "fruit",
        "scenario": "task",
        "task_id": "given",
        "rule": "x",
        "metric": "m",
        "value": 0.5,
    }
]
SNAPSHOT = Snapshot(
    {"step": 1, "seconds": 0.5, "belongs_to": {"tasks": {"shape": {"train": ""}}}},
    {"parameter/0": torch.ones(500)},
)


def whole(folder: Path) -> dict[str, bytes]:
    """All files of a run, but for who holds it."""
    files = {
        str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    found = {name: path.read_bytes() for name, path in files.items() if name != "lock.json"}
    if UNFINISHED in found:  # in the library's own order, which is not always the same
        found[UNFINISHED] = TensorFile(folder / UNFINISHED).metadata["sha256"].encode()
    return found


def counting(found: dict[str, bytes]) -> dict[str, bytes]:
    """What of them counts: nothing that was not finished, and no times."""
    left_out = (
        "perdure-partial",
        "report.html",
    )  # a report names what could not be read, instead of failing
    found = {
        name: content
        for name, content in found.items()
        if not any(part in name for part in left_out)
    }
    text = found.get("events.jsonl", b"").decode()
    lines = [
        {key: value for key, value in json.loads(line).items() if key != "seconds"}
        for line in text.splitlines()
    ]
    return found | {"events.jsonl": json.dumps(lines).encode()}


def check_readable(folder: Path, before: dict[str, bytes], after: dict[str, bytes]) -> None:
    """Each file is the old one or the new one, and what reads a run can read it."""
    for name, content in whole(folder).items():
        if "perdure-partial" not in name and name not in ("events.jsonl", "report.html"):
            assert content in (before.get(name), after.get(name)), (
                f"`{name}` is neither the old file nor the new one"
            )
    if not (folder / "recipe.yaml").exists():
        assert not before
        return
    found = Run(folder)
    for name in found.tasks:
        assert found.load_task(name).name == name
    found.scores(), found.events(), found.load_unfinished()
    assert page(folder).endswith(b"</html>") or not page(folder)
    assert (
        before.keys() & after.keys() <= whole(folder).keys()
    )  # what was there, and was to stay, is there


def page(folder: Path) -> bytes:
    return (folder / "report.html").read_bytes() if (folder / "report.html").exists() else b""


@pytest.fixture(scope="module")
def made(pico, toy, tmp_path_factory) -> dict[str, Any]:
    """A run of two tasks, inside its third; and the pieces of one that can be written."""
    place = tmp_path_factory.mktemp("made")
    two = run(
        toy.until(2),
        Backbone.load(pico(), pooling="mean"),
        Isolated(rank=2),
        training=FEW,
        output=place / "two",
    )
    Writer(two.folder).unfinished(SNAPSHOT)
    one = Path(shutil.copytree(place / "two", place / "one"))
    with writing(one):
        remove_last(one, "colour")
    recipe = {"backbone": two.recipe["backbone"] | {"model": str(pico())}}
    stream = toy.until(2)
    system = restored(
        two.state, Backbone.load(pico(), pooling="mean"), Rule.of(two.recipe["rule"]), stream
    )
    measurement = measure(system.with_rule(Rule("sum")), stream, Evaluation())
    made = {"two": two.folder, "one": one, "recipe": two.recipe | recipe}
    return made | {"system": system, "measurement": measurement}


def _writing(
    action: Callable[[Writer, dict[str, Any]], Any],
) -> Callable[[Path, dict[str, Any]], Any]:
    def act(folder: Path, made: dict[str, Any]) -> None:
        with writing(folder) as writer:
            action(writer, made)

    return act


def _save_task(writer: Writer, made: dict[str, Any]) -> None:
    if "colour" not in writer.state.tasks:
        writer.task(made["system"])


def _remove(writer: Writer, made: dict[str, Any]) -> None:
    if "colour" in writer.state.tasks:
        remove_last(writer.folder, "colour")


def _combined(writer: Writer, made: dict[str, Any]) -> None:
    put.combined(writer.folder, writer.state.combined | {"x": 1})


def _measurement(writer: Writer, made: dict[str, Any]) -> None:
    """As a run goes on: an evaluation in the log without its scores is dropped,
    and what has scores is not repeated.
    """
    writer.trim_events(None, 0)
    if not any(row["rule"] == "sum" for row in writer.state.scores):
        writer.measurement(made["measurement"])


def _forget(folder: Path, made: dict[str, Any]) -> None:
    if "fruit" in Run(folder).tasks:
        forget(folder, "fruit")
    else:
        # It was forgotten when its recipe was written: the next to write removes what is left.
        with writing(folder):
            pass


def _create(folder: Path, made: dict[str, Any]) -> None:
    if not os.path.exists(folder / "recipe.yaml"):
        create(folder, made["recipe"])


def _verify(folder: Path, made: dict[str, Any]) -> None:
    if faults := verify(folder, backbone=False).faults:
        raise PerdureError("; ".join(faults))


def _read(folder: Path, made: dict[str, Any]) -> None:
    results = Run(folder)
    (
        results.scores(),
        results.events(),
        results.combined(),
        results.load_unfinished(),
        lock.holder(folder),
    )
    Model(folder).predict(["w1 w2"])


READING = ("report", "verify", "read")
"""They change nothing but `report.html`."""
FEW_CASES = 40
"""The number of operations that fail in turn; in a soak all of them do."""
ACTIONS: dict[str, tuple[str, Callable[[Path, dict[str, Any]], Any]]] = {
    "create": ("", _create),
    "lock": ("two", _writing(lambda writer, made: None)),
    "save_task": ("one", _writing(_save_task)),
    "save_unfinished": ("two", _writing(lambda writer, made: writer.unfinished(SNAPSHOT))),
    "add_scores": ("two", _writing(lambda writer, made: put.scores(writer.folder, ROWS))),
    "save_combined": ("two", _writing(_combined)),
    "measurement": ("two", _writing(_measurement)),
    "event": (
        "two",
        _writing(lambda writer, made: writer.event({"event": "evaluation", "step": 2})),
    ),
    "trim_events": ("two", _writing(lambda writer, made: writer.trim_events("colour", 0))),
    "remove_task": ("two", _writing(_remove)),
    "forget": ("two", _forget),
    "report": ("two", lambda folder, made: report([folder], folder / "report.html")),
    "verify": ("two", _verify),
    "read": ("two", _read),
}


def attempt(act: Callable[[], Any], faults: Faults) -> str:
    """Do it with a fault: nothing, or the words of perdure's own error."""
    try:
        with watching(faults):
            act()
    except PerdureError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", ACTIONS)
def test_every_operation_fails_in_every_way(name, made, tmp_path, monkeypatch):
    monkeypatch.setattr(
        os, "fsync", operator.index
    )  # counted, and made to fail, but not waited for
    start, action = ACTIONS[name]
    folder = tmp_path / "run"

    def fresh() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        if start:
            shutil.copytree(made[start], folder)

    def act() -> None:
        action(folder, made)

    fresh()
    before = whole(folder)
    with watching(Faults(folder)) as counted:
        act()
    after, refused, wrong = whole(folder), 0, list[str]()
    assert len(counted.done) > 5
    cases = [(number, kind) for number, (_, kinds) in enumerate(counted.done) for kind in kinds]
    if not SOAK:
        cases = random.Random(name).sample(
            cases, min(len(cases), FEW_CASES // 2 if name == "report" else FEW_CASES)
        )
    for number, kind in cases:
        if name not in READING:
            fresh()
        try:
            said = attempt(act, Faults(folder, number, kind))
            refused += bool(said) or b"What is missing" in page(folder)
            assert not said or re.search(rf"`{re.escape(str(folder))}(/[^`]*)?`", said), (
                f"no place in: {said}"
            )
            check_readable(folder, before, after)
            if name not in READING and (said or name != "event"):
                act()
            assert counting(whole(folder)) == counting(after), "done again, it is something else"
        except Exception as error:
            trace = [
                f"{Path(one.filename).name}:{one.lineno}"
                for one in traceback.extract_tb(error.__traceback__)
            ]
            operation = counted.done[number][0]
            wrong.append(
                f"{kind} at {number}, {operation}: {type(error).__name__}: {error} ({trace[-6:]})"
            )
    assert not wrong, f"{len(wrong)} wrong:\n" + "\n".join(wrong[:20])
    assert refused > 5


@pytest.fixture(scope="module")
def table(pico, tmp_path_factory) -> dict[str, Any]:
    """A recipe of two small tables."""
    place = tmp_path_factory.mktemp("tables")
    for number, name in enumerate(("fruit", "colour")):
        rows = [("text", "label"), *((f"w{i} w{number} w{i % 2}", "ab"[i % 2]) for i in range(16))]
        with open(place / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    return {
        "stream": [{"data": str(place / f"{name}.csv")} for name in ("fruit", "colour")],
        "backbone": {"model": str(pico()), "pooling": "mean", "max_length": 8},
        "method": {"name": "isolated", "rank": 1},
        "training": {"epochs": 1, "batch_size": 8, "checkpoint_steps": 1},
    }


def test_a_whole_run_fails_somewhere_and_goes_on(table, tmp_path, monkeypatch):
    """It comes to the same result, whatever was refused on the way: a sample of all moments;
    in a soak each of them.
    """
    monkeypatch.setattr(os, "fsync", operator.index)
    folder = tmp_path / "run"

    def act() -> None:
        Recipe.parse(table).run(folder)

    with watching(Faults(folder)) as counted:
        act()
    expected, refused = counting(whole(folder)), 0
    moments, drawn = list(range(len(counted.done))), random.Random(0)
    for number in moments if SOAK else drawn.sample(moments, 20):
        operation, kinds = counted.done[number]
        kind = drawn.choice(kinds)
        shutil.rmtree(folder)
        said = attempt(act, Faults(folder, number, kind))
        refused += bool(said)
        assert not said or str(folder) in said, f"{kind} at {number}, {operation}: {said}"
        act()
        assert counting(whole(folder)) == expected, f"{kind} at {number}, {operation}"
    assert refused > 10 and len(moments) > 200


LIMITED = """
import resource, sys
import torch
from perdure import OutputError
from perdure.learning.snapshot import Snapshot
from perdure.runs.writer import writing
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
try:
    with writing(sys.argv[1]) as writer:
        writer.unfinished(Snapshot({"step": 2}, {"parameter/0": torch.ones(5000)}))
except OutputError as error:
    sys.exit(f"refused: {error}")
"""


def test_a_limit_of_the_system(made, tmp_path):
    folder = Path(shutil.copytree(made["two"], tmp_path / "run"))
    before = whole(folder)
    done = forked.python(LIMITED, folder)
    assert (
        done.returncode == 1
        and f"refused: `{folder / UNFINISHED}` cannot be written" in done.stderr
    ), done.stderr
    assert whole(folder) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(made, tmp_path):
    folder = Path(shutil.copytree(made["two"], tmp_path / "run"))
    before = whole(folder)
    for place in (folder / "tasks", folder):
        place.chmod(0o555)
    try:
        assert (
            len(Model(folder).predict(["w1 w2"])) == 1 and not verify(folder, backbone=False).faults
        )
        for name, (start, action) in ACTIONS.items():
            if start == "two" and name not in READING:
                with pytest.raises(PerdureError, match=re.escape(str(folder))):
                    action(folder, made)
        assert whole(folder) == before
    finally:
        folder.chmod(0o755)
