"""`srun` on two nodes, which here are two processes on loopback.

It starts a process for every node, hands on SIGUSR1, ends all at once by SIGTERM or when one fails,
and has the highest of their exit codes: as the real one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

HOSTS = ("localhost", "127.0.0.1")


def main(words: list[str]) -> int:
    """Start a command, the words after the options, once for each node."""
    options = [word for word in words if word.startswith("--")]
    command = words[len(options) :]
    count = int(dict(word[2:].split("=") for word in options if "=" in word)["nodes"])
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": str(count)}
    step |= {"SLURM_STEP_NUM_TASKS": str(count), "SLURM_STEP_NODELIST": ",".join(HOSTS)}
    started = [
        subprocess.Popen(command, env=os.environ | step | {"SLURM_NODEID": str(number)})
        for number in range(count)
    ]

    def send(number: int) -> None:
        for process in started:
            if process.poll() is None:
                process.send_signal(number)

    signal.signal(signal.SIGUSR1, lambda *_: send(signal.SIGUSR1))
    signal.signal(signal.SIGTERM, lambda *_: send(signal.SIGKILL))
    while None in [process.poll() for process in started]:
        if any(process.returncode for process in started) and "--kill-on-bad-exit=1" in options:
            time.sleep(1.0)
            send(signal.SIGKILL)
        time.sleep(0.05)
    codes = [process.returncode for process in started]
    return max(128 - code if code < 0 else code for code in codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
