"""A quadratic penalty that holds parameters where earlier tasks need them, for EWC, SI and MAS.

    Σ_i Ω_i (θ_i − θ*_i)²

A method's state holds Ω and θ* as `importance/NAME` and `anchor/NAME`, by the parameters' names.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from perdure.learning.snapshot import State

Parameters = Mapping[str, Tensor]


def penalty(parameters: Parameters, state: State) -> Tensor:
    """Return Σ Ω (θ − θ*)², a scalar."""
    terms = []
    for omega, difference in _pairs(parameters, state).values():
        terms.append((omega * difference.square()).sum())
    return torch.stack(terms).sum()


def gradient(parameters: Parameters, state: State) -> dict[str, Tensor]:
    """Return the penalty's gradient 2 Ω (θ − θ*), for the parameters that have an anchor."""
    values = {name: value.detach() for name, value in parameters.items()}
    gradients = {}
    for name, (omega, difference) in _pairs(values, state).items():
        gradients[name] = 2 * omega * difference
    return gradients


def hold(
    state: State,
    parameters: Parameters,
    new: Parameters,
    *,
    decay: float = 1.0,
    weighted: bool = False,
) -> None:
    """Add a task to the penalty: Ω ← decay · Ω + new, and θ* ← θ.

    With `weighted`, θ* becomes the mean of all θ* so far, weighted by their Ω. The gradient of this
    one penalty is then that of the sum of all tasks' penalties.
    """
    for name, value in parameters.items():
        now = value.detach().clone()
        old = state.get(f"importance/{name}", torch.zeros_like(now)).to(now)
        anchor = state.get(f"anchor/{name}", now).to(now)
        added = new[name].to(now)
        omega = decay * old + added
        # Where Ω is zero the quotient is 0 / 0, and the anchor does not matter.
        share = torch.where(omega > 0, added / omega, 1.0) if weighted else 1.0
        state[f"importance/{name}"] = omega
        state[f"anchor/{name}"] = torch.lerp(anchor, now, share)


def _pairs(parameters: Parameters, state: State) -> dict[str, tuple[Tensor, Tensor]]:
    """Return Ω and θ − θ* of each parameter that has an anchor."""
    pairs = {}
    for name, value in parameters.items():
        importance, anchor = f"importance/{name}", f"anchor/{name}"
        if importance not in state:
            continue
        # A state that was read from disk is on the CPU. It is moved once and stored again, so
        # that the penalty copies nothing at each step.
        state[importance] = state[importance].to(value)
        state[anchor] = state[anchor].to(value)
        pairs[name] = (state[importance], value - state[anchor])
    return pairs
