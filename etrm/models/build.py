"""Build a model from its configuration."""

from __future__ import annotations

import torch

from etrm.config.registry import context_source
from etrm.config.study import RunConfig
from etrm.models.act import Model
from etrm.models.decoder import Decoder


def build_model(run: RunConfig, num_puzzles: int) -> Model:
    """Return the model of a run, with first weights drawn from its seed.

    `num_puzzles`: rows of the augmentation table, for a table of embeddings.
    """
    with torch.random.fork_rng(devices=[]):  # the global generator is left as it was
        torch.manual_seed(run.seed)
        decoder = Decoder(run.model)  # first: its weights are the same for every context source
        source = context_source(run.context.source)(run.context, run.model, num_puzzles)
    return Model(source, decoder)


def num_parameters(model: Model) -> int:
    """Return the number of trained numbers, those of a table of embeddings (a buffer) included."""
    table = [b.numel() for n, b in model.named_buffers() if n == "context.weights"]
    return sum(p.numel() for p in model.parameters()) + sum(table)
