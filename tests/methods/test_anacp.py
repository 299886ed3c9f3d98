"""AnaCP against plain NumPy, in any order of the tasks, without a task again, and in a folder."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from closed_forms import learned, together
from small_runs import small

from perdure import Backbone, InputError, Model, Prediction, RunError, TrainingError, run, verify
from perdure.methods.anacp import AnaCP, spread
from perdure.methods.parts.frozen import Accumulated, features_of, statistics_of
from perdure.models import heads
from perdure.models.backbone import pooled
from perdure.runs.extend import forget
from perdure.seeds import derived
from perdure.vectors.statistics import Statistics

SETTINGS = {"features": 40, "lifts": 2, "ridge": 0.2, "shrinkage": 0.3, "draws": 25}


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def gelu(x):
    erf = np.vectorize(math.erf)
    return x * (1 + erf(x / math.sqrt(2))) / 2


def power(matrix, exponent):
    values, vectors = np.linalg.eigh(matrix)
    return vectors @ np.diag(values**exponent) @ vectors.T


def class_means(x, labels):
    return np.stack([x[labels == c].mean(0) for c in range(labels.max() + 1)])


def shrunk(matrix, share):
    width = len(matrix)
    return (1 - share) * matrix + share * np.trace(matrix) / width * np.eye(width)


def plain(x, labels, seed, tasks):
    """Return a function from features to logits: the method in NumPy, with all examples at once.

    Matrices are inverted and the polar factor comes from an eigendecomposition, so that no
    step is the same as in the library.
    """
    D, lifts, draws = SETTINGS["features"], SETTINGS["lifts"], SETTINGS["draws"]
    PQ = np.random.RandomState(seed).standard_normal((x.shape[1], (lifts + 1) * D))
    P, Q = PQ[:, : lifts * D], PQ[:, lifts * D :]
    x = unit(x)
    means = class_means(x, labels)
    C, width = means.shape
    centred = x - means[labels]
    covariance = shrunk(centred.T @ centred / len(x), SETTINGS["shrinkage"])

    white = power(covariance, -0.5)
    w = (means - means.mean(0)) @ white
    values, vectors = np.linalg.eigh(w @ w.T)
    rooted = np.where(values > 1e-9 * values.max(), 1 / np.sqrt(np.abs(values) + 1e-300), 0)
    polar = vectors @ np.diag(rooted) @ vectors.T @ w
    targets = unit((w + polar) @ white + means.mean(0))

    thetas = []
    for h in range(lifts):
        z = gelu(x @ P[:, h * D : (h + 1) * D])
        regular = shrunk(z.T @ z, SETTINGS["ridge"])
        thetas.append(np.linalg.inv(regular) @ (z.T @ targets[labels]))

    def project(points):
        lifted = [gelu(points @ P[:, h * D : (h + 1) * D]) @ thetas[h] for h in range(lifts)]
        return gelu(np.mean([unit(one) for one in lifted], axis=0) @ Q)

    points, first = [], 0
    L = np.linalg.cholesky(covariance)
    for task in tasks:
        random = np.random.RandomState(derived(seed, task.name, "draws"))
        for c, noise in enumerate(
            random.standard_normal((len(task.classes) * draws, width)).reshape(-1, draws, width)
        ):
            points.append(means[first + c] + noise @ L.T)
        first += len(task.classes)
    h = project(np.concatenate(points))
    one_hot = np.repeat(np.eye(C), draws, axis=0)
    V = np.linalg.inv(shrunk(h.T @ h, SETTINGS["ridge"])) @ (h.T @ one_hot)

    def logits(features):
        return project(unit(features)) @ V

    return logits


def test_anacp_is_that_of_plain_numpy(bert, toy):
    # Classes of different frequency, which counts in θ but not among the points drawn.
    rare = toy[1].train.filter(lambda row, number: row["label"] or number % 2, with_indices=True)
    tasks = [toy[0], replace(toy[1], train=rare), toy[2]]
    method = AnaCP(**SETTINGS)
    learned(method, bert, tasks)
    x, labels = (values.numpy() for values in together(bert, tasks))
    assert len(set(np.bincount(labels))) > 1
    expected = plain(x, labels, method.state["seed"], tasks)
    one = together(bert, tasks, "test")[0].numpy()
    logits = torch.cat(
        [bert.own(task.name)(torch.from_numpy(one).float()) for task in tasks], dim=1
    )
    wanted = expected(one)
    np.testing.assert_allclose(logits.detach(), wanted, rtol=1e-3, atol=1e-3 * abs(wanted).max())
    assert (logits.argmax(1).numpy() == wanted.argmax(1)).mean() > 0.99


def test_targets_are_further_apart_than_the_means():
    """Two classes in the plane, by hand.

    With Σ = diag(4, 1) and means ±(2, 0), w is ±(1, 0), whose unit part is ±(1, 0)/√2 for
    two rows; so t = ±(1 + 1/√2)(1/2, 0), which is ±(1, 0) at unit length.
    """
    means = torch.tensor([[2.0, 0.0], [-2.0, 0.0]]).double()
    covariance = torch.diag(torch.tensor([4.0, 1.0])).double()
    expected = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double()
    torch.testing.assert_close(spread(means, covariance), expected)
    # With a centre, before it is scaled: (0, 1) ± (1 + 1/√2)(1/2, 0).
    far = (1 + 0.5**0.5) / 2
    length = (1 + far**2) ** 0.5
    expected = torch.tensor([[far, 1.0], [-far, 1.0]]).double() / length
    up = torch.tensor([0.0, 1.0]).double()
    torch.testing.assert_close(spread(means + up, covariance), expected)


def test_equal_means_are_left_where_they_are():
    means = torch.tensor([[3.0, 4.0], [3.0, 4.0]]).double()
    targets = spread(means, torch.eye(2).double())
    torch.testing.assert_close(targets, torch.tensor([[0.6, 0.8], [0.6, 0.8]]).double())


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0)])
def test_the_order_of_the_tasks_changes_nothing(order, pico, toy):
    torch.manual_seed(0)
    found = [
        learned(small("anacp"), Backbone.load(pico("bert"), pooling="mean"), [toy[i] for i in row])
        for row in ((0, 1, 2), order)
    ]
    x = torch.randn(5, 32)
    for name in found[0]:
        one, other = (heads.made(states[name], 32)(x) for states in found)
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * one.abs().max().item())


def test_a_task_is_taken_back(bert, toy):
    """Its sums subtracted, those of the other tasks are as if it had never been learned."""
    whole, never = small("anacp"), small("anacp")
    torch.manual_seed(0)
    learned(whole, bert, toy)
    torch.manual_seed(0)
    learned(never, bert, [toy[0], toy[2]])
    x = features_of(bert, toy[1], normalise=True)
    P, _ = heads.contrastive_matrices(whole.state["seed"], bert.width, 3, 50)
    z = heads.gelu_features(x, P, 3)
    first, last = len(toy[0].classes), len(toy[0].classes) + len(toy[1].classes)
    for prefix, features in {"": x, **{f"lift{h}_": z[:, h] for h in range(3)}}.items():
        total = Accumulated(whole.state, prefix).total
        never_learned = Accumulated(never.state, prefix).total
        assert total and never_learned
        own = statistics_of(bert, toy[1], features)
        rest = Statistics(
            torch.cat([total.counts[:first], total.counts[last:]]),
            torch.cat([total.sums[:first], total.sums[last:]]),
            total.products - own.products,
        )
        assert torch.equal(total.counts[first:last], own.counts)
        assert torch.equal(total.sums[first:last], own.sums)
        for name, value in never_learned.tensors().items():
            torch.testing.assert_close(rest.tensors()[name], value, rtol=1e-12, atol=1e-12)


def test_heads_in_a_run_folder(pico, toy, tmp_path):
    """θ is stored once for all heads, P not at all; `predict` and `verify` work."""
    backbone = Backbone.load(pico("bert"), pooling="mean")
    results = run(toy.until(2), backbone, small("anacp"), output=tmp_path / "r", seed=5)
    found = results.load_task("colour").heads
    assert set(found["colour"]) == {"weight", "bias", heads.SEED, heads.THETA}
    stored = (results.task_folders()["colour"] / "head.safetensors").stat().st_size
    assert stored < 1.2 * found["fruit"][heads.THETA].nbytes
    assert torch.equal(found["fruit"][heads.THETA], found["colour"][heads.THETA])
    x = torch.randn(4, backbone.width)
    other = heads.made(found["fruit"], backbone.width)
    assert isinstance(other, heads.ContrastiveHead)
    assert torch.equal(other(x), backbone.own("fruit")(x))
    torch.testing.assert_close(other(3 * x), other(x))
    model = Model(results)
    features = pooled(backbone, backbone.encode(toy[0].rows("test")))
    expected = backbone.own("fruit")(features).argmax(1)
    answers: list[Prediction] = model.predict(list(toy[0].test["text"]), task="fruit")  # pyright: ignore
    assert [answer.label for answer in answers] == [toy[0].classes[i] for i in expected]
    with pytest.raises(RunError, match="random features"):
        model.export(tmp_path / "out")
    forget(results.folder, "fruit")
    whole = replace(toy, tasks=toy.tasks[1:])
    results = run(whole, backbone, small("anacp"), output=tmp_path / "r", seed=5)
    assert set(results.load_task("shape").heads) == {"colour", "shape"}
    assert verify(results.folder).faults == []


def test_another_model_is_refused(pico, toy, tmp_path):
    backbone = Backbone.load(pico("bert"), pooling="mean")
    results = run(toy.until(1), backbone, small("anacp"), output=tmp_path / "r")
    from perdure.runs.resume import check_fits

    learned_task = results.load_task("fruit")
    learned_task.heads["fruit"][heads.THETA] = learned_task.heads["fruit"][heads.THETA][..., :-1]
    with pytest.raises(RunError, match="Is it the model"):
        check_fits(backbone, learned_task)


@pytest.mark.parametrize(
    "change",
    [
        {heads.THETA: torch.ones(3, 8, 4)},
        {heads.THETA: torch.ones(3, 9)},
        {heads.THETA: torch.ones(3, 9, 4).double()},
        {heads.THETA: torch.ones(0, 9, 4)},
        {heads.THETA: torch.ones(heads.MOST_FEATURES, 2, 4)},
        {heads.GAMMA: torch.tensor(0.5)},
        {heads.UNIT: torch.tensor(True)},
    ],
    ids=lambda change: f"{next(iter(change))}",
)
def test_a_damaged_head(change):
    state = heads.ContrastiveHead(3, seed=7, theta=torch.ones(3, 9, 4)).state_dict()
    with pytest.raises(RunError, match="The head is damaged: "):
        heads.made(state | change, 4)


def test_a_damaged_file(pico, toy, tmp_path):
    """A θ of another shape is refused before any value is read."""
    from safetensors.torch import load_file, save_file

    from perdure.runs.task_folder import SHARED_THETA, TensorFile, _check_heads

    backbone = Backbone.load(pico("bert"), pooling="mean")
    results = run(toy.until(1), backbone, small("anacp"), output=tmp_path / "r")
    folder = results.task_folders()["fruit"]
    tensors = load_file(folder / "head.safetensors")
    for broken in (torch.ones(3, 4), torch.ones(3, 4, 1), tensors[SHARED_THETA].double()):
        save_file(tensors | {SHARED_THETA: broken}, tmp_path / "broken.safetensors")
        with pytest.raises(RunError, match="`theta` has the shape"):
            _check_heads(folder, len(toy[0].classes), TensorFile(tmp_path / "broken.safetensors"))


def test_bad_input(bert, toy):
    one = replace(toy[0], train=toy[0].train.filter(lambda row: row["label"] == 0))
    with pytest.raises(InputError, match="no training example of class `pear`"):
        learned(small("anacp"), bert, [one])
    method = small("anacp")
    learned(method, bert, toy.tasks[:1])
    method.state["lift1_products"] = torch.ones(3, 3)
    with pytest.raises(RunError, match="saved in the run are damaged"):
        learned(method, bert, toy.tasks[1:2])


def test_a_feature_of_zero_is_refused(bert, toy, monkeypatch):
    whole = type(bert).forward
    for name in ("forward", "features"):  # both give those of the pre-trained model
        monkeypatch.setattr(type(bert), name, lambda self, batch: 0 * whole(self, batch))
    with pytest.raises(TrainingError, match="`fruit`: .* zero, so they cannot"):
        learned(small("anacp"), bert, toy.tasks[:1])
