"""A mixture of low-rank experts beside frozen linear layers, of which a gate lets some act on each input."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn

from perdure.errors import CheckpointError, InputError, UnknownName
from perdure.models import adapters
from perdure.storage import staging
from perdure.storage.files import read_json
from perdure.storage.tensors import TensorFile
from perdure.vectors.task_vector import Entry, LowRank, TaskVector, svd

ABOUT, WEIGHTS = "mixture.json", "mixture.safetensors"


@dataclass
class Choice:
    """Which expert acts on each sample of the next batch; until one is chosen, none does."""

    experts: Sequence[str] = ()
    rows: Int[Tensor, " samples"] = field(default_factory=lambda: torch.tensor([-1]))

    def of(self, tasks: Sequence[str | None]) -> None:
        """The task of each sample, or one task for all; for a task without an expert the model acts as it was."""
        numbers = {task: number for number, task in enumerate(self.experts)}
        self.rows = torch.tensor([numbers.get(task or "", -1) for task in tasks])


class ExpertLinear(nn.Module):
    """y = W x + b + sum over the experts t of p_t(x) B_t A_t x, in the place of a linear layer.

    With a gate (SMILE), p is for each token the softmax of ‖V_t x‖ over the experts, where V_t are the leading right
    singular vectors of B_t A_t; the `top_k` greatest are kept and made to add up to 1. Without, p is 1 for the expert
    that `choice` names for the sample, and 0 for the others.

    Parameters
    ----------
    base
        The linear layer, or GPT-2's `Conv1D`; it is kept as it is.
    A, B
        Of all experts, filled up with zeros to a common rank; for a gate, the rows of each A are orthonormal.
    gate_rank
        How many rows of A the gate reads; 0: no gate.
    """

    A: Tensor
    B: Tensor
    acts: Tensor

    def __init__(
        self,
        base: Any,
        A: Float[Tensor, "experts rank in"],
        B: Float[Tensor, "experts out rank"],
        *,
        gate_rank: int,
        top_k: int,
        choice: Choice,
    ):
        super().__init__()
        self.base, self.gate_rank, self.top_k, self.choice = base, gate_rank, top_k, choice
        self.register_buffer("A", A.to(base.weight), persistent=False)
        self.register_buffer("B", B.to(base.weight), persistent=False)
        # without it the gate would give a share to experts that leave this layer as it is
        self.register_buffer("acts", B.flatten(1).any(1).to(base.weight.device), persistent=False)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def forward(self, x: Float[Tensor, "*tokens in"]) -> Float[Tensor, "*tokens out"]:
        experts = len(self.A)
        inside = (x @ self.A.flatten(0, 1).T).unflatten(-1, (experts, -1))
        p = self._gate(inside) if self.gate_rank else self._chosen(inside)
        # all experts at once: their ranks together are small beside the layer's
        return self.base(x) + (inside * p[..., None]).flatten(-2) @ self.B.permute(0, 2, 1).flatten(
            0, 1
        )

    def _gate(
        self, inside: Float[Tensor, "*tokens experts rank"]
    ) -> Float[Tensor, "*tokens experts"]:
        p = inside[..., : self.gate_rank].norm(dim=-1).where(self.acts, -torch.inf).softmax(-1)
        if self.top_k < p.shape[-1]:
            best = p.topk(self.top_k, dim=-1)
            p = torch.zeros_like(p).scatter(-1, best.indices, best.values)
        return p / p.sum(-1, keepdim=True)

    def _chosen(
        self, inside: Float[Tensor, "samples *tokens experts rank"]
    ) -> Float[Tensor, "samples *ones experts"]:
        rows = self.choice.rows.to(inside.device)
        rows = rows.repeat_interleave(
            len(inside) // len(rows)
        )  # one for all; or samples are cut into windows
        p = (rows[:, None] == torch.arange(inside.shape[-2], device=inside.device)).to(inside.dtype)
        return p.reshape(len(p), *[1] * (inside.ndim - 3), -1)


@dataclass(frozen=True)
class Mixture:
    """Experts by task, and how the gate lets them act: a value, which is put into a model and taken out again.

    Attributes
    ----------
    experts
        Each task's change of linear layers, low-rank. A layer that none changes stays as it is.
    gate_rank
        How many leading singular directions of an expert the gate reads (at most those that the expert has); 0: no
        gate, the expert is chosen for each sample from outside (by the task posterior).
    top_k
        How many experts act on a token.
    expert_rank
        Of a gated expert only so many leading singular directions act; by default all.

    Examples
    --------
    >>> up, down = (TaskVector({"0": LowRank(torch.eye(2)[:, [i]], torch.eye(2)[[i]])}) for i in (0, 1))
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False))
    >>> _ = nn.init.zeros_(model[0].weight)
    >>> with Mixture({"up": up, "down": down}, gate_rank=1).inserted(model):
    ...     model(torch.tensor([[2.0, 1.0], [1.0, 3.0]])).tolist()
    [[2.0, 0.0], [0.0, 3.0]]
    """

    experts: Mapping[str, TaskVector]
    gate_rank: int = 0
    top_k: int = 1
    expert_rank: int | None = None
    _layers: dict[str, tuple[Tensor, Tensor]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for setting, least in {"gate_rank": 0, "top_k": 1, "expert_rank": 1}.items():
            value = getattr(self, setting)
            if not (type(value) is int and value >= least) and (
                setting != "expert_rank" or value is not None
            ):
                raise InputError(
                    f"`{setting}` of a mixture must be a whole number, at least {least}, got {value!r}."
                )
        for task, vector in self.experts.items():
            for name, value in vector.items():
                if not isinstance(value, LowRank):
                    raise InputError(
                        f"The change of `{name}` by `{task}` is not low-rank: use LoRA in `space: delta`."
                    )

    # -- experts

    def with_expert(self, task: str, vector: TaskVector) -> Mixture:
        """One more expert (or another in its place); the others are untouched, but compete with it."""
        return self._of({**self.experts, task: vector})

    def without_expert(self, task: str) -> Mixture:
        """The mixture as if the task had never been there.

        Raises
        ------
        UnknownName
            There is no such expert.
        """
        if task not in self.experts:
            raise UnknownName("expert", task, self.experts)
        return self._of({k: v for k, v in self.experts.items() if k != task})

    def _of(self, experts: Mapping[str, TaskVector]) -> Mixture:
        return Mixture(experts, self.gate_rank, self.top_k, self.expert_rank)

    # -- in a model

    def insert(self, model: nn.Module) -> Choice:
        """Replace the linear layers, until `remove`. What is returned chooses the experts where there is no gate."""
        choice = Choice(list(self.experts))
        for name in dict.fromkeys(
            name for vector in self.experts.values() for name in vector.entries
        ):
            A, B = self._stacked(name)
            if not B.any():  # no expert changes this layer
                continue
            base = adapters.base_layer(model, name)
            layer = ExpertLinear(
                base, A, B, gate_rank=self.gate_rank, top_k=self.top_k, choice=choice
            )
            adapters.put_base_layer(model, name, layer)
        return choice

    @contextlib.contextmanager
    def inserted(self, model: nn.Module) -> Iterator[Choice]:
        """With the layers replaced while the block runs; afterwards the model is as before."""
        try:
            yield self.insert(model)
        finally:
            remove(model)

    def _stacked(
        self, name: str
    ) -> tuple[Float[Tensor, "experts rank in"], Float[Tensor, "experts out rank"]]:
        """The factors of all experts of a layer, filled up to one rank; kept, for they do not change."""
        if name not in self._layers:
            held = {task: self._factors(v[name]) for task, v in self.experts.items() if name in v}
            rank = max(part.rank for part in held.values())
            out, width = next(iter(held.values())).shape
            A, B = (
                torch.zeros(len(self.experts), rank, width),
                torch.zeros(len(self.experts), out, rank),
            )
            for i, task in enumerate(self.experts):
                if part := held.get(task):
                    A[i, : part.rank], B[i, :, : part.rank] = part.A, part.B
            self._layers[name] = A, B
        return self._layers[name]

    def _factors(self, value: Entry) -> LowRank:
        assert isinstance(value, LowRank)
        if not self.gate_rank:
            return value
        U, S, Vh = svd(
            value
        )  # of the numerical rank: other directions are arbitrary, and the gate must not read them
        rank = self.expert_rank or len(S)
        kept = max(
            rank, self.gate_rank
        )  # the gate may read directions in which the expert does not act
        S = torch.where(torch.arange(len(S)) < rank, S, 0)
        return LowRank((U * S)[:, :kept], Vh[:kept])

    # -- files

    def save(self, folder: str | Path) -> Path:
        """Write `mixture.safetensors` and `mixture.json` into a folder that is not there yet."""
        tensors = {}
        for number, vector in enumerate(self.experts.values()):
            for name, value in vector.items():
                assert isinstance(value, LowRank)
                tensors |= {
                    f"{number}.{name}.A": value.A.clone(),
                    f"{number}.{name}.B": value.B.clone(),
                }
        settings = {
            "gate_rank": self.gate_rank,
            "top_k": self.top_k,
            "expert_rank": self.expert_rank,
        }
        about = {"experts": list(self.experts), **settings}
        size = sum(value.numel() * value.element_size() for value in tensors.values())
        with staging.new_folder(Path(folder), size=size) as place:
            save_file(tensors, place / WEIGHTS)
            (place / ABOUT).write_text(json.dumps(about, indent=2), encoding="utf-8")
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Mixture:
        """Read what `save` wrote.

        Raises
        ------
        CheckpointError
            A file is missing, damaged, or holds something else.
        """
        about, file = read_json(Path(folder) / ABOUT), TensorFile(Path(folder) / WEIGHTS)
        names = about.pop("experts", None)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise CheckpointError(f"`{Path(folder) / ABOUT}` does not name its `experts`.")
        experts: dict[str, dict[str, Entry]] = {name: {} for name in names}
        for key in file.tensors:
            number, _, layer = key.removesuffix(".A").partition(".")
            if key.endswith(".A"):
                if (
                    not (number.isdigit() and int(number) < len(names))
                    or f"{number}.{layer}.B" not in file
                ):
                    raise CheckpointError(
                        f"`{key}` in `{file.path}` belongs to no expert, or lacks its B."
                    )
                experts[names[int(number)]][layer] = _read(file, f"{number}.{layer}")
        try:
            return cls({name: TaskVector(held) for name, held in experts.items()}, **about)
        except TypeError as error:
            raise CheckpointError(
                f"`{Path(folder) / ABOUT}` has a setting that is not known: {error}."
            ) from error


def _read(file: TensorFile, key: str) -> LowRank:
    A, B = file.read(f"{key}.A"), file.read(f"{key}.B")
    if (
        A.ndim != 2
        or B.ndim != 2
        or len(A) != B.shape[1]
        or not (A.isfinite().all() and B.isfinite().all())
    ):
        raise CheckpointError(f"`{key}` in `{file.path}` is no product of two finite matrices.")
    return LowRank(B, A)


def remove(model: nn.Module) -> None:
    """Put the linear layers back."""
    for name, module in list(model.named_modules()):
        if isinstance(module, ExpertLinear):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.base)
