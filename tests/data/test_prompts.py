"""Tasks whose answer is text: five formats of one's own data, and what is wrong, in a sentence."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from prompt_tables import ALPACA, ASKED, CHAT, COMPLETIONS, LABELLED, PAIRS, SAID, lines, turn
from tables import write

from perdure import DataError, Task, read_tasks
from perdure.data.examples import from_dataset
from perdure.data.formats import Request, reading_of
from perdure.data.prompts import with_choices
from perdure.data.splits import bounded
from perdure.data.table import _columns


def parquet(folder, rows):
    pq.write_table(pa.Table.from_pylist(rows), folder / "t.parquet")
    return str(folder / "t.parquet")


def csv_of(folder, rows):
    cells = [tuple(row.values()) for row in rows]
    return write(folder / "t.csv", cells, tuple(rows[0]))


def whole(path, **columns):
    """The task of a table of which no split is cut off."""
    files = {"train": path, "validation": path, "test": path}
    (task,) = read_tasks(files, name="t", **columns)
    return task


def asked_and_said(task):
    prompt = "messages" if "messages" in task.train.column_names else "text"
    return task.train[prompt][:], task.references("train")


# -- five formats, each from a file of five lines


@pytest.mark.parametrize("save", [lines, parquet, csv_of])
def test_prompt_and_completion(save, tmp_path):
    path = save(tmp_path, COMPLETIONS)
    assert asked_and_said(whole(path)) == (ASKED, [[said] for said in SAID])
    (task,) = read_tasks(path)
    assert task.classes == () and task.score == "accuracy"
    assert [len(task.train), len(task.validation), len(task.test)] == [3, 1, 1]
    rows = [*task.train["row"], *task.validation["row"], *task.test["row"]]
    assert sorted(rows) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("save", [lines, parquet, csv_of])
def test_instruction_input_and_output(save, tmp_path):
    prompts, said = asked_and_said(whole(save(tmp_path, ALPACA)))
    assert prompts == ["Add.", "Add.\n\n1, 1", "Add.", "Add.\n\n3, 3", "Add."]
    assert said == [[answer] for answer in SAID]


def test_an_input_may_be_missing_as_a_column_or_as_a_key(tmp_path):
    without = [
        {"instruction": asked, "output": said} for asked, said in zip(ASKED, SAID, strict=True)
    ]
    for rows in (without, [*without[:2], *({**row, "input": "x"} for row in without[2:])]):
        prompts, _ = asked_and_said(whole(lines(tmp_path, rows)))
        assert prompts[0] == ASKED[0]
        assert prompts[-1] == ASKED[-1] + ("\n\nx" if "input" in rows[-1] else "")


@pytest.mark.parametrize("save", [lines, parquet])
def test_conversations(save, tmp_path):
    prompts, said = asked_and_said(whole(save(tmp_path, CHAT)))
    assert prompts == [row["messages"][:-1] for row in CHAT]
    assert said == [[answer] for answer in SAID]


@pytest.mark.parametrize("save", [lines, parquet, csv_of])
def test_texts_with_labels_stay_a_closed_set(save, tmp_path):
    task = whole(save(tmp_path, LABELLED))
    assert task.classes == ("no", "yes") and task.train["label"][:] == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("save", [lines, parquet, csv_of])
def test_templates_with_free_answers_and_with_classes(save, tmp_path):
    path = save(tmp_path, PAIRS)
    free = whole(path, prompt="1: {premise}\n2: {{{hypothesis}}}", answer="It is {label}.")
    assert free.classes == () and free.train["text"][0] == "1: p0\n2: {h0}"
    assert free.train["target"][1] == "It is yes."
    closed = whole(path, prompt="{premise}, {hypothesis}: {choices}?", label="label")
    assert closed.classes == ("no", "yes")
    assert closed.train["text"][0] == "p0, h0: no, yes?" and closed.train["label"][1] == 1
    # A column of the class that has the usual name need not be named.
    assert whole(path, prompt="{premise}").classes == ("no", "yes")
    assert whole(path, prompt="premise", answer="hypothesis").train["target"][0] == "h0"


# -- what the columns say, and what overrides it


@pytest.mark.parametrize(
    ("columns", "asked", "prompt", "answers"),
    [
        ("text label", {}, None, None),
        ("text label prompt completion messages", {}, None, None),
        ("image label prompt", {}, None, None),
        ("text prompt completion", {}, "prompt", "completion"),
        ("messages prompt completion", {}, "messages", "messages"),
        ("prompt label", {}, "prompt", None),
        ("prompt completion label", {}, "prompt", "completion"),
        ("prompt completion kind", {"label": "kind"}, "prompt", None),
        ("messages kind", {"label": "kind"}, "messages", None),
        ("text kind", {"label": "kind"}, None, None),
        ("text reply", {"answer": "reply"}, "text", "reply"),
        ("body reply", {"text": ["body"], "answer": "reply"}, "body", "reply"),
        ("instruction input reply", {"answer": "{reply}"}, "instruction input", "reply"),
        ("a b output", {"prompt": "{a} {b}"}, "a b", "output"),
        ("a label", {"prompt": "a"}, "a", None),
        ("a b", {"text": ["a", "b"]}, None, None),
    ],
)
def test_which_columns_are_read(columns, asked, prompt, answers):
    reading = reading_of(columns.split(), "`t.csv`", Request(**asked))
    if prompt is None:
        assert reading is None
        return
    assert reading.prompt.columns == tuple(prompt.split())
    given = reading.answers.columns if reading.answers else None
    assert given == (tuple(answers.split()) if answers else None)


def test_a_conversation_with_a_class_is_the_whole_prompt(tmp_path):
    rows = [{"messages": [turn("user", "hi")], "kind": kind} for kind in ("a", "b")]
    task = whole(lines(tmp_path, rows), label="kind")
    assert task.classes == ("a", "b") and task.train["messages"][0] == [turn("user", "hi")]


# -- several right answers, scores, tasks in one table


@pytest.mark.parametrize("save", [lines, parquet])
def test_several_right_answers(save, tmp_path):
    rows = [{**row, "output": [row["output"], "about that"]} for row in ALPACA]
    task = whole(save(tmp_path, rows))
    assert task.train["target"][:] == SAID
    assert task.references("test") == [[said, "about that"] for said in SAID]
    one = whole(save(tmp_path, [{**row, "output": [row["output"]]} for row in ALPACA]))
    assert "answers" not in one.train.column_names
    assert one.digests() == whole(save(tmp_path, ALPACA)).digests() != task.digests()


def test_a_list_in_csv_is_one_text(tmp_path):
    rows = [{"prompt": f"q{i}", "completion": '["a", "b"]'} for i in range(5)]
    assert whole(csv_of(tmp_path, rows)).train["target"][0] == '["a", "b"]'


def test_numbers_are_written_as_in_the_table(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"year": 1999, "price": 1.10, "good": true}\n' * 3)
    task = whole(str(path), prompt="{year}: {good}", answer="price")
    assert task.train["text"][0] == "1999: true" and task.train["target"][0] == "1.10"


def test_a_score_is_kept(tmp_path):
    assert whole(lines(tmp_path, CHAT), score="rouge_l").score == "rouge_l"
    assert whole(lines(tmp_path, LABELLED), score="macro_f1").score == "macro_f1"


def test_tasks_of_one_table_and_their_own_choices(tmp_path):
    words = {"mood": ("good", "bad"), "size": ("big", "small")}
    rows = [
        {"body": f"b{i}", "kind": kind, "label": words[kind][i % 2]}
        for kind in words
        for i in range(8)
    ]
    tasks = read_tasks(lines(tmp_path, rows), prompt="{body}? {choices}", task="kind")
    assert [task.name for task in tasks] == ["mood", "size"]
    assert tasks[0].train["text"][0].endswith("? bad, good")
    assert tasks[1].test["text"][0].endswith("? big, small")
    free = read_tasks(lines(tmp_path, rows), prompt="body", answer="label", task="kind")
    assert [task.classes for task in free] == [(), ()] and free[1].name == "size"


def test_choices_may_be_a_column(tmp_path):
    rows = [{"q": "?", "choices": f"A or B{i}", "label": "AB"[i % 2]} for i in range(4)]
    task = whole(lines(tmp_path, rows), prompt="{q} {choices}")
    assert task.train["text"][1] == "? A or B1"
    assert with_choices("a, b", ["x"]) == "a, b"


def test_a_data_set_of_the_hub(tmp_path):
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "mood": datasets.ClassLabel(names=["bad", "good"])}
    )
    data = Dataset.from_dict({"prompt": ["a", "b"], "mood": [1, 0]}, features=features)
    columns = _columns(data.column_names, "`hub`", Request(answer="It is {mood}."), None)
    assert from_dataset(data, "`hub`", columns).to_dict() == {
        "text": ["a", "b"],
        "row": [1, 2],
        "target": ["It is good.", "It is bad."],
    }
    chat = Dataset.from_list(CHAT)
    columns = _columns(chat.column_names, "`hub`", Request(), None)
    assert from_dataset(chat, "`hub`", columns)["target"][:] == SAID


def test_a_validation_split_is_cut_without_classes():
    rows = Dataset.from_dict({"text": list("abcdefghij"), "target": list("abcdefghij")})
    sizes = {"train": 4, "validation": 2, "test": None}
    splits = bounded({"train": rows, "test": rows}, sizes, seed=0)
    assert [len(splits[split]) for split in ("train", "validation", "test")] == [4, 2, 10]
    assert not set(splits["train"]["text"]) & set(splits["validation"]["text"])


# -- what is wrong, in a sentence


def with_row(rows, number, **cells):
    """The rows with other cells in one of them, counted from 1; without those that are None."""
    changed = {key: value for key, value in (rows[number - 1] | cells).items() if value is not ...}
    return [*rows[: number - 1], changed, *rows[number:]]


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        # missing columns, and cells
        (COMPLETIONS, {"prompt": "body"}, "has no column `body`, which `prompt` names. Its"),
        (COMPLETIONS, {"prompt": ""}, "has no column ``, which `prompt` names"),
        (COMPLETIONS, {"answer": ""}, "has no column ``, which `answer` names"),
        (LABELLED, {"label": ""}, "has no column ``. "),
        (COMPLETIONS, {"answer": "complete"}, "`answer` names. Did you mean `completion`?"),
        ([{"prompt": "a"}], {}, r"columns \['prompt'\]: say which holds the input, .*`prompt=…`"),
        ([{"prompt": "a"}], {"prompt": "prompt"}, "say which holds the answer, with `answer=…`"),
        ([{"a": "a"}], {"answer": "a"}, "say which holds the prompt, with `prompt=…`"),
        (
            [{"text": "a", "reply": "b"}],
            {},
            "no column `label`. .* `label`, or the column with a free-text answer as `answer`",
        ),
        (with_row(COMPLETIONS, 2, prompt=...), {}, "row 2 .*has nothing in column `prompt`"),
        (with_row(COMPLETIONS, 3, prompt=7), {}, "row 3 .*the number `7` in column `prompt`"),
        # templates
        (
            PAIRS,
            {"prompt": "{premis}"},
            r"`\{premis\}`, .* Did you mean `\{premise\}`\? Its columns",
        ),
        (PAIRS, {"prompt": "{}"}, r"the placeholder `\{\}`, but"),
        (PAIRS, {"prompt": "{premise"}, "a `{` that is not part of a placeholder: .*Write `{{`"),
        (PAIRS, {"prompt": "premise}"}, "has a `}` that is not part of a placeholder"),
        (PAIRS, {"prompt": "{{premise}}"}, r"the same for all rows. Name .* `\{premise\}`"),
        (PAIRS, {"prompt": "{premise.__class__}"}, "has the placeholder `{premise.__class__}`"),
        (
            PAIRS,
            {"prompt": "{premise} {choices}", "answer": "label"},
            "`{choices}`, which lists the classes, but the answer is free text",
        ),
        (
            with_row(PAIRS, 4, premise=[1]),
            {"prompt": "{premise}"},
            "row 4 .*has a list in .*a text",
        ),
        (with_row(PAIRS, 4, premise=""), {"prompt": "{premise}"}, "row 4 .*nothing in .*`premise`"),
        # answers
        (with_row(COMPLETIONS, 2, completion=""), {}, r"row 2 \(line 2\), .*column `completion`"),
        (
            with_row(COMPLETIONS, 2, completion=" "),
            {},
            "row 2 .*whitespace in column `completion`",
        ),
        (with_row(ALPACA, 3, output=[]), {}, "row 3 .*an empty list in column `output`"),
        (
            with_row(ALPACA, 3, output=["a", ""]),
            {},
            "row 3 .*, answer 2, has nothing in .*`output`",
        ),
        (with_row(ALPACA, 3, output={"a": 1}), {}, "row 3 .*has an object in column `output`"),
        # conversations
        (with_row(CHAT, 2, messages=[turn("human", "a")]), {}, "row 2 .*turn 1 .*the role `human`"),
        (
            with_row(CHAT, 2, messages=[turn("user", "a")]),
            {},
            "row 2 .*ends with a turn of the user. .* must be the assistant's",
        ),
        (
            with_row(CHAT, 2, messages=[turn("user", ["a"]), turn("assistant", "b")]),
            {},
            "row 2 .*turn 1 .*has a list as its content, where a text is expected",
        ),
        (
            with_row(CHAT, 2, messages=[turn("user", "a"), turn("assistant", None)]),
            {},
            "row 2 .*turn 2 of column `messages`, has no content",
        ),
        (
            with_row(CHAT, 2, messages=[turn("user", "a"), turn("assistant", " ")]),
            {},
            "row 2 .*an empty answer in column `messages`",
        ),
        (with_row(CHAT, 2, messages=[turn("assistant", "a")]), {}, "row 2 .*with a single turn"),
        (with_row(CHAT, 2, messages=[]), {}, "row 2 .*has nothing in column `messages`"),
        (
            with_row(CHAT, 2, messages="hi"),
            {},
            "row 2 .*has a text in .*a list of turns is expected",
        ),
        (with_row(CHAT, 2, messages=["hi"]), {}, "row 2 .*turn 1 .*is not an object with `role`"),
        # options that do not go together
        (PAIRS, {"answer": "label", "label": "label"}, "Give either `answer` or `label`"),
        (PAIRS, {"prompt": "premise", "text": "premise"}, "Give either `prompt`, or `text`"),
        (PAIRS, {"prompt": "premise", "image": "premise"}, "Give either `prompt`, or `text`"),
        (PAIRS, {"text": ["premise", "hypothesis"], "answer": "label"}, "is a pair of texts"),
        (PAIRS, {"image": "premise", "answer": "label"}, "but the input is an image"),
        # too few, or no classes
        (COMPLETIONS[:2], {}, "Task `t` has too few examples to set some apart for `validation`"),
        (
            [{"text": f"t{i}", "label": f"a whole sentence as the class {i}"} for i in range(5)],
            {},
            "look like texts, not classes. .* as `label`, or for a language model .*`answer`",
        ),
    ],
)
def test_what_is_wrong_is_said(rows, columns, message, tmp_path):
    with pytest.raises(DataError, match=message) as caught:
        read_tasks(lines(tmp_path, rows), **columns)
    assert str(caught.value).count(". ") <= 3 and "\n" not in str(caught.value)


def test_an_empty_answer_of_a_csv_names_row_and_column(tmp_path):
    path = csv_of(tmp_path, with_row(COMPLETIONS, 2, completion=""))
    with pytest.raises(DataError, match=r"row 2 \(line 3\), has nothing in column `completion`"):
        read_tasks(path)


def test_conversations_cannot_stand_in_a_csv(tmp_path):
    path = csv_of(tmp_path, [{"messages": json.dumps(row["messages"])} for row in CHAT])
    with pytest.raises(DataError, match="has a text in column `messages`.*in JSON or Parquet"):
        read_tasks(path)


def test_a_test_file_needs_the_same_columns(tmp_path):
    files = {
        "train": lines(tmp_path, COMPLETIONS),
        "test": lines(tmp_path, ALPACA, "test.jsonl"),
    }
    with pytest.raises(DataError, match="test.jsonl` has no column `prompt`. .*as `prompt`"):
        read_tasks(files, name="t")


def test_a_task_made_in_python_needs_answers():
    rows = Dataset.from_dict({"text": ["a", "b"], "target": ["x", " "]})
    with pytest.raises(DataError, match="no answer in example 2: `target` is ' '"):
        Task("t", (), train=rows, validation=rows, test=rows)
