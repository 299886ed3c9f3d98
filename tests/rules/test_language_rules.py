"""Every rule on a causal language model, and on one with an encoder and a decoder."""

import functools
from dataclasses import replace

import pytest
import torch
from pico_language import language_model

from perdure import Rule, Training, combine, learn, names
from perdure.checks.models import text_stream
from perdure.methods.isolated import Isolated
from perdure.models import adapters
from perdure.vectors.task_vector import TaskVector

FEW = Training(epochs=1, batch_size=8, learning_rate=0.05, keep_inputs=True)


@pytest.fixture(scope="module")
def taught():
    """A function from a kind to a model as before training, its stream, and what it learned."""

    @functools.cache
    @torch.enable_grad()
    def teach(kind: str):
        backbone, stream = language_model(kind), text_stream()
        method = Isolated(rank=2)
        learned = [learn(backbone, stream.until(step).tasks, method, FEW) for step in (1, 2)]
        adapters.detach(backbone.model)
        return backbone.eval(), stream, learned

    return teach


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("name", names("rule"))
@torch.no_grad()
def test_rule(name, kind, taught):
    """A merged model is the one with changed weights; a routed one acts by the task."""
    backbone, stream, learned = taught(kind)
    combined = combine(learned, Rule(name))
    batches = [backbone.encode(task.rows("test")).batch(range(4)) for task in stream]
    before = [backbone.losses(batch) for batch in batches]
    for task, batch, base in zip(stream, batches, before, strict=True):
        with combined.applied(backbone, task.name):
            losses = backbone.losses(batch)
            written = backbone.generate(batch)
            ranked = backbone.rank(batch, {"any": ["w1", "w2 w3"]})["any"]
        assert losses.isfinite().all() and (losses - base).abs().max() > 1e-3
        assert len(written) == 4 and ranked.isfinite().all()
        assert torch.equal(backbone.losses(batch), base)  # as before, bit for bit

        vector = combined.vectors
        if isinstance(vector, dict):
            vector = vector[task.name]
        if not isinstance(vector, TaskVector) or combined.origin is not None:
            continue
        other = language_model(kind).eval()
        weights = dict(other.model.named_parameters())
        for layer in vector.entries:
            weights[f"{layer}.weight"] += vector.dense(layer)
        torch.testing.assert_close(losses, other.losses(batch), atol=1e-4, rtol=1e-4)
        for row in range(4):  # each example by itself, where nothing is padding
            alone = backbone.encode(task.rows("test")).batch([row])
            assert other.losses(alone).item() == pytest.approx(losses[row].item(), abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_mixed_batch_reads_each_example_with_its_adapter(kind, taught):
    backbone, stream, learned = taught(kind)
    combined = combine(learned, Rule("routed"))
    rows = [replace_test(task) for task in stream]
    mixed = backbone.encode([rows[0], rows[1]])
    batch = mixed.batch(range(len(mixed)))
    with combined.applied(backbone) as choice:
        choice.of(list(batch.tasks))
        together = backbone.losses(batch)
    apart = []
    for task, of_task in zip(stream, rows, strict=True):
        own = backbone.encode([of_task])
        with combined.applied(backbone, task.name):
            apart.append(backbone.losses(own.batch(range(len(own)))))
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-4, rtol=1e-4)
    assert len(set(batch.tasks)) == 2


def replace_test(task):
    (rows,) = task.rows("test")
    return replace(task, test=rows.data.select(range(2))).rows("test")[0]
