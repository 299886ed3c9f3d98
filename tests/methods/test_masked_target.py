"""The masked target and entropy weights against NumPy, place by place; and what is refused."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pico_language import language_model
from small_runs import small
from text_tasks import uneven

from perdure import InputError, Training, learn
from perdure.checks.models import toy_task
from perdure.learning.needs import check_needs
from perdure.methods.inc_lora import IncLoRA
from perdure.methods.isolated import Isolated
from perdure.methods.lwf import LwF
from perdure.methods.masked_target import MaskedTarget, normalised_entropy
from perdure.methods.ncm import NCM
from perdure.methods.online_replay import OnlineReplay
from perdure.methods.replay import Replay
from perdure.methods.sequential import Sequential
from perdure.models import adapters

FEW = Training(epochs=1, batch_size=8, learning_rate=0.02)


def learned(kind, bert, toy):
    """A backbone with a trained module, and a batch in which places are mixed with padding."""
    task = toy[1] if kind == "bert" else uneven("one")
    backbone = bert if kind == "bert" else language_model(kind)
    learn(backbone, [task], Sequential(rank=2), FEW)
    return backbone.eval(), backbone.encode(task.rows("train")).batch(range(6))


def places(backbone, batch):
    """The logits in double precision with the target and the example of each place."""
    with torch.no_grad():
        answers = backbone.read(backbone(batch), batch)
    return answers.values.double().numpy(), answers.targets.tolist(), answers.rows.tolist()


def mean_over_examples(values, rows):
    of_example = {}
    for value, row in zip(values, rows, strict=True):
        of_example.setdefault(row, []).append(value)
    return np.mean([np.mean(each) for each in of_example.values()])


def softmax(logits):
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_the_term(kind, bert, toy):
    """Mean of Σ_{v ≠ target} p̃_base(v) · ln(p̃_base(v) / p̃(v)), by NumPy."""
    backbone, batch = learned(kind, bert, toy)
    values, targets, rows = places(backbone, batch)
    with adapters.disabled(backbone.model):
        base, _, _ = places(backbone, batch)
    divergences = []
    for ours, theirs, target in zip(values, base, targets, strict=True):
        p = softmax(np.delete(theirs, target))
        q = softmax(np.delete(ours, target))
        divergences.append((p * np.log(p / q)).sum())
    expected = mean_over_examples(divergences, rows)
    assert expected > 1e-4
    method = MaskedTarget(method=Sequential(), strength=3.0)
    with torch.no_grad():
        plain = backbone.losses(batch).mean().item()
        loss = method.loss(backbone, batch).item()
    assert loss - plain == pytest.approx(3 * expected, rel=2e-3)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_entropy_weights(kind, bert, toy):
    """CE · (H / 3)² of the 20 most likely tokens; of a head of three classes H / ln 3."""
    backbone, batch = learned(kind, bert, toy)
    values, targets, rows = places(backbone, batch)
    losses = []
    for logits, target in zip(values, targets, strict=True):
        p = softmax(np.sort(logits)[-20:])
        divisor = 3.0 if len(p) == 20 else math.log(3)
        weight = (-(p * np.log(p)).sum() / divisor) ** 2
        losses.append(weight * -math.log(softmax(logits)[target]))
    settings = {"strength": 0, "token_weights": "entropy", "power": 2.0}
    method = MaskedTarget(method=Sequential(), **settings)
    with torch.no_grad():
        loss = method.loss(backbone, batch).item()
    assert loss == pytest.approx(mean_over_examples(losses, rows), rel=1e-3)


def test_entropies_by_hand():
    missing = -torch.inf
    values = torch.tensor([[0.0, 0.0, missing], [0.0, 0.0, 0.0], [0.0, -50.0, -50.0]])
    assert normalised_entropy(values).tolist() == pytest.approx([1.0, 1.0, 0.0], abs=1e-6)
    uniform = torch.zeros(1, 30)
    assert normalised_entropy(uniform).item() == pytest.approx(math.log(20) / 3, rel=1e-6)


def test_the_gradient_does_not_move_the_target(bert, toy):
    """The term is the same whatever the logit of the target is, so its gradient there is 0."""
    backbone, batch = learned("bert", bert, toy)
    values = backbone.read(backbone(batch), batch).values.detach().requires_grad_()
    answers = backbone.read(backbone(batch), batch)
    answers = type(answers)(values, answers.targets, answers.rows, answers.examples)
    base = type(answers)(values.detach().roll(1, 0), answers.targets, answers.rows, 6)
    others = answers.without_targets()
    others.distances(base.without_targets(), 1.0).sum().backward()
    gradient = values.grad
    assert gradient is not None
    assert gradient.gather(1, answers.targets[:, None]).abs().max() == 0
    assert gradient.isfinite().all() and gradient.abs().max() > 1e-3


def test_two_classes_leave_nothing_to_compare(bert, toy):
    """Heads of two and of three classes in one batch: only places with two wrong classes count."""
    learn(bert, [toy[0]], Sequential(rank=2), FEW)
    batch = bert.eval().encode(toy[0].rows("train")).batch(range(6))
    assert len(toy[0].classes) == 2
    loss = MaskedTarget(method=Sequential(), strength=5.0).loss(bert, batch)
    assert loss.item() == pytest.approx(bert.losses(batch).mean().item(), abs=1e-6)
    loss.backward()
    gradients = [value.grad for value in adapters.trainable(bert.model).values()]
    assert all(value.isfinite().all() for value in gradients if value is not None)


def test_the_pass_of_the_inner_method_is_used_again(bert, toy):
    """One pass of the student and one of the base; a teacher's pass is not taken for either."""
    grads = []
    for inner, expected in [(Sequential(rank=2), [True, False]), (LwF(rank=2), None)]:
        method = MaskedTarget(method=inner)
        learn(bert, [toy[0]], method, FEW)
        learn(bert, toy.tasks[:2], method, FEW)
        batch = bert.encode(toy[1].rows("train")).batch(range(4))
        grads.clear()
        hook = bert.register_forward_hook(lambda *_: grads.append(torch.is_grad_enabled()))
        method.loss(bert, batch)
        hook.remove()
        assert grads == (expected or [True, False, False])
        for name in ("fruit", "colour"):
            bert.close(name)
        adapters.detach(bert.model)


