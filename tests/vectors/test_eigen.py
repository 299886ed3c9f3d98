"""Leading eigenvectors agree with full decompositions,
and come without one where few are wanted.
"""

import pytest
import torch
from inputs import covariances

from perdure.vectors.eigen import leading


@pytest.fixture
def decomposed(monkeypatch) -> list[int]:
    """The sizes of the matrices that are decomposed in full."""
    sizes, eigh = [], torch.linalg.eigh

    def noting(G):
        sizes.append(len(G))
        return eigh(G)

    monkeypatch.setattr(torch.linalg, "eigh", noting)
    return sizes


def projector(vectors):
    return vectors @ vectors.T


@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("count", [0, 1, 10, 90, 250])
def test_equal_to_a_full_decomposition(count, square, decomposed):
    C = covariances(300, 1, power=1.0, cut=3.0)[0]
    found = leading(C, lambda values: min(count, len(values)), square=square)
    expected = torch.linalg.svd(C)[0][:, :count]
    assert found.shape == (300, count)
    assert (projector(found) - projector(expected)).abs().max() < 1e-9
    assert (found.T @ found - torch.eye(count)).abs().max() < 1e-12 if count else True
    if square:
        assert (300 in decomposed) == (count > 10)  # few of them need no decomposition of that size


def test_left_singular_vectors_of_a_matrix_that_is_not_square():
    X = covariances(300, 1, power=0.8, cut=3.0)[0][:200]
    expected = torch.linalg.svd(X)[0][:, :8]
    assert (projector(leading(X, lambda values: 8)) - projector(expected)).abs().max() < 1e-9


def test_what_is_wanted_may_depend_on_the_eigenvalues():
    C = covariances(300, 1, power=1.0, cut=3.0)[0]
    values = torch.linalg.eigvalsh(C).flip(0)
    floor = (values[11] + values[12]) / 2
    assert leading(C, lambda found: int((found > floor).sum()), square=False).shape[1] == 12


@pytest.mark.parametrize("rank", [0, 1, 5, 40])
def test_low_rank(rank):
    H = torch.randn(300, rank, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    found = leading(H @ H.T, lambda values: int((values > 1e-9).sum()))
    assert found.shape[1] == rank
    assert (found @ (found.T @ H) - H).abs().max() < 1e-9 if rank else True


def test_equal_eigenvalues_are_no_trap(decomposed):
    found = leading(torch.eye(300).double(), lambda values: 10)
    assert found.shape == (300, 10) and (found.T @ found - torch.eye(10)).abs().max() < 1e-12


def test_bitwise_repeatable():
    C = covariances(300, 1, power=1.0, cut=3.0)[0]
    state = torch.get_rng_state()
    found = [leading(C, lambda values: 10) for _ in range(2)]
    assert torch.equal(*found) and torch.equal(state, torch.get_rng_state())
