"""Batches gathered on the device against the plain augmentation and tokens of `etrm.arc`."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from tiny import demos_of, grid, lanes_of, make_tasks, make_variants

from etrm.arc.augment import Augmentation, Variants
from etrm.arc.grid import EOS, PAD, tokenize
from etrm.arc.task import Pair, Task
from etrm.config.lanes import Lane
from etrm.data.batch import Batch
from etrm.data.corpus import Corpus, CorpusError, Episodes
from etrm.data.pools import Pools

SIDE = 6


def recipes(augmentations: list[Augmentation]) -> Variants:
    dihedral = np.array([a.dihedral for a in augmentations], dtype=np.uint8)
    permutation = np.array([a.permutation for a in augmentations], dtype=np.uint8)
    return Variants(dihedral, permutation, np.zeros((len(dihedral), 2), dtype=np.uint64))


def every_dihedral(seed: int = 0) -> list[Augmentation]:
    """The identity, then all eight transforms, each with a permutation of its own."""
    rng = np.random.default_rng(seed)
    colors = [(0, *(1 + rng.permutation(9)).tolist()) for _ in range(8)]
    return [Augmentation(0, tuple(range(10))), *itertools.starmap(Augmentation, enumerate(colors))]


def episodes_of(corpus: Corpus, side: int | tuple[int, int], demos: int) -> Episodes:
    """Every query of every task with its task's demos, on a canvas of that shape."""
    rows = [(t, q) for t, pairs in enumerate(corpus.query_pairs) for q in pairs]
    task, query = torch.tensor(rows).T
    pools = Pools.of(corpus.demo_pairs, task.tolist(), query.tolist())
    (lane,) = lanes_of(side)
    return Episodes(lane, task, query, pools, demos, torch.ones(len(rows), dtype=torch.bool))


# What a dihedral that exchanges rows and columns is where it must not.
UNTURNED = {1: np.fliplr, 3: np.flipud, 6: np.array, 7: lambda x: x[::-1, ::-1]}


def transformed(augmentation: Augmentation, lane: Lane, grid: np.ndarray) -> np.ndarray:
    if lane.rows == lane.columns or augmentation.dihedral not in UNTURNED:
        return augmentation.apply(grid)
    return Augmentation(0, augmentation.permutation).apply(UNTURNED[augmentation.dihedral](grid))


