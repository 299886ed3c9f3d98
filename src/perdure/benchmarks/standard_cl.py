"""The text classification streams of MBPA++, IDBR, Progressive Prompts and O-LoRA."""

from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import NamedTuple, get_args

from datasets import Dataset

from perdure.benchmarks.parts.orders import ordered, task_names
from perdure.benchmarks.parts.text_folders import read_texts, tasks_in
from perdure.benchmarks.parts.text_prompts import (
    PAIRS,
    QUESTIONS,
    Style,
    pair,
    prompt,
    without_middle,
)
from perdure.data.splits import bounded
from perdure.data.table import from_hub
from perdure.data.task import Scenario, Split, Task, TaskStream
from perdure.errors import InputError, UnknownName

# The orders of the papers (see `order` of `standard_cl`).
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
    """The facts in the card of a data set on the hub.

    `text` is a template of the text, with column names in braces. `classes` contains
    perdure's class names, in the order of the labels in the card.
    """

    path: str
    config: str | None
    text: str
    classes: str
    label: str = "label"
    test: str = "test"


STARS = "very negative|negative|neutral|positive|very positive"
TOPICS = (
    "Society & Culture|Science & Mathematics|Health|Education & Reference|Computers & Internet|"
    "Sports|Business & Finance|Entertainment & Music|Family & Relationships|Politics & Government"
)
ONTOLOGY = (
    "Company|Educational Institution|Artist|Athlete|Office Holder|Mean of Transportation|Building|"
    "Natural Place|Village|Animal|Plant|Album|Film|Written Work"
)
CHOICE = (
    'Which sentence is the {question} of "{premise}"? Choose one between A and B.\n'
    "A: {choice1}\nB: {choice2}"
)
PAIR = "sentence 1: {premise}\nsentence 2: {hypothesis}"
GLUE = "nyu-mll/glue"
SUPER_GLUE = "aps/super_glue"
# The test labels of GLUE and SuperGLUE are secret: their validation split is the test split.
VALIDATION = "validation"
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
    "sst2": Card("stanfordnlp/sst2", None, "Text: {sentence}", "Bad|Good", test=VALIDATION),
    "mnli": Card(GLUE, "mnli", PAIR, "entailment|neutral|contradiction", test="validation_matched"),
    "qqp": Card(
        GLUE,
        "qqp",
        "first sentence: {question1}\nsecond sentence: {question2}",
        "False|True",
        test=VALIDATION,
    ),
    "rte": Card(SUPER_GLUE, "rte", PAIR, "entailment|contradiction", test=VALIDATION),
    "cb": Card(SUPER_GLUE, "cb", PAIR, "entailment|contradiction|neutral", test=VALIDATION),
    "copa": Card(SUPER_GLUE, "copa", CHOICE, "A|B", test=VALIDATION),
    "wic": Card(
        SUPER_GLUE, "wic", "word: {word}\n{sentence1}\n{sentence2}", "False|True", test=VALIDATION
    ),
    "boolq": Card(
        SUPER_GLUE,
        "boolq",
        "question: {question}\npassage: {passage}",
        "False|True",
        test=VALIDATION,
    ),
    "multirc": Card(
        SUPER_GLUE,
        "multirc",
        "paragraph: {paragraph}\nquestion: {question}\ncandidate answer: {answer}",
        "False|True",
        test=VALIDATION,
    ),
}


