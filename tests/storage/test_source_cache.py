"""The cache of what source files say: by content, never wrong, and never in the way."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from etrm.storage import digests
from etrm.storage.source_cache import LIMIT, SourceCache, beside_bytecode

ROOTS = ("etrm.report.paper", "etrm.training.health:write_verdict")


def fails(text: str) -> None:
    raise AssertionError(f"read again: {text}")


def test_a_text_is_read_once_by_all_processes(tmp_path: Path) -> None:
    file = tmp_path / "cache/values.json"
    first = SourceCache(file, "reader")
    assert first.get("a text", "count", len) == 6
    assert first.get("a text", "count", fails) == 6
    first.save()
    second = SourceCache(file, "reader")
    assert second.get("a text", "count", fails) == 6
    # Another text, another question, another code that reads.
    assert second.get("another text", "count", len) == 12
    assert second.get("a text", "upper", str.upper) == "A TEXT"
    assert SourceCache(file, "other reader").get("a text", "count", lambda text: 0) == 0


@pytest.mark.parametrize("content", ["", "{", "[]", "\0", '{"a": '])
def test_a_damaged_cache_is_read_anew(tmp_path: Path, content: str) -> None:
    file = tmp_path / "values.json"
    file.write_text(content)
    cache = SourceCache(file, "reader")
    assert cache.get("a text", "count", len) == 6
    cache.save()
    assert list(json.loads(file.read_text()).values()) == [6]


def test_a_cache_that_cannot_be_written_is_not_missed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (None, tmp_path / "file/values.json"):  # no place; one that cannot be made
        cache = SourceCache(place, "reader")
        assert cache.get("a text", "count", len) == 6
        cache.save()


def test_texts_that_are_no_more_leave_it_in_time(tmp_path: Path) -> None:
    cache = SourceCache(tmp_path / "values.json", "reader")
    for number in range(LIMIT + 1):
        cache.get(str(number), "count", len)
    cache.save()
    assert json.loads((tmp_path / "values.json").read_text()) == {}


def test_digests_are_equal_with_and_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = digests._code_digests.__wrapped__
    found = []
    for place in (None, tmp_path / "values.json", tmp_path / "values.json"):
        cache = SourceCache(place, "reader")
        monkeypatch.setattr(digests, "_sources", lambda cache=cache: cache)
        found.append(taken(ROOTS, digests.PACKAGE))
        if len(found) == 2:  # the third finds all in the file
            monkeypatch.setattr(digests, "read_code", fails)
            monkeypatch.setattr(digests, "read_definitions", fails)
    assert found[0] == found[1] == found[2]


def test_it_stands_where_bytecode_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nowhere, where none is to be written."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "pycache_prefix", None)
    assert beside_bytecode("/a/b.py", "c") == Path("/a/__pycache__/c")
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path))
    assert beside_bytecode("/a/b.py", "c") == tmp_path / "a/c"
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert beside_bytecode("/a/b.py", "c") is None
