"""Tools for rules that work on individual entries: trimming, dropping, and electing signs."""

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.vectors.task_vector import Deferred, Entry, TaskVector, shapes

Layer = dict[str, Tensor]
"""The change to one layer as a full tensor, by task."""

How = Literal["mean", "sum"]
Per = Literal["model", "layer"]
Then = Literal["sum", "average", "ties"]


def layer_of(vectors: Mapping[str, TaskVector], name: str) -> Layer:
    """Return each task's change to one layer as a full tensor, which is zero if there is none."""
    changes: Layer = {}
    for task, vector in vectors.items():
        if name in vector:
            changes[task] = vector.dense(name)
    # Include every task, so that a mean divides by the same number in every layer.
    zeros = torch.zeros_like(next(iter(changes.values())))
    return {task: changes.get(task, zeros) for task in vectors}


def each_layer(
    vectors: Mapping[str, TaskVector], merge: Callable[[str, Layer], Tensor]
) -> TaskVector:
    """Apply `merge(name, changes)` to each layer lazily, when its result is read.

    `changes` maps each task to a full tensor. At most one full matrix per task is in
    memory at a time.
    """

    # A function, not a lambda in the loop, because a lambda would capture the last layer's name.
    def deferred(name: str, shape: torch.Size) -> Deferred:
        def make() -> Tensor:
            layer = layer_of(vectors, name)
            return merge(name, layer)

        return Deferred(shape, make)

    entries: dict[str, Entry] = {}
    for name, shape in shapes(vectors).items():
        entries[name] = deferred(name, shape)
    return TaskVector(entries)


def generator(seed: int, *about: str) -> torch.Generator:
    """Return a random generator seeded with `seed` and the strings in `about`."""
    # Join with a separator, so that ("a", "b") and ("ab", "") get different seeds.
    key = "\0".join([str(seed), *about])
    digest = hashlib.sha256(key.encode()).digest()
    derived_seed = int.from_bytes(digest[:7])  # seven bytes fit into a signed 64-bit seed
    return torch.Generator().manual_seed(derived_seed)


def dropped(
    change: Float[Tensor, "*shape"],
    keep: float | Float[Tensor, "*shape"],
    *,
    seed: int,
    task: str,
    name: str,
) -> Float[Tensor, "*shape"]:
    """Set entries to zero at random and rescale the rest.

    Each entry is kept with probability `keep` and then divided by `keep`, so the expected
    value of the result is the original change.
    """
    # Draw on the CPU, so that every device drops the same entries.
    draws = torch.rand(
        change.shape,
        generator=generator(seed, task, name),
    )
    survives = draws.to(change.device) < keep
    return torch.where(survives, change / keep, 0.0)


