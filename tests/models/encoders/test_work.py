"""The FLOPs that context sources say they need are those that PyTorch counts."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from tiny import make_batch, make_run
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from etrm.arc.grid import PAD
from etrm.config.registry import CONTEXT_SOURCES, context_source
from etrm.data.batch import Batch
from etrm.data.packing import TokenBounds
from etrm.models.encoders.base import ContextSource

SIZES = {"width": 64, "heads": 4, "layers": 2}
OTHERS: list[tuple[str, dict[str, Any]]] = [
    *(("standard", {"pooling": kind}) for kind in ("attention", "weighted")),
    ("standard", {"pairing": "aligned"}),
    ("standard", {"width": 32}),
    ("variational", {"width": 32}),
    ("lpn_variational", {"layers": 8, "latent": 64}),
    ("lpn_deep_variational", {"bottleneck": "aggregated"}),
    ("hierarchical", {"pairing": "aligned"}),
    ("perceiver", {"pairing": "concat"}),
    ("in_context", {"width": 32}),
    ("recurrent_trm", {"H_cycles": 3, "L_cycles": 3}),
]


def ragged() -> tuple[Batch, TokenBounds]:
    """Two samples, of three and of two demos on 8×8 cells of which some are empty."""
    batch = make_batch(2, demos=3, side=8)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    grids = [tokens * mask[..., None] for tokens in (batch.demo_inputs, batch.demo_outputs)]
    for tokens in grids:
        tokens[0, 0, 40:] = PAD
    batch = dataclasses.replace(batch, demo_inputs=grids[0], demo_outputs=grids[1], demo_mask=mask)
    aligned = np.array([[40, 64, 64], [64, 64, 0]])
    return batch, TokenBounds(2 * aligned, aligned)


def build(name: str, changes: dict[str, Any]) -> ContextSource:
    sizes = {k: v for k, v in SIZES.items() if name != "embedding"} | changes
    run = make_run(name, model={"width": 64, "heads": 4, "context_tokens": 4}, context=sizes)
    source: ContextSource = context_source(name)(run.context, run.model, 8)
    return source.train()


@pytest.mark.parametrize(
    ("name", "changes"), [*((name, {}) for name in CONTEXT_SOURCES), *OTHERS], ids=str
)
def test_the_work_of_a_source_is_what_pytorch_counts(
    name: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etrm.data.packing.GROUP_COST", 0)  # demos of one length together
    source, (batch, demos) = build(name, changes), ragged()
    if source.noise_size(3):
        batch = dataclasses.replace(batch, noise=torch.zeros(2, source.noise_size(3)))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        encoded = source(batch, source.initial_state(2))
        forward = counter.get_total_flops()
        if forward:
            encoded.tokens.square().sum().backward()
    work = source.work(demos)
    assert work is not None, f"{name}: found no count of its FLOPs"
    assert work.forward == pytest.approx(forward, rel=0.03)
    # The plain attention keeps its products. The state of the next ACT step has no gradient.
    backward = work.backward(attention=2.0)
    assert backward == pytest.approx(counter.get_total_flops() - forward, rel=0.1)
