"""GPT-2's `Conv1D`, whose weights are stored transposed: modules,
merges and exports are right as on linear layers.
"""

from pathlib import Path

import peft
import pytest
import torch
import transformers
from conftest import write_adapter
from families import family

from perdure import Backbone, BackboneError
from perdure.checks.models import WORDS
from perdure.data.task import TaskRows
from perdure.merging.scaled import Scaled
from perdure.methods.isolated import Isolated
from perdure.models import adapters, fitting
from perdure.models.adapters import Adapter
from perdure.models.examples import Batch
from perdure.models.inputs import input_covariances
from perdure.models.matrices import matrix
from perdure.models.mixture import Mixture
from perdure.vectors.task_vector import LowRank, TaskVector

# peft asks transformers
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture
def gpt2(tmp_path: Path) -> Backbone:
    return Backbone.load(family("gpt2", tmp_path / "gpt2")).eval()


def batch(backbone: Backbone) -> Batch:
    return Batch(dict(backbone.processor(["w1 w2 w3 w4", "w5"], padding=True, return_tensors="pt")))


def trained(backbone: Backbone, **settings) -> tuple[Adapter, torch.Tensor]:
    """An adapter with parameters as training leaves them, and the features with it."""
    Isolated(rank=2, **settings).attach(backbone)
    start = adapters.read(backbone.model)
    torch.manual_seed(3)
    parameters = {name: value + 0.3 * torch.randn_like(value) for name, value in start.items()}
    adapters.write(backbone.model, parameters)
    config = adapters.config_of(backbone.model)
    with torch.no_grad():
        return Adapter("t", config, start, parameters), backbone(batch(backbone))


def vector_of(adapter: Adapter) -> TaskVector:
    deltas = adapters.deltas(adapter.config, adapter.parameters)
    return TaskVector({k: LowRank(*v) if isinstance(v, tuple) else v for k, v in deltas.items()})


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target_modules": ["c_attn", "c_proj", "c_fc"]},
        {"target_modules": r".*attn\.c_proj"},  # a square one
        {"peft": "full"},
        {"peft": "full", "target_modules": [f"h.{i}.attn.c_proj" for i in range(2)]},
    ],
)
def test_what_is_folded_in_answers_as_the_module(settings, gpt2):
    adapter, expected = trained(gpt2, **settings)
    fitting.check_fits(gpt2.model, adapter)
    adapters.detach(gpt2.model)
    vector = vector_of(adapter)
    with torch.no_grad():
        before = gpt2(batch(gpt2))
        assert not torch.allclose(before, expected, atol=1e-3)
        with adapters.folded(gpt2.model, {name: vector.dense(name) for name in vector.entries}):
            torch.testing.assert_close(gpt2(batch(gpt2)), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(gpt2(batch(gpt2)), before)
        if "peft" not in settings:
            with Scaled.on(gpt2.model, [vector]) as scaled:
                scaled.move([[0.5]])
                scaled.move([[1.0]])
                torch.testing.assert_close(gpt2(batch(gpt2)), expected, rtol=1e-4, atol=1e-5)
            with Mixture({"t": vector}, gate_rank=0).inserted(gpt2.model) as choice:
                choice.of(["t", "t"])
                torch.testing.assert_close(gpt2(batch(gpt2)), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(gpt2(batch(gpt2)), before)


def test_stock_peft_loads_the_adapter_without_a_warning(gpt2, tmp_path):
    adapter, _ = trained(gpt2)
    assert {name.rpartition(".")[2] for name in adapters.factors(gpt2.model)} == {"c_attn"}
    folder = write_adapter(tmp_path / "task" / "adapter", adapter, base=gpt2.source)
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(gpt2.source)
    tuned = peft.PeftModel.from_pretrained(stock, folder)  # a warning would be an error
    merged = tuned.merge_and_unload().state_dict()
    adapters.detach(gpt2.model)
    vector = vector_of(adapter)
    for name in vector.entries:
        expected = matrix(adapters.base_layer(gpt2.model, name)) + vector.dense(name)
        torch.testing.assert_close(merged[f"{name}.weight"].T, expected)
    from perdure.runs.adapter_folder import load

    again = load(folder, "t").config
    assert again is not None and again.fan_in_fan_out is True  # pyright: ignore
    adapters.attach(gpt2.model, again)


def test_an_export_is_the_stock_model(gpt2, tmp_path):
    adapter, expected = trained(gpt2)
    adapters.detach(gpt2.model)
    vector = vector_of(adapter)
    gpt2.put("t", torch.nn.Linear(gpt2.width, 2).state_dict())
    with pytest.raises(
        BackboneError, match="has no bias, but the run's heads have one.*pooling: mean"
    ):
        gpt2.save(tmp_path / "out", ["t"], ["a", "b"])
    torch.nn.init.zeros_(gpt2.own("t").bias)
    with adapters.folded(gpt2.model, {name: vector.dense(name) for name in vector.entries}):
        gpt2.save(tmp_path / "out", ["t"], ["a", "b"])
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    inputs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(
        ["w1 w2 w3 w4", "w5"], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        torch.testing.assert_close(
            stock(**inputs).logits, gpt2.own("t")(expected), rtol=1e-4, atol=1e-5
        )


def test_bottlenecks_have_the_width_of_the_outputs(gpt2):
    Isolated(peft="bottleneck", rank=3).attach(gpt2)
    widths = {
        tuple(layer.weight.shape)
        for name, layer in adapters.linears(gpt2.model).items()
        if "down" in name
    }
    assert len(adapters.layers(gpt2.model)) == 4 and widths == {(3, 16)}
    with torch.no_grad():
        gpt2(batch(gpt2))


def test_covariances_are_of_the_inputs(gpt2):
    from datasets import Dataset

    rows = Dataset.from_dict({"text": [" ".join(WORDS[i : i + 5]) for i in range(6)]})
    names = ["transformer.h.0.attn.c_attn", "transformer.h.0.mlp.c_proj"]
    found = input_covariances(gpt2, gpt2.encode([TaskRows("t", rows)]), names)
    assert [value.shape for value in found.values()] == [(16, 16), (64, 64)]


@pytest.mark.parametrize("kind", ["openai-gpt", "phi3"])
def test_fused_projections_of_other_names(kind, tmp_path):
    backbone = Backbone.load(family(kind, tmp_path / kind))
    Isolated(rank=2).attach(backbone)
    assert len(adapters.layers(backbone.model)) == 2
