"""The demo of a language model: four short tasks, each with answer words of its own."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from datasets import Dataset

from perdure.benchmarks.parts import packaged_texts
from perdure.benchmarks.parts.packaged_texts import Labelled
from perdure.data.task import Split, Task, TaskStream
from perdure.errors import DataError

CLEAR = 1.0
"""The lowest rating, on a scale from -4 to 4, that counts as clearly positive."""

TESTED = 5
"""Every fifth rated sentence is for testing, because these tables have no test split."""


@dataclass(frozen=True)
class Question:
    """A question about a text, and the answer word for each class of the task's table.

    The prompt does not list the words. The model has to learn which words answer a
    question, and this is the first thing it forgets.
    """

    name: str
    prompt: str
    words: Mapping[str, str]


FILMS = Question(
    "films",
    "Film review: {}\nHow is the film? Answer:",
    {"positive": "good", "negative": "bad"},
)
# Positive is `no` here, for the question is the opposite of that about films.
TWEETS = Question(
    "tweets",
    "Tweet: {}\nIs the writer unhappy? Answer:",
    {"positive": "no", "negative": "yes"},
)
# Capitals, as no other task has them.
NEWS = Question(
    "news",
    "News: {}\nWhat is it about? Answer:",
    {"earn": "EARNINGS", "acq": "MERGER", "crude": "OIL", "trade": "TRADE"},
)
FORUMS = Question(
    "forums",
    "Post: {}\nWhich forum is it from? Answer:",
    {
        "rec.autos": "cars",
        "rec.sport.hockey": "hockey",
        "sci.space": "space",
        "talk.politics.guns": "guns",
    },
)


def demo_language(
    *, train: int = 128, validation: int = 40, test: int = 40, words: int = 14, seed: int = 0
) -> TaskStream:
    """Film reviews, tweets, newswire and newsgroups, as questions that a language model answers.

    Each task has its own answer words, and those of one task are in capitals. A model
    that keeps answering with the words of its last task is wrong on all other tasks. Film
    reviews and tweets come from the VADER ground truth (MIT licence; only those with a
    mean human rating of at least 1 in absolute value). Reuters-21578 R8 and 20 Newsgroups
    by date (research use) have test splits of their own.

    Parameters
    ----------
    train, validation, test
        The number of examples per task, divided equally among its classes; any remainder
        is dropped.
    words
        The maximum number of words in a text; longer texts are truncated.
    seed
        Seed for the choice of examples.

    Raises
    ------
    DataError
        A size is too small for one example of each class, or exceeds the number of
        examples available.
    FetchError
        The packages are not in the cache and cannot be fetched.

    References
    ----------
    Hutto & Gilbert, VADER, ICWSM 2014; Lang, NewsWeeder, ICML 1995; Lewis, Reuters-21578.
    """
    # Like tasks are neighbours at the beginning, so that none of them is helped by the last.
    tables = (
        (FILMS, _rated("movieReviewSnippets", seed)),
        (TWEETS, _rated("tweets", seed)),
        (NEWS, _published("reuters-r8")),
        (FORUMS, _published("20newsgroups")),
    )
    tasks = []
    for question, (learned, tested) in tables:
        # Seeded by the name as well: tables with equal numbers of rows are drawn differently.
        generator = random.Random(f"{seed} {question.name}")
        parts = _drawn(question, learned, {"validation": validation, "train": train}, generator)
        parts |= _drawn(question, tested, {"test": test}, generator)
        splits = {split: _dataset(question, rows, words) for split, rows in parts.items()}
        task = Task(
            question.name,
            tuple(question.words.values()),
            train=splits["train"],
            validation=splits["validation"],
            test=splits["test"],
        )
        tasks.append(task)
    return TaskStream("demo_language", tuple(tasks))


def _published(name: str) -> tuple[Labelled, Labelled]:
    """Return the training and test rows of a table that has a test split."""
    return packaged_texts.orange(f"{name}-train"), packaged_texts.orange(f"{name}-test")


def _rated(name: str, seed: int) -> tuple[Labelled, Labelled]:
    """Split a table of rated sentences, and return its training and test rows."""
    sentences = packaged_texts.rated(name, CLEAR)
    random.Random(seed).shuffle(sentences)
    cut = len(sentences) // TESTED
    return sentences[cut:], sentences[:cut]


def _drawn(
    question: Question,
    table: Labelled,
    sizes: Mapping[Split, int],
    generator: random.Random,
) -> dict[Split, Labelled]:
    """Draw the same number of rows from each class for each split; no row is in two splits."""
    parts: dict[Split, Labelled] = {split: [] for split in sizes}
    for label in question.words:
        taken = 0
        rows = [row for row in table if row[0] == label]
        generator.shuffle(rows)
        for split, size in sizes.items():
            # Equal numbers, for otherwise the most frequent answer would be learned first.
            count = size // len(question.words)
            piece = rows[taken : taken + count]
            if not piece or len(piece) < count:
                raise DataError(
                    f"`{split}: {size}` is {count} examples for each of the "
                    f"{len(question.words)} answers of `{question.name}`; there are "
                    f"{len(rows) - taken} for `{question.words[label]}`. Give a size "
                    "with at least one example for each answer, and no more than there are."
                )
            parts[split] += piece
            taken += count
    # A batch with answers of one class alone would teach that class.
    for rows in parts.values():
        generator.shuffle(rows)
    return parts


def _dataset(question: Question, rows: Labelled, words: int) -> Dataset:
    index = {label: number for number, label in enumerate(question.words)}
    prompts = [question.prompt.format(" ".join(text.split()[:words])) for _, text in rows]
    return Dataset.from_dict({"text": prompts, "label": [index[label] for label, _ in rows]})
