"""InfLoRA (Liang & Li 2024): low-rank branches that leave earlier tasks' inputs alone."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.optim import Optimizer

from perdure.data.task import Task
from perdure.errors import InputError, PerdureWarning
from perdure.learning.method import PeftMethod, Tuned
from perdure.methods.parts.subspace import Energy, Subspace
from perdure.models import adapter_targets, adapters
from perdure.models.adapters import Adapter
from perdure.models.backbone import Backbone
from perdure.models.inputs import input_covariances


@dataclass(kw_only=True)
class InfLoRA(PeftMethod):
    """Train a branch A_t B_t per task, whose frozen B_t leaves the inputs of earlier tasks alone.

    e = W h + sum of A_j B_j h (A_t is peft's `lora_B`, B_t its `lora_A`). The rows of B_t are the
    leading directions of the new task's inputs outside M_t, the space of the old tasks' inputs, so
    that training A_t (from zero) changes W only inside N_t ∩ M_t⊥. Then the leading directions of
    its inputs are added to M_t (DualGPM). Combine with `sum`.

    Parameters
    ----------
    rank, alpha
        ΔW = alpha / rank · A_t B_t, with at most `rank` rows of B_t. By default alpha is the
        rank: a scale of 1.
    target_modules
        By default key and value (query and value in T5's family; all of the attention's input if it
        is a single layer). Layers with the same input share one B_t.
    blocks
        The first `blocks` blocks of the transformer have branches (InfLoRA-b5: 5); by default all.
    design
        The rows of B_t: directions of the new task's inputs outside M_t (`both`, the paper's
        method); or, for ablations, of its inputs only (`new_task`); random ones outside M_t
        (`orthogonal`); or `random` ones.
    row_norm
        The norm of each row of B_t: 1/√3 in the official code.
    epsilon, last_epsilon, tasks
        The share of the energy of a task's inputs that M_t absorbs. It rises on a straight line
        that would reach `last_epsilon` after `tasks` tasks, and stays after that.
    energy
        `covariance`: of squared eigenvalues of E[h hᵀ], which the published epsilons are for;
        `features`: of squared singular values of the inputs, for backbones such as DINOv2, where a
        few directions dominate.
    balance
        Instead of epsilon, a size for each module, after SplitLoRA's idea: a direction with share e
        of the energy is added if balance · e > 1 / dimension, the capacity it costs.
    statistics_examples
        The number of examples to look at, before and after training; by default all.
    upon
        `earlier`: train on top of the earlier tasks' branches (InfLoRA); `pretrained`: train each
        task on the pre-trained model alone, inside its designed subspace, for a rule such as
        `task_arithmetic` to combine.

    References
    ----------
    Liang & Li, InfLoRA: Interference-Free Low-Rank Adaptation for Continual Learning, arXiv
    2404.00228; DualGPM: Liang & Li, Adaptive Plasticity Improvement for Continual Learning,
    CVPR 2023; sizes per module: Qiu et al. (SplitLoRA), arXiv 2505.22370. Numerically as the
    official code, but in double precision, with the first task's branch for spaces above half
    of the dimension repaired, and rows that would leave M_t⊥ left zero.
    """

    usual_rule = "sum"
    needs = frozenset({"lora"})
    lora_because = "designs a half of LoRA"
    tuned = Tuned("epsilon", 0.5, 0.99)

    rank: Annotated[int, Ge(1)] = 10
    alpha: Annotated[float, Gt(0)] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    blocks: Annotated[int, Ge(1)] | None = None
    design: Literal["both", "new_task", "orthogonal", "random"] = "both"
    row_norm: Annotated[float, Gt(0)] = 3**-0.5
    epsilon: Annotated[float, Gt(0), Le(1)] = 0.95
    last_epsilon: Annotated[float, Gt(0), Le(1)] = 1.0
    tasks: Annotated[int, Ge(1)] = 10
    energy: Energy = "covariance"
    balance: Annotated[float, Gt(0)] | None = None
    statistics_examples: Annotated[int, Ge(1)] | None = None
    upon: Literal["earlier", "pretrained"] = "earlier"

    def __post_init__(self):
        super().__post_init__()
        if self.alpha is None:
            self.alpha = float(self.rank)

    def beneath(self, earlier: Sequence[Adapter]) -> Sequence[Adapter]:
        # Fewer adapters than tasks are no fault: some were forgotten.
        learned = self._learned
        if len(earlier) > learned or bool(earlier) != bool(learned):
            raise InputError(
                f"`inflora` has seen {learned} tasks, but got {len(earlier)} adapters as `earlier`."
            )
        return earlier if self.upon == "earlier" else ()

    def begin(self, backbone: Backbone, task: Task) -> None:
        """Put the branch in and design B_t; A_t is zero."""
        self.attach(
            backbone,
            target_modules=self.target_modules or adapter_targets.key_value(backbone.model),
            blocks=self.blocks,
        )
        if backbone.device.type == "meta":  # the outline of a model, which has no inputs
            return
        factors = adapters.factors(backbone.model)
        # Torch's seed is the same for every task, but random rows are to differ between tasks.
        random = torch.Generator().manual_seed(torch.initial_seed() + 1000 * self._learned)
        # A random design needs one example only, to see which layers have the same input.
        limit = self.statistics_examples if self._of_new_task else 1
        ranks = []
        for layers, C in self._covariances(backbone, task, limit).items():
            B = self._rows(layers[0], C, random)
            for name in layers:
                lora_A, _ = factors[name]
                # peft's own rows are random: rows without a direction would disturb old tasks.
                lora_A.data.zero_()
                lora_A.data[: len(B)] = B
            ranks.append(len(B))
        self._warn_of_low_ranks(task, ranks)

    def parameters(self, backbone: Backbone) -> list[nn.Parameter]:
        """Return A_t alone."""
        return [lora_B for _, lora_B in adapters.factors(backbone.model).values()]

    def end(self, backbone: Backbone, task: Task, optimizer: Optimizer) -> None:
        """Add the leading directions of the task's inputs, as they are after training, to M_t."""
        if self.design in ("both", "orthogonal"):
            self._grow(backbone, task)
        self.state["learned"] = self._learned + 1

    def _grow(self, backbone: Backbone, task: Task) -> None:
        """Add the leading directions of the task's inputs to M_t."""
        # After `tasks` tasks, epsilon stays at its last value.
        learned = min(self._learned, self.tasks - 1)
        rise = self.last_epsilon - self.epsilon
        epsilon = self.epsilon + rise * learned / self.tasks
        covariances = self._covariances(backbone, task, self.statistics_examples)
        for layers, C in covariances.items():
            layer = layers[0]  # one space for all layers with this input
            space = self._space(layer, len(C))
            space = space.grown(
                C,
                epsilon,
                energy=self.energy,
                balance=self.balance,
            )
            self.state[f"basis/{layer}"] = space.basis
            self.state[f"complement/{layer}"] = space.complement

    @property
    def _of_new_task(self) -> bool:
        return self.design in ("both", "new_task")

    @property
    def _learned(self) -> int:
        return self.state.get("learned", 0)

    def _rows(self, layer: str, C: Tensor, random: torch.Generator) -> Tensor:
        """Return the rows of B_t for a layer whose inputs have the covariance C."""
        space = self._space(layer, len(C))
        if self._of_new_task:
            directions = space.directions(C, self.rank, self.energy)
        else:
            directions = space.random_directions(self.rank, random)
        return self.row_norm * directions.T

    def _space(self, layer: str, d: int) -> Subspace:
        """Return M_t of a layer's inputs; it is empty if the design does not use it."""
        basis = self.state.get(f"basis/{layer}")
        if basis is None:
            return Subspace.empty(d)
        return Subspace(basis, self.state[f"complement/{layer}"])

    def _covariances(
        self, backbone: Backbone, task: Task, limit: int | None
    ) -> dict[tuple[str, ...], Tensor]:
        """Return the covariances of inputs, by the layers that share an input, in one pass."""
        examples = backbone.encode(task.rows("train"))
        layers = list(adapters.factors(backbone.model))
        return input_covariances(backbone, examples, layers, limit=limit)

    def _warn_of_low_ranks(self, task: Task, ranks: Sequence[int]) -> None:
        low = [rank for rank in ranks if rank < self.rank]
        if low:
            warnings.warn(
                f"Task `{task.name}` has fewer than `rank={self.rank}` directions to learn in "
                f"({min(low)} or more) in {len(low)} of {len(ranks)} groups of layers: its inputs "
                "vary too little outside what earlier tasks have taken up. Lower `rank`, `epsilon` "
                "or `last_epsilon`, or set `balance`.",
                PerdureWarning,
                stacklevel=3,
            )
