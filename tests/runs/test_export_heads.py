"""The head of an exported encoder: in closed form from the statistics of the run, or joined."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from small_runs import make, recipe, table
from tables import read_table

from perdure import Backbone, InputError, Model, Recipe, Rule, Run, Training
from perdure.data.task import TaskRows
from perdure.evaluation.closed_form import closed_form_heads
from perdure.evaluation.score import task_logits
from perdure.learning.alignment import Alignment
from perdure.methods.isolated import Isolated
from perdure.runs.begin import run as learn_stream
from perdure.runs.export_heads import replaced, usual_heads
from perdure.runs.extend import forget

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


def test_images_have_no_head_in_closed_form(pico, pictures, tmp_path):
    own = learn_stream(
        pictures, Backbone.load(pico("vit")), Isolated(rank=2), output=tmp_path / "run"
    )
    model = Model(own)
    assert usual_heads(model.system, own.recipe) == "joined"
    with pytest.raises(InputError, match="reads images. Use `--heads joined`"):
        model.export(tmp_path / "out", heads="closed_form")
    assert not (tmp_path / "out").exists()


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
