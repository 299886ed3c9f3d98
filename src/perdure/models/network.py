"""Small networks that are trained from scratch, to compare with literature that does the same.

Nothing is pre-trained: the initial weights are random, and a method learns a change of all
weights (`peft: full`), including the output layer. The network thus has a single head for
the classes of all tasks, which is part of its weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from datasets import Dataset
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from perdure.data.images import read_image, undecoded
from perdure.data.task import Rows, Task
from perdure.errors import BackboneError, InputError, RunError
from perdure.models.examples import BATCH_SIZE, Batch, Examples
from perdure.models.headless import Headless
from perdure.models.logits import Logits

Kind = Literal["mlp", "cnn"]
Count = Annotated[int, Ge(1)]

NOT_STOCK = (
    "A network that was trained from scratch is not a model of transformers or peft, so there is "
    "nothing to export it to. Use `perdure predict`, or `perdure.Model(RUN)` in Python."
)


class Layers(nn.Module):
    """A network with ReLU after each layer except the last.

    Each convolution (3 × 3) is followed by max-pooling, which halves the image. Without
    convolutions, the first linear layer reads the pixels.
    """

    def __init__(
        self,
        *,
        channels: int,
        image_size: int,
        filters: Sequence[int],
        widths: Sequence[int],
        outputs: int,
    ):
        super().__init__()
        self.convolutions = nn.ModuleList()
        for count in filters:
            self.convolutions.append(nn.Conv2d(channels, count, kernel_size=3, padding=1))
            channels = count
            image_size //= 2
        width = channels * image_size**2
        self.hidden = nn.ModuleList()
        for count in widths:
            self.hidden.append(nn.Linear(width, count))
            width = count
        self.output = nn.Linear(width, outputs)

    def states(self, pixels: Float[Tensor, "batch _ _ _"]) -> list[Float[Tensor, "batch *_"]]:
        """Return the pixels and the output of each layer except the last."""
        states = [pixels]
        for convolution in self.convolutions:
            states.append(nn.functional.max_pool2d(convolution(states[-1]).relu(), 2))
        for layer in self.hidden:
            states.append(layer(states[-1].flatten(1)).relu())
        return states

    def features(self, pixels: Float[Tensor, "batch _ _ _"]) -> Float[Tensor, "batch width"]:
        """Return the inputs of the output layer."""
        return self.states(pixels)[-1].flatten(1)

    def forward(self, pixels: Float[Tensor, "batch _ _ _"]) -> Float[Tensor, "batch outputs"]:
        return self.output(self.features(pixels))


@dataclass(eq=False)
class NetworkExamples(Examples):
    """Images with the index of the output of each example's class, or -1 if it is unknown.

    `labels` are indices within a task, as for all examples; `outputs` are the targets of
    a batch.
    """

    outputs: Sequence[int] = ()

    def batch(self, rows: Sequence[int], device: torch.device | str = "cpu") -> Batch:
        batch = super().batch(rows, device)
        outputs = torch.tensor([self.outputs[row] for row in rows], device=device)
        return replace(batch, targets=outputs)


class Network(Headless):
    """A network without pre-training, with one output layer for the classes of all tasks.

    The loss is the cross-entropy over all outputs, including those of classes that no
    task has had yet. As in most of the literature, the classes are thus known from the
    beginning. At test time, only the classes of the learned tasks are possible answers.

    Parameters
    ----------
    network
        `mlp`, a multilayer perceptron, or `cnn`, a small convolutional network.
    classes
        The name of the class of each output. In a recipe, it can be left out: the
        network then has the classes of the stream.
    widths
        The number of units in each hidden linear layer.
    filters
        The number of filters in each convolution of a `cnn`, `[32, 64]` by default.
    image_size
        The height and width of images in pixels; images of other sizes are resized.
    channels
        1 for grey images, 3 for colours. Pixels are numbers from 0 to 1.
    seed
        The seed of the initial weights, which are uniform in ± 1/√(number of inputs), the
        default of torch. In a recipe, it is the run's seed if it is left out.

    Raises
    ------
    InputError
        The network has fewer than two different classes, an `mlp` is given `filters`, or
        a `cnn` has too many for the size of the images.

    Examples
    --------
    >>> network = Network(network="mlp", classes=("cat", "dog"), widths=(100, 100))
    >>> sum(value.numel() for value in network.model.parameters())
    88802
    """

    model: Layers

    def __init__(
        self,
        *,
        network: Kind,
        classes: Sequence[str],
        widths: Sequence[Count] = (100, 100),
        filters: Sequence[Count] | None = None,
        image_size: Count = 28,
        channels: Literal[1, 3] = 1,
        seed: Annotated[int, Ge(0)] = 0,
    ):
        filters = _filters(network, filters, image_size)
        classes = tuple(classes)
        if len(set(classes)) < max(2, len(classes)):
            raise InputError(
                f"A network needs at least two different `classes`, got {list(classes)}."
            )
        layers = Layers(
            channels=channels,
            image_size=image_size,
            filters=filters,
            widths=widths,
            outputs=len(classes),
        )
        _initialise(layers, seed)
        mode = "L" if channels == 1 else "RGB"
        super().__init__(layers, Reader(image_size, mode), source=network, files=None)
        self.classes = classes
        self.width = layers.output.in_features
        self._settings = {
            "network": network,
            "classes": list(classes),
            "widths": list(widths),
            **({"filters": list(filters)} if filters else {}),
            "image_size": image_size,
            "channels": channels,
            "seed": seed,
        }

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self._settings)

    @property
    def published(self) -> str:
        return self.source  # not a folder, even if there is one of this name

    # -- rows → examples

    def prepare(
        self, rows: Rows, *, batch_size: int = BATCH_SIZE, allow_empty: bool = False
    ) -> NetworkExamples:
        """Decode all images; in memory, a pixel takes one byte for each channel."""
        pixels: list[Tensor] = []
        tasks: list[str] = []
        labels: list[int] = []
        outputs: list[int] = []
        for of_task in rows:
            data = of_task.data
            if "image" not in data.column_names:
                raise InputError(_not_images(self.source))
            pixels += self.processor.read(data)
            tasks += [of_task.task] * len(data)
            indices = self._outputs(of_task.classes)
            known = data["label"][:] if "label" in data.column_names else [-1] * len(data)
            labels += known
            outputs += [indices[label] if label >= 0 else -1 for label in known]
        return NetworkExamples(
            inputs=pixels,
            tasks=tasks,
            labels=labels,
            lengths=[1] * len(tasks),
            collate=stacked,
            batch_size=batch_size,
            outputs=outputs,
        )

    def _outputs(self, classes: Sequence[str]) -> list[int]:
        """Return the index of the output of each of the given classes."""
        index = {name: number for number, name in enumerate(self.classes)}
        return [index[name] for name in classes]

    def check_task(self, task: Task) -> None:
        """Check that the network can read the examples of a task and has its classes.

        Raises
        ------
        InputError
            The examples are texts, or a class has no output.
        """
        if not task.missing and task.kind != "image":
            raise InputError(_not_images(self.source))
        unknown = [name for name in task.classes if name not in self.classes]
        if unknown:
            raise InputError(
                f"Task `{task.name}` has the class `{unknown[0]}`, for which the network has no "
                "output. List the classes of all tasks in `backbone.classes` when a run begins."
            )

    # -- a batch → numbers

    def forward(self, batch: Batch) -> Float[Tensor, "batch outputs"]:
        """Return the logits of all classes for each example."""
        return self.model(**batch.inputs)

    def read(
        self, hidden: Float[Tensor, "batch outputs"], batch: Batch, head: str | None = None
    ) -> Logits:
        places = torch.arange(len(batch), device=hidden.device)
        return Logits(hidden, batch.targets, places, len(batch))

    def features(self, batch: Batch) -> Float[Tensor, "batch features"]:
        """Return the inputs of the output layer."""
        return self.model.features(**batch.inputs)

    # -- a batch → answers

    def rank(
        self, batch: Batch, choices: Mapping[str, Sequence[str]]
    ) -> dict[str, Float[Tensor, "batch _"]]:
        """Return log p(class | x) for the classes of each task, in the order of the task."""
        log_p = self(batch).log_softmax(1)
        return {task: log_p[:, self._outputs(classes)] for task, classes in choices.items()}

    def generate(self, batch: Batch) -> list[str]:
        raise BackboneError(f"`{self.source}` answers with classes: it cannot write text.")

    # -- a model that others load

    def stock_head(self, task: str) -> None:
        return None

    def save(self, folder: Path, tasks: Sequence[str], labels: Sequence[str]) -> None:
        raise RunError(NOT_STOCK)


@dataclass(frozen=True)
class Reader:
    """The processor of a network, which turns images into pixels.

    `mode` is Pillow's name for grey (`L`) or coloured (`RGB`) images.
    """

    image_size: int
    mode: str

    def read(self, data: Dataset) -> list[UInt8[Tensor, "channels height width"]]:
        """Return the pixels of each image in a data set."""
        # Repeated examples, as in replay, are decoded only once.
        known: dict[bytes | str, Tensor] = {}
        pixels = []
        for image in undecoded(data):
            key = image["path"] if image["bytes"] is None else image["bytes"]
            if key not in known:
                known[key] = self._pixels(image)
            pixels.append(known[key])
        return pixels

    def _pixels(self, image: object) -> UInt8[Tensor, "channels height width"]:
        picture = read_image(image).convert(self.mode)
        size = (self.image_size, self.image_size)
        if picture.size != size:
            picture = picture.resize(size)
        values = torch.from_numpy(np.array(picture))
        return values[None] if values.dim() == 2 else values.permute(2, 0, 1)


def stacked(images: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the network's input for several images, with pixels from 0 to 1."""
    return {"pixels": torch.stack(list(images)).float() / 255}


