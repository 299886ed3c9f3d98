"""InfLoRA (Liang & Li 2024): low-rank branches that do not act on the inputs of earlier tasks."""

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
    """Train a branch A_t B_t per task, whose frozen B_t ignores the inputs of earlier tasks.

    e = W h + sum of A_j B_j h (A_t is peft's `lora_B`, B_t its `lora_A`). The rows of B_t are the
    leading directions of the new task's inputs outside M_t, the space of earlier tasks' inputs.
    Training A_t (from zero) changes W only inside N_t ∩ M_t⊥, where N_t is the space of the new
    inputs. Their leading directions are then added to M_t (DualGPM). Combine with the rule `sum`.

    Parameters
    ----------
    rank, alpha
        ΔW = alpha / rank · A_t B_t, where B_t has at most `rank` rows. By default alpha equals the
        rank, which gives a scale of 1.
    target_modules
        By default key and value (in T5 models, query and value), or the fused attention layer if
        the model has one. Layers with the same input share one B_t.
    blocks
        Add branches only to the first `blocks` blocks (InfLoRA-b5: 5); by default to all.
    design
        The rows of B_t: directions of the new task's inputs outside M_t (`both`, the paper's
        method). For ablations: directions of its inputs, whether or not they are in M_t
        (`new_task`); random directions outside M_t (`orthogonal`); or any directions (`random`).
    row_norm
        The norm of each row of B_t: 1/√3 in the official code.
    epsilon, last_epsilon, tasks
        The share of the energy of a task's inputs that M_t absorbs. It rises linearly from
        `epsilon` towards `last_epsilon`, but is constant from the last of `tasks` tasks on.
    energy
        `covariance`: squared eigenvalues of E[h hᵀ], for which the published epsilons are meant;
        `features`: squared singular values of the inputs, for backbones such as DINOv2, in which a
        few directions dominate.
    balance
        Replaces epsilon: as in SplitLoRA, the size of M_t differs between modules. A direction with
        share e of the energy is added if balance · e > 1 / dimension, the capacity that it costs.
    statistics_examples
        The number of examples used for statistics, before and after training; by default all.
    upon
        `earlier`: train on top of the earlier tasks' branches (InfLoRA). `pretrained`: train each
        task on the pre-trained model alone, in its designed subspace, to combine the tasks with a
        rule such as `task_arithmetic`.

    References
    ----------
    Liang & Li, InfLoRA: Interference-Free Low-Rank Adaptation for Continual Learning, arXiv
    2404.00228; DualGPM: Liang & Li, Adaptive Plasticity Improvement for Continual Learning,
    CVPR 2023; sizes per module: Qiu et al. (SplitLoRA), arXiv 2505.22370. The results are those of
    the official code, except for double precision, a fix for first tasks whose space is larger than
    half the dimension, and zeros in place of rows that would leave M_t⊥.
    """

    usual_rule = "sum"
    needs = frozenset({"lora"})
    lora_because = "designs one half of LoRA"
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
        # Fewer adapters than tasks are not an error: some tasks may have been forgotten.
        learned = self._learned
        if len(earlier) > learned or bool(earlier) != bool(learned):
            raise InputError(
                f"`inflora` has seen {learned} tasks, but got {len(earlier)} adapters as `earlier`."
            )
        return earlier if self.upon == "earlier" else ()

    def begin(self, backbone: Backbone, task: Task) -> None:
        """Attach the new branch and set its B_t; A_t is zero."""
        self.attach(
            backbone,
            target_modules=self.target_modules or adapter_targets.key_value(backbone.model),
            blocks=self.blocks,
        )
        if backbone.device.type == "meta":  # a dry run, in which nothing can be computed
            return
        factors = adapters.factors(backbone.model)
        # Torch's seed is the same for every task, but random rows must differ between tasks.
        random = torch.Generator().manual_seed(torch.initial_seed() + 1000 * self._learned)
        # A random design needs only one example, to find the layers that have the same input.
        limit = self.statistics_examples if self._of_new_task else 1
        ranks = []
        for layers, C in self._covariances(backbone, task, limit).items():
            B = self._rows(layers[0], C, random)
            for name in layers:
                lora_A, _ = factors[name]
                # peft initialises rows at random, and unused ones would disturb earlier tasks.
                lora_A.data.zero_()
                lora_A.data[: len(B)] = B
            ranks.append(len(B))
        self._warn_of_low_ranks(task, ranks)

    def parameters(self, backbone: Backbone) -> list[nn.Parameter]:
        """Return A_t of all layers; B_t is not trained."""
        return [lora_B for _, lora_B in adapters.factors(backbone.model).values()]

    def end(self, backbone: Backbone, task: Task, optimizer: Optimizer) -> None:
        """Add the leading directions of the task's inputs, after training, to M_t."""
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
            space = space.grown(C, epsilon, energy=self.energy, balance=self.balance)
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
        """Return M_t for the inputs of a layer; it is empty if the design does not use it."""
        basis = self.state.get(f"basis/{layer}")
        if basis is None:
            return Subspace.empty(d)
        return Subspace(basis, self.state[f"complement/{layer}"])

    def _covariances(
        self, backbone: Backbone, task: Task, limit: int | None
    ) -> dict[tuple[str, ...], Tensor]:
        """Return the covariance of each input, by the names of the layers that share the input."""
        examples = backbone.encode(task.rows("train"))
        layers = list(adapters.factors(backbone.model))
        return input_covariances(backbone, examples, layers, limit=limit)

    def _warn_of_low_ranks(self, task: Task, ranks: Sequence[int]) -> None:
        low = [rank for rank in ranks if rank < self.rank]
        if low:
            warnings.warn(
                f"Task `{task.name}` has fewer than `rank={self.rank}` directions to learn in "
                f"({min(low)} or more) in {len(low)} of {len(ranks)} groups of layers: its inputs "
                "vary too little outside the space that earlier tasks occupy. Lower `rank`, "
                "`epsilon` or `last_epsilon`, or set `balance`.",
                PerdureWarning,
                stacklevel=3,
            )
