"""Classifier alignment: what is remembered of a class, and what it does to heads that never met."""

import pytest
import torch

from perdure import Alignment, Backbone, Gaussians, InputError, Rule, Training, align, run
from perdure.methods.isolated import Isolated
from perdure.runs import story
from perdure.runs.job import Evaluation, Plan

CLASSES = {"a": ("p", "q"), "b": ("r", "s")}


def test_gaussians_are_means_and_covariances_of_classes():
    torch.manual_seed(0)
    features, labels = torch.randn(40, 3), torch.randint(0, 2, (40,))
    found = Gaussians.of(features, labels, classes=3)
    for label in range(2):
        own = features[labels == label]
        torch.testing.assert_close(found.means[label], own.mean(0))
        torch.testing.assert_close(found.covariances[label], own.T.cov(), rtol=0, atol=1e-6)
    assert not found.means[2].any() and not found.covariances[2].any()


def test_the_covariance_of_a_single_example_is_zero():
    found = Gaussians.of(torch.tensor([[1.0, 2.0]]), torch.tensor([0]), classes=1)
    assert found.means.tolist() == [[1.0, 2.0]] and found.covariances.tolist() == [
        [[0.0, 0.0], [0.0, 0.0]]
    ]


@pytest.fixture
def heads(bert):
    """Two heads, each right about its own classes; the second shouts."""
    centres = 3 * torch.eye(32)[:4]
    for number, task in enumerate("ab"):
        bert.put(task, torch.nn.Linear(32, 2).state_dict())
        own = centres[2 * number : 2 * number + 2]
        with torch.no_grad():
            bert.own(task).weight.copy_(own - own.mean(0))
            bert.own(task).bias.fill_(20.0 * number)
    gaussians = {
        task: Gaussians(centres[2 * i : 2 * i + 2], 0.2 * torch.eye(32).repeat(2, 1, 1))
        for i, task in enumerate("ab")
    }
    return bert, gaussians, centres


def accuracy(backbone: Backbone, centres: torch.Tensor) -> float:
    torch.manual_seed(1)
    features = (centres + 0.4 * torch.randn(100, 4, 32)).flatten(0, 1)
    logits = torch.cat([backbone.own(task)(features) for task in "ab"], dim=1)
    return (logits.argmax(1) == torch.arange(4).repeat(100)).float().mean().item()


@pytest.mark.parametrize("temperature", [0.1, None])
def test_heads_that_never_met_become_comparable(heads, temperature):
    backbone, gaussians, centres = heads
    assert accuracy(backbone, centres) == pytest.approx(0.5, abs=0.01)
    align(
        backbone,
        gaussians,
        CLASSES,
        Alignment(temperature=temperature, epochs=20, learning_rate=0.1),
        seed=0,
    )
    assert accuracy(backbone, centres) > 0.95


def test_the_same_seed_gives_the_same_heads_and_one_task_is_left_alone(heads):
    backbone, gaussians, _ = heads
    before = backbone.own_state("a")
    align(backbone, {"a": gaussians["a"]}, CLASSES, Alignment(), seed=0)
    assert torch.equal(backbone.own_state("a")["weight"], before["weight"])
    found = []
    for seed in (0, 0, 1):
        backbone.own("a").load_state_dict(before)
        align(backbone, gaussians, CLASSES, Alignment(epochs=1), seed=seed)
        found.append(backbone.own_state("a")["weight"])
        backbone.own("b").weight.data.fill_(1.0)
        backbone.own("b").bias.data.fill_(0.0)
    assert not torch.equal(found[0], before["weight"]) and not torch.equal(found[1], found[2])


def test_older_means_shrink_more():
    from perdure.learning.alignment import _prepared

    one = Gaussians(torch.ones(1, 2), torch.zeros(1, 2, 2))
    means, roots = _prepared({"a": one, "b": one, "c": one, "d": one}, Alignment(shrinkage=0.2))
    assert means[:, 0].tolist() == pytest.approx([0.85, 0.9, 0.95, 1.0])
    torch.testing.assert_close(
        roots[0], 0.01 * torch.eye(2)
    )  # the ridge's root, so that no sample is twice the same


