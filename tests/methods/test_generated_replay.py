"""Replay of generated examples: which answers are chosen, what is stored, and what is refused."""

import json
from pathlib import Path

import generated_runs
import pytest
import torch
from datasets import Dataset
from generated_runs import LEARNED
from pico_language import TEMPLATE, language_model, save, tokenizer
from processes import ended, together
from text_tasks import closed, free, uneven

from perdure import InputError, PerdureWarning, Run, Task, Training, forget, learn, run
from perdure.checks import method as checks
from perdure.checks.method import MethodUnderTest
from perdure.data.exemplars import Exemplars
from perdure.data.task import TaskRows, TaskWithoutData
from perdure.errors import RunError
from perdure.learning.needs import check_needs
from perdure.methods.isolated import Isolated
from perdure.methods.masked_target import MaskedTarget
from perdure.methods.ncm import NCM
from perdure.methods.parts.generated import Generated
from perdure.methods.parts.sampled import Form, best_answers, form_of, own_examples
from perdure.methods.replay import Replay
from perdure.methods.sequential import Sequential
from perdure.models.language import Written
from perdure.report.summary import summarise

FEW = Training(epochs=1, batch_size=8, learning_rate=0.01)


def replay(source, **settings):
    usual = {"per_class": 2}
    if source == "on_policy":
        usual["candidates"] = 2
    return Replay(method=Sequential(rank=2), source=source, **{**usual, **settings})


def scripted(monkeypatch, model, rounds):
    """Let the model answer as written: a list for each round, with an answer for each prompt."""
    asked = iter(rounds)

    def generate_scored(batch, temperature=None):
        return next(asked)

    monkeypatch.setattr(model, "generate_scored", generate_scored)


def prompts(*targets):
    texts = [f"ask {number}" for number in range(len(targets))]
    return TaskRows("one", Dataset.from_dict({"text": texts, "target": list(targets)}), ())


# -- answers to stored prompts


def test_the_best_answer_by_score(monkeypatch):
    """A better one replaces a worse one; one that scores 0, or was cut off, is never taken."""
    model = language_model("llama")
    first = [Written("a b", -9.0, True), Written("x", -1.0, True), Written("e f", -1.0, False)]
    second = [Written("a b c d", -8.0, True), Written("y", -1.0, True), Written("", -1.0, True)]
    scripted(monkeypatch, model, [first, second])
    answers = best_answers(
        model, prompts("a b c d", "m n", "e f"), score="token_f1", candidates=2, temperature=1.0
    )
    assert answers == ["a b c d", "m n", "e f"]
    scripted(monkeypatch, model, [first, [Written("a", -1.0, True), *second[1:]]])
    answers = best_answers(
        model, prompts("a b c d", "m n", "e f"), score="token_f1", candidates=2, temperature=1.0
    )
    assert answers[0] == "a b"


def test_the_most_likely_answer(monkeypatch):
    model = language_model("llama")
    scripted(
        monkeypatch,
        model,
        [
            [Written("x", -2.0, True), Written("cut", -0.1, False)],
            [Written("y", -1.0, True), Written("cut", -0.1, False)],
            [Written("z", -3.0, True), Written(" ", -0.1, True)],
        ],
    )
    answers = best_answers(
        model, prompts("right", "right"), score=None, candidates=3, temperature=1.0
    )
    assert answers == ["y", "right"]


def test_an_answer_that_is_too_long_is_not_taken(monkeypatch):
    model = language_model("llama", max_new_tokens=4)
    scripted(monkeypatch, model, [[Written("abcdef", -1.0, True)]])
    answers = best_answers(model, prompts("abc"), score=None, candidates=1, temperature=1.0)
    assert answers == ["abc"]


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_sampling(kind):
    """A temperature near 0 is greedy; a high one differs by seed, and repeats with the seed."""
    model = language_model(kind, max_new_tokens=6).eval()
    batch = model.encode(uneven("one").rows("train")).batch(range(8))
    greedy = model.generate_scored(batch)

    def drawn(temperature, seed):
        torch.manual_seed(seed)
        return model.generate_scored(batch, temperature)

    assert [one.text for one in drawn(1e-4, 0)] == [one.text for one in greedy]
    assert drawn(2.0, 1) == drawn(2.0, 1) != drawn(2.0, 2)


