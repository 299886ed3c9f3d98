"""What a file of a run may say: other content is one sentence,
which names the file and the place in it.
"""

import json
import resource
import shutil
from pathlib import Path

import pytest

from perdure import RunError
from perdure.runs import derived, layout, schema

RUN = Path(__file__).parents[1] / "formats" / "2" / "isolated"
TASK = "tasks/00-fruit"
HASH = "0" * 64


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(RUN, tmp_path / "run"))


def in_json(folder, name, change):
    """Change what a JSON file of a run says."""
    path = folder / name
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(values | change))


@pytest.mark.parametrize(
    ("read", "name", "change", "message"),
    [
        (
            layout.environment,
            "environment.json",
            {"cpus": "2"},
            "`cpus` is '2', but must be a whole number",
        ),
        (
            layout.environment,
            "environment.json",
            {"versions": {"a": 1}},
            "`versions.a` is 1, but must be a string",
        ),
        (layout.backbone, "backbone.json", {}, "has no `files`"),
        (
            layout.backbone,
            "backbone.json",
            {"files": {"a": 3}},
            "`files.a` is 3, but must be a string",
        ),
        (layout.combined, "combined.json", {"options": 1}, "`options` is 1, but must be a mapping"),
        (layout.combined, "combined.json", {"name": None}, "`name` is None, but must be a string"),
        (
            layout.combined,
            "combined.json",
            {"candidates": {"x": 1}},
            "`candidates`: could not convert string to float",
        ),
        (
            layout.combined,
            "combined.json",
            {"candidates": [{"scale": True, "score": 1}]},
            "`candidates.0.scale` is True",
        ),
        (
            layout.combined,
            "combined.json",
            {"candidates": [{"scale": 1}]},
            "has no `candidates.0.score`",
        ),
        (layout.combined, "combined.json", {"\ud800": 1}, "as a name, which is not valid text"),
        (
            derived.answers,
            "answers.json",
            {"answers": {"a": {"b": {"c": {"d": 0}}}}},
            "`answers.a.b.c.d` is 0, but must",
        ),
        (
            derived.answers,
            "answers.json",
            {"answers": {"a": {"b": {"c": {"d": True}}}}},
            "`answers.a.b.c.d` is True",
        ),
        (
            derived.answers,
            "answers.json",
            {"answers": {"a": {"b": []}}},
            "`answers.a.b` is \\[\\], but must be a mapping",
        ),
        (
            derived.caught,
            "answers.json",
            {"answers": {}, "caught": {"relative": [0.5]}},
            "`caught.relative` is",
        ),
        (
            derived.caught,
            "answers.json",
            {"answers": {}, "caught": {"relative": [0.5] * 100 + [1.5]}},
            "`caught.relative.100` is 1.5, but must",
        ),
        (
            derived.caught,
            "answers.json",
            {"answers": {}, "caught": []},
            "`caught` is \\[\\], but must be a mapping",
        ),
    ],
)
def test_a_file_of_a_run(read, name, change, message, folder):
    in_json(folder, name, change)
    one_sentence(lambda: read(folder), f"`.*{name}`.*{message}")


def test_a_class_that_was_never_asked_for(folder):
    in_json(folder, "answers.json", {"answers": {"given": {"fruit": {"apple": {}}}}})
    one_sentence(
        lambda: derived.answers(folder),
        "`.*answers.json`: `answers.given.fruit.apple` is {}, but must be",
    )


