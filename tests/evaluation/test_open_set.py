"""`evaluation.unknown`: inputs that belong to no task, from tables, folders and benchmarks."""

import json
import shutil
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
import torch
from datasets import Dataset
from pico_language import language_model
from PIL import Image
from rich.console import Console
from sklearn.metrics import roc_auc_score
from small_runs import TEXTS, differing, make, recipe, stopped, table
from tables import read_table, write
from text_tasks import closed

from perdure import (
    Evaluation,
    InputError,
    Model,
    PosteriorSettings,
    Recipe,
    Rule,
    Run,
    TaskStream,
    Training,
    run,
)
from perdure.data.image_folder import read_images
from perdure.errors import DataError
from perdure.evaluation.measure import measure
from perdure.evaluation.open_set import source
from perdure.evaluation.posterior import describe
from perdure.methods.isolated import Isolated
from perdure.methods.lda import LDA
from perdure.report import unknown as unknown_inputs
from perdure.report.html import to_html
from perdure.report.summary import summarise
from perdure.report.terminal import show
from perdure.runs import derived
from perdure.runs.extend import evaluate_run, forget
from perdure.runs.resume import restored
from perdure.runs.verify import verify

FITTED = {"posterior": {"features": "unit", "temperature": "fitted"}}
SCORES = ["relative", "probability", "mahalanobis"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    write(folder / "outside.csv", [(text, i) for i, text in enumerate(TEXTS)], ("body", "number"))
    return folder


def values(home, pico, names=("fruit", "colour"), **settings):
    stream = [{"data": table(home, name, size=90), "name": name} for name in names]
    unknown = {"data": str(home / "outside.csv"), "text": "body"}
    whole = {"evaluation": {"unknown": unknown}, **FITTED, **settings}
    return recipe(home, stream, pico("bert"), **whole)


@pytest.fixture(scope="module")
def finished(home, pico):
    return make(home, "finished", values(home, pico))


def rows_of(results, step=None):
    return {
        (row["task"].removeprefix("unknown:"), row["metric"]): row["value"]
        for row in results.scores()
        if row["task"].startswith("unknown:") and row["step"] == step
    }


def test_the_numbers_are_those_of_predict(finished):
    """What `Model.predict` says of each input, in the hands of scikit-learn."""
    model = Model(finished)
    system = model.system
    stream = Recipe.read(finished.folder).make_stream(finished.state)
    known = [text for task in stream for text in task.test["text"]]
    labels = [0] * len(known) + [1] * len(TEXTS)
    texts = [*known, *TEXTS]
    by_hand = {"probability": [1 - answer.probability for answer in model.predict(texts)]}
    examples = model.backbone.prepare(
        [stream[0].rows("test")[0]._replace(data=Dataset.from_dict({"text": texts}))]
    )
    features = describe(model.backbone, examples)
    likeliest = system.posterior.log_prob(features).argmax(1)
    by_hand["relative"] = (-system.known.shares(features, likeliest)).tolist()
    stored = rows_of(finished, step=2)
    for name, expected in by_hand.items():
        assert stored[name, "auroc"] == pytest.approx(roc_auc_score(labels, expected), abs=1e-3)
        threshold = np.quantile(expected[: len(known)], 0.95)
        passed = np.mean(np.array(expected[len(known) :]) <= threshold)
        assert stored[name, "fpr95"] == pytest.approx(passed, abs=1e-3)


def test_mahalanobis_by_hand(finished):
    """With one covariance of all classes, half of it a sphere."""
    model = Model(finished)
    stream = Recipe.read(finished.folder).make_stream(finished.state)
    parts, labels = [], []
    for task in stream:
        x = describe(model.backbone, model.backbone.encode(task.rows("train"))).double()
        parts.append(torch.nn.functional.normalize(x))
        labels += [f"{task.name} {label}" for label in task.train["label"]]
    x = torch.cat(parts)
    means = {}
    for name in dict.fromkeys(labels):
        means[name] = x[[label == name for label in labels]].mean(0)
    around = x - torch.stack([means[label] for label in labels])
    covariance = around.T @ around / len(x)
    sphere = covariance.trace() / len(covariance) * torch.eye(len(covariance), dtype=torch.double)
    precision = torch.linalg.inv((covariance + sphere) / 2)

    def distance(texts):
        rows = stream[0].rows("test")[0]._replace(data=Dataset.from_dict({"text": texts}))
        x = describe(model.backbone, model.backbone.prepare([rows])).double()
        x = torch.nn.functional.normalize(x)
        around = x[:, None] - torch.stack(list(means.values()))
        return ((around @ precision) * around).sum(2).amin(1).tolist()

    known = [text for task in stream for text in task.test["text"]]
    expected = roc_auc_score(
        [0] * len(known) + [1] * len(TEXTS), [*distance(known), *distance(TEXTS)]
    )
    stored = rows_of(finished, step=2)["mahalanobis", "auroc"]
    assert stored == pytest.approx(expected, abs=1e-3)


def test_what_the_folder_has(finished):
    for step in (1, 2):
        found = rows_of(finished, step)
        assert [name for name, metric in found if metric == "auroc"] == SCORES
        assert len(found) == 6 and all(0 <= value <= 1 for value in found.values())
    about = {
        (row["task_id"], row["rule"])
        for row in finished.scores()
        if row["task"].startswith("unknown:")
    }
    assert about == {("posterior", "task_arithmetic")}
    curves = derived.caught(finished.folder)
    assert list(curves) == SCORES and all(len(curve) == 101 for curve in curves.values())
    for name, curve in curves.items():
        assert curve == sorted(curve, reverse=True)
        assert curve[95] == pytest.approx(1 - rows_of(finished, 2)[name, "fpr95"])
    assert verify(finished.folder).faults == []
    # no task is called so: averages and matrices have none of it
    assert finished.task_scores == {"fruit": "accuracy", "colour": "accuracy"}
    assert not np.isnan(np.diag(finished.matrix())).any()


def test_it_is_measured_once(finished, perdure):
    before = (finished.folder / "scores.csv").read_bytes()
    answers = (finished.folder / "answers.json").read_bytes()
    status, out, _ = perdure("run", finished.folder, "-q")
    assert status == 0 and "Nothing was left to do" in out
    evaluate_run(finished.folder)
    assert (finished.folder / "scores.csv").read_bytes() == before
    assert (finished.folder / "answers.json").read_bytes() == answers


def test_it_can_be_asked_for_later(home, pico, finished):
    first = values(home, pico, evaluation={"steps": "last"})
    later = make(home, "later", first)
    assert "unknown" not in later.recipe["evaluation"] and rows_of(later, 2) == {}
    assert "caught" not in json.loads((later.folder / "answers.json").read_text())
    make(home, "later", values(home, pico))
    assert rows_of(later, 2) == rows_of(finished, 2)
    assert derived.caught(later.folder) == derived.caught(finished.folder)


def test_a_run_that_is_stopped_ends_with_the_same_bytes(home, pico):
    whole = make(home, "whole", values(home, pico))
    part = stopped(make, home, "part", values(home, pico), task="colour", step=4)
    assert rows_of(part, 1) == rows_of(whole, 1) and rows_of(part, 2) == {}
    make(home, "part", values(home, pico))
    assert differing(part, whole) == []


def test_a_forgotten_task_leaves_no_trace(home, pico):
    both = make(home, "both", values(home, pico, evaluation=unknown(home, steps="all")))
    forget(both.folder, "colour")
    assert rows_of(both, 2) == {} and derived.caught(both.folder) == {}
    alone = make(home, "alone", values(home, pico, ("fruit",), evaluation=unknown(home)))
    assert differing(both, alone) == []
    evaluate_run(both.folder)
    assert derived.caught(both.folder) == derived.caught(alone.folder)
    forget(both.folder, "fruit")
    assert rows_of(both, 1) == {}


def unknown(home, **others):
    return {"unknown": {"data": str(home / "outside.csv"), "text": "body"}, **others}


def test_the_command_learns_one_more_task(home, pico, perdure, tmp_path):
    """`--set` names the table; its column is that of the tasks' own tables."""
    write(tmp_path / "other.csv", [(text,) for text in TEXTS], ("text",))
    common = ["--backbone", pico("bert"), "--set", "posterior.temperature=fitted"]
    common += ["--set", f"evaluation.unknown={tmp_path / 'other.csv'}", "-q"]
    common += ["--set", "backbone.max_length=8", "--set", "training.epochs=1"]
    folder = tmp_path / "run"
    data = table(home, "fruit", size=90)
    status, _, err = perdure("learn", folder, "--data", data, "--label", "label", *common)
    assert (status, err) == (0, "")
    status, _, err = perdure("learn", folder, "--data", table(home, "colour", size=90), "-q")
    assert (status, err) == (0, "") and len(rows_of(Run(folder), 2)) == 6
    (tmp_path / "other.csv").unlink()
    more = ["learn", folder, "--data", table(home, "texture", size=90), "-q"]
    status, _, err = perdure(*more)
    assert status == 1 and "`evaluation.unknown`: There is no file" in " ".join(err.split())
    assert Run(folder).tasks == ["fruit", "colour"]
    status, _, err = perdure(*more, "--set", "evaluation.unknown=null")
    assert (status, err) == (0, "") and len(rows_of(Run(folder), 2)) == 6
    assert rows_of(Run(folder), 3) == {}


def test_known_are_only_the_learned_tasks(home, pico):
    """Tasks that come later are measured, too, with `future`; they are not known yet."""
    evaluation = unknown(home, future=True)
    ahead = make(home, "ahead", values(home, pico, evaluation=evaluation))
    usual = make(home, "usual", values(home, pico, evaluation=unknown(home)))
    assert rows_of(ahead, 0) == {} and rows_of(ahead, 1) == rows_of(usual, 1)


def test_a_routed_rule(home, pico):
    """`predict` and the measurement ask the same model for an input."""
    routed = make(home, "routed", values(home, pico, rule="routed"))
    model = Model(routed)
    stream = Recipe.read(routed.folder).make_stream(routed.state)
    known = [text for task in stream for text in task.test["text"]]
    unsure = [1 - answer.probability for answer in model.predict([*known, *TEXTS])]
    expected = roc_auc_score([0] * len(known) + [1] * len(TEXTS), unsure)
    assert rows_of(routed, 2)["probability", "auroc"] == pytest.approx(expected, abs=1e-3)


def test_examples_that_are_gone(home, pico, tmp_path):
    """Known are the test examples that are there; without any, nothing is measured."""
    stream = [{"data": table(tmp_path, name, size=90)} for name in ("fruit", "colour")]
    settings = {**FITTED, "evaluation": unknown(home, steps="last")}
    results = make(tmp_path, "run", recipe(tmp_path, stream, pico("bert"), **settings))
    whole = rows_of(results, 2)
    (tmp_path / "fruit.csv").unlink()
    with pytest.warns(UserWarning, match="`fruit` cannot be measured now"):
        evaluate_run(results.folder)
    assert rows_of(results, 2).keys() == whole.keys() and rows_of(results, 2) != whole


# -- the report


def test_the_report_shows_the_curve(finished):
    summary = summarise([finished.folder])
    (measured,) = summary["runs"][0]["unknown"]
    stored = rows_of(finished, 2)
    for name, score in measured["scores"].items():
        assert score["auroc"] == [rows_of(finished, step)[name, "auroc"] for step in (1, 2)]
        assert score["fpr95"][-1] == stored[name, "fpr95"]
        assert score["caught"] == derived.caught(finished.folder)[name]
    caught, steps = unknown_inputs.section(summary).pictures
    assert caught.header[0] == "known kept" and len(caught.rows) == 101
    assert caught.rows[95][1] == pytest.approx(1 - stored["relative", "fpr95"])
    assert [row[0] for row in steps.rows] == ["fruit", "colour"]
    page = to_html(summary)
    assert "Inputs that belong to no task" in page and "AUROC of unknown inputs" in page
    percent = f"{100 * stored['relative', 'auroc']:.1f}"
    (said,) = unknown_inputs.sentences(summary)
    assert f"distance, relative {percent} and " in said
    text = StringIO()
    show(summary, Console(file=text, width=80))
    assert said in " ".join(text.getvalue().split())


def test_a_report_on_several_runs(home, pico, finished):
    """One curve for each; a run that was not measured has none, and no section of its own."""
    without = make(home, "without", values(home, pico, evaluation={"steps": "last"}))
    alone = summarise([without.folder])
    assert alone["runs"][0]["unknown"] == [] and unknown_inputs.sentences(alone) == []
    assert "Inputs that belong to no task" not in to_html(alone)
    other = values(home, pico, rule="last", evaluation=unknown(home, steps="last"))
    last = make(home, "last", other)
    summary = summarise([finished.folder, without.folder, last.folder])
    (caught, steps) = unknown_inputs.section(summary).pictures
    titles = caught.header[1:]
    assert [title.split(" · ")[:2] for title in titles] == [
        ["finished", "task_arithmetic"],
        ["last", "last"],
    ]
    # a run that was measured once has no curve over steps
    assert len(steps.header) == 2
    assert len(unknown_inputs.sentences(summary)) == 2
    assert to_html(summary).count("Unknown inputs caught") > 0


def test_a_curve_of_another_step_is_not_shown(home, pico, finished):
    """`answers.json` is from the last measurement, after which the run may have gone on."""
    copy = home / "copy"
    shutil.copytree(finished.folder, copy)
    content = json.loads((copy / "answers.json").read_text())
    (copy / "answers.json").write_text(json.dumps(content | {"step": 1}))
    (measured,) = summarise([copy])["runs"][0]["unknown"]
    assert [score["caught"] for score in measured["scores"].values()] == [[], [], []]


# -- streams made in Python, and images


def test_a_stream_has_its_own(bert, toy, tmp_path):
    outside = Dataset.from_dict({"text": TEXTS})
    arguments = {
        "posterior": PosteriorSettings(temperature="fitted"),
        "evaluation": Evaluation(unknown=True, steps="last"),
        "output": tmp_path / "run",
    }
    with pytest.raises(InputError, match="comes with no inputs that belong to none of its tasks"):
        run(toy, bert, LDA(), **arguments)
    results = run(replace(toy, unknown=outside), bert, LDA(), **arguments)
    assert len(rows_of(results, len(toy))) == 6
    # it stays with the stream when that is cut or reordered
    assert replace(toy, unknown=outside).until(1).unknown is outside


def photo(folder, number, shade):
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 60, (16, 16, 3))
    Image.fromarray((noise + shade).astype(np.uint8)).save(folder / f"{number}.png")
    return str(folder / f"{number}.png")