@ordered(ORDERS, {name: tuple(card.classes.split("|")) for name, card in CARDS.items()})
def standard_cl(
    *,
    folder: str | None = None,
    order: str | list[str] = "length5-a",
    train: int | None = None,
    validation: int | None = None,
    test: int | None = None,
    seed: int = 0,
    scenario: Scenario = "class",
    prompts: Style = "plain",
    words: int | None = None,
) -> TaskStream:
    """Four, five or fifteen text classification tasks: topics, sentiment, inference, questions.

    Tasks share the classes that have the same name: the five grades of amazon and yelp,
    Good and Bad of imdb and sst2, entailment of mnli, cb and rte, True and False of qqp,
    wic, boolq and multirc, and Sports of agnews and yahoo.

    Each data set keeps its own terms: research use for most, CC BY-SA 3.0 for DBpedia and BoolQ.

    Parameters
    ----------
    folder
        A folder with `manifest.json` (the `labels` of each task) and a file
        `<task>.parquet` for each task, with the columns `text`, `label` and `split`; or
        `CL_Benchmark` of O-LoRA's repository (https://github.com/cmnfriend/O-LoRA), without
        the rows of MNLI that have no label, and without `dev.json`, which is the same as
        `test.json`. If it is not given, the data sets are loaded from the Hugging Face
        hub. That code follows their cards and has not been run against the hub. On the
        hub, amazon is the English part of the Multilingual Amazon Reviews Corpus; the test
        split of sst2 and of the GLUE and SuperGLUE tasks is their validation split; and
        the data sets are complete, so set `train` (MBPA++ uses 115,000 examples of each).
    order
        The name of an order, or a list of the tasks' names. `length5-a` to `length5-d`
        are the four orders of MBPA++, with five tasks; `order1` to `order3` (four tasks,
        no yelp) and `order4` to `order6` (fifteen) are those of O-LoRA.
    train, test
        The approximate number of examples per task; the class proportions are preserved.
        By default all.
    validation
        The approximate number of training examples per task that become its validation
        split, at most a fifth; by default a tenth, at most 500.
    seed
        Seed for the choice of examples.
    scenario
        The scenario: what is known about an input at test time.
    prompts
        The form of the texts. `plain`: the text alone. `pairs`, for an encoder: the same,
        but premise and hypothesis, two questions, or question and passage are read as a
        pair of texts. For a language model: `o_lora`, the prompt of O-LoRA, with an
        instruction, the classes to choose from, and the names of the kind of task and of
        the data set, so that the prompt reveals the task; `options`, the same without
        these names. O-LoRA has a space before the line break after the classes, and keeps
        white space around a text. From the hub, the classes are listed in the order of
        the data sets' labels, in which imdb, sst2, boolq, wic, mnli and rte differ from
        O-LoRA's files. SAPT and GainLoRA list no classes.
    words
        The maximum number of words in a text, not counting what a prompt adds to it.
        Longer texts lose their middle. By default all words are kept.

    Raises
    ------
    UnknownName
        There is no such order, task or form of prompts.
    InputError
        `words` is less than 2, or is used with `prompts: pairs`.
    DataError
        The folder lacks a file or column, the hub cannot be reached, or a class has only
        one training example.

    References
    ----------
    de Masson d'Autume et al. (MBPA++), arXiv 1906.01076; Huang et al. (IDBR), arXiv 2104.05489;
    Razdaibiedina et al. (Progressive Prompts), arXiv 2301.12314; Wang et al. (O-LoRA), arXiv
    2310.14152. The data: Zhang et al., arXiv 1509.01626; Keung et al., arXiv 2010.02573; Wang et
    al. (GLUE), arXiv 1804.07461; Wang et al. (SuperGLUE), arXiv 1905.00537.
    """
    names = task_names(order, ORDERS, tasks_in(Path(folder)) if folder else CARDS)
    if prompts not in get_args(Style):
        raise UnknownName("way to ask", prompts, get_args(Style))
    if words is not None:
        _check_words(words, prompts)
    sizes: dict[Split, int | None] = {
        "train": train,
        "validation": validation,
        "test": test,
    }
    tasks = []
    for name in names:
        source = _from_folder(Path(folder), name) if folder else _from_hub(name)
        splits = bounded(source.splits, sizes, seed)
        # The texts are put together last: from the hub come far more rows than are chosen.
        for split, rows in splits.items():
            texts = _shortened(_with_text(rows, source.text), words)
            splits[split] = _asked(texts, prompts, name, source.classes)
        task = Task(name, source.classes, **splits)
        tasks.append(task)
    return TaskStream("standard_cl", tuple(tasks), scenario)


def _check_words(words: int, prompts: Style) -> None:
    if words < 2:
        raise InputError(f"`words` is {words}, but a text keeps its first and its last word.")
    if prompts == "pairs":
        raise InputError(
            "`words` cannot be used with `prompts: pairs`, because a text without its middle "
            "is no pair any more: set `max_length` of the backbone instead."
        )


@dataclass(frozen=True)
class _Source:
    """The data of a task; `text` is the template of its texts (see `Card`), or None."""

    classes: tuple[str, ...]
    text: str | None
    splits: dict[Split, Dataset]


def _from_folder(folder: Path, name: str) -> _Source:
    texts = read_texts(folder, name)
    # The texts of a folder are already in the form in which they are learned.
    return _Source(texts.classes, None, texts.splits)


def _from_hub(name: str) -> _Source:
    card = CARDS[name]
    data = from_hub(card.path, card.config)
    # Validation splits are not taken, though some have one: `bounded` cuts them off
    # training, in the size that was asked for.
    splits: dict[Split, Dataset] = {
        "train": data["train"],
        "test": data[card.test],
    }
    if card.label != "label":
        for split, rows in splits.items():
            splits[split] = rows.rename_column(card.label, "label")
    classes = tuple(card.classes.split("|"))
    return _Source(classes, card.text, splits)


def _with_text(data: Dataset, form: str | None) -> Dataset:
    """Return the examples with one text each, made from the columns by the template `form`."""
    if form is None:
        return data
    columns = []
    # The parser yields the names between the braces, and a text without a name at the end.
    for _, column, _, _ in Formatter().parse(form):
        if column:
            columns.append(column)
    texts = []
    # Column by column: the other columns of a row are not read.
    for cells in zip(*(data[column][:] for column in columns), strict=True):
        values = {}
        for column, cell in zip(columns, cells, strict=True):
            values[column] = cell or ""  # a missing cell would be written as `None`
        texts.append(form.format(**values))
    labels = data["label"][:]
    return Dataset.from_dict({"text": texts, "label": labels})


def _shortened(data: Dataset, words: int | None) -> Dataset:
    """Return the examples with the middle of longer texts left out."""
    if words is None:
        return data
    texts = [without_middle(text, words) for text in data["text"][:]]
    return Dataset.from_dict({"text": texts, "label": data["label"][:]})


def _asked(data: Dataset, style: Style, name: str, classes: tuple[str, ...]) -> Dataset:
    """Return the examples with their texts turned into prompts or pairs."""
    if style == "plain":
        return data
    if style == "pairs":
        return _in_pairs(data, name) if name in PAIRS else data
    if name not in QUESTIONS:
        raise UnknownName("task", name, QUESTIONS)
    texts = [prompt(style, name, classes, text) for text in data["text"][:]]
    return Dataset.from_dict({"text": texts, "label": data["label"][:]})


def _in_pairs(data: Dataset, name: str) -> Dataset:
    """Return the examples of a sentence-pair task with the columns `text` and `text_pair`."""
    pairs = [pair(name, text) for text in data["text"][:]]
    return Dataset.from_dict(
        {
            "text": [first for first, _ in pairs],
            "text_pair": [second for _, second in pairs],
            "label": data["label"][:],
        }
    )
