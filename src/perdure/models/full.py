"""Full fine-tuning as a tuner of peft: a change of its own for every weight and bias of a layer, from zero.

So the pre-trained model stays beside it, as with every other module: it can be switched off, saved, loaded, combined.
Weight decay draws the change towards zero, that is, the model towards the pre-trained one. Importing perdure makes the
kind `FULL` known to peft, as with bottleneck adapters.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig, mapping
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

from perdure.models.matrices import oriented

FULL = "FULL"
PARTS = ("weight", "bias")


def trains(layer: nn.Module) -> bool:
    """Whether a layer can be trained in full: it has a weight, perhaps a bias, and nothing else."""
    own = dict(layer.named_parameters())
    return "weight" in own and own.keys() <= set(PARTS)


@dataclass
class FullConfig(PeftConfig):
    """The layers that are trained."""

    target_modules: list[str] | set[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self):
        self.peft_type: Any = FULL


class FullLayer(nn.Module, BaseTunerLayer):
    """A layer of any kind, computed with W + ΔW and b + Δb."""

    adapter_layer_names = ("full_weight", "full_bias")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: FullConfig):
        super().__init__()
        self.base_layer = base_layer
        self.full_weight, self.full_bias = nn.ParameterDict(), nn.ParameterDict()
        self.merged_adapters = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: FullConfig) -> None:
        for name, value in self.get_base_layer().named_parameters():
            like = oriented(self.get_base_layer(), value) if name == "weight" else value
            getattr(self, f"full_{name}")[adapter_name] = nn.Parameter(
                torch.zeros(like.shape).to(value)
            )
        self.set_adapter([adapter_name], inference_mode=config.inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:  # as the layer that it stands for
        changed: dict[str, Tensor] = dict(self.base_layer.named_parameters())
        for name in () if self.disable_adapters else self.active_adapters:
            for part in changed:
                change = getattr(self, f"full_{part}")[name]
                changed[part] = changed[part] + (
                    oriented(self.base_layer, change) if part == "weight" else change
                )
        return torch.func.functional_call(self.base_layer, changed, args, kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise NotImplementedError(
            "Combine with `perdure.combine`, which merges into a copy of the weights."
        )

    def unmerge(self) -> None:
        raise NotImplementedError("It cannot have been merged.")


class FullModel(BaseTuner):
    """Puts changes beside the target layers of a model."""

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
            self._replace_module(
                parent, target_name, FullLayer(target, adapter_name, peft_config), target
            )
        else:
            raise ValueError(
                f"`{current_key}` is a `{type(target).__name__}`, which has more than a weight and a bias."
            )


# peft's own `register_peft_method` takes only kinds of its own enumeration.
kind: Any = FULL
mapping.PEFT_TYPE_TO_PREFIX_MAPPING[kind] = FullModel.prefix
mapping.PEFT_TYPE_TO_CONFIG_MAPPING[kind] = FullConfig
mapping.PEFT_TYPE_TO_TUNER_MAPPING[kind] = FullModel
