"""Every metric on a 3 × 3 matrix worked by hand."""

import math

import numpy as np
import pytest

from perdure.evaluation import metrics

R = np.array([[0.8, 0.3, 0.2], [0.9, 0.6, 0.4], [0.5, 0.7, 1.0]])


def test_by_hand():
    assert metrics.average_accuracy(R) == pytest.approx((0.5 + 0.7 + 1.0) / 3)
    assert metrics.average_incremental_accuracy(R) == pytest.approx((0.8 + 0.75 + 2.2 / 3) / 3)
    assert metrics.backward_transfer(R) == pytest.approx(((0.5 - 0.8) + (0.7 - 0.6)) / 2)
    assert metrics.forgetting(R) == pytest.approx(((0.9 - 0.5) + (0.6 - 0.7)) / 2)
    assert metrics.forward_transfer(R, np.array([0.1, 0.2, 0.3])) == pytest.approx(
        ((0.3 - 0.2) + (0.4 - 0.3)) / 2
    )


def test_transfer_to_new_tasks_by_hand():
    """Beside models that learned one task alone; the first task does not count."""
    alone = np.array([0.0, 0.7, 0.8])
    assert metrics.transfer_to_new(R, alone) == pytest.approx(((0.6 - 0.7) + (1.0 - 0.8)) / 2)
    assert math.isnan(metrics.transfer_to_new(np.array([[0.7]]), np.array([0.5])))


def test_reduction_of_the_gap():
    assert metrics.gap_reduction(78.0, 72.0, 80.0) == pytest.approx(0.75)
    assert metrics.gap_reduction(70.0, 72.0, 80.0) == pytest.approx(-0.25)  # worse than the other
    assert metrics.gap_reduction(81.0, 72.0, 80.0) == pytest.approx(9 / 8)  # better than the bound
    assert math.isnan(metrics.gap_reduction(79.0, 80.0, 80.0))


def test_scores_before_learning_are_not_needed():
    lower = np.where(np.tril(np.ones_like(R)) > 0, R, np.nan)
    assert metrics.summary(lower) == metrics.summary(R)
    assert "forward_transfer" in metrics.summary(R, np.zeros(3))


def test_one_task():
    one = np.array([[0.7]])
    assert metrics.average_accuracy(one) == metrics.average_incremental_accuracy(one) == 0.7
    for value in (
        metrics.backward_transfer(one),
        metrics.forgetting(one),
        metrics.forward_transfer(one, np.array([0.5])),
    ):
        assert math.isnan(value)
