"""Benchmarks for language models: prompts of the text benchmark, and Super-NaturalInstructions."""

import json
from pathlib import Path

import datasets
import pytest
from conftest import SHARED
from datasets import Dataset
from transformers import AutoTokenizer

from perdure import Recipe
from perdure.benchmarks.parts.text_prompts import PAIRS, QUESTIONS, pair, prompt
from perdure.benchmarks.standard_cl import CARDS, ORDERS, standard_cl
from perdure.benchmarks.super_ni import ORDERS as NI_ORDERS
from perdure.benchmarks.super_ni import TASKS, super_ni
from perdure.bundled.smollm2 import smollm2
from perdure.errors import DataError, InputError, UnknownName

RECIPES = Path(__file__).parents[2] / "recipes"


def test_every_task_has_a_question():
    assert QUESTIONS.keys() == CARDS.keys()
    for order in ORDERS.values():
        assert set(order.split()) <= QUESTIONS.keys()


def test_the_prompt_of_o_lora():
    """As its code builds it: the kind of task, the data set, the instruction and the options."""
    text = prompt("o_lora", "agnews", ["World", "Sports"], "Title: a\nText: b")
    assert text == (
        "Task:TC\nDataset:agnews\nWhat is the topic of the following paragraph? Choose one from "
        "the option.\nOption: World, Sports\nTitle: a\nText: b\nAnswer:"
    )
    assert (
        prompt("options", "copa", ["A", "B"], "Which?\nA: x\nB: y") == "Which?\nA: x\nB: y\nAnswer:"
    )


def text_folder(folder, tasks):
    folder.mkdir()
    manifest = {name: {"labels": ["no", "yes"]} for name in tasks}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for name in tasks:
        splits = ["train"] * 8 + ["test"] * 4
        rows = {"text": [f"{name} {i}" for i in range(12)], "label": [0, 1] * 6, "split": splits}
        Dataset.from_dict(rows).to_parquet(folder / f"{name}.parquet")
    return str(folder)


def test_prompts_of_a_folder(tmp_path):
    folder = text_folder(tmp_path / "texts", ["sst2", "wic"])
    plain = standard_cl(folder=folder, order=["sst2", "wic"])
    asked = standard_cl(folder=folder, order=["sst2", "wic"], prompts="options")
    for before, after in zip(plain, asked, strict=True):
        assert after.classes == before.classes
        assert after.test["label"][:] == before.test["label"][:]
        for text, question in zip(before.test["text"], after.test["text"], strict=True):
            assert question == prompt("options", after.name, after.classes, text)


def test_texts_are_shortened_before_a_prompt_is_made_of_them(tmp_path):
    folder = text_folder(tmp_path / "texts", ["sst2"])
    long = "one two three four five six"
    rows = {"text": [long] * 12, "label": [0, 1] * 6, "split": ["train"] * 8 + ["test"] * 4}
    Dataset.from_dict(rows).to_parquet(tmp_path / "texts" / "sst2.parquet")
    for words, text in ((3, "one two … six"), (6, long)):
        stream = standard_cl(folder=folder, order=["sst2"], prompts="options", words=words)
        expected = prompt("options", "sst2", ["no", "yes"], text)
        assert set(stream[0].test["text"]) == {expected}


def test_words_that_cannot_be_used(tmp_path):
    folder = text_folder(tmp_path / "texts", ["sst2"])
    with pytest.raises(InputError, match="`words` is 1, but a text keeps its first and its last"):
        standard_cl(folder=folder, order=["sst2"], words=1)
    with pytest.raises(InputError, match="`words` cannot be used with `prompts: pairs`"):
        standard_cl(folder=folder, order=["sst2"], words=20, prompts="pairs")


def test_an_unknown_way_to_ask(tmp_path):
    with pytest.raises(UnknownName, match="No way to ask named `option`. Did you mean `options`"):
        standard_cl(
            folder=text_folder(tmp_path / "texts", ["sst2"]), order=["sst2"], prompts="option"
        )


def test_a_task_without_a_question(tmp_path):
    folder = text_folder(tmp_path / "texts", ["mine"])
    with pytest.raises(UnknownName, match="No task named `mine`"):
        standard_cl(folder=folder, order=["mine"], prompts="options")


