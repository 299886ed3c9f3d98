"""A new method is one new file: it is found by its name, listed, and tested like the others."""

import os
import subprocess
import sys
from importlib.metadata import EntryPoint

import forked
import pytest

from perdure import (
    InputError,
    Method,
    PerdureWarning,
    UnknownName,
    find,
    methods,
    names,
    registry,
)

TOY = '''
"""A toy."""
from dataclasses import dataclass
from perdure.learning.method import PeftMethod

@dataclass(kw_only=True)
class Toy(PeftMethod):
    """Do nothing new."""
    strength: float = 0.5
'''


@pytest.fixture
def toy_method(tmp_path, monkeypatch):
    (tmp_path / "toy_method.py").write_text(TOY)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    yield tmp_path / "toy_method.py"
    sys.modules.pop("perdure.methods.toy_method", None)


def test_one_file_is_enough(toy_method, capsys, monkeypatch):
    from perdure.cli import app

    assert "toy_method" in names("method")
    found = find("method", "toy_method")
    assert issubclass(found, Method) and registry.options(found)["strength"].default == 0.5
    monkeypatch.setattr(sys, "argv", ["perdure", "list"])
    with pytest.raises(SystemExit):
        app.main()
    assert "Do nothing new." in capsys.readouterr().out


def test_the_conformance_tests_find_it_too(toy_method, tmp_path, request):
    """In a process of its own: pytest collects the conformance tests for a file that was put beside
    the others.
    """
    code = "import sys, pytest\nfrom perdure import methods\nmethods.__path__.append(sys.argv[1])\n"
    code += "sys.exit(pytest.main(['-o', 'addopts=', '-q', '-k', 'toy_method', *sys.argv[2:]]))"
    conformance = request.path.parent / "methods" / "test_methods.py"
    result = forked.python(
        code, tmp_path, conformance, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"
    )  # they are imported
    assert result.returncode == 0 and "19 passed" in result.stdout, result.stdout


def test_a_path_to_a_file(toy_method):
    assert find("method", str(toy_method)).__name__ == "Toy"
    with pytest.raises(InputError, match="There is no file"):
        find("method", "./nothing.py")
    toy_method.write_text("from __future__ import annotations\n" + TOY.replace('"""A toy."""', ""))
    assert find("method", str(toy_method))().strength == 0.5
    assert registry.about(str(toy_method))["kind"] == "method"
    toy_method.write_text("def toy_method(")
    with pytest.raises(InputError, match="is not Python"):
        find("method", str(toy_method))
    toy_method.write_text("x = 1")
    with pytest.raises(
        InputError, match="must define one class derived from `perdure.Method`; it defines 0"
    ):
        find("method", str(toy_method))


def test_wrong_names():
    with pytest.raises(UnknownName, match="No method named `Isolated`. Did you mean `isolated`?"):
        find("method", "Isolated")
    with pytest.raises(UnknownName, match="No rule named `zzz`. Available: "):
        find("rule", "zzz")


@pytest.mark.parametrize("kind", registry.SHOWN)
def test_everything_says_what_it_is(kind):
    for name in names(kind):
        thing = find(kind, name)
        assert (
            registry.summary(thing).endswith((".", ")", ":")) and len(registry.summary(thing)) > 20
        )
        assert kind in ("rule", "score") or "References" in thing.__doc__
        documentation = thing.__doc__
        if kind == "method":  # base classes explain the settings that several methods have
            documentation = "".join(base.__doc__ or "" for base in thing.__mro__)
        for option in registry.options(thing):
            assert option in documentation, f"{name}: `{option}` is not explained"


def test_a_package_that_replaces_one_of_ours(monkeypatch):
    """It may, but not without a word, which is said once."""
    point = EntryPoint("lda", "perdure.methods.ncm:NCM", "perdure.methods")
    monkeypatch.setattr(registry, "_of_others", lambda kind: (point,) if kind == "method" else ())
    registry._warn_of_replacement.cache_clear()
    with pytest.warns(PerdureWarning, match="The method `lda` .* replaces perdure's own"):
        assert registry.find("method", "lda").__name__ == "NCM"
    assert registry.find("method", "lda").__name__ == "NCM"
    new = EntryPoint("mine", "perdure.methods.ncm:NCM", "perdure.methods")
    monkeypatch.setattr(registry, "_of_others", lambda kind: (new,) if kind == "method" else ())
    assert registry.find("method", "mine").__name__ == "NCM"


@pytest.mark.parametrize("kind", registry.SHOWN)
def test_summaries_are_read_without_importing(kind):
    """They are those of the things themselves."""
    expected = {name: registry.summary(find(kind, name)) for name in names(kind)}
    assert registry.summaries(kind) == expected


@pytest.mark.parametrize("kind", registry.SHOWN)
def test_declarations_are_read_without_importing(kind):
    """They are those of the things themselves, in the same order."""
    for name in names(kind):
        read = registry._declaration(kind, name)
        assert read is not None, f"{name} can be described only by importing it"
        _, imported = registry._imported([kind], name)
        assert read == imported
        assert list(read.settings) == list(imported.settings)


def test_a_default_that_is_no_literal_is_imported(toy_method):
    toy_method.write_text(TOY.replace("0.5", "float('1')"))
    assert registry._declaration("method", "toy_method") is None
    assert registry.about("toy_method")["settings"]["strength"] == "1.0"


HEAVY = {"torch", "numpy", "transformers", "matplotlib", "datasets"}
QUICK = (
    (["list"], "inflora"),
    (["list", "--json"], '"inflora"'),
    (["show", "isolated"], "start"),
    (["show", "opcm"], "Sequential. Stored for the next task: one task vector"),
    (["--version"], "perdure "),
    (["report", "--help"], "markdown"),
)


@pytest.mark.parametrize("arguments, output", QUICK)
def test_quick_commands_import_no_torch(arguments, output):
    call = f"app({arguments}, standalone_mode=False)"
    assert output in _quick(call)


@pytest.mark.parametrize(
    "words, completed",
    [
        ("show isol", "isolated"),
        ("merge a b --rule task_", "task_arithmetic"),
        ("diagnose run --only zo", "zones"),
        ("exp", "export"),
    ],
)
def test_shell_completion_imports_no_torch(words, completed):
    position = len(words.split())
    printed = _quick(
        "app(prog_name='perdure')",
        _PERDURE_COMPLETE="complete_bash",
        COMP_WORDS=f"perdure {words}",
        COMP_CWORD=str(position),
    )
    assert printed.split() == [completed]


def _quick(call, **environment):
    """Return what a call of the command line prints, in a process of its own, which must not import
    the heavy modules.
    """
    code = (
        "import atexit, sys\n"
        "from perdure.cli.app import app\n"
        f"atexit.register(lambda: print(*{HEAVY} & set(sys.modules), file=sys.stderr))\n"
        f"{call}\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert finished.returncode == 0 and not finished.stderr.strip(), finished.stderr
    return finished.stdout
