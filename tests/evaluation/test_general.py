"""What a language model can still do besides its tasks, against transformers' own losses."""

import json
import math
from pathlib import Path

import pytest
import torch
from pico_language import language_model
from text_tasks import closed, free, mixed

from perdure import Evaluation, InputError, Rule, Run, TaskStream, Training, registry, run
from perdure.bundled.texts.editorials import joined
from perdure.errors import BackboneError, DataError, UnknownName
from perdure.evaluation import general
from perdure.evaluation.general import Source, source
from perdure.methods.isolated import Isolated
from perdure.methods.sequential import Sequential
from perdure.report.general import sentences
from perdure.report.html import to_html
from perdure.report.summary import summarise
from perdure.runs.resume import restored

TEXT = "It snows today. Stay in and read a book by the fire. " * 40
TRAINING = Training(epochs=2, batch_size=8, learning_rate=0.02)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text(TEXT)
    return {"text": str(path), "tokens": 256}


def general_rows(results):
    return [row for row in results.scores() if row["task"].startswith("general:")]


def test_the_loss_is_that_of_transformers():
    backbone = language_model("llama")
    examples = backbone.pieces([TEXT], length=128, most=3)
    assert len(examples) == 3
    combined = restored_nothing(backbone)
    loss = general.cross_entropy(backbone, combined, examples)
    total, count = 0.0, 0
    for tokens in examples.inputs:
        ids = torch.tensor([[*tokens.prompt, *tokens.answer]])
        labels = ids.clone()
        labels[:, : len(tokens.prompt)] = -100
        with torch.no_grad():
            mean = backbone.model(input_ids=ids, labels=labels).loss.item()
        total += mean * len(tokens.answer)
        count += len(tokens.answer)
    assert loss == pytest.approx(total / count, abs=1e-5)
    # the token that begins a text is read, and never to be predicted
    assert all(len(tokens.prompt) == 2 and tokens.prompt[0] == 2 for tokens in examples.inputs)


def restored_nothing(backbone):
    from perdure.evaluation.system import System

    return System(backbone, (), Rule(name="last")).combined


def test_a_decoder_predicts_the_second_half():
    backbone = language_model("t5")
    examples = backbone.pieces([TEXT], length=128, most=2)
    first = examples.inputs[0]
    assert (len(first.prompt), len(first.answer)) == (64, 64)
    loss = general.cross_entropy(backbone, restored_nothing(backbone), examples)
    ids = torch.tensor([first.prompt for first in examples.inputs])
    labels = torch.tensor([first.answer for first in examples.inputs])
    with torch.no_grad():
        theirs = backbone.model(input_ids=ids, labels=labels).loss.item()
    assert loss == pytest.approx(theirs, abs=1e-5)


def test_pieces_are_taken_from_all_of_a_text():
    backbone = language_model("llama")
    every = backbone.pieces(["a" * 300 + "b" * 300], length=100, most=100)
    assert len(every) == 6
    two = backbone.pieces(["a" * 300 + "b" * 300], length=100, most=2)
    kinds = [backbone.prompts.text(tokens.answer)[-1] for tokens in two.inputs]
    assert kinds == ["a", "b"]


def test_a_run_measures_before_the_first_task_and_after_each(text, tmp_path):
    backbone = language_model("llama")
    stream = mixed()
    evaluation = Evaluation(general=text)
    arguments = {"training": TRAINING, "evaluation": evaluation, "output": tmp_path / "run"}
    results = run(stream, backbone, Sequential(), "last", **arguments)
    rows = general_rows(results)
    losses = [row for row in rows if row["metric"] == "cross_entropy"]
    apart = [row for row in rows if row["metric"] == "divergence"]
    assert [row["step"] for row in losses] == [0, 1, 2, 3]
    assert [row["step"] for row in apart] == [1, 2, 3]
    assert {row["task"] for row in losses} == {"general:text"}
    assert all(row["value"] > 0 for row in rows) and {row["task_id"] for row in rows} == {"none"}

    # by hand: KL(p0 ‖ p) at each place, with the run's last model
    system = restored(results.state, backbone, Rule(name="last"), stream)
    task = stream.tasks[-1]
    examples = backbone.prepare(task.rows("validation"))
    base, now = restored_nothing(backbone), system.combined
    values = []
    backbone.eval()
    with torch.no_grad():
        for row in range(len(examples)):
            batch = examples.batch([row])
            with base.applied(backbone):
                before = backbone(batch).log_softmax(1)
            with now.applied(backbone):
                after = backbone(batch).log_softmax(1)
            values.append((before.exp() * (before - after)).sum(1).mean().item())
    assert apart[-1]["value"] == pytest.approx(sum(values) / len(values), rel=1e-4)

    # once more, nothing is due
    before = (tmp_path / "run" / "scores.csv").read_bytes()
    run(stream, backbone, Sequential(), "last", **arguments)
    assert (tmp_path / "run" / "scores.csv").read_bytes() == before