@pytest.mark.parametrize(
    "task, text, first, second",
    [
        ("mnli", "sentence 1: a \nsentence 2: b", "a", "b"),
        ("cb", "sentence 1: a\nb\nsentence 2: c", "a\nb", "c"),
        ("qqp", "first sentence: a\nsecond sentence: b", "a", "b"),
        ("boolq", "question: a\npassage: b\nc", "a", "b\nc"),
        ("wic", "word: a\nb\nc", "a\nb", "c"),
        (
            "multirc",
            "paragraph: a\nquestion: b\ncandidate answer: c",
            "a",
            "question: b\ncandidate answer: c",
        ),
        ("copa", "a?\nA: b\nB: c", "a?", "A: b\nB: c"),
    ],
)
def test_texts_in_pairs(task, text, first, second):
    assert pair(task, text) == (first, second)


def test_pairs_of_a_folder(tmp_path):
    """A task of pairs has two columns, another one its text as before; the labels stay."""
    folder = text_folder(tmp_path / "texts", ["sst2", "wic"])
    rows = {"text": ["word: a\nb\nc"] * 8, "label": [0, 1] * 4, "split": ["train", "test"] * 4}
    Dataset.from_dict(rows).to_parquet(tmp_path / "texts" / "wic.parquet")
    sst2, wic = standard_cl(folder=folder, order=["sst2", "wic"], prompts="pairs")
    assert sst2.train.column_names == ["text", "label"]
    assert wic.test[:] == {"text": ["a\nb"] * 4, "text_pair": ["c"] * 4, "label": [1] * 4}


def test_a_text_that_is_no_pair(tmp_path):
    folder = text_folder(tmp_path / "texts", ["rte"])
    with pytest.raises(DataError, match="`rte` is not in the form of a pair.*`prompts: plain`"):
        standard_cl(folder=folder, order=["rte"], prompts="pairs")


def test_every_real_pair_can_be_taken_apart(shared):
    stream = standard_cl(folder=str(shared / "text15"), order=list(PAIRS), prompts="pairs")
    for task in stream:
        assert all(task.train["text_pair"]) and all(task.test["text"])


@pytest.mark.parametrize("benchmark", [standard_cl, super_ni])
@pytest.mark.parametrize(
    "order, message", [(["sst2", "sst2"], "names task `sst2` twice"), (["sst2", 3], "by strings")]
)
def test_orders_that_are_refused(benchmark, order, message, tmp_path):
    folder = text_folder(tmp_path / "texts", ["sst2"])
    with pytest.raises(InputError, match=message):
        benchmark(folder=folder, order=order)


@pytest.mark.parametrize("benchmark", [standard_cl, super_ni])
def test_an_order_is_checked_before_anything_is_downloaded(benchmark, monkeypatch):
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args: asked.append(args))
    with pytest.raises(UnknownName, match="No task named `sst3`. Did you mean `sst2`"):
        benchmark(order=["sst2", "sst3"])
    assert asked == []


def test_an_order_is_checked_before_a_folder_is_read(tmp_path):
    folder = text_folder(tmp_path / "texts", ["dbpedia", "yahoo"])
    (tmp_path / "texts" / "dbpedia.parquet").unlink()
    for order in ("order1", ["dbpedia", "amazon"]):
        with pytest.raises(UnknownName, match="No task named `amazon`. Available: dbpedia, yahoo"):
            standard_cl(folder=folder, order=order)


def test_a_task_without_test_rows(tmp_path):
    folder = text_folder(tmp_path / "texts", ["sst2", "wic"])
    rows = {"text": list("abcd"), "label": [0, 1] * 2, "split": ["train"] * 4}
    Dataset.from_dict(rows).to_parquet(tmp_path / "texts" / "wic.parquet")
    with pytest.raises(DataError, match="wic.parquet` has no rows in split `test`"):
        standard_cl(folder=folder, order=["sst2", "wic"])


# -- the folder that O-LoRA publishes


