"""A world: a family of rules over grids of a size, and its held-out part.

The held-out part is a function of seed and family alone, so that two sources of one world agree.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from etrm.errors import UserError
from etrm.worlds.primitive import Grid, Primitive, Space, Values, below
from etrm.worlds.registry import FAMILIES, PRIMITIVES

if TYPE_CHECKING:
    from etrm.config.sources import WorldSource

TRIES = 200  # grids that are drawn for one of the right part


class WorldError(UserError):
    """A world that has no tasks, or of which none is found."""


@dataclass(frozen=True)
class Rule:
    """One primitive with its values, or two of which the second follows the first."""

    parts: tuple[tuple[Primitive, Values], ...]

    @property
    def name(self) -> str:
        """The names of the primitives, as in `mirror+fill`."""
        return "+".join(primitive.name for primitive, _ in self.parts)

    @property
    def parameters(self) -> str:
        """The values by name, as canonical JSON; of a composition a list of such."""
        named = [dict(zip(p.parameters, values, strict=True)) for p, values in self.parts]
        return json.dumps(named if len(named) > 1 else named[0], sort_keys=True)

    def apply(self, grid: Grid) -> Grid:
        """Return the output for an input."""
        for primitive, values in self.parts:
            grid = primitive.apply(grid, *values)
        return grid


class World:
    """The family that a source names, and the parts of it.

    `combinations` are the primitives, or pairs of them, that tasks of the source's part are of.
    """

    def __init__(self, source: WorldSource) -> None:
        self.source = source
        names = [n for rule in source.rules for n in FAMILIES.get(rule, (rule,))]
        self.primitives = [PRIMITIVES[name] for name in dict.fromkeys(names)]
        most = (source.size[0], source.size[1])
        least = most if source.smallest is None else (source.smallest[0], source.smallest[1])
        self.sizes = [
            (h, w) for h in range(least[0], most[0] + 1) for w in range(least[1], most[1] + 1)
        ]
        unusable = [
            p.name
            for p in self.primitives
            if p.enumerable and not all(p.space(*size) for size in self.sizes)
        ]
        if not self.sizes or (source.unseen == "compositions" and source.depth < 2):
            found = f"smallest {_text(least)}, size {_text(most)}, depth {source.depth}"
            raise WorldError(
                f"a world: found {found}, expected a smallest size up to the size, and depth 2"
                " where compositions are unseen"
            )
        if unusable:
            raise WorldError(
                f"rules {', '.join(unusable)} of a world of grids from {_text(least)} to"
                f" {_text(most)}: found a size without a value of their parameters, expected"
                " larger grids, or a world without these rules"
            )
        self.combinations = self._part(self.compositions if source.depth > 1 else self._singles)

    @property
    def _singles(self) -> list[tuple[Primitive, ...]]:
        return [(primitive,) for primitive in self.primitives]

    @cached_property
    def compositions(self) -> list[tuple[Primitive, ...]]:
        """All pairs of different primitives of which the second may follow the first."""
        leads = [p for p in self.primitives if p.leads]
        return [(p, q) for p in leads for q in self.primitives if q.follows and p is not q]

    def _part(self, all_of: list[tuple[Primitive, ...]]) -> list[tuple[Primitive, ...]]:
        """Return the combinations that this source's part is of."""
        unseen, held_out = self.source.unseen, self.source.part == "held_out"
        if unseen == "primitives":
            hidden = set(self._hidden([p.name for p in self.primitives], "primitive"))
            chosen = [c for c in all_of if any(p.name in hidden for p in c) == held_out]
        elif unseen == "compositions":
            chosen = self._compositions_of_part(all_of, held_out)
        else:
            chosen = all_of
        if not chosen:
            raise WorldError(
                f"a world of the rules {', '.join(p.name for p in self.primitives)}: found no"
                f" combination of {self.source.depth} for the part {self.source.part}, expected"
                " one: give it more rules"
            )
        return chosen

    def _compositions_of_part(
        self, all_of: list[tuple[Primitive, ...]], held_out: bool
    ) -> list[tuple[Primitive, ...]]:
        """Hold out pairs in the order of their hash, but none whose primitive no other one has."""
        ranked = sorted(all_of, key=lambda c: self._hash("pair", *(p.name for p in c)))
        wanted, seen = self._share_of(len(ranked)), list(ranked)
        hidden: list[tuple[Primitive, ...]] = []
        for pair in ranked:
            rest = [p for other in seen if other is not pair for p in other]
            if len(hidden) < wanted and all(p in rest for p in pair):
                hidden.append(pair)
                seen.remove(pair)
        return [c for c in all_of if (c in hidden) == held_out]

    # --- the held-out part ---

    def _hash(self, *of: Any) -> int:
        text = json.dumps([self.source.seed, *of])
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")

    def _share_of(self, number: int) -> int:
        return max(1, min(number - 1, round(self.source.share * number)))

    def _hidden(self, of: Sequence[Any], *purpose: str) -> list[Any]:
        """Return the share of some values that is held out: the first in the order of hashes."""
        ranked = sorted(of, key=lambda each: self._hash(*purpose, each))
        return ranked[: self._share_of(len(ranked))]

    @cache  # noqa: B019  worlds are few, and live as long as the process
    def _hidden_values(self, primitive: Primitive) -> frozenset[Values]:
        """Return the values that are held out, of those on grids of any size of the world."""
        found = dict.fromkeys(v for size in self.sizes for v in primitive.space(*size))
        if len(found) < self.source.split_from:  # its tasks have unseen grids only
            return frozenset()
        return frozenset(self._hidden(list(found), "values", primitive.name))

    def is_split(self, primitive: Primitive) -> bool:
        """Return whether some of the primitive's values are never trained on."""
        return self.source.unseen == "parameters" and (
            not primitive.enumerable or bool(self._hidden_values(primitive))
        )

    def is_held_out(self, primitive: Primitive, values: Values) -> bool:
        """Return whether these values of a primitive that is split occur in held-out tasks only."""
        if primitive.enumerable:
            return values in self._hidden_values(primitive)
        return self._hash("values", primitive.name, values) < self.source.share * 2**64

    @cache  # noqa: B019
    def space(self, primitive: Primitive, size: tuple[int, int]) -> Space:
        """Return the values that tasks of this source's part have."""
        space = primitive.space(*size)
        if not self.is_split(primitive):
            return space
        held_out = self.source.part == "held_out"
        return tuple(v for v in space if self.is_held_out(primitive, v) == held_out)

    def novelty(self, combination: Sequence[Primitive]) -> str | None:
        """Return the part of a held-out task that no training task has; None: it is no such."""
        if self.source.part == "training":
            return None
        if self.source.unseen == "parameters" and not any(map(self.is_split, combination)):
            return "grids"
        return self.source.unseen

    def has_grid(self, grid: Grid) -> bool:
        """Return whether a grid is an input of tasks of this source's part; no grid is of both."""
        key = hashlib.blake2b(grid.tobytes(), digest_size=8, salt=self._salt).digest()
        hidden = int.from_bytes(key, "big") < self.source.share * 2**64
        return hidden == (self.source.part == "held_out")

    @cached_property
    def _salt(self) -> bytes:
        return self.source.seed.to_bytes(8, "big")

    # --- drawing ---

    def draw_rule(self, rng: np.random.Generator, size: tuple[int, int]) -> Rule | None:
        """Draw a combination and its values; None where this size has none of this part."""
        parts = []
        for primitive in self.combinations[below(rng, len(self.combinations))]:
            space = self.space(primitive, size)
            if primitive.enumerable and not space:
                return None
            values = primitive.draw(rng, space)
            while not primitive.enumerable and self.is_split(primitive):
                if self.is_held_out(primitive, values) == (self.source.part == "held_out"):
                    break
                values = primitive.draw(rng, space)
            parts.append((primitive, values))
        return Rule(tuple(parts))

    def draw_grid(self, rng: np.random.Generator, rule: Rule, size: tuple[int, int]) -> Grid | None:
        """Draw an input of this source's part; None where a number of tries finds none."""
        primitive, values = rule.parts[0]
        for _ in range(TRIES):
            grid = primitive.inputs(rng, *size, *values)
            if self.has_grid(grid):
                return grid
        return None


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"
