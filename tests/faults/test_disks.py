"""Disks that are full, and files that a disk has damaged."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from jobs import (
    EXIT_INTERRUPTED,
    SEARCHED,
    Job,
    Server,
    Stall,
    Study,
    assert_same_run,
    claim,
    content,
    step_of,
    wait_for,
)

from etrm.config.load import plain, read_study
from etrm.storage.digests import code_digest, run_key, train_code
from etrm.storage.files import file_digest
from etrm.study.layout import Layout, Run

Mount = Callable[[Path, int], None]
RETRY = 0.05
QUICK = {
    "etrm.runtime.disk_wait:RETRY_SECONDS": RETRY,
    "etrm.runtime.run_lock:HEARTBEAT_SECONDS": 0.05,
    "etrm.runtime.run_lock:POLL_SECONDS": 0.05,
}


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Puts a folder on a disk of some kilobytes of its own, or changes how many they are."""
    mounted: list[Path] = []

    def change(folder: Path, kilobytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        remount = ",remount" if folder in mounted else ""
        options = f"size={kilobytes}k{remount}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
        mounted.append(folder)

    yield change
    for folder in set(mounted):
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_of_states_does_not_end_training(
    server: Server, study: Study, undisturbed: Study, mount: Mount, tmp_path: Path
) -> None:
    """One state fits, a second does not. Killed then, the run goes on from the first."""
    job = run_until_step_34(server, study, mount, tmp_path, 1.5)
    job.kill()
    job.wait()
    log = job.log.read_text()
    assert log.count("could not be written") == 1
    assert "step0000000012.state: the state could not be written (No space left on device" in log
    assert "MiB free there): make room" in log
    assert "resumes from step 6" in log
    assert study.newest() == 6
    resumes(server, study, undisturbed, 6)


@pytest.mark.parametrize(
    ("number", "code", "steps"),
    [(signal.SIGKILL, -signal.SIGKILL, [25, 30]), (signal.SIGTERM, EXIT_INTERRUPTED, [30, 34])],
)
def test_the_older_state_gives_way_to_a_new_one(
    number: signal.Signals,
    code: int,
    steps: list[int],
    server: Server,
    study: Study,
    undisturbed: Study,
    mount: Mount,
    tmp_path: Path,
) -> None:
    """Two states fit, a third does not."""
    job = run_until_step_34(server, study, mount, tmp_path, 2.5)
    job.kill(number)
    (tmp_path / "stalled").unlink()
    assert job.wait() == code
    log = job.log.read_text()
    assert "could not be" not in log
    assert "step0000000006.state: the disk is full, this state gives way" in log
    assert [step_of(state) for state in study.states()] == steps
    resumes(server, study, undisturbed, steps[-1])


def test_a_signal_on_a_full_disk_says_what_is_lost(
    server: Server, study: Study, undisturbed: Study, mount: Mount, tmp_path: Path
) -> None:
    job = run_until_step_34(server, study, mount, tmp_path, 1.5)
    job.kill(signal.SIGTERM)
    (tmp_path / "stalled").unlink()
    assert job.wait() == EXIT_INTERRUPTED
    assert re.search(
        r"SIGTERM: step 34 could not be saved \(.*: No space left on device; 0\.\d MiB free there"
        r"\), the last state is that of 6: 28 steps are lost when this process ends; run the same",
        job.log.read_text(),
    )
    resumes(server, study, undisturbed, 6)


def test_a_disk_that_is_full_all_the_time_is_waited_for(
    server: Server, study: Study, undisturbed: Study, mount: Mount, tmp_path: Path
) -> None:
    """Of everything that a run writes, from before its first step until it is done."""
    disk = tmp_path / "disk"
    mount(disk, 10_000)
    study = study.copy(disk / "study")
    fill(disk / "filler")
    job = server.start(study.command(), patch=QUICK)
    says(job, "training is done, but its results could not be written (No space left on device")
    says(job, "there is no state: 36 steps are lost when this process ends")
    time.sleep(20 * RETRY)
    assert study.newest() == 0
    (disk / "filler").unlink()
    assert job.wait() == 0, job.log.read_text()
    log = job.log.read_text()
    assert log.count("training is done, but") == 1, "said once"
    assert "etrm/overfit/seed0: there is room again, nothing is lost" in log
    assert_same_run(study.out(), undisturbed.out())
    assert not list(disk.rglob("*.tmp"))


def test_a_signal_ends_the_wait_for_room(
    server: Server, study: Study, undisturbed: Study, mount: Mount
) -> None:
    job = waiting(server, study, mount)
    job.kill(signal.SIGTERM)
    assert job.wait() == EXIT_INTERRUPTED
    log = job.log.read_text()
    assert "SIGTERM: trying to write once more …" in log
    assert re.search(
        r"SIGTERM: step 36 could not be saved .*, there is no state: 36 steps are lost", log
    )
    assert not (study.state / "leases").exists()


def test_room_for_the_state_alone_keeps_all_steps(
    server: Server, study: Study, undisturbed: Study, mount: Mount
) -> None:
    job = waiting(server, study, mount)
    mount(states_of(study), 10_000)
    assert job.wait() == 1
    assert "resumes from the state of step 36" in job.log.read_text()
    mount(study.out(), 10_000)
    assert "examples/s" not in resumes(server, study, undisturbed, 36)


def test_who_asks_for_a_run_that_cannot_be_saved_waits_with_it(
    server: Server, study: Study, undisturbed: Study, mount: Mount
) -> None:
    """When training is done, the run is finished for both."""
    job = waiting(server, study, mount)
    second = server.start(study.command(), patch=QUICK)
    says(second, "asked it to save and to hand over, waiting")
    says(job, "handing etrm/overfit/seed0 over to ")
    time.sleep(20 * RETRY)
    mount(study.out(), 10_000)
    assert job.wait() == 0, job.log.read_text()
    assert second.wait() == 0, second.log.read_text()
    assert "the same run was finished" in second.log.read_text()
    assert_same_run(study.out(), undisturbed.out())


def test_a_run_is_handed_over_when_it_could_be_saved(
    server: Server, study: Study, undisturbed: Study, mount: Mount, tmp_path: Path
) -> None:
    job = run_until_step_34(server, study, mount, tmp_path, 1.5)
    second = server.start(study.command(), patch=QUICK)
    says(job, "handing etrm/overfit/seed0 over to ")
    (tmp_path / "stalled").unlink()
    says(job, "step 34 could not be saved")
    time.sleep(20 * RETRY)
    mount(states_of(study), 10_000)
    assert job.wait() == EXIT_INTERRUPTED
    assert ": saved step 34\n" in job.log.read_text()
    assert second.wait() == 0, second.log.read_text()
    assert "resuming from step 34 " in second.log.read_text()
    assert_same_run(study.out(), undisturbed.out())


def test_a_lost_lease_ends_the_wait_for_room(server: Server, study: Study, mount: Mount) -> None:
    job = waiting(server, study, mount)
    claim(study.state / "leases/etrm/overfit/seed0")
    assert job.wait() == EXIT_INTERRUPTED
    log = job.log.read_text()
    assert (
        "has taken over etrm/overfit/seed0: ended at step 36, of which nothing was written" in log
    )


def test_ranks_wait_for_room_together(study: Study, mount: Mount, tmp_path: Path) -> None:
    mount(states_of(study), 8)
    mount(study.out(), 40)
    command = [sys.executable, "-m", "etrm", *study.command("etrm", "--gpus", "2")]
    environment = {**os.environ, "PYTHONPATH": SEARCHED, "OMP_NUM_THREADS": "1"}
    log = tmp_path / "ranks.log"
    with log.open("w") as file:
        ranks = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    wait_for(lambda: "36 steps are lost" in log.read_text(), f"the wait in {log}")
    mount(study.out(), 10_000)
    assert ranks.wait(60) == 0, log.read_text()
    assert (study.out() / "run.json").is_file()


def test_a_full_disk_of_results_leaves_the_state_that_they_are_written_from(
    server: Server, study: Study, undisturbed: Study, mount: Mount
) -> None:
    before = content(study.root)
    mount(study.out(), 40)
    code, log = server.run(study.command())
    assert code == 1
    assert f"{study.out()}: training is done, but its results could not be written" in log
    assert "No space left on device" in log
    assert "Traceback" not in log
    last = study.newest()
    assert f"resumes from the state of step {last}" in log
    mount(study.out(), 10_000)
    code, log = server.run(study.command())
    assert code == 0, log
    assert f"resuming from step {last}" in log
    assert "examples/s" not in log, "no step is trained again"
    assert_same_run(study.out(), undisturbed.out())
    after = content(study.root)
    assert {name: after[name] for name in before} == before


def test_a_log_on_a_full_disk_ends_nothing() -> None:
    """Neither the lines of a run, nor the one that is written when a signal arrives."""
    code = (
        "import os, signal, sys\n"
        "from etrm.runtime.logs import say\n"
        "from etrm.runtime.interruption import Interruption\n"
        "with Interruption() as interruption:\n"
        "    say('a line')\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    say('another')\n"
        "print(interruption.number == signal.SIGTERM)\n"
        "sys.exit(75)\n"
    )
    with open("/dev/full", "w", encoding="utf-8") as full:
        run = subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=full, text=True
        )
    assert (run.returncode, run.stdout) == (EXIT_INTERRUPTED, "True\n")


