"""TRM's decoder ("Less is More: Recursive Reasoning with Tiny Networks", arXiv 2510.04871).

Shape suffixes: B batch, P context tokens, S grid tokens, D width, V vocabulary. The context tokens,
as many as the context has, stand before the query's tokens. Two latent states, z_H (the answer, the
paper's y) and z_L (the reasoning, the paper's z), both [B, P+S, D], are refined by one small
network. Names of modules and weights are those of the released checkpoints.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from etrm.arc.grid import VOCAB_SIZE
from etrm.config.lanes import Lane
from etrm.config.study import ModelConfig
from etrm.models import layers
from etrm.models.layers import (
    Angles,
    Block,
    Linear,
    Mask,
    Rotary,
    Segments,
    Stack,
    TokenEmbedding,
)


class Network(nn.Module):
    """The one network, of `layers` blocks, for both states."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = Stack(
            Block(config.width, config.heads, config.expansion) for _ in range(config.layers)
        )

    def forward(
        self, state: Tensor, injection: Tensor, rotary: Angles, mask: Mask = None
    ) -> Tensor:
        """Update `state` by an `injection`, both [B, P+S, D]; `mask`: see `Attention`."""
        return self.layers(state + injection, rotary, mask)


class Decoder(nn.Module):
    """One ACT step: context, query tokens, z_H and z_L → new states, logits, halting logits."""

    H_init: Tensor  # [D]
    L_init: Tensor  # [D]

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_scale = math.sqrt(config.width)
        self.embed_tokens = TokenEmbedding(config.width)
        self.lm_head = Linear(config.width, VOCAB_SIZE)
        self.q_head = Linear(config.width, 2, bias=True)
        self.L_level = Network(config)
        head_width = config.width // config.heads
        self.rotary = Rotary(head_width, config.context_tokens, config.positions, config.rope_theta)
        nn.init.zeros_(self.q_head.weight)
        nn.init.constant_(self.q_head.bias, layers.Q_BIAS)
        for name in ("H_init", "L_init"):  # buffers: never trained, as in TRM
            self.register_buffer(name, layers.learned(config.width).data)

    def initial_states(
        self, batch: int, tokens: int, context: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return z_H and z_L [B, P+S, D] of new samples; S `tokens`, P `context` tokens."""
        context = self.config.context_tokens if context is None else context
        shape = (batch, context + tokens, self.config.width)
        return self.H_init.expand(shape), self.L_init.expand(shape)

    def forward(
        self,
        inputs: Tensor,
        context: Tensor,
        z_H: Tensor,
        z_L: Tensor,
        lane: Lane,
        real: Tensor | None = None,
        places: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Do one ACT step and return z_H, z_L [B, P+S, D], logits [B, S, V], q logits [B, 2].

        `inputs` [B, S] int64: token ids of canvases of `lane`; `context` [B, P, D] in units of the
        stream, where token embeddings have an RMS of about 1; `real`, `places` [B, P]: see
        `Encoded`. The q logits (halt, continue) are read from the first context token.
        """
        tokens = self.embed_scale * self.embed_tokens(inputs)  # [B, S, D]
        x = torch.cat([context.to(tokens.dtype), tokens], dim=1).to(z_H.dtype)
        if real is None or places is None:  # all tokens are real, P as in the configuration
            z_H, z_L = self.refine(x, z_H, z_L, self.rotary(lane), None)
        else:
            rotary = self.rotary.beside(places, lane)
            mask = torch.cat([real, torch.ones_like(inputs, dtype=torch.bool)], dim=1)
            flash = layers.has_flash(x.device, x.dtype, rotary[0].shape[-1])
            refine = self.refine_segments if flash else self.refine
            z_H, z_L = refine(x, z_H, z_L, rotary, mask)
        logits = self.lm_head(z_H[:, context.shape[1] :])
        return z_H, z_L, logits.float(), self.q_head(z_H[:, 0]).float()

    def refine(
        self, x: Tensor, z_H: Tensor, z_L: Tensor, rotary: Angles, mask: Mask
    ) -> tuple[Tensor, Tensor]:
        """Refine both states by the input `x`, all [B, P+S, D]: the paper's deep recursion."""
        last = self.config.H_cycles - 1  # T - 1 cycles improve the start without gradients
        for cycle in range(self.config.H_cycles):
            with torch.set_grad_enabled(torch.is_grad_enabled() and cycle == last):
                z_H, z_L = self._cycle(x, z_H, z_L, rotary, mask)
        return z_H, z_L

    def refine_segments(
        self, x: Tensor, z_H: Tensor, z_L: Tensor, rotary: Angles, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Do as `refine` with the real tokens of each row in front, as one segment.

        Tokens attend by their angles, wherever they stand.
        """
        order = (~mask).byte().argsort(dim=1, stable=True)[..., None]  # [B, P+S, 1]
        x, z_H, z_L, *angles = (t.take_along_dim(order, 1) for t in (x, z_H, z_L, *rotary))
        segments = Segments.of(mask.sum(dim=1, keepdim=True), mask.shape[1])
        states, back = self.refine(x, z_H, z_L, (angles[0], angles[1]), segments), order.argsort(1)
        return states[0].take_along_dim(back, 1), states[1].take_along_dim(back, 1)

    def _cycle(
        self, x: Tensor, z_H: Tensor, z_L: Tensor, rotary: Angles, mask: Mask
    ) -> tuple[Tensor, Tensor]:
        """Do one H-cycle: the paper's latent recursion."""
        for _ in range(self.config.L_cycles):  # n
            z_L = self.L_level(z_L, z_H + x, rotary, mask)  # z ← net(x, y, z)
        return self.L_level(z_H, z_L, rotary, mask), z_L  # y ← net(y, z)
