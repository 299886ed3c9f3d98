"""What varies: how many trials, with which settings, under which names."""

from pathlib import Path

import pytest

from perdure import InputError, Recipe, UnknownName
from perdure.sweeps import sweep_file
from perdure.sweeps.orders import in_order
from perdure.sweeps.sweep_file import Random, Range, SweepFile
from perdure.sweeps.trials import assignments, check, count, drawn, rule_sections, trials

RECIPE = {"stream": [{"data": "a.csv"}, {"data": "b.csv"}], "backbone": "minilm"}
DEMO = {"stream": "split_mnist", "backbone": "dinov2"}


def of(recipe=RECIPE, *, grid=None, entries=(), random=None, rules=()):
    return SweepFile(recipe, grid or {}, list(entries), random, list(rules))


def test_all_combinations_of_the_sections():
    sweep = of(
        grid={"method": ["ewc", "lwf"], "seed": [0, 1, 2]},
        entries=[{"training.epochs": 1}, {"training.epochs": 2}],
        random=Random({"training.learning_rate": Range(0.01, 0.1)}, trials=2),
    )
    made = trials(sweep)
    assert count(sweep) == len({trial.name for trial in made}) == 2 * 3 * 2 * 2
    # the grid varies fastest, its last setting most of all
    assert [trial.settings["seed"] for trial in made[:4]] == [0, 1, 2, 0]
    assert [trial.settings["method"] for trial in made[:4]] == ["ewc", "ewc", "ewc", "lwf"]
    assert count(of()) == len(trials(of())) == 1


def test_draws_that_are_equal_are_one_trial():
    sweep = of(random=Random({"method.rank": [4]}, trials=5))
    assert count(sweep) == 5 and len(trials(sweep)) == 1


def test_names_do_not_depend_on_what_else_varies():
    few = trials(of(grid={"method": ["ewc"], "seed": [0]}))
    more = trials(of(grid={"seed": [1, 0], "method": ["lwf", "ewc"]}))
    assert few[0].name in {trial.name for trial in more}
    assert few[0].name.startswith("ewc-seed-0-")


def test_labels_leave_out_what_the_report_averages_over():
    (trial,) = trials(
        of(grid={"method": [{"name": "ewc", "rank": 2}], "seed": [3], "training.epochs": [2]})
    )
    assert trial.label == "ewc(rank=2), epochs 2"
    (named,) = trials(of(entries=[{"name": "slow", "training.epochs": 9}], grid={"seed": [1]}))
    assert named.label == "slow"
    (nothing,) = trials(of(grid={"seed": [1]}))
    assert nothing.label == "" and nothing.name.startswith("seed-1-")


def test_settings_of_a_section_come_after_the_section():
    sweep = of(grid={"method.rank": [2], "method": ["ewc"], "rule": ["sum"]})
    (trial,) = trials(sweep)
    recipe = Recipe.parse(RECIPE, assignments(RECIPE, trial))
    assert recipe.method == {"name": "ewc", "rank": 2} and recipe.rule == "sum"
    assert recipe.name == "rank 2, ewc, sum"


def test_values_survive_the_way_through_text():
    values = {"training.learning_rate": 1e-05, "about": "a: b # c ±", "training.alignment": {}}
    (trial,) = trials(of(entries=[{"name": "x", **values}]))
    recipe = Recipe.parse(RECIPE, assignments(RECIPE, trial))
    assert recipe.training == {"learning_rate": 1e-05, "alignment": {}}
    assert recipe.about == values["about"]


def test_random_numbers_are_within_their_range_and_do_not_change():
    draws = Random({"a": Range(1e-4, 1e-2, log=True), "b": Range(1, 3, whole=True)}, trials=50)
    rows = drawn(draws)
    assert all(1e-4 <= row["a"] <= 1e-2 and row["b"] in (1, 2, 3) for row in rows)
    # half of a logarithmic range lies below its geometric mean, 1e-3
    assert 15 <= sum(row["a"] < 1e-3 for row in rows) <= 35
    longer = drawn(Random(draws.settings, trials=60))
    assert longer[:50] == rows
    assert drawn(Random(draws.settings, trials=50, seed=1)) != rows


