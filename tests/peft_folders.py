"""Tiny models and LoRA folders, made by the stock libraries, for the tests of merging on disk."""

from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file

IMAGE: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
}
TINY: dict[str, tuple[Any, Any, list[str]]] = {
    "llama": (
        lambda **more: transformers.LlamaConfig(
            **{
                "vocab_size": 64,
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
            }
            | {"intermediate_size": 40, "tie_word_embeddings": False}
            | more
        ),
        transformers.AutoModelForCausalLM,
        ["q_proj", "down_proj"],
    ),
    "gpt2": (
        lambda **more: transformers.GPT2Config(
            vocab_size=64,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=32,
            bos_token_id=1,
            eos_token_id=1,
            **more,
        ),
        transformers.AutoModelForCausalLM,
        ["c_attn", "c_proj", "c_fc"],
    ),
    "vit": (
        lambda **more: transformers.ViTConfig(**IMAGE, intermediate_size=32, patch_size=4, **more),
        transformers.AutoModelForImageClassification,
        ["q_proj", "fc1"],
    ),
    "dinov2": (
        lambda **more: transformers.Dinov2Config(**IMAGE, mlp_ratio=2, patch_size=4, **more),
        transformers.AutoModel,
        ["q_proj"],
    ),
}


def base(
    kind: str,
    folder: Path,
    *,
    name: str = "",
    dtype=torch.float32,
    max_shard_size="1GB",
    **settings,
) -> Path:
    """Save a tiny model of random weights."""
    torch.manual_seed(7)
    config, auto, _ = TINY[kind]
    model = auto.from_config(config(**settings)).to(dtype)
    place = folder / (name or kind)
    model.save_pretrained(place, max_shard_size=max_shard_size)
    return place


def adapter(
    base: Path, place: Path, *, seed: int, exact: bool = False, auto=None, **settings: Any
) -> Path:
    """Save a LoRA whose factors are random; `exact`: multiples of 1/8,
    whose sums and products have no rounding.
    """
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "o_proj"]} | settings
    kind = transformers.AutoConfig.from_pretrained(base)
    if kind.model_type == "gpt2":
        settings["fan_in_fan_out"] = True
    auto = auto or getattr(transformers, kind.architectures[0])
    torch.manual_seed(seed)
    model = peft.get_peft_model(auto.from_pretrained(base), peft.LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if ".lora_" in name or (parameter.requires_grad and "modules_to_save" in name):
            torch.nn.init.normal_(parameter, 0, 0.2)
            if exact:
                parameter.data = (8 * parameter.data).round() / 8
    model.save_pretrained(place)
    return place


def values(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint."""
    return {
        name: value
        for file in sorted(folder.glob("*.safetensors"))
        for name, value in load_file(file).items()
    }
