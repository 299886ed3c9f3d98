"""The command line as a user meets it: own data, from an empty folder to predictions;
mistakes are one sentence.
"""

import csv
import importlib.metadata
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from tables import ROWS, write

from perdure import Recipe, Run
from perdure.cli import app, demo


def test_the_report_is_made_late_when_the_command_before_ended_without(
    pico, tmp_path, monkeypatch, perdure
):
    monkeypatch.chdir(tmp_path)
    learn = (
        "learn",
        "mine",
        "--data",
        write(tmp_path / "a.csv", ROWS),
        "--set",
        "training.epochs=1",
        "--quiet",
    )
    assert perdure(*learn, "--backbone", pico("bert"))[0] == 0
    report = Path("mine/report.html")
    written = report.stat().st_mtime_ns
    assert "already" in perdure(*learn)[2] and report.stat().st_mtime_ns == written
    os.utime(report, (0, 0))
    status, out, err = perdure(*learn)
    assert status == 1 and "already" in err and "Report: mine/report.html" in out
    assert report.stat().st_mtime_ns >= written
    report.unlink()
    assert perdure("merge", "mine", "--rule", "sum", "--output", "mine")[0] == 1 and report.exists()


def two_tasks(folder):
    rows = [(t, c, "mail") for t, c in ROWS] + [
        (t.replace("w", "w2"), "up" if c == "yes" else "down", "chart") for t, c in ROWS
    ]
    return write(folder / "both.csv", rows, ("body", "answer", "topic"))


def test_own_data_from_the_command_line(pico, tmp_path, monkeypatch, perdure):
    monkeypatch.chdir(tmp_path)
    table = two_tasks(tmp_path)
    columns = ("--text", "body", "--label", "answer")
    settings = ("--backbone", pico("bert"), "--set", "training.epochs=1", "--quiet")
    status, out, err = perdure(
        "learn", "mine", "--data", table, *columns, "--task-column", "topic", *settings
    )
    assert (status, err) == (0, "") and "mail" in out and "posterior" in out
    assert max(len(line) for line in out.splitlines() if "Report" not in line) <= 80
    assert Run("mine").tasks == ["mail", "chart"]
    more = write(tmp_path / "more.csv", [(t, "a" if c == "yes" else "b") for t, c in ROWS])
    assert perdure("learn", "mine", "--data", more, "--task", "third", "--quiet")[0] == 0
    assert Run("mine").tasks == ["mail", "chart", "third"]

    assert perdure("predict", "mine", table)[0] == 0
    with open("both.predicted.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 80 and list(rows[0]) == [
        "body",
        "answer",
        "topic",
        "label",
        "probability",
        "task",
    ]
    assert {row["task"] for row in rows} <= {"mail", "chart", "third"}
    assert "already exists" in perdure("predict", "mine", table)[2]
    assert perdure("predict", "mine", table, "--task", "mail", "-o", "mail.csv")[0] == 0

    assert perdure("evaluate", "mine", "--rule", "oracle", "--last")[0] == 0
    status, out, err = perdure(
        "merge", "mine", "--rule", "ties", "--set", "scale=search", "--output", "by-ties"
    )
    assert (status, err) == (0, "") and "ties(scale=search)" in " ".join(out.split())
    assert transformers.AutoConfig.from_pretrained("by-ties").num_labels == 6
    status, _, err = perdure("merge", "mine", "--rule", "smile", "--output", "by-smile")
    assert status == 1 and "`smile` is routed" in err and not Path("by-smile").exists()
    before = Run("mine").scores()
    for option in ("--dry-run", "--as=adapter", "--rank=4", "--any-base"):
        status, _, err = perdure("merge", "mine", "--rule", "sum", option)
        assert status == 1 and f"`{option.split('=')[0]}` is for adapters" in err
    assert Run("mine").scores() == before
    adapters = [str(folder / "adapter") for folder in Run("mine").task_folders().values()]
    assert (
        perdure(
            "merge",
            pico("bert"),
            *adapters,
            "--saved-modules",
            "none",
            "--output",
            "merged",
            "--quiet",
        )[0]
        == 0
    )
    transformers.AutoModel.from_pretrained("merged")
    assert {row["rule"] for row in Run("mine").scores()} == {
        "task_arithmetic",
        "oracle",
        "ties(scale=search)",
    }
    status, out, _ = perdure("evaluate", "mine", "--set", "scale=0.5", "--json")
    assert status == 0 and json.loads(out)
    assert "task_arithmetic(scale=0.5)" in {row["rule"] for row in Run("mine").scores()}
    transformers.logging.enable_progress_bar()
    assert perdure("export", "mine", "--output", "checkpoint", "--quiet") == (0, "checkpoint\n", "")
    transformers.logging.disable_progress_bar()
    assert (tmp_path / "checkpoint" / "config.json").is_file()
    assert perdure("report", "mine")[0] == 0
    assert "<html" in (tmp_path / "mine" / "report.html").read_text()
    assert "third" in perdure("show", "mine")[1]


