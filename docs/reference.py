"""Pages of the site that are made from the code: methods, rules, benchmarks, the command line,
the public names.
"""

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from typer.models import ArgumentInfo

import perdure
from perdure import registry
from perdure.cli import app

SECTION = re.compile(r"^([A-Z]\w+)\n-{3,}$", re.M)
TITLES: dict[registry.Kind, tuple[str, str]] = {
    "method": (
        "All methods",
        "A method learns a task after others. [Methods](../methods.md) compares them, "
        "and [how to choose](../choose.md) says where to begin. "
        "In a recipe: `method: {name: ewc, strength: 300}`.",
    ),
    "rule": (
        "All rules",
        "A rule combines what was learned. In a recipe: `rule: {name: ties, density: 0.3}`.",
    ),
    "benchmark": (
        "All benchmarks",
        "Streams of tasks. In a recipe: `stream: {name: demo, train: 100}`. "
        "[Your own data](../data.md) explains how to make a stream of it.",
    ),
    "score": (
        "All scores",
        "A score compares the answers of a task with the right ones. A task names its own: "
        "`score: rouge_l` beside its `data`.",
    ),
}


def pages() -> dict[str, str]:
    """Markdown by the page's place in the site."""
    found = {f"reference/{kind}s.md": registered(kind) for kind in registry.SHOWN}
    return found | {"reference/cli.md": command_line(), "reference/python.md": public_names()}


# -- methods, rules, benchmarks


def registered(kind: registry.Kind) -> str:
    """One page with all methods, rules or benchmarks."""
    things = {name: registry.find(kind, name) for name in registry.names(kind)}
    title, intro = TITLES[kind]
    rows = [
        (f"[`{name}`](#{name})", prose(registry.summary(thing))) for name, thing in things.items()
    ]
    parts = [f"# {title}", intro, table(("name", "what it does"), rows)]
    for name, thing in things.items():
        parts += [
            f"## `{name}` {{ #{name} }}",
            declared(thing),
            *explained(thing, settings(thing)),
            source(thing),
        ]
    return "\n\n".join(filter(None, parts))


def declared(thing: Any) -> str:
    """What a rule or method says of itself besides its docstring."""
    if nature := getattr(thing, "nature", None):
        return f"*{nature.order.capitalize()}; kept for the next task: {nature.state}.*"
    if rule := getattr(thing, "usual_rule", ""):
        wraps = "method" in registry.options(thing)
        tuned = getattr(thing, "tuned", None)
        searched = (
            f" `perdure tune` searches `{tuned.name}` from {tuned.low:g} to {tuned.high:g}."
            if tuned
            else ""
        )
        return (
            "*Its usual rule is that of the method inside.*"
            if wraps
            else f"*Its usual rule: `{rule}`.*"
        ) + searched
    return ""


def settings(thing: Callable[..., Any]) -> str:
    """The keyword parameters with their defaults; what they mean comes from the docstring,
    or that of a base class.
    """
    bases = (
        [base for base in thing.__mro__ if base is not object]
        if inspect.isclass(thing)
        else [thing]
    )
    about: dict[str, str] = {}
    for base in reversed(bases):
        sections = split(inspect.cleandoc(base.__doc__ or ""))
        about |= entries(sections.get("Parameters", ""))
    rows = [
        (
            f"`{name}`",
            "needed" if p.default is p.empty else f"`{p.default!r}`",
            prose(about.get(name, "")),
        )
        for name, p in registry.options(thing).items()
    ]
    return table(("setting", "default", "meaning"), rows) if rows else ""


def source(thing: Any) -> str:
    """The whole file, folded."""
    text = inspect.getsource(sys.modules[thing.__module__]).rstrip()
    where = "src/" + thing.__module__.replace(".", "/") + ".py"
    body = f"```python\n{text}\n```".replace("\n", "\n    ")
    return f'??? note "{where}"\n\n    {body}'


# -- the command line


def command_line() -> str:
    """Every command with its arguments and options."""
    commands = {
        info.name or info.callback.__name__: info.callback for info in app.app.registered_commands
    }
    rows = [
        (f"[`{name}`](#{name})", prose(first(command.__doc__)))
        for name, command in commands.items()
    ]
    parts = ["# The command line", str(app.app.info.help), table(("command", "what it does"), rows)]
    parts.append(
        "`perdure COMMAND --help` says the same. A mistake is reported in one sentence; "
        "the exit status is 1, or 2 for wrong usage."
    )
    for name, command in commands.items():
        found = [
            parameter(p) for p in inspect.signature(command, eval_str=True).parameters.values()
        ]
        usage = " ".join(["perdure", name, *(usage for usage, _ in found if usage), "[OPTIONS]"])
        parts += [
            f"## `{name}` {{ #{name} }}",
            prose(command.__doc__ or ""),
            f"```text\n{usage}\n```",
        ]
        parts.append(table(("argument or option", "default", "meaning"), [row for _, row in found]))
    return "\n\n".join(parts)


def parameter(p: inspect.Parameter) -> tuple[str, tuple[str, str, str]]:
    """How a command's parameter stands in the usage, if it is an argument;
    and its row of the table.
    """
    kind, about = get_args(p.annotation)
    help_, needed = prose(about.help or ""), p.default is p.empty
    if isinstance(about, ArgumentInfo):
        name = about.metavar or p.name.upper()
        several = "…" if get_origin(kind) is list and not name.endswith("…") else ""
        usage = f"{name}{several}" if needed else f"[{name}{several}]"
        return usage, (f"`{usage}`", "", help_)
    # in `Annotated`, typer keeps the first of an option's names as its default
    given = [name for name in (about.default, *(about.param_decls or ())) if isinstance(name, str)]
    names = ", ".join(f"`{name}`" for name in given or [f"--{p.name.replace('_', '-')}"])
    usual = (
        "needed"
        if needed
        else ""
        if p.default in (None, []) or p.default is False
        else f"`{p.default}`"
    )
    return "", (names if kind is bool else f"{names} {value(kind, about.metavar)}", usual, help_)


