"""Options of refinement: search over the context of a task, guided by its demos."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from etrm.config.rules import DISTINCT
from etrm.config.schema import ConfigProblem, option

METHODS = ("search", "random", "act_steps", "fine_tuning")


@dataclass(frozen=True)
class RefinementConfig:
    """Refinement of the answers of a finished run on the held-out tasks; `docs/refinement.md`."""

    steps: tuple[int, ...] = option(
        "numbers of steps after which answers are read, from 0, the encoder's own context, in"
        " ascending order, as in [0, 10, 50]; empty: no refinement",
        factory=tuple,
        unit="steps",
        ge=0,
    )
    methods: tuple[str, ...] = option(
        "`search`: gradient ascent of the demos' likelihood over the context (LPN's latent search);"
        " `random`: its unguided control, random directions of the same lengths; `act_steps`: no"
        " search, but as many more ACT steps as cost the same; `fine_tuning`: test-time training",
        factory=lambda: ("search", "random", "act_steps"),
        choices=METHODS,
        rule=DISTINCT,
    )
    space: str = option(
        "the space of the search: the context `tokens`, or the `latent` of a variational encoder",
        "tokens",
        choices=("tokens", "latent"),
    )
    lr: float = option(
        "Adam's learning rate, in units of the RMS of the context (or of 1, that of the decoder's"
        " stream, where it is smaller)",
        0.03,
        gt=0,
    )
    until_solved: bool = option(
        "a start, or the training of `fine_tuning`, stops as soon as all demos come out exactly:"
        " what fits them ever better from there on forgets the rule",
        True,
    )
    act_steps: int = option(
        "ACT steps in which a demo is answered; the last H-cycle of the last has the gradient",
        1,
        "ACT steps",
        ge=1,
    )
    demo_starts: int = option(
        "starts from the contexts of single demos, beside that from all demos", 0, "starts", ge=0
    )
    perturbed_starts: int = option("starts from perturbed contexts", 0, "starts", ge=0)
    random_starts: int = option("starts from random contexts", 0, "starts", ge=0)
    perturbation: float = option(
        "RMS of a perturbation, in the same units as the learning rate", 0.3, gt=0
    )
    tuned: str = option("weights that `fine_tuning` trains", "all", choices=("encoder", "all"))
    tuning_lr: float = option("Adam's learning rate of `fine_tuning`", 1.0e-4, gt=0)
    variants: int = option("augmented puzzles per task that are refined and vote", 1, ge=1)
    tasks: int | None = option(
        "held-out tasks, the same fixed draw as for the evaluation; null: all", None, "tasks", ge=1
    )
    batch_size: int = option(
        "demos answered at once, those of all starts of some questions", 64, "samples", ge=1
    )
    weights: str = option("averaged or raw weights", "ema", choices=("ema", "raw"))

    @property
    def starts(self) -> int:
        """Return the number of starts of a search."""
        return 1 + self.demo_starts + self.perturbed_starts + self.random_starts

    def problems(self) -> Iterator[ConfigProblem]:
        """Yield numbers of steps out of order, and a control without its search."""
        if self.steps and (self.steps[0] != 0 or list(self.steps) != sorted(set(self.steps))):
            yield ConfigProblem("steps", str(list(self.steps)), "0 first, then more, none twice")
        if "search" not in self.methods and "random" in self.methods:
            expected = "`search` beside `random`, whose directions have the lengths of its steps"
            yield ConfigProblem("methods", str(list(self.methods)), expected)
