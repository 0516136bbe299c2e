"""How many tasks, questions and puzzles there are: from tasks.parquet, else from the sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from etrm.config.study import DataConfig, ExperimentConfig, RunConfig
from etrm.data.prepare import select_tasks
from etrm.data.tables import TaskRecord, read_tasks
from etrm.study.layout import Pipeline


@dataclass(frozen=True)
class Sizes:
    """What training and evaluation go over. None and 0: not known before the sources are there."""

    training: int = 0  # tasks
    held_out: int = 0  # tasks
    questions: int | None = None  # test inputs of the held-out tasks
    cells: float = 0.0  # of such a test input, on average
    missing: tuple[str, ...] = ()  # files of sources that are not there, and where to get them

    def predictions(self, config: ExperimentConfig, variants: int) -> int | None:
        """Answers that an evaluation asks for: each question in each variant, at most."""
        if self.questions is None or not self.held_out:
            return None
        asked = config.evaluation.tasks or self.held_out
        share = min(asked, self.held_out) / self.held_out
        return round(self.questions * share) * min(config.evaluation.variants, variants)

    def puzzles(self, run: RunConfig, variants: int) -> int:
        """Augmented puzzles that a run trains on, at most: rows of a table of embeddings."""
        tasks = self.training + (self.held_out if run.split == "transductive" else 0)
        limits = (run.train.tasks or tasks, run.train.variants or variants)
        return min(tasks, limits[0]) * min(variants, limits[1])


def sizes_of(pipeline: Pipeline, again: bool) -> Sizes:
    """Sizes of a study; `again`: its tables are made again, so that they say nothing.

    Sources that are missing are left out: what is counted is then a lower bound of training.
    """
    data = pipeline.study.data
    missing = _missing(data)
    try:
        if not again and pipeline.tasks.is_file():
            return _counted(read_tasks(pipeline.tasks), missing=())
        there = [tuple(n for n in names if n not in missing) for names in _named(data)]
        records, _ = select_tasks(replace(data, training=there[0], evaluation=there[1]))
    except (ValueError, OSError):  # the stage `tasks` says what is wrong with them
        return Sizes(missing=tuple(missing.values()))
    held_out_missing = set(missing) & set(data.evaluation)
    found = _counted(records, tuple(missing.values()))
    return replace(found, questions=None) if held_out_missing else found


def _named(data: DataConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return data.training, data.evaluation


def _counted(records: Sequence[TaskRecord], missing: tuple[str, ...]) -> Sizes:
    held_out = [record.task for record in records if record.split == "evaluation"]
    inputs = [query.input.size for task in held_out for query in task.queries]
    return Sizes(
        training=len(records) - len(held_out),
        held_out=len(held_out),
        questions=len(inputs),
        cells=sum(inputs) / max(1, len(inputs)),
        missing=missing,
    )


def _missing(data: DataConfig) -> dict[str, str]:
    """Sources in use whose files are not there, by name, in words."""
    found = {}
    for name in {*data.training, *data.evaluation}:
        source = data.sources[name]
        keys = ("challenges", "solutions", "path")
        paths = [Path(p) for key in keys if (p := getattr(source, key, None))]
        gone = [str(path) for path in paths if not path.exists()]
        if gone:
            hint = getattr(source, "hint", "")
            found[name] = f"{', '.join(gone)} missing (data.sources.{name})" + (
                f": {hint}" if hint else ""
            )
    return found
