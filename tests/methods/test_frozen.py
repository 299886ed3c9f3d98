"""Classifiers on the frozen backbone: against sklearn, the batch solution, and brute force;
and in any order.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from closed_forms import learned, together
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from small_runs import answers, differing, small

from perdure import (
    Alignment,
    Backbone,
    InputError,
    Model,
    RunError,
    Statistics,
    Training,
    TrainingError,
    run,
    verify,
)
from perdure.methods.klda import KLDA
from perdure.methods.lda import LDA
from perdure.methods.ncm import NCM
from perdure.methods.ranpac import RIDGES, RanPAC
from perdure.models import heads
from perdure.models.backbone import pooled
from perdure.runs.extend import evaluate_run, forget

RIDGE = "perdure.methods.ranpac.RIDGES"


def one_classifier(found):
    """All heads as one."""
    return tuple(
        torch.cat([head[part] for head in found.values()]).double() for part in ("weight", "bias")
    )


def alike(one, other, rtol=1e-6):
    """Whether two sets of heads are equal, but for the order of sums."""
    for name, head in one.items():
        for part, value in head.items():
            assert (other[name][part] - value).double().norm() <= rtol * value.double().norm(), (
                name,
                part,
            )


# -- NCM


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_nearest_mean(metric, bert, toy):
    found = learned(NCM(metric=metric), bert, toy)
    for task in toy:
        x, labels = together(bert, [task])
        means = [x[labels == c].mean(0) for c in range(len(task.classes))]
        head = found[task.name]
        for one in together(bert, [task], "test")[0]:
            if metric == "cosine":
                near = [torch.nn.functional.cosine_similarity(one, mean, dim=0) for mean in means]
            else:
                near = [-(one - mean).norm() for mean in means]
            logits = head["weight"].double() @ one + head["bias"].double()
            assert logits.argmax() == torch.stack(near).argmax()


def test_other_tasks_are_as_if_it_had_never_been_learned(bert, toy, tmp_path):
    without = replace(toy, tasks=(toy[0], toy[2]))
    whole, never = (
        run(s, bert, NCM(), output=tmp_path / str(i)) for i, s in enumerate((toy, without))
    )
    assert not forget(whole.folder, "colour").traces
    assert answers(whole) == answers(never)
    evaluate_run(whole.folder, stream=without)
    assert set(differing(whole, never)) <= {"events.jsonl"}


# -- LDA


def test_lda_is_that_of_sklearn(bert, toy):
    weight, bias = one_classifier(learned(LDA(shrinkage=0.1), bert, toy))
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1).fit(*together(bert, toy))
    x, _ = together(bert, toy, "test")
    ours, theirs = x @ weight.T + bias, torch.from_numpy(reference.decision_function(x))
    torch.testing.assert_close(ours - ours[:, :1], theirs - theirs[:, :1], rtol=1e-5, atol=1e-4)
    assert torch.equal(ours.argmax(1), torch.from_numpy(reference.predict(x)))


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0)])
@pytest.mark.parametrize("kind", ["lda", "ranpac"])
def test_the_order_of_the_tasks_changes_nothing(kind, order, pico, toy, monkeypatch):
    monkeypatch.setattr(RIDGE, (10.0,))
    torch.manual_seed(0)
    found = [
        learned(small(kind), Backbone.load(pico("bert"), pooling="mean"), [toy[i] for i in places])
        for places in ((0, 1, 2), order)
    ]
    alike(*found, rtol=1e-5)


@pytest.mark.parametrize("kind", [KLDA, LDA, NCM])
def test_a_class_without_examples(kind, bert, toy):
    one = replace(toy[0], train=toy[0].train.filter(lambda row: row["label"] == 0))
    with pytest.raises(
        InputError, match="`fruit` has no training example of class `pear`, so it has no mean"
    ):
        learned(kind(), bert, [one])


@pytest.mark.parametrize("kind", ["klda", "lda", "ranpac"])
def test_a_task_that_was_forgotten_can_be_learned_again(kind, bert, toy):
    """Its sums are there twice then, and its head is the new one."""
    method = small(kind)
    learned(method, bert, toy.tasks[:2])
    bert.close("fruit")
    learned(method, bert, toy.tasks[2:])
    assert "fruit" not in bert.heads
    learned(method, bert, [replace(toy[0], train=toy[0].validation)])
    assert [name for name, _ in method.state["sizes"]] == ["fruit", "colour", "shape", "fruit"]
    rows = bert.encode(toy[0].rows("validation"))
    assert (bert.own("fruit")(pooled(bert, rows)).argmax(1) == torch.tensor(rows.labels)).all()


# -- features of unit length


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


def test_lda_and_ncm_of_features_of_unit_length(bert, toy, monkeypatch):
    """As if the backbone's features had been divided by their lengths; heads do that themselves."""
    found = {kind: learned(kind(normalise=True), bert, toy) for kind in (LDA, NCM)}
    x, labels = together(bert, toy)
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1).fit(unit(x), labels)
    weight, bias = one_classifier(found[LDA])
    expected = torch.from_numpy(reference.decision_function(unit(x)))
    ours = unit(x) @ weight.T + bias
    torch.testing.assert_close(ours - ours[:, :1], expected - expected[:, :1], rtol=1e-4, atol=1e-3)
    means = torch.stack([unit(x)[labels == c].mean(0) for c in range(len(reference.classes_))])
    weight, bias = one_classifier(found[NCM])
    torch.testing.assert_close(0.1 * weight, unit(means), rtol=1e-5, atol=1e-6)
    # the head divides by the length: three times the feature has the same logits
    head = heads.made(found[LDA]["colour"], bert.width)
    assert isinstance(head, heads.UnitHead)
    one = torch.randn(4, bert.width)
    torch.testing.assert_close(head(3 * one), head(one))
    logits = unit(one.double()) @ found[LDA]["colour"]["weight"].double().T
    logits += found[LDA]["colour"]["bias"]
    torch.testing.assert_close(head(one).double(), logits, rtol=1e-4, atol=1e-4)


