"""Classifiers on a frozen backbone, with heads computed from sums of features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from perdure.data.task import Rows, Split, Task
from perdure.errors import InputError, RunError
from perdure.evaluation import score
from perdure.learning.method import Method, Need
from perdure.learning.snapshot import State
from perdure.merging.combine import Combined
from perdure.models import adapter_targets, adapters, heads
from perdure.models.backbone import Backbone, pooled
from perdure.vectors.statistics import Statistics
from perdure.vectors.task_vector import TaskVector


@dataclass(kw_only=True)
class FrozenMethod(Method):
    """A method that computes heads from the features of a frozen backbone after each task.

    With `adapt: first`, the features are adapted to the first task: a LoRA module and the
    head of that task are trained on it as by `sequential`. The module then stays as it is
    and is stored with every task, so that the rule `last` uses it.

    Parameters
    ----------
    adapt
        `first`: train a LoRA module on the first task. By default, nothing is trained.
    adapt_rank
        The rank of that module; by default 8. Its alpha is twice the rank.

    References
    ----------
    Panos et al., First Session Adaptation: A Strong Replay-Free Baseline for Class-Incremental
    Learning, arXiv 2303.13199; as the first stage of RanPAC: arXiv 2307.02251.
    """

    adapt: Literal["first"] | None = None
    adapt_rank: Annotated[int, Ge(1)] | None = None
    # Set by `begin`, which is called before each task, in a resumed run too.
    _adapts: bool = field(default=False, init=False, repr=False)

    usual_rule: ClassVar[str] = "last"
    needs: ClassVar[frozenset[Need]] = frozenset({"heads", "classes"})
    instead: ClassVar[str] = (
        "Choose a method that trains, such as `isolated` or `inflora`, or classify with heads on "
        "the model's hidden states (`pooling: mean`)."
    )

    def __post_init__(self):
        if self.adapt_rank and not self.adapt:
            raise InputError(
                "`adapt_rank` is the rank of the module that `adapt: first` trains, which is not "
                "set: set it, or leave `adapt_rank` out."
            )

    @property
    def trains(self) -> bool:
        return self.adapt is not None

    @property
    def computes_heads(self) -> bool:
        return True

    @property
    def module(self) -> adapters.Kind | None:
        return "lora" if self.adapt else None

    def begin(self, backbone: Backbone, task: Task) -> None:
        """Attach the module that is trained on the first task; later it is already there."""
        self._adapts = self.adapt is not None and ADAPTED not in self.state
        if self._adapts:
            rank = self.adapt_rank or 8
            config = adapter_targets.configure(
                backbone.model,
                "lora",
                rank=rank,
                alpha=2.0 * rank,
                dropout=0.0,
                target_modules=None,
            )
            adapters.attach(backbone.model, config)

    def parameters(self, backbone: Backbone) -> list[nn.Parameter]:
        return super().parameters(backbone) if self._adapts else []

    def examples(self, seen: Sequence[Task]) -> Rows:
        """Return no rows, so that training is skipped, unless the features are being adapted."""
        return super().examples(seen) if self._adapts else []

    def end(self, backbone: Backbone, task: Task, optimizer: Optimizer) -> None:
        self.compute_heads(backbone, task)
        self.foresee(task)

    def compute_heads(self, backbone: Backbone, task: Task) -> None:
        """Compute the task's head, and perhaps those of earlier tasks, from its examples."""
        raise NotImplementedError

    def foresee(self, task: Task) -> None:
        if self.adapt:
            self.state[ADAPTED] = True


ADAPTED = "adapted"
"""The key in the state of a method that has adapted the backbone's features."""


def features_of(
    backbone: Backbone,
    task: Task,
    split: Split = "train",
    *,
    normalise: bool = False,
) -> Float[Tensor, "examples width"]:
    """Return the features that heads receive for a task's examples, on the CPU.

    Parameters
    ----------
    normalise
        Scale each feature vector to unit length.

    Raises
    ------
    TrainingError
        A feature vector is zero and therefore cannot be scaled.
    """
    examples = backbone.encode(task.rows(split))
    if adapters.attached(backbone.model):
        features = pooled(backbone, examples)
    else:
        # The pre-trained model, whose features are also those of the statistics and of answers.
        features = score.features(backbone, Combined(TaskVector({})), examples).cpu()
    if not normalise:
        return features
    instead = "use a method that does not scale features, such as `lda` with `normalise: false`"
    heads.check_directions(features, task.name, split, instead=instead)
    return heads.unit_norm(features)


