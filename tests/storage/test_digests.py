"""Digests of code, of values and of what determines a run."""

from __future__ import annotations

import hashlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from etrm.storage.digests import (
    _code_digests,
    code_digests,
    commit,
    digest,
    evaluation_key,
    run_key,
    source_file,
)
from etrm.storage.files import file_digest, table_digest, write_table_atomic


def test_digests_do_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2, 3]}) == digest({"b": [2, 3], "a": 1})
    assert digest({"a": [1, 2]}) != digest({"a": [2, 1]})
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest((1, 2)) == digest([1, 2])


def test_the_digest_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"content").hexdigest()


def test_the_digest_of_a_table_is_of_its_values_alone(tmp_path: Path) -> None:
    def written(values: list[int], about: str) -> list[str]:
        schema = pa.schema([pa.field("n", pa.int64(), metadata={"description": about})])
        table = pa.table({"n": values}, schema.with_metadata({"sources": about}))
        write_table_atomic(tmp_path / "t.parquet", table)
        return [of(tmp_path / "t.parquet") for of in (table_digest, file_digest)]

    first, second, other = written([1, 2], "a"), written([1, 2], "another"), written([1, 3], "a")
    assert first[0] == second[0] != other[0]
    assert first[1] != second[1]
    (tmp_path / "damaged").write_bytes(b"content")
    assert table_digest(tmp_path / "damaged") == file_digest(tmp_path / "damaged")


# --- code ---


def package_of(folder: Path, low: str, top: str) -> dict[str, str]:
    """Return the digests of a package in which a module imports from another."""
    package = folder / "etrm"
    for name, text in (("models/low", low), ("models/top", top), ("models/__init__", "")):
        path = package / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    _code_digests.cache_clear()
    return code_digests("etrm.models.top:g", package=package)


LOW = "def f(n: int) -> int:\n    return n + A\n\nA = 1\nB = 2\n"
TOP = "from etrm.models.low import f\n\ndef g(): return f(1)\n"


@pytest.mark.parametrize(
    "top",
    [
        TOP,
        "from etrm.models import low\ndef g(): return low.f(1)\n",
        "from etrm.models import low\ndef g(): return h(low)\n",
        "import etrm.models.low\ndef g(): return etrm.models.low.f(1)\n",
        "def g():\n    from etrm.models.low import f as h\n    return h(1)\n",
        "from etrm.models.low import f\ndef h(): return f(1)\ng = h\n",
        "from etrm.models.low import f\nclass g:\n    def m(self): return f(1)\n",
        "from etrm.models.low import f\nh = 1\nif h: h = f(1)\ndef g(): return 1\n",
    ],
)
def test_every_way_to_reach_a_definition_counts(top: str, tmp_path: Path) -> None:
    before = package_of(tmp_path, LOW, top)
    after = package_of(tmp_path, LOW.replace("A = 1", "A = 2"), top)
    assert {name for name in after if after[name] != before.get(name)} == {"etrm.models.low"}
    same = package_of(tmp_path, f"# why\n{LOW}def unused(): pass\n", top)
    assert (same == before) == ("h(low)" not in top), "of a bare module, everything counts"


def test_another_import_under_the_same_name_counts(tmp_path: Path) -> None:
    top = "from numpy import exp as e\ndef g(): return e(1)\n"
    before = package_of(tmp_path, LOW, top)
    assert package_of(tmp_path, LOW, top.replace("exp", "log")) != before


def test_a_module_is_named_by_its_file() -> None:
    assert source_file("etrm.models.losses") == "etrm/models/losses.py"
    assert source_file("etrm.data") == "etrm/data/__init__.py"
    assert source_file("etrm.was_there_once") == "etrm/was_there_once.py"


@pytest.mark.parametrize("key", [run_key, evaluation_key])
def test_a_key_changes_with_every_part_of_it(key: Any) -> None:
    names = inspect.signature(key).parameters
    values: dict[str, Any] = {name: f"some {name}" for name in names} | {"tables": ["t", "u"]}
    other: dict[str, Any] = {name: f"another {name}" for name in names} | {"tables": ["t"]}
    keys = {key(**values), *(key(**(values | {name: other[name]})) for name in names)}
    assert len(keys) == len(names) + 1


def test_the_key_of_a_run_without_a_parent_is_another() -> None:
    assert run_key({}, ["t", "u"], None, "c") != run_key({}, ["t", "u"], "p", "c")


def test_a_digest_imports_nothing() -> None:
    code = (
        "import sys; from etrm.storage.digests import code_digest;"
        " code_digest('etrm.training.build:build_trainer', 'etrm.report.run_view');"
        " sys.exit(' '.join({'torch', 'matplotlib', 'wandb'} & set(sys.modules)) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stderr.strip()) == (0, "")


def test_the_commit_is_recorded() -> None:
    head = commit()
    assert head is None or re.fullmatch(r"[0-9a-f]{40}\+?", head)
