"""Names that a stranger chose reach the terminal as text, whatever is in them."""

import io

import pytest
from rich.console import Console

from perdure import InputError, PerdureError, RunError, UnknownName
from perdure.cli import app, listing, shell
from perdure.cli.outcome import say
from perdure.errors import printable
from perdure.report import terminal
from perdure.report.plain import plain

HOSTILE = {
    "colour": ("\x1b[31mred", r"\x1b[31mred"),
    "link": ("\x1b]8;;http://x\x07text\x1b]8;;\x07", r"\x1b]8;;http://x\x07text\x1b]8;;\x07"),
    "clipboard": ("\x1b]52;c;cm0=\x07", r"\x1b]52;c;cm0=\x07"),
    "one byte escape": ("\x9b2J", r"\x9b2J"),
    "second line": ("a\nError: b\rc", r"a\nError: b\rc"),
    "line separators": ("a\u2028b\u2029c\x85d", r"a\u2028b\u2029c\x85d"),
    "turned around": ("a\u202etxt.exe\u2066", r"a\u202etxt.exe\u2066"),
    "half a pair": ("caf\udce9", r"caf\udce9"),
    "hidden": ("a\u200bb\u00adc\ufeff\U000e0041", r"a\u200bb\xadc\ufeff\U000e0041"),
}
HARMLESS = [
    "naïve",
    "日本語",
    "مقارنة",
    "می\u200cخواهم",
    "🦊 👩\u200d🔬",
    "a b",
    "e\u0301",
    r"back\slash",
]


@pytest.mark.parametrize(("name", "shown"), HOSTILE.values(), ids=list(HOSTILE))
@pytest.mark.parametrize("kind", [PerdureError, InputError, RunError])
def test_errors_are_one_line_of_text(name, shown, kind):
    assert str(kind(f"No file `{name}`.")) == f"No file `{shown}`."
    assert f"`{shown}`" in str(UnknownName("task", name, [name]))


@pytest.mark.parametrize("name", HARMLESS)
def test_letters_of_all_languages_stay(name):
    assert printable(name) == name


@pytest.mark.parametrize(("name", "shown"), HOSTILE.values(), ids=list(HOSTILE))
def test_the_command_line_says_names_as_text(name, shown, monkeypatch, capsys):
    def fail(arguments):
        say(name)
        raise OSError(2, "No such file", f"{name}.yaml")

    monkeypatch.setattr(app, "app", fail)
    with pytest.raises(SystemExit):
        app.main()
    assert capsys.readouterr() == (f"{shown}\n", f"Error: No such file: `{shown}.yaml`.\n")


@pytest.mark.parametrize(("name", "shown"), HOSTILE.values(), ids=list(HOSTILE))
def test_tables_hold_names_as_text(name, shown):
    console = Console(file=io.StringIO(), width=200, color_system=None)
    listing.listing(name, [(name, "b")], console)
    terminal.say(console, f"a {name}")
    lines = console.file.getvalue()
    assert not set(lines) & set("\x1b\x07\x9b\u202e\u2028\udce9")
    assert f"{shown}  b" in lines
    assert shown in plain({name: [name]}) or "\n" in name


def test_warnings_are_one_line_of_text():
    assert (
        shell._sentence("a\x1b[2Jb", UserWarning, "x.py", 3) == "x.py:3: UserWarning: a\\x1b[2Jb\n"
    )