@pytest.mark.parametrize("select", ["score", "likelihood"])
def test_what_is_replayed_on_policy(select, monkeypatch):
    """The stored prompts of all old tasks, answered again by the newest model."""
    model, tasks = language_model("llama"), [uneven("one"), closed("two", ("a", "b"))]
    scores = []

    def answers(model, rows, *, score, candidates, temperature):
        scores.append((rows.task, score))
        return [f"answer {len(scores)}"] * len(rows.data)

    monkeypatch.setattr("perdure.methods.parts.generated.best_answers", answers)
    method = replay("on_policy", select=select)
    learn(model, tasks[:1], method, FEW)
    stored = Exemplars.of(method.state).rows({"one": ()})[0].data
    (_, old) = method.examples(tasks)
    assert old.task == "one" and old.data["text"][:] == stored["text"][:]
    assert old.data["target"][:] == ["answer 1"] * 2
    learn(model, tasks, method, FEW)
    third = free("three")
    (_, one, two) = method.examples([*tasks, third])
    assert one.data["target"][:] == ["answer 2"] * 2 and two.data["target"][:] == ["answer 3"] * 4
    assert "label" not in two.data.column_names
    names = {"score": ["exact_match", "exact_match", "accuracy"], "likelihood": [None] * 3}
    assert scores == list(zip(["one", "one", "two"], names[select], strict=True))
    # a forgotten task is neither replayed nor answered again
    (_, two) = method.examples([tasks[1], third])
    assert two.task == "two"
    method.foresee(third)
    assert set(Generated.of(method.state).answers) == {"two", "three"}


def test_conversations_keep_their_turns():
    model = language_model("llama", chat=True, tokenizer=chatting(), max_new_tokens=8)
    turns = [[{"role": "user", "content": f"say {number}"}] for number in range(8)]
    rows = Dataset.from_dict({"messages": turns, "target": ["yes"] * 8})
    task = Task("talk", (), rows, rows, rows, score="exact_match")
    method = replay("on_policy")
    learn(model, [task], method, FEW)
    (_, old) = method.examples([task, free("two")])
    assert old.data["messages"][0][0]["content"].startswith("say ")
    assert len(old.data["target"][:]) == 2


# -- prompts


def chatting():
    made = tokenizer()
    made.chat_template = TEMPLATE
    return made


def test_the_opening_of_a_prompt():
    plain = language_model("llama").prompts
    assert plain.tokenizer.decode(plain.opening("Ask: ")) == "<s>Ask: "
    chat = language_model("llama", chat=True, tokenizer=chatting()).prompts
    assert chat.tokenizer.decode(chat.opening("Ask: ")) == "<user>Ask: "


def texts_task(texts, **columns):
    rows = Dataset.from_dict({"text": texts, **(columns or {"target": ["yes"] * len(texts)})})
    return Task("one", (), rows, rows, rows, score="exact_match")


def test_what_prompts_share():
    model = language_model("llama")
    task = texts_task(["Say it: good day\nAnswer:", "Say it: go home now\nAnswer:"])
    form = form_of(model, task)
    # one token a byte: 8 and 11 letters, and the ending of 8; `<s>Say it:` opens them
    assert form == Form("Say it: ", "\nAnswer:", round((8 + 11) / 2 + 8 + 1))
    assert form.filled(" well\nAnswer: no\n") == "Say it: well\nAnswer:"
    assert form.filled("\nAnswer: no\n") is None  # the model wrote the ending at once
    assert form_of(model, texts_task(["abc", "abd"])) == Form("", "", 3)


def test_own_examples(monkeypatch):
    """Answers that are no class are left out; what is missing is tried again."""
    model = language_model("llama")
    task = closed("colours", ("red", "blue"))
    made = iter([["7", " ", "8"], ["9"]])
    counts = []

    def continued(beginning, *, count, length, temperature):
        counts.append(count)
        return next(made)

    monkeypatch.setattr(model, "continued", continued)
    scripted(
        monkeypatch,
        model,
        [[Written("red", -1.0, True), Written("green", -1.0, True)], [Written("blue", -1, True)]],
    )
    pairs = own_examples(model, task, 2, 1.0)
    assert pairs == [("colours 7", "red"), ("colours 9", "blue")] and counts == [2, 1]


def test_a_warning_says_how_many_are_missing(monkeypatch):
    model = language_model("llama")
    task = closed("colours", ("red", "blue"))
    monkeypatch.setattr(model, "continued", lambda beginning, *, count, **others: ["7"] * count)
    wrong = [Written("green", -1.0, True)]
    scripted(monkeypatch, model, [[*wrong, Written("red", -1.0, True)], wrong, wrong, wrong])
    with pytest.warns(PerdureWarning, match="1 of 2 examples of `colours`.* `source: on_policy`"):
        assert own_examples(model, task, 2, 1.0) == [("colours 7", "red")]
    monkeypatch.setattr(model, "continued", lambda beginning, *, count, **others: [""] * count)
    with pytest.warns(PerdureWarning, match="generated 0 of 2 examples of `colours`"):
        assert own_examples(model, task, 2, 1.0) == []


