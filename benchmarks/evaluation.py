"""Evaluation: (task, test input, variant) per second, through all ACT steps.

Every ACT step of a sample costs the same, and a lane's samples cost the same up to their demos, so
a few ACT steps of a few samples of each lane give the time of all: the seconds per sample of a mix
are the mean of the lanes', weighted by their shares of its test inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import etrm.evaluation.decode
from benchmarks.clock import PeakMemory, now
from benchmarks.flops import decoding_flops, demo_lengths
from benchmarks.rows import Row, new_row, rate_beside, set_rates
from benchmarks.setups import LANES, PADDED, Setting, questions_of_tests
from etrm.config.lanes import Lane
from etrm.config.study import EvaluationConfig, RunConfig
from etrm.data.batch import Batch
from etrm.data.corpus import Corpus, Episodes
from etrm.evaluation.decode import predict
from etrm.models.act import Model, act_step, empty_carry
from etrm.models.build import build_model
from etrm.models.compute import DTYPES, computing
from etrm.models.flops import GIGA

# ACT steps that are timed, after one that warms up.
CPU_STEPS, GPU_STEPS = 2, 15
# Samples at once on a CPU: about as many tokens in every lane.
CPU_TOKENS = 450
OFFICIAL = Lane(30, 30)
GPU_SAMPLES = {"trm": 256, "etrm-standard": 32}  # padded; lanes: as an evaluation has by default


@dataclass(frozen=True)
class LaneCost:
    """The measured cost of a sample of a lane."""

    samples: int  # measured at once
    seconds: float  # of all ACT steps, and all that is done once
    step: float  # seconds of one ACT step
    gflop: float


def evaluation_rows(setting: Setting, model: str, cases: set[str]) -> Iterator[Row]:
    """`eval/<model>` in both layouts and formats; with `-heldout`, of the held-out tasks' sizes."""
    own, held_out = f"eval/{model}", f"eval/{model}-heldout"
    shares = {own: shares_of(setting, model, False)}
    if setting.mix.held_out:
        shares[held_out] = shares_of(setting, model, True)
    for dtype in ("fp32", "bf16"):
        rates, memory = [rate_beside(setting, dtype)], PeakMemory(setting.device)
        padded, padded_peak = _padded_cost(setting, model, dtype), memory.bytes()
        rates.append(rate_beside(setting, dtype))
        memory = PeakMemory(setting.device)
        lanes, peak = lane_costs(setting, model, dtype), memory.bytes()
        later = [rates[-1], rate_beside(setting, dtype)]
        for case in (case for case in shares if case in cases):
            if any(lane not in lanes for lane in shares[case]):
                continue
            tasks = setting.mix.name if case == own else "held-out tasks"
            head = {"case": case, "dtype": dtype, "tasks": f"test inputs of {tasks}"}
            base = _row(
                setting, head, PADDED.name, {OFFICIAL: padded}, {OFFICIAL: 1.0}, padded_peak
            )
            set_rates(base, setting, rates)
            row = _row(setting, head, LANES.name, lanes, shares[case], peak)
            set_rates(row, setting, later)
            base.speedup, row.speedup = 1.0, padded.seconds / (1 / (row.examples_per_second or 1))
            yield from (base, row)


def _row(
    setting: Setting,
    head: dict[str, Any],
    layout: str,
    costs: dict[Lane, LaneCost],
    shares: dict[Lane, float],
    peak: int,
) -> Row:
    seconds = sum(share * costs[lane].seconds for lane, share in shares.items())
    return new_row(
        setting,
        **head,
        layout=layout,
        examples_per_second=1 / seconds,
        seconds_per_step=sum(share * costs[lane].step for lane, share in shares.items()),
        gflop_per_example=sum(share * costs[lane].gflop for lane, share in shares.items()),
        batch_size=max(costs[lane].samples for lane in shares),
        peak_memory_bytes=peak,
        note="seconds_per_step: one ACT step of one example; lanes weighted by their shares",
    )


def shares_of(setting: Setting, model: str, held_out: bool) -> dict[Lane, float]:
    """Each lane's share of the test inputs, by its shape."""
    _, _, episodes = questions_of_tests(setting, model, LANES, "fp32", held_out)
    total = sum(len(lane) for lane in episodes)
    return {lane.lane: len(lane) / total for lane in episodes}


