"""SD-LoRA: directions stay, magnitudes move, and what is left of a task is a usual LoRA of a
greater rank.
"""

import pytest
import torch

from perdure import Backbone, InputError, Model, Training, learn, run
from perdure.methods.sd_lora import SDLoRA
from perdure.models import adapters
from perdure.models.backbone import pooled

FEW = Training(epochs=3, batch_size=8, learning_rate=0.02)


class Spy(SDLoRA):
    """Looks at the features before and after `end`, and at how far the magnitudes have gone."""

    def end(self, backbone, task, optimizer):
        rows = backbone.encode(task.rows("train"))
        self.scales = [
            (branch.magnitudes / branch.norms).detach()
            for branch in self._branches
            if branch.earlier_rows
        ]
        before = pooled(backbone, rows)
        super().end(backbone, task, optimizer)
        self.difference = (pooled(backbone, rows) - before).abs().max().item()


@pytest.fixture
def learned(bert, toy):
    method, found, scales = Spy(rank=2, alpha=6.0), [], []
    for step in (1, 2, 3):
        found.append(learn(bert, toy.until(step).tasks, method, FEW, earlier=found))
        scales.append(method.scales)
        assert method.difference < 1e-6
    return found, scales


def test_earlier_directions_stay_and_magnitudes_move(learned):
    """ΔW_j of a later module is ΔW_j of an earlier one times one number for each layer,
    the magnitude's.
    """
    (first, second, third), (_, two, three) = learned
    for number, layer in enumerate(adapters.deltas(first.config, first.parameters)):
        parts = []
        for adapter in (first, second, third):
            A, B = (adapter.parameters[f"{layer}.lora_{part}.weight"].double() for part in "AB")
            parts.append([B[:, i : i + 2] @ A[i : i + 2] for i in range(0, len(A), 2)])
            for i, D in enumerate(parts[-1][:-1]):
                old = parts[-2][i]
                assert ((D * old).sum() / (D.norm() * old.norm())).item() == pytest.approx(
                    1.0, abs=1e-6
                )
                scale = (two, three)[len(parts) - 2][number][i].item()
                torch.testing.assert_close(D, scale * old, rtol=1e-4, atol=1e-8)
        assert [len(one) for one in parts] == [1, 2, 3] and parts[-1][-1].norm() > 0.01
    assert all((scale - 1).abs().max() > 1e-3 for scale in (*two, *three))


def test_rank_grows_and_the_scale_stays(learned):
    found, _ = learned
    assert [(one.config.r, one.config.lora_alpha) for one in found] == [
        (2, 6.0),
        (4, 12.0),
        (6, 18.0),
    ]
    assert {adapters.scale(one) for one in found} == {3.0}
    assert {len(v) for name, v in found[2].parameters.items() if "lora_A" in name} == {6}


def test_a_task_begins_with_the_model_that_the_last_one_left(bert, toy):
    method = SDLoRA(rank=2)
    for step in (1, 2):
        learn(bert, toy.until(step).tasks, method, FEW)
    before = pooled(bert, rows := bert.encode(toy[2].rows("train")))
    bert.open(toy[2])
    method.begin(bert, toy[2])
    torch.testing.assert_close(pooled(bert, rows), before, rtol=0, atol=1e-6)
    magnitudes = method.parameters(bert)[-4:]
    assert [len(m) for m in magnitudes] == [2] * 4  # one for each earlier task and layer
    for m, branch in zip(magnitudes, method._branches, strict=True):
        A, B = branch.earlier
        for i, value in enumerate(m.tolist()):
            norm = torch.linalg.matrix_norm(B[:, 2 * i : 2 * i + 2] @ A[2 * i : 2 * i + 2])
            assert value == pytest.approx(norm.item(), rel=1e-5)


def test_a_run_folder(pico, toy, tmp_path):
    """It is read, answers as the backbone did in training, and goes on with one more task."""
    backbone = Backbone.load(pico("bert"), pooling="mean")
    short = run(toy.until(2), backbone, SDLoRA(rank=2), training=FEW, output=tmp_path / "r")
    rows = backbone.encode(toy[1].rows("test"))
    expected = backbone.own("colour")(pooled(backbone, rows)).softmax(1).max(1)
    found = Model(short).predict(list(toy[1].test["text"]), task="colour")
    assert [one.label for one in found] == [toy[1].classes[i] for i in expected.indices]
    probabilities = torch.tensor([one.probability for one in found])
    torch.testing.assert_close(probabilities, expected.values, rtol=0, atol=1e-5)
    longer = run(
        toy,
        Backbone.load(pico("bert"), pooling="mean"),
        SDLoRA(rank=2),
        training=FEW,
        output=tmp_path / "r",
    )
    assert [longer.load_task(name).adapter.config.r for name in toy.names] == [2, 4, 6]


def test_it_needs_lora():
    with pytest.raises(InputError, match="`sd_lora` splits LoRA .* it needs `peft: lora`"):
        SDLoRA(peft="full")


def test_what_is_trained_is_counted(pico, toy, tmp_path):
    """The new branch, a magnitude for each layer and earlier task, and the head."""
    results = run(
        toy,
        Backbone.load(pico("bert"), pooling="mean"),
        SDLoRA(rank=2),
        training=FEW,
        output=tmp_path / "run",
    )
    trained = [event["trained"] for event in results.events() if event["event"] == "task"]
    branch, layers = 4 * 2 * (32 + 32), 4
    assert trained == [branch + 66, branch + layers + 99, branch + 2 * layers + 66]
