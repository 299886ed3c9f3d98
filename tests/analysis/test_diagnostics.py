"""Diagnostics: against plain NumPy and values worked by hand; on toy runs of each kind;
and in the terminal.
"""

import importlib
import io
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from rich.console import Console
from small_runs import make, recipe

from perdure import (
    Backbone,
    InputError,
    LowRank,
    RunError,
    TaskVector,
    UnknownName,
    analysis,
    diagnose,
    registry,
    verify,
)
from perdure.analysis import (
    Probe,
    UnbiasedCKA,
    Zones,
    cka,
    confusion,
    cosines,
    expected_calibration_error,
    hidden_states,
    norms,
    overlaps,
    plasticity,
    reliability,
    sign_conflicts,
    stability,
)
from perdure.report import diagnostics, diagnostics_terminal, report
from perdure.report.diagnostics.parts.pictures import TASKS
from perdure.report.diagnostics_page import sections
from perdure.runs import derived


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


# -- CKA


def hsic(X, Y):
    """HSIC₁ as it is written in the paper, in NumPy."""
    n, one = len(X), np.ones(len(X))
    K, L = X @ X.T, Y @ Y.T
    np.fill_diagonal(K, 0)
    np.fill_diagonal(L, 0)
    middle = K.sum() * L.sum() / ((n - 1) * (n - 2)) - 2 * one @ K @ L @ one / (n - 2)
    return (np.trace(K @ L) + middle) / (n * (n - 3))


def test_cka_is_that_of_numpy_summed_over_batches():
    batches = [(random(n, 5, seed=n), random(n, 7, seed=100 + n)) for n in (20, 31, 8)]
    batches = [(x, y + torch.cat([x, x], 1)[:, :7]) for x, y in batches]
    found = UnbiasedCKA()
    for x, y in batches:
        found.add([x, x + 3], [y, x])
    xy, xx, yy = (
        sum(hsic(p[i].numpy(), p[j].numpy()) for p in batches) for i, j in ((0, 1), (0, 0), (1, 1))
    )
    expected = xy / np.sqrt(xx * yy)
    assert 0.1 < expected < 0.9
    np.testing.assert_allclose(found.matrix().numpy(), [[expected, 1], [expected, 1]], atol=1e-6)


def test_cka_of_the_same_and_of_independent_features():
    X, Y = random(256, 32), random(256, 64, seed=1)
    rotation = torch.linalg.qr(random(32, 32, seed=2)).Q
    assert cka(X, X) == pytest.approx(1, abs=1e-9) and cka(
        X, 0.01 * X @ rotation + 5
    ) == pytest.approx(1, abs=1e-9)
    a, b = X - X.mean(0), Y - Y.mean(0)
    biased = (a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm())
    assert biased > 0.1 and abs(cka(X, Y)) < 0.02  # which is why the unbiased one is used
    assert abs(cka(random(512, 32, seed=3), random(512, 64, seed=4), batch=64)) < 0.02


def test_cka_refuses_what_it_cannot_compare():
    with pytest.raises(InputError, match=r"at least four examples.* got \[3\]"):
        cka(random(3, 2), random(3, 2))
    with pytest.raises(InputError, match="got 8 and 9 rows"):
        cka(random(8, 2), random(9, 2))
    with pytest.raises(InputError, match="at least one batch"):
        UnbiasedCKA().matrix()
    assert np.isnan(cka(torch.ones(8, 2), random(8, 2)))


@pytest.mark.parametrize("kind", ["bert", "roberta", "deberta-v2", "distilbert", "modernbert"])
def test_hidden_states_of_texts(kind, pico, toy):
    backbone = Backbone.load(pico(kind), max_length=16, pooling="mean")
    examples = backbone.encode(toy.tasks[0].rows("test"))
    states = hidden_states(backbone, examples)
    assert [tuple(state.shape) for state in states] == [(20, 32)] * 3
    alone = backbone.model(**examples.batch([4]).inputs, output_hidden_states=True).hidden_states
    torch.testing.assert_close(
        states[1][4:5], alone[1].mean(1), atol=1e-5, rtol=0
    )  # padding is left out


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_hidden_states_of_images(kind, pico, pictures):
    backbone = Backbone.load(pico(kind))
    states = hidden_states(backbone, backbone.encode(pictures.tasks[0].rows("test")))
    assert [tuple(state.shape) for state in states] == [(8, 32)] * 3


