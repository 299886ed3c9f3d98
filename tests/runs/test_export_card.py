"""An exported folder says what it can do, and what it cannot that the run can."""

import contextlib
import csv
import io
import re
from pathlib import Path

import pytest
import torch
import yaml
from small_runs import make, recipe

from perdure import Model, Rule, Run
from perdure.data.task import TaskRows
from perdure.errors import NotFinite
from perdure.runs import layout
from perdure.runs.export_card import Exported, card
from perdure.runs.export_heads import Measured


@pytest.fixture(scope="module")
def run(pico, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("export")
    return make(
        folder, "run", recipe(folder, ["fruit", "colour"], pico("bert"), training={"epochs": 4})
    )


def average(run: Run, task_id: str, rule: str) -> str:
    """The average after the last task, from the file itself."""
    with (run.folder / "scores.csv").open(newline="") as file:
        rows = [
            row for row in csv.DictReader(file) if (row["task_id"], row["rule"]) == (task_id, rule)
        ]
    values = [float(row["value"]) for row in rows if row["step"] == "2"]
    assert len(values) == 2
    return f"{50 * sum(values):.1f} %"


def test_export_says_what_it_loses(run, tmp_path, perdure):  # noqa: F811
    status, out, err = perdure("export", run.folder, "--heads", "joined", "-o", tmp_path / "out")
    text = " ".join(out.split())
    assert (status, err) == (0, "") and out.endswith(f"{tmp_path / 'out'}\n")
    with_posterior, without = (
        average(run, way, "task_arithmetic") for way in ("posterior", "none")
    )
    assert f"2 tasks with `perdure predict`: {with_posterior}." in text
    assert f"2 tasks with this stock model: {without}." in text
    assert "no task posterior" in text
    page = (tmp_path / "out" / "README.md").read_text()
    assert with_posterior in page and without in page and "no task posterior" in page


def test_another_rule_has_its_own_numbers(run, tmp_path, perdure):  # noqa: F811
    out = perdure("export", run.folder, "--rule", "sum", "--heads", "joined", "-o", tmp_path / "a")
    assert perdure("merge", run.folder, "--rule", "sum", "--quiet", "-o", tmp_path / "b")[0] == 0
    # The export measured what the run had not measured yet.
    assert f"this stock model: {average(run, 'none', 'sum')}." in out[1]
    assert f"`perdure predict`: {average(run, 'posterior', 'sum')}." in out[1]
    assert average(run, "posterior", "sum") in (tmp_path / "b" / "README.md").read_text()
    scale = ("--set", "scale=search")
    assert (
        perdure(
            "merge",
            run.folder,
            "--rule",
            "task_arithmetic",
            *scale,
            "--quiet",
            "-o",
            tmp_path / "c",
        )[0]
        == 0
    )
    searched = (tmp_path / "c" / "README.md").read_text()
    assert average(run, "posterior", "task_arithmetic(scale=search)") in searched


def test_no_average_over_fewer_tasks(run):
    label = run.combined()["label"]
    assert set(run.accuracies(label)) == {"given", "posterior", "none"}
    rows = [
        row
        for row in run.scores()
        if not (row["task"] == "fruit" and row["task_id"] == "posterior")
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "scores", lambda folder: rows)
        assert set(run.accuracies(label)) == {"given", "none"}
    assert run.accuracies("nothing") == {}


@pytest.mark.parametrize("pooling", ["stock", "mean"])
def test_the_card_shows_code_that_answers(pooling, pico, tmp_path, monkeypatch):
    backbone = {"model": str(pico("bert")), "pooling": pooling, "max_length": 8}
    values = recipe(tmp_path, ["fruit", "colour"], pico("bert"), method="ncm") | {
        "backbone": backbone
    }
    run = make(tmp_path, "run", values)
    Model(run).export(tmp_path / "checkpoint")
    page = (tmp_path / "checkpoint" / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.S)[1].replace("a text", "w1 w2 w3")
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, "README.md", "exec"), {})
    logits = expected(run)
    assert logits in out.getvalue()
    front = yaml.safe_load(page.split("---")[1])
    assert front["library_name"] == (
        "transformers" if pooling == "stock" else "sentence-transformers"
    )
    assert str(pico("bert").parent) not in page


def expected(run: Run) -> str:
    """The class that all heads, under one softmax, answer to the text of the card."""
    from datasets import Dataset

    from perdure.evaluation.score import task_logits

    model = Model(run)
    examples = model.backbone.prepare([TaskRows("", Dataset.from_dict({"text": ["w1 w2 w3"]}))])
    logits = task_logits(model.backbone, model.combined, examples, model.classes)
    labels = [label for classes in model.classes.values() for label in classes]
    return labels[int(torch.cat(list(logits.values()), dim=1).argmax())]


def test_names_are_no_markup(tmp_path):
    hostile = "<img src=x onerror=alert(1)>|`[a](b)"
    exported = Exported(
        name=hostile,
        base="org/model",
        kind="text",
        stock=True,
        method=hostile,
        rule=hostile,
        tasks={"a": (hostile, "b"), "c": ("d", "e")},
        measured=Measured({}),
    )
    page = card(exported)
    outside = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", page.split("---")[2].split("```python")[0])
    assert "<img" not in outside and "](b)" not in outside
    assert yaml.safe_load(page.split("---")[1])["base_model"] == "org/model"


def test_one_task_loses_nothing():
    one = Exported(
        name="a",
        base="b",
        kind="text",
        stock=True,
        method="ncm",
        rule="last",
        tasks={"t": ("x", "y")},
        measured=Measured({}),
    )
    assert one.sentences() == [] and "posterior" not in card(one)


def test_an_export_is_readable_as_the_umask_says(run, tmp_path):
    Model(run).export(tmp_path / "out")
    modes = {
        path.name: path.stat().st_mode & 0o777
        for path in Path(tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert set(modes.values()) == {0o666 & ~umask()}, modes


def umask() -> int:
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("scale", ["1.0e+30", "-1.0e+30"])
def test_a_scale_that_gives_no_number_is_no_answer(scale, run, tmp_path, perdure):  # noqa: F811
    options = ("--rule", "task_arithmetic", "--set", f"scale={scale}")
    before = (run.folder / "scores.csv").read_bytes()
    status, _, err = perdure("evaluate", run.folder, *options, "--quiet")
    assert status == 1 and f"`task_arithmetic(scale={float(scale):g})`" in err
    assert (run.folder / "scores.csv").read_bytes() == before
    with pytest.raises(NotFinite, match="gives no finite number"):
        Model(run, rule=Rule("task_arithmetic", scale=float(scale))).predict(["w1 w2"])
