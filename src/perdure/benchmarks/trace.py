"""TRACE: eight tasks for language models, in three languages, with code and arithmetic."""

import json
from pathlib import Path

from datasets import Dataset

from perdure.benchmarks.parts.orders import task_names
from perdure.data.splits import bounded
from perdure.data.task import Split, Task, TaskStream
from perdure.errors import DataError

# The measures of the authors' code, by the name of the task and of its folder.
SCORES = {
    "C-STANCE": "accuracy",
    "FOMC": "accuracy",
    "MeetingBank": "rouge_l_union",
    "Py150": "code_similarity",
    "ScienceQA": "first_character",
    "NumGLUE-cm": "accuracy",
    "NumGLUE-ds": "accuracy",
    "20Minuten": "sari",
}
ORDERS = {
    "order1": "C-STANCE FOMC MeetingBank Py150 ScienceQA NumGLUE-cm NumGLUE-ds 20Minuten",
    "order2": "NumGLUE-cm NumGLUE-ds FOMC 20Minuten C-STANCE Py150 MeetingBank ScienceQA",
}
FILES: dict[Split, str] = {
    "train": "train.json",
    "validation": "eval.json",
    "test": "test.json",
}


def trace(
    *,
    folder: str,
    order: str | list[str] = "order1",
    train: int | None = None,
    validation: int | None = None,
    test: int | None = None,
    seed: int = 0,
) -> TaskStream:
    """Eight tasks: stances, summaries, code, science, arithmetic, and simplified German.

    They are the stance of Chinese posts (C-STANCE) and of the Federal Reserve (FOMC),
    summaries of council meetings (MeetingBank), the next line of Python code (Py150),
    school questions with explanations (ScienceQA), arithmetic problems (NumGLUE-cm,
    NumGLUE-ds), and German news in plain language (20Minuten). All are answered with free
    text, and the prompts are taken from the files unchanged.

    The scores are those of the authors' code: accuracy (C-STANCE, FOMC and NumGLUE;
    perdure ignores surrounding white space), the first character (ScienceQA),
    `rouge_l_union` (MeetingBank), `code_similarity` (Py150), and SARI with the entire
    prompt as the source (20Minuten). Papers that score TRACE differently report other
    numbers. The authors sample answers; perdure decodes greedily.

    They generate up to 512 tokens: set `backbone: {max_new_tokens: 512}`. A longer
    training answer is an error; it is never truncated. Each data set keeps its own terms.

    Parameters
    ----------
    folder
        A folder with a subfolder for each task, which contains `train.json`, `eval.json`
        (the validation split) and `test.json`. Each file is a list of objects with a
        `prompt` and an `answer`. An example is `LLM-CL-Benchmark_5000`, in the download
        linked from https://github.com/BeyonderXX/TRACE.
    order
        `order1`, which is the authors' order; `order2`, the second order of SEEKR; or a
        list of task names.
    train, validation, test
        The number of examples per task; by default all.
    seed
        Seed for the choice of examples.

    Raises
    ------
    UnknownName
        There is no such order or task.
    InputError
        The order names a task twice.
    DataError
        A file is missing, is not a list of examples, or is empty, or an example lacks a
        prompt or an answer.

    References
    ----------
    Wang et al. (TRACE), arXiv 2310.06762; He et al. (SEEKR), arXiv 2411.06171.
    """
    names = task_names(order, ORDERS, SCORES)
    sizes: dict[Split, int | None] = {"train": train, "validation": validation, "test": test}
    tasks = []
    for name in names:
        splits: dict[Split, Dataset] = {}
        for split, file in FILES.items():
            splits[split] = _examples(Path(folder) / name / file)
        task = Task(name, (), **bounded(splits, sizes, seed), score=SCORES[name])
        tasks.append(task)
    return TaskStream("trace", tuple(tasks))


def _examples(path: Path) -> Dataset:
    """Return the prompts and answers in a file."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"`{path}` cannot be read: {error}. `folder` must hold a folder for each task with "
            f"{', '.join(FILES.values())}, as `LLM-CL-Benchmark_5000` of TRACE does."
        ) from error
    if not isinstance(rows, list) or not rows:
        raise DataError(f"`{path}` must hold a list of examples, at least one.")
    columns: dict[str, list[str]] = {"text": [], "target": []}
    for number, row in enumerate(rows, start=1):
        for key, column in (("prompt", "text"), ("answer", "target")):
            value = row.get(key) if isinstance(row, dict) else None
            if not isinstance(value, str) or not value.strip():
                raise DataError(
                    f"`{path}`, example {number}: `{key}` must be a text that is not empty, "
                    f"got {value!r}."
                )
            columns[column].append(value)
    return Dataset.from_dict(columns)