def published(folder, **changes):
    """Two tasks of O-LoRA's `CL_Benchmark`; `changes` replace files of the first one."""
    for path in ("NLI/MNLI", "SC/SST-2"):
        (folder / path).mkdir(parents=True)
        classes = ["neutral", "entailment"] if "NLI" in path else ["Good", "Bad"]
        files = {"labels": classes}
        for split in ("train", "test"):
            files[split] = [
                {"label": classes[i % 2], "sentence": f"sentence 1: {split} {i}\nsentence 2: no"}
                for i in range(10)
            ]
        files["test"].append({"label": "-", "sentence": "nobody knows"})
        files["dev"] = files["test"]
        for name, content in (files | (changes if "NLI" in path else {})).items():
            (folder / path / f"{name}.json").write_text(json.dumps(content))
    return str(folder)


def test_the_folder_of_o_lora(tmp_path):
    folder = published(tmp_path / "CL_Benchmark")
    stream = standard_cl(folder=folder, order=["sst2", "mnli"], validation=2, prompts="o_lora")
    assert stream.names == ["sst2", "mnli"]
    task = stream.task("mnli")
    assert task.classes == ("neutral", "entailment")
    # The validation split is cut off training, and the example without a label is left out.
    assert (len(task.train), len(task.validation), len(task.test)) == (8, 2, 10)
    assert task.test[1]["label"] == 1
    assert task.test[1]["text"].endswith(
        "Option: neutral, entailment\nsentence 1: test 1\nsentence 2: no\nAnswer:"
    )
    with pytest.raises(UnknownName, match="No task named `cb`. Available: mnli, sst2"):
        standard_cl(folder=folder, order=["mnli", "cb"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {"neutral": 0}}, "MNLI/labels.json` must hold a list"),
        ({"labels": [0, 1]}, r"MNLI/labels.json` must be a list of texts, got \[0, 1\]"),
        ({"train": [{"label": "neutral"}]}, "MNLI/train.json`, example 1: it needs a text"),
        ({"test": ["neutral"]}, "MNLI/test.json`, example 1: it needs a text"),
        (
            {"test": [{"label": "maybe", "sentence": "x"}]},
            r"one of \['neutral', 'entailment'\] as `label`, got 'x' and 'maybe'",
        ),
        ({"test": [{"label": "-", "sentence": "x"}]}, "MNLI/test.json` has no examples"),
    ],
)
def test_a_published_file_that_is_wrong(changes, message, tmp_path):
    folder = published(tmp_path / "CL_Benchmark", **changes)
    with pytest.raises(DataError, match=message):
        standard_cl(folder=folder, order=["mnli"])


def test_a_published_file_that_is_missing(tmp_path):
    folder = published(tmp_path / "CL_Benchmark")
    (tmp_path / "CL_Benchmark/NLI/MNLI/train.json").unlink()
    with pytest.raises(DataError, match="MNLI/train.json` cannot be read"):
        standard_cl(folder=folder, order=["mnli"])
    with pytest.raises(DataError, match="must hold `manifest.json`.*such as `TC/agnews`"):
        standard_cl(folder=str(tmp_path), order=["mnli"])
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(DataError, match="manifest.json` must hold an object"):
        standard_cl(folder=str(tmp_path), order=["mnli"])


# -- Super-NaturalInstructions


def instructions(folder, names, splits=("train", "test")):
    folder.mkdir()
    manifest = {TASKS[name]: {"definition": [f"Do {name}."]} for name in names}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for name in names:
        rows = []
        for split in splits:
            for i in range(10):
                rows.append({"split": split, "input": f" {split} {i} ", "output": [f" a{i}", "b"]})
        Dataset.from_list(rows).to_parquet(folder / f"{TASKS[name]}.parquet")
    return str(folder)


def test_the_orders():
    for order in NI_ORDERS.values():
        assert sorted(order.split()) == sorted(TASKS)


def test_instructions_of_a_folder(tmp_path):
    folder = instructions(tmp_path / "ni", ["sciq", "xsum"])
    stream = super_ni(folder=folder, order=["xsum", "sciq"], train=5, validation=2, test=3)
    assert [task.name for task in stream] == ["xsum", "sciq"]
    task = stream.tasks[0]
    assert (len(task.train), len(task.validation), len(task.test)) == (5, 2, 3)
    assert task.classes == () and task.score == "rouge_l"
    row = task.test[0]
    number = row["target"].removeprefix("a")
    assert row["answers"] == [f"a{number}", "b"]
    assert row["text"] == (
        "Definition: Do xsum.\n\nNow complete the following example -\n"
        f"Input: test {number}\nOutput: "
    )


