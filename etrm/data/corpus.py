"""All grids and recipes of a study as tensors on one device, and batches assembled from them.

The base grids and the augmentation recipes are a few megabytes; a batch is gathered from them by
index arithmetic on the device (dihedral, colours, translation, EOS), so there are no worker
processes, no padded data sets on disk, and a batch is a function of indices alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from etrm.arc.augment import Variants
from etrm.arc.grid import COLOR_OFFSET, EOS, PAD
from etrm.arc.task import Pair, Task
from etrm.data.batch import Batch
from etrm.data.packing import Room
from etrm.errors import UserError

# Dihedral d of a grid: cell (r, c) of the result comes from (r, c), exchanged where SWAP, then
# counted from the far end of the base grid's rows or columns where FLIP_ROW, FLIP_COLUMN.
SWAP = (0, 1, 0, 1, 0, 0, 1, 1)
FLIP_ROW = (0, 0, 1, 1, 0, 1, 0, 1)
FLIP_COLUMN = (0, 1, 1, 0, 1, 0, 0, 1)


@dataclass(frozen=True)
class Episodes:
    """E questions on one lane: a query pair and its demos; K is the most demos of any."""

    side: int  # cells per side of the canvas
    task: Tensor  # [E] int64
    query: Tensor  # [E] int64: pair index in the corpus
    demos: Tensor  # [E, K] int64: pair indices, -1 where there are fewer
    fits: Tensor  # [E] bool: the true output fits the canvas (true where it is unknown)
    room: Room | None = None  # [E, K]: bounds of the demos' sizes

    def __len__(self) -> int:
        return int(self.task.shape[0])

    def showing(self, most: int) -> Episodes:
        """The same questions with only the first `most` of their demos."""
        room = None if self.room is None else self.room.showing(most)
        return replace(self, demos=self.demos[:, :most], room=room)


class CorpusError(UserError):
    """Tasks and augmentations that do not belong together."""


class Corpus:
    """Grids [2·pairs, M, M] (input and output of each pair) and recipes of all puzzles."""

    def __init__(
        self,
        tasks: Sequence[Task],
        variants: Mapping[str, Variants],
        device: torch.device | str = "cpu",
        limit: int | None = None,
    ) -> None:
        """`limit`: use only that many variants per task (the first; the unchanged one first)."""
        self.tasks = tuple(tasks)
        self.device = torch.device(device)
        pairs: list[Pair] = []
        self.demo_pairs: list[range] = []
        self.query_pairs: list[range] = []
        for task in self.tasks:
            self.demo_pairs.append(range(len(pairs), len(pairs) + len(task.demos)))
            pairs += task.demos
            self.query_pairs.append(range(len(pairs), len(pairs) + len(task.queries)))
            pairs += task.queries
        self.pairs = tuple(pairs)
        grids, sizes = _stack(self.pairs)
        self.grids = torch.from_numpy(grids).to(self.device)
        self.sizes = torch.from_numpy(sizes).to(self.device)
        missing = [task.id for task in self.tasks if task.id not in variants]
        if missing:
            raise CorpusError(
                f"augmentations: found no variants of {', '.join(missing[:8])}"
                f"{', …' if len(missing) > 8 else ''}, expected those of every task; run the target"
                " `augment` again"
            )
        drawn = [variants[task.id] for task in self.tasks]
        counts = [min(len(v.dihedral), limit or len(v.dihedral)) for v in drawn]
        self.variant_count = torch.tensor(counts, device=self.device)
        self.first_puzzle = torch.tensor([0, *np.cumsum(counts)[:-1]], device=self.device)
        dihedral = np.concatenate([v.dihedral[:n] for v, n in zip(drawn, counts, strict=True)])
        colors = np.concatenate([v.permutation[:n] for v, n in zip(drawn, counts, strict=True)])
        self.dihedral = torch.from_numpy(dihedral.astype(np.int64)).to(self.device)
        self.permutation = torch.from_numpy(colors.astype(np.int64)).to(self.device)
        flips = [torch.tensor(t, device=self.device).bool() for t in (SWAP, FLIP_ROW, FLIP_COLUMN)]
        self._swap, self._flip_row, self._flip_column = flips

    @property
    def num_puzzles(self) -> int:
        """Tasks times their variants."""
        return int(self.dihedral.shape[0])

    def recipes_digest(self) -> str:
        """SHA-256 of all puzzles in order: which task, which dihedral, which colours."""
        parts = [json.dumps([task.id for task in self.tasks]).encode()]
        tensors = (self.variant_count, self.dihedral, self.permutation)
        parts += [t.cpu().numpy().astype("<i8").tobytes() for t in tensors]
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def assemble(
        self,
        episodes: Episodes,
        index: Tensor,
        variant: Tensor,
        shift: Tensor | None = None,
        demos: Tensor | None = None,
    ) -> Batch:
        """The samples `index` [B] of `episodes`, each in its task's `variant` [B].

        `shift` [B, 1+K, 2] in [0, 1): where in its free room the content of the query and of each
        demo stands (None: at the top-left corner). `demos` [B, K'] replaces the episode's demos.
        """
        demos = episodes.demos[index] if demos is None else demos
        pairs = torch.cat([episodes.query[index][:, None], demos], dim=1)
        task = episodes.task[index]
        puzzle = self.first_puzzle[task] + variant
        inputs, outputs = self._tokens(pairs, puzzle, episodes.side, shift)
        return Batch(
            puzzle=puzzle,
            task=task,
            inputs=inputs[:, 0],
            labels=outputs[:, 0],
            demo_inputs=inputs[:, 1:],
            demo_outputs=outputs[:, 1:],
            demo_mask=demos >= 0,
        )

    def _tokens(
        self, pairs: Tensor, puzzle: Tensor, side: int, shift: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Token ids [B, Q, side²] of inputs and outputs of `pairs` [B, Q]; -1 gives PAD."""
        real = pairs >= 0
        grids = pairs.clamp(min=0)[..., None] * 2 + torch.arange(2, device=self.device)
        dihedral = self.dihedral[puzzle][:, None, None].expand(grids.shape)
        size = self.sizes[grids]  # [B, Q, 2, 2] base height and width
        swap = self._swap[dihedral]
        turned = torch.where(swap[..., None], size.flip(-1), size)
        offset = torch.zeros_like(turned)
        if shift is not None:
            room = (side - turned.amax(dim=2)).clamp(min=0)  # [B, Q, 2] of the pair's larger grid
            offset = (shift * (room + 1)).long()[:, :, None, :].expand(turned.shape)
        cell = torch.arange(side, device=self.device)
        row = cell[:, None] - offset[..., 0, None, None]  # [B, Q, 2, side, 1]
        column = cell - offset[..., 1, None, None]  # [B, Q, 2, 1, side]
        height, width = turned[..., 0, None, None], turned[..., 1, None, None]
        colors = self._colors(grids, dihedral, size, row, column)
        colors = self.permutation[puzzle][:, None].gather(2, colors.flatten(1)[:, None]).squeeze(1)
        tokens = colors.reshape(*grids.shape, side, side) + COLOR_OFFSET
        in_row, in_column = (row >= 0) & (row < height), (column >= 0) & (column < width)
        known = (height > 0) & real[..., None, None, None]
        eos = (row == height) & (column >= 0) & (column < width)
        eos = eos | ((column == width) & in_row)
        tokens = torch.where(in_row & in_column, tokens, torch.where(eos, EOS, PAD))
        tokens = torch.where(known, tokens, PAD).flatten(-2)
        return tokens[:, :, 0], tokens[:, :, 1]

    def _colors(
        self, grids: Tensor, dihedral: Tensor, size: Tensor, row: Tensor, column: Tensor
    ) -> Tensor:
        """Base colours [B, Q, 2, side, side] under each cell of the result; any value outside."""
        swap = self._swap[dihedral][..., None, None]
        row, column = torch.broadcast_tensors(row, column)
        row, column = torch.where(swap, column, row), torch.where(swap, row, column)
        height, width = size[..., 0, None, None], size[..., 1, None, None]
        row = torch.where(self._flip_row[dihedral][..., None, None], height - 1 - row, row)
        column = torch.where(
            self._flip_column[dihedral][..., None, None], width - 1 - column, column
        )
        last = self.grids.shape[-1] - 1
        return self.grids[grids[..., None, None], row.clamp(0, last), column.clamp(0, last)].long()


def _stack(pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
    """All grids in one array [2·pairs, M, M] uint8, and their sizes [2·pairs, 2] int64."""
    empty = np.zeros((0, 0), dtype=np.uint8)
    flat = [g for p in pairs for g in (p.input, empty if p.output is None else p.output)]
    side = max(max(g.shape) for g in flat)
    grids = np.zeros((len(flat), side, side), dtype=np.uint8)
    for i, grid in enumerate(flat):
        grids[i, : grid.shape[0], : grid.shape[1]] = grid
    return grids, np.array([g.shape for g in flat], dtype=np.int64)
