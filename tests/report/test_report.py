import csv
import datetime
import hashlib
import html
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import yaml
from matplotlib.colors import to_rgb
from rich.console import Console

from perdure.errors import RunError
from perdure.evaluation import metrics
from perdure.report import FORMATS, classes, costs, figures, heat_map, report, terminal
from perdure.report.html import to_html
from perdure.report.latex import to_latex
from perdure.report.markdown import percent, to_markdown
from perdure.report.series import COLOURS, Looks
from perdure.report.summary import NOTHING, summarise
from perdure.storage.lock import held

COLUMNS = ("step", "task", "scenario", "task_id", "rule", "metric", "value")
R = [[0.9, None], [0.5, 0.7]]
R3 = [[0.9, None, None], [0.5, 0.7, None], [0.6, 0.5, 0.8]]


def rows(matrix, tasks, task_id="posterior", rule="sum", metric="accuracy"):
    return [
        (step, task, "class", task_id, rule, metric, value)
        for step, values in enumerate(matrix, 1)
        for task, value in zip(tasks, values, strict=True)
        if value is not None
    ]


def make_run(folder, scores, tasks=("a", "b"), *, recipe=None, combined=None, events=()):
    """Write a run folder by hand."""
    recipe = {
        "stream": {"name": "toy", "scenario": "class"},
        "backbone": {"model": "pico"},
        "method": "isolated",
    } | (recipe or {})
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"seed": 3} | recipe), encoding="utf-8")
    (folder / "environment.json").write_text('{"python": "3.12"}', encoding="utf-8")
    (folder / "combined.json").write_text(
        json.dumps({"label": "sum", "name": "sum"} | (combined or {})), encoding="utf-8"
    )
    with (folder / "scores.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *scores])
    for number, task in enumerate(tasks):
        place = folder / "tasks" / f"{number:02d}-{task}"
        place.mkdir(parents=True)
        manifest = {
            "task.json": {"size": 40, "sha256": ""},
            "x.safetensors": {"size": 2, "sha256": ""},
        }
        (place / "manifest.json").write_text(json.dumps(manifest))
        (place / "task.json").write_text(
            json.dumps({"name": task, "classes": ["no", "yes"], "digests": {}, "state": {}})
        )
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def result_of(folder):
    (result,) = summarise([folder])["runs"][0]["results"]
    return result


# -- the dict


def test_numbers_worked_by_hand(tmp_path):
    result = result_of(make_run(tmp_path / "run", rows(R, "ab")))
    assert result["matrix"] == R
    assert result["seen"] == pytest.approx([0.9, 0.6])
    assert result["forgetting"] == pytest.approx([0.4])
    expected = {
        "average_accuracy": 0.6,
        "average_incremental_accuracy": 0.75,
        "backward_transfer": -0.4,
        "forgetting": 0.4,
    }
    assert result["metrics"] == pytest.approx(expected)


def test_numbers_agree_with_metrics(tmp_path):
    values = np.tril(np.random.default_rng(0).uniform(size=(4, 4)))
    matrix = [
        [v if j <= i else None for j, v in enumerate(row)] for i, row in enumerate(values.tolist())
    ]
    result = result_of(make_run(tmp_path / "run", rows(matrix, "abcd"), tasks="abcd"))
    assert result["metrics"] == pytest.approx(metrics.summary(values))
    assert np.mean(result["seen"]) == pytest.approx(
        result["metrics"]["average_incremental_accuracy"]
    )
    assert np.mean(result["forgetting"]) == pytest.approx(result["metrics"]["forgetting"])


def test_forward_transfer_where_it_was_measured(tmp_path):
    before = [(0, task, "class", "posterior", "sum", "accuracy", 0.5) for task in "ab"]
    run = make_run(tmp_path / "run", [*before, *rows([[0.9, 0.6], [0.5, 0.7]], "ab")])
    summary = summarise([run])
    assert summary["runs"][0]["results"][0]["metrics"]["forward_transfer"] == pytest.approx(0.1)
    assert "Forward transfer" in to_html(summary)
    assert "Forward transfer" not in to_html(
        summarise([make_run(tmp_path / "other", rows(R, "ab"))])
    )


def test_only_the_last_row(tmp_path):
    run = make_run(
        tmp_path / "run", rows([[None, None], [0.5, 0.7]], "ab", task_id="given", rule="oracle")
    )
    result = result_of(run)
    assert result["metrics"]["average_accuracy"] == pytest.approx(0.6)
    assert result["metrics"]["forgetting"] is None and result["seen"] == [None, pytest.approx(0.6)]
    assert "| oracle | task given | 60.0 | – | – | – |" in to_markdown(summarise([run]))
    image = heat_map.matrix(result, (0, 1)).svg
    assert ">50.0<" in image and ">70.0<" in image
    assert figures.forgetting(summarise([run])) is None


def test_one_task(tmp_path):
    summary = summarise([make_run(tmp_path / "run", rows([[0.9]], "a"), tasks="a")])
    assert "| run | sum | task posterior | 90.0 | 90.0 | – | – |" in to_markdown(summary)
    assert "nan" not in re.findall(r"\w+", to_markdown(summary))
    assert "1 class-incremental task of toy (a), learned on pico by" in to_html(summary)


def test_no_task_was_finished(tmp_path):
    run = make_run(tmp_path / "run", [], tasks=())
    (run / "combined.json").unlink()
    assert "No task has been finished and measured yet." in to_html(summarise([run]))


def test_what_was_not_learned_is_left_out(tmp_path):
    """Scores of tasks to come."""
    recipe = {"evaluation": {"future": True}}
    summary = summarise(
        [make_run(tmp_path / "run", rows([[0.9, 0.1], [0.5, 0.7]], "ab"), tasks="a", recipe=recipe)]
    )
    assert summary["runs"][0]["problems"] == []
    assert summary["runs"][0]["results"][0]["matrix"] == [[0.9]]


def test_the_sentence(tmp_path):
    found = {
        "name": "task_arithmetic",
        "options": {"scale": 0.25},
        "candidates": {"0.5": 0.6, "0.25": 0.7},
    }
    run = summarise([make_run(tmp_path / "run", rows(R, "ab"), combined=found)])["runs"][0]
    assert run["sentence"] == (
        "2 class-incremental tasks of toy (a, b), learned in this order on pico by method "
        "isolated, "
        "combined by rule task_arithmetic (λ = 0.25, found by search on validation data) with seed "
        "3."
    )
    assert run["search"] == {"scales": [0.25, 0.5], "scores": [0.7, 0.6], "chosen": 0.25}


def test_candidates_of_a_search(tmp_path):
    """A list of them now, a mapping in older folders; scales of tasks are told in words,
    for they make no curve.
    """
    found = [{"scale": 0.5, "score": 0.6}, {"scale": 0.25, "score": 0.7}]
    combined = {"name": "ties", "options": {"scale": 0.25}, "candidates": found}
    run = summarise([make_run(tmp_path / "list", rows(R, "ab"), combined=combined)])["runs"][0]
    assert run["search"] == {"scales": [0.25, 0.5], "scores": [0.7, 0.6], "chosen": 0.25}
    options = {"scale": {"a": 0.5, "b": [0.25, 1.0]}}
    found = [
        {"scale": {"a": 0.5, "b": 0.5}, "score": 0.6},
        {"scale": options["scale"], "score": 0.7},
    ]
    combined = {"name": "task_arithmetic", "options": options, "candidates": found}
    run = summarise([make_run(tmp_path / "tasks", rows(R, "ab"), combined=combined)])["runs"][0]
    assert (
        run["search"] is None
        and "(λ = a 0.5, b 0.25/1, found by search on validation data)" in run["sentence"]
    )


def test_own_data(tmp_path):
    recipe = {"stream": [{"data": "x.csv"}], "scenario": "domain", "name": "mine"}
    run = summarise([make_run(tmp_path / "run", rows(R, "ab"), recipe=recipe)])["runs"][0]
    assert run["title"] == "mine" and run["sentence"].startswith(
        "2 domain-incremental tasks of own data (a, b)"
    )


def test_events(tmp_path):
    steps = [
        {"event": "step", "task": "a", "step": step, "loss": 2.0 * step} for step in range(1, 201)
    ]
    task = {"event": "task", "task": "a", "seconds": 1.5, "examples": 20, "trained": 7}
    run = make_run(
        tmp_path / "run", rows(R, "ab"), events=[*steps, {"event": "step", "task": "a"}, task]
    )
    with (run / "events.jsonl").open("a") as file:
        file.write('{"event": "st')  # the run was killed while it wrote
    found = summarise([run])["runs"][0]
    (curve,) = found["losses"]
    assert len(curve["loss"]) == 100 and curve["steps"][0] == 1.5 and curve["loss"][0] == 3.0
    manifest = (run / "tasks" / "00-a" / "manifest.json").read_bytes()
    assert found["tasks"][0] == {
        "name": "a",
        "manifest": hashlib.sha256(manifest).hexdigest(),
        "classes": 2,
        "bytes": 42,
        "seconds": 1.5,
        "examples": 20,
        "score": "accuracy",
        "trained": 7,
        "state_bytes": None,
        "store_bytes": None,
    }
    assert found["tasks"][1]["seconds"] is None
    assert found["cost"] == {
        "seconds": 1.5,
        "trained": 7,
        "bytes": 84,
        "state_bytes": None,
        "store_bytes": None,
    }
    assert found["status"] == ""


def test_several_runs(tmp_path):
    one = make_run(tmp_path / "one", rows(R, "ab"))
    two = make_run(tmp_path / "two", rows(R, "ba", metric="f1"), tasks="ba")
    same = make_run(tmp_path / "x" / "two", rows(R, "ab", task_id="given"))
    summary = summarise([one, two, same])
    assert [run["title"] for run in summary["runs"]] == ["one", f"two ({two})", f"two ({same})"]
    assert to_markdown(summary).count("| 60.0 | 75.0 | −40.0 | 40.0 |") == 3
    assert [group["runs"] for group in summary["groups"]] == [
        [0],
        [1],
        [2],
    ]  # of the same seed: no spread
    captions = re.findall("<figcaption>(.*?)</figcaption>", to_html(summary))
    assert (
        len(captions) == len(set(captions))
        and sum("sum · task posterior" in text for text in captions) >= 2
    )


def test_the_dict_is_json(tmp_path):
    run = make_run(tmp_path / "run", rows(R, "ab"), recipe={"name": datetime.date(2024, 1, 2)})
    summary = summarise([run])
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["runs"][0]["title"] == "2024-01-02"


# -- the page


def test_the_page_needs_nothing_else(tmp_path):
    output = tmp_path / "new" / "report.html"
    summary = report([make_run(tmp_path / "run", rows(R, "ab"))], output)
    page = output.read_text(encoding="utf-8")
    assert summary["runs"][0]["title"] == "run"
    assert [path.name for path in output.parent.iterdir()] == ["report.html"]
    assert not re.findall(
        r"""(?:src|href)\s*=\s*["'](?!#)""", page
    )  # `#…` is a part of the page itself
    assert not re.search(r"<script[^>]|<link|@import|url\((?!#)", page)
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page
    for definition in ("AA = (1/T)", "BWT = (1/(T-1))"):
        assert definition in page


def test_names_are_escaped(tmp_path):
    hostile = "<script>alert('&')</script> $\\frac$ _{ | %"
    task = "a_b-c"  # a folder has no other names
    events = [
        {"event": "step", "task": task, "step": 1, "loss": 1.0},
        {"event": "task", "task": task, "seconds": 2.0},
    ]
    scores = rows(R, [task, "b"], rule="<i>rule</i>")
    runs = [
        make_run(tmp_path / name, scores, tasks=(task, "b"), recipe={"name": title}, events=events)
        for name, title in {"one": hostile, "two": "_hidden 日本"}.items()
    ]
    summary = report(runs, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page and "<i>" not in page and "<b>" not in page
    assert (
        "&lt;script&gt;" in page
        and "a_b-c" in page
        and "&lt;i&gt;rule" in page
        and "_hidden 日本" in page
    )
    assert "\\|" in to_markdown(summary)
    terminal.show(summary)


@pytest.mark.parametrize("width", [40, 80])
def test_terminal(tmp_path, width, capsys):
    summary = summarise([make_run(tmp_path / "run", rows(R, "ab", rule="a_rule(scale=[search])"))])
    terminal.show(summary, Console(width=width))
    shown = capsys.readouterr().out
    assert "60.0" in shown and "−40.0" in shown and max(map(len, shown.splitlines())) <= width


def test_terminal_names_what_is_missing(tmp_path, capsys):
    run = make_run(tmp_path / "run", rows(R, "ab"))
    (run / "combined.json").write_text("{")
    terminal.show(summarise([run]), Console(width=80))
    assert "combined.json" in "".join(capsys.readouterr().out.split("\n"))


def test_percent():
    assert [percent(value) for value in (0.12345, -0.5, -0.0001, None)] == [
        "12.3",
        "−50.0",
        "0.0",
        "–",
    ]
    assert percent(0.1, signed=True) == "+10.0"


# -- the figures


def test_figures_leave_matplotlib_as_it_was(tmp_path):
    before = dict(matplotlib.rcParams)
    found = {"options": {"scale": 0.25}, "candidates": {"0.25": 0.7, "1.0": 0.4}}
    events = [{"event": "step", "task": "a", "step": step, "loss": 1 / step} for step in (1, 2)]
    events.append({"event": "task", "task": "a", "seconds": 3})
    runs = [
        make_run(tmp_path / name, rows(matrix, "abc"), "abc", combined=found, events=events)
        for name, matrix in {"one": R3, "two": R3}.items()
    ]
    summary = summarise(runs)
    ways = figures.ways(summary)
    over_ways = [figures.seen, figures.tasks, figures.plane]
    for draw in [*over_ways, figures.forgetting, figures.losses, costs.search, costs.cost]:
        values = [ways] if draw in over_ways else []
        picture = draw(summary, *values)
        assert picture.svg.startswith("<svg") and picture == draw(summary, *values), draw
        assert picture.rows and {len(row) for row in picture.rows} == {len(picture.header)}, draw
    assert dict(matplotlib.rcParams) == before


def test_text_in_cells_is_legible():
    """The contrast of black or white with any colour of the map is at least 4.5 (WCAG 2, AA)."""

    def luminance(colour):
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)
        ]
        return np.dot([0.2126, 0.7152, 0.0722], linear)

    for value in np.linspace(0, 1, 101):
        colour = matplotlib.colormaps["viridis"](value)
        light, dark = sorted(
            [luminance(colour), luminance(heat_map.ink(*colour[:3]))], reverse=True
        )
        assert (light + 0.05) / (dark + 0.05) > 4.5


