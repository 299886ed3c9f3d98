"""Answers of language models, ranked or written: from Python, to tables, on the terminal."""

import csv
import json
import os
from pathlib import Path

import language_runs
import pytest
import torch
from datasets import Dataset

from perdure import DataError, InputError, Model, PerdureWarning, Run
from perdure.data.rows import Table
from perdure.data.task import TaskRows
from perdure.runs.inputs import Asked
from perdure.runs.predictions import predict_table

PROMPTS = ["aaa 1:", "bbb 22:", "aaa 3:", "something else"]


@pytest.fixture(scope="module", params=["llama", "t5"])
def closed(request, tmp_path_factory) -> Run:
    """A run of two closed tasks, which share no word."""
    folder = tmp_path_factory.mktemp("closed")
    tasks = [language_runs.closed("mood"), language_runs.closed("sky")]
    return language_runs.run(folder, request.param, tasks)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Run:
    """A run of a closed task and a free one, whose prompts differ."""
    folder = tmp_path_factory.mktemp("mixed")
    story = language_runs.free()
    splits = {}
    for split in ("train", "validation", "test"):
        data = getattr(story, split)
        texts = [f"Tell me a story, number {number}, please" for number in range(len(data))]
        splits[split] = data.remove_columns("text").add_column("text", texts)
    story = type(story)(story.name, (), **splits, score="exact_match")
    return language_runs.run(folder, "llama", [language_runs.closed("mood"), story])


def log_p(model: Model, prompt: str, word: str) -> float:
    """The log-probability per token of a word, by a pass over it alone."""
    rows = Dataset.from_dict({"text": [prompt], "target": [word]})
    examples = model.backbone.prepare([TaskRows("", rows)])
    with torch.no_grad(), model.combined.applied(model.backbone):
        return -model.backbone.losses(examples.batch([0])).item()


def test_the_combined_model_ranks_the_words_of_all_tasks(closed):
    model = Model(closed)
    answers = model.predict(PROMPTS)
    words = [word for words in model.classes.values() for word in words]
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        per_token = {w: log_p(model, prompt, w) for w in words}
        tokens = {w: len(model.backbone.prompts.answer(w, _joint(model, prompt))) for w in words}
        sums = {w: per_token[w] * tokens[w] for w in words}
        assert answer.answer == max(sums, key=sums.__getitem__)
        assert answer.answer in model.classes[answer.task]
        assert answer.score == pytest.approx(per_token[answer.answer], abs=1e-4)
    known = model.predict(PROMPTS, task="sky")
    assert {answer.task for answer in known} == {"sky"}
    assert {answer.answer for answer in known} <= set(language_runs.WORDS["sky"])


def _joint(model: Model, prompt: str) -> str:
    rows = Dataset.from_dict({"text": [prompt]})
    return model.backbone.prepare([TaskRows("", rows)]).inputs[0].joint


def test_a_word_of_two_tasks_and_one_that_begins_another(tmp_path, monkeypatch):
    """The word is one class of both tasks; the end of an answer tells `good` from `good day`."""
    monkeypatch.setitem(language_runs.WORDS, "sky", ("good", "good day"))
    tasks = [language_runs.closed("mood"), language_runs.closed("sky")]
    model = Model(language_runs.run(tmp_path, "llama", tasks))
    for name in ("mood", "sky"):
        answered = model.system.answer(language_runs.closed(name), "test", ["given", "none"])
        assert answered.classes == ("bad", "good", "good day")
    for prompt, answer in zip(PROMPTS, model.predict(PROMPTS), strict=True):
        sums = {}
        for word in ("bad", "good", "good day"):
            length = len(model.backbone.prompts.answer(word, _joint(model, prompt)))
            sums[word] = log_p(model, prompt, word) * length
        assert answer.answer == max(sums, key=sums.__getitem__)


@pytest.mark.parametrize(
    ("rule", "task_id"), [("task_arithmetic", "none"), ("routed", "posterior"), ("smile", "none")]
)
def test_predictions_are_what_was_measured(rule, task_id, closed):
    model = Model(closed, rule=rule)
    if rule == "smile" and model.combined.picks:
        task_id = "posterior"
    task = language_runs.closed("sky")
    texts = task.test["text"][:]
    measured = model.system.answer(task, "test", [task_id])
    answered = [measured.classes[index] for index in measured.answered[task_id].tolist()]
    assert [answer.answer for answer in model.predict(texts)] == answered


