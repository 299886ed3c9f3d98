"""What a run would do, counted before it begins, and the text that says it."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from perdure.errors import printable

WIDTH = 80
LONGEST = 20  # characters of a task's name in the table, which leaves room for the numbers
UNKNOWN = "–"
ENDINGS = 8  # names of layers that a sentence lists
WAYS = {
    "given": "given",
    "posterior": "inferred by the posterior",
    "none": "not known",
}


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """The frozen model of a run.

    Attributes
    ----------
    source, architecture
        The folder or hub id, and the class of transformers.
    parameters
        The number of its values, without adapters and heads; shared ones count once.
    dtype, bytes
        Their type in memory, and their size.
    has_weights, is_tokenized
        False if there are no weights here, or no tokenizer for a model that needs one.
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
    """What learning one task takes.

    Attributes
    ----------
    train, validation, test
        The number of examples; None if unknown.
    batches, steps
        The number of batches in an epoch, and of optimizer steps in all epochs; None if unknown.
        With `patience` it is the largest.
    trained
        The number of trained values, as `events.jsonl` has it.
    layers, kinds
        The number of layers with an adapter, and the last part of their names.
    adapter_bytes, gradient_bytes, optimizer_bytes
        The size of the adapter, of the gradients, and of the optimizer's state (None if unknown).
    head_bytes
        The size of the heads that are trained.
    optimizer
        The class of the optimizer.
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
        """The size of adapter, heads, gradients and optimizer state, as far as it is known."""
        trained = self.adapter_bytes + self.head_bytes
        return trained + self.gradient_bytes + (self.optimizer_bytes or 0)


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a run would do: its sizes and steps, and where they end.

    Attributes
    ----------
    name, method, rule
        The recipe's name, and the labels of method and rule.
    learned
        The number of tasks that the run has learned already.
    tasks
        The tasks that are left, in order.
    epochs, batch_size, accumulation
        Passes over a task, examples in a batch, and batches in a step.
    measured
        The number of measurements: steps of the stream after which something is measured.
    scores
        The number of scores of a task in all of them, for each way to know the task.
    answers
        The number of test examples to answer in all of them, likewise; None if unknown.
    task_ids
        The ways to know the task.
    notes
        Sentences on what is particular to this run, and on what is not known.
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
    notes: tuple[str, ...] = ()

    @property
    def steps(self) -> int | None:
        """The number of optimizer steps of all tasks; None if unknown."""
        return _sum([task.steps for task in self.tasks])

    @property
    def share(self) -> float:
        """The largest share of trained values in the frozen ones."""
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
                # The lines of the table are short already, and keep their spaces.
                lines += [text] if text.startswith(" ") or len(text) <= WIDTH else _folded(text)
            lines.append("")
        return "\n".join(lines[:-1])

    def _title(self) -> str:
        tasks = _count(len(self.tasks), "task")
        if self.learned and self.tasks:
            tasks = f"{tasks} after {self.learned} that are learned"
        elif self.learned:
            tasks = f"no task left after {self.learned} that are learned"
        named = f"{self.name}: " if self.name else ""
        return f"{named}{tasks}, method {self.method}, rule {self.rule}, seed {self.seed}."

    def _model(self) -> str:
        model = self.model
        here = "" if model.has_weights else " Its weights are not here, and were not needed."
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
            f"Adapter of a task: on {first.layers} layers ({', '.join(kinds)}), {bytes_each}; "
            f"at most {100 * self.share:.2g} % of the model's parameters are trained."
        )

    def _training(self) -> str:
        step = f"{self.batch_size}"
        if self.accumulation > 1:
            step = f"{self.accumulation} batches of {self.batch_size} = "
            step += f"{self.accumulation * self.batch_size}"
        total = UNKNOWN if self.steps is None else f"{self.steps:,}"
        return (
            f"Training: {_count(self.epochs, 'epoch')} a task, {step} examples a step, "
            f"{total} steps in all."
        )

    def _memory(self) -> str:
        largest = max(self.tasks, key=lambda task: task.memory)
        trained = size(largest.adapter_bytes + largest.head_bytes)
        state = "unknown" if largest.optimizer_bytes is None else size(largest.optimizer_bytes)
        total = size(self.model.bytes + largest.memory)
        return (
            f"Memory in training, without activations: {total}, of which {trained} are trained, "
            f"{size(largest.gradient_bytes)} gradients and {state} the state of "
            f"{largest.optimizer}."
        )

    def _evaluation(self) -> str:
        if not self.measured:
            return "Evaluation: none."
        ways = [WAYS.get(way, way) for way in self.task_ids]
        answers = "an unknown number of" if self.answers is None else f"{self.answers:,}"
        return (
            f"Evaluation: {_count(self.measured, 'measurement')} by the rule {self.rule}, "
            f"{_count(self.scores, 'score')} of tasks on {answers} test examples; each with the "
            f"task {', '.join(ways)}."
        )

    def _table(self) -> list[str]:
        """Return the lines of the table of tasks: one for each, and one for the whole stream."""
        rows = [["task", "train", "validation", "test", "steps", "trained", "share"]]
        for task in self.tasks:
            numbers = (task.train, task.validation, task.test, task.steps, task.trained)
            share = 100 * task.trained / max(1, self.model.parameters)
            rows.append([_cut(task.name), *map(_number, numbers), f"{share:.2g} %"])
        if len(self.tasks) > 1:
            splits = ("train", "validation", "test", "steps")
            sums = [_sum([getattr(task, split) for task in self.tasks]) for split in splits]
            rows.append(["in all", *map(_number, sums), "", ""])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = []
        for name, *cells in rows:
            line = f"  {name:<{widths[0]}}"
            for cell, width in zip(cells, widths[1:], strict=True):
                line += f"  {cell:>{width}}"
            lines.append(line.rstrip())
        return lines


def size(number: int) -> str:
    """Return a number of bytes in words.

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
    """Return a sum; None if a part of it is unknown."""
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total
