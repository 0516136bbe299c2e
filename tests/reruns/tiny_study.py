"""A study that trains in a moment, on tasks of its own, and the commands that compare its runs.

Everything is real but the HTML page of Snakemake and the pictures, which take longer than all the
rest; those are made where the small study is run as a whole.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import warm
import yaml
from projects import copy_project
from small_study import STUDY, write_sources

CONFIG = "config/tiny.yaml"
ROOT = Path("results/tiny")
NO_PAGE = "from pathlib import Path\n\nPath(snakemake.output[0]).write_text('no page')\n"
NO_PICTURES = """from pathlib import Path

for path in snakemake.output:
    Path(path).write_text("no picture")
"""
Job = tuple[str, str | None, int | None]  # rule, experiment, seed


def make(folder: Path) -> Path:
    """A copy of the project with the study in it, nothing run yet."""
    copy_project(folder)
    (folder / "workflow/scripts/report.py").write_text(NO_PAGE, encoding="utf-8")
    (folder / "workflow/scripts/figures.py").write_text(NO_PICTURES, encoding="utf-8")
    write_sources(folder)
    write(folder, STUDY)
    return folder


def write(folder: Path, study: dict[str, Any]) -> None:
    """Write the configuration of the study."""
    (folder / CONFIG).write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Snakemake in a warm process, which forks its jobs."""
    return warm.run(folder, "snakemake", *arguments, "--configfile", CONFIG)


def jobs_of(run: subprocess.CompletedProcess[str]) -> list[Job]:
    """Rule, experiment and seed of every job that Snakemake has printed, but for `all`."""
    text = run.stdout + run.stderr
    assert run.returncode == 0, text[-6000:]
    found = []
    for block in re.split(r"^(?:local)?(?:rule|checkpoint) (?=\w+:$)", text, flags=re.M)[1:]:
        rule, wildcards = block.partition(":")[0], re.search(r"^ +wildcards: (.*)$", block, re.M)
        named = dict(re.findall(r"(\w+)=(\w+)", wildcards[1])) if wildcards else {}
        seed = named.get("seed")
        found.append((rule, named.get("experiment"), None if seed is None else int(seed)))
    return sorted((job for job in found if job[0] != "all"), key=str)


def planned_jobs(folder: Path) -> list[Job]:
    """The same by `etrm plan`."""
    run = warm.run(folder, "etrm", "plan", "--json", "--configfile", CONFIG)
    assert run.returncode == 0, run.stderr
    found = [(j["rule"], j["experiment"], j["seed"]) for j in json.loads(run.stdout)["jobs"]]
    return sorted((job for job in found if job[0] != "all"), key=str)
