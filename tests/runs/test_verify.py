"""`perdure verify`: every kind of fault is found and named, and a run that is whole has none."""

import hashlib
import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from small_runs import make, recipe

from perdure import Run, RunError
from perdure.learning.snapshot import Snapshot
from perdure.runs.verify import verify

PLACE = "tasks/01-colour"


@pytest.fixture(scope="module")
def made(pico, tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    training = {"epochs": 1, "keep_inputs": True}
    return make(
        folder, "r", recipe(folder, ["fruit", "colour"], pico("bert"), training=training)
    ).folder


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "r")


def sealed(folder, name, place=PLACE):
    """Give a changed file its hash, so that only its content is wrong."""
    path, manifest = folder / place / name, folder / place / "manifest.json"
    found = json.loads(manifest.read_text())
    found[name] = {
        "size": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    manifest.write_text(json.dumps(found))


def changed(folder, name, key, value, place=PLACE):
    """Change one tensor of a task, hash included."""
    path = folder / place / name
    tensors = load_file(path)
    key = key or next(iter(tensors))
    tensors[key] = value(tensors[key].clone())
    save_file(tensors, path)
    sealed(folder, name, place)


def nan(tensor):
    tensor.view(-1)[0] = torch.nan
    return tensor


def only_fault(folder, **options):
    (fault,) = verify(folder, **options).faults
    return fault


def test_a_run_that_is_whole(folder):
    found = verify(folder)
    assert found.faults == [] == found.notes
    assert list(found.sound) == [
        "recipe.yaml",
        "tasks/00-fruit",
        PLACE,
        "tasks",
        "scores.csv",
        "events.jsonl",
        "combined.json",
        "answers.json",
        "the pre-trained model",
    ]
    assert found.sound["recipe.yaml"] == "format 2" and found.sound["tasks"] == "2 learned"
    assert "the pre-trained model" not in verify(folder, backbone=False).sound


@pytest.mark.parametrize("kind", ["bit", "byte more", "byte less", "missing", "link", "folder"])
@pytest.mark.parametrize("name", ["adapter/adapter_model.safetensors", "task.json"])
def test_a_file_that_is_not_what_was_written(kind, name, folder, tmp_path):
    path = folder / PLACE / name
    content = bytearray(path.read_bytes())
    if kind == "bit":
        content[-5] ^= 1
        path.write_bytes(content)
    elif kind.startswith("byte"):
        path.write_bytes(content + b" " if kind == "byte more" else content[:-1])
    else:
        path.unlink()
        if kind == "link":  # the same bytes, but outside the folder
            (tmp_path / "elsewhere").write_bytes(content)
            path.symlink_to(tmp_path / "elsewhere")
        elif kind == "folder":
            path.mkdir()
    assert f"`{path}` is not what was written" in only_fault(folder)


@pytest.mark.parametrize(
    "name", ["../../../x.json", "/etc/passwd", "adapter/../task.json", "a.pkl", ".hidden.json"]
)
def test_a_manifest_that_names_other_files(name, folder):
    path = folder / PLACE / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: {"size": 1, "sha256": "0"}}))
    assert f"`{path}`: `{name}`: no task has a file of this name" in only_fault(folder)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("adapter/adapter_model.safetensors", "adapter "),
        ("start.safetensors", "start "),
        ("head.safetensors", "head colour "),
        ("statistics.safetensors", "statistics "),
        ("inputs.safetensors", "inputs "),
    ],
)
def test_values_that_are_not_finite(name, where, folder):
    changed(folder, name, None, nan)
    fault = only_fault(folder)
    assert f"`{folder / PLACE}` holds values that are not finite: {where}" in fault


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("head.safetensors", "colour/weight", lambda t: t[:, :5].contiguous()),
        ("head.safetensors", "colour/bias", lambda t: t[:2].contiguous()),
        ("statistics.safetensors", "sums", lambda t: t[:2].contiguous()),
        ("statistics.safetensors", "products", lambda t: t[:, :4].contiguous()),
        ("start.safetensors", None, lambda t: t[:1].contiguous()),
    ],
)
def test_shapes_that_do_not_fit(name, key, value, folder):
    changed(folder, name, key, value)
    fault = only_fault(folder)
    assert name in fault or "`colour`" in fault


