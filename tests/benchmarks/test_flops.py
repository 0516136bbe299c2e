"""FLOPs from the sizes are those that PyTorch counts while a small model does the work."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flops import decoding_flops, demo_lengths, training_flops
from benchmarks.mix import Mix
from benchmarks.setups import LANES, PADDED, Setting, make_trainer, run_config
from etrm.data.packing import TokenBounds
from etrm.evaluation.decode import decode
from etrm.models.build import build_model
from tests.tiny import make_batch, make_tasks, make_variants

SIZES = {
    "model": {
        **{"width": 64, "heads": 4, "layers": 2, "context_tokens": 4},
        **{"H_cycles": 2, "L_cycles": 2},
    },
    "context": {"width": 64, "heads": 4, "layers": 2, "set_layers": 2},
    "episodes": {"canvas": [6], "translate": False},
    "halting": {"max_steps": 3},
}
MODELS = ("trm", "etrm-standard")


def setting() -> Setting:
    tasks = make_tasks(6, side=5)
    mix = Mix("tiny", tasks, [], make_variants(tasks))
    return Setting(torch.device("cpu"), mix, blocks=SIZES, slots=4)


@pytest.mark.parametrize("layout", [PADDED, LANES], ids=lambda layout: layout.name)
@pytest.mark.parametrize("model", MODELS)
def test_training(model, layout, monkeypatch) -> None:
    monkeypatch.setattr("etrm.data.packing.GROUP_COST", 0)  # demos of one length together
    trainer = make_trainer(setting(), model, layout, "fp32")
    # The plain attention is the one that PyTorch counts on a CPU; it keeps its products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        trainer.step()
    [lane] = trainer.lane_slots
    batch = lane.carry.batch
    lengths = demo_lengths(batch, layout.padded)
    expected = training_flops(trainer.run, batch.lane.cells, lengths, attention=2.0)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("model", MODELS)
def test_decoding(model) -> None:
    run = run_config(setting(), model, LANES, "fp32", 2)
    batch = make_batch(2, demos=3, side=6)
    net = build_model(run, 8).eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        decode(net, batch, run.halting)
    expected = decoding_flops(run, 36, demo_lengths(batch, padded=False), encodings=1)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


def test_padded_demos_count_at_full_length() -> None:
    batch = make_batch(2, demos=3, side=6)
    batch.demo_mask[:, 2] = False
    padded, real = (demo_lengths(batch, padded=padded) for padded in (True, False))
    assert padded.concat.tolist() == [[72, 72, 72]] * 2
    assert padded.aligned.tolist() == [[36, 36, 36]] * 2
    assert real.concat.tolist() == [[72, 72, 0]] * 2


def test_paper_sizes() -> None:
    """Counted by hand for one sample of the official layout: 916 tokens, 21 applications."""
    paper = Setting(torch.device("cpu"), setting().mix)
    run = run_config(paper, "trm", PADDED, "fp32", 1)
    linear = 2 * 2 * (4 * 512**2 + 3 * 512 * 1536) * 916
    attention = 2 * 4 * 512 * 916**2
    heads = 3 * 2 * 512 * (12 * 900 + 2)
    expected = (21 + 2 * 7) * linear + (21 + 2.5 * 7) * attention + heads
    none = TokenBounds(*np.zeros((2, 1, 10), dtype=np.int64))
    assert training_flops(run, 900, none) == pytest.approx(expected)
