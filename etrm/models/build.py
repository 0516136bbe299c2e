"""Build a model from its configuration, or from the folder of a finished run."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

from etrm.config.registry import context_source
from etrm.config.study import ModelConfig, RunConfig
from etrm.models.act import Model
from etrm.models.decoder import Decoder
from etrm.models.encoders.base import ContextSource
from etrm.storage.checkpoint import load_weights


def build_model(run: RunConfig, num_puzzles: int) -> Model:
    """Return the model of a run, with first weights drawn from its seed.

    `num_puzzles`: rows of the augmentation table, for a table of embeddings.
    """
    with torch.random.fork_rng(devices=[]):  # the global generator is left as it was
        torch.manual_seed(run.seed)
        decoder = Decoder(run.model)  # first: its weights are the same for every context source
        source = context_source(run.context.source)(run.context, run.model, num_puzzles)
    return Model(source, decoder)


@cache
def context_of_sizes(options: Any, model: ModelConfig, num_puzzles: int = 1) -> ContextSource:
    """Return a context source with the shapes of its weights alone, which take no memory."""
    with torch.device("meta"):
        source: ContextSource = context_source(options.source)(options, model, num_puzzles)
    return source


def load_model(folder: Path, run: RunConfig, weights: str = "ema") -> Model:
    """Return the trained model of a run folder, on the CPU; `weights` are `ema` or `raw`."""
    tensors = load_weights(folder / "model.safetensors", weights)
    table = tensors.get("context.weights")  # of embeddings; an encoder has none
    model = build_model(run, 1 if table is None else len(table))
    model.load_state_dict(tensors)
    return model.eval()


def num_parameters(model: Model) -> int:
    """Return the number of trained numbers, those of a table of embeddings (a buffer) included."""
    table = [b.numel() for n, b in model.named_buffers() if n == "context.weights"]
    return sum(p.numel() for p in model.parameters()) + sum(table)