def standing(change: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Rank the entries of each row by magnitude, from -1 (smallest) to 1 (largest).

    The ranks are evenly spaced. In a row with a single entry, the rank is 0.
    """
    row_count = len(change) if change.dim() > 1 else 1  # a vector is a single row
    rows = change.abs().reshape(row_count, -1)
    # The argsort of an argsort gives ranks. Stable sorts make ties reproducible.
    order = rows.argsort(dim=1, stable=True)
    ranks = order.argsort(dim=1, stable=True)
    highest = rows.shape[1] - 1
    if highest == 0:
        return torch.zeros_like(change)
    evenly_spaced = 2 * ranks / highest - 1
    return evenly_spaced.to(change).view_as(change)


def patterns(values: Float[Tensor, "*shape"], width: torch.dtype) -> Tensor:
    """Return the bit pattern of each magnitude as an integer.

    The integers sort in the same order as the magnitudes.
    """
    # IEEE 754 puts the exponent above the mantissa. The sign bit is 0, so no integer is negative.
    magnitudes = values.abs().to(width).flatten()
    return magnitudes.view(_integers(width))


def _integers(width: torch.dtype) -> torch.dtype:
    return torch.int64 if width == torch.float64 else torch.int32


def threshold(layers: Callable[[], Iterable[Tensor]], keep: int) -> float:
    """Return the exact `keep`-th largest magnitude, or 0 if there are fewer entries.

    The bit pattern of the result is determined 16 bits at a time, from the highest to the
    lowest, with a histogram of these bits over all entries that share the higher bits.
    This takes two passes over the layers in single precision and four in double
    precision, with one layer in memory at a time.

    Examples
    --------
    >>> threshold(lambda: [torch.tensor([1.0, -3.0]), torch.tensor([2.0])], 2)
    2.0
    """
    first = next(iter(layers()), torch.zeros(0))
    # Half precision is converted to single precision, which is exact.
    width = torch.float64 if first.dtype == torch.float64 else torch.float32
    prefix = 0  # the bits known so far
    highest_shift = 48 if width == torch.float64 else 16
    for shift in range(highest_shift, -1, -16):
        counts = _histogram(layers(), width, prefix, shift)
        # at_least[i]: the number of entries whose 16 bits are at least 2**16 - 1 - i.
        at_least = counts.flip(0).cumsum(0)
        if keep > at_least[-1]:
            return 0.0
        i = int(torch.searchsorted(at_least, keep))
        # From here on, count only the entries that share these 16 bits.
        if i > 0:
            keep -= int(at_least[i - 1])
        digit = 2**16 - 1 - i
        prefix = prefix << 16 | digit
    pattern = torch.tensor(prefix, dtype=_integers(width))
    return pattern.view(width).item()


def _histogram(layers: Iterable[Tensor], width: torch.dtype, prefix: int, shift: int) -> Tensor:
    """Return a histogram of the 16 bits above `shift` where the higher bits equal `prefix`."""
    counts = torch.zeros(2**16, dtype=torch.int64)
    for layer in layers:
        bits = patterns(layer, width)
        # Shift in two steps, because a shift by the full width of the integer is undefined.
        higher = bits >> 16 >> shift
        matching = bits[higher == prefix]
        digits = (matching >> shift) & 0xFFFF
        counts += torch.bincount(digits, minlength=2**16).cpu()
    return counts


def elected(
    changes: Float[Tensor, "tasks *shape"], majority: Callable[[], Tensor] | None = None
) -> Float[Tensor, "*shape"]:
    """Elect the sign of each entry, which is the sign of its sum over tasks.

    If the sum is exactly zero, use the sign that most entries have, as returned by
    `majority()`. By default, this is the majority in the layer.
    """
    signs = changes.sum(0).sign()
    # An entry that no task changes gets no sign.
    changed = (changes != 0).any(0)
    undecided = (signs == 0) & changed
    if not undecided.any():
        return signs
    fallback = majority() if majority else most(changes).sign().to(signs)
    return torch.where(undecided, fallback, signs)


def most(changes: Float[Tensor, "tasks *shape"]) -> Float[Tensor, ""]:
    """Return the number of positive sums over tasks minus the number of negative ones."""
    signs = changes.sum(0).sign()
    return signs.sum(dtype=torch.float64)  # single precision stops counting at 2**24


def disjoint(
    changes: Float[Tensor, "tasks *shape"], signs: Float[Tensor, "*shape"], how: How
) -> Float[Tensor, "*shape"]:
    """Return the sum or mean of each entry over the tasks that agree with its elected sign.

    An entry whose elected sign is 0 becomes 0.
    """
    # A trimmed entry has the sign 0. It agrees only with an elected 0, and then adds 0.
    agree = changes.sign() == signs
    sums = (changes * agree).sum(0)
    if how == "sum":
        return sums
    divisors = agree.sum(0).clamp(min=1)  # if no task agrees, 0 / 1
    return sums / divisors


def together(changes: Float[Tensor, "tasks *shape"], then: Then) -> Float[Tensor, "*shape"]:
    """Combine the changes of all tasks by sum, by average, or by the disjoint mean of TIES."""
    if then == "ties":
        signs = elected(changes)
        return disjoint(changes, signs, "mean")
    return changes.sum(0) if then == "sum" else changes.mean(0)


def _entries_kept(density: float, entries: int) -> int:
    # Round down, as peft and mergekit do, but keep at least one entry.
    return max(1, int(density * entries))


def _thresholds(vectors: Mapping[str, TaskVector], density: float) -> dict[str, float]:
    """Return the smallest magnitude that each task keeps when trimming over the entire model."""
    # Missing layers count as zeros, so all tasks have the same number of entries.
    layer_shapes = shapes(vectors).values()
    entries = sum(shape.numel() for shape in layer_shapes)
    kept = _entries_kept(density, entries)
    thresholds: dict[str, float] = {}
    for task, vector in vectors.items():
        # `threshold` calls this once per pass; it computes one layer at a time.
        layers = functools.partial(
            map,
            vector.dense,
            list(vector.entries),
        )
        thresholds[task] = threshold(layers, kept)
    return thresholds


def ties(
    vectors: Mapping[str, TaskVector],
    *,
    density: float,
    how: How,
    per: Per,
) -> TaskVector:
    """Apply TIES without a scale: trim, elect signs, and merge the entries that agree."""
    thresholds = _thresholds(vectors, density) if per == "model" else {}

    def lowest(task: str, change: Tensor) -> float:
        """Return the smallest magnitude that trimming keeps."""
        if per == "model":
            return thresholds[task]
        kept = _entries_kept(density, change.numel())
        return threshold(lambda: [change], kept)

    def trimmed(layer: Layer) -> Tensor:
        changes: list[Tensor] = []
        for task, change in layer.items():
            # Keep all entries tied with the smallest, because any choice would be arbitrary.
            strong = change.abs() >= lowest(task, change)
            changes.append(torch.where(strong, change, 0.0))
        return torch.stack(changes)

    # Needed only if signs cancel exactly. Cached, because it reads the entire model again.
    @functools.cache
    def majority() -> Tensor:
        votes: list[Tensor] = []
        for name in shapes(vectors):
            changes = trimmed(layer_of(vectors, name))
            votes.append(most(changes))
        return torch.stack(votes).sum().sign()

    def merge(name: str, layer: Layer) -> Tensor:
        changes = trimmed(layer)
        # If signs cancel, use the majority sign in the layer or in the entire model.
        if per == "layer":
            signs = elected(changes)
        else:
            signs = elected(changes, lambda: majority().to(changes))
        return disjoint(changes, signs, how)

    return each_layer(vectors, merge)
