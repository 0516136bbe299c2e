"""A cache of what source files say, so that planning a study does not parse two hundred of them.

It stands where Python keeps bytecode, and like bytecode it may be deleted at any time. An entry is
found by the content of the file and of the code that read it, never by times.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from etrm.storage.files import atomic_write

LIMIT = 4000  # entries, of which a checkout has some 300: the rest is of earlier versions


class SourceCache:
    """JSON values by the texts that they were read from, kept in one file (none where `None`)."""

    def __init__(self, file: Path | None, reader: str) -> None:
        self._file = file
        self._reader = reader  # the code that reads: other code, other values
        self._values: dict[str, Any] = {}
        self._new = False
        if file is not None:
            with suppress(OSError, ValueError):  # missing or damaged: all is read again
                found = json.loads(file.read_text(encoding="utf-8"))
                self._values = found if isinstance(found, dict) else {}

    def get(self, text: str, how: str, read: Callable[[str], Any]) -> Any:
        """Return `read(text)`, a JSON value; `how` tells apart the readers of one text."""
        content = "\0".join((self._reader, how, text))
        key = hashlib.sha256(content.encode()).hexdigest()[:32]  # 128 bits
        if key not in self._values:
            self._values[key] = read(text)
            self._new = True
        return self._values[key]

    def save(self) -> None:
        """Write new values; of processes that write at once, the last one's stay."""
        if self._file is None or not self._new:
            return
        values = self._values if len(self._values) <= LIMIT else {}
        with suppress(OSError), atomic_write(self._file) as temporary:  # a read-only installation
            temporary.write_text(json.dumps(values), encoding="utf-8")
        self._new = False


def beside_bytecode(source: str, name: str) -> Path | None:
    """Return the file `name` where the bytecode of `source` is kept; None where none is."""
    if sys.dont_write_bytecode or sys.implementation.cache_tag is None:
        return None
    return Path(importlib.util.cache_from_source(source)).with_name(name)
