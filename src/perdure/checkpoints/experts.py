"""LoRA of single parameters (`target_parameters`): the experts of a mixture, which peft trains together.

A parameter of E experts has one A with E·r rows, those of an expert together, and one B with r·E
columns, whose experts take turns. On disk the experts may lie in one tensor, or each in its own, and
then two of them (gate and up) may be joined into one parameter while they are loaded.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from perdure.checkpoints.peft_folder import Factors, PeftFolder, numbers, whole
from perdure.checkpoints.skeleton import Skeleton
from perdure.checkpoints.weights import Weight
from perdure.errors import CheckpointError
from perdure.storage.tensors import TensorFile
from perdure.vectors.task_vector import LowRank

WRAPPER = ".base_layer"
ONE_EACH = ["MergeModulelist(0)"]  # the steps of transformers that stack a tensor of each expert,
SIDE_BY_SIDE = [
    "MergeModulelist(0)",
    "Concatenate(1)",
]  # and set the rows of two such stacks side by side


@functools.lru_cache(maxsize=8)
def _kept(file: TensorFile, key: str) -> Tensor:
    """The factors of all experts, kept for the next expert: there are a hundred of them in some layers."""
    return whole(file, key)


@dataclass(frozen=True)
class ExpertFactors(Factors):
    """The change of one expert, or of some rows of it.

    Attributes
    ----------
    expert, experts
        Which one, of how many.
    rows
        The rows of B A that are meant, from and to.
    """

    expert: int
    experts: int
    rows: tuple[int, int]

    @property
    def change(self) -> LowRank:
        """The factors, in float32; see `Factors.change`."""
        first = self.expert * self.rank
        A = _kept(self.file, self.keys[0])[first : first + self.rank].float()
        columns = _kept(self.file, self.keys[1])[slice(*self.rows), self.expert :: self.experts]
        return LowRank(self.scaled(columns.float()), A)


@dataclass(frozen=True)
class Parameter:
    """A parameter that an adapter changes, as transformers has it in memory.

    Attributes
    ----------
    name
        As the adapter's model calls it.
    stored
        As the base's model does.
    shape
        Experts, rows and columns of what B A is added to.
    turned
        Whether the parameter has the columns first: W is stored as experts × in × out.
    """

    name: str
    stored: str
    shape: tuple[int, int, int]
    turned: bool


def fit(folder: PeftFolder, skeleton: Skeleton) -> dict[str, tuple[Factors, Weight]]:
    """Find the weights in the base of the parameters that an adapter changes.

    Raises
    ------
    CheckpointError
        The base has no such parameters, or stores them in a form that is not known here.
    """
    if not folder.wrapped:
        return {}
    if skeleton.model is None:
        raise CheckpointError(
            f"`{folder.folder}` changes single parameters (`target_parameters`). Which they are, only transformers "
            f"knows, and it cannot build the model of `{skeleton.base.folder}`."
        )
    found: dict[str, tuple[Factors, Weight]] = {}
    for wrapper, parameter in _parameters(folder, skeleton).items():
        for layer, factors, weight in _weights(folder, skeleton, wrapper, parameter):
            found[layer] = factors, weight
    return found


def missing(folder: PeftFolder, skeleton: Skeleton) -> list[str]:
    """Return the parameters that are targeted, and of which the adapter's file has no factors."""
    if not folder.targets.parameters or skeleton.model is None:
        return []
    wrapped = {_module(wrapper.replace(WRAPPER, ""), skeleton)[0] for wrapper in folder.wrapped}
    names = [name for name, _ in skeleton.model.named_parameters() if _is_targeted(folder, name)]
    return [name for name in names if name.rpartition(".")[0] not in wrapped]


def _parameters(folder: PeftFolder, skeleton: Skeleton) -> dict[str, Parameter]:
    """The parameter of each wrapper. peft wraps a module once for each of its parameters, the last one outermost."""
    modules: dict[str, list[str]] = {}
    for wrapper in folder.wrapped:
        modules.setdefault(wrapper.replace(WRAPPER, ""), []).append(wrapper)
    found: dict[str, Parameter] = {}
    for name, wrappers in modules.items():
        stored, module = _module(name, skeleton)
        targeted = [part for part in _parts(module) if _is_targeted(folder, f"{name}.{part}")]
        outermost_first = sorted(wrappers, key=len)
        if len(targeted) != len(wrappers):
            raise CheckpointError(
                f"`{folder.file.path}` has factors for {len(wrappers)} parameters of `{name}`, and `target_parameters` "
                f"names {len(targeted)} of it. Which factors are whose cannot be told: it cannot be merged."
            )
        for wrapper, part in zip(outermost_first, reversed(targeted), strict=True):
            found[wrapper] = _parameter(f"{name}.{part}", f"{stored}.{part}", module, part)
    return found


