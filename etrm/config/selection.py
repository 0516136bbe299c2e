"""Selections: a choice among experiments by rule, from their answers to validation tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from etrm.config.rules import DISTINCT
from etrm.config.schema import ConfigProblem, option


@dataclass(frozen=True)
class SelectionConfig:
    """A choice among experiments, by their answers to validation tasks, which none trains on."""

    of: tuple[str, ...] = option(
        "the candidates: groups of experiments, or experiments", rule=DISTINCT
    )
    best: int = option("candidates that are chosen", unit="experiments", ge=1)
    near: float = option(
        "near ties are chosen too: those behind the last of the best by at most so many standard"
        " errors of the difference, paired over tasks; 0: equal ones alone",
        1.0,
        "standard errors",
        ge=0,
    )
    at_most: int | None = option(
        "that are chosen with near ties, the better ones first; null: all of them",
        None,
        "experiments",
        ge=1,
    )

    def problems(self) -> Iterator[ConfigProblem]:
        """Yield a bound below the number of the best."""
        if self.at_most is not None and self.at_most < self.best:
            yield ConfigProblem("at_most", str(self.at_most), f"`best` at least, {self.best}")

    @property
    def most(self) -> int | None:
        """Return the largest number that may be chosen; None: all."""
        return self.best if self.near == 0 and self.at_most is None else self.at_most