def test_ranpac_of_features_of_unit_length(bert, toy, monkeypatch):
    monkeypatch.setattr(RIDGE, (0.1,))
    method = RanPAC(features=50, normalise=True)
    weight, _ = one_classifier(learned(method, bert, toy))
    x, labels = together(bert, toy)
    H, Y = features_of(method, unit(x)), torch.nn.functional.one_hot(labels).double()
    expected = torch.linalg.solve(H.T @ H + 0.1 * torch.eye(50), H.T @ Y).T
    assert (weight - expected).norm() < 1e-4 * expected.norm()
    one = pooled(bert, bert.encode(toy[1].rows("test")))
    logits = bert.own("colour")(one).double()
    wanted = features_of(method, unit(one)) @ expected[2:5].T
    torch.testing.assert_close(logits, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "method",
    [KLDA(features=9), LDA(normalise=True), NCM(normalise=True)],
    ids=lambda one: type(one).__name__,
)
def test_a_feature_of_zero_has_no_direction(method, bert, toy, monkeypatch):
    """It is refused in training; in an answer it is left as it is."""
    whole = type(bert).forward

    def one_is_zero(self, batch):
        hidden = whole(self, batch).clone()
        hidden[1] = 0
        return hidden

    # both give the features of the pre-trained model
    monkeypatch.setattr(type(bert), "forward", one_is_zero)
    monkeypatch.setattr(type(bert), "features", one_is_zero)
    with pytest.raises(
        TrainingError, match="`fruit`: .* zero, so they cannot .* `normalise: false`"
    ):
        learned(method, bert, toy.tasks[:1])
    assert torch.equal(heads.unit_norm(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_export_scales_to_unit_length(bert, toy, tmp_path):
    """By a module of sentence-transformers, where the stock model has one."""
    from sentence_transformers import SentenceTransformer

    model = Model(run(toy.until(2), bert, LDA(normalise=True), output=tmp_path / "run"))
    model.export(tmp_path / "out")
    texts = list(toy[1].test["text"])
    logits = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(texts)
    x = pooled(bert, bert.encode(toy[1].rows("test")))
    ours = torch.cat([bert.own(name)(x) for name in ("fruit", "colour")], dim=1)
    torch.testing.assert_close(torch.from_numpy(logits), ours.detach(), rtol=1e-4, atol=1e-3)


# -- KLDA


def lifted(method, x):
    """z of plain NumPy, in double precision."""
    random = np.random.RandomState(method.state["seed"])
    D, gamma = method.features, method.state["gamma"]
    W = np.sqrt(2 * gamma) * random.standard_normal((x.shape[1], D))
    b = random.uniform(0, 2 * np.pi, D)
    x = x.double().numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return np.sqrt(2 / D) * np.cos(x @ W + b)


def test_klda_is_that_of_plain_numpy(bert, toy):
    method = KLDA(features=40, bandwidth=2.0, shrinkage=0.05)
    found = learned(method, bert, toy)
    x, labels = together(bert, toy)
    first = unit(x[: len(toy[0].train)]).numpy()
    pairs = ((first[:, None] - first[None]) ** 2).sum(2)
    assert method.state["gamma"] == pytest.approx(2.0 / pairs.mean(), rel=1e-4)

    z, y = lifted(method, x), labels.numpy()
    means = np.stack([z[y == c].mean(0) for c in range(max(y) + 1)])
    centred = z - means[y]
    cov = centred.T @ centred / len(z)
    cov = 0.95 * cov + 0.05 * np.trace(cov) / 40 * np.eye(40)
    weight = np.linalg.solve(cov, means.T).T
    bias = np.log(np.bincount(y) / len(y)) - (weight * means).sum(1) / 2
    ours = one_classifier(found)
    np.testing.assert_allclose(ours[0], weight, rtol=1e-3, atol=1e-3 * abs(weight).max())
    np.testing.assert_allclose(ours[1], bias, rtol=1e-3, atol=1e-3 * abs(bias).max())

    # and the heads of the model lift the features by themselves
    one, _ = together(bert, toy, "test")
    logits = torch.cat([bert.own(name)(one.float()) for name in toy.names], dim=1)
    expected = lifted(method, one) @ weight.T + bias
    np.testing.assert_allclose(logits.detach(), expected, rtol=1e-3, atol=1e-3 * abs(bias).max())


def test_klda_is_lda_of_sklearn_on_random_features(bert, toy):
    method = KLDA(features=40, shrinkage=0.05)
    learned(method, bert, toy)
    x, labels = together(bert, toy)
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.05)
    reference.fit(lifted(method, x), labels)
    one, _ = together(bert, toy, "test")
    logits = torch.cat([bert.own(name)(one.float()) for name in toy.names], dim=1).detach()
    theirs = torch.from_numpy(reference.decision_function(lifted(method, one))).float()
    scale = theirs.abs().max().item()
    torch.testing.assert_close(
        logits - logits[:, :1], theirs - theirs[:, :1], rtol=1e-3, atol=1e-3 * scale
    )


def test_random_fourier_features_are_those_of_the_kernel():
    """zᵀz' → exp(−γ ‖x − x'‖²), with an error of about 1/√D."""
    x = heads.unit_norm(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)))
    z = heads.fourier_features(x, *heads.fourier(3, 5, 50_000, 0.7))
    kernel = (-0.7 * torch.cdist(x, x).square()).exp()
    torch.testing.assert_close(z @ z.T, kernel, rtol=0, atol=0.02)


