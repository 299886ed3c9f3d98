"""Tasks with different scores in one run: each by its own, and averages are marked."""

import numpy as np
import pytest
from pico_language import language_model
from test_report import R, make_run, rows
from text_tasks import closed, mixed

from perdure import InputError, Task, TaskStream, Training, run
from perdure.methods.isolated import Isolated
from perdure.methods.sequential import Sequential
from perdure.report.html import to_html
from perdure.report.markdown import to_markdown
from perdure.report.summary import summarise
from perdure.report.terminal import show

DIFFER = "Scores differ: accuracy (a), rouge_l (b). Averages over tasks mix them."


def two_scores():
    whole = rows(R, "ab")
    return [row[:5] + ("rouge_l",) + row[6:] if row[1] == "b" else row for row in whole]


def test_one_matrix_of_both(tmp_path):
    folder = make_run(tmp_path / "run", two_scores())
    summary = summarise([folder])
    (result,) = summary["runs"][0]["results"]
    assert np.allclose(np.array(result["matrix"], float), np.array(R, float), equal_nan=True)
    assert result["scores"] == ["accuracy", "rouge_l"] and result["metric"] == "accuracy, rouge_l"
    assert result["standard_error"] is None
    assert summary["metrics"]["average_accuracy"]["title"] == "Average score"
    assert [task["score"] for task in summary["runs"][0]["tasks"]] == ["accuracy", "rouge_l"]


def test_everything_says_so(tmp_path, capsys):
    summary = summarise([make_run(tmp_path / "run", two_scores())])
    markdown, page = to_markdown(summary), to_html(summary)
    assert DIFFER in markdown and "sum (scores differ)" in markdown
    assert DIFFER in page and "b (rouge_l)" in page and "Score matrix" in page
    show(summary)
    assert DIFFER in " ".join(capsys.readouterr().out.split())


def test_one_score_that_is_not_accuracy(tmp_path):
    summary = summarise([make_run(tmp_path / "run", rows(R, "ab", metric="rouge_l"))])
    text = to_markdown(summary)
    assert "The score is rouge_l." in text and "sum (rouge_l)" in text and "differ" not in text
    assert "Scores differ" not in to_markdown(summarise([make_run(tmp_path / "x", rows(R, "ab"))]))


def test_a_run_with_three_scores(tmp_path):
    training = Training(epochs=2, batch_size=8, learning_rate=0.02)
    backbone = language_model("llama")
    results = run(
        mixed(), backbone, Isolated(rank=2), "routed", training=training, output=tmp_path / "run"
    )
    assert results.task_scores == {"colours": "accuracy", "news": "rouge_l", "signs": "macro_f1"}
    # `none`: no model for all writes free text, so there is no average either
    assert set(results.accuracies("routed")) == {"given", "posterior"}
    assert np.isnan(results.matrix(task_id="none")[:, 1]).all()
    summary = summarise([tmp_path / "run"])
    assert any(
        "cannot be answered with free text" in text for text in summary["runs"][0]["problems"]
    )
    by_way = {result["task_id"]: result for result in summary["runs"][0]["results"]}
    assert by_way["none"]["metrics"]["average_accuracy"] is None
    assert by_way["given"]["metrics"]["average_accuracy"] is not None


def test_macro_f1_of_an_encoder(toy, bert, tmp_path):
    fruit = toy.tasks[0]
    task = Task(
        fruit.name, fruit.classes, fruit.train, fruit.validation, fruit.test, score="macro_f1"
    )
    results = run(
        TaskStream("one", (task,)),
        bert,
        Sequential(),
        "last",
        training=Training(epochs=1, batch_size=16),
        output=tmp_path / "run",
    )
    assert results.task_scores == {"fruit": "macro_f1"}
    assert not [row for row in results.scores() if row["metric"] == "calibration_error"]


def test_a_score_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "def mine(answers, references):\n    return {value}\n"
    (tmp_path / "mine.py").write_text(code.format(value="0.25"))
    stream = TaskStream("own", (closed("colours", ("red", "blue"), "./mine.py"),))
    backbone = language_model("llama")
    training = Training(epochs=1)
    results = run(stream, backbone, Sequential(), "last", training=training, output="run")
    assert results.task_scores == {"colours": "./mine.py"}
    assert results.accuracies("last") == {"given": 0.25, "posterior": 0.25, "none": 0.25}
    (tmp_path / "mine.py").write_text(code.format(value="float('nan')"))
    with pytest.raises(InputError, match="must return a number between 0 and 1"):
        run(stream, backbone, Sequential(), "last", training=training, output="other")


def test_scores_are_listed(perdure):
    status, out, _ = perdure("list")
    assert status == 0 and "rouge_l" in out and "Scores" in out
    status, out, _ = perdure("show", "token_f1")
    assert status == 0 and "F1" in out
