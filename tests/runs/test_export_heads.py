"""The head of an exported encoder: in closed form from the statistics of the run, or joined."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import stock
import torch
import transformers
from datasets import Dataset
from small_runs import make, recipe, table
from tables import read_table

from perdure import Backbone, InputError, Model, Recipe, Rule, Run, Training
from perdure.data.images import as_rows
from perdure.data.task import TaskRows
from perdure.evaluation import random_inputs
from perdure.evaluation.closed_form import closed_form_heads
from perdure.evaluation.posterior import TaskPosterior
from perdure.evaluation.score import task_logits
from perdure.learning.alignment import Alignment
from perdure.methods.isolated import Isolated
from perdure.runs.begin import run as learn_stream
from perdure.runs.export_heads import replaced, usual_heads
from perdure.runs.extend import forget
from perdure.vectors.statistics import Statistics

NAMES = ["fruit", "colour", "texture"]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def run(home, pico) -> Run:
    return make(home, "run", values(home, NAMES, pico))


def values(home: Path, names: list[str], pico, **settings) -> dict:
    """A recipe whose heads read the input of the head in transformers' own model."""
    backbone = {"model": str(pico("bert")), "pooling": "stock", "max_length": 8}
    written = recipe(home, names, pico("bert"), training={"epochs": 4}, **settings)
    return written | {"backbone": backbone}


def files_of(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file in a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }


