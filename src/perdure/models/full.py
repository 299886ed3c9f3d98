"""Full fine-tuning as a PEFT tuner.

Each weight and bias of a layer gets a trainable change, initially zero. As with other
kinds of adapters, the pre-trained values are not modified, so the change can be turned
off, saved, loaded and combined. Weight decay pulls the change towards zero, and thus the
model towards the pre-trained one. Importing perdure registers the adapter type `FULL`
with peft.
"""

from dataclasses import dataclass, field

import torch
from peft import PeftConfig, mapping
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

from perdure.models.matrices import oriented

FULL = "FULL"
PARTS = ("weight", "bias")


def trains(layer: nn.Module) -> bool:
    """Return whether a layer can be fine-tuned in full.

    It must have a weight, optionally a bias, and no other parameters.
    """
    names = {name for name, _ in layer.named_parameters()}
    return "weight" in names and names <= set(PARTS)


@dataclass
class FullConfig(PeftConfig):
    """Settings for full fine-tuning: the layers to train."""

    # These are the fields that `BaseTuner` reads from every configuration.

    target_modules: list[str] | set[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self):
        self.peft_type = FULL  # pyright: ignore[reportAttributeAccessIssue]


class FullLayer(nn.Module, BaseTunerLayer):
    """A layer that is computed with W + ΔW and b + Δb instead of W and b."""

    adapter_layer_names = ("full_weight", "full_bias")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: FullConfig):
        super().__init__()
        self.base_layer = base_layer
        self.full_weight = nn.ParameterDict()
        self.full_bias = nn.ParameterDict()
        self.merged_adapters = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: FullConfig) -> None:
        layer = self.get_base_layer()
        for name, value in layer.named_parameters():
            # Stored as out × in even for GPT-2's `Conv1D`, like every change to a weight.
            like = oriented(layer, value) if name == "weight" else value
            zeros = torch.zeros(like.shape).to(value)
            changes = getattr(self, f"full_{name}")
            changes[adapter_name] = nn.Parameter(zeros)
        self.set_adapter([adapter_name], inference_mode=config.inference_mode)

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        values: dict[str, Tensor] = dict(self.base_layer.named_parameters())
        active = [] if self.disable_adapters else self.active_adapters
        for adapter_name in active:
            for name in values:
                changes = getattr(self, f"full_{name}")
                change = changes[adapter_name]
                if name == "weight":
                    change = oriented(self.base_layer, change)
                # In the weight's data type, which may be half precision, unlike the change's.
                values[name] = (values[name] + change).to(values[name].dtype)
        # This works for any kind of layer, and does not modify its parameters.
        return torch.func.functional_call(self.base_layer, values, args, kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise NotImplementedError(
            "Combine with `perdure.combine`, which merges into a copy of the weights."
        )

    def unmerge(self) -> None:
        raise NotImplementedError("Full fine-tuning is never merged, so it cannot be unmerged.")


class FullModel(BaseTuner):
    """A PEFT tuner that adds trainable changes to the target layers of a model."""

    prefix = "full_"
    tuner_layer_cls = FullLayer

    def _create_and_replace(
        self,
        peft_config: FullConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        if isinstance(target, FullLayer):
            target.update_layer(adapter_name, peft_config)
        elif trains(target):
            layer = FullLayer(target, adapter_name, peft_config)
            self._replace_module(parent, target_name, layer, target)
        else:
            raise ValueError(
                f"`{current_key}` is a `{type(target).__name__}`, whose parameters are not just a "
                "weight and a bias."
            )


# peft's `register_peft_method` accepts only the types in its enumeration.
mapping.PEFT_TYPE_TO_PREFIX_MAPPING[FULL] = FullModel.prefix  # pyright: ignore
mapping.PEFT_TYPE_TO_CONFIG_MAPPING[FULL] = FullConfig  # pyright: ignore
mapping.PEFT_TYPE_TO_TUNER_MAPPING[FULL] = FullModel  # pyright: ignore
