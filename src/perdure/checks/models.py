"""Pico models and toy streams of tasks, which are created in seconds, without a download."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from perdure.data.task import Task, TaskStream
from perdure.models import pretrained

# Words without a meaning, so that a check can learn only from the toy tasks.
WORDS = [f"w{i}" for i in range(60)]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
"""Special tokens, in the order of their ids (see `IN_COMMON`)."""
TELLING = 3
"""The number of words that are typical of a class."""
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

Family = Literal["encoder", "causal", "seq2seq"]
"""The kind of a pico model: an encoder with heads, a decoder-only language model, or an
encoder-decoder language model.
"""
OF_TEXT: dict[str, Any] = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
T5_SIZES: dict[str, Any] = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer with one token per word."""
    tokens = [*SPECIAL, *WORDS]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    # The numbers are the positions of the tokens in `SPECIAL`.
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
    """Save a text model, by default a pico BERT, with random but reproducible weights."""
    config = config or transformers.BertConfig(**SIZES, **IN_COMMON)
    # Forked, so that a check does not change the random numbers of its caller.
    with pretrained.quietly(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = transformers.AutoModelForSequenceClassification.from_config(config)
        model.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    return folder


def save_language_model(folder: Path, family: Family) -> Path:
    """Save a pico Llama, or a pico T5 for `seq2seq`, with random but reproducible weights."""
    if family == "causal":
        config = transformers.LlamaConfig(**SIZES, **OF_TEXT, max_position_embeddings=40)
        auto = transformers.AutoModelForCausalLM
    else:
        config = transformers.T5Config(**T5_SIZES, **OF_TEXT, decoder_start_token_id=0)  # pyright: ignore
        auto = transformers.AutoModelForSeq2SeqLM
    with pretrained.quietly(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        auto.from_config(config).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    return folder


def toy_task(name: str, classes: list[str], seed: int, size: int = 32) -> Task:
    """Return a task that classifies texts of seven to ten words, some of which reveal the class."""

    def telling_words(label: int) -> list[str]:
        # The classes of one task have no typical words in common; those of different tasks may.
        first = (seed * 7 + TELLING * label) % len(WORDS)
        return WORDS[first : first + TELLING]

    def text(rng: random.Random, label: int) -> str:
        count = rng.randint(3, 6)
        words = rng.choices(telling_words(label), k=count)
        words += rng.choices(WORDS, k=4)
        return " ".join(words)

    def rows(count: int, salt: int) -> Dataset:
        # Each split has a separate generator, so that its size does not affect the other splits.
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


def text_stream() -> TaskStream:
    """Return a stream of two tasks: one whose classes are words, and one with free-text answers."""
    whole = toy_task("fruit", [WORDS[-1], WORDS[-2]], 1)
    # Generating answers takes longer than applying heads, so a few examples must be enough.
    closed = replace(
        whole,
        train=whole.train.select(range(16)),
        validation=whole.validation.select(range(4)),
        test=whole.test.select(range(4)),
    )

    def answered(data: Dataset) -> Dataset:
        # The first one or two words of the text, so that answers differ in length.
        words = [text.split() for text in data["text"]]
        targets = [" ".join(of_text[: 1 + len(of_text) % 2]) for of_text in words]
        return Dataset.from_dict({"text": data["text"][:], "target": targets})

    rows = toy_task("first", ["a", "b"], 2)
    free = Task(
        "first",
        (),
        train=answered(rows.train),
        validation=answered(rows.validation.select(range(4))),
        test=answered(rows.test.select(range(4))),
        score="exact_match",
    )
    return TaskStream("text", (closed, free))
