"""Which node of a SLURM job this is, how nodes hear of each other, and how they are started."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_run, make_tasks, write_study

from etrm.config.execution import ExecutionConfig, TrackingConfig
from etrm.launch import launch, nodes
from etrm.launch.job import Job, read_job
from etrm.launch.launch import LaunchError
from etrm.launch.nodes import End, Node, NodeError, Peers, free_port, hosts_of, this_node
from etrm.runtime.distributed import ranks_of_this_run
from etrm.runtime.interruption import EXIT_INTERRUPTED

SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_NODES": "3",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu[08-10]",
    # Of the whole job, in which this step has not all nodes.
    "SLURM_NNODES": "4",
    "SLURM_JOB_NODELIST": "gpu[08-11]",
}


@pytest.fixture(autouse=True)
def no_scontrol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes.shutil, "which", lambda name: None)


@pytest.mark.parametrize(
    ("written", "hosts"),
    [
        ("login", ["login"]),
        ("a,b.example.org,c-1", ["a", "b.example.org", "c-1"]),
        ("node[01-04,07],other", ["node01", "node02", "node03", "node04", "node07", "other"]),
        ("node[9-11]", ["node9", "node10", "node11"]),
        ("node[098-101]x", ["node098x", "node099x", "node100x", "node101x"]),
        ("r[1-2]n[3,5],z", ["r1n3", "r1n5", "r2n3", "r2n5", "z"]),
    ],
)
def test_a_list_of_nodes_is_expanded(written: str, hosts: list[str]) -> None:
    assert list(hosts_of(written)) == hosts


@pytest.mark.parametrize("written", ["node[1-2", "node[a-b]", "node[]", "a,,b", "node]1["])
def test_a_list_of_nodes_that_cannot_be_read_is_shown(written: str) -> None:
    with pytest.raises(NodeError, match=r"found .* list of nodes"):
        hosts_of(written)


def test_scontrol_expands_a_list_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$3" = "x[1-2]" ] && printf "one\\ntwo\\n"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(nodes.shutil, "which", lambda name: str(scontrol))
    assert hosts_of("x[1-2]") == ("one", "two")
    assert hosts_of("y[1-2]") == ("y1", "y2"), "read here where it fails"


def test_a_node_is_found_in_the_variables_of_its_step() -> None:
    node = this_node(SLURM)
    assert (node.number, node.hosts) == (1, ("gpu08", "gpu09", "gpu10"))
    assert node.name == "node 1 (gpu09)"
    first = this_node({**SLURM, "SLURM_NODEID": "0"})
    assert (first.hosts, first.port) == (node.hosts, node.port), "the same on all nodes"
    assert this_node({**SLURM, "SLURM_STEP_ID": "3"}).port != node.port
    ports = [this_node({**SLURM, "SLURM_JOB_ID": str(job)}).port for job in (1, 16999, 123456789)]
    assert all(15000 <= port < 32000 for port in ports)


def test_fewer_variables_are_enough() -> None:
    few = {"SLURM_JOB_ID": "1", "SLURM_NNODES": "2", "SLURM_PROCID": "1"}
    node = this_node({**few, "SLURM_JOB_NODELIST": "a,b"})
    assert (node.number, node.hosts) == (1, ("a", "b"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SLURM_JOB_ID": None}, "SLURM_JOB_ID: found none of them, expected the variables"),
        ({"SLURM_NODEID": "x"}, "SLURM_NODEID, SLURM_PROCID: found 'x', expected a whole number"),
        ({"SLURM_STEP_NUM_TASKS": "6"}, "found 6 tasks on 3 nodes, expected one on each"),
        ({"SLURM_STEP_NODELIST": "gpu[1-2]"}, "found 2 hosts (gpu1, gpu2) for node 1 of 3"),
        ({"SLURM_NODEID": "3"}, "for node 3 of 3, expected 3 hosts and a node from 0 to 2"),
    ],
)
def test_variables_that_do_not_fit_are_named(changes: dict[str, str | None], message: str) -> None:
    environment = {k: v for k, v in {**SLURM, **changes}.items() if v is not None}
    with pytest.raises(NodeError) as error:
        this_node(environment)
    assert message in str(error.value)


# --- what nodes know of each other ---


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> list[Peers]:
    """Three nodes on this machine that have met."""
    monkeypatch.setattr(nodes, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(nodes, "SILENCE_SECONDS", 2.0)
    port, hosts = free_port(), ("127.0.0.1", "localhost", "localhost")
    return [Peers(Node(number, hosts, port)) for number in range(3)]


def soon(condition: Callable[[], Any], within: float = 10.0) -> Any:
    until = time.monotonic() + within
    while not (found := condition()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return found


def settled(peers: list[Peers], ends: list[End]) -> list[End]:
    """What each node takes for the end of the run, when all tell theirs at the same time."""
    found: dict[int, End] = {}

    def settle(peer: Peers, end: End) -> None:
        found[end.node] = peer.settle(end)

    threads = [threading.Thread(target=settle, args=each) for each in zip(peers, ends, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return [found[number] for number in range(len(peers))]


def test_nodes_meet_at_one_port_and_agree_on_another(three: list[Peers]) -> None:
    assert len({peers.port for peers in three}) == 1
    assert three[0].port != three[0].node.port
    assert [peers.failure() for peers in three] == [None] * 3


def test_a_failure_is_known_on_all_nodes_by_its_reason(three: list[Peers]) -> None:
    killed = End(2, -9, "rank 5 of 6 was killed")
    missing = [End(n, 1, f"rank {2 * n} of 6 ended with exit code 1") for n in (0, 1)]
    assert settled(three, [*missing, killed]) == [killed] * 3


def test_a_node_that_only_follows_explains_nothing(three: list[Peers]) -> None:
    reason = End(1, 1, "rank 2 of 6 ended with exit code 1")
    assert settled(three, [End(0, 1), reason, End(2, 1)]) == [reason] * 3


def test_one_node_that_was_asked_to_stop_is_believed(three: list[Peers]) -> None:
    asked = End(1, EXIT_INTERRUPTED, "asked")
    ends = [End(0, 1, "rank 0 of 6 ended with exit code 1"), asked, End(2, -9, "killed")]
    assert settled(three, ends) == [asked] * 3


def test_nodes_that_are_done_are_done(three: list[Peers]) -> None:
    began = time.monotonic()
    assert [end.code for end in settled(three, [End(n, 0) for n in range(3)])] == [0, 0, 0]
    assert time.monotonic() - began < 5


def test_a_failure_reaches_nodes_that_still_train(three: list[Peers]) -> None:
    threading.Thread(target=three[1].settle, args=(End(1, -9, "killed"),), daemon=True).start()
    for peers in (three[0], three[2]):
        assert soon(peers.failure) == End(1, -9, "killed")


def test_a_node_that_falls_silent_is_named(three: list[Peers]) -> None:
    """The first two are heard of, the third has been."""
    soon(lambda: three[2].failure() is None)

    def beat() -> list[End]:
        return [end for peers in three[:2] if (end := peers.failure()) is not None]

    ends = soon(lambda: found if len(found := beat()) == 2 else None)
    assert {end.text for end in ends} == {"node 2 (localhost) is not heard of any more"}


def test_a_port_that_is_taken_is_named() -> None:
    port = free_port()
    first = Peers(Node(0, ("127.0.0.1", "localhost"), port))
    with pytest.raises(NodeError, match=rf"node 0 \(127.0.0.1\): no connection to port {port} of"):
        Peers(Node(0, ("127.0.0.1", "localhost"), port))
    assert first.failure() is None


def test_one_node_asks_nobody() -> None:
    peers = Peers(Node())
    assert peers.failure() is None
    assert peers.settle(End(0, 1, "alone")) == End(0, 1, "alone")


# --- how they are started ---


@pytest.fixture
def job(tmp_path: Path) -> Job:
    paths = write_study(tmp_path, make_tasks(4), make_tasks(2))
    off = TrackingConfig(wandb="disabled")
    return Job(make_run(), paths, off, ExecutionConfig(), "cpu", 3, tmp_path / "log")


@pytest.fixture
def srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """An `srun` that is a small program."""

    def install(program: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "srun").write_text(f"#!/bin/sh\n{program}\n")
        (folder / "srun").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setattr(launch.shutil, "which", lambda name: name)
        monkeypatch.setenv("SLURM_JOB_ID", "12")

    return install


def test_srun_starts_one_process_on_every_node(
    job: Job, srun: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, said = tmp_path / "copy.json", tmp_path / "said"
    srun(f'for a; do case "$a" in *.json) cp "$a" {copy};; esac; done; echo "$*" > {said}')
    launch.train(job, 4, 2)
    words = said.read_text().split()
    assert words[:5] == ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--overlap", "--wait=0"]
    assert "--cpus-per-task=3" in words
    assert words[-2:] == ["--node", "2"]
    assert not [word for word in words if "gpu" in word], "there is none"
    assert read_job(copy) == job
    where = job.paths.state / "nodes"
    assert words[-3] == str(where / "tiny-overfit-seed0-12.json"), "where all nodes see it"
    assert list(where.iterdir()) == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    launch.train(Job(job.run, job.paths, job.tracking, job.execution), 8, 2)
    words = said.read_text().split()
    assert "--gpus-per-node=4" in words
    assert not [word for word in words if "cpus" in word]


def test_an_srun_that_fails_is_a_failed_run(job: Job, srun: Callable[[str], None]) -> None:
    srun("exit 3")
    with pytest.raises(LaunchError, match=r"2 nodes of the run ended with exit code 3.*/log\. Run"):
        launch.train(job, 2, 2)
    assert list((job.paths.state / "nodes").iterdir()) == []


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
        soon(ready.exists)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()
    with pytest.raises(SystemExit) as exit_code:
        launch.train(job, 2, 2)
    assert exit_code.value.code == EXIT_INTERRUPTED
    assert got.read_text() == "USR1\n"


def test_ranks_must_come_out_even(job: Job) -> None:
    with pytest.raises(
        LaunchError, match=r"found 3 GPUs \(ranks\) on 2 nodes, expected as many on"
    ):
        launch.train(job, 3, 2)


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
    monkeypatch.setattr(launch.shutil, "which", lambda name: path)
    with pytest.raises(LaunchError, match=rf"found {found}.*, expected an allocation of 2 nodes"):
        launch.train(job, 2, 2)


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