def test_the_order_of_later_tasks_changes_nothing_in_klda(pico, toy):
    """The first task chooses the width of the kernel, which then stays."""
    torch.manual_seed(0)
    methods = [small("klda"), small("klda")]
    found = [
        learned(method, Backbone.load(pico("bert"), pooling="mean"), [toy[i] for i in places])
        for method, places in zip(methods, ((0, 1, 2), (0, 2, 1)), strict=True)
    ]
    alike(*found, rtol=1e-5)
    assert methods[0].state["gamma"] == methods[1].state["gamma"]
    # with the same width, the order of all tasks
    other = small("klda")
    other.state = {key: methods[0].state[key] for key in ("seed", "gamma")}
    places = (2, 1, 0)
    backbone = Backbone.load(pico("bert"), pooling="mean")
    alike(found[0], learned(other, backbone, [toy[i] for i in places]), rtol=1e-5)


def test_equal_features_have_no_width(bert, toy):
    one = toy[0].train.select([0] * 4).remove_columns("label").add_column("label", [0, 1, 0, 1])
    with pytest.raises(TrainingError, match="`fruit`: the features of all training examples"):
        learned(KLDA(features=9), bert, [replace(toy[0], train=one)])


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", "7"), ("seed", -1), ("seed", True), ("gamma", 0.0), ("gamma", "1"), ("gamma", None)],
)
def test_a_damaged_state_of_klda(key, value, bert, toy):
    method = KLDA(features=9)
    learned(method, bert, toy.tasks[:1])
    method.state[key] = value
    with pytest.raises(RunError, match="saved in the run is damaged"):
        learned(method, bert, toy.tasks[1:])


