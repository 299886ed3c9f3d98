"""Real weights and real data: what is exported and saved gives what perdure gives,
to 1e-5 in fp32.
"""

import peft
import pytest
import torch
import transformers

from perdure import Backbone, Model, Rule, Training, combine, run
from perdure.benchmarks.split_cifar100 import split_cifar100
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


def test_vit_on_real_images(shared, tmp_path):
    stream = split_cifar100(
        folder=str(shared / "vision"), tasks=20, train=20, validation=5, test=10
    ).until(2)
    weights = shared / "weights" / "vit_tiny_patch16_224"
    results = run(stream, Backbone.load(weights), Isolated(), training=FEW, output=tmp_path / "run")
    model = Model(results)
    images = stream[0].test["image"][:6]
    out = Model(results).export(tmp_path / "out")
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
