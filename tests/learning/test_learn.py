"""The training loop: its options do what they say, and it stops at a loss that is no number."""

import json
import math
from collections import Counter

import pytest
import torch
from small_runs import small

from perdure import Backbone, InputError, Session, Training, TrainingError, learn, registry
from perdure.learning.progress import Best, _decay, length_grouped
from perdure.methods.isolated import Isolated
from perdure.models import adapters
from perdure.models.backbone import pooled


def test_a_loss_that_is_no_number(bert, toy):
    with pytest.raises(
        TrainingError, match=r"task `fruit` gave -?(nan|inf) at step \d+. Lower `learning_rate`"
    ):
        learn(
            bert, [toy[0]], Isolated(), Training(learning_rate=1e30, max_grad_norm=1e30, epochs=5)
        )

    class Steep(Isolated):
        def loss(self, backbone, batch):
            return super().loss(backbone, batch) + (0 * backbone.own("fruit").weight.sum()).sqrt()

    with pytest.raises(
        TrainingError, match="gave nan"
    ):  # the loss is a number, but not what its gradient leaves behind
        learn(bert, [toy[0]], Steep(), Training(epochs=1))


def test_batches_hold_every_example_once_and_are_of_like_length():
    lengths = [
        int(n) for n in torch.randint(1, 60, (1000,), generator=torch.Generator().manual_seed(0))
    ]
    first, second = length_grouped(lengths, 16, seed=0), length_grouped(lengths, 16, seed=1)
    assert Counter(i for batch in first for i in batch) == Counter(range(1000))
    assert len(first) == math.ceil(1000 / 16) and first != second
    assert length_grouped(lengths, 16, seed=0) == first

    def padding(batches):
        return sum(len(b) * max(lengths[i] for i in b) for b in batches) - sum(lengths)

    plain = [list(range(i, min(i + 16, 1000))) for i in range(0, 1000, 16)]
    assert padding(first) < 0.2 * padding(plain)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_schedules(schedule):
    rates = [_decay(step, 100, Training(schedule=schedule, warmup=0.1)) for step in range(101)]
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(1.0 if schedule == "constant" else 0.5)
    assert rates[100] == pytest.approx(1.0 if schedule == "constant" else 0.0)


def test_accumulated_batches_equal_one_large_batch(pico, toy):
    def module(**options):
        backbone = Backbone.load(pico("bert"), pooling="mean")
        backbone.model.eval().train = lambda mode=True: (
            backbone.model
        )  # dropout would draw other numbers
        training = Training(epochs=1, learning_rate=0.01, warmup=0.0, max_grad_norm=1e9, **options)
        return learn(backbone, [toy[0]], Isolated(), training).parameters

    large, accumulated = module(batch_size=32), module(batch_size=8, gradient_accumulation=4)
    for name in large:
        torch.testing.assert_close(large[name], accumulated[name], rtol=0, atol=2e-5)


def test_best_epoch_is_kept_and_patience_stops():
    value = torch.nn.Parameter(torch.zeros(1))
    best = Best([value], Training(patience=2))
    done = []
    for score in (0.5, 0.9, 0.4, 0.6, 0.7):
        value.data = torch.tensor([score])
        done.append(best.done(score))
    assert done == [False, False, False, True, True]
    best.restore()
    assert value.item() == pytest.approx(0.9)


def test_patience_in_a_run(bert, toy):
    epochs = []
    training = Training(epochs=30, batch_size=8, learning_rate=0.02, patience=2)
    learn(
        bert,
        [toy[0]],
        Isolated(),
        training,
        session=Session(log=lambda event: epochs.append(event["epoch"])),
    )
    assert max(epochs) < 29


