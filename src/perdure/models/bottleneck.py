"""Bottleneck adapters (Houlsby et al. 2019; Pfeiffer et al. 2021) as a tuner of peft, which has none.

The output y of a linear layer becomes y + up(gelu(down(y))), with `width` units in the middle; `up` starts from zero,
so that a fresh adapter changes nothing. Importing perdure makes the kind `BOTTLENECK` known to peft: an adapter of this
kind loads with `peft.PeftModel.from_pretrained` after `import perdure`.

References
----------
Houlsby et al., Parameter-Efficient Transfer Learning for NLP, arXiv 1902.00751.
Pfeiffer et al., AdapterFusion, arXiv 2005.00247.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig, mapping
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

from perdure.models.matrices import is_matrix, matrix

BOTTLENECK = "BOTTLENECK"


@dataclass
class BottleneckConfig(PeftConfig):
    """The layers whose outputs get an adapter, and its width."""

    target_modules: list[str] | set[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    width: int = field(default=24)
    dropout: float = field(default=0.0)

    def __post_init__(self):
        self.peft_type: Any = BOTTLENECK


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A linear layer with an adapter behind it."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("bottleneck_dropout",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig):
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_dropout = nn.ModuleDict()
        self.merged_adapters = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        layer: Any = self.get_base_layer()
        weight, out = layer.weight, len(matrix(layer))
        down = nn.Linear(out, config.width, device=weight.device, dtype=weight.dtype)
        up = nn.Linear(config.width, out, device=weight.device, dtype=weight.dtype)
        nn.init.normal_(down.weight, std=0.02)
        nn.init.zeros_(down.bias)
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
        self.bottleneck_down[adapter_name] = down
        self.bottleneck_up[adapter_name] = up
        self.bottleneck_dropout[adapter_name] = nn.Dropout(config.dropout)
        self.set_adapter([adapter_name], inference_mode=config.inference_mode)

    def forward(
        self, x: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:  # as the layer that it stands for
        y = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return y
        for name in self.active_adapters:
            hidden = torch.nn.functional.gelu(self.bottleneck_down[name](y))
            y = y + self.bottleneck_up[name](self.bottleneck_dropout[name](hidden))
        return y

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise NotImplementedError(
            "A bottleneck adapter is not linear: it cannot be merged into the weights."
        )

    def unmerge(self) -> None:
        raise NotImplementedError("A bottleneck adapter cannot have been merged.")


class BottleneckModel(BaseTuner):
    """Puts bottleneck adapters behind the target layers of a model."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config)
        elif is_matrix(target):
            self._replace_module(
                parent, target_name, BottleneckLayer(target, adapter_name, peft_config), target
            )
        else:
            raise ValueError(
                f"`{current_key}` is a `{type(target).__name__}`; a bottleneck adapter needs a linear layer."
            )


# peft's own `register_peft_method` takes only kinds of its own enumeration.
kind: Any = BOTTLENECK
mapping.PEFT_TYPE_TO_PREFIX_MAPPING[kind] = BottleneckModel.prefix
mapping.PEFT_TYPE_TO_CONFIG_MAPPING[kind] = BottleneckConfig
mapping.PEFT_TYPE_TO_TUNER_MAPPING[kind] = BottleneckModel
