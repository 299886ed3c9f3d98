"""A pico model and a toy stream of tasks, made in memory in seconds, without a download."""

import random
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from perdure.data.task import Task, TaskStream
from perdure.models import pretrained

# Words without a meaning: what a check learns comes from the toy tasks alone.
WORDS = [f"w{i}" for i in range(60)]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
"""Special tokens, in the order of their ids (see `IN_COMMON`)."""
TELLING = 3
"""The number of words that tell a class from others."""
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
IN_COMMON: dict[str, Any] = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "cls_token_id": 2,
    "sep_token_id": 3,
}


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer with one token per word."""
    tokens = [*SPECIAL, *WORDS]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    # The numbers are the places of the tokens in `SPECIAL`.
    inner.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
        model_input_names=["input_ids", "attention_mask"],
    )


def save(folder: Path, config: transformers.PreTrainedConfig | None = None) -> Path:
    """Save a text model with random weights, the same each time; by default a pico BERT."""
    config = config or transformers.BertConfig(**SIZES, **IN_COMMON)
    # Forked, so that a check does not change the random numbers of whoever calls it.
    with pretrained.quietly(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = transformers.AutoModelForSequenceClassification.from_config(config)
        model.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    return folder


def toy_task(name: str, classes: list[str], seed: int, size: int = 32) -> Task:
    """Return a task on texts of seven to ten words, some of which tell the class."""

    def telling_words(label: int) -> list[str]:
        # The words of one task's classes do not overlap; those of different tasks may.
        first = (seed * 7 + TELLING * label) % len(WORDS)
        return WORDS[first : first + TELLING]

    def text(rng: random.Random, label: int) -> str:
        count = rng.randint(3, 6)
        words = rng.choices(telling_words(label), k=count)
        words += rng.choices(WORDS, k=4)
        return " ".join(words)

    def rows(count: int, salt: int) -> Dataset:
        # Each split has random numbers of its own: its size changes no other split.
        rng = random.Random(1000 * seed + salt)
        labels = [i % len(classes) for i in range(count)]  # balanced
        texts = [text(rng, label) for label in labels]
        return Dataset.from_dict({"text": texts, "label": labels})

    return Task(
        name,
        tuple(classes),
        train=rows(size, 0),
        validation=rows(12, 1),
        test=rows(20, 2),
    )


def toy_stream() -> TaskStream:
    """Return a stream of three tasks with seven classes in total."""
    tasks = (
        toy_task("fruit", ["apple", "pear"], 1),
        toy_task("colour", ["red", "green", "blue"], 2),
        toy_task("shape", ["round", "square"], 3),
    )
    return TaskStream("toy", tasks)
