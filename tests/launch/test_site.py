"""Settings of a site: what SLURM is asked for, and mistakes."""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import set_gres_string

from etrm.config.load import plain
from etrm.config.schema import ConfigError, parse
from etrm.launch.site import SiteConfig, read_site
from etrm.launch.slurm import gpus_of, nodes_of, threads_of

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "slurm/site.example.yaml"


def site(**keys: Any) -> SiteConfig:
    return parse(SiteConfig, keys)


def resources(settings: SiteConfig, stage: str = "full", attempt: int = 1, **size: int) -> dict:
    """Resources of a job as Snakemake has them: evaluated, and none that is not set."""
    given = settings.resources(stage, **size)
    given["runtime"] = given["runtime"](None, attempt)
    return {k: v for k, v in given.items() if v is not None}


def submitted(settings: SiteConfig, **size: int) -> list[str]:
    """The options of `sbatch` that the plugin makes of it."""
    job = SimpleNamespace(threads=1, resources=Found(resources(settings, **size)))
    job.resources.setdefault("slurm_extra", settings.options)
    job.resources["cpus_per_gpu"] = settings.cpus_per_gpu
    names = ("run_uuid", "slurm_logfile", "comment_str", "account", "partition", "workdir")
    call = get_submit_command(job, dict.fromkeys(names, ""))
    return shlex.split(call + set_gres_string(job))


class Found(dict):
    """Resources are also attributes to the plugin."""

    __getattr__ = dict.__getitem__


def test_the_example_has_every_key_with_its_default() -> None:
    assert yaml.safe_load(EXAMPLE.read_text()) == plain(SiteConfig())
    for field in dataclasses.fields(SiteConfig):
        assert f"\n{field.name}:" in EXAMPLE.read_text()


def test_no_file_is_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ETRM_SITE", raising=False)
    assert read_site() == SiteConfig()
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm/site.yaml").write_text("partition: long\n")
    assert read_site().partition == "long"
    (tmp_path / "other.yaml").write_text("# nothing\n")
    monkeypatch.setenv("ETRM_SITE", "other.yaml")
    assert read_site() == SiteConfig()
    monkeypatch.setenv("ETRM_SITE", "missing.yaml")
    with pytest.raises(ConfigError, match=r"missing\.yaml: found no such file, expected the file"):
        read_site()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("partitoin: gpu", "did you mean 'partition'"),
        ("runtime: {full: 0}", "runtime.full: found 0, expected an integer ≥ 1"),
        ("ask_by: gpus", "ask_by: found 'gpus', expected one of gpu, gres"),
        ("warn: 3600\nruntime: {overfit: 60}", "less than half of the shortest job (60 minutes)"),
        ("- gpu", "expected a block of keys"),
        ("a: b: c", "no YAML"),
    ],
)
def test_mistakes_say_where_and_what(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_site(path)
    assert str(path) in str(error.value)
    assert problem in str(error.value)


def test_later_attempts_ask_for_more_up_to_the_most() -> None:
    settings = site(runtime={"overfit": 100, "full": 400, "most": 250}, memory_per_cpu=4000)
    times = [resources(settings, "overfit", attempt)["runtime"] for attempt in (1, 2, 3)]
    assert times == [100, 200, 250]
    assert resources(settings, "full", 2)["runtime"] == 400, "never less than asked for"
    memory = [eval(settings.memory, {"min": min, "attempt": n}) for n in (1, 2, 3, 9)]
    assert memory == [4000, 6000, 8000, 16000]


def test_gpus_are_asked_for_by_the_one_or_by_the_other() -> None:
    options = submitted(site(cpus_per_gpu=6), gpus=4)
    assert "--gpus=4" in options
    assert "--cpus-per-gpu=6" in options
    assert not [option for option in options if option.startswith("--gres")]
    options = submitted(site(ask_by="gres", gpu_model="a100"), gpus=4)
    assert "--gres=gpu:a100:4" in options
    assert not [option for option in options if option.startswith("--gpus")]


def test_several_nodes_are_asked_for() -> None:
    options = submitted(site(), gpus=4, nodes=2)
    assert {"--nodes=2", "--ntasks=2", "--gpus=8", "--gpus-per-node=4"} <= set(options)
    options = submitted(site(ask_by="gres"), gpus=4, nodes=2)
    assert {"--nodes=2", "--ntasks=2", "--gres=gpu:4"} <= set(options), "on each node"


def test_the_signal_goes_to_the_step_and_logs_are_kept() -> None:
    options = submitted(site(warn=300, extra="--exclude=n1,n2"))
    assert {"--signal=USR1@300", "--open-mode=append", "--exclude=n1,n2"} <= set(options)


def test_a_job_knows_its_gpus_nodes_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for settings in (site(), site(ask_by="gres"), site(ask_by="gres", gpu_model="h100")):
        found = resources(settings, gpus=4, nodes=2) | {"cpus_per_gpu": 6}
        assert (gpus_of(found), nodes_of(found)) == (8, 2)
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        assert threads_of(found, 1) == 24, "on each node"
        monkeypatch.delenv("SLURM_JOB_ID")
        assert threads_of(found, 2) == 2, "not on a cluster: as the rule says"
    assert gpus_of({"gres": "gpu"}) == gpus_of({}) == gpus_of({"gpu": None}) == 1


# --- the profile ---


def dry_run(folder: Path, text: str, *more: str) -> subprocess.CompletedProcess[str]:
    (folder / "site.yaml").write_text(text)
    command = [sys.executable, "-m", "snakemake", "-n", "--profile", "slurm", *more]
    environment = {**os.environ, "ETRM_SITE": str(folder / "site.yaml")}
    environment["ETRM_TERMINAL"] = "snakemake"  # its own listing of jobs
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def of_rule(run: subprocess.CompletedProcess[str], rule: str) -> str:
    """What the plan says of the first job of a rule."""
    text = run.stdout + run.stderr
    return text.split(f"rule {rule}:")[1].split("\nrule ")[0]


def test_the_profile_plans_without_slurm_and_takes_the_site(tmp_path: Path) -> None:
    text = "partition: long\naccount: me\nqos: high\ngpu_model: a100\ncpus_per_gpu: 5\n"
    more = ["--configfile", "config/smoke.yaml", "--set-resources", "train_pretrain:gpu=4"]
    run = dry_run(tmp_path, text, *more)
    assert run.returncode == 0, run.stdout + run.stderr
    training = of_rule(run, "train_pretrain")
    for part in ("slurm_partition=long", "slurm_account=me", "qos=high", "gpu_model=a100"):
        assert part in training
    # What the command line adds takes nothing of the stage away.
    for part in ("gpu=4", "cpus_per_gpu=5", "runtime=1440", "mem_mb_per_cpu=8000"):
        assert part in training
    assert "runtime=480" in of_rule(run, "train_overfit")


def test_a_mistake_of_the_site_is_said_before_anything_runs(tmp_path: Path) -> None:
    run = dry_run(tmp_path, "partitoin: long\n")
    assert run.returncode != 0
    text = run.stdout + run.stderr
    assert "did you mean 'partition'" in text
    assert str(tmp_path / "site.yaml") in text
    assert "Traceback" not in text
