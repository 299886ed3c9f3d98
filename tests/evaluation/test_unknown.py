"""Inputs that belong to no task: shares by hand, the promise about known inputs, and `predict`."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from small_runs import TEXTS, make, recipe, table
from tables import read_table, write

from perdure import InputError, Model, RunError, Statistics
from perdure.evaluation.unknown import KnownInputs, auroc, false_positives
from perdure.evaluation.validation import OwnClasses, Validation
from perdure.runs.prediction import Prediction, Withheld

FITTED = {"posterior": {"features": "unit", "temperature": "fitted"}}
MEANS = torch.tensor([[0.0, 0, 0], [3, 0, 0], [0, 3, 0]])


def drawn(count, seed):
    """Examples of three Gaussian classes, and their classes."""
    labels = torch.arange(count) % 3
    noise = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return MEANS[labels] + noise, labels


@pytest.fixture
def known():
    statistics = Statistics.of(*drawn(90, 0), 3)
    return KnownInputs({"a": statistics}, {"a": Validation.of(statistics, *drawn(99, 1))})


def test_shares_by_counting(known):
    x, _ = drawn(20, 2)
    statistics = Statistics.of(*drawn(90, 0), 3)
    classes = OwnClasses(statistics)
    distances = classes.relative(drawn(99, 1)[0])
    first = torch.zeros(20, dtype=torch.long)
    for share, distance in zip(known.shares(x, first), classes.relative(x), strict=True):
        farther = (distances >= distance).sum().item()
        assert share.item() == pytest.approx((1 + farther) / 100)


def test_known_inputs_are_lost_at_the_rate_that_was_asked_for(known):
    x, _ = drawn(3000, 3)
    shares = known.shares(x, torch.zeros(3000, dtype=torch.long))
    for share in (0.05, 0.2):
        assert (shares <= share).double().mean().item() == pytest.approx(share, abs=0.04)
    far = known.shares(x[:9] + 20, torch.zeros(9, dtype=torch.long))
    assert far.tolist() == [0.01] * 9


def test_each_input_is_compared_with_its_own_task():
    one, other = (
        Statistics.of(drawn(60, seed)[0] + 9 * seed, drawn(60, 0)[1], 3) for seed in (0, 1)
    )
    validations = {}
    for name, statistics, shift in (("a", one, 0), ("b", other, 9)):
        x, y = drawn(60, 5)
        validations[name] = Validation.of(statistics, x + shift, y)
    both = KnownInputs({"a": one, "b": other}, validations)
    x = drawn(6, 7)[0]
    a, b = (both.shares(x + shift, torch.full((6,), task)) for task, shift in ((0, 0), (1, 9)))
    assert (both.shares(x, torch.full((6,), 1)) < a).all()
    alone = KnownInputs({"b": other}, {"b": validations["b"]})
    assert torch.equal(b, alone.shares(x + 9, torch.zeros(6, dtype=torch.long)))


def test_too_few_validation_examples(known):
    known.check(0.05)
    with pytest.raises(InputError, match="Task `a` has 99 validation examples, too few to tell"):
        known.check(0.005)


def test_measures_equal_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    known = generator.integers(0, 9, 40) / 10
    unknown = generator.integers(3, 14, 30) / 10
    labels = [0] * 40 + [1] * 30
    expected = roc_auc_score(labels, [*known, *unknown])
    assert auroc(torch.tensor(known), torch.tensor(unknown)) == pytest.approx(expected)
    share = (unknown <= np.quantile(known, 0.95)).mean()
    passed = false_positives(torch.tensor(known), torch.tensor(unknown))
    assert passed == pytest.approx(share)


# -- predict


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


@pytest.fixture(scope="module")
def model(home, pico):
    tables = [{"data": table(home, name, size=120), "name": name} for name in ("fruit", "colour")]
    values = recipe(home, tables, pico("bert"), **FITTED)
    return Model(make(home, "fitted", values).folder)


def test_predictions_that_are_withheld(model, home):
    """Far fewer of the texts that it has learned are unknown than of others."""
    learned = [
        row["text"] for name in ("fruit", "colour") for row in read_table(home / f"{name}.csv")
    ]
    usual = model.predict(learned)
    answers = model.predict(learned, unknown=0.1)
    for answer, before in zip(answers, usual, strict=True):
        if answer.label == "unknown":
            assert answer.task == "" and answer.probability >= 0.9
        else:
            assert answer == before
    lost = sum(answer.label == "unknown" for answer in answers) / len(answers)
    others = [answer.label == "unknown" for answer in model.predict(TEXTS, unknown=0.1)]
    assert 0 < lost < 0.3 < sum(others) / len(others)


def test_an_unsure_answer_is_empty(model):
    usual = model.predict(TEXTS)
    middle = sorted(answer.probability for answer in usual)[len(usual) // 2]
    for answer, before in zip(model.predict(TEXTS, min_probability=middle), usual, strict=True):
        label = before.label if before.probability >= middle else ""
        assert answer == Prediction(label, before.probability, before.task)


def test_the_command(model, perdure, tmp_path):
    write(tmp_path / "new.csv", [(text, "x") for text in TEXTS])
    folder = model.state.folder
    status, out, err = perdure("predict", folder, tmp_path / "new.csv", "--unknown", "0.9")
    assert (status, err) == (0, ""), err
    rows = read_table(tmp_path / "new.predicted.csv")
    labels = [row["predicted_label"] for row in rows]
    assert labels == [answer.label for answer in model.predict(TEXTS, unknown=0.9)]
    assert "unknown" in labels
    status, out, err = perdure(
        "predict", folder, "--prompt", TEXTS[0], "--min-probability", "0.9999"
    )
    assert status == 0 and "(no answer)" in out + err
    status, out, err = perdure("predict", folder, "--prompt", TEXTS[0], "--unknown", "5")
    assert status == 1 and "`--unknown` must be a number between 0 and 1" in err


def test_what_cannot_be_withheld(model, home, pico):
    for value in (0, 1, -0.1, float("nan")):
        with pytest.raises(InputError, match="`--min-probability` must be a number between 0 and"):
            model.predict(TEXTS, min_probability=value)
    with pytest.raises(InputError, match="too few to tell"):
        model.predict(TEXTS, unknown=0.001)
    usual = make(home, "usual", recipe(home, ("fruit", "colour"), pico("bert")))
    with pytest.raises(RunError, match="has stored no distances of validation examples"):
        Model(usual.folder).predict(TEXTS, unknown=0.1)
    rows = [(text, "unknown" if i % 2 else "other") for i, text in enumerate(TEXTS)]
    entry = {"data": write(home / "named.csv", rows), "name": "named"}
    named = make(home, "named", recipe(home, (entry,), pico("bert"), **FITTED))
    with pytest.raises(InputError, match="Task `named` has a class `unknown`"):
        Model(named.folder).predict(TEXTS, unknown=0.5)
    with pytest.raises(InputError, match="both excluded, got 2"):
        Withheld(unknown=2)
