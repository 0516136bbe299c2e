"""Two jobs of the same run: one trains it at a time, nothing is lost, and nothing trained twice."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from jobs import (
    LOCK,
    NAME,
    SILENCE,
    SILENT,
    STEP,
    STEPS,
    Place,
    Scene,
    claim,
    content,
    make_study,
    wait_for,
)

from etrm.runtime.interruption import EXIT_INTERRUPTED, Interruption
from etrm.runtime.run_lock import (
    HOLDER,
    LEASES,
    REQUEST,
    UNKNOWN,
    Holder,
    Lease,
    read_holder,
    this_process,
)

WAITING = "asked it to save and to hand over, waiting"
OVER = f"handing {NAME} over to "
HOST = this_process()["host"]


def test_a_holder_hands_over(scene: Scene) -> None:
    holder, second = scene.start(STEP), scene.start()
    second.says(WAITING)
    holder.says(f"{OVER}process {second.pid} on ")
    scene.marker.unlink()
    log = holder.ended(EXIT_INTERRUPTED)
    assert log.count(f"{OVER}process {second.pid} on ") == 2
    assert re.search(rf"{OVER}process \d+ on .*: saved step 20\n", log)
    log = second.ended(0)
    assert f"{NAME} is with process {holder.pid} on " in log
    assert "resuming from step 20 " in log
    scene.same()
    assert not (scene.study.state / LEASES).exists()


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_holder_is_succeeded_at_once(reaped: bool, scene: Scene) -> None:
    holder = scene.start(STEP)
    holder.kill()
    if reaped:
        holder.wait()
    assert f"process {holder.pid} on {HOST} has ended: taking over" in scene.resumes(18)
    holder.wait()


def test_a_process_number_that_is_used_again_is_no_holder(scene: Scene) -> None:
    """It is that of this test, which has not trained."""
    claim(scene.lease, start=this_process()["start"] - 1)
    assert "has ended: taking over" in scene.start().ended(0)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_silent_holder_elsewhere_is_succeeded_and_not_before(damaged: bool, scene: Scene) -> None:
    lease = claim(scene.lease, host="elsewhere", place="there", pid=12, slurm_job="345")
    if damaged:
        (lease.parent / "holder.json").write_text("")
    second = scene.start(**SILENT)
    second.says(WAITING)
    until = time.monotonic() + 1.3 * SILENCE
    while time.monotonic() < until:
        os.utime(lease)
        time.sleep(0.05)
    last = time.monotonic()
    assert read_holder(scene.lease).record["token"] == "other", "it gave heartbeats"
    wait_for(lambda: "token=other" not in lease.read_text(), "the next lease")
    assert time.monotonic() - last > 0.8 * SILENCE
    log = second.ended(0)
    process = "process 12 on elsewhere" + ("" if damaged else " (SLURM job 345)")
    assert f"{NAME} is with {process} since" in log
    assert f"{process} gave no heartbeat for {SILENCE:g} s: taking over" in log
    scene.same()


@pytest.mark.parametrize(
    "at",
    [
        STEP,
        ("etrm.storage.checkpoint:_HashingWriter.write", 150),
        ("etrm.training.run:write_outputs", 1),
    ],
)
def test_a_holder_that_was_asleep_writes_nothing(at: Place, scene: Scene) -> None:
    """In a step, in the middle of a save, and before its results."""
    holder, study = scene.start(at, **SILENT), scene.study
    holder.kill(signal.SIGSTOP)
    assert "gave no heartbeat for" in scene.resumes(**SILENT)
    before = {n: c for n, c in content(study.root).items() if not n.endswith(".tmp")}
    folders = sorted(study.state.rglob("*/"))
    scene.marker.unlink()
    holder.kill(signal.SIGCONT)
    log = holder.ended(EXIT_INTERRUPTED)
    assert "could not be written" not in log
    assert re.search(rf"process has taken over {NAME}: ended at step \d+, of which nothing", log)
    assert content(study.root) == before
    assert sorted(study.state.rglob("*/")) == folders


def test_of_many_newcomers_one_trains_at_a_time(scene: Scene) -> None:
    """The holder dies before the eyes of four of them."""
    holder = scene.start(STEP)
    many = [scene.start() for _ in range(4)]
    for job in many:
        job.says(WAITING)
    # They look for it all the time, and have asked it: it is killed before it can hand over.
    holder.kill()
    codes = [job.wait() for job in many]
    logs = [job.log.read_text() for job in many]
    assert set(codes) <= {0, EXIT_INTERRUPTED}
    assert 0 in codes, logs
    trained = sorted(filter(None, map(steps_of, logs)))
    begun, ended = zip(*trained, strict=True)
    assert [*begun, STEPS] == [18, *ended], "every step is trained once"
    assert sum("has ended: taking over" in log for log in logs) == 1
    scene.same()
    assert not (scene.study.state / LEASES).exists()
    assert holder.wait() == -signal.SIGKILL


def steps_of(log: str) -> tuple[int, int] | None:
    """The steps between which a job has trained: none, where it was asked before its first one."""
    begun = re.search(r"resuming from step (\d+)", log)
    if begun is None:
        return None
    ended = re.search(r": saved step (\d+)", log)
    if ended is None and "stopped before the first step" in log:
        ended = begun
    return int(begun[1]), STEPS if ended is None else int(ended[1])


def test_what_the_holder_has_finished_is_used(scene: Scene) -> None:
    holder, second = scene.start(("etrm.training.run:write_outputs", 1)), scene.start()
    second.says(WAITING)
    scene.marker.unlink()
    holder.ended(0)
    log = second.ended(0)
    assert "the same run was finished" in log
    assert "resuming" not in log
    assert "examples/s" not in log
    scene.same()


def test_a_newcomer_that_is_told_to_stop_stops_and_withdraws(scene: Scene) -> None:
    deaf = {f"{LOCK}:HEARTBEAT_SECONDS": 50.0}
    holder, second = scene.start(STEP, **deaf), scene.start()
    second.says(WAITING)
    assert (scene.lease / "request.json").exists()
    second.kill(signal.SIGTERM)
    log = second.ended(EXIT_INTERRUPTED)
    assert "SIGTERM: stopped before the first step; run the same command again" in log
    assert sorted(path.name for path in scene.lease.iterdir()) == ["holder.json", "lock"]
    scene.marker.unlink()
    assert "handing" not in holder.ended(0)


def test_another_configuration_of_the_run_has_the_same_lease(scene: Scene) -> None:
    """It writes the same run folder."""
    study = replace(scene.study, name="other.yaml")
    document = yaml.safe_load(scene.study.config.read_text())
    document["experiments"]["etrm"] = {"train": {"steps": 8}}
    study.config.write_text(yaml.safe_dump(document))
    holder, second = scene.start(STEP), replace(scene, study=study).start()
    holder.says(f"over to process {second.pid} on {HOST}, with another configuration:")
    scene.marker.unlink()
    holder.ended(EXIT_INTERRUPTED)
    assert "resuming" not in second.ended(0)
    assert json.loads((study.out() / "run.json").read_text())["steps_done"] == 8
    assert study.newest() == 20, "the earlier one can go on"


def test_ranks_wait_and_hand_over_together(scene: Scene, tmp_path: Path) -> None:
    """One rank hands over to two, and these to one."""
    study = make_study(tmp_path / "long", 10_000, eval_every=None, save_every=10_000)
    scene = replace(scene, study=study)
    first, ranks = scene.start(STEP), scene.ranks()
    ranks.says(WAITING)
    first.says(OVER)
    scene.marker.unlink()
    assert ": saved step 20\n" in first.ended(EXIT_INTERRUPTED)
    ranks.says("step 24/")
    assert "resuming from step 20 " in ranks.log.read_text()
    last = scene.start()
    step = int(re.findall(r": saved step (\d+)\n", ranks.ended(EXIT_INTERRUPTED))[0])
    assert step >= 24
    last.says(f"resuming from step {step} ")
    last.kill()
    assert last.wait() == -signal.SIGKILL


def test_a_lease_that_cannot_be_written_does_not_end_training(scene: Scene) -> None:
    (scene.study.state / LEASES).write_text("a file in its place")
    log = scene.resumes()
    assert log.count("the lease on the run could not be written (Not a directory)") == 1


def test_of_those_who_take_it_at_once_one_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether nobody has had it, or one who has ended."""
    monkeypatch.setattr("etrm.runtime.run_lock.POLL_SECONDS", 0.0)
    with Interruption() as interruption, ThreadPoolExecutor(6) as threads:
        for number in range(20):
            folder = tmp_path / str(number)
            if number % 2:
                claim(folder / LEASES / NAME, start=0)
            many = [Lease(folder, NAME, interruption, main=True) for _ in range(6)]
            taken = list(threads.map(lambda lease: lease.take("key"), many))
            assert sum(taken) == 1
            many[taken.index(True)].check()
            for lease in many:
                lease.__exit__()
            assert not list(folder.iterdir())