# -- task vectors


def low_rank(seed, rank=3, out=12, into=10):
    return LowRank(random(out, rank, seed=seed), random(rank, into, seed=seed + 50))


def test_low_rank_and_dense_task_vectors_are_compared_alike(monkeypatch):
    low = {t: TaskVector({"q": low_rank(i), "v": low_rank(i + 9)}) for i, t in enumerate("abc")}
    low["d"] = TaskVector({"q": low_rank(20, rank=2)})  # a layer that is lacking is zero
    dense = {t: TaskVector({n: v.dense(n) for n in v.entries}) for t, v in low.items()}
    flat = np.stack(
        [
            torch.cat([v.dense(n).flatten() if n in v else torch.zeros(120) for n in "qv"]).numpy()
            for v in low.values()
        ]
    )
    sizes = np.linalg.norm(flat, axis=1)
    expected = flat @ flat.T / np.outer(sizes, sizes)
    differ, both = (
        np.sign(flat)[:, None] * np.sign(flat)[None] < 0,
        (flat[:, None] * flat[None]) != 0,
    )
    weight = abs(flat[:, None] * flat[None])
    for block in (2**22, 30):  # also in blocks of a few rows
        monkeypatch.setattr("perdure.analysis.interference.BLOCK", block)
        for vectors in (low, dense):
            np.testing.assert_allclose(cosines(vectors).overall, expected, atol=1e-12)
            np.testing.assert_allclose(
                sign_conflicts(vectors).overall, differ.sum(2) / both.sum(2), atol=1e-12
            )
            found = sign_conflicts(vectors, weighted=True).overall
            np.testing.assert_allclose(found, (weight * differ).sum(2) / weight.sum(2), atol=1e-12)
            squares = sum(value.square() for value in norms(vectors).values())
            np.testing.assert_allclose(squares**0.5, sizes, atol=1e-12)
    assert cosines(low).layers["v"].isnan().sum() == 7  # the fourth task's row and column
    assert cosines(low).layers["q"][0, 0] == pytest.approx(1)


def test_sign_conflicts_by_hand():
    a, b = torch.tensor([[1.0, -2.0], [0.0, 4.0]]), torch.tensor([[3.0, 1.0], [5.0, -1.0]])
    vectors = {"a": TaskVector({"w": a}), "b": TaskVector({"w": b})}
    assert sign_conflicts(vectors).overall.tolist() == [
        [0, pytest.approx(2 / 3)],
        [pytest.approx(2 / 3), 0],
    ]
    assert sign_conflicts(vectors, weighted=True).layers["w"][0, 1] == pytest.approx(
        (2 + 4) / (3 + 2 + 4)
    )


def test_overlap_of_orthogonal_equal_and_random_subspaces():
    basis = torch.linalg.qr(random(16, 16)).Q
    one = LowRank(basis[:, :3] @ random(3, 3, seed=1), random(3, 9, seed=2))
    two = LowRank(basis[:, 3:6] @ random(3, 3, seed=3), random(3, 3, seed=4) @ one.A)
    half = LowRank(torch.stack([basis[:, 0], basis[:, 9]], 1), random(2, 9, seed=5))
    left, right = overlaps(
        {t: TaskVector({"w": v}) for t, v in {"a": one, "b": two, "c": half}.items()}
    )
    assert left.overall[0, 1] == pytest.approx(0, abs=1e-9) and right.overall[
        0, 1
    ] == pytest.approx(1)
    assert left.overall.diagonal().tolist() == pytest.approx([1, 1, 1])
    spans = [
        torch.outer(basis[:, 0], random(9, seed=i)) + torch.outer(basis[:, i], random(9))
        for i in (1, 2)
    ]
    left, _ = overlaps({str(i): TaskVector({"w": span}) for i, span in enumerate(spans)})
    assert left.overall[0, 1] == pytest.approx(0.5)  # one direction of two in common
    many = {str(i): TaskVector({"w": low_rank(i, rank=4, out=64, into=32)}) for i in range(12)}
    left, right = overlaps(many)
    off = ~torch.eye(12, dtype=torch.bool)
    assert left.overall[off].mean() == pytest.approx(4 / 64, rel=0.2)
    assert right.overall[off].mean() == pytest.approx(4 / 32, rel=0.2)
    left, _ = overlaps({"a": TaskVector({"w": one, "b": torch.ones(3)}), "zero": TaskVector({})})
    assert left.overall.isnan().tolist() == [[False, True], [True, True]] and list(left.layers) == [
        "w"
    ]


