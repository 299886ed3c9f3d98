"""The questions of the language demo: on tables made here, and on the real ones where they are."""

import numpy as np
import pytest

from perdure import DataError
from perdure.benchmarks import demo_language
from perdure.benchmarks.parts import packaged_texts
from perdure.data.task import SPLITS

NAMES = ["films", "tweets", "news", "forums"]


@pytest.fixture
def tables(monkeypatch):
    """Forty short texts of each class, each once."""

    def published(name: str) -> packaged_texts.Labelled:
        reuters = name.startswith("reuters")
        question = demo_language.NEWS if reuters else demo_language.FORUMS
        classes = [*question.words, "another class"]
        return [(label, f"{name} {label} {i} and so on") for label in classes for i in range(40)]

    def rated(name: str, clear: float) -> packaged_texts.Labelled:
        classes = ("positive", "negative")
        return [(label, f"{name} {label} {i}") for label in classes for i in range(40)]

    monkeypatch.setattr(packaged_texts, "orange", published)
    monkeypatch.setattr(packaged_texts, "rated", rated)


def test_as_many_examples_of_each_answer(tables):
    stream = demo_language.demo_language(train=16, validation=8, test=8)
    assert stream.names == NAMES
    for task in stream:
        for split, size in zip(SPLITS, (16, 8, 8), strict=True):
            counts = np.bincount(getattr(task, split)["label"][:])
            assert counts.tolist() == [size // len(task.classes)] * len(task.classes)
        texts = [text for split in SPLITS for text in getattr(task, split)["text"][:]]
        assert len(set(texts)) == len(texts)


def test_an_answer_is_that_of_its_class(tables):
    stream = demo_language.demo_language(train=16, validation=8, test=8)
    films, tweets, news, _ = stream
    for task, words in (
        (films, demo_language.FILMS.words),
        (tweets, demo_language.TWEETS.words),
        (news, demo_language.NEWS.words),
    ):
        for row in task.train:
            right = task.classes[row["label"]]
            # the class stands in the texts that were made here
            assert [words[c] for c in words if f" {c} " in row["text"]] == [right]


def test_texts_are_cut_and_drawn_by_seed(tables):
    sizes = {"train": 8, "validation": 4, "test": 4}
    first = demo_language.demo_language(**sizes, words=2)
    assert first[2].train[0]["text"].startswith("News: reuters-r8-train ")
    assert "and" not in first[2].train[0]["text"].split("\n")[0]
    again, other = (demo_language.demo_language(**sizes, seed=seed) for seed in (0, 1))
    assert again[0].train["text"][:] != other[0].train["text"][:]


def test_too_few_or_too_many(tables):
    with pytest.raises(DataError, match="`test: 1` is 0 examples for each of the 2 answers of"):
        demo_language.demo_language(train=16, validation=8, test=1)
    with pytest.raises(DataError, match="there are [0-9]+ for `good`. Give a size with"):
        demo_language.demo_language(train=16, validation=8, test=400)


@pytest.mark.real
def test_the_real_tables(demo_cache):
    stream = demo_language.demo_language()
    assert stream.names == NAMES
    assert not stream.missing
