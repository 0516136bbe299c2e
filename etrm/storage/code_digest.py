"""Digest of a module's source text, the same under every Python version that runs this package.

`ast.dump` is not: versions differ in the fields of a node, in where they cut f-strings, and in the
characters that `repr` escapes. The form that is hashed here is our own. It has no positions, no
comments, no docstrings and no layout. This file needs nothing but the standard library, so that a
test runs it, by its path, under other interpreters.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

# Fields of syntax nodes that change nothing: the load or store of a name follows from its place,
# `u"…"` is `"…"`, and type comments are comments.
LEFT_OUT = {"ctx", "kind", "type_comment"}


def read_code(text: str) -> tuple[str, list[str]]:
    """Return the SHA-256 of a module's canonical form, and the dotted names that it imports.

    Of `from a import b` these are `a` and `a.b`, since `b` may be a module. Raises `SyntaxError`.
    """
    tree = ast.parse(text)
    form = json.dumps(_form(tree), separators=(",", ":"))
    return hashlib.sha256(form.encode("ascii")).hexdigest(), _imports(tree)


def _imports(tree: ast.Module) -> list[str]:
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def _form(value: Any) -> Any:
    """A node, or the value of a field, as nested lists of text: `[class, [field, value], …]`.

    A field that is None or empty is left out, so that one which only some versions have changes
    nothing. A None within a list stays: it marks a `**` in a dictionary, or a missing default.
    """
    kind: Any = type(value)
    if kind is list:
        return [_form(item) for item in value if not _does_nothing(item)]
    if kind is ast.JoinedStr:
        return ["JoinedStr", *_parts(value.values)]
    if kind is ast.Constant or kind is ast.MatchSingleton:
        return [kind.__name__, *_constant(value.value)]
    if not issubclass(kind, ast.AST):
        return value  # an identifier, a number of a flag, or None
    form: list[Any] = [kind.__name__]
    for name in _fields(kind):
        field = getattr(value, name, None)
        inner = None if field is None else _form(field)
        if inner is not None and inner != []:
            form.append([name, inner])
    return form


@cache
def _fields(kind: Any) -> list[str]:
    """Names of the fields of a class of nodes, in an order of their own."""
    return sorted(name for name in kind._fields if name not in LEFT_OUT)


def _does_nothing(item: Any) -> bool:
    """Is it a statement without effect: a docstring, another constant, or `pass`?"""
    if isinstance(item, ast.Expr):
        return isinstance(item.value, ast.Constant)
    return isinstance(item, ast.Pass)


def _constant(value: Any) -> list[str]:
    """Type and text of a constant. Integers in base 16, which has no limit of digits."""
    kind = type(value)
    return [kind.__name__, hex(value) if kind is int else ascii(value)]


def _parts(values: Iterable[ast.expr]) -> list[Any]:
    """The parts of an f-string, or of a format specification within one.

    Adjacent texts are one part, and empty ones none, wherever a version cuts them.
    """
    parts: list[Any] = []
    for value in _pieces(values):
        if isinstance(value, ast.FormattedValue):
            spec = [] if value.format_spec is None else _parts([value.format_spec])
            parts.append([_form(value.value), value.conversion, spec])
        elif parts and isinstance(parts[-1], str):
            parts[-1] += value
        elif value:
            parts.append(value)
    return parts


def _pieces(values: Iterable[ast.expr]) -> Iterator[str | ast.FormattedValue]:
    for value in values:
        if isinstance(value, ast.JoinedStr):
            yield from _pieces(value.values)
        elif isinstance(value, ast.FormattedValue):
            yield value
        else:
            assert isinstance(value, ast.Constant), f"{type(value).__name__} within an f-string"
            yield str(value.value)