def test_a_failed_attempt_leaves_nothing_in_the_way(pico, tmp_path, monkeypatch, perdure):
    monkeypatch.chdir(tmp_path)
    table = two_tasks(tmp_path)
    columns, task = ("--text", "body", "--label", "answer"), ("--task-column", "topic", "--quiet")
    hot = ("--set", "training.learning_rate=1e37", "--set", "training.epochs=4")
    calm = (
        "--set",
        "training.learning_rate=1e-3",
        "--set",
        "training.max_grad_norm=1",
        "--set",
        "training.epochs=1",
    )
    begin = ("learn", "mine", "--data", table, *columns, "--backbone", pico("bert"))
    assert perdure(*begin, "--task", "first", *hot)[0] == 1
    assert (
        perdure(*begin, "--task", "other", "--quiet", *calm)[0] == 0
    )  # the name of the first attempt is gone
    assert perdure("learn", "mine", "--data", table, *columns, *task, *hot)[0] == 1
    assert [entry.get("name") for entry in Run("mine").recipe["stream"]] == ["other"]
    assert perdure("learn", "mine", "--data", table, *columns, *task)[0] == 0
    assert Run("mine").tasks == ["other", "mail", "chart"]
    status, _, err = perdure("learn", "mine", "--data", table, "--backbone", "minilm")
    assert status == 1 and "it cannot continue with `minilm`" in err


