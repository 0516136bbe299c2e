"""What is promised of a finished study that somebody damages, moves, or changes behind its back."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import warm
import yaml
from tiny_study import CONFIG, ROOT, STUDY, jobs_of, make, planned_jobs, snakemake, write

VERDICT = ROOT / "runs/one/overfit/seed0/verdict.json"
RUN = ROOT / "runs/one/overfit/seed0/run.json"
# Nobody asks for these to tell whether a study is done.
PARENT, SCORE = (
    ROOT / "runs/strict/pretrain/seed0/run.json",
    ROOT / "evaluation/two/seed0/score.json",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny study, run to the end."""
    folder = make(tmp_path_factory.mktemp("tiny"))
    jobs_of(snakemake(folder, "--cores", "2"))
    return folder


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, times kept, to be changed."""
    shutil.copytree(finished, tmp_path / "study", symlinks=True)
    return tmp_path / "study"


def etrm(folder: Path, *arguments: str) -> tuple[int, str]:
    run = warm.run(folder, "etrm", *arguments, "--configfile", CONFIG)
    return run.returncode, run.stdout + run.stderr


def changed(folder: Path, **experiments: Any) -> None:
    """Change the configuration of experiments."""
    config = copy.deepcopy(STUDY)
    for name, difference in experiments.items():
        config["experiments"][name] |= difference
    write(folder, config)


DAMAGED = [
    (VERDICT, b"", "an empty file"),
    (VERDICT, b"{}", "no experiment, seed, passed"),
    (RUN, b'{"experiment": ', "no JSON"),
    (PARENT, b"", "an empty file"),
    (SCORE, b"[]", "a list"),
]


def test_a_damaged_record_is_named_by_whoever_reads_it(study: Path) -> None:
    for file, content, found in DAMAGED:
        path = study / file
        before = path.read_bytes()
        path.unlink()  # it is linked to the one that is kept
        path.write_bytes(content)
        run = snakemake(study, "-n")
        assert run.returncode != 0
        said = [run.stdout + run.stderr]
        said += [etrm(study, command)[1] for command in ("plan", *["summary"] * (file != PARENT))]
        for text in said:
            assert f"{file}: found {found}" in " ".join(text.split())
            assert "delete it and run its study again" in " ".join(text.split())
            assert "Traceback (most" not in text
        code, text = etrm(study, "doctor")
        assert code == 1
        assert f"rm -r {file} && snakemake --configfile {CONFIG} --cores 2" in text
        path.write_bytes(before)
    assert etrm(study, "doctor")[0] == 0


def test_a_record_that_is_removed_is_restored_or_made_anew(study: Path) -> None:
    """As the doctor says of damaged ones."""
    files = {study / file: (study / file).read_bytes() for file in (VERDICT, RUN, PARENT, SCORE)}
    for path in files:
        path.unlink()
    jobs_of(snakemake(study, "--cores", "2"))
    assert {path: path.read_bytes() for path in files} == files
    assert etrm(study, "doctor")[0] == 0


def test_a_full_run_starts_behind_a_verdict_on_todays_overfit_run_only(study: Path) -> None:
    command = ("run", "two", "full")
    changed(study, two={"halting": {"exploration_prob": 0.75}})
    code, text = etrm(study, *command)
    assert code == 1
    assert "halting.exploration_prob 0.25 → 0.75" in text
    assert "the full run does not start" in text
    changed(study, two={"gate": {"exact_accuracy": 1.0}})
    code, text = etrm(study, *command)
    assert code == 1
    assert "its overfit run did not pass: exact match 0.0% < 100%" in text
    changed(study)
    (study / ROOT / "runs/two/overfit/seed0/verdict.json").unlink()
    code, text = etrm(study, *command)
    assert code == 1
    assert "there is no results/tiny/runs/two/overfit/seed0/verdict.json: `etrm gate two`" in text
    # A verdict of another experiment in its place.
    source = json.loads((study / VERDICT).read_text(encoding="utf-8"))
    target = study / ROOT / "runs/two/overfit/seed0/verdict.json"
    target.write_text(json.dumps({**source, "experiment": "two"}), encoding="utf-8")
    code, text = etrm(study, *command)
    assert code == 1
    assert "is the verdict on an earlier overfit run" in text


def test_a_person_s_analysis_in_a_record_outlives_the_record(study: Path) -> None:
    """Snakemake removes what a job has made before; and a job that fails loses nothing, either."""
    path = study / ROOT / "records/one.md"
    path.write_text(path.read_text(encoding="utf-8") + "- train longer\n", encoding="utf-8")
    assert jobs_of(snakemake(study, "--cores", "1")) == [
        ("page", None, None),
        ("report", None, None),
    ]
    changed(study, one={"description": "Another question?"})
    jobs_of(snakemake(study, "--cores", "1"))
    text = path.read_text(encoding="utf-8")
    assert text.endswith("- train longer\n")
    assert "Another question?" in text
    assert "train longer" in (study / ROOT / "index.html").read_text(encoding="utf-8")


def test_another_template_or_caption_makes_only_what_shows_it(study: Path) -> None:
    for name, rules in (
        ("etrm/report/page/page.html.jinja", ["page"]),
        ("workflow/report/contexts.rst", ["page", "paper"]),
    ):
        path = study / name
        before = path.read_text(encoding="utf-8")
        path.write_text(f"{before}\n", encoding="utf-8")
        assert [rule for rule, _, _ in jobs_of(snakemake(study, "-n"))] == rules
        path.write_text(before, encoding="utf-8")
    assert jobs_of(snakemake(study, "-n")) == []


def test_a_copied_study_says_its_own_name(study: Path) -> None:
    """Of the copy Snakemake has no record; nothing else is made again."""
    shutil.copytree(study / ROOT, study / "results/moved", symlinks=True)
    config = copy.deepcopy(STUDY) | {"study": "moved"}
    write(study, config)
    told = jobs_of(snakemake(study, "-n"))
    assert {rule for rule, _, _ in told} == {"resolved_config", "page", "report"}
    assert planned_jobs(study) == told
    assert jobs_of(snakemake(study, "--cores", "1")) == told
    resolved = yaml.safe_load((study / "results/moved/config.yaml").read_text(encoding="utf-8"))
    assert resolved["study"] == "moved"
    assert jobs_of(snakemake(study, "-n")) == []
    # Why it is written is said in a line, without the whole study.
    write(study, config | {"tracking": {"wandb": "disabled", "project": "other"}})
    run = snakemake(study, "-n", "resolved_config")
    assert [rule for rule, _, _ in jobs_of(run)] == ["resolved_config"]
    assert max(map(len, run.stdout.splitlines())) < 300


def test_weights_of_another_run_are_not_evaluated(study: Path) -> None:
    weights = study / ROOT / "runs/two/full/seed0/model.safetensors"
    other = (study / ROOT / "runs/one/overfit/seed0/model.safetensors").read_bytes()
    assert other != weights.read_bytes()
    weights.unlink()  # it is linked to the one that is kept
    weights.write_bytes(other)
    shutil.rmtree(study / ROOT / "evaluation/two")
    run = snakemake(study, "--cores", "1")
    assert run.returncode != 0
    text = run.stdout + run.stderr
    assert f"{weights.relative_to(study)}: found SHA-256" in text
    assert not (study / ROOT / "evaluation/two/seed0/score.json").exists()
    code, text = etrm(study, "doctor", "--verify")
    assert code == 1
    assert f"rm -r {weights.relative_to(study)} &&" in text
    weights.unlink()
    jobs_of(snakemake(study, "--cores", "2"))
    assert json.loads((study / ROOT / "evaluation/two/seed0/score.json").read_text("utf-8"))


def test_first_weights_from_outside_count_by_content(study: Path) -> None:
    """A file of the same name, size and time may be another one."""
    outside = study / "outside"
    shutil.copytree(study / ROOT / "runs/strict/pretrain/seed0", outside)
    changed(study, two={"decoder": {"init": "outside/"}})
    jobs_of(snakemake(study, "--cores", "2"))
    assert jobs_of(snakemake(study, "-n")) == []
    (outside / "model.safetensors").touch()
    (outside / "run.json").touch()
    assert jobs_of(snakemake(study, "-n")) == []
    before = (outside / "run.json").stat()
    for name in ("model.safetensors", "run.json"):
        shutil.copyfile(study / ROOT / "runs/trm/pretrain/seed0" / name, outside / name)
        os.utime(outside / name, ns=(before.st_atime_ns, before.st_mtime_ns))
    told = jobs_of(snakemake(study, "-n"))
    assert {("train_overfit", "two", 0), ("train_full", "two", 0)} <= set(told)
    assert not [job for job in told if job[1] == "one" and job[0].startswith("train")]


def test_a_plan_tells_what_a_retrained_run_takes_along(study: Path) -> None:
    """Not: "finished before", of an evaluation whose run is made anew."""
    changed(study, strict={"train": {"lr": 0.01}})
    code, text = etrm(study, "plan", "--json")
    assert code == 0, text
    stages = json.loads(text)["stages"]
    of_two = {stage["stage"]: stage for stage in stages if stage["experiment"] == "two"}
    assert of_two["overfit"]["why"] == ["its parent strict is rerun"]
    assert of_two["evaluate"]["why"] == ["its run is rerun"]
    assert not any(stage["kept"] for stage in of_two.values())


def test_a_source_that_is_replaced_in_place_is_seen(study: Path) -> None:
    """As `unzip`, `tar` and `cp -p` do, which keep the times of files."""
    path = study / "tasks/held_out/held_out0.json"
    before = path.stat()
    content = json.loads(path.read_text(encoding="utf-8"))
    content["test"][0]["output"][0][0] ^= 1
    path.write_text(json.dumps(content), encoding="utf-8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    told = jobs_of(snakemake(study, "-n"))
    assert ("tasks", None, None) in told
    code, text = etrm(study, "plan", "--json")
    assert code == 0
    why = {job["rule"]: job["why"] for job in json.loads(text)["jobs"]}
    assert why["tasks"] == ["other content of the sources"]


def test_a_configuration_that_says_a_thing_twice_is_refused(study: Path) -> None:
    """Snakemake itself keeps the last of two experiments of one name, and says nothing."""
    path = study / CONFIG
    text = path.read_text(encoding="utf-8")
    path.write_text(text + "experiments: {one: {seeds: [5]}}\n", encoding="utf-8")
    run = snakemake(study, "-n")
    assert run.returncode != 0
    for text in (run.stdout + run.stderr, etrm(study, "plan")[1], etrm(study, "summary")[1]):
        assert CONFIG in text
        assert "experiments" in text
        assert "twice" in text
        assert "Traceback" not in text


def test_first_weights_that_are_not_there_are_named(study: Path) -> None:
    changed(study, two={"decoder": {"init": "data/none.pt"}})
    run = snakemake(study, "-n")
    assert run.returncode != 0
    expected = "experiments.two.decoder.init: found no file data/none.pt, expected a run folder"
    assert expected in " ".join((run.stdout + run.stderr).split())


@pytest.mark.parametrize("init", ["data/trm/step_518071", "data/trm", "data/trm/last.ckpt"])
def test_a_checkpoint_under_any_name_is_planned(study: Path, init: str) -> None:
    """By `snakemake -n` and `etrm plan`, which open no checkpoint, as by training."""
    name = "step_518071" if init == "data/trm" else Path(init).name
    (study / "data/trm").mkdir(parents=True)
    (study / "data/trm" / name).write_bytes(b"weights")
    changed(study, two={"decoder": {"init": init}})
    told = jobs_of(snakemake(study, "-n"))
    assert ("train_overfit", "two", 0) in told
    assert planned_jobs(study) == told
