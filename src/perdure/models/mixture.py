"""Mixtures of low-rank experts added to frozen linear layers, and the gate that selects them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn

from perdure.errors import CheckpointError, InputError, UnknownName
from perdure.models import adapters
from perdure.models.matrices import MatrixLayer
from perdure.models.quantised import in_4_bits
from perdure.storage import staging
from perdure.storage.files import read_json
from perdure.storage.tensors import TensorFile
from perdure.vectors.task_vector import Entry, LowRank, TaskVector, svd

ABOUT = "mixture.json"
WEIGHTS = "mixture.safetensors"

# The minimum value of each setting.
LEAST = {"gate_rank": 0, "top_k": 1, "expert_rank": 1}


@dataclass
class Choice:
    """The expert for each sample of the next batch; no expert is active until one is chosen."""

    experts: Sequence[str] = ()
    rows: Int[Tensor, " samples"] = field(default_factory=lambda: torch.tensor([-1]))

    def of(self, tasks: Sequence[str | None]) -> None:
        """Select the expert for each sample by its task; a single task applies to all samples.

        For a task without an expert, the pre-trained model is used.
        """
        numbers = {task: number for number, task in enumerate(self.experts)}
        rows = []
        for task in tasks:
            row = numbers.get(task or "", -1)
            rows.append(row)
        self.rows = torch.tensor(rows)


class ExpertLinear(nn.Module):
    """A linear layer with experts: y = W x + b + Σ_t p_t(x) B_t A_t x, summed over the experts t.

    With a gate (SMILE), p is computed for each token as the softmax of ‖V_t x‖ over the
    experts, where V_t contains the leading right singular vectors of B_t A_t. Only the
    `top_k` largest values are used, rescaled to sum to 1. Without a gate, p is 1 for the
    expert that `choice` assigns to the sample, and 0 for the others.

    Parameters
    ----------
    base
        The linear layer, or GPT-2's `Conv1D`. It is not modified.
    A, B
        The factors of all experts, padded with zeros to a common rank. With a gate, the
        rows of each A are orthonormal.
    gate_rank
        The number of rows of A that the gate reads; 0 for no gate.
    top_k
        The number of experts that the gate activates for a token.
    choice
        The expert for each sample, if there is no gate.
    """

    A: Tensor
    B: Tensor
    acts: Tensor

    def __init__(
        self,
        base: MatrixLayer,
        A: Float[Tensor, "experts rank in"],
        B: Float[Tensor, "experts out rank"],
        *,
        gate_rank: int,
        top_k: int,
        choice: Choice,
    ):
        super().__init__()
        self.base = base
        self.gate_rank = gate_rank
        self.top_k = top_k
        self.choice = choice
        # If the weights are packed in 4 bits, the factors keep their data type: converted
        # to the integers of the weights, they would be lost.
        device = base.weight.device
        dtype = A.dtype if in_4_bits(base.weight) else base.weight.dtype
        self.register_buffer("A", A.to(device, dtype), persistent=False)
        self.register_buffer("B", B.to(device, dtype), persistent=False)
        # Without `acts`, the gate would assign weight to experts that do not change this layer.
        acts = B.flatten(1).any(1)
        self.register_buffer("acts", acts.to(device), persistent=False)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def forward(self, x: Float[Tensor, "*tokens in"]) -> Float[Tensor, "*tokens out"]:
        # All experts together: the sum of their ranks is small compared with the layer's width.
        all_A = self.A.flatten(0, 1)
        all_B = self.B.permute(0, 2, 1).flatten(0, 1)
        experts = len(self.A)
        inside = x @ all_A.T
        inside = inside.unflatten(-1, (experts, -1))  # A_t x, for each token and expert t
        p = self._gate(inside) if self.gate_rank else self._chosen(inside)
        weighted = inside * p[..., None]
        change = weighted.flatten(-2) @ all_B
        return self.base(x) + change

    def _gate(
        self, inside: Float[Tensor, "*tokens experts rank"]
    ) -> Float[Tensor, "*tokens experts"]:
        """Return the weight that the gate gives to each expert, for each token."""
        directions = inside[..., : self.gate_rank]
        lengths = directions.norm(dim=-1)
        p = lengths.where(self.acts, -torch.inf).softmax(-1)
        if self.top_k < p.shape[-1]:
            best = p.topk(self.top_k, dim=-1)
            zeros = torch.zeros_like(p)
            p = zeros.scatter(-1, best.indices, best.values)
        return p / p.sum(-1, keepdim=True)

    def _chosen(
        self, inside: Float[Tensor, "samples *tokens experts rank"]
    ) -> Float[Tensor, "samples *ones experts"]:
        """Return weights that are 1 for the expert chosen for a sample and 0 for all others."""
        device = inside.device
        rows = self.choice.rows.to(device)
        # One choice may apply to all samples, and some models split a sample into windows.
        repeats = len(inside) // len(rows)
        rows = rows.repeat_interleave(repeats)
        experts = torch.arange(inside.shape[-2], device=device)
        p = (rows[:, None] == experts).to(inside.dtype)
        ones = [1] * (inside.ndim - 3)
        return p.reshape(len(p), *ones, -1)


@dataclass(frozen=True)
class Mixture:
    """One expert per task, and the settings of their gate.

    A mixture does not depend on a model. It can be inserted into a model and removed from it.

    Attributes
    ----------
    experts
        The low-rank changes that each task makes to linear layers, by task. Layers that
        no expert changes are left as they are.
    gate_rank
        The number of leading singular directions of each expert that the gate reads (at
        most all of them). With 0 there is no gate: the expert is chosen for each sample
        by the task posterior.
    top_k
        The number of experts that are active for a token.
    expert_rank
        The number of leading singular directions of each expert that are applied, if
        there is a gate; by default all.

    Examples
    --------
    >>> unit = torch.eye(2)
    >>> up = TaskVector({"0": LowRank(unit[:, [0]], unit[[0]])})
    >>> down = TaskVector({"0": LowRank(unit[:, [1]], unit[[1]])})
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
        for setting, least in LEAST.items():
            value = getattr(self, setting)
            if setting == "expert_rank" and value is None:
                continue
            # Not `isinstance`, for which `True` would be an integer.
            if type(value) is not int or value < least:
                raise InputError(
                    f"`{setting}` of a mixture must be an integer of at least {least}, not "
                    f"{value!r}."
                )
        for task, vector in self.experts.items():
            for name, value in vector.items():
                if not isinstance(value, LowRank):
                    raise InputError(
                        f"The change of `{name}` by `{task}` is not low-rank: use LoRA in "
                        "`space: delta`."
                    )

    # -- experts

    def with_expert(self, task: str, vector: TaskVector) -> Mixture:
        """Return a mixture in which an expert is added, or replaced if the task has one.

        The other experts do not change, but compete with the new one.
        """
        return self._of({**self.experts, task: vector})

    def without_expert(self, task: str) -> Mixture:
        """Return a mixture without the expert of a task, as if it had never been added.

        Raises
        ------
        UnknownName
            There is no such expert.
        """
        if task not in self.experts:
            raise UnknownName("expert", task, self.experts)
        others = dict(self.experts)
        del others[task]
        return self._of(others)

    def only(self, task: str) -> Mixture:
        """Return a mixture of the task's expert alone; it is empty if the task has none."""
        experts = {name: vector for name, vector in self.experts.items() if name == task}
        return self._of(experts)

    def _of(self, experts: Mapping[str, TaskVector]) -> Mixture:
        # Not `dataclasses.replace`, which would also copy the cached factors.
        return Mixture(
            experts,
            gate_rank=self.gate_rank,
            top_k=self.top_k,
            expert_rank=self.expert_rank,
        )

    # -- in a model

    def insert(self, model: nn.Module) -> Choice:
        """Replace linear layers of a model with expert layers, until `remove` is called.

        If there is no gate, the experts are selected through the `Choice` that is returned.
        """
        choice = Choice(list(self.experts))
        for name in self._layer_names():
            A, B = self._stacked(name)
            if not B.any():  # no expert changes this layer
                continue
            layer = ExpertLinear(
                adapters.base_layer(model, name),
                A,
                B,
                gate_rank=self.gate_rank,
                top_k=self.top_k,
                choice=choice,
            )
            adapters.put_base_layer(model, name, layer)
        return choice

    @contextlib.contextmanager
    def inserted(self, model: nn.Module) -> Iterator[Choice]:
        """Insert the mixture into a model while the block runs, and remove it afterwards."""
        try:
            yield self.insert(model)
        finally:
            remove(model)

    def _layer_names(self) -> list[str]:
        names: dict[str, None] = {}  # a set that keeps its order
        for vector in self.experts.values():
            names |= dict.fromkeys(vector.entries)
        return list(names)

    def _stacked(
        self, name: str
    ) -> tuple[Float[Tensor, "experts rank in"], Float[Tensor, "experts out rank"]]:
        """Return the factors of all experts for a layer, padded with zeros to a common rank.

        They are cached, because experts never change and each may need an SVD.
        """
        if name in self._layers:
            return self._layers[name]
        factors: dict[str, LowRank] = {}
        for task, vector in self.experts.items():
            if name in vector:
                factors[task] = self._factors(vector[name])
        stacked = _fill_up([factors.get(task) for task in self.experts])
        self._layers[name] = stacked
        return stacked

    def _factors(self, value: Entry) -> LowRank:
        """Return an expert's factors for a layer; with a gate, the rows of A are orthonormal."""
        assert isinstance(value, LowRank)
        if not self.gate_rank:
            return value
        # Reduced to the numerical rank: the gate must not read directions that are arbitrary.
        U, S, Vh = svd(value)
        rank = self.expert_rank or len(S)
        # The gate may read directions that are not applied.
        rows = max(rank, self.gate_rank)
        acts = torch.arange(len(S)) < rank
        S = torch.where(acts, S, 0)
        B = U * S
        return LowRank(B[:, :rows], Vh[:rows])

    # -- files

    def save(self, folder: str | Path) -> Path:
        """Write `mixture.safetensors` and `mixture.json` to a folder that must not exist yet."""
        tensors = {}
        # Numbers identify the tasks, whose names may contain a dot or any other character.
        for number, vector in enumerate(self.experts.values()):
            for name, value in vector.items():
                assert isinstance(value, LowRank)
                # Copies, because safetensors rejects tensors that share memory.
                tensors[f"{number}.{name}.A"] = value.A.clone()
                tensors[f"{number}.{name}.B"] = value.B.clone()
        about = {
            "experts": list(self.experts),
            "gate_rank": self.gate_rank,
            "top_k": self.top_k,
            "expert_rank": self.expert_rank,
        }
        size = sum(value.numel() * value.element_size() for value in tensors.values())
        folder = Path(folder)
        with staging.new_folder(folder, size=size) as unfinished:
            save_file(tensors, unfinished / WEIGHTS)
            text = json.dumps(about, indent=2)
            (unfinished / ABOUT).write_text(text, encoding="utf-8")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Mixture:
        """Read a mixture that `save` wrote.

        Raises
        ------
        CheckpointError
            A file is missing or damaged, or contains something else.
        """
        folder = Path(folder)
        path = folder / ABOUT
        about = read_json(path)
        file = TensorFile(folder / WEIGHTS)
        names = about.pop("experts", None)
        is_list = isinstance(names, list)
        if not is_list or not all(isinstance(name, str) for name in names):
            raise CheckpointError(f"`{path}` does not name its `experts`.")
        layers = _read_layers(file, names)
        experts = {name: TaskVector(entries) for name, entries in layers.items()}
        try:
            return cls(experts, **about)
        except TypeError as error:
            raise CheckpointError(f"`{path}` has an unknown setting: {error}.") from error


