"""TRACE: small folders of the published form, and two of its tasks learned by a pico model."""

import json
from pathlib import Path

import pico_language
import pytest

from perdure import Backbone, DataError, InputError, Rule, Training, UnknownName, registry, run
from perdure.benchmarks.trace import FILES, ORDERS, SCORES, trace
from perdure.data.task import SPLITS
from perdure.evaluation.scores.sari import sari
from perdure.methods.sequential import Sequential
from perdure.runs.resume import restored

# A prompt and an answer of each task, in the form of TRACE's files; `{}` is a number.
ROWS = {
    "C-STANCE": (
        "判断以下文本对指定对象的态度，选择一项：A.支持，B.反对，C.中立。输出A，B或者C。\n"
        "文本：\n第{}条微博\n对象：\n电影\n态度：",
        "A",
    ),
    "FOMC": (
        "What is the monetary policy stance for the following text? A. dovish, B. hawkish, "
        "C. neutral. Choose one from A, B and C.\nText:\nInflation was {} percent.\nStance:",
        "B",
    ),
    "MeetingBank": ("Meeting transcripts:\nItem {}. All in favor?\nSummary:", "It was adopted."),
    "Py150": ("<s> import sys <EOL> x = <NUM_LIT:{}> <EOL>", "print ( x , <STR_LIT> )"),
    "ScienceQA": ("Question:\nIs {} even?\nChoices:\nA. yes\nB. no", "B\nBecause it is odd."),
    "NumGLUE-cm": ("Solve the following math problem.\nQuestion:\n{} + 1\nAnswer:", "42"),
    "NumGLUE-ds": ("Solve the following math problem.\nQuestion:\n{} mol\nAnswer:", "0.5"),
    "20Minuten": (
        "Provide a simplified version of the following paragraph in German.\n\nParagraph:\n"
        "Die Züge fahren künftig um {} Uhr in Zürich ab.\n\nSimplification:",
        "Die Züge fahren später.",
    ),
}
SIZES = {"train": 12, "validation": 4, "test": 6}


def write(path: Path, rows: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


@pytest.fixture
def folder(tmp_path) -> Path:
    """All eight tasks, with a few rows each; no row is in two splits."""
    root = tmp_path / "LLM-CL-Benchmark_500"
    for name, (prompt, answer) in ROWS.items():
        number = 0
        for split, file in FILES.items():
            rows = []
            for _ in range(SIZES[split]):
                rows.append({"prompt": prompt.replace("{}", str(number)), "answer": answer})
                number += 1
            write(root / name / file, rows)
    # As in the download: a folder of TRACE that is none of its tasks.
    write(root / "Lima" / "train.json", [])
    return root


def test_the_tasks_and_orders_of_the_authors():
    assert ORDERS["order1"].split() == list(SCORES) == list(ROWS)
    assert sorted(ORDERS["order2"].split()) == sorted(SCORES)
    assert set(SCORES.values()) <= set(registry.names("score"))


def test_a_folder_as_it_is_published(folder):
    stream = trace(folder=str(folder))
    assert stream.names == list(ROWS) and stream.scenario == "class"
    for task in stream:
        assert task.classes == () and task.score == SCORES[task.name]
        prompt, answer = ROWS[task.name]
        number = 0
        for split in SPLITS:
            rows = getattr(task, split)
            assert len(rows) == SIZES[split]
            # Nothing is added to a prompt, and each file is the split that it should be.
            assert rows[0] == {"text": prompt.replace("{}", str(number)), "target": answer}
            number += len(rows)


def test_part_of_it(folder):
    stream = trace(folder=str(folder), order="order2", train=5, validation=2, test=3, seed=1)
    assert stream.names == ORDERS["order2"].split()
    task = stream.task("20Minuten")
    assert [len(getattr(task, split)) for split in SPLITS] == [5, 2, 3]
    (again,) = trace(folder=str(folder), order=["20Minuten"], train=5, seed=1)
    (other,) = trace(folder=str(folder), order=["20Minuten"], train=5, seed=2)
    assert again.train["text"][:] == task.train["text"][:] != other.train["text"][:]


def test_two_tasks_are_learned(folder, tmp_path):
    """Each has its own score; SARI compares the answers with the whole prompts."""
    stream = trace(folder=str(folder), order=["FOMC", "20Minuten"])
    pico_language.save(tmp_path / "llama", "llama")
    backbone = Backbone.load(tmp_path / "llama", max_new_tokens=32, max_length=192)
    training = Training(epochs=10, batch_size=4, learning_rate=0.01)
    method = Sequential(peft="full")
    results = run(stream, backbone, method, "last", training=training, output=tmp_path / "run")
    assert results.task_scores == {"FOMC": "accuracy", "20Minuten": "sari"}
    rows = {}
    for row in results.scores():
        if row["task_id"] == "given":
            rows[row["step"], row["task"]] = row["value"]
    assert rows.keys() == {(1, "FOMC"), (2, "FOMC"), (2, "20Minuten")}
    assert rows[1, "FOMC"] == 1  # all its answers are the same letter

    system = restored(results.state, backbone, Rule(name="last"), stream)
    task = stream.task("20Minuten")
    with system.loaded():
        answers = system.answer(task, "test", ["given"]).answered["given"]
    right = [[answer] for answer in task.test["target"]]
    assert rows[2, "20Minuten"] == sari(answers, right, task.test["text"])


# -- bad input


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("order3", "No order named `order3`. Did you mean `order"),
        (["FOMC", "C-Stance"], "No task named `C-Stance`. Available: 20Minuten, C-STANCE"),
        (["Lima"], "No task named `Lima`"),
    ],
)
def test_an_order_that_is_unknown(order, message, folder):
    with pytest.raises(UnknownName, match=message):
        trace(folder=str(folder), order=order)


