"""Functions that save and restore the state of any optimizer.

The state is a dictionary of tensors and JSON values. `0/exp_avg` is AdamW's `exp_avg` for
the first parameter; `group/0/hess` is a tensor among the settings of the first parameter
group. No optimizer is hard-coded here: a fresh optimizer that has taken one step shows
which tensors exist, and their shapes.
"""

from collections.abc import Mapping

from torch.optim import Optimizer

from perdure.learning.method import Group
from perdure.learning.snapshot import State, alike, part, tensors_of, without_tensors


def read(optimizer: Optimizer) -> State:
    """Return the state of an optimizer, as values by name."""
    saved = optimizer.state_dict()
    named = _flat(saved["state"])
    for number, group in enumerate(saved["param_groups"]):
        named |= tensors_of(group, f"group/{number}")
    return named


def groups(optimizer: Optimizer) -> list[Group]:
    """Return the settings of each parameter group, except tensors, which `read` returns."""
    saved = optimizer.state_dict()
    return [without_tensors(group) for group in saved["param_groups"]]


def write(optimizer: Optimizer, values: State, settings: list[Group]) -> None:
    """Replace the state of an optimizer with values from `read` and settings from `groups`.

    Parameters
    ----------
    optimizer
        A fresh optimizer that has taken one step, so that its state is complete.

    Raises
    ------
    ValueError
        The names, shapes or dtypes of the values do not match the state of this optimizer.
    """
    fresh = read(optimizer)
    # The fresh optimizer had a gradient for every parameter. A parameter that has had
    # none in the run so far has no saved state, which is not an error.
    begun = {"group", *map(_owner, values)}
    expected = {}
    for name, value in fresh.items():
        if _owner(name) in begun:
            expected[name] = value
    if not alike(dict(values), expected):
        raise ValueError("the state of the optimizer does not match the parameters")

    restored = []
    for number, group in enumerate(settings):
        moved = {}
        for key, value in part(values, f"group/{number}").items():
            # `load_state_dict` moves the state to the parameters' device, but not the settings.
            device = fresh[f"group/{number}/{key}"].device
            moved[key] = value.to(device)
        restored.append({**group, **moved})
    saved = optimizer.state_dict()
    restored_state = {
        "state": _filled(saved["state"], values),
        "param_groups": restored,
    }
    optimizer.load_state_dict(restored_state)


def _owner(name: str) -> str:
    """Return the first component of a name, which is usually the index of a parameter."""
    return name.partition("/")[0]


def _flat(tree: Mapping[object, object]) -> State:
    """Return the leaves of nested mappings, with their paths (`key/key`) as keys."""
    leaves: State = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            for below, leaf in _flat(value).items():
                leaves[f"{key}/{below}"] = leaf
        else:
            leaves[str(key)] = value
    return leaves


def _filled(
    tree: Mapping[object, object], leaves: Mapping[str, object], above: str = ""
) -> dict[object, object]:
    """Return a copy of nested mappings in which the leaves are replaced.

    Mappings without any new leaf are dropped. Keys keep their types, because torch
    numbers parameters with integers, not strings.
    """
    filled: dict[object, object] = {}
    for key, value in tree.items():
        path = f"{above}{key}"
        if path in leaves:
            filled[key] = leaves[path]
        elif isinstance(value, dict):
            below = _filled(value, leaves, f"{path}/")
            if below:
                filled[key] = below
    return filled
