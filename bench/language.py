"""What teaching and asking a language model costs, beside the ways in which it is usually done.

Random weights of SmolLM2-135M's shape, half as deep, and random tokens: nothing is downloaded. Both
sides of a row are compared in the same run. The exit status is 1 when they differ,
or a target is missed.
"""

import argparse
import contextlib
import copy
import random
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import peft
import torch
import trainer
import transformers
from measure import Row, in_turn, table, temporary_bytes

from perdure.learning.method import PeftMethod
from perdure.learning.progress import length_grouped
from perdure.merging.combine import folded, task_vectors
from perdure.methods.inflora import InfLoRA
from perdure.methods.o_lora import OLoRA
from perdure.models import adapter_targets, adapters, ranking
from perdure.models.adapters import Adapter
from perdure.models.examples import Batch
from perdure.models.language import LanguageModel
from perdure.models.mixture import Mixture
from perdure.models.prompts import Prompts, Tokens
from perdure.models.text_examples import TextExamples, padded, prompt_of
from perdure.vectors.task_vector import LowRank, TaskVector, total

VOCABULARY, END = 49152, 2
BATCH = 16
CHOICES = 14
TASKS = 20
QUERY_VALUE = ["q_proj", "v_proj"]


def transformer() -> Any:
    """Return a model of SmolLM2-135M's shape with 15 of its 30 layers."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=15,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=END,
        pad_token_id=END,
    )
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


class NoTokenizer:
    """Stands where a tokenizer would: examples are tokens already."""

    pad_token_id = END
    all_special_ids = (END,)
    vocab_size = VOCABULARY

    def pad(self) -> None: ...

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        kept = [str(token) for token in tokens if token != END]
        return " ".join(kept)


def backbone(model: Any, new_tokens: int = 6) -> LanguageModel:
    tokenizer: Any = NoTokenizer()
    prompts = Prompts(tokenizer, "random", (END,), 2048, new_tokens, "middle", False, None, False)
    return LanguageModel(model, tokenizer, prompts, source="random")


def rows(count: int, *, seed: int, answer: tuple[int, int] = (1, 8)) -> list[Tokens]:
    """Return prompts of 20 to 120 tokens with short answers."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        prompt = [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(20, 120))]
        reply = [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(*answer))]
        made.append(Tokens(tuple(prompt), (*reply, END)))
    return made


def examples(model: LanguageModel, tokens: list[Tokens]) -> TextExamples:
    """Return rows as examples, without a tokenizer."""
    collate = partial(padded, layout=model._layout())
    lengths = [len(row.prompt) + len(row.answer) for row in tokens]
    count = len(tokens)
    return TextExamples(tokens, ["task"] * count, [-1] * count, lengths, collate, batch_size=BATCH)


# -- training


class Usual:
    """The usual way: transformers' Trainer, peft, masked labels,
    random batches padded to the longest.
    """

    def __init__(self, model: Any, tokens: list[Tokens]):
        config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=QUERY_VALUE, lora_dropout=0.0)
        self.model = peft.get_peft_model(model, config)
        self.data = []
        for row in tokens:
            labels = [-100] * len(row.prompt) + list(row.answer)
            self.data.append({"input_ids": [*row.prompt, *row.answer], "labels": labels})

    def collate(self, chosen: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in chosen)
        batch = {"input_ids": [], "labels": [], "attention_mask": []}
        for row in chosen:
            left = width - len(row["input_ids"])
            batch["input_ids"].append(row["input_ids"] + [END] * left)
            batch["labels"].append(row["labels"] + [-100] * left)
            batch["attention_mask"].append([1] * len(row["input_ids"]) + [0] * left)
        return {name: torch.tensor(value) for name, value in batch.items()}

    def epoch(self) -> None:
        trainer.epoch(
            self.model,
            batch_size=BATCH,
            rate=1e-4,
            train_dataset=self.data,
            data_collator=self.collate,
        )

    def loss(self) -> float:
        """Return the mean loss of the first batch's tokens, of the model as it is."""
        self.model.eval()
        with torch.no_grad():
            return self.model(**self.collate(self.data[:BATCH])).loss.item()

    def step(self) -> None:
        self.model.train()
        self.model(**self.collate(self.data[:BATCH])).loss.backward()
        self.model.zero_grad()


class Ours:
    """The library's way: examples of similar length together, logits where an answer is due."""

    def __init__(self, model: Any, tokens: list[Tokens], *, packs: bool):
        self.backbone = backbone(model)
        self.examples = examples(self.backbone, tokens)
        self.packs = packs
        config = adapter_targets.configure(
            model, "lora", rank=8, alpha=16, dropout=0.0, target_modules=QUERY_VALUE
        )
        adapters.attach(model, config)

    def batch(self, numbers: list[int]) -> Batch:
        if self.packs:
            return self.examples.packed(numbers, pad=END)
        return self.examples.batch(numbers)

    def epoch(self) -> None:
        parameters = list(adapters.trainable(self.backbone.model).values())
        for parameter in parameters:
            parameter.requires_grad_()
        optimizer = torch.optim.AdamW(parameters, lr=1e-4)
        for numbers in length_grouped(self.examples.lengths, BATCH, seed=0):
            self.backbone.losses(self.batch(numbers)).mean().backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()

    def loss(self) -> float:
        """Return the mean loss of the first batch's tokens, of the model as it is."""
        with torch.no_grad():
            batch = self.batch(list(range(BATCH)))
            answers = self.backbone.read(self.backbone(batch), batch)
            return torch.nn.functional.cross_entropy(answers.values, answers.targets).item()

    def step(self) -> None:
        for parameter in adapters.trainable(self.backbone.model).values():
            parameter.requires_grad_()
        self.backbone.losses(self.batch(list(range(BATCH)))).mean().backward()


