"""A training job that fails, and a Snakemake that is interrupted: the run goes on where it was."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import torch
from projects import copy_project, snakemake, start, variant
from safetensors.torch import load_file

TARGET = "results/smoke/runs/trm_strict/pretrain/seed0/model.safetensors"
TRAINING = {"steps": 60, "save_every": 10, "eval_every": None}
# What the script of the copy does first: its first job is killed at step 25; the steps of later
# ones are slow from step 35 on, so that somebody can interrupt them.
FAULTS = """
import os, signal, time
from etrm.training.trainer import Trainer
original = Trainer.step

def step(self):
    if self.step_number == 25 and not os.path.exists("killed"):
        open("killed", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if self.step_number >= 35 and not os.path.exists("interrupted"):
        time.sleep(0.2)
    original(self)

Trainer.step = step
"""


def outcome(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Weights, and rows but for what depends on the clock."""
    run = (folder / TARGET).parent
    rows = pq.read_table(run / "metrics.parquet").to_pylist()
    rows = [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in rows]
    return load_file(run / "model.safetensors"), rows


def newest(folder: Path) -> int:
    """The step of the newest state."""
    states = (folder / "results/smoke/state").glob("*/step*.state")
    return max((int(path.stem.removeprefix("step")) for path in states), default=0)


def test_a_run_goes_on_in_a_retry_and_in_another_invocation(tmp_path: Path) -> None:
    folder = copy_project(tmp_path)
    change = {"stages": {"pretrain": TRAINING}}
    config = variant(folder, {"defaults": change})
    run = snakemake(folder, "--cores", "1", TARGET, config=config)
    assert run.returncode == 0, run.stdout + run.stderr
    weights, rows = outcome(folder)
    for name in ("runs", "state"):
        shutil.rmtree(folder / "results/smoke" / name)
    script = folder / "workflow/scripts/train.py"
    script.write_text(FAULTS + script.read_text())

    interrupted = start(folder, "--cores", "1", "--retries", "1", TARGET, config=config)
    wait_for(lambda: newest(folder) == 30, interrupted)
    time.sleep(1.0)
    os.killpg(interrupted.pid, signal.SIGINT)  # as a Ctrl-C does
    output, errors = interrupted.communicate(timeout=300)
    assert interrupted.returncode != 0
    assert (folder / "killed").exists()
    said = " ".join((output + errors).split())
    assert "again: pretrain trm_strict, seed 0" in said
    assert "RuleException" not in said
    assert max(map(len, errors.splitlines())) <= 120, "a path may be longer than the line"
    assert "resuming from step 20 " in log_of(folder)
    saved = newest(folder)
    assert saved > 30, "saved when it was interrupted, between two states"
    assert f"SIGINT: saved step {saved}; run the same command again" in said
    assert "these begin with it: pretrain trm_strict, seed 0" in said
    assert not (folder / TARGET).exists()

    (folder / "interrupted").touch()
    run = snakemake(folder, "--cores", "1", TARGET, config=config)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"resuming from step {saved} " in log_of(folder)
    found, ours = outcome(folder)
    assert all(torch.equal(tensor, found[name]) for name, tensor in weights.items())
    assert ours == rows

    # The same rule starts as many ranks as it has GPUs. These find the finished run.
    more = ("--set-resources", "train_pretrain:gpu=2", "--forcerun", "train_pretrain")
    run = snakemake(folder, "--cores", "1", TARGET, *more, config=config)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "gpu=2" in run.stdout + run.stderr
    assert "starting 2 ranks" in log_of(folder)
    assert log_of(folder).count("restored from") == 1, "one rank writes"
    assert outcome(folder)[1] == rows


def log_of(folder: Path) -> str:
    """What the training job has logged in its last attempt."""
    return (folder / "results/smoke/logs/trm_strict/pretrain_seed0.log").read_text()


def wait_for(condition: Callable[[], bool], run: subprocess.Popen[str]) -> None:
    """Until it is so, while Snakemake runs."""
    until = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < until
        assert run.poll() is None, run.communicate()
        time.sleep(0.05)
