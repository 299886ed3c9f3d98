"""The model that a run began with: the hashes of its files are kept, compared,
and said to differ.
"""

import json
import shutil
import warnings
from pathlib import Path

import pytest
from conftest import make
from families import edit
from small_runs import recipe, table

from perdure import Model, Recipe, Run, RunError, verify
from perdure.checks.models import tokenizer
from perdure.runs.extend import evaluate_run, learn_more


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run on a model of its own, `base`."""
    make("bert", tmp_path / "base")
    values = recipe(tmp_path, ["fruit"], tmp_path / "base", method={"name": "lda"})
    return Recipe.parse(values).run(tmp_path / "run")


def other_weights(base: Path) -> None:
    path = base / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # the smallest change that there is
    path.write_bytes(content)


def other_words(base: Path) -> None:
    vocabulary = json.loads((base / "tokenizer.json").read_text())
    words = vocabulary["model"]["vocab"]
    words["w1"], words["w2"] = words["w2"], words["w1"]
    (base / "tokenizer.json").write_text(json.dumps(vocabulary))


CHANGES = {
    "model.safetensors": other_weights,
    "tokenizer.json": other_words,
    "config.json": lambda base: edit(base, layer_norm_eps=1e-5),
    "modules.json": lambda base: (base / "modules.json").write_text("[]"),
}


def test_the_hashes_are_kept(run, tmp_path):
    kept = json.loads((run.folder / "backbone.json").read_text())
    assert kept["source"] == str(tmp_path / "base") and kept["revision"] is None
    assert kept["files"].keys() == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (
        "has the files that the run began with" in verify(run.folder).sound["the pre-trained model"]
    )


@pytest.mark.parametrize("name", CHANGES)
def test_another_model_is_refused_by_all(name, run, tmp_path):
    CHANGES[name](tmp_path / "base")
    said = f"is not the model that the run .* began with: `{name}` differs. "
    said += "Put the original files back"
    entry = {"data": table(tmp_path, "colour")}
    for act in (
        lambda: Model(run.folder),
        lambda: evaluate_run(run.folder),
        lambda: learn_more(run.folder, entry),
        lambda: Recipe.read(run.folder).run(run.folder),
    ):
        with pytest.raises(RunError, match=said):
            act()
    (fault,) = verify(run.folder).faults
    assert f"`{name}` differs" in fault
    assert run.tasks == ["fruit"] and [entry["data"] for entry in run.recipe["stream"]] == [
        table(tmp_path, "fruit")
    ]


def test_what_does_not_matter_may_change(run, tmp_path):
    (tmp_path / "base" / "README.md").write_text("about it")
    (tmp_path / "base" / "generation_config.json").write_text("{}")
    Model(run.folder)
    assert not verify(run.folder).faults


def test_a_run_without_hashes_is_read_as_before(run, tmp_path):
    before = Model(run.folder).predict(["w1 w2"])
    (run.folder / "backbone.json").unlink()
    other_weights(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    assert Model(run.folder).predict(["w1 w2"])[0].label == before[0].label
    assert not verify(run.folder).faults
    learn_more(run.folder, {"data": table(tmp_path, "colour")})
    assert not (run.folder / "backbone.json").exists()  # nobody can say what it began with


def test_damaged_hashes(run):
    for content in ("[", "{}", '{"files": 3}', '{"files": {"a": 3}}'):
        (run.folder / "backbone.json").write_text(content)
        with pytest.raises(RunError, match="backbone.json"):
            Model(run.folder)
        assert "backbone.json" in verify(run.folder).faults[0]


def test_a_model_that_is_not_here_is_not_fetched(run, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", _only_local)
    path = run.folder / "recipe.yaml"
    path.write_text(path.read_text().replace(str(tmp_path / "base"), "some/model"))
    found = verify(run.folder)
    assert not found.faults and "`some/model` is not on this machine" in found.notes[0]


def _only_local(source: str, *, local_files_only: bool, **_: object) -> str:
    assert local_files_only
    raise FileNotFoundError(source)


def test_the_commit_of_a_hub_model_is_part_of_the_recipe(tmp_path, monkeypatch):
    commits = ["a" * 40]

    def download(source: str, *, revision: str | None, **_: object) -> str:
        folder = tmp_path / "snapshots" / (revision or commits[-1])
        if not folder.exists():
            make("bert", folder)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    values = recipe(tmp_path, ["fruit"], Path("some/model"), method={"name": "lda"})
    run = Recipe.parse(values).run(tmp_path / "run")
    assert run.recipe["backbone"]["revision"] == commits[0]
    assert json.loads((run.folder / "backbone.json").read_text())["revision"] == commits[0]
    commits.append("b" * 40)  # the main branch has moved
    Model(run.folder)
    Recipe.read(run.folder).run(run.folder)
    with pytest.raises(
        RunError, match=f"`backbone.revision`: {commits[0]} before, {commits[1]} now"
    ):
        Recipe.parse(values).run(run.folder)
    older = Path(shutil.copytree(run.folder, tmp_path / "older"))
    (older / "backbone.json").unlink()
    path = older / "recipe.yaml"
    path.write_text(
        "".join(line for line in path.read_text().splitlines(True) if "revision" not in line)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert Recipe.parse(values).run(older).tasks == ["fruit"]
