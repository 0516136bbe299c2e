"""Disks that are full, and files that a disk has damaged."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jobs import Server, Stall, Study, assert_same_run, content, wait_for

Mount = Callable[[Path, int], None]


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
    """Two states fit, a third does not. Killed then, the run goes on from the second."""
    size = state_size(server, study, tmp_path)
    states = study.state / key_folder(study)
    study.clear()
    mount(states, int(2.5 * size) // 1024)
    stall = Stall("etrm.engine:Trainer.step", 34, tmp_path / "stalled")
    job = server.start(study.command(), stall)
    wait_for(stall.marker.exists, "step 34")
    job.kill()
    job.wait()
    log = job.log.read_text()
    assert log.count("could not be written") == 1
    assert "step0000000018.state: the state could not be written (No space left on device" in log
    assert "MiB free there): make room" in log
    assert "goes on from step 12" in log
    assert study.newest() == 12
    code, log = server.run(study.command())
    assert code == 0, log
    assert "going on from step 12" in log
    assert_same_run(study.out(), undisturbed.out())


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
    assert f"goes on from the state of step {last}" in log
    mount(study.out(), 10_000)
    code, log = server.run(study.command())
    assert code == 0, log
    assert f"going on from step {last}" in log
    assert "examples/s" not in log, "no step is trained again"
    assert_same_run(study.out(), undisturbed.out())
    after = content(study.root)
    assert {name: after[name] for name in before} == before


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
    assert f"going on from step 12 ({before})" in log
    assert_same_run(study.out(), undisturbed.out())


def stalled(server: Server, study: Study, folder: Path) -> None:
    """The run is killed when it has two states, of steps 12 and 18."""
    stall = Stall("etrm.engine:Trainer.step", 20, folder / "stalled")
    job = server.start(study.command(), stall)
    wait_for(stall.marker.exists, "step 20")
    job.kill()
    job.wait()


def state_size(server: Server, study: Study, folder: Path) -> int:
    stalled(server, study, folder)
    return study.states()[-1].stat().st_size


def key_folder(study: Study) -> str:
    return study.states()[-1].parent.name
