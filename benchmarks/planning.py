"""Time of planning a study."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from benchmarks.clock import now
from benchmarks.rows import Row, new_row
from benchmarks.setups import Setting

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = 1000
COMMANDS = {
    "snakemake -n": ("snakemake", "-n", "--quiet", "all"),
    "etrm plan": ("etrm", "plan"),
}


def planning_rows(setting: Setting, cases: set[str]) -> Iterator[Row]:
    """`plan/paper` and `plan/1000-experiments`: the paper study, and one with that many more."""
    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder) / "large.yaml"
        large.write_text(yaml.safe_dump(_large(folder)), encoding="utf-8")
        studies = {"plan/paper": "config/paper.yaml", "plan/1000-experiments": str(large)}
        for case, study in studies.items():
            for part, command in COMMANDS.items():
                if case in cases:
                    seconds = _seconds(setting, *command, "--configfile", study)
                    yield new_row(setting, case=case, part=part, seconds=seconds, tasks="none")


def _seconds(setting: Setting, module: str, *arguments: str) -> float:
    start = now(setting.device)
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
    return now(setting.device) - start


def _large(results: str) -> dict[str, object]:
    """Return a learning rate for each of many experiments, one seed each."""
    rates = {str(i): 1.0e-4 * (1 + i / EXPERIMENTS) for i in range(EXPERIMENTS)}
    sweep = {"lr": {"key": "train.lr", "values": rates}}
    return {
        "extends": "config/paper.yaml",
        "study": "large",
        "results": results,
        "defaults": {"seeds": [0]},
        "experiments": {"many": {"sweep": sweep}},
    }
