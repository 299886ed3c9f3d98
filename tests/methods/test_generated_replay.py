"""Replay of generated examples: which answers are chosen, what is stored, and what is refused."""

import pytest
import torch
from datasets import Dataset
from pico_language import TEMPLATE, language_model, tokenizer
from text_tasks import closed, free, uneven

from perdure import InputError, Task, TaskStream, Training, learn
from perdure.checks import method as checks
from perdure.checks.method import MethodUnderTest
from perdure.data.exemplars import Exemplars
from perdure.data.task import TaskRows
from perdure.errors import RunError
from perdure.methods.isolated import Isolated
from perdure.methods.parts.generated import Generated
from perdure.methods.parts.sampled import Form, best_answers, form_of, own_examples
from perdure.methods.replay import Replay
from perdure.methods.sequential import Sequential
from perdure.models.language import Written
from perdure.runs.job import check_needs

FEW = Training(epochs=1, batch_size=8, learning_rate=0.01)


def replay(source, **settings):
    usual = {"per_class": 2, "candidates": 2}
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
    assert form_of(model, texts_task(["abc", "abd"])) == Form("", "", 3)


def test_own_examples(monkeypatch):
    """Answers that are no class are left out; what is missing is tried again."""
    model = language_model("llama")
    task = closed("colours", ("red", "blue"))
    made = iter([["7", "", "8"], ["9"]])
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


def test_nothing_is_kept_of_the_data():
    model, tasks = language_model("llama", max_new_tokens=8), [uneven("one"), free("two")]
    method = replay("own", per_class=3)
    learn(model, tasks[:1], method, FEW)
    assert set(method.state) == {"generated"}
    generated = Generated.of(method.state)
    texts = [*generated.prompts["one"], *generated.answers["one"]]
    assert method.store_bytes == sum(len(text.encode()) for text in texts)
    rows = method.examples(tasks)
    assert len(rows) == (2 if generated.answers["one"] else 1)
    learn(model, tasks, method, FEW)


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


def test_a_share_of_generated_examples():
    """With `own`, at most as many: a prompt without a usable answer is left out."""
    model = language_model("llama", max_new_tokens=8)
    size = len(uneven("one").train)
    method = replay("own", share=2 / size)
    learn(model, [uneven("one")], method, FEW)
    generated = Generated.of(method.state)
    assert len(generated.prompts["one"]) == len(generated.answers["one"]) <= 2
    method = replay("on_policy", share=2 / size)
    learn(model, [uneven("one")], method, FEW)
    assert len(Generated.of(method.state).answers["one"]) == 2


def test_the_state_of_stored_examples_is_as_before():
    model = language_model("llama")
    for source in (None, "data"):
        method = replay(source)
        learn(model, [uneven("one")], method, FEW)
        assert set(method.state) == {"examples", "lengths", "labels", "kept"}


@pytest.mark.parametrize(("source", "family"), [("on_policy", "seq2seq"), ("own", "causal")])
def test_a_run_goes_on_inside_a_task(source, family, tmp_path):
    subject = MethodUnderTest("replay", lambda: replay(source), tmp_path, family)
    checks.a_run_goes_on_inside_a_task(subject)


def test_a_damaged_state_is_refused():
    with pytest.raises(RunError, match="damaged"):
        Generated.of({"generated": [{"one": [3]}, {}, {}]})
    with pytest.raises(RunError, match="2 generated answers to the 0 stored prompts"):
        Generated({"one": ["a", "b"]}).rows({"one": ()}, [])


def test_what_is_refused(bert, toy):
    with pytest.raises(InputError, match="`per_class` is 0, so `replay` has nothing to replay"):
        Replay(method=Isolated(), per_class=0)
    for source in ("own", "on_policy"):
        with pytest.raises(InputError, match="needs a language model.* Use `source: data`"):
            check_needs(replay(source), bert, toy)
        with pytest.raises(InputError, match=f"`source: {source}` needs a language model"):
            learn(bert, [toy[0]], replay(source), FEW)
    stream = TaskStream("free", (free("one"),))
    check_needs(replay("own"), language_model("llama"), stream)
    with pytest.raises(InputError, match="only a causal language model can do"):
        learn(language_model("t5"), [free("one")], replay("own"), FEW)
    rows = Dataset.from_dict(
        {"messages": [[{"role": "user", "content": "a"}]] * 4, "target": ["b"] * 4}
    )
    talk = Task("talk", (), rows, rows, rows, score="exact_match")
    model = language_model("llama", chat=True, tokenizer=chatting())
    with pytest.raises(InputError, match="`talk` are conversations"):
        learn(model, [talk], replay("own"), FEW)