def test_many_tasks_and_other_orders(tmp_path):
    names = [f"a-rather-long-name-of-task-{i}" for i in range(12)]
    matrix = np.where(np.tril(np.ones((12, 12))), 0.123, None).tolist()
    runs = [
        make_run(tmp_path / name, rows(matrix, tasks), tasks=tasks)
        for name, tasks in {"one": names, "two": names[::-1]}.items()
    ]
    summary = summarise(runs)
    ways = figures.ways(summary)
    assert ">12.3<" in heat_map.matrix(summary["runs"][0]["results"][0], (0, 1)).svg
    assert [row[0] for row in figures.seen(summary, ways).rows] == [
        f"task {i}" for i in range(1, 13)
    ]
    assert [row[0] for row in figures.seen(summarise(runs[:1]), ways).rows] == names


DIAGNOSTICS = json.loads((Path(__file__).parents[2] / "docs/demo/pic/diagnostics.json").read_text())


ANSWERS = {
    "posterior": {
        "a": {"yes": {"yes": 3, "no": 1}, "no": {"no": 6}},
        "b": {"yes": {"yes": 1, "no": 2, "maybe": 1}, "maybe": {"maybe": 2}},
    }
}


def with_answers(run, answers=ANSWERS):
    (run / "answers.json").write_text(json.dumps({"rule": "sum", "answers": answers}))
    return run


