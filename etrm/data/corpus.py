"""All grids and recipes of a study as tensors on one device, and batches assembled from them.

The base grids and the augmentation recipes are a few megabytes; a batch is gathered from them by
index arithmetic on the device (dihedral, colours, translation, EOS), so there are no worker
processes, no padded data sets on disk, and a batch is a function of indices alone.

Shapes: B batch, K demos, S grid tokens, Q = 1 + K pairs of a sample, M the largest side of a grid.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from etrm.arc.augment import Variants
from etrm.arc.grid import COLOR_OFFSET, EOS, PAD
from etrm.arc.task import Pair, Task
from etrm.config.lanes import Lane
from etrm.data.batch import Batch
from etrm.data.packing import TokenBounds
from etrm.data.pools import Pools
from etrm.errors import UserError

# Dihedral d of a grid: cell (r, c) of the result comes from (r, c), exchanged where SWAP, then
# counted from the far end of the base grid's rows or columns where FLIP_ROW, FLIP_COLUMN.
SWAP = (0, 1, 0, 1, 0, 0, 1, 1)
FLIP_ROW = (0, 0, 1, 1, 0, 1, 0, 1)
FLIP_COLUMN = (0, 1, 1, 0, 1, 0, 0, 1)
ALONG = (0, 4, 2, 5, 4, 5, 0, 2)  # the dihedral with the same flips that exchanges nothing


@dataclass(frozen=True)
class Episodes:
    """E questions on one lane: a query pair, and a pool of which at most K demos are shown."""

    lane: Lane
    task: Tensor  # [E] int64
    query: Tensor  # [E] int64: pair index in the corpus
    pools: Pools  # on the host
    most: int  # K
    fits: Tensor  # [E] bool: the true output fits the canvas (true where it is unknown)
    tokens: TokenBounds | None = None  # [N]: of the members of all pools
    numbers: tuple[int, ...] = ()  # of demos that training shows, each as likely; (): K or all
    weight: Tensor | None = None  # [E] float64, on the host: of each in a draw; None: all alike

    def __len__(self) -> int:
        return len(self.task)

    @cached_property
    def on(self) -> dict[torch.device, Pools]:
        """The pools on the host, where shapes are decided, and on the device of the questions."""
        return {d: self.pools.to(d) for d in {self.pools.first.device, self.task.device}}

    @property
    def total_weight(self) -> float:
        """Return the weight of this lane in a draw from all lanes."""
        return float(len(self) if self.weight is None else self.weight.sum())

    def truncate_demos(self, most: int) -> Episodes:
        """Return the same questions with at most `most` demos."""
        return replace(self, most=min(self.most, most))

    def members(self, index: Tensor, places: Tensor | None = None) -> Tensor:
        """Return the members [B, K] of pools that are the demos of the questions `index` [B].

        `places` [B, K']: of these among all demos of the question (None: the first); -1 is none.
        """
        if places is None:
            places = torch.arange(self.most, device=index.device).expand(len(index), -1)
        return self.on[index.device].find(index, places)

    def pairs(self, members: Tensor) -> Tensor:
        """Return the pair indices in the corpus of members, -1 where there is none."""
        found = self.on[members.device].members[members.clamp(min=0)]
        return found.masked_fill(members < 0, -1)

    def token_bounds(self, members: Tensor) -> TokenBounds | None:
        """Return the bounds of demos, given as members [B, K] on the host."""
        return None if self.tokens is None else self.tokens.take(members.numpy())

    def most_cells(self) -> dict[str, int] | None:
        """Return the most tokens of demos that any sample can show, by pairing."""
        if self.tokens is None:
            return None
        most = min(self.most, max(self.numbers, default=self.most))
        bounds = {"concat": self.tokens.concat, "aligned": self.tokens.aligned}
        return {pairing: self.pools.most(each, most) for pairing, each in bounds.items()}


class CorpusError(UserError):
    """Tasks and augmentations that do not belong together."""


class Corpus:
    """The grids (input and output of each pair) and the recipes of all puzzles."""

    def __init__(
        self,
        tasks: Sequence[Task],
        variants: Mapping[str, Variants],
        device: torch.device | str = "cpu",
        limit: int | None = None,
    ) -> None:
        """Use the first `limit` variants of each task, the identity among them (None: all).

        Raises `CorpusError` where `variants` lacks a task.
        """
        self.tasks, self.device = tuple(tasks), torch.device(device)
        pairs: list[Pair] = []
        self.demo_pairs: list[range] = []  # of each task, indices into `pairs`
        self.query_pairs: list[range] = []
        for task in self.tasks:
            for found, ranges in ((task.demos, self.demo_pairs), (task.queries, self.query_pairs)):
                ranges.append(range(len(pairs), len(pairs) + len(found)))
                pairs += found
        self.pairs = tuple(pairs)
        empty = np.zeros((0, 0), dtype=np.uint8)  # for an output that is not known
        flat = [empty if g is None else g for pair in pairs for g in (pair.input, pair.output)]
        sizes = np.array([grid.shape for grid in flat], dtype=np.int64)
        grids = np.zeros((len(flat), sizes.max(), sizes.max()), dtype=np.uint8)
        for stacked, grid in zip(grids, flat, strict=True):
            stacked[: grid.shape[0], : grid.shape[1]] = grid
        self.grids = torch.from_numpy(grids).to(self.device)  # [2·pairs, M, M]
        self.sizes = torch.from_numpy(sizes).to(self.device)  # [2·pairs, 2] height and width
        missing = [task.id for task in self.tasks if task.id not in variants]
        if missing:
            raise CorpusError(
                f"augmentations: found no variants of {', '.join(missing[:8])}"
                f"{', …' if len(missing) > 8 else ''}, expected those of every task; run the target"
                " `augment` again"
            )
        drawn = [variants[task.id] for task in self.tasks]
        counts = [min(len(each), limit or len(each)) for each in drawn]
        self.variant_count = torch.tensor(counts, device=self.device)
        self.first_puzzle = torch.tensor([0, *np.cumsum(counts)[:-1]], device=self.device)
        recipes = [(v.dihedral[:n], v.permutation[:n]) for v, n in zip(drawn, counts, strict=True)]
        self.dihedral, self.permutation = (  # [puzzles] and [puzzles, 10] int64
            torch.from_numpy(np.concatenate(each).astype(np.int64)).to(self.device)
            for each in zip(*recipes, strict=True)
        )
        self._turns = torch.tensor((SWAP, FLIP_ROW, FLIP_COLUMN), device=self.device).bool()
        self._along = torch.tensor(ALONG, device=self.device)

    @property
    def num_puzzles(self) -> int:
        """Return the number of puzzles: a puzzle is a task in one of its variants."""
        return int(self.dihedral.shape[0])

    def dihedral_on(self, lane: Lane, puzzle: Tensor) -> Tensor:
        """Return the dihedrals [B] in which puzzles [B] stand on a lane.

        On one that is not square, all grids are laid along the lane: flips stay, but no variant
        exchanges rows and columns. So all samples of a lane have one shape.
        """
        dihedral = self.dihedral[puzzle]
        return dihedral if lane.is_square else self._along[dihedral]

    def recipes_digest(self) -> str:
        """Return the SHA-256 of all puzzles in order: task, dihedral, colours."""
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
        """Return the samples `index` [B] of `episodes`, each in its task's `variant` [B].

        `shift` [B, 1+K, 2] in [0, 1): the move of the content of the query and of each demo
        from the top-left corner, as a part of the cells that are free (None: not at all). `demos`
        [B, K'], pair indices, replaces the first demos of the questions.
        """
        demos = episodes.pairs(episodes.members(index)) if demos is None else demos
        pairs = torch.cat([episodes.query[index][:, None], demos], dim=1)
        task = episodes.task[index]
        puzzle = self.first_puzzle[task] + variant
        inputs, outputs = self._tokens(pairs, puzzle, episodes.lane, shift)
        return Batch(
            puzzle=puzzle,
            task=task,
            inputs=inputs[:, 0],
            labels=outputs[:, 0],
            demo_inputs=inputs[:, 1:],
            demo_outputs=outputs[:, 1:],
            demo_mask=demos >= 0,
            lane=episodes.lane,
        )

    def _tokens(
        self, pairs: Tensor, puzzle: Tensor, lane: Lane, shift: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return token ids [B, Q, S] of inputs and outputs of `pairs` [B, Q]; -1 gives PAD."""
        grids = pairs.clamp(min=0)[..., None] * 2 + torch.arange(2, device=self.device)
        dihedral = self.dihedral_on(lane, puzzle)[:, None, None].expand(grids.shape)  # [B, Q, 2]
        swap, flip_row, flip_column = self._turns[:, dihedral, None, None]  # [B, Q, 2, 1, 1]
        size = self.sizes[grids]  # [B, Q, 2, 2] height and width, not yet turned
        turned = torch.where(swap[..., 0], size.flip(-1), size)
        offset = torch.zeros_like(turned)
        if shift is not None:
            rows, columns = turned.amax(dim=2).unbind(dim=-1)  # [B, Q] of the larger grid
            free = torch.stack([lane.rows - rows, lane.columns - columns], dim=-1).clamp(min=0)
            offset = (shift * (free + 1)).long()[:, :, None, :].expand(turned.shape)

        # Places of the canvas within the turned grid, negative before it.
        rows, columns = (torch.arange(n, device=self.device) for n in (lane.rows, lane.columns))
        row = rows[:, None] - offset[..., 0, None, None]  # [B, Q, 2, rows, 1]
        column = columns - offset[..., 1, None, None]  # [B, Q, 2, 1, columns]
        height, width = turned[..., 0, None, None], turned[..., 1, None, None]
        in_row, in_column = (row >= 0) & (row < height), (column >= 0) & (column < width)
        eos = ((row == height) & in_column) | ((column == width) & in_row)
        known = (height > 0) & (pairs >= 0)[..., None, None, None]  # a missing output has height 0

        # The same places in the grid itself, [B, Q, 2, rows, columns]; any cell of it outside.
        base_height, base_width = size[..., 0, None, None], size[..., 1, None, None]
        from_row, from_column = torch.where(swap, column, row), torch.where(swap, row, column)
        from_row = torch.where(flip_row, base_height - 1 - from_row, from_row)
        from_column = torch.where(flip_column, base_width - 1 - from_column, from_column)
        last = self.grids.shape[-1] - 1
        from_row, from_column = from_row.clamp(0, last), from_column.clamp(0, last)
        colors = self.grids[grids[..., None, None], from_row, from_column].long()
        colors = self.permutation[puzzle].gather(1, colors.flatten(1)).reshape(colors.shape)
        tokens = torch.where(in_row & in_column, colors + COLOR_OFFSET, torch.where(eos, EOS, PAD))
        tokens = torch.where(known, tokens, PAD).flatten(-2)
        return tokens[:, :, 0], tokens[:, :, 1]
