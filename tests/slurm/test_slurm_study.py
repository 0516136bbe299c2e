"""A study through `snakemake --profile slurm` on a real SLURM, with all that befalls a job there.

The same study is run beside it by Snakemake on this machine alone, undisturbed: what comes out must
be the same, bit for bit.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from cluster import FOLDER, ask
from safetensors.torch import load_file

from etrm.config.load import plain, read_study

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow"))
from projects import copy_project

CONFIG = "config/slurm.yaml"
ETRM = "etrm_act4"
PRETRAINED, STRICT = "trm/pretrain/seed0", "trm_strict/pretrain/seed0"
OVERFIT, FULL = f"{ETRM}/overfit/seed0", f"{ETRM}/full/seed0"
SITE = {
    "partition": "gpu",
    "cpus_per_gpu": 1,
    "memory_per_cpu": 2000,
    "runtime": {"pretrain": 5, "overfit": 5, "full": 5, "evaluate": 5, "most": 10},
    "warn": 60,
    "poll": 2,
    "status_command": "squeue",
}
# What the training script of the copy does first. The first attempts of a run are disturbed from
# step 30 on, each 10 steps later: they crawl, so that they can be interrupted, or hang, and take no
# notice of anything.
FAULTS = """
import os, time
from etrm.training.trainer import Trainer
CRAWLS, HANGS = %r
original = Trainer.step

def step(self):
    name = f"{self.run.experiment}/{self.run.stage}/seed{self.run.seed}"
    mark = name.replace("/", "-")
    if not hasattr(self, "attempt"):
        self.attempt = next(n for n in range(99) if not os.path.exists(f"{mark}-{n}"))
        open(f"{mark}-{self.attempt}", "w").close()
    if self.attempt < CRAWLS.get(name, 0) and self.step_number >= 30 + 10 * self.attempt:
        open(f"{mark}-{self.attempt}-slow", "w").close()
        time.sleep(6.0)
        while name == HANGS:
            time.sleep(1.0)
    original(self)

