"""Every command on a pico language model, from a recipe in an empty folder, as a user would."""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

import pico_language
import pytest

from perdure.cli import app

RECIPE = """
stream:
  - {data: mood.csv}
  - {data: hello.jsonl, score: token_f1}
backbone: {model: ./llama, max_new_tokens: 16, max_length: 64}
method: {name: isolated, rank: 2}
training: {epochs: 1, batch_size: 4}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory, perdure_in) -> Path:
    """A folder with a run of a closed task and one that is answered with free text."""
    folder = tmp_path_factory.mktemp("user")
    pico_language.save(folder / "llama", "llama")
    rows = [f"{('awful', 'great')[i % 2]} {i},{('bad', 'good')[i % 2]}" for i in range(20)]
    (folder / "mood.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    names = ["Ann", "Bob", "Cyd", "Dan", "Eve", "Fay"]
    lines = [json.dumps({"instruction": f"Greet {n}", "output": [f"Hi {n}", n]}) for n in names]
    (folder / "hello.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "recipe.yaml").write_text(RECIPE)
    assert perdure_in(folder, "run", "recipe.yaml", "--output", "run", "--quiet")[0] == 0
    return folder


@pytest.fixture(scope="module")
def perdure_in():
    """A function that gives a command in a folder, in this process."""

    def command(folder: Path, *arguments: object) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        before, argv = Path.cwd(), sys.argv
        os.chdir(folder)
        sys.argv = ["perdure", *map(str, arguments)]
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                app.main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        finally:
            os.chdir(before)
            sys.argv = argv
        return status, out.getvalue(), err.getvalue()

    return command


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("verify", "run"), "Everything is as it was written."),
        (("show", "run"), "on ./llama"),
        (("evaluate", "run", "--last", "--rule", "routed", "--quiet"), "routed"),
        (("diagnose", "run", "--quiet"), "Left out: probe. A probe tells classes apart"),
        (("report", "run"), "run/report.html"),
        (("merge", "run", "--rule", "average", "--quiet"), "average"),
        (("export", "run", "--output", "model", "--quiet"), "model"),
        (("export", "run", "--output", "lora", "--as", "adapter", "--pad-rank"), "lora"),
        (("predict", "run", "mood.csv", "--quiet"), "20 rows: mood.predicted.csv"),
        (("predict", "run", "--prompt", "great 3"), "log-probability per token"),
        (("forget", "run", "mood"), "`mood` is forgotten"),
        (("learn", "run", "--data", "mood.csv", "--quiet"), "2 tasks of own data (hello, mood)"),
        (("verify", "run"), "Everything is as it was written."),
    ],
)
def test_commands(arguments, said, place, perdure_in):
    status, out, err = perdure_in(place, *arguments)
    assert (status, err) == (0, "")
    assert said in " ".join(out.split())


def test_a_loss_that_is_no_number_is_a_sentence_and_loses_nothing(place, perdure_in):
    options = ("--set", "training.learning_rate=1e30", "--quiet")
    status, _, err = perdure_in(place, "run", "recipe.yaml", "--output", "nan", *options)
    assert status == 1 and err.startswith("Error: ") and err.count("\n") == 1
    assert "Training of task `mood` gave nan at step 2. Lower `learning_rate`" in err
    assert perdure_in(place, "verify", "nan")[0] == 0
