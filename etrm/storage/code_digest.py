"""Digests of code, the same under every Python version: of a module, or of what results depend on.

`ast.dump` is not the same: versions differ in the fields of a node, in where they cut f-strings,
and in the characters that `repr` escapes. The form that is hashed here is our own. It has no
positions, comments, docstrings or layout. This file needs nothing but the standard library, so that
a test runs it, by its path, under other interpreters.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
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


# --- definitions that results depend on, without text for people ---

LOGGERS = {"log", "logging", "warnings"}  # of which a call by itself changes no number
TEXT_KEYWORDS = {"help", "unit", "doc", "description"}


@dataclass(frozen=True)
class Definition:
    """A top-level statement of a module: the digest of its form, and the names that it uses."""

    digest: str
    names: frozenset[str]  # dotted, as they are written: `f`, `module.f`


@dataclass(frozen=True)
class ModuleCode:
    """A module in pieces. Under the name "" stand the statements that run when it is imported."""

    definitions: Mapping[str, tuple[Definition, ...]]
    imports: Mapping[str, str]  # name in the module: dotted name of what it stands for


@lru_cache(maxsize=1024)
def read_definitions(text: str, computing: Callable[[str], bool]) -> ModuleCode:
    """Take a module apart; `computing` says of a dotted name whether it is in the key.

    Raises `SyntaxError`, and `ValueError` for a star import, whose names are not known.
    """
    tree = ast.parse(text)
    imports: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.name if alias.asname else alias.name.partition(".")[0]
                imports[alias.asname or name] = name
        elif isinstance(node, ast.ImportFrom):
            if node.names[0].name == "*" or node.level:
                raise ValueError(f"line {node.lineno}: found a star or relative import")
            for alias in node.names:
                imports[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    ours = {name for name, target in imports.items() if target.startswith("etrm.")}
    silent = LOGGERS | {name for name in ours if not computing(imports[name])}
    definitions: dict[str, list[Definition]] = {}
    for statement in _Numbers(silent).visit(tree).body:
        if isinstance(statement, ast.Import | ast.ImportFrom) or _does_nothing(statement):
            continue
        form = json.dumps(_form(statement), separators=(",", ":"))
        taken = hashlib.sha256(form.encode("ascii")).hexdigest()
        for name in _defined(statement) or [""]:
            found = Definition(taken, frozenset(_used(statement)))
            definitions.setdefault(name, []).append(found)
    return ModuleCode({name: tuple(found) for name, found in definitions.items()}, imports)


def reachable(
    roots: Iterable[str],
    source: Callable[[str], str | None],
    computing: Callable[[str], bool],
) -> dict[str, dict[str, list[Any]]]:
    """Return the definitions that `roots` ("module:name") reach, by module and name.

    Each is a list of its digests and of what its names stand for. `source` gives the text of a
    module, None where a dotted name is none. Raises `LookupError` for a root that is not there.
    """
    found: dict[str, dict[str, list[Any]]] = {}
    todo = []
    for root in roots:
        module, _, name = root.partition(":")
        text = source(module)
        if text is None or name not in read_definitions(text, computing).definitions:
            raise LookupError(f"{root}: found no such definition, expected a root of a result key")
        todo.append((module, name))
    while todo:
        module, name = todo.pop()
        if name in found.setdefault(module, {}):
            continue
        text = source(module)
        assert text is not None, module
        code = read_definitions(text, computing)
        own = code.definitions.get(name, ())
        stands_for = set()
        for used in set().union(*(each.names for each in own)):
            first, _, rest = used.partition(".")
            if first in code.definitions:
                todo.append((module, first))
            elif first in code.imports:
                dotted = ".".join(filter(None, (code.imports[first], rest)))
                target = _target(dotted, source) if computing(dotted) else None
                # Of other packages, the name that was imported counts, not their code.
                stands_for.add(":".join(target) if target else code.imports[first])
                todo += _of(target, source, computing) if target else []
        found[module][name] = [[each.digest for each in own], sorted(stands_for)]
        todo.append((module, ""))
    return found


def _target(dotted: str, source: Callable[[str], str | None]) -> tuple[str, str] | None:
    """Split a dotted name into the longest module in it and the name that follows."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        module = ".".join(parts[:end])
        if source(module) is not None:
            return module, parts[end] if end < len(parts) else ""
    return None


def _of(
    target: tuple[str, str], source: Callable[[str], str | None], computing: Callable[[str], bool]
) -> Iterator[tuple[str, str]]:
    """Yield the definitions that a name of a module may stand for: of a bare module, all."""
    module, name = target
    text = source(module)
    assert text is not None, module
    code = read_definitions(text, computing)
    if name in code.definitions and name:
        yield target
    elif name in code.imports:  # imported from elsewhere, to be imported from here
        further = _target(code.imports[name], source) if computing(code.imports[name]) else None
        yield from _of(further, source, computing) if further else ()
    else:
        yield from ((module, each) for each in code.definitions)


def _defined(statement: ast.stmt) -> list[str]:
    """Return the names that a top-level statement binds, where that is all that it does."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign | ast.AugAssign):
        targets = [statement.target]
    names = [node for target in targets for node in ast.walk(target)]
    plain = all(isinstance(n, ast.Name | ast.Tuple | ast.List | ast.expr_context) for n in names)
    return [node.id for node in names if isinstance(node, ast.Name)] if plain else []


def _used(statement: ast.stmt) -> Iterator[str]:
    """Yield every dotted name of a statement, of `a.b.c` the longest."""
    todo: list[ast.AST] = [statement]
    while todo:
        node = todo.pop()
        names: list[str] = []
        inner = node
        while isinstance(inner, ast.Attribute):
            names.append(inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name):
            yield ".".join([inner.id, *reversed(names)])
        else:
            todo += ast.iter_child_nodes(inner)


def is_prose(text: str) -> bool:
    """Return whether a string is a text for people: no name, key or format here has words apart."""
    return any(map(str.isspace, text)) and any(map(str.isalpha, text))


class _Numbers(ast.NodeTransformer):
    """Takes from a tree all that changes no number: text for people, annotations, log lines."""

    def __init__(self, silent: set[str]) -> None:
        self.silent = silent  # names whose calls, as statements, only tell somebody something

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant("") if isinstance(node.value, str) and is_prose(node.value) else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        texts = (part.value for part in node.values if isinstance(part, ast.Constant))
        if is_prose("".join(map(str, texts))):
            return ast.Constant("")
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                part.value = self.visit(part.value)
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        node.cause = None
        return self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        node.msg = None
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        func: ast.AST = node.value.func if isinstance(node.value, ast.Call) else node
        while isinstance(func, ast.Attribute):
            func = func.value
        if isinstance(func, ast.Name) and func.id in self.silent:
            return ast.copy_location(ast.Pass(), node)
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST:
        self.generic_visit(node)
        silent = all(map(_does_nothing, [*node.body, *node.orelse]))
        asks = any(isinstance(part, ast.Call | ast.NamedExpr) for part in ast.walk(node.test))
        return ast.Pass() if silent and not asks else node  # nothing but a log line

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id == "option":
            node.args = node.args[1:]  # the first is its help
            node.keywords = [word for word in node.keywords if word.arg not in TEXT_KEYWORDS]
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        # A class variable is no field of a dataclass; which type a field has changes nothing.
        kinds = [n.id for n in ast.walk(node.annotation) if isinstance(n, ast.Name)]
        kind = next((name for name in ("ClassVar", "InitVar") if name in kinds), "field")
        node.annotation = ast.Constant(kind)
        node.value = node.value and self.visit(node.value)
        return node
