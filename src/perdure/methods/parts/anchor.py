"""A quadratic penalty that holds parameters where earlier tasks need them: what EWC, SI and MAS have in common.

    Σ_i Ω_i (θ_i − θ*_i)²

Ω and θ* stand in a method's state as `importance/NAME` and `anchor/NAME`, by the parameters' names.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]


def penalty(parameters: Parameters, state: dict[str, Any]) -> Tensor:
    """Σ Ω (θ − θ*)², a scalar."""
    terms = [
        (omega * difference.square()).sum()
        for omega, difference in _pairs(parameters, state).values()
    ]
    return torch.stack(terms).sum()


def gradient(parameters: Parameters, state: dict[str, Any]) -> dict[str, Tensor]:
    """2 Ω (θ − θ*): the penalty's gradient, of nothing where nothing is held yet."""
    held = _pairs({name: value.detach() for name, value in parameters.items()}, state)
    return {name: 2 * omega * difference for name, (omega, difference) in held.items()}


def hold(
    state: dict[str, Any],
    parameters: Parameters,
    new: Parameters,
    *,
    decay: float = 1.0,
    weighted: bool = False,
) -> None:
    """Ω ← decay · Ω + new, and θ* ← θ; or, `weighted`, θ* ← the mean of all θ* so far that their Ω weigh.

    So weighted, one penalty has the gradient of the sum of all.
    """
    for name, value in parameters.items():
        now = value.detach().clone()
        old = state.get(f"importance/{name}", torch.zeros_like(now)).to(now)
        anchor, added = state.get(f"anchor/{name}", now).to(now), new[name].to(now)
        omega = decay * old + added
        share = torch.where(omega > 0, added / omega, 1.0) if weighted else 1.0
        state[f"importance/{name}"], state[f"anchor/{name}"] = omega, torch.lerp(anchor, now, share)


def _pairs(parameters: Parameters, state: dict[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
    """Ω and θ − θ* of each parameter that is held."""
    pairs = {}
    for name, value in parameters.items():
        if f"importance/{name}" in state:
            for key in (f"importance/{name}", f"anchor/{name}"):
                state[key] = state[key].to(value)  # once: from then on it is where the parameter is
            pairs[name] = state[f"importance/{name}"], value - state[f"anchor/{name}"]
    return pairs
