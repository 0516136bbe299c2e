"""A job of Snakemake as the terminal shows it: its name, progress, outcome and failure, in words.

All is read from the job's log and its records, wherever it runs: here or on a cluster.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from etrm.errors import UserError
from etrm.runtime.progress import Reading
from etrm.storage.records import DESCRIBED, read_run, read_score, read_verdict
from etrm.study.gate import describe

LINE = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+ (DEBUG|INFO|WARNING|ERROR|CRITICAL) (.*)")
DEFECT = "unexpected error"  # after which the log has a traceback (`etrm.runtime.logs`)
_OF_LIBRARIES = re.compile(r"\.py:\d+: \w*Warning: ")
# Rules that a line is printed for when they have finished; others count, and are shown while they
# run, and where they fail.
_TOLD = (
    *("train_", "verdict", "select", "evaluate_run", "merge_shards", "refine_run", "validate_run"),
    *("tasks", "augment", "generate", "page"),
)
_NAMES = {"merge_shards": "evaluate", "evaluate_run": "evaluate", "evaluate_shard": "evaluate"}
_NAMES |= {"refine_run": "refine", "validate_run": "validate"}


@dataclass
class Job:
    """A job that has been started or submitted."""

    rule: str
    wildcards: Mapping[str, str]
    output: Sequence[Path]
    logs: Sequence[Path]
    started: float = field(default_factory=time.time)
    reading: Reading | None = None  # the last that the log has told
    said: str = ""  # its last message
    _offset: int = 0  # bytes of the log that have been read

    @property
    def name(self) -> str:
        """Return the stage, and the run that it is of: `pretrain trm, seed 0`."""
        of = self.wildcards
        text = _NAMES.get(self.rule, self.rule.removeprefix("train_").replace("_", " "))
        text += f" {of['experiment']}" if "experiment" in of else ""
        text += f", seed {of['seed']}" if "seed" in of else ""
        if "shard" in of:
            text += f", shard {int(of['shard']) + 1} of {of['shards']}"
        return text

    @property
    def works(self) -> bool:
        """Return whether it does something: targets have no log, and only ask for files."""
        return bool(self.logs)

    @property
    def told(self) -> bool:
        """Return whether its end is worth a line."""
        return self.rule.startswith(_TOLD)

    @property
    def duration(self) -> str:
        """Return the time since it was started."""
        return tqdm.format_interval(time.time() - self.started)

    def read(self) -> Iterator[str]:
        """Read the new lines of the log, and yield the warnings in it."""
        for line in self._new_lines():
            if (reading := Reading.of_line(line)) is not None:
                self.reading = reading
            elif (match := LINE.match(line)) is not None:
                self.said = match[2]
                if match[1] == "WARNING" and not _OF_LIBRARIES.search(match[2]):
                    yield match[2]

    def _new_lines(self) -> list[str]:
        try:
            if not self.logs or self.logs[0].stat().st_mtime < self.started - 1:
                return []  # of an earlier job: Snakemake has not deleted it yet
            with self.logs[0].open("rb") as file:
                if file.seek(0, 2) < self._offset:
                    self._offset = 0  # begun anew
                file.seek(self._offset)
                whole, end, _ = file.read().rpartition(b"\n")
        except OSError:  # not begun, or submitted and waiting
            return []
        self._offset += len(whole) + len(end)
        return whole.decode("utf-8", "replace").splitlines()

    def outcome(self) -> str:
        """Return how it ended, in words; nothing where its files say all."""
        words = next((f for rule, f in _OUTCOMES.items() if self.rule.startswith(rule)), None)
        if words is None or not self.output:
            return self.said
        with suppress(UserError, OSError, KeyError):  # a record that is damaged by now
            return words(self.output[0])
        return ""


def failure(logs: Sequence[Path]) -> tuple[str, Path | None]:
    """Return the last error in the logs of a job that failed, and the log that has it.

    Without an error it is the last line of the last log, which is that of the cluster.
    """
    texts: dict[Path, list[str]] = {}
    for path in logs:
        with suppress(OSError):
            texts[path] = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for path, lines in texts.items():
        if error := _last_error(lines):
            return error, path
    for path, lines in reversed(texts.items()):
        if last := next((line for line in reversed(lines) if line.strip()), ""):
            return f"no error in its log, which ends with: {_message(last)}", path
    return "", next(iter(logs), None)


def _last_error(lines: Sequence[str]) -> str:
    """Return the last error message; after a defect, the last line of the traceback."""
    for number in range(len(lines) - 1, -1, -1):
        match = LINE.match(lines[number])
        if match and match[1] in ("ERROR", "CRITICAL"):
            text = "\n".join([match[2], *lines[number + 1 :]]).rstrip()
            return text.splitlines()[-1] if match[2].endswith(DEFECT) else text
    return ""


def _message(line: str) -> str:
    match = LINE.match(line)
    return match[2] if match else line


def _training(output: Path) -> str:
    record = read_run(output.parent, DESCRIBED)
    steps, reason = f"step {record['steps_done']}", record.get("stopped_early")
    if not reason:
        return f"all {record['steps_done']} steps"
    if "target" in reason:
        return f"its target is reached at {steps}"
    return f"stopped early at {steps} of {record['config']['train']['steps']}: {reason}"


def _verdict(output: Path) -> str:
    verdict = read_verdict(output)
    then = "passed, the full run starts" if verdict["passed"] else "STOPPED, no full run"
    return f"{then}: {describe(verdict)}"


def _score(output: Path) -> str:
    found = read_score(output.parent / "score.json")["pass"]
    shares = {k: of["task_fraction"]["value"] for k, of in found.items()}
    return ", ".join(f"pass@{k} {v:.1%}" for k, v in shares.items() if v is not None)


_OUTCOMES: dict[str, Callable[[Path], str]] = {
    "train_": _training,
    "verdict": _verdict,
    "evaluate_run": _score,
    "merge_shards": _score,
}


def of_record(record: Any) -> Job:
    """Return the job that a log record of Snakemake's is about."""
    # Snakemake appends marks to paths: `runs/model.safetensors (send to storage)`.
    output, logs = (
        [Path(p.split(" (")[0]) for p in paths] for paths in (record.output, record.log)
    )
    wildcards = getattr(record, "wildcards", None) or {}
    return Job(record.rule_name, dict(wildcards), output, logs)
