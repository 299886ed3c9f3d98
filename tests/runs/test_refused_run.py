"""A run that was refused before it began: its folder does not stand in the way of another try."""

import pico_language
import pytest
from datasets import Dataset

from perdure import Backbone, DataError, RunError, Task, TaskStream, Training, run
from perdure.methods.isolated import Isolated


def test_other_settings_after_a_refusal(tmp_path):
    checkpoint = pico_language.save(tmp_path / "base", "llama")
    rows = Dataset.from_dict({"text": ["a?", "b?"] * 4, "target": ["a long answer", "another"] * 4})
    stream = TaskStream("s", (Task("t", (), rows, rows, rows, score="exact_match"),))

    def attempt(max_new_tokens: int):
        backbone = Backbone.load(checkpoint, max_new_tokens=max_new_tokens)
        training = Training(epochs=1, batch_size=4)
        return run(stream, backbone, Isolated(rank=2), training=training, output=tmp_path / "run")

    with pytest.raises(DataError, match="max_new_tokens"):
        attempt(4)
    assert attempt(32).tasks == ["t"]
    # Now something has been learned, and a change of the model is refused.
    with pytest.raises(RunError, match="max_new_tokens"):
        attempt(64)