def sapt(folder, content):
    """One task as SAPT publishes it, with the same `content` in each file."""
    task = folder / TASKS["sciq"]
    task.mkdir(parents=True)
    for file in ("train", "dev", "test"):
        (task / f"{file}.json").write_text(json.dumps(content))
    return str(folder)


def test_the_folder_of_sapt(tmp_path):
    rows = [{"id": "a", "input": f" in {i} ", "output": [" x ", "y"]} for i in range(6)]
    rows += [{"input": "in 6", "output": "z"}, {"input": "in 7", "output": []}]
    folder = sapt(tmp_path / "SuperNI", {"Definition": ["Do it. "], "Instances": rows})
    (task,) = super_ni(folder=folder, order=["sciq"], validation=3, test=None)
    assert (len(task.train), len(task.validation), len(task.test)) == (7, 3, 7)
    assert task.test["answers"][:][5:] == [["x", "y"], ["z"]]
    assert task.test["text"][0] == (
        "Definition: Do it.\n\nNow complete the following example -\nInput: in 0\nOutput: "
    )


@pytest.mark.parametrize(
    "content",
    [
        {"Instances": []},
        {"Definition": [], "Instances": []},
        {"Definition": ["Do it."], "Instances": [{"input": "in"}]},
        {"Definition": ["Do it."], "Instances": [{"input": "in", "output": [3]}]},
    ],
)
def test_a_file_of_sapt_that_is_wrong(content, tmp_path):
    folder = sapt(tmp_path / "SuperNI", content)
    with pytest.raises(DataError, match="sciq.*train.json` must have a list `Definition`"):
        super_ni(folder=folder, order=["sciq"])


def test_instructions_of_the_hub(tmp_path, monkeypatch):
    """One row for each right answer, which are put together."""
    rows = []
    for answer in ("x", "y"):
        common = {"definition": "Do it.", "inputs": "in", "targets": answer}
        rows.append(common | {"task_name": TASKS["sciq"]})
        rows.append(common | {"task_name": "task1_other"})
    both = Dataset.from_list([row | {"inputs": f"in {i}"} for i in range(6) for row in rows])
    monkeypatch.setattr(datasets, "load_dataset", lambda name: {"train": both, "test": both})
    (task,) = super_ni(order=["sciq"])
    assert len(task.test) == 6 and task.test[0]["answers"] == ["x", "y"]


def test_no_test_rows(tmp_path):
    folder = instructions(tmp_path / "ni", ["sciq"], splits=["train"])
    with pytest.raises(
        DataError, match="Task `sciq` of `super_ni` has no rows with `split` `test`"
    ):
        super_ni(folder=folder, order=["sciq"])


@pytest.mark.parametrize("order", ["order3", ["scik"]])
def test_an_order_that_is_unknown(order, tmp_path):
    with pytest.raises(UnknownName, match="Did you mean"):
        super_ni(folder=str(tmp_path), order=order)


def test_a_folder_that_lacks_something(tmp_path):
    with pytest.raises(DataError, match="must hold `task591_sciq_answer_generation.parquet`"):
        super_ni(folder=str(tmp_path), order=["sciq"])


@pytest.mark.real
def test_the_real_instructions():
    folder = SHARED / "data" / "superni15"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    stream = super_ni(folder=str(folder))
    assert [len(task.test) for task in stream.tasks[:4]] == [20, 100, 100, 43]
    assert all(task.score == "rouge_l" for task in stream)


@pytest.mark.real
@pytest.mark.parametrize("name", ["standard_order1", "long_order4"])
def test_a_prompt_that_is_cut_keeps_its_options(name, shared, language_cache):
    """What is cut is the middle of a prompt, and the options are in its first half."""
    settings = [f"stream.folder={shared / 'text15'}", "stream.train=20", "stream.words=null"]
    recipe = Recipe.read(RECIPES / "language" / f"{name}.yaml", settings)
    tokenizer = AutoTokenizer.from_pretrained(smollm2().fetched())
    for task in recipe.make_stream():
        asked, _, rest = prompt("options", task.name, task.classes, "TEXT").partition("TEXT")
        assert task.test["text"][0].startswith(asked)
        most = recipe.backbone["max_length"] // 2
        assert max(len(tokenizer(part).input_ids) for part in (asked, rest)) <= most
