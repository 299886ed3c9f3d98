"""TD-VCL (Melo et al. 2025): several past posteriors, not only the last, regularise the next."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.optim import Optimizer

from perdure.data.exemplars import Exemplars
from perdure.data.task import Rows, Task
from perdure.errors import InputError
from perdure.methods.parts.variational import Variational
from perdure.models.backbone import Backbone
from perdure.models.examples import Batch
from perdure.seeds import derived

Objective = Literal["td", "n_step"]


@dataclass(kw_only=True)
class TDVCL(Variational):
    """Learn a Gaussian posterior q_t that stays close to the last n posteriors, and replay tasks.

    L = Σ_i w_i · cross-entropy on task t - i + beta / N · Σ_i c_i KL(q ‖ q_{t-1-i}), for i from 0
    to n - 1. With `objective: n_step`, w_i = (n - i) / n and c_i = 1 / n. With `objective: td`,
    w_i = λ^i (1 - λ^{n-i}) / (1 - λ^n) and c_i = λ^i (1 - λ) / (1 - λ^n). In both cases w_0 is 1,
    and the c_i sum to 1. With n = 1 or λ = 0, this is `vcl`; for λ → 1, `td` becomes `n_step`.
    While there are fewer than n posteriors, n is their number; q_0 is the prior of the first task.
    The settings `beta`, `divisor`, `prior_sigma`, `initial_sigma` and `sampling` are explained in
    docs/methods.md.

    The method's state contains the last n posteriors, two numbers per parameter each, and `kept`
    examples of each of the last n - 1 tasks; the size of their inputs is `store_bytes` in
    `events.jsonl`.

    Parameters
    ----------
    objective
        The weights of the past posteriors: λ-weighted (`td`) or equal (`n_step`).
    n
        The number of past posteriors. The examples of n - 1 earlier tasks are replayed.
    lambda_
        λ of `td`, from 0 to 1.
    kept
        The number of examples of each task to keep for replay, drawn at random.
    replayed_share
        The number of replayed examples of each earlier task in an epoch, relative to the number of
        examples of the new task; kept examples are repeated. With 1, as in the paper, an epoch of
        the last tasks takes n times as long. With less, replayed examples have larger weights.

    References
    ----------
    Melo et al., Temporal-Difference Variational Continual Learning, arXiv 2410.07812. The paper's
    equations are used. In the official code, the posteriors before the last one are overwritten,
    and one of them is trained; the heads have no KL divergence; and KL is divided by the batch size
    (`divisor: batch`). There an epoch is a random part of the replayed and the new examples.
    """

    objective: Objective = "td"
    n: Annotated[int, Ge(1)] = 3
    lambda_: Annotated[float, Ge(0), Le(1)] = 0.5
    kept: Annotated[int, Ge(0)] = 200
    replayed_share: Annotated[float, Gt(0), Le(1)] = 1.0
    # Both are set before each task, in a resumed run too, when `examples` is called: the names of
    # the earlier tasks, and the weight of the loss of each task's examples.
    _earlier: list[str] = field(default_factory=list, init=False, repr=False)
    _weights: dict[str, float] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        super().__post_init__()
        if self.n < 1:
            raise InputError(f"`n` is {self.n}, but there must be at least 1 past posterior.")
        if not 0 <= self.lambda_ <= 1:
            raise InputError(f"`lambda_` is {self.lambda_}, but must be from 0 to 1.")
        if self.n > 1 and not self.kept:
            raise InputError(
                f"`n: {self.n}` replays examples of {self.n - 1} earlier tasks, but with `kept: 0` "
                "there are none. Use `n: 1`, or keep some examples."
            )

    @property
    def store_bytes(self) -> int:
        """The size of the inputs of the kept examples, in bytes."""
        return Exemplars.of(self.state).size

    @property
    def depth(self) -> int:
        return self.n

    def begin(self, backbone: Backbone, task: Task) -> None:
        kept = self.state.get("n", self.n)
        if self.n > kept == len(self.posteriors):
            raise InputError(
                f"`n` is {self.n}, but the earlier tasks were learned with `n: {kept}`, so older "
                f"posteriors were not kept. Use `n: {kept}` or less."
            )
        self.state["n"] = self.n
        super().begin(backbone, task)

    def examples(self, seen: Sequence[Task]) -> Rows:
        """Return the training examples of the new task, and those stored from earlier tasks."""
        *old, task = seen
        self._earlier = [earlier.name for earlier in old]
        likelihood, _ = self._terms()
        repeated = max(1, round(self.replayed_share * len(task.train)))
        replayed = self.replayed(self._earlier)
        kept = Exemplars.of(self.state).rows(
            {earlier.name: earlier.classes for earlier in old if earlier.name in replayed}
        )
        rows = task.rows("train")
        self._weights = {task.name: 1.0}
        for of_task in kept:
            age = len(old) - self._earlier.index(of_task.task)
            # As often as if the task had as many examples as the new one, or a share of that,
            # for which the weight compensates.
            numbers = np.resize(np.arange(len(of_task.data)), repeated)
            self._weights[of_task.task] = likelihood[age] * len(task.train) / repeated
            rows.append(of_task._replace(data=of_task.data.select(numbers)))
        return rows

    def replayed(self, earlier: Sequence[str]) -> list[str]:
        likelihood, _ = self._terms()
        kept = Exemplars.of(self.state).counts
        chosen = []
        for age, name in enumerate(reversed(earlier), start=1):
            if age < len(likelihood) and likelihood[age] > 0 and kept.get(name):
                chosen.append(name)
        return chosen

    def weighted(self, losses: Tensor, batch: Batch) -> Tensor:
        # Examples that a wrapper such as `replay` adds are not weighted.
        weights = [self._weights.get(task, 1.0) for task in batch.tasks]
        return losses * losses.new_tensor(weights)

    def divergence(self) -> Tensor:
        _, factors = self._terms()
        terms = []
        for age, factor in enumerate(factors):
            if factor > 0:
                past = self.posteriors.normal(age, self.field.means)
                terms.append(factor * self.field.divergence(past))
        return torch.stack(terms).sum()

    def end(self, backbone: Backbone, task: Task, optimizer: Optimizer) -> None:
        """Store the posterior, and some examples of the task."""
        super().end(backbone, task, optimizer)
        self._store(task)

    def foresee(self, task: Task) -> None:
        """Store as many posteriors and examples as `end` would."""
        super().foresee(task)
        self.posteriors.push(self.field.normal(), keep=self.depth)
        self._store(task)

    def _store(self, task: Task) -> None:
        """Store some examples of a task, and drop those that later tasks do not replay."""
        if self.n == 1:
            return
        others = [name for name in self._earlier if name != task.name]
        # The next task replays n - 1 tasks, of which this is one.
        recent = others[-(self.n - 2) :] if self.n > 2 else []
        store = Exemplars.of(self.state).of_tasks(recent)
        random = np.random.default_rng(derived(torch.initial_seed(), task.name, "kept"))
        chosen = random.permutation(len(task.train))[: self.kept]
        store.add(task, sorted(chosen.tolist()))
        self.state |= store.state()

    def _terms(self) -> tuple[list[float], list[float]]:
        """Return the weights w_i of the likelihoods and c_i of the KL divergences."""
        n = max(1, min(self.n, len(self.posteriors)))
        return terms(self.objective, n, self.lambda_)


def terms(objective: Objective, n: int, lambda_: float) -> tuple[list[float], list[float]]:
    """Return the weights w_i of the likelihoods and c_i of the KL divergences, for i < n.

    Examples
    --------
    >>> terms("n_step", 4, 0.5)
    ([1.0, 0.75, 0.5, 0.25], [0.25, 0.25, 0.25, 0.25])
    >>> terms("td", 2, 0.5)
    ([1.0, 0.3333333333333333], [0.6666666666666666, 0.3333333333333333])
    """
    likelihoods = []
    divergences = []
    for i in range(n):
        if objective == "n_step" or lambda_ == 1:  # the limit of `td`, where it would be 0 / 0
            likelihoods.append((n - i) / n)
            divergences.append(1 / n)
        else:
            # The division comes last, so that the weight of the new task is exactly 1.
            weight = lambda_**i
            total = 1 - lambda_**n
            likelihoods.append(weight * (1 - lambda_ ** (n - i)) / total)
            divergences.append(weight * (1 - lambda_) / total)
    return likelihoods, divergences
