"""A device whose memory is full: one sentence that names what helps, and nothing is lost."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import perdure
from perdure import OutOfMemory, Run, Training, verify
from perdure.learning.memory import explained
from perdure.models.encoder import Encoder

FEW = Training(epochs=2, batch_size=8, checkpoint_steps=100, backbone_dropout=False)
FULL = "CUDA out of memory. Tried to allocate 20.00 GiB."


class Full:
    """A loss that runs out of memory on one of its calls, and otherwise is the usual one."""

    def __init__(self, call: int):
        self.calls = 0
        self.call = call
        self.usual = Encoder.losses

    def __call__(self, *arguments, **others):
        self.calls += 1
        if self.calls == self.call:
            raise torch.OutOfMemoryError(FULL)
        return self.usual(*arguments, **others)


def learn(folder: Path, backbone, stream, training=FEW) -> Run:
    method = perdure.find("method", "sequential")(rank=2)
    return perdure.run(stream, backbone, method, training=training, output=folder)


def test_a_run_goes_on_from_the_step_that_was_too_large(bert, pico, toy, tmp_path, monkeypatch):
    stream = perdure.TaskStream("toy", toy.tasks[:2])
    full = Full(call=7)  # in the second epoch of the first task: far from any other checkpoint
    monkeypatch.setattr(Encoder, "losses", lambda *a, **b: full(*a, **b))
    with pytest.raises(OutOfMemory) as caught:
        learn(tmp_path / "full", bert, stream)
    said = str(caught.value)
    assert "The memory of `cpu` is full; what was learned is saved." in said
    for name in ("gradient_checkpointing=true", "sharding=fsdp", "`batch_size` (now 8)", "bf16"):
        assert name in said
    assert (tmp_path / "full" / "unfinished.safetensors").exists()
    # What the message proposes is no other run.
    other = replace(FEW, gradient_checkpointing=True)
    backbone = perdure.Backbone.load(pico("bert"), pooling="mean", max_length=16)
    again = learn(tmp_path / "full", backbone, stream, other)
    assert full.calls < 2 * 2 * len(stream.tasks[0].train)  # nothing was learned twice

    monkeypatch.undo()
    backbone = perdure.Backbone.load(pico("bert"), pooling="mean", max_length=16)
    never = learn(tmp_path / "never", backbone, stream)
    steps = [event["step"] for event in again.events() if event["event"] == "step"]
    assert steps == [event["step"] for event in never.events() if event["event"] == "step"]
    for name in stream.names:
        expected = never.load_task(name).adapter.parameters
        for key, value in again.load_task(name).adapter.parameters.items():
            torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-6)
    assert not verify(again.folder).faults


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(FULL),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
    ],
)
def test_every_kind_of_a_full_memory(error, bert):
    saved = []
    with pytest.raises(OutOfMemory), explained(bert, FEW, lambda: saved.append(1)):
        raise error
    assert saved == [1]


def test_other_errors_are_not_touched(bert):
    with pytest.raises(RuntimeError, match="shapes"), explained(bert, FEW):
        raise RuntimeError("shapes differ")


def test_settings_that_are_used_already_are_not_proposed(bert):
    used = replace(FEW, gradient_checkpointing=True, bf16=True)
    with pytest.raises(OutOfMemory) as caught, explained(bert, used):
        raise MemoryError
    assert "gradient_checkpointing" not in str(caught.value)
    assert "bf16" not in str(caught.value)
