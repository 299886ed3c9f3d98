"""Heads that are linear in the features, or in random features computed from them.

References
----------
McDonnell et al., RanPAC, 2023, arXiv 2307.02251.
"""

import functools
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

# The key in a head's state that marks a head on random features.
SEED = "projection_seed"


class RandomHead(nn.Linear):
    """A head that is linear in the random features max(0, x P) of a feature vector x.

    The matrix P is random and never trained, so only its seed is saved.
    """

    def __init__(self, width: int, features: int, classes: int, seed: int):
        super().__init__(features, classes)
        # A buffer, so that the seed is part of the head's state.
        self.register_buffer(SEED, torch.tensor(seed))
        # `persistent=False`: P can be large, and can be computed from the seed.
        P = projection(seed, width, features)
        self.register_buffer("projection", P, persistent=False)

    def forward(self, input: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch classes"]:
        projected = torch.matmul(input, self.projection)  # pyright: ignore
        return super().forward(torch.relu(projected))


@functools.lru_cache(maxsize=4)
def projection(seed: int, width: int, features: int) -> Float[Tensor, "width features"]:
    """Return the random projection matrix P, with independent standard normal entries.

    Recent matrices are cached, because all tasks of a run use the same P.
    """
    # NumPy's frozen generator gives the same numbers in every version and on every machine.
    generator = np.random.RandomState(seed)
    entries = generator.standard_normal((width, features))
    return torch.from_numpy(entries).float()


def made(state: Mapping[str, Tensor], width: int) -> nn.Linear:
    """Build a head with the given state, for feature vectors of length `width`.

    Examples
    --------
    >>> made(nn.Linear(4, 2).state_dict(), 4).in_features
    4
    >>> random = RandomHead(width=4, features=9, classes=2, seed=7)
    >>> type(made(random.state_dict(), 4)).__name__
    'RandomHead'
    """
    classes, features = state["weight"].shape
    if SEED in state:
        # NumPy accepts only 32-bit seeds, and an untrusted file may contain any integer.
        seed = int(state[SEED]) % 2**32
        head = RandomHead(width, features, classes, seed)
    else:
        head = nn.Linear(features, classes)
    head.load_state_dict(dict(state))
    return head
