"""Recorded augmentations, grid by grid and as batches: the official layout, token by token."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from etrm.arc.augment import Augmentation, Variants
from etrm.arc.grid import tokenize
from etrm.arc.task import Pair, Task
from etrm.config.lanes import Lane
from etrm.data.corpus import Corpus, Episodes
from etrm.data.pools import Pools

SIDE = 30


def puzzles(arc: Path) -> dict[str, dict[str, list[dict[str, list[list[int]]]]]]:
    """Task id -> the pairs of its official splits, of the sets that the cases are from."""
    found = {}
    for name in ("training", "evaluation", "concept"):
        challenges = json.loads((arc / f"arc-agi_{name}_challenges.json").read_text())
        solutions = json.loads((arc / f"arc-agi_{name}_solutions.json").read_text())
        for task_id, puzzle in challenges.items():
            for test, answer in zip(puzzle["test"], solutions[task_id], strict=True):
                test["output"] = answer
            parts = {"train": puzzle["train"], "test": puzzle["test"]}
            if name != "evaluation":
                parts["train"] = [pair for key in puzzle for pair in puzzle[key]]
            found[task_id] = parts
    return found


def pair_of(pair: dict[str, list[list[int]]]) -> Pair:
    return Pair(*(np.array(pair[key], dtype=np.uint8) for key in ("input", "output")))


def cases_of(golden: Path) -> Iterator[tuple[str, str, int, Augmentation, np.ndarray, np.ndarray]]:
    """(split, task, index of the pair, augmentation, input tokens, output tokens)."""
    cases = np.load(golden / "augment_cases.npz")
    for split in ("test", "train"):
        rows = [cases[f"{split}_{key}"] for key in ("name", "index", "inputs", "labels")]
        for name, index, inputs, labels in zip(*rows, strict=True):
            task, *recipe = str(name).split("|||")
            dihedral, colors = (recipe[0][1:], recipe[1]) if recipe else ("0", "0123456789")
            yield (
                split,
                task,
                index,
                Augmentation(int(dihedral), tuple(map(int, colors))),
                inputs,
                labels,
            )


def offset_of(*sequences: np.ndarray) -> tuple[int, int]:
    """Row and column of the first token that is no padding: the translation, read off."""
    cells = np.any([tokens.reshape(SIDE, SIDE) > 1 for tokens in sequences], axis=0)
    rows, columns = np.nonzero(cells)
    return int(rows.min()), int(columns.min())


def test_recorded_augmentations_grid_by_grid(golden: Path, arc: Path) -> None:
    """The official test split has no translation."""
    known = puzzles(arc)
    checked = Counter[str]()
    for split, task, index, augmentation, *tokens in cases_of(golden):
        pair = pair_of(known[task][split][index])
        offset = offset_of(*tokens) if split == "train" else (0, 0)
        for grid, expected in zip((pair.input, pair.output), tokens, strict=True):
            ours = tokenize(augmentation.apply(grid), Lane(SIDE, SIDE), offset)
            assert ours.tolist() == expected.tolist(), (split, task, index, augmentation)
        checked[split] += 1
    assert set(checked) == {"test", "train"}


def test_recorded_augmentations_as_batches(golden: Path, arc: Path) -> None:
    """Every recorded example is the query, and the demo, of a task of its own."""
    known = puzzles(arc)
    tasks: list[Task] = []
    variants, shifts, expected = {}, [], []
    for split, name, index, augmentation, inputs, labels in cases_of(golden):
        pair = pair_of(known[name][split][index])
        assert pair.output is not None
        task = Task(f"case{len(tasks)}", (pair,), (pair,))
        variants[task.id] = Variants(
            np.array([augmentation.dihedral], dtype=np.uint8),
            np.array([augmentation.permutation], dtype=np.uint8),
            np.zeros((1, 2), dtype=np.uint64),
        )
        turned = [augmentation.apply(grid).shape for grid in (pair.input, pair.output)]
        free = [SIDE - int(n) + 1 for n in np.max(turned, axis=0)]
        offset = offset_of(inputs, labels)
        shifts.append([(o + 0.5) / r for o, r in zip(offset, free, strict=True)])
        tasks.append(task)
        expected.append((inputs, labels))
    corpus = Corpus(tasks, variants)
    count = torch.arange(len(tasks))
    episodes = Episodes(
        lane=Lane(SIDE, SIDE),
        task=count,
        query=2 * count + 1,
        pools=Pools.of(
            [[2 * i] for i in range(len(tasks))], count.tolist(), (2 * count + 1).tolist()
        ),
        most=1,
        fits=torch.ones(len(tasks), dtype=torch.bool),
    )
    shift = torch.tensor(shifts, dtype=torch.float64)[:, None].expand(-1, 2, -1)
    batch = corpus.assemble(episodes, count, torch.zeros_like(count), shift)
    inputs, labels = (
        torch.from_numpy(np.stack(each)).long() for each in zip(*expected, strict=True)
    )
    assert tasks
    assert torch.equal(batch.inputs, inputs)
    assert torch.equal(batch.labels, labels)
    assert torch.equal(batch.demo_inputs[:, 0], inputs)
    assert torch.equal(batch.demo_outputs[:, 0], labels)
