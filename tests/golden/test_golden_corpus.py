"""Batches on a canvas of 30 are the official layout, token by token."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from etrm.arc.augment import Variants
from etrm.arc.task import Pair, Task
from etrm.data.corpus import Corpus, Episodes

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


def test_recorded_augmentations_as_batches(golden: Path, arc: Path) -> None:
    """Every recorded example is the query, and the demo, of a task of its own."""
    cases = np.load(golden / "augment_cases.npz")
    known = puzzles(arc)
    tasks, variants, shifts, expected = [], {}, [], []
    for split in ("test", "train"):
        rows = [cases[f"{split}_{key}"] for key in ("name", "index", "inputs", "labels")]
        for name, index, inputs, labels in zip(*rows, strict=True):
            task_id, *recipe = str(name).split("|||")
            dihedral, colors = (recipe[0][1:], recipe[1]) if recipe else ("0", "0123456789")
            pair = pair_of(known[task_id][split][index])
            assert pair.output is not None
            task = Task(f"case{len(tasks)}", (pair,), (pair,))
            variants[task.id] = Variants(
                np.array([int(dihedral)], dtype=np.uint8),
                np.array([[int(c) for c in colors]], dtype=np.uint8),
                np.zeros((1, 2), dtype=np.uint64),
            )
            shape = np.maximum(pair.input.shape, pair.output.shape)
            shape = shape[::-1] if int(dihedral) in (1, 3, 6, 7) else shape
            cells = np.any([t.reshape(SIDE, SIDE) > 1 for t in (inputs, labels)], axis=0)
            offset = [int(axis.min()) for axis in np.nonzero(cells)]
            room = [SIDE - int(n) + 1 for n in shape]
            shifts.append([(o + 0.5) / r for o, r in zip(offset, room, strict=True)])
            tasks.append(task)
            expected.append((inputs, labels))
    corpus = Corpus(tasks, variants)
    count = torch.arange(len(tasks))
    episodes = Episodes(
        side=SIDE,
        task=count,
        query=2 * count + 1,
        demos=2 * count[:, None],
        fits=torch.ones(len(tasks), dtype=torch.bool),
    )
    shift = torch.tensor(shifts, dtype=torch.float64)[:, None].expand(-1, 2, -1)
    batch = corpus.assemble(episodes, count, torch.zeros_like(count), shift)
    inputs, labels = (
        torch.from_numpy(np.stack(each)).long() for each in zip(*expected, strict=True)
    )
    assert len(tasks) > 100
    assert torch.equal(batch.inputs, inputs)
    assert torch.equal(batch.labels, labels)
    assert torch.equal(batch.demo_inputs[:, 0], inputs)
    assert torch.equal(batch.demo_outputs[:, 0], labels)