def test_the_posterior_says_whether_text_is_written(mixed):
    model = Model(mixed)
    answers = model.predict(["aaa 1:", "Tell me a story, number 3, please"])
    assert [answer.task for answer in answers] == ["mood", "story"]
    assert answers[0].answer in language_runs.WORDS["mood"]
    (alone,) = model.predict(["Tell me a story, number 3, please"], task="story")
    assert answers[1].answer == alone.answer
    assert answers[1].score == pytest.approx(alone.score, abs=1e-4)


def test_the_score_of_a_text_is_its_log_probability_per_token(mixed):
    model = Model(mixed)
    (answer,) = model.predict(["aaa 1:"], task="story")
    prompt = model.backbone.prompts.tokens("aaa 1:", None, "").prompt
    # read token by token, as it was written
    inputs, total, count = list(prompt), 0.0, 0
    with torch.no_grad(), model.combined.applied(model.backbone):
        for _ in range(12):
            logits = model.backbone.model(torch.tensor([inputs]), use_cache=False).logits[0, -1]
            best = logits.log_softmax(0).max(0)
            total, count = total + best.values.item(), count + 1
            inputs.append(int(best.indices))
            if inputs[-1] in model.backbone.prompts.stops:
                break
    assert answer.score == pytest.approx(total / count, abs=1e-4)
    assert answer.answer == model.backbone.prompts.text(inputs[len(prompt) :])
    assert answer.ended == (inputs[-1] == 1)


def test_routed_rules_write_by_the_adapter_of_the_likeliest_task(mixed):
    model = Model(mixed, rule="routed")
    answers = model.predict(["aaa 1:", "Tell me a story, number 3, please"])
    (alone,) = model.predict(["Tell me a story, number 3, please"], task="story")
    assert answers[1].answer == alone.answer and answers[0].task == "mood"


# -- tables


def predicted(model: Model, source: Path, output: Path, **options) -> list[dict]:
    predict_table(model, Table.open(source), output, **options)
    with output.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.filterwarnings("ignore:.*had no end")
def test_a_table_gets_answer_score_and_task(mixed, tmp_path):
    source = tmp_path / "new.csv"
    source.write_text("text,answer,n\naaa 1:,x,007\nbbb 2:,y,1.10\n")
    model = Model(mixed)
    rows = predicted(model, source, tmp_path / "out.csv", task="mood")
    assert list(rows[0]) == ["text", "answer", "n", "predicted_answer", "score", "task"]
    assert [row["n"] for row in rows] == ["007", "1.10"]
    answers = model.predict(["aaa 1:", "bbb 2:"], task="mood")
    assert [row["predicted_answer"] for row in rows] == [answer.answer for answer in answers]
    assert [float(row["score"]) for row in rows] == [answer.score for answer in answers]


def test_batches_do_not_matter(closed, tmp_path):
    source = tmp_path / "new.csv"
    lines = [f"{'ab'[i % 2] * (i % 7 + 1)} {i}:" for i in range(20)]
    source.write_text("text\n" + "\n".join(lines) + "\n")
    model = Model(closed)
    whole = [answer.answer for answer in model.predict(lines)]
    rows = predicted(model, source, tmp_path / "out.csv", batch_size=1)
    assert [row["answer"] for row in rows] == whole


@pytest.mark.parametrize(
    ("columns", "asked", "prompt"),
    [
        ({"text": "a"}, {}, "a"),
        ({"prompt": "a", "completion": "b"}, {}, "a"),
        ({"instruction": "a", "input": "b", "output": "c"}, {}, "a\n\nb"),
        ({"body": "a", "text": "b"}, {"text": ["body"]}, "a"),
        ({"body": "a", "n": 3}, {"prompt": "{body}: {n}"}, "a: 3"),
        ({"text": "a"}, {"prompt": "{text} {choices}", "task": "mood"}, "a bad, good"),
    ],
)
def test_prompts_of_columns(columns, asked, prompt, mixed, tmp_path):
    source = tmp_path / "new.jsonl"
    source.write_text(json.dumps(columns) + "\n")
    table = Table.open(source)
    read = Model(mixed).reader(table.columns, "`new.jsonl`", Asked(**asked))
    assert [read(row) for row in table.rows()] == [prompt]


