"""A head for each task, or one that all tasks share and train on,
as is usual where all have the same classes.
"""

import shutil

import pytest
import torch
import transformers
from small_runs import differing, recipe, small, stopped
from tables import write

from perdure import (
    InputError,
    Model,
    PerdureWarning,
    Recipe,
    Run,
    RunError,
    TaskStream,
    Training,
    evaluate_run,
    forget,
    learn_more,
    names,
    run,
    verify,
)
from perdure.checks.models import toy_task
from perdure.evaluation.measure import Evaluation
from perdure.methods.isolated import Isolated
from perdure.methods.sequential import Sequential
from perdure.runs import put

SHARED = Training(epochs=2, batch_size=8, heads="shared")
FROZEN = ("anacp", "klda", "lda", "ncm", "ranpac")


@pytest.fixture(scope="module")
def domains() -> TaskStream:
    tasks = [
        toy_task(name, ["no", "yes"], seed)
        for seed, name in enumerate(("mail", "chat", "posts"), start=1)
    ]
    return TaskStream("domains", tuple(tasks), "domain")


@pytest.fixture(scope="module")
def finished(domains, pico, tmp_path_factory) -> Run:
    from perdure import Backbone

    backbone = Backbone.load(pico("bert"), pooling="mean", max_length=16)
    output = tmp_path_factory.mktemp("heads") / "run"
    return run(domains, backbone, Sequential(rank=2), training=SHARED, output=output)


def test_each_task_trains_the_head_on_from_where_the_last_one_left_it(domains, bert, tmp_path):
    begun, ended = [], []

    class Watched(Sequential):
        def begin(self, backbone, task):
            super().begin(backbone, task)
            begun.append(backbone.own(task.name).weight.detach().clone())

        def end(self, backbone, task, optimizer):
            ended.append(backbone.own(task.name).weight.detach().clone())
            assert all(backbone.own(name) is backbone.own(task.name) for name in backbone.heads)

    run(domains, bert, Watched(rank=2), "last", training=SHARED, output=tmp_path / "run")
    assert torch.equal(begun[1], ended[0]) and torch.equal(begun[2], ended[1])
    assert not torch.equal(ended[1], ended[0]) and not torch.equal(begun[0], ended[0])


def test_a_folder_holds_each_task_with_the_head_as_it_left_it(finished):
    heads = [finished.load_task(name).heads for name in finished.tasks]
    assert [list(head) for head in heads] == [["mail"], ["chat"], ["posts"]]
    assert not torch.equal(heads[0]["mail"]["weight"], heads[2]["posts"]["weight"])
    model = Model(finished.folder)
    for name in finished.tasks:
        assert torch.equal(model.backbone.own(name).weight, heads[2]["posts"]["weight"])
    assert finished.recipe["training"]["heads"] == "shared" and verify(finished.folder).faults == []
    events = [event for event in finished.events() if event["event"] == "task"]
    assert len({event["trained"] for event in events}) == 1


def test_however_the_task_is_known_the_answer_is_the_same(finished):
    scores = {(row["step"], row["task"], row["task_id"]): row["value"] for row in finished.scores()}
    for step, task, way in scores:
        assert scores[step, task, way] == scores[step, task, "given"]
    assert len(scores) == 3 * (1 + 2 + 3)


def test_measured_again_it_is_the_same(finished, domains):
    before = finished.scores()
    evaluate_run(finished.folder, stream=domains)
    assert finished.scores() == before


def test_the_export_has_one_head_and_answers_alike(finished, domains, tmp_path):
    model = Model(finished.folder)
    texts = domains[1].test["text"][:]
    wanted = [found.label for found in model.predict(texts)]
    model.export(tmp_path / "out")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert config.id2label == {0: "no", 1: "yes"}
    from sentence_transformers import SentenceTransformer

    logits = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(texts)
    assert [config.id2label[int(row.argmax())] for row in logits] == wanted


@pytest.mark.parametrize("name", [name for name in names("method") if name not in FROZEN])
def test_every_method_that_trains(name, domains, bert, tmp_path):
    method = small(name)
    found = run(domains.until(2), bert, method, training=SHARED, output=tmp_path / "run")
    first, second = (found.load_task(task).heads[task] for task in found.tasks)
    assert not torch.equal(first["weight"], second["weight"])
    assert verify(found.folder).faults == []
    for way in ("posterior", "none"):
        assert (found.matrix(task_id=way)[1] == found.matrix(task_id="given")[1]).all()


