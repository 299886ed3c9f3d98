"""An encoder with one pooled feature vector per example and one linear head per task.

Each head predicts one of the classes of its task.
"""

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
from perdure.models import heads, placement, pretrained, sentence_transformer
from perdure.models.backbone import Backbone
from perdure.models.examples import BATCH_SIZE, Batch, Examples
from perdure.models.logits import Logits
from perdure.models.model_files import ModelFiles
from perdure.models.pretrained import BaseImageProcessor
from perdure.models.tokenizing import PreTrainedTokenizerBase

PREFIX = "task_"
Tokens = dict[str, list[int]]
"""One text as the tokenizer returns it: `input_ids`, `attention_mask` and so on."""


class Encoder(Backbone):
    """A transformer with a pooled feature vector, to which a head is added for each task.

    Parameters
    ----------
    model
        With `pooling="stock"`, an `AutoModelFor…Classification` whose last linear layer
        has been replaced by an identity, so that it returns the feature. With `"mean"`,
        the bare encoder, whose last hidden states are averaged over all tokens except
        padding.
    processor
        The tokenizer or image processor of the checkpoint.
    source
        The folder, hub id or name that the checkpoint was loaded from.
    head_name
        The name of the layer that was replaced by an identity (`stock` only).
    max_length
        The maximum length of a text in tokens; longer texts are cut.
    files
        The files that the checkpoint was loaded from, if any.
    dtype
        The data type in which `save` writes the weights.
    stock_head_has_bias
        True if the head of the stock model has a bias, like the heads added here. In
        transformers, the heads of decoder models have none.
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
        self.pooling = pooling
        self.head_name = head_name
        self.width = width
        self.max_length = max_length
        self.image_size = image_size
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
        if self.revision:
            values["revision"] = self.revision
        return values

    # -- heads

    @property
    def heads(self) -> list[str]:
        return [key.removeprefix(PREFIX) for key in self._heads]

    def open(self, task: Task) -> None:
        # Created on the CPU, so that a seed gives the same initial weights on every device.
        head = nn.Linear(self.width, len(task.classes))
        self._heads[_key(task.name)] = head.to(self.device)

    def share(self, task: str) -> None:
        newest = self.heads[-1]
        self._heads[_key(task)] = self.own(newest)

    def own(self, task: str) -> nn.Linear:
        """Return the head of a task, which maps `width` features to one logit per class.

        It is linear in the features, or in random features computed from them.
        """
        head = self._heads[_key(task)]
        assert isinstance(head, nn.Linear)
        return head

    def put(self, task: str, state: Mapping[str, Tensor]) -> None:
        head = heads.made(state, self.width)
        self._heads[_key(task)] = head.to(self.device)

    def close(self, task: str) -> None:
        del self._heads[_key(task)]

    @contextlib.contextmanager
    def keeping(self) -> Iterator[None]:
        # Restore the modules themselves, not just values: an optimizer may use their parameters.
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
        """Tokenize texts; images are decoded later, batch by batch.

        The pixels of all images would take too much memory.
        """
        for of_task in rows:
            columns = of_task.data.column_names
            if self.kind not in columns:
                raise InputError(self._other_inputs(columns))
        tasks: list[str] = []
        labels: list[int] = []
        for task, data, _ in rows:
            tasks += [task] * len(data)
            labels += _labels(data)
        if self.kind == "image":
            return Examples(
                inputs=torch.utils.data.ConcatDataset(
                    [undecoded(of_task.data) for of_task in rows]
                ),
                tasks=tasks,
                labels=labels,
                lengths=[1] * len(tasks),
                collate=functools.partial(_pixels, self.processor),
                batch_size=batch_size,
            )
        texts = self._texts(rows)
        lengths = [len(text["input_ids"]) for text in texts]
        empty = [row for row, length in enumerate(lengths) if length == 0]
        if empty and not allow_empty:
            raise DataError(_without_tokens(rows, empty[0], self.source))
        for row in empty:
            texts[row] = _placeholder(texts[row])
        return Examples(
            inputs=texts,
            tasks=tasks,
            labels=labels,
            lengths=lengths,
            # A partial of a function, not a method: examples are pickled without the model.
            collate=functools.partial(_padded, self.processor),
            without_tokens=empty,
            batch_size=batch_size,
        )

    def _texts(self, rows: Rows) -> list[Tokens]:
        """Tokenize texts, and return one mapping per text rather than one list per column."""
        texts: list[Tokens] = []
        for of_task in rows:
            columns = self.tokens(of_task.data)
            for values in zip(*columns.values(), strict=True):
                texts.append(dict(zip(columns, values, strict=True)))
        return texts

    def tokens(self, data: Dataset) -> dict[str, list]:
        """Tokenize texts, or pairs of texts, cut to `max_length`.

        The result maps each of the tokenizer's outputs, such as `input_ids`, to one list per text.

        Raises
        ------
        InputError
            The examples are pairs, but the tokenizer does not separate the two texts.
        """
        columns = [data["text"][:]]
        if "text_pair" in data.column_names:
            special_tokens = self.processor.num_special_tokens_to_add
            # A separator counts as an additional special token; tokenizers like GPT-2's have none.
            if special_tokens(pair=True) <= special_tokens(pair=False):
                raise InputError(
                    f"`{self.source}` reads single texts: its tokenizer does not mark where the "
                    "first text of a pair ends. Use an encoder such as BERT, or put both texts "
                    "into one column."
                )
            columns.append(data["text_pair"][:])
        return dict(self.processor(*columns, truncation=True, max_length=self.max_length))

    def _other_inputs(self, columns: Sequence[str]) -> str:
        """Return the error message for examples of a kind that the model does not read."""
        reads = f"`{self.source}` reads {self.kind}s, but the examples"
        if "image" in columns:
            return f"{reads} are images. Use an image model as the backbone, such as `dinov2`."
        if "text" in columns:
            return f"{reads} are texts. Use a text model as the backbone, such as `minilm`."
        return f"{reads} have the columns {list(columns)}."

    # -- a batch → numbers

    def forward(self, batch: Batch) -> Float[Tensor, "batch width"]:
        """Return the pooled feature of each example."""
        output = self.model(**batch.inputs)
        if self.pooling == "stock":
            return output.logits  # the head is an identity, so these are its inputs
        return _masked_mean(output.last_hidden_state, batch.inputs["attention_mask"])

    def read(
        self, hidden: Float[Tensor, "batch width"], batch: Batch, head: str | None = None
    ) -> Logits:
        rows_of: dict[str, list[int]] = {}
        for row, task in enumerate(batch.tasks):
            rows_of.setdefault(head or task, []).append(row)
        # Each head runs once, on all its examples, so the logits are not in the batch's order.
        answers = []
        order: list[int] = []
        for name, rows in rows_of.items():
            linear = self.own(name)
            answers.append(linear(hidden[rows]))
            order += rows
        places = torch.tensor(order, device=hidden.device)
        targets = batch.targets[places]
        if head:
            # Here `places` is in the batch's order, because there is only one head.
            foreign = [task != head for task in batch.tasks]
            mask = torch.tensor(foreign, device=hidden.device)
            targets = targets.masked_fill(mask, -1)
        return Logits(
            values=_stacked(answers),
            targets=targets,
            rows=places,
            examples=len(batch),
        )

    @property
    def describes_by_pooling(self) -> bool:
        return self.kind == "text" and self.pooling == "mean"

    def features(self, batch: Batch) -> Float[Tensor, "batch features"]:
        """Return the features for the task posterior.

        For texts, they are the mean of the last hidden states over tokens. For images,
        they are the class token concatenated with the mean over patches; for images in a
        convolutional model, the mean over positions.
        """
        encoder = getattr(self.model, "base_model", self.model)
        output = placement.run(self.model, encoder, batch.inputs)
        hidden = output.last_hidden_state
        if self.kind == "text":
            return _masked_mean(hidden, batch.inputs["attention_mask"])
        if hidden.dim() == 4:  # convolutional: batch, channels, height, width
            return hidden.flatten(2).mean(2)
        class_token = hidden[:, 0]
        patches = hidden[:, 1:].mean(1)
        return torch.cat([class_token, patches], dim=1)

    # -- a batch → answers

    def rank(
        self, batch: Batch, choices: Mapping[str, Sequence[str]]
    ) -> dict[str, Float[Tensor, "batch _"]]:
        """Return log p(class | x, task) for the classes of each task, in the order of the task."""
        hidden = self(batch)
        log_p = {}
        for task in choices:
            linear = self.own(task)
            answers = linear(hidden)
            log_p[task] = answers.log_softmax(1)
        return log_p

    def generate(self, batch: Batch) -> list[str]:
        raise BackboneError(
            f"`{self.source}` answers with classes: it is an encoder, which cannot write text."
        )

    # -- a model that others load

    def stock_head(self, task: str) -> tuple[str, nn.Linear] | None:
        if self.head_name and self.stock_head_has_bias:
            return self.head_name, self.own(task)
        return None

    def save(self, folder: Path, tasks: Sequence[str], labels: Sequence[str]) -> None:
        """Write a stock checkpoint with a single head, which joins the heads of the given tasks.

        It can be loaded with `AutoModelFor…Classification`, or with
        `SentenceTransformer`, whose output is then the logits.

        Raises
        ------
        BackboneError
            The head of the stock model has no bias, but the heads of the tasks have one.
        RunError
            A head uses random features, or features of unit length in a stock model that
            does not scale them.
        """
        head = self._joined(tasks)
        normalise = any(isinstance(self.own(task), heads.UnitHead) for task in tasks)
        if normalise and self.head_name is not None:
            raise RunError(
                "The heads read features of unit length, but the head of a stock "
                f"`{type(self.model).__name__}` reads them unscaled. Use `perdure predict`, or "
                "learn with `normalise: false` or with `backbone: {pooling: mean}`."
            )
        if not self.stock_head_has_bias and head.bias.any():
            raise BackboneError(
                f"The head of a stock `{type(self.model).__name__}` has no bias, but the run's "
                "heads have one, without which the exported model would give other answers. "
                "Use `perdure predict`, or train with `backbone: {pooling: mean}`, which can be "
                "exported."
            )
        # Stock models take the names of their classes from the configuration.
        config: Any = self.model.config
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
        if self.kind == "text":
            # The stock tokenizer then cuts texts to the same length.
            self.processor.model_max_length = self.max_length
        if self.head_name is not None:
            self._put_stock_head(self.head_name, head)
        with pretrained.quietly(), pretrained.stored_as(self.model, self.dtype):
            self.model.save_pretrained(folder)  # pyright: ignore
            self.processor.save_pretrained(folder)
        if self.head_name is None:
            sentence_transformer.save(
                folder,
                head,
                max_length=self.max_length,
                normalise=normalise,
            )
        else:
            self._put_stock_head(self.head_name, nn.Identity())

    def _put_stock_head(self, name: str, layer: nn.Module) -> None:
        parent, _, child = name.rpartition(".")
        setattr(self.model.get_submodule(parent), child, layer)

    def _joined(self, tasks: Sequence[str]) -> nn.Linear:
        """Return one head that concatenates the outputs of the heads of the given tasks."""
        members = [self.own(task) for task in tasks]
        if any(isinstance(head, heads.RANDOM) for head in members):
            raise RunError(
                "The heads are linear in random features, which no stock model computes. Use "
                "`perdure predict`, or a method with linear heads, such as `lda`, which can be "
                "exported."
            )
        weight = torch.cat([head.weight for head in members]).detach()
        bias = torch.cat([head.bias for head in members]).detach()
        outputs, width = weight.shape
        joined = nn.Linear(width, outputs, device=weight.device)
        joined.load_state_dict({"weight": weight, "bias": bias})
        return joined


def _key(task: str) -> str:
    """Return the name under which the head of a task is registered.

    The prefix avoids clashes with attributes of a module, because a task may be called `forward`.
    """
    return f"{PREFIX}{task}"


def _stacked(answers: Sequence[Float[Tensor, "_ _"]]) -> Float[Tensor, "places outputs"]:
    """Concatenate the logits of several heads, padding those of smaller heads with -inf."""
    outputs = max(values.shape[1] for values in answers)
    padded = []
    for values in answers:
        lacking = outputs - values.shape[1]
        # -inf has probability 0 and no gradient.
        wide = nn.functional.pad(values, (0, lacking), value=-torch.inf)
        padded.append(wide)
    return torch.cat(padded)


def _padded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Tokens]) -> Mapping[str, Tensor]:
    return tokenizer.pad(list(texts), return_tensors="pt")


def _pixels(processor: BaseImageProcessor, images: Sequence[object]) -> Mapping[str, Tensor]:
    decoded = [read_image(image) for image in images]
    return processor(images=decoded, return_tensors="pt")


def _placeholder(text: Tokens) -> Tokens:
    """Return a placeholder for an empty text: the first token of the vocabulary.

    The token is not masked, because a mean over no tokens would be 0 / 0.
    """
    return {name: [1] if name == "attention_mask" else [0] for name in text}


def _labels(data: Dataset) -> list[int]:
    """Return the class index of each example, or -1 if the class is unknown."""
    if "label" in data.column_names:
        return data["label"][:]
    return [-1] * len(data)


def _masked_mean(
    hidden: Float[Tensor, "batch tokens width"], mask: Tensor
) -> Float[Tensor, "batch width"]:
    weights = mask[..., None].to(hidden.dtype)
    sums = (hidden * weights).sum(1)
    return sums / weights.sum(1)


def _without_tokens(rows: Rows, index: int, source: str) -> str:
    """Return the error message for an example without tokens, given its index in all rows."""
    for task, data, _ in rows:
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
