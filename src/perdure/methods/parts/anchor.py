"""The quadratic penalty of EWC, SI and MAS on changes to parameters that earlier tasks need.

    Σ_i Ω_i (θ_i − θ*_i)²

The state of the method contains Ω and θ* as `importance/NAME` and `anchor/NAME`, where
NAME is the name of the parameter.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from perdure.learning.snapshot import State

Parameters = Mapping[str, Tensor]

# omega: Ω of a parameter, difference: θ − θ*


def penalty(parameters: Parameters, state: State) -> Tensor:
    """Return Σ Ω (θ − θ*)², a scalar."""
    terms = []
    pairs = _pairs(parameters, state)
    for omega, difference in pairs.values():
        term = omega * difference.square()
        terms.append(term.sum())
    return torch.stack(terms).sum()


def gradient(parameters: Parameters, state: State) -> dict[str, Tensor]:
    """Return the penalty's gradient, 2 Ω (θ − θ*), for each parameter that has an anchor θ*."""
    values = {}
    for name, value in parameters.items():
        values[name] = value.detach()
    gradients = {}
    pairs = _pairs(values, state)
    for name, (omega, difference) in pairs.items():
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

    With `weighted`, θ* becomes the mean of all θ* so far, weighted by their Ω. This
    penalty then has the same gradient as the sum of separate penalties for all tasks.
    """
    for name, value in parameters.items():
        importance, anchor = _keys(name)
        # θ is copied, because training continues to change the parameter.
        now = value.detach().clone()
        added = new[name].to(now)
        before = state.get(importance, torch.zeros_like(now))
        before = before.to(now)
        omega = decay * before + added
        # The anchor moves all the way to θ or, if weighted, by the share of the new Ω in the sum.
        share = 1.0
        if weighted:
            # Where Ω is zero the quotient is 0 / 0, and the anchor does not matter.
            quotient = added / omega
            share = torch.where(omega > 0, quotient, 1.0)
        old = state.get(anchor, now).to(now)
        state[importance] = omega
        state[anchor] = torch.lerp(old, now, share)


def _pairs(parameters: Parameters, state: State) -> dict[str, tuple[Tensor, Tensor]]:
    """Return Ω and θ − θ* of each parameter that has an anchor."""
    pairs = {}
    for name, value in parameters.items():
        importance, anchor = _keys(name)
        if importance not in state:
            continue
        # A state that was read from disk is on the CPU. It is moved only once, so that
        # nothing is copied at each step.
        for key in (importance, anchor):
            state[key] = state[key].to(value)
        difference = value - state[anchor]
        pairs[name] = (state[importance], difference)
    return pairs


def _keys(name: str) -> tuple[str, str]:
    """Return the names of a parameter's Ω and θ* in a state."""
    return f"importance/{name}", f"anchor/{name}"
