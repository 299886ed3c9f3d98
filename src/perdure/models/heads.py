"""Heads: linear in the feature, or in random features made from it.

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
    """A head that is linear in max(0, x P).

    P is random and never trained, so that only its seed is saved.
    """

    def __init__(self, width: int, features: int, classes: int, seed: int):
        super().__init__(features, classes)
        # A buffer, so that the seed is part of the head's state.
        self.register_buffer(SEED, torch.tensor(seed))
        # `persistent=False`: P can be large, and the seed is enough to make it again.
        P = projection(seed, width, features)
        self.register_buffer("projection", P, persistent=False)

    def forward(self, input: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch classes"]:
        projected = torch.matmul(input, self.projection)  # pyright: ignore
        return super().forward(torch.relu(projected))


@functools.lru_cache(maxsize=4)
def projection(seed: int, width: int, features: int) -> Float[Tensor, "width features"]:
    """Return P, with independent standard normal entries.

    The last few are kept: all tasks of a run have the same P.
    """
    # NumPy's frozen generator gives the same numbers in every version and on every machine.
    generator = np.random.RandomState(seed)
    entries = generator.standard_normal((width, features))
    return torch.from_numpy(entries).float()


def made(state: Mapping[str, Tensor], width: int) -> nn.Linear:
    """Return the head that has this state, on features of this width.

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
        # NumPy takes seeds of 32 bits only, and a stranger's file may hold any integer.
        seed = int(state[SEED]) % 2**32
        head = RandomHead(width, features, classes, seed)
    else:
        head = nn.Linear(features, classes)
    head.load_state_dict(dict(state))
    return head
