"""A quadratic penalty that holds parameters where earlier tasks need them: what EWC, SI and MAS have in common.

    Σ_i Ω_i (θ_i − θ*_i)²

Ω and θ* stand in a method's state as `importance/NAME` and `anchor/NAME`, by the parameters' names.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]


def penalty(parameters: Parameters, state: Mapping[str, Any]) -> Tensor:
    """Σ Ω (θ − θ*)², a scalar."""
    terms = [(omega * difference.square()).sum() for omega, difference in _pairs(parameters, state).values()]
    return torch.stack(terms).sum()


def gradient(parameters: Parameters, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """2 Ω (θ − θ*): the penalty's gradient, of nothing where nothing is held yet."""
    held = _pairs({name: value.detach() for name, value in parameters.items()}, state)
    return {name: 2 * omega * difference for name, (omega, difference) in held.items()}


def hold(
    state: dict[str, Any], parameters: Parameters, new: Parameters, *, decay: float = 1.0, weighted: bool = False
) -> None:
    """Ω ← decay · Ω + new, and θ* ← θ; or, `weighted`, θ* ← the mean of all θ* so far that their Ω weigh.

    So weighted, one penalty has the gradient of the sum of all.
    """
    for name, value in parameters.items():
        now = value.detach().cpu().clone()
        old, anchor = state.get(f"importance/{name}", torch.zeros_like(now)), state.get(f"anchor/{name}", now)
        omega = decay * old + new[name].cpu()
        share = torch.where(omega > 0, new[name].cpu() / omega, 1.0) if weighted else 1.0
        state[f"importance/{name}"], state[f"anchor/{name}"] = omega, torch.lerp(anchor, now, share)


def _pairs(parameters: Parameters, state: Mapping[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
    """Ω and θ − θ* of each parameter that is held."""
    return {
        name: (state[f"importance/{name}"].to(value), value - state[f"anchor/{name}"].to(value))
        for name, value in parameters.items()
        if f"importance/{name}" in state
    }