def test_nothing_is_kept_of_the_data():
    model, tasks = language_model("llama", max_new_tokens=12), generated_runs.stream()
    method = generated_runs.replay("own")
    learn(model, tasks.tasks[:1], method, LEARNED)
    assert set(method.state) == {"generated"}
    generated = Generated.of(method.state)
    assert len(generated.prompts["one"]) == len(generated.answers["one"]) == 3
    assert not set(generated.prompts["one"]) & set(tasks[0].train["text"][:])
    texts = [*generated.prompts["one"], *generated.answers["one"]]
    assert method.store_bytes == sum(len(text.encode()) for text in texts)
    (_, old) = method.examples(tasks.tasks)
    assert old.data["text"][:] == generated.prompts["one"]
    assert old.data["target"][:] == generated.answers["one"]
    learn(model, tasks.tasks, method, LEARNED)
    assert set(Generated.of(method.state).answers) == {"one", "two"}


def test_continuing_a_prompt():
    model = language_model("llama").eval()
    torch.manual_seed(0)
    texts = model.continued("one ", count=70, length=5, temperature=1.0)
    assert len(texts) == 70 and len(set(texts)) > 10
    assert all(len(text) <= 5 for text in texts)


# -- promises


def test_the_budget_counts_everything():
    model = language_model("llama", max_new_tokens=8)
    method = replay("on_policy")
    learn(model, [uneven("one")], method, FEW)
    answers = Generated.of(method.state).answers["one"]
    stored = Exemplars.of(method.state).size
    assert len(answers) == 2 and stored > 0
    assert method.store_bytes == stored + sum(len(text.encode()) for text in answers)


def test_the_budget_counts_what_the_inner_method_stores():
    inner = Replay(method=Sequential(rank=2), per_class=3)
    method = Replay(method=inner, source="on_policy", per_class=1, candidates=1)
    learn(language_model("llama", max_new_tokens=8), [uneven("one")], method, FEW)
    own = Exemplars.of(method.remembered).size + Generated.of(method.remembered).size
    assert method.store_bytes == own + inner.store_bytes
    assert inner.store_bytes > 0


def test_a_share_of_generated_examples():
    model, task = language_model("llama", max_new_tokens=12), generated_runs.short("one")
    method = generated_runs.replay("own")
    method.share = 2 / len(task.train)
    learn(model, [task], method, LEARNED)
    generated = Generated.of(method.state)
    assert len(generated.prompts["one"]) == len(generated.answers["one"]) == 2
    method = replay("on_policy", share=2 / len(task.train))
    learn(model, [task], method, FEW)
    assert len(Generated.of(method.state).answers["one"]) == 2


def test_the_state_of_stored_examples_is_as_before():
    model = language_model("llama")
    for source in (None, "data"):
        method = replay(source)
        learn(model, [uneven("one")], method, FEW)
        assert set(method.state) == {"examples", "lengths", "labels", "kept"}


class Generating(MethodUnderTest):
    """Replay under test, on tasks with short answers that a pico model learns to end."""

    stream = generated_runs.stream()

    def backbone(self):
        return generated_runs.backbone(self.model)

    def run(self, name, *, tasks=2, method=None, backbone=None):
        folder = self.folder / name
        run(
            self.stream.until(tasks),
            backbone or self.backbone(),
            method or self.make(),
            training=LEARNED,
            output=folder,
            seed=3,
        )
        return folder


def generating(source, family, folder):
    subject = Generating("replay", lambda: generated_runs.replay(source), folder, family)
    vars(subject)["model"] = save(folder / "model", family)
    return subject


SOURCES = [("on_policy", "t5"), ("own", "llama")]


@pytest.mark.parametrize(("source", "family"), SOURCES)
def test_a_run_goes_on_inside_a_task(source, family, tmp_path):
    subject = generating(source, family, tmp_path)
    checks.a_run_goes_on_inside_a_task(subject)
    answers, prompts = generated_runs.texts_of(Run(subject.whole), "two")
    assert [len(texts) for texts in answers.values()] == [3, 3]
    # Not only right answers, which are taken if none can be used.
    assert answers["one"] != ["ab"] * 3 and (source == "own") == bool(prompts)