def test_a_recipe_in_five_lines(pico, tmp_path, monkeypatch, perdure):
    monkeypatch.chdir(tmp_path)
    table = two_tasks(tmp_path)
    entry = f"{{data: {table}, text: body, label: answer, task: topic}}"
    (tmp_path / "mine.yaml").write_text(
        f"backbone: {pico('bert')}\nstream:\n- {entry}\ntraining:\n  epochs: 1\n"
    )
    status, out, _ = perdure(
        "run", "mine.yaml", "--quiet", "--seed", "4", "--set", "method.start=previous"
    )
    assert status == 0 and Run("runs/mine").recipe["seed"] == 4
    assert Run("runs/mine").recipe["method"]["start"] == "previous"
    status, _, err = perdure("run", "mine.yaml", "--quiet")
    assert status == 1 and "`seed`: 4 before, 0 now" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nothing.yaml"), "There is no file `nothing.yaml`."),
        (("report", "nowhere"), "`nowhere`"),
        (("predict", "nowhere", "x.csv"), "There is no file `x.csv`"),
        (("show", "isolatd"), "Did you mean `isolated`?"),
        (("show", "."), "`.` is not a run"),
        (("show", "runs/nothing"), "`runs/nothing` is not a run"),
        (("learn", "new", "--data", "x.csv", "--backbone", "/nothing"), "There is no file `x.csv`"),
    ],
)
def test_mistakes_are_one_sentence(arguments, message, perdure, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = perdure(*arguments)
    assert (
        status == 1
        and err.startswith("Error: ")
        and message in err
        and err.count("\n") == 1
        and "Traceback" not in err
    )


def test_usage_errors_have_status_2(perdure):
    assert perdure("run")[0] == 2
    assert perdure("nothing")[0] == 2


def test_loss_that_is_no_number(pico, tmp_path, monkeypatch, perdure):
    monkeypatch.chdir(tmp_path)
    settings = (
        "--set",
        "training.learning_rate=1e30",
        "--set",
        "training.max_grad_norm=1e30",
        "--quiet",
    )
    status, _, err = perdure(
        "learn",
        "mine",
        "--data",
        two_tasks(tmp_path),
        "--text",
        "body",
        "--label",
        "answer",
        "--backbone",
        pico("bert"),
        *settings,
    )
    assert status == 1 and "Lower `learning_rate`" in err


@pytest.mark.parametrize(
    ("options", "kind", "folder"),
    [
        ((), "texts", "demo"),
        (("--vision",), "images", "demo-vision"),
        (("--language",), "language", "demo-language"),
    ],
)
def test_demo(options, kind, folder, perdure, monkeypatch):
    calls = []
    monkeypatch.setattr(demo, "download", calls.append)
    monkeypatch.setattr(
        demo,
        "demo",
        lambda output, kind, **given: calls.append((output, kind, given)) or {"runs": []},
    )
    assert perdure("demo", *options, "--download")[0] == 0
    status, out, _ = perdure("demo", *options, "--quiet", "--seed", "3")
    assert status == 0 and f"runs/{folder}/report.html" in out
    assert perdure("demo", *options, "-o", "mine")[1].endswith("Report: mine/report.html\n")
    assert calls == [
        kind,
        (Path("runs") / folder, kind, {"seed": 3, "quiet": True}),
        (Path("mine"), kind, {"seed": 0, "quiet": False}),
    ]


def test_one_demo_at_a_time(perdure):
    status, _, err = perdure("demo", "--vision", "--language")
    assert status and "are two demos. Choose one." in err


def test_list_and_show(perdure):
    status, out, _ = perdure("list")
    assert status == 0 and all(name in out for name in ("isolated", "task_arithmetic", "demo"))
    assert set(json.loads(perdure("list", "--json")[1])) == {"method", "rule", "benchmark", "score"}
    out = perdure("show", "isolated")[1]
    assert "arXiv 2502.10966" in out and "'fresh'" in out
    assert json.loads(perdure("show", "task_arithmetic", "--json")[1])["settings"] == {
        "scale": "'1/n'"
    }


@pytest.mark.parametrize(
    "command",
    [
        "",
        "demo",
        "run",
        "learn",
        "forget",
        "verify",
        "evaluate",
        "predict",
        "diagnose",
        "export",
        "merge",
        "report",
        "list",
        "show",
    ],
)
def test_help_fits_80_columns(command, perdure):
    status, out, _ = perdure(*([command] if command else []), "--help")
    assert status == 0 and max(map(len, out.splitlines())) <= 80


def test_a_warning_of_ours_is_one_sentence(tmp_path):
    """In a process of its own: pytest takes warnings for itself."""
    script = "import warnings, perdure, perdure.cli.app as cli; "
    script += "cli.app = lambda given: [warnings.warn(w) for w in ours]"
    ours = "ours = [perdure.PerdureWarning('Too little room.'), UserWarning('Other.')]"
    command = [sys.executable, "-c", f"{script}\n{ours}\ncli.main()"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    assert lines[0] == "Warning: Too little room." and lines[1].endswith("UserWarning: Other.")


def test_version(perdure):
    status, out, _ = perdure("--version")
    assert status == 0 and out == f"perdure {importlib.metadata.version('perdure')}\n"


@pytest.mark.parametrize(
    "arguments", [("--debug", "run", "no.yaml"), ("run", "no.yaml", "--debug")]
)
def test_debug_shows_the_traceback_before_the_sentence(arguments, perdure):
    status, _, err = perdure(*arguments)
    assert status == 1 and "Traceback" in err and "InputError" in err
    assert err.endswith("\nError: There is no file `no.yaml`.\n")


def test_debug_can_be_set_for_all_commands(perdure, monkeypatch):
    monkeypatch.setenv("PERDURE_DEBUG", "1")
    assert "Traceback" in perdure("run", "no.yaml")[2]


def in_encoding(monkeypatch, encoding: str) -> io.BytesIO:
    """Make standard output write in an encoding, as an old locale has it;
    return what is written.
    """
    written = io.BytesIO()
    monkeypatch.setattr(
        sys, "stdout", io.TextIOWrapper(written, encoding=encoding, write_through=True)
    )
    return written


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_output_in_any_encoding(encoding, monkeypatch):
    written = in_encoding(monkeypatch, encoding)
    monkeypatch.setattr(app, "app", lambda arguments: print("λ ≤ ½, \udcff"))
    app.main()
    text = written.getvalue().decode(encoding)
    assert text.startswith("λ" if encoding == "utf-8" else "?") and text.endswith(", ?\n")


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", "-4.2 +- 0.1 - x 2..."),
        ("latin-1", "-4.2 ± 0.1 - × 2..."),
        ("utf-8", "−4.2 ± 0.1 – × 2…"),
    ],
)
def test_a_number_keeps_its_sign_in_any_encoding(encoding, shown, monkeypatch):
    written = in_encoding(monkeypatch, encoding)
    monkeypatch.setattr(app, "app", lambda arguments: print("−4.2 ± 0.1 – × 2…"))
    app.main()
    assert written.getvalue().decode(encoding) == f"{shown}\n"


