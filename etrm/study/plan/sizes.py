"""Numbers of tasks, queries and puzzles: of tasks.parquet, else of the sources."""

from __future__ import annotations

from dataclasses import dataclass, replace

from etrm.config.study import ExperimentConfig, RunConfig
from etrm.data.prepare import select_tasks
from etrm.data.tables import read_tasks
from etrm.study.layout import Layout


@dataclass(frozen=True)
class Sizes:
    """Sizes of training and evaluation; None and 0: not known before the sources are there."""

    training: int = 0  # tasks
    held_out: int = 0  # tasks
    questions: int | None = None  # queries of the held-out tasks
    cells: float = 0.0  # mean size of their input grids
    missing: tuple[str, ...] = ()  # sources whose files are missing, and where to get them

    def predictions(self, config: ExperimentConfig, variants: int) -> int | None:
        """Return the most predictions of an evaluation: queries times variants."""
        if self.questions is None or not self.held_out:
            return None
        asked = config.evaluation.tasks or self.held_out
        share = min(asked, self.held_out) / self.held_out
        return round(self.questions * share) * min(config.evaluation.variants, variants)

    def puzzles(self, run: RunConfig, variants: int) -> int:
        """Return the most augmented puzzles of a run: rows of its table of embeddings."""
        tasks = self.training + (self.held_out if run.split == "transductive" else 0)
        return min(tasks, run.train.tasks or tasks) * min(variants, run.train.variants or variants)


def sizes_of(layout: Layout, again: bool) -> Sizes:
    """Return the sizes of a study; `again`: its tables are made again, so they tell nothing.

    Missing sources are left out, which makes the sizes of training a lower bound.
    """
    data, missing = layout.study.data, {}
    for name, source in layout.sources.items():
        gone = [str(path) for path in layout.source_paths(name) if not path.exists()]
        if gone:
            hint = getattr(source, "hint", "")
            missing[name] = f"{', '.join(gone)} missing (data.sources.{name})"
            missing[name] += f": {hint}" if hint else ""
    try:
        if not again and layout.tasks.is_file():
            records, missing = read_tasks(layout.tasks), {}
        else:
            there = (
                [n for n in names if n not in missing] for names in (data.training, data.evaluation)
            )
            training, evaluation = map(tuple, there)
            records, _ = select_tasks(replace(data, training=training, evaluation=evaluation))
    except (ValueError, OSError):  # the stage `tasks` reports it
        return Sizes(missing=tuple(missing.values()))
    held_out = [record.task for record in records if record.split == "evaluation"]
    cells = [query.input.size for task in held_out for query in task.queries]
    return Sizes(
        training=len(records) - len(held_out),
        held_out=len(held_out),
        questions=None if set(missing) & set(data.evaluation) else len(cells),
        cells=sum(cells) / max(1, len(cells)),
        missing=tuple(missing.values()),
    )
