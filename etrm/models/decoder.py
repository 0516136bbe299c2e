"""TRM's decoder (arXiv 2510.04871; names as in the released checkpoints).

Shapes: B batch, P context tokens, S grid tokens, D width, V vocabulary. The context tokens, as many
as the context has, stand before the query's tokens; two latent states z_H (answer) and z_L
(reasoning), both [B, P+S, D], are refined by one small network.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from etrm.arc.grid import VOCAB_SIZE
from etrm.config.study import ModelConfig
from etrm.models.layers import Block, Rotary, TokenEmbedding, init_normal_, linear


class Network(nn.Module):
    """The one network: state [B, P+S, D] + injection → state, through `layers` blocks."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Block(config.width, config.heads, config.expansion) for _ in range(config.layers)
        )

    def forward(
        self,
        state: Tensor,
        injection: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
    ) -> Tensor:
        x = state + injection
        for layer in self.layers:
            x = layer(x, rotary, mask)
        return x


class Decoder(nn.Module):
    """One ACT step: context and query tokens, z_H, z_L → new states, logits, halting logits."""

    H_init: Tensor
    L_init: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_scale = math.sqrt(config.width)
        self.embed_tokens = TokenEmbedding(config.width)
        self.lm_head = linear(config.width, VOCAB_SIZE)
        self.q_head = linear(config.width, 2, bias=True)
        self.L_level = Network(config)
        self.rotary = Rotary(
            config.width // config.heads,
            config.context_tokens,
            config.positions,
            config.rope_theta,
        )
        # Halting starts improbable, so that samples use their steps before they learn to stop.
        nn.init.zeros_(self.q_head.weight)
        nn.init.constant_(self.q_head.bias, -5.0)
        self.register_buffer("H_init", init_normal_(torch.empty(config.width), 1.0))
        self.register_buffer("L_init", init_normal_(torch.empty(config.width), 1.0))

    def initial_states(
        self, batch: int, tokens: int, context: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """z_H and z_L [B, P+S, D] of samples that begin; S `tokens`, P `context` tokens."""
        context = self.config.context_tokens if context is None else context
        shape = (batch, context + tokens, self.config.width)
        return self.H_init.expand(shape), self.L_init.expand(shape)

    def forward(
        self,
        inputs: Tensor,
        context: Tensor,
        z_H: Tensor,
        z_L: Tensor,
        real: Tensor | None = None,
        places: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Refine for one ACT step; gradients flow through the last H-cycle only.

        `inputs` [B, S] token ids of a square canvas; `context` [B, P, D] in units of the stream,
        where token embeddings have an RMS of about 1. Of a context of cells, `real` [B, P] says
        which there are, and `places` [B, P] where they stand (see `Encoded`).
        Returns z_H, z_L [B, P+S, D], logits [B, S, V] and q logits [B, 2] (halt, continue).
        """
        tokens = self.embed_scale * self.embed_tokens(inputs)
        injection = torch.cat([context.to(tokens.dtype), tokens], dim=1).to(z_H.dtype)
        around = self._around(inputs, real, places)
        with torch.no_grad():
            for _ in range(self.config.H_cycles - 1):
                z_H, z_L = self._cycle(z_H, z_L, injection, *around)
        z_H, z_L = self._cycle(z_H, z_L, injection, *around)
        logits = self.lm_head(z_H[:, context.shape[1] :])
        return z_H, z_L, logits.float(), self.q_head(z_H[:, 0]).float()

    def _around(
        self, inputs: Tensor, real: Tensor | None, places: Tensor | None
    ) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        """Rotary positions, and which tokens may be attended to (None: all)."""
        side = math.isqrt(inputs.shape[1])
        if real is None or places is None:
            return self.rotary(side), None
        mask = torch.cat([real, torch.ones_like(inputs, dtype=torch.bool)], dim=1)
        return self.rotary.beside(places, side), mask

    def _cycle(
        self,
        z_H: Tensor,
        z_L: Tensor,
        injection: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        for _ in range(self.config.L_cycles):
            z_L = self.L_level(z_L, z_H + injection, rotary, mask)
        return self.L_level(z_H, z_L, rotary, mask), z_L
