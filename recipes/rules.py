"""Every rule on the demo's tasks: train once for each seed, then combine in every way,
and write the tables.

    python recipes/rules.py --seeds 0 1 2

A run that is there already is taken up, and so is a rule that was measured already.
`results/rules_demo.csv` has a row for each method, rule, seed and way to know the task;
`results/rules_demo_scales.csv` the accuracy at each scale of task arithmetic.
A rule with a scale is measured at its usual one and at the best of the grid on validation data.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from common import write

from perdure import Recipe, Rule, Run, names, registry
from perdure.cli.demo import TEXT
from perdure.evaluation import metrics
from perdure.evaluation.measure import measure
from perdure.merging.search import GRID, Search
from perdure.runs.resume import restored
from perdure.runs.state import read
from perdure.runs.writer import writing

METHODS: dict[str, dict[str, Any]] = {
    "isolated": {"training": {"keep_inputs": True}},
    "sequential": {"rule": "last"},
}
BEYOND: dict[str, list[dict[str, Any]]] = {
    "smile": [{"gate_rank": 1}, {"gate_rank": 8}, {"top_k": 2}],
    "iso": [{"mode": "cts"}],
    "continual_ties": [{"mode": "reference"}, {"mode": "batch"}],
}
"""Other settings than the usual ones."""

SEARCH = Search(grid=(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 3.0))
BUDGET = 24
"""Candidates for scales by task, and by task and layers."""

WAYS = ("given", "posterior", "none")


def rules(method: str) -> list[Rule]:
    """What is measured: for the sequential method only what is meant for it."""
    if method == "sequential":
        return [Rule(name=name) for name in ("last", "magmax", "average", "ties", "opcm")] + [
            Rule(name="magmax", options={"scale": "search"}, search=SEARCH)
        ]
    found = []
    for name in names("rule"):
        if name == "slerp":  # of two tasks only
            continue
        found += [Rule(name=name, options=options) for options in [{}, *BEYOND.get(name, [])]]
        if name != "dare" and "scale" in registry.options(registry.find("rule", name)):
            found.append(Rule(name=name, options={"scale": "search"}, search=SEARCH))
    iso_cts = Rule(name="iso", options={"mode": "cts", "scale": "search"}, search=SEARCH)
    per_task = [
        Rule(options={"scale": "search"}, search=Search(over=over, budget=BUDGET))
        for over in ("tasks", "layers")
    ]
    return [*found, iso_cts, *per_task]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/rules"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    rows, scales = [], []
    for seed in arguments.seeds:
        for method, settings in METHODS.items():
            folder = arguments.runs / f"{method}-{seed}"
            training = TEXT["training"] | settings.get("training", {})
            recipe = Recipe.parse(
                TEXT | {"method": method, "seed": seed} | settings | {"training": training}
            )
            if not (folder / "combined.json").is_file():
                recipe.run(folder)
            measure_all(Run(folder), rules(method))
            rows += table(Run(folder), method, seed)
        curve = [Rule(options={"scale": scale}) for scale in (0.0, *GRID)]
        measure_all(Run(arguments.runs / f"isolated-{seed}"), curve)
        scales += of_scales(Run(arguments.runs / f"isolated-{seed}"), curve, seed)
        write(arguments.results / "rules_demo.csv", rows)
        write(arguments.results / "rules_demo_scales.csv", scales)
    print(over_seeds(rows, ["method", "rule"]))
    print(over_seeds(scales, ["scale"]))


def measure_all(results: Run, wanted: list[Rule]) -> None:
    """Measure the rules that have not been measured yet, after the last task."""
    recipe = Recipe.parse(results.recipe)
    stream, backbone = recipe.make_stream(), recipe.make_backbone()
    system = restored(read(results.folder), backbone, recipe.make_rule())
    done = {row["rule"] for row in results.scores() if row["step"] == len(system.learned)}
    for rule in wanted:
        if rule.label not in done:
            measurement = measure(
                system.with_rule(rule), stream, recipe.make_evaluation(), recipe.seed
            )
            with writing(results.folder) as writer:
                writer.measurement(measurement, own=False)


def accuracies(results: Run, rule: str) -> dict[str, str]:
    """The average accuracy after the last task, in percent."""
    return {way: f"{100 * metrics.average_accuracy(results.matrix(rule, way)):.1f}" for way in WAYS}


def table(results: Run, method: str, seed: int) -> list[dict[str, Any]]:
    """A row for each rule, with the scale that a search has found."""
    found = {event["rule"]: event for event in results.events() if event["event"] == "evaluation"}
    return [
        {
            "method": method,
            "rule": rule.label,
            "seed": seed,
            "scale": found[rule.label]["options"].get("scale", "") if rule.searches else "",
            **accuracies(results, rule.label),
        }
        for rule in rules(method)
    ]


def of_scales(results: Run, curve: list[Rule], seed: int) -> list[dict[str, Any]]:
    """A row for each scale of task arithmetic."""
    return [
        {"seed": seed, "scale": rule.options["scale"], **accuracies(results, rule.label)}
        for rule in curve
    ]


def over_seeds(rows: list[dict[str, Any]], keys: list[str]) -> str:
    """A Markdown table of mean ± standard deviation over the seeds; rules with the best first.

    The last column is the difference to task arithmetic with 1/n on the same seeds:
    what the seeds have in common (the examples, the adapters) is not in it.
    """
    groups: dict[tuple[Any, ...], dict[int, list[float]]] = {}
    for row in rows:
        values = [float(row[way]) for way in WAYS]
        groups.setdefault(tuple(row[key] for key in keys), {})[row["seed"]] = values
    usual = groups.get(("isolated", "task_arithmetic")) or groups[(0.2,)]
    lines = [
        f"| {' | '.join(keys)} | {' | '.join(WAYS)} | posterior, to 1/n |",
        "|---" * (len(keys) + 4) + "|",
    ]
    if "rule" in keys:
        groups = dict(
            sorted(groups.items(), key=lambda item: -np.mean([v[1] for v in item[1].values()]))
        )
    for group, seeds in groups.items():
        found = np.array(list(seeds.values()))
        difference = np.array([values[1] - usual[seed][1] for seed, values in seeds.items()])
        cells = [_spread(column) for column in [*found.T, difference]]
        lines.append(f"| {' | '.join(map(str, group))} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.1f} ± {values.std(ddof=1) if len(values) > 1 else 0:.1f}"


if __name__ == "__main__":
    main()