@pytest.mark.parametrize("again", ["the same name", "another name"])
def test_a_text_that_changed_meanwhile(again, text, tmp_path):
    """Otherwise the rise of the loss would compare two texts."""
    backbone = language_model("llama")
    arguments = {"training": TRAINING, "output": tmp_path / "run"}
    first = TaskStream("s", (closed("colours", ("red", "blue")),))
    both = TaskStream("s", (*first.tasks, closed("sides", ("left", "right"))))
    results = run(
        first, backbone, Sequential(), "last", evaluation=Evaluation(general=text), **arguments
    )
    noted = results.recipe["evaluation"]["general"]
    assert noted == {**text, "digest": noted["digest"]} and len(noted["digest"]) == 64
    before = (tmp_path / "run" / "scores.csv").read_bytes()
    if again == "another name":
        text = {**text, "text": str(tmp_path / "other.txt")}
    Path(text["text"]).write_text("Another text, which says something else. " * 40)
    with pytest.raises(DataError, match="is not the one that the run was measured on before"):
        run(both, backbone, Sequential(), "last", evaluation=Evaluation(general=text), **arguments)
    assert (tmp_path / "run" / "scores.csv").read_bytes() == before
    assert Run(tmp_path / "run").tasks == ["colours"]


def test_a_text_that_changed_while_nothing_was_due(text, tmp_path):
    """A run that is called again with nothing to do keeps the digest of what it measured on."""
    backbone = language_model("llama")
    arguments = {"training": TRAINING, "output": tmp_path / "run"}
    first = TaskStream("s", (closed("colours", ("red", "blue")),))
    both = TaskStream("s", (*first.tasks, closed("sides", ("left", "right"))))

    def learn(stream: TaskStream) -> Run:
        evaluation = Evaluation(general=text)
        return run(stream, backbone, Sequential(), "last", evaluation=evaluation, **arguments)

    noted = learn(first).recipe["evaluation"]["general"]
    whole = Path(text["text"]).read_text()
    Path(text["text"]).write_text("Another text, which says something else. " * 40)
    assert learn(first).recipe["evaluation"]["general"] == noted
    with pytest.raises(DataError, match="is not the one that the run was measured on before"):
        learn(both)
    Path(text["text"]).unlink()
    assert learn(first).recipe["evaluation"]["general"] == noted
    Path(text["text"]).write_text(whole)
    assert learn(both).tasks == ["colours", "sides"]


def test_a_file_in_place_of_the_text_of_a_package(text, tmp_path, monkeypatch):
    names, find = registry.names, registry.find
    texts = {"usual": lambda: ["The usual text. " * 40]}
    monkeypatch.setattr(registry, "names", lambda kind: [*texts] if kind == "text" else names(kind))
    monkeypatch.setattr(
        registry, "find", lambda kind, name: texts[name] if kind == "text" else find(kind, name)
    )
    backbone = language_model("llama")
    stream = TaskStream("s", (closed("colours", ("red", "blue")),))
    arguments = {"training": TRAINING, "output": tmp_path / "run"}
    usual = Evaluation(general=text | {"text": "usual"})
    run(stream, backbone, Sequential(), Rule(name="last"), evaluation=usual, **arguments)
    before = (tmp_path / "run" / "recipe.yaml").read_bytes()
    with pytest.raises(DataError, match="is not `usual`, which the run was measured on before"):
        run(
            stream,
            backbone,
            Sequential(),
            Rule(name="last"),
            evaluation=Evaluation(general=text),
            **arguments,
        )
    assert (tmp_path / "run" / "recipe.yaml").read_bytes() == before