@pytest.mark.parametrize(("source", "family"), SOURCES)
def test_what_is_remembered_counts_in_the_events(source, family, tmp_path):
    made = Run(generating(source, family, tmp_path).whole)
    texts = generated_runs.texts_of(made, "two")
    size = sum(len(text.encode()) for by_task in texts for of in by_task.values() for text in of)
    event = [one for one in made.events() if one["event"] == "task"][-1]
    assert event["state_bytes"] >= event["store_bytes"] >= size > 0
    cost = summarise([made.folder])["runs"][0]["cost"]
    assert cost["store_bytes"] == event["store_bytes"]


@pytest.mark.filterwarnings("ignore:The model generated 2 of 3")
@pytest.mark.parametrize(("source", "family"), SOURCES)
def test_a_forgotten_task_is_not_generated_again(source, family, tmp_path):
    subject = generating(source, family, tmp_path)
    stream = subject.stream
    left = forget(subject.whole, "one")
    assert left.traces == ("two",) and "(and examples" in left.why
    again = forget(subject.whole, "one", retrain_later=True, stream=stream)
    assert again.relearned == ("two",) and not again.traces
    for texts in generated_runs.texts_of(Run(subject.whole), "two"):
        assert texts.keys() <= {"two"}


@pytest.mark.parametrize(("source", "family"), SOURCES)
def test_two_processes_generate_the_same(source, family, tmp_path):
    code = Path(generated_runs.__file__).read_text()
    tests = str(Path(generated_runs.__file__).parent)
    model = save(tmp_path / "model", family)
    arguments = (source, model, tmp_path / "run")
    printed = [
        json.loads(out.splitlines()[-1])
        for out in ended(together(code, *arguments, PYTHONPATH=tests))
    ]
    # Not those of one process, because sampling turns differences of rounding into other tokens.
    assert printed[0] == printed[1]
    answers, _ = printed[0][1]
    assert [len(texts) for texts in answers.values()] == [3, 3]


def test_a_damaged_state_is_refused():
    with pytest.raises(RunError, match="damaged"):
        Generated.of({"generated": [{"one": [3]}, {}, {}]})
    with pytest.raises(RunError, match="2 generated answers to the 0 stored prompts"):
        Generated({"one": ["a", "b"]}).rows({"one": ()}, [])


def test_what_is_refused(bert, toy):
    with pytest.raises(InputError, match="`per_class` is 0, so `replay` has nothing to replay"):
        Replay(method=Isolated(), per_class=0)
    with pytest.raises(InputError, match="`ncm` has no use for old examples"):
        Replay(method=NCM())
    for source in ("own", "on_policy"):
        method = MaskedTarget(method=replay(source))
        sentence = f"The method `replay` needs a language model.*nstead of `source: {source}`"
        with pytest.raises(InputError, match=sentence):
            check_needs(method, bert, toy)
        with pytest.raises(InputError, match=sentence):
            learn(bert, [toy[0]], method, FEW)
    check_needs(replay("own"), language_model("llama"), [free("one")])


def test_own_prompts_need_a_causal_model_and_no_conversations():
    check_needs(replay("on_policy"), language_model("t5"), [free("one")])
    with pytest.raises(InputError, match="a causal language model.* use `source: on_policy`"):
        check_needs(replay("own"), language_model("t5"), [free("one")])
    rows = Dataset.from_dict(
        {"messages": [[{"role": "user", "content": "a"}]] * 4, "target": ["b"] * 4}
    )
    talk = Task("talk", (), rows, rows, rows, score="exact_match")
    model = language_model("llama", chat=True, tokenizer=chatting())
    check_needs(replay("on_policy"), model, [talk])
    with pytest.raises(InputError, match="`talk` are conversations.* use `source: on_policy`"):
        check_needs(replay("own"), model, [free("one"), talk])
    check_needs(replay("own"), model, [TaskWithoutData("old", (), digests={}, missing="Lost.")])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"share": 0.0}, "`share` is 0, but must be greater than 0"),
        ({"share": 1.5}, "`share` is 1.5, but must be"),
        ({"candidates": 0}, "`candidates` is 0, so `replay` has no answers"),
        ({"temperature": 0.0}, "`temperature` is 0, but must be greater than 0"),
        ({"source": "own", "candidates": 2}, "`candidates` of `replay` is used only with"),
        ({"source": "own", "select": "score"}, "but the source is `own`"),
        ({"source": "own", "strategy": "surprise"}, "but `source: own` stores none: leave one"),
        ({"source": None, "temperature": 1.0}, "`on_policy` or `own`, but the source is `data`"),
        ({"source": "data", "candidates": 4}, "leave it out, or choose another source"),
    ],
)
def test_settings_out_of_range_or_without_use(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        Replay(method=Isolated(), **{"source": "on_policy", **settings})