def test_heads_of_klda_in_a_run_folder(pico, toy, tmp_path):
    backbone = Backbone.load(pico("bert"), pooling="mean")
    results = run(toy.until(2), backbone, KLDA(features=50), output=tmp_path / "r", seed=5)
    state = results.load_task("colour").heads["colour"]
    assert set(state) == {"weight", "bias", heads.SEED, heads.GAMMA}
    other = heads.made(state, backbone.width)
    x = torch.randn(4, backbone.width)
    assert isinstance(other, heads.FourierHead)
    assert torch.equal(other(x), backbone.own("colour")(x))
    model = Model(results)
    features = pooled(backbone, backbone.encode(toy[0].rows("test")))
    expected = backbone.own("fruit")(features).argmax(1)
    found = model.predict(list(toy[0].test["text"]), task="fruit")
    assert [one.label for one in found] == [toy[0].classes[i] for i in expected]
    with pytest.raises(RunError, match="random features"):
        model.export(tmp_path / "out")
    # the width of the kernel stays, and the other task's head can be learned on
    forget(results.folder, "fruit")
    gamma = results.load_task("colour").state["gamma"]
    whole = replace(toy, tasks=toy.tasks[1:])
    results = run(whole, backbone, KLDA(features=50), output=tmp_path / "r", seed=5)
    assert results.load_task("shape").state["gamma"] == gamma
    assert verify(results.folder).faults == []


@pytest.mark.parametrize(
    "change",
    [
        {heads.GAMMA: torch.tensor(float("nan"))},
        {heads.GAMMA: torch.tensor(-1.0)},
        {heads.GAMMA: torch.tensor([1.0])},
        {heads.GAMMA: torch.tensor(1)},
        {heads.SEED: torch.tensor(1.0)},
        {heads.UNIT: torch.tensor(True)},
        {"weight": torch.zeros(3)},
        {"weight": torch.zeros(4, 9)},
        {"bias": torch.zeros(2)},
        {"weight": torch.zeros(3, heads.MOST_FEATURES + 1)},
        {"weight": torch.zeros(3, 0)},
        {"more": torch.zeros(1)},
    ],
    ids=lambda change: f"{next(iter(change))}",
)
def test_a_damaged_head(change):
    state = heads.FourierHead(4, 9, 3, seed=7, gamma=0.5).state_dict()
    with pytest.raises(RunError, match="The head is damaged: "):
        heads.made(state | change, 4)


def test_a_damaged_head_without_its_seed():
    state = heads.FourierHead(4, 9, 3, seed=7, gamma=0.5).state_dict()
    del state[heads.SEED]
    with pytest.raises(RunError, match="no head has"):
        heads.made(state, 4)
    state = heads.UnitHead(4, 3).state_dict()
    with pytest.raises(RunError, match="is not true"):
        heads.made(state | {heads.UNIT: torch.tensor(False)}, 4)


# -- RanPAC


def features_of(method, x):
    P = heads.projection(method.state["seed"], x.shape[1], method.features)
    return torch.relu(x.float() @ P).double()