def test_it_can_be_asked_for_later(text, tmp_path):
    backbone = language_model("llama")
    arguments = {"training": TRAINING, "output": tmp_path / "run"}
    stream = TaskStream("s", (closed("colours", ("red", "blue")),))
    results = run(stream, backbone, Sequential(), "last", **arguments)
    assert general_rows(results) == [] and "general" not in results.recipe["evaluation"]
    run(stream, backbone, Sequential(), "last", evaluation=Evaluation(general=text), **arguments)
    assert [row["step"] for row in general_rows(Run(tmp_path / "run"))] == [0, 1, 1]


def test_a_routed_rule_picks_a_model_for_each_piece(text, tmp_path):
    backbone = language_model("llama")
    stream = TaskStream("s", (closed("colours", ("red", "blue")), free("news")))
    arguments = {"training": TRAINING, "output": tmp_path / "run"}
    evaluation = Evaluation(general=text)
    results = run(stream, backbone, Isolated(rank=2), "routed", evaluation=evaluation, **arguments)
    ways = {(row["step"], row["task_id"]) for row in general_rows(results)}
    assert ways == {(0, "none"), (1, "posterior"), (2, "posterior")}
    free_rows = [row for row in results.scores() if row["task"] == "news"]
    assert {row["task_id"] for row in free_rows} == {"given", "posterior"}
    # what no routed rule can answer is not due for ever
    before = (tmp_path / "run" / "scores.csv").read_bytes()
    run(stream, backbone, Isolated(rank=2), "routed", evaluation=evaluation, **arguments)
    assert (tmp_path / "run" / "scores.csv").read_bytes() == before


@pytest.mark.parametrize(("rule", "way"), [("last", "none"), ("routed", "posterior")])
def test_tasks_that_are_never_trained(rule, way, text, tmp_path):
    """Each by its own score and words, before the first task and after each; never learned."""
    lines = [json.dumps({"text": f"is it {n}", "label": ["ja", "nein"][n % 2]}) for n in range(20)]
    (tmp_path / "never.jsonl").write_text("\n".join(lines))
    entry = {"data": str(tmp_path / "never.jsonl"), "text": "text", "label": "label"}
    evaluation = Evaluation(general=text | {"tasks": [entry]})
    stream = TaskStream("s", (closed("colours", ("red", "blue")), free("news")))
    backbone = language_model("llama")
    method = Sequential() if rule == "last" else Isolated(rank=2)
    arguments = {"training": TRAINING, "evaluation": evaluation, "output": tmp_path / "run"}
    results = run(stream, backbone, method, rule, **arguments)
    rows = [row for row in results.scores() if row["task"] == "general:never"]
    assert [row["step"] for row in rows] == [0, 1, 2] and results.tasks == ["colours", "news"]
    assert {row["metric"] for row in rows} == {"accuracy"} and rows[-1]["task_id"] == way
    # half of the words are right whatever the model says: any other word would be wrong always
    assert all(0.2 <= row["value"] <= 0.8 for row in rows)
    before = (tmp_path / "run" / "scores.csv").read_bytes()
    run(stream, backbone, method, rule, **arguments)
    assert (tmp_path / "run" / "scores.csv").read_bytes() == before
    summary = summarise([tmp_path / "run"])
    (values,) = summary["runs"][0]["general"]
    assert [value is None for value in values["never"]["never (accuracy)"]] == [False] * 3
    assert "Tasks that are never trained" in to_html(summary)
    assert "never (accuracy), never trained" in " ".join(sentences(summary))


