"""Temperatures and relative distances against plain NumPy, and what a task leaves behind."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_runs import contents, differing, make, recipe
from tables import write

from perdure import InputError, Model, PosteriorSettings, Run, RunError, Statistics, TaskPosterior
from perdure.errors import TrainingError
from perdure.evaluation.posterior import check_scalable
from perdure.evaluation.validation import (
    DISTANCES,
    SHRINKAGE,
    TEMPERATURES,
    OwnClasses,
    Validation,
    fitted_temperature,
)
from perdure.runs.extend import forget
from perdure.runs.verify import verify

FITTED = {"posterior": {"features": "unit", "temperature": "fitted"}}


@pytest.fixture
def task():
    """The features and the classes of 60 training and 40 validation examples."""
    generator = torch.Generator().manual_seed(0)
    means = torch.tensor([[0.0, 0, 0], [2, 0, 0], [0, 3, 0]])
    labels = torch.arange(100) % 3
    features = means[labels] + torch.randn(100, 3, generator=generator)
    return (features[:60], labels[:60]), (features[60:], labels[60:])


def plain(train, x):
    """Squared distances from classes and from the whole task, and log priors, by NumPy."""
    features, labels = (value.numpy().astype(float) for value in train)
    x = x.numpy().astype(float)

    def distances(groups):
        means = np.stack([features[groups == group].mean(0) for group in np.unique(groups)])
        centred = features - means[groups]
        covariance = centred.T @ centred / len(features)
        sphere = np.trace(covariance) / 3 * np.eye(3)
        shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * sphere
        difference = x[:, None] - means
        return np.einsum("ncd,de,nce->nc", difference, np.linalg.inv(shrunk), difference)

    priors = np.bincount(labels.astype(int)) / len(labels)
    classes = distances(labels.astype(int))
    return classes, distances(np.zeros(len(labels), dtype=int)), np.log(priors)


def test_losses_and_distances_are_those_of_the_formulas(task):
    train, (x, y) = task
    statistics = Statistics.of(*train, 3)
    measured = Validation.of(statistics, x, y)
    squares, of_task, priors = plain(train, x)
    for number in (0, 8, 40):
        scores = (priors - squares / 2) / TEMPERATURES[number].item()
        log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        expected = -log_p[np.arange(len(y)), y.numpy()].sum()
        assert measured.losses[number].item() == pytest.approx(expected, rel=1e-9)
    relative = np.sort(squares.min(1) - of_task[:, 0])
    np.testing.assert_allclose(measured.distances, relative, rtol=1e-9)


def test_the_temperature_minimises_the_sum_over_tasks():
    log_T = TEMPERATURES.log2()
    low, high = (Validation((log_T - best).square(), torch.zeros(1)) for best in (1, 3))
    assert [fitted_temperature([low]), fitted_temperature([high])] == [2.0, 8.0]
    assert fitted_temperature([low, high]) == fitted_temperature([high, low]) == 4.0
    flat = Validation(torch.zeros_like(log_T), torch.zeros(1))
    assert fitted_temperature([flat]) == fitted_temperature([]) == 1.0


def test_a_task_of_a_single_group_says_nothing_about_the_temperature(task):
    (x, y), _ = task
    measured = Validation.of(Statistics.of(x, torch.zeros_like(y), 1), x, torch.zeros_like(y))
    assert not measured.losses.any() and fitted_temperature([measured]) == 1.0


def test_a_temperature_by_hand():
    """Variance 1, means -1 and 1: log p(b)/p(a) = 2x / T; T = 1 changes no bit."""
    a = Statistics.of(torch.tensor([[-2.0], [0.0]]), torch.tensor([0, 0]), 1)
    b = Statistics.of(torch.tensor([[0.0], [2.0]]), torch.tensor([0, 0]), 1)
    x = torch.tensor([[0.3]])
    usual = TaskPosterior({"a": a, "b": b}, shrinkage=0.0)
    cooler = TaskPosterior({"a": a, "b": b}, shrinkage=0.0, temperature=4.0)
    log_p = cooler.log_prob(x)
    assert (log_p[0, 1] - log_p[0, 0]).item() == pytest.approx(0.15)
    one = TaskPosterior({"a": a, "b": b}, shrinkage=0.0, temperature=1.0)
    assert torch.equal(usual.log_prob(x), one.log_prob(x))


def test_unit_features_depend_on_directions_only(task):
    train, (x, _) = task
    unit = torch.nn.functional.normalize(train[0])
    posterior = TaskPosterior(
        {name: Statistics.of(unit[i::2], train[1][i::2], 3) for i, name in enumerate("ab")},
        features="unit",
    )
    torch.testing.assert_close(posterior.log_prob(x), posterior.log_prob(7 * x))


def test_many_distances_become_quantiles(task):
    train, _ = task
    x = torch.randn(3 * DISTANCES, 3, generator=torch.Generator().manual_seed(1))
    statistics = Statistics.of(*train, 3)
    kept = Validation.of(statistics, x, torch.zeros(len(x), dtype=torch.long)).distances
    exact = OwnClasses(statistics).relative(x)
    assert len(kept) == DISTANCES
    for level in (0.05, 0.5, 0.95):
        share = (exact <= kept.quantile(level)).double().mean().item()
        assert share == pytest.approx(level, abs=2 / DISTANCES)


def test_what_cannot_be_measured(task):
    train, (x, _) = task
    statistics = Statistics.of(*train, 4)  # nobody has the last class
    last = torch.full((len(x),), 3)
    with pytest.raises(InputError, match="cannot be fitted without validation examples"):
        Validation.of(statistics, x, last)
    with pytest.raises(TrainingError, match=r"1 of 2 examples .* are zero.*The first is example 2"):
        check_scalable(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), "a", "train")


# -- runs


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


@pytest.fixture(scope="module")
def fitted(home, pico):
    return make(
        home, "fitted", recipe(home, ("fruit", "colour", "texture"), pico("bert"), **FITTED)
    )


def test_a_run_keeps_its_settings_and_its_sums(fitted):
    assert fitted.recipe["posterior"] == {"shrinkage": 0.1, **FITTED["posterior"]}
    model = Model(fitted.folder)
    tasks = model.system.learned
    total = sum(task.validation.losses for task in tasks)
    assert model.system.temperature == TEMPERATURES[total.argmin()].item()
    assert model.system.posterior.temperature == model.system.temperature
    for task in tasks:
        # The squared lengths of unit features add up to the number of examples.
        assert task.statistics.products.trace().item() == pytest.approx(
            task.statistics.counts.sum()
        )
        size = (fitted.folder / "tasks").rglob("validation.safetensors")
        assert all(path.stat().st_size < 20_000 for path in size)
    assert verify(fitted.folder).faults == []


def test_a_run_without_the_section_is_as_before(home, pico):
    usual = make(home, "usual", recipe(home, ("fruit", "colour"), pico("bert")))
    assert "posterior" not in usual.recipe
    system = Model(usual.folder).system
    assert system.settings == PosteriorSettings() and system.temperature == 1.0
    assert not list(usual.folder.rglob("validation.safetensors"))


def test_a_forgotten_task_leaves_nothing(fitted, home, pico, tmp_path):
    whole = Run(shutil.copytree(fitted.folder, tmp_path / "whole"))
    forget(whole.folder, "fruit")
    never = make(tmp_path, "never", recipe(home, ("colour", "texture"), pico("bert"), **FITTED))
    assert set(differing(whole, never)) <= {"scores.csv", "events.jsonl"}
    kept = [name for name in contents(whole) if name.endswith("validation.safetensors")]
    assert len(kept) == 2


def test_damaged_sums(fitted, tmp_path):
    folder = shutil.copytree(fitted.folder, tmp_path / "damaged")
    task = next(folder.glob("tasks/00-*"))
    path = task / "validation.safetensors"
    save_file({"losses": torch.zeros(3), "distances": torch.zeros(4)}, path)
    manifest = json.loads((task / "manifest.json").read_text())
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    manifest[path.name] = {"size": len(content), "sha256": digest}
    (task / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="are not the fit to a task's validation examples"):
        Model(folder)
    path.unlink()
    with pytest.raises(RunError, match="missing"):
        Model(folder)


def test_bad_settings(home, pico):
    values = recipe(home, ("fruit", "colour"), pico("bert"))
    for setting, message in (
        ({"features": "cubic"}, "`plain` or `unit`"),
        ({"temperature": 0}, "more than 0 or `fitted`"),
        ({"shrinkage": 2}, "`shrinkage` is 2"),
        ({"heat": 1}, "`heat`"),
    ):
        with pytest.raises(InputError, match=message):
            make(home, "bad", values | {"posterior": setting})


def test_a_class_with_a_single_training_example(home, pico, tmp_path):
    train = [("one two", "a"), ("two three", "a"), ("three four", "b")]
    other = [("one two", "a"), ("three four", "b")]
    files = {
        "train": write(tmp_path / "train.csv", train),
        "validation": write(tmp_path / "validation.csv", other),
        "test": write(tmp_path / "test.csv", other),
    }
    paths = {split: str(path) for split, path in files.items()}
    entry = {"data": paths, "name": "few"}
    values = recipe(home, (entry,), pico("bert"), **FITTED)
    with pytest.raises(InputError, match="two training examples of each class, but class `b` of"):
        make(tmp_path, "few", values)
    assert not (tmp_path / "few" / "tasks").exists()
