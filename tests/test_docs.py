"""What the documentation shows is true: its code runs and prints what it says,
its commands and recipes are valid.
"""

import contextlib
import io
import json
import re
import shlex
import shutil
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pico_language
import pytest
import reference
import typer
import yaml
from tables import ROWS, write

import perdure
from perdure import Recipe, names
from perdure.bundled.dinov2 import dinov2
from perdure.bundled.minilm import minilm
from perdure.bundled.smollm2 import smollm2
from perdure.cli import app
from perdure.evaluation import metrics
from perdure.sweeps import sweep_file
from perdure.sweeps.trials import trials

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
# How many blocks of Python and of commands are run, by page.
# The README's Python is run by test_readme.
RUN = {
    "README.md": (2, 5),
    "CONTRIBUTING.md": (0, 1),
    "combine.md": (5, 3),
    "compared.md": (1, 0),
    "data.md": (11, 7),
    "in-python.md": (6, 0),
    "language-models.md": (1, 1),
    "lesson.md": (6, 0),
    "metrics.md": (7, 0),
    "scale.md": (1, 1),
    "write-a-method.md": (3, 2),
    "write-a-rule.md": (2, 2),
}
README_TABLES = {
    "support": ("message", "queue"),
    "reviews": ("body", "stars"),
    "march": ("message", "queue"),
    "refunds": ("message", "queue"),
    "new": ("message", "any"),
}
LANGUAGES = {"python", "shell", "yaml", "output", "text", "toml"}
FENCE = re.compile(
    r"^```(\S*)(?: title=\"(.+?)\")?\n(.*?)^```$|(?<=\n\n)((?:    [^\n]*\n|\n(?=    ))+)",
    re.M | re.S,
)
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*\Z")
PROGRAMS = {"accelerate", "cd", "git", "jupyter", "make", "perdure", "pip", "python", "ray"}
PROGRAMS |= {"torchrun"}


@dataclass
class Block:
    language: str
    title: str | None
    text: str
    fenced: bool
    not_run: str | None


def blocks(page: Path) -> list[Block]:
    """The code of a page, fenced or indented (which is commands, or a formula)."""
    text, found = page.read_text(encoding="utf-8"), []
    for match in FENCE.finditer(text):
        language, title, fenced, indented = match.groups()
        reason = NOT_RUN.search(text[: match.start()])
        if indented:
            fenced = "\n".join(line[4:] for line in indented.splitlines()) + "\n"
            language = "shell" if fenced.split()[0] in PROGRAMS else "text"
        found.append(Block(language, title, fenced, not indented, reason and reason[1]))
    return found


def commands(block: Block) -> list[list[str]]:
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def check(words: list[str]) -> None:
    """What a command names is there: the program's command and its options, a target, an extra,
    a script.
    """
    if words[0] == "perdure":
        group = typer.main.get_command(app.app)
        group.commands[words[1]].make_context(words[1], words[2:])
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), words
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file(), words
    else:
        assert words[0] in PROGRAMS, words


def call(words: list[str]) -> str:
    """Run `perdure …` here; what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", words)
        patch.setenv("COLUMNS", "100")
        try:
            app.main()
        except SystemExit as stop:
            assert not stop.code, (words, out.getvalue()[-500:], err.getvalue())
    return out.getvalue()


def masked(text: str) -> str:
    """What is printed, but for the digits of numbers with a point and the spaces that align
    them.
    """
    return " ".join(re.sub(r"-?\d+\.\d+", "#", text).split())


def play(page: Path) -> None:
    """Do what a page says in the current folder, from top to bottom."""
    space, printed = {"__name__": "__main__"}, ""
    for block in blocks(page):
        if block.not_run:
            continue
        if block.title:
            Path(block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "python" and page.name != "README.md":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(block.text, str(page), "exec"), space)
            printed = out.getvalue()
        elif block.language == "shell":
            printed = "".join(call(words) for words in commands(block) if words[0] == "perdure")
        elif block.language == "output":
            assert masked(printed) == masked(block.text), (page.name, printed)


@pytest.fixture
def small(pico, tmp_path, tmp_path_factory, monkeypatch):
    """Pico models in the place of the packaged ones, and an empty folder."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PERDURE_CACHE", str(cache))
    shutil.copytree(pico("bert"), minilm().kept)
    shutil.copytree(pico("dinov2"), dinov2().kept)
    pico_language.save(smollm2().kept, "llama")
    monkeypatch.setattr(
        "perdure.report.html.to_html", lambda summary: ""
    )  # its figures take most of the time
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_block_escapes(page, tmp_path, monkeypatch):
    """Each is of a known kind, is run or says why not, and is valid;
    how many are run is known here.
    """
    text, found = page.read_text(encoding="utf-8"), blocks(page)
    assert len(re.findall("^```", text, re.M)) == 2 * sum(block.fenced for block in found)
    assert len(re.findall("^<!-- not run: ", text, re.M)) == sum(
        bool(block.not_run) for block in found
    )
    monkeypatch.chdir(tmp_path)
    for block in found:
        assert block.language in LANGUAGES, (page.name, block)
        if block.title:
            Path(block.title).write_text(block.text, encoding="utf-8")
        if block.language == "shell":
            for words in commands(block):
                check(words)
        if block.language == "yaml":
            values = yaml.safe_load(block.text)
            if "recipe" in values:
                assert block.title and trials(sweep_file.read(block.title))
            else:
                Recipe.parse({"stream": "demo", "backbone": "minilm"} | values)
        if block.language == "toml":
            assert tomllib.loads(block.text)
    run = [block.language for block in found if not block.not_run and not block.title]
    assert (run.count("python"), run.count("shell")) == RUN.get(page.name, (0, 0))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*cannot be measured now:perdure.PerdureWarning")