def test_a_score_of_prompts_that_are_never_trained(tmp_path):
    """Though each example is answered by a model of its own, all are scored with their prompts."""
    (tmp_path / "asked.py").write_text(
        "def asked(answers, references, sources):\n"
        "    return sum(source.startswith('say never') for source in sources) / len(answers)\n"
    )
    task = free("never", str(tmp_path / "asked.py"))
    backbone = language_model("llama")
    stream = TaskStream("s", (free("news"), free("views")))
    arguments = {"training": TRAINING, "output": tmp_path / "run"}
    results = run(stream, backbone, Isolated(rank=2), "routed", **arguments)
    system = restored(results.state, backbone, Rule(name="routed"), stream)
    with system.loaded():
        assert general.never_trained(system, task) == 1


def test_an_encoder_says_so(toy, bert, tmp_path):
    evaluation = Evaluation(general=True)
    with pytest.raises(InputError, match="is for language models"):
        run(toy, bert, Sequential(), "last", evaluation=evaluation, output=tmp_path / "run")
    with pytest.raises(BackboneError, match="answers with classes"):
        bert.pieces(["a text"], length=8, most=1)


@pytest.mark.parametrize(
    "setting",
    [
        {"text": 3},
        {"tokens": 5},
        {"tokens": True},
        {"tasks": "x"},
        {"file": "a.txt"},
        {"tokens": "many"},
    ],
)
def test_a_wrong_setting_is_refused(setting):
    with pytest.raises(InputError, match="must be true, the name of a text"):
        Evaluation(general=setting)


def test_forms_of_the_setting():
    assert source(False) is None and source(None) is None
    assert source("mine.txt") == Source("mine.txt") == source({"text": "mine.txt"})
    assert source(True) == Source("editorials", 2048)


def test_texts_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        general.texts(str(tmp_path / "none.txt"))
    with pytest.raises(UnknownName, match="editorials"):
        general.texts("editorial")
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(DataError, match="has no text"):
        general.texts(str(tmp_path / "empty.txt"))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not text in UTF-8"):
        general.texts(str(tmp_path / "binary.txt"))
    (tmp_path / "short.txt").write_text("a")
    with pytest.raises(DataError, match="fewer than two tokens"):
        general.pieces(language_model("llama"), Source(str(tmp_path / "short.txt")))


def test_a_text_that_is_missing_stops_a_run_before_it_trains(tmp_path):
    stream = TaskStream("s", (closed("colours", ("red", "blue")),))
    with pytest.raises(InputError, match="there is no file"):
        run(
            stream,
            language_model("llama"),
            Sequential(),
            "last",
            evaluation=Evaluation(general=str(tmp_path / "gone.txt")),
            output=tmp_path / "run",
        )
    assert not (tmp_path / "run" / "tasks").exists()


def test_sentences_of_an_editorial_are_one_text():
    lines = ["1_1\t0.4\tIt snows.", "2_1\t0\tVote.", "1_2\t0.1\tStay in."]
    assert joined(lines) == ["It snows. Stay in.", "Vote."]


def test_calibration_stands_beside_the_score(tmp_path):
    """By hand: confidence is the softmax over the words that could be answered."""
    backbone = language_model("llama")
    stream = TaskStream("s", (closed("colours", ("red", "blue")), free("news")))
    arguments = {"training": TRAINING, "output": tmp_path / "run"}
    results = run(stream, backbone, Sequential(), "last", **arguments)
    rows = [row for row in results.scores() if row["metric"] == "calibration_error"]
    assert {row["task"] for row in rows} == {"colours"}
    assert {row["task_id"] for row in rows} == {"given", "posterior", "none"}
    assert all(0 <= row["value"] <= 1 and math.isfinite(row["value"]) for row in rows)
    system = restored(results.state, backbone, Rule(name="last"), stream)
    answers = system.answer(stream.task("colours"), "test", ["given"])
    right = (answers.answered["given"] == answers.true).double()
    bins = (answers.confidence["given"].double() * 15).ceil().clamp(1, 15)
    error = 0.0
    for number in bins.unique():
        inside = bins == number
        gap = right[inside].mean() - answers.confidence["given"].double()[inside].mean()
        error += float(inside.double().mean() * gap.abs())
    last = [row for row in rows if row["step"] == 2 and row["task_id"] == "given"]
    assert last[0]["value"] == pytest.approx(error, abs=1e-6)
    assert results.task_scores == {"colours": "accuracy", "news": "rouge_l"}
