"""Runs on networks that are trained from scratch: with one output layer for all tasks,
resumed to the same bytes, and refused with a sentence.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from PIL import Image
from small_runs import differing, stopped

from perdure import (
    Evaluation,
    InputError,
    Model,
    Network,
    Recipe,
    Run,
    RunError,
    Task,
    TaskStream,
    Training,
    diagnose,
    evaluate_run,
    forget,
    run,
)
from perdure.data.images import as_rows
from perdure.evaluation.system import System
from perdure.report.markdown import to_markdown
from perdure.report.summary import summarise
from perdure.runs.job import make_method
from perdure.runs.verify import verify

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.*:FutureWarning"
)  # peft asks transformers
FEW = Training(epochs=4, batch_size=8, learning_rate=0.02, weight_decay=0.0, checkpoint_steps=3)
CLASSES = ("0", "1", "2", "3")


def images(classes: tuple[str, ...], count: int, seed: int) -> Dataset:
    """Images of 6 × 6 pixels with noise; the brightest rows tell the class."""
    random = np.random.default_rng(seed)
    pictures = []
    labels = []
    for number in range(count):
        label = number % len(classes)
        pixels = random.integers(0, 80, (6, 6), dtype=np.uint8)
        pixels[int(classes[label])] = 255
        pictures.append(Image.fromarray(pixels))
        labels.append(label)
    return as_rows(pictures).add_column("label", labels)


def task(name: str, classes: tuple[str, ...], seed: int) -> Task:
    splits = {
        split: images(classes, count, seed + number)
        for number, (split, count) in enumerate([("train", 24), ("validation", 4), ("test", 8)])
    }
    return Task(name, classes, **splits)


@pytest.fixture(scope="module")
def stream() -> TaskStream:
    """Two tasks of two classes, one after the other, as in Split MNIST."""
    return TaskStream("rows", (task("low", ("0", "1"), 10), task("high", ("3", "2"), 20)))


def network(**settings) -> Network:
    usual = {"network": "mlp", "classes": CLASSES, "widths": (12,), "image_size": 6}
    return Network(**(usual | settings))


def begin(folder, name, stream, method, **settings):
    training = settings.pop("training", FEW)
    return run(
        stream,
        network(**settings),
        make_method(method),
        training=training,
        evaluation=Evaluation(task_ids=("none", "given")),
        output=folder / name,
    )


METHODS = [
    {"name": "sequential", "peft": "full"},
    {"name": "isolated", "peft": "full"},
    {"name": "ewc", "peft": "full"},
    {"name": "lwf", "peft": "full"},
    {"name": "vcl", "peft": "full", "coreset": 2, "coreset_epochs": 1},
    {"name": "td_vcl", "peft": "full", "n": 2, "kept": 4, "objective": "n_step"},
    {"name": "bgd", "peft": "full", "samples": 2},
    {"name": "badam", "peft": "full", "samples": 2},
    {"name": "replay", "method": {"name": "si", "peft": "full"}, "per_class": 2},
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["name"])
def test_a_run_that_was_stopped_ends_with_the_same_bytes(method, stream, tmp_path):
    whole = begin(tmp_path, "whole", stream, method)
    stopped(begin, tmp_path, "half", stream, method, task="high", step=5, how="Call it again with")
    resumed = begin(tmp_path, "half", stream, method)
    assert differing(whole, resumed) == []
    assert verify(resumed.folder).faults == []


def test_every_weight_is_learned_and_the_loss_falls(stream, tmp_path):
    method = {"name": "sequential", "peft": "full"}
    settings = {"network": "cnn", "filters": (3,), "training": replace(FEW, epochs=12)}
    finished = begin(tmp_path, "run", stream.until(1), method, **settings)
    (learned,) = Model(finished).system.learned
    layers = {name.removesuffix(".full_weight") for name in learned.adapter.parameters}
    assert {"convolutions.0", "hidden.0", "output"} <= layers
    assert all(value.any() for value in learned.adapter.parameters.values())
    losses = [event["loss"] for event in finished.events() if event["event"] == "step"]
    assert np.mean(losses[-3:]) < 0.5 * np.mean(losses[:3])
    (event,) = [event for event in finished.events() if event["event"] == "task"]
    trained = sum(value.numel() for value in network(network="cnn", filters=(3,)).parameters())
    assert event["trained"] == trained


def test_all_tasks_share_one_output_layer(stream, tmp_path):
    more = replace(FEW, epochs=20)
    sequential = begin(
        tmp_path, "sequential", stream, {"name": "sequential", "peft": "full"}, training=more
    )
    joint = begin(tmp_path, "joint", stream, {"name": "joint", "peft": "full"}, training=more)
    forgotten = sequential.matrix("last", "none")[-1]
    # Trained on the classes of the second task alone, the layer answers with those only.
    assert forgotten[0] == 0 and forgotten[1] > 0.8
    # If the task is given, the classes of the other task are left out.
    assert sequential.matrix("last", "given")[-1, 0] > 0.4
    assert joint.matrix("last", "none")[-1].min() > 0.8


def test_a_model_answers_as_the_run_was_measured(stream, tmp_path):
    finished = begin(tmp_path, "run", stream, {"name": "joint", "peft": "full"})
    model = Model(finished)
    test = stream[1].test
    predictions = model.predict([row["image"] for row in test], task="high")
    right = [
        found.label == stream[1].classes[label]
        for found, label in zip(predictions, test["label"], strict=True)
    ]
    assert np.mean(right) == finished.matrix("last", "given")[-1, 1]
    assert {found.label for found in model.predict([row["image"] for row in test])} <= {*CLASSES}
    rows = model.add_predictions([{"image": test[0]["image"]}])
    assert rows[0].keys() == {"image", "label", "probability", "task"}


def test_what_works_on_a_run_and_what_is_refused(stream, tmp_path):
    finished = begin(tmp_path, "run", stream, {"name": "isolated", "peft": "full"})
    evaluate_run(finished.folder, "average", stream=stream)
    assert {row["rule"] for row in finished.scores()} >= {"average"}
    assert diagnose(finished.folder, stream=stream)
    with pytest.raises(RunError, match="nothing to export it to. Use `perdure predict`"):
        Model(finished).export(tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
    forget(finished.folder, "low")
    assert Run(finished.folder).tasks == ["high"] and verify(finished.folder).faults == []


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"name": "vcl"}, "`peft: lora` would leave its weights .* Set `peft: full`."),
        ({"name": "inflora", "tasks": 2}, "Choose a method that takes `peft: full`"),
        ({"name": "o_lora"}, "Choose a method that takes `peft: full`"),
        ({"name": "lda"}, "`lda` trains no weights, .* Choose a method that takes"),
        ({"name": "ewc", "peft": "full", "labels": "true"}, "all tasks share its output layer"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_methods_that_need_something_else_are_refused(method, said, stream, tmp_path):
    with pytest.raises(InputError, match=said):
        begin(tmp_path, "refused", stream, method)
    assert not (tmp_path / "refused" / "tasks").exists()


def test_streams_and_settings_that_do_not_fit_are_refused(stream, tmp_path):
    method = {"name": "sequential", "peft": "full"}
    with pytest.raises(InputError, match="class `3`, for which the network has no output"):
        begin(tmp_path, "refused", stream, method, classes=("0", "1", "2"))
    texts = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    in_words = Task("words", ("0", "1"), train=texts, validation=texts, test=texts)
    with pytest.raises(InputError, match="reads images, but the examples are texts"):
        begin(tmp_path, "refused", TaskStream("words", (in_words,)), method)
    domains = TaskStream("rows", (task("one", ("0", "1"), 1), task("two", ("0", "1"), 5)), "domain")
    shared = Training(heads="shared")
    with pytest.raises(InputError, match="`training.heads: shared` is for models that have heads"):
        begin(tmp_path, "refused", domains, method, training=shared)


# -- recipes


def recipe_of(*settings: str) -> Recipe:
    values = {
        "stream": {"name": "split_mnist", "tasks": 2, "train": 20, "validation": 5, "test": 5},
        "backbone": {"network": "mlp", "widths": [4]},
        "method": {"name": "sequential", "peft": "full"},
        "training": {"epochs": 1, "batch_size": 10},
        "evaluation": {"task_ids": ["none"]},
    }
    return Recipe.parse(values, settings)


def test_a_recipe_gives_a_network_the_classes_of_the_stream_and_its_seed(digits, tmp_path):
    recipe = recipe_of("seed=7")
    finished = recipe.run(tmp_path / "run")
    written = yaml.safe_load((finished.folder / "recipe.yaml").read_text())
    assert written["backbone"] == {
        "network": "mlp",
        "classes": list("0123456789"),
        "widths": [4],
        "image_size": 28,
        "channels": 1,
        "seed": 7,
    }
    # The run's own recipe, and the original one, continue the run: nothing is left to do.
    before = (finished.folder / "scores.csv").read_bytes()
    Recipe.read(finished.folder).run(finished.folder)
    recipe.run(finished.folder)
    assert (finished.folder / "scores.csv").read_bytes() == before
    with pytest.raises(RunError, match=r"`backbone.widths`: \[4\] before, \[5\] now"):
        recipe_of("seed=7", "backbone.widths=[5]").run(finished.folder)
    assert "on mlp by method sequential" in to_markdown(summarise([finished.folder]))


def test_a_dry_run_counts_the_weights_and_writes_nothing(digits, tmp_path):
    counted = recipe_of().dry_run()
    weights = 784 * 4 + 4 + 4 * 10 + 10
    assert counted.model.parameters == weights
    assert [size.trained for size in counted.tasks] == [weights, weights]
    assert [size.steps for size in counted.tasks] == [2, 2]
    assert "mlp (Layers)" in str(counted) and "not on this machine" not in str(counted)
    with pytest.raises(InputError, match="Set `peft: full`"):
        recipe_of("method.peft=lora").dry_run()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("backbone.network=vit", "`network` is 'vit', but must be `mlp` or `cnn`"),
        ("backbone.widths=[0]", "`widths.0` is 0, but must be a whole number of at least 1"),
        ("backbone.width=3", "No setting of backbone named `width`"),
        ("backbone.channels=2", "`channels` is 2, but must be `1` or `3`"),
    ],
)
def test_settings_of_a_recipe_are_checked(setting, said, digits):
    with pytest.raises(InputError, match=said):
        recipe_of(setting).make_backbone()


def test_a_damaged_recipe_of_a_network_is_named(stream, tmp_path):
    finished = begin(tmp_path, "run", stream.until(1), {"name": "sequential", "peft": "full"})
    path = finished.folder / "recipe.yaml"
    values = yaml.safe_load(path.read_text())
    del values["backbone"]["classes"]
    path.write_text(json.dumps(values))
    with pytest.raises(RunError, match="recipe.yaml` has no `backbone.classes`"):
        Model(finished.folder)


def test_a_network_reads_a_graduated_stream(digits):
    settings = ("graduated=2", "method.name=bgd", "method.samples=1")
    assert recipe_of(*settings).plan().stream.fading == 2
    with pytest.raises(InputError, match="needs to know where a task ends"):
        recipe_of("graduated=2", "method.name=ewc").plan()


def test_the_posterior_knows_the_task_by_features_of_the_untrained_network(stream, tmp_path):
    finished = begin(tmp_path, "run", stream, {"name": "isolated", "peft": "full"})
    system: System = Model(finished).system
    likeliest = system.likeliest(system.backbone.encode(stream[0].rows("test")))
    assert likeliest.count("low") > 4
    assert all(isinstance(task.statistics.products, torch.Tensor) for task in system.learned)
