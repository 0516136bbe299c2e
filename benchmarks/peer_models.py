"""Plain steps of official TRM and of the original ETRM, to measure ours beside.

Written from what is published: the paper of TRM (arXiv 2510.04871), the names in its released
checkpoints, and the description of ETRM's standard encoder. A step is what those texts say, one
operation after the other: weights are cast at every use, nothing is compiled, the optimizer and the
average go tensor by tensor. Batches are given: the codes before us prepare theirs in other
processes, and none of that time is counted.

Shape suffixes: B batch, K demos, S = 900 grid tokens, P context tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from etrm.arc.grid import PAD
from etrm.config.study import RunConfig
from etrm.data.batch import Batch
from etrm.training.optim import AdamATan2

SIDE = 30
EPS = 1e-5


class Peer:
    """A model on a 30×30 canvas, its slots, and its optimizer; weights by our names."""

    def __init__(
        self, run: RunConfig, state: Mapping[str, Tensor], batch: Batch, dtype: torch.dtype
    ) -> None:
        self.run, self.dtype, self.incoming = run, dtype, batch
        self.encodes = "context.weights" not in state  # ETRM; else TRM
        fixed = ("decoder.H_init", "decoder.L_init", "context.weights")
        self.weights = {
            k: t.detach().clone().requires_grad_(k not in fixed) for k, t in state.items()
        }
        trained = [t for t in self.weights.values() if t.requires_grad]
        train = run.train
        betas = train.betas[0], train.betas[1]
        self.optimizer = AdamATan2(trained, train.lr, betas, train.weight_decay)
        self.average = [t.detach().clone() for t in trained]
        self.trained = trained
        size = run.model.width // run.model.heads
        self.rotary = _angles(run.model.context_tokens, size, run.model.rope_theta, batch.inputs)
        self.reset()

    def reset(self) -> None:
        """Give every slot a sample."""
        size, model = len(self.incoming.inputs), self.run.model
        shape = (size, model.context_tokens + self.incoming.inputs.shape[1], model.width)
        self.first = [
            self.weights[f"decoder.{name}_init"].to(self.dtype).expand(shape) for name in "HL"
        ]
        self.z_H, self.z_L = (t.clone() for t in self.first)
        self.batch = self.incoming
        self.steps = torch.zeros_like(self.incoming.puzzle)
        self.halted = torch.ones_like(self.incoming.puzzle, dtype=torch.bool)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Do one ACT step; return logits [B, S, V] and q_halt [B]."""
        column = self.halted[:, None, None]
        self.batch = Batch.where(self.halted, self.incoming, self.batch)
        z_H = torch.where(column, self.first[0], self.z_H)
        z_L = torch.where(column, self.first[1], self.z_L)
        self.steps = torch.where(self.halted, 0, self.steps) + 1
        model, scale = self.run.model, math.sqrt(self.run.model.width)
        context = self._encode() if self.encodes else scale * self._embedding()
        tokens = scale * F.embedding(
            self.batch.inputs, self._cast("decoder.embed_tokens.embedding_weight")
        )
        x = torch.cat([context.to(self.dtype), tokens], dim=1)
        with torch.no_grad():
            for _ in range(model.H_cycles - 1):
                z_H, z_L = self._cycle(x, z_H, z_L)
        z_H, z_L = self._cycle(x, z_H, z_L)
        self.z_H, self.z_L = z_H.detach(), z_L.detach()
        logits = self._linear(z_H[:, model.context_tokens :], "decoder.lm_head")
        q = self._linear(z_H[:, 0], "decoder.q_head")
        return logits.float(), q[:, 0].float()

    def loss(self) -> Tensor:
        """Do one ACT step and return the loss of each sample [B]."""
        logits, q_halt = self.forward()
        labels = self.batch.labels
        mask = labels != PAD
        x = logits.double()
        s = torch.where(x < 0, 1 / (1 - x + 1e-30), x + 1)  # stablemax
        log_p = torch.log(s / s.sum(dim=-1, keepdim=True))
        chosen = log_p.gather(-1, labels[..., None]).squeeze(-1)
        count = mask.sum(dim=-1).clamp(min=1)
        right = ((logits.argmax(dim=-1) == labels) | ~mask).all(dim=-1) & mask.any(dim=-1)
        halt = F.binary_cross_entropy_with_logits(q_halt, right.float(), reduction="none")
        self._halt(q_halt.detach())
        lm = -torch.where(mask, chosen, 0.0).sum(dim=-1) / count
        return lm + self.run.halting.loss_weight * halt

    def step(self) -> None:
        """Train for one ACT step."""
        train = self.run.train
        self.loss().mean().backward()
        if train.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.trained, train.grad_clip, foreach=False)
        self.optimizer.step()
        if not self.encodes:
            self._update_table()
        for value, weight in zip(self.average, self.trained, strict=True):
            value.lerp_(weight.detach(), 1 - train.ema_decay)
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def evaluate(self) -> None:
        """Do one ACT step of an evaluation: no slot halts before the last."""
        self.forward()
        self.halted = torch.zeros_like(self.halted)

    def _halt(self, q_halt: Tensor) -> None:
        halting = self.run.halting
        explore = torch.rand_like(q_halt) < halting.exploration_prob
        least = torch.randint_like(self.steps, 2, halting.max_steps + 1) * explore
        last = self.steps >= halting.max_steps
        self.halted = (last | (q_halt > 0)) & (self.steps >= least)

    def _embedding(self) -> Tensor:
        rows = self.weights["context.weights"][self.batch.puzzle].requires_grad_()
        self.rows = rows if torch.is_grad_enabled() else None
        empty = rows.new_zeros(len(rows), self.run.model.context_tokens - 1, rows.shape[1])
        return torch.cat([rows[:, None], empty], dim=1)

    @torch.no_grad()
    def _update_table(self) -> None:
        """Sign-SGD with weight decay on the rows of the batch."""
        assert self.rows is not None
        assert self.rows.grad is not None
        train, table = self.run.train, self.weights["context.weights"]
        used, index = self.batch.puzzle.unique(return_inverse=True)
        summed = table.new_zeros(len(used), table.shape[1])
        summed.index_add_(0, index, self.rows.grad)
        rows = table[used] * (1 - train.embedding_lr * train.embedding_weight_decay)
        table[used] = rows - train.embedding_lr * summed.sign()

    def _encode(self) -> Tensor:
        """Encode ten padded demos of 1,800 tokens, pool each, and let P queries read them."""
        o, batch = self.run.context, self.batch
        demos, cells = batch.demo_inputs.shape[1:]
        real = torch.cat([batch.demo_inputs != PAD, batch.demo_outputs != PAD], dim=-1)
        real = (real & batch.demo_mask[..., None]).flatten(0, 1)  # [B·K, 2S]
        real[:, 0] |= ~real.any(dim=1)  # attention needs a token to look at
        tables = [
            self._cast(f"context.pairs.embed_{n}.embedding_weight") for n in ("inputs", "outputs")
        ]
        grids = (batch.demo_inputs, batch.demo_outputs)
        both = [F.embedding(grid, table) for grid, table in zip(grids, tables, strict=True)]
        h = math.sqrt(o.width) * torch.cat(both, dim=2).flatten(0, 1)  # [B·K, 2S, E]
        cos, sin = (
            t[-cells:].repeat(2, 1)
            for t in _angles(0, o.width // o.heads, self.run.model.rope_theta, batch.inputs)
        )
        for layer in range(o.layers):
            h = self._block(h, f"context.blocks.{layer}", o.heads, (cos, sin), real[:, None, None])
        weight = real[..., None].to(h.dtype)
        pooled = ((h * weight).sum(dim=1) / weight.sum(dim=1)).unflatten(0, (-1, demos))
        x = self._cast("context.set.queries").expand(len(pooled), -1, -1)
        for layer in range(o.set_layers):
            name = f"context.set.blocks.{layer}"
            x = self._read(x, pooled, name, batch.demo_mask, last=layer == o.set_layers - 1)
        return math.sqrt(self.run.model.width) * _norm(x)

    def _read(self, x: Tensor, read: Tensor, name: str, mask: Tensor, last: bool) -> Tensor:
        heads = self.run.context.heads
        q = self._linear(x, f"{name}.cross_attn.q_proj").unflatten(-1, (heads, -1))
        kv = self._linear(read, f"{name}.cross_attn.kv_proj").unflatten(-1, (2 * heads, -1))
        k, v = kv.chunk(2, dim=2)
        y = _attend(q, k, v, mask[:, None, None])
        x = _norm(x + self._linear(y, f"{name}.cross_attn.o_proj"))
        x = x + self._mlp(x, name)
        return x if last else _norm(x)

    def _cycle(self, x: Tensor, z_H: Tensor, z_L: Tensor) -> tuple[Tensor, Tensor]:
        for _ in range(self.run.model.L_cycles):
            z_L = self._network(z_L + (z_H + x))
        return self._network(z_H + z_L), z_L

    def _network(self, h: Tensor) -> Tensor:
        for layer in range(self.run.model.layers):
            name = f"decoder.L_level.layers.{layer}"
            h = self._block(h, name, self.run.model.heads, self.rotary, None)
        return h

    def _block(
        self, h: Tensor, name: str, heads: int, rotary: tuple[Tensor, Tensor], mask: Tensor | None
    ) -> Tensor:
        qkv = self._linear(h, f"{name}.self_attn.qkv_proj").unflatten(-1, (3 * heads, -1))
        q, k, v = qkv.chunk(3, dim=2)
        y = _attend(_rotate(q, rotary), _rotate(k, rotary), v, mask)
        h = _norm(h + self._linear(y, f"{name}.self_attn.o_proj"))
        return _norm(h + self._mlp(h, name))

    def _mlp(self, h: Tensor, name: str) -> Tensor:
        gate, up = self._linear(h, f"{name}.mlp.gate_up_proj").chunk(2, dim=-1)
        return self._linear(F.silu(gate) * up, f"{name}.mlp.down_proj")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        bias = f"{name}.bias" in self.weights
        return F.linear(
            x, self._cast(f"{name}.weight"), self._cast(f"{name}.bias") if bias else None
        )

    def _cast(self, name: str) -> Tensor:
        return self.weights[name].to(self.dtype)


def _norm(x: Tensor) -> Tensor:
    y = x.float()
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + EPS)).to(x.dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def _angles(context: int, size: int, theta: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos and sin [P + 900, head width] of positions one after the other."""
    frequencies = 1.0 / theta ** (torch.arange(0, size, 2, device=like.device).float() / size)
    positions = torch.arange(context + SIDE * SIDE, device=like.device).float()
    angles = torch.cat([positions[:, None] * frequencies] * 2, dim=-1)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = (t[:, None] for t in rotary)  # the same for all heads
    left, right = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-right, left], dim=-1) * sin).to(x.dtype)
