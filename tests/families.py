"""Pico models of families that `conftest.TEXT` has not: decoders, encoder-decoders,
and how a model lies on disk.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pico_language
import torch
import transformers
from conftest import make

from perdure.checks.models import WORDS, tokenizer

SMALL = {"vocab_size": len(WORDS) + 4}
SIZES = {
    **SMALL,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
GPT = {**SMALL, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40}
T5 = {**SMALL, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES, **SPECIAL, num_key_value_heads=2),
    "phi3": lambda: transformers.Phi3Config(**SIZES, **SPECIAL, num_key_value_heads=2),
    "gpt2": lambda: transformers.GPT2Config(**GPT, **SPECIAL),
    "openai-gpt": lambda: transformers.OpenAIGPTConfig(**GPT, pad_token_id=0),
    "t5": lambda: transformers.T5Config(
        **T5, pad_token_id=0, eos_token_id=3, decoder_start_token_id=0
    ),
    "mt5": lambda: transformers.MT5Config(
        **T5, pad_token_id=0, eos_token_id=3, decoder_start_token_id=0
    ),
    "umt5": lambda: transformers.UMT5Config(
        **T5, pad_token_id=0, eos_token_id=3, decoder_start_token_id=0
    ),
    "mpnet": lambda: transformers.MPNetConfig(**SIZES, pad_token_id=1, max_position_embeddings=42),
    "xlnet": lambda: transformers.XLNetConfig(
        **SMALL, d_model=16, n_layer=2, n_head=2, d_inner=32, pad_token_id=0
    ),
    "fnet": lambda: transformers.FNetConfig(
        **{key: value for key, value in SIZES.items() if key != "num_attention_heads"},
        tpu_short_seq_length=32,
    ),
}


def family(kind: str, folder: Path, change: dict[str, Any] | None = None, **settings: Any) -> Path:
    """Save a pico classifier; `change` is of the configuration, `settings` are of the tokenizer."""
    torch.manual_seed(7)
    config = FAMILIES[kind]()
    for name, value in (change or {}).items():
        setattr(config, name, value)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    save_tokenizer(folder, **settings)
    return folder


def save_tokenizer(folder: Path, **settings: Any) -> None:
    processor = tokenizer()
    processor.eos_token = "[SEP]"
    for name, value in settings.items():
        setattr(processor, name, value)
    processor.save_pretrained(folder)


def edit(folder: Path, name: str = "config.json", **values: Any) -> Path:
    """Change keys of a JSON file; those that are `...` are left out."""
    path = folder / name
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
    return folder


def all_forms(place: Path) -> None:
    """Models to be damaged: an encoder, a decoder in several files, T5, one in torch's format,
    one for images, and two language models, one of which has a chat template.
    """
    pico_language.save(place / "chat", "llama")
    (place / "chat" / "chat_template.jinja").write_text(pico_language.TEMPLATE)
    pico_language.save(place / "seq2seq", "t5")
    make("bert", place / "bert")
    make("vit", place / "vit")
    family("llama", place / "llama")
    family("t5", place / "t5")
    family("gpt2", place / "gpt2")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(place / "gpt2")
    (place / "gpt2" / "model.safetensors").unlink()
    model.save_pretrained(place / "gpt2", max_shard_size="8KB")
    make("roberta", place / "roberta")
    state = transformers.AutoModelForSequenceClassification.from_pretrained(
        place / "roberta"
    ).state_dict()
    torch.save(state, place / "roberta" / "pytorch_model.bin")
    (place / "roberta" / "model.safetensors").unlink()