def test_the_base_has_no_dropout_and_modes_are_put_back(bert, toy):
    backbone, batch = learned("bert", bert, toy)
    backbone.train()
    modes = []
    hook = backbone.register_forward_hook(
        lambda *_: modes.append((torch.is_grad_enabled(), backbone.model.training))
    )
    MaskedTarget(method=Sequential()).loss(backbone, batch)
    hook.remove()
    assert modes == [(True, True), (False, False)] and backbone.model.training
    assert not any(layer.disable_adapters for layer in adapters.layers(backbone.model))


def test_a_strong_term_keeps_the_wrong_answers(toy):
    task = uneven("one")

    def distance(strength):
        backbone = language_model("llama")
        method = MaskedTarget(method=Isolated(rank=4), strength=strength)
        learn(backbone, [task], method, Training(epochs=5, batch_size=8, learning_rate=0.02))
        batch = backbone.encode(task.rows("train")).batch(range(8))
        with torch.no_grad():
            student = backbone.read(backbone(batch), batch)
            return method._distance(backbone, batch, student).item()

    assert distance(10.0) < 0.5 * distance(0.0)


def test_it_isolates_what_the_inner_method_isolates():
    assert MaskedTarget(method=Isolated()).isolates and not MaskedTarget(method=LwF()).isolates


def test_what_is_refused():
    with pytest.raises(InputError, match="with and without its adapter, but `ncm` trains none"):
        MaskedTarget(method=NCM())
    inner = Replay(method=small("td_vcl"))
    MaskedTarget(method=inner)
    for weighs in (inner, OnlineReplay()):
        with pytest.raises(InputError, match="`token_weights` cannot be used around"):
            MaskedTarget(method=weighs, token_weights="entropy")
    with pytest.raises(InputError, match="`power` is used only with `token_weights: entropy`"):
        MaskedTarget(method=Sequential(), power=2.0)


def test_heads_that_draw_noise_at_each_reading_are_refused(bert, toy):
    """The term would compare two draws: it was 0.37 for a module that changed nothing."""
    for inner in (small("vcl"), Replay(method=small("td_vcl"))):
        method = MaskedTarget(method=inner)
        with pytest.raises(InputError, match="needs a language model.*: use `sampling: weights`"):
            check_needs(method, bert, toy)
        check_needs(method, language_model("llama"), toy)
    check_needs(MaskedTarget(method=small("vcl", sampling="weights")), bert, toy)


def test_earlier_branches_belong_to_the_base(bert, toy):
    """A fresh branch changes nothing, so the term is 0, whatever the earlier ones change."""
    terms = []

    class Noted(MaskedTarget):
        def _distance(self, backbone, batch, student):
            terms.append(super()._distance(backbone, batch, student).item())
            return student.values.sum() * 0

    first = learn(bert, [toy[0]], IncLoRA(rank=2), FEW)
    assert any(value.any() for name, value in first.parameters.items() if "lora_B" in name)
    # The base has no dropout, so the model must not have any either.
    training = replace(FEW, backbone_dropout=False)
    learn(bert, toy.tasks[:2], Noted(method=IncLoRA(rank=2)), training, earlier=[first])
    assert terms[0] == pytest.approx(0, abs=1e-6) and max(terms) > 1e-4


@pytest.mark.parametrize("peft", ["full", "bottleneck"])
def test_the_base_of_other_modules(peft, bert, toy):
    batch = bert.encode(toy[1].rows("train")).batch(range(6))
    with torch.no_grad():
        before = bert.eval()(batch)
    learn(bert, [toy[1]], Sequential(peft=peft), FEW)
    with torch.no_grad(), adapters.disabled(bert.eval().model):
        torch.testing.assert_close(bert(batch), before, rtol=0, atol=1e-5)
    with torch.no_grad():
        assert not torch.allclose(bert(batch), before, rtol=0, atol=1e-3)


def test_a_head_of_two_and_one_of_three(bert):
    """In a batch of both, as with replay, the smaller head's places add 0."""
    two, three = toy_task("two", ["red", "green"], 1), toy_task("three", ["a", "b", "c"], 2)
    method = MaskedTarget(method=Replay(method=Sequential(rank=2), per_class=2), strength=1.0)
    learn(bert, [two], method, FEW)
    learn(bert, [two, three], method, FEW)
    rows = bert.eval().encode([*three.rows("train"), *two.rows("train")])
    last = len(rows) - 1
    mixed = rows.batch([0, last])
    alone = rows.batch([0])
    assert mixed.tasks == ("three", "two")
    with torch.no_grad():
        terms = []
        for batch in (mixed, alone):
            student = bert.read(bert(batch), batch)
            terms.append(method._distance(bert, batch, student).item())
    assert terms[1] > 0 and terms[0] == pytest.approx(terms[1] / 2, rel=1e-3)