def _fill_up(
    experts: Sequence[LowRank | None],
) -> tuple[Float[Tensor, "experts rank in"], Float[Tensor, "experts out rank"]]:
    """Stack the factors of all experts, padded with zeros to a common rank.

    Some of the experts may be None, but not all.
    """
    present = [value for value in experts if value is not None]
    rank = max(value.rank for value in present)
    out, width = present[0].shape
    A = torch.zeros(len(experts), rank, width)
    B = torch.zeros(len(experts), out, rank)
    for number, value in enumerate(experts):
        if value is None:
            continue
        A[number, : value.rank] = value.A
        B[number, :, : value.rank] = value.B
    return A, B


def _read_layers(file: TensorFile, experts: Sequence[str]) -> dict[str, dict[str, Entry]]:
    """Read the changes that each expert makes, by task and layer."""
    layers: dict[str, dict[str, Entry]] = {name: {} for name in experts}
    for key in file.tensors:
        if not key.endswith(".A"):
            continue
        number, _, layer = key.removesuffix(".A").partition(".")
        belongs = number.isdigit() and int(number) < len(experts)
        pair = f"{number}.{layer}"
        if not belongs or f"{pair}.B" not in file:
            raise CheckpointError(f"`{key}` in `{file.path}` belongs to no expert, or lacks its B.")
        task = experts[int(number)]
        factors = _read_factors(file, pair)
        layers[task][layer] = factors
    return layers


def _read_factors(file: TensorFile, key: str) -> LowRank:
    A = file.read(f"{key}.A")
    B = file.read(f"{key}.B")
    matrices = A.ndim == 2 and B.ndim == 2
    fit = matrices and len(A) == B.shape[1]
    finite = A.isfinite().all() and B.isfinite().all()
    if not fit or not finite:
        raise CheckpointError(f"`{key}` in `{file.path}` is not a product of two finite matrices.")
    return LowRank(B, A)


def remove(model: nn.Module) -> None:
    """Remove a mixture from a model, restoring its linear layers."""
    for name, module in list(model.named_modules()):
        if isinstance(module, ExpertLinear):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.base)