def lane_costs(setting: Setting, model: str, dtype: str) -> dict[Lane, LaneCost]:
    """By the shape of a lane, through the evaluation that a run has."""
    run, corpus, episodes = questions_of_tests(setting, model, LANES, dtype)
    net = build_model(run, corpus.num_puzzles).to(setting.device)
    costs: dict[Lane, LaneCost] = {}
    for lane in episodes:
        most = EvaluationConfig().batch_size
        size = most if setting.gpu else max(1, round(CPU_TOKENS / lane.lane.cells))
        chosen = spread(lane, size)
        if setting.gpu or not costs:
            _predict(setting, net, corpus, run, lane, chosen, 1)
        begun = now(setting.device)
        steps = _predict(setting, net, corpus, run, lane, chosen, _timed_steps(setting))
        whole, step = now(setting.device) - begun, float(np.mean(steps[1:]))
        seconds = whole - sum(steps) + run.halting.max_steps * step
        batch = corpus.assemble(lane, chosen, torch.zeros_like(chosen))
        flops = decoding_flops(run, lane.lane.cells, demo_lengths(batch, False), encodings=1)
        n = len(chosen)
        costs[lane.lane] = LaneCost(n, seconds / n, step / n, flops / n / GIGA)
    return costs


def _predict(
    setting: Setting,
    net: Model,
    corpus: Corpus,
    run: RunConfig,
    lane: Episodes,
    chosen: torch.Tensor,
    steps: int,
) -> list[float]:
    """Predictions of some questions in `steps` ACT steps; the seconds of each."""
    halting = replace(run.halting, max_steps=steps)
    config = EvaluationConfig(batch_size=len(chosen))
    questions = [(lane, chosen, torch.zeros_like(chosen))]
    seconds: list[float] = []
    timed = _timed(act_step, seconds, setting.device)
    with patch.object(etrm.evaluation.decode, "act_step", timed):
        predict(net, corpus, questions, halting, config, DTYPES[run.train.dtype])
    return seconds


def _padded_cost(setting: Setting, model: str, dtype: str) -> LaneCost:
    """Of any sample of the official layout: ten padded demos, encoded again at every ACT step."""
    run, corpus, episodes = questions_of_tests(setting, model, PADDED, dtype)
    lane = episodes[-1]
    net = build_model(run, corpus.num_puzzles).to(setting.device).eval()
    chosen = spread(lane, GPU_SAMPLES[model] if setting.gpu else 1)
    batch = corpus.assemble(lane, chosen, torch.zeros_like(chosen))
    steps = _encode_every_step(net, batch, run, _timed_steps(setting), setting.device)
    n, count, step = len(chosen), run.halting.max_steps, float(np.mean(steps[1:]))
    flops = decoding_flops(run, lane.lane.cells, demo_lengths(batch, True), encodings=count)
    return LaneCost(n, count * step / n, step / n, flops / n / GIGA)


@torch.no_grad()
def _encode_every_step(
    net: Model, batch: Batch, run: RunConfig, steps: int, device: torch.device
) -> list[float]:
    """Seconds of each ACT step, as the original ETRM code evaluates."""
    seconds: list[float] = []
    step = _timed(act_step, seconds, device)
    with computing(net, PADDED.compute(run.train.dtype)):
        carry = empty_carry(net, batch, DTYPES[run.train.dtype])
        for _ in range(steps):
            carry, _ = step(net, carry, batch)
            carry.halted = torch.zeros_like(carry.halted)
    return seconds


def _timed(
    function: Callable[..., Any], seconds: list[float], device: torch.device
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        begun = now(device)
        result = function(*args, **kwargs)
        seconds.append(now(device) - begun)
        return result

    return call


def _timed_steps(setting: Setting) -> int:
    return 1 + (GPU_STEPS if setting.gpu else CPU_STEPS)


def spread(lane: Episodes, size: int) -> torch.Tensor:
    """Questions [size] evenly spread over a lane in order of the size of their demos."""
    order = np.arange(len(lane))
    bounds = lane.token_bounds(lane.members(torch.from_numpy(order)))
    if bounds is not None:
        order = bounds.concat.sum(axis=1).argsort(kind="stable")
    places: Sequence[int] = ((np.arange(size) + 0.5) / size * len(lane)).astype(int).tolist()
    return torch.from_numpy(order[places]).to(lane.task.device)
