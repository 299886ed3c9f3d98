"""Pairs of texts, texts without any token, and numbers that are not finite: read, answered,
or refused.
"""

import math
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from small_runs import make
from tables import write_rows
from tokenizers import normalizers, processors

from perdure import Backbone, InputError, Model, Rule, Run, RunError, TrainingError, read_tasks
from perdure.cli import outcome
from perdure.data.exemplars import Exemplars
from perdure.evaluation.posterior import TaskPosterior
from perdure.runs import extend as runs_module
from perdure.runs.inputs import texts_or_pairs
from perdure.vectors.statistics import Statistics

COLUMNS = ["premise", "hypothesis", "label"]
CLS, SEP = 2, 3
QUICK = {"epochs": 1, "batch_size": 8}


def with_tokenizer(source: Path, folder: Path, change) -> Path:
    """Copy a pico model, whose tokenizer is changed."""
    shutil.copytree(source, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    change(tokenizer.backend_tokenizer)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def reader_of_pairs(pico, tmp_path) -> Path:
    def change(inner):
        inner.post_processor = processors.TemplateProcessing(
            "[CLS] $A [SEP]",
            "[CLS] $A [SEP] $B [SEP]",
            special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
        )

    return with_tokenizer(pico("bert"), tmp_path / "pairs", change)


@pytest.fixture
def without_special_tokens(pico, tmp_path) -> Path:
    """A model whose tokenizer adds no token to a text, and makes none of a zero-width space."""

    def change(inner):
        inner.post_processor = processors.TemplateProcessing("$A")
        inner.normalizer = normalizers.Replace("\u200b", "")

    return with_tokenizer(pico("bert"), tmp_path / "plain", change)


def pairs(folder: Path, name: str = "nli.csv", size: int = 24) -> str:
    rows = [[f"w{i} w{i + 1}", f"w{2 * i}", "yes" if i % 2 else "no"] for i in range(size)]
    return str(write_rows(folder / name, COLUMNS, rows))


def singles(folder: Path, name: str, texts: list[str]) -> str:
    rows = [[text, "a" if i % 3 else "b"] for i, text in enumerate(texts)]
    return str(write_rows(folder / name, ["text", "label"], rows))


# -- pairs


def test_pairs_are_read_in_the_order_that_is_given(reader_of_pairs, tmp_path):
    path = pairs(tmp_path)
    (task,) = read_tasks(path, text=["premise", "hypothesis"])
    (turned,) = read_tasks(path, text=["hypothesis", "premise"])
    assert task.kind == "text" and task.train["text_pair"][:] == turned.train["text"][:]
    backbone = Backbone.load(reader_of_pairs, pooling="mean")
    word, other = (4 + int(task.train[name][0].split()[0][1:]) for name in ("text", "text_pair"))
    assert backbone.tokens(task.train)["input_ids"][0] == [CLS, word, word + 1, SEP, other, SEP]
    assert backbone.tokens(turned.train)["input_ids"][0] == [CLS, other, SEP, word, word + 1, SEP]


def test_a_digest_is_of_both_texts(tmp_path):
    (task,) = read_tasks(pairs(tmp_path), text=["premise", "hypothesis"])
    (single,) = read_tasks(pairs(tmp_path), text="premise")
    (turned,) = read_tasks(pairs(tmp_path), text=["hypothesis", "premise"])
    digests = [each.digests()["train"] for each in (task, single, turned)]
    assert len(set(digests)) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": ["premise", "premise"]}, "Give one column, or two different ones for pairs"),
        ({"text": COLUMNS}, "Give one column, or two different ones for pairs"),
        ({"text": ["premise", "other"]}, "has no column `other`"),
        ({"text": "premise", "image": "hypothesis"}, "Give either `text` or `image`"),
    ],
)
def test_columns_that_make_no_pair(options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_tasks(pairs(tmp_path), **options)


def test_a_run_learns_pairs_keeps_some_and_answers_them(reader_of_pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs(tmp_path)
    singles(tmp_path, "mail.csv", [f"w{i} w{i + 1}" for i in range(24)])
    columns = ["premise", "hypothesis"]
    method = {"name": "replay", "method": {"name": "sequential", "rank": 2}, "per_class": 3}
    values = {"backbone": str(reader_of_pairs), "method": method, "training": QUICK}
    results = make(
        tmp_path,
        "r",
        values | {"stream": [{"data": "nli.csv", "text": columns}, {"data": "mail.csv"}]},
    )
    assert results.recipe["stream"][0]["text"] == columns

    kept = Exemplars.of(results.load_task("mail").state)
    (task,) = read_tasks("nli.csv", text=["premise", "hypothesis"])
    classes = {name: results.load_task(name).classes for name in results.tasks}
    rows = {of_task.task: of_task.data for of_task in kept.rows(classes)}
    examples = set(zip(task.train["text"], task.train["text_pair"], strict=True))
    assert set(zip(rows["nli"]["text"], rows["nli"]["text_pair"], strict=True)) <= examples
    assert "text_pair" not in rows["mail"].column_names and kept.of_tasks(["mail"]).columns == {}

    model = Model(results)
    first, second = model.predict([("w1 w2", "w9"), ("w9", "w1 w2")])
    assert first.probability != second.probability
    assert model.predict(["w1 w2"])[0].probability != first.probability
    for wrong in ([("w1", "w2"), "w1"], [("w1", "w2", "w3")], [("w1", None)], [5]):
        with pytest.raises(InputError, match=r"Input \d"):
            model.predict(wrong)


def test_columns_on_the_command_line(tmp_path, monkeypatch, perdure):  # noqa: F811
    entries = []
    monkeypatch.setattr(
        runs_module, "learn_more", lambda run, entry, **options: entries.append(entry)
    )
    monkeypatch.setattr(outcome, "report", lambda run: None)
    perdure(
        "learn",
        "r",
        "--data",
        "nli.csv",
        "--text",
        "premise",
        "--text",
        "hypothesis",
        "--delimiter",
        ";",
    )
    perdure("learn", "r", "--data", "mail.csv", "--text", "body")
    perdure(
        "learn",
        "r",
        "--data",
        "a.csv",
        "--prompt",
        r"{a}\n{b}",
        "--answer",
        "{c}",
        "--score",
        "bleu",
    )
    perdure("learn", "r", "--data", "mail.csv", "--test", "test.csv", "--validation", "dev.csv")
    perdure("learn", "r", "--data", "mail.csv", "--test", "test.csv", "--task", "post")
    files = {"train": "mail.csv", "test": "test.csv"}
    assert entries == [
        {
            "data": "nli.csv",
            "encoding": "utf-8",
            "text": ["premise", "hypothesis"],
            "delimiter": ";",
        },
        {"data": "mail.csv", "encoding": "utf-8", "text": "body"},
        {
            "data": "a.csv",
            "encoding": "utf-8",
            "prompt": "{a}\n{b}",
            "answer": "{c}",
            "score": "bleu",
        },
        {
            "data": files | {"validation": "dev.csv"},
            "encoding": "utf-8",
            "name": "mail",
        },
        {"data": files, "encoding": "utf-8", "name": "post"},
    ]


def test_pairs_that_are_damaged(tmp_path):
    (task,) = read_tasks(pairs(tmp_path), text=["premise", "hypothesis"])
    kept = Exemplars()
    kept.add(task, [0, 1])
    for damaged in (b"{", b"3", b'["one"]', b"[" * 100_000):
        kept.inputs["nli"][0] = damaged
        with pytest.raises(RunError, match="An example stored in the run is damaged"):
            kept.rows({"nli": task.classes})


def test_a_tokenizer_that_knows_no_pairs(pico, tmp_path):
    """It is found before the first task is trained, though only the second one has pairs."""
    texts = singles(tmp_path, "mail.csv", [f"w{i} w{i + 1}" for i in range(24)])
    stream = [{"data": texts}, {"data": pairs(tmp_path), "text": ["premise", "hypothesis"]}]
    values = {"stream": stream, "backbone": str(pico("bert")), "training": QUICK}
    with pytest.raises(InputError, match="does not mark where the first text of a pair ends"):
        make(tmp_path, "r", values)
    assert Run(tmp_path / "r").tasks == []


# -- texts without any token


def test_a_text_without_tokens_is_refused_by_its_row(without_special_tokens, tmp_path):
    good = [f"w{i} w{i + 1}" for i in range(24)]
    stream = [{"data": singles(tmp_path, "good.csv", good)}]
    stream.append({"data": singles(tmp_path, "bad.csv", [*good[:16], "\u200b", *good[17:]])})
    values = {"stream": stream, "backbone": str(without_special_tokens), "training": QUICK}
    with pytest.raises(
        InputError,
        match=r"Task `bad`, row 17: the tokenizer of `.*` makes no token of the text '\\u200b'",
    ):
        make(tmp_path, "r", values)
    assert Run(tmp_path / "r").tasks == []


@pytest.mark.parametrize("pooling", ["mean", "stock"])
def test_a_text_without_tokens_is_answered_by_the_prior(pooling, without_special_tokens, tmp_path):
    texts = [f"w{i} w{i + 1}" for i in range(30)]
    stream = [{"data": singles(tmp_path, f"{name}.csv", texts)} for name in ("one", "two")]
    backbone = {"model": str(without_special_tokens), "pooling": pooling}
    run = make(tmp_path, "r", {"stream": stream, "backbone": backbone, "training": QUICK})
    model = Model(run)
    share = (
        max(run.load_task("one").statistics.counts.tolist())
        / run.load_task("one").statistics.counts.sum().item()
    )
    for inputs in (["", "\u200b"], ["w1 w2", ""], [""]):
        *_, answer = model.predict(inputs)
        assert (answer.label, answer.probability) == ("a", pytest.approx(share, abs=1e-6))
    assert model.predict([""], task="two")[0].task == "two"
    alone, beside = model.predict(["w1 w2"])[0], model.predict(["w1 w2", ""])[0]
    assert alone.probability == pytest.approx(beside.probability, abs=1e-6)


# -- numbers that are not finite


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_statistics_are_of_finite_features(broken):
    features = torch.tensor([[1.0], [broken], [2.0]])
    with pytest.raises(
        TrainingError, match="of 1 of 3 examples are not finite numbers. The first is example 2"
    ):
        Statistics.of(features, torch.tensor([0, 1, 0]), count=2)
    posterior = TaskPosterior({"a": Statistics.of(features[[0, 2]], torch.tensor([0, 1]), count=2)})
    with pytest.raises(RunError, match="task of 1 of 3 examples cannot be determined"):
        posterior.log_prob(torch.tensor([[1.0], [math.nan], [2.0]]))


def test_a_scale_that_leaves_no_finite_number_is_no_answer(pico, tmp_path):
    stream = [{"data": singles(tmp_path, "mail.csv", [f"w{i} w{i + 1}" for i in range(24)])}]
    run = make(tmp_path, "r", {"stream": stream, "backbone": str(pico("bert")), "training": QUICK})
    model = Model(run, rule=Rule("task_arithmetic", scale=1e30))
    with pytest.raises(
        RunError, match="gives no finite number for 1 of 1 examples .head of task `mail`"
    ):
        model.predict(["w1 w2"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("w1 \ud83d", r"Input 2 has `\\ud83d`: half of a surrogate pair"),
        (["w1"], "Input 2 is .*, but should be a text or a pair"),
        (("w1", "w2", "w3"), "Input 2 is .*, but should be a text or a pair"),
        (("w1", "w2"), "Input 2 is a pair, unlike the first"),
        (7, "Input 2 is 7, but should be a text or a pair"),
    ],
)
def test_what_is_no_text(text, message):
    with pytest.raises(InputError, match=message):
        texts_or_pairs(["w1", text])
