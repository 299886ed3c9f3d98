"""The text classification streams on which O-LoRA, Progressive Prompts, IDBR and MBPA++ are measured."""

import json
from pathlib import Path
from string import Formatter
from typing import NamedTuple

import pyarrow.parquet as pq
from datasets import Dataset

from perdure.data.splits import bounded, by_split
from perdure.data.table import from_hub
from perdure.data.task import Scenario, Split, Task, TaskStream
from perdure.errors import DataError, UnknownName

ORDERS = {
    "length5-a": "agnews yelp amazon yahoo dbpedia",
    "length5-b": "yelp yahoo amazon dbpedia agnews",
    "length5-c": "dbpedia yahoo agnews amazon yelp",
    "length5-d": "yelp agnews dbpedia amazon yahoo",
    "order1": "dbpedia amazon yahoo agnews",
    "order2": "dbpedia amazon agnews yahoo",
    "order3": "yahoo amazon agnews dbpedia",
    "order4": "mnli cb wic copa qqp boolq rte imdb yelp amazon sst2 dbpedia agnews multirc yahoo",
    "order5": "multirc boolq wic mnli cb copa qqp rte imdb sst2 dbpedia agnews yelp amazon yahoo",
    "order6": "yelp amazon mnli cb copa qqp rte imdb sst2 dbpedia agnews yahoo multirc boolq wic",
}


class Card(NamedTuple):
    """What a data set's card on the hub says; `classes` are our names, in the order of its labels."""

    path: str
    config: str | None
    text: str
    classes: str
    label: str = "label"
    test: str = "test"


STARS = "very negative|negative|neutral|positive|very positive"
TOPICS = (
    "Society & Culture|Science & Mathematics|Health|Education & Reference|Computers & Internet|Sports|"
    "Business & Finance|Entertainment & Music|Family & Relationships|Politics & Government"
)
ONTOLOGY = (
    "Company|Educational Institution|Artist|Athlete|Office Holder|Mean of Transportation|Building|"
    "Natural Place|Village|Animal|Plant|Album|Film|Written Work"
)
CHOICE = 'Which sentence is the {question} of "{premise}"? Choose one between A and B.\nA: {choice1}\nB: {choice2}'
PAIR = "sentence 1: {premise}\nsentence 2: {hypothesis}"
GLUE, SUPER_GLUE, HELD = (
    "nyu-mll/glue",
    "aps/super_glue",
    "validation",
)  # their test labels are secret
CARDS = {
    "agnews": Card(
        "fancyzhx/ag_news", None, "Text: {text}", "World|Sports|Business|Science or Technology"
    ),
    "amazon": Card("SetFit/amazon_reviews_multi_en", None, "Text: {text}", STARS),
    "yelp": Card("Yelp/yelp_review_full", None, "Text: {text}", STARS),
    "dbpedia": Card("fancyzhx/dbpedia_14", None, "Title: {title}\nText: {content}", ONTOLOGY),
    "yahoo": Card(
        "community-datasets/yahoo_answers_topics",
        None,
        "{question_title} {question_content} {best_answer}",
        TOPICS,
        label="topic",
    ),
    "imdb": Card("stanfordnlp/imdb", None, "{text}", "Bad|Good"),
    "sst2": Card("stanfordnlp/sst2", None, "Text: {sentence}", "Bad|Good", test=HELD),
    "mnli": Card(GLUE, "mnli", PAIR, "entailment|neutral|contradiction", test="validation_matched"),
    "qqp": Card(
        GLUE,
        "qqp",
        "first sentence: {question1}\nsecond sentence: {question2}",
        "False|True",
        test=HELD,
    ),
    "rte": Card(SUPER_GLUE, "rte", PAIR, "entailment|contradiction", test=HELD),
    "cb": Card(SUPER_GLUE, "cb", PAIR, "entailment|contradiction|neutral", test=HELD),
    "copa": Card(SUPER_GLUE, "copa", CHOICE, "A|B", test=HELD),
    "wic": Card(
        SUPER_GLUE, "wic", "word: {word}\n{sentence1}\n{sentence2}", "False|True", test=HELD
    ),
    "boolq": Card(
        SUPER_GLUE, "boolq", "question: {question}\npassage: {passage}", "False|True", test=HELD
    ),
    "multirc": Card(
        SUPER_GLUE,
        "multirc",
        "paragraph: {paragraph}\nquestion: {question}\ncandidate answer: {answer}",
        "False|True",
        test=HELD,
    ),
}