def test_energies_of_zones():
    U, V, S = (
        torch.linalg.qr(random(8, 8)).Q,
        torch.linalg.qr(random(6, 6, seed=1)).Q,
        [5.0, 4.0, 1.0, 1.0],
    )
    zones = Zones.of(sum(s * torch.outer(U[:, i], V[:, i]) for i, s in enumerate(S)))
    assert zones.leading == 2  # 5 of 11 is less than half, 9 is not
    C = random(8, 6, seed=2)  # a change, in the coordinates of the singular vectors
    first, inside = C[:2, :2].square().sum(), C[:4, :4].square().sum()
    expected = torch.stack([first, inside - first, C.square().sum() - inside])
    for change in (U @ C @ V.T, LowRank(U @ C, V.T), (U @ C @ V.T).float()):
        found = zones.energies(change)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        mixed = C[:2, 2:4].square().sum() + C[2:4, :2].square().sum()
        assert zones.mixed(change) == pytest.approx(mixed.item(), rel=1e-5)
        assert found.sum() == pytest.approx(C.square().sum().item(), rel=1e-6)
    assert zones.by_chance().tolist() == pytest.approx([4 / 48, 12 / 48, 32 / 48])


# -- probes and calibration


def test_probe_is_that_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    y = torch.arange(120) % 3
    X = (
        5 * random(120, 6)
        + 4 * torch.nn.functional.one_hot(y, 6)
        + torch.tensor([100, 0, 0, 0, 0, 0])
    )
    probe = Probe.fitted(X, y, classes=3)
    scaled = ((X - X.mean(0)) / X.std(0, correction=0)).numpy()
    theirs = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000).fit(scaled, y.numpy())
    np.testing.assert_allclose(probe.weight, theirs.coef_, atol=2e-3)
    new = random(50, 6, seed=1) * 5
    expected = theirs.predict(((new - X.mean(0)) / X.std(0, correction=0)).numpy())
    assert (probe.predict(new).numpy() == expected).mean() >= 0.98


def test_probe_of_what_can_be_separated_and_what_cannot():
    y = torch.arange(60) % 2
    X = torch.stack([y * 2.0 - 1, torch.ones(60)], 1)
    assert (Probe.fitted(X, y, 2).predict(X) == y).all()
    assert (
        Probe.fitted(X[:, 1:], y, 3).predict(X[:, 1:]) < 2
    ).all()  # features that do not vary, a class without any


def test_plasticity_and_stability_by_hand():
    A = torch.tensor([[0.5, 0.25, 0.5], [0.75, 0.25, 0.5], [0.5, 1.0, 0.25], [0.25, 0.5, 1.0]])
    assert plasticity(A).tolist() == [0.25, 0.75, 0.75] and stability(A).tolist() == [
        -0.5,
        -0.5,
        0.0,
    ]


def test_calibration_by_hand_and_as_numpy():
    right = torch.tensor([True, True, False, True])
    table = reliability(torch.tensor([0.95, 0.95, 0.95, 0.25]), right, bins=2)
    assert [(bin.count, bin.accuracy) for bin in table] == [(1, 1.0), (3, pytest.approx(2 / 3))]
    assert expected_calibration_error(table) == pytest.approx(0.25 * 0.75 + 0.75 * (0.95 - 2 / 3))
    p = random(500).abs().clamp(max=1)
    hit = random(500, seed=1) > 0
    edges, error = np.linspace(0, 1, 16), 0.0
    for low, high in itertools.pairwise(edges):
        inside = ((p > low) & (p <= high)).numpy()
        if inside.any():
            error += inside.mean() * abs(hit.numpy()[inside].mean() - p.numpy()[inside].mean())
    assert expected_calibration_error(reliability(p, hit)) == pytest.approx(error)
    edge = reliability(torch.tensor([0.0, 1.0, 0.5]), torch.tensor([True] * 3), bins=2)
    assert [bin.count for bin in edge] == [2, 1] and np.isnan(
        expected_calibration_error(reliability(p[:0], hit[:0]))
    )
    true, found = torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 2, 2])
    assert confusion(true, found, 3).tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 1]]


