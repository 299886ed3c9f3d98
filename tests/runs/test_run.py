"""The run folder, the search for a scale, forward transfer, images,
and what a finished run can do.
"""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

from perdure import (
    Backbone,
    Evaluation,
    InputError,
    Model,
    OutputError,
    Recipe,
    Rule,
    Run,
    RunError,
    Training,
    run,
    task_vectors,
)
from perdure.merging.search import Search
from perdure.methods.isolated import Isolated
from perdure.models.encoder import Encoder
from perdure.models.examples import Batch
from perdure.runs import derived
from perdure.runs.extend import evaluate_run

FEW = Training(epochs=3, batch_size=8, learning_rate=0.01)


@pytest.fixture(scope="module")
def finished(pico, toy, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "toy"
    return run(
        toy,
        Backbone.load(pico("bert"), pooling="mean"),
        Isolated(rank=2),
        training=FEW,
        output=folder,
    )


def test_what_is_in_the_folder(finished):
    assert finished.tasks == ["fruit", "colour", "shape"]
    files = {p.name for p in (finished.folder / "tasks" / "01-colour").iterdir()}
    expected = {
        "adapter",
        "start.safetensors",
        "head.safetensors",
        "statistics.safetensors",
        "method.safetensors",
    }
    assert files == expected | {"task.json", "manifest.json"}
    assert finished.recipe["method"] == {
        "name": "isolated",
        "rank": 2,
        "peft": "lora",
        "alpha": 16.0,
        "dropout": 0.0,
        "target_modules": None,
        "start": "fresh",
    }
    environment = json.loads((finished.folder / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__
    R = finished.matrix(task_id="given")
    assert np.isnan(R[np.triu_indices(3, 1)]).all() and (R[np.tril_indices(3)] <= 1).all()
    assert R.diagonal().mean() > 0.6
    kinds = [event["event"] for event in finished.events()]
    assert (
        kinds.count("task") == kinds.count("evaluation") == 3 and kinds.count("step") == 3 * 3 * 4
    )


def test_scenarios_in_the_scores(finished):
    found = {(row["task_id"], row["scenario"]) for row in finished.scores()}
    assert found == {("given", "task"), ("posterior", "class"), ("none", "class")}


def test_a_folder_is_never_overwritten(finished, toy, bert):
    with pytest.raises(
        RunError, match="(?s)a run with other settings.*`method.rank`: 2 before, 8 now"
    ):
        run(toy, bert, Isolated(), training=FEW, output=finished.folder)
    with pytest.raises(OutputError, match="already exists and is not empty"):
        run(toy, bert, Isolated(), output=finished.folder / "tasks")
    with pytest.raises(RunError, match="is not a run"):
        Run(finished.folder / "tasks")


def test_damage_is_found(finished, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(finished.folder, copy)
    file = copy / "tasks" / "00-fruit" / "head.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(RunError, match="head.safetensors` is not what was written"):
        Run(copy).load_task("fruit")
    (copy / "tasks" / "02-shape" / "manifest.json").unlink()
    assert Run(copy).tasks == ["fruit", "colour"]


def test_search_takes_the_best_on_validation_data(pico, toy, tmp_path):
    results = run(
        toy.until(2),
        Backbone.load(pico("bert"), pooling="mean"),
        Isolated(rank=2),
        Rule(scale="search"),
        training=FEW,
        output=tmp_path / "r",
    )
    combined = results.combined()
    scores = {one["scale"]: one["score"] for one in combined["candidates"]}
    assert 0.5 in scores and len(scores) >= 12
    assert scores[combined["options"]["scale"]] == max(scores.values())
    assert combined["label"] == "task_arithmetic(scale=search)"
    assert Model(results).rule.options == {"scale": combined["options"]["scale"]}


def test_the_answers_are_those_that_the_scores_were_computed_from(finished, toy):
    answers = derived.answers(finished.folder)
    last = [row for row in finished.scores() if row["step"] == len(toy)]
    assert {(row["task_id"], row["task"]) for row in last} == {
        (way, task) for way in answers for task in answers[way]
    }
    for row in last:
        counts = answers[row["task_id"]][row["task"]]
        true = {name: sum(answered.values()) for name, answered in counts.items()}
        labels = toy.task(row["task"]).test["label"]
        classes = toy.task(row["task"]).classes
        assert true == {
            name: list(labels).count(i) for i, name in enumerate(classes) if i in labels
        }
        right = sum(answered.get(name, 0) for name, answered in counts.items())
        assert row["value"] == pytest.approx(right / len(labels))


def test_search_never_looks_at_test_data(finished, toy, bert, monkeypatch):
    from perdure.evaluation.answers import Answers
    from perdure.evaluation.scales import with_best_scale
    from perdure.evaluation.system import System
    from perdure.runs.resume import restored

    system = restored(finished.state, bert, Rule(scale="search"))
    asked = []
    right = torch.tensor([0])

    def answer(self, task, split, task_ids, **options):
        asked.append(split)
        return Answers(("no", "yes"), right, {task_ids[0]: right})

    monkeypatch.setattr(System, "answer", answer)
    found, _ = with_best_scale(system, toy)
    assert set(asked) == {"validation"} and found.rule.options == {"scale": 0.05}


def test_tasks_to_come_are_measured_for_forward_transfer(pico, toy, tmp_path):
    from perdure.evaluation import metrics

    results = run(
        toy,
        Backbone.load(pico("bert"), pooling="mean"),
        Isolated(rank=2),
        training=Training(epochs=1),
        evaluation=Evaluation(future=True, task_ids=("given", "none")),
        output=tmp_path / "r",
    )
    R = results.matrix(task_id="given")
    assert not np.isnan(R).any()
    zero = [
        row["value"] for row in results.scores() if row["step"] == 0 and row["task_id"] == "given"
    ]
    assert len(zero) == 3 and "forward_transfer" in metrics.summary(R, np.array(zero))


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_images(kind, pico, pictures, tmp_path):
    backbone = Backbone.load(pico(kind))
    results = run(pictures, backbone, Isolated(rank=2), training=FEW, output=tmp_path / "r")
    assert {row["scenario"] for row in results.scores()} == {"task", "domain"}
    assert results.matrix().shape == (2, 2) and (results.matrix()[1] > 0.6).all()
    model = Model(results)
    images = pictures[0].test["image"][:4]
    auto = transformers.AutoModelForImageClassification.from_pretrained(
        model.export(tmp_path / "out", heads="joined")
    ).eval()
    model = Model(results)
    inputs = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")(
        images=images, return_tensors="pt"
    )
    with torch.no_grad(), model.combined.applied(model.backbone):
        ours = torch.cat(
            [model.backbone.eval().own(t)(model.backbone(Batch(dict(inputs)))) for t in "ab"], dim=1
        )
        torch.testing.assert_close(auto(**inputs).logits, ours, rtol=0, atol=1e-5)
    assert auto.config.id2label == {0: "a/dark", 1: "a/light", 2: "b/dark", 3: "b/light"}


@pytest.mark.parametrize("kind", ["bert", "roberta", "deberta-v2", "distilbert", "modernbert"])
def test_export_is_a_stock_classifier(kind, pico, toy, tmp_path):
    results = run(
        toy.until(2),
        Backbone.load(pico(kind)),
        Isolated(rank=2),
        training=Training(epochs=1),
        output=tmp_path / "r",
    )
    Model(results).export(tmp_path / "out", heads="joined")
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert list(stock.config.id2label.values()) == ["apple", "pear", "red", "green", "blue"]
    model = Model(results)
    inputs = dict(
        transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(
            toy[0].test["text"][:], padding=True, return_tensors="pt"
        )
    )
    with torch.no_grad(), model.combined.applied(model.backbone):
        ours = torch.cat(
            [
                model.backbone.eval().own(t)(model.backbone(Batch(inputs)))
                for t in ("fruit", "colour")
            ],
            dim=1,
        )
        torch.testing.assert_close(stock(**inputs).logits, ours, rtol=0, atol=1e-5)


def test_export_is_a_stock_sentence_transformer(finished, toy, tmp_path):
    sentence_transformers = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )
    model = Model(finished)
    Model(finished).export(tmp_path / "out", heads="joined")
    stock = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    texts = toy[1].test["text"][:]
    inputs = dict(model.backbone.processor(texts, padding=True, return_tensors="pt"))
    with torch.no_grad(), model.combined.applied(model.backbone):
        ours = torch.cat(
            [model.backbone.eval().own(t)(model.backbone(Batch(inputs))) for t in finished.tasks],
            dim=1,
        )
    torch.testing.assert_close(torch.tensor(stock.encode(texts)), ours, rtol=0, atol=1e-5)


def test_predict(finished, toy):
    model = Model(finished)
    texts = toy[1].test["text"][:]
    found = model.predict(texts)
    right = np.mean(
        [
            p.label == toy[1].classes[label]
            for p, label in zip(found, toy[1].test["label"], strict=True)
        ]
    )
    assert right == pytest.approx(finished.matrix()[2, 1])
    assert all(0 < p.probability <= 1 and p.task in finished.tasks for p in found)
    assert {p.task for p in model.predict(texts, task="fruit")} == {"fruit"}
    with pytest.raises(ValueError, match="No task named `colours`. Did you mean `colour`?"):
        model.predict(texts, task="colours")
    with pytest.raises(ValueError, match="nothing to predict"):
        model.predict([])


def test_routed_rules_and_bottlenecks_have_no_one_checkpoint(finished, tmp_path):
    with pytest.raises(RunError, match="is routed, so there is no single set of weights"):
        Model(finished, rule=Rule(name="oracle")).export(tmp_path / "out")
    with pytest.raises(RunError, match="combines in factor space"):
        Model(finished, rule=Rule(space="factor")).export(tmp_path / "out")


def test_rows_that_lack_something(finished):
    model = Model(finished)
    rows = [{"text": "w1 w2", "label": "x", "predicted_label": "y"}]
    assert list(model.add_predictions(rows)[0])[3:] == [
        "predicted_predicted_label",
        "probability",
        "task",
    ]
    for bad in ({"text": None}, {"text": 5}, {}):
        with pytest.raises(ValueError, match="Row 2, has .* in column `text`"):
            model.add_predictions([rows[0], bad])
    with pytest.raises(ValueError, match="has no column `body`"):
        model.add_predictions(rows, column="body")


@pytest.mark.parametrize("future", [False, True])
@pytest.mark.parametrize("name", ["isolated", "joint"])
def test_measuring_again_gives_the_same_scores(name, future, pico, toy, tmp_path):
    """Heads, adapters and posterior come back from the folder as they were at each step."""
    from perdure import registry

    results = run(
        toy,
        Backbone.load(pico("bert"), pooling="mean"),
        registry.find("method", name)(rank=2),
        training=FEW,
        evaluation=Evaluation(future=future),
        output=tmp_path / "r",
    )
    before = results.scores()
    evaluate_run(results.folder, stream=toy)
    assert results.scores() == before
    evaluate_run(results.folder, "oracle", stream=toy)
    assert len(results.scores()) == len(before) + 3 * (9 if future else 6)


def test_data_that_has_changed_is_refused(pico, tmp_path):
    from tables import ROWS, write

    path = tmp_path / "mail.csv"
    recipe = {
        "stream": [{"data": write(path, ROWS)}],
        "backbone": str(pico("bert")),
        "training": {"epochs": 1},
    }
    Recipe.parse(recipe).run(tmp_path / "r")
    write(path, [*ROWS, ("w1 w2", "yes")])
    with pytest.raises(
        RunError, match="The examples of task `mail` are not those that the run learned"
    ):
        evaluate_run(tmp_path / "r")


def test_another_order_is_refused(pico, toy, tmp_path):
    run(toy.until(1), Backbone.load(pico("bert")), Isolated(), training=FEW, output=tmp_path / "r")
    other = toy.ordered(["colour", "fruit"])
    with pytest.raises(RunError, match="Keep their order"):
        run(other, Backbone.load(pico("bert")), Isolated(), training=FEW, output=tmp_path / "r")


def test_a_stop_before_measuring_is_made_up_for(pico, toy, tmp_path, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    whole = run(
        toy.until(2),
        Backbone.load(pico("bert")),
        Isolated(),
        training=FEW,
        output=tmp_path / "whole",
    )
    module = sys.modules["perdure.runs.story"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "measure", stop)
        run(
            toy.until(2),
            Backbone.load(pico("bert")),
            Isolated(),
            training=FEW,
            output=tmp_path / "part",
        )
    assert len(Model(tmp_path / "part").predict(["w1"])) == 1  # what was learned can be used
    part = run(
        toy.until(2),
        Backbone.load(pico("bert")),
        Isolated(),
        training=FEW,
        output=tmp_path / "part",
    )
    assert part.scores() == whole.scores()


def test_oracle_with_the_task_given_is_each_adapter(finished, bert, toy):
    """Each task as it was right after it was learned: nothing that came later matters."""
    from perdure.runs.resume import restored

    routed = restored(finished.state, bert, Rule(name="oracle"))
    for learned in routed.learned:
        alone = replace(routed, learned=(learned,), rule=Rule(name="sum"))
        task = toy.task(learned.name)
        given = routed.answer(task, "test", ["given"])
        assert given.scores() == alone.answer(task, "test", ["given"]).scores()


def test_bottleneck_run(pico, toy, tmp_path):
    results = run(
        toy.until(2),
        Backbone.load(pico("bert"), pooling="mean"),
        Isolated(peft="bottleneck", rank=4),
        Rule(space="factor"),
        training=FEW,
        output=tmp_path / "r",
    )
    assert results.matrix(task_id="given")[1].mean() > 0.5
    assert len(Model(results).predict(["w1 w2"])) == 1


def test_evaluate_again_needs_a_stream_that_can_be_made(finished):
    with pytest.raises(
        ValueError, match="The stream `toy` was made in Python, not by a recipe: give it as"
    ):
        evaluate_run(finished.folder)


@pytest.mark.parametrize(("over", "numbers"), [("tasks", float), ("layers", list)])
def test_a_scale_for_each_task_is_searched_and_kept(over, numbers, finished, toy, bert):
    """Every candidate's score is that of the model which the rule makes with it."""
    from perdure.evaluation.scales import with_best_scale
    from perdure.runs.resume import restored

    rule = Rule(scale="search", search=Search(over=over, groups=2, budget=12))
    system = restored(finished.state, bert, rule)
    acting, candidates = with_best_scale(system, replace(toy, scenario="task"))
    found = acting.rule
    assert 2 < len(candidates) <= 12 and set(found.options["scale"]) == set(toy.names)
    assert all(isinstance(value, numbers) for value in found.options["scale"].values())
    for one in candidates[::4]:
        scaled = system.with_rule(Rule(scale=one["scale"]))
        scores = [scaled.answer(task, "validation", ["given"]).scores()["given"] for task in toy]
        assert one["score"] == pytest.approx(sum(scores) / 3)
    assert max(one["score"] for one in candidates) == next(
        one["score"] for one in candidates if one["scale"] == found.options["scale"]
    )


def test_a_search_over_tasks_is_a_recipe(pico, toy, tmp_path):
    recipe = Recipe.parse(
        {
            "stream": "toy",
            "backbone": str(pico("bert")),
            "method": "isolated",
            "rule": "task_arithmetic",
        },
        [
            "rule.scale=search",
            "rule.search.over=tasks",
            "rule.search.budget=8",
            "training.epochs=1",
        ],
    )
    rule = recipe.make_rule()
    assert rule.search == Search(over="tasks", budget=8)
    results = run(
        toy.until(2),
        recipe.make_backbone(),
        recipe.make_method(),
        rule,
        training=FEW,
        output=tmp_path / "r",
    )
    combined = results.combined()
    assert combined["label"] == "task_arithmetic(scale=search over tasks by coordinate)"
    assert len(combined["candidates"]) <= 8 and combined["options"]["scale"].keys() == {
        "fruit",
        "colour",
    }
    assert results.recipe["rule"]["search"]["over"] == "tasks"
    assert Model(results).rule.options == combined["options"]
    assert Rule.of(results.recipe["rule"]) == rule


def test_inputs_are_kept_by_layer_and_shared(pico, toy, tmp_path):
    """Query and value read the same tensor: one matrix on the disk, the same under both names."""
    training = Training(epochs=1, keep_inputs=True)
    results = run(
        toy.until(1),
        Backbone.load(pico("bert"), pooling="mean"),
        Isolated(rank=2),
        training=training,
        output=tmp_path,
    )
    inputs = results.load_task("fruit").adapter.kept["inputs"]
    assert set(inputs) == set(task_vectors([results.load_task("fruit").adapter])["fruit"].entries)
    layer = "encoder.layer.1.attention.self"
    assert inputs[f"{layer}.query"].shape == (32, 32)
    assert inputs[f"{layer}.query"].data_ptr() == inputs[f"{layer}.value"].data_ptr()
    assert torch.linalg.eigvalsh(inputs[f"{layer}.query"].double()).min() > -1e-6


def test_an_export_that_fails_leaves_nothing(finished, tmp_path, monkeypatch):
    def cut(self, folder, *_):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device", str(folder / "model.safetensors"))

    monkeypatch.setattr(Encoder, "save", cut)
    with pytest.raises(OutputError, match="No space left on device"):
        Model(finished).export(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_rule_of_two_tasks_is_refused_for_a_longer_stream(pico, toy, tmp_path):
    with pytest.raises(InputError, match="`slerp` combines at most 2 tasks; the stream has 3"):
        run(
            toy,
            Backbone.load(pico("bert"), pooling="mean"),
            Isolated(rank=2),
            "slerp",
            output=tmp_path / "r",
        )
    assert not (tmp_path / "r").exists()
