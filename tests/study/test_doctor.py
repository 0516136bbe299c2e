"""`etrm doctor` on a small study: symptoms, and the commands that mend them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import planning
import pytest
import torch
import yaml
from planning import ETRM, FULL, STRICT, rewrite, write
from safetensors.torch import save_file

from etrm.cli import main
from etrm.config.load import read_study
from etrm.runtime.run_lock import this_process
from etrm.storage.files import file_digest
from etrm.storage.result_cache import RESULT_FILES, RUN_FILES, SCORE_FILES
from etrm.study.doctor.diagnose import Diagnosis, diagnose
from etrm.study.doctor.files import READERS
from etrm.study.doctor.processes import OTHER, UNWATCHED
from etrm.study.doctor.study import KINDS, Symptom
from etrm.study.layout import Layout, Run
from etrm.study.plan.entries import entries_of
from etrm.study.plan.jobs import Jobs
from etrm.study.stale import StudyStatus

CONFIG = "mine.yaml"
SNAKEMAKE = f"snakemake --configfile {CONFIG}"
AGAIN = f"{SNAKEMAKE} --cores 2"


class Made:
    """A study whose runs and evaluation are all finished, known to Snakemake, and not cached."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configure()
        planning.made(planning.with_tables(self.layout), cached=False)
        for path in (self.record(STRICT), self.record(ETRM), self.record(FULL), self.score):
            write(self.mark("metadata", path), "{}")
        write(self.layout.root / "records/etrm.md", "# etrm")
        write(self.layout.root / "logs/figures.log", "done")

    def configure(self, experiment: str = "etrm", **blocks: Any) -> None:
        """Change blocks of one experiment in the study file."""
        document = planning.document("results")
        document["experiments"][experiment] |= blocks
        write(self.folder / CONFIG, yaml.safe_dump(document, sort_keys=False))
        self.layout = Layout(read_study(CONFIG))

    @property
    def state(self) -> Path:
        return self.layout.state

    @property
    def score(self) -> Path:
        return self.layout.score(FULL)

    def record(self, run: Run) -> Path:
        return self.layout.folder(run) / "run.json"

    def key(self, run: Run) -> str:
        key = StudyStatus(self.layout).key(run)
        assert key is not None
        return key

    def mark(self, folder: str, output: Path) -> Path:
        """Where Snakemake has something on an output: its path in base 64, in parts of 254."""
        name = urlsafe_b64encode(str(output).encode()).decode()
        parts = [name[i : i + 254] for i in range(0, len(name), 254)]
        parts = [f"@{part}" for part in parts[:-1]] + parts[-1:]
        return self.folder.joinpath(".snakemake", folder, *parts)

    def save(self, key: str, step: int = 20) -> Path:
        return write(self.state / key[:16] / f"step{step:010d}.state", "x" * 2**20).parent

    def unfinish(self, run: Run) -> None:
        for path in self.layout.run_files(run):
            Path(path).unlink()

    def lease(self, run: str, silent: float = 0.0, **record: Any) -> Path:
        path = self.state / "leases" / run / "lock"
        content = {**this_process(), "token": "t", "key": "k", "began": "today", **record}
        write(path.with_name("holder.json"), json.dumps(content))
        write(path, "filelock/2\npid=1\nhost=x\nmode=lease\ntoken=t\nduration=60.0\n")
        os.utime(path, (time.time() - silent,) * 2)
        return path.parent


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Without SLURM, whatever this machine has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return Made(tmp_path)


def examine(verify: bool = False) -> Diagnosis:
    """The diagnosis, which changes nothing."""
    before = snapshot()
    diagnosis = diagnose(CONFIG, verify)
    assert snapshot() == before
    return diagnosis


