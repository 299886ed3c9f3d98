"""Signs of life: lines in a log, a bar on a terminal, and nothing where somebody else speaks."""

import io
import re
import sys

import pytest

from perdure.evaluation import progress_bar
from perdure.evaluation.progress_bar import Progress, duration


class Clock:
    """A clock that the test moves."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(progress_bar.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch)


def terminal(monkeypatch) -> io.StringIO:
    """Make standard output a terminal; return what is written there."""
    written = io.StringIO()
    monkeypatch.setattr(written, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", written)
    monkeypatch.setenv("TERM", "xterm")
    return written


def test_lines_tell_the_time_that_is_left(clock, capsys):
    with Progress("Learning fruit", 10, quiet=False) as shown:
        clock.now += 30
        shown.to(3, "epoch 1 of 3", reached=True)
        clock.now += 70
        shown.to(10, "epoch 3 of 3", reached=True)
    assert capsys.readouterr().out.splitlines() == [
        "Learning fruit: epoch 1 of 3, about 1 min 10 s left",
        "Learning fruit: epoch 3 of 3, took 1 min 40 s",
    ]


def test_what_was_done_before_took_no_time_now(clock, capsys):
    with Progress("Learning fruit", 10, done=8, quiet=False) as shown:
        clock.now += 30
        shown.to(9, reached=True)
    assert capsys.readouterr().out == "Learning fruit: 9 done, about 30 s left\n"


def test_a_long_silence_is_broken(clock, capsys):
    with Progress("Predicting", None, quiet=False) as shown:
        shown.to(64)
        clock.now += progress_bar.SILENCE
        shown.to(1280)
        shown.to(1344)
    assert capsys.readouterr().out == "Predicting: 1,280 done\n"


@pytest.mark.parametrize("bar", [True, False])
def test_quiet(bar, capsys, monkeypatch):
    Progress("Measuring", 2, quiet=True, bar=bar).to(1, reached=True)
    assert capsys.readouterr().out == ""
    written = terminal(monkeypatch)
    with Progress("Measuring", 2, quiet=True, bar=bar) as shown:
        shown.to(1, reached=True)
    assert written.getvalue() == ""


def test_a_terminal_has_a_bar_and_no_lines(monkeypatch):
    written = terminal(monkeypatch)
    with Progress("Learning [red]fruit", 2, quiet=False) as shown:
        shown.to(2, "loss 0.5", reached=True)
    assert "Learning [red]fruit  loss 0.5" in written.getvalue()
    assert "Learning [red]fruit:" not in written.getvalue()


def test_work_whose_parts_have_bars_says_nothing_on_a_terminal(monkeypatch):
    written = terminal(monkeypatch)
    Progress("The run", 2, quiet=False, bar=False).to(1, reached=True)
    assert written.getvalue() == ""


def test_a_title_is_text(capsys):
    Progress("Learning \x1b[2J", 1, quiet=False).to(1, "a\nb", reached=True)
    assert capsys.readouterr().out.startswith("Learning \\x1b[2J: a\\nb")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.2, "0 s"),
        (59.6, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_duration(seconds, said):
    assert duration(seconds) == said


@pytest.mark.parametrize("width", [40, 80])
def test_a_bar_never_cuts_a_number(width, monkeypatch):
    written = terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", str(width))
    with Progress("Measuring after 12 of 12 tasks", 12, quiet=False) as shown:
        shown.to(12, "given 100.0 %, posterior 98.7 %, none 61.5 %")
    out = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", written.getvalue())
    assert {"100.0", "98.7", "61.5", "100%", "0:00:00"} <= set(out.split()) and "…" not in out
