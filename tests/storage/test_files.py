"""Files that are complete or not there, and JSON of plain values."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etrm.storage.files import atomic_write, write_json_atomic, write_table_atomic


def test_an_exception_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    with pytest.raises(KeyboardInterrupt), atomic_write(path) as temporary:  # noqa: PT012
        assert temporary.parent == path.parent
        temporary.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_table_that_fails_half_way_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, table = tmp_path / "t.parquet", pa.table({"step": [1, 2]})
    write_table_atomic(path, table)
    before = path.read_bytes()

    def disk_full(table: pa.Table, where: Path, **options: object) -> None:
        Path(where).write_bytes(b"PAR1 and not much more")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_table_atomic(path, table)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_made_and_permissions_are_the_usual(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.json"
    write_json_atomic(path, {})
    (tmp_path / "usual").write_text("")
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_json_holds_plain_values(tmp_path: Path) -> None:
    content = {
        "count": (np.int64(3), 3),
        "score": (np.float32(0.5), 0.5),
        "passed": (np.bool_(True), True),
        "loss": (math.nan, None),
        "bounds": ((np.float64("-inf"), 1), [None, 1]),
        "grid": (np.array([[1, 2]], np.uint8), [[1, 2]]),
        "path": (Path("x/y"), "x/y"),
        "nothing": (None, None),
        "text": ("σ", "σ"),
    }
    path = tmp_path / "x.json"
    write_json_atomic(path, {key: given for key, (given, _) in content.items()})
    text = path.read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert "σ" in text
    assert json.loads(text) == {key: expected for key, (_, expected) in content.items()}
    with pytest.raises(TypeError):
        write_json_atomic(path, {"unknown": object()})
    assert path.read_text(encoding="utf-8") == text
