"""The task posterior against scikit-learn's discriminant analysis, streamed, reordered,
and with a task taken out.
"""

import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from perdure import Statistics, Task, TaskPosterior, run
from perdure.methods.ncm import NCM


@pytest.fixture
def tasks():
    """Two tasks of 100 examples and two classes each, in three dimensions."""
    torch.manual_seed(0)
    means = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]])
    mix = torch.randn(3, 3)
    labels = {"a": torch.tensor([0] * 40 + [1] * 60), "b": torch.tensor([0] * 30 + [1] * 70)}
    features = {
        t: means[labels[t] + 2 * i] + torch.randn(100, 3) @ mix for i, t in enumerate(labels)
    }
    return features, labels


def test_equals_linear_discriminant_analysis(tasks):
    features, labels = tasks
    x, y = torch.cat([features["a"], features["b"]]), torch.cat([labels["a"], labels["b"] + 2])
    lda = LinearDiscriminantAnalysis(solver="lsqr").fit(x.double().numpy(), y.numpy())
    expected = torch.tensor(lda.predict_proba(x.double().numpy())).reshape(-1, 2, 2).sum(2)
    statistics = {name: Statistics.of(features[name], labels[name], 2) for name in features}
    torch.testing.assert_close(TaskPosterior(statistics, shrinkage=0.0).log_prob(x).exp(), expected)


def test_by_hand_in_one_dimension():
    """Variance 1, means -1 and 1, one class each: log p(b)/p(a) = 2x."""
    a = Statistics.of(torch.tensor([[-2.0], [0.0]]), torch.tensor([0, 0]), 1)
    b = Statistics.of(torch.tensor([[0.0], [2.0]]), torch.tensor([0, 0]), 1)
    found = TaskPosterior({"a": a, "b": b}, shrinkage=0.0).log_prob(torch.tensor([[0.3]]))
    assert (found[0, 1] - found[0, 0]).item() == pytest.approx(0.6)


def test_order_and_parts_do_not_matter(tasks):
    features, labels = tasks
    x = features["a"]
    whole = {name: Statistics.of(features[name], labels[name], 2) for name in features}
    parts = {
        name: Statistics.of(features[name][::2], labels[name][::2], 2)
        + Statistics.of(features[name][1::2], labels[name][1::2], 2)
        for name in ("b", "a")
    }
    torch.testing.assert_close(
        TaskPosterior(whole).log_prob(x),
        TaskPosterior(parts).log_prob(x)[:, [1, 0]],
        rtol=1e-9,
        atol=1e-9,
    )


def test_a_task_left_out_is_as_if_it_had_never_been(tasks):
    features, labels = tasks
    alone = TaskPosterior({"a": Statistics.of(features["a"], labels["a"], 2)})
    assert alone.log_prob(features["b"]).tolist() == [[0.0]] * len(features["b"])


def test_a_class_without_examples_and_constant_features():
    empty = Statistics.of(torch.ones(3, 2), torch.zeros(3, dtype=torch.long), 2)
    other = Statistics.of(torch.zeros(3, 2), torch.ones(3, dtype=torch.long), 2)
    found = TaskPosterior({"a": empty, "b": other}).log_prob(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    assert found.isfinite().all() and found.argmax(1).tolist() == [0, 1]


def test_what_a_run_keeps_of_a_task_counts_its_groups(bert, toy, tmp_path, monkeypatch):
    """They are the classes; were they another division of the examples,
    the statistics would be of that.
    """
    assert toy[1].groups("test") == toy[1].test["label"][:]
    classes = (
        run(toy.until(1), bert, NCM(), output=tmp_path / "classes").load_task("fruit").statistics
    )
    assert classes.counts.tolist() == [16, 16]
    monkeypatch.setattr(Task, "groups", lambda task, split: [1] * len(getattr(task, split)))
    one = run(toy.until(1), bert, NCM(), output=tmp_path / "one").load_task("fruit").statistics
    assert one.counts.tolist() == [0, 32] and torch.equal(one.products, classes.products)
