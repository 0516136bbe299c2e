"""Copies of the project, and Snakemake in them."""

from __future__ import annotations

import compileall
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import warm
import yaml

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("Snakefile", "config", "workflow", "etrm", "envs", "profiles", "slurm")
STUDY = "config/smoke.yaml"


def snakemake(folder: Path, *arguments: str, config: str = STUDY) -> subprocess.CompletedProcess:
    """Run Snakemake in a copy of the project, with the code of that copy, in a warm process."""
    return warm.run(folder, "snakemake", *arguments, "--configfile", config)


def start(folder: Path, *arguments: str, config: str = STUDY) -> subprocess.Popen[str]:
    """The same in interpreters of its own and a process group, without waiting for its end."""
    command = [sys.executable, "-m", "snakemake", *arguments, "--configfile", config]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def planned(run: subprocess.CompletedProcess) -> dict[str, int]:
    """Jobs by rule of a dry run; the aggregates, which do nothing, left out."""
    assert run.returncode == 0, run.stdout + run.stderr
    text = run.stdout + run.stderr
    if "Nothing to be done" in text:
        return {}
    table = text.split("Job stats:")[-1]
    jobs = {m[1]: int(m[2]) for m in re.finditer(r"^(\w+) +(\d+)$", table, re.MULTILINE)}
    return {k: v for k, v in jobs.items() if k not in ("all", "total", "job")}


def variant(folder: Path, change: dict[str, Any], name: str = "changed") -> str:
    """A config that extends the study with a change."""
    path = folder / "config" / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"extends": STUDY, **change}))
    return str(path.relative_to(folder))


def copy_project(target: Path) -> Path:
    """Return a copy of the project, with its bytecode, which is that of files of these times."""
    compileall.compile_dir(ROOT / "etrm", quiet=1)
    ignored = shutil.ignore_patterns("site.yaml")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=ignored)
        else:
            shutil.copy(source, target / name)
    return target