def test_in_a_run_heads_of_all_tasks_change_and_it_goes_on_bit_for_bit(pico, toy, tmp_path):
    training = Training(epochs=1, batch_size=8, alignment=Alignment(epochs=2))

    def backbone() -> Backbone:
        return Backbone.load(pico("bert"), pooling="mean")

    whole = run(
        toy, backbone(), Isolated(rank=2), "sum", training=training, output=tmp_path / "whole"
    )
    for number, name in enumerate(toy.names):
        assert set(whole.load_task(name).heads) == set(toy.names[: number + 1])
    assert whole.load_task("colour").gaussians.means.shape == (3, 32)
    for stream in (toy.until(2), toy):
        part = run(
            stream, backbone(), Isolated(rank=2), "sum", training=training, output=tmp_path / "part"
        )
    assert part.scores() == whole.scores()
    for name in toy.names:
        heads, again = whole.load_task(name).heads, part.load_task(name).heads
        assert all(
            torch.equal(heads[task][key], again[task][key]) for task in heads for key in heads[task]
        )


@pytest.mark.parametrize("rule", [Rule(name="oracle"), Rule(scale="search")])
def test_it_needs_one_model(bert, toy, rule, tmp_path):
    with pytest.raises(
        InputError, match="`alignment` needs one model with a fixed scale, but the rule is"
    ):
        run(
            toy,
            bert,
            Isolated(),
            rule,
            training=Training(alignment=Alignment()),
            output=tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


def test_in_a_recipe():
    from perdure import Recipe

    values = {"stream": "demo", "backbone": "minilm", "training": {"alignment": {"epochs": 7}}}
    assert Recipe.parse(values).make_training().alignment == Alignment(epochs=7)
    assert (
        Recipe.parse(values | {"training": {"alignment": {}}}).make_training().alignment
        == Alignment()
    )
    with pytest.raises(InputError, match="nope"):
        Recipe.parse(values | {"training": {"alignment": {"nope": 1}}}).make_training()


def test_classes_of_the_same_name_are_no_rivals(heads):
    """Both tasks have the same two classes, at the same places: neither head is to win."""
    backbone, gaussians, centres = heads
    twice = {"a": gaussians["a"], "b": gaussians["a"]}
    backbone.own("b").load_state_dict(backbone.own_state("a"))
    align(
        backbone,
        twice,
        {"a": ("p", "q"), "b": ("p", "q")},
        Alignment(shrinkage=0.0, epochs=10),
        seed=0,
    )
    with torch.no_grad():
        logits = torch.cat([backbone.own(task)(centres[:2]) for task in "ab"], dim=1).softmax(1)
    torch.testing.assert_close(logits[:, :2], logits[:, 2:], rtol=0, atol=1e-3)
    assert logits[0, 0] > 5 * logits[0, 1] and logits[1, 1] > 5 * logits[1, 0]


def test_features_of_large_scale():
    from perdure.learning.alignment import _prepared

    torch.manual_seed(0)
    features = 100 * torch.randn(50, 384) + 3000 * torch.randn(50, 1) * torch.randn(384)
    found = Gaussians.of(features, torch.zeros(50, dtype=torch.long), classes=1)
    _, roots = _prepared({"a": found}, Alignment())
    root = roots[0].double()
    torch.testing.assert_close(root @ root.T, found.covariances[0].double(), rtol=1e-2, atol=1e3)


def test_it_cannot_be_switched_on_later(bert, toy, tmp_path):
    rule = Rule(name="sum")
    results = run(
        toy.until(1), bert, Isolated(), rule, training=Training(epochs=1), output=tmp_path / "run"
    )
    later = Training(epochs=1, alignment=Alignment())
    with pytest.raises(InputError, match="`alignment` must be on from the first task, but"):
        story.run(Plan(toy, bert, Isolated(), rule, later, Evaluation(), 0), results.folder)
