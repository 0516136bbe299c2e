"""Two configurations beside each other, key by key."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

NONE = "–"  # where one of the two has no such key


def changes(config: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (dotted key, value in the baseline, value here) wherever the two configs differ."""
    here, there = dict(flat(config)), dict(flat(baseline))  # dotted key → value
    keys = sorted(here.keys() | there.keys())
    pairs = [(key, there.get(key, NONE), here.get(key, NONE)) for key in keys]
    return [(key, old, new) for key, old, new in pairs if old != new]


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of all that is no block."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def in_words(change: tuple[str, Any, Any]) -> str:
    """Return a change as `train.lr 0.002 → 0.001`, values as YAML has them."""
    key, old, new = change
    return f"{key} {_value(old)} → {_value(new)}"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
