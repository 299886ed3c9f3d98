"""A language model with frozen weights in 4 bits: what is learned beside them, and refused."""

import importlib.util
from pathlib import Path

import numpy as np
import pico_language
import pytest
import torch
from datasets import Dataset
from small_runs import differing, killed_at_step

from perdure import Backbone, BackboneError, Model, Run, RunError, Task, TaskStream, Training
from perdure import run as learn_all
from perdure.methods.isolated import Isolated
from perdure.models import adapters, quantised
from perdure.models.mixture import Mixture
from perdure.vectors.task_vector import LowRank, TaskVector

needed = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="bitsandbytes is not installed (`perdure[4bit]`)",
)


@pytest.fixture
def checkpoint(tmp_path):
    return pico_language.save(tmp_path / "base", "llama")


@pytest.fixture
def stream():
    return two_tasks()


def two_tasks() -> TaskStream:
    def task(name: str, *words: str) -> Task:
        texts = [f"{name} {i % 2}:" for i in range(16)]
        rows = Dataset.from_dict({"text": texts, "label": [i % 2 for i in range(16)]})
        return Task(name, words, rows, rows, rows)

    return TaskStream("two", (task("a", "yes", "no"), task("b", "up", "down")))


def frozen(backbone: Backbone) -> dict[str, torch.Tensor]:
    names = [name for name, _ in backbone.model.named_parameters() if "lora_" not in name]
    return {name: backbone.model.get_parameter(name).data.clone() for name in names}


def run(stream, checkpoint, folder, rule="task_arithmetic"):
    backbone = Backbone.load(checkpoint, dtype="nf4", max_new_tokens=8)
    training = Training(epochs=2, learning_rate=1e-2, batch_size=4, checkpoint_steps=1)
    run = learn_all(
        stream,
        backbone,
        Isolated(rank=2),
        rule,
        training=training,
        output=folder,
    )
    return backbone, run


def begin(checkpoint: Path, output: Path) -> None:
    run(two_tasks(), checkpoint, output)


@needed
def test_learned_beside_frozen_weights(stream, checkpoint, tmp_path):
    backbone, results = run(stream, checkpoint, tmp_path / "run")
    assert quantised.is_quantised(backbone.model)
    assert backbone.settings["dtype"] == "nf4"
    layer = backbone.model.get_submodule("model.layers.0.self_attn.q_proj")
    assert layer.weight.dtype == torch.uint8
    fresh = Backbone.load(checkpoint, dtype="nf4", max_new_tokens=8)
    adapters.detach(backbone.model)
    for name, value in frozen(fresh).items():
        assert torch.equal(backbone.model.get_parameter(name), value), name
    assert np.isfinite(results.matrix(task_id="given")[1]).all()
    parameters = results.load_task("a").adapter.parameters
    assert all(value.dtype == torch.float32 for value in parameters.values())


@needed
def test_the_same_bytes_again(stream, checkpoint, tmp_path):
    _, first = run(stream, checkpoint, tmp_path / "one")
    _, second = run(stream, checkpoint, tmp_path / "two")
    for task in ("a", "b"):
        left, right = (results.load_task(task).adapter.parameters for results in (first, second))
        assert adapters.same(left, right)


@needed
def test_a_killed_run_goes_on_to_the_same_bytes(stream, checkpoint, tmp_path):
    killed_at_step(__file__, 10, checkpoint, tmp_path / "killed")  # the second of the second task
    assert Run(tmp_path / "killed").begun() == "b"
    _, killed = run(stream, checkpoint, tmp_path / "killed")
    _, whole = run(stream, checkpoint, tmp_path / "whole")
    assert differing(killed, whole) == []


@needed
@pytest.mark.parametrize("rule", ["routed", "smile"])
def test_rules_that_choose_an_adapter(rule, stream, checkpoint, tmp_path):
    _, results = run(stream, checkpoint, tmp_path / "run", rule)
    assert np.isfinite(results.matrix(task_id="given")[1]).all()


@needed
def test_an_expert_beside_a_layer_is_a_change_of_its_weight(checkpoint):
    backbone = Backbone.load(checkpoint, dtype="nf4")
    name = "model.layers.0.mlp.up_proj"
    layer = backbone.model.get_submodule(name)
    change = LowRank(torch.randn(layer.out_features, 2), torch.randn(2, layer.in_features))
    x = torch.randn(3, layer.in_features)
    with adapters.folded(backbone.model, {name: change.B @ change.A}):
        expected = layer(x)
    mixture = Mixture({"a": TaskVector({name: change})})
    with mixture.inserted(backbone.model) as choice:
        choice.of(["a", None, "a"])
        chosen = backbone.model.get_submodule(name)(x)
    assert torch.allclose(chosen[[0, 2]], expected[[0, 2]], atol=1e-4)
    assert torch.equal(chosen[1], layer(x)[1])


@needed
def test_a_change_beside_a_layer_is_a_change_of_its_weight(checkpoint):
    import bitsandbytes

    backbone = Backbone.load(checkpoint, dtype="nf4")
    name = "model.layers.0.mlp.up_proj"
    layer = backbone.model.get_submodule(name)
    weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    change = torch.randn(weight.shape) / 10
    x = torch.randn(3, weight.shape[1])
    before = layer(x)
    with adapters.folded(backbone.model, {name: change}):
        folded = layer(x)
    assert torch.allclose(folded, x @ (weight.float() + change).T, atol=1e-4)
    assert torch.equal(layer(x), before)


@needed
def test_predicted_and_exported_as_an_adapter(stream, checkpoint, tmp_path):
    run(stream, checkpoint, tmp_path / "run")
    model = Model(tmp_path / "run")
    assert {answer.answer for answer in model.predict(["a 0:", "b 1:"])} <= {
        "yes",
        "no",
        "up",
        "down",
    }
    with pytest.raises(RunError, match=r"nothing can be merged into 4-bit weights.*`--as adapter`"):
        model.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    model.export(tmp_path / "adapter", form="adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert Run(tmp_path / "run").tasks == ["a", "b"]


@needed
@pytest.mark.parametrize("kind", ["bottleneck", "full"])
def test_lora_alone(kind, stream, checkpoint, tmp_path):
    backbone = Backbone.load(checkpoint, dtype="nf4")
    with pytest.raises(BackboneError, match=f"`peft: {kind}` does not work with `dtype: nf4`"):
        learn_all(stream, backbone, Isolated(peft=kind), output=tmp_path / "run")


def test_without_bitsandbytes(checkpoint, monkeypatch):
    monkeypatch.setattr(quantised.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        BackboneError, match=r"bitsandbytes is not installed. Install `perdure\[4bit\]`"
    ):
        Backbone.load(checkpoint, dtype="nf4")