def test_a_task_twice(folder):
    with pytest.raises(InputError, match="`order` names task `FOMC` twice"):
        trace(folder=str(folder), order=["FOMC", "Py150", "FOMC"])


def test_no_task(folder):
    with pytest.raises(InputError, match="Stream `trace` has no task"):
        trace(folder=str(folder), order=[])


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="gone/C-STANCE/train.json` cannot be read.*`folder` must"):
        trace(folder=str(tmp_path / "gone"))


@pytest.mark.parametrize("file", FILES.values())
def test_a_file_that_is_missing(file, folder):
    (folder / "Py150" / file).unlink()
    with pytest.raises(DataError, match=f"Py150/{file}` cannot be read"):
        trace(folder=str(folder))
    assert len(trace(folder=str(folder), order=["FOMC"])) == 1  # only tasks of the order are read


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "cannot be read: Expecting"),
        ("[]", "must hold a list of examples, at least one"),
        ('{"prompt": "a", "answer": "b"}', "must hold a list of examples"),
        ('[{"prompt": "a", "answer": "b"}, {"prompt": "a"}]', "example 2: `answer` must .* None"),
        ('[{"answer": "b"}]', "example 1: `prompt` must be a text"),
        ('[{"prompt": "a", "answer": " "}]', "`answer` must be a text that is not empty, got ' '"),
        ('[{"prompt": "a", "answer": 3}]', "`answer` must be a text that is not empty, got 3"),
        ('["a"]', "example 1: `prompt` must be a text"),
    ],
)
def test_a_file_that_is_wrong(content, message, folder):
    (folder / "FOMC" / "test.json").write_text(content)
    with pytest.raises(DataError, match=f"FOMC/test.json`.*{message}"):
        trace(folder=str(folder))


def test_a_file_in_another_encoding(folder):
    (folder / "20Minuten" / "eval.json").write_bytes('[{"prompt": "Züge"}]'.encode("latin-1"))
    with pytest.raises(DataError, match="20Minuten/eval.json` cannot be read"):
        trace(folder=str(folder))


def test_a_size_that_is_wrong(folder):
    with pytest.raises(DataError, match="`test` must be at least 1"):
        trace(folder=str(folder), test=0)