# -- runs


@pytest.fixture(scope="module")
def made(pico, tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("diagnose"), {}
    kinds = {
        "isolated": ({"name": "isolated", "rank": 2}, "task_arithmetic"),
        "sequential": ({"name": "sequential", "rank": 2}, "last"),
        "full": ({"name": "isolated", "peft": "full"}, "task_arithmetic"),
        "lda": ({"name": "lda"}, "last"),
        "bottleneck": (
            {"name": "isolated", "rank": 2, "peft": "bottleneck"},
            {"name": "sum", "space": "factor"},
        ),
    }

    def run(name):
        if name not in found:
            method, rule = kinds[name]
            names = ("fruit", "colour", "texture") if name == "isolated" else ("fruit", "colour")
            values = recipe(
                folder, names, pico("bert"), method=method, rule=rule, evaluation={"steps": "last"}
            )
            found[name] = make(folder, name, values).folder
        return found[name]

    return run


def test_a_run(made):
    folder = made("isolated")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found = diagnose(folder)
    assert list(found["parts"]) == list(registry.diagnostics()) and not found["left_out"]
    assert derived.diagnostics(folder) == found  # every number has the place that the format says
    assert {path: path.read_bytes() for path in before} == before
    assert (found["tasks"], found["rule"]) == (["fruit", "colour", "texture"], "task_arithmetic")
    parts = found["parts"]
    assert parts["interference"]["layers"] == [
        f"encoder.layer.{i}.attention.self.{n}" for i in (0, 1) for n in ("query", "value")
    ]
    shares = np.array(parts["zones"]["layer_shares"])
    np.testing.assert_allclose(shares.sum(2), 1, atol=1e-5)
    assert parts["cka"]["layers"] == ["embeddings", "layer 1", "layer 2"]
    assert parts["cka"]["matrix"][0][0] == pytest.approx(1)  # LoRA is behind the embeddings
    assert parts["cka"]["to_previous"][0] == parts["cka"]["to_pretrained"][0] < 1
    A = np.array(parts["probe"]["subset"])
    np.testing.assert_allclose(parts["probe"]["accuracy"], A.mean(1), atol=1e-5)
    np.testing.assert_allclose(
        parts["probe"]["plasticity"], [A[j + 1, j] - A[j, j] for j in range(3)], atol=1e-5
    )
    counts = np.array(parts["posterior"]["confusion"])
    tests = sum(bin[2] for bin in parts["posterior"]["class_bins"])
    assert counts.sum() == tests == sum(bin[2] for bin in parts["posterior"]["task_bins"]) > 0
    text = (folder / "diagnostics.json").read_bytes()
    diagnose(folder)
    assert (folder / "diagnostics.json").read_bytes() == text  # the same again
    assert (
        verify(folder).faults == []
        and "probe" in verify(folder, backbone=False).sound["diagnostics.json"]
    )


@pytest.mark.parametrize("name", ["sequential", "full"])
def test_methods_with_task_vectors(made, name):
    found = diagnose(made(name), only=["interference", "zones"])
    assert list(found["parts"]) == ["interference", "zones"] and not found["left_out"]
    part = found["parts"]["interference"]
    assert part["cosine"][0][0] == pytest.approx(1) and -1 < part["cosine"][0][1] < 1
    assert len(part["layers"]) == {"sequential": 4, "full": 13}[name]
    np.testing.assert_allclose(np.sum(found["parts"]["zones"]["shares"], 1), 1, atol=1e-5)
    if name == "sequential":  # the second module is the first, trained on
        assert part["cosine"][0][1] > 0.3


def test_methods_without_task_vectors(made):
    found = diagnose(made("lda"))
    assert list(found["parts"]) == ["probe", "posterior"]
    assert (
        "does not train" in found["left_out"]["zones"]
        and "stay the same" in found["left_out"]["cka"]
    )
    assert found["parts"]["probe"]["plasticity"] == [0, 0]
    found = diagnose(made("bottleneck"), only=["interference", "cka"])
    assert list(found["parts"]) == ["cka"] and "no ΔW" in found["left_out"]["interference"]
    assert found["parts"]["cka"]["to_pretrained"][1] < 1


def test_other_rules_and_fewer_examples(made):
    for rule, settings in {
        "oracle": [],
        "routed": [],
        "smile": ["gate_rank=1"],
        "task_arithmetic": ["scale=search"],
    }.items():
        found = diagnose(made("isolated"), rule, settings, only=["cka", "posterior"], examples=4)
        assert found["examples"] == 4
        assert np.sum(found["parts"]["posterior"]["confusion"]) == 12, rule
        assert found["parts"]["cka"]["to_pretrained"][0] < 1


def test_what_cannot_be_diagnosed(made, tmp_path, pico):
    with pytest.raises(
        UnknownName, match="No part of the diagnostics named `prob`. Did you mean `probe`?"
    ):
        diagnose(made("lda"), only=["prob"])
    with pytest.raises(InputError, match="`examples` must be at least 4, got 3"):
        diagnose(made("lda"), examples=3)
    with pytest.raises(RunError, match="is not a run"):
        diagnose(tmp_path)
    empty = make_empty(tmp_path / "empty", made("lda"))
    with pytest.raises(RunError, match="has learned no task yet"):
        diagnose(empty)


def make_empty(folder, run):
    folder.mkdir()
    for name in ("recipe.yaml", "environment.json"):
        (folder / name).write_bytes((run / name).read_bytes())
    return folder


def test_other_parts_of_the_file_are_kept(made):
    folder = made("isolated")
    diagnose(folder, only=["zones"], examples=4)
    assert list(diagnose(folder, only=["posterior"], examples=4)["parts"]) == ["posterior"]
    assert list(derived.diagnostics(folder)["parts"]) == ["zones", "posterior"]
    diagnose(
        folder, only=["posterior"], examples=5
    )  # of other examples: what was there would not belong to it
    assert list(derived.diagnostics(folder)["parts"]) == ["posterior"]


def test_one_task_and_a_task_that_is_taken_out(tmp_path, pico):
    from perdure import forget

    run = make(
        tmp_path,
        "r",
        recipe(tmp_path, ("fruit", "colour"), pico("bert"), evaluation={"steps": "none"}),
    )
    diagnose(run.folder, only=["posterior"])
    forget(run.folder, "colour")
    assert not (run.folder / "diagnostics.json").exists()  # it told of the task
    found = diagnose(run.folder, only=["interference", "zones"])
    assert "only one task" in found["left_out"]["interference"] and found["tasks"] == ["fruit"]
    screen = Console(file=io.StringIO(), width=80)
    diagnostics_terminal.show(found, screen)
    out = screen.file.getvalue()
    assert out.startswith("1 task, combined") and "nan" not in out.split()


def test_a_broken_file_is_one_sentence(made):
    path, run = made("lda") / "diagnostics.json", made("lda")
    whole = diagnose(run)
    for change in (
        {"format": 2},
        {"parts": {"probe": whole["parts"]["probe"] | {"accuracy": [0.5]}}},
        {"parts": {"posterior": whole["parts"]["posterior"] | {"confusion": [[1, "2"], [3, 4]]}}},
        {"parts": {"other": {}}},
        {"parts": []},
        {"tasks": ["a"]},
        {"left_out": {"cka": 3}},
        {"examples": "many"},
    ):
        path.write_text(json.dumps(whole | change))
        with pytest.raises(RunError, match="diagnostics.json"):
            derived.diagnostics(run)
        assert any("diagnostics.json" in fault for fault in verify(run, backbone=False).faults)
    path.write_text('{"format": 1')
    with pytest.raises(RunError, match="diagnostics.json.*is not JSON"):
        derived.diagnostics(run)
    path.unlink()
    assert derived.diagnostics(run) == {}


def test_the_command(made, perdure):  # noqa: F811
    folder = made("isolated")
    status, out, err = perdure(
        "diagnose", folder, "--examples", "4", "--only", "zones", "--only", "probe"
    )
    assert (
        (status, err) == (0, "") and "zone I" in out and "plasticity" in out and "cosine" not in out
    )
    assert max(map(len, out.splitlines()[:-1])) <= 80
    status, out, err = perdure("diagnose", folder, "--only", "posterior", "--json")
    assert (status, err) == (0, "") and json.loads(out) == derived.diagnostics(folder)
    status, out, err = perdure("diagnose", folder, "--only", "everything")
    assert (
        status == 1
        and out == ""
        and err.startswith("Error: No part of the diagnostics named `everything`.")
    )


# -- a new one

COMPUTING = """
def compute(subject):
    return {"letters": [len(task) for task in subject.tasks]}
"""
SHOWING = """
from perdure.report.diagnostics.parts import figures
from perdure.report.diagnostics.parts.declaration import Diagnostic, Table
from perdure.report.diagnostics.parts.numbers import array
from perdure.report.diagnostics.parts.pictures import series

def table(part, tasks):
    rows = [[task, str(count)] for task, count in zip(tasks, part["letters"])]
    return Table("Letters of each name", ["task", "letters"], rows)

def pictures(part, tasks):
    values = {"letters": array(part["letters"])}
    return [series(figures.bars(values, tasks, "letters"), "Letters", tasks, values)]

DIAGNOSTIC = Diagnostic(
    position=9,
    title="How long names are",
    reading="More is longer.",
    axes={"letters": "t"},
    table=table,
    pictures=pictures,
)
"""


@pytest.fixture
def letters(tmp_path, monkeypatch):
    """One more diagnostic: a file in each of the two folders."""
    for package, text in ((analysis, COMPUTING), (diagnostics, SHOWING)):
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / "letters.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    yield
    for package in (analysis, diagnostics):
        sys.modules.pop(f"{package.__name__}.letters", None)
        vars(package).pop("letters", None)


def test_a_new_diagnostic_is_two_files(made, letters, perdure, tmp_path):  # noqa: F811
    folder = made("isolated")
    status, out, err = perdure("diagnose", folder, "--only", "zones", "--only", "letters")
    assert (status, err) == (0, "") and "Letters of each name" in out and "More is longer." in out
    assert [line.split() for line in out.splitlines() if line.split()[:1] == ["colour"]][-1] == [
        "colour",
        "6",
    ]
    found = derived.diagnostics(folder)
    assert found["parts"]["letters"] == {"reading": "More is longer.", "letters": [5, 6, 7]}
    report([folder], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert (
        page.index("Where task vectors lie")
        < page.index("How long names are")
        < page.index("More is longer.")
    )
    (folder / "diagnostics.json").write_text(json.dumps(found | {"tasks": ["fruit", "colour"]}))
    with pytest.raises(RunError, match="diagnostics.json"):
        derived.diagnostics(folder)
    (folder / "diagnostics.json").write_text(json.dumps(found))
    status, out, err = perdure("diagnose", folder, "--only", "letter")
    assert status == 1 and err.startswith(
        "Error: No part of the diagnostics named `letter`. Did you mean `letters`?"
    )


def test_each_diagnostic_is_computed_and_shown():
    assert list(registry.diagnostics()) == ["interference", "zones", "cka", "probe", "posterior"]
    for name in registry.diagnostics():
        assert callable(importlib.import_module(f"perdure.analysis.{name}").compute), name


# -- shown


def many(count, layers=3):
    """Diagnostics of so many tasks, with names of every kind, in the shape that the format has."""
    kinds = [
        "مهمة",
        "🍎 fruit",
        "<script>alert(1)</script>",
        "[bold]",
        "$x_1$",
        "_hidden",
        "a rather long name " * 3,
    ]
    tasks = [f"{kinds[i % len(kinds)]} {i}" for i in range(count)]
    rng, names = np.random.default_rng(0), {"cka": [f"layer {i}" for i in range(layers)]}
    if count <= 40:
        names |= dict.fromkeys(("interference", "zones"), [f"encoder.{i}.q" for i in range(layers)])
    parts = {}
    for name, diagnostic in registry.diagnostics().items():
        keys = diagnostic.axes
        depth = len(names.get(name, []))
        sizes = {
            "t": count,
            "p": count * (count - 1) // 2,
            "s": count + 1,
            "l": depth,
            "z": 3,
            "b": 15,
            "c": 5,
        }
        parts[name] = {
            key: rng.random([sizes[axis] for axis in axes]).round(3).tolist()
            for key, axes in keys.items()
        }
        parts[name] |= {"reading": "How to read it.", "layers": names.get(name, [])}
    return {
        "format": 1,
        "tasks": tasks,
        "rule": "sum",
        "since": "pretrained",
        "seed": 0,
        "left_out": {},
        "examples": 100,
        "parts": parts,
    }


@pytest.mark.parametrize("count", [1, 50])
def test_sections(count):
    found = many(count)
    if count == 1:
        found["left_out"]["interference"] = "There is one task only."
        del found["parts"]["interference"]
    shown = sections(found)
    assert [section.title for section in shown] == [
        diagnostic.title for diagnostic in registry.diagnostics().values()
    ]
    for section in shown:
        for picture in section.pictures:
            assert (
                picture.svg.startswith("<svg") and "<script" not in picture.svg and picture.caption
            )
            assert all(len(row) == len(picture.header) for row in picture.rows) and picture.rows
            assert len(picture.rows) <= 61 and len(picture.header) <= TASKS + 1
    if count == 1:
        assert shown[0].pictures == [] and shown[0].note == "Left out. There is one task only."
    if count > TASKS:
        assert all(f"first {TASKS} of 50 tasks" in section.note for section in shown)


def test_the_numbers_of_sections():
    found = many(2)
    parts = found["parts"]
    table = parts["interference"] | {"layers": []}
    cosine = sections(found | {"parts": {"interference": table}})[0].pictures[0]
    assert [row[1:] for row in cosine.rows] == table["cosine"]
    assert cosine.header == ["", *found["tasks"]] and cosine.svg.count("<text") == 2 + 2 + 4
    undefined = table | {"cosine": [[None, None], [None, None]]}
    less = sections(found | {"parts": {"interference": undefined}})[0].pictures
    assert "Cosine: task × task" not in [picture.caption for picture in less] and len(less) == 5
    (posterior,) = sections(found | {"parts": {"posterior": parts["posterior"]}})
    counts = np.array(parts["posterior"]["confusion"])
    np.testing.assert_allclose(
        [row[1:] for row in posterior.pictures[0].rows], counts / counts.sum(1, keepdims=True)
    )
    large = many(14)
    (posterior,) = sections(large | {"parts": {"posterior": large["parts"]["posterior"]}})
    assert posterior.pictures[0].svg.count("<text") < 14 + 14 + 20  # a scale instead of 196 numbers
    assert sections({}) == []


@pytest.mark.parametrize("count", [2, 300])
def test_the_terminal_has_80_columns(count):
    out = io.StringIO()
    diagnostics_terminal.show(many(count), Console(file=out, width=80))
    from rich.cells import cell_len

    assert max(map(cell_len, out.getvalue().splitlines())) <= 80 and "\x1b" not in out.getvalue()
    assert "[bold]" in out.getvalue() or count == 2
    assert (f"and {300 - 40} more" in out.getvalue()) == (count == 300)


def test_reading_needs_no_torch(tmp_path):
    (tmp_path / "diagnostics.json").write_text(json.dumps(many(3)))
    code = "import sys, pathlib; from perdure.runs import derived; "
    code += "from perdure.report.diagnostics_page import sections; "
    code += "shown = sections(derived.diagnostics(pathlib.Path(sys.argv[1]))); "
    code += "print(len(shown), 'torch' in sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
    ).stdout
    assert out.split() == ["5", "False"]


def test_risk_at_each_coverage():
    """Most confident first; an empty bin is no point, and one point is no curve."""
    from perdure.report.diagnostics.posterior import pictures, risks

    bins = [[0.0, 0.2, 4, 0.1, 0.25], [0.2, 0.8, 0, None, None], [0.8, 1.0, 12, 0.9, 0.75]]
    np.testing.assert_allclose(risks(bins), [[0.8, 0.75, 0.25], [0.0, 1.0, 6 / 16]])
    numbers = many(2)["parts"]["posterior"]
    shown = pictures(numbers | {"class_bins": bins}, ["a", "b"])
    assert shown[-1].caption.startswith("Risk") and shown[-1].svg.startswith("<svg")
    for few in (bins[:1], [[0.0, 1.0, 0, None, None]]):
        captions = [
            picture.caption for picture in pictures(numbers | {"class_bins": few}, ["a", "b"])
        ]
        assert not any(caption.startswith("Risk") for caption in captions)