def test_images_from_a_folder_or_a_table(pico, tmp_path):
    for number in range(60):
        photo(tmp_path / "pets" / ("cat" if number % 2 else "dog"), number, 150 * (number % 2))
    paths = [photo(tmp_path / "others" / "deep", number, 80) for number in range(100, 112)]
    write(tmp_path / "others.csv", [(path,) for path in paths], ("photo",))
    values = {
        "stream": [{"data": str(tmp_path / "pets")}],
        "backbone": str(pico("vit")),
        "method": "lda",
        **FITTED,
    }
    by_folder = make(
        tmp_path, "folder", values | {"evaluation": {"unknown": str(tmp_path / "others")}}
    )
    as_table = {"data": str(tmp_path / "others.csv"), "image": "photo"}
    by_table = make(tmp_path, "table", values | {"evaluation": {"unknown": as_table}})
    assert len(rows_of(by_folder, 1)) == 6 and rows_of(by_folder, 1) == rows_of(by_table, 1)
    (tmp_path / "others" / "bad.png").write_bytes(b"none")
    broken = values | {"evaluation": {"unknown": str(tmp_path / "others")}}
    with pytest.raises(DataError, match="1 images of `evaluation.unknown` cannot be read"):
        make(tmp_path, "broken", broken)
    assert not (tmp_path / "broken" / "tasks").exists()
    with pytest.raises(DataError, match="contains no images"):
        read_images(tmp_path / "folder")
    texts = values | {"evaluation": {"unknown": {**as_table, "text": "photo"}}}
    with pytest.raises(InputError, match="are learned from images, so name the column with"):
        make(tmp_path, "texts", texts)


