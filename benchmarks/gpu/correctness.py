"""Correctness on a device: against recordings, the CPU, itself compiled, resumed, and in pieces.

A row's `found` is a relative distance, or a count, that must not exceed its `bound`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # before processes are forked: each would spend seconds on it
from torch import Tensor

from benchmarks.recorded import FOLDER, Recorded, Replay
from benchmarks.rows import Row, new_row
from benchmarks.setups import LANES, Layout, Setting, make_trainer
from etrm.config.execution import ExecutionConfig
from etrm.config.registry import CONTEXT_SOURCES
from etrm.models.act import act_step, empty_carry
from etrm.storage.checkpoint import load_state, save_state
from etrm.training.trainer import Trainer

EAGER, COMPILED = replace(LANES, compile="off"), replace(LANES, compile="on")
MODELS = ("trm", "etrm-standard", "etrm-in_context")
# A short recursion: each application of an untrained network multiplies rounding errors.
SMALL: dict[str, dict[str, Any]] = {
    "model": {"width": 128, "heads": 4, "H_cycles": 2, "L_cycles": 1},
    "context": {"width": 128, "heads": 4},
}
SLOTS, SIDES = 24, 16  # of these checks: slots, and cells of the largest grid
GOLDEN = 1e-4  # as in the tests
FP32 = 1e-3  # sums in another order, relative to all gradients
BF16 = 3.0  # times the distance of the CPU's (or eager) bf16 from its fp32
PIECES = 1e-4
STEPS = 2  # before and after a run is resumed


def golden_rows(setting: Setting) -> Iterator[Row]:
    """Check evaluation and training steps in fp32 against those of the official code."""
    folder = os.environ.get(FOLDER)
    if not folder:
        yield new_row(setting, case="golden", part=f"left out: {FOLDER} is not set")
        return
    recorded = Recorded.read(Path(folder), setting.device)
    model = recorded.model().to(setting.device).eval()
    batch = recorded.batch()
    carry, worst = empty_carry(model, batch, torch.float32), 0.0
    for number in range(recorded.run.halting.max_steps):
        with torch.no_grad():
            carry, output = act_step(model, carry, batch)
        carry.halted = torch.zeros_like(carry.halted)
        for name, tensor in (("logits", output.logits), ("q_halt_logits", output.q_halt)):
            expected = recorded.tensors[f"eval.step{number}.{name}"]
            worst = max(worst, float((tensor - expected).abs().max()))
    yield check(setting, "golden", "evaluation, logits", worst, GOLDEN, dtype="fp32")
    corpus_trainer = make_trainer(setting, "trm", EAGER, "fp32")
    trainer = Trainer(
        recorded.run,
        recorded.model().to(setting.device),
        corpus_trainer.corpus,
        corpus_trainer.episodes[-1:],
        execution=ExecutionConfig(compile="off"),  # a compiler would take longer than the limit
    )
    (group,) = trainer.lane_slots
    group.sampler = Replay(recorded)  # type: ignore[assignment]
    group.carry = empty_carry(trainer.model, recorded.batch(), torch.float32)
    for _ in recorded.settings["train"]:
        trainer.step()
    state = trainer.model.state_dict()
    expected_weights = recorded.weights(f"trm_checkpoint_step{len(recorded.settings['train'])}")
    worst = max(float((state[k].cpu() - t).abs().max()) for k, t in expected_weights.items())
    yield check(setting, "golden", "weights after training", worst, GOLDEN, dtype="fp32")


def encoder_rows(setting: Setting) -> Iterator[Row]:
    """Compare the device with the CPU, for every context source, in both formats."""
    small, cpu = small_setting(setting), torch.device("cpu")
    on_cpu = replace(small, device=cpu)
    for source in CONTEXT_SOURCES:
        model = "trm" if source == "embedding" else f"etrm-{source}"
        exact, low = (first_pass(on_cpu, model, EAGER, dtype) for dtype in ("fp32", "bf16"))
        found = {dtype: first_pass(small, model, EAGER, dtype) for dtype in ("fp32", "bf16")}
        yield from compared(setting, "cpu-against-device", source, exact, low, found)


def compiled_rows(setting: Setting) -> Iterator[Row]:
    """Compare compiled with eager on the device, and count the graphs of all lanes."""
    small = small_setting(setting)
    for model in MODELS:
        exact, low = (first_pass(small, model, EAGER, dtype) for dtype in ("fp32", "bf16"))
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        found = {dtype: first_pass(small, model, COMPILED, dtype) for dtype in ("fp32", "bf16")}
        yield from compared(setting, "eager-against-compiled", model, exact, low, found)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        yield new_row(setting, case="graphs", part=model, found=graphs, note="of two formats")


def compared(
    setting: Setting,
    case: str,
    part: str,
    exact: Tensor,
    low: Tensor,
    found: dict[str, Tensor],
) -> Iterator[Row]:
    """Yield a row for each format; `exact` and `low` are the references in fp32 and bf16."""
    fp32, bf16 = distance(found["fp32"], exact), distance(found["bf16"], exact)
    yield check(setting, case, part, fp32, FP32, dtype="fp32")
    yield check(setting, case, part, bf16, BF16 * distance(low, exact), dtype="bf16")


def exact_rows(setting: Setting) -> Iterator[Row]:
    """Check that a resumed run is the uninterrupted one, and that micro-batches sum to it."""
    small = small_setting(setting)
    for model in MODELS:
        straight, again, halves = (
            make_trainer(small, model, EAGER, "bf16") for _ in ("once", "again", "in halves")
        )
        for trainer in (straight, again):
            for _ in range(2 * STEPS):
                trainer.step()
        for _ in range(STEPS):
            halves.step()
        resumed = make_trainer(small, model, EAGER, "bf16")
        with tempfile.TemporaryDirectory() as folder:
            save_state(Path(folder), halves.step_number, halves.state_dict() or {})
            resumed.load_state_dict(load_state(Path(folder)) or {})
        for _ in range(STEPS):
            resumed.step()
        for case, other in (("repeat", again), ("resume", resumed)):
            found = _differing(straight, other)
            yield check(setting, case, f"{model}, tensors that differ", found, 0, dtype="bf16")
        whole = first_pass(small, model, EAGER, "fp32")
        for most in (3, 2):
            pieces = first_pass(small, model, replace(EAGER, micro_batch=most), "fp32")
            part = f"{model}, at most {most} slots"
            yield check(setting, "micro-batches", part, distance(pieces, whole), PIECES)


def small_setting(setting: Setting) -> Setting:
    """Return small models on small tasks, with the blocks of a quick test on top."""
    blocks = {
        name: {**SMALL.get(name, {}), **setting.blocks.get(name, {})}
        for name in {*SMALL, *setting.blocks}
    }
    tasks = setting.mix.of_sides(1, SIDES)
    return replace(setting, blocks=blocks, slots=setting.slots or SLOTS, mix=tasks)


def first_pass(setting: Setting, model: str, layout: Layout, dtype: str) -> Tensor:
    """Return losses and gradients of a first ACT step of all slots, in one vector on the CPU.

    Both parts have the norm 1 as far as they are alike, so that neither hides the other.
    """
    trainer = make_trainer(setting, model, layout, dtype)
    trainer.step_number = 1
    losses = []
    for group in trainer.lane_slots:
        _, loss, _ = trainer._forward_backward(group)
        context = trainer.model.context.loss_weights
        losses.append(loss.total(trainer.halting.loss_weight, context).detach())
    parts = [torch.cat(losses), trainer.updater.parameters.gradient]
    return torch.cat([part.float().cpu() / part.float().norm().cpu() for part in parts])


def check(
    setting: Setting, case: str, part: str, found: float, bound: float, dtype: str = "fp32"
) -> Row:
    """Return the row of a check; a bound of zero asks for equality, NaN never holds."""
    ok = found <= bound
    return new_row(
        setting, case=case, part=part, dtype=dtype, found=float(found), bound=float(bound), ok=ok
    )


def distance(first: Tensor, second: Tensor) -> float:
    """Return the norm of the difference of two vectors of `first_pass`, relative to the second."""
    return float((first - second).norm() / second.norm())


def _differing(first: Trainer, second: Trainer) -> int:
    """Return how many tensors of two trainers' models and averages differ in any bit."""
    states = [
        {**t.model.state_dict(), **{f"ema.{k}": v for k, v in t.ema.values.items()}}
        for t in (first, second)
    ]
    return sum(not torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
