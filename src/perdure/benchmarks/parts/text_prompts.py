"""The texts of `standard_cl`, as prompts for language models and as pairs for encoders."""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from perdure.errors import DataError

Style = Literal["plain", "pairs", "options", "o_lora"]
"""The form of a text.

`plain`: the text alone. `pairs`: the same, but premise and hypothesis, two questions, or
question and passage are two texts, which an encoder reads as a pair. `options`: an
instruction, the classes to choose from, the text and `Answer:`.
`o_lora`: the same, after the names of the task's kind and of the data set, as in O-LoRA:
the model is then told the task in words.
"""


class Question(NamedTuple):
    """The kind of task, as O-LoRA's prompt names it, and the instruction (empty for COPA)."""

    kind: str
    instruction: str


TOPIC = Question("TC", "What is the topic of the following paragraph? Choose one from the option.")
SENTIMENT = Question(
    "SC", "What is the sentiment of the following paragraph? Choose one from the option."
)
INFERENCE = Question(
    "NLI",
    'What is the logical relationship between the "sentence 1" and the "sentence 2"? '
    "Choose one from the option.",
)
QUESTIONS = {
    "agnews": TOPIC,
    "dbpedia": TOPIC,
    "yahoo": TOPIC,
    "amazon": SENTIMENT,
    "yelp": SENTIMENT,
    "imdb": SENTIMENT,
    "sst2": SENTIMENT,
    "mnli": INFERENCE,
    "cb": INFERENCE,
    "rte": INFERENCE,
    "qqp": Question(
        "QQP",
        'Whether the "first sentence" and the "second sentence" have the same meaning? '
        "Choose one from the option.",
    ),
    "boolq": Question(
        "BoolQA",
        "According to the following passage, is the question true or false? "
        "Choose one from the option.",
    ),
    "multirc": Question(
        "MultiRC",
        "According to the following passage and question, is the candidate answer true or false? "
        "Choose one from the option.",
    ),
    "wic": Question(
        "WiC",
        "Given a word and two sentences, whether the word is used with the same sense in both "
        "sentence? Choose one from the option.",
    ),
    "copa": Question("COPA", ""),
}
# The two texts of a pair, in the form in which they are put together.
TWO_SENTENCES = r"sentence 1: (.*)\nsentence 2: (.*)"
PAIRS = {
    "mnli": TWO_SENTENCES,
    "cb": TWO_SENTENCES,
    "rte": TWO_SENTENCES,
    "qqp": r"first sentence: (.*)\nsecond sentence: (.*)",
    "boolq": r"question: (.*)\npassage: (.*)",
    # The word belongs to the first sentence, and the candidate answer to the question.
    "wic": r"word: (.*\n.*)\n(.*)",
    "multirc": r"paragraph: (.*)\n(question: .*\ncandidate answer: .*)",
    "copa": r"(.*)\n(A: .*\nB: .*)",
}
# The data sets that O-LoRA's prompt calls by other names than ours.
DATA_SETS = {
    "sst2": "SST-2",
    "imdb": "IMDB",
    "mnli": "MNLI",
    "cb": "CB",
    "rte": "RTE",
    "qqp": "QQP",
    "boolq": "BoolQA",
    "multirc": "MultiRC",
    "wic": "WiC",
    "copa": "COPA",
}


def pair(task: str, text: str) -> tuple[str, str]:
    """Split a text of a sentence-pair task into its two texts.

    Raises
    ------
    DataError
        The text does not have the form that the task's texts have.

    Examples
    --------
    >>> pair("rte", "sentence 1: It rains.\\nsentence 2: It is wet.")
    ('It rains.', 'It is wet.')
    """
    match = re.fullmatch(PAIRS[task], text.strip(), re.DOTALL)
    if match is None:
        raise DataError(
            f"A text of task `{task}` is not in the form of a pair, `{PAIRS[task]}`: "
            f"{text[:80]!r}. With `prompts: plain` it is read as one text."
        )
    first, second = match.groups()
    return first.strip(), second.strip()


def without_middle(text: str, words: int) -> str:
    """Return the first and the last words of a text, at most `words` of them.

    Examples
    --------
    >>> without_middle("question: is it so?\\npassage: It was said to be so.", 5)
    'question: is it … be so.'
    """
    parts = text.split(" ")
    if len(parts) <= words:
        return text
    last = words // 2
    first = words - last
    return " ".join([*parts[:first], "…", *parts[-last:]])


def prompt(style: Style, task: str, classes: Sequence[str], text: str) -> str:
    """Return the prompt for a text, in the style `plain`, `options` or `o_lora`.

    Examples
    --------
    >>> print(prompt("options", "sst2", ["Bad", "Good"], "Text: a joy"))
    What is the sentiment of the following paragraph? Choose one from the option.
    Option: Bad, Good
    Text: a joy
    Answer:
    """
    if style == "plain":
        return text
    question = QUESTIONS[task]
    lines = []
    if style == "o_lora":
        lines += [f"Task:{question.kind}", f"Dataset:{DATA_SETS.get(task, task)}"]
    if question.instruction:
        lines += [question.instruction, f"Option: {', '.join(classes)}"]
    return "\n".join([*lines, text.strip(), "Answer:"])