def test_ranpac_is_the_ridge_regression_on_everything_at_once(bert, toy, monkeypatch):
    """V = (HᵀH + λ I)⁻¹ Hᵀ Y."""
    monkeypatch.setattr(RIDGE, (10.0,))
    method = RanPAC(features=50)
    found = learned(method, bert, toy)
    x, labels = together(bert, toy)
    H, Y = features_of(method, x), torch.nn.functional.one_hot(labels).double()
    expected = torch.linalg.solve(H.T @ H + 10.0 * torch.eye(50), H.T @ Y).T
    weight, bias = one_classifier(found)
    assert (weight - expected).norm() < 1e-6 * expected.norm() and not bias.any()
    one = pooled(bert, bert.encode(toy[1].rows("test")))
    logits = bert.own("colour")(one)
    torch.testing.assert_close(
        logits.double(), features_of(method, one) @ expected[2:5].T, rtol=1e-4, atol=1e-5
    )


def test_the_ridge_is_chosen_on_validation_examples(bert, toy):
    """λ has the least squared error over all classes so far; test examples are never looked at."""
    method = RanPAC(features=50)
    learned(method, bert, toy.tasks[:2])
    x, labels = together(bert, toy.tasks[:2])
    H, Y = features_of(method, x), torch.nn.functional.one_hot(labels, 5).double()
    held_out, theirs = together(bert, toy.tasks[:2], "validation")
    new = theirs >= 2  # the second task's
    wanted = torch.nn.functional.one_hot(theirs[new], 5).double()
    errors = {}
    for ridge in RIDGES:
        V = torch.linalg.solve(H.T @ H + ridge * torch.eye(50), H.T @ Y)
        errors[ridge] = (features_of(method, held_out[new]) @ V - wanted).square().mean().item()
    assert method.state["ridge"] == min(errors, key=errors.get) not in (RIDGES[0], RIDGES[-1])
    other = RanPAC(features=50)
    changed = [replace(task, test=toy[2].test) for task in toy.tasks[:2]]
    learned(other, bert, changed)
    assert all(
        torch.equal(torch.as_tensor(method.state[k]), torch.as_tensor(other.state[k]))
        for k in ("ridge", "seed", "counts", "sums", "products")
    )


def test_sums_can_be_taken_back():
    random = torch.Generator().manual_seed(0)
    a, b = (
        Statistics.of(torch.randn(40, 5, generator=random), torch.arange(40) % 3, count=3)
        for _ in range(2)
    )
    for name, value in ((a + b) - b).tensors().items():
        torch.testing.assert_close(value, a.tensors()[name], rtol=1e-12, atol=1e-12)


def test_the_projection_is_always_the_same():
    """NumPy promises it; so a head needs to keep the seed alone."""
    P = heads.projection(7, 4, 9)
    assert P.shape == (4, 9) and P.dtype == torch.float32
    expected = [1.6905257, -0.4659374, 0.03282016]
    assert P[0, :3].tolist() == pytest.approx(expected, abs=1e-7)


def test_heads_of_random_features_in_a_run_folder(pico, toy, tmp_path):
    backbone = Backbone.load(pico("bert"), pooling="mean")
    results = run(toy.until(2), backbone, RanPAC(features=50), output=tmp_path / "r", seed=5)
    other = heads.made(results.load_task("colour").heads["colour"], backbone.width)
    assert isinstance(other, heads.RandomHead) and set(other.state_dict()) == {
        "weight",
        "bias",
        heads.SEED,
    }
    x = torch.randn(4, backbone.width)
    assert torch.equal(other(x), backbone.own("colour")(x))
    model = Model(results)
    expected = backbone.own("fruit")(pooled(backbone, backbone.encode(toy[0].rows("test")))).argmax(
        1
    )
    found = model.predict(list(toy[0].test["text"]), task="fruit")
    assert [one.label for one in found] == [toy[0].classes[i] for i in expected]
    with pytest.raises(RunError, match="random features"):
        model.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    aligned = Training(
        alignment=Alignment(epochs=1)
    )  # of Gaussians of the feature, not of the random ones
    other = run(
        toy.until(2), backbone, RanPAC(features=50), training=aligned, output=tmp_path / "aligned"
    )
    assert other.load_task("colour").gaussians.means.shape == (3, backbone.width)
    seeds = {
        int(
            run(toy.until(1), backbone, RanPAC(features=9), output=tmp_path / str(seed), seed=seed)
            .load_task("fruit")
            .heads["fruit"][heads.SEED]
        )
        for seed in (1, 2)
    }
    assert len(seeds) == 2
