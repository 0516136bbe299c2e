"""Latent search at the paper's sizes, beside the evaluation of the same questions without it.

Every step of a search costs the same, as every ACT step does, so one of each in each lane gives the
time of all. The step has the context of all demos as its only start, and one ACT step a demo: the
defaults of `refinement`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from benchmarks.clock import now
from benchmarks.evaluation import CPU_TOKENS, spread
from benchmarks.flops import decoding_flops, demo_lengths, encoder
from benchmarks.rows import Row, new_row, rate_beside, set_rates
from benchmarks.setups import LANES, Setting, questions_of_tests
from etrm.config.refinement import RefinementConfig
from etrm.config.study import RunConfig
from etrm.data.batch import Batch
from etrm.data.corpus import Corpus, Episodes
from etrm.evaluation.decode import decode
from etrm.models.act import Model
from etrm.models.build import build_model
from etrm.models.flops import GIGA
from etrm.refinement.costs import Costs
from etrm.refinement.demos import expanded, frozen, leave_one_out
from etrm.refinement.search import Search
from etrm.refinement.spaces import TokenSpace

CASE, MODEL, STEPS = "refine/etrm-standard", "etrm-standard", 10
GPU_SAMPLES = 16


def refinement_rows(setting: Setting) -> Iterator[Row]:
    """`refine/etrm-standard`: an evaluation, and so many steps of a search for its questions."""
    run, corpus, episodes = questions_of_tests(
        setting, MODEL, LANES, "fp32", bool(setting.mix.held_out)
    )
    net = build_model(run, corpus.num_puzzles).to(setting.device)
    total = sum(len(lane) for lane in episodes)
    rates, sums = [rate_beside(setting, "fp32")], torch.zeros(4, dtype=torch.float64)
    for lane in episodes:
        of_sample = torch.tensor(_lane(setting, net, corpus, run, lane), dtype=torch.float64)
        sums += len(lane) / total * of_sample
    rates.append(rate_beside(setting, "fp32"))
    evaluation, search, evaluation_gflop, search_gflop = sums.tolist()
    for part, seconds, gflop in (
        ("evaluation", evaluation, evaluation_gflop),
        (f"{STEPS} search steps", search, search_gflop),
    ):
        row = new_row(
            setting,
            case=CASE,
            part=part,
            layout=LANES.name,
            dtype="fp32",
            examples_per_second=1 / seconds,
            gflop_per_example=gflop,
            speedup=evaluation / seconds,
            note=f"GFLOP of the evaluation: times {gflop / evaluation_gflop:.2f}",
        )
        set_rates(row, setting, rates)
        yield row


def _lane(
    setting: Setting, net: Model, corpus: Corpus, run: RunConfig, lane: Episodes
) -> tuple[float, float, float, float]:
    """Return seconds of an evaluation and of a search, and the GFLOP of both, by sample."""
    size = GPU_SAMPLES if setting.gpu else max(1, round(CPU_TOKENS / lane.lane.cells))
    chosen = spread(lane, size)
    batch = corpus.assemble(lane, chosen, torch.zeros_like(chosen))
    config, halting = RefinementConfig(steps=(0, STEPS)), run.halting

    def timed(call: Callable[[], object]) -> float:
        if setting.gpu:
            call()
        begun = now(setting.device)
        call()
        return now(setting.device) - begun

    with frozen(net):
        one, two = (
            timed(lambda n=n: decode(net, batch, replace(halting, max_steps=n)))  # type: ignore[misc]
            for n in (1, 2)
        )
        evaluation = one + (halting.max_steps - 1) * (two - one)
        search = _search(net, batch, run, config)
        shift = torch.zeros_like(search.space.origin)
        seconds = timed(lambda: _search(net, batch, run, config))
        seconds += STEPS * timed(lambda: search.score(search.space, shift, True))
        demos = leave_one_out(batch).batch
        encoding = encoder(run, demo_lengths(demos, False)).forward
        found = sum(Costs.of(net, batch, halting, config).step("search")) * STEPS + encoding
    lengths = demo_lengths(batch, False)
    flops = decoding_flops(run, lane.lane.cells, lengths, encodings=1)
    n = len(batch)
    return evaluation / n, seconds / n, flops / n / GIGA, found / n / GIGA


@torch.no_grad()
def _search(net: Model, batch: Batch, run: RunConfig, config: RefinementConfig) -> Search:
    """Return a search before its first step: demos are encoded."""
    copies = expanded(batch, config.starts)
    space = TokenSpace(net, copies, leave_one_out(copies), config.act_steps)
    return Search(net, space, run.halting, config, torch.float32)
