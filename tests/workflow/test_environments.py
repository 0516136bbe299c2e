"""The checkout and the locked packages are all that a job needs, however those came to the machine.

Snakemake runs here in an environment that holds the packages of this one, but not `etrm`, with an
empty home folder and next to no variables. Neither conda nor Apptainer is needed: stand-ins answer
what Snakemake asks of them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from deployments import apptainer, bare_environment, conda, without_network
from projects import ROOT, copy_project, variant

from etrm.runtime import environment as recorded

RESULTS = "results/smoke"
RUN = f"{RESULTS}/runs/trm/pretrain/seed0/run.json"
FEW_STEPS = {
    "defaults": {"stages": {"pretrain": {"steps": 2}, "overfit": {"steps": 2, "eval_every": 2}}},
    "experiments": {"etrm_act4": {"decoder": {"init": None}}},
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bare_environment(tmp_path_factory.mktemp("environments") / "bare")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(ROOT / "requirements.txt", folder)
    return copy_project(folder)


def snakemake(
    environment: Path,
    project: Path,
    options: str,
    *targets: str,
    tools: Path | None = None,
    before: tuple[str, ...] = (),
    **change: Any,
) -> subprocess.CompletedProcess[str]:
    """The console script of `environment`, with the executables of `tools` on the path."""
    home = project.parent / "home"
    home.mkdir(exist_ok=True)
    path = [str(tools / "bin")] if tools else []
    path += ["/usr/bin", "/bin", "/usr/sbin", "/sbin"]
    variables = {"HOME": str(home), "PATH": os.pathsep.join(path)}
    config = variant(project, {**FEW_STEPS, **change})
    command = [environment / "bin/python", environment / "bin/snakemake", "--cores", "1"]
    return subprocess.run(
        [*before, *command, "--configfile", config, *options.split(), "--", *targets],
        cwd=project,
        env={**variables, "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def made(run: subprocess.CompletedProcess[str], file: Path) -> dict[str, Any]:
    """What a result says of its environment."""
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["environment"]
    return found


def test_jobs_import_their_checkout_where_another_version_is_installed(
    project: Path, tmp_path: Path
) -> None:
    environment = bare_environment(tmp_path / "other")
    [site] = environment.glob("lib/python*/site-packages")
    (site / "etrm").mkdir()
    (site / "etrm/__init__.py").write_text("raise ImportError('the installed one')\n")
    run = snakemake(environment, project, "", "augment")
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
    assert (project / RESULTS / "data/augmentations.parquet").is_file()


def test_a_run_in_a_conda_environment(environment: Path, project: Path, tmp_path: Path) -> None:
    tools = conda(tmp_path / "conda")
    run = snakemake(environment, project, "--sdm conda", RUN, tools=tools)
    found = made(run, project / RUN)
    [prefix] = (project / ".snakemake/conda").glob("*/conda-meta")
    assert (found["kind"], found["name"]) == ("conda", prefix.parent.name)
    assert found["differs"] == recorded.environment()["differs"], "it has the packages of this one"
    assert found["lock_sha256"] == recorded.environment()["lock_sha256"]
    [created] = [c for c in (tools / "calls").read_text().splitlines() if "env create" in c]
    [file] = (project / ".snakemake/conda").glob("*.yaml")
    assert str(file) in created
    assert file.read_text() == (ROOT / "envs/etrm.yaml").read_text()


def test_a_run_in_a_container(environment: Path, project: Path, tmp_path: Path) -> None:
    """Of the image's packages and the checkout.

    The search path of Snakemake itself, which a container sees by mounts, has no part in it.
    """
    tools = apptainer(tmp_path / "apptainer", environment)
    (project / "envs/etrm.sif").write_bytes(b"no image")
    options = "--sdm apptainer --apptainer-args=--nv"
    run = snakemake(environment, project, options, RUN, tools=tools)
    found = made(run, project / RUN)
    assert (found["kind"], found["name"]) == ("container", "etrm.sif")
    calls = [c for c in (tools / "calls").read_text().splitlines() if c.startswith("exec ")]
    assert len(calls) == 3, "tasks, augment and the run"
    assert all(" --nv " in call and " envs/etrm.sif " in call for call in calls)


def test_a_missing_image_is_named_with_how_to_build_it(environment: Path, project: Path) -> None:
    run = snakemake(environment, project, "-n --sdm apptainer", "augment")
    text = run.stdout + run.stderr
    assert run.returncode != 0
    assert "envs/etrm.sif: no such file" in text
    assert "apptainer build envs/etrm.sif envs/etrm.def" in text
    assert "Traceback" not in text


def test_a_study_runs_without_network(environment: Path, project: Path) -> None:
    """From the tasks to an overfit run and to an evaluation.

    On two ranks where there is a loopback; W&B is left to itself, and finds no key.
    """
    before = without_network()
    if not before:
        pytest.skip("this machine allows no network namespace (unshare --net)")
    ranks = 1
    if shutil.which("ip"):
        before, ranks = [*before, "sh", "-c", 'ip link set lo up && exec "$@"', "sh"], 2
    lines = subprocess.run([*before, "cat", "/proc/net/dev"], capture_output=True, text=True)
    assert [line.split(":")[0].strip() for line in lines.stdout.splitlines() if ":" in line] == [
        "lo"
    ]
    weights = f"{RESULTS}/runs/etrm_act4/overfit/seed0/model.safetensors"
    score = f"{RESULTS}/evaluation/trm/seed0/score.json"
    run = snakemake(
        environment,
        project,
        f"--set-resources train_pretrain:gpu={ranks}",
        weights,
        score,
        before=tuple(before),
        tracking={"wandb": "auto"},
    )
    assert made(run, project / score)["kind"] == "venv"
    assert (project / weights).is_file()
    assert json.loads((project / RUN).read_text())["ranks"] == ranks
    logs = [path.read_text() for path in (project / RESULTS / "logs").rglob("*.log")]
    said = "\n".join([run.stdout, run.stderr, *logs])
    for alarming in ("warning", "error", "traceback", "retry", "failed"):
        assert alarming not in said.lower()
    # Of trm and of etrm_act4, and of the evaluation of trm, which continues the run of trm.
    recorded = [path.name for path in (project / RESULTS / "wandb").glob("wandb/offline-run-*")]
    assert len(recorded) == 3
    assert len({name.rsplit("-", 1)[1] for name in recorded}) == 2