def test_how_each_class_was_answered(tmp_path):
    summary = summarise(
        [with_answers(make_run(tmp_path / "run", rows([[0.9, None], [0.9, 0.5]], "ab")))]
    )
    (run,) = summary["runs"]
    picture = classes.picture(run, "posterior", "task posterior")
    assert picture.header == ["class", "test examples", "recall", "most often taken for", "times"]
    assert picture.rows == [
        ["yes", 8, 0.5, "no", 3],
        ["no", 6, 1.0, None, 0],
        ["maybe", 2, 1.0, None, 0],
    ]
    assert ">38<" in picture.svg and ">12<" in picture.svg  # 3 of 8, 1 of 8
    (result,) = run["results"]
    assert result["examples"] == 16
    # (1/2) sqrt(0.9 · 0.1 / 10 + 0.5 · 0.5 / 6)
    assert result["standard_error"] == pytest.approx(0.5 * (0.009 + 0.25 / 6) ** 0.5)
    assert "| 70.0 | 80.0 | +0.0 | 0.0 | 11.3 | 16 |" in to_markdown(summary)
    page = to_html(summary)
    assert "True class (row) × answer, %: all classes · task posterior" in html.unescape(page)
    assert "standard error 11.3 of 16 test examples" in page


def test_of_many_classes_the_worst_are_shown(tmp_path):
    answers = {f"class {i}": {f"class {i}": 50 + i, "class 0": 50 - i} for i in range(51 - 1)}
    answers["class 0"] = {"class 0": 100}
    answers["last"] = {"class 1": 100}
    run = with_answers(
        make_run(tmp_path / "run", rows([[0.9]], "a"), "a"), {"given": {"a": answers}}
    )
    picture = classes.picture(summarise([run])["runs"][0], "given", "task given")
    assert [row[0] for row in picture.rows] == ["last", *(f"class {i}" for i in range(1, 10))]
    assert "the 10 of 51 classes with the lowest recall" in picture.caption
    assert picture.rows[0] == ["last", 100, 0.0, "class 1", 100]


