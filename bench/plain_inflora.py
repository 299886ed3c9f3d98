"""InfLoRA as it was published, plain and slow: what the library is measured against and must agree
with.

Written from the description of the procedure (Liang & Li, arXiv 2404.00228; DualGPM: Liang & Li,
CVPR 2023): full singular value decompositions in NumPy wherever a norm, a few directions or a
complement is needed; dense branches summed in each forward pass; one matrix of products for each
image. Repaired as in the library: the first task's branch for spaces above half of the dimension,
and directions of noise, which would leave the complement.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Matrix = NDArray[np.floating]
SVD = Callable[[Matrix], tuple[Matrix, Matrix, Matrix]]
NOISE = 2e-6


def thin_svd(X: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """NumPy's, in the precision of X."""
    return np.linalg.svd(X, full_matrices=False)


# -- DualGPM and the design of B_t


@dataclass(frozen=True)
class Memory:
    """A basis of M ("remove": it is taken out of inputs) or of its complement ("retain":
    that alone is kept).
    """

    basis: Matrix
    kind: str

    def outside(self, C: Matrix) -> Matrix:
        P = self.basis @ self.basis.T
        return C - P @ C if self.kind == "remove" else P @ C

    @property
    def dimension(self) -> int:
        d, vectors = self.basis.shape
        return vectors if self.kind == "remove" else d - vectors


def design(memory: Memory | None, C: Matrix, rank: int, svd: SVD = thin_svd) -> Matrix:
    """The rows of B_t before they are scaled: the top left singular vectors of what of C lies
    outside M.
    """
    U, S, _ = svd(C if memory is None else memory.outside(C))
    real = int(np.count_nonzero(S / np.trace(C) > NOISE))
    return U[:, : min(rank, real)].T


def update(memory: Memory | None, C: Matrix, epsilon: float, svd: SVD = thin_svd) -> Memory:
    """DualGPM after a task whose inputs have covariance C."""
    if memory is None:
        U, S, _ = svd(C)
        share = S**2 / (S**2).sum()
        taken = max(int((np.cumsum(share) < epsilon).sum()), 1)
        memory = Memory(U[:, :taken], "remove")
    elif memory.kind == "remove":
        memory = _more_to_remove(memory, C, epsilon, svd)
    else:
        memory = _less_to_retain(memory, C, epsilon, svd)
    d, vectors = memory.basis.shape
    if memory.kind == "remove" and vectors > d / 2:
        U, _, _ = np.linalg.svd(memory.basis, full_matrices=True)
        memory = Memory(U[:, vectors:], "retain")
    return memory


def _more_to_remove(memory: Memory, C: Matrix, epsilon: float, svd: SVD) -> Memory:
    _, S, _ = svd(C)
    total = (S**2).sum()
    U, S, _ = svd(memory.outside(C))
    share = S**2 / total
    held, taken = 1 - share.sum(), 0
    while held < epsilon and taken < len(share):
        held += share[taken]
        taken += 1
    return Memory(np.hstack([memory.basis, U[:, :taken]]), "remove")


def _less_to_retain(memory: Memory, C: Matrix, epsilon: float, svd: SVD) -> Memory:
    _, S, _ = svd(C)
    total = (S**2).sum()
    U, S, _ = svd(memory.outside(C))
    share = S**2 / total
    left, taken = share.sum(), 0
    while left >= 1 - epsilon and taken < memory.basis.shape[1]:
        left -= share[taken]
        taken += 1
    rest = memory.basis - U[:, :taken] @ (U[:, :taken].T @ memory.basis)
    U, _, _ = svd(rest)
    return Memory(U[:, : memory.basis.shape[1] - taken], "retain")


# -- what the statistics come from


def covariance(batches: list[Tensor]) -> Tensor:
    """The mean of x xᵀ over all tokens of batches [images, tokens, d],
    from one matrix for each image.
    """
    mean, seen = torch.zeros(batches[0].shape[-1], batches[0].shape[-1]), 0
    for x in batches:
        products = torch.bmm(x.transpose(1, 2), x).sum(dim=0)
        tokens = x.shape[0] * x.shape[1]
        mean = (mean * seen + products) / (seen + tokens)
        seen += tokens
    return mean


# -- a block of the transformer


class Block(nn.Module):
    """A pre-norm block whose key and value have one branch for each task,
    kept apart and summed in each forward pass.

    Parameters
    ----------
    layer
        A block of transformers' ViT, whose weights are copied.
    branches
        Of each task, A (out x rank) and B (rank x in) of the key and A and B of the value.
    """

    def __init__(
        self, layer: nn.Module, heads: int, branches: list[tuple[Tensor, Tensor, Tensor, Tensor]]
    ):
        super().__init__()
        attention = layer.attention
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        d = projections[0].weight.shape[1]
        self.heads = heads
        self.qkv = nn.Linear(d, 3 * d)
        self.qkv.weight.data = torch.cat([p.weight.data for p in projections])
        self.qkv.bias.data = torch.cat([p.bias.data for p in projections])
        self.proj, self.mlp = attention.o_proj, layer.mlp
        self.norm1, self.norm2 = layer.layernorm_before, layer.layernorm_after
        self.A_k, self.B_k, self.A_v, self.B_v = (
            list(factors) for factors in zip(*branches, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def _attention(self, x: Tensor) -> Tensor:
        batch, tokens, d = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        change_k = torch.stack([A @ B for A, B in zip(self.A_k, self.B_k, strict=True)]).sum(dim=0)
        change_v = torch.stack([A @ B for A, B in zip(self.A_v, self.B_v, strict=True)]).sum(dim=0)
        k = k + nn.functional.linear(x, change_k)
        v = v + nn.functional.linear(x, change_v)
        q, k, v = (
            y.reshape(batch, tokens, self.heads, d // self.heads).transpose(1, 2) for y in (q, k, v)
        )
        weights = (q @ k.transpose(-2, -1) * (d // self.heads) ** -0.5).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, d))
