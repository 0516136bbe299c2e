"""Lanes: the shapes of canvases, as a study names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from etrm.config.rules import DISTINCT, Rule
from etrm.config.schema import Written

MAX_SIDE = 30  # of a grid, and of a canvas
SIDE = {"type": "integer", "minimum": 1, "maximum": MAX_SIDE}


@dataclass(frozen=True, repr=False)
class Lane(Written):
    """One canvas shape, in cells; a study writes `6` for 6×6 cells and `[1, 12]` for one row.

    Lanes are ordered by area, and of equal areas by rows.
    """

    rows: int
    columns: int

    kind: ClassVar[str] = "side or [rows, columns]"
    limits: ClassVar[str] = f"1 to {MAX_SIDE}"
    schema: ClassVar[Mapping[str, Any]] = {
        "anyOf": [SIDE, {"type": "array", "items": SIDE, "minItems": 2, "maxItems": 2}]
    }

    @classmethod
    def read(cls, value: Any) -> Lane | str:
        """Return the lane of a side or of [rows, columns]; else the expectation as text."""
        if isinstance(value, list | tuple):
            sides, expected = (*value,), f"rows and columns from {cls.limits}"
        else:
            sides, expected = (value, value), f"a side from {cls.limits}, or [rows, columns]"
        if len(sides) == 2 and all(type(n) is int and 1 <= n <= MAX_SIDE for n in sides):
            return cls(*sides)
        return expected

    def plain(self) -> int | list[int]:
        """Return the lane as a study writes it."""
        return self.rows if self.is_square else [self.rows, self.columns]

    @property
    def cells(self) -> int:
        """The tokens S of its canvas."""
        return self.rows * self.columns

    @property
    def is_square(self) -> bool:
        """Whether a grid can be turned or transposed on it."""
        return self.rows == self.columns

    def holds(self, height: int, width: int) -> bool:
        """Return whether a grid of `height` × `width` cells fits."""
        return height <= self.rows and width <= self.columns

    def __lt__(self, other: Lane) -> bool:
        return (self.cells, self.rows) < (other.cells, other.rows)

    def __repr__(self) -> str:
        """Return `6` or `1x12`."""
        return str(self.rows) if self.is_square else f"{self.rows}x{self.columns}"


BY_AREA = Rule(
    "at least one, in ascending order of areas, none twice",
    lambda v: 0 < len(v) == len(set(v)) and [x.cells for x in v] == sorted(x.cells for x in v),
    DISTINCT.schema,
)
