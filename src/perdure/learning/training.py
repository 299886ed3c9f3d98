"""Settings for training."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from perdure.learning.alignment import Alignment


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings for training on a task, with warm-up and decay of the learning rate.

    Parameters
    ----------
    epochs
        The number of passes over the task's examples.
    batch_size
        The number of examples in a batch, over all processes together. One step uses
        `gradient_accumulation` batches.
    learning_rate
        The learning rate of the module. The heads have `head_learning_rate`, because they
        start from scratch and need larger steps.
    optimizer
        `adamw`, the default; `sgd` with momentum 0.9, whose weight decay is added to the
        gradient; `muon` (2502.16982), which makes the singular values of a step of each
        matrix of the module about equal; or `lora_muon` (2606.12921), which does so for
        LoRA's product B A, and whose `learning_rate` is the largest singular value of a
        change of B A; LoRA changes the weight by alpha / rank times that. With both forms
        of Muon, AdamW trains heads, biases and embeddings; with `lora_muon`, all of these
        have `head_learning_rate`. `muon` takes steps of about the size of AdamW's; `sgd`
        and `lora_muon` need learning rates of their own.
    schedule
        How the learning rate falls to zero after the warm-up: `linear`, `cosine`, or
        `constant` (no decay).
    warmup
        The share of steps during which the learning rate rises linearly to its full value.
    max_grad_norm
        Gradients are clipped to this norm.
    bf16
        Compute in bfloat16 (autocast); parameters stay in float32.
    packing
        Pack several short examples into one row to save padding; each of them attends
        only to itself. Only for causal language models. The loss is the same as for
        padded batches.
    gradient_checkpointing
        Recompute the activations of each layer in the backward pass instead of storing
        them. A step then takes less memory, but about a third more time. The loss is the
        same.
    sharding
        With several processes, `none`: each has the complete model; `fsdp`: each stores a
        part of every frozen weight, for models that do not fit on one device
        (docs/sharding.md). A single process is never sharded.
    backbone_dropout
        Apply the frozen backbone's dropout during training. Without it, a step is about
        1.5 times as fast on a CPU. The module's `dropout` applies in both cases.
    best
        Keep the parameters of the epoch with the best validation accuracy (with the task
        given) instead of those of the last epoch.
    patience
        Stop training after `patience` epochs without an improvement, and keep the best epoch.
    heads
        `per_task`: each task has a head, which is trained on the task's examples.
        `shared`: all tasks share one head, and each task trains it further. This is usual
        if all tasks have the same classes (`scenario: domain`).
    alignment
        Settings for aligning the heads of all tasks after each task; `{}` means the
        default settings. If this is null, heads are not aligned.
    keep_inputs
        Save the covariance of the inputs of each layer with an adapter, which the rule
        `regmean` needs. This costs one more pass over a task's examples, and d² numbers
        for an input of width d.
    checkpoint_steps
        Save a checkpoint every `checkpoint_steps` steps. A run that is killed loses at
        most that number of steps.
    trackers
        The experiment trackers of accelerate to use, such as `tensorboard` or `wandb`.
    """

    epochs: Annotated[int, Ge(1)] = 3
    batch_size: Annotated[int, Ge(1)] = 32
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    head_learning_rate: Annotated[float, Gt(0)] = 1e-2
    weight_decay: Annotated[float, Ge(0)] = 0.01
    optimizer: Literal["adamw", "sgd", "muon", "lora_muon"] | None = None
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Annotated[float, Ge(0), Le(1)] = 0.1
    gradient_accumulation: Annotated[int, Ge(1)] = 1
    max_grad_norm: Annotated[float, Gt(0)] = 1.0
    bf16: bool = False
    packing: bool = False
    gradient_checkpointing: bool = False
    sharding: Literal["none", "fsdp"] = "none"
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
        """The names of the extra values that are saved with each adapter for use by rules."""
        return ["inputs"] if self.keep_inputs else []

    @property
    def shares_head(self) -> bool:
        """True if all tasks share one head."""
        return self.heads == "shared"
