"""Full fine-tuning as a module: it is what training the weights is; it is saved, loaded,
combined and exported.
"""

import peft
import pytest
import torch
import transformers
from conftest import write_adapter

from perdure import (
    Backbone,
    BackboneError,
    InputError,
    Model,
    Rule,
    Training,
    combine,
    learn,
    run,
    task_vectors,
)
from perdure.methods.isolated import Isolated
from perdure.methods.sequential import Sequential
from perdure.models import adapters
from perdure.models.backbone import pooled
from perdure.models.examples import Batch
from perdure.runs import adapter_folder

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.*:FutureWarning"
)  # peft asks transformers
FEW = Training(epochs=2, batch_size=8, learning_rate=0.01)


@pytest.fixture
def two(bert, toy):
    """Two tasks, each learned on the pre-trained model."""
    return [learn(bert, toy.until(step).tasks, Isolated(peft="full"), FEW) for step in (1, 2)]


def plain_copy(folder, adapter):
    """The stock model, to whose weights what was learned has been added."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, change in adapters.deltas(adapter.config, adapter.parameters).items():
            parameters[name if name.endswith(".bias") else f"{name}.weight"] += change
    return model


def features(model, batch):
    hidden, mask = (
        model(**batch.inputs).last_hidden_state,
        batch.inputs["attention_mask"][..., None],
    )
    return (hidden * mask).sum(1) / mask.sum(1)


def test_it_is_the_model_with_changed_weights(bert, pico, toy):
    adapter = learn(bert, [toy[0]], Isolated(peft="full"), FEW)
    batch = bert.eval().encode(toy[0].rows("test")).batch(range(20))
    with torch.no_grad():
        found, expected = bert(batch), features(plain_copy(pico("bert"), adapter), batch)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        with adapters.disabled(bert.model):
            before = features(transformers.AutoModel.from_pretrained(pico("bert")).eval(), batch)
            torch.testing.assert_close(bert(batch), before, rtol=0, atol=1e-6)
    assert (found - before).abs().max() > 0.01


def test_its_gradient_is_that_of_the_weights(bert, pico, toy):
    adapter = learn(bert, [toy[0]], Isolated(peft="full"), FEW)
    batch, own = (
        bert.eval().encode(toy[0].rows("train")).batch(range(8)),
        adapters.trainable(bert.model),
    )
    found = torch.autograd.grad(bert.losses(batch).mean(), list(own.values()), allow_unused=True)
    model = plain_copy(pico("bert"), adapter)
    bert.losses(batch, features(model, batch)).mean().backward()
    weights = dict(model.named_parameters())
    assert len(own) == len(weights)  # every weight of bert is that of a layer
    for name, g in zip(own, found, strict=True):
        weight = weights[name.replace("full_", "").removesuffix(".default")]
        if g is None:
            assert weight.grad is None and "pooler" in name  # which the mean does not read
        else:
            torch.testing.assert_close(g, weight.grad, rtol=1e-4, atol=1e-6)


def test_embeddings_and_norms_change_too(two):
    for adapter in two:
        assert not any(value.any() for value in adapter.start.values())
        for name, value in adapter.parameters.items():
            assert value.any() or "pooler" in name, name
        kinds = (
            "word_embeddings",
            "position_embeddings",
            "LayerNorm",
            "query",
            "intermediate.dense",
        )
        assert all(any(kind in name for name in adapter.parameters) for kind in kinds)


def test_chosen_layers(bert, toy):
    adapter = learn(
        bert, [toy[0]], Isolated(peft="full", target_modules=["query", "LayerNorm"]), FEW
    )
    layers = {name.rpartition(".")[0].split(".")[-1] for name in adapter.parameters}
    assert layers == {"query", "LayerNorm"} and len(adapter.parameters) == 2 * (2 + 5)
    with pytest.raises(BackboneError, match="No layers for a `full` module"):
        learn(bert, [toy[0]], Isolated(peft="full", target_modules=["nothing"]), FEW)


def test_stock_peft_loads_it(pico, toy, tmp_path):
    backbone = Backbone.load(pico("bert"))
    adapter = learn(backbone, [toy[1]], Isolated(peft="full"), FEW)
    head = backbone.eval().own("colour")
    write_adapter(
        tmp_path / "adapter", adapter, base=str(pico("bert")), head=(backbone.head_name, head)
    )
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(
        pico("bert"), num_labels=3, ignore_mismatched_sizes=True
    )
    model = peft.PeftModel.from_pretrained(stock, str(tmp_path / "adapter")).eval()
    batch = dict(backbone.processor(toy[1].test["text"][:], padding=True, return_tensors="pt"))
    with torch.no_grad():
        torch.testing.assert_close(
            model(**batch).logits, head(backbone(Batch(batch))), rtol=0, atol=1e-5
        )
    again = adapter_folder.load(tmp_path / "adapter", "colour")
    assert adapters.same(again.parameters, adapter.parameters) and adapters.same(
        again.start, adapter.start
    )


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "deberta-v2", "modernbert"])
def test_export_is_a_stock_classifier(kind, pico, toy, tmp_path):
    backbone = Backbone.load(pico(kind))
    results = run(
        toy.until(2), backbone, Sequential(peft="full"), training=FEW, output=tmp_path / "r"
    )
    Model(results).export(tmp_path / "out", heads="joined")
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    batch = dict(backbone.processor(toy[0].test["text"][:], padding=True, return_tensors="pt"))
    with torch.no_grad():
        found = backbone.eval()(Batch(batch))
        ours = torch.cat([backbone.own(task)(found) for task in ("fruit", "colour")], dim=1)
        torch.testing.assert_close(stock(**batch).logits, ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_images(kind, pico, pictures, tmp_path):
    backbone = Backbone.load(pico(kind))
    results = run(pictures, backbone, Sequential(peft="full"), training=FEW, output=tmp_path / "r")
    names = results.load_task("b").adapter.parameters
    assert any("projection.full_weight" in name for name in names)  # a convolution
    assert not any("cls_token" in name or "lambda1" in name for name in names)
    images = pictures[0].test["image"][:4]
    auto = transformers.AutoModelForImageClassification.from_pretrained(
        Model(results).export(tmp_path / "out", heads="joined")
    ).eval()
    inputs = dict(
        transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")(
            images=images, return_tensors="pt"
        )
    )
    with torch.no_grad():
        found = backbone.eval()(Batch(inputs))
        ours = torch.cat([backbone.own(task)(found) for task in "ab"], dim=1)
        torch.testing.assert_close(auto(**inputs).logits, ours, rtol=0, atol=1e-5)
    assert (results.matrix()[1] > 0.6).all()


# -- combined


def test_task_arithmetic_adds_weights_and_biases(two, bert, pico, toy):
    batch = bert.encode(toy[0].rows("test")).batch(range(20))
    both = {
        name: 0.3 * (two[0].parameters[name] + two[1].parameters[name])
        for name in two[0].parameters
    }
    expected = plain_copy(pico("bert"), adapters.Adapter("both", two[0].config, {}, both))
    adapters.detach(bert.model)
    before = {name: value.clone() for name, value in bert.model.state_dict().items()}
    combined = combine(two, Rule(name="task_arithmetic", scale=0.3))
    with torch.no_grad(), combined.applied(bert.eval()):
        torch.testing.assert_close(bert(batch), features(expected, batch), rtol=0, atol=1e-5)
    assert adapters.same(dict(bert.model.state_dict()), before)


@pytest.mark.parametrize("name", ["slao", "smile", "routed"])
def test_rules_that_need_factors_say_so(name, two):
    with pytest.raises(InputError, match="LoRA"):
        combine(two, Rule(name=name))


@pytest.mark.parametrize(
    "name", ["sum", "last", "ties", "opcm", "magmax", "dare", "breadcrumbs", "tsv", "iso", "knots"]
)
def test_rules(name, two, bert, toy):
    """Dense vectors of every shape: the result has the layers of both, and is finite."""
    rows = bert.encode(toy[0].rows("test"))
    combined = combine(two, Rule(name=name))
    shapes = {key: value.shape for key, value in task_vectors(two)["fruit"].items()}
    assert {key: value.shape for key, value in combined.vectors.items()} == shapes
    adapters.detach(bert.model)
    before = pooled(bert, rows)
    with combined.applied(bert):
        found = pooled(bert, rows)
    assert found.isfinite().all() and (found - before).abs().max() > 1e-3
    assert torch.equal(pooled(bert, rows), before)


def test_a_search_over_the_scale(bert, toy, tmp_path):
    rule = Rule(name="task_arithmetic", scale="search")
    results = run(
        toy.until(2), bert, Isolated(peft="full"), rule, training=FEW, output=tmp_path / "r"
    )
    found = results.combined()
    scale, tried = (
        found["options"]["scale"],
        {one["scale"]: one["score"] for one in found["candidates"]},
    )
    assert tried[scale] == max(tried.values()) and len(tried) > 5
    model = Model(results)
    vectors = task_vectors([results.load_task(task).adapter for task in ("fruit", "colour")])
    expected = scale * (
        vectors["fruit"].dense("embeddings.LayerNorm")
        + vectors["colour"].dense("embeddings.LayerNorm")
    )
    torch.testing.assert_close(model.combined.vectors.dense("embeddings.LayerNorm"), expected)
