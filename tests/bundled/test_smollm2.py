"""SmolLM2 out of its package: the file that it is read from, and what is missing without `gguf`."""

import sys

import pytest
from datasets import Dataset

from perdure import Backbone, FetchError
from perdure.bundled import smollm2
from perdure.bundled.parts import packages
from perdure.data.task import TaskRows


def test_without_gguf(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(
        FetchError,
        match=r"the package `gguf` is not installed. Install `perdure\[demo\]`, or `gguf`.",
    ):
        smollm2.write(tmp_path / "model.gguf", tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.real
def test_the_real_model(language_cache):
    """Its likeliest continuation of a sentence that a model with wrong weights would not know."""
    backbone = Backbone.load("smollm2", chat_template="none", max_new_tokens=3)
    model = smollm2.smollm2()
    assert packages.cache() in model.kept.parents
    rows = Dataset.from_dict({"text": ["The capital of France is", "The capital of Italy is"]})
    [(_, batch)] = backbone.encode([TaskRows("capitals", rows)]).batches()
    answers = backbone.generate(batch)
    assert any("Paris" in answer for answer in answers)
    assert any("Rome" in answer for answer in answers)
