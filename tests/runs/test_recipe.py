"""Recipes: what is written is checked against what it names, before anything is trained."""

import resource
import time
from pathlib import Path

import pytest
import yaml

from perdure import InputError, Recipe, Run, registry
from perdure.learning.loop import Training
from perdure.settings import named

GOOD = {"stream": "demo", "backbone": "minilm"}


def parse(settings=(), **values) -> Recipe:
    return Recipe.parse(GOOD | values, settings)


def test_defaults_and_settings():
    recipe = parse(
        ["method.rank=4", "rule.scale=0.3", "backbone.max_length=32", "training.epochs=1", "seed=7"]
    )
    assert recipe.make_method().rank == 4 and recipe.seed == 7
    assert recipe.make_rule().options == {"scale": 0.3} and recipe.make_training() == Training(
        epochs=1
    )
    assert recipe.backbone == {"model": "minilm", "max_length": 32}


@pytest.mark.parametrize(
    ("values", "make", "message"),
    [
        (
            {"metod": "isolated"},
            None,
            "No setting of the recipe named `metod`. Did you mean `method`?",
        ),
        ({"method": "izolated"}, "method", "No method named `izolated`. Did you mean `isolated`?"),
        (
            {"method": {"name": "isolated", "rang": 4}},
            "method",
            "No setting of method `isolated` named `rang`. Did you mean `rank`?",
        ),
        (
            {"method": {"name": "isolated", "rank": "many"}},
            "method",
            "method `isolated`: `rank` is 'many', but",
        ),
        ({"method": {"name": "isolated", "start": "never"}}, "method", "`start` is 'never', but"),
        ({"method": {"rank": 4}}, "method", "`method` needs `name`"),
        (
            {"rule": "task-arithmetic"},
            "rule",
            "No rule named `task-arithmetic`. Did you mean `task_arithmetic`?",
        ),
        ({"rule": {"name": "sum", "scale": 1}}, "rule", "No setting of rule `sum` named `scale`"),
        ({"rule": {"name": "sum", "space": "weights"}}, "rule", "`space` is 'weights', but"),
        ({"stream": "demoo"}, "stream", "No benchmark named `demoo`. Did you mean `demo`?"),
        ({"stream": {"name": "demo", "tran": 3}}, "stream", "Did you mean `train`?"),
        ({"stream": [{"name": "x"}]}, "stream", "has no `data`"),
        ({"stream": [{"data": "x.csv", "lable": "y"}]}, "stream", "Did you mean `label`?"),
        ({"training": {"epoch": 3}}, "training", "Did you mean `epochs`?"),
        ({"evaluation": {"task_ids": ["known"]}}, "evaluation", "`task_ids.0` is 'known', but"),
        ({"method": {"name": "isolated", "rank": 0}}, "method", "`rank` is 0, but"),
        ({"training": {"learning_rate": -1}}, "training", "`learning_rate` is -1, but"),
        ({"stream": [{"data": 5}]}, "stream", "has no `data`"),
        ({"seed": -1}, None, "`seed` is -1, but"),
        ({"seed": "x"}, None, "`seed` is 'x', but"),
    ],
)
def test_mistakes(values, make, message):
    with pytest.raises(InputError, match=message):
        recipe = parse(**values)
        getattr(recipe, f"make_{make}")()


def test_files(tmp_path):
    with pytest.raises(InputError, match="There is no file"):
        Recipe.read(tmp_path / "nothing.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(
        InputError, match="`.*bad.yaml` is not YAML that can be read: .*in line 2, column 1"
    ):
        Recipe.read(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(InputError, match="is not a mapping of keys to values, but list"):
        Recipe.read(tmp_path / "list.yaml")
    (tmp_path / "good.yaml").write_text(yaml.safe_dump(GOOD))
    with pytest.raises(InputError, match="is a folder but not a run"):
        Recipe.read(tmp_path)
    assert Recipe.read(tmp_path / "good.yaml", ["name=x"]).name == "x"
    with pytest.raises(InputError, match="must be `key=value`"):
        parse(["method.rank"])
    with pytest.raises(InputError, match="has no settings of its own"):
        parse(["seed.x=1"], seed=3)


BOMB = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 9)}]\n" for i in range(12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "has aliases"),
        ("rule: &r {name: sum}\nmethod: {<<: *r}", "has aliases"),
        ("seed: 1\nbackbone: minilm\nseed: 2", "`seed` appears twice, again on line 3"),
        (
            "method:\n  name: isolated\n  rank: 2\n  rank: 4",
            "`rank` appears twice, again on line 4",
        ),
        ("a: " + "[" * 60 + "]" * 60, "more than 50 levels of nested lists or mappings"),
        ("[" * 200_000, "not YAML that can be read|more than 50 levels"),
        ("seed: " + "1" * 5000, "is not YAML that can be read"),
        ("about: " + "x" * 1_100_000, "more than 1000000 bytes"),
        ("!!python/object/apply:os.getcwd []", "is not YAML that can be read"),
        ("? [a, b]\n: c", "is not YAML that can be read"),
        ("about: \x07", "is not YAML that can be read"),
        ("", "but NoneType"),
    ],
)
def test_a_recipe_that_would_take_all_memory_is_refused_at_once(text, message, tmp_path):
    path = tmp_path / "big.yaml"
    path.write_text(text)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(InputError, match=message) as refused:
        Recipe.read(path)
    assert "big.yaml" in str(refused.value)
    assert time.monotonic() - began < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


