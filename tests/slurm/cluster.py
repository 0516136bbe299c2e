"""A real SLURM, for tests and to try the pipeline on: two nodes with a CPU and a GPU each, in name.

    python tests/slurm/cluster.py start     installs SLURM where it is missing, starts it
    python tests/slurm/cluster.py stop      stops what was started

It needs root, on Debian or Ubuntu, and a machine without a SLURM of its own: the configuration has
to be where SLURM's programs look for it (Snakemake's plugin removes the variable that would name
another place from its jobs), and the names of the nodes in /etc/hosts. All else that it writes is
in a folder of its own.

Both nodes are this machine, and their GPUs are device files that do nothing. SLURM counts them,
hands them out and takes them back as it does real ones; it cannot keep a job off the one that
another has been given (no cgroups here).
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path("/var/tmp/etrm-slurm")
CONFIGURATION = Path("/etc/slurm/slurm.conf")
GRES = CONFIGURATION.with_name("gres.conf")
MARK = "# Written by tests/slurm/cluster.py of ETRM, which removes it again."
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
NODES = ("etrm1", "etrm2")
# In the order in which they are stopped, with what a process of each is called.
DAEMONS = {**{f"slurmd-{node}": "slurmd" for node in NODES}, "slurmctld": "slurmctld"}
DAEMONS |= {"munged": "munged"}
HOSTS = Path("/etc/hosts")
PATIENCE = 60.0  # seconds for the node to be idle, and for a daemon to end

# MinJobAge: finished jobs stay in `squeue`, which is all that there is without an accounting
# database. DefMemPerCPU: a job that asks for no memory does not get all of it. Job completion goes
# into a file, as evidence.
SLURM_CONF = """\
{mark}
ClusterName=etrm
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/controller
SlurmdSpoolDir={folder}/node-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs.log
SchedulerType=sched/backfill
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
ReturnToService=2
MinJobAge=3600
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
KillWait=15
JobRequeue=1
GresTypes=gpu
PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=CANCEL GraceTime=20
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
"""
NODE = """\
NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 RealMemory={memory} \
Gres=gpu:1 State=UNKNOWN
"""
# A count of GPUs without a file for each is refused, and the node is drained.
GRES_CONF = """\
{mark}
AutoDetect=off
NodeName=etrm1 Name=gpu File=/dev/null
NodeName=etrm2 Name=gpu File=/dev/zero
"""


class ClusterError(RuntimeError):
    """No SLURM could be started here: says why."""


def start() -> None:
    """Install what is missing, and start; raises `ClusterError`. One that runs is replaced."""
    if os.geteuid() != 0:
        raise ClusterError("found no root, expected it: SLURM's daemons start jobs as other users")
    install()
    if CONFIGURATION.exists() and not _ours(CONFIGURATION):
        raise ClusterError(
            f"found {CONFIGURATION} of another SLURM, expected a machine without one"
        )
    stop()
    for name in ("", "controller", *(f"node-{node}" for node in NODES)):
        (FOLDER / name).mkdir(parents=True, exist_ok=True, mode=0o755)
    controller, *ports = _free_ports(1 + len(NODES))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
    host = socket.gethostname().partition(".")[0]
    values = {"mark": MARK, "host": host, "folder": FOLDER, "controller": controller}
    text = SLURM_CONF.format(**values)
    for node, port in zip(NODES, ports, strict=True):
        text += NODE.format(node=node, host=host, port=port, memory=memory * 4 // 10)
    CONFIGURATION.parent.mkdir(exist_ok=True)
    CONFIGURATION.write_text(text, encoding="utf-8")
    GRES.write_text(GRES_CONF.format(**values))
    HOSTS.write_text(
        f"{HOSTS.read_text(encoding='utf-8').rstrip()}\n127.0.0.1 {' '.join(NODES)} {MARK}\n",
        encoding="utf-8",
    )
    (FOLDER / "jobs.log").touch()
    _start_munge()
    _run("slurmctld", "-i")
    for node in NODES:
        _run("slurmd", "-N", node)
    _wait_until_idle()


def stop() -> None:
    """Stop the daemons of `start`, with their jobs, and remove all that it has written."""
    if _alive("slurmctld"):
        ask("scancel", "--user", "root")
    for name in DAEMONS:
        _stop_daemon(name)
    for path in (CONFIGURATION, GRES):
        if _ours(path):
            path.unlink()
    lines = HOSTS.read_text(encoding="utf-8").splitlines(keepends=True)
    if any(MARK in line for line in lines):
        HOSTS.write_text("".join(line for line in lines if MARK not in line), encoding="utf-8")
    shutil.rmtree(FOLDER, ignore_errors=True)


def ask(*command: str) -> str:
    """What a client says; empty where it fails, or where the controller does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5.0)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip()


def install() -> None:
    """Debian's packages, where a program is missing."""
    if all(shutil.which(name) for name in PROGRAMS):
        return
    if shutil.which("apt-get") is None:
        raise ClusterError(f"found no apt-get to install {', '.join(PACKAGES)} with: install them")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    wanted = ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]
    if subprocess.run(wanted, env=quiet, capture_output=True).returncode:
        subprocess.run(["apt-get", "update"], env=quiet, capture_output=True)
        done = subprocess.run(wanted, env=quiet, capture_output=True, text=True)
        if done.returncode:
            raise ClusterError(f"{' '.join(wanted)} failed: {done.stderr.strip()[-500:]}")


def _start_munge() -> None:
    key = FOLDER / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    files = {"socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log"}
    options = [f"--{name}={FOLDER / file}" for name, file in files.items()]
    _run("munged", "--force", f"--key-file={key}", f"--seed-file={FOLDER / 'seed'}", *options)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ClusterError(f"{' '.join(command)} failed: {(done.stdout + done.stderr).strip()}")


def _ours(path: Path) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8").startswith(MARK)


def _wait_until_idle() -> None:
    until = time.monotonic() + PATIENCE
    while (state := ask("sinfo", "-h", "-p", "gpu", "-o", "%T")) != "idle":
        if time.monotonic() > until:
            tails = "\n".join(p.read_text()[-1500:] for p in sorted(FOLDER.glob("slurm*.log")))
            raise ClusterError(f"the node is {state or 'not there'}, expected idle:\n{tails}")
        time.sleep(0.2)


def _alive(name: str) -> int | None:
    """The process of a daemon that was started here."""
    try:
        number = int((FOLDER / f"{name}.pid").read_text())
        running = Path(f"/proc/{number}/comm").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return number if running == DAEMONS[name] else None


def _stop_daemon(name: str) -> None:
    number = _alive(name)
    if number is None:
        return
    os.kill(number, signal.SIGTERM)
    until = time.monotonic() + PATIENCE / 4
    while _alive(name):
        if time.monotonic() > until:
            os.kill(number, signal.SIGKILL)
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def main(arguments: list[str]) -> int:
    """Start or stop, and say how to use it."""
    if arguments not in (["start"], ["stop"]):
        print(__doc__)
        return 2
    try:
        start() if arguments == ["start"] else stop()
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
