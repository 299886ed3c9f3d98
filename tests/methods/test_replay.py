"""Replay: which examples are kept, that they survive on disk, what they train,
and the method around which it is.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from pico_language import save
from small_runs import differing, make, recipe, small, stopped, table

from perdure import Backbone, InputError, Recipe, Task, Training, learn, registry, run
from perdure.data import exemplars
from perdure.data.exemplars import Exemplars
from perdure.learning import snapshot
from perdure.methods.inc_lora import IncLoRA
from perdure.methods.isolated import Isolated
from perdure.methods.joint import Joint
from perdure.methods.ncm import NCM
from perdure.methods.replay import Replay
from perdure.methods.sequential import Sequential
from perdure.models import adapters
from perdure.runs.extend import forget, learn_more

FEW = Training(epochs=1, batch_size=8, learning_rate=0.01)


def kept_by(results, task):
    """The store, as it lies in a task's folder."""
    return Exemplars.of(results.load_task(task).state)


# -- which ones


def test_balanced():
    labels = [0] * 9 + [1] * 2 + [2] * 5
    chosen = exemplars.balanced(labels, 4, np.random.default_rng(0))
    assert [sum(labels[i] == c for i in chosen) for c in range(3)] == [4, 2, 4]
    assert len(set(chosen)) == 10 and chosen != exemplars.balanced(
        labels, 4, np.random.default_rng(1)
    )


def test_herding_is_greedy():
    features = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    labels = [i % 2 for i in range(12)]
    expected = []
    for c in (0, 1):
        x = {
            i: features[i].double() / features[i].double().norm()
            for i in range(12)
            if labels[i] == c
        }
        mean, chosen = sum(x.values()) / len(x), []
        while len(chosen) < 4:
            left = [i for i in x if i not in chosen]
            chosen.append(
                min(
                    left,
                    key=lambda i: (
                        sum(x[j] for j in [*chosen, i]) / (len(chosen) + 1) - mean
                    ).norm(),
                )
            )
        expected += chosen
    assert exemplars.herded(features, labels, 4) == sorted(expected)
    assert exemplars.herded(features, labels, 99) == list(range(12))


@pytest.mark.parametrize(("sizes", "grows"), [((40, 80, 20, 60), False), ((50, 50, 50, 50), True)])
def test_every_example_is_as_likely_to_be_in_the_reservoir(sizes, grows):
    """Whether tasks come into room for 20, or each of them brings room for 5."""
    total, seeds = [0, 0, 0, 0], 600
    for seed in range(seeds):
        random, kept, seen = np.random.default_rng(seed), {}, {}
        for number, size in enumerate(sizes, start=1):
            kept[str(number)] = seen[str(number)] = size
            kept = exemplars.shares(5 * number if grows else 20, seen, kept, random)
        assert sum(kept.values()) == 20
        total = [n + more for n, more in zip(total, kept.values(), strict=True)]
    assert [n / seeds for n in total] == pytest.approx([size / 10 for size in sizes], rel=0.1)


def test_thinning_is_uniform(toy):
    counts = np.zeros(32)
    for seed in range(400):
        kept = Exemplars()
        kept.add(toy[0], range(32))
        kept.labels["fruit"] = list(range(32))  # to tell them apart
        kept.thin({"fruit": 8}, np.random.default_rng(seed))
        counts[kept.labels["fruit"]] += 1
    assert counts.sum() == 8 * 400 and counts.min() > 60 and counts.max() < 140


@pytest.mark.parametrize("strategy", ["balanced", "herding", "surprise", "reservoir"])
def test_how_many_are_kept(strategy, bert, toy):
    method, classes = Replay(method=Sequential(rank=2), per_class=3, strategy=strategy), 0
    for step, task in enumerate(toy, start=1):
        learn(bert, toy.until(step).tasks, method, FEW)
        kept, classes = Exemplars.of(method.state), classes + len(task.classes)
        assert len(kept) == 3 * classes and list(kept.labels) == toy.names[:step]
        if strategy != "reservoir":
            assert all(
                sorted(labels) == sorted(3 * list(range(len(one.classes))))
                for one, labels in zip(toy, kept.labels.values(), strict=False)
            )
        for name, rows, _ in kept.rows({task.name: task.classes for task in toy}):
            own = toy[toy.names.index(name)].train
            examples = set(zip(own["text"], own["label"], strict=True))
            assert set(zip(rows["text"], rows["label"], strict=True)) <= examples


