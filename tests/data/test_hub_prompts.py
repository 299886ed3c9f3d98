"""Conversations and prompts in data sets of the hub, which `datasets` reads from Parquet files."""

import datasets
import pytest
from datasets import Dataset

from perdure.data.table import read_tasks
from perdure.errors import DataError

CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4"},
]
FORMATS = {
    "messages": {"messages": CHAT},
    "completion": {"prompt": "2 + 2?", "completion": "4"},
    "alpaca": {"instruction": "Add.", "input": "2 and 2", "output": "4"},
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Put rows at `org/name`: real Parquet files, which `load_dataset` reads from a folder."""
    real = datasets.load_dataset

    def put(name: str, rows: list[dict[str, object]]) -> None:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        Dataset.from_list(rows).to_parquet(folder / "train.parquet")

    def load(name: str):
        return real(str(tmp_path / name), cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load)
    return put


@pytest.mark.parametrize("form", FORMATS)
def test_formats(form, hub):
    hub("org/sums", [FORMATS[form] for _ in range(20)])
    (task,) = read_tasks("org/sums", name="sums")
    assert task.classes == () and len(task.train) == 14 and len(task.test) == 4
    row = task.train[0]
    assert row["target"] == "4"
    if form == "messages":
        assert row["messages"] == CHAT[:2]
    else:
        assert row["text"] == ("2 + 2?" if form == "completion" else "Add.\n\n2 and 2")


def test_a_template(hub):
    hub("org/reviews", [{"body": f"number {i}", "stars": "12"[i % 2]} for i in range(20)])
    (task,) = read_tasks("org/reviews", prompt="Review: {body}\nStars:", label="stars")
    assert task.classes == ("1", "2")
    assert task.train[0]["text"].startswith("Review: number")


def test_a_conversation_without_an_answer(hub):
    hub("org/chats", [{"messages": CHAT}] * 9 + [{"messages": CHAT[:2]}])
    with pytest.raises(
        DataError, match=r"org/chats.*row 10, has a conversation .* ends with a turn"
    ):
        read_tasks("org/chats")
