"""The machines of one run: which of them this is, by SLURM's variables, and how the others are.

A run on several nodes has a process on each, which starts the ranks there. These *node processes*
know each other through a store on the first node: each says how it has ended, and that one also
notices who is no longer heard of. So all end within seconds of the first failure, and all know why,
also where ranks would wait in vain for a GPU that is gone.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta

from torch.distributed import TCPStore

from etrm.config.text import first_few
from etrm.errors import UserError
from etrm.runtime.interruption import EXIT_INTERRUPTED

log = logging.getLogger(__name__)

# Ports of jobs, by their number: below those that Linux gives to connections.
FIRST_PORT, PORTS = 15000, 17000
BEAT_SECONDS = 1.0
# A node that has begun and is not heard of for so long is gone; before, it may still be importing.
SILENCE_SECONDS, START_SECONDS = 30.0, 300.0
# What a node that has ended has to hear how the others did.
SETTLE_SECONDS = 10.0


class NodeError(UserError):
    """Nodes that are not those of a SLURM job, or that do not find each other."""


@dataclass(frozen=True)
class Node:
    """This machine among those of a run, which are one where there is no other."""

    number: int = 0
    hosts: tuple[str, ...] = ("127.0.0.1",)
    port: int = 0  # of the store of the node processes, on the first host

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"node {self.number} ({self.hosts[self.number]})"


def this_node(environment: Mapping[str, str]) -> Node:
    """The node of a process that `srun` has started, one on each.

    Raises `NodeError` with the variable that is missing or does not fit the others.
    """
    job = _number(environment, "SLURM_JOB_ID")
    step = _number(environment, "SLURM_STEP_ID", default=0)
    count = _number(environment, "SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES")
    tasks = _number(environment, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", default=count)
    if tasks != count:
        raise NodeError(
            f"SLURM_STEP_NUM_TASKS, SLURM_NTASKS: found {tasks} tasks on {count} nodes, expected"
            " one on each: start them by `srun --ntasks-per-node=1`"
        )
    number = _number(environment, "SLURM_NODEID", "SLURM_PROCID")
    names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    hosts = hosts_of(_text(environment, *names))
    if len(hosts) != count or not 0 <= number < count:
        raise NodeError(
            f"{', '.join(names)}: found {len(hosts)} hosts ({', '.join(first_few(hosts))}) for node"
            f" {number} of {count}, expected {count} hosts and a node from 0 to {count - 1}"
        )
    return Node(number, hosts, FIRST_PORT + (job + 101 * step) % PORTS)


def _text(environment: Mapping[str, str], *names: str) -> str:
    found = next((environment[name] for name in names if environment.get(name)), None)
    if found is None:
        raise NodeError(
            f"{', '.join(names)}: found none of them, expected the variables of a process that"
            " `srun` has started within a SLURM job"
        )
    return found


def _number(environment: Mapping[str, str], *names: str, default: int | None = None) -> int:
    if default is not None and not any(environment.get(name) for name in names):
        return default
    found = _text(environment, *names)
    if not found.isdecimal():
        raise NodeError(f"{', '.join(names)}: found {found!r}, expected a whole number")
    return int(found)


def hosts_of(nodelist: str) -> tuple[str, ...]:
    """The hosts of a list as SLURM writes it, in order: `gpu[01-03,7],login` has five.

    By `scontrol` where there is one. Raises `NodeError` for a list that cannot be read.
    """
    if shutil.which("scontrol"):
        command = ["scontrol", "show", "hostnames", nodelist]
        run = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=False
        )
        if run.returncode == 0 and run.stdout.strip():
            return tuple(run.stdout.split())
    items = re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", nodelist)
    if ",".join(items) != nodelist:
        raise NodeError(
            f"found the list of nodes {nodelist!r}, expected one as in gpu[01-03,7],login"
        )
    return tuple(host for item in items for host in _expanded(item, nodelist))


def _expanded(item: str, nodelist: str) -> list[str]:
    """One item of a list: every bracket stands for numbers, their zeros in front kept."""
    before, bracket, after = re.fullmatch(r"([^\[]*)(\[[^\]]*\])?(.*)", item).groups()  # type: ignore[union-attr]
    if bracket is None:
        return [item]
    middles = []
    for part in bracket[1:-1].split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if found is None:
            raise NodeError(
                f"found {part!r} in the list of nodes {nodelist!r}, expected 7 or 01-03"
            )
        first, last = found[1], found[2] or found[1]
        middles += [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    rest = _expanded(after, nodelist)
    return [f"{before}{middle}{end}" for middle in middles for end in rest]


@dataclass(frozen=True)
class End:
    """How a node's part in a run has ended: an exit code, minus a signal, and the same in words."""

    node: int
    code: int
    text: str = ""

    @property
    def explains(self) -> tuple[bool, bool, bool, bool]:
        """What explains a failure sorts first: one that was asked to stop, one that was killed.

        Both take others with them, which then fail because somebody is missing.
        """
        return self.code == 0, not self.text, self.code != EXIT_INTERRUPTED, self.code > 0


