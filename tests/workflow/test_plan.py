"""`etrm plan` beside `snakemake -n`: the same jobs after every change, and why they run."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import warm
from projects import STUDY, copy_project, variant

PASSING, OTHER, CONTROL = "etrm_act4", "etrm_act2", "etrm_cached"
ROOT = Path("results/smoke")
Whys = dict[tuple[str, str], tuple[str, str]]  # (experiment, stage): (state, a part of why)


def etrm(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return warm.run(folder, "etrm", "plan", *arguments)


def plan(folder: Path, config: str = STUDY, *arguments: str) -> dict[str, Any]:
    run = etrm(folder, "--json", "--configfile", config, *arguments)
    assert run.returncode == 0, run.stderr
    document: dict[str, Any] = json.loads(run.stdout)
    return document


def edit(file: str, old: str, new: str) -> Callable[[Path], str]:
    def change(folder: Path) -> str:
        path = folder / file
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))
        return STUDY

    return change


def config(**change: Any) -> Callable[[Path], str]:
    """A change of the configuration alone: a plan of it needs no copy of the study."""

    def write(folder: Path) -> str:
        return variant(folder, change)

    write.in_place = True  # type: ignore[attr-defined]
    return write


def without(*files: str) -> Callable[[Path], str]:
    def change(folder: Path) -> str:
        for file in files:
            path = folder / ROOT / file
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        return STUDY

    return change


DERIVED = {(OTHER, "gate"): ("run", "its overfit run is rerun")}
CHANGES: dict[str, tuple[Callable[[Path], str], Whys, dict[str, str]]] = {
    "nothing": (
        config(),
        {(PASSING, "full"): ("done", ""), (CONTROL, "full"): ("stopped", "<")},
        {},
    ),
    "figure style": (
        config(figures={"dpi": 100}),
        {(PASSING, "full"): ("done", "")},
        {"figures": "figures.dpi 200 → 100"},
    ),
    "finalists": (
        config(finalists=[OTHER]),
        {(OTHER, "full"): ("done", ""), (OTHER, "evaluate"): ("done", "")},
        {"tables": "finalists is new"},
    ),
    "halting": (
        config(experiments={OTHER: {"halting": {"exploration_prob": 0.25}}}),
        {
            (OTHER, "overfit"): ("run", "halting.exploration_prob 0.5 → 0.25"),
            (OTHER, "full"): ("waits", "halting.exploration_prob 0.5 → 0.25"),
            (OTHER, "evaluate"): ("waits", "its run is rerun"),
            (PASSING, "overfit"): ("done", ""),
            **DERIVED,
        },
        {},
    ),
    "learning rate": (
        config(experiments={OTHER: {"train": {"lr": 1.0e-3}}}),
        {(OTHER, "overfit"): ("run", "train.lr 0.002 → 0.001"), **DERIVED},
        {},
    ),
    "learning rate of the parent": (
        config(experiments={"trm_strict": {"train": {"lr": 1.0e-3}}}),
        {
            ("trm_strict", "pretrain"): ("run", "train.lr 0.002 → 0.001"),
            (PASSING, "overfit"): ("run", "its parent trm_strict is rerun"),
            ("trm", "pretrain"): ("done", ""),
        },
        {},
    ),
    "code of a context source": (
        edit(
            "etrm/models/encoders/standard.py", "self.stack(o.layers)", "self.stack(1 + o.layers)"
        ),
        {
            (PASSING, "overfit"): ("run", "code etrm/models/encoders/standard.py"),
            ("trm", "pretrain"): ("done", ""),
        },
        {},
    ),
    "code of voting": (
        edit("etrm/evaluation/voting.py", "(-q_mean, -count,", "(q_mean, -count,"),
        {
            ("trm", "evaluate"): ("run", "code etrm/evaluation/voting.py"),
            (PASSING, "evaluate"): ("run", "code etrm/evaluation/voting.py"),
            (PASSING, "full"): ("done", ""),
        },
        {},
    ),
    "a comment": (
        edit("etrm/models/losses.py", "from __future__", "# a remark\nfrom __future__"),
        {(PASSING, "full"): ("done", "")},
        {},
    ),
    "threshold": (
        config(defaults={"gate": {"exact_accuracy": 1.0}}),
        {
            (PASSING, "gate"): ("run", "gate.exact_accuracy 0.8 → 1.0"),
            (CONTROL, "full"): ("stopped", "% < 100%"),
            (PASSING, "overfit"): ("done", ""),
        },
        {"verdict": "gate.exact_accuracy 0.8 → 1.0"},
    ),
    "more seeds": (
        config(experiments={PASSING: {"seeds": [0, 1]}}),
        {(PASSING, "overfit"): ("run", "never run"), (OTHER, "overfit"): ("done", "")},
        {},
    ),
    "variants of the data": (
        config(data={"variants": 3}),
        {
            ("trm_strict", "pretrain"): ("run", "new data"),
            (OTHER, "overfit"): ("run", "new data"),
            (OTHER, "evaluate"): ("waits", "new data"),
        },
        {"augment": "data.variants 2 → 3"},
    ),
    "variants of the evaluation": (
        config(experiments={PASSING: {"evaluation": {"variants": 1}}}),
        {
            (PASSING, "evaluate"): ("run", "evaluation.variants 2 → 1"),
            (PASSING, "full"): ("done", ""),
            (OTHER, "evaluate"): ("done", ""),
        },
        {},
    ),
    "weights deleted": (
        without(f"runs/{OTHER}/full/seed0/model.safetensors"),
        {
            (OTHER, "full"): ("run", "restorable from cache"),
            (OTHER, "evaluate"): ("run", "restorable from cache"),
        },
        {},
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_reason_is_the_change(finished: Path, tmp_path: Path, name: str) -> None:
    """That the jobs are those of Snakemake's own dry run, `tests/reruns` compares."""
    change, whys, of_rules = CHANGES[name]
    study = finished
    if not hasattr(change, "in_place"):
        study = shutil.copytree(finished, tmp_path / "study", symlinks=True)
    file = change(study)
    found = plan(study, file)
    jobs = [(job["rule"], job["experiment"], job["seed"]) for job in found["jobs"]]
    assert sum(found["counts"].values()) == len(jobs)
    own = {rule for rule, _, _ in jobs} & {"train_pretrain", "train_overfit", "verdict"}
    own |= {rule for rule, _, _ in jobs} & {"train_full", "evaluate_run", "refine_run"}
    counted = sum(count for rule, count in found["counts"].items() if rule in own)
    assert found["totals"]["jobs"] == counted == sum(s["job"] for s in found["stages"])
    for (experiment, stage), (state, why) in whys.items():
        # The last seed: of more seeds than before, the new one.
        last = [s for s in found["stages"] if (s["experiment"], s["stage"]) == (experiment, stage)]
        assert last[-1]["state"] == state, last[-1]
        assert why in "; ".join(last[-1]["why"])
        assert bool(why) == bool(last[-1]["why"])
    for rule, why in of_rules.items():
        reasons = [job["why"] for job in found["jobs"] if job["rule"] == rule]
        assert reasons
        assert all(why in each for each in reasons), reasons


