"""Logits: losses, distances and draws by hand, for one place per example and for several."""

import math
from dataclasses import replace

import pytest
import torch

from perdure.models.logits import Logits

MISSING = -math.inf


def answers(values, targets=None, rows=None) -> Logits:
    """By default one place per example."""
    rows = list(range(len(values))) if rows is None else rows
    targets = [0] * len(values) if targets is None else targets
    return Logits(torch.tensor(values), torch.tensor(targets), torch.tensor(rows), max(rows) + 1)


def logs(*shares: float) -> list[float]:
    return [math.log(share) if share else MISSING for share in shares]


def test_a_loss_is_minus_log_p_of_the_target():
    found = answers([logs(0.5, 0.25, 0.25), logs(0.1, 0.2, 0.7)], targets=[1, 2])
    assert found.losses().tolist() == pytest.approx([math.log(4), -math.log(0.7)], rel=1e-6)


def test_a_loss_of_several_places_is_their_mean_in_the_batchs_order():
    """Two texts, whose three tokens stand mixed: the second has two."""
    values = [logs(0.5, 0.5), logs(0.25, 0.75), logs(0.125, 0.875)]
    found = answers(values, targets=[0, 0, 0], rows=[1, 0, 1])
    assert found.losses().tolist() == pytest.approx(
        [math.log(4), (math.log(2) + math.log(8)) / 2], rel=1e-6
    )
    assert found.per_example(torch.tensor([1.0, 5.0, 3.0])).tolist() == [5.0, 2.0]


def test_an_example_without_a_place_has_no_loss():
    found = Logits(torch.tensor([logs(0.5, 0.5)]), torch.tensor([0]), torch.tensor([1]), examples=2)
    assert found.losses().tolist() == pytest.approx([0.0, math.log(2)])


def test_padding_changes_neither_losses_nor_gradients():
    alone = torch.tensor([[0.3, -1.2], [2.0, 0.5]], requires_grad=True)
    padded = torch.nn.functional.pad(alone.detach(), (0, 7), value=MISSING).requires_grad_()
    found = []
    for values in (alone, padded):
        logits = Logits(values, torch.tensor([1, 0]), torch.arange(2), 2)
        logits.losses().sum().backward()
        found.append((logits.losses().tolist(), values.grad[:, :2].tolist()))
    assert found[0] == found[1]
    assert not padded.grad[:, 2:].any()  # and is a number


def test_distance_by_hand():
    """KL(teacher ‖ student), the mean over examples: Σ p_old log(p_old / p)."""
    student, teacher = (
        answers([logs(0.5, 0.5), logs(0.2, 0.8)]),
        answers([logs(0.25, 0.75), logs(0.2, 0.8)]),
    )
    expected = (0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5) + 0) / 2
    assert student.distance(teacher, 1.0).item() == pytest.approx(expected, rel=1e-5)


def test_distance_at_a_temperature_by_hand():
    """p ∝ exp(z / T): at T = 2 odds of 1 to 9 are 1 to 3."""
    student, teacher = answers([logs(0.5, 0.5)]), answers([logs(0.1, 0.9)])
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert student.distance(teacher, 2.0).item() == pytest.approx(expected, rel=1e-5)


def test_a_distance_is_a_mean_over_examples_and_not_over_tokens():
    """Two texts of one and of two tokens, of which only the first token differs from the teacher's.

    The parts of a batch that several processes compute then add up to the batch.
    """
    rows = [0, 1, 1]
    student = answers([logs(0.5, 0.5), logs(0.2, 0.8), logs(0.2, 0.8)], rows=rows)
    teacher = answers([logs(0.25, 0.75), logs(0.2, 0.8), logs(0.2, 0.8)], rows=rows)
    expected = (0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)) / 2
    assert student.distance(teacher, 1.0).item() == pytest.approx(expected, rel=1e-5)


def test_what_equals_its_teacher_is_not_moved_at_all():
    """Adam would turn a rounding error, as the first gradient, into a full step."""
    values = 3 * torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    values[:20, 5:] = MISSING
    targets, rows = torch.zeros(50, dtype=torch.long), torch.arange(50)
    teacher = Logits(values, targets, rows, 50)
    student = Logits(values.clone().requires_grad_(), targets, rows, 50)
    distance = student.distance(teacher, 2.0)
    distance.backward()
    assert distance.item() == 0
    assert student.values.grad is not None and not student.values.grad.any()


def test_a_distance_is_not_computed_in_half_precision():
    student, teacher = answers([[1.0, 2.0, 4.0]]), answers([[2.0, 1.0, 4.0]])
    halved = [replace(one, values=one.values.bfloat16()) for one in (student, teacher)]
    assert halved[0].distance(halved[1], 1.0) == student.distance(teacher, 1.0)


def test_padding_adds_nothing_to_a_distance_and_its_gradient_is_finite():
    values = torch.tensor([[0.1, 0.4, MISSING], [1.0, -1.0, 0.5]], requires_grad=True)
    student = Logits(values, torch.zeros(2, dtype=torch.long), torch.arange(2), 2)
    teacher = answers([[0.3, -0.2, MISSING], [0.0, 0.0, 0.0]])
    parts = [
        answers([[0.1, 0.4]]).distance(answers([[0.3, -0.2]]), 2.0),
        answers([[1.0, -1.0, 0.5]]).distance(answers([[0.0, 0.0, 0.0]]), 2.0),
    ]
    found = student.distance(teacher, 2.0)
    torch.testing.assert_close(found, torch.stack(parts).mean())
    found.backward()
    assert values.grad.isfinite().all() and values.grad[0, 2] == 0


def test_targets_are_drawn_from_the_model():
    torch.manual_seed(0)
    found = answers([logs(0.1, 0.9, 0.0)] * 2000).sampled()
    shares = torch.bincount(found.targets, minlength=3) / 2000
    assert shares.tolist() == pytest.approx([0.1, 0.9, 0.0], abs=0.02)
    assert found.losses().isfinite().all()  # what a head lacks is never drawn
