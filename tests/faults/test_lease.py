"""Two jobs of the same run: one trains it at a time, nothing is lost, and nothing trained twice."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from jobs import (
    SEARCHED,
    SILENCE,
    Job,
    Server,
    Stall,
    Study,
    assert_same_run,
    claim,
    content,
    make_study,
    wait_for,
)

from etrm.runtime.interruption import EXIT_INTERRUPTED, Interruption
from etrm.runtime.run_lock import Lease, read_holder, this_process

NAME = "etrm/overfit/seed0"
SILENT = "etrm.runtime.run_lock:SILENCE_SECONDS"
QUICK = {
    "etrm.runtime.run_lock:HEARTBEAT_SECONDS": 0.05,
    "etrm.runtime.run_lock:POLL_SECONDS": 0.05,
    SILENT: SILENCE,  # the same for all
}
STEP = ("etrm.training.trainer:Trainer.step", 20)
WAITING = "asked it to save and to hand over, waiting"


def leases(study: Study) -> Path:
    return study.state / "leases" / NAME


def stalled(
    server: Server, study: Study, marker: Path, at: tuple[str, int] = STEP, **patch: Any
) -> Job:
    """A job that has the run, and stands still."""
    stall = Stall(*at, marker)
    job = server.start(study.command(), stall, {**QUICK, **patch})
    wait_for(marker.exists, f"{at}, {job.log}")
    return job


def newcomer(server: Server, study: Study, **patch: Any) -> Job:
    return server.start(study.command(), patch={**QUICK, **patch})


def says(job: Job, text: str) -> None:
    wait_for(lambda: text in job.log.read_text(), f"{text!r} in {job.log}")


def ended(job: Job, code: int) -> str:
    found, log = job.wait(), job.log.read_text()
    assert found == code, log
    return log


def test_a_holder_hands_over(
    server: Server, study: Study, undisturbed: Study, tmp_path: Path
) -> None:
    marker = tmp_path / "stalled"
    holder = stalled(server, study, marker)
    second = newcomer(server, study)
    says(second, WAITING)
    says(holder, f"handing {NAME} over to process {second.pid} on ")
    marker.unlink()
    log = ended(holder, EXIT_INTERRUPTED)
    assert log.count(f"handing {NAME} over to process {second.pid} on ") == 2
    assert re.search(rf"handing {NAME} over to process \d+ on .*: saved step 20\n", log)
    log = ended(second, 0)
    assert f"{NAME} is with process {holder.pid} on " in log
    assert "resuming from step 20 " in log
    assert_same_run(study.out(), undisturbed.out())
    assert not (study.state / "leases").exists()


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_holder_is_succeeded_at_once(
    reaped: bool, server: Server, study: Study, undisturbed: Study, tmp_path: Path
) -> None:
    holder = stalled(server, study, tmp_path / "stalled")
    holder.kill()
    if reaped:
        holder.wait()
    log = ended(newcomer(server, study), 0)
    assert f"process {holder.pid} on {this_process()['host']} has ended: taking over" in log
    assert "resuming from step 18 " in log
    assert_same_run(study.out(), undisturbed.out())
    holder.wait()


def test_a_process_number_that_is_used_again_is_no_holder(server: Server, study: Study) -> None:
    """It is that of this test, which has not trained."""
    claim(leases(study), start=this_process()["start"] - 1)
    assert "has ended: taking over" in ended(newcomer(server, study), 0)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_silent_holder_elsewhere_is_succeeded_and_not_before(
    damaged: bool, server: Server, study: Study, undisturbed: Study
) -> None:
    lease = claim(leases(study), host="elsewhere", place="there", pid=12, slurm_job="345")
    if damaged:
        (lease.parent / "holder.json").write_text("")
    second = newcomer(server, study)
    says(second, WAITING)
    until = time.monotonic() + 1.3 * SILENCE
    while time.monotonic() < until:
        os.utime(lease)
        time.sleep(0.05)
    last = time.monotonic()
    assert read_holder(leases(study)).record["token"] == "other", "it gave heartbeats"
    wait_for(lambda: "token=other" not in lease.read_text(), "the next lease")
    assert time.monotonic() - last > 0.8 * SILENCE
    log = ended(second, 0)
    process = "process 12 on elsewhere" + ("" if damaged else " (SLURM job 345)")
    assert f"{NAME} is with {process} since" in log
    assert f"{process} gave no heartbeat for 3 s: taking over" in log
    assert_same_run(study.out(), undisturbed.out())


@pytest.mark.parametrize(
    "at",
    [
        STEP,
        ("etrm.storage.checkpoint:_HashingWriter.write", 150),
        ("etrm.training.run:write_outputs", 1),
    ],
)
def test_a_holder_that_was_asleep_writes_nothing(
    at: tuple[str, int], server: Server, study: Study, undisturbed: Study, tmp_path: Path
) -> None:
    """In a step, in the middle of a save, and before its results."""
    marker = tmp_path / "stalled"
    holder = stalled(server, study, marker, at)
    holder.kill(signal.SIGSTOP)
    log = ended(newcomer(server, study), 0)
    assert "gave no heartbeat for" in log
    assert_same_run(study.out(), undisturbed.out())
    before = {n: c for n, c in content(study.root).items() if not n.endswith(".tmp")}
    folders = sorted(study.state.rglob("*/"))
    marker.unlink()
    holder.kill(signal.SIGCONT)
    log = ended(holder, EXIT_INTERRUPTED)
    assert "could not be written" not in log
    assert re.search(rf"process has taken over {NAME}: ended at step \d+, of which nothing", log)
    assert content(study.root) == before
    assert sorted(study.state.rglob("*/")) == folders


def test_of_many_newcomers_one_trains_at_a_time(
    server: Server, study: Study, undisturbed: Study, tmp_path: Path
) -> None:
    """The holder dies before the eyes of four of them."""
    holder = stalled(server, study, tmp_path / "stalled")
    many = [newcomer(server, study) for _ in range(4)]
    for job in many:
        says(job, WAITING)
    # They look for it all the time, and have asked it: it is killed before it can hand over.
    holder.kill()
    codes = [job.wait() for job in many]
    logs = [job.log.read_text() for job in many]
    assert set(codes) <= {0, EXIT_INTERRUPTED}
    assert 0 in codes, logs
    began = [int(n) for log in logs for n in re.findall(r"resuming from step (\d+)", log)]
    saved = [int(n) for log in logs for n in re.findall(r": saved step (\d+)", log)]
    assert sorted(began) == sorted([18, *saved]), "every step is trained once"
    assert sum("has ended: taking over" in log for log in logs) == 1
    assert_same_run(study.out(), undisturbed.out())
    assert not (study.state / "leases").exists()
    assert holder.wait() == -signal.SIGKILL


def test_what_the_holder_has_finished_is_used(
    server: Server, study: Study, undisturbed: Study, tmp_path: Path
) -> None:
    marker = tmp_path / "stalled"
    holder = stalled(server, study, marker, ("etrm.training.run:write_outputs", 1))
    second = newcomer(server, study)
    says(second, WAITING)
    marker.unlink()
    ended(holder, 0)
    log = ended(second, 0)
    assert "the same run was finished" in log
    assert "resuming" not in log
    assert "examples/s" not in log
    assert_same_run(study.out(), undisturbed.out())


def test_a_newcomer_that_is_told_to_stop_stops_and_withdraws(
    server: Server, study: Study, tmp_path: Path
) -> None:
    marker = tmp_path / "stalled"
    stall = Stall(*STEP, marker)
    deaf = {**QUICK, "etrm.runtime.run_lock:HEARTBEAT_SECONDS": 50.0, SILENT: 60.0}
    holder = server.start(study.command(), stall, deaf)
    wait_for(marker.exists, f"{STEP}")
    second = newcomer(server, study, **{SILENT: 60.0})
    says(second, WAITING)
    assert (leases(study) / "request.json").exists()
    second.kill(signal.SIGTERM)
    log = ended(second, EXIT_INTERRUPTED)
    assert "SIGTERM: stopped before the first step; run the same command again" in log
    assert sorted(path.name for path in leases(study).iterdir()) == ["holder.json", "lock"]
    marker.unlink()
    assert "handing" not in ended(holder, 0)


def test_another_configuration_of_the_run_has_the_same_lease(
    server: Server, study: Study, tmp_path: Path
) -> None:
    """It writes the same run folder."""
    document = yaml.safe_load(study.config.read_text())
    document["experiments"]["etrm"] = {"train": {"steps": 8}}
    (study.folder / "other.yaml").write_text(yaml.safe_dump(document))
    marker = tmp_path / "stalled"
    holder = stalled(server, study, marker)
    second = newcomer(server, replace(study, name="other.yaml"))
    says(
        holder,
        f"over to process {second.pid} on {this_process()['host']}, with another configuration:",
    )
    marker.unlink()
    ended(holder, EXIT_INTERRUPTED)
    assert "resuming" not in ended(second, 0)
    record = json.loads((study.out() / "run.json").read_text())
    assert record["steps_done"] == 8
    assert study.newest() == 20, "the earlier one can go on"


def test_ranks_wait_and_hand_over_together(server: Server, tmp_path: Path) -> None:
    """One rank hands over to two, and these to one."""
    study = make_study(tmp_path / "study", 10_000, eval_every=None, save_every=10_000)
    marker = tmp_path / "stalled"
    first = stalled(server, study, marker, **{SILENT: 60.0})
    command = [sys.executable, "-m", "etrm", *study.command("etrm", "--gpus", "2")]
    environment = {**os.environ, "PYTHONPATH": SEARCHED, "OMP_NUM_THREADS": "1"}
    log = tmp_path / "ranks.log"
    with log.open("w") as file:
        ranks = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    wait_for(lambda: WAITING in log.read_text(), f"{WAITING!r} in {log}")
    says(first, f"handing {NAME} over to ")
    marker.unlink()
    assert ": saved step 20\n" in ended(first, EXIT_INTERRUPTED)
    wait_for(lambda: "step 24/" in log.read_text(), f"step 24 in {log}")
    assert "resuming from step 20 " in log.read_text()
    last = newcomer(server, study, **{SILENT: 60.0})
    assert ranks.wait(60) == EXIT_INTERRUPTED, log.read_text()
    step = int(re.findall(r": saved step (\d+)\n", log.read_text())[0])
    assert step >= 24
    says(last, f"resuming from step {step} ")
    last.kill()
    assert last.wait() == -signal.SIGKILL


def test_a_lease_that_cannot_be_written_does_not_end_training(
    server: Server, study: Study, undisturbed: Study
) -> None:
    (study.state / "leases").write_text("a file in its place")
    log = ended(newcomer(server, study), 0)
    assert log.count("the lease on the run could not be written (Not a directory)") == 1
    assert_same_run(study.out(), undisturbed.out())


def test_of_those_who_take_it_at_once_one_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether nobody has had it, or one who has ended."""
    monkeypatch.setattr("etrm.runtime.run_lock.POLL_SECONDS", 0.0)
    with Interruption() as interruption, ThreadPoolExecutor(6) as threads:
        for number in range(20):
            folder = tmp_path / str(number)
            if number % 2:
                claim(folder / "leases" / NAME, start=0)
            many = [Lease(folder, NAME, interruption, main=True) for _ in range(6)]
            taken = list(threads.map(lambda lease: lease.take("key"), many))
            assert sum(taken) == 1
            many[taken.index(True)].check()
            for lease in many:
                lease.__exit__()
            assert not list(folder.iterdir())


def test_a_renewal_that_fails_is_said_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    renewed, failing = threading.Semaphore(0), 3
    utime = os.utime

    def fail(path: Path | int, *times: Any) -> None:
        nonlocal failing
        if isinstance(path, int):  # filelock's heartbeat
            return utime(path, *times)
        failing -= 1
        if failing >= 0:
            raise OSError(28, "No space left on device")
        utime(path)
        renewed.release()

    monkeypatch.setattr("etrm.runtime.run_lock.HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr("etrm.runtime.run_lock.os.utime", fail)
    with (
        caplog.at_level(logging.WARNING),
        Interruption() as interruption,
        Lease(tmp_path, NAME, interruption, main=True) as lease,
    ):
        assert lease.take("key")
        assert renewed.acquire(timeout=10)
        lease.check()
    assert failing < 0
    assert caplog.text.count("could not be written (No space left on device)") == 1
    assert not list(tmp_path.iterdir())
