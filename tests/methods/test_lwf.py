"""LwF: the distillation by hand, what it trains, and what is left without it."""

import math
from dataclasses import replace

import pytest
import torch
from pico_language import language_model

from perdure import Backbone, Evaluation, Training, learn, run
from perdure.methods.lwf import LwF
from perdure.methods.parts.teacher import as_teacher
from perdure.methods.sequential import Sequential
from perdure.models import adapters
from perdure.models.encoder import Encoder
from perdure.models.logits import Logits

FEW = Training(epochs=2, batch_size=8, learning_rate=0.01)


def learned(backbone, method, stream, training=FEW):
    """What each task has learned."""
    found = []
    for step in range(1, len(stream) + 1):
        found.append(learn(backbone, stream.until(step).tasks, method, training, earlier=found))
    return found


@pytest.fixture
def begun(bert, toy):
    """At the first step of the third task, whose teachers are two heads: the method,
    and a batch.
    """
    method = LwF(rank=2, strength=0.7, temperature=3.0)
    method.beneath(learned(bert, method, toy.until(2)))
    bert.open(toy[2])
    method.begin(bert, toy[2])
    bert.requires_grad_(False).eval()
    for parameter in (*method.parameters(bert), *bert.own("shape").parameters()):
        parameter.requires_grad_()
    return method, bert.encode(toy[2].rows("train")).batch(range(8))


def test_at_the_first_step_nothing_pulls(begun, bert):
    method, batch = begun
    distilled = method.loss(bert, batch) - bert.losses(batch).mean()
    assert abs(distilled.item()) < 1e-6
    heads = [*bert.own("fruit").parameters(), *bert.own("colour").parameters()]
    gradients = torch.autograd.grad(method.loss(bert, batch), heads)
    # Exactly, because Adam turns the smallest first gradient into a full step.
    assert all(not gradient.any() for gradient in gradients)


def test_distillation_by_hand(begun, bert):
    """T² · mean over heads and examples of Σ_c p_old log(p_old / p)."""
    method, batch = begun
    names, T = ("fruit", "colour"), 3.0

    def answers():
        features = bert(batch)
        return [(bert.own(name)(features) / T).softmax(1).tolist() for name in names]

    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        before = answers()
        for parameter in method.parameters(bert):
            parameter += 0.1 * torch.randn(parameter.shape, generator=random)
        divergences = [
            sum(p * math.log(p / q) for p, q in zip(old, new, strict=True))
            for olds, news in zip(before, answers(), strict=True)
            for old, new in zip(olds, news, strict=True)
        ]
        found = method.loss(bert, batch) - bert.losses(batch).mean()
    assert found.item() > 1e-3
    assert found.item() == pytest.approx(0.7 * T**2 * sum(divergences) / len(divergences), rel=1e-4)


def test_the_teacher_has_no_dropout_and_stays_as_it_was(begun, bert):
    method, batch = begun
    bert.train()
    kept = {name: value.clone() for name, value in method._teacher.items()}
    with torch.no_grad():
        for parameter in method.parameters(bert):
            parameter += 1.0
        method.loss(bert, batch)
    assert (
        all(torch.equal(method._teacher[name], value) for name, value in kept.items())
        and bert.model.training
    )


class Speaker(Encoder):
    """A stand-in for a language model: no heads, and one answerer that says two tokens about each
    example.
    """

    heads: list[str] = []

    def __init__(self, folder):
        whole = Backbone.load(folder, pooling="mean")
        settings = {
            "source": str(folder),
            "pooling": "mean",
            "head_name": None,
            "width": 32,
            "max_length": 16,
        }
        super().__init__(whole.model, whole.processor, **settings)
        torch.manual_seed(5)
        self.answerer = torch.nn.Linear(32, 2 * 7).requires_grad_(False)

    def read(self, hidden, batch, head=None):
        assert head is None
        rows = torch.arange(len(batch)).repeat_interleave(2)
        return Logits(self.answerer(hidden).reshape(-1, 7), batch.targets[rows], rows, len(batch))


