"""Fifteen tasks of Super-NaturalInstructions, answered in free text, as in SAPT and GainLoRA."""

import json
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset

from perdure.benchmarks.parts.json_files import read_object
from perdure.benchmarks.parts.orders import ordered, task_names
from perdure.data.splits import bounded
from perdure.data.table import from_hub
from perdure.data.task import Split, Task, TaskStream
from perdure.errors import DataError

TASKS = {
    "quoref": "task002_quoref_answer_generation",
    "commonsenseqa": "task073_commonsenseqa_answer_generation",
    "xsum": "task1290_xsum_summarization",
    "evalution": "task1510_evalution_relation_extraction",
    "samsum": "task1572_samsum_summary",
    "diplomacy": "task1590_diplomacy_text_generation",
    "sentiment140": "task1687_sentiment140_classification",
    "personachat": "task1729_personachat_generate_next",
    "outcome": "task181_outcome_extraction",
    "sst2": "task363_sst2_polarity_classification",
    "reddit_tifu": "task511_reddit_tifu_long_text_summarization",
    "sciq": "task591_sciq_answer_generation",
    "multi_woz": "task639_multi_woz_user_utterance_generation",
    "glucose": "task748_glucose_reverse_cause_event_detection",
    "emotion": "task875_emotion_classification",
}
ORDERS = {
    "order1": "samsum sst2 xsum outcome quoref evalution multi_woz personachat commonsenseqa "
    "diplomacy glucose reddit_tifu sciq sentiment140 emotion",
    "order2": "glucose commonsenseqa diplomacy multi_woz samsum sentiment140 sciq sst2 evalution "
    "personachat outcome reddit_tifu quoref xsum emotion",
}
FILES: dict[Split, str] = {
    "train": "train.json",
    "validation": "dev.json",
    "test": "test.json",
}
"""The files of a task in SAPT's repository."""
HUB = "Muennighoff/natural-instructions"
PROMPT = "Definition: {}\n\nNow complete the following example -\nInput: {}\nOutput: "


@ordered(ORDERS)
def super_ni(
    *,
    folder: str | None = None,
    order: str | list[str] = "order1",
    train: int | None = None,
    validation: int | None = None,
    test: int | None = None,
    seed: int = 0,
) -> TaskStream:
    """Fifteen instructions: summaries, dialogue, extraction, questions, sentiment and emotion.

    The score is ROUGE-L with the closest of an example's correct answers; SAPT and
    GainLoRA draw one of them at random, even for testing. The prompt is the same as
    theirs: the definition of the task, then the input. It does not name the task or the
    data set. Rows with an empty answer are left out.

    The instructions are Apache-2.0; the data sets keep their own terms.

    Parameters
    ----------
    folder
        A folder with `manifest.json` (the `definition` of each task, a list of one text)
        and a file `<task>.parquet` for each, with the columns `input`, `output` (a list
        of correct answers) and `split`; or `CL_Benchmark/SuperNI` of SAPT's repository
        (https://github.com/circle-hit/SAPT), where a task is a folder with `train.json`,
        `dev.json` (the validation split) and `test.json`. If it is not given, the tasks
        are loaded from Muennighoff/natural-instructions on the Hugging Face hub. That
        code follows its card and has not been run against the hub.
    order
        `order1` or `order2`, the two orders of SAPT, or a list of task names.
    train, test
        The number of examples per task; by default all. SAPT uses up to 1,000 and 100.
    validation
        The number of training examples per task that become its validation split, at most
        a fifth; by default a tenth.
    seed
        Seed for the choice of examples.

    Raises
    ------
    UnknownName
        There is no such order or task.
    DataError
        The folder lacks a file or column, a task has no test rows, or the hub cannot be reached.

    References
    ----------
    Wang et al. (Super-NaturalInstructions), arXiv 2204.07705; Zhao et al. (SAPT), arXiv 2401.08295.
    """
    names = task_names(order, ORDERS, TASKS)
    sizes: dict[Split, int | None] = {"train": train, "validation": validation, "test": test}
    if folder is None:
        sources = _from_hub(names)
    else:
        sources = {name: _from_folder(Path(folder), name) for name in names}
    tasks = []
    for name, splits in sources.items():
        for split in ("train", "test"):
            if split not in splits:
                raise DataError(f"Task `{name}` of `super_ni` has no rows with `split` `{split}`.")
        tasks.append(Task(name, (), **bounded(splits, sizes, seed), score="rouge_l"))
    return TaskStream("super_ni", tuple(tasks))


def _from_folder(folder: Path, name: str) -> dict[Split, Dataset]:
    """Return the rows of a task by split, as prompts and answers."""
    if (folder / TASKS[name]).is_dir():
        return _from_published(folder / TASKS[name])
    path = folder / f"{TASKS[name]}.parquet"
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        definition = str(manifest[TASKS[name]]["definition"][0])
        rows = pq.read_table(path, columns=["split", "input", "output"]).to_pylist()
    except (OSError, KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(
            f"`{folder}` must hold `{path.name}` with the columns `split`, `input` and `output`, "
            f"and `manifest.json` with the task's `definition`: {error}."
        ) from error
    by_split: dict[Split, list[dict[str, object]]] = {}
    for row in rows:
        example = _example(definition, row["input"], row["output"])
        if example["answers"]:
            by_split.setdefault(row["split"], []).append(example)
    return {split: Dataset.from_list(examples) for split, examples in by_split.items()}


def _from_published(folder: Path) -> dict[Split, Dataset]:
    """Return the rows of a task in a folder of SAPT's repository."""
    splits: dict[Split, Dataset] = {}
    for split, file in FILES.items():
        path = folder / file
        content = read_object(path)
        examples = []
        try:
            definition = str(content["Definition"][0])
            for row in content["Instances"]:
                output = row["output"]
                answers = output if isinstance(output, list) else [output]
                examples.append(_example(definition, row["input"], answers))
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise DataError(
                f"`{path}` must have a list `Definition` with one text, and a list `Instances` "
                "of objects with an `input` and a text or a list of texts as `output`."
            ) from error
        splits[split] = Dataset.from_list([row for row in examples if row["answers"]])
    return splits


def _from_hub(names: list[str]) -> dict[str, dict[Split, Dataset]]:
    """Return the rows of the tasks, by name and split.

    The data set has one row for each correct answer; the rows of an input are combined.
    """
    data = from_hub(HUB)
    known = {TASKS[name]: name for name in names}
    columns = ("task_name", "definition", "inputs", "targets")
    sources: dict[str, dict[Split, Dataset]] = {name: {} for name in names}
    for split in ("train", "test"):
        inputs: dict[tuple[str, str], tuple[str, list[str]]] = {}
        cells = (data[split][column] for column in columns)
        for task, definition, text, answer in zip(*cells, strict=True):
            if task in known:
                _, answers = inputs.setdefault((known[task], text), (definition, []))
                answers.append(answer)
        by_task: dict[str, list[dict[str, object]]] = {}
        for (name, text), (definition, answers) in inputs.items():
            example = _example(definition, text, answers)
            if example["answers"]:
                by_task.setdefault(name, []).append(example)
        for name, examples in by_task.items():
            sources[name][split] = Dataset.from_list(examples)
    return sources


def _example(definition: str, text: str, answers: list[str]) -> dict[str, object]:
    """Return a prompt with its correct answers, without empty ones."""
    right = [answer.strip() for answer in answers if answer.strip()]
    target = right[0] if right else ""
    return {
        "text": PROMPT.format(definition.strip(), text.strip()),
        "target": target,
        "answers": right,
    }