def standard_cl(
    *,
    folder: str | None = None,
    order: str | list[str] = "length5-a",
    train: int | None = None,
    validation: int | None = None,
    test: int | None = None,
    seed: int = 0,
    scenario: Scenario = "class",
) -> TaskStream:
    """Four, five or fifteen text classification tasks: topics, sentiment, inference, questions.

    Tasks with classes of the same name share them: the five grades of amazon and yelp, Good and Bad of imdb
    and sst2, entailment of mnli, cb and rte, True and False of qqp, wic, boolq and multirc, Sports of agnews
    and yahoo.

    Each data set keeps its own terms: research use for most, CC BY-SA 3.0 for DBpedia and BoolQ.

    Parameters
    ----------
    folder
        A folder with `manifest.json` (the `labels` of each task) and a file `<task>.parquet` for each task,
        with the columns `text`, `label` and `split`. Without it, the data sets come from the Hugging Face
        hub; that way was written after their cards and has not been run against the hub. There, amazon is the
        English part of the Multilingual Amazon Reviews Corpus, the test split of sst2 and of the tasks of
        GLUE and SuperGLUE is their validation split, and the sets are whole: set `train` (MBPA++ takes
        115,000 examples of each).
    order
        `length5-a` to `length5-d`: the four orders of MBPA++, with five tasks. `order1` to `order3` (four
        tasks, no yelp) and `order4` to `order6` (fifteen): those of O-LoRA. Or a list of the tasks' names.
    train, test
        About so many examples a task, with the shares of its classes kept; by default all.
    validation
        About so many training examples a task, at most a fifth of them, become its validation split; by
        default a tenth, at most 500.
    seed
        Of the choice of examples.
    scenario
        What is known at test time.

    Raises
    ------
    UnknownName
        There is no such order or task.
    DataError
        The folder lacks a file or column, the hub cannot be reached, or a class has a single training
        example.

    References
    ----------
    de Masson d'Autume et al. (MBPA++), arXiv 1906.01076; Huang et al. (IDBR), arXiv 2104.05489; Razdaibiedina
    et al. (Progressive Prompts), arXiv 2301.12314; Wang et al. (O-LoRA), arXiv 2310.14152. The data: Zhang et
    al., arXiv 1509.01626; Keung et al., arXiv 2010.02573; Wang et al. (GLUE), arXiv 1804.07461; Wang et al.
    (SuperGLUE), arXiv 1905.00537.
    """
    if isinstance(order, str) and order not in ORDERS:
        raise UnknownName("order", order, ORDERS)
    names = ORDERS[order].split() if isinstance(order, str) else order
    sizes: dict[Split, int | None] = {"train": train, "validation": validation, "test": test}
    tasks = []
    for name in names:
        classes, text, data = _from_folder(Path(folder), name) if folder else _from_hub(name)
        parts = bounded(data, sizes, seed)
        tasks.append(
            Task(name, classes, **{split: _written(part, text) for split, part in parts.items()})
        )
    return TaskStream("standard_cl", tuple(tasks), scenario)


Found = tuple[
    tuple[str, ...], str | None, dict[Split, Dataset]
]  # classes, form of the text, examples


def _from_folder(folder: Path, name: str) -> Found:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if name not in manifest:
            raise UnknownName("task", name, manifest)
        classes = tuple(manifest[name]["labels"])
        table = pq.read_table(folder / f"{name}.parquet")
    except UnknownName:
        raise
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            f"`{folder}` must hold `{name}.parquet`, and `manifest.json` with its `labels`: {error}."
        ) from error
    return classes, None, by_split(Dataset(table), ["text", "label"], f"{folder / name}.parquet")


def _from_hub(name: str) -> Found:
    if name not in CARDS:
        raise UnknownName("task", name, CARDS)
    card = CARDS[name]
    found = from_hub(card.path, card.config)
    train, test = (
        part if card.label == "label" else part.rename_column(card.label, "label")
        for part in (found["train"], found[card.test])
    )
    return tuple(card.classes.split("|")), card.text, {"train": train, "test": test}


def _written(data: Dataset, form: str | None) -> Dataset:
    """The examples with one column `text`: the columns that `form` names, put together."""
    if form is None:
        return data
    columns = [field for _, field, _, _ in Formatter().parse(form) if field]
    rows = zip(*([value or "" for value in data[column][:]] for column in columns), strict=True)
    texts = [form.format(**dict(zip(columns, row, strict=True))) for row in rows]
    return Dataset.from_dict({"text": texts, "label": data["label"][:]})