@pytest.mark.parametrize(
    "case",
    [
        ({"text": ""}, {}, "row 2.*nothing"),
        ({"text": "  "}, {}, "row 2.*whitespace"),
        ({"text": None}, {}, "row 2.*has nothing in column `text`"),
        ({"text": "b"}, {"text": ["body"]}, "no column `body`"),
        ({"text": "b"}, {"prompt": "{body}"}, "placeholder `{body}`.*no such column"),
        ({"text": "b"}, {"prompt": "{text} {choices}"}, "name the task with `--task`"),
        ({"text": "b"}, {"image": "text"}, "reads a prompt"),
        ({"text": "b"}, {"text": ["text", "text_2"]}, "reads a prompt"),
    ],
)
def test_a_table_that_cannot_be_answered(case, mixed, tmp_path, monkeypatch):
    line, asked, message = case
    source = tmp_path / "new.jsonl"
    source.write_text(json.dumps({"text": "a"}) + "\n" + json.dumps(line) + "\n")
    monkeypatch.setattr(Model, "predict", lambda *a, **b: pytest.fail("something was predicted"))
    options = {"template" if name == "prompt" else name: value for name, value in asked.items()}
    with pytest.raises((DataError, InputError), match=message):
        predict_table(Model(mixed), Table.open(source), tmp_path / "out.jsonl", **options)
    assert os.listdir(tmp_path) == ["new.jsonl"]


def test_no_column_that_could_be_the_prompt(mixed, tmp_path):
    (tmp_path / "new.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="name the one that contains the prompt with `--text`"):
        predict_table(Model(mixed), Table.open(tmp_path / "new.csv"), tmp_path / "out.csv")


def test_a_prompt_of_a_megabyte_is_cut_and_that_is_said_once(closed, tmp_path):
    source = tmp_path / "new.csv"
    source.write_text("text\n" + "x" * 1_000_000 + "\nshort\n" + "y" * 1_000_000 + "\n")
    with pytest.warns(PerdureWarning, match="2 of 3 prompts are longer than") as said:
        rows = predicted(Model(closed), source, tmp_path / "out.csv")
    assert len(said) == 1 and len(rows) == 3


def test_answers_are_bounded(mixed, tmp_path):
    source = tmp_path / "new.csv"
    source.write_text("text\nsomething that was never learned\n")
    model = Model(mixed)
    model.backbone.prompts = type(model.backbone.prompts)(
        **{**vars(model.backbone.prompts), "max_new_tokens": 3}
    )
    with pytest.warns(PerdureWarning, match="1 of 1 answers were cut off after"):
        predicted(model, source, tmp_path / "out.csv", task="story")


def test_inputs_that_are_no_prompts(mixed):
    model = Model(mixed)
    with pytest.raises(DataError, match="Prompt 2: .*no token of the prompt"):
        model.predict(["a", ""])
    with pytest.raises(InputError, match="Input 1 is 3"):
        model.predict([3])
    with pytest.raises(InputError, match="Input 2 is a conversation, unlike"):
        model.predict(["a", [{"role": "user", "content": "b"}]])
    with pytest.raises(InputError, match="has no chat template"):
        model.predict([[{"role": "user", "content": "b"}]])
    with pytest.raises(DataError, match="role `robot`"):
        model.predict([[{"role": "robot", "content": "b"}]])


def test_add_predictions(closed):
    model = Model(closed)
    rows = model.add_predictions([{"text": "aaa 1:"}, {"text": "bbb 2:"}])
    assert [row["answer"] for row in rows] == [
        answer.answer for answer in model.predict(["aaa 1:", "bbb 2:"])
    ]


# -- the terminal


def test_one_prompt_on_the_terminal(mixed, perdure):
    status, out, err = perdure("predict", mixed.folder, "--prompt", "aaa 1:")
    assert (status, err) == (0, "")
    answer, about = out.splitlines()
    assert answer in language_runs.WORDS["mood"]
    assert about.startswith("Task mood, log-probability per token -")
    quiet = perdure("predict", mixed.folder, "--prompt", "aaa 1:", "--quiet")
    assert quiet == (0, f"{answer}\n", "")
    assert perdure("predict", mixed.folder)[0] == 1
    status, _, err = perdure("predict", mixed.folder, "--prompt", " ")
    assert status == 1 and "`--prompt` is empty" in err