# -- settings


def test_forms_of_the_setting():
    assert source(None) is None and source(False) is None
    assert source("mine.csv") == source({"data": "mine.csv"})
    pair = source({"data": "mine.csv", "text": ["premise", "hypothesis"]})
    assert pair and pair.columns == ["premise", "hypothesis"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"file": "a.csv"}, "No setting of evaluation.unknown named `file`"),
        ({"data": 3}, "`data` is 3, but must be"),
        ({"text": "body"}, "needs `data`"),
        ("", "`data` is '', but must be a table or a folder of images"),
        ({"data": "a\0b"}, "must be a table or a folder of images"),
        ({"data": "a.csv", "text": ["a", "b", "c"]}, "`text` has 3 columns, but must be one"),
    ],
)
def test_a_wrong_setting_is_refused(setting, message):
    with pytest.raises(InputError, match=message):
        Evaluation(unknown=setting)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"posterior": {}}, "needs the distances of validation examples, which a run stores"),
        ({"evaluation": {"unknown": "gone.csv"}}, "`evaluation.unknown`: There is no file `gone"),
        ({"evaluation": {"unknown": True}}, "the stream `own` comes with no inputs"),
        ({"task_ids": ["none"]}, r"add `posterior` to `evaluation.task_ids`, which are \['none'\]"),
        ({"text": "title"}, "has no column `title`.*Name .* with `evaluation.unknown.text`"),
        ({"image": "body"}, "are learned from texts, so name the column with `text`"),
        ({"empty": True}, "empty.csv` has no rows"),
    ],
)
def test_what_cannot_be_measured_stops_a_run_before_it_trains(
    change, message, home, pico, tmp_path
):
    named = {"data": str(home / "outside.csv"), "text": "body"}
    if "empty" in change:
        named["data"] = write(tmp_path / "empty.csv", [], ("body",))
    if "image" in change:
        named = {"data": named["data"], "image": change["image"]}
    named |= {key: value for key, value in change.items() if key == "text"}
    evaluation = {"unknown": named} | change.get("evaluation", {})
    evaluation |= {key: value for key, value in change.items() if key == "task_ids"}
    posterior = change.get("posterior", FITTED["posterior"])
    whole = values(home, pico, evaluation=evaluation, posterior=posterior)
    with pytest.raises((InputError, DataError), match=message):
        make(tmp_path, "run", whole)
    assert not (tmp_path / "run" / "tasks").exists()