def value(kind: Any, metavar: str | None) -> str:
    """What an option takes."""
    if get_origin(kind) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(kind))
    kinds = [each for each in get_args(kind) or (kind,) if each is not type(None)]
    return metavar or {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(kinds[0], "TEXT")


# -- the public names


def public_names() -> str:
    """What `import perdure` gives."""
    parts = [
        "# Python",
        "All public names: `from perdure import …`. "
        "Methods, rules and benchmarks are modules of their own: "
        '`from perdure.methods.isolated import Isolated`, or `perdure.find("method", "isolated")`.',
    ]
    things = {name: getattr(perdure, name) for name in perdure.__all__}
    rows = [(f"[`{name}`](#{name})", prose(first(thing.__doc__))) for name, thing in things.items()]
    parts.append(table(("name", "what it is"), rows))
    for name, thing in things.items():
        parts += [
            f"## `{name}` {{ #{name} }}",
            f"```python\n{signature(name, thing)}\n```",
            *explained(thing),
        ]
        if inspect.isclass(thing) and not issubclass(thing, BaseException):
            parts.append(table(("member", "what it does"), members(thing)))
    return "\n\n".join(filter(None, parts))


def signature(name: str, thing: Any) -> str:
    """As it is called, with short names of types."""
    if inspect.isclass(thing) and issubclass(thing, BaseException):
        return f"class {name}({thing.__bases__[0].__name__})"
    found = inspect.signature(thing, eval_str=True)
    returns = found.return_annotation
    end = (
        ")"
        if inspect.isclass(thing) or returns is found.empty
        else f") -> {short(inspect.formatannotation(returns))}"
    )
    parts, keyword = [], False
    for p in found.parameters.values():
        if p.kind is p.KEYWORD_ONLY and not keyword:
            parts, keyword = [*parts, "*"], True
        parts.append(short(str(p)))
    line = f"{name}({', '.join(parts)}{end}"
    return (
        line
        if len(line) <= 100
        else f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + end
    )


def short(text: str) -> str:
    """A type without the modules that names come from."""
    text = re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", text)
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text.replace("<factory>", "…"))


def members(cls: type) -> list[tuple[str, str]]:
    """The public methods and properties that a class has from us, and fields that say nothing."""
    rows = []
    for name, value in inspect.getmembers(cls):
        value = inspect.getattr_static(cls, name)
        plain = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        plain = plain.fget if isinstance(plain, property) else plain
        own = str(getattr(plain, "__module__", "")).startswith("perdure")
        if not name.startswith("_") and inspect.isfunction(plain) and own:
            call = "" if isinstance(value, property) else "()"
            rows.append((f"`{name}{call}`", prose(first(plain.__doc__))))
    return rows


# -- docstrings → Markdown


def explained(thing: Any, parameters: str | None = None) -> list[str]:
    """A docstring as Markdown; `parameters` in the place of its own table of them."""
    sections = split(inspect.cleandoc(thing.__doc__ or ""))
    parts = [prose(sections.pop(""))]
    if parameters:
        sections = {"Parameters": ""} | sections
    for title, body in sections.items():
        if title == "Parameters" and parameters:
            parts.append(parameters)
        elif title == "Examples":
            parts.append(f"```pycon\n{body.strip()}\n```")
        elif title in ("Parameters", "Attributes", "Raises", "Returns"):
            rows = [(f"`{name}`", prose(text)) for name, text in entries(body).items()]
            parts += [f"**{title}**", table(("name", "meaning"), rows)]
        else:
            parts += [f"**{title}**", prose(body)]
    return [part for part in parts if part]


def split(text: str) -> dict[str, str]:
    """The sections of a docstring by their titles; what comes before the first under ''."""
    pieces = SECTION.split(text)
    return {"": pieces[0].strip()} | {
        t: body.strip("\n") for t, body in zip(pieces[1::2], pieces[2::2], strict=True)
    }


def entries(body: str) -> dict[str, str]:
    """The entries of a section of names: a line with one or several names, then what they mean,
    indented.
    """
    found: dict[str, str] = {}
    names: list[str] = []
    for line in body.splitlines():
        if line and not line.startswith(" "):
            names = line.split(", ")
            found |= dict.fromkeys(names, "")
        else:
            for name in names:
                found[name] = f"{found[name]} {line.strip()}".strip()
    return found


def first(text: str | None) -> str:
    """The first paragraph in one line."""
    return " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())


def prose(text: str) -> str:
    """Plain text as Markdown that shows it as it is; code in backticks stays,
    and so do indented blocks.
    """
    paragraphs = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("    "):
            paragraphs.append(f"```text\n{inspect.cleandoc(paragraph)}\n```")
            continue
        pieces = re.split(r"(`[^`]*`)", paragraph)
        pieces[::2] = [re.sub(r"[\\*_\[\]]", r"\\\g<0>", as_it_is(piece)) for piece in pieces[::2]]
        pieces[1::2] = [
            piece.replace("|", "\\|") if "\n" not in text else piece for piece in pieces[1::2]
        ]
        paragraphs.append("".join(pieces))
    return "\n\n".join(paragraphs)


def as_it_is(text: str) -> str:
    for character in "&<>|":
        text = text.replace(character, f"&#{ord(character)};")
    return text


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("\n", " ") for cell in line) + " |" for line in lines
    )