@pytest.mark.filterwarnings("ignore:All 3 tasks have the same classes:perdure.PerdureWarning")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name in RUN], ids=lambda page: page.name
)
def test_what_a_page_says(page, request, tmp_path, monkeypatch):
    if page.read_text(encoding="utf-8").startswith("<!-- needs: text -->"):
        request.getfixturevalue("demo_cache")
        monkeypatch.chdir(tmp_path)
    else:
        request.getfixturevalue("small")
    if page.name in ("README.md", "scale.md"):
        for name, columns in README_TABLES.items():
            write(tmp_path / f"{name}.csv", ROWS, columns)
    play(page)


@pytest.mark.real
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks(path, request, tmp_path, monkeypatch):
    """They run, with fewer examples; they were run from top to bottom before,
    and printed no warning.
    """
    caches = {"text": "demo_cache", "vision": "vision_cache", "language": "language_cache"}
    request.getfixturevalue(caches[path.stem])
    monkeypatch.chdir(tmp_path)
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] == number for number, cell in enumerate(cells, start=1))
    assert {output.get("name", "stdout") for cell in cells for output in cell["outputs"]} == {
        "stdout"
    }
    code = "\n\n".join("".join(cell["source"]) for cell in cells)
    fewer, count = re.subn(
        r"^SIZES = .*$", 'SIZES = {"train": 16, "validation": 8, "test": 8}', code, flags=re.M
    )
    assert count == 1
    monkeypatch.setenv("MPLBACKEND", "agg")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(fewer, str(path), "exec"), {"__name__": "__main__"})
    assert out.getvalue()


def test_the_metrics_page_has_the_formulas():
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for name in (*metrics.summary(np.eye(2), np.zeros(2)), "transfer_to_new"):
        formula = re.match(
            r"\w+ = .*?(?=\.? nan for|[:;]|\.\n|\.$)", getattr(metrics, name).__doc__
        )
        assert formula and f"`{formula[0]}`" in page, (name, formula)


def test_pages_from_the_code_name_everything():
    pages = reference.pages()
    for kind in ("method", "rule", "benchmark"):
        for name in names(kind):
            assert f"## `{name}` {{ #{name} }}" in pages[f"reference/{kind}s.md"]
    for name in perdure.__all__:
        assert f"## `{name}` {{ #{name} }}" in pages["reference/python.md"]
    group = typer.main.get_command(app.app)
    for name, command in group.commands.items():
        section = pages["reference/cli.md"].split(f"## `{name}` {{ #{name} }}")[1].split("\n## ")[0]
        for option in (
            option
            for param in command.params
            if param.param_type_name == "option"
            for option in param.opts
        ):
            assert f"`{option}`" in section, (name, option)
    for page in pages.values():
        assert "| needed | |" not in page and "\n\n\n\n" not in page


def test_the_meaning_of_every_setting_is_said():
    for kind in ("method", "rule", "benchmark"):
        for line in reference.registered(kind).splitlines():
            cells = [cell.strip() for cell in line.split(" | ")]
            assert not (len(cells) == 3 and cells[2] in ("", "|")), (kind, line)


def test_links_between_files_lead_somewhere():
    for page in (*PAGES, ROOT / "recipes" / "README.md", ROOT / "bench" / "README.md"):
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
            made = target in (
                f"reference/{name}.md"
                for name in ("methods", "rules", "benchmarks", "cli", "python")
            )
            assert made or (page.parent / target).exists(), (page.name, target)
