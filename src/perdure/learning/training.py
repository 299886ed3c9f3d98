"""The training settings."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from perdure.learning.alignment import Alignment


@dataclass(frozen=True, kw_only=True)
class Training:
    """The settings of a task's training: AdamW with warm-up and decay.

    Parameters
    ----------
    epochs
        Passes over the task's examples.
    batch_size
        Examples in a batch, over all processes together; a step takes `gradient_accumulation`
        batches.
    learning_rate
        The module's learning rate; `head_learning_rate` is that of the heads, which start from
        scratch and need larger steps.
    schedule
        How the learning rate falls to zero after the warm-up: `linear`, `cosine`, or `constant`
        (it does not fall).
    warmup
        The share of steps during which the learning rate rises from zero.
    max_grad_norm
        Gradients are clipped to this norm.
    bf16
        Compute in bfloat16 (autocast); parameters stay in float32.
    packing
        Pack several short examples into one row, each attending only to itself, to save padding.
        Only for causal language models; the loss is the same as for padded batches.
    gradient_checkpointing
        Recompute each layer's activations in the backward pass instead of storing them: a step
        takes less memory and about a third more time. The loss is the same.
    backbone_dropout
        Use the frozen backbone's own dropout in training. Without it, a step is about 1.5 times as
        fast on a CPU; the module's `dropout` applies either way.
    best
        Keep the epoch with the best validation accuracy (with the task given) instead of the last.
    patience
        Stop after `patience` epochs without a better one, and keep the best.
    heads
        `per_task`: a head for each task, trained on its examples. `shared`: one head for all tasks,
        which every task trains further, as is usual if all tasks have the same classes (`scenario:
        domain`).
    alignment
        Align the heads of all tasks after each task, with these settings (`{}`: the defaults). By
        default, heads are not aligned.
    keep_inputs
        Keep the covariance of the inputs of each layer with an adapter, which the rule `regmean`
        needs. This costs one more pass over a task's examples, and d² numbers for an input of
        width d.
    checkpoint_steps
        Save the state every `checkpoint_steps` steps, so that a killed run loses at most that many.
    trackers
        accelerate's trackers, such as `tensorboard` or `wandb`.
    """

    epochs: Annotated[int, Ge(1)] = 3
    batch_size: Annotated[int, Ge(1)] = 32
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    head_learning_rate: Annotated[float, Gt(0)] = 1e-2
    weight_decay: Annotated[float, Ge(0)] = 0.01
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Annotated[float, Ge(0), Le(1)] = 0.1
    gradient_accumulation: Annotated[int, Ge(1)] = 1
    max_grad_norm: Annotated[float, Gt(0)] = 1.0
    bf16: bool = False
    packing: bool = False
    gradient_checkpointing: bool = False
    backbone_dropout: bool = True
    best: bool = False
    patience: Annotated[int, Ge(1)] | None = None
    heads: Literal["per_task", "shared"] = "per_task"
    alignment: Alignment | None = None
    keep_inputs: bool = False
    checkpoint_steps: Annotated[int, Ge(1)] = 100
    trackers: tuple[str, ...] = ()

    @property
    def kept(self) -> list[str]:
        """The names of the values that adapters keep for rules."""
        return ["inputs"] if self.keep_inputs else []

    @property
    def shares_head(self) -> bool:
        """True if all tasks share one head."""
        return self.heads == "shared"
