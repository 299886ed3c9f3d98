"""Real weights and real data: what is exported and saved gives what perdure gives,
to 1e-5 in fp32.
"""

import re

import numpy as np
import peft
import pytest
import stock
import torch
import transformers

from perdure import Backbone, Model, Rule, Training, combine, run
from perdure.benchmarks.demo import demo
from perdure.benchmarks.split_cifar100 import split_cifar100
from perdure.benchmarks.split_mnist import split_mnist
from perdure.benchmarks.standard_cl import standard_cl
from perdure.methods.isolated import Isolated
from perdure.models.examples import Batch

pytestmark = [
    pytest.mark.real,
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
]
FEW = Training(epochs=1, batch_size=8, learning_rate=5e-3)


def test_minilm_on_real_texts(demo_cache, shared, tmp_path):
    sentence_transformers = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )
    order = ["agnews", "dbpedia"]
    stream = standard_cl(
        folder=str(shared / "text15"), order=order, train=32, validation=15, test=20
    )
    results = run(
        stream,
        Backbone.load("minilm", max_length=32),
        Isolated(),
        training=FEW,
        output=tmp_path / "run",
    )
    model = Model(results)
    texts = stream[0].test["text"][:]
    inputs = dict(
        model.backbone.processor(
            texts, padding=True, truncation=True, max_length=32, return_tensors="pt"
        )
    )
    with torch.no_grad(), model.combined.applied(model.backbone):
        features = model.backbone.eval()(Batch(inputs))
        ours = torch.cat([model.backbone.own(task)(features) for task in order], dim=1)
    stock = sentence_transformers.SentenceTransformer(
        str(Model(results).export(tmp_path / "out", heads="joined")), device="cpu"
    )
    torch.testing.assert_close(torch.tensor(stock.encode(texts)), ours, rtol=0, atol=1e-5)

    adapter = results.task_folders()[stream.names[1]] / "adapter"
    base = transformers.AutoModel.from_pretrained(
        Backbone.load("minilm").model.config._name_or_path
    )
    tuned = peft.PeftModel.from_pretrained(base, str(adapter)).eval()
    with torch.no_grad():
        hidden, mask = tuned(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
        theirs = (hidden * mask).sum(1) / mask.sum(1)
        own = combine([results.load_task("dbpedia").adapter], Rule(name="sum"))
        with own.applied(model.backbone):
            torch.testing.assert_close(theirs, model.backbone(Batch(inputs)), rtol=0, atol=1e-5)


def accuracy(stream, answers):
    """The average over tasks, of the answers to the test examples of all of them."""
    answered = iter(answers)
    averages = []
    for task in stream:
        right = [next(answered)[0] == task.classes[label] for label in task.test["label"]]
        averages.append(np.mean(right))
    return 100 * np.mean(averages)


def rows_to_answer(stream):
    return [rows for task in stream for rows in task.rows("test")]


def check_card(folder, answered):
    """The accuracy on the card is that of the stock model."""
    page = (folder / "README.md").read_text()
    stated = float(re.search(r"with this stock model: ([\d.]+) %", page)[1])
    assert stated == pytest.approx(answered, abs=0.051)


@pytest.mark.parametrize("pooling", ["mean", "stock"])
def test_an_export_of_minilm_answers_as_perdure_does(pooling, demo_cache, tmp_path):
    """News of many lengths, some of which are cut, with both kinds of heads."""
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    stream = demo(train=24, validation=6, test=12).until(2)
    backbone = Backbone.load("minilm", pooling=pooling, max_length=32)
    run(stream, backbone, Isolated(), training=FEW, output=tmp_path / "run")
    texts = [text for task in stream for text in task.test["text"]]
    for heads in ("closed_form", "joined"):
        model = Model(tmp_path / "run")
        ours = stock.of_perdure(model, rows_to_answer(stream), heads)
        out = model.export(tmp_path / heads, heads=heads, stream=stream)
        if pooling == "mean":
            theirs = stock.of_sentence_transformer(out, texts)
        else:
            theirs = stock.of_pipeline(out, "text", texts, truncation=True)
        stock.agree(ours, theirs)
        check_card(out, accuracy(stream, theirs))


def test_an_export_of_dinov2_answers_as_perdure_does(vision_cache, tmp_path):
    """Handwritten digits, through the processor that is exported with the model."""
    stream = split_mnist(train=24, validation=6, test=10).until(2)
    backbone = Backbone.load("dinov2", image_size=28)
    run(stream, backbone, Isolated(), training=FEW, output=tmp_path / "run")
    images = [image for task in stream for image in task.test["image"]]
    for heads in ("closed_form", "joined"):
        model = Model(tmp_path / "run")
        ours = stock.of_perdure(model, rows_to_answer(stream), heads)
        out = model.export(tmp_path / heads, heads=heads, stream=stream)
        theirs = stock.of_pipeline(out, "image", images)
        stock.agree(ours, theirs)
        check_card(out, accuracy(stream, theirs))


def test_vit_on_real_images(shared, tmp_path):
    stream = split_cifar100(
        folder=str(shared / "vision"), tasks=20, train=20, validation=5, test=10
    ).until(2)
    weights = shared / "weights" / "vit_tiny_patch16_224"
    results = run(stream, Backbone.load(weights), Isolated(), training=FEW, output=tmp_path / "run")
    model = Model(results)
    images = stream[0].test["image"][:6]
    out = Model(results).export(tmp_path / "out", heads="joined")
    stock = transformers.AutoModelForImageClassification.from_pretrained(
        out, dtype=torch.float32
    ).eval()
    inputs = dict(
        transformers.AutoImageProcessor.from_pretrained(out)(images=images, return_tensors="pt")
    )
    with torch.no_grad(), model.combined.applied(model.backbone):
        features = model.backbone.eval()(Batch(inputs))
        ours = torch.cat([model.backbone.own(task)(features) for task in stream.names], dim=1)
        # the base is in half precision, and so is its export: each weight is rounded once
        torch.testing.assert_close(stock(**inputs).logits, ours, rtol=0, atol=2e-2)
    assert list(stock.config.id2label.values()) == list(stream.classes)
    auto = transformers.AutoModelForImageClassification
    tuned = auto.from_pretrained(
        weights, num_labels=5, ignore_mismatched_sizes=True, dtype=torch.float32
    )
    tuned = peft.PeftModel.from_pretrained(
        tuned, str(results.task_folders()[stream.names[1]] / "adapter")
    ).eval()
    own = combine([results.load_task(stream.names[1]).adapter], Rule(name="sum"))
    with torch.no_grad(), own.applied(model.backbone):
        expected = model.backbone.own(stream.names[1])(model.backbone(Batch(inputs)))
        torch.testing.assert_close(tuned(**inputs).logits, expected, rtol=0, atol=1e-5)
