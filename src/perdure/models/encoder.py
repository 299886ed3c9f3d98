"""An encoder: a pooled feature of each example, and one linear head per task that answers with a class."""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor, nn

from perdure.data.images import read_image, undecoded
from perdure.data.task import Rows, Task
from perdure.errors import BackboneError, DataError, InputError, RunError
from perdure.models import heads, pretrained, sentence_transformer
from perdure.models.backbone import Backbone
from perdure.models.examples import BATCH_SIZE, Batch, Examples
from perdure.models.logits import Logits
from perdure.models.model_files import ModelFiles


class Encoder(Backbone):
    """A transformer read through a pooled feature; a head is added for each task.

    Parameters
    ----------
    model
        With `pooling="stock"` an `AutoModelFor…Classification` whose last linear layer is an identity, so
        that it returns the feature; with `"mean"` the bare encoder, whose last hidden states are averaged
        over the tokens that are not padding.
    processor
        The tokenizer or image processor of the checkpoint.
    source
        The folder or hub id from which it came.
    head_name
        The name of that last linear layer (`stock` only).
    max_length
        Texts are cut to so many tokens.
    files
        The files that it was read from, if it was.
    dtype
        The type in which `save` writes the weights.
    stock_head_has_bias
        Decoders' heads have none in transformers, so that theirs cannot hold one of ours.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        *,
        source: str,
        pooling: Literal["stock", "mean"],
        head_name: str | None,
        width: int,
        max_length: int,
        image_size: int | None = None,
        files: ModelFiles | None = None,
        dtype: torch.dtype = torch.float32,
        stock_head_has_bias: bool = True,
    ):
        super().__init__(model, processor, source=source, files=files)
        self.pooling, self.head_name = pooling, head_name
        self.width, self.max_length, self.image_size = width, max_length, image_size
        self.dtype = dtype
        self.stock_head_has_bias = stock_head_has_bias
        self._heads = nn.ModuleDict()

    @property
    def settings(self) -> dict[str, Any]:
        values = {
            "model": self.source,
            "pooling": self.pooling,
            "max_length": self.max_length,
            "image_size": self.image_size,
            "head": self.head_name,
        }
        return values | ({"revision": self.revision} if self.revision else {})

    # -- heads, by names of their own: a task may be called as something that a module has

    @property
    def heads(self) -> list[str]:
        return [name.removeprefix("task_") for name in self._heads]

    def open(self, task: Task) -> None:
        self._heads[f"task_{task.name}"] = nn.Linear(self.width, len(task.classes)).to(self.device)

    def share(self, task: str) -> None:
        self._heads[f"task_{task}"] = self.own(self.heads[-1])

    def own(self, task: str) -> nn.Linear:
        """The head of a task, linear in the feature or in random features: `width` → its classes."""
        head = self._heads[f"task_{task}"]
        assert isinstance(head, nn.Linear)
        return head

    def put(self, task: str, state: Mapping[str, Tensor]) -> None:
        self._heads[f"task_{task}"] = heads.made(state, self.width).to(self.device)

    def close(self, task: str) -> None:
        del self._heads[f"task_{task}"]

    @contextlib.contextmanager
    def keeping(self) -> Iterator[None]:
        before = dict(self._heads.items())
        try:
            yield
        finally:
            self._heads.clear()
            self._heads.update(before)

    # -- rows → examples

    def prepare(
        self, rows: Rows, *, batch_size: int = BATCH_SIZE, allow_empty: bool = False
    ) -> Examples:
        """Texts are tokenized here, images are prepared batch by batch."""
        wrong = next(
            (data.column_names for _, data in rows if self.kind not in data.column_names), None
        )
        if wrong:
            raise InputError(self._other_inputs(wrong))
        tasks = [task for task, data in rows for _ in range(len(data))]
        labels = [label for _, data in rows for label in _labels(data)]
        if self.kind == "image":
            images: Any = torch.utils.data.ConcatDataset([undecoded(data) for _, data in rows])
            collate = functools.partial(_pixels, self.processor)
            return Examples(images, tasks, labels, [1] * len(tasks), collate, batch_size=batch_size)
        texts = [text for _, data in rows for text in self._texts(data)]
        lengths = [len(text["input_ids"]) for text in texts]
        empty = [i for i, length in enumerate(lengths) if length == 0]
        if empty and not allow_empty:
            raise DataError(_without_tokens(rows, empty[0], self.source))
        for i in empty:
            texts[i] = {name: [1] if name == "attention_mask" else [0] for name in texts[i]}
        collate = functools.partial(_padded, self.processor)
        return Examples(texts, tasks, labels, lengths, collate, empty, batch_size)

    def _texts(self, data: Dataset) -> list[dict[str, list[int]]]:
        """What the tokenizer makes of each text."""
        columns = self.tokens(data)
        return [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]

    def tokens(self, data: Dataset) -> dict[str, list]:
        """Return what the tokenizer makes of the texts, or pairs of texts, cut to `max_length`.

        Raises
        ------
        InputError
            There are pairs, and the tokenizer puts nothing between the two texts.
        """
        columns = [data["text"][:]]
        if "text_pair" in data.column_names:
            added = self.processor.num_special_tokens_to_add
            if added(pair=True) <= added(pair=False):
                raise InputError(
                    f"`{self.source}` reads single texts: its tokenizer does not mark where the first text of a pair "
                    "ends. Use an encoder such as BERT, or put both texts into one column."
                )
            columns.append(data["text_pair"][:])
        return dict(self.processor(*columns, truncation=True, max_length=self.max_length))

    def _other_inputs(self, columns: Sequence[str]) -> str:
        """Say that examples are not of the kind that the model reads."""
        reads = f"`{self.source}` reads {self.kind}s, but the examples"
        if "image" in columns:
            return f"{reads} are images. Take a model of images as the backbone, such as `dinov2`."
        if "text" in columns:
            return f"{reads} are texts. Take a model of texts as the backbone, such as `minilm`."
        return f"{reads} have the columns {list(columns)}."

    # -- a batch → numbers

    def forward(self, batch: Batch) -> Float[Tensor, "batch width"]:
        """Return the pooled feature of each example."""
        if self.pooling == "stock":
            return self.model(**batch.inputs).logits
        return _masked_mean(
            self.model(**batch.inputs).last_hidden_state, batch.inputs["attention_mask"]
        )

    def read(
        self, hidden: Float[Tensor, "batch width"], batch: Batch, head: str | None = None
    ) -> Logits:
        rows_of: dict[str, list[int]] = {}
        for row, task in enumerate(batch.tasks):
            rows_of.setdefault(head or task, []).append(row)
        # the examples of one head are together: the places of the answers are not in the batch's order
        values = _stacked([self.own(name)(hidden[rows]) for name, rows in rows_of.items()])
        places = torch.tensor(
            [row for rows in rows_of.values() for row in rows], device=hidden.device
        )
        targets = batch.targets[places]
        if head:
            unknown = torch.tensor([task != head for task in batch.tasks], device=hidden.device)
            targets = targets.masked_fill(unknown, -1)
        return Logits(values, targets, places, len(batch))

    def features(self, batch: Batch) -> Float[Tensor, "batch features"]:
        """Return the mean over tokens (text), or class token and mean (images), as the task posterior reads them."""
        encoder = getattr(self.model, "base_model", self.model)
        hidden = encoder(**batch.inputs).last_hidden_state
        if self.kind == "text":
            return _masked_mean(hidden, batch.inputs["attention_mask"])
        if hidden.dim() == 4:  # convolutional: batch, channels, height, width
            return hidden.flatten(2).mean(2)
        return torch.cat([hidden[:, 0], hidden[:, 1:].mean(1)], dim=1)

    # -- a batch → answers

    def rank(
        self, batch: Batch, choices: Mapping[str, Sequence[str]]
    ) -> dict[str, Float[Tensor, "batch _"]]:
        """Return log p(class | x, task) for the classes of each task, in the order of its head."""
        hidden = self(batch)
        return {task: self.own(task)(hidden).log_softmax(1) for task in choices}

    def generate(self, batch: Batch) -> list[str]:
        raise BackboneError(
            f"`{self.source}` answers with classes: it is an encoder, and writes no text."
        )

    # -- a model that others load

    def stock_head(self, task: str) -> tuple[str, nn.Linear] | None:
        if self.head_name and self.stock_head_has_bias:
            return self.head_name, self.own(task)
        return None

    def save(self, folder: Path, tasks: Sequence[str], labels: Sequence[str]) -> None:
        """Write a stock checkpoint with the heads of these tasks as one.

        It is one for `AutoModelFor…Classification`, or for `SentenceTransformer`, whose output is then the logits.

        Raises
        ------
        BackboneError
            The stock model's head has no bias, but these have one.
        RunError
            The heads are not linear in the feature.
        """
        head = self._joined(tasks)
        if not self.stock_head_has_bias and head.bias.any():
            raise BackboneError(
                f"The head of a stock `{type(self.model).__name__}` has no bias, but the run's heads have one, without "
                "which the exported model would answer otherwise. `perdure predict` answers with it; a run with "
                "`backbone: {pooling: mean}` can be exported."
            )
        config: Any = self.model.config
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}
        if self.kind == "text":
            self.processor.model_max_length = (
                self.max_length
            )  # texts are cut there as they are here
        if self.head_name is not None:
            owner, _, name = self.head_name.rpartition(".")
            setattr(self.model.get_submodule(owner), name, head)
        with pretrained.quietly(), pretrained.stored_as(self.model, self.dtype):
            self.model.save_pretrained(folder)  # pyright: ignore
            self.processor.save_pretrained(folder)
        if self.head_name is None:
            sentence_transformer.save(folder, head, max_length=self.max_length)
        else:
            setattr(self.model.get_submodule(owner), name, nn.Identity())

    def _joined(self, tasks: Sequence[str]) -> nn.Linear:
        """The heads of these tasks as one, whose outputs are theirs one after the other."""
        parts = [self.own(task) for task in tasks]
        if any(isinstance(head, heads.RandomHead) for head in parts):
            raise RunError(
                "The heads are linear in random features of the model's feature, which no stock model computes. "
                "`perdure predict` does; a method whose heads are linear, such as `lda`, can be exported."
            )
        weight = torch.cat([head.weight for head in parts]).detach()
        joined = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
        joined.load_state_dict(
            {"weight": weight, "bias": torch.cat([head.bias for head in parts]).detach()}
        )
        return joined


def _stacked(parts: Sequence[Float[Tensor, "_ _"]]) -> Float[Tensor, "places outputs"]:
    """Put the answers of several heads into one tensor, narrower ones filled up with -inf."""
    outputs = max(part.shape[1] for part in parts)
    wide = [
        nn.functional.pad(part, (0, outputs - part.shape[1]), value=-torch.inf) for part in parts
    ]
    return torch.cat(wide)


def _padded(tokenizer: Any, texts: Sequence[dict[str, list[int]]]) -> Mapping[str, Tensor]:
    return tokenizer.pad(list(texts), return_tensors="pt")


def _pixels(processor: Any, images: Sequence[Any]) -> Mapping[str, Tensor]:
    return processor(images=[read_image(image) for image in images], return_tensors="pt")


def _labels(data: Dataset) -> list[int]:
    return data["label"][:] if "label" in data.column_names else [-1] * len(data)


def _masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = mask[..., None].to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


def _without_tokens(rows: Rows, index: int, source: str) -> str:
    """Say which of the examples has no token."""
    for task, data in rows:
        if index < len(data):
            example = data[index]
            text = example["text"][:60]
            number = f"row {example['row']}" if "row" in example else f"example {index + 1}"
            return (
                f"Task `{task}`, {number}: the tokenizer of `{source}` makes no token of the text "
                f"{text!r}. Leave this row out."
            )
        index -= len(data)
    raise IndexError(index)