Trainer.step = step
"""
CRAWLS, HANGS = {STRICT: 2, OVERFIT: 1, FULL: 1, PRETRAINED: 1}, PRETRAINED


@dataclass(frozen=True)
class Studies:
    """The same study, run here and on the cluster."""

    here: Path
    there: Path
    output: str  # of Snakemake on the cluster
    doctor: str  # what the doctor said while nobody watched over the jobs


@pytest.fixture(scope="module")
def studies(slurm: None, tmp_path_factory: pytest.TempPathFactory) -> Studies:
    folder = tmp_path_factory.mktemp("slurm")
    here, there = folder / "here", folder / "there"
    for copy in (here, there):
        copy.mkdir()
        write_study(copy_project(copy))
    run = snakemake(here, "--cores", "1")  # while others wait for SLURM
    (there / "slurm/site.yaml").write_text(yaml.safe_dump(SITE))
    script = there / "workflow/scripts/train.py"
    script.write_text(FAULTS % ((CRAWLS, HANGS),) + script.read_text())
    doctor = disturbed_run(there)
    assert run.wait(300) == 0, output_of(here)
    return Studies(here, there, output_of(there), doctor)


def write_study(folder: Path) -> None:
    """Two pretrainings and one experiment of the smoke study, each run kept short."""
    study: dict[str, Any] = plain(read_study("config/smoke.yaml"))
    names = ("trm", "trm_strict", ETRM)
    study["experiments"] = {name: study["experiments"][name] for name in names}
    for experiment in study["experiments"].values():
        experiment["train"]["save_every"] = 10
    study["tracking"] = {"wandb": "offline"}
    (folder / CONFIG).write_text(yaml.safe_dump(study))


def disturbed_run(folder: Path) -> str:
    """Run the study on the cluster and disturb it; what `etrm doctor` said on the way."""
    run = snakemake(folder, "--profile", "slurm")
    wait(run, folder, lambda: slow(folder, STRICT, 0) and slow(folder, PRETRAINED, 0))
    hanging = job_of(folder, "train_pretrain", "trm")
    ask("scontrol", "update", f"jobid={hanging}", "TimeLimit=1")
    # What SLURM does by itself before the time limit, here when it suits.
    ask("scancel", "--signal=USR1", job_of(folder, "train_pretrain", "trm_strict"))
    wait(run, folder, lambda: slow(folder, STRICT, 1))
    ask("scontrol", "requeue", job_of(folder, "train_pretrain", "trm_strict"))
    wait(run, folder, lambda: slow(folder, OVERFIT, 0))
    preempt(job_of(folder, "train_overfit", ETRM))
    other = run_folder(folder, PRETRAINED) / "run.json"
    wait(run, folder, lambda: slow(folder, FULL, 0) and other.exists())
    os.kill(run.pid, signal.SIGKILL)  # the job goes on, and nobody watches over it
    run.wait()
    doctor = etrm(folder, "doctor")
    (folder / "doctor.txt").write_text(doctor)
    assert snakemake(folder, "--unlock").wait(60) == 0
    run = snakemake(folder, "--profile", "slurm")
    wait(run, folder, lambda: run.poll() == 0)
    return doctor


# --- the study on the cluster ---


def test_every_result_is_that_of_a_run_on_this_machine(studies: Studies) -> None:
    for name in (PRETRAINED, STRICT, OVERFIT, FULL):
        ours, theirs = (load_file(path / "model.safetensors") for path in runs(studies, name))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
        here, there = (rows(path / "metrics.parquet") for path in runs(studies, name))
        assert here == there, name
    for name in ("trm", ETRM):
        copies = (studies.here, studies.there)
        here, there = (copy / "results/smoke/evaluation" / name / "seed0" for copy in copies)
        tables = [pq.read_table(path / "predictions.parquet") for path in (here, there)]
        assert tables[0] == tables[1]
        passed = [json.loads((path / "score.json").read_text())["pass"] for path in (here, there)]
        assert passed[0] == passed[1]
    assert (studies.there / "results/smoke/report.html").stat().st_size > 10_000


def test_gpus_and_partition_are_asked_for(studies: Studies) -> None:
    jobs = finished_jobs()
    assert len(jobs) >= 6
    for number in jobs:
        job = show(number)
        if job["Partition"] == "urgent":
            continue
        assert job["Partition"] == "gpu"
        assert job["TresPerJob"] == "gres:gpu:1"
        assert job["NumCPUs"] == "1"
        assert job["Requeue"] == "1"
    # Light stages stay where Snakemake is.
    rules = {path.parts[-3].removeprefix("rule_") for path in logs(studies.there)}
    assert rules == {"train_pretrain", "train_overfit", "train_full", "evaluate_run"}


def test_a_job_that_is_warned_of_its_time_limit_puts_itself_back(studies: Studies) -> None:
    number = job_of(studies.there, "train_pretrain", "trm_strict")
    job, text = show(number), history(studies.there, STRICT)
    assert job["TimeLimit"] == "00:05:00", "the same attempt"
    assert states()[number][-1] == "COMPLETED"
    saved = int(re.search(r"SIGUSR1: saved step (\d+)", text)[1])
    assert 30 <= saved < 40
    assert f"SLURM job {number}: requeued" in text
    assert f"resuming from step {saved} " in text


def test_a_job_that_is_requeued_in_flight_goes_on(studies: Studies) -> None:
    number = job_of(studies.there, "train_pretrain", "trm_strict")
    assert show(number)["Restarts"] == "2", "after the warning"
    text = history(studies.there, STRICT)
    saved = int(re.search(r"SIGTERM: saved step (\d+)", text)[1])
    assert saved >= 40
    assert f"resuming from step {saved} " in text


def test_a_job_that_is_preempted_goes_on_where_slurm_would_cancel_it(studies: Studies) -> None:
    number = job_of(studies.there, "train_overfit", ETRM)
    assert show(number)["Restarts"] == "1"
    assert states()[number][-1] == "COMPLETED"
    text = history(studies.there, OVERFIT)
    saved = int(re.search(r"SIGTERM: saved step (\d+)", text)[1])
    assert saved >= 30
    assert f"SLURM job {number}: requeued" in text
    assert f"resuming from step {saved} " in text


def test_a_job_that_runs_out_of_time_is_submitted_again_with_more(studies: Studies) -> None:
    first, second = jobs_of(studies.there, "train_pretrain", "trm")
    assert states()[first][-1] == "TIMEOUT"
    assert states()[second][-1] == "COMPLETED"
    assert show(second)["TimeLimit"] == "00:10:00", "twice as much"
    assert "resuming from step 30 " in history(studies.there, PRETRAINED)


def test_a_driver_that_was_killed_is_started_again(studies: Studies) -> None:
    """Its job hands over to the one that the next driver has submitted for the same run."""
    first, second = jobs_of(studies.there, "train_full", ETRM)
    assert "--unlock" in studies.doctor
    assert f"scancel {first}" in studies.doctor
    text = history(studies.there, FULL)
    saved = int(re.search(r"SLURM job \d+.*: saved step (\d+)", text)[1])
    assert saved >= 30
    assert f"resuming from step {saved} " in text
    assert states()[first][-1] == "FAILED"
    assert states()[second][-1] == "COMPLETED"
    assert "othing to mend" in etrm(studies.there, "doctor")


def test_wandb_continues_as_one_run(studies: Studies) -> None:
    folders = list((studies.there / "results/smoke/wandb").rglob("offline-run-*"))
    left = set(folders)
    for name in (PRETRAINED, STRICT, OVERFIT, FULL):
        key = json.loads((run_folder(studies.there, name) / "run.json").read_text())["key"][:16]
        mine = [path for path in folders if key in path.name]
        assert len(mine) >= 2, "one for each attempt"
        left -= set(mine)
        if name != PRETRAINED:  # which was killed
            assert "W&B" not in history(studies.there, name), "it has got everything"
    assert not left, "they are of these runs alone"


def test_a_run_on_two_nodes_is_that_of_one_process(studies: Studies) -> None:
    folder, target = studies.here, "results/two/runs/trm_strict/pretrain/seed0/model.safetensors"
    (folder / "slurm/site.yaml").write_text(yaml.safe_dump({**SITE, "runtime": {"pretrain": 5}}))
    short = {"experiments": {"trm_strict": {"stages": {"pretrain": {"steps": 20}}}}}
    found = []
    ways = (({"gpus": 1}, ["--cores", "2"]), ({"nodes": 2}, ["--profile", "slurm"]))
    for ranks, (execution, where) in enumerate(ways, start=1):
        study = {"extends": CONFIG, "study": "two", "execution": execution, **short}
        (folder / "config/two.yaml").write_text(yaml.safe_dump(study))
        run = snakemake(folder, target, *where, config="config/two.yaml")
        assert run.wait(180) == 0, output_of(folder)
        found.append(load_file(folder / target))
        record = json.loads((folder / target).with_name("run.json").read_text())
        assert record["ranks"] == ranks
        for name in ("runs", "state"):
            shutil.rmtree(folder / "results/two" / name)
    for name, ours in found[0].items():
        assert torch.allclose(ours, found[1][name], atol=1e-5), name
    job = show(job_of(folder, "train_pretrain", "trm_strict"))
    assert (job["NumNodes"], job["TresPerJob"]) == ("2", "gres:gpu:2")
    assert job["NodeList"] == "etrm[1-2]"


# --- Snakemake and SLURM ---


def snakemake(folder: Path, *arguments: str, config: str = CONFIG) -> subprocess.Popen[bytes]:
    """Snakemake in a copy of the project, its output in a file there."""
    command = [sys.executable, "-m", "snakemake", *arguments, "--configfile", config]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    environment.pop("ETRM_SITE", None)
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def etrm(folder: Path, command: str) -> str:
    arguments = [sys.executable, "-m", "etrm", command, "--configfile", CONFIG]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True)
    return done.stdout + done.stderr


def wait(
    run: subprocess.Popen[bytes],
    folder: Path,
    done: Callable[[], bool],
) -> None:
    """Until it is so. Jobs that SLURM holds back after a requeue are let go at once."""
    until = time.monotonic() + 180
    while not done():
        assert time.monotonic() < until, output_of(folder)
        assert run.poll() in (None, 0), output_of(folder)
        for line in ask("squeue", "-h", "-t", "PENDING", "-o", "%i %r").splitlines():
            number, reason = line.split(maxsplit=1)
            if reason == "BeginTime":
                ask("scontrol", "update", f"jobid={number}", "StartTime=now")
        time.sleep(0.5)


def preempt(number: str) -> None:
    """Take the node of a job for one of a partition that goes before."""
    node = show(number)["NodeList"]
    wanted = ["-p", "urgent", "-w", node, "--gpus=1", "--mem=100", "-t", "1", "-o", "/dev/null"]
    assert ask("sbatch", *wanted, "--wrap", "sleep 2")


def show(number: str) -> dict[str, str]:
    """What SLURM knows of a job."""
    text = ask("scontrol", "show", "job", number)
    return dict(item.split("=", 1) for item in text.split() if "=" in item)


def states() -> dict[str, list[str]]:
    """The states in which each job has ended, by its number, in the order of its attempts."""
    found: dict[str, list[str]] = {}
    for line in (FOLDER / "jobs.log").read_text().splitlines():
        fields = dict(item.split("=", 1) for item in line.split() if "=" in item)
        found.setdefault(fields["JobId"], []).append(fields["JobState"])
    return found


def finished_jobs() -> list[str]:
    return list(states())


# --- what a study has on disk ---


def runs(studies: Studies, name: str) -> tuple[Path, Path]:
    return run_folder(studies.here, name), run_folder(studies.there, name)


def run_folder(folder: Path, name: str) -> Path:
    return folder / "results/smoke/runs" / name


def rows(path: Path) -> list[dict[str, float]]:
    """Metrics, but for what depends on the clock."""
    found = pq.read_table(path).to_pylist()
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in found]


def history(folder: Path, name: str) -> str:
    """The log of all attempts at a run."""
    experiment, stage, seed = name.split("/")
    path = folder / "results/smoke/logs" / experiment / f"{stage}_{seed}.all.log"
    return path.read_text() if path.exists() else ""


def slow(folder: Path, name: str, attempt: int) -> bool:
    """Return whether this attempt at a run has reached the step where it is disturbed."""
    return (folder / f"{name.replace('/', '-')}-{attempt}-slow").exists()


def logs(folder: Path) -> list[Path]:
    return sorted((folder / "results/slurm_logs").glob("rule_*/*/*.log"))


def jobs_of(folder: Path, rule: str, experiment: str) -> list[str]:
    """Numbers of the jobs of a run, in the order of submission."""
    found = [p.stem for p in logs(folder) if p.parts[-3] == f"rule_{rule}"]
    named = [p.stem for p in logs(folder) if p.parts[-2] == f"{experiment}_0"]
    return sorted(set(found) & set(named), key=int)


def job_of(folder: Path, rule: str, experiment: str) -> str:
    (number,) = jobs_of(folder, rule, experiment)
    return number


def output_of(folder: Path) -> str:
    return (folder / "output.txt").read_text()[-8000:]
