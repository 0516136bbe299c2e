"""All primitives by name, and the named families of them."""

from __future__ import annotations

from etrm.worlds.lines import LINES
from etrm.worlds.objects import OBJECTS
from etrm.worlds.planes import PLANES

PRIMITIVES = {each.name: each for each in (*LINES, *PLANES, *OBJECTS)}
FAMILIES = {
    "ten_rules": (
        *("recolour", "shift", "mirror", "gravity", "fill", "keep", "between", "last", "sort"),
        "dup",
    ),
    "one_row": tuple(name for name, each in PRIMITIVES.items() if each.least[0] == 1),
    "all": tuple(PRIMITIVES),
}