def training(times: int) -> list[Row]:
    """An epoch of 64 rows, in each way from the same model."""
    tokens = rows(64, seed=1)
    model = transformer()
    usual = Usual(copy.deepcopy(model), tokens)
    sides: dict[str, Any] = {
        "padded and sorted": Ours(copy.deepcopy(model), tokens, packs=False),
        "packed": Ours(copy.deepcopy(model), tokens, packs=True),
    }
    half = Ours(model.to(torch.bfloat16), tokens, packs=False)
    losses = {name: side.loss() for name, side in sides.items()}
    expected = usual.loss()
    error = max(abs(loss - expected) for loss in losses.values())
    assert error < 1e-4, (losses, expected)
    usual_bytes, _ = temporary_bytes(usual.step)
    own_bytes, _ = temporary_bytes(sides["padded and sorted"].step)
    epochs = {name: side.epoch for name, side in sides.items()}
    seconds, _ = in_turn({"usual": usual.epoch, **epochs, "bfloat16": half.epoch}, times)
    targets = {"padded and sorted": 1.8, "packed": 2.2, "bfloat16": 2.7}
    result = []
    for name, target in targets.items():
        result.append(
            Row(
                f"training, {name}",
                f"Trainer and peft {seconds['usual']:.1f} s, "
                f"ours {seconds[name]:.1f} s an epoch of 64",
                seconds["usual"] / seconds[name],
                target,
                equal=f"token loss to {error:.0e}" if name != "bfloat16" else "",
            )
        )
    ratio = own_bytes / usual_bytes
    sides_text = f"Trainer and peft {usual_bytes / 1e6:.0f} MB, ours {own_bytes / 1e6:.0f} MB"
    result.append(Row("memory of a training step of 16", sides_text, ratio, 0.6, least=False))
    return result


# -- answers


def answers(times: int) -> list[Row]:
    """Ranking 14 choices behind 16 prompts, beside reading each choice whole,
    and generating six tokens.
    """
    model = backbone(transformer())
    tokens = [replace(row, answer=()) for row in rows(BATCH, seed=2)]
    ((_, batch),) = list(examples(model, tokens).batches(size=BATCH))
    draw = random.Random(3)
    tails = []
    for _ in range(CHOICES):
        tails.append([*(draw.randrange(3, VOCABULARY) for _ in range(draw.randint(1, 4))), END])
    prompt = prompt_of(batch)
    fast = ranking.Ranking()
    fast.scores(model.model, prompt, tails)  # it is tried once
    assert fast.exact

    def whole() -> torch.Tensor:
        with torch.no_grad():
            return ranking._whole(model.model, prompt, tails)

    sides = {
        "ranked": lambda: fast.scores(model.model, prompt, tails),
        "whole": whole,
        "generated": lambda: model.generate(batch),
    }
    seconds, results = in_turn(sides, times)
    error = (results["ranked"] - results["whole"]).abs().max().item()
    assert error < 1e-3, error
    ranked = f"ours {seconds['ranked']:.1f} s"
    return [
        Row(
            f"ranking {CHOICES} choices behind {BATCH} prompts",
            f"each choice whole {seconds['whole']:.1f} s, {ranked}",
            seconds["whole"] / seconds["ranked"],
            5.0,
            equal=f"log p to {error:.0e}",
        ),
        Row(
            f"ranking {CHOICES} choices behind {BATCH} prompts",
            f"generating 6 tokens {seconds['generated']:.1f} s, {ranked}",
            seconds["generated"] / seconds["ranked"],
            2.0,
        ),
    ]


def generation(times: int) -> list[Row]:
    """Answers to 200 prompts: batches of similar length,
    beside batches in the order of the file.
    """
    model = backbone(transformer())
    tokens = [replace(row, answer=()) for row in rows(200, seed=4)]
    prompts = examples(model, tokens)

    def in_batches(numbers: list[list[int]]) -> list[str]:
        texts = [""] * len(tokens)
        for chosen in numbers:
            for number, text in zip(chosen, model.generate(prompts.batch(chosen)), strict=True):
                texts[number] = text
        return texts

    by_length = [numbers for numbers, _ in prompts.batches(size=BATCH)]
    in_order = [list(range(i, min(i + BATCH, 200))) for i in range(0, 200, BATCH)]
    sides = {"sorted": lambda: in_batches(by_length), "file": lambda: in_batches(in_order)}
    seconds, results = in_turn(sides, times)
    same = sum(a == b for a, b in zip(results["sorted"], results["file"], strict=True))
    assert same >= 198, same  # the logits of random weights are close to each other
    return [
        Row(
            "generating for 200 prompts",
            f"in the file's order {seconds['file']:.0f} s, by length {seconds['sorted']:.0f} s",
            seconds["file"] / seconds["sorted"],
            1.2,
            equal=f"{same} of 200 texts",
        )
    ]


