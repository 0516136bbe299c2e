"""Merging of documents: a difference over a base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# A block whose tag changes is another type: it replaces the inherited block instead of merging.
TAGS = ("source", "kind")
# The content of an entry that a file sets to null where it extends another: no point of a sweep.
REMOVED: Any = object()


def merge(base: Mapping[str, Any], difference: Mapping[str, Any]) -> dict[str, Any]:
    """Return `difference` over `base`, block by block; one with another tag replaces the old."""
    result = dict(base)
    for key, value in difference.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not retagged(old, value):
            value = merge(old, value)  # block by block
        result[key] = value
    return result


def has_tag(block: Any, tags: tuple[str, ...] = TAGS) -> bool:
    """Return whether a block has a tag.

    A block in the place of a tag is none: an experiment, a source or an axis of that name.
    """
    return isinstance(block, Mapping) and any(
        tag in block and not isinstance(block[tag], Mapping) for tag in tags
    )


def retagged(old: Any, new: Any) -> bool:
    """Return whether both are blocks, with different values of one tag."""
    return any(has_tag(old, (t,)) and has_tag(new, (t,)) and old[t] != new[t] for t in TAGS)


def nested(key: str, value: Any) -> dict[str, Any]:
    """Return the blocks in which the value at a dotted key stands."""
    for name in reversed(key.split(".")):  # from the inside out
        value = {name: value}
    return dict(value)