def _module(name: str, skeleton: Skeleton) -> tuple[str, Any]:
    """A module of the base's model, with or without the prefix of the inner model; its name there, and the module."""
    prefix = f"{skeleton.model.base_model_prefix}."
    for other in (name, prefix + name, name.removeprefix(prefix)):
        try:
            return other, skeleton.model.get_submodule(other)
        except AttributeError:
            continue
    raise CheckpointError(
        f"The adapter changes parameters of `{name}`, which the model of `{skeleton.base.folder}` has not. It belongs "
        "to another model."
    )


def _parts(module: Any) -> list[str]:
    return [name for name, _ in module.named_parameters(recurse=False)]


def _is_targeted(folder: PeftFolder, name: str) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in folder.targets.parameters)


def _parameter(name: str, stored: str, module: Any, part: str) -> Parameter:
    shape = tuple(getattr(module, part).shape)
    if len(shape) == 2:
        return Parameter(name, stored, (1, *shape), turned=False)
    if len(shape) != 3:
        raise CheckpointError(
            f"`{name}` has {len(shape)} dimensions. peft changes parameters of 2 or 3."
        )
    turned = bool(getattr(module, "is_transposed", False))
    experts, first, second = shape
    rows, columns = (second, first) if turned else (first, second)
    return Parameter(name, stored, (experts, rows, columns), turned)


def _weights(
    folder: PeftFolder, skeleton: Skeleton, wrapper: str, parameter: Parameter
) -> Iterator[tuple[str, Factors, Weight]]:
    """The tensors of the base that a parameter is made of, each with its change, by the names of their layers."""
    keys = folder.wrapped[wrapper]
    rank, alpha, scale = numbers(folder.targets, parameter.name)
    experts, rows, columns = parameter.shape
    shapes = [folder.file.tensors[key].shape for key in keys]
    if shapes != [(experts * rank, columns), (rows, experts * rank)]:
        raise CheckpointError(
            f"`{folder.file.path}`: the factors of `{parameter.name}` have the shapes {shapes[0]} and {shapes[1]}, "
            f"which {experts} experts of {rows} × {columns} and rank {rank} do not fit."
        )
    for tensor, index, expert, (first, last) in _places(skeleton, parameter):
        layer = tensor.removesuffix(".weight") + ("" if index is None else f"[{index}]")
        shape = (last - first, columns)
        yield (
            layer,
            ExpertFactors(
                folder.file, keys, scale, shape, rank, alpha, False, expert, experts, (first, last)
            ),
            Weight(tensor, parameter.turned, index),
        )


def _places(
    skeleton: Skeleton, parameter: Parameter
) -> Iterator[tuple[str, int | None, int, tuple[int, int]]]:
    """Tensor, index in it (None: all of it), expert, and rows of the parameter."""
    experts, rows, _ = parameter.shape
    if parameter.stored in skeleton.tensors:
        tensor = skeleton.tensors[parameter.stored]
        three = len(skeleton.base.stored(tensor).shape) == 3
        for expert in range(experts):
            yield tensor, expert if three else None, expert, (0, rows)
        return
    joined = skeleton.joined.get(parameter.stored, {})
    patterns, steps = skeleton.operations(next(iter(joined), ""))
    alike = all(len(joined.get(pattern, ())) == experts for pattern in patterns)
    if parameter.turned or not patterns or not alike or steps not in (ONE_EACH, SIDE_BY_SIDE):
        raise CheckpointError(
            f"`{skeleton.base.folder}` stores `{parameter.stored}` in another form than transformers has in memory "
            f"({' and '.join(steps) or 'no tensor of that name'}), which is not known here: the adapter cannot be "
            "merged. Merge it with peft's `merge_and_unload`."
        )
    first = 0
    for pattern in patterns:
        height = skeleton.base.stored(joined[pattern][0]).shape[0]
        for expert, tensor in enumerate(joined[pattern]):
            yield tensor, None, expert, (first, first + height)
        first += height