def routed(times: int) -> list[Row]:
    """A batch in which each example has its own adapter of ten, beside one adapter for all."""
    model = backbone(transformer())
    ((_, batch),) = list(examples(model, rows(BATCH, seed=5)).batches(size=BATCH))
    targets = []
    for name, layer in model.model.named_modules():
        if name.rpartition(".")[2] in QUERY_VALUE:
            targets.append((name, layer))
    torch.manual_seed(1)
    experts = {}
    for number in range(10):
        entries = {}
        for name, layer in targets:
            out, into = layer.weight.shape
            entries[name] = LowRank(0.02 * torch.randn(out, 8), 0.02 * torch.randn(8, into))
        experts[f"task{number}"] = TaskVector(entries)

    def forward(chosen: dict[str, TaskVector]) -> torch.Tensor:
        names = list(chosen)
        with torch.no_grad(), Mixture(chosen, gate_rank=0).inserted(model.model) as choice:
            choice.of([names[row % len(names)] for row in range(BATCH)])
            return model(batch)

    single = dict(list(experts.items())[:1])
    sides = {"ten": lambda: forward(experts), "one": lambda: forward(single)}
    seconds, results = in_turn(sides, times)
    first = batch.places.examples % 10 == 0
    error = (results["ten"][first] - results["one"][first]).abs().max().item()
    assert error < 1e-4, error
    return [
        Row(
            f"ten adapters in a batch of {BATCH}",
            f"one adapter {seconds['one']:.2f} s, ten {seconds['ten']:.2f} s",
            seconds["ten"] / seconds["one"],
            1.15,
            least=False,
            equal=f"logits to {error:.0e}",
        )
    ]


# -- many tasks


def random_adapters(model: Any, config: Any, count: int) -> list[Adapter]:
    """Return adapters as if learned from random data, each from a start of its own."""
    made = []
    for number in range(count):
        torch.manual_seed(number)
        adapters.attach(model, config)
        for _, B in adapters.factors(model).values():
            B.data.normal_(std=0.02)
        parameters = adapters.read(model)
        adapters.detach(model)
        made.append(Adapter(f"task{number}", config, parameters, parameters))
    return made


def step_at(method: PeftMethod, number: int, tokens: list[Tokens]) -> Callable[[], float]:
    """Return a training step of the task of this number, behind random earlier tasks.

    Folding the earlier branches into the weights happens once per task, as does InfLoRA's design of
    a branch: neither is a part of the step, nor done here for InfLoRA.
    """
    language = backbone(transformer())
    model = language.model
    config = adapter_targets.configure(
        model, "lora", rank=8, alpha=16, dropout=0.0, target_modules=QUERY_VALUE
    )
    earlier = random_adapters(model, config, number - 1)
    method.state["learned"] = len(earlier)
    vectors = list(task_vectors(method.beneath(earlier)).values())
    # The context is never left: the model is thrown away with it.
    contextlib.ExitStack().enter_context(folded(model, total(vectors)))
    torch.manual_seed(number)
    if isinstance(method, InfLoRA):
        method.attach(language, target_modules=QUERY_VALUE)
    else:
        no_task: Any = None  # O-LoRA's branch is the same for every task
        method.begin(language, no_task)
    parameters = method.parameters(language)
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    batch = examples(language, tokens).batch(list(range(BATCH)))

    def step() -> float:
        loss = method.loss(language, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def tasks(times: int) -> list[Row]:
    """Run a step of the twentieth task, beside one of the first."""
    tokens = rows(BATCH, seed=6)
    methods: dict[str, Callable[[], PeftMethod]] = {"inflora": InfLoRA, "o_lora": OLoRA}
    result = []
    for name, make in methods.items():
        sides = {"first": step_at(make(), 1, tokens), "last": step_at(make(), TASKS, tokens)}
        # The target is near one, so the least of more runs is needed.
        seconds, losses = in_turn(sides, times + 4)
        assert losses["first"] != losses["last"], losses  # the earlier branches act
        result.append(
            Row(
                f"a step of `{name}` at task {TASKS}",
                f"task 1 {seconds['first']:.2f} s, task {TASKS} {seconds['last']:.2f} s",
                seconds["last"] / seconds["first"],
                1.05,
                least=False,
            )
        )
    return result


PARTS = {
    "training": training,
    "answers": answers,
    "generation": generation,
    "routed": routed,
    "tasks": tasks,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--times", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    result = []
    for name in given.parts:
        result += PARTS[name](given.times)
    print(table(result))
    return 0 if all(row.met for row in result) else 1


if __name__ == "__main__":
    sys.exit(main())
