"""Axis values' options as the text of their files has them: importing such a file takes torch, and a mistake is to be told
before that.

option_names()["ppo"]               ("epochs", "kl_coef", ...)
option_names("algorithms")          those of one axis' values
written_options("ppo")              PPOOptions, made of the lines of methods/algorithms/ppo.py that it needs
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from vrambench.methods.registry import Options

ROOMS = ("precision", "adapters", "optimizers", "offload", "algorithms")
_CLASS = re.compile(r"^class (\w+)\(.*?(?=^\S|\Z)", re.MULTILINE | re.DOTALL)
_NAMESPACE = re.compile(r'    namespace: ClassVar\[str\] = "(\w+)"')
_OURS = "vrambench."
_METHODS = Path(__file__).parent


class _Written(NamedTuple):
    """A class of options: its module, and its name there."""

    module: str
    name: str


@cache
def option_names(*rooms: str) -> Mapping[str, tuple[str, ...]]:
    """By the namespace of built-in values, the names of its options in their order; of the values in `rooms`, else of all."""
    found = _classes(*(rooms or ROOMS))
    return {namespace: tuple(dict.fromkeys(_fields(*written))) for namespace, written in found.items()}


@cache
def written_options(namespace: str) -> type[Options] | None:
    """The class of a built-in value's options; None where none has that namespace."""
    written = _classes(*ROOMS).get(namespace)
    return None if written is None else _made(*written)


@cache
def _classes(*rooms: str) -> Mapping[str, _Written]:
    """By namespace, in the order of files."""
    files = sorted(file for room in rooms for file in _METHODS.joinpath(room).glob("*.py"))
    modules = [f"{_OURS}methods.{file.parent.name}.{file.stem}" for file in files]
    return {
        found[1]: _Written(module, name)
        for module in modules
        if _NAMESPACE.search(_text(module))
        for name, text in _class_texts(module).items()
        if (found := _NAMESPACE.search(text))
    }


@cache
def _text(module: str) -> str:
    """Of a module of ours: `vrambench.methods.rewards` is methods/rewards.py, or the package's own file."""
    path = _METHODS.parent.joinpath(*module.removeprefix(_OURS).split("."))
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text("utf-8")


@cache
def _class_texts(module: str) -> Mapping[str, str]:
    """By name: the classes that are made of others, and nothing else, are parsed."""
    return {found[1]: found[0] for found in _CLASS.finditer(_text(module))}


def _fields(module: str, name: str) -> Iterator[str]:
    """The fields of a class' bases in the same file, and its own."""
    if name not in _class_texts(module):
        return
    (one,) = ast.parse(_class_texts(module)[name]).body
    assert isinstance(one, ast.ClassDef)
    for base in one.bases:
        yield from _fields(module, _name(base))
    for line in one.body:
        if isinstance(line, ast.AnnAssign) and "ClassVar" not in (_name(line.annotation), _generic(line.annotation)):
            yield _name(line.target)


@cache
def _made(module: str, name: str) -> Any:
    """What `name` is in a module, by the statements that it needs there: what is imported already as it is, and of other modules of
    ours the lines behind the name alone."""
    if module in sys.modules and hasattr(sys.modules[module], name):
        return getattr(sys.modules[module], name)
    statements = _statements(module)
    needed, names = dict[str, ast.stmt](), [name]
    while names:
        one = names.pop()
        if one in statements and one not in needed:
            needed[one] = statements[one]
            names += [] if isinstance(needed[one], ast.ImportFrom) else _names_in(needed[one])
    held: dict[str, Any] = {"__name__": module}
    lines = []
    for one, statement in needed.items():
        if isinstance(statement, ast.ImportFrom) and str(statement.module).startswith(_OURS):
            held[one] = _made(str(statement.module), one)
        elif statement not in lines:
            lines.append(statement)
    lines.sort(key=lambda statement: statement.lineno)
    # Annotations are read at once, since no module has them; a method's own class is not there yet.
    exec(compile(ast.Module(lines, []), module, "exec", dont_inherit=True), held)
    return held[name]


@cache
def _statements(module: str) -> Mapping[str, ast.stmt]:
    """A module's top-level statements by the names that they define."""
    found: dict[str, ast.stmt] = {}
    for statement in ast.parse(_text(module)).body:
        if isinstance(statement, ast.ImportFrom | ast.Import):
            found |= {alias.asname or alias.name: statement for alias in statement.names}
        elif isinstance(statement, ast.ClassDef | ast.FunctionDef):
            found[statement.name] = _without_returns(statement)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            found |= {target.id: statement for target in targets if isinstance(target, ast.Name)}
    return found


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _generic(annotation: ast.AST) -> str:
    """`ClassVar`, of ClassVar[str]."""
    return _name(annotation.value) if isinstance(annotation, ast.Subscript) else ""


def _names_in(statement: ast.stmt) -> list[str]:
    return [node.id for node in ast.walk(statement) if isinstance(node, ast.Name)]


def _without_returns(statement: ast.stmt) -> ast.stmt:
    for node in ast.walk(statement):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
    return statement