def _filters(network: Kind, filters: Sequence[int] | None, image_size: int) -> Sequence[int]:
    """Return the number of filters in each convolution, after checking the setting."""
    if network == "mlp":
        if filters is not None:
            raise InputError("`filters` is for convolutions, and an `mlp` has none. Leave it out.")
        return ()
    filters = (32, 64) if filters is None else filters
    if image_size < 2 ** len(filters):
        raise InputError(
            f"`filters` has {len(filters)} convolutions, each of which halves the image, which is "
            f"too many for `image_size: {image_size}`. Use fewer."
        )
    return filters


@torch.no_grad()
def _initialise(layers: Layers, seed: int) -> None:
    """Set the weights and biases of all layers to random values, which depend only on the seed.

    A run folder stores changes of these values, so they must be the same on every machine.
    """
    # The numbers of NumPy's frozen generator never change, unlike those of torch.
    generator = np.random.RandomState(seed)
    for layer in layers.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bound = layer.weight[0].numel() ** -0.5
            for value in layer.parameters():
                uniform = generator.uniform(-bound, bound, tuple(value.shape))
                value.copy_(torch.from_numpy(uniform))


def _not_images(source: str) -> str:
    return (
        f"The network `{source}` reads images, but the examples are texts. Use a text model as "
        "the backbone, such as `minilm`."
    )