def test_a_colour_means_one_run_on_the_whole_page(tmp_path):
    runs = [
        make_run(tmp_path / name, rows(R3, "abc") + rows(R3, "abc", task_id="given"), "abc")
        for name in "xyz"
    ]
    summary = summarise(runs)
    looks = Looks(summary)
    colours = [looks.of_run(number, "sum").colour for number in range(3)]
    assert len(set(colours)) == 3 and set(colours) < set(COLOURS)
    for number in range(3):
        assert {
            looks.of_run(number, "sum", way).colour for way in ("posterior", "given", None)
        } == {colours[number]}
    for way in figures.ways(summary):
        for picture in (
            figures.seen(summary, [way]),
            figures.tasks(summary, [way]),
            figures.plane(summary, [way]),
        ):
            used = {colour for colour in COLOURS if colour in picture.svg}
            assert used == set(colours), picture.caption


def test_one_bar_or_point_is_no_chart(tmp_path):
    events = [{"event": "task", "task": "a", "seconds": 3}]
    summary = summarise([make_run(tmp_path / "run", rows(R, "ab"), events=events)])
    ways = figures.ways(summary)
    assert (
        figures.forgetting(summary) is costs.cost(summary) is figures.plane(summary, ways) is None
    )
    assert figures.seen(summary, ways) and figures.tasks(summary, ways)


