"""Heads: linear in the feature, or in random features of it (McDonnell et al. 2023, arXiv 2307.02251)."""

import functools
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

SEED = "projection_seed"
"""Its value in a head's state makes the head one of random features."""


class RandomHead(nn.Linear):
    """Linear in max(0, x P): P is random and never trained, and made from its seed whenever it is needed."""

    def __init__(self, width: int, features: int, classes: int, seed: int):
        super().__init__(features, classes)
        self.register_buffer(SEED, torch.tensor(seed))
        self.register_buffer("projection", projection(seed, width, features), persistent=False)

    def forward(self, input: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch classes"]:
        return super().forward(torch.relu(torch.matmul(input, self.projection)))  # pyright: ignore


@functools.lru_cache(maxsize=4)
def projection(seed: int, width: int, features: int) -> Float[Tensor, "width features"]:
    """P, with independent standard normal entries.

    By NumPy's frozen generator, which gives the same numbers in every version and on every machine.
    """
    return torch.from_numpy(np.random.RandomState(seed).standard_normal((width, features))).float()


def made(state: Mapping[str, Tensor], width: int) -> nn.Linear:
    """The head of a state, on features of this width.

    Examples
    --------
    >>> made(nn.Linear(4, 2).state_dict(), 4).in_features, type(made(RandomHead(4, 9, 2, 7).state_dict(), 4)).__name__
    (4, 'RandomHead')
    """
    classes, features = state["weight"].shape
    head = (
        RandomHead(width, features, classes, int(state[SEED]) % 2**32)
        if SEED in state
        else nn.Linear(features, classes)
    )
    head.load_state_dict(dict(state))
    return head
