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


def test_a_covariance_of_each_task_equals_a_mixture_of_gaussians(tasks):
    """The covariance by its definition, and the densities by torch."""
    features, labels = tasks
    x = torch.cat([features["a"], features["b"]]).double()
    statistics = {name: Statistics.of(features[name], labels[name], 2) for name in features}
    posterior = TaskPosterior(statistics, shrinkage=0.3, covariance="by_task")

    means, covariances = {}, {}
    for name, of_task in features.items():
        of_task = of_task.double()
        means[name] = torch.stack([of_task[labels[name] == label].mean(0) for label in (0, 1)])
        centred = of_task - means[name][labels[name]]
        covariances[name] = centred.T @ centred / len(centred)
    shared = shrunk((covariances["a"] + covariances["b"]) / 2)
    m = 8 * 3  # examples that the shared covariance counts for
    expected = []
    for name, own in covariances.items():
        covariance = (100 * shrunk(own) + m * shared) / (100 + m)
        classes = torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(labels[name].bincount().double()),
            torch.distributions.MultivariateNormal(means[name], covariance),
        )
        expected.append(classes.log_prob(x))
    torch.testing.assert_close(
        posterior.log_prob(x), torch.stack(expected, 1).log_softmax(1), rtol=1e-9, atol=1e-9
    )


def shrunk(covariance):
    d = len(covariance)
    return 0.7 * covariance + 0.3 * covariance.trace() / d * torch.eye(d, dtype=torch.double)


def test_the_spread_of_a_task_tells_it_from_another():
    """Both tasks have the same mean: only their covariances differ."""
    torch.manual_seed(0)
    narrow, wide = torch.randn(2000, 1), 5 * torch.randn(2000, 1)
    one = torch.zeros(2000, dtype=torch.long)
    statistics = {"narrow": Statistics.of(narrow, one, 1), "wide": Statistics.of(wide, one, 1)}
    x = torch.tensor([[0.0], [10.0]])
    shared = TaskPosterior(statistics).log_prob(x).exp()
    assert shared.max() < 0.6
    by_task = TaskPosterior(statistics, covariance="by_task").log_prob(x)
    assert by_task.argmax(1).tolist() == [0, 1]


@pytest.mark.parametrize("covariance", ["shared", "by_task"])
def test_order_and_parts_do_not_matter(tasks, covariance):
    features, labels = tasks
    x = features["a"]
    whole = {name: Statistics.of(features[name], labels[name], 2) for name in features}
    parts = {
        name: Statistics.of(features[name][::2], labels[name][::2], 2)
        + Statistics.of(features[name][1::2], labels[name][1::2], 2)
        for name in ("b", "a")
    }
    torch.testing.assert_close(
        TaskPosterior(whole, covariance=covariance).log_prob(x),
        TaskPosterior(parts, covariance=covariance).log_prob(x)[:, [1, 0]],
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