def test_curves_stand_before_matrices_which_are_folded_where_there_are_several_runs(tmp_path):
    runs = [
        make_run(tmp_path / name, rows(R3, "abc") + rows(R3, "abc", task_id="given"), "abc")
        for name in "xy"
    ]
    for count in (1, 2):
        page = to_html(summarise(runs[:count]))
        titles = re.findall("<h2 id=.section-.*?>(.*?)</h2>", page)
        matrices = next(i for i, title in enumerate(titles) if title.startswith("Accuracy matri"))
        assert titles.index("Over the stream") < titles.index("Stability and plasticity") < matrices
        assert page.count('<details class="block figures-block">') == (count > 1)


@pytest.fixture(scope="module")
def forty(tmp_path_factory):
    """Ten methods with four seeds each."""
    place = tmp_path_factory.mktemp("forty")
    rng = np.random.default_rng(0)
    runs = []
    for i in range(40):
        matrix = np.where(np.tril(np.ones((5, 5))), rng.uniform(0.4, 0.9, (5, 5)), None).tolist()
        recipe = {"name": "many", "method": {"name": f"method_{i % 10}"}, "seed": i // 10}
        events = [
            {"event": "step", "task": "a", "step": step, "loss": 1 / step} for step in range(1, 20)
        ]
        events += [
            {"event": "task", "task": task, "seconds": 3.0, "trained": 70} for task in "abcde"
        ]
        scores = [
            row
            for way in ("given", "posterior", "none")
            for row in rows(matrix, "abcde", task_id=way)
        ]
        runs.append(make_run(place / str(i), scores, tasks="abcde", recipe=recipe, events=events))
    return runs


def test_runs_that_differ_in_their_seed_are_one_row(forty):
    summary = summarise(forty)
    titles = [group["title"] for group in summary["groups"]]
    assert titles == [f"many: method method_{i}" for i in range(10)]
    assert [len(group["runs"]) for group in summary["groups"]] == [4] * 10
    wanted = [
        result["metrics"]["average_accuracy"]
        for i in (3, 13, 23, 33)
        for result in summary["runs"][i]["results"][1:2]
    ]
    found = summary["groups"][3]["results"][1]["metrics"]["average_accuracy"]
    spread = {"mean": pytest.approx(np.mean(wanted)), "sd": pytest.approx(np.std(wanted, ddof=1))}
    assert found == spread | {"n": 4, "of": 4}
    cell = f"{percent(found['mean'])} ± {percent(found['sd'])}"
    assert (
        cell in to_markdown(summary)
        and cell in to_html(summary)
        and cell.replace("±", r"$\pm$") in to_latex(summary)
    )
    (learned,) = [
        row for row in figures.plane(summary, [("posterior", "")]).rows if "method_3" in row[0]
    ]
    assert learned[-1] == 4 and learned[3] == pytest.approx(
        np.mean(
            [summary["runs"][i]["results"][1]["metrics"]["forgetting"] for i in (3, 13, 23, 33)]
        )
    )


@pytest.mark.parametrize("count", [1, 40])
def test_a_report_takes_seconds(forty, tmp_path, count):
    for run in forty[:count]:  # those of other tasks are refused
        (run / "diagnostics.json").write_text(json.dumps(DIAGNOSTICS))
    started = time.process_time()
    report(forty[:count], tmp_path / "report.html")
    assert time.process_time() - started < 10
    assert (tmp_path / "report.html").stat().st_size < 3e6


def test_three_hundred_tasks(tmp_path):
    names = [f"task-{i}" for i in range(300)]
    matrix = np.where(np.tril(np.ones((300, 300))), 0.5, None).tolist()
    summary = report(
        [make_run(tmp_path / "run", rows(matrix, names), tasks=names)], tmp_path / "report.html"
    )
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(page) < 3e6 and "task-299" in page and "data:image/png;base64," in page
    (result,) = summary["runs"][0]["results"]
    assert [row[1:] for row in heat_map.matrix(result, (0, 1)).rows] == matrix


def test_latex(tmp_path):
    run = make_run(tmp_path / "run", rows(R, "ab"), recipe={"name": "50 % of a_b & {c} \\d ~^#$"})
    text = to_latex(summarise([run]))
    assert (
        r"50 \% of a\_b \& \{c\} \textbackslash{}d \textasciitilde{}\textasciicircum{}\#\$ & sum"
        in text
    )
    assert (
        text.count(r"\\") == 2
        and "60.0 & 75.0 & $-$40.0 & 40.0" in text
        and r"\begin{tabular}{lllrrrr}" in text
    )


# -- what can be wrong


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(RunError, match="is not a run: it has no `recipe.yaml`"):
        summarise([tmp_path])
    with pytest.raises(RunError, match="at least one run folder"):
        summarise([])


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("answers.json", '{"answers": {"given": {"a": {"yes": {"yes": -1}}}}}'),
        ("answers.json", '{"answers": {"given": [1]}}'),
        ("answers.json", "[]"),
        ("scores.csv", ""),
        ("scores.csv", "step,task\n1,a\n"),
        ("scores.csv", ",".join(COLUMNS) + "\n1,a,class,posterior,sum,accuracy,high\n"),
        ("scores.csv", ",".join(COLUMNS) + "\n1,a,class\n"),
        ("recipe.yaml", "- a list"),
        ("recipe.yaml", "a: [1"),
        ("combined.json", '{"candidates": [1]}'),
        ("combined.json", "{"),
        ("tasks/00-a/manifest.json", '{"x.json": {}}'),
    ],
)
def test_a_broken_file_is_named(tmp_path, file, text):
    run = make_run(tmp_path / "run", rows(R, "ab"))
    (run / file).write_text(text)
    summary = summarise([run, make_run(tmp_path / "other", rows(R, "ab"))])
    (problem, *_) = summary["runs"][0]["problems"]
    assert f"`{run / file}`" in problem and summary["runs"][1]["problems"] == []
    assert problem[:40] in to_markdown(summary) and "60.0" in to_markdown(summary)


