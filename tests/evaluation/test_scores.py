"""Scores of free text: by hand, beside the values of the packages that papers use, and as part of
an evaluation."""

import importlib.util

import numpy as np
import pytest
import torch
from datasets import Dataset
from text_tasks import closed, free

from perdure import InputError, Task
from perdure.evaluation import subsequences, task_score
from perdure.evaluation.answers import Answers, Texts
from perdure.evaluation.scores.code_similarity import code_similarity
from perdure.evaluation.scores.edit_similarity import edit_similarity
from perdure.evaluation.scores.first_character import first_character
from perdure.evaluation.scores.rouge_l_union import rouge_l_union
from perdure.evaluation.scores.sari import sari

# -- SARI

SPECIES = "About 95 species are currently accepted."
SIMPLER = [
    "About 95 species are currently known.",
    "About 95 species are now accepted.",
    "95 species are now accepted.",
]


def test_sari_of_the_published_example():
    """The documentation of Hugging Face's `evaluate` gives 26.953601953601954."""
    value = sari(["About 95 you now get in."], [SIMPLER], [SPECIES])
    assert 100 * value == pytest.approx(26.953601953601954, abs=1e-12)


def test_sari_by_hand():
    """Of words `a` is kept (P = 1/2, as `b` is kept, too; R = 1), the second `a` is deleted though
    the right answer has one left; nothing is added (P = 1), but `c` should be (R = 0).

    Of pairs `a b` is kept (P = 0), `a a` is rightly deleted, `a c` is not added. Of triples
    `a a b` is rightly deleted, and 0/0 is 1. There are no longer n-grams.
    """
    words = 2 / 3 + 0 + 0
    pairs = 0 + 1 + 0
    by_hand = (words + pairs + 3 + 3) / 12
    assert sari(["a b"], [["a c"]], ["a a b"]) == pytest.approx(by_hand)
    # With the same right answer twice, everything counts twice.
    assert sari(["a b"], [["a c", "a c"]], ["a a b"]) == pytest.approx(by_hand)


def test_sari_reads_the_source():
    """An answer that repeats the source deletes nothing; one that is right does all it should."""
    source, right = "Der alte Zug fuhr langsam nach Bern.", "Der Zug fuhr nach Bern."
    assert sari([right], [[right]], [source]) == 1
    assert sari([source], [[right]], [source]) < 0.8
    assert sari([source], [[right]], [right]) < sari([source], [[right]], [source])


def test_sari_of_an_empty_answer():
    """It deletes what should stay, keeps nothing, and adds one wrong word: the empty one."""
    value = sari(["", ""], [["a b"], ["a b"]], ["a b", "a b"])
    assert value == pytest.approx((0 + 0 + 0 + 0 + 0 + 1 + 3 + 3) / 12)


def test_each_answer_needs_a_source():
    with pytest.raises(ValueError, match="zip"):
        sari(["a", "b"], [["a"], ["b"]], ["a"])


# -- ROUGE-L of sentences


@pytest.mark.parametrize(
    ("answer", "right", "value"),
    [
        # Both are as long: `y` is covered, not `x`.
        ("x y", "y x", 0.4999999950000001),
        (
            "Der Rat hat den Bericht angenommen. Die Sitzung ist geschlossen.",
            "Der Bericht wurde angenommen. Der Rat hat die Sitzung geschlossen.",
            0.7368421002770082,
        ),
        # The space behind the last full stop is a sentence of its own.
        (
            "A bill for an ordinance. It was adopted. ",
            "Adopt an ordinance. A bill was adopted.",
            0.7499999950781251,
        ),
        ("该条例立即生效. 动议通过.", "动议通过. 该条例生效.", 0.4999999950000001),
    ],
)
def test_rouge_l_as_the_package_rouge_computes_it(answer, right, value):
    """`Rouge(metrics=["rouge-l"]).get_scores(right, answer)` of rouge 1.0.1."""
    assert rouge_l_union([answer], [[right]]) == pytest.approx(value, abs=1e-12)


def test_rouge_l_of_texts_without_a_sentence():
    assert rouge_l_union(["", "..", "a"], [["a"], ["a"], ["."]]) == 0


# -- code


@pytest.mark.parametrize(
    ("answer", "right", "ratio"),
    [
        ("self . _socket . send ( parts [ i ] )", "self . _socket . recv ( copy = False )", 69),
        ("kitten", "sitting", 62),
        ("abcd", "dcba", 25),
        ("return <NUM_LIT:1>", "return <NUM_LIT>", 88),  # `return 1` and `return 0`
        ("x = <STR_LIT:a>", "x = a", 100),
        ("x" * 10 + "y" * 30, "x" * 35 + "z" * 5, 25),
    ],
)
def test_code_as_fuzz_ratio_compares_it(answer, right, ratio):
    """`fuzz.ratio` of fuzzywuzzy 0.18.0 with python-Levenshtein 0.27.3."""
    assert code_similarity([answer], [[right]]) == pytest.approx(ratio / 100)