def test_a_model_without_heads_distils_its_one_answer(pico, toy):
    """The same loss: T² · KL of all places, from the second task on."""
    backbone, method = Speaker(pico("bert")).eval(), LwF(rank=2, strength=0.5, temperature=2.0)
    method.begin(backbone, toy[0])
    batch = backbone.encode(toy[1].rows("train")).batch(range(8))
    assert torch.equal(method.loss(backbone, batch), backbone.losses(batch).mean())

    def move(seed):
        random = torch.Generator().manual_seed(seed)
        for parameter in method.parameters(backbone):
            parameter += 0.1 * torch.randn(parameter.shape, generator=random)

    def answers():
        return (backbone.answerer(backbone(batch)) / 2.0).reshape(-1, 7).softmax(1)

    with torch.no_grad():
        move(seed=0)
        method.begin(backbone, toy[1])
        before = answers()
        move(seed=1)
        after = answers()
    parameters = [parameter.requires_grad_() for parameter in method.parameters(backbone)]
    found = method.loss(backbone, batch) - backbone.losses(batch).mean()
    expected = 0.5 * 2.0**2 * (before * (before / after).log()).sum(1).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-3) and found.item() > 1e-3
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(found, parameters))


def test_without_strength_it_is_sequential(pico, toy):
    def both(method):
        backbone = Backbone.load(pico("bert"), pooling="mean")
        return learned(backbone, method, toy), [backbone.own_state(name) for name in toy.names]

    (one, heads), (other, other_heads) = both(LwF(rank=2, strength=0.0)), both(Sequential(rank=2))
    assert all(adapters.same(a.parameters, b.parameters) for a, b in zip(one, other, strict=True))
    assert all(adapters.same(a, b) for a, b in zip(heads, other_heads, strict=True))


@pytest.mark.parametrize(("kind", "trained"), [(LwF, True), (Sequential, False)])
def test_old_heads_are_trained(kind, trained, bert, toy):
    method = kind(rank=2)
    first = learn(bert, [toy[0]], method, FEW)
    before = {name: bert.own_state(name) for name in bert.heads}
    learn(bert, toy.tasks[:2], method, FEW, earlier=[first])
    assert adapters.same(bert.own_state("fruit"), before["fruit"]) == (not trained)


def test_old_answers_change_less(pico, toy):
    training = Training(epochs=6, batch_size=8, learning_rate=0.02, backbone_dropout=False)

    def drift(strength):
        backbone, method = (
            Backbone.load(pico("bert"), pooling="mean"),
            LwF(rank=2, strength=strength),
        )
        first = learn(backbone, [toy[0]], method, training)
        batch = backbone.encode(toy[1].rows("train")).batch(range(32))

        def answers():
            with torch.no_grad():
                return backbone.eval().own("fruit")(backbone(batch)).softmax(1)

        before = answers()
        learn(backbone, toy.tasks[:2], method, training, earlier=[first])
        return (answers() - before).abs().mean().item()

    assert drift(20.0) < 0.3 * drift(0.0)


def test_tasks_to_come_that_were_measured_change_nothing(pico, toy, tmp_path):
    """Their untrained heads are no old heads."""
    runs = [
        run(
            toy.until(2),
            Backbone.load(pico("bert"), pooling="mean"),
            LwF(rank=2),
            training=FEW,
            output=tmp_path / str(future),
            evaluation=Evaluation(future=future),
        )
        for future in (False, True)
    ]
    one, two = (run.load_task("colour") for run in runs)
    assert (
        adapters.same(one.adapter.parameters, two.adapter.parameters)
        and one.heads.keys() == two.heads.keys()
    )


# -- conflicts with the task's gradient