def test_a_broken_file_is_named_on_the_page(tmp_path):
    run = make_run(tmp_path / "run", rows(R, "ab"))
    (run / "combined.json").write_text("{")
    (run / "scores.csv").unlink()
    page = html.unescape(to_html(summarise([run])))
    assert "What is missing" in page and f"`{run / 'combined.json'}`" in page
    assert NOTHING in page


def test_a_run_that_is_not_finished(tmp_path):
    events = [{"event": "step", "task": "b", "step": step, "loss": 1.0} for step in (1, 2)]
    run = make_run(tmp_path / "run", rows([[0.9]], "a"), tasks="a", events=events)
    (found,) = summarise([run])["runs"]
    assert found["status"] == "Stopped: 1 task is finished, and task b is at step 2."
    assert [curve["task"] for curve in found["losses"]] == ["b"]
    with held(run):
        code = f"""
from perdure.report.summary import summarise
print(summarise([{str(run)!r}])["runs"][0]["status"])
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "Running now: 1 task is finished, and task b is at step 2.", (
        done.stderr
    )


def test_a_task_whose_folder_is_gone_is_named(tmp_path):
    run = make_run(tmp_path / "run", rows(R, "ab"))
    (run / "tasks" / "01-b" / "manifest.json").unlink()
    (found,) = summarise([run])["runs"]
    assert found["problems"] == [
        f"`{run / 'tasks'}` has no complete folder for the learned task `b`."
    ]
    assert (
        found["results"][0]["matrix"] == R and found["tasks"][1]["bytes"] is None
    )  # its scores are there


def test_values_that_nobody_should_write(tmp_path):
    """Not numbers, and characters that would colour a terminal or turn a line around."""
    events = [{"event": "task", "task": "a", "seconds": float("nan")}]
    recipe = {"name": "a\x1b[31mred\u202eback", "odd": float("inf")}
    run = make_run(tmp_path / "run", rows(R, "ab"), recipe=recipe, events=events)
    summary = summarise([run])
    assert (
        json.loads(FORMATS["json"](summary)) == summary
        and summary["runs"][0]["title"] == r"a\x1b[31mred\u202eback"
    )
    for text in (to_html(summary), to_markdown(summary), to_latex(summary)):
        assert "\x1b" not in text and "\u202e" not in text


def test_no_torch():
    """The report itself needs no torch (`perdure/__init__` is left out:
    it may import what it wants).
    """
    package = Path(figures.__file__).parents[1]
    code = f"""
import sys, types
sys.modules["perdure"] = types.ModuleType("perdure")
sys.modules["perdure"].__path__ = [{str(package)!r}]
import perdure.report, perdure.report.terminal
print({{"torch", "transformers", "peft", "datasets", "matplotlib.pyplot"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
