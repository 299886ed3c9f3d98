"""LoRA on individual parameters (`target_parameters`), such as stacked mixture-of-experts weights.

A parameter with E experts has one A with E·r rows, grouped by expert, and one B with r·E
columns, in which the experts alternate. On disk, the experts may share a tensor or have
separate ones. In the second case, two tensors (gate and up) may be joined into one
parameter during loading.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from perdure.checkpoints.peft_folder import Factors, PeftFolder, numbers, read_tensor
from perdure.checkpoints.skeleton import Skeleton
from perdure.checkpoints.weights import Weight
from perdure.errors import CheckpointError
from perdure.storage.tensors import TensorFile
from perdure.vectors.task_vector import LowRank

WRAPPER = ".base_layer"
# The operations with which transformers stacks separate tensors, one for each expert.
STACKED = ["MergeModulelist(0)"]
# The operations with which it also concatenates the rows of two such stacks.
STACKED_SIDE_BY_SIDE = ["MergeModulelist(0)", "Concatenate(1)"]


# The experts of a layer are read one after another, and there may be a hundred of them.
# Without the cache, the factors of all experts would be read from disk for each of them.
@functools.lru_cache(maxsize=8)
def _all_experts(file: TensorFile, key: str) -> Tensor:
    """Read the A or B matrix that is shared by all experts of a parameter."""
    return read_tensor(file, key)


@dataclass(frozen=True)
class ExpertFactors(Factors):
    """The change to the weight of one expert, or to some of its rows.

    Attributes
    ----------
    expert, experts
        The index of the expert, and the number of experts.
    rows
        The range of rows of B A that change the tensor, as its first row and one past its last.
    """

    expert: int
    experts: int
    rows: tuple[int, int]

    @property
    def change(self) -> LowRank:
        """The change in float32, as factors s B and A; see `Factors.change`."""
        key_A, key_B = self.keys
        # The rows of an expert are contiguous: peft reads A as experts × rank × in.
        first = self.expert * self.rank
        last = first + self.rank
        A = _all_experts(self.file, key_A)
        A = A[first:last].float()
        # The columns of the experts alternate: peft reads B as out × rank × experts.
        first, last = self.rows
        B = _all_experts(self.file, key_B)
        B = B[first:last, self.expert :: self.experts].float()
        return LowRank(self.scaled(B), A)


@dataclass(frozen=True)
class Parameter:
    """A parameter that an adapter changes, in the form that transformers has in memory.

    Attributes
    ----------
    name
        The name of the parameter in the adapter's model.
    stored
        The name of the parameter in the base model.
    shape
        The number of experts, and the rows and columns of the matrices to which B A is added.
    transposed
        True if W is stored as experts × in × out.
    """

    name: str
    stored: str
    shape: tuple[int, int, int]
    transposed: bool


@dataclass(frozen=True)
class _Slice:
    """A tensor of the base model, or a matrix in a stacked tensor, that contains rows of an expert.

    Attributes
    ----------
    index
        The index of the matrix in a 3D tensor, or None if the tensor is a single matrix.
    rows
        The range of the expert's rows, as its first row and one past its last.
    """

    tensor: str
    index: int | None
    expert: int
    rows: tuple[int, int]

    @property
    def layer(self) -> str:
        """The key of the change to these rows, in the same format as a layer name."""
        stem = self.tensor.removesuffix(".weight")
        if self.index is None:
            return stem
        return f"{stem}[{self.index}]"


def fit(folder: PeftFolder, skeleton: Skeleton) -> dict[str, tuple[Factors, Weight]]:
    """Find the weights of the base model for the individual parameters that an adapter changes.

    The result maps the name of each changed layer to its factors and its weight.

    Raises
    ------
    CheckpointError
        The base model lacks a parameter, or stores it in an unsupported form.
    """
    if not folder.wrapped:
        return {}
    if skeleton.model is None:
        raise CheckpointError(
            f"`{folder.folder}` changes individual parameters (`target_parameters`). To find "
            "them, transformers has to build the model, but it cannot build that of "
            f"`{skeleton.base.folder}`."
        )
    pairs: dict[str, tuple[Factors, Weight]] = {}
    for wrapper, parameter in _parameters(folder, skeleton).items():
        for layer, factors, weight in _weights(folder, skeleton, wrapper, parameter):
            pairs[layer] = factors, weight
    return pairs


def missing(folder: PeftFolder, skeleton: Skeleton) -> list[str]:
    """Return the parameters that are targeted but have no factors in the adapter's file."""
    if not folder.targets.parameters or skeleton.model is None:
        return []
    # Use the names in the base model, whose prefix may differ from that in the adapter.
    wrapped: set[str] = set()
    for wrapper in folder.wrapped:
        name, _ = _module(wrapper.replace(WRAPPER, ""), skeleton)
        wrapped.add(name)
    names: list[str] = []
    for name, _ in skeleton.model.named_parameters():
        if not _is_targeted(folder, name):
            continue
        module = name.rpartition(".")[0]
        if module not in wrapped:
            names.append(name)
    return names


