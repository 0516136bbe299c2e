"""Which node of a SLURM job this is, how nodes hear of each other, and how they are started."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.rendezvous import RendezvousConnectionError

from etrm.launch import torchrun
from etrm.launch.job import Job, read_job
from etrm.launch.torchrun import LaunchError, this_node
from etrm.runtime.distributed import ranks_of_this_run
from etrm.runtime.interruption import EXIT_INTERRUPTED, Interrupted

Program = Callable[[str, str], None]
SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "2",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu",
    "SLURM_JOB_NODELIST": "other",  # of the whole job, of which this step may have a part
}


@pytest.fixture
def scontrol(program: Program) -> None:
    program("scontrol", 'echo "${3}1 ${3}2 ${3}3"')


@pytest.mark.usefixtures("scontrol")
def test_a_node_is_found_in_the_variables_of_its_step() -> None:
    node = this_node(SLURM)
    assert (node.number, node.hosts) == (1, ("gpu1", "gpu2", "gpu3"))
    assert str(node) == "node 1 (gpu2)"
    first = this_node({**SLURM, "SLURM_NODEID": "0"})
    assert (first.hosts, first.port) == (node.hosts, node.port), "the same on all nodes"
    assert this_node({**SLURM, "SLURM_STEP_ID": "3"}).port != node.port
    ports = [this_node({**SLURM, "SLURM_JOB_ID": str(job)}).port for job in (1, 16999, 123456789)]
    assert all(15000 <= port < 32000 for port in ports)


@pytest.mark.usefixtures("scontrol")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SLURM_JOB_ID": None}, "SLURM_JOB_ID"),
        ({"SLURM_NODEID": "x"}, "'x'"),
        ({"SLURM_NODEID": "3"}, "found 3 hosts in 'gpu' for node 3"),
    ],
)
def test_variables_that_do_not_fit_are_named(changes: dict[str, str | None], message: str) -> None:
    environment = {k: v for k, v in {**SLURM, **changes}.items() if v is not None}
    with pytest.raises(LaunchError) as error:
        this_node(environment)
    assert message in str(error.value)


@pytest.fixture
def srun(program: Program, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """An `srun` that is a small program."""
    monkeypatch.setattr(torchrun.shutil, "which", lambda name: name)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    return lambda text: program("srun", text)


def test_srun_starts_one_process_on_every_node(
    job: Job, srun: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, said = tmp_path / "copy.json", tmp_path / "said"
    srun(f'for a; do case "$a" in *.json) cp "$a" {copy};; esac; done; echo "$*" > {said}')
    torchrun.train(job, 4, 2)
    words = said.read_text().split()
    assert words[:5] == ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--overlap", "--wait=0"]
    assert "--cpus-per-task=3" in words
    assert not [word for word in words if "gpu" in word], "there is none"
    assert read_job(copy) == job
    where = job.paths.state / "nodes"
    path = where / "tiny-overfit-seed0-12.json"
    assert words[-3:] == ["node", str(path), "2"], "where all nodes see it"
    assert list(where.iterdir()) == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    torchrun.train(Job(job.run, job.paths, job.tracking, job.execution), 8, 2)
    words = said.read_text().split()
    assert "--gpus-per-node=4" in words
    assert not [word for word in words if "cpus" in word]


def test_an_srun_that_fails_is_a_failed_run(job: Job, srun: Callable[[str], None]) -> None:
    srun("exit 3")
    with pytest.raises(LaunchError, match=r"2 nodes of the run ended with exit code 3.*/log\. Run"):
        torchrun.train(job, 2, 2)
    assert list((job.paths.state / "nodes").iterdir()) == []


@pytest.mark.parametrize(
    ("stopped", "error"), [(True, Interrupted), (False, LaunchError)], ids=["stopped", "lost"]
)
def test_a_node_that_outlives_the_rendezvous_was_stopped_where_the_run_was(
    stopped: bool, error: type[BaseException], job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first host has seen its ranks end before those of this node had."""
    path = job.paths.out.with_name("job.json")

    def launch(*_: object) -> Callable[..., None]:
        def agent(*_: object) -> None:
            if stopped:
                path.with_suffix(".stopped").write_text('{"number": 15, "advanced": true}')
            raise RendezvousConnectionError

        return agent

    monkeypatch.setattr(torchrun, "elastic_launch", launch)
    with pytest.raises(error):
        torchrun._run_ranks(path, None, 1, torchrun.Node(1, ("a", "b")))


def test_a_note_of_an_earlier_attempt_is_none(job: Job, srun: Callable[[str], None]) -> None:
    """A job that is requeued has the same number."""
    note = job.paths.state / "nodes" / "tiny-overfit-seed0-12.stopped"
    note.parent.mkdir(parents=True)
    note.write_text('{"number": 15, "advanced": true}')
    srun("exit 0")
    torchrun.train(job, 2, 2)


@pytest.mark.parametrize("code", [EXIT_INTERRUPTED, 128 + signal.SIGUSR1])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_srun_hands_on_one_signal_only(
    code: int, number: signal.Signals, job: Job, srun: Callable[[str], None], tmp_path: Path
) -> None:
    """Any other would end its tasks before they have saved."""
    ready, got = tmp_path / "ready", tmp_path / "got"
    other = "".join(f"trap 'echo other > {got}' {name}; " for name in ("TERM", "INT"))
    wait = (
        f"trap 'echo USR1 > {got}; exit {code}' USR1; touch {ready}; while :; do sleep 0.05; done"
    )
    srun(other + wait)

    def send() -> None:
        while not ready.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()
    with pytest.raises(SystemExit) as exit_code:
        torchrun.train(job, 2, 2)
    assert exit_code.value.code == EXIT_INTERRUPTED
    assert got.read_text() == "USR1\n"


def test_ranks_must_come_out_even(job: Job) -> None:
    with pytest.raises(
        LaunchError, match=r"found 3 GPUs \(ranks\) on 2 nodes, expected as many on"
    ):
        torchrun.train(job, 3, 2)


@pytest.mark.parametrize(
    ("number", "path", "found"),
    [(None, "/usr/bin/srun", "no SLURM job"), ("12", None, "no srun on the PATH")],
)
def test_several_nodes_are_those_of_a_slurm_job(
    number: str | None, path: str | None, found: str, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if number is not None:
        monkeypatch.setenv("SLURM_JOB_ID", number)
    monkeypatch.setattr(torchrun.shutil, "which", lambda name: path)
    with pytest.raises(LaunchError, match=rf"found {found}.*, expected an allocation of 2 nodes"):
        torchrun.train(job, 2, 2)


def test_a_rank_knows_how_many_share_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory and threads are shared by those alone."""
    place = {"RANK": 0, "WORLD_SIZE": 4, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("etrm.runtime.distributed.dist.init_process_group", lambda *_, **__: None)
    monkeypatch.setattr("etrm.runtime.distributed.dist.destroy_process_group", lambda: None)
    monkeypatch.setattr("etrm.runtime.distributed.dist.get_rank", lambda: 0)
    with ranks_of_this_run("cpu") as ranks:
        assert (ranks.world_size, ranks.local_world_size) == (4, 2)
