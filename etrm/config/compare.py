"""Two configurations beside each other, key by key."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
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


# Blocks of a configuration, those whose keys change most first.
ORDER = ("split", "context", "model", "decoder", "halting", "train", "episodes", "evaluation")


def summary(found: Sequence[tuple[str, Any, Any]], most: int = 3) -> list[str]:
    """Return changes in words; of more than `most`, their number and the most important."""

    def rank(change: tuple[str, Any, Any]) -> int:
        block = change[0].partition(".")[0]
        return ORDER.index(block) if block in ORDER else len(ORDER)

    if len(found) <= most:
        return [in_words(change) for change in found]
    first = "; ".join(in_words(change) for change in sorted(found, key=rank)[:most])
    return [f"{len(found)} keys; the most important: {first}"]


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
