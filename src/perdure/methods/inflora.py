"""InfLoRA (Liang & Li 2024): low-rank branches whose frozen half keeps them from disturbing earlier tasks."""

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
from perdure.models import adapters
from perdure.models.adapters import Adapter
from perdure.models.backbone import Backbone
from perdure.models.inputs import input_covariances


@dataclass(kw_only=True)
class InfLoRA(PeftMethod):
    """Train a branch A_t B_t per task, whose frozen B_t is designed to leave the inputs of earlier tasks alone.

    e = W h + sum of A_j B_j h (A_t is peft's `lora_B`, B_t its `lora_A`). The rows of B_t are the leading directions
    of the new task's inputs outside M_t, the space of the old tasks' inputs, so that training A_t (from zero) changes W
    only inside N_t ∩ M_t⊥. Then M_t takes up the leading directions of its inputs (DualGPM). Combine with `sum`.

    Parameters
    ----------
    rank, alpha
        ΔW = alpha / rank · A_t B_t, with at most `rank` rows of B_t. By default alpha is the rank: a scale of 1.
    target_modules
        By default key and value (query and value in T5's family; all of attention's input where it is one layer). Those
        with the same input share one B_t.
    blocks
        Only the first so many blocks of the transformer have branches (5 in InfLoRA-b5); by default all.
    design
        The rows of B_t: of the new task's inputs and outside M_t (`both`, the paper's method); of its inputs only
        (`new_task`); random, outside M_t (`orthogonal`); or `random`. The paper's ablation.
    row_norm
        The norm of each row of B_t: 1/√3 in the official code.
    epsilon, last_epsilon, tasks
        The share of the energy of a task's inputs that M_t takes up. It rises from task to task by a straight line that
        would reach `last_epsilon` after so many `tasks`, and stays when they are more.
    energy
        `covariance`: of squared eigenvalues of E[h hᵀ], to which the published epsilons belong; `features`: of squared
        singular values of the inputs themselves, for backbones such as DINOv2, where a few directions dominate.
    balance
        Instead of epsilon, a size for each module, after SplitLoRA's idea: a direction with the share e of the energy
        is taken up if balance · e is more than 1 / dimension, what it costs in room.
    statistics_examples
        Look at so many of a task's examples; by default at all, once before training and once after.
    upon
        `earlier`: train on top of the earlier tasks' branches (InfLoRA); `pretrained`: each task on the pre-trained
        model alone, isolated inside its designed subspace, for a rule such as `task_arithmetic` to combine.

    References
    ----------
    Liang & Li, InfLoRA: Interference-Free Low-Rank Adaptation for Continual Learning, arXiv 2404.00228; DualGPM: Liang
    & Li, Adaptive Plasticity Improvement for Continual Learning, CVPR 2023; sizes per module: Qiu et al. (SplitLoRA),
    arXiv 2505.22370. Numerically as the official code, but in double precision, with the first task's branch for spaces
    above half of the dimension repaired, and rows that would leave M_t⊥ left zero.
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
        self.alpha = float(self.rank) if self.alpha is None else self.alpha

    def beneath(self, earlier: Sequence[Adapter]) -> Sequence[Adapter]:
        if len(earlier) > self._learned or bool(earlier) != bool(
            self._learned
        ):  # fewer: some were forgotten
            raise InputError(
                f"`inflora` has seen {self._learned} tasks, but got {len(earlier)} adapters as `earlier`."
            )
        return earlier if self.upon == "earlier" else ()

    def begin(self, backbone: Backbone, task: Task) -> None:
        """Put the branch in and design B_t; A_t is zero."""
        targets = self.target_modules or adapters.key_value(backbone.model)
        self.attach(backbone, target_modules=targets, blocks=self.blocks)
        factors, found = adapters.factors(backbone.model), []
        random = torch.Generator().manual_seed(torch.initial_seed() + 1000 * self._learned)
        for layers, C in self._covariances(backbone, task, whole=self._of_new_task).items():
            space = self._space(layers[0], len(C))
            if self._of_new_task:
                B = self.row_norm * space.directions(C, self.rank, self.energy).T
            else:
                B = self.row_norm * space.random_directions(self.rank, random).T
            for name in layers:
                factors[name][0].data.zero_()[: len(B)] = B
            found.append(len(B))
        if short := [rows for rows in found if rows < self.rank]:
            message = (
                f"Task `{task.name}` has fewer than `rank={self.rank}` directions to learn in ({min(short)} or more) in"
                f" {len(short)} of {len(found)} groups of layers: its inputs vary too little outside what earlier tasks"
                " have taken up. Lower `rank`, `epsilon` or `last_epsilon`, or set `balance`."
            )
            warnings.warn(message, PerdureWarning, stacklevel=2)

    def parameters(self, backbone: Backbone) -> list[nn.Parameter]:
        """A_t alone."""
        return [lora_B for _, lora_B in adapters.factors(backbone.model).values()]

    def end(self, backbone: Backbone, task: Task, optimizer: Optimizer) -> None:
        """Let M_t take up the leading directions of the task's inputs, as they are after training."""
        epsilon = (
            self.epsilon
            + (self.last_epsilon - self.epsilon) * min(self._learned, self.tasks - 1) / self.tasks
        )
        if self._outside_old_tasks:
            for layers, C in self._covariances(backbone, task).items():
                space = self._space(layers[0], len(C)).grown(
                    C, epsilon, energy=self.energy, balance=self.balance
                )
                self.state[f"basis/{layers[0]}"] = space.basis
                self.state[f"complement/{layers[0]}"] = space.complement
        self.state["learned"] = self._learned + 1

    @property
    def _of_new_task(self) -> bool:
        return self.design in ("both", "new_task")

    @property
    def _outside_old_tasks(self) -> bool:
        return self.design in ("both", "orthogonal")

    @property
    def _learned(self) -> int:
        return self.state.get("learned", 0)

    def _space(self, layer: str, d: int) -> Subspace:
        """M_t of the inputs of a layer; empty where the design does not look at it."""
        basis = self.state.get(f"basis/{layer}")
        return (
            Subspace.empty(d)
            if basis is None
            else Subspace(basis, self.state[f"complement/{layer}"])
        )

    def _covariances(
        self, backbone: Backbone, task: Task, *, whole: bool = True
    ) -> dict[tuple[str, ...], Tensor]:
        """One pass over the task's examples; not `whole`: over one, to find which layers have the same input."""
        examples = backbone.encode(task.rows("train"))
        limit = self.statistics_examples if whole else 1
        return input_covariances(
            backbone, examples, list(adapters.factors(backbone.model)), limit=limit
        )