@pytest.mark.parametrize("how", ["empty", "cut off", "bit flipped"])
def test_a_damaged_state_gives_way_to_the_one_before(
    how: str, server: Server, study: Study, undisturbed: Study, tmp_path: Path
) -> None:
    stalled(server, study, tmp_path)
    before, newest = study.states()
    data = bytearray(newest.read_bytes())
    data[len(data) // 3] ^= 4
    size = {"empty": 0, "cut off": len(data) // 2, "bit flipped": len(data)}[how]
    newest.write_bytes(data[:size])
    code, log = server.run(study.command())
    assert code == 0, log
    assert f"{newest} is damaged" in log
    assert f"resuming from step 12 ({before})" in log
    assert_same_run(study.out(), undisturbed.out())


# --- jobs on small disks ---


def waiting(server: Server, study: Study, mount: Mount) -> Job:
    """A job that is done, and has room neither for its results nor for its state."""
    mount(states_of(study), 8)
    mount(study.out(), 40)
    job = server.start(study.command(), patch=QUICK)
    says(job, "36 steps are lost")
    return job


def run_until_step_34(
    server: Server, study: Study, mount: Mount, folder: Path, states: float
) -> Job:
    """A job that stands still in that step; it has a disk for so many states."""
    size = state_size(server, study, folder)
    mounted = states_of(study)
    study.clear()
    mount(mounted, int(states * size) // 1024)
    stall = Stall("etrm.training.trainer:Trainer.step", 34, folder / "stalled")
    job = server.start(study.command(), stall, QUICK)
    wait_for(stall.marker.exists, "step 34")
    return job


def resumes(server: Server, study: Study, undisturbed: Study, step: int) -> str:
    """The run, started again, goes on from a step and comes to the same; returns its log."""
    code, log = server.run(study.command())
    assert code == 0, log
    assert f"resuming from step {step} " in log
    assert_same_run(study.out(), undisturbed.out())
    return log


def says(job: Job, text: str) -> None:
    wait_for(lambda: text in job.log.read_text(), f"{text!r} in {job.log}")


def fill(path: Path) -> None:
    """Take all the room that is left."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def stalled(server: Server, study: Study, folder: Path) -> None:
    """The run is killed when it has two states, of steps 12 and 18."""
    stall = Stall("etrm.training.trainer:Trainer.step", 20, folder / "stalled")
    job = server.start(study.command(), stall)
    wait_for(stall.marker.exists, "step 20")
    job.kill()
    job.wait()


def state_size(server: Server, study: Study, folder: Path) -> int:
    stalled(server, study, folder)
    return study.states()[-1].stat().st_size


def states_of(study: Study) -> Path:
    """The folder of the run's states."""
    read = read_study(study.config)
    layout = Layout(read)
    run = Run("etrm", "overfit", 0)
    tables = [file_digest(path) for path in (layout.tasks, layout.augmentations)]
    code = code_digest(*train_code("standard"))
    return study.state / run_key(plain(layout.config_of(run)), tables, None, code)[:16]