@pytest.mark.parametrize("strategy", ["balanced", "surprise", "reservoir"])
def test_a_share_of_each_task(strategy, bert, toy):
    """A share counts a task's examples, whatever its classes are, and is never nothing."""
    sizes = [len(task.train) for task in toy]
    for share, counts in ((0.1, [round(0.1 * size) for size in sizes]), (1e-6, [1] * len(sizes))):
        method = Replay(method=Sequential(rank=2), share=share, strategy=strategy)
        for step in range(1, len(sizes) + 1):
            learn(bert, toy.until(step).tasks, method, FEW)
            kept = Exemplars.of(method.state)
            assert len(kept) == sum(counts[:step])
        if strategy != "reservoir":
            assert list(kept.counts.values()) == counts


def test_herding_takes_no_share():
    with pytest.raises(InputError, match="`share` cannot be used with `strategy: herding`"):
        Replay(method=Sequential(), share=0.1, strategy="herding")


def test_the_most_surprising_by_hand():
    surprise = torch.tensor([0.5, 2.0, 0.1, 2.0, 3.0, 0.2])
    assert exemplars.surprising(surprise, [0] * 6, 3) == [1, 3, 4]
    assert exemplars.surprising(surprise, [0] * 6, 2) == [1, 4]  # of equal ones, the first
    assert exemplars.surprising(surprise, [0, 1, 0, 1, 1, 0], 1) == [0, 4]
    assert exemplars.surprising(surprise, [0, 1, 0, 1, 1, 0], 9) == list(range(6))


@pytest.mark.parametrize("share", [None, 0.2])
def test_what_is_kept_is_what_the_learned_model_finds_improbable(share, bert, toy):
    """Of -log p(class | x) with the trained head and module, of each class or of the task."""
    task = toy[1]
    method = Replay(method=Sequential(rank=2), per_class=2, share=share, strategy="surprise")
    learn(bert, [task], method, FEW)
    losses = []
    with torch.no_grad():
        for number in range(len(task.train)):
            batch = bert.encode(task.rows("train")).batch([number])
            logits = bert.own("colour")(bert(batch))[0]
            losses.append(-logits.log_softmax(0)[task.train["label"][number]].item())
    order = sorted(range(len(losses)), key=losses.__getitem__, reverse=True)
    labels = task.train["label"][:]
    expected = order[: round(0.2 * len(losses))]
    if share is None:
        by_class = [[i for i in order if labels[i] == c][:2] for c in range(len(task.classes))]
        expected = sum(by_class, [])
    (kept,) = Exemplars.of(method.state).rows({"colour": task.classes})
    assert kept.data["text"][:] == [task.train["text"][i] for i in sorted(expected)]
    assert kept.data["label"][:] == [labels[i] for i in sorted(expected)]


def test_surprises_do_not_change_what_is_learned(pico, toy):
    """Dropout is off while they are measured, and no random number is drawn."""
    learned = []
    for strategy in ("balanced", "surprise"):
        bert = Backbone.load(pico("bert"))
        method = Replay(method=Sequential(rank=2), strategy=strategy)
        learned.append(learn(bert, [toy[0]], method, FEW))
    assert adapters.same(learned[0].parameters, learned[1].parameters)


# -- on disk


def test_texts_survive_the_run_folder(bert, toy, tmp_path):
    method = Replay(method=Sequential(rank=2), per_class=3)
    results = run(toy.until(2), bert, method, training=FEW, output=tmp_path / "r")
    found, kept = kept_by(results, "colour"), Exemplars.of(method.state)
    assert (found.inputs, found.labels, found.seen) == (kept.inputs, kept.labels, kept.seen)
    assert found.seen == {"fruit": 32, "colour": 32} and found.kind == "text" and len(found) == 15
    states = [event["state_bytes"] for event in results.events() if event["event"] == "task"]
    assert states[1] > states[0] > kept_by(results, "fruit").size