class Peers:
    """The other nodes of a run; all of this answers at once where there are none."""

    def __init__(self, node: Node) -> None:
        """Meet the first node, which may still be starting. Raises `NodeError` if it never does."""
        self.node, self._store = node, None
        self._last, self._found = 0.0, list[End]()
        self._heard = {n: (0, time.monotonic()) for n in range(len(node.hosts)) if n != node.number}
        if not self._heard:
            self.port = free_port()
            return
        first, wait = node.hosts[0], timedelta(seconds=START_SECONDS)
        try:
            self._store = TCPStore(
                first, node.port, is_master=node.number == 0, timeout=wait, wait_for_workers=False
            )
            if node.number == 0:
                self._store.set("port", str(free_port()))
            self.port = int(self._store.get("port"))
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise NodeError(
                f"{node.name}: no connection to port {node.port} of {first} ({reason}), expected"
                " the node processes of the run to meet there: is it open between nodes, and free?"
            ) from None
        self._store.set_timeout(timedelta(seconds=SILENCE_SECONDS))

    def failure(self) -> End | None:
        """The end on another node for which this one must end too, as far as is known.

        Asks the others once in a while, and tells them that this node is there.
        """
        if self._store is not None and time.monotonic() - self._last > BEAT_SECONDS:
            self._last = time.monotonic()
            try:
                self._ask(self._store)
            except RuntimeError:  # no answer
                self._gone(0)
        failed = [end for end in self._found if end.code]
        return min(failed, key=lambda end: end.explains) if failed else None

    def settle(self, end: End) -> End:
        """Tell the others how this node has ended; the end of the whole run, which explains it."""
        if self._store is None:
            return end
        until = time.monotonic() + SETTLE_SECONDS
        try:
            self._tell(self._store, end)
            while time.monotonic() < until and not self._complete():
                self._ask(self._store)
                time.sleep(BEAT_SECONDS / 10)
        except RuntimeError:  # the first node has heard enough
            log.debug("%s: the store is closed", self.node.name)
        return min([*self._found, end], key=lambda each: each.explains)

    def _complete(self) -> bool:
        return set(self._heard) <= {end.node for end in self._found}

    def _tell(self, store: TCPStore, end: End) -> None:
        line = json.dumps(asdict(end)) + "\n"
        store.append("ends", line)  # type: ignore[attr-defined]  # the stubs leave it out

    def _ask(self, store: TCPStore) -> None:
        store.add(f"beats{self.node.number}", 1)
        if store.check(["ends"]):
            lines = store.get("ends").decode().splitlines()
            self._found = [End(**json.loads(line)) for line in lines]
        if self.node.number == 0:
            self._listen(store)

    def _listen(self, store: TCPStore) -> None:
        """The first node says of the others that they are gone, if they are."""
        ended, now = {end.node for end in self._found}, time.monotonic()
        for number, (beats, when) in self._heard.items():
            heard = store.add(f"beats{number}", 0)
            if heard != beats:
                self._heard[number] = heard, now
            elif number not in ended and now - when > (SILENCE_SECONDS if beats else START_SECONDS):
                self._gone(number)
                self._tell(store, self._found[-1])

    def _gone(self, number: int) -> None:
        if number not in {end.node for end in self._found}:
            text = f"node {number} ({self.node.hosts[number]}) is not heard of any more"
            self._found.append(End(number, 1, text))


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listening:
        listening.bind(("", 0))
        port: int = listening.getsockname()[1]
        return port
