"""What SLURM is asked for by a training job on one node and on several, as planned here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from projects import copy_project, snakemake, variant
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import set_gres_string

pytestmark = pytest.mark.xdist_group("workflow")

BY_CONFIG: dict[str, Any] = {"execution": {"nodes": 2, "gpus": 4}}
BY_RESOURCE = ["nodes=2", "gpu=8", "mpi=srun", "tasks=2", "tasks_per_gpu=0"]


class Resources(dict):
    """A job's resources as the plugin reads them."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Planned:
    """A training job of a dry run."""

    def __init__(self, folder: Path, config: str, *arguments: str) -> None:
        run = snakemake(folder, "-n", "pretrain", *arguments, config=config)
        assert run.returncode == 0, run.stderr
        text = run.stdout + run.stderr
        found = re.search(r"rule train_pretrain:.*?resources: (.*?)\n", text, re.DOTALL)
        assert found is not None, text
        pairs = (item.split("=") for item in found[1].split(", "))
        self.resources = Resources({k: int(v) if v.isdecimal() else v for k, v in pairs})
        self.threads = 3

    def sbatch(self) -> list[str]:
        """The options that it is submitted with."""
        names = ("run_uuid", "slurm_logfile", "comment_str", "account", "partition")
        params = {**dict.fromkeys(names, "x"), "workdir": None}
        return (get_submit_command(self, params) + set_gres_string(self)).split()


@pytest.mark.parametrize("way", ["config", "resources"])
def test_several_nodes_are_asked_for_with_a_task_and_gpus_on_each(way: str, tmp_path: Path) -> None:
    folder = copy_project(tmp_path)
    if way == "config":
        job = Planned(folder, variant(folder, BY_CONFIG))
    else:
        more = [f"train_pretrain:{each}" for each in BY_RESOURCE]
        job = Planned(folder, "config/smoke.yaml", "--set-resources", *more)
    options = job.sbatch()
    for option in ("--nodes=2", "--ntasks=2", "--cpus-per-task=3", "--gpus=8"):
        assert option in options
    assert not [option for option in options if "ntasks-per" in option]
    # Not wrapped in an srun of its own, which would get one node.
    assert "mpi" in job.resources


def test_one_node_is_asked_for_without_tasks(tmp_path: Path) -> None:
    folder = copy_project(tmp_path)
    job = Planned(folder, variant(folder, {"execution": {"gpus": 4}}))
    options = job.sbatch()
    assert "--nodes=1" in options, "four GPUs are those of one machine"
    assert "--gpus=4" in options
    assert not [option for option in options if "ntasks" in option]
    assert "mpi" not in job.resources