def test_a_setting_that_varies_twice_is_refused():
    with pytest.raises(InputError, match="`seed` varies in two sections"):
        trials(of(grid={"seed": [0]}, entries=[{"seed": 1}]))


@pytest.mark.parametrize(
    ("order", "names"),
    [(0, ["a.csv", "b.csv"]), (["b", "a"], ["b.csv", "a.csv"])],
)
def test_the_order_of_own_tables(order, names):
    (trial,) = trials(of(grid={"order": [order]}))
    recipe = Recipe.parse(RECIPE, assignments(RECIPE, trial))
    assert [entry["data"] for entry in recipe.stream] == names


def test_a_number_shuffles_own_tables():
    entries = [{"data": f"{name}.csv"} for name in "abcdefgh"]
    name, shuffled = in_order(entries, 1)
    assert name == "stream" and shuffled != entries
    assert sorted(shuffled, key=str) == entries and in_order(entries, 1)[1] == shuffled


def test_the_order_of_a_benchmark():
    assert in_order("split_mnist", 2) == ("stream.order_seed", 2)
    assert in_order({"name": "standard_cl"}, "order3") == ("stream.order", "order3")
    (trial,) = trials(of(DEMO, grid={"order": [2]}))
    assert trial.label == ""  # a seed, over which the report averages
    recipe = Recipe.parse(DEMO, assignments(DEMO, trial))
    assert recipe.stream == {"name": "split_mnist", "order_seed": 2}


@pytest.mark.parametrize(
    ("stream", "order", "message"),
    [
        ("split_mnist", "order1", "has `order_seed`"),
        ("standard_cl", 1, "has `order`"),
        ("demo", 1, "has no setting for its order"),
        (RECIPE["stream"], ["a"], r"must name each table of the stream once \(a, b\)"),
        (RECIPE["stream"], "b", "must name each table"),
    ],
)
def test_orders_that_do_not_exist(stream, order, message):
    with pytest.raises(InputError, match=message):
        in_order(stream, order)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: {seed: [0]}", "needs `recipe`"),
        ("recipe: {}\ngird: {seed: [0]}", "Did you mean `grid`"),
        ("recipe: {}\ngrid: {seed: 0}", "`grid.seed` is 0, but must be"),
        ("recipe: {}\ngrid: {seed: []}", "`seed` has no values"),
        ("recipe: missing.yaml", "There is no file"),
        ("recipe: .", "is a folder"),
        ("recipe: {}\nrandom: {settings: {a: [1]}}", "needs `trials`"),
        ("recipe: {}\nrandom: {trials: 1, settings: {a: {low: 2, high: 1}}}", "above `high`"),
        ("recipe: {}\nrandom: {trials: 1, settings: {a: {low: 0, high: 1, log: true}}}", "`low`"),
        ("recipe: {}\nrandom: {trials: 0, settings: {a: [1]}}", "at least 1"),
        ("- recipe", "not a mapping"),
    ],
)
def test_files_that_are_not_sweeps(tmp_path, text, message):
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        sweep_file.read(tmp_path / "sweep.yaml")


def test_the_recipe_is_beside_the_sweep(tmp_path):
    (tmp_path / "mine.yaml").write_text("stream: demo\nbackbone: minilm")
    (tmp_path / "sweep.yaml").write_text("recipe: mine.yaml\nrules: [sum, {name: ties}]")
    sweep = sweep_file.read(tmp_path / "sweep.yaml")
    assert sweep.recipe == {"stream": "demo", "backbone": "minilm"}
    assert sweep.rules == ["sum", {"name": "ties"}]
    with pytest.raises(UnknownName):
        Recipe.parse(sweep.recipe, ["methd=ewc"]).make_method()


@pytest.mark.parametrize(
    "path",
    sorted((Path(__file__).parents[2] / "recipes" / "sweeps").glob("*.yaml")),
    ids=lambda path: path.stem,
)
def test_the_sweeps_that_are_published_can_be_made(path):
    sweep = sweep_file.read(path)
    checked = set()
    for trial in trials(sweep):
        check(sweep.recipe, assignments(sweep.recipe, trial), checked)
    assert rule_sections(sweep.rules) == sweep.rules