def of(document: dict[str, Any], experiment: str, stage: str) -> dict[str, Any]:
    fits = [s for s in document["stages"] if (s["experiment"], s["stage"]) == (experiment, stage)]
    assert len(fits) == 1
    found: dict[str, Any] = fits[0]
    return found


def test_an_interrupted_run_goes_on_and_a_kept_one_is_taken_back(study: Path) -> None:
    """Told by the key that the run itself had."""
    folder = study / ROOT / f"runs/{OTHER}/overfit/seed0"
    key = json.loads((folder / "run.json").read_text())["key"]
    for name in ("run.json", "model.safetensors", "metrics.parquet"):
        (folder / name).unlink()
    for name in ("report.html", "tables/results.md"):  # so that something needs the run
        (study / ROOT / name).unlink()
    found = of(plan(study), OTHER, "overfit")
    assert found["state"] == "run"
    assert found["why"] == ["restorable from cache"]
    assert found["kept"]
    assert found["hours"] == 0
    shutil.rmtree(study / ROOT / f"state/finished/{OTHER}/overfit")
    states = study / ROOT / "state" / key[:16]
    states.mkdir()
    (states / "step0000000500.state").touch()
    (states / "step0000000600.state").touch()
    document = plan(study)
    found = of(document, OTHER, "overfit")
    assert found["why"] == ["interrupted at step 600 of 800, resumes there"]
    assert found["step"] == 600
    changed = variant(study, {"experiments": {OTHER: {"train": {"lr": 1.0e-3}}}})
    found = of(plan(study, changed), OTHER, "overfit")
    assert found["why"] == ["never run"]
    assert found["step"] == 0
    assert found["hours_least"] < found["hours"]