def _parameters(folder: PeftFolder, skeleton: Skeleton) -> dict[str, Parameter]:
    """Return the parameter that each peft wrapper module changes, by wrapper name."""
    wrappers_of: dict[str, list[str]] = {}
    for wrapper in folder.wrapped:
        name = wrapper.replace(WRAPPER, "")
        wrappers_of.setdefault(name, []).append(wrapper)

    parameters: dict[str, Parameter] = {}
    for name, wrappers in wrappers_of.items():
        stored, module = _module(name, skeleton)
        targeted: list[str] = []
        for parameter, _ in module.named_parameters(recurse=False):
            if _is_targeted(folder, f"{name}.{parameter}"):
                targeted.append(parameter)
        if len(targeted) != len(wrappers):
            raise CheckpointError(
                f"`{folder.file.path}` has factors for {len(wrappers)} parameters of `{name}`, "
                f"but `target_parameters` lists {len(targeted)} of them. It is unclear which "
                "factors belong to which parameter, so the adapter cannot be merged."
            )
        # peft wraps a module once for each parameter, and the last wrapper is the
        # outermost. The name of each inner wrapper has one more `.base_layer`.
        outermost_first = sorted(wrappers, key=len)
        for wrapper, parameter in zip(outermost_first, reversed(targeted), strict=True):
            parameters[wrapper] = _parameter(
                f"{name}.{parameter}",
                f"{stored}.{parameter}",
                module,
                getattr(module, parameter),
            )
    return parameters


def _module(name: str, skeleton: Skeleton) -> tuple[str, nn.Module]:
    """Find a module of the base model by the name that an adapter uses for it.

    Return the module's name in the base model and the module. The two names may differ in
    a prefix, such as `model.`, that only one of them has.
    """
    prefix = f"{skeleton.model.base_model_prefix}."
    for candidate in (name, prefix + name, name.removeprefix(prefix)):
        try:
            module = skeleton.model.get_submodule(candidate)
        except AttributeError:
            continue
        return candidate, module
    raise CheckpointError(
        f"The adapter changes parameters of `{name}`, which the model of "
        f"`{skeleton.base.folder}` does not have. The adapter belongs to another model."
    )


def _is_targeted(folder: PeftFolder, name: str) -> bool:
    ends = folder.targets.parameters
    return any(name == end or name.endswith(f".{end}") for end in ends)


def _parameter(name: str, stored: str, module: nn.Module, value: Tensor) -> Parameter:
    shape = tuple(value.shape)
    if len(shape) == 2:
        rows, columns = shape
        return Parameter(name, stored, (1, rows, columns), transposed=False)
    if len(shape) != 3:
        raise CheckpointError(
            f"`{name}` has {len(shape)} dimensions, but peft changes only parameters with 2 or 3."
        )
    experts, rows, columns = shape
    # transformers marks modules that store their experts as in × out, such as those of GPT-OSS.
    transposed = bool(getattr(module, "is_transposed", False))
    if transposed:
        rows, columns = columns, rows
    return Parameter(name, stored, (experts, rows, columns), transposed)


def _weights(
    folder: PeftFolder, skeleton: Skeleton, wrapper: str, parameter: Parameter
) -> Iterator[tuple[str, Factors, Weight]]:
    """Yield the layer name, factors and weight of each part of a parameter in the base model."""
    keys = folder.wrapped[wrapper]
    rank, alpha, scale = numbers(folder.targets, parameter.name)
    experts, height, width = parameter.shape
    shape_A, shape_B = (folder.file.tensors[key].shape for key in keys)
    if shape_A != (experts * rank, width) or shape_B != (height, experts * rank):
        raise CheckpointError(
            f"`{folder.file.path}`: the factors of `{parameter.name}` have the shapes {shape_A} "
            f"and {shape_B}, which do not match {experts} experts of {height} × {width} "
            f"and rank {rank}."
        )
    for piece in _slices(skeleton, parameter):
        first, last = piece.rows
        factors = ExpertFactors(
            file=folder.file,
            keys=keys,
            scale=scale,
            shape=(last - first, width),
            rank=rank,
            alpha=alpha,
            embedding=False,
            expert=piece.expert,
            experts=experts,
            rows=piece.rows,
        )
        weight = Weight(piece.tensor, parameter.transposed, piece.index)
        yield piece.layer, factors, weight


def _slices(skeleton: Skeleton, parameter: Parameter) -> Iterator[_Slice]:
    """Yield the tensors of the base model, or matrices in them, that make up a parameter."""
    experts, height, _ = parameter.shape
    if parameter.stored in skeleton.tensors:
        # The base stores the parameter as it is in memory: a stack of experts, or one matrix.
        tensor = skeleton.tensors[parameter.stored]
        is_stack = len(skeleton.base.stored(tensor).shape) == 3
        for expert in range(experts):
            index = expert if is_stack else None
            yield _Slice(tensor, index, expert, (0, height))
        return

    # The tensors that match a pattern form a stack: one stack for gate, and one for up.
    stacks = skeleton.joined.get(parameter.stored, {})
    patterns, steps = skeleton.operations(next(iter(stacks), ""))
    is_known = bool(patterns) and steps in (STACKED, STACKED_SIDE_BY_SIDE)
    is_complete = all(len(stacks.get(pattern, ())) == experts for pattern in patterns)
    if parameter.transposed or not is_known or not is_complete:
        form = " and ".join(steps) or "no tensor of that name"
        raise CheckpointError(
            f"`{skeleton.base.folder}` stores `{parameter.stored}` in a different form than "
            f"transformers has in memory ({form}), which is not supported here: the adapter cannot "
            "be merged. Use `merge_and_unload` of peft instead."
        )
    # The stacks are concatenated along the rows of B A: first all of gate, then all of up.
    first = 0
    for pattern in patterns:
        tensors = stacks[pattern]
        last = first + skeleton.base.stored(tensors[0]).shape[0]
        for expert, tensor in enumerate(tensors):
            yield _Slice(tensor, None, expert, (first, last))
        first = last