@pytest.mark.parametrize("value", ["{a: 1, a: 2}", "&a [*a]", "[" * 60, "@"])
def test_settings_are_read_with_the_same_care(value):
    with pytest.raises(InputError, match="`--set about="):
        parse([f"about={value}"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": {"name": "isolated", "peft": "bottleneck"}}, "set the rule's `space: factor`"),
        (
            {"rule": {"name": "task_arithmetic", "search": {"over": "tasks"}}},
            "use it together with `scale: search`",
        ),
        (
            {"rule": {"name": "task_arithmetic", "scale": "abc"}},
            "must be a number, a mapping by task, or one",
        ),
        (
            {"rule": {"name": "task_arithmetic", "scale": float("nan")}},
            "`scale` must be a finite number",
        ),
    ],
)
def test_what_does_not_go_together_fails_before_training(values, message, tmp_path):
    with pytest.raises(InputError, match=message):
        parse(**values).run(tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_the_seed_reaches_benchmarks_and_the_scenario_streams(shared):
    stream = {"name": "standard_cl", "folder": str(shared / "text15"), "order": ["cb"], "train": 60}
    one, two = (parse(stream=dict(stream), seed=seed).make_stream() for seed in (0, 1))
    assert one[0].digests()["validation"] != two[0].digests()["validation"]
    assert parse(stream=dict(stream), scenario="task").make_stream().scenario == "task"
    fixed = parse(stream=stream | {"seed": 0}, seed=1).make_stream()
    assert fixed[0].digests() == one[0].digests()


def test_a_resolved_recipe_gives_the_same_run_again(pico, tmp_path):
    from tables import ROWS, write

    stream = [{"data": write(tmp_path / f"{n}.csv", ROWS)} for n in "ab"]
    recipe = Recipe.parse(
        {
            "stream": stream,
            "backbone": {"model": str(pico("bert")), "max_length": 8},
            "training": {"epochs": 1},
        }
    )
    first = recipe.run(tmp_path / "one")
    again = Recipe.parse(Run(tmp_path / "one").recipe).run(tmp_path / "two")
    assert first.scores() == again.scores() and first.recipe == again.recipe
    assert first.recipe["method"]["rank"] == 8 and first.recipe["training"]["batch_size"] == 32


def test_a_method_has_its_usual_rule():
    assert [
        parse(method=name).make_rule().name for name in ("isolated", "inflora", "sequential")
    ] == [
        "task_arithmetic",
        "sum",
        "last",
    ]
    assert parse(["method=inflora", "rule.space=delta"]).make_rule().name == "sum"
    assert (
        parse(["rule.scale=0.3", "rule=task_arithmetic"], method="inflora").make_rule().options
        == {}
    )


@pytest.mark.parametrize(
    "path",
    sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml")),
    ids=lambda path: path.stem,
)
def test_the_recipes_that_are_published_can_be_made(path):
    recipe = Recipe.read(path)
    assert (
        recipe.make_method()
        and recipe.make_rule()
        and recipe.make_training()
        and recipe.make_evaluation()
    )
    name, options = named(recipe.stream, "stream")
    assert set(options) <= set(registry.options(registry.find("benchmark", name)))
    backbone = {} if isinstance(recipe.backbone, str) else dict(recipe.backbone)
    assert set(backbone) <= {"model", "pooling", "max_length", "image_size", "head"}


@pytest.mark.parametrize("rule", ["smile", "routed", "slao"])
def test_a_rule_of_low_rank_changes_refuses_full_fine_tuning_before_it(rule, pico, tmp_path):
    from small_runs import recipe

    method = {"name": "sequential", "peft": "full"}
    values = recipe(tmp_path, ("fruit", "colour"), pico("bert"), method=method, rule=rule)
    with pytest.raises(InputError, match="not low-rank|is a full tensor"):
        Recipe.parse(values).plan()
    with pytest.raises(InputError, match="`keep_inputs` is for layers with LoRA"):
        Recipe.parse(values | {"rule": "regmean"}, ["training.keep_inputs=true"]).plan()
