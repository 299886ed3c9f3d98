"""Pico language models of several architectures, with a tokenizer that has one token a byte."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from perdure.models.language import LanguageModel
from perdure.models.prompts import Prompts

SPECIAL = ("<pad>", "</s>", "<s>")
IN_COMMON: dict[str, Any] = {
    "vocab_size": 259,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
}
T5: dict[str, Any] = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
BART: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 256,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, LLAMA),
    "qwen2": (transformers.Qwen2Config, LLAMA),
    "gemma2": (transformers.Gemma2Config, LLAMA | {"head_dim": 8}),  # it caps its logits
    "gpt2": (transformers.GPT2Config, GPT2),
    "t5": (transformers.T5Config, T5),
    "bart": (transformers.BartConfig, BART),
}
BLOOM = (transformers.BloomConfig, {"hidden_size": 32, "n_layer": 2, "n_head": 4})
"""Its positions are part of its attention, so that choices cannot be packed."""

TEMPLATE = (
    "{% for turn in messages %}<{{ turn['role'] }}>{{ turn['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer that has one token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 2)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
        model_input_names=["input_ids", "attention_mask"],
    )


def transformer(kind: str) -> Any:
    """Return a model with random weights, the same each time,
    whose answers are far from uniform.
    """
    make, sizes = BLOOM if kind == "bloom" else CONFIGS[kind]
    config = make(**sizes, **IN_COMMON)
    auto = transformers.AutoModelForCausalLM
    if config.is_encoder_decoder:
        auto = transformers.AutoModelForSeq2SeqLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    return model


def save(folder: Path, kind: str) -> Path:
    """Save a model with its tokenizer."""
    transformer(kind).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def language_model(kind: str, **settings: Any) -> LanguageModel:
    """Return a pico language model in memory; `settings` are those of its `Prompts`."""
    model = transformer(kind)
    usual: dict[str, Any] = {
        "stops": (1,),
        "max_length": 128,
        "max_new_tokens": 32,
        "truncate": "middle",
        "chat": False,
        "system_message": None,
        "decodes": bool(model.config.is_encoder_decoder),
    }
    prompts = Prompts(settings.pop("tokenizer", tokenizer()), kind, **{**usual, **settings})
    return LanguageModel(model, prompts.tokenizer, prompts, source=kind)