def test_bf16_computes_in_bf16_and_keeps_parameters_in_fp32(bert, toy):
    seen = []

    class Spy(Isolated):
        def loss(self, backbone, batch):
            seen.append(backbone(batch) @ torch.ones(32, 1))
            return super().loss(backbone, batch)

    adapter = learn(bert, [toy[0]], Spy(), Training(epochs=1, bf16=True))
    assert seen[0].dtype == torch.bfloat16
    assert {value.dtype for value in adapter.parameters.values()} == {torch.float32}
    learn(
        bert, [toy[0]], Isolated(), Training(epochs=1)
    )  # the other precision, in the same process


def test_head_learning_rate(bert, toy):
    torch.manual_seed(0)
    learn(
        bert, [toy[0]], Isolated(), Training(epochs=1, learning_rate=0.01, head_learning_rate=1e-12)
    )
    slow = bert.own("fruit").weight.clone()
    learn(
        bert,
        [toy[0]],
        Isolated(),
        Training(epochs=1, learning_rate=1e-12, head_learning_rate=1e-12),
    )
    torch.testing.assert_close(bert.own("fruit").weight, slow, rtol=0, atol=1e-6)


def test_trackers(bert, toy, tmp_path):
    learn(
        bert,
        [toy[0]],
        Isolated(),
        Training(epochs=1, trackers=("tensorboard",)),
        session=Session(folder=tmp_path),
    )
    assert list(tmp_path.rglob("events.out.tfevents*"))

    with pytest.raises(
        InputError, match="No tracker `nope` is installed: accelerate finds .*tensorboard"
    ):
        learn(
            bert,
            [toy[0]],
            Isolated(),
            Training(epochs=1, trackers=("nope",)),
            session=Session(folder=tmp_path),
        )


def test_a_log_has_a_line_for_each_epoch(bert, toy, capsys):
    learn(bert, [toy[0]], Isolated(), Training(epochs=1), session=Session(quiet=True))
    assert capsys.readouterr().out == ""
    learn(bert, [toy[0]], Isolated(), Training(epochs=3), session=Session(quiet=False))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        f"Learning fruit: epoch {n} of 3" for n in (1, 2, 3)
    ]
    assert all(", loss " in line for line in lines)
    assert lines[0].endswith("left") and ", took " in lines[-1]


def loss_under_all_heads(backbone, stream, task) -> float:
    rows, names = backbone.encode(task.rows("validation")), backbone.heads
    features = pooled(backbone, rows)
    logits = torch.cat([backbone.own(name)(features) for name in names], dim=1)
    before = sum(len(one.classes) for one in stream.tasks[: names.index(task.name)])
    return torch.nn.functional.cross_entropy(logits, torch.tensor(rows.labels) + before).item()


GOLDEN = {"inflora": {"alpha": 10.0}}
"""Settings with which the golden losses were computed, where the usual ones have changed since."""


@pytest.mark.parametrize("kind", registry.names("method"))
def test_golden_loss(kind, pico, toy, request):
    """The loss of every step on the toy stream. A change of these numbers is a change of behaviour.

    Where nothing is trained: after each task, the loss of each task's validation examples under all
    heads as one.
    """
    file = request.path.parents[1] / "golden" / f"{kind}.json"
    losses, backbone, method = (
        [],
        Backbone.load(pico("bert"), pooling="mean"),
        small(kind, **GOLDEN.get(kind, {})),
    )
    training, earlier = Training(epochs=1, batch_size=8), []
    for i in range(3):
        log = lambda event: losses.append(event["loss"])  # noqa: E731
        earlier.append(
            learn(
                backbone,
                toy.tasks[: i + 1],
                method,
                training,
                earlier=earlier,
                session=Session(log=log),
            )
        )
        if not method.examples(toy.tasks):
            losses.extend(loss_under_all_heads(backbone, toy, task) for task in toy.tasks[: i + 1])
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps([round(x, 5) for x in losses], indent=0) + "\n")
        pytest.fail(f"{file} was missing and has been written: look at it, and run again")
    assert losses == pytest.approx(json.loads(file.read_text()), abs=2e-4)
    assert adapters.attached(backbone.model) == (method.module is not None)
