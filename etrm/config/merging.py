"""Merging of documents: a difference over what it differs from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# A block whose tag changes is another type: it replaces the inherited block instead of merging.
TAGS = ("source", "kind")


def merge(base: Mapping[str, Any], difference: Mapping[str, Any]) -> dict[str, Any]:
    """`difference` over `base`, block by block; a block with another tag replaces the old one."""
    result = dict(base)
    for key, value in difference.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not _retagged(old, value):
            result[key] = merge(old, value)
        else:
            result[key] = value
    return result


def _retagged(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    # An experiment, a source or an axis that happens to be named as a tag is a block, and no tag.
    return any(
        tag in old
        and tag in new
        and old[tag] != new[tag]
        and not isinstance(old[tag], Mapping)
        and not isinstance(new[tag], Mapping)
        for tag in TAGS
    )


def nested(key: str, value: Any) -> dict[str, Any]:
    """The blocks in which the value at a dotted key stands."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return dict(value)
