"""The state of an optimizer, whichever it is, as values by name: tensors, and what JSON can hold.

`0/exp_avg` is what AdamW keeps as `exp_avg` of its first parameter; `group/0/hess` is a tensor that stands among the
settings of a group. No optimizer's names are known here: a fresh one that has made a step says which there are, and of
which shapes.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from perdure.learning.snapshot import alike, part


def read(optimizer: Optimizer) -> dict[str, Any]:
    """Return what an optimizer keeps, by name."""
    saved = optimizer.state_dict()
    named = _flat(saved["state"])
    for number, group in enumerate(saved["param_groups"]):
        named |= {
            f"group/{number}/{key}": value
            for key, value in group.items()
            if isinstance(value, Tensor)
        }
    return named


def groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the settings of each group of parameters, but for tensors, which `read` returns."""
    saved = optimizer.state_dict()["param_groups"]
    return [
        {key: value for key, value in group.items() if not isinstance(value, Tensor)}
        for group in saved
    ]


def write(optimizer: Optimizer, values: Mapping[str, Any], settings: list[dict[str, Any]]) -> None:
    """Put values that `read` has returned, and settings from `groups`, in the place of an optimizer's own.

    Parameters
    ----------
    optimizer
        A fresh one that has made one step, so that it keeps what it will.

    Raises
    ------
    ValueError
        The values are not such as this optimizer keeps.
    """
    own = read(optimizer)
    begun = {
        "group",
        *map(_owner, values),
    }  # a parameter that never had a gradient has no state yet
    expected = {name: value for name, value in own.items() if _owner(name) in begun}
    if not alike(dict(values), expected):
        raise ValueError("what the optimizer kept does not fit the parameters")
    restored = []
    for number, group in enumerate(settings):
        tensors = part(values, f"group/{number}")
        moved = {
            key: value.to(own[f"group/{number}/{key}"].device) for key, value in tensors.items()
        }
        restored.append({**group, **moved})
    state = _filled(optimizer.state_dict()["state"], values)
    optimizer.load_state_dict({"state": state, "param_groups": restored})


def _owner(name: str) -> str:
    """Return the first part of a name: the number of a parameter, as a rule."""
    return name.partition("/")[0]


def _flat(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the leaves of nested mappings, by the path to each."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= {f"{key}/{below}": leaf for below, leaf in _flat(value).items()}
        else:
            leaves[str(key)] = value
    return leaves


def _filled(tree: Mapping[Any, Any], leaves: Mapping[str, Any], above: str = "") -> dict[Any, Any]:
    """Return nested mappings with other leaves; without those of which there are none."""
    filled: dict[Any, Any] = {}
    for key, value in tree.items():
        path = f"{above}{key}"
        if path in leaves:
            filled[key] = leaves[path]
        elif isinstance(value, dict) and (below := _filled(value, leaves, f"{path}/")):
            filled[key] = below
    return filled
