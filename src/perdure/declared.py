"""The documentation and the settings that a Python file declares, read without importing it.

Methods and rules import torch, which takes seconds. `perdure list` and `perdure show` need
only their text, so that these commands read the file's source instead.
"""

import ast
import importlib.util
import inspect
import re
from dataclasses import dataclass
from pathlib import Path

_NAMED = re.compile(r"^(?:class|def) (\w+)", re.MULTILINE)
_DOCSTRING = re.compile(r'"""(.*?)"""', re.DOTALL)


class _Unclear(Exception):
    """Raised where the source does not say directly what an import would show."""


@dataclass(frozen=True)
class Declaration:
    """What a file declares.

    Attributes
    ----------
    text
        The docstring, without its indent.
    settings
        The `repr` of each setting's default by name; None if the setting has no default.
    nature
        The arguments `order` and `state` of the decorator `@nature`; empty if there is none.
    """

    text: str
    settings: dict[str, str | None]
    nature: dict[str, object]


def docstring(module: str, name: str) -> str | None:
    """Return the docstring of a class or function; None if it is not found.

    Faster than `declaration`: parsing all files would take most of the time of `perdure list`.

    Parameters
    ----------
    module
        The module's full name, such as `perdure.rules.ties`.
    name
        The name of the class or function, where underscores and capitals do not matter.
    """
    source = _source(module)
    if source is None:
        return None
    for definition in _NAMED.finditer(source):
        if _plain(definition[1]) == _plain(name):
            text = _DOCSTRING.search(source, definition.end())
            return inspect.cleandoc(text[1]) if text else None
    return None


def declaration(module: str, name: str) -> Declaration | None:
    """Return what a file declares; None if that can be learned only by importing it.

    Parameters
    ----------
    module
        The module's full name, such as `perdure.rules.ties`.
    name
        The name of the method, rule, benchmark or score. Settings are the keyword-only
        parameters of a function, or the fields of a dataclass and of its base classes.
    """
    try:
        return _declaration(module, name)
    except _Unclear:
        return None


def _declaration(module: str, name: str) -> Declaration:
    tree = _parsed(module)
    node = _definition(tree, name)
    text = ast.get_docstring(node)
    if text is None:  # then Python shows that of a base class
        raise _Unclear
    settings = _fields(tree, node) if isinstance(node, ast.ClassDef) else _keyword_only(node)
    return Declaration(text, settings, _nature(node))


def _source(module: str) -> str | None:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.origin:
        return None
    return Path(spec.origin).read_text(encoding="utf-8")


def _parsed(module: str) -> ast.Module:
    source = _source(module)
    if source is None:
        raise _Unclear
    return ast.parse(source)


def _plain(name: str) -> str:
    """Return a name without what differs between a file `td_vcl.py` and its class `TDVCL`."""
    return name.replace("_", "").lower()


def _definition(tree: ast.Module, name: str) -> ast.ClassDef | ast.FunctionDef:
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and _plain(node.name) == _plain(name):
            return node
    raise _Unclear


def _keyword_only(function: ast.FunctionDef) -> dict[str, str | None]:
    settings = {}
    for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        settings[argument.arg] = None if default is None else repr(_constant(default))
    return settings


def _fields(tree: ast.Module, node: ast.ClassDef) -> dict[str, str | None]:
    """Return the fields of a dataclass that are set when it is made; base classes come first."""
    settings = {}
    if node.bases:
        base, *others = node.bases
        if others or not isinstance(base, ast.Name):
            raise _Unclear
        settings |= _fields(*_base(tree, base.id))
    for statement in node.body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        default = statement.value
        if _is_class_variable(statement.annotation) or _is_internal(default):
            continue
        settings[statement.target.id] = None if default is None else repr(_constant(default))
    return settings


def _base(tree: ast.Module, name: str) -> tuple[ast.Module, ast.ClassDef]:
    """Return a base class and the file that defines it: this file, or one that it imports."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return tree, node
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for imported in node.names:
                if imported.name == name and imported.asname in (None, name):
                    return _base(_parsed(node.module), name)
    raise _Unclear


def _is_class_variable(annotation: ast.expr) -> bool:
    return isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "ClassVar"


def _is_internal(default: ast.expr | None) -> bool:
    """Return True for `field(init=False)`, which is no setting."""
    if not isinstance(default, ast.Call) or ast.unparse(default.func) != "field":
        return False
    return _constants(default).get("init") is False


def _nature(node: ast.ClassDef | ast.FunctionDef) -> dict[str, object]:
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "nature":
            state = _constants(decorator).get("state")
            if state is None:  # it is no literal
                raise _Unclear
            return {"order": _constant(decorator.args[0]), "state": state}
    return {}


def _constants(call: ast.Call) -> dict[str, object]:
    """Return the named arguments of a call that are constants."""
    constants = {}
    for keyword in call.keywords:
        if keyword.arg and isinstance(keyword.value, ast.Constant):
            constants[keyword.arg] = keyword.value.value
    return constants


def _constant(node: ast.expr) -> object:
    """Return the value of a literal, or of a power of numbers such as `3**-0.5`."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        base = _constant(node.left)
        exponent = _constant(node.right)
        if isinstance(base, int | float) and isinstance(exponent, int | float):
            return base**exponent
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise _Unclear from None
