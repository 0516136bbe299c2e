"""`python -m benchmarks.floor`: what a step must do, counted from sizes; nothing is timed.

FLOPs, tokens, bytes that a backward pass keeps, and bytes that move, per example of the mean
question of the training tasks, in both layouts.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.flops import decoding_flops, encoder, training_flops
from benchmarks.mix import NoTasks, load_mix
from benchmarks.setups import LANES, PADDED, SOURCES, Layout, Setting, padded_bytes, run_config
from etrm.config.registry import context_source
from etrm.config.study import RunConfig
from etrm.data.corpus import Corpus, Episodes
from etrm.data.episodes import group_by_lane, training_questions
from etrm.data.packing import TokenBounds
from etrm.models.act import Model
from etrm.models.build import build_model
from etrm.models.flops import GIGA, bytes_moved
from etrm.training.micro_batches import slot_bytes

ITEM = 2  # bytes of a number in bf16
COLUMNS = (
    "model",
    "layout",
    "decoder tokens",
    "demo tokens",
    "train GFLOP",
    "of it encoder",
    "eval GFLOP",
    "kept MB",
    "moved GB",
    "FLOP/byte",
)


def main() -> int:
    """Print one line for each model and layout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=Path, metavar="FILE", help="a tasks.parquet")
    try:
        setting = Setting(torch.device("cpu"), load_mix(parser.parse_args().tasks, variants=1))
    except NoTasks as error:
        print(error, file=sys.stderr)
        return 2
    print(f"per example, mean over the questions of {setting.mix.name}; bf16")
    print(" | ".join(COLUMNS))
    for model in SOURCES:
        for layout in (PADDED, LANES):
            print(" | ".join([model, layout.name, *floor(setting, model, layout)]))
    return 0


def floor(setting: Setting, model: str, layout: Layout) -> list[str]:
    """Return the cells of a line after model and layout."""
    run = run_config(setting, model, layout, "bf16", 1)
    needs_demos = context_source(run.context.source).needs_demos
    corpus = Corpus(setting.mix.training, setting.mix.variants)
    questions = training_questions(corpus, (), run.episodes, needs_demos)
    episodes = group_by_lane(corpus, questions, run.episodes.canvas, see_answers=True)
    net = build_model(run, 1)
    per_lane = np.array([_of_lane(run, net, lane, layout) for lane in episodes])
    shares = np.array([len(lane) for lane in episodes]) / len(questions)
    tokens, demos, train, encode, decode, kept, moved = shares @ per_lane
    numbers = (tokens, demos, train / GIGA, encode / GIGA, decode / GIGA, kept / 1e6)
    return [*(f"{n:,.0f}" for n in numbers), f"{moved / 1e9:.2f}", f"{train / moved:.0f}"]


def _of_lane(run: RunConfig, net: Model, lane: Episodes, layout: Layout) -> tuple[float, ...]:
    """Means over the questions of a lane."""
    n, lengths = len(lane), _lengths(run, lane, layout)
    encodings = run.halting.max_steps if layout.padded else 1
    work = encoder(run, lengths)
    tokens, demos = run.model.context_tokens + lane.lane.cells, float(lengths.concat.sum() / n)
    kept = slot_bytes(run, net, lane)
    if layout.padded:
        kept = padded_bytes(run, net, lane)
    decode = decoding_flops(run, lane.lane.cells, lengths, encodings)
    return (
        tokens,
        demos if net.context.needs_demos else 0.0,
        training_flops(run, lane.lane.cells, lengths) / n,
        (work.forward + work.backward()) / n,
        decode / n,
        kept,
        bytes_moved(run.model, tokens, net.context.activation_bytes(demos, ITEM), ITEM),
    )


def _lengths(run: RunConfig, lane: Episodes, layout: Layout) -> TokenBounds:
    """Bounds of the demos' tokens, which are close; or all slots at full length."""
    most = run.episodes.max_demos
    if layout.padded:
        return TokenBounds(*(np.full((len(lane), most), n * lane.lane.cells) for n in (2, 1)))
    shown = lane.truncate_demos(most)
    bounds = shown.token_bounds(shown.members(torch.arange(len(shown))))
    assert bounds is not None
    return bounds


if __name__ == "__main__":
    sys.exit(main())
