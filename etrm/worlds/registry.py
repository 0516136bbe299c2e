"""All primitives by name, and the named families of them."""

from __future__ import annotations

from etrm.worlds.lines import LINES

PRIMITIVES = {each.name: each for each in LINES}
FAMILIES = {
    "ten_rules": (
        *("recolour", "shift", "mirror", "gravity", "fill", "keep", "between", "last", "sort"),
        "dup",
    ),
}
