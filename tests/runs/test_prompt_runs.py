"""Runs of language models over own data: learned, kept, gone, changed, refused."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import language_runs
import pico_language
import pytest
import transformers
from datasets import Dataset
from prompt_tables import ALPACA, CHAT, COMPLETIONS, LABELLED, PAIRS, lines, turn
from tables import write

from perdure import (
    Backbone,
    BackboneError,
    DataError,
    InputError,
    PerdureWarning,
    Recipe,
    Run,
    Task,
    TaskStream,
    Training,
    UnknownName,
    evaluate_run,
    find,
    forget,
    learn_more,
    names,
    past_tasks,
    read_tasks,
    registry,
    run,
    verify,
)

TEMPLATE = (
    "{% for turn in messages %}<{{ turn['role'] }}>{{ turn['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WITHOUT_GENERATION_PROMPT = TEMPLATE.partition("{% if")[0]
QUICK = ("training.epochs=1", "training.batch_size=2", "method.rank=2", "backbone.max_new_tokens=8")
GONE = "cannot be measured now, but is used as it was learned"


def save(folder: Path, kind: str, template: str | None = None, **tokens: str | None) -> str:
    """Save a pico model whose tokenizer has a chat template, or other special tokens."""
    pico_language.save(folder, kind)
    tokenizer = pico_language.tokenizer()
    tokenizer.chat_template = template
    for name, token in tokens.items():
        setattr(tokenizer, name, token)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp("llama"), "llama", TEMPLATE)


@pytest.fixture(scope="module")
def t5(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp("t5"), "t5")


def recipe(source: str, *entries: dict, **values) -> Recipe:
    section = {"model": source}
    given = {"stream": list(entries), "backbone": section, **values}
    return Recipe.parse(given, QUICK)


def measured(run: Run) -> dict[str, str]:
    """The score of each task after the last one."""
    scores = {}
    for row in run.scores():
        if row["step"] == len(run.tasks) and row["metric"] in names("score"):
            scores[row["task"]] = row["metric"]
    return scores


# -- learned


def test_five_formats_from_the_command_line(llama, tmp_path, monkeypatch, perdure):
    monkeypatch.chdir(tmp_path)
    tables = {"completions": COMPLETIONS, "alpaca": ALPACA, "chat": CHAT, "pairs": PAIRS}
    for name, rows in tables.items():
        lines(tmp_path, rows, f"{name}.jsonl")
    write(tmp_path / "labels.csv", [(f"t{i}", ["no", "yes"][i % 2]) for i in range(8)])
    new = ["--backbone", llama, *(word for setting in QUICK for word in ("--set", setting))]
    template = ("--prompt", r"1: {premise}\n2: {hypothesis}", "--answer", "{label}")
    for arguments in (
        ("completions.jsonl", *new),
        ("alpaca.jsonl", "--score", "rouge_l"),
        ("chat.jsonl",),
        ("pairs.jsonl", *template, "--score", "token_f1"),
        ("labels.csv",),
    ):
        status, _, err = perdure("learn", "mine", "--data", *arguments, "--quiet")
        assert (status, err) == (0, "")
    run = Run("mine")
    assert measured(run) == {
        "completions": "accuracy",
        "alpaca": "rouge_l",
        "chat": "accuracy",
        "pairs": "token_f1",
        "labels": "accuracy",
    }
    entries = [dict(entry) for entry in run.recipe["stream"]]
    assert {entry.pop("encoding") for entry in entries} == {"utf-8"}
    assert entries == [
        {"data": "completions.jsonl"},
        {"data": "alpaca.jsonl", "score": "rouge_l"},
        {"data": "chat.jsonl"},
        {
            "data": "pairs.jsonl",
            "prompt": "1: {premise}\n2: {hypothesis}",
            "answer": "{label}",
            "score": "token_f1",
        },
        {"data": "labels.csv"},
    ]
    assert [len(run.load_task(name).classes) for name in run.tasks] == [0, 0, 0, 0, 2]
    assert verify("mine").faults == []
    status, _, err = perdure("learn", "mine", "--data", "labels.csv", "--quiet")
    assert status == 1 and "has already learned these tasks" in err


def test_a_recipe_on_an_encoder_decoder(t5, tmp_path):
    pairs = {"data": lines(tmp_path, PAIRS, "pairs.jsonl")}
    three = [{"data": lines(tmp_path, COMPLETIONS, f"{name}.jsonl")} for name in "ab"]
    entry = pairs | {"prompt": "{premise}: {hypothesis}", "answer": "label", "name": "free"}
    files = {"data": dict.fromkeys(("train", "test"), lines(tmp_path, PAIRS * 2, "two.jsonl"))}
    closed = files | {"name": "closed", "prompt": "{premise}, {choices}:", "label": "label"}
    with warnings.catch_warnings():
        # Three tasks without classes do not "have the same classes".
        warnings.simplefilter("error")
        run = recipe(t5, *three, entry, closed).run(tmp_path / "run")
    assert run.tasks == ["a", "b", "free", "closed"]
    assert run.load_task("closed").classes == ("no", "yes")


def test_a_closed_set_whose_rows_repeat(llama, tmp_path):
    path = lines(tmp_path, LABELLED[:2] * 10)
    (task,) = read_tasks(path)
    assert len(set(task.train["text"])) == 2
    run = recipe(llama, {"data": path}).run(tmp_path / "run")
    assert measured(run) == {"t": "accuracy"}
    counts = run.load_task("t").statistics.counts
    assert counts.tolist() == [7, 7]


def test_no_pad_token_is_no_error(tmp_path):
    folder = save(tmp_path / "model", "llama", pad_token=None)
    assert transformers.AutoTokenizer.from_pretrained(folder).pad_token is None
    run = recipe(folder, {"data": lines(tmp_path, COMPLETIONS)}).run(tmp_path / "run")
    assert run.tasks == ["t"]


def test_how_many_prompts_are_cut_is_said_once(llama, tmp_path):
    long = [{**row, "prompt": "x" * 60} for row in COMPLETIONS[:4]]
    entries = [
        {"data": lines(tmp_path, COMPLETIONS, "short.jsonl")},
        {"data": {split: lines(tmp_path, [*long, *COMPLETIONS], "long.jsonl")
                  for split in ("train", "validation", "test")}, "name": "long"},
    ]  # fmt: skip
    backbone = {"model": llama, "max_length": 50, "truncate": "left"}
    with pytest.warns(PerdureWarning) as caught:
        recipe(llama, *entries, backbone=backbone).run(tmp_path / "run")
    (warning,) = caught
    assert str(warning.message) == (
        "Task `long`: 4 of 9 prompts are longer than `max_length: 50` tokens and will be cut "
        "(`truncate: left`). Raise `max_length`, or set another side to cut with `truncate`."
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate_run(tmp_path / "run")


# -- the tables are gone


@pytest.fixture(scope="module")
def home(llama, tmp_path_factory) -> Path:
    """A folder with a run that has learned three tables, and the tables."""
    folder = tmp_path_factory.mktemp("home")
    chat = {"data": lines(folder, CHAT, "chat.jsonl"), "score": "exact_match"}
    others = [{"data": lines(folder, ALPACA, "alpaca.jsonl")}]
    others.append({"data": lines(folder, LABELLED * 2, "labels.jsonl")})
    recipe(llama, chat, *others).run(folder / "run")
    return folder


@pytest.fixture
def copy(home, tmp_path) -> Path:
    """A copy of the run, which goes on with the original tables; these may be replaced in it."""
    shutil.copytree(home / "run", tmp_path / "run")
    path = tmp_path / "run" / "recipe.yaml"
    for table in home.glob("*.jsonl"):
        shutil.copy(table, tmp_path / table.name)
    path.write_text(path.read_text().replace(f"{home}/", f"{tmp_path}/"))
    return tmp_path


def test_a_run_learns_more_when_old_tables_are_gone_or_changed(copy):
    (copy / "chat.jsonl").unlink()
    lines(copy, ALPACA[1:], "alpaca.jsonl")
    new = {"data": lines(copy, COMPLETIONS, "new.jsonl")}
    with pytest.warns(PerdureWarning, match="`chat`, `alpaca` .*There is no file .*chat.jsonl"):
        run = learn_more(copy / "run", new)
    assert run.tasks == ["chat", "alpaca", "labels", "new"]
    assert set(measured(run)) == {"labels", "new"}
    assert [task.classes for task in past_tasks(run.folder)] == [(), (), ("no", "yes"), ()]
    with pytest.warns(PerdureWarning, match="The examples of task `alpaca` are not those"):
        evaluate_run(run.folder)
    lines(copy, CHAT, "chat.jsonl")
    lines(copy, ALPACA, "alpaca.jsonl")
    evaluate_run(run.folder, steps="last")
    assert measured(run) == {
        "chat": "exact_match",
        "alpaca": "accuracy",
        "labels": "accuracy",
        "new": "accuracy",
    }


def test_a_task_without_classes_is_forgotten_and_learned_again(copy):
    forgotten = forget(copy / "run", "alpaca")
    assert forgotten.left == ("chat", "labels") and not forgotten.traces
    assert not [row for row in Run(copy / "run").scores() if row["task"] == "alpaca"]
    run = learn_more(copy / "run", {"data": str(copy / "alpaca.jsonl")})
    assert run.tasks == ["chat", "labels", "alpaca"]
    assert run.load_task("alpaca").classes == ()
    assert verify(run.folder).faults == []


@pytest.mark.parametrize("name", ["sequential", "joint", "lwf", "ewc"])
def test_methods_without_old_tables(name, llama, tmp_path):
    first = {"data": lines(tmp_path, CHAT, "chat.jsonl")}
    method = {"name": name, "rank": 2}
    run = recipe(llama, first, method=method).run(tmp_path / "run")
    (tmp_path / "chat.jsonl").unlink()
    new = {"data": lines(tmp_path, COMPLETIONS, "new.jsonl")}
    if name == "joint":
        with pytest.raises(InputError, match="`joint` trains on the examples of all tasks, but"):
            learn_more(run.folder, new)
        assert run.tasks == ["chat"]
        return
    with pytest.warns(PerdureWarning, match=f"Task `chat` {GONE}"):
        assert learn_more(run.folder, new).tasks == ["chat", "new"]


# -- refused before anything is trained


def test_tasks_of_a_language_model_need_no_hint_at_shared_heads(tmp_path):
    rows = [(f"t {number}:", ("yes", "no")[number % 2]) for number in range(12)]
    stream = []
    for name in ("a", "b", "c", "d", "e"):
        stream.append({"data": write(tmp_path / f"{name}.csv", rows), "prompt": "{text}"})
    backbone = {"model": str(save(tmp_path / "model", "llama"))}
    recipe = Recipe.parse({"stream": stream, "backbone": backbone, "method": "sequential"})
    with warnings.catch_warnings():
        warnings.simplefilter("error", PerdureWarning)
        recipe.dry_run()


def test_a_language_model_has_no_head_to_share(tmp_path):
    """It would have ended at the first measurement, with the first task learned."""
    folder = save(tmp_path / "model", "llama")
    tasks = (language_runs.closed("mood"), replace(language_runs.closed("mood"), name="again"))
    stream = TaskStream("moods", tasks, "domain")
    with pytest.raises(InputError, match="is for models that have heads.* Leave it out"):
        run(
            stream,
            Backbone.load(folder),
            find("method", "sequential")(),
            training=Training(heads="shared"),
            output=tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rows", "entry", "message"),
    [
        (
            [{"prompt": "a", "completion": "nineteen"}] * 5,
            {},
            r"row \d+: the answer has 9 tokens with its end, but `max_new_tokens` is 8",
        ),
        (COMPLETIONS, {"score": "macro_f1"}, "`macro_f1` is for classes, but .* free text. Scores"),
        (LABELLED * 2, {"score": "rouge_l"}, "`rouge_l` is for text, but .* classes. Scores for"),
        (COMPLETIONS, {"score": "rouge"}, "No score named `rouge`. Did you mean `rouge_l`?"),
        (
            PAIRS * 2,
            {"text": ["premise", "hypothesis"]},
            "has pairs of texts, but .* is a language model, which reads one prompt. Name both",
        ),
        (COMPLETIONS, {"prompts": "prompt"}, "No setting of stream named `prompts`. .*`prompt`?"),
        (COMPLETIONS, {"answer": {"label": None}}, "`answer` is {'label': None}, but must be"),
    ],
)
def test_what_does_not_fit_is_said(rows, entry, message, llama, tmp_path):
    table = lines(tmp_path, rows)
    with pytest.raises(InputError, match=message) as caught:
        learn_more(tmp_path / "run", {"data": table, **entry}, backbone=llama, settings=QUICK)
    assert "\n" not in str(caught.value)
    assert Run(tmp_path / "run").tasks == [] if (tmp_path / "run").exists() else True
    if entry.get("score") == "rouge":
        assert isinstance(caught.value, UnknownName)


def test_answers_that_are_the_same_are_refused_before_training(tmp_path):
    task = replace(language_runs.closed("mood"), classes=("good", " good"))
    with pytest.raises(DataError, match="Task `mood` has the answers 'good' and ' good'"):
        language_runs.run(tmp_path, "llama", [language_runs.closed("sky"), task])
    assert not list(tmp_path.glob("run-llama/tasks/*"))


def test_a_refused_table_costs_a_run_nothing(copy):
    before = (copy / "run" / "recipe.yaml").read_text()
    bad = [{"messages": [turn("user", "a"), turn("assistant", "far too long")]}] * 5
    with pytest.raises(DataError, match="Task `bad`, row 1: the answer has 13 tokens"):
        learn_more(copy / "run", {"data": lines(copy, bad, "bad.jsonl")})
    assert (copy / "run" / "recipe.yaml").read_text() == before


def test_mixed_kinds_on_an_encoder(pico, tmp_path):
    entries = [{"data": lines(tmp_path, LABELLED * 2)}]
    entries.append({"data": lines(tmp_path, COMPLETIONS, "free.jsonl")})
    values = {"stream": entries, "backbone": str(pico("bert"))}
    with pytest.raises(InputError, match="Task `free` .* free text, .* Use a language model"):
        Recipe.parse(values).run(tmp_path / "run")


def test_images_on_a_language_model(llama, pictures, tmp_path):
    run = recipe(llama, {"data": "pictures"})
    plan = run.plan(pictures, run.make_backbone())
    with pytest.raises(InputError, match="is a language model, but the examples are images"):
        plan.backbone.encode(pictures[0].rows("train"))


def test_a_template_without_a_generation_prompt(tmp_path):
    folder = save(tmp_path / "model", "llama", WITHOUT_GENERATION_PROMPT)
    with pytest.raises(InputError, match="no generation prompt: it writes '<assistant>' before"):
        recipe(folder, {"data": lines(tmp_path, CHAT)}).run(tmp_path / "run")
    plain = {"model": folder, "chat_template": "none"}
    with pytest.raises(InputError, match="a conversation, but `chat_template` is `none`"):
        recipe(folder, {"data": lines(tmp_path, CHAT)}, backbone=plain).run(tmp_path / "chat")
    entry = {"data": lines(tmp_path, COMPLETIONS)}
    assert recipe(folder, entry, backbone=plain).run(tmp_path / "plain").tasks == ["t"]


def test_a_template_that_needs_no_generation_prompt(tmp_path):
    template = (
        "{% for turn in messages %}{% if turn['role'] == 'user' %}[{{ turn['content'] }}]"
        "{% else %} {{ turn['content'] }}</s>{% endif %}{% endfor %}"
    )
    backbone = Backbone.load(save(tmp_path / "model", "llama", template))
    tokens = backbone.prompts.tokens("Is it good?", "yes", "Row 1")
    assert backbone.processor.decode(tokens.prompt) == "[Is it good?]"
    assert backbone.processor.decode(tokens.answer) == " yes</s>"


def test_a_quantised_model(llama, tmp_path):
    shutil.copytree(llama, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    quantised = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    path.write_text(json.dumps(json.loads(path.read_text()) | quantised))
    with pytest.raises(BackboneError, match=r"is quantised \(bitsandbytes\), .* the original"):
        Backbone.load(tmp_path / "model")


def test_scores_fit_what_they_declare(llama):
    backbone = Backbone.load(llama)
    rows = Dataset.from_dict({"text": ["a"], "target": ["b"]})
    task = Task("t", (), rows, rows, rows, score="bleu")
    assert registry.find("score", task.score) and "bleu" in names("score")
    assert backbone.encode(task.rows("train")).cut == 0