def snapshot() -> dict[Path, Any]:
    paths = sorted(Path.cwd().rglob("*"))
    return {p: (p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in paths}


def only(diagnosis: Diagnosis, kind: str) -> Symptom:
    assert [symptom.kind for symptom in diagnosis.symptoms] == [kind], diagnosis.text()
    return diagnosis.symptoms[0]


def test_there_is_nothing_to_mend_in_a_finished_study(study: Made) -> None:
    diagnosis = examine(verify=True)
    assert (diagnosis.symptoms, diagnosis.notes, diagnosis.code) == ((), (), 0)
    assert diagnosis.text() == "Study s: nothing to mend"


# --- Snakemake ---


@pytest.fixture
def run_as(study: Made) -> Iterator[Callable[..., int]]:
    """Start a process with the command line of a Snakemake, in the folder of the study."""
    script = study.folder / "bin/snakemake"
    write(script, "import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, folder: Path = study.folder) -> int:
        command = [sys.executable, str(script), *arguments]
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process.pid

    yield start
    for process in started:
        process.kill()
        process.communicate()


def lock(study: Made, root: str = "results/s") -> None:
    path = study.folder / ".snakemake/locks/0.output.lock"
    write(path, f"{root}/runs/etrm/full/seed0/run.json\n{root}/report.html\n")
    os.utime(path, (time.time() - 3 * 3600,) * 2)


def test_a_lock_that_was_left_is_to_be_removed(study: Made) -> None:
    lock(study)
    symptom = only(examine(), "locked")
    assert symptom.what.startswith("locked for 3 h")
    assert symptom.mend == f"{SNAKEMAKE} --unlock"
    lock(study, "results/other")
    assert not examine().symptoms, "it is another study's"


@pytest.mark.parametrize("form", ["--configfile mine.yaml", "--configfile=mine.yaml -c 2"])
def test_a_lock_of_a_snakemake_that_runs_is_in_order(
    form: str, study: Made, run_as: Callable[..., int]
) -> None:
    lock(study)
    write(study.mark("incomplete", study.record(FULL)), "")
    study.lease("etrm/full/seed0", key=study.key(FULL))
    pid = run_as("--cores", "2", *form.split())
    diagnosis = examine()
    assert not diagnosis.symptoms
    driver, training = (note.what for note in diagnosis.notes)
    assert f"process {pid}" in driver
    assert training.endswith("since today")


@pytest.mark.parametrize(
    ("arguments", "elsewhere"),
    [
        ("-np --configfile mine.yaml", False),
        ("--configfile other.yaml", False),
        ("--mode remote --configfile mine.yaml", False),
        ("", False),
        ("--configfile mine.yaml", True),
    ],
)
def test_other_processes_of_snakemake_hold_no_lock(
    arguments: str,
    elsewhere: bool,
    study: Made,
    run_as: Callable[..., int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    lock(study)
    folder = tmp_path_factory.mktemp("elsewhere") if elsewhere else study.folder
    run_as(*arguments.split(), folder=folder)
    assert only(examine(), "locked").mend


def test_outputs_that_were_being_made_are_incomplete(study: Made) -> None:
    folder = study.layout.folder(FULL)
    for name in RUN_FILES[:2]:
        write(study.mark("incomplete", folder / name), "123")
    (folder / RUN_FILES[1]).rename(folder / "elsewhere")
    write(study.mark("incomplete", study.layout.root / "records/nothing.md"), "")
    write(study.mark("incomplete", Path("results/other/report.html")), "")
    write(study.folder / ".snakemake/incomplete/migration_underway", "")
    marked, partial = examine().symptoms
    assert marked.kind == partial.kind == "incomplete"
    assert marked.names == (str(folder / RUN_FILES[0]),)
    assert partial.names == (str(folder),)
    assert partial.what.endswith(RUN_FILES[1])
    assert marked.mend == partial.mend == AGAIN


# --- SLURM and leases ---


def squeue(study: Made, *lines: str, then: str = "") -> None:
    """A stand-in with the answers of the real one, if it gets the options of that."""
    wanted = "--me --noheader --format=%i|%T|%r|%Z|%k|%M|%j"
    answer = "\n".join(lines)
    text = f'#!/bin/sh\n[ "$*" = "{wanted}" ] || exit 2\n{then}\ncat <<"END"\n{answer}\nEND\n'
    write(study.folder / "bin/squeue", text).chmod(0o755)
    for name in ("cat", "sleep"):
        if not (study.folder / "bin" / name).exists():
            (study.folder / "bin" / name).symlink_to(f"/bin/{name}")


def job(
    study: Made,
    number: int,
    name: str = "abc",
    folder: Path | None = None,
    state: str = "RUNNING|None",
) -> str:
    comment = "rule_train_full_wildcards_etrm_0"
    return f"{number}|{state}|{folder or study.folder}|{comment}|1:02:03|{name}"


def test_jobs_that_will_never_start_are_found(study: Made) -> None:
    waiting = [job(study, 3, state="PENDING|Priority"), job(study, 4, state="PENDING|Resources")]
    squeue(study, *waiting, job(study, 5, state="PENDING|PartitionTimeLimit"))
    symptom, _ = examine().symptoms  # and that nobody watches over them
    assert symptom.kind == "stuck jobs"
    assert "5 (train_full etrm_0, pending, 1:02:03)" in symptom.what
    assert "slurm/site.yaml" in symptom.what
    assert symptom.mend == "scancel 5"


def test_slurm_jobs_that_nobody_watches_are_named(study: Made) -> None:
    foreign = f"8|RUNNING|None|{study.folder}|(null)|0:01|sh"
    others = [job(study, 9, folder=Path("/elsewhere")), foreign]
    squeue(study, job(study, 12), *others, job(study, 13))
    symptom = only(examine(), "orphaned jobs")
    assert symptom.what.startswith("2 SLURM jobs ")
    assert "12 (train_full etrm_0, running, 1:02:03)" in symptom.what
    assert symptom.mend == f"{AGAIN}    # or: scancel 12 13"
    assert symptom.names == ("12", "13")


def test_slurm_jobs_of_an_earlier_snakemake_are_told_from_those_of_the_one_that_runs(
    study: Made, run_as: Callable[..., int]
) -> None:
    run_as("--configfile", CONFIG)
    squeue(study, job(study, 12, "earlier"), job(study, 13, "now"))
    assert not examine().symptoms, "its log does not say which jobs are its"
    log = study.folder / ".snakemake/log/2026.snakemake.log"
    write(log, "host: a\nSLURM run ID: now\nBuilding\n")
    assert only(examine(), "orphaned jobs").names == ("12",)


@pytest.mark.parametrize(
    ("then", "why"),
    [("sleep 30", "timed out"), ("echo no controller >&2; exit 1", "no controller")],
)
def test_a_slurm_that_gives_no_answer_is_noted(
    study: Made, monkeypatch: pytest.MonkeyPatch, then: str, why: str
) -> None:
    monkeypatch.setattr("etrm.launch.slurm.SECONDS", 0.2)
    squeue(study, then=then)
    diagnosis = examine()
    assert not diagnosis.symptoms
    assert "squeue" in diagnosis.notes[0].what
    assert why in diagnosis.notes[0].what


def test_leases_of_processes_that_live_are_noted(study: Made) -> None:
    squeue(study, job(study, 12))
    away = {"host": "node7", "place": "there", "pid": 5}
    study.lease("etrm/overfit/seed0", silent=500)  # of this test, which runs
    study.lease("etrm/full/seed0", silent=20, **away)
    study.lease("strict/pretrain/seed0", silent=500, slurm_job="12", **away)
    diagnosis = examine()
    only(diagnosis, "orphaned jobs")
    facts = (
        ("etrm/full/seed0 ", "process 5 on node7 "),
        ("etrm/overfit/seed0 ", f"process {os.getpid()} on {this_process()['host']} "),
        ("strict/pretrain/seed0 ", "process 5 on node7 (SLURM job 12) "),
    )
    for note, (run, process) in zip(diagnosis.notes, facts, strict=True):
        assert note.what.startswith(run)
        assert process in note.what
        assert note.what.endswith(f"since today{OTHER}{UNWATCHED}")


def test_leases_of_processes_that_have_ended_are_found(study: Made) -> None:
    study.unfinish(FULL)
    ended = study.lease("etrm/overfit/seed0", start=1)
    study.lease("etrm/full/seed0", silent=600, host="node7", place="there", pid=5)
    silent, finished = examine().symptoms
    assert silent.kind == finished.kind == "leases"
    assert "process 5 on node7 still has etrm/full/seed0" in silent.what
    assert "10 min" in silent.what
    assert silent.mend == AGAIN
    assert finished.what.endswith("still has etrm/overfit/seed0, and has ended")
    assert finished.mend == f"rm -r {ended}", "its run is finished"


# --- results ---


def test_an_interrupted_run_says_where_it_resumes(study: Made) -> None:
    study.unfinish(ETRM)
    study.save(study.key(ETRM), 6)
    study.save(study.key(ETRM), 12)
    symptom = only(examine(), "incomplete")
    assert symptom.what.startswith("etrm/overfit/seed0 was interrupted at step 12 of 100")
    assert symptom.mend == AGAIN
    study.lease("etrm/overfit/seed0", key=study.key(ETRM))
    diagnosis = examine()
    assert not diagnosis.symptoms, "it is trained now"
    assert diagnosis.notes[0].what.endswith(f"since today{UNWATCHED}")


def test_a_state_of_a_finished_run_is_to_be_removed(study: Made) -> None:
    folder = study.save(study.key(ETRM))
    symptom = only(examine(), "orphaned files")
    assert symptom.what.startswith(f"{folder} (step 20, 1.0 MiB, written ")
    assert "is of etrm/overfit/seed0, which is finished" in symptom.what
    assert symptom.mend == f"rm -r {folder}"


def test_a_state_of_no_run_is_to_be_removed(study: Made) -> None:
    folder = study.save("0123456789abcdef")
    symptom = only(examine(), "orphaned files")
    assert "is of no run" in symptom.what
    assert symptom.mend == f"rm -r {folder}"
    study.lease("etrm/full/seed0", key="0123456789abcdef0123")
    assert not examine().symptoms, "a process trains it now"


def test_a_state_that_may_be_of_a_run_is_not_to_be_removed(study: Made) -> None:
    """A run whose parent is not trained yet has no key, so that any state may be its own."""
    study.save("0123456789abcdef")
    study.unfinish(STRICT)
    symptom = only(examine(), "orphaned files")
    assert "or of etrm/overfit/seed0, etrm/full/seed0" in symptom.what
    assert symptom.mend == AGAIN
    planning.trained(study.layout, STRICT, cached=False)
    study.configure("strict", halting={"max_steps": 2})
    stale, again = examine().symptoms
    assert (stale.kind, again.names, again.mend) == ("stale", symptom.names, AGAIN)


def test_results_of_experiments_that_are_gone_are_found(study: Made) -> None:
    root = study.layout.root
    gone = ["runs/old/full/seed0", "evaluation/old/seed0", "state/finished/old/full/seed0/key"]
    parts = ["runs/etrm/full/seed7", "state/finished/etrm/evaluation/seed7"]
    for place in (*gone, "logs/old", *parts):
        write(root / place / "file", "x" * 2**19)
    write(root / "state/finished/etrm/evaluation/seed0/key/file", "")
    write(root / "records/old.md", "")
    found = examine().symptoms
    assert {symptom.kind for symptom in found} == {"orphaned files"}
    assert [symptom.what.partition(",")[0] for symptom in found] == [
        "experiment old is not in mine.yaml",
        "etrm/full/seed7 is not in mine.yaml",
        "etrm/evaluation/seed7 is not in mine.yaml",
    ]
    assert "(2.0 MiB, written " in found[0].what
    places = ("runs/old", "evaluation/old", "state/finished/old", "logs/old", "records/old.md")
    assert found[0].mend == "rm -r " + " ".join(f"{root}/{place}" for place in places)
    assert found[1].mend == f"rm -r {root}/runs/etrm/full/seed7"


def test_temporary_files_are_to_be_removed_once_they_are_old(study: Made) -> None:
    old = write(study.layout.folder(FULL) / ".run.json.12.tmp", "half")
    cached = write(study.state / "finished/etrm/full/seed0/.0123.tmp/run.json", "half")
    write(study.layout.root / "data/.tasks.parquet.13.tmp", "half")
    for path in (old, cached, cached.parent):
        os.utime(path, (time.time() - 3600,) * 2)
    symptom = only(examine(), "orphaned files")
    assert symptom.what.startswith("2 files")
    assert symptom.mend == f"rm -r {old} {cached.parent}"


@pytest.mark.parametrize("files", [RUN_FILES, SCORE_FILES])
def test_folders_with_some_of_their_files_are_incomplete(
    files: tuple[str, ...], study: Made
) -> None:
    of_run = files is RUN_FILES
    paths = study.layout.run_files(FULL) if of_run else study.layout.score_files(FULL)
    Path(paths[0]).unlink()
    symptom = only(examine(), "incomplete")
    assert symptom.names == (str(Path(paths[0]).parent),)
    assert symptom.what.endswith(f"missing: {files[0]}")
    assert symptom.mend == AGAIN
    for path in paths[1:]:
        Path(path).unlink()
    assert not examine().symptoms, "nothing of it: it is not done yet"


def test_damaged_weights_are_found_where_they_are_read(study: Made) -> None:
    weights = study.layout.folder(FULL) / "model.safetensors"
    save_file({"raw.w": torch.ones(1)}, weights)
    assert not examine().symptoms
    symptom = only(examine(verify=True), "damaged")
    assert symptom.what.startswith(f"{weights}: found SHA-256 {file_digest(weights)}")
    assert symptom.mend == f"rm -r {weights} && {AGAIN}"


def test_every_file_of_a_result_has_a_reader() -> None:
    names = {name for files in RESULT_FILES.values() for name in files}
    assert {*names, *RUN_FILES} <= READERS.keys()


def test_every_file_that_cannot_be_read_is_found(study: Made) -> None:
    """Empty, cut off, of another kind, or without a required key."""
    layout, overfit = study.layout, study.layout.folder(ETRM)
    scores = list(map(Path, layout.score_files(FULL)))
    wrong = {
        overfit / "verdict.json": b"",
        overfit / "run.json": study.record(ETRM).read_bytes()[:-9],
        overfit / "metrics.parquet": b"PAR1",
        overfit / "model.safetensors": b"",
        study.record(FULL): b"{}",
        scores[0]: scores[0].read_bytes()[:-1],
        scores[1]: b"[]",
        scores[2]: b"\xff",
        layout.tasks: b"",
        layout.augmentations: layout.augmentations.read_bytes()[:-4],
    }
    for path, content in wrong.items():
        path.write_bytes(content)
    symptoms = [symptom for symptom in examine().symptoms if symptom.kind == "damaged"]
    assert {symptom.names[0] for symptom in symptoms} == set(map(str, wrong))
    for symptom in symptoms:
        assert symptom.what.startswith(f"{symptom.names[0]}: found ")
        assert symptom.mend == f"rm -r {symptom.names[0]} && {AGAIN}"


@pytest.mark.parametrize("known", [True, False])
def test_results_of_another_configuration_are_stale(known: bool, study: Made) -> None:
    """Where Snakemake has no record of them, it would keep them for ever."""
    targets = [study.record(run) for run in (ETRM, FULL)]
    if not known:
        for target in targets:
            study.mark("metadata", target).unlink()
    study.configure(halting={"max_steps": 2})
    symptom = only(examine(), "stale")
    assert "2 stale runs (halting.max_steps 16 → 2)" in symptom.what
    assert ("Snakemake has no record" in symptom.what) != known
    assert symptom.names == ("etrm/overfit/seed0", "etrm/full/seed0")
    plan = entries_of(study.layout, Jobs(()), StudyStatus(study.layout))
    stale = [str(e.run) for e in plan if e.state == "stale" and e.stage != "gate"]
    assert tuple(stale) == symptom.names, "the plan says the same"
    forced = f"{AGAIN} --forcerun {targets[0]} {targets[1]}"
    assert symptom.mend == (AGAIN if known else forced)
    study.lease("etrm/overfit/seed0")
    assert only(examine(), "stale").names == ("etrm/full/seed0",), "it is trained now"


def test_code_and_first_weights_and_evaluations_can_be_stale(study: Made) -> None:
    path = study.record(STRICT)
    text = path.read_text()
    for changes, words in (
        ({"code_digest": "earlier"}, "1 stale run (code)"),
        ({"weights_sha256": "others"}, "2 stale runs (other first weights)"),
    ):
        rewrite(path, "code", **changes)
        assert words in only(examine(), "stale").what
        write(path, text)
    study.configure(evaluation={"variants": 3})
    symptom = only(examine(), "stale")
    assert "1 stale evaluation (evaluation.variants 1000 → 3)" in symptom.what
    assert symptom.names == ("etrm/full/seed0",)


def test_a_full_run_that_a_gate_stops_is_not_stale(study: Made) -> None:
    planning.judged(study.layout, 0.1)
    rewrite(study.record(FULL), "code", code_digest="earlier")
    assert not examine().symptoms


# --- the command ---


def test_the_command_lists_the_most_urgent_first(
    study: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--configfile", CONFIG]) == 0
    assert capsys.readouterr().out == "Study s: nothing to mend\n"
    study.save("0123456789abcdef")
    squeue(study, job(study, 12), job(study, 13, state="PENDING|PartitionTimeLimit"))
    lock(study)
    study.lease("etrm/full/seed0", start=1)
    Path(study.layout.run_files(ETRM)[0]).unlink()
    Path(study.layout.run_files(FULL)[0]).write_text("no weights", encoding="utf-8")
    study.configure("strict", halting={"max_steps": 2})
    assert main(["doctor", "--configfile", CONFIG]) == 1
    lines = capsys.readouterr().out.splitlines()
    heads = [line for line in lines if line and not line.startswith(" ")]
    assert heads == [*(kind.capitalize() for kind in KINDS), heads[-1]]
    assert heads[-1].startswith("On a cluster,")
    for line, command in pairwise(lines):
        if line.startswith("  ") and not line.startswith("   "):
            assert command.startswith("      "), "every symptom has its command below it"


def test_as_json_it_has_all_names(study: Made, capsys: pytest.CaptureFixture[str]) -> None:
    lock(study)
    study.lease("etrm/full/seed0", key=study.key(FULL))
    assert main(["doctor", "--configfile", CONFIG, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"study", "findings", "notes"}
    (finding,), (note,) = document["findings"], document["notes"]
    assert set(finding) == set(note) == {"kind", "what", "mend", "names"}
    assert finding["kind"] == "locked"
    assert finding["names"] == [".snakemake/locks/0.output.lock"]
    assert (note["kind"], note["mend"], note["names"]) == ("running", None, ["etrm/full/seed0"])
    assert main(["doctor", "--configfile", "none.yaml"]) == 1
    assert "none.yaml" in capsys.readouterr().err


def test_it_needs_no_tool_of_the_pipeline(study: Made) -> None:
    code = (
        "import sys; from etrm.cli import main; main(['doctor', '--configfile', 'mine.yaml']);"
        " print(*{'snakemake', 'pandas', 'wandb'} & set(sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "Study s: nothing to mend\n\n"