@pytest.mark.parametrize(
    ("read", "name", "change", "message"),
    [
        (layout.task, "task.json", {"classes": ["a", 1]}, "`classes.1` is 1, but must be a string"),
        (layout.task, "task.json", {"digests": []}, "`digests` is \\[\\], but must be a mapping"),
        (
            layout.task,
            "task.json",
            {"name": "colour"},
            "belongs to the task `colour`, not to its folder",
        ),
        (
            layout.manifest,
            "manifest.json",
            {"x.json": {"size": 1.0, "sha256": HASH}},
            "`x.json.size` is 1.0, but must",
        ),
        (layout.manifest, "manifest.json", {"x.json": {"size": 1}}, "has no `x.json.sha256`"),
        (layout.manifest, "manifest.json", {"x.json": 1}, "`x.json` is 1, but must be a mapping"),
        (
            layout.manifest,
            "manifest.json",
            {"../x.json": {"size": 1, "sha256": HASH}},
            "`../x.json`: no task has a file",
        ),
    ],
)
def test_a_file_of_a_task(read, name, change, message, folder):
    in_json(folder / TASK, name, change)
    one_sentence(lambda: read(folder / TASK), f"`.*{name}`.*{message}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": True}, "`step` is True, but must be a whole number of at least"),
        ({"epoch": 10**400}, "`epoch` is 1000.*, but must be a whole number"),
        ({"loss": "0.1"}, "`loss` is '0.1', but must be a number, or nothing"),
        ({"loss": 10**400}, "`loss` is 1000"),
        ({"event": 1}, "`event` is 1, but must be a string, or nothing"),
    ],
)
def test_a_line_of_the_log(change, message, folder):
    with (folder / "events.jsonl").open("a") as file:
        file.write(json.dumps({"event": "step"} | change) + "\n")
    one_sentence(lambda: layout.events(folder), f"`.*events.jsonl`: {message}")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x,fruit,class,given,sum,accuracy,0.5", "`step` is 'x', but must be a whole number"),
        ("1,fruit,class,given,sum,accuracy", "`value` is '', but must be a number"),
    ],
)
def test_a_row_of_scores(row, message, folder):
    with (folder / "scores.csv").open("a") as file:
        file.write(row + "\n")
    one_sentence(lambda: layout.scores(folder), f"`.*scores.csv`: {message}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": -1}, "`step` is -1, but must be a whole number of at least 0"),
        ({"seconds": "1"}, "`seconds` is '1', but must be a number"),
        ({"belongs_to": {}}, "has no `belongs_to.tasks`"),
        ({"belongs_to": {"tasks": {}}}, "`belongs_to.tasks` is {}, but must be a mapping"),
        (
            {"belongs_to": {"tasks": {"fruit": {"train": 1}}}},
            "`belongs_to.tasks.fruit.train` is 1, but must be a string",
        ),
    ],
)
def test_the_state_inside_a_task(change, message):
    about = {"step": 1, "seconds": 0.5, "belongs_to": {"tasks": {"fruit": {"train": HASH}}}}
    path = Path("unfinished.safetensors")
    layout.check(path, schema.Unfinished, about)

    def read():
        with layout.reading(path):
            layout.check(path, schema.Unfinished, about | change)

    one_sentence(read, f"`unfinished.safetensors`.*{message}")


def test_what_is_not_described_is_kept(folder):
    in_json(folder, "environment.json", {"more": [1]})
    in_json(folder / TASK, "task.json", {"more": [1]})
    in_json(folder, "combined.json", {"more": [1]})
    with (folder / "events.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 1, "event": "step", "more": [1]}\n')
    assert layout.environment(folder)["more"] == layout.task(folder / TASK)["more"] == [1]
    assert layout.combined(folder)["more"] == [1]
    assert (
        layout.line(layout.events(folder)[-1])
        == '{"step": 3, "loss": 1, "event": "step", "more": [1]}\n'
    )


def test_a_rule_as_older_versions_wrote_it(folder):
    values = {"name": "task_arithmetic", "candidates": {"0.5": 0.25, "1": 1}}
    (folder / "combined.json").write_text(json.dumps(values))
    assert layout.combined(folder) == {
        "name": "task_arithmetic",
        "label": "task_arithmetic",
        "options": {},
        "space": "delta",
        "since": "pretrained",
        "candidates": [{"scale": 0.5, "score": 0.25}, {"scale": 1.0, "score": 1.0}],
    }


def test_a_million_faults_are_one(folder):
    """The first of them ends the check, before memory is full of the others."""
    counts = dict.fromkeys(map(str, range(900_000)), "x")
    content = {"answers": {"given": {"fruit": {"apple": counts}}}}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with (
        pytest.raises(RunError, match="`answers.given.fruit.apple.0` is 'x'"),
        layout.reading(folder),
    ):
        layout.check(folder, schema.Answers, content)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


def one_sentence(read, message):
    with pytest.raises(RunError, match=message) as caught:
        read()
    text = str(caught.value)
    assert "\n" not in text and "pydantic" not in text and len(text) < 600
    assert text.endswith("It is damaged or was changed.")
