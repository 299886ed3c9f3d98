"""Features on disk: exactly what would be computed, for exactly the model that computes."""

import pytest
import torch
from in_process import InProcess
from small_runs import differing, recipe

from perdure import PerdureWarning, Recipe, sweep
from perdure.evaluation import feature_folder, posterior
from perdure.evaluation.posterior import describe


@pytest.fixture
def computed(monkeypatch):
    """The numbers of examples whose features were computed."""
    sizes = []
    inner = posterior._described

    def counted(backbone, examples):
        sizes.append(len(examples))
        return inner(backbone, examples)

    monkeypatch.setattr(posterior, "_described", counted)
    return sizes


@pytest.fixture
def read(tmp_path, pico):
    """Return the features of a task's texts, with a new backbone that shares them."""
    values = recipe(tmp_path, ("fruit",), pico("bert"))

    def features(change=None, split="train"):
        made = Recipe.parse(values)
        backbone = made.make_backbone()
        backbone.features_in = tmp_path / "features"
        if change:
            change(backbone)
        return describe(backbone, backbone.encode(made.make_stream()[0].rows(split)))

    return features


def test_features_are_computed_once(read, computed, tmp_path):
    first = read()
    (path,) = (tmp_path / "features").iterdir()
    computed.clear()
    assert torch.equal(read(), first) and not computed
    read(split="test")
    assert computed and len(list((tmp_path / "features").iterdir())) == 2
    assert path.exists()


def one_weight(backbone):
    # in a way that leaves no trace in the tensor's version
    next(backbone.model.parameters()).data[3, 3] += 1e-6


def one_setting(backbone):
    backbone.model.config.layer_norm_eps = 0.1


@pytest.mark.parametrize("change", [one_weight, one_setting])
def test_a_model_that_was_changed_in_place_is_another(read, computed, change):
    read()
    computed.clear()
    read(change)
    assert computed


@pytest.mark.parametrize("how", ["cut", "flipped", "empty"])
def test_a_damaged_file_is_computed_again(read, computed, tmp_path, how):
    first = read()
    (path,) = (tmp_path / "features").iterdir()
    whole = path.read_bytes()
    bad = {"cut": whole[:-5], "flipped": whole[:-5] + b"\x01" + whole[-4:], "empty": b""}
    path.write_bytes(bad[how])
    with pytest.warns(PerdureWarning, match="computed again"):
        assert torch.equal(read(), first)
    assert path.read_bytes() == whole


def test_the_folder_is_bounded(read, tmp_path, monkeypatch):
    read()
    (first,) = (tmp_path / "features").iterdir()
    monkeypatch.setattr(feature_folder, "LIMIT", int(1.5 * first.stat().st_size))
    read(one_weight)
    (second,) = (tmp_path / "features").iterdir()
    assert second != first


def test_a_folder_that_cannot_be_written_costs_only_time(read, tmp_path):
    (tmp_path / "features").write_text("")
    with pytest.warns(PerdureWarning, match="not kept for other runs"):
        assert len(read())


def test_the_runs_of_a_sweep_share_them(tmp_path, pico, computed):
    values = recipe(tmp_path, ("fruit", "colour"), pico("bert"))
    path = tmp_path / "sweep.yaml"
    path.write_text(str({"recipe": values, "grid": {"method": ["ncm", "lda"]}}))
    done = sweep(path, tmp_path / "out", executor=InProcess())
    shared = sum(computed)
    computed.clear()
    for name, run in done.runs.items():
        alone = Recipe.parse(values, [f"method={name.split('-')[0]}", f"name={name.split('-')[0]}"])
        assert differing(alone.run(tmp_path / name), run) == []
    assert sum(computed) == 2 * shared
