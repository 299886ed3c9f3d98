"""What mkdocs does for the site besides rendering `docs/`: pages from the code, notebooks,
files of the repository.
"""

import base64
import json
import posixpath
import re
from pathlib import Path
from typing import Any

import reference

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/perdure/perdure/blob/main/"
# Files outside of `docs/` that are pages too, by their place in the site.
COPIED = {
    "results.md": "recipes/README.md",
    "bench.md": "bench/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
PAGE_OF = {source: page for page, source in COPIED.items()}
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)(?=(?:#[^)\s]*)?\))")

ELSEWHERE = re.compile(
    r"<(?:script|img|iframe|source|video|link)\b[^>]*(?:src|href)=[\"']?(?:https?:)?//[^>]*>"
)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that no file of `docs/` holds."""
    from mkdocs.structure.files import File

    made = reference.pages()
    made |= {page: (ROOT / source).read_text(encoding="utf-8") for page, source in COPIED.items()}
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        made[f"notebooks/{path.stem}.md"] = notebook(path)
    for place, content in made.items():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links between files of the repository become links between pages, or to the repository."""
    own = page.file.src_uri
    return LINK.sub(lambda link: target(link[1], own), markdown)


def on_post_page(output: str, page: Any, config: Any) -> None:
    """No page may need another host: it is to be read offline,
    and nobody is to be told who reads it.
    """
    from mkdocs.exceptions import PluginError

    if found := ELSEWHERE.search(output):
        raise PluginError(f"`{page.file.src_uri}` loads `{found[0]}`: put the file into `docs/`.")


def target(link: str, page: str) -> str:
    """Where a link leads that stands in a page of the site."""
    source = COPIED.get(page, f"docs/{page}")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    if path.startswith("docs/"):
        inside = re.sub(r"\.ipynb$", ".md", path.removeprefix("docs/"))
    elif path in PAGE_OF:
        inside = PAGE_OF[path]
    else:
        return REPOSITORY + path if (ROOT / path).exists() else link
    return posixpath.relpath(inside, posixpath.dirname(page) or ".")


def notebook(path: Path) -> str:
    """A notebook with its outputs as Markdown."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
        parts += [output(each) for each in cell.get("outputs", [])]
    source = f"{REPOSITORY}docs/notebooks/{path.name}"
    parts.append(
        f"*This page is the notebook [{path.name}]({source}), "
        f"with what it printed when it was run.*"
    )
    return "\n\n".join(filter(None, parts))


def output(found: dict[str, Any]) -> str:
    """What a cell printed, or a picture that it drew."""
    data = found.get("data", {})
    if svg := data.get("image/svg+xml"):
        return picture("svg+xml", base64.b64encode("".join(svg).encode()).decode())
    if png := data.get("image/png"):
        return picture("png", "".join(png).replace("\n", ""))
    text = "".join(found.get("text", data.get("text/plain", ""))).rstrip()
    return f"```text\n{text}\n```" if text else ""


def picture(kind: str, content: str) -> str:
    return f'<img alt="what the cell above drew" src="data:image/{kind};base64,{content}">'
