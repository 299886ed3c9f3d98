"""Sample answers to prompts, or prompts with their answers, from a language model."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from perdure import registry
from perdure.data.task import Task, TaskRows
from perdure.errors import DataError, PerdureWarning
from perdure.evaluation.task_score import takes_sources
from perdure.models.backbone import evaluating
from perdure.models.language import LanguageModel, Written

ROUNDS = 4
"""The number of times that as many examples are generated as are missing."""
Pair = tuple[str, str]
"""A prompt and its answer."""


# -- answers to stored prompts


def best_answers(
    model: LanguageModel,
    rows: TaskRows,
    *,
    score: str | None,
    candidates: int,
    temperature: float,
) -> list[str]:
    """Sample answers to the prompts of a task, and return the best one for each.

    An answer that could not be learned, because it is empty or was cut off, is not taken.
    If none remains, the right answer is returned.

    Parameters
    ----------
    score
        The name of the score by which answers are compared with the right ones; those that
        score 0 are not taken. None: compare log-probabilities per token.
    """
    worst = -float("inf") if score is None else 0.0
    asked = [Asked(row, _right(row, rows.classes), worst) for row in rows.data.to_list()]
    # Without the right answers, which are not to be read.
    columns = [name for name in ("text", "messages") if name in rows.data.column_names]
    examples = model.prepare([TaskRows(rows.task, rows.data.select_columns(columns), ())])
    with evaluating(model):
        for _ in range(candidates):
            for numbers, batch in examples.batches(device=model.device):
                answers = model.generate_scored(batch, temperature)
                for number, answer in zip(numbers, answers, strict=True):
                    one = asked[number]
                    value = one.value_of(answer, score)
                    if value > one.value and _learnable(model, one.row, answer):
                        one.value = value
                        one.best = answer.text
    return [one.right if one.best is None else one.best for one in asked]


@dataclass
class Asked:
    """A stored prompt with its right answer, and the best answer to it so far.

    Attributes
    ----------
    value
        The value of the best answer; if there is none, the value that it has to exceed.
    """

    row: dict[str, Any]
    right: str
    value: float
    best: str | None = None

    def value_of(self, answer: Written, score: str | None) -> float:
        """Return the score of an answer, or its log-probability per token."""
        if score is None:
            return answer.score
        function = registry.find("score", score)
        more = {"sources": [_source(self.row)]} if takes_sources(function) else {}
        return float(function([answer.text], [[self.right]], **more))


def _right(row: dict[str, Any], classes: Sequence[str]) -> str:
    if row.get("target") is not None:
        return str(row["target"])
    label: int = row["label"]
    return classes[label]


def _source(row: dict[str, Any]) -> str:
    return row["messages"][-1]["content"] if row.get("messages") else row["text"]


def _learnable(model: LanguageModel, row: dict[str, Any], answer: Written) -> bool:
    """Return True if an answer ends by itself and can be trained on."""
    prompt = row["messages"] if row.get("messages") else row["text"]
    return answer.ended and _fits(model, prompt, answer.text)


def _fits(model: LanguageModel, prompt: Any, answer: str) -> bool:
    try:
        # Tokenized again, a text may have more tokens than the model generated.
        model.prompts.tokens(prompt, answer, "A generated example")
    except DataError:
        return False
    return True


# -- prompts with their answers


@dataclass(frozen=True)
class Form:
    """What all prompts of a task share: their beginning, their ending and their mean length.

    Attributes
    ----------
    length
        The mean number of tokens of a prompt, apart from what all of them begin with.
    """

    beginning: str
    ending: str
    length: int

    def filled(self, text: str) -> str | None:
        """Return the prompt with `text` between its beginning and its ending.

        None if there is nothing between them.
        """
        asks = self.ending.strip()
        # The model may have written the ending itself.
        inside = (text.partition(asks)[0] if asks else text).strip()
        return f"{self.beginning}{inside}{self.ending}" if inside else None


def form_of(model: LanguageModel, task: Task) -> Form:
    """Return what the prompts of a task share, which must not be conversations."""
    texts: list[str] = task.train["text"][:]
    beginning = _whole_words(os.path.commonprefix(texts))
    rest = [text[len(beginning) :] for text in texts]
    reverse = os.path.commonprefix([text[::-1] for text in rest])
    ending = _whole_words(reverse)[::-1]
    lengths = [len(example.prompt) for example in model.encode(task.rows("train")).inputs]  # pyright: ignore
    shared = len(model.prompts.opening(beginning.rstrip()))
    mean = sum(lengths) / len(lengths)
    return Form(beginning, ending, max(1, round(mean - shared)))


def _whole_words(shared: str) -> str:
    """Return a shared beginning up to its last white space, so that it ends with a whole word."""
    end = max(shared.rfind(space) for space in " \n\t")
    return shared[: end + 1]


def own_examples(model: LanguageModel, task: Task, count: int, temperature: float) -> list[Pair]:
    """Generate at most `count` prompts of a task with their answers.

    Prompts are sampled between the beginning and the ending that all prompts of the task
    share; the answers are the most likely ones. Examples that could not be learned are
    left out, and for a task with classes those whose answer is none of them. A warning says
    so if there are fewer than `count` after `ROUNDS` rounds.
    """
    form = form_of(model, task)
    pairs: list[Pair] = []
    with evaluating(model):
        for _ in range(ROUNDS):
            missing = count - len(pairs)
            if not missing:
                break
            middles = model.continued(
                form.beginning.rstrip(),
                count=missing,
                length=form.length,
                temperature=temperature,
            )
            prompts = [form.filled(middle) for middle in middles]
            pairs += _answered(model, task, [prompt for prompt in prompts if prompt])
    if len(pairs) < count:
        warnings.warn(
            f"The model generated {len(pairs)} of {count} examples of `{task.name}` to replay: its "
            "other prompts or answers were empty, cut off, or no class of the task. Train longer, "
            "raise `max_new_tokens`, change `temperature`, or use `source: on_policy`.",
            PerdureWarning,
            stacklevel=2,
        )
    return pairs


def _answered(model: LanguageModel, task: Task, prompts: Sequence[str]) -> list[Pair]:
    """Return the prompts that the model gives a usable answer to, with their answers."""
    if not prompts:
        return []
    data = Dataset.from_dict({"text": list(prompts)})
    examples = model.prepare([TaskRows(task.name, data, ())], allow_empty=True)
    pairs: list[Pair] = []
    for numbers, batch in examples.batches(device=model.device):
        for number, answer in zip(numbers, model.generate_scored(batch), strict=True):
            prompt = prompts[number]
            known = not task.classes or answer.text in task.classes
            if known and answer.ended and _fits(model, prompt, answer.text):
                pairs.append((prompt, answer.text))
    return pairs
