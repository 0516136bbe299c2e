"""A finished run that answers tasks: from its folder alone, without the tables of a study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from etrm.arc.augment import draw_variants
from etrm.arc.grid import demo_grids
from etrm.arc.task import Task
from etrm.config.refinement import RefinementConfig
from etrm.config.schema import ConfigError, parse
from etrm.config.study import EvaluationConfig, RunConfig
from etrm.data.batch import Batch
from etrm.data.corpus import Corpus
from etrm.data.episodes import group_by_lane, held_out_questions
from etrm.errors import MissingFileError, UserError
from etrm.evaluation.decode import LaneQuestions, all_variants, batches, decode, predict
from etrm.evaluation.voting import vote
from etrm.models.act import Model
from etrm.models.build import load_model
from etrm.models.compute import DTYPES, Compute, computing, pick_device
from etrm.solve.solution import Solution
from etrm.solve.tasks import TaskError, Tasks, make_task, read_tasks
from etrm.storage.records import RUN, Keys, check_weights, read_run

KEYS: Keys = {**RUN, "tasks": list, "puzzles": int, "config.context.source": str}
VARIANTS = 32  # that vote by default, of a run that was trained on variants
BATCH = 64  # questions decoded at once
DEEPEST = 5  # folders below one that is no run folder, in which runs are looked for

Demos = Sequence[tuple[Any, Any]]  # input and output: integers [height, width], or lists of rows


def load(folder: str | Path, weights: str = "ema", device: str | None = None) -> Solver:
    """Return the solver of a run folder, as `results/<study>/runs/<experiment>/full/seed0`.

    `weights` are `ema`, their moving average, or `raw`; `device` is by default a GPU if there is
    one. Raises `MissingFileError` where there is no finished run, `DamagedFileError` where its
    weights are not those that it has written, and `UserError` for a TRM that knows only the tasks
    it was trained on.
    """
    folder = Path(folder).expanduser()
    if not (folder / "run.json").is_file():
        raise MissingFileError(_no_run(folder))
    record = read_run(folder, KEYS)
    check_weights(folder, record)
    try:
        run: RunConfig = parse(RunConfig, record["config"])
    except ConfigError as error:
        raise UserError(
            f"{folder}: found a run of another version of etrm ({error.problems[0]}), expected one"
            " of this version: train it again, or ask it by the version that trained it"
        ) from None
    unseen = getattr(run.context, "unseen", "mean")  # an encoder reads any task's demos
    if unseen != "mean":
        raise UserError(
            f"{folder}: found a TRM, whose embeddings are those of the {len(record['tasks'])} tasks"
            " that it was trained on, expected a run that can be asked about others: an ETRM, or a"
            " TRM with `context.unseen: mean`"
        )
    model = load_model(folder, run, weights).to(pick_device(device))
    model.context.meet_unseen(1)
    return Solver(folder, record, run, model)


def _no_run(folder: Path) -> str:
    """Return the message that there is no finished run, with those that are near."""
    found = "no run.json in it" if folder.is_dir() else "no such folder"
    levels = ("/".join([*["*"] * depth, "run.json"]) for depth in range(1, DEEPEST))
    below = [path.parent for level in levels for path in sorted(folder.glob(level))]
    near = f"; there is {', '.join(map(str, below[:3]))}" if below else ""
    return (
        f"{folder}: found {found}, expected the folder of a finished run, as"
        f" results/<study>/runs/<experiment>/full/seed0{near}"
    )


@dataclass(frozen=True, eq=False)
class Solver:
    """A finished run, asked about any task that its canvas lanes hold.

    Predictions are those of the study's evaluation with the same variants.
    """

    folder: Path
    record: Mapping[str, Any] = field(repr=False)  # its run.json
    run: RunConfig = field(repr=False)
    model: Model = field(repr=False)  # in evaluation mode

    @property
    def device(self) -> torch.device:
        """The device that decodes."""
        return next(self.model.parameters()).device

    @property
    def variants(self) -> int:
        """The variants that vote by default: 1 for a run that was trained on unchanged tasks.

        Those of worlds are: a turned or recoloured one is another task.
        """
        return VARIANTS if self.record["puzzles"] > len(self.record["tasks"]) else 1

    def solve(self, task: Tasks, **options: Any) -> Solution:
        """Return the answers to one task, in any form of `etrm.read_tasks`.

        `options` are those of `stream`. Raises `TaskError`.
        """
        tasks = read_tasks(task)
        if len(tasks) != 1:
            raise TaskError([f"found {len(tasks)} tasks, expected one; `solve_all` takes several"])
        return next(self.stream(tasks, **options))

    def solve_all(self, tasks: Tasks, **options: Any) -> list[Solution]:
        """Return the answers to each task, in order; `options` are those of `stream`."""
        return list(self.stream(tasks, **options))

    def stream(
        self,
        tasks: Tasks,
        *,
        variants: int | None = None,
        seed: int = 0,
        batch_size: int = BATCH,
        halt_early: bool = False,
        search: int = 0,
    ) -> Iterator[Solution]:
        """Yield the answers to each task, in order, as soon as they are there.

        `variants`: augmented puzzles of a task that vote, drawn by `seed` as a study draws them;
        by default `self.variants`. `batch_size`: questions decoded at once, which changes no
        answer. `halt_early`: stop a question when its q-head says so; TRM runs all steps.

        `search`: steps of latent search (`etrm.refinement.search`), by which each variant gives two
        attempts; those by which the demos are most likely vote first. 0: none.

        Raises `TaskError` for bad tasks and for those that no canvas lane of the run holds, before
        anything is decoded.
        """
        asked = read_tasks(tasks)
        if problems := [line for line in map(self.too_large, asked) if line]:
            raise TaskError(problems)
        count = self.variants if variants is None else variants
        given = {"variants": count, "batch_size": batch_size, "search": search}
        least = {"variants": 1, "batch_size": 1, "search": 0}
        for name, value in given.items():
            if value < least[name]:
                raise UserError(f"{name}: found {value}, expected at least {least[name]}")
        config = EvaluationConfig(variants=count, batch_size=batch_size, halt_early=halt_early)
        at_once = max(1, batch_size // count)  # tasks
        for start in range(0, len(asked), at_once):
            few = asked[start : start + at_once]
            corpus, lanes = self._questions(few, count, seed)
            if search:
                frame, ranking = self._search(few, corpus, lanes, search, batch_size)
            else:
                halting, dtype = self.run.halting, DTYPES[self.run.train.dtype]
                frame = predict(self.model, corpus, lanes, halting, config, dtype).to_pandas()
                ranking = vote(frame)
            for task in few:
                own = (each[each["task"] == task.id] for each in (frame, ranking))
                yield Solution(task, *(each.reset_index(drop=True) for each in own))

    def _search(
        self,
        tasks: Sequence[Task],
        corpus: Corpus,
        lanes: list[LaneQuestions],
        steps: int,
        batch_size: int,
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return two attempts for each question after a search, and the candidates by rank."""
        from etrm.evaluation.run import Questions
        from etrm.refinement.run import refine_questions
        from etrm.refinement.scores import vote_attempts

        config = RefinementConfig(steps=(0, steps), methods=("search",), batch_size=batch_size)
        questions = Questions([*tasks], len(tasks), corpus, lanes)
        table, _ = refine_questions(self.model, questions, self.run, config)
        frame = table.to_pandas()
        frame = frame[frame["steps"] == steps]
        return frame, vote_attempts(frame)

    def too_large(self, task: Task) -> str | None:
        """Return why no canvas lane of the run holds the visible grids of a task; None if one does.

        A lane holds all demos and one test input.
        """
        canvas, demos = self.run.episodes.canvas, demo_grids(task.demos)
        for query in task.queries:
            grids = [*demos, query.input]
            rows, columns = (max(grid.shape[axis] for grid in grids) for axis in (0, 1))
            if not any(lane.holds(rows, columns) for lane in canvas):
                return (
                    f"task {task.id}: found grids of up to {rows}x{columns} cells, expected at most"
                    f" those of the canvas lanes of {self.folder}, {list(canvas)}: ask a run with a"
                    " larger lane in `episodes.canvas`"
                )
        return None

    @torch.no_grad()
    def encode(self, demos: Demos) -> np.ndarray:
        """Return the context tokens of demos, float32 [P, D], as the decoder reads them.

        P is `model.context_tokens`, or of an encoder without a bottleneck the number of the demos'
        cells. Of an encoder with a state of its own: those of the first ACT step. A TRM has the
        mean of its embeddings, whatever the demos.
        """
        batch = self._batch(demos, demos[0][0])
        context = self.model.context
        with computing(self.model, Compute(DTYPES[self.run.train.dtype])):
            encoded = context(batch, context.initial_state(1))
        tokens = encoded.tokens[0] if encoded.real is None else encoded.tokens[0][encoded.real[0]]
        return tokens.float().cpu().numpy()

    def logits(self, demos: Demos, question: Any) -> np.ndarray:
        """Return the logits of the answer to one input, float32 [rows, columns, V].

        Rows and columns are those of the canvas lane, whose top left corner has the answer; V is
        the vocabulary: PAD, EOS, then the ten colours. Of the last ACT step, without variants.
        """
        batch = self._batch(demos, question)
        dtype = DTYPES[self.run.train.dtype]
        with computing(self.model, Compute(dtype)):
            output, _ = decode(self.model, batch, self.run.halting, dtype)
        lane = batch.lane
        return output.logits[0].float().reshape(lane.rows, lane.columns, -1).cpu().numpy()

    def _batch(self, demos: Demos, question: Any) -> Batch:
        """Return the only sample of an unchanged task."""
        task = make_task(demos, [question])
        if (problem := self.too_large(task)) is not None:
            raise TaskError([problem])
        corpus, lanes = self._questions([task], 1, 0)
        [(_, _, _, batch)] = batches(corpus, lanes, 1)
        return batch

    def _questions(
        self, tasks: Sequence[Task], variants: int, seed: int
    ) -> tuple[Corpus, list[LaneQuestions]]:
        """Return every test input in every variant, as the evaluation of a study asks them."""
        drawn = {task.id: draw_variants(task, variants, seed) for task in tasks}
        corpus, episodes = Corpus(tasks, drawn, self.device), self.run.episodes
        questions = held_out_questions(corpus)
        lanes = group_by_lane(corpus, questions, episodes.canvas, episodes.max_demos)
        if not self.model.context.needs_demos:  # a table of one row, the mean, since `load`
            context: Any = self.model.context
            context.weights = context.weights[:1]
            context.meet_unseen(corpus.num_puzzles)
        return corpus, all_variants(corpus, lanes)
