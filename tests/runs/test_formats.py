"""Run folders as older versions wrote them: they load, say what they said, and go on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from perdure import Model, Run
from perdure.runs import layout
from perdure.runs.extend import evaluate_run, forget, learn_more
from perdure.runs.verify import verify

FORMATS = sorted(
    (Path(__file__).parents[1] / "formats").glob("[0-9]*"), key=lambda path: int(path.name)
)
RUNS = [
    (folder, name)
    for folder in FORMATS
    for name in json.loads((folder / "expected.json").read_text())["predictions"]
]


@pytest.fixture(params=RUNS, ids=lambda one: f"{one[0].name}-{one[1]}")
def kept(request, tmp_path, monkeypatch):
    """A copy of a run, in the folder that its recipe's names are relative to;
    and what it has to say.
    """
    folder, name = request.param
    shutil.copytree(folder, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    expected = json.loads(Path("expected.json").read_text())
    return Run(name), expected["texts"], expected["predictions"][name]


def agree(results, texts, expected):
    for found, (label, probability, task) in zip(
        Model(results).predict(texts), expected, strict=True
    ):
        assert (found.label, found.task) == (label, task) and found.probability == pytest.approx(
            probability, abs=1e-5
        )


def test_every_format_is_kept():
    assert [int(folder.name) for folder in FORMATS] == list(range(1, layout.FORMAT + 1))
    for folder in FORMATS:
        for run in folder.glob("*/environment.json"):
            assert json.loads(run.read_text()).get("format", 1) == int(folder.name)
    assert sum(
        path.stat().st_size for folder in FORMATS for path in folder.rglob("*")
    ) < 400_000 * len(FORMATS)


def test_it_says_what_it_said(kept):
    agree(*kept)


def test_its_files_are_sound(kept, perdure):  # noqa: F811
    results, *_ = kept
    found = verify(results.folder)
    assert found.faults == [] and found.notes == []
    for command in (
        ("show", results.folder),
        ("report", results.folder),
        ("export", results.folder, "-o", "out"),
    ):
        status, _, err = perdure(*command)
        assert (status, err) == (0, ""), command


def test_there_is_nothing_left_to_do(kept, perdure):  # noqa: F811
    """No setting that came later is taken for one that has changed."""
    results, *expected = kept
    if results.begun():
        pytest.skip("it was stopped inside a task")
    before = results.scores()
    status, out, err = perdure("run", results.folder, "-q")
    assert (status, err) == (0, "") and "Nothing was left to do" in out
    evaluate_run(results.folder)
    rows = zip(results.scores(), before, strict=True)
    assert all(
        new | {"value": old["value"]} == old and new["value"] == pytest.approx(old["value"])
        for new, old in rows
    )
    agree(results, *expected)


def test_it_learns_and_forgets(kept):
    results, texts, expected = kept
    rows = [f"{text},{'near' if i % 2 else 'far'}" for i, text in enumerate(texts * 3)]
    Path("place.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    before = results.tasks
    learn_more(results.folder, {"data": "place.csv"})
    begun = [name for name in results.tasks if name not in [*before, "place"]]
    assert results.tasks == [*before, *begun, "place"]
    for name in ["place", *begun]:
        forget(results.folder, name)
    agree(results, texts, expected)
    found = forget(results.folder, "fruit")
    assert bool(found.traces) == (
        bool(found.left) and results.recipe["method"]["name"] != "isolated"
    )
    assert not found.left or {found.label for found in Model(results).predict(texts)} <= {
        "red",
        "green",
        "blue",
    }
    assert verify(results.folder).faults == []


def test_a_state_inside_a_task_goes_on(kept):
    results, *_ = kept
    if not results.begun():
        pytest.skip("it was not stopped inside a task")
    from perdure import Recipe

    step = results.load_unfinished().about["step"]
    before = [event for event in results.events() if event.get("step") and event["event"] == "step"]
    Recipe.read(results.folder / "recipe.yaml").run(results.folder)
    after = [event for event in results.events() if event.get("step") and event["event"] == "step"]
    assert results.begun() is None and step == 4
    assert after[: len(before)] == before  # it was gone on with, not begun again


@pytest.mark.parametrize("number", [folder.name for folder in FORMATS])
def test_the_way_to_know_no_task_had_another_name(number, tmp_path, monkeypatch, perdure):
    """Older folders say `concatenated`: read, shown, gone on with and measured again, it is
    `none`."""
    shutil.copytree(FORMATS[int(number) - 1], tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    text = Path("isolated/scores.csv").read_text()
    assert ",concatenated," in text and ",none," not in text
    results = Run("isolated")
    assert {row["task_id"] for row in results.scores()} == {"given", "posterior", "none"}
    assert results.recipe["evaluation"]["task_ids"] == ["given", "posterior", "none"]
    matrix = results.matrix(task_id="none")
    assert not np.isnan(np.diag(matrix)).any()
    assert np.array_equal(results.matrix(task_id="concatenated"), matrix, equal_nan=True)
    status, out, err = perdure("report", "isolated", "--format", "markdown")
    assert (status, err) == (0, "") and "not known" in out and "concatenated" not in out
    status, out, _ = perdure("run", "isolated", "-q")
    assert status == 0 and "Nothing was left to do" in out
    evaluate_run("isolated")
    rows = Run("isolated").scores()
    keys = [(row["step"], row["task"], row["rule"], row["task_id"]) for row in rows]
    assert (
        len(keys) == len(set(keys))
        and "concatenated" not in Path("isolated/scores.csv").read_text()
    )
    assert np.allclose(Run("isolated").matrix(task_id="none"), matrix, equal_nan=True)
