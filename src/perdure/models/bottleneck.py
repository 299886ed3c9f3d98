"""Bottleneck adapters as a PEFT tuner; peft itself does not provide them.

The output y of a linear layer becomes y + up(gelu(down(y))), with `width` hidden units.
Initially, `up` is zero, so a new adapter changes nothing. Importing perdure registers the
adapter type `BOTTLENECK` with peft, after which such an adapter loads with
`peft.PeftModel.from_pretrained`.

References
----------
Houlsby et al., Parameter-Efficient Transfer Learning for NLP, 2019, arXiv 1902.00751.
Pfeiffer et al., AdapterFusion, 2021, arXiv 2005.00247.
"""

from dataclasses import dataclass, field

import torch
from peft import PeftConfig, mapping
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

from perdure.models.matrices import is_matrix, matrix

BOTTLENECK = "BOTTLENECK"


@dataclass
class BottleneckConfig(PeftConfig):
    """Settings for bottleneck adapters: the target layers, the width and the dropout."""

    # The first three fields are those that `BaseTuner` reads from every configuration.

    target_modules: list[str] | set[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    width: int = field(default=24)
    dropout: float = field(default=0.0)

    def __post_init__(self):
        self.peft_type = BOTTLENECK  # pyright: ignore[reportAttributeAccessIssue]


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A linear layer followed by an adapter."""

    # peft saves, trains and moves the modules named here, for each adapter in the layer.
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
        weight = matrix(self.get_base_layer())
        outputs = len(weight)
        down = nn.Linear(
            in_features=outputs,
            out_features=config.width,
            device=weight.device,
            dtype=weight.dtype,
        )
        up = nn.Linear(
            in_features=config.width,
            out_features=outputs,
            device=weight.device,
            dtype=weight.dtype,
        )
        # Only `up` is zero: with both at zero, neither matrix would ever get a gradient.
        nn.init.normal_(down.weight, std=0.02)
        nn.init.zeros_(down.bias)
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
        self.bottleneck_down[adapter_name] = down
        self.bottleneck_up[adapter_name] = up
        self.bottleneck_dropout[adapter_name] = nn.Dropout(config.dropout)
        self.set_adapter([adapter_name], inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        # Additional arguments are for the layer that this one replaces.
        y = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return y
        for name in self.active_adapters:
            down = self.bottleneck_down[name]
            # The adapter is in single precision, even if the layer is in half precision.
            hidden = torch.nn.functional.gelu(down(y.to(down.weight.dtype)))
            hidden = self.bottleneck_dropout[name](hidden)
            y = y + self.bottleneck_up[name](hidden).to(y.dtype)
        return y

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise NotImplementedError(
            "A bottleneck adapter is not linear: it cannot be merged into the weights."
        )

    def unmerge(self) -> None:
        raise NotImplementedError("A bottleneck adapter is never merged, so it cannot be unmerged.")


class BottleneckModel(BaseTuner):
    """A PEFT tuner that adds bottleneck adapters after the target layers of a model."""

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
            layer = BottleneckLayer(target, adapter_name, peft_config)
            self._replace_module(parent, target_name, layer, target)
        else:
            raise ValueError(
                f"`{current_key}` is a `{type(target).__name__}`; a bottleneck adapter needs a "
                "linear layer."
            )


# peft's `register_peft_method` accepts only the types in its enumeration.
mapping.PEFT_TYPE_TO_PREFIX_MAPPING[BOTTLENECK] = BottleneckModel.prefix  # pyright: ignore
mapping.PEFT_TYPE_TO_CONFIG_MAPPING[BOTTLENECK] = BottleneckConfig  # pyright: ignore
mapping.PEFT_TYPE_TO_TUNER_MAPPING[BOTTLENECK] = BottleneckModel  # pyright: ignore
