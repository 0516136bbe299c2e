"""The digest of a module's code: the same in every version of Python, another for other code."""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import digests_of
import pytest
from digests_of import taken

from etrm.storage import code_digest
from etrm.storage.code_digest import read_code
from etrm.storage.digests import is_computing

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "etrm").rglob("*.py"))
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
OTHERS = [version for version in ("3.11", "3.12", "3.13", "3.14") if version != HERE]

# Syntax of Python 3.11, which every version reads, and the first digits of each digest as recorded.
SNIPPETS = {
    "texts": r"""
a = "x" 'y' "it's" '"' + r"\d" + u"kind" + "" + "\ud800\x7f\u0378\U0001fadf\N{BULLET}"
b = b"\xff\0" b'a', "größe", "数", '''two
lines'''
""",
    "numbers": """
a = 0, -1, True, None, ..., 0xffff_ffff_ffff_ffff_ffff, 10_000
b = 1.0, 1, 1j, 0.1, 1e-7, 1e400, -0.0, 5e-324
""",
    "f-strings": r"""
f"", f"only text", f"{x}", f"a{x}b{y}", f"{x}{y}", f"{{{x}}}", f"a{{b}}c", f"\N{BULLET}{x}\t"
f"{x!r}{x!s}{x!a}{x:}{x!r:}{x:>10}{x!r:^{w}}{x:{fill}>{w}.{p}f}{x:%Y-%m-%d}{x:{'>'}{10}}"
f"{x=}{x = }{x=!s:>5}{x + 1=:.3f}{d['é']=}{x:a{{b}}c}{x:=5}{x!=y}{x==y}", rf"\d{x}\{y}"
f"{(lambda x: 1)}{(y := 3)}{ {1: 2}[1] }{x,}{*a, *b}{f'{y:>{w}}' + 'z'}{a if b else c:>{w}}"
f'''a
  {x
   + 1}
{
x
=:>
{w}}b'''
""",
    "concatenation": r"""
("a" f"b" "c", "a" "b" f"{x}" "c" f"" "d", f"{x}" f"{y}", "" f"{x}" "",
f"{a['b']}" 'c' f'{d["e"]!a}')
f"\
a{x}" "\n" f"{x}\n" "\n" u"a" rf"\{x}\\"
""",
    "match": r"""
match point, *rest:
    case 0 | -1 | 1.5 | 1 - 2j | "a" "b" | b"c" | None | True | False: pass
    case [x, y, *_] | (x, *y) if x > y: a
    case {"k": v, -1: Z.q, **others}: b
    case {}: c
    case Point(x=0, y=[]) | Point(0, z=Point()) as p: d
    case str() | [*_] | _: e
""",
    "definitions": r"""
@a.b(c)[d]
@(lambda f: f)
def f(a, b: int = 1, /, c: "T" = (2), *args: *Ts, d, e: int | None = None, **kw: Any) -> list[int]:
    '''Doc.'''
    global g; nonlocal_ = 1
    def inner(): nonlocal nonlocal_; 'doc'; return
    return lambda x, /, y=1, *a, z, w=2, **k: (yield)
class C(A, *B, metaclass=M, **K):
    '''Doc.'''
    x: int
    y: "str" = 'a'
    'doc of y'
    (z): int = 1
    def m(self): ...
""",
    "async": r"""
async def f(x: int | str = 0):
    async with a as b, c() as (d, e): await g
    async for i, *j in k: break
    else: continue_
    return [x async for x in y if await z], {i: j async for i, j in k}, (yield await x)
""",
    "statements": r"""
from __future__ import annotations
import a.b as c, d
from . import e
from ..f import g as h, i
from j import *
x = y = [*a, *b]; x, *y = z; (x); x += 1; x @= y; x //= 2; x >>= 1; del x, y[0], z.w
for i, in j:
    if a: break
    elif b: continue
    else: pass
else: assert x, "message"
while True: raise E from None
with (open(a) as b, c): pass
with (yield_): pass
try: a
except (A, B) as e: raise
except: b
else: c
finally: d
try: a
except* A as e: b
except* (B, C): c
if x: pass
else: ...
""",
    "expressions": r"""
(x := 1), [y := 2, 3], a[b := 1], a[1:2, ::3, ...], a[*b], a[:, None], {**a, 'b': 1}, {*a, 1}
f(a, *b, *c, d=1, **e), f(x for x in y if z if w for v in u), not a, ~b, -c, +d, a if b else c
a or b and c, 1 < x <= 2 != y is not z not in w, a ** -b ** c, a @ b % c, x & y | z ^ w << 1, a, b,
(), {}, [x for x, in z], {x for x in y}, {x: y for x in y}, lambda: 0, lambda *a, b=1: b
""",
    "more digits than are converted to decimals": f"x = 0x{'f' * 6000}",
    "not ascii": r"""
größe = 数 = "größe"
def ﬁ(ª, µ=1): return f"{größe}ü{µ!r:ü>{数}}{größe=}"
class Ⅷ: Å = 'Å'
""",
}
RECORDED = {
    "texts": "d3a685efbb7cf2de",
    "numbers": "a3712d6e342bca12",
    "f-strings": "8b603a82815891c1",
    "concatenation": "6c81570b97403712",
    "match": "a708aab4084bd39a",
    "definitions": "bc2dacab66ac909c",
    "async": "a8bd25323e12928a",
    "statements": "a68b9ddd8015c1f7",
    "expressions": "88d2c2ab0e73bf1a",
    "more digits than are converted to decimals": "fe2bafdbdc1c818a",
    "not ascii": "f31466bc776b1071",
}


