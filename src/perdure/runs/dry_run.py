"""The result of a dry run: what a run would do, as numbers and as text."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from perdure.errors import printable

WIDTH = 80
LONGEST = 20  # the maximum length of a task name in the table, in characters
UNKNOWN = "–"
ENDINGS = 8  # the maximum number of layer names to list
WAYS = {
    "given": "given",
    "posterior": "inferred by the posterior",
    "none": "unknown",
}


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """The size of the frozen model of a run.

    Attributes
    ----------
    source, architecture
        The folder or hub id of the model, and its class in transformers.
    parameters
        The number of parameters, without adapters and heads. Shared parameters count once.
    dtype, bytes
        The data type of the parameters, and the memory that they take.
    has_weights, is_tokenized
        False if the weights, or the tokenizer, are not on this machine.
    """

    source: str
    architecture: str
    parameters: int
    dtype: str
    bytes: int
    has_weights: bool
    is_tokenized: bool


@dataclass(frozen=True, kw_only=True)
class TaskSize:
    """The size of one task, and of what is trained on it.

    Attributes
    ----------
    train, validation, test
        The number of examples in each split; None if unknown.
    batches, steps
        The number of batches in an epoch, and of optimizer steps in all epochs; None if unknown.
    trained
        The number of trained parameters, as recorded in `events.jsonl`.
    layers, kinds
        The number of layers with an adapter, and the last components of their names.
    adapter_bytes, gradient_bytes, optimizer_bytes
        The size of the adapter, the gradients and the optimizer's state (None if unknown).
    head_bytes
        The size of the heads that are trained on this task.
    optimizer
        The class name of the optimizer.
    """

    name: str
    train: int | None
    validation: int | None
    test: int | None
    batches: int | None
    steps: int | None
    trained: int
    layers: int
    kinds: tuple[str, ...]
    adapter_bytes: int
    head_bytes: int
    gradient_bytes: int
    optimizer_bytes: int | None
    optimizer: str

    @property
    def memory(self) -> int:
        """The total size of adapter, heads, gradients and optimizer state, as far as known.

        What a method remembers, such as Fisher information, does not count.
        """
        trained = self.adapter_bytes + self.head_bytes
        return trained + self.gradient_bytes + (self.optimizer_bytes or 0)


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """The result of a dry run: what the run would train and measure.

    `str` returns a summary for a terminal of 80 columns.

    Attributes
    ----------
    name, method, rule
        The name of the recipe, of the method and of the rule (with its settings).
    learned
        The number of tasks that the run has already learned.
    tasks
        The remaining tasks, in order.
    epochs, batch_size, accumulation
        The number of passes over a task, of examples in a batch, and of batches in a step.
    measured
        The number of tasks after which the run is measured, including a measurement
        before the first task if there is one.
    scores
        The number of task scores in all measurements, for each entry of `task_ids`.
    answers
        The number of test examples in all measurements, for each entry of `task_ids`;
        None if unknown.
    task_ids
        The assumptions about the task of a test example (`evaluation.task_ids`).
    at_most
        True if the sizes of some tasks are taken from the recipe, because their data is not
        on this machine. The data may be smaller, so all numbers of examples and steps are
        upper bounds.
    notes
        Sentences about unusual settings, and about what is unknown.
    """

    name: str
    method: str
    rule: str
    seed: int
    model: ModelSize
    learned: int
    tasks: tuple[TaskSize, ...]
    epochs: int
    batch_size: int
    accumulation: int
    measured: int
    scores: int
    answers: int | None
    task_ids: tuple[str, ...]
    at_most: bool = False
    notes: tuple[str, ...] = ()

    @property
    def steps(self) -> int | None:
        """The number of optimizer steps of all tasks; None if unknown."""
        return _sum([task.steps for task in self.tasks])

    @property
    def share(self) -> float:
        """The largest number of trained parameters, as a share of the model's parameters."""
        most = max((task.trained for task in self.tasks), default=0)
        return most / max(1, self.model.parameters)

    def __str__(self) -> str:
        blocks = [[self._title(), self._model()]]
        if self.tasks:
            blocks += [[self._adapter()], self._table(), [self._training(), self._memory()]]
        blocks.append([self._evaluation(), *self.notes])
        blocks.append(["Nothing was written."])
        lines: list[str] = []
        for block in blocks:
            for text in block:
                # Lines of the table start with a space; they are short, and must not be folded.
                lines += [text] if text.startswith(" ") or len(text) <= WIDTH else _folded(text)
            lines.append("")
        return "\n".join(lines[:-1])

    def _title(self) -> str:
        tasks = _count(len(self.tasks), "task")
        if self.learned and self.tasks:
            tasks = f"{tasks} after {self.learned} already learned"
        elif self.learned:
            tasks = f"no tasks left after {self.learned} already learned"
        named = f"{self.name}: " if self.name else ""
        return f"{named}{tasks}, method {self.method}, rule {self.rule}, seed {self.seed}."

    def _model(self) -> str:
        model = self.model
        here = "" if model.has_weights else " The weights are not on this machine."
        return (
            f"Model: {model.source} ({model.architecture}), {model.parameters:,} parameters, "
            f"frozen, in {model.dtype}: {size(model.bytes)}.{here}"
        )

    def _adapter(self) -> str:
        first, last = self.tasks[0], self.tasks[-1]
        if not last.layers:
            return "Adapter: none."
        kinds = list(first.kinds[:ENDINGS])
        if len(first.kinds) > ENDINGS:
            kinds.append("…")
        bytes_each = size(first.adapter_bytes)
        if first.adapter_bytes != last.adapter_bytes:
            bytes_each = f"from {bytes_each} (first) to {size(last.adapter_bytes)} (last)"
        return (
            f"Adapter of each task: {first.layers} layers ({', '.join(kinds)}), {bytes_each}; "
            f"{100 * self.share:.2g} % as many parameters as the model."
        )

    def _training(self) -> str:
        step = f"{self.batch_size}"
        if self.accumulation > 1:
            step = f"{self.accumulation} batches of {self.batch_size} = "
            step += f"{self.accumulation * self.batch_size}"
        total = UNKNOWN if self.steps is None else self._bounded(self.steps)
        return (
            f"Training: {_count(self.epochs, 'epoch')} per task, {step} examples per step, "
            f"{total} steps in total."
        )

    def _memory(self) -> str:
        largest = max(self.tasks, key=lambda task: task.memory)
        trained = size(largest.adapter_bytes + largest.head_bytes)
        state = "unknown" if largest.optimizer_bytes is None else size(largest.optimizer_bytes)
        total = size(self.model.bytes + largest.memory)
        return (
            f"Memory for training, without activations: {total}, including {trained} of trained "
            f"parameters, {size(largest.gradient_bytes)} of gradients and {state} of "
            f"{largest.optimizer} state."
        )

    def _evaluation(self) -> str:
        if not self.measured:
            return "Evaluation: none."
        ways = [WAYS.get(way, way) for way in self.task_ids]
        last = f" and {ways.pop()}" if len(ways) > 1 else ""
        answers = "an unknown number of"
        if self.answers is not None:
            answers = self._bounded(self.answers)
        return (
            f"Evaluation: {_count(self.measured, 'measurement')} with the rule {self.rule}, "
            f"{_count(self.scores, 'task score')} on {answers} test examples, each with the task "
            f"{', '.join(ways)}{last}."
        )

    def _bounded(self, number: int) -> str:
        return f"at most {number:,}" if self.at_most else f"{number:,}"

    def _table(self) -> list[str]:
        """Return the lines of the table of tasks: a header, one line per task, and the total."""
        rows = [["task", "train", "validation", "test", "steps", "trained", "share"]]
        for task in self.tasks:
            numbers = (task.train, task.validation, task.test, task.steps, task.trained)
            share = 100 * task.trained / max(1, self.model.parameters)
            rows.append([_cut(task.name), *map(_number, numbers), f"{share:.2g} %"])
        if len(self.tasks) > 1:
            splits = ("train", "validation", "test", "steps")
            sums = [_sum([getattr(task, split) for task in self.tasks]) for split in splits]
            rows.append(["total", *map(_number, sums), "", ""])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = []
        for name, *cells in rows:
            line = f"  {name:<{widths[0]}}"
            for cell, width in zip(cells, widths[1:], strict=True):
                line += f"  {cell:>{width}}"
            lines.append(line.rstrip())
        return lines


def size(number: int) -> str:
    """Format a number of bytes with a unit.

    Examples
    --------
    >>> size(9_437_184), size(2_950_672_384), size(512)
    ('9.4 MB', '2.95 GB', '0.5 kB')
    """
    if number >= 1e9:
        return f"{number / 1e9:.2f} GB"
    if number >= 1e6:
        return f"{number / 1e6:.1f} MB"
    return f"{number / 1e3:.1f} kB"


def _folded(text: str) -> list[str]:
    return textwrap.wrap(
        printable(text),
        WIDTH,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _number(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _sum(values: Sequence[int | None]) -> int | None:
    """Return the sum, or None if any of the values is unknown."""
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total
