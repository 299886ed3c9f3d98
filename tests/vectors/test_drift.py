"""Statistics that are carried over by an affine map."""

import torch

from perdure.vectors.drift import Drift
from perdure.vectors.statistics import Statistics

GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(40, 3, generator=GENERATOR, dtype=torch.double)
A = torch.tensor([[1.0, 2.0, 0.0], [0.0, -1.0, 0.5]], dtype=torch.double)
SHIFT = torch.tensor([4.0, -2.0], dtype=torch.double)
GROUPS = torch.arange(40) % 3


def test_an_affine_map_is_recovered_and_carries_the_sums_exactly():
    y = X @ A.T + SHIFT
    drift = Drift.fitted(X, y, ridge=0)
    torch.testing.assert_close(drift.matrix, A)
    torch.testing.assert_close(drift.shift, SHIFT)
    carried = drift.carried(Statistics.of(X, GROUPS, count=3))
    expected = Statistics.of(y, GROUPS, count=3)
    for name, value in expected.tensors().items():
        torch.testing.assert_close(carried.tensors()[name], value)


def test_the_residual_adds_its_covariance():
    """Two points of y for each x: 1 above and below the line, so the variance of r is 1."""
    x = torch.tensor([[0.0], [0.0], [2.0], [2.0]])
    y = torch.tensor([[1.0], [-1.0], [7.0], [5.0]])
    drift = Drift.fitted(x, y, ridge=0)
    assert drift.matrix.item() == 3 and drift.shift.item() == 0 and drift.residual.item() == 1
    carried = drift.carried(Statistics.of(x, torch.tensor([0, 0, 1, 1]), count=2))
    assert carried.sums.tolist() == [[0.0], [12.0]]
    # 1² + 1² + 7² + 5²
    assert carried.products.item() == 76


def test_a_large_ridge_leaves_only_a_shift():
    y = X + torch.tensor([1.0, 2.0, 3.0], dtype=torch.double)
    drift = Drift.fitted(X, 3 * X, ridge=1e12)
    torch.testing.assert_close(drift.matrix, torch.eye(3, dtype=torch.double))
    shifted = Drift.fitted(X, y, ridge=1e12)
    torch.testing.assert_close(shifted.shift, (y - X).mean(0))


def test_the_map_begins_as_the_part_of_x_that_is_nearest_to_y():
    """Such as the class token in front of the mean over patches."""
    x = torch.cat([X, 2 * X.flip(0)], dim=1)
    zero, one = torch.zeros(3, 3, dtype=torch.double), torch.eye(3, dtype=torch.double)
    for y, parts in ((X, (one, zero)), (2.1 * X.flip(0) + 7, (zero, one))):
        torch.testing.assert_close(Drift.fitted(x, y, ridge=1e12).matrix, torch.cat(parts, dim=1))
    # three features are no part of two
    assert Drift.fitted(X, X[:, :2], ridge=1e12).matrix.abs().max() < 1e-9