def test_a_folder_is_no_table_of_texts(home, pico, tmp_path):
    whole = values(home, pico, evaluation={"unknown": str(tmp_path)})
    with pytest.raises(DataError, match="is a folder, not a table of texts"):
        make(tmp_path, "run", whole)


def test_a_language_model_says_so(home, tmp_path):
    with pytest.raises(InputError, match="is for classifiers with a head for each task"):
        run(
            TaskStream("s", (closed("colours", ("red", "blue")),)),
            language_model("llama"),
            Isolated(rank=2),
            "routed",
            training=Training(epochs=1),
            posterior=PosteriorSettings(temperature="fitted"),
            evaluation=Evaluation(unknown=str(home / "outside.csv")),
            output=tmp_path / "run",
        )


def test_a_dry_run_reads_the_table(home, pico, tmp_path):
    said = Recipe.parse(values(home, pico)).dry_run()
    assert "Each measurement also covers inputs that belong to no task." in said.notes
    missing = values(home, pico, evaluation={"unknown": str(tmp_path / "gone.csv")})
    with pytest.raises(DataError, match="There is no file"):
        Recipe.parse(missing).dry_run()


def test_a_measurement_without_the_setting_has_none_of_it(bert, toy, tmp_path):
    results = run(
        toy,
        bert,
        LDA(),
        posterior=PosteriorSettings(temperature="fitted"),
        evaluation=Evaluation(steps="none"),
        output=tmp_path / "run",
    )
    system = restored(results.state, bert, Rule(name="last"), toy)
    stream = replace(toy, unknown=Dataset.from_dict({"text": TEXTS}))
    assert measure(system, stream, Evaluation()).recognised == {}
    assert list(measure(system, stream, Evaluation(unknown=True)).recognised) == SCORES


def test_the_whole_table_counts(home):
    assert len(read_table(home / "outside.csv")) == len(TEXTS)
