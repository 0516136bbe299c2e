"""Digests of code, equal in every Python version: of a module, or of the definitions in use.

`ast.dump` does not give that: versions differ in the fields of a node, in where they cut f-strings,
and in the characters that `repr` escapes. The form hashed here is our own, without positions,
comments, docstrings or layout. This file imports the standard library alone, so that a test can run
it, by its path, under other interpreters.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

# Fields of syntax nodes without effect: the load or store of a name follows from its place,
# `u"…"` is `"…"`, and type comments are comments.
LEFT_OUT = {"ctx", "kind", "type_comment"}


def read_code(text: str) -> tuple[str, list[str]]:
    """Return the SHA-256 of a module's canonical form, and the dotted names that it imports.

    `from a import b` gives `a` and `a.b`, since `b` may be a module. Raises `SyntaxError`.
    """
    tree = ast.parse(text)
    form = json.dumps(_form(tree), separators=(",", ":"))
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return hashlib.sha256(form.encode("ascii")).hexdigest(), names


def _form(value: Any) -> Any:
    """Return a node, or the value of a field, as nested lists: `[class, [field, value], …]`.

    A field that is None or empty is left out, so that one that only some versions have has no
    effect. A None within a list stays: it marks a `**` in a dictionary, or a missing default.
    """
    kind: Any = type(value)
    if kind is list:
        return [_form(item) for item in value if not _does_nothing(item)]
    if kind is ast.JoinedStr:
        return ["JoinedStr", *_parts(value.values)]
    if kind is ast.Constant or kind is ast.MatchSingleton:  # a literal; None, True, False of a case
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
    """Return the names of the fields of a class of nodes."""
    return sorted(name for name in kind._fields if name not in LEFT_OUT)  # versions reorder them


def _does_nothing(item: Any) -> bool:
    """Return whether a statement has no effect: a docstring, another constant, or `pass`."""
    if isinstance(item, ast.Expr):
        return isinstance(item.value, ast.Constant)
    return isinstance(item, ast.Pass)


def _constant(value: Any) -> list[str]:
    """Return type and text of a constant."""
    kind = type(value)  # 1, 1.0 and True are equal, but other code
    return [kind.__name__, hex(value) if kind is int else ascii(value)]  # no limit of digits


def _parts(values: Iterable[ast.expr]) -> list[Any]:
    """Return the parts of an f-string, or of a format specification within one.

    Adjacent texts are joined and empty ones dropped, wherever a version cuts them.
    """
    parts: list[Any] = []
    for value in values:
        if isinstance(value, ast.JoinedStr):  # adjacent f-strings, or a nested specification
            pieces = _parts(value.values)
        elif isinstance(value, ast.FormattedValue):
            spec = [] if value.format_spec is None else _parts([value.format_spec])
            pieces = [[_form(value.value), value.conversion, spec]]
        else:
            assert isinstance(value, ast.Constant), f"{type(value).__name__} within an f-string"
            pieces = [str(value.value)]
        for piece in filter(None, pieces):
            if isinstance(piece, str) and parts and isinstance(parts[-1], str):
                parts[-1] += piece
            else:
                parts.append(piece)
    return parts


# --- definitions that results depend on, without text for people ---

LOGGERS = {"log", "logging", "warnings"}  # a call of these, as a statement, changes no number
COUNT = "Work"  # the class of `etrm.models.flops`
TEXT_KEYWORDS = {"help", "unit", "doc", "description"}  # arguments of `option` for people


@dataclass(frozen=True)
class Definition:
    """A top-level statement of a module: the digest of its form, and the names that it uses."""

    digest: str
    names: frozenset[str]  # dotted, as in the source: `f`, `module.f`


@dataclass(frozen=True)
class ModuleCode:
    """A module in pieces. The name "" has the statements that run when it is imported."""

    definitions: Mapping[str, tuple[Definition, ...]]
    imports: Mapping[str, str]  # name in the module: dotted name that it is bound to


def read_definitions(text: str, computing: Callable[[str], bool]) -> ModuleCode:
    """Split a module into definitions; `computing` tells whether a dotted name is in the key.

    Raises `SyntaxError`, and `ValueError` for a star import, whose names are unknown.
    """
    tree = ast.parse(text)
    imports: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:  # `import a.b` binds `a`
                name = alias.name if alias.asname else alias.name.partition(".")[0]
                imports[alias.asname or name] = name
        elif isinstance(node, ast.ImportFrom):
            if node.names[0].name == "*" or node.level:
                raise ValueError(f"line {node.lineno}: found a star or relative import")
            for alias in node.names:
                imports[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    ours = {name for name, target in imports.items() if target.startswith("etrm.")}
    # Calls into our modules outside the key change no number either: they report or lock.
    silent = LOGGERS | {name for name in ours if not computing(imports[name])}
    definitions: dict[str, list[Definition]] = {}
    for statement in _Numbers(silent).visit(tree).body:
        if isinstance(statement, ast.Import | ast.ImportFrom) or _does_nothing(statement):
            continue
        form = json.dumps(_form(statement), separators=(",", ":"))
        sha256 = hashlib.sha256(form.encode("ascii")).hexdigest()
        for name in _defined(statement) or [""]:  # a name may be defined more than once
            found = Definition(sha256, frozenset(_used(statement)))
            definitions.setdefault(name, []).append(found)
    return ModuleCode({name: tuple(found) for name, found in definitions.items()}, imports)


# A module in pieces by its name; None where there is none whose code counts.
Modules = Callable[[str], ModuleCode | None]


def reachable(roots: Iterable[str], modules: Modules) -> dict[str, dict[str, list[Any]]]:
    """Return the definitions that `roots` ("module:name") reach, by module and name.

    Each is a list of its digests and of the dotted names that its names resolve to. Raises
    `LookupError` for an unknown root.
    """
    found: dict[str, dict[str, list[Any]]] = {}
    todo = []
    for root in roots:
        module, _, name = root.partition(":")
        code = modules(module)
        if code is None or name not in code.definitions:
            raise LookupError(f"{root}: found no such definition, expected a root of a result key")
        todo.append((module, name))
    while todo:
        module, name = todo.pop()
        if name in found.setdefault(module, {}):
            continue
        code = modules(module)
        assert code is not None, module
        own = code.definitions.get(name, ())
        resolved = set()
        for used in set().union(*(each.names for each in own)):
            first, _, rest = used.partition(".")
            if first in code.definitions:
                todo.append((module, first))
            elif first in code.imports:
                target = _target(".".join(filter(None, (code.imports[first], rest))), modules)
                # Of other packages, the imported name counts, not their code.
                resolved.add(":".join(target) if target else code.imports[first])
                todo += _of(target, modules)
        found[module][name] = [[each.digest for each in own], sorted(resolved)]
        todo.append((module, ""))  # whoever uses a module runs its statements
    return found


def _target(dotted: str, modules: Modules) -> tuple[str, str] | None:
    """Split a dotted name into the longest module in it and the name that follows."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):  # the longest first
        if modules(module := ".".join(parts[:end])) is not None:
            return module, parts[end] if end < len(parts) else ""
    return None


