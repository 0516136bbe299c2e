"""Pieces of messages: values, names and lists as errors and reports show them."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

KINDS: dict[type, str] = {
    **{bool: "true/false", str: "text", int: "integer", float: "number", type(None): "null"},
    **{list: "list", dict: "block"},
}


def first_few(items: Iterable[object], n: int = 4) -> list[str]:
    """Return the first `n` items as text, and "and N more" as the last one where there are more."""
    texts = [str(item) for item in items]  # may be an iterator
    return texts if len(texts) <= n else [*texts[:n], f"and {len(texts) - n} more"]


def printable(text: str) -> str:
    r"""Return `text` with escapes, as `\x00` and `\ud800`, for signs that no terminal shows."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def brief(value: Any) -> str:
    """Return the beginning of a long value; for a text with its length."""
    text = repr(value)  # quotes tell text from numbers
    if len(text) <= 60:
        return text
    return f"{text[:57]}...{f' of {len(value)} letters' if isinstance(value, str) else ''}"


def show(value: Any) -> str:
    """Return a value with its YAML kind, as `'1e-4' (text)`."""
    return f"{brief(value)} ({KINDS.get(type(value), type(value).__name__)})"


def nearest(value: Any, known: Iterable[Any]) -> str:
    """Return "did you mean …?" for the closest of the `known` names; "" where none is close."""
    near = difflib.get_close_matches(str(value), [str(name) for name in known], n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def join(path: str, key: Any) -> str:
    """Return the dotted path of `key` under `path`."""
    name = str(key) or "''"  # an empty name must be seen
    return f"{path}.{name}" if path else name


def write_page(text: str, arguments: Sequence[str]) -> None:
    """Print a generated page, in UTF-8 as a file is, or write it to the path that is given."""
    if arguments:
        Path(arguments[0]).write_text(text, encoding="utf-8")
    else:
        sys.stdout.buffer.write(text.encode())
