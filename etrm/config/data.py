"""The tasks of a study, and the training samples that are made of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from etrm.config.lanes import BY_AREA, MAX_SIDE, Lane
from etrm.config.rules import DISTINCT, MAX_NAME, MAX_SEED
from etrm.config.schema import ConfigProblem, option, tagged
from etrm.config.sources import ArckitSource, SourceConfig, source_kinds
from etrm.config.text import brief, join


@dataclass(frozen=True)
class DataConfig:
    """The tasks that the study trains on and holds out, and their augmentation."""

    sources: dict[str, SourceConfig] = tagged(
        "named sources of ARC tasks",
        "kind",
        source_kinds,
        lambda: {
            "arc1_training": ArckitSource(subset="training"),
            "arc1_evaluation": ArckitSource(subset="evaluation"),
        },
    )
    training: tuple[str, ...] = option(
        "sources whose tasks are trained on", factory=lambda: ("arc1_training",), rule=DISTINCT
    )
    evaluation: tuple[str, ...] = option(
        "sources whose tasks are held out", factory=lambda: ("arc1_evaluation",), rule=DISTINCT
    )
    duplicates: str = option(
        "tasks that several sources of a split have, by id or content (all pairs, up to dihedral"
        " and colours): `first` keeps that of the source that is named first. Held-out tasks are"
        " left out of training in any case",
        "error",
        choices=("error", "first"),
    )
    max_side: int | None = option(
        "largest side of demos and query inputs; larger tasks are left out, those above 30 cells"
        " too. null: all tasks, and grids above 30 cells are a problem of their source",
        None,
        "cells",
        ge=1,
        le=MAX_SIDE,
    )
    training_tasks: int | None = option(
        "training tasks that are kept, a seeded draw; null: all. A source with a number of `tasks`"
        " of its own keeps them",
        None,
        "tasks",
        ge=1,
    )
    validation_tasks: int | None = option(
        "training tasks that are held out too, for the choice of experiments: full runs are"
        " evaluated on them as they train. Only transductive TRM, which cannot be asked about tasks"
        " without an embedding, trains on them. A seeded draw, stratified by source, size and"
        " number of pairs, of tasks that share no pair with another; null: a tenth of all. Worlds"
        " give some only where there are no other tasks",
        None,
        "tasks",
        ge=0,
    )
    evaluation_tasks: int | None = option(
        "evaluation tasks that are kept, as `training_tasks`", None, "tasks", ge=1
    )
    variants: int = option(
        "puzzles per task, the unchanged one included", 1000, "variants", ge=1, le=65535
    )
    seed: int = option(
        "seed of the draws of tasks, dihedrals and colour permutations", 0, ge=0, le=MAX_SEED
    )

    def problems(self) -> Iterator[ConfigProblem]:
        """Yield bad names of sources, those of none, and those that train and evaluate."""
        for name in self.sources:
            if not (0 < len(name) <= MAX_NAME and name.isprintable()):
                expected = f"a name of up to {MAX_NAME} printable characters"
                yield ConfigProblem(join("sources", name), f"the name {brief(name)}", expected)
        for key in ("training", "evaluation"):
            yield from unknown_sources(key, getattr(self, key), self.sources)
        for name in set(self.training) & set(self.evaluation):  # never train on held-out tasks
            expected = "a source that is not in data.training: held-out tasks are never trained on"
            yield ConfigProblem("evaluation", repr(name), expected)


def unknown_sources(
    path: str, names: Iterable[str], sources: Collection[str]
) -> Iterator[ConfigProblem]:
    """Yield names of sources, in the key at `path`, that `data.sources` does not have."""
    for name in names:
        if name not in sources:
            known = ", ".join(sorted(sources))
            yield ConfigProblem(path, repr(name), f"one of data.sources: {known}")


@dataclass(frozen=True)
class EpisodesConfig:
    """Training samples, made of a task's pairs."""

    queries: str = option(
        "`leave_one_out`: any pair is the query, the others its demos; `test_pairs`: only the"
        " task's test pairs are queries (evaluation tasks then give none)",
        "leave_one_out",
        choices=("leave_one_out", "test_pairs"),
    )
    max_demos: int = option("most demos of an episode, a random subset beyond", 10, "demos", ge=1)
    shown: str = option(
        "demos of a training sample: `all` up to `max_demos`; `evaluation`: a number as the"
        " evaluation tasks have them, drawn for each sample, which then shows a random subset;"
        " `uniform`: any number from `min_demos` to `max_demos`",
        "all",
        choices=("all", "evaluation", "uniform"),
    )
    min_demos: int = option("least demos where `shown` is `uniform`", 1, "demos", ge=1)
    order: str = option(
        "`replacement`: a free slot draws any question in any variant; `epochs`: the official"
        " order, in which the tasks are shuffled, and each in turn gives all of its questions in"
        " one variant. It needs a single canvas lane",
        "replacement",
        choices=("replacement", "epochs"),
    )
    draw: str = option(
        "`question`: each question is as likely, so a task is drawn in proportion to its pairs;"
        " `task`: each task is as likely, whatever its number of pairs, and then each of its"
        " questions. With order: replacement",
        "question",
        choices=("question", "task"),
    )
    translate: bool = option("move the content over the canvas at random, in training only", True)
    translate_once: bool = option(
        "move it to one place for the whole run, and one pair of every puzzle not at all, as the"
        " official data set; false: to another place for every sample",
        False,
    )
    canvas: tuple[Lane, ...] = option(
        "canvas lanes: the smallest that holds a task is used. `n` is n × n cells, `[rows,"
        " columns]` any rectangle, as `[1, 12]` for worlds of one row; on one that is not square,"
        " variants leave rows and columns as they are. `[30]` is the official layout",
        factory=lambda: tuple(Lane(n, n) for n in range(6, MAX_SIDE + 1, 2)),
        unit="cells",
        rule=BY_AREA,
    )

    def problems(self) -> Iterator[ConfigProblem]:
        """Yield a range without a number, and lanes and draws that `epochs` does not have.

        A batch in that order is one sequence of questions.
        """
        if self.shown == "uniform" and self.min_demos > self.max_demos:
            expected = f"at most max_demos, {self.max_demos}"
            yield ConfigProblem("min_demos", str(self.min_demos), expected)
        if self.order == "epochs" and len(self.canvas) > 1:
            found = f"{len(self.canvas)} lanes with order: epochs"
            yield ConfigProblem("canvas", found, "one lane, as in `[30]`")
        if self.order == "epochs" and self.draw != "question":
            expected = "question: with order: epochs, all questions of a task are asked in turn"
            yield ConfigProblem("draw", self.draw, expected)