@pytest.mark.parametrize("strategy", ["balanced", "herding", "surprise"])
def test_pictures_survive_the_run_folder(strategy, pico, pictures, tmp_path):
    """Encoded as they were, and the same pixels."""
    backbone = Backbone.load(pico("vit"))
    method = Replay(method=Sequential(rank=2), per_class=2, strategy=strategy)
    results = run(pictures, backbone, method, training=FEW, output=tmp_path / "r")
    found = kept_by(results, "b")
    assert found.kind == "image" and {t: sorted(labels) for t, labels in found.labels.items()} == {
        "a": [0, 0, 1, 1],
        "b": [0, 0, 1, 1],
    }
    for (name, rows, _), task in zip(
        found.rows({task.name: task.classes for task in pictures}), pictures, strict=True
    ):
        pixels = {
            (np.asarray(one).tobytes(), label)
            for one, label in zip(*task.train[:].values(), strict=True)
        }
        kept = {
            (np.asarray(one).tobytes(), label) for one, label in zip(*rows[:].values(), strict=True)
        }
        assert name == task.name and len(kept) == 4 and kept <= pixels


def test_a_forgotten_task_is_not_trained_on(bert, toy, tmp_path, monkeypatch):
    whole, trained = Sequential.loss, set()

    def loss(self, backbone, batch):
        trained.update(batch.tasks)
        return whole(self, backbone, batch)

    monkeypatch.setattr(Sequential, "loss", loss)
    method = Replay(method=Sequential(rank=2), per_class=3)
    results = run(toy.until(2), bert, method, training=FEW, output=tmp_path / "r")
    assert trained == {"fruit", "colour"} and forget(results.folder, "fruit").traces == ("colour",)
    trained.clear()
    results = run(
        replace(toy, tasks=toy.tasks[1:]), bert, method, training=FEW, output=tmp_path / "r"
    )
    assert trained == {"colour", "shape"} and list(kept_by(results, "shape").labels) == [
        "colour",
        "shape",
    ]


def test_a_task_that_is_learned_again_is_kept_once(bert, toy):
    method = Replay(method=Sequential(rank=2), per_class=3, strategy="reservoir")
    for seen in (toy.tasks[:1], toy.tasks[:2], [toy[1], toy[0]]):
        learn(bert, seen, method, FEW)
    kept = Exemplars.of(method.state)
    assert list(kept.labels) == ["colour", "fruit"] and len(kept) == 15


# -- the method around which it is


def test_old_heads_are_trained(bert, toy):
    method = Replay(method=Sequential(rank=2), per_class=3)
    learn(bert, [toy[0]], method, FEW)
    before = bert.own_state("fruit")
    assert [(name, len(rows)) for name, rows, _ in method.examples(toy.tasks[:2])] == [
        ("colour", 32),
        ("fruit", 6),
    ]
    learn(bert, toy.tasks[:2], method, FEW)
    assert not adapters.same(bert.own_state("fruit"), before)


@pytest.mark.parametrize("method", [NCM(), Joint()])
def test_what_has_no_use_for_old_examples_is_refused(method):
    with pytest.raises(InputError, match="has no use for old examples"):
        Replay(method=method)


def test_validation_looks_at_the_new_task_alone(bert, toy):
    """The old tasks' validation splits are old data beyond the store."""
    seen = []
    method = Replay(method=Sequential(rank=2), per_class=2)
    learn(bert, [toy[0]], method, FEW)
    with pytest.MonkeyPatch.context() as patch:
        rows = Task.rows
        patch.setattr(
            Task, "rows", lambda self, split: seen.append((self.name, split)) or rows(self, split)
        )
        learn(bert, toy.tasks[:2], method, replace(FEW, best=True))
    assert ("colour", "validation") in seen and ("fruit", "validation") not in seen


ALONE = {"replay", "joint", "anacp", "klda", "lda", "ncm", "ranpac"}


@pytest.mark.parametrize("name", [name for name in registry.names("method") if name not in ALONE])
def test_its_hooks_are_those_of_the_other(name, bert, toy):
    """Around every method: what that remembers is remembered,
    and the first task is learned as without it.
    """
    plain, around, found = small(name), Replay(method=small(name), per_class=2), []
    for method in (plain, around):
        adapters.detach(bert.model)
        for task in bert.heads:
            bert.close(task)
        found.append(learn(bert, [toy[0]], method, FEW))
    assert adapters.same(found[0].parameters, found[1].parameters)
    assert around.usual_rule == plain.usual_rule and around.module == plain.module
    inner = {key.removeprefix("method/") for key in around.state if key.startswith("method/")}
    assert inner == set(plain.state) == set(around.method.state)
    fresh = Replay(method=small(name), per_class=2)
    fresh.state = around.state
    assert set(fresh.method.state) == inner and len(Exemplars.of(fresh.state)) == 4


def usual_rule(method, *settings):
    values = {"stream": "demo", "backbone": "minilm", "method": method}
    return Recipe.parse(values, settings).make_rule().name


