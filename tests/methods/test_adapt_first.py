"""Frozen classifiers whose features were adapted to the first task."""

import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from small_runs import differing, small

from perdure import Backbone, InputError, Model, Prediction, Training, names, run, verify
from perdure.learning.loop import Session, learn
from perdure.methods.lda import LDA
from perdure.methods.ncm import NCM
from perdure.methods.replay import Replay
from perdure.methods.sequential import Sequential
from perdure.models import adapters
from perdure.models.backbone import pooled
from perdure.runs.extend import forget

TRAINING = Training(epochs=2, batch_size=8, learning_rate=0.02)
FROZEN = [name for name in names("method") if small(name).computes_heads]


def steps_of(method, backbone, tasks):
    """The number of steps of each task, and the adapters."""
    steps, earlier = [], []
    for i in range(len(tasks)):
        losses = []
        session = Session(log=losses.append)
        seen = tasks[: i + 1]
        earlier.append(learn(backbone, seen, method, TRAINING, earlier=earlier, session=session))
        steps.append(len(losses))
    return steps, earlier


def test_the_first_task_is_learned_as_by_sequential_and_later_ones_train_nothing(pico, toy):
    backbone = Backbone.load(pico("bert"), pooling="mean", max_length=16)
    method = LDA(adapt="first", adapt_rank=2)
    steps, learned = steps_of(method, backbone, toy.tasks)
    assert steps[0] > 0 and steps[1:] == [0, 0]
    other = Backbone.load(pico("bert"), pooling="mean", max_length=16)
    _, expected = steps_of(Sequential(rank=2, alpha=4.0), other, toy.tasks[:1])
    for adapter in learned:
        assert adapters.same(adapter.parameters, expected[0].parameters)
    assert not adapters.same(learned[0].start, learned[0].parameters)
    # Later, there is nothing left that could be trained.
    assert method.parameters(backbone) == [] and method.module == "lora" and method.trains


def test_heads_are_those_of_the_adapted_features(bert, toy):
    steps_of(LDA(adapt="first", adapt_rank=2), bert, toy.tasks)
    features, labels, before = [], [], 0
    for task in toy:
        examples = bert.encode(task.rows("train"))
        features.append(pooled(bert, examples))
        labels += [before + label for label in examples.labels]
        before += len(task.classes)
    x = torch.cat(features).double()
    with adapters.disabled(bert.model):
        frozen = pooled(bert, bert.encode(toy[0].rows("train"))).double()
    assert (frozen - x[: len(frozen)]).abs().max() > 0.01
    expected = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1).fit(x, labels)
    weight = torch.cat([bert.own(name).weight for name in toy.names]).double().detach()
    bias = torch.cat([bert.own(name).bias for name in toy.names]).double().detach()
    logits = x @ weight.T + bias
    wanted = torch.from_numpy(expected.decision_function(x))
    torch.testing.assert_close(logits - logits[:, :1], wanted - wanted[:, :1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", FROZEN)
def test_a_run_is_the_same_when_it_goes_on(name, pico, toy, tmp_path):
    """Between two tasks; and it answers with the adapted features."""

    def learned(folder, tasks):
        backbone = Backbone.load(pico("bert"), pooling="mean", max_length=16)
        method = small(name, adapt="first", adapt_rank=2)
        return run(toy.until(tasks), backbone, method, training=TRAINING, output=tmp_path / folder)

    whole = learned("whole", 3)
    learned("parts", 1)
    assert differing(whole, learned("parts", 3)) == []
    assert verify(whole.folder).faults == []
    model = Model(whole)
    texts = list(toy[1].test["text"])
    predicted: list[Prediction] = model.predict(texts, task="colour")  # pyright: ignore
    examples = model.backbone.encode(toy[1].rows("test"))
    with model.system.combined.applied(model.backbone):
        features = pooled(model.backbone, examples)
    expected = model.backbone.own("colour")(features).argmax(1)
    assert [one.label for one in predicted] == [toy[1].classes[i] for i in expected]


def test_a_run_is_the_same_when_it_was_stopped_in_the_first_task(pico, toy, tmp_path):
    import signal

    from perdure import Stopped

    class Watched(LDA):
        def loss(self, backbone, batch):
            taken.append(1)
            if len(taken) == stop_at:
                signal.raise_signal(signal.SIGTERM)
            return super().loss(backbone, batch)

    Watched.__module__ = LDA.__module__

    def learned(folder):
        backbone = Backbone.load(pico("bert"), pooling="mean", max_length=16)
        method = Watched(adapt="first", adapt_rank=2)
        return run(toy.until(2), backbone, method, training=TRAINING, output=tmp_path / folder)

    taken, stop_at = [], 3
    with pytest.raises(Stopped):
        learned("stopped")
    stop_at = 0
    resumed = learned("stopped")
    steps = len(taken)
    taken.clear()
    whole = learned("whole")
    assert steps == len(taken) > 3
    assert set(differing(whole, resumed)) <= {"events.jsonl"}


def test_without_the_first_task_its_module_remains_in_the_others(pico, toy, tmp_path):
    backbone = Backbone.load(pico("bert"), pooling="mean", max_length=16)
    method = NCM(adapt="first", adapt_rank=2)
    assert not method.isolates and NCM().isolates
    results = run(toy.until(2), backbone, method, training=TRAINING, output=tmp_path / "run")
    assert forget(results.folder, "fruit").traces == ("colour",)
    assert results.load_task("colour").adapter.config is not None
    again = run(
        toy.until(3), backbone, NCM(), training=TRAINING, output=tmp_path / "frozen", seed=1
    )
    assert again.load_task("shape").adapter.config is None


def test_a_recipe_of_before_is_continued(pico, toy, tmp_path):
    """The new settings are null by default, and null is the same as missing."""
    import yaml

    backbone = Backbone.load(pico("bert"), pooling="mean", max_length=16)
    results = run(toy.until(1), backbone, LDA(), training=TRAINING, output=tmp_path / "run")
    file = results.folder / "recipe.yaml"
    values = yaml.safe_load(file.read_text())
    del values["method"]["adapt"], values["method"]["adapt_rank"]
    file.write_text(yaml.safe_dump(values))
    run(toy.until(2), backbone, LDA(), training=TRAINING, output=tmp_path / "run")


def test_bad_input(bert, toy, tmp_path):
    with pytest.raises(InputError, match="`adapt_rank` is the rank of the module that"):
        LDA(adapt_rank=4)
    with pytest.raises(InputError, match="nothing to replay"):
        Replay(method=LDA(adapt="first"), per_class=2)
    shared = Training(epochs=1, heads="shared")
    with pytest.raises(InputError, match="scenario: domain|separate head"):
        run(toy.until(1), bert, LDA(adapt="first"), training=shared, output=tmp_path / "run")