def test_empty_code_is_wrong():
    """Also where both are empty: `<STR_LIT>` stands for a text that is not known."""
    assert code_similarity(["", "<STR_LIT>", "a"], [["a"], ["<STR_LIT>"], ["<STR_LIT>"]]) == 0


def test_similarity_of_code_is_not_that_of_edits():
    """A replaced character is one edit, but a deletion and an insertion."""
    assert edit_similarity(["abcd"], [["abce"]]) == code_similarity(["abcd"], [["abce"]]) == 0.75
    assert edit_similarity(["kitten"], [["sitting"]]) == pytest.approx(1 - 3 / 7)


def test_common_subsequences_are_those_of_the_usual_table():
    """Each cell of the table, for random texts of few letters."""
    random = np.random.default_rng(0)
    for _ in range(50):
        left, right = ("".join(random.choice(list("abc"), random.integers(9))) for _ in "12")
        table = subsequences.lengths(left, right)
        usual = np.zeros((len(left) + 1, len(right) + 1), dtype=int)
        for i, j in np.ndindex(len(left), len(right)):
            longer = usual[i, j] + 1 if left[i] == right[j] else 0
            usual[i + 1, j + 1] = max(longer, usual[i, j + 1], usual[i + 1, j])
        for i, j in np.ndindex(usual.shape):
            assert table.at(i, j) == usual[i, j], (left, right, i, j)
        assert table.whole == usual[-1, -1]


# -- the first character


def test_first_characters():
    answers = ["A", " B\nBecause of heat", "C", "", "支持"]
    right = [["A\nIt melts"], ["B"], ["A", "C"], ["A"], ["支"]]
    assert first_character(answers, right) == pytest.approx(4 / 5)
    assert first_character(["a", "Answer: A"], [["A"], ["B"]]) == 0


# -- scores that take the prompts


@pytest.fixture
def own(tmp_path) -> str:
    """A score of the user's own, as a file."""
    path = tmp_path / "echo.py"
    path.write_text(
        "def echo(answers, references, sources):\n"
        "    return sum(a == s for a, s in zip(answers, sources, strict=True)) / len(answers)\n"
    )
    return str(path)


def test_a_score_that_takes_the_prompts(own):
    texts = Texts([["x"], ["y"]], {"given": ["a", "b"]}, own, sources=["a", "c"])
    assert texts.scores() == {"given": 0.5}
    assert task_score.takes_sources(sari) and not task_score.takes_sources(edit_similarity)


def test_the_prompts_of_a_task():
    assert free("news").sources("test")[:2] == ["say news 0", "say news 1"]
    turns = [{"role": "user", "content": "first"}, {"role": "assistant", "content": "yes"}]
    talk = [*turns, {"role": "user", "content": "last"}]
    rows = Dataset.from_dict({"messages": [talk, talk], "target": ["a", "b"]})
    assert Task("chat", (), rows, rows, rows).sources("train") == ["last", "last"]


def test_closed_tasks_keep_no_prompts(own):
    """Refused before anything is trained."""
    with pytest.raises(InputError, match="takes `sources`.* answered with classes"):
        task_score.find(own, "classes", "colours")
    assert task_score.find(own, "text", "news")
    with pytest.raises(InputError, match="`sari` is for text, but the task .* classes"):
        task_score.find("sari", "classes", closed("colours", ("red", "blue")).name)


@pytest.mark.parametrize(
    ("score", "package"), [("sari", "sacrebleu"), ("bleu", "sacrebleu"), ("rouge_l", "rouge_score")]
)
def test_a_missing_package_is_noticed_before_training(score, package, monkeypatch):
    asked = []

    def nothing(name):
        asked.append(name)

    monkeypatch.setattr(task_score, "find_spec", nothing)
    with pytest.raises(InputError, match=f"Task `news`: the score `{score}` needs `{package}`"):
        task_score.find(score, "text", "news")
    assert asked == [package] and importlib.util.find_spec(package)


def test_a_score_is_computed_once(tmp_path):
    """All ways to know the task share the list of a single model; other lists are scored, too."""
    path = tmp_path / "counted.py"
    path.write_text(
        "calls = []\n\n\n"
        "def counted(answers, references):\n"
        "    calls.append(answers)\n"
        "    return len(calls) / 10\n"
    )
    shared = ["a"]
    texts = Texts([["a"]], {"given": shared, "posterior": ["a"], "none": shared}, str(path))
    assert texts.scores() == texts.scores() == {"given": 0.1, "posterior": 0.2, "none": 0.1}


def test_answers_with_classes_have_other_scores_as_before():
    answers = Answers(("no", "yes"), torch.tensor([1, 0]), {"given": torch.tensor([1, 1])})
    assert answers.worded().sources == () and answers.worded().scores() == {"given": 0.5}