def test_closed_output_is_no_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(app, "app", lambda arguments: print("nobody listens", file=sys.stdout))
    app.main()
    sys.stdout.close()


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            OSError(28, "No space left on device", "a.csv"),
            "Error: No space left on device: `a.csv`.\n",
        ),
        (OSError(28, "No space left on device"), "Error: No space left on device.\n"),
        (OSError("of a library"), "Error: of a library.\n"),
    ],
)
def test_an_error_of_the_system_names_its_file_or_none(error, sentence, perdure, monkeypatch):
    def fail(arguments):
        raise error

    monkeypatch.setattr(app, "app", fail)
    assert perdure()[2] == sentence


def completed(line: str, monkeypatch, perdure) -> list[str]:
    """What bash offers at the end of a line."""
    monkeypatch.setenv("_PERDURE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    return perdure()[1].split()


def test_the_shell_completes_names(monkeypatch, perdure):
    assert completed("perdure diag", monkeypatch, perdure) == ["diagnose"]
    assert completed("perdure merge base --rule tie", monkeypatch, perdure) == ["ties"]
    assert completed("perdure evaluate run --rule oracl", monkeypatch, perdure) == ["oracle"]
    assert completed("perdure show inflor", monkeypatch, perdure) == ["inflora"]


def test_files_of_test_and_validation_examples(pico, tmp_path, monkeypatch, perdure):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "train.csv", ROWS)
    write(tmp_path / "check.csv", ROWS[:6])
    write(tmp_path / "held.csv", [(f"{text} w9", label) for text, label in ROWS[:10]])
    splits = ("--data", "train.csv", "--validation", "check.csv", "--test", "held.csv")
    settings = ("--backbone", pico("bert"), "--set", "method=ncm", "--quiet")
    assert perdure("learn", "mine", *splits, *settings)[0] == 0
    (task,) = Recipe.parse(Run("mine").recipe).make_stream().tasks
    assert task.name == "train"
    assert (len(task.train), len(task.validation), len(task.test)) == (len(ROWS), 6, 10)
    assert task.test["text"][0].endswith("w9")
    status, _, err = perdure(
        "learn", "mine", "--data", "train.csv", "--test", "nothing.csv", "--task", "b"
    )
    assert status == 1 and err == "Error: There is no file `nothing.csv`.\n"