@pytest.mark.parametrize("name", SNIPPETS)
def test_the_digest_is_the_one_that_was_recorded(name: str) -> None:
    """By every version that runs the tests. Another form of the tree makes all studies stale."""
    assert read_code(SNIPPETS[name])[0][:16] == RECORDED[name]


# --- side by side ---


@cache
def interpreters() -> dict[str, str]:
    """Paths of the interpreters of this machine that run, by their version."""
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep)]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [folder / f"python{version}" for folder in folders for version in OTHERS]
    candidates += sorted(pyenv.glob("versions/*/bin/python"))
    found: dict[str, str] = {}
    for path in filter(Path.is_file, candidates):
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        run = subprocess.run([path, "-I", "-c", code], capture_output=True, text=True)
        if run.returncode == 0:
            found.setdefault(run.stdout.strip(), str(path))
    return found


@cache
def texts() -> list[tuple[str, str]]:
    """Snippets, and all files as keys read them: those that compute by their definitions."""
    found = [(kind, text) for text in SNIPPETS.values() for kind in ("whole", "definitions")]
    for path in FILES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        kind = "definitions" if is_computing(module) else "whole"
        found.append((kind, path.read_text(encoding="utf-8")))
    # Definitions have no relative imports.
    return [(kind, text) for kind, text in found if kind == "whole" or "from ." not in text]


@cache
def digests_here() -> list[Any]:
    return taken(vars(code_digest), texts())


@pytest.mark.parametrize("version", OTHERS)
def test_other_versions_of_python_take_the_same_digests(version: str) -> None:
    python = interpreters().get(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    command = [python, "-I", digests_of.__file__, code_digest.__file__]
    run = subprocess.run(command, input=json.dumps(texts()), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = zip(texts(), digests_here(), json.loads(run.stdout), strict=True)
    for (_, text), ours, theirs in found:
        assert theirs == ours, text[:200]


def test_the_digest_needs_nothing_but_the_standard_library() -> None:
    names = read_code((ROOT / "etrm/storage/code_digest.py").read_text(encoding="utf-8"))[1]
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


# --- what changes nothing ---


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_layout_comments_and_docstrings_change_nothing(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    expected = read_code(text)[0]
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node) is None:
                node.body.insert(0, ast.Expr(ast.Constant("Documented.")))
            else:
                node.body = node.body[1:] or [ast.Pass()]
    other = ast.unparse(ast.fix_missing_locations(tree))
    assert read_code(commented(other))[0] == expected


def commented(text: str) -> str:
    """The text with a comment and an empty line after every statement."""
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NEWLINE:
            lines[token.start[0] - 1] += "  # a comment\n"
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("f'{x:}'", "f'{x}'"),
        ("f'{x=}'", "f'x={x!r}'"),
        ("'a' f'' 'b'", "f'ab'"),
        ("u'a'", "'a'"),
        ("with a, b: c", "with (a, b): c"),
        ("x = 16", "x = 0x1_0"),
        ("x = (1)", "x = 1"),
        ("class A: 'Doc.'", "class A: pass"),
        ("class A:\n x = 1\n 'of x'", "class A:\n x = 1"),
        ("def f():\n 'Doc.'\n return 1", "def f(): return 1"),
    ],
)
def test_ways_to_write_the_same_code(text: str, same: str) -> None:
    assert read_code(text) == read_code(same)


# --- what changes it ---


@pytest.mark.parametrize("name", [name for name in SNIPPETS if "digits" not in name])
def test_every_change_of_the_code_changes_the_digest(name: str) -> None:
    before = ast.unparse(ast.parse(SNIPPETS[name]))
    expected, count = read_code(before)[0], 0
    for after in mutants(before):
        if after != before:
            count += 1
            assert read_code(after)[0] != expected, after
    assert count > 20, count


def mutants(text: str) -> Iterator[str]:
    """Yield the code with one change: each name, constant, operator and list in turn."""
    for number, _ in enumerate(parts(ast.parse(text))):
        for change in range(99):
            tree = ast.parse(text)
            changes = list(changes_of(parts(tree)[number]))
            if change >= len(changes):
                break
            where, key, value = changes[change]
            if isinstance(where, list):
                where[key : key + 1] = value
            else:
                setattr(where, key, value)
            try:
                after = ast.unparse(ast.fix_missing_locations(tree))
                ast.parse(after)
            except (SyntaxError, ValueError, AttributeError, TypeError):
                continue  # no code
            yield after