def statistics_of(
    backbone: Backbone,
    task: Task,
    features: Float[Tensor, "examples features"],
) -> Statistics:
    """Return the statistics of a task's training examples by class, given their features."""
    labels = backbone.encode(task.rows("train")).labels
    return Statistics.of(features, torch.tensor(labels), len(task.classes))


def choose_seed(state: State) -> None:
    """Store a seed for random features in a method's state, unless it already contains one.

    The random features must be the same for all tasks of a run, and differ between runs
    with different seeds.
    """
    # NumPy's generator takes seeds of 32 bits.
    state.setdefault("seed", torch.initial_seed() % 2**32)


def saved_seed(state: State) -> int:
    """Return the seed for random features from a method's state.

    Raises
    ------
    RunError
        The seed is missing or is not an integer of 32 bits.
    """
    seed = state.get("seed")
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise RunError(f"The seed of the random features saved in the run is damaged ({seed!r}).")
    return seed


def check_present(statistics: Statistics, task: Task) -> None:
    """Raise `InputError` if a class has no training examples, and therefore no mean."""
    for name, count in zip(task.classes, statistics.counts.tolist(), strict=True):
        if not count:
            raise InputError(
                f"Task `{task.name}` has no training example of class `{name}`, "
                "so it has no mean: remove the class."
            )


class Accumulated:
    """The statistics of all tasks so far, which are saved in a method's state.

    The state contains `counts`, `sums` and `products`, and in `sizes` the number of
    classes of each task. A task that was forgotten and learned again is included twice.

    Parameters
    ----------
    prefix
        The beginning of these names in the state, for a method that sums several features.
    """

    def __init__(self, state: State, prefix: str = ""):
        self.prefix = prefix
        self.sizes: list[tuple[str, int]] = []
        self.total: Statistics | None = None
        # A run folder may be damaged: any wrong type or shape becomes one clear error.
        try:
            for name, size in state.get(f"{prefix}sizes", []):
                self.sizes.append((str(name), int(size)))
            if self.sizes:
                self.total = Statistics(
                    state[f"{prefix}counts"],
                    state[f"{prefix}sums"],
                    state[f"{prefix}products"],
                )
                self._check_shapes(self.total)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise RunError(f"The sums saved in the run are damaged ({error}).") from error

    def _check_shapes(self, total: Statistics) -> None:
        """Raise `ValueError` if the shapes of the sums do not match the number of classes."""
        sizes = [size for _, size in self.sizes]
        classes = sum(sizes)
        width = total.sums.shape[1]
        shapes = [tuple(value.shape) for value in total.tensors().values()]
        expected = [
            (classes,),
            (classes, width),
            (width, width),
        ]
        if shapes != expected or min(sizes) < 1:
            raise ValueError(f"{shapes} of {self.sizes}")

    def with_task(self, name: str, new: Statistics) -> Statistics:
        """Add a task, and return the statistics of all tasks.

        The classes of the new task are the last rows of `counts` and `sums`.

        Raises
        ------
        RunError
            The saved sums belong to a model with features of a different length.
        """
        old = self.total
        if old and old.sums.shape[1:] != new.sums.shape[1:]:
            raise RunError(
                f"The sums saved in the run, of shape {list(old.sums.shape)}, do not fit the model."
            )
        self.sizes.append((name, len(new.counts)))
        if old is None:
            self.total = new
        else:
            self.total = Statistics(
                torch.cat([old.counts, new.counts]),
                torch.cat([old.sums, new.sums]),
                old.products + new.products,
            )
        return self.total

    def state(self) -> State:
        """Return the statistics in the format of a method's state."""
        assert self.total
        values: State = {f"{self.prefix}sizes": self.sizes}
        for name, tensor in self.total.tensors().items():
            values[f"{self.prefix}{name}"] = tensor
        return values

    def put_heads(
        self,
        backbone: Backbone,
        weight: Float[Tensor, "classes features"],
        bias: Float[Tensor, " classes"],
        more: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Split a classifier over the classes of all tasks into one head for each task.

        Parameters
        ----------
        more
            Additional tensors to store in every head.
        """
        sizes = [size for _, size in self.sizes]
        weights = weight.float().split(sizes)
        biases = bias.float().split(sizes)
        # A task that was learned again has several blocks of rows: the last one replaces the rest.
        newest: dict[str, dict[str, Tensor]] = {}
        for (name, _), W, b in zip(self.sizes, weights, biases, strict=True):
            newest[name] = {
                "weight": W,
                "bias": b,
                **(more or {}),
            }
        for name, head in newest.items():
            # The sums still include forgotten tasks, but those get no head.
            if name in backbone.heads:
                backbone.put(name, head)