def reference(
    pair: Pair, augmentation: Augmentation, lane: Lane, shift: tuple[float, float]
) -> list[list[int]]:
    """Input and output tokens of a pair; it moves by that part of the rows and columns left."""
    grids = [
        None if g is None else transformed(augmentation, lane, g) for g in (pair.input, pair.output)
    ]
    largest = np.max([g.shape for g in grids if g is not None], axis=0)
    free = np.array((lane.rows, lane.columns)) - largest + 1
    top, left = (int(s * n) for s, n in zip(shift, free, strict=True))
    empty = np.full(lane.cells, PAD, dtype=np.uint8)
    return [(empty if g is None else tokenize(g, lane, (top, left))).tolist() for g in grids]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Tasks of sides 1 to 6, one with a test output that is not known."""
    rng = np.random.default_rng(3)
    tasks = make_tasks(3, side=SIDE)
    strip = Pair(grid(rng, 1, SIDE), grid(rng, 4, 1))
    tasks.append(Task("unlabelled", (strip,), (Pair(grid(rng, 5, 2), None),)))
    return Corpus(tasks, {task.id: recipes(every_dihedral(i)) for i, task in enumerate(tasks)})


@pytest.mark.parametrize("side", [SIDE, SIDE + 1, 30, (SIDE, 9), (8, SIDE), (30, 7)])
@pytest.mark.parametrize("translated", [False, True])
def test_batches_equal_the_plain_augmentation(
    corpus: Corpus, side: int | tuple[int, int], translated: bool
) -> None:
    """Also of the query whose output is not known: it has no label."""
    episodes = episodes_of(corpus, side, demos=5)
    cases = list(itertools.product(range(len(episodes)), range(9)))
    index, variant = torch.tensor(cases).T
    generator = torch.Generator().manual_seed(int(np.prod(side)))
    shift = torch.rand(len(cases), 6, 2, generator=generator, dtype=torch.float64) * translated
    batch = corpus.assemble(episodes, index, variant, shift if translated else None)
    for i, (episode, number) in enumerate(cases):
        task = int(episodes.task[episode])
        augmentation = every_dihedral(task)[number]
        assert int(batch.task[i]) == task
        assert int(batch.puzzle[i]) == 9 * task + number
        pairs = [int(episodes.query[episode]), *demos_of(episodes)[episode].tolist()]
        assert batch.demo_mask[i].tolist() == [pair >= 0 for pair in pairs[1:]]
        for k, pair in enumerate(pairs):
            found = [batch.inputs[i], batch.labels[i]]
            if k > 0:
                found = [batch.demo_inputs[i, k - 1], batch.demo_outputs[i, k - 1]]
            expected = [[PAD] * batch.lane.cells] * 2
            if pair >= 0:
                expected = reference(
                    corpus.pairs[pair], augmentation, batch.lane, tuple(shift[i, k])
                )
            assert [tokens.tolist() for tokens in found] == expected


def test_a_row_on_a_lane_of_one_row_cell_by_cell() -> None:
    """Reversed by the turns that would stand it upright, and by the flips; never upright."""
    row, longer = np.array([[1, 2, 3]], dtype=np.uint8), np.array([[4, 5, 6, 7]], dtype=np.uint8)
    same = tuple(range(10))
    variants = [Augmentation(0, same), *(Augmentation(d, same) for d in range(8))]
    corpus = Corpus([Task("a", (Pair(row, longer),), (Pair(row, row),))], {"a": recipes(variants)})
    shift = torch.tensor([[[0.9, 0.0], [0.9, 0.99]]]).expand(9, -1, -1)  # of the demo: as far right
    batch = corpus.assemble(
        *(episodes_of(corpus, (1, 6), demos=1), torch.zeros(9, dtype=torch.int64)),
        *(torch.arange(9), shift),
    )
    reversed_ = [d in (1, 2, 4, 7) for d in (0, *range(8))]  # of columns
    for i, backwards in enumerate(reversed_):
        step = -1 if backwards else 1
        content, demo = [3, 4, 5][::step], [6, 7, 8, 9][::step]
        assert batch.inputs[i].tolist() == [*content, EOS, PAD, PAD]
        assert batch.demo_inputs[i, 0].tolist() == [PAD, PAD, *content, EOS]
        assert batch.demo_outputs[i, 0].tolist() == [PAD, PAD, *demo]  # no place for EOS


def test_every_offset_is_a_translation_of_the_reference() -> None:
    rng = np.random.default_rng(0)
    pair = Pair(grid(rng, 2, 3), grid(rng, 3, 1))  # 3 by 3 together, in every transform
    offsets = list(itertools.product(range(5 - 3 + 1), repeat=2))
    corpus = Corpus([Task("a", (pair,), (pair,))], {"a": recipes(every_dihedral())})
    episodes = episodes_of(corpus, 5, demos=1)
    shift = torch.tensor(offsets, dtype=torch.float64) / (5 - 3 + 1) + 1e-9
    index = torch.zeros(len(offsets), dtype=torch.int64)
    for number, augmentation in enumerate(every_dihedral()):
        moved = shift[:, None].expand(-1, 2, -1)
        batch = corpus.assemble(episodes, index, torch.full_like(index, number), moved)
        for i, offset in enumerate(offsets):
            expected = tokenize(augmentation.apply(pair.output), Lane(5, 5), offset)
            assert np.array_equal(batch.labels[i].numpy(), expected)
            expected = tokenize(augmentation.apply(pair.input), Lane(5, 5), offset)
            assert np.array_equal(batch.demo_inputs[i, 0].numpy(), expected)


def test_an_output_larger_than_the_canvas_is_cut_off() -> None:
    rng = np.random.default_rng(0)
    small, large = grid(rng, 2, 2), grid(rng, 3, 5)
    task = Task("a", (Pair(small, small),), (Pair(small, large),))
    corpus = Corpus([task], {"a": recipes(every_dihedral())})
    episodes = episodes_of(corpus, 3, demos=1)
    batch = corpus.assemble(episodes, torch.zeros(9, dtype=torch.int64), torch.arange(9))
    for found, augmentation in zip(batch.labels, every_dihedral(), strict=True):
        expected = tokenize(augmentation.apply(large), Lane(6, 6)).reshape(6, 6)[:3, :3]
        assert np.array_equal(found.numpy().reshape(3, 3), expected)


@pytest.mark.parametrize("limit", [None, 1, 2, 5, 99])
def test_puzzles_are_numbered_task_by_task_and_a_limit_keeps_the_first_variants(
    limit: int | None,
) -> None:
    tasks = make_tasks(3)
    variants = make_variants(tasks, 5)
    corpus = Corpus(tasks, variants, limit=limit)
    counts = [len(variants[task.id].dihedral[:limit]) for task in tasks]
    assert corpus.variant_count.tolist() == counts
    assert corpus.first_puzzle.tolist() == [0, counts[0], counts[0] + counts[1]]
    assert corpus.num_puzzles == sum(counts)
    drawn = [variants[task.id] for task in tasks]
    kept = [(v.dihedral[:limit].tolist(), v.permutation[:limit].tolist()) for v in drawn]
    assert corpus.dihedral.tolist() == [row for dihedral, _ in kept for row in dihedral]
    assert corpus.permutation.tolist() == [row for _, permutation in kept for row in permutation]
    assert corpus.permutation[corpus.first_puzzle].tolist() == [list(range(10))] * 3


def test_tasks_without_variants_are_named() -> None:
    tasks = make_tasks(3)
    with pytest.raises(CorpusError, match="task1, task2"):
        Corpus(tasks, make_variants(tasks[:1], 5))


def test_demos_given_replace_those_of_the_episode(corpus: Corpus) -> None:
    episodes = episodes_of(corpus, SIDE, demos=5)
    demos = torch.tensor([[1, -1], [0, 1]])
    index = torch.tensor([0, 0])
    batch = corpus.assemble(episodes, index, index, demos=demos)
    usual = corpus.assemble(episodes, index, index)
    assert batch.demo_mask.tolist() == [[True, False], [True, True]]
    assert torch.equal(batch.demo_inputs[0, 0], usual.demo_inputs[0, 1])
    assert torch.equal(batch.demo_outputs[1], usual.demo_outputs[1, :2])
    assert torch.equal(batch.labels, usual.labels)


def test_a_batch_picks_sample_by_sample(corpus: Corpus) -> None:
    episodes = episodes_of(corpus, SIDE, demos=5)
    index = torch.arange(3)
    new = corpus.assemble(episodes, index, index)
    old = corpus.assemble(episodes, index + 1, index + 2)
    mixed = Batch.where(torch.tensor([True, False, True]), new, old)
    assert len(mixed) == 3
    for name, tensor in mixed.tensors().items():
        expected = [new.tensors()[name][0], old.tensors()[name][1], new.tensors()[name][2]]
        assert torch.equal(tensor, torch.stack(expected))


def test_corpora_of_single_cells() -> None:
    cell = np.array([[7]], dtype=np.uint8)
    task = Task("dot", (Pair(cell, cell),), (Pair(cell, cell),))
    corpus = Corpus([task], make_variants([task], 3))
    batch = corpus.assemble(episodes_of(corpus, 1, 1), torch.tensor([0]), torch.tensor([0]))
    assert batch.inputs.tolist() == batch.labels.tolist() == [[9]]