def _of(target: tuple[str, str] | None, modules: Modules) -> list[tuple[str, str]]:
    """Return the definitions that a name of a module may refer to: all for a bare module."""
    module, name = target or ("", "")
    code = modules(module)
    if code is None:
        return []
    if name in code.definitions and name:
        return [(module, name)]
    if name in code.imports:  # re-exported
        return _of(_target(code.imports[name], modules), modules)
    return [(module, each) for each in code.definitions]  # or an attribute set at run time


def _defined(statement: ast.stmt) -> list[str]:
    """Return the names that a top-level statement binds, where it does nothing else."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    targets: list[ast.expr] = statement.targets if isinstance(statement, ast.Assign) else []
    if isinstance(statement, ast.AnnAssign | ast.AugAssign):
        targets = [statement.target]
    names = [node for target in targets for node in ast.walk(target)]
    # `a.b = c` and `a[b] = c` change an object: they run with the module.
    plain = all(isinstance(n, ast.Name | ast.Tuple | ast.List | ast.expr_context) for n in names)
    return [node.id for node in names if isinstance(node, ast.Name)] if plain else []


def _used(statement: ast.stmt) -> Iterator[str]:
    """Yield every dotted name of a statement, the longest of `a.b.c`."""
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
    """Return whether a string is for people: no name, key or format of ours has spaces."""
    return any(map(str.isspace, text)) and any(map(str.isalpha, text))


def _counts(statement: ast.stmt) -> bool:
    """Return whether it is a method that returns `Work`."""
    returned = statement.returns if isinstance(statement, ast.FunctionDef) else None
    names = (
        [] if returned is None else [n.id for n in ast.walk(returned) if isinstance(n, ast.Name)]
    )
    return COUNT in names


class _Numbers(ast.NodeTransformer):
    """Remove from a tree all that changes no number: text for people, annotations, log lines."""

    def __init__(self, silent: set[str]) -> None:
        self.silent = silent  # names of which a call, as a statement, changes no number

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant("") if isinstance(node.value, str) and is_prose(node.value) else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        # Formatted values within a sentence are for people as well.
        texts = (part.value for part in node.values if isinstance(part, ast.Constant))
        if is_prose("".join(map(str, texts))):
            return ast.Constant("")
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                part.value = self.visit(part.value)
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if isinstance(node.exc, ast.Call):  # the class stays, its message goes
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
        # A call in the condition may have an effect.
        calls = any(isinstance(part, ast.Call | ast.NamedExpr) for part in ast.walk(node.test))
        return ast.Pass() if silent and not calls else node  # nothing but a log line

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id == "option":
            node.args = node.args[1:]  # the first is its help
            node.keywords = [word for word in node.keywords if word.arg not in TEXT_KEYWORDS]
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        # A method that counts FLOPs tells the cost of a plan, and no result.
        if node.name != COUNT:
            node.body = [part for part in node.body if not _counts(part)] or [ast.Pass()]
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        # A class variable is no field of a dataclass; the type of a field has no effect.
        kinds = [n.id for n in ast.walk(node.annotation) if isinstance(n, ast.Name)]
        kind = next((name for name in ("ClassVar", "InitVar") if name in kinds), "field")
        node.annotation = ast.Constant(kind)
        node.value = node.value and self.visit(node.value)
        return node
