"""The prompts for language models on the tasks of `standard_cl`."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

Style = Literal["plain", "options", "o_lora"]
"""The prompt's form.

`plain`: the text alone, as an encoder reads it. `options`: an instruction, the classes to choose
from, the text and `Answer:`, as in SAPT and GainLoRA. `o_lora`: the same, after the names of the
task's kind and of the data set, as in O-LoRA: the model is then told the task in words.
"""


class Question(NamedTuple):
    """The kind of task that O-LoRA's prompt names, and its instruction (COPA's is in its text)."""

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


def prompt(style: Style, task: str, classes: Sequence[str], text: str) -> str:
    """Return a text as a prompt of one of the styles.

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
