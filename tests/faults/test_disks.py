"""Disks that are full, and files that a disk has damaged."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from jobs import (
    EXIT_INTERRUPTED,
    NAME,
    RETRY,
    STEP,
    STEPS,
    Job,
    Scene,
    Server,
    Study,
    claim,
    content,
    make_study,
    step_of,
)

from etrm.config.load import plain, read_study
from etrm.runtime.run_lock import LEASES
from etrm.storage.digests import code_digest, run_key, train_code
from etrm.storage.files import table_digest
from etrm.study.layout import Layout, Run

LOST = "36 steps are lost"


class Disks:
    """Small disks for folders of the scene's study, in kilobytes."""

    ROOM, RESULTS, STATES = 10_000, 40, 8  # enough for all; for not all results; for no state

    def __init__(self, scene: Scene, state_size: int) -> None:
        self.scene, self.out = scene, scene.study.out()
        self.mounted: list[Path] = []
        self._state_size = state_size

    def mount(self, folder: Path, kilobytes: int) -> None:
        """Put a folder on a disk of its own, or change the size of that."""
        folder.mkdir(parents=True, exist_ok=True)
        remount = ",remount" if folder in self.mounted else ""
        options = f"size={kilobytes}k{remount}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
        self.mounted.append(folder)

    @property
    def states(self) -> Path:
        """The folder of the run's states."""
        layout = Layout(read_study(self.scene.study.config))
        config = plain(layout.config_of(Run("etrm", "overfit", 0)))
        tables = [table_digest(path) for path in (layout.tasks, layout.augmentations)]
        key = run_key(config, tables, None, code_digest(*train_code("standard")))
        return self.scene.study.state / key[:16]

    def fill(self) -> None:
        """Leave room neither for the results nor for the state."""
        self.mount(self.states, self.STATES)
        self.mount(self.out, self.RESULTS)

    def waiting(self) -> Job:
        """A job that is done, and waits for room."""
        self.fill()
        job = self.scene.start()
        job.says(LOST)
        return job

    def at_step_34(self, states: float) -> Job:
        """A job that stands still in that step; it has a disk for so many states."""
        self.mount(self.states, int(states * self._state_size) // 1024)
        return self.scene.start((STEP[0], 34))


@pytest.fixture(scope="module")
def begun(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The run was killed when it had two states, of steps 12 and 18."""
    folder = tmp_path_factory.mktemp("begun")
    study = make_study(folder / "study", STEPS)
    scene = Scene(server, study, study, folder / "stalled")
    job = scene.start(STEP)
    job.kill()
    job.wait()
    return study


@pytest.fixture
def disks(scene: Scene, begun: Study) -> Iterator[Disks]:
    disks = Disks(scene, begun.states()[-1].stat().st_size)
    yield disks
    for folder in set(disks.mounted):
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_of_states_does_not_end_training(disks: Disks, scene: Scene) -> None:
    """One state fits, a second does not. Killed then, the run goes on from the first."""
    job = disks.at_step_34(1.5)
    job.kill()
    log = job.ended(-signal.SIGKILL)
    assert log.count("could not be written") == 1
    assert "step0000000012.state: the state could not be written (No space left on device" in log
    assert "MiB free there): make room" in log
    assert "resumes from step 6" in log
    assert scene.study.newest() == 6
    scene.resumes(6)


@pytest.mark.parametrize(
    ("number", "code", "steps"),
    [(signal.SIGKILL, -signal.SIGKILL, [25, 30]), (signal.SIGTERM, EXIT_INTERRUPTED, [30, 34])],
)
def test_the_older_state_gives_way_to_a_new_one(
    number: signal.Signals, code: int, steps: list[int], disks: Disks, scene: Scene
) -> None:
    """Two states fit, a third does not."""
    job = disks.at_step_34(2.5)
    job.kill(number)
    scene.marker.unlink()
    log = job.ended(code)
    assert "could not be" not in log
    assert "step0000000006.state: the disk is full, this state gives way" in log
    assert [step_of(state) for state in scene.study.states()] == steps
    scene.resumes(steps[-1])


def test_a_signal_on_a_full_disk_says_what_is_lost(disks: Disks, scene: Scene) -> None:
    job = disks.at_step_34(1.5)
    job.kill(signal.SIGTERM)
    scene.marker.unlink()
    assert re.search(
        r"SIGTERM: step 34 could not be saved \(.*: No space left on device; 0\.\d MiB free there"
        r"\), the last state is that of 6: 28 steps are lost when this process ends; run the same",
        job.ended(EXIT_INTERRUPTED),
    )
    scene.resumes(6)


def test_a_disk_that_is_full_all_the_time_is_waited_for(
    disks: Disks, scene: Scene, tmp_path: Path
) -> None:
    """Of everything that a run writes, from before its first step until it is done."""
    disk = tmp_path / "disk"
    disks.mount(disk, disks.ROOM)
    scene = replace(scene, study=scene.study.copy(disk / "study"))
    with (disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    job = scene.start()
    job.says("training is done, but its results could not be written (No space left on device")
    job.says(f"there is no state: {LOST} when this process ends")
    time.sleep(20 * RETRY)
    assert scene.study.newest() == 0
    # All at once: the pages of a deleted file become free one after the other.
    disks.mount(disk, 2 * disks.ROOM)
    log = job.ended(0)
    assert log.count("training is done, but") == 1, "said once"
    assert f"{NAME}: there is room again, nothing is lost" in log
    scene.same()
    assert not list(disk.rglob("*.tmp"))


def test_a_signal_ends_the_wait_for_room(disks: Disks, scene: Scene) -> None:
    job = disks.waiting()
    job.kill(signal.SIGTERM)
    log = job.ended(EXIT_INTERRUPTED)
    assert "SIGTERM: trying to write once more …" in log
    assert re.search(rf"SIGTERM: step 36 could not be saved .*, there is no state: {LOST}", log)
    assert not (scene.study.state / LEASES).exists()


def test_room_for_the_state_alone_keeps_all_steps(disks: Disks, scene: Scene) -> None:
    job = disks.waiting()
    disks.mount(disks.states, disks.ROOM)
    assert "resumes from the state of step 36" in job.ended(1)
    disks.mount(disks.out, disks.ROOM)
    assert "examples/s" not in scene.resumes(36)


def test_who_asks_for_a_run_that_cannot_be_saved_waits_with_it(disks: Disks, scene: Scene) -> None:
    """When training is done, the run is finished for both."""
    job, second = disks.waiting(), scene.start()
    second.says("asked it to save and to hand over, waiting")
    job.says(f"handing {NAME} over to ")
    time.sleep(20 * RETRY)
    disks.mount(disks.out, disks.ROOM)
    job.ended(0)
    assert "the same run was finished" in second.ended(0)
    scene.same()


def test_a_run_is_handed_over_when_it_could_be_saved(disks: Disks, scene: Scene) -> None:
    job, second = disks.at_step_34(1.5), scene.start()
    job.says(f"handing {NAME} over to ")
    scene.marker.unlink()
    job.says("step 34 could not be saved")
    time.sleep(20 * RETRY)
    disks.mount(disks.states, disks.ROOM)
    assert ": saved step 34\n" in job.ended(EXIT_INTERRUPTED)
    assert "resuming from step 34 " in second.ended(0)
    scene.same()


def test_a_lost_lease_ends_the_wait_for_room(disks: Disks, scene: Scene) -> None:
    job = disks.waiting()
    claim(scene.lease)
    lost = f"has taken over {NAME}: ended at step 36, of which nothing was written"
    assert lost in job.ended(EXIT_INTERRUPTED)


def test_ranks_wait_for_room_together(disks: Disks, scene: Scene) -> None:
    disks.fill()
    ranks = scene.ranks()
    ranks.says(LOST)
    disks.mount(disks.out, disks.ROOM)
    ranks.ended(0)
    assert (disks.out / "run.json").is_file()


def test_a_full_disk_of_results_leaves_the_state_that_they_are_written_from(
    disks: Disks, scene: Scene
) -> None:
    study = scene.study
    before = content(study.root)
    disks.mount(disks.out, disks.RESULTS)
    log = scene.start().ended(1)
    assert f"{disks.out}: training is done, but its results could not be written" in log
    assert "No space left on device" in log
    assert "Traceback" not in log
    last = study.newest()
    assert f"resumes from the state of step {last}" in log
    disks.mount(disks.out, disks.ROOM)
    assert "examples/s" not in scene.resumes(last), "no step is trained again"
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
def test_a_damaged_state_gives_way_to_the_one_before(how: str, begun: Study, scene: Scene) -> None:
    for state in begun.states():
        copy = scene.study.state / state.relative_to(begun.state)
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(state, copy)
    before, newest = scene.study.states()
    data = bytearray(newest.read_bytes())
    data[len(data) // 3] ^= 4
    size = {"empty": 0, "cut off": len(data) // 2, "bit flipped": len(data)}[how]
    newest.write_bytes(data[:size])
    log = scene.resumes(12)
    assert f"resuming from step 12 ({before})" in log
    assert f"{newest} is damaged" in log
