"""Names that a stranger chose change nothing of a report but its text: not its HTML,
its Markdown or its LaTeX.
"""

import html.parser
import json
import shutil
from pathlib import Path

import pytest
import yaml

from perdure.report.html import to_html
from perdure.report.latex import to_latex
from perdure.report.markdown import to_markdown
from perdure.report.summary import summarise

HERE = Path(__file__).parents[1]
HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "</svg></style><svg onload=alert(1)>",
    "\"' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "[a](javascript:alert(1)) ![b](http://x/y.png) | `c` **d**",
    "&lt;b&gt; &#60;b&#62;",
    "\\input{/etc/passwd} % $x$ \\write18{ls}",
    "\n# heading\n| a | b |\n",
    "\x1b]8;;http://x\x07\u202e",
]


class Shape(html.parser.HTMLParser):
    """The tags of a page with their attributes, but for the values of those that hold text."""

    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(sorted(name for name, _ in attrs))))


def shape(page):
    parser = Shape()
    parser.feed(page)
    return parser.tags


def named(folder, name):
    """A run in which everything that is free text has a name."""
    shutil.copytree(HERE / "formats" / "1" / "isolated", folder)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe |= {"name": name, "about": name}
    recipe["backbone"]["model"] = name
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    combined = json.loads((folder / "combined.json").read_text())
    (folder / "combined.json").write_text(json.dumps(combined | {"label": name.replace("\n", " ")}))
    rows = (folder / "scores.csv").read_text().splitlines()
    rule = rows[0].split(",").index("rule")
    quoted = '"' + name.replace('"', '""').replace("\n", " ") + '"'
    for i in range(1, len(rows)):
        cells = rows[i].split(",")
        cells[rule] = quoted
        rows[i] = ",".join(cells)
    (folder / "scores.csv").write_text("\n".join(rows) + "\n", errors="replace")
    for path in folder.glob("tasks/*/task.json"):
        task = json.loads(path.read_text())
        task["classes"] = [f"{name} {i}" for i in range(len(task["classes"]))]
        path.write_text(json.dumps(task))
    return summarise([folder])


@pytest.fixture(scope="module")
def harmless(tmp_path_factory):
    return named(tmp_path_factory.mktemp("harmless") / "r", "a name")


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text(name, harmless, tmp_path):
    summary = named(tmp_path / "r", name)
    markdown, plain = to_markdown(summary), to_markdown(harmless)
    assert markdown.count("\n") == plain.count("\n")
    assert markdown.count("<") == plain.count("<") and "](" not in markdown.replace("\\](", "")
    pipes = [line.replace("\\|", "").count("|") for line in markdown.splitlines()]
    assert pipes == [line.count("|") for line in plain.splitlines()]
    assert (
        name != "&lt;b&gt; &#60;b&#62;" or "&amp;lt;b&amp;gt; &amp;#60;b" in markdown
    )  # and no entity is read
    latex = to_latex(summary)
    assert latex.count("\n") == to_latex(harmless).count("\n")
    assert "\\input" not in latex and "\\write" not in latex
    assert not set("\x1b\x07\u202e") & set(markdown + latex)


def test_the_page_has_no_other_tags(harmless, tmp_path):
    page = to_html(named(tmp_path / "r", " ".join(HOSTILE[:7]) + "\x1b]8;;http://x\x07\u202e"))
    assert shape(page) == shape(to_html(harmless))
    assert not set("\x1b\x07\u202e") & set(page)
