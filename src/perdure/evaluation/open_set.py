"""How well inputs that belong to no task are told from known ones (open-set recognition).

Known are the test examples of the learned tasks. The score of `perdure predict --unknown` is
measured beside two usual ones, which need nothing but the classifier or its statistics.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.data.task import TaskRows, TaskStream
from perdure.errors import InputError
from perdure.evaluation.answers import Answers, Texts
from perdure.evaluation.posterior import describe, scaled
from perdure.evaluation.system import System
from perdure.evaluation.unknown import auroc, caught, false_positives
from perdure.evaluation.validation import OwnClasses
from perdure.models.backbone import Backbone
from perdure.models.examples import Examples
from perdure.settings import checked
from perdure.vectors.statistics import Statistics

UnknownSetting = bool | str | dict[str, object] | None
"""The setting `evaluation.unknown`: true, a file or folder, or a mapping with the keys `data`,
`text`, `image`, `encoding` and `delimiter`.
"""

SCORES = ("relative", "probability", "mahalanobis")
"""The scores that are measured, in the order in which they are shown."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The inputs that belong to no task.

    Attributes
    ----------
    data
        A table or a folder of images; empty for the set that comes with the benchmark.
    text, image
        The column of the table that contains the input, or two columns for pairs of texts.
    encoding, delimiter
        The encoding of a text file, and the separator between the cells of a CSV file.
    """

    data: str
    text: str | list[str] | None = None
    image: str | None = None
    encoding: str = "utf-8"
    delimiter: str | None = None

    @property
    def columns(self) -> list[str]:
        """The columns that were named; empty if none were."""
        if self.image:
            return [self.image]
        return [self.text] if isinstance(self.text, str) else self.text or []


@dataclass(frozen=True)
class Recognition:
    """How well one score tells unknown inputs from known ones.

    Attributes
    ----------
    auroc
        The probability that an unknown input has a higher score than a known one.
    fpr95
        The share of unknown inputs that pass for known where 95 % of the known ones do.
    caught
        The share of unknown inputs that are caught where 0, 1, …, 100 % of the known ones
        are kept.
    """

    auroc: float
    fpr95: float
    caught: tuple[float, ...]

    @classmethod
    def of(
        cls, known: Float[Tensor, " known"], unknown: Float[Tensor, " unknown"]
    ) -> "Recognition":
        """Compare the scores of known and of unknown inputs."""
        return cls(
            auroc=auroc(known, unknown),
            fpr95=false_positives(known, unknown),
            caught=tuple(caught(known, unknown)),
        )


def source(setting: UnknownSetting) -> Source | None:
    """Return the inputs that a setting specifies, or None if nothing is measured.

    Raises
    ------
    InputError
        A setting is unknown, missing or of the wrong type, or the file has no name.

    Examples
    --------
    >>> source({"data": "other.csv", "text": "body"}).columns
    ['body']
    >>> source(True).data, source(None)
    ('', None)
    """
    if setting is None or setting is False:
        return None
    if setting is True:
        return Source(data="")
    options = {"data": setting} if isinstance(setting, str) else setting
    inputs = Source(**checked(Source, options, "evaluation.unknown"))
    # An empty path would mean the current folder; the system truncates a path at a null byte.
    if not inputs.data.strip() or "\0" in inputs.data:
        raise InputError(
            f"`evaluation.unknown`: `data` is {inputs.data!r}, but must be a table or a folder of "
            "images. `true` stands for the set that comes with a benchmark."
        )
    if len(inputs.columns) > 2:
        raise InputError(
            f"`evaluation.unknown`: `text` has {len(inputs.columns)} columns, but must be one, or "
            "two for pairs of texts."
        )
    return inputs


def encoded(backbone: Backbone, stream: TaskStream) -> Examples:
    """Return a stream's inputs that belong to no task, prepared for the model.

    Raises
    ------
    InputError, DataError
        The model does not read such inputs, or a text has no tokens.
    """
    assert stream.unknown is not None
    return backbone.encode([TaskRows("", stream.unknown)])


def measured(
    system: System, stream: TaskStream, answers: Mapping[str, Answers | Texts]
) -> dict[str, Recognition]:
    """Measure how well a system recognises the inputs of a stream that belong to no task.

    Parameters
    ----------
    answers
        The answers to the test examples of tasks, with the task posterior among the ways
        of knowing the task.

    Returns
    -------
    dict
        For `relative`, the score of `perdure predict --unknown`; `probability`, one minus
        the highest p(class | x); and `mahalanobis`, the squared distance from the nearest
        class, with one covariance for all classes. Empty if no known examples are there.
    """
    names = [name for name in answers if name in system.classes]
    if not names:
        return {}
    known_parts: list[Tensor] = []
    confidences: list[Tensor] = []
    for name in names:
        examples = system.backbone.encode(stream.task(name).rows("test"))
        known_parts.append(describe(system.backbone, examples))
        of_task = answers[name]
        assert isinstance(of_task, Answers)
        confidences.append(of_task.confidence["posterior"])
    unknown = encoded(system.backbone, stream)
    known_scores = scores(system, torch.cat(known_parts), torch.cat(confidences))
    unknown_scores = scores(system, describe(system.backbone, unknown), system.confidence(unknown))
    recognised: dict[str, Recognition] = {}
    for name in SCORES:
        recognised[name] = Recognition.of(known_scores[name], unknown_scores[name])
    return recognised


def scores(
    system: System,
    features: Float[Tensor, "examples features"],
    confidence: Float[Tensor, " examples"],
) -> dict[str, Float[Tensor, " examples"]]:
    """Return three scores of examples, each higher for inputs that look unknown.

    Parameters
    ----------
    features
        The frozen backbone's features of the examples.
    confidence
        The highest p(class | x) of each example.
    """
    likeliest = system.posterior.log_prob(features).argmax(1)
    shares = system.known.shares(features, likeliest)
    together = Statistics.side_by_side(task.statistics for task in system.learned)
    squares = OwnClasses(together).squares(scaled(features, system.settings.features))
    return {
        "relative": -shares,
        "probability": 1 - confidence.double(),
        "mahalanobis": squares.amin(1),
    }