def stock_logits(folder: Path, texts: list[str]) -> torch.Tensor:
    """The logits that transformers computes, without perdure."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits


def stock_labels(folder: Path, texts: list[str]) -> list[str]:
    """The classes that transformers answers, without perdure."""
    labels = transformers.AutoConfig.from_pretrained(folder).id2label
    return [labels[number] for number in stock_logits(folder, texts).argmax(1).tolist()]


def test_without_drift_it_is_discriminant_analysis_of_the_stored_sums(home, pico, tmp_path):
    """With a scale of 0 the combined model is the frozen one."""
    own = make(tmp_path, "run", recipe(home, NAMES[:2], pico("bert")))
    system = Model(own, rule=Rule("task_arithmetic", scale=0.0)).system
    heads = closed_form_heads(system)

    counts = [task.statistics.counts.numpy() for task in system.learned]
    sums = [task.statistics.sums.numpy() for task in system.learned]
    means = np.concatenate(sums) / np.concatenate(counts)[:, None]
    covariance = sum(task.statistics.products.numpy() for task in system.learned)
    covariance = covariance - (np.concatenate(counts)[:, None] * means).T @ means
    covariance = covariance / np.concatenate(counts).sum()
    width = len(covariance)
    covariance = 0.9 * covariance + 0.1 * np.trace(covariance) / width * np.eye(width)
    weight = np.linalg.solve(covariance, means.T).T
    priors = np.concatenate([of_task / of_task.sum() for of_task in counts])
    bias = np.log(priors) - 0.5 * (weight * means).sum(1)

    ours = torch.cat([heads[name]["weight"] for name in NAMES[:2]])
    np.testing.assert_allclose(ours, weight, rtol=1e-3, atol=1e-3 * np.abs(weight).max())
    ours = torch.cat([heads[name]["bias"] for name in NAMES[:2]])
    np.testing.assert_allclose(ours, bias, rtol=1e-3, atol=1e-3 * np.abs(bias).max())


def test_stock_transformers_answers_as_perdure_does_with_these_heads(run, home, tmp_path):
    Model(run).export(tmp_path / "out")
    texts = [row["text"] for row in read_table(Path(table(home, "colour")))]
    model = Model(run)
    heads = closed_form_heads(model.system)
    rows = Dataset.from_dict({"text": texts})
    examples = model.backbone.prepare([TaskRows("", rows)])
    with replaced(model.backbone, heads):
        logits = task_logits(model.backbone, model.combined, examples, model.classes)
    ours = torch.cat([logits[name] for name in NAMES], dim=1).detach()
    torch.testing.assert_close(stock_logits(tmp_path / "out", texts), ours, rtol=1e-4, atol=1e-3)
    assert ours.std(0).min() > 1e-3  # they depend on the text


@pytest.mark.parametrize("heads", ["closed_form", "joined"])
def test_a_stock_pipeline_answers_as_perdure_does(heads, run, home, tmp_path):
    """Long texts too, which the pipeline cuts as the code on the card says."""
    texts = [row["text"] for row in read_table(Path(table(home, "colour")))]
    texts += [" ".join(texts[start : start + 4]) for start in range(6)]
    model = Model(run)
    ours = stock.of_perdure(model, [TaskRows("", Dataset.from_dict({"text": texts}))], heads)
    model.export(tmp_path / "out", heads=heads)
    stock.agree(ours, stock.of_pipeline(tmp_path / "out", "text", texts, truncation=True))
    assert len(set(ours)) > len(NAMES)
    assert "truncation=True" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_a_base_for_another_problem_is_exported_as_a_classifier(problem, home, pico, tmp_path):
    """A pipeline would give its logits, or a sigmoid of each, instead of probabilities."""
    base = tmp_path / "base"
    shutil.copytree(pico("bert"), base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"problem_type": problem}))
    backbone = {"model": str(base), "pooling": "stock", "max_length": 8}
    own = make(tmp_path, "run", recipe(home, NAMES[:2], base) | {"backbone": backbone})
    texts = [row["text"] for row in read_table(Path(table(home, "fruit")))][:5]
    model = Model(own)
    ours = stock.of_perdure(model, [TaskRows("", Dataset.from_dict({"text": texts}))], "joined")
    model.export(tmp_path / "out", heads="joined")
    stock.agree(ours, stock.of_pipeline(tmp_path / "out", "text", texts))


def test_sentence_transformers_answers_as_perdure_does(home, pico, tmp_path):
    """With mean pooling, and texts that are longer than the model reads."""
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    own = make(tmp_path, "run", recipe(home, NAMES, pico("bert"), training={"epochs": 4}))
    texts = [row["text"] for row in read_table(Path(table(home, "colour")))]
    texts += [" ".join(texts[start : start + 4]) for start in range(6)]
    for heads in ("closed_form", "joined"):
        model = Model(own)
        ours = stock.of_perdure(model, [TaskRows("", Dataset.from_dict({"text": texts}))], heads)
        model.export(tmp_path / heads, heads=heads)
        stock.agree(ours, stock.of_sentence_transformer(tmp_path / heads, texts))


@pytest.mark.parametrize(
    "case", [("vit", None, "closed_form"), ("vit", 8, "joined"), ("dinov2", 8, "closed_form")]
)
def test_an_image_pipeline_answers_as_perdure_does(case, pico, pictures, tmp_path):
    """Given files, as users have them, of grey and coloured images of another size."""
    kind, size, heads = case
    backbone = Backbone.load(pico(kind), image_size=size)
    own = learn_stream(pictures, backbone, Isolated(rank=2), output=tmp_path / "run")
    paths = []
    for number, image in enumerate(pictures[0].test["image"][:4]):
        path = tmp_path / f"{number}.png"
        image.resize((40, 30)).convert("L" if number % 2 else "RGB").save(path)
        paths.append(str(path))
    model = Model(own)
    ours = stock.of_perdure(model, [TaskRows("", as_rows(paths))], heads)
    model.export(tmp_path / "out", heads=heads)
    theirs = stock.of_pipeline(tmp_path / "out", "image", paths)
    # Images of one class hardly differ, so that a head in closed form has weights of about 10,000.
    tolerance = 1e-2 if heads == "closed_form" else 1e-4
    theirs = [(label.split("/")[-1], probability) for label, probability in theirs]
    stock.agree(ours, theirs, tolerance=tolerance)


def test_both_accuracies_are_printed_and_on_the_card(run, tmp_path, perdure):
    status, out, err = perdure("export", run.folder, "-o", tmp_path / "out")
    assert (status, err) == (0, "")
    right = []
    for task in Recipe.parse(run.recipe).make_stream():
        answers = stock_labels(tmp_path / "out", task.test["text"][:])
        truth = [task.classes[label] for label in task.test["label"]]
        right.append(np.mean([a == b for a, b in zip(answers, truth, strict=True)]))
    predicted = 100 * run.accuracies("task_arithmetic")["posterior"]
    average = "Average accuracy on 3 tasks with"
    lines = [
        f"{average} `perdure predict`: {predicted:.1f} %.",
        f"{average} this stock model: {100 * np.mean(right):.1f} %.",
    ]
    assert out.splitlines()[:2] == lines and "closed form" in out
    page = (tmp_path / "out" / "README.md").read_text()
    assert all(line in page for line in [*lines, "linear discriminant analysis"])


def test_the_run_stays_as_it_is(run, tmp_path):
    before = files_of(run.folder)
    model = Model(run)
    trained = model.backbone.own_state("fruit")
    model.export(tmp_path / "out")
    assert files_of(run.folder) == before
    assert torch.equal(model.backbone.own_state("fruit")["weight"], trained["weight"])


def test_a_forgotten_task_leaves_no_trace_in_an_export(home, pico, tmp_path):
    whole = make(tmp_path, "whole", values(home, NAMES, pico))
    forget(whole.folder, "colour")
    never = make(tmp_path, "never", values(home, ["fruit", "texture"], pico))
    for folder in (whole.folder, never.folder):
        Model(folder, rule="task_arithmetic").export(tmp_path / folder.name / "out")
    exported = files_of(tmp_path / "whole" / "out")
    assert exported == files_of(tmp_path / "never" / "out")
    assert "model.safetensors" in exported


def test_without_examples_it_says_so(home, pico, tmp_path, perdure):
    other = tmp_path / "tables"
    other.mkdir()
    own = make(tmp_path, "run", values(other, NAMES[:2], pico))
    (other / "colour.csv").unlink()
    status, out, err = perdure("export", own.folder, "-o", tmp_path / "out")
    assert (status, err) == (0, "")
    assert "perdure predict`: " in out and "colour.csv" in out
    assert "The accuracy of this stock model was not measured" in out
    # The card may be published, and the reason names a path.
    page = (tmp_path / "out" / "README.md").read_text()
    assert "was not measured" in page and "colour.csv" not in page


def test_the_joined_heads_are_those_of_the_run(run, tmp_path):
    model = Model(run)
    model.export(tmp_path / "out", heads="joined")
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    trained = torch.cat([Model(run).backbone.own(name).weight for name in NAMES])
    assert torch.equal(stock.classifier.weight, trained)
    assert "compete under one softmax" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("method", "names"),
    [("isolated", NAMES[:1]), ("ncm", NAMES[:2])],
)
def test_heads_that_compare_already_are_joined(method, names, pico, tmp_path):
    """Those of a single task, and those of a method that computes all heads together."""
    own = make(tmp_path, "run", values(tmp_path, names, pico, method=method))
    assert usual_heads(Model(own).system, own.recipe) == "joined"


def test_aligned_heads_are_joined(bert, toy, tmp_path):
    training = Training(epochs=1, alignment=Alignment(epochs=1))
    own = learn_stream(
        toy.until(2), bert, Isolated(rank=2), training=training, output=tmp_path / "run"
    )
    assert usual_heads(Model(own).system, own.recipe) == "joined"


def test_a_stream_made_in_python_can_be_given(bert, toy, tmp_path):
    own = learn_stream(
        toy.until(2), bert, Isolated(rank=2), training=Training(epochs=1), output=tmp_path / "run"
    )
    Model(own).export(tmp_path / "a")
    assert "was not measured" in (tmp_path / "a" / "README.md").read_text()
    Model(own).export(tmp_path / "b", stream=toy)
    assert "with this stock model: " in (tmp_path / "b" / "README.md").read_text()


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_images_without_drift_keep_their_statistics(kind, pico, pictures, tmp_path, monkeypatch):
    """A ViT's head reads the class token alone, which is the first half of the statistics."""
    monkeypatch.setattr(random_inputs, "IMAGES", 40)
    backbone = Backbone.load(pico(kind))
    own = learn_stream(pictures, backbone, Isolated(rank=2), output=tmp_path / "run")
    system = Model(own, rule=Rule("task_arithmetic", scale=0.0)).system
    assert usual_heads(system, own.recipe) == "closed_form"
    statistics = {}
    for task in system.learned:
        sums, products = task.statistics.sums, task.statistics.products
        width = backbone.width
        first = Statistics(task.statistics.counts, sums[:, :width], products[:width, :width])
        statistics[task.name] = first
    weight, bias = TaskPosterior(statistics).classifier
    heads = closed_form_heads(system).values()
    ours = [torch.cat([head[name] for head in heads]) for name in ("weight", "bias")]
    torch.testing.assert_close(ours[0], weight.float(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours[1], bias.float(), rtol=1e-3, atol=1e-2)


def test_random_images_are_the_same_each_time(pico, monkeypatch):
    monkeypatch.setattr(random_inputs, "IMAGES", 30)
    backbone = Backbone.load(pico("vit"))
    pixels = []
    for _ in range(2):
        examples = random_inputs.random_inputs(backbone)
        pixels.append(examples.batch(range(30)).inputs["pixel_values"])
    assert torch.equal(*pixels)
    # plain ones and fine-grained ones
    spread = pixels[0].std(dim=(2, 3)).mean(1)
    assert spread.min() < 1e-3 and spread.max() > 0.4


def test_a_class_without_examples_has_no_mean(run):
    model = Model(run)
    assert usual_heads(model.system, run.recipe) == "closed_form"
    first, *others = model.system.learned
    counts = first.statistics.counts.clone()
    counts[0] = 0
    broken = replace(first, statistics=replace(first.statistics, counts=counts))
    system = replace(model.system, learned=(broken, *others))
    with pytest.raises(InputError, match="class `apple` of task `fruit` had no training examples"):
        closed_form_heads(system)
    assert usual_heads(system, run.recipe) == "joined"


def test_an_adapter_has_no_heads(run, tmp_path):
    with pytest.raises(InputError, match="`--heads` is for `--as model`"):
        Model(run).export(tmp_path / "out", form="adapter", heads="joined")