@pytest.fixture
def taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """Take the lease in the test's folder, and release it; returns what was said."""

    def take() -> str:
        with (
            caplog.at_level(logging.INFO),
            Interruption() as interruption,
            Lease(tmp_path, NAME, interruption, main=True) as lease,
        ):
            assert lease.take("key")
            assert not (lease.folder / REQUEST).exists()
        return caplog.text

    return take


def test_who_comes_after_a_successor_has_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: Callable[[], str]
) -> None:
    """It saw the dead holder; until it could claim the run, another had taken and released it."""
    claim(tmp_path / LEASES / NAME, start=0)
    acquire = Lease._acquire

    def late(lease: Lease) -> bool:
        monkeypatch.setattr(Lease, "_acquire", acquire)
        taken()
        return acquire(lease)

    monkeypatch.setattr(Lease, "_acquire", late)
    assert taken().count("has ended: taking over") == 1
    assert not list(tmp_path.iterdir())


def test_who_comes_as_the_lease_is_released_has_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: Callable[[], str]
) -> None:
    """It still saw the holder, which has handed over and ended since."""
    lock = claim(tmp_path / LEASES / NAME, start=0)

    def see(folder: Path) -> Holder | None:
        monkeypatch.setattr("etrm.runtime.run_lock.read_holder", read_holder)
        seen = read_holder(folder)
        for file in (folder / HOLDER, lock):
            file.unlink()
        return seen

    monkeypatch.setattr("etrm.runtime.run_lock.read_holder", see)
    assert taken() == ""


@pytest.mark.parametrize("seen", [None, Holder(UNKNOWN, 0.0)])
def test_who_takes_a_lease_that_another_has_cleared_has_taken_over(
    seen: Holder | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: Callable[[], str]
) -> None:
    """Another newcomer removes the lock of a process that has ended, and is slower then."""
    claim(tmp_path / LEASES / NAME, start=0).unlink()
    monkeypatch.setattr("etrm.runtime.run_lock.read_holder", lambda folder: seen)
    assert taken().count(f"process {os.getpid()} on {HOST} has ended: taking over") == 1


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