def test_lost_metadata_are_seen_in_the_records(study: Path) -> None:
    """Without them a dry run keeps what another configuration has made."""
    shutil.rmtree(study / ".snakemake" / "metadata")
    changed = variant(study, {"experiments": {OTHER: {"train": {"lr": 1.0e-3}}}})
    document = plan(study, changed)
    assert not [job for job in document["jobs"] if job["rule"] == "train_overfit"]
    found = of(document, OTHER, "overfit")
    assert found["state"] == "stale"
    assert found["why"] == ["train.lr 0.002 → 0.001"]
    assert "--forcerun" in " ".join(document["notes"])


def test_the_paper_study_of_a_fresh_clone_has_hours_of_every_experiment(tmp_path: Path) -> None:
    folder = copy_project(tmp_path)
    run = etrm(folder, "--configfile", "config/paper.yaml")
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert max(map(len, lines)) <= 120
    assert "etrm_standard_contrastive_task " in run.stdout, "a whole name"
    assert "?" not in run.stdout
    assert "an assumed 40 % of the bf16 peak of H100" in " ".join(run.stdout.split())
    assert "waits 3" in run.stdout
    assert "data/arc-agi_concept_challenges.json" in run.stdout
    assert not (folder / "results").exists()
    document = plan(folder, STUDY, "etrm_act*", "--stage", "full")
    assert {s["experiment"] for s in document["stages"]} == {PASSING, OTHER}
    assert all(s["stage"] == "full" and s["state"] == "waits" for s in document["stages"])


def test_what_cannot_be_planned_is_said_without_a_traceback(tmp_path: Path) -> None:
    folder = copy_project(tmp_path)
    wrong = variant(folder, {"defaults": {"halting": {"max_stepps": 3}}}, "wrong")
    (folder / "broken").mkdir()
    cases = {
        ("--configfile", wrong): "max_stepps",
        ("--configfile", STUDY, "etrm_act9"): "etrm_act9",
        ("--configfile", STUDY, "--group", "none"): "--group 'none'",
        ("--configfile", STUDY, "--gpu", "abacus"): "no device of that name",
    }
    for arguments, text in cases.items():
        run = etrm(folder, *arguments)
        assert run.returncode == 1
        assert text in run.stderr
        assert "Traceback" not in run.stderr
    rules = folder / "workflow/rules/data.smk"
    rules.write_text(rules.read_text().replace("LAYOUT.tasks,", "LAYOUT.no_such_path,", 1))
    run = etrm(folder, "--configfile", STUDY)
    assert run.returncode == 1
    assert "Snakemake cannot plan the study" in run.stderr
    assert "no_such_path" in run.stderr
    assert "Traceback" not in run.stderr
    (folder / "Snakefile").unlink()
    run = etrm(folder, "--configfile", STUDY)
    assert run.returncode == 1
    assert "found no Snakefile" in run.stderr


def test_a_folder_in_use_is_planned_and_said_to_be(tmp_path: Path) -> None:
    folder = copy_project(tmp_path)
    locks = folder / ".snakemake" / "locks"
    locks.mkdir(parents=True)
    (locks / "0.output.lock").write_text("results/smoke/data/tasks.parquet\n")
    document = plan(folder)
    assert document["counts"]["train_overfit"] == 4
    assert "another Snakemake" in " ".join(document["notes"])
    assert (locks / "0.output.lock").exists()
