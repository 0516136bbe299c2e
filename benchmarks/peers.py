"""`python -m benchmarks.peers`: our steps in turns with those of the codes before us.

Peers (`benchmarks.peer_models`) are plain steps of official TRM and of the original ETRM, written
from their published descriptions: one 30×30 canvas, ten padded demos that are encoded again at
every ACT step, in evaluation too. They compute our loss from our weights (a test holds them to it),
so ratios are of time and memory alone, of one process, round by round.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.__main__ import pick_device
from benchmarks.clock import PeakMemory, now
from benchmarks.evaluation import GPU_SAMPLES, lane_costs, shares_of, spread
from benchmarks.mix import NoTasks, load_mix
from benchmarks.peer_models import Peer
from benchmarks.rows import Row, default_file, new_row, rows_of_other_cases, table, write_rows
from benchmarks.setups import LANES, PADDED, SOURCES, Setting, make_trainer, questions_of_tests
from benchmarks.training import logged_step
from etrm.models.build import build_model
from etrm.models.compute import DTYPES
from etrm.runtime.terminal import use_stand_ins

ROUNDS = 3
TRAINED = {"trm": 768, "etrm-standard": 12}  # samples of a peer on a GPU, as 80 GB hold them
Timed = Callable[[], float]  # seconds for an example


def training_peers(setting: Setting, model: str, dtype: str, rounds: int) -> Iterator[Row]:
    """Measure steps of training in turns."""
    trainer = make_trainer(setting, model, LANES, dtype)
    step, size = logged_step(trainer), trainer.train.batch_size

    def ours() -> float:
        return _seconds(setting, step) / size

    peer = make_peer(setting, model, dtype, TRAINED[model] if setting.gpu else 1)
    samples = len(peer.incoming.inputs)

    def theirs() -> float:
        return _seconds(setting, peer.step) / samples

    yield from _in_turns(setting, f"peers/train-{model}", dtype, (theirs, ours), rounds)


def evaluation_peers(setting: Setting, model: str, dtype: str, rounds: int) -> Iterator[Row]:
    """Measure all ACT steps of an evaluation in turns; the peers' cost in proportion to one."""
    shares = shares_of(setting, model, False)
    peer = make_peer(setting, model, dtype, GPU_SAMPLES[model] if setting.gpu else 1)
    samples, count = len(peer.incoming.inputs), peer.run.halting.max_steps

    def theirs() -> float:
        return count * _seconds(setting, peer.evaluate) / samples

    def ours() -> float:
        costs = lane_costs(setting, model, dtype)
        return sum(share * costs[lane].seconds for lane, share in shares.items())

    yield from _in_turns(setting, f"peers/eval-{model}", dtype, (theirs, ours), rounds)


def make_peer(setting: Setting, model: str, dtype: str, samples: int) -> Peer:
    """Return a peer with our first weights, on test inputs spread over the sizes of demos."""
    run, corpus, episodes = questions_of_tests(setting, model, PADDED, dtype)
    lane = episodes[-1]
    chosen = spread(lane, samples)
    batch = corpus.assemble(lane, chosen, torch.zeros_like(chosen))
    net = build_model(run, corpus.num_puzzles).to(setting.device)
    return Peer(run, net.state_dict(), batch, DTYPES[dtype])


def _in_turns(
    setting: Setting, case: str, dtype: str, timed: tuple[Timed, Timed], rounds: int
) -> Iterator[Row]:
    """Yield a row of the peer and one of ours; the first round of each warms up."""
    seconds: tuple[list[float], list[float]] = ([], [])
    peaks = [0, 0]
    for number in range(rounds + 1):
        for i, measure in enumerate(timed):
            gc.collect()
            memory = PeakMemory(setting.device)
            found = measure()
            peaks[i] = max(peaks[i], memory.bytes())
            if number:
                seconds[i].append(found)
    ratios = sorted(theirs / ours for theirs, ours in zip(*seconds, strict=True))
    for i, layout in enumerate(("peer", LANES.name)):
        middle = statistics.median(seconds[i])
        row = new_row(setting, case=case, layout=layout, dtype=dtype, peak_memory_bytes=peaks[i])
        row.examples_per_second, row.speedup = (
            1 / middle,
            1.0 if i == 0 else statistics.median(ratios),
        )
        row.note = (
            f"medians of {rounds} rounds in turns; ratios {ratios[0]:.2f} to {ratios[-1]:.2f}"
        )
        yield row


def _seconds(setting: Setting, call: Callable[[], None]) -> float:
    begun = now(setting.device)
    call()
    return now(setting.device) - begun


def main(arguments: list[str] | None = None) -> int:
    """Measure, print one table, and write the rows beside those of other cases."""
    use_stand_ins()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", help="cpu, cuda, … (default: a GPU if there is one)")
    parser.add_argument("--tasks", type=Path, metavar="FILE", help="a tasks.parquet")
    parser.add_argument("--out", type=Path, metavar="FILE", help="a file for the rows as JSON")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="(default %(default)s)")
    parser.add_argument("--dtype", action="append", choices=list(DTYPES), help="(default: bf16)")
    parser.add_argument(
        "--only", default="", metavar="CASE", help="as peers/train-etrm, its beginning"
    )
    options = parser.parse_args(arguments)
    try:
        device = pick_device(options.device)
        setting = Setting(device, load_mix(options.tasks), options.tasks)
    except (NoTasks, OSError, ValueError) as error:
        print(f"benchmarks.peers: {error}", file=sys.stderr)
        return 2
    rows, out = list[Row](), options.out or default_file(device)
    for dtype in options.dtype or ["bf16"]:
        for model in reversed(SOURCES):
            for case, measure in (("train", training_peers), ("eval", evaluation_peers)):
                if not f"peers/{case}-{model}".startswith(options.only):
                    continue
                rows += measure(setting, model, dtype, options.rounds)
                cases = [row.case for row in rows]
                write_rows(out, rows, rows_of_other_cases(out, cases))
                print(rows[-1].case, f"{rows[-1].speedup:.2f}", file=sys.stderr, flush=True)
    if not rows:
        print(f"benchmarks.peers: no case begins with {options.only!r}", file=sys.stderr)
        return 2
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
