"""Digests of code, of values and of what determines a run."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etrm.config.registry import CONTEXT_SOURCES
from etrm.storage import digests as provenance
from etrm.storage.digests import (
    code_digest,
    code_digests,
    commit,
    digest,
    evaluation_key,
    run_key,
    source_file,
    train_code,
)
from etrm.storage.files import file_digest


def test_digests_do_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2, 3]}) == digest({"b": [2, 3], "a": 1})
    assert digest({"a": [1, 2]}) != digest({"a": [2, 1]})
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest((1, 2)) == digest([1, 2])


def test_the_digest_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"content").hexdigest()


# --- code ---


LOW = 'def f(n: int) -> int:\n    """Doc."""\n    return n + 1\n'


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The folder of a package like this one, in which a module imports another."""
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    (tmp_path / "made_low.py").write_text(LOW)
    (tmp_path / "made_top.py").write_text('"""Top."""\nfrom etrm.made_low import f\n\nx = f(1)\n')
    (tmp_path / "made_apart.py").write_text("y = 1\n")
    yield tmp_path
    provenance._module.cache_clear()


def taken(name: str) -> str:
    provenance._module.cache_clear()
    return code_digest(f"etrm.{name}")


def test_comments_docstrings_and_layout_change_no_digest(module: Path) -> None:
    before = taken("made_top")
    (module / "made_low.py").write_text(
        '"""Documented."""\n\n\ndef f(\n    n: int,\n) -> int:\n    # why\n    return n + 1\n'
    )
    (module / "made_top.py").write_text("from etrm.made_low import f\nx = f(1)  # one\n")
    assert taken("made_top") == before


def test_code_changes_the_digest_of_all_that_import_it(module: Path) -> None:
    before, apart = taken("made_top"), taken("made_apart")
    (module / "made_low.py").write_text(LOW.replace("+ 1", "+ 2"))
    assert taken("made_top") != before
    assert taken("made_apart") == apart


def test_the_digest_by_module_names_the_one_that_changed(module: Path) -> None:
    provenance._module.cache_clear()
    before = code_digests("etrm.made_top")
    assert set(before) == {"etrm.made_top", "etrm.made_low"}
    (module / "made_low.py").write_text(LOW.replace("+ 1", "+ 2"))
    provenance._module.cache_clear()
    after = code_digests("etrm.made_top")
    assert {name for name in after if after[name] != before[name]} == {"etrm.made_low"}


def test_a_module_is_named_by_its_file() -> None:
    assert source_file("etrm.models.losses") == "etrm/models/losses.py"
    assert source_file("etrm.data") == "etrm/data/__init__.py"
    assert source_file("etrm.was_there_once") == "etrm/was_there_once.py"


def test_a_key_tells_all_that_it_is_made_of_apart() -> None:
    run: dict[str, Any] = {"config": {"a": 1}, "tables": ["t", "u"], "parent": None, "code": "c"}
    other = {"config": {"a": 2}, "tables": ["t", "v"], "parent": "p", "code": "d"}
    keys = {run_key(**run), *(run_key(**(run | {name: other[name]})) for name in run)}
    assert len(keys) == 5
    score = {"config": {}, "run_key": "k", "weights": "w", "tables": ["t", "u"], "code": "c"}
    other = {"config": {"a": 1}, "run_key": "l", "weights": "x", "tables": ["t"], "code": "d"}
    keys = {evaluation_key(**score), *(evaluation_key(**(score | {n: other[n]})) for n in score)}
    assert len(keys) == 6


@pytest.mark.parametrize(
    "line",
    [
        "from etrm.made_low import f",
        "from etrm import made_low",
        "import etrm.made_low",
        "def g():\n    import etrm.made_low",
    ],
)
def test_every_way_to_import_counts(line: str, module: Path) -> None:
    (module / "made_top.py").write_text(line + "\n")
    before = taken("made_top")
    (module / "made_low.py").write_text(LOW.replace("+ 1", "+ 2"))
    assert taken("made_top") != before


def test_a_run_depends_on_its_own_context_source_only() -> None:
    digests = {name: code_digest(*train_code(name)) for name in CONTEXT_SOURCES}
    assert len(set(digests.values())) == len(CONTEXT_SOURCES)
    assert all(re.fullmatch("[0-9a-f]{16}", value) for value in digests.values())
    assert "etrm.models.encoders.lpn" in code_digests(*train_code("lpn"))
    assert "etrm.models.encoders.lpn" not in code_digests(*train_code("standard"))


def test_packages_count_as_modules(module: Path) -> None:
    (module / "low").mkdir()
    (module / "low" / "__init__.py").write_text("z = 1\n")
    (module / "made_top.py").write_text("from etrm.low import z\n")
    before = taken("made_top")
    (module / "low" / "__init__.py").write_text("z = 2\n")
    assert taken("made_top") != before


def test_a_digest_imports_nothing() -> None:
    code = (
        "import sys; from etrm.storage.digests import code_digest;"
        " code_digest('etrm.training.run', 'etrm.report.run_view');"
        " sys.exit(' '.join({'torch', 'matplotlib', 'wandb'} & set(sys.modules)) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stderr.strip()) == (0, "")


def test_an_unknown_module_is_an_error() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"etrm\.nothing"):
        code_digest("etrm.nothing")


def test_the_commit_is_recorded() -> None:
    head = commit()
    assert head is None or re.fullmatch(r"[0-9a-f]{40}\+?", head)
