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
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

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


class Definition(NamedTuple):
    """A top-level definition of a module: a function, a class, or an assignment."""

    digest: str  # SHA-256 of its canonical form without prose
    bare: frozenset[str]  # names that it uses otherwise than by an attribute
    attributes: frozenset[tuple[str, str]]  # (name, attribute) as in `random.uniform`


class Definitions(NamedTuple):
    """The definitions of a module, and the dotted targets of the names that it imports."""

    by_name: dict[str, Definition]  # "": statements that define nothing
    imports: dict[str, str]


def read_definitions(text: str, for_effect: Callable[[str], bool]) -> Definitions:
    """Return the definitions of a module without their prose: see `_WithoutProse`.

    `for_effect` tells of a dotted name that calls of it, as statements, change no number.
    Imports for type checkers alone are left out. Raises `SyntaxError`.
    """
    tree = ast.parse(text)
    body = [node for node in tree.body if not _for_type_checkers(node)]
    imports: dict[str, str] = {}
    for node in (node for top in body for node in ast.walk(top)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                imports[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                imports[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    strip = _WithoutProse({name for name, target in imports.items() if for_effect(target)})
    parts: dict[str, list[ast.AST]] = {}
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            continue
        stripped = strip.visit(node)
        if stripped is not None and not _does_nothing(stripped):
            for name in sorted(_bound(node)) or [""]:
                parts.setdefault(name, []).append(stripped)
    return Definitions({name: _definition(nodes) for name, nodes in parts.items()}, imports)


def _definition(nodes: list[ast.AST]) -> Definition:
    found = [node for top in nodes for node in ast.walk(top)]
    bases = {id(node.value) for node in found if isinstance(node, ast.Attribute)}
    bare = {node.id for node in found if isinstance(node, ast.Name) and id(node) not in bases}
    attributes = {
        (node.value.id, node.attr)
        for node in found
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    form = json.dumps([_form(node) for node in nodes], separators=(",", ":"))
    digest = hashlib.sha256(form.encode("ascii")).hexdigest()
    return Definition(digest, frozenset(bare), frozenset(attributes))


def _bound(node: ast.AST) -> set[str]:
    """Names that a top-level statement defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    named = (ast.FunctionDef, ast.ClassDef)
    found = {inner.name for inner in ast.walk(node) if isinstance(inner, named)}
    stored = (n for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
    return found | {name.id for name in stored}


def _for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


class _WithoutProse(ast.NodeTransformer):
    """Takes out all that people read and no number depends on.

    These are the arguments of exceptions, the messages of assertions, texts and f-strings with
    white space (no column, key or format of the package has any), annotations, the description
    and unit of an option, and statements that only log or report.
    """

    def __init__(self, for_effect: set[str]) -> None:
        self.for_effect = for_effect | {"log", "logging", "warnings", "print"}

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        node.cause = None
        if isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        return self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        node.msg = None
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant("") if _is_prose(node) else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return ast.Constant("") if any(map(_is_prose, node.values)) else self.generic_visit(node)

    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.AST:
        node.value = self.visit(node.value)  # not the format, whose spaces pad
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id == "option":
            node.args = node.args[1:]  # the description comes first
            node.keywords = [word for word in node.keywords if word.arg not in ("help", "unit")]
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        called: ast.AST = node.value
        while isinstance(called, ast.Call | ast.Attribute):
            called = called.func if isinstance(called, ast.Call) else called.value
        is_name = isinstance(node.value, ast.Call) and isinstance(called, ast.Name)
        if is_name and getattr(called, "id", "") in self.for_effect:
            return None
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        self.generic_visit(node)
        calls = any(isinstance(part, ast.Call | ast.NamedExpr) for part in ast.walk(node.test))
        return node if node.body or node.orelse or calls else None  # nothing but a log line

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant("")
        return self.generic_visit(node)


def _is_prose(node: ast.AST) -> bool:
    """Return whether a constant is a text with white space."""
    value = node.value if isinstance(node, ast.Constant) else None
    return isinstance(value, str) and any(map(str.isspace, value))