def test_the_usual_rule_is_that_of_the_other():
    assert Replay(method=IncLoRA()).usual_rule == "sum"
    assert usual_rule({"name": "replay", "method": {"name": "inc_lora"}}) == "sum"
    assert (
        usual_rule({"name": "replay", "method": {"name": "isolated", "rank": 2}})
        == "task_arithmetic"
    )


def test_the_usual_rule_where_the_other_is_a_name():
    assert usual_rule({"name": "replay", "method": "inc_lora"}) == "sum"
    assert usual_rule("replay", "method.method=sequential") == "last"


def test_a_recipe(pico, tmp_path, perdure):  # noqa: F811
    """One method inside another: all settings are written out,
    and a run that was stopped goes on by its folder.
    """
    method = {"name": "replay", "method": {"name": "lwf", "rank": 2}, "per_class": 3}
    values = recipe(tmp_path, ("fruit", "colour"), pico("bert"), method=method)
    whole = make(tmp_path, "whole", values)
    part = stopped(make, tmp_path, "part", values, task="colour", step=4)
    assert part.begun() == "colour" and perdure("run", part.folder, "-q")[0] == 0
    assert differing(part, whole) == []
    written = yaml.safe_load((whole.folder / "recipe.yaml").read_text())
    inner = {
        "name": "lwf",
        "peft": "lora",
        "rank": 2,
        "alpha": 16.0,
        "dropout": 0.0,
        "target_modules": None,
        "strength": 1.0,
        "temperature": 2.0,
        "conflict": None,
    }
    assert written["method"] == {
        "name": "replay",
        "method": inner,
        "per_class": 3,
        "strategy": "balanced",
        "share": None,
        # null, so that runs of older versions go on
        "source": None,
        "candidates": None,
        "select": None,
        "temperature": None,
    }
    assert written["rule"]["name"] == "last"
    learn_more(part.folder, {"data": table(tmp_path, "texture")})
    assert list(kept_by(part, "texture").labels) == ["fruit", "colour", "texture"]


SURE = {
    "name": "slow_adapter",
    "method": {"name": "replay", "method": "sequential", "strategy": "surprise", "share": 0.1},
    "decay": 0.8,
}


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_sure_goes_on_and_forgets(family, pico, tmp_path, perdure):  # noqa: F811
    """The mean is what ranks the examples; a run that was stopped ends with the same bytes."""
    folder = pico("bert") if family == "bert" else save(tmp_path / "model", family)
    names = ("fruit", "colour", "texture")
    values = recipe(tmp_path, names, folder, method=SURE, training={"epochs": 1})
    if family == "llama":
        values["backbone"] = {"model": str(folder), "max_new_tokens": 12}
        for entry in values["stream"]:
            entry["prompt"] = "{text}:"
    whole = make(tmp_path, "whole", values)
    part = stopped(make, tmp_path, "part", values, task="colour", step=3)
    assert perdure("run", part.folder, "-q")[0] == 0
    assert differing(part, whole) == []
    state = snapshot.part(whole.load_task("texture").state, "method")
    assert Exemplars.of(state).counts == dict.fromkeys(names, 2)  # of 18 or so
    assert forget(part.folder, "fruit").traces == ("colour", "texture")
    learn_more(part.folder, values["stream"][0])
    state = snapshot.part(part.load_task("fruit").state, "method")
    assert list(Exemplars.of(state).counts) == ["colour", "texture", "fruit"]


def test_its_settings_are_checked(perdure, tmp_path, pico):  # noqa: F811
    def refused(method):
        values = recipe(tmp_path, ("fruit",), pico("bert"), method=method, rule="last")
        (tmp_path / "it.yaml").write_text(yaml.safe_dump(values))
        status, _, err = perdure("run", tmp_path / "it.yaml", "-o", tmp_path / "r")
        assert status == 1 and "Traceback" not in err
        return err

    assert "method `replay` needs `method`" in refused({"name": "replay", "per_class": 3})
    assert "`rnak`" in refused({"name": "replay", "method": {"name": "lwf", "rnak": 2}})
    assert "No method named `lfw`" in refused({"name": "replay", "method": "lfw"})
    assert "`per_class` is 0" in refused({"name": "replay", "method": "lwf", "per_class": 0})


def test_isolated_tasks_are_no_longer_isolated():
    assert Isolated().isolates and not Replay(method=Isolated()).isolates