def test_parts_that_do_not_fit_each_other(folder, pico, tmp_path):
    recipe_file = folder / "recipe.yaml"
    values = yaml.safe_load(recipe_file.read_text())
    recipe_file.write_text(yaml.safe_dump(values | {"method": values["method"] | {"rank": 3}}))
    assert "has rank 2, but the recipe says 3" in verify(folder).faults[0]
    recipe_file.write_text(
        yaml.safe_dump(values | {"backbone": {"model": str(pico("distilbert"))}})
    )
    assert only_fault(folder) and verify(folder, backbone=False).faults == []
    recipe_file.write_text(yaml.safe_dump(values | {"backbone": {"model": str(tmp_path / "gone")}}))
    assert "gone" in only_fault(folder)
    recipe_file.write_text(yaml.safe_dump(values))
    for key in ("sums", "products"):
        changed(folder, "statistics.safetensors", key, lambda t: t[:, :8].contiguous())
        if key == "products":
            changed(folder, "statistics.safetensors", key, lambda t: t[:8].contiguous())
    assert "The statistics of the tasks have different widths" in only_fault(folder)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("scores.csv", "\n1,fruit", "\n7,fruit", "Line 2 of `{path}` has step 7 of 2"),
        ("scores.csv", ",accuracy,", ",accuracy,nan,", "scores.csv"),
        ("scores.csv", "step,", "steps,", "`{path}` has no column `step`"),
        ("events.jsonl", '{{"event"', "{{event", "Line 1 of `{path}` is not JSON"),
        ("combined.json", "{{", "", "`{path}` is not JSON"),
        ("combined.json", '"task_arithmetic"', "5", "`{path}`: `label` is 5"),
        (
            "combined.json",
            '"name": "task_arithmetic"',
            '"name": "task_arithmetics"',
            "Did you mean `task_arithmetic`?",
        ),
        ("combined.json", '"options": {{}}', '"options": {{"scal": 1}}', "has no setting `scal`"),
        (
            "combined.json",
            '"options": {{}}',
            '"options": {{"scale": {{"fruit": 1}}}}',
            "no scale for the task `colour`",
        ),
        ("recipe.yaml", "method:", "metod:", "`{path}` has no `method`"),
        ("recipe.yaml", "seed: 0", "seed: [", "`{path}` is not YAML"),
    ],
)
def test_other_files(name, old, new, message, folder):
    path = folder / name
    text, old, new = path.read_text(), old.format(), new.format()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    fault = only_fault(folder)
    assert message.format(path=path) in fault and "\n" not in fault


def test_a_value_that_is_not_finite(folder):
    path = folder / "scores.csv"
    path.write_text(
        path.read_text()
        .replace("accuracy,0.", "accuracy,nan", 1)
        .replace("accuracy,1.0", "accuracy,nan")
    )
    lines = [line.split(",") for line in path.read_text().splitlines()]
    path.write_text(
        "\n".join(
            ",".join([*line[:-1], "nan" if line[-1].startswith("nan") else line[-1]])
            for line in lines
        )
        + "\n"
    )
    assert "value nan" in only_fault(folder)


def test_a_model_that_is_missing(folder):
    (folder / "combined.json").unlink()
    assert "has no combined model" in only_fault(folder)


def test_the_state_inside_a_task(folder):
    about = {"belongs_to": {"tasks": {"size": {"train": "x"}}}, "step": 4, "seconds": 0.5}
    path = folder / "unfinished.safetensors"
    Snapshot(about, {"parameter/0": torch.ones(3)}).save(path)
    assert verify(folder).sound[path.name] == "in the middle of a task, after step 4"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    assert f"`{path}` is not what was written" in only_fault(folder)
    Snapshot(about, {"parameter/0": torch.tensor([1.0, torch.inf])}).save(path)
    assert f"`{path}` holds values that are not finite: parameter/0" in only_fault(folder)


def test_what_is_no_fault(folder):
    (folder / PLACE / "manifest.json").unlink()
    found = verify(folder)
    assert found.notes == [f"`{folder / PLACE}` is ignored: it was never finished."]
    assert "has step 2 of 1" in found.faults[0]  # which a run that goes on measures again


@pytest.mark.parametrize("number", [3, 0, "2", True, None])
def test_formats_that_are_not_known(number, folder):
    path = folder / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": number}))
    with pytest.raises(RunError, match="reads formats 1 to 2. Install a newer version"):
        verify(folder)
    with pytest.raises(RunError, match="of format"):
        Run(folder)


def test_the_command(folder, perdure, tmp_path):  # noqa: F811
    status, out, err = perdure("verify", folder)
    assert (status, err) == (0, "") and out.endswith("\nEverything is as it was written.\n")
    assert max(map(len, out.splitlines())) <= 80
    assert json.loads(perdure("verify", folder, "--json")[1])["faults"] == []
    (folder / PLACE / "head.safetensors").unlink()
    status, out, err = perdure("verify", folder)
    assert (
        status == 1
        and out.endswith("\n1 fault.\n")
        and "head.safetensors` is not what was written" in err
    )
    status, out, err = perdure("verify", folder, "--json")
    found = json.loads(out)
    assert (
        status == 1
        and len(found["faults"]) == 1
        and "tasks/00-fruit" in found["sound"]
        and found["notes"] == []
    )
    status, _, err = perdure("verify", tmp_path)
    assert status == 1 and "is not a run: it has no `recipe.yaml`" in err


def test_no_code_of_the_folder_is_run(folder, tmp_path):
    """To verify is not to trust."""
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'was-here')!r}, 'w')")
    path, rule = folder / "recipe.yaml", folder / "combined.json"
    values, hostile = yaml.safe_load(path.read_text()), str(tmp_path / "mine.py")
    path.write_text(
        yaml.safe_dump(values | {"method": {"name": hostile}, "rule": {"name": hostile}})
    )
    rule.write_text(json.dumps(json.loads(rule.read_text()) | {"name": hostile}))
    verify(folder)
    del values["rule"]
    path.write_text(yaml.safe_dump(values | {"method": {"name": hostile}}))
    assert "has no `rule`" in only_fault(folder)
    assert not (tmp_path / "was-here").exists()