def parts(tree: ast.Module) -> list[ast.AST]:
    """The nodes of a tree but for the constants that stand alone, as docstrings do."""
    nodes = list(ast.walk(tree))
    alone = {id(node.value) for node in nodes if stands_alone(node)}  # type: ignore[attr-defined]
    return [node for node in nodes if not stands_alone(node) and id(node) not in alone]


def stands_alone(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def changes_of(node: ast.AST) -> Iterator[tuple[Any, Any, Any]]:
    """Attributes of a node with other values, and lists in it with other content at a place."""
    for field, value in ast.iter_fields(node):
        if field == "kind" or says_nothing(value):
            continue
        if isinstance(node, ast.Constant | ast.MatchSingleton):
            yield node, field, other_constant(value)
        elif isinstance(value, str) and value != "*":
            yield node, field, value + "_"
        elif isinstance(value, int):
            yield node, field, {-1: 114, 114: 115, 115: 97, 97: -1}.get(value, 1 - value)
        elif isinstance(value, ast.operator | ast.unaryop | ast.boolop | ast.cmpop):
            yield node, field, other_operator(value)
        elif isinstance(value, ast.AST):
            yield node, field, None
        elif isinstance(value, list):
            for place, item in enumerate(value):
                if isinstance(item, str):
                    yield value, place, [item + "_"]
                elif isinstance(item, ast.cmpop):
                    yield value, place, [other_operator(item)]
                elif not stands_alone(item) and not isinstance(item, ast.Pass):
                    yield value, place, []
                    yield value, place, [item, item]


def says_nothing(value: Any) -> bool:
    """Return whether a value is an empty format specification."""
    return isinstance(value, ast.JoinedStr) and not "".join(map(ast.unparse, value.values))


def other_constant(value: Any) -> Any:
    if isinstance(value, str | bytes):
        return value + type(value)("_" if isinstance(value, str) else b"_")
    if isinstance(value, bool) or value is None or value is ...:
        return {True: False, False: None, None: True, ...: None}[value]
    return value + 1


def other_operator(value: ast.AST) -> ast.AST:
    """The next of the same family."""
    family = type(value).__base__
    assert family is not None
    classes = sorted(family.__subclasses__(), key=lambda cls: cls.__name__)
    return classes[(classes.index(type(value)) + 1) % len(classes)]()


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("x = 1", "x = True"),
        ("x = 1", "x = 1.0"),
        ("x = 'a'", "x = b'a'"),
        ("x = 'a'", "x = a"),
        ("x = 0.1", "x = 0.10000000000000002"),
        ("f'{x}'", "f'{x!s}'"),
        ("f'{x!r}'", "f'{x!a}'"),
        ("f'{x:>3}'", "f'{x:>4}'"),
        ("f'{x:{y}}'", "f'{x:y}'"),
        ("f'{x:{y}.3f}'", "f'{x:{y}.4f}'"),
        ("f'{x}'", "'{x}'"),
        ("f'{{x}}'", "f'{x}'"),
        ("'a', 'b'", "'a' 'b'"),
        ("x: int", "(x): int"),
        ("x: int = 1", "x = 1"),
        ("def f(a, b): pass", "def f(a, /, b): pass"),
        ("def f(a, b): pass", "def f(a, *, b): pass"),
        ("def f(a, b=1): pass", "def f(a=1, *, b=1): pass"),
        ("def f(*, a=1, b): pass", "def f(*, a, b=1): pass"),
        ("def f(): return", "async def f(): return"),
        ("@d\ndef f(): pass", "def f(): pass"),
        ("{**a}", "{a: None}"),
        ("x[1:]", "x[:1]"),
        ("x[1:]", "x[1::1]"),
        ("try: a\nexcept B: c", "try: a\nexcept* B: c"),
        ("if a: b\nelse: c", "if a: b\nc"),
        ("for a in b: c\nelse: d", "for a in b:\n c\n d"),
        ("with a as b: c", "with a: c"),
        ("import a", "import a as b"),
        ("from . import a", "from .. import a"),
        ("[a for b in c]", "(a for b in c)"),
        ("return_ = None", "return_ = ..."),
        ("match a:\n case b: c", "match a:\n case _: c"),
        ("match a:\n case None: c", "match a:\n case True: c"),
        ("match a:\n case {**b}: c", "match a:\n case {}: c"),
    ],
)
def test_code_that_differs_in_a_token(text: str, other: str) -> None:
    assert read_code(text)[0] != read_code(other)[0]


# --- imports ---


def test_imported_names_are_those_that_may_be_modules() -> None:
    text = "import a.b, c as d\ndef f():\n    from e.f import g as h, i\n"
    assert sorted(read_code(text)[1]) == ["a.b", "c", "e.f", "e.f.g", "e.f.i"]
