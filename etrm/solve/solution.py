"""The answers to one task: its attempts, the votes behind them, and their text and picture."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from etrm.arc.task import Task
from etrm.evaluation.decode import PREDICTIONS
from etrm.evaluation.pass_at_k import Submission, submission, top_attempts
from etrm.evaluation.voting import with_arrays
from etrm.solve.terminal import render
from etrm.storage.files import atomic_write


def empty_submission(tasks: Sequence[Task]) -> Submission:
    """Return a submission without an answer to any of the tasks."""
    return submission(PREDICTIONS.empty_table().to_pandas(), tasks)


@dataclass(frozen=True, eq=False, repr=False)
class Solution:
    """The answers of a run to one task."""

    task: Task
    rows: pd.DataFrame  # as in an evaluation's `predictions.parquet`
    ranked: pd.DataFrame  # the candidates, as by `vote`

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """One row for each test input and variant, as `etrm.predictions` reads an evaluation's."""
        return with_arrays(self.rows)

    @cached_property
    def votes(self) -> pd.DataFrame:
        """The distinct answers to each test input, best first.

        `query`: the number of the test input, from 0; `rank`, from 1; `grid`: uint8 [height,
        width]; `votes`, and the `share` of all variants that they are; `q_mean`: the mean halting
        probability behind them, 0-1.
        """
        ranked = with_arrays(self.ranked).rename(columns={"count": "votes"})
        columns = ["query", "rank", "votes", "share", "q_mean", "grid"]
        return ranked.assign(share=ranked["votes"] / self.variants)[columns]

    @cached_property
    def variants(self) -> int:
        """The variants of the task that voted."""
        return int(self.rows["variant"].nunique())

    @cached_property
    def attempts(self) -> list[list[np.ndarray]]:
        """The two attempts at each test input, uint8 [height, width], as in `submission`."""
        tests = self.submission()[self.task.id]
        return [[np.array(grid, dtype=np.uint8) for grid in each.values()] for each in tests]

    @property
    def correct(self) -> list[bool | None]:
        """Whether an attempt at each test input is right; None where its output is not known."""
        pairs = zip(self.task.queries, self.attempts, strict=True)
        return [
            None if query.output is None else any(np.array_equal(query.output, a) for a in attempts)
            for query, attempts in pairs
        ]

    def submission(self) -> Submission:
        """Return the Kaggle form: `{id: [{"attempt_1": grid, "attempt_2": grid}, …]}`."""
        return top_attempts(self.ranked, {self.task.id: len(self.task.queries)})

    def text(self, width: int = 100, colour: bool = False) -> str:
        """Return demos, test inputs, attempts and votes side by side, `width` letters wide.

        Cells are digits, or with `colour` blocks of ARC's colours on a terminal.
        """
        return render(self, width, colour)

    def show(self) -> None:
        """Print the text: in colour on a terminal, unless the variable NO_COLOR is set."""
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        print(self.text(shutil.get_terminal_size(fallback=(100, 40)).columns, colour), flush=True)

    def picture(self, path: str | Path) -> None:
        """Write a PNG of demos, test inputs, attempts and votes; it needs matplotlib."""
        from etrm.solve.picture import draw, png

        content = png(draw(self))
        with atomic_write(Path(path)) as temporary:  # it appears whole or not at all
            temporary.write_bytes(content)

    def _repr_png_(self) -> bytes:
        """Return the picture, for a notebook."""
        from etrm.solve.picture import draw, png

        return png(draw(self))

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        tests = len(self.task.queries)
        return f"<Solution of task {self.task.id}: test inputs {tests}, variants {self.variants}>"
