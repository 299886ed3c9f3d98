"""Made-up covariances with spectra like those of inputs of trained transformers."""

import torch
from torch import Tensor


def covariances(
    d: int, tasks: int, *, power: float, cut: float, seed: int = 0, new: float = 0.3
) -> list[Tensor]:
    """Return E[x xᵀ] of each task's inputs, from 4 d samples.

    Eigenvalues fall like i^-power · exp(-cut · i / d).

    Tasks share their directions but for a random rotation of each, the larger the larger `new` is.
    """
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.double, generator=random)

    i = torch.arange(1, d + 1, dtype=torch.double)
    scale = (i**-power * torch.exp(-cut * i / d)).sqrt()
    shared = torch.linalg.qr(normal(d, d))[0]
    found = []
    for _ in range(tasks):
        turned = torch.linalg.qr(shared + new * normal(d, d) / d**0.5)[0]
        inputs = (normal(4 * d, d) * scale) @ turned.T
        found.append(inputs.T @ inputs / len(inputs))
    return found