def test_a_task_to_come_is_answered_by_the_head_that_is_there(domains, bert, tmp_path):
    options = {"training": SHARED, "evaluation": Evaluation(future=True, task_ids=("given",))}
    found = run(domains.until(2), bert, Sequential(rank=2), output=tmp_path / "run", **options)
    assert {(row["step"], row["task"]) for row in found.scores()} == {
        (step, task) for step in (0, 1, 2) for task in ("mail", "chat")
    }
    model = Model(found.folder)
    assert model.backbone.own("mail") is model.backbone.own("chat")


def test_stopped_and_gone_on_with(pico, tmp_path):
    for name, seed in (("mail", 1), ("chat", 2)):
        task = toy_task(name, ["no", "yes"], seed)
        write(
            tmp_path / f"{name}.csv",
            [(row["text"], task.classes[row["label"]]) for row in task.train],
        )
    entries = [{"data": str(tmp_path / f"{name}.csv")} for name in ("mail", "chat")]
    training = {"heads": "shared"}
    values = recipe(
        tmp_path, entries, pico("bert"), scenario="domain", method="sequential", training=training
    )

    def begin(folder, name):
        Recipe.parse(values).run(folder / name)

    begin(tmp_path, "whole")
    stopped(begin, tmp_path, "part", task="chat", step=3)
    begin(tmp_path, "part")
    assert differing(tmp_path / "part", tmp_path / "whole") == []
    shutil.rmtree(tmp_path / "part")
    learn_more(
        tmp_path / "part",
        entries[0],
        backbone=str(pico("bert")),
        settings=[
            "scenario=domain",
            "method=sequential",
            "training.heads=shared",
            "training.epochs=1",
        ],
    )
    with pytest.raises(InputError, match="the heads cannot change once a run has begun"):
        learn_more(tmp_path / "part", entries[1], settings=["training.heads=per_task"])
    learned = learn_more(tmp_path / "part", entries[1])
    assert learned.recipe["training"]["heads"] == "shared" and learned.tasks == ["mail", "chat"]


def test_forgetting_leaves_traces_in_the_head(domains, bert, tmp_path):
    found = run(domains, bert, Isolated(rank=2), training=SHARED, output=tmp_path / "run")
    came = forget(found.folder, "mail")
    assert came.traces == ("chat", "posts") and came.why == "their shared heads"
    last = found.load_task("posts").heads["posts"]["weight"]
    assert torch.equal(Model(found.folder).backbone.own("chat").weight, last)


# -- what makes no sense


def test_what_cannot_share_a_head(domains, bert, toy, tmp_path):
    def refused(said, stream=domains, method="sequential", **settings):
        training = Training(epochs=1, heads="shared", **settings)
        with pytest.raises(InputError, match=said):
            run(stream, bert, small(method), training=training, output=tmp_path / "run")
        assert not (tmp_path / "run").exists()

    refused("is for `scenario: domain`.*the scenario is `class`", toy)
    for name in FROZEN:
        refused(f"the method `{name}` computes a separate head for each task", method=name)
    from perdure import Alignment

    refused("`alignment` aligns the heads of tasks with each other", alignment=Alignment())
    other = toy_task("other", ["yes", "no"], 4)
    refused("classes in the same order: `mail` has", TaskStream("t", (domains[0], other), "domain"))


def test_a_recipe_that_was_changed_to_share_a_head(toy, bert, tmp_path):
    found = run(
        toy.until(2), bert, Isolated(rank=2), training=Training(epochs=1), output=tmp_path / "run"
    )
    assert "heads" not in found.recipe["training"]  # as in folders from before there was a choice
    put.recipe(
        found.folder, found.recipe | {"training": found.recipe["training"] | {"heads": "shared"}}
    )
    with pytest.raises(
        RunError, match="says that the tasks share a head, but they have different classes"
    ):
        Model(found.folder)


def test_tasks_with_the_same_classes_hint_at_domains(pico, tmp_path):
    entries = []
    for name in ("mail", "chat", "posts", "notes"):
        entries.append(
            {"data": write(tmp_path / f"{name}.csv", [(f"w{i}", "ny"[i % 2]) for i in range(12)])}
        )

    def plan(count, **settings):
        return Recipe.parse(recipe(tmp_path, entries[:count], pico("bert"), **settings)).plan()

    plan(2)
    for count in (3, 4):
        with pytest.warns(
            PerdureWarning, match=f"All {count} tasks have the same classes. .*heads: shared"
        ):
            plan(count)
    for scenario in ("class", "domain"):
        plan(4, scenario=scenario)