def moved(begun, bert):
    """The student a step away from the teacher, so that distillation has a gradient: all examples
    seem to be of the first class of the old heads, while those of the new task are of both.
    """
    method, batch = begun
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in method.parameters(bert):
            parameter += 0.02 * torch.randn(parameter.shape, generator=random)
        for name in ("fruit", "colour"):
            bert.own(name).bias[0] += 2.0
    return method, batch


def by_hand(bert, method, batch, names, T):
    """For each example: its distillation loss, and whether its gradient opposes the task's,
    both from passes of this example alone.
    """
    feature, values = bert(batch).detach(), []
    old = as_teacher(bert, method._teacher, lambda: bert(batch))
    teacher = {
        key.removeprefix("backbone._heads.task_"): value for key, value in method._teacher.items()
    }
    for i in range(len(batch)):
        f = feature[i].clone().requires_grad_()
        task = -bert.own(batch.tasks[i])(f).log_softmax(0)[batch.targets[i]]
        kd = 0.0
        for name in names:
            head = bert.own(name)
            before = old[i] @ teacher[f"{name}.weight"].T + teacher[f"{name}.bias"]
            p = (before / T).softmax(0)
            kd = kd + (p * (p.log() - (head(f) / T).log_softmax(0))).sum() / len(names)
        (g,), (h,) = torch.autograd.grad(task, f), torch.autograd.grad(kd, f)
        values.append((kd.item(), (g @ h).item() < 0))
    return values


def test_conflict_drops_examples_whose_gradients_oppose(begun, bert):
    method, batch = moved(begun, bert)
    values = by_hand(bert, method, batch, ("fruit", "colour"), 3.0)
    opposed = [is_opposed for _, is_opposed in values]
    assert any(opposed) and not all(opposed)
    plain = bert.losses(batch).mean()
    kept = method.loss(bert, batch) - plain
    method.conflict = "drop"
    left = method.loss(bert, batch) - plain
    expected = 0.7 * 9.0 * sum(kd for kd, is_opposed in values if not is_opposed) / 8
    assert left.item() == pytest.approx(expected, rel=1e-3) and left < kept
    assert kept.item() == pytest.approx(0.7 * 9.0 * sum(kd for kd, _ in values) / 8, rel=1e-3)
    # The decision itself leaves no gradient behind.
    assert all(parameter.grad is None for parameter in method.parameters(bert))


def test_old_examples_are_always_distilled(begun, bert):
    method, batch = moved(begun, bert)
    old = replace(batch, tasks=("fruit",) * 8)
    both = []
    for conflict in ("keep", "drop"):
        method.conflict = conflict
        both.append(method.loss(bert, old).item())
    assert both[0] == pytest.approx(both[1], rel=1e-6)


def test_conflict_on_a_model_without_heads(toy):
    """The decision is made per token, with the gradient with respect to its logits."""
    backbone = language_model("llama").eval()
    method = LwF(rank=2, temperature=1.0, conflict="drop")
    method.begin(backbone, toy[0])
    batch = backbone.encode(toy[1].rows("train")).batch(range(8))
    random = torch.Generator().manual_seed(0)

    def move():
        with torch.no_grad():
            for parameter in method.parameters(backbone):
                parameter += 0.5 * torch.randn(parameter.shape, generator=random)

    method.begin(backbone, toy[1])
    with torch.no_grad():
        old = backbone(batch).softmax(1)
    move()
    answers = backbone.read(backbone(batch), batch)
    new, target = answers.values.softmax(1), torch.eye(answers.values.shape[1])[answers.targets]
    # The gradients of both losses with respect to the logits, up to positive factors.
    opposed = ((new - target) * (new - old)).sum(1) < 0
    assert opposed.any() and not opposed.all()
    kl = (old * (old / new).log()).sum(1)
    found = method.loss(backbone, batch) - backbone.losses(batch).mean()
    expected = answers.per_example(kl * ~opposed).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)
