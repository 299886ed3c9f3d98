"""What the rules that work entry by entry share: one layer at a time, trimming, dropping, and agreement of signs."""

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.vectors.task_vector import Deferred, TaskVector, shapes

Layer = dict[str, Tensor]
"""The full change of one layer, by task."""

How = Literal["mean", "sum"]
Per = Literal["model", "layer"]
Then = Literal["sum", "average", "ties"]


def layer_of(vectors: Mapping[str, TaskVector], name: str) -> Layer:
    """The full change of one layer by each task; zeros where a task does not change it."""
    changes = {task: vector.dense(name) for task, vector in vectors.items() if name in vector}
    nothing = torch.zeros_like(next(iter(changes.values())))
    return {task: changes.get(task, nothing) for task in vectors}


def each_layer(
    vectors: Mapping[str, TaskVector], merge: Callable[[str, Layer], Tensor]
) -> TaskVector:
    """`merge(name, changes by task)` of each layer, made when it is wanted: one full matrix per task at a time."""

    def deferred(name: str, shape: torch.Size) -> Deferred:
        return Deferred(shape, lambda: merge(name, layer_of(vectors, name)))

    return TaskVector({name: deferred(name, shape) for name, shape in shapes(vectors).items()})


def generator(seed: int, *about: str) -> torch.Generator:
    """Random numbers that depend on the seed and on what they are for, not on what was drawn before."""
    digest = hashlib.sha256("\0".join([str(seed), *about]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


def dropped(
    change: Float[Tensor, "*shape"],
    keep: float | Float[Tensor, "*shape"],
    *,
    seed: int,
    task: str,
    name: str,
) -> Float[Tensor, "*shape"]:
    """Each entry kept with probability `keep` and divided by it, else zero: the expectation is the change itself."""
    draws = torch.rand(change.shape, generator=generator(seed, task, name)).to(change.device)
    return torch.where(draws < keep, change / keep, 0.0)


def standing(change: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Where a magnitude stands in its row: evenly from -1 for the least to 1 for the greatest, 0 if it is alone."""
    rows = change.abs().reshape(len(change) if change.dim() > 1 else 1, -1)
    ranks = rows.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    last = rows.shape[1] - 1
    return (2 * ranks / last - 1).to(change).view_as(change) if last else torch.zeros_like(change)


def patterns(values: Float[Tensor, "*shape"], width: torch.dtype) -> Tensor:
    """The magnitudes' bit patterns, which are in the order of the magnitudes."""
    return (
        values.abs()
        .to(width)
        .flatten()
        .view(torch.int64 if width == torch.float64 else torch.int32)
    )


def threshold(layers: Callable[[], Iterable[Tensor]], keep: int) -> float:
    """The `keep`-th greatest magnitude of all entries together, exactly; 0 if there are fewer.

    Found 16 bits of the numbers' patterns at a time (two passes for single precision, four for double): how many
    entries have each value of these bits says in which the entry lies. One layer at a time is in memory.

    Examples
    --------
    >>> threshold(lambda: [torch.tensor([1.0, -3.0]), torch.tensor([2.0])], 2)
    2.0
    """
    first = next(iter(layers()), torch.zeros(0))
    width = torch.float64 if first.dtype == torch.float64 else torch.float32
    found = 0
    for shift in range(48 if width == torch.float64 else 16, -1, -16):
        counts = torch.zeros(2**16, dtype=torch.int64)
        for layer in layers():
            bits = patterns(layer, width)
            bits = bits[
                bits >> 16 >> shift == found
            ]  # two steps: one by the full width is not defined
            counts += torch.bincount((bits >> shift) & 0xFFFF, minlength=2**16).cpu()
        at_least = counts.flip(0).cumsum(0)
        if keep > at_least[-1]:
            return 0.0
        digit = int(torch.searchsorted(at_least, keep))
        keep -= int(at_least[digit - 1]) if digit else 0
        found = found << 16 | 2**16 - 1 - digit
    return (
        torch.tensor(found, dtype=torch.int64 if width == torch.float64 else torch.int32)
        .view(width)
        .item()
    )


def elected(
    changes: Float[Tensor, "tasks *shape"], majority: Callable[[], Tensor] | None = None
) -> Float[Tensor, "*shape"]:
    """The sign of each entry: that of the sum over tasks; where it is zero, that of most entries (of this layer)."""
    signs = changes.sum(0).sign()
    undecided = (signs == 0) & (changes != 0).any(0)
    if not undecided.any():
        return signs
    return torch.where(undecided, majority() if majority else most(changes).sign().to(signs), signs)


def most(changes: Float[Tensor, "tasks *shape"]) -> Float[Tensor, ""]:
    """How many more entries have a positive sum over tasks than a negative one."""
    return changes.sum(0).sign().sum(dtype=torch.float64)


def disjoint(
    changes: Float[Tensor, "tasks *shape"], signs: Float[Tensor, "*shape"], how: How
) -> Float[Tensor, "*shape"]:
    """The sum or the mean, for each entry, over the tasks whose change has the elected sign (0 elects nothing)."""
    agree = changes.sign() == signs
    together = (changes * agree).sum(0)
    return together if how == "sum" else together / agree.sum(0).clamp(min=1)


def together(changes: Float[Tensor, "tasks *shape"], then: Then) -> Float[Tensor, "*shape"]:
    """The sum, the average, or TIES' disjoint mean of what was left of each task."""
    if then == "ties":
        return disjoint(changes, elected(changes), "mean")
    return changes.sum(0) if then == "sum" else changes.mean(0)


def kept(density: float, entries: int) -> int:
    """How many of so many entries are a share: at least one, else as peft and mergekit round."""
    return max(1, int(density * entries))


def ties(vectors: Mapping[str, TaskVector], *, density: float, how: How, per: Per) -> TaskVector:
    """TIES without its scale: trim each task vector, elect signs, and merge what agrees."""
    entries = sum(shape.numel() for shape in shapes(vectors).values())
    least = {}
    if per == "model":
        for task, vector in vectors.items():
            layers = functools.partial(map, vector.dense, list(vector.entries))
            least[task] = threshold(layers, kept(density, entries))

    def trimmed(layer: Layer) -> Tensor:
        cut = least or {
            t: threshold(lambda c=c: [c], kept(density, c.numel())) for t, c in layer.items()
        }
        return torch.stack(
            [torch.where(change.abs() >= cut[task], change, 0.0) for task, change in layer.items()]
        )

    @functools.cache  # needed only where signs cancel exactly: then one more pass over the model
    def majority() -> Tensor:
        return (
            torch.stack([most(trimmed(layer_of(vectors, name))) for name in shapes(vectors)])
            .sum()
            .sign()
        )

    def merge(name: str, layer: Layer) -> Tensor:
        changes = trimmed(layer)
        signs = elected(changes, (lambda: majority().to(changes)) if per == "model" else None)
        return disjoint(changes, signs, how)

    return each_layer(vectors, merge)
