"""Heads that are linear in the features, or in random features computed from them.

References
----------
McDonnell et al., RanPAC, 2023, arXiv 2307.02251.
Momeni et al., KLDA, 2024, arXiv 2412.15571.
Momeni & Liu, AnaCP, 2025, arXiv 2511.13880.
"""

import functools
import math
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from perdure.errors import RunError, TrainingError

# The keys in a head's state that say how it transforms the features. A head with a seed
# uses random features, which are Fourier features if it also has a γ, and are projected
# once more if it has a θ.
SEED = "projection_seed"
GAMMA = "gamma"
UNIT = "unit_norm"
THETA = "theta"

DTYPES = {SEED: torch.int64, GAMMA: torch.float32, UNIT: torch.bool}
"""The type of the single number that each of these keys has in a head's state."""

UNIT_NORM: Mapping[str, Tensor] = {UNIT: torch.tensor(True)}
"""The addition to the state of a head that scales its input to unit length."""

MOST_FEATURES = 100_000
"""The maximum number of random features, so that a damaged head cannot exhaust the memory."""


class UnitHead(nn.Linear):
    """A head that is linear in x / ‖x‖, the feature vector scaled to unit length."""

    def __init__(self, width: int, classes: int):
        super().__init__(width, classes)
        # A buffer, so that it is part of the head's state.
        self.register_buffer(UNIT, torch.tensor(True))

    def forward(self, input: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch classes"]:
        return super().forward(unit_norm(input))


class RandomHead(nn.Linear):
    """A head that is linear in the random features max(0, x P) of a feature vector x.

    The matrix P is random and never trained, so only its seed is saved.

    Parameters
    ----------
    normalise
        Scale x to unit length first.
    """

    def __init__(
        self,
        width: int,
        features: int,
        classes: int,
        seed: int,
        *,
        normalise: bool = False,
    ):
        super().__init__(features, classes)
        self.normalise = normalise
        # Buffers, so that they are part of the head's state.
        self.register_buffer(SEED, torch.tensor(seed))
        if normalise:
            self.register_buffer(UNIT, torch.tensor(True))
        # `persistent=False`: P can be large, and can be computed from the seed.
        P = projection(seed, width, features)
        self.register_buffer("projection", P, persistent=False)

    def forward(self, input: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch classes"]:
        x = unit_norm(input) if self.normalise else input
        projected = torch.matmul(x, self.projection)  # pyright: ignore
        return super().forward(torch.relu(projected))


class FourierHead(nn.Linear):
    """A head that is linear in random Fourier features of x / ‖x‖, given a feature vector x.

    Only the seed and γ are saved, from which the matrix W and the phases b are computed.
    """

    def __init__(self, width: int, features: int, classes: int, seed: int, gamma: float):
        super().__init__(features, classes)
        self.register_buffer(SEED, torch.tensor(seed))
        self.register_buffer(GAMMA, torch.tensor(gamma))
        # As in `RandomHead`, what is computed from the seed is not saved.
        W, b = fourier(seed, width, features, gamma)
        self.register_buffer("frequencies", W, persistent=False)
        self.register_buffer("phases", b, persistent=False)

    def forward(self, input: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch classes"]:
        W: Tensor = self.frequencies  # pyright: ignore
        b: Tensor = self.phases  # pyright: ignore
        z = fourier_features(unit_norm(input), W, b)
        return super().forward(z)


class ContrastiveHead(nn.Linear):
    """A head that is linear in random features of the contrastive projection of x / ‖x‖.

    The projection p of a feature vector x consists of several lifts to random features, and
    of the matrices θ, which all heads of a run share. The head reads one more lift, GELU(p Q).
    The random matrices P and Q are computed from the seed.
    """

    def __init__(self, classes: int, seed: int, theta: Float[Tensor, "lifts features width"]):
        lifts, features, width = theta.shape
        super().__init__(features, classes)
        self.register_buffer(SEED, torch.tensor(seed))
        self.register_buffer(THETA, theta)
        # As in `RandomHead`, what is computed from the seed is not saved.
        P, Q = contrastive_matrices(seed, width, lifts, features)
        self.register_buffer("projection", P, persistent=False)
        self.register_buffer("last", Q, persistent=False)

    def forward(self, input: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch classes"]:
        P: Tensor = self.projection  # pyright: ignore
        Q: Tensor = self.last  # pyright: ignore
        theta: Tensor = self.theta  # pyright: ignore
        p = contrastive(gelu_features(unit_norm(input), P, len(theta)), theta)
        return super().forward(nn.functional.gelu(p @ Q))


RANDOM = (RandomHead, FourierHead, ContrastiveHead)
"""The heads that use random features, which no stock model computes."""


def unit_norm(x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    """Return x / ‖x‖ for each feature vector x; a vector of zeros stays zero."""
    return nn.functional.normalize(x, dim=-1)


def check_directions(
    features: Float[Tensor, "examples width"], task: str, split: str, *, instead: str
) -> None:
    """Check that all feature vectors of a task can be scaled to unit length.

    Parameters
    ----------
    instead
        What else the user can do than to remove the examples, for the message.

    Raises
    ------
    TrainingError
        A feature vector is zero, and so has no direction.
    """
    zero = features.norm(dim=1) == 0
    if zero.any():
        first = int(zero.nonzero()[0]) + 1
        raise TrainingError(
            f"Task `{task}`: the backbone's features of {int(zero.sum())} of {len(features)} "
            f"examples of the {split} split are zero, so they cannot be scaled to unit length. "
            f"The first is example {first}. Remove these examples, or {instead}."
        )


@functools.lru_cache(maxsize=4)
def projection(seed: int, width: int, features: int) -> Float[Tensor, "width features"]:
    """Return the random projection matrix P, with independent standard normal entries.

    Recent matrices are cached, because all tasks of a run use the same P.
    """
    # NumPy's frozen generator gives the same numbers in every version and on every machine.
    generator = np.random.RandomState(seed)
    entries = generator.standard_normal((width, features))
    return torch.from_numpy(entries).float()


@functools.lru_cache(maxsize=4)
def fourier(
    seed: int, width: int, features: int, gamma: float
) -> tuple[Float[Tensor, "width features"], Float[Tensor, " features"]]:
    """Return the matrix W and the phases b of random Fourier features.

    The entries of W are drawn from N(0, 2γ), and those of b uniformly from [0, 2π].
    Recent results are cached, because all tasks of a run use the same W and b.
    """
    generator = np.random.RandomState(seed)
    entries = generator.standard_normal((width, features))
    phases = generator.uniform(0, 2 * math.pi, features)
    W = math.sqrt(2 * gamma) * entries
    return torch.from_numpy(W).float(), torch.from_numpy(phases).float()


def fourier_features(
    x: Float[Tensor, "*batch width"],
    W: Float[Tensor, "width features"],
    b: Float[Tensor, " features"],
) -> Float[Tensor, "*batch features"]:
    """Return z = √(2/D) cos(Wᵀx + b) for each x, where D is the number of features.

    The product zᵀz' approximates the Gaussian kernel exp(−γ ‖x − x'‖²).
    """
    D = len(b)
    return math.sqrt(2 / D) * torch.cos(x @ W + b)


def contrastive_matrices(
    seed: int, width: int, lifts: int, features: int
) -> tuple[Float[Tensor, "width columns"], Float[Tensor, "width features"]]:
    """Return the random matrices P, for all lifts side by side, and Q of a `ContrastiveHead`."""
    matrix = projection(seed, width, (lifts + 1) * features)
    return matrix[:, : lifts * features], matrix[:, lifts * features :]


def gelu_features(
    x: Float[Tensor, "*batch width"],
    P: Float[Tensor, "width columns"],
    lifts: int,
) -> Float[Tensor, "*batch lifts features"]:
    """Return the random features GELU(x P) of each x, split into lifts of equal size."""
    return nn.functional.gelu(x @ P).unflatten(-1, (lifts, -1))


def contrastive(
    z: Float[Tensor, "*batch lifts features"],
    theta: Float[Tensor, "lifts features width"],
) -> Float[Tensor, "*batch width"]:
    """Return p, the mean over the lifts h of z_h θ_h / ‖z_h θ_h‖."""
    projected = torch.einsum("...hf,hfw->...hw", z, theta)
    return unit_norm(projected).mean(-2)


def is_gamma(value: object) -> bool:
    """Return True if the value can be the γ of Fourier features."""
    return isinstance(value, float) and 0 < value < math.inf


def made(state: Mapping[str, Tensor], width: int) -> nn.Linear:
    """Build a head with the given state, for feature vectors of length `width`.

    Raises
    ------
    RunError
        The state is damaged.

    Examples
    --------
    >>> made(nn.Linear(4, 2).state_dict(), 4).in_features
    4
    >>> random = RandomHead(width=4, features=9, classes=2, seed=7)
    >>> type(made(random.state_dict(), 4)).__name__
    'RandomHead'
    >>> fourier_head = FourierHead(width=4, features=9, classes=2, seed=7, gamma=0.5)
    >>> type(made(fourier_head.state_dict(), 4)).__name__
    'FourierHead'
    >>> contrastive_head = ContrastiveHead(classes=2, seed=7, theta=torch.ones(3, 9, 4))
    >>> type(made(contrastive_head.state_dict(), 4)).__name__
    'ContrastiveHead'
    """
    _check(state)
    classes, features = state["weight"].shape
    if SEED in state:
        # NumPy accepts only 32-bit seeds, and an untrusted file may contain any integer.
        seed = int(state[SEED]) % 2**32
        if THETA in state:
            head = ContrastiveHead(classes, seed, state[THETA])
        elif GAMMA in state:
            gamma = state[GAMMA].item()
            head = FourierHead(width, features, classes, seed, gamma)
        else:
            head = RandomHead(width, features, classes, seed, normalise=UNIT in state)
    elif UNIT in state:
        head = UnitHead(features, classes)
    else:
        head = nn.Linear(features, classes)
    head.load_state_dict(dict(state))
    return head


def _check(state: Mapping[str, Tensor]) -> None:
    """Raise `RunError` if no head has such a state; it may come from an untrusted file."""
    weight = state.get("weight", torch.empty(0))
    bias = state.get("bias", torch.empty(0))
    if weight.dim() != 2 or bias.shape != weight.shape[:1]:
        raise RunError(
            f"The head is damaged: its weights have the shape {list(weight.shape)}, and its "
            f"biases {list(bias.shape)}."
        )
    for key, dtype in DTYPES.items():
        if key in state and (state[key].shape != () or state[key].dtype != dtype):
            raise RunError(f"The head is damaged: `{key}` must be a single number of type {dtype}.")
    kinds = (set(), {UNIT}, {SEED}, {SEED, UNIT}, {SEED, GAMMA}, {SEED, THETA})
    extra = state.keys() - {"weight", "bias"}
    if extra not in kinds:
        raise RunError(f"The head is damaged: no head has {sorted(extra)}.")
    if UNIT in state and not state[UNIT]:
        raise RunError(f"The head is damaged: `{UNIT}` is not true.")
    if GAMMA in state and not is_gamma(state[GAMMA].item()):
        raise RunError(f"The head is damaged: `{GAMMA}` is {state[GAMMA].item()}.")
    features = weight.shape[1]
    if THETA in state:
        theta = state[THETA]
        if theta.dim() != 3 or theta.shape[1] != features or theta.dtype != torch.float32:
            raise RunError(
                f"The head is damaged: `{THETA}` has the shape {list(theta.shape)} and the type "
                f"{theta.dtype}."
            )
        features *= theta.shape[0]
    if SEED in state and not 1 <= features <= MOST_FEATURES:
        raise RunError(
            f"The head is damaged: it reads {features} random features, and at most "
            f"{MOST_FEATURES} are possible."
        )
