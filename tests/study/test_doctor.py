"""`etrm doctor` on a small study: what can be wrong with one, what is said of it, what mends it."""

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

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import save_file
from tiny import MODEL, small_context

from etrm.arc.augment import draw_variants
from etrm.arc.task import Pair, Task
from etrm.cli import main
from etrm.config.load import evaluation_settings, plain, read_study
from etrm.data.tables import TaskRecord, write_augmentations, write_tasks
from etrm.runtime.run_lock import this_process
from etrm.storage.digests import code_digest, train_code
from etrm.storage.files import file_digest
from etrm.storage.finished import RUN_FILES, SCORE_FILES
from etrm.study.doctor.diagnose import Diagnosis, diagnose
from etrm.study.doctor.finding import KINDS, Finding
from etrm.study.doctor.jobs import OTHER, UNWATCHED
from etrm.study.layout import Pipeline, Run
from etrm.study.status import StudyStatus

GRID = np.zeros((2, 2), np.uint8)
CONFIG = "mine.yaml"
SNAKEMAKE = f"snakemake --configfile {CONFIG}"
AGAIN = f"{SNAKEMAKE} --cores 2"
PARENT, RUN = Run("trm_strict", "pretrain", 0), Run("etrm", "full", 0)
OVERFIT = Run("etrm", "overfit", 0)
DOCUMENT = {
    "study": "tiny",
    "defaults": {"model": MODEL, "train": {"steps": 36}, "context": {"source": "embedding"}},
    "experiments": {
        "trm_strict": {"split": "strict"},
        "etrm": {"context": small_context("standard"), "decoder": {"init": "trm_strict"}},
    },
    "tracking": {"wandb": "disabled"},
}


class Made:
    """A study whose runs and evaluation are all finished, as files; nothing was trained."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configure(DOCUMENT)
        task = Task("t", (Pair(GRID, GRID),), (Pair(GRID, GRID),))
        write_tasks(self.pipeline.tasks, [TaskRecord(task, "ours", "evaluation")])
        write_augmentations(self.pipeline.augmentations, {"t": draw_variants(task, 1, 0)})
        self.pipeline.state.mkdir(parents=True)
        for run in self.pipeline.runs():
            self.finish(run)
        for run in self.pipeline.scored():
            self.evaluate(run)
        write(self.pipeline.root / "records/etrm.md", "# etrm")
        write(self.pipeline.root / "logs/figures.log", "done")

    def configure(self, document: dict[str, Any]) -> None:
        (self.folder / CONFIG).write_text(
            yaml.safe_dump(document, sort_keys=False), encoding="utf-8"
        )
        self.pipeline = Pipeline(read_study(CONFIG))

    @property
    def state(self) -> Path:
        return self.pipeline.state

    def key(self, run: Run) -> str:
        key = StudyStatus(self.pipeline).key(run)
        assert key is not None
        return key

    def finish(self, run: Run) -> None:
        folder = self.pipeline.folder(run)
        for name in RUN_FILES:
            write_valid(folder / name, str(run))
        config = self.pipeline.config_of(run)
        record = {
            **{"experiment": run.experiment, "stage": run.stage, "seed": run.seed},
            **{"kind": "trm", "split": "strict", "steps_done": 36, "device": "cpu"},
            "config": plain(config),
            "code_digest": code_digest(*train_code(config.context.source)),
            "weights_sha256": file_digest(folder / "model.safetensors"),
            "key": self.key(run),
        }
        parent = self.pipeline.parent(run)
        if parent is not None:
            first = json.loads((self.pipeline.folder(parent) / "run.json").read_text())
            record["init"] = {"sha256": first["weights_sha256"]}
        write(folder / "run.json", json.dumps(record))
        self.record(folder / "run.json")

    def evaluate(self, run: Run) -> None:
        for path in map(Path, self.pipeline.score_files(run)):
            write_valid(path, str(run))
            self.record(path)
        evaluation = self.pipeline.study.experiments[run.experiment].evaluation
        score = {
            **{"experiment": run.experiment, "stage": run.stage, "seed": run.seed},
            **{"held_out": {}, "pass": {}, "metrics": {}, "partial": False, "predictions": 1},
            **{"evaluation": evaluation_settings(evaluation), "run_key": self.key(run)},
            "device": "cpu",
        }
        write(path.with_name("score.json"), json.dumps(score))

    def record(self, output: Path) -> None:
        """Snakemake's own, of how an output was made."""
        write(self.mark("metadata", output), "{}")

    def mark(self, folder: str, output: Path) -> Path:
        """Where Snakemake has something on an output: its path in base 64, in parts of 254."""
        name = urlsafe_b64encode(str(output).encode()).decode()
        parts = [name[i : i + 254] for i in range(0, len(name), 254)]
        parts = [f"@{part}" for part in parts[:-1]] + parts[-1:]
        return self.folder.joinpath(".snakemake", folder, *parts)

    def save(self, key: str, step: int = 20) -> Path:
        path = self.state / key[:16] / f"step{step:010d}.state"
        write(path, "x" * 2**20)
        return path.parent

    def lease(self, run: str, silent: float = 0.0, **record: Any) -> Path:
        path = self.state / "leases" / run / "lock"
        content = {**this_process(), "token": "t", "key": "k", "began": "today", **record}
        write(path.with_name("holder.json"), json.dumps(content))
        write(path, "filelock/2\npid=1\nhost=x\nmode=lease\ntoken=t\nduration=60.0\n")
        os.utime(path, (time.time() - silent,) * 2)
        return path.parent


def write_valid(path: Path, content: str) -> None:
    """A file that can be read, of any content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({"raw.w": torch.zeros(1)}, path, {"of": content})
    elif path.suffix == ".parquet":
        columns = ("step", "task", "query", "variant", "height", "width", "grid", "q_halt")
        table = pa.table({name: [0] for name in columns})
        pq.write_table(table.replace_schema_metadata({"of": content}), path)
    else:
        path.write_text(json.dumps({"of": content}), encoding="utf-8")


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Without SLURM, whatever this machine has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return Made(tmp_path)


def examine(verify: bool = False) -> Diagnosis:
    """Nothing is changed by being looked at."""
    before = {p: (p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in files()}
    diagnosis = diagnose(CONFIG, verify)
    assert {p: (p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in files()} == before
    return diagnosis


def files() -> list[Path]:
    return sorted(Path.cwd().rglob("*"))


def only(diagnosis: Diagnosis, kind: str) -> Finding:
    assert [finding.kind for finding in diagnosis.findings] == [kind], diagnosis.text()
    return diagnosis.findings[0]


def test_there_is_nothing_to_mend_in_a_finished_study(study: Made) -> None:
    diagnosis = examine(verify=True)
    assert (diagnosis.findings, diagnosis.notes, diagnosis.code) == ((), (), 0)
    assert diagnosis.text() == "Study tiny: nothing to mend"


# --- Snakemake ---


@pytest.fixture
def run_as(study: Made) -> Iterator[Callable[..., int]]:
    """Starts a process with the command line of a Snakemake, in the folder of the study."""
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


def lock(study: Made, root: str = "results/tiny") -> None:
    path = study.folder / ".snakemake/locks/0.output.lock"
    write(path, f"{root}/runs/etrm/full/seed0/run.json\n{root}/report.html\n")
    os.utime(path, (time.time() - 3 * 3600,) * 2)


def test_a_lock_that_was_left_is_to_be_removed(study: Made) -> None:
    lock(study)
    finding = only(examine(), "locked")
    assert finding.what.startswith("locked for 3 h by a Snakemake that does not run on ")
    assert "one on another machine cannot be seen from here" in finding.what
    assert finding.mend == f"{SNAKEMAKE} --unlock"
    lock(study, "results/other")
    assert not examine().findings, "it is another study's"


@pytest.mark.parametrize("form", ["--configfile mine.yaml", "--configfile=mine.yaml -c 2"])
def test_a_lock_of_a_snakemake_that_runs_is_in_order(
    form: str, study: Made, run_as: Callable[..., int]
) -> None:
    lock(study)
    write(study.mark("incomplete", study.pipeline.folder(RUN) / "run.json"), "")
    study.lease("etrm/full/seed0", key=study.key(RUN))
    pid = run_as("--cores", "2", *form.split())
    diagnosis = examine()
    assert not diagnosis.findings
    driver, training = (note.what for note in diagnosis.notes)
    assert driver == f"Snakemake runs the study (process {pid})"
    assert training.endswith("since today")


@pytest.mark.parametrize(
    "arguments",
    [
        "-np --configfile mine.yaml",
        "--configfile other.yaml",
        "--mode remote --configfile mine.yaml",
        "",
    ],
)
def test_other_processes_of_snakemake_hold_no_lock(
    arguments: str, study: Made, run_as: Callable[..., int]
) -> None:
    lock(study)
    run_as(*arguments.split())
    only(examine(), "locked")


def test_a_snakemake_in_another_folder_holds_no_lock(
    study: Made, run_as: Callable[..., int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    lock(study)
    run_as("--configfile", CONFIG, folder=tmp_path_factory.mktemp("elsewhere"))
    only(examine(), "locked")


def test_outputs_that_were_being_made_are_incomplete(study: Made) -> None:
    folder = study.pipeline.folder(RUN)
    for name in RUN_FILES[:2]:
        write(study.mark("incomplete", folder / name), "123")
    (folder / RUN_FILES[1]).rename(folder / "elsewhere")
    write(study.mark("incomplete", study.pipeline.root / "records/nothing.md"), "")
    write(study.mark("incomplete", Path("results/other/report.html")), "")
    write(study.folder / ".snakemake/incomplete/migration_underway", "")
    diagnosis = examine()
    assert [(f.kind, f.what) for f in diagnosis.findings] == [
        (
            "incomplete",
            f"{folder} was being made when Snakemake ended: {RUN_FILES[0]} may be incomplete",
        ),
        ("incomplete", f"{folder} has only some of its files, missing: {RUN_FILES[1]}"),
    ]
    assert {finding.mend for finding in diagnosis.findings} == {AGAIN}


# --- SLURM and leases ---


def squeue(study: Made, *lines: str, then: str = "") -> None:
    """A stand-in that answers what the real one would, if it is asked as that is."""
    path = study.folder / "bin/squeue"
    wanted = "--me --noheader --format=%i|%T|%r|%Z|%k|%M|%j"
    answer = "\n".join(lines)
    write(path, f'#!/bin/sh\n[ "$*" = "{wanted}" ] || exit 2\n{then}\ncat <<"END"\n{answer}\nEND\n')
    path.chmod(0o755)
    cat = study.folder / "bin/cat"
    if not cat.exists():
        for name in ("cat", "sleep"):
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
    finding, _ = examine().findings  # and that nobody watches over them
    assert finding.kind == "stuck jobs"
    assert "5 (train_full etrm_0, pending, 1:02:03) will never start" in finding.what
    assert "slurm/site.yaml" in finding.what
    assert finding.mend == "scancel 5"


def test_slurm_jobs_that_nobody_watches_are_named(study: Made) -> None:
    others = [
        job(study, 9, folder=Path("/elsewhere")),
        f"8|RUNNING|None|{study.folder}|(null)|0:01|sh",
    ]
    squeue(study, job(study, 12), *others, job(study, 13))
    finding = only(examine(), "orphaned jobs")
    assert finding.what.startswith("2 SLURM jobs run that no Snakemake on this machine watches:")
    assert "12 (train_full etrm_0, running, 1:02:03)" in finding.what
    assert finding.mend == f"{AGAIN}    # or: scancel 12 13"
    assert finding.names == ("12", "13")


def test_slurm_jobs_of_an_earlier_snakemake_are_told_from_those_of_the_one_that_runs(
    study: Made, run_as: Callable[..., int]
) -> None:
    run_as("--configfile", CONFIG)
    squeue(study, job(study, 12, "earlier"), job(study, 13, "now"))
    assert not examine().findings, "its log does not say which jobs are its"
    log = study.folder / ".snakemake/log/2026.snakemake.log"
    write(log, "host: a\nSLURM run ID: now\nBuilding\n")
    assert only(examine(), "orphaned jobs").names == ("12",)


def test_a_slurm_that_gives_no_answer_is_not_waited_for(
    study: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etrm.study.doctor.jobs.SQUEUE_SECONDS", 0.2)
    squeue(study, then="sleep 30")
    began = time.monotonic()
    diagnosis = examine()
    assert time.monotonic() - began < 10
    squeue(study, then="echo no controller >&2; exit 1")
    for found, why in ((diagnosis, "timed out"), (examine(), "no controller")):
        assert not found.findings
        assert found.notes[0].what.startswith("SLURM jobs were not looked at: squeue gave no")
        assert why in found.notes[0].what


def test_leases_of_processes_that_live_are_noted(study: Made) -> None:
    squeue(study, job(study, 12))
    away = {"host": "node7", "place": "there", "pid": 5}
    study.lease("etrm/overfit/seed0", silent=500)  # of this test, which runs
    study.lease("etrm/full/seed0", silent=20, **away)
    study.lease("trm_strict/pretrain/seed0", silent=500, slurm_job="12", **away)
    diagnosis = examine()
    only(diagnosis, "orphaned jobs")
    other = OTHER + UNWATCHED
    assert [note.what for note in diagnosis.notes] == [
        f"etrm/full/seed0 is trained by process 5 on node7 since today{other}",
        f"etrm/overfit/seed0 is trained by process {os.getpid()} on {this_process()['host']} since"
        f" today{other}",
        "trm_strict/pretrain/seed0 is trained by process 5 on node7 (SLURM job 12) since"
        f" today{other}",
    ]


def test_leases_of_processes_that_have_ended_are_found(study: Made) -> None:
    (study.pipeline.folder(RUN) / "run.json").unlink()
    (study.pipeline.folder(RUN) / "metrics.parquet").unlink()
    (study.pipeline.folder(RUN) / "model.safetensors").unlink()
    ended = study.lease("etrm/overfit/seed0", start=1)
    study.lease("etrm/full/seed0", silent=600, host="node7", place="there", pid=5)
    silent, finished = examine().findings
    assert silent.kind == finished.kind == "leases"
    assert silent.what == (
        "process 5 on node7 still has etrm/full/seed0, and has given no heartbeat for 10 min, by"
        " the clock of this machine"
    )
    assert silent.mend == AGAIN
    assert finished.what.endswith("still has etrm/overfit/seed0, and has ended")
    assert finished.mend == f"rm -r {ended}", "its run is finished"


# --- results ---


def unfinish(study: Made, run: Run) -> None:
    for path in study.pipeline.run_files(run):
        Path(path).unlink()


def test_an_interrupted_run_says_from_where_it_goes_on(study: Made) -> None:
    unfinish(study, OVERFIT)
    study.save(study.key(OVERFIT), 6)
    study.save(study.key(OVERFIT), 12)
    finding = only(examine(), "incomplete")
    assert finding.what == (
        "etrm/overfit/seed0 was interrupted at step 12 of 36, from which it goes on"
    )
    assert finding.mend == AGAIN
    study.lease("etrm/overfit/seed0", key=study.key(OVERFIT))
    diagnosis = examine()
    assert not diagnosis.findings, "it is trained now"
    assert diagnosis.notes[0].what.endswith(f"since today{UNWATCHED}")


def test_a_state_of_a_finished_run_is_left(study: Made) -> None:
    folder = study.save(study.key(OVERFIT))
    finding = only(examine(), "orphaned files")
    expected = f"{folder} (step 20, 1.0 MiB, written 0 s ago) is of etrm/overfit/seed0, which is"
    assert finding.what.startswith(expected)
    assert finding.mend == f"rm -r {folder}"


def test_a_state_of_no_run_is_to_be_removed(study: Made) -> None:
    folder = study.save("0123456789abcdef")
    finding = only(examine(), "orphaned files")
    assert "is of no run that the study has today: its configuration, code, data" in finding.what
    assert finding.mend == f"rm -r {folder}"
    study.lease("etrm/full/seed0", key="0123456789abcdef0123")
    assert not examine().findings, "a process trains it now"


def test_a_state_that_may_be_of_a_run_is_not_to_be_removed(study: Made) -> None:
    """That of a run whose parent is not trained yet cannot be told from one of no run."""
    study.save("0123456789abcdef")
    unfinish(study, PARENT)
    finding = only(examine(), "orphaned files")
    assert "or of etrm/overfit/seed0, etrm/full/seed0, which cannot be told" in finding.what
    assert finding.mend == AGAIN
    study.finish(PARENT)
    change(study, "trm_strict", halting={"max_steps": 2})
    stale, again = examine().findings
    assert (stale.kind, again.what, again.mend) == ("stale", finding.what, AGAIN)


def test_results_of_experiments_that_are_gone_are_found(study: Made) -> None:
    root = study.pipeline.root
    gone = ["runs/old/full/seed0", "evaluation/old/seed0", "state/finished/old/full/seed0/key"]
    for place in (
        *gone,
        "logs/old",
        "runs/etrm/full/seed7",
        "state/finished/etrm/evaluation/seed7",
    ):
        write(root / place / "file", "x" * 2**19)
    write(root / "state/finished/etrm/evaluation/seed0/key/file", "")
    write(root / "records/old.md", "")
    found = examine().findings
    assert {finding.kind for finding in found} == {"orphaned files"}
    assert [finding.what.partition(",")[0] for finding in found] == [
        "experiment old is not in mine.yaml",
        "etrm/full/seed7 is not in mine.yaml",
        "etrm/evaluation/seed7 is not in mine.yaml",
    ]
    assert "(2.0 MiB, written 0 s ago); another study file with the same name" in found[0].what
    places = ("runs/old", "evaluation/old", "state/finished/old", "logs/old", "records/old.md")
    assert found[0].mend == "rm -r " + " ".join(f"{root}/{place}" for place in places)
    assert found[1].mend == f"rm -r {root}/runs/etrm/full/seed7"


def test_files_that_were_being_written_are_left(study: Made) -> None:
    old, kept, new = (
        study.pipeline.folder(RUN) / ".run.json.12.tmp",
        study.state / "finished/etrm/full/seed0/.0123.tmp",
        study.pipeline.root / "data/.tasks.parquet.13.tmp",
    )
    for path in (old, kept / "run.json", new):
        write(path, "half")
    for path in (old, kept / "run.json", kept):
        os.utime(path, (time.time() - 3600,) * 2)
    finding = only(examine(), "orphaned files")
    assert finding.what.startswith("2 files that were being written when their process was killed")
    assert finding.mend == f"rm -r {old} {kept}"


@pytest.mark.parametrize("files", [RUN_FILES, SCORE_FILES])
def test_folders_with_some_of_their_files_are_incomplete(
    files: tuple[str, ...], study: Made
) -> None:
    paths = study.pipeline.run_files(RUN) if files is RUN_FILES else study.pipeline.score_files(RUN)
    Path(paths[0]).unlink()
    finding = only(examine(), "incomplete")
    folder = Path(paths[0]).parent
    assert finding.what == f"{folder} has only some of its files, missing: {files[0]}"
    assert finding.mend == AGAIN
    for path in paths[1:]:
        Path(path).unlink()
    assert not examine().findings, "nothing of it: it is not done yet"


def test_damaged_weights_are_found_where_they_are_read(study: Made) -> None:
    weights = study.pipeline.folder(RUN) / "model.safetensors"
    save_file({"raw.w": torch.ones(1)}, weights)
    assert not examine().findings
    finding = only(examine(verify=True), "damaged")
    assert finding.what.startswith(f"{weights}: found SHA-256 {file_digest(weights)}")
    assert finding.mend == f"rm -r {weights} && {AGAIN}"


def test_every_file_that_cannot_be_read_is_found(study: Made) -> None:
    """Empty, cut off, of another kind, or without what is needed of it."""
    pipeline = study.pipeline
    overfit, scores = pipeline.folder(OVERFIT), list(map(Path, pipeline.score_files(RUN)))
    write(overfit / "verdict.json", "")
    wrong = {
        overfit / "verdict.json": b"",
        overfit / "run.json": (overfit / "run.json").read_bytes()[:-9],
        overfit / "metrics.parquet": b"PAR1",
        overfit / "model.safetensors": b"",
        pipeline.folder(RUN) / "run.json": b"{}",
        scores[0]: scores[0].read_bytes()[:-1],
        scores[1]: b"[]",
        scores[2]: b"\xff",
        pipeline.tasks: b"",
        pipeline.augmentations: pipeline.augmentations.read_bytes()[:-4],
    }
    for path, content in wrong.items():
        path.write_bytes(content)
    findings = [finding for finding in examine().findings if finding.kind == "damaged"]
    assert {finding.names[0] for finding in findings} == set(map(str, wrong))
    for finding in findings:
        assert finding.what.startswith(f"{finding.names[0]}: found ")
        assert finding.mend == f"rm -r {finding.names[0]} && {AGAIN}"


def change(study: Made, experiment: str, **blocks: Any) -> None:
    experiments = DOCUMENT["experiments"]
    changed = {**experiments, experiment: {**experiments[experiment], **blocks}}
    study.configure({**DOCUMENT, "experiments": changed})


@pytest.mark.parametrize("known", [True, False])
def test_results_of_another_configuration_are_stale(known: bool, study: Made) -> None:
    """Where Snakemake has no record of them, it would keep them for ever."""
    targets = [study.pipeline.folder(run) / "run.json" for run in (OVERFIT, RUN)]
    if not known:
        for target in targets:
            study.mark("metadata", target).unlink()
    change(study, "etrm", halting={"max_steps": 2})
    finding = only(examine(), "stale")
    text = "2 runs made otherwise than today (halting.max_steps 16 → 2)"
    text += ": etrm/overfit/seed0, etrm/full/seed0"
    why = "; Snakemake has no record of how they were made, and would keep them"
    assert finding.what == text + ("" if known else why)
    forced = f"{AGAIN} --forcerun {targets[0]} {targets[1]}"
    assert finding.mend == (AGAIN if known else forced)
    study.lease("etrm/overfit/seed0")
    assert only(examine(), "stale").names == ("etrm/full/seed0",), "it is trained now"


def test_code_and_first_weights_and_evaluations_can_be_stale(study: Made) -> None:
    path = study.pipeline.folder(PARENT) / "run.json"
    record = json.loads(path.read_text())
    write(path, json.dumps({**record, "code_digest": "earlier"}))
    assert "1 run made otherwise than today (code): " in only(examine(), "stale").what
    write(path, json.dumps({**record, "weights_sha256": "others"}))
    found = examine()
    assert "2 runs made otherwise than today (other first weights): " in only(found, "stale").what
    write(path, json.dumps(record))
    change(study, "etrm", evaluation={"variants": 3})
    finding = only(examine(), "stale")
    how = "(evaluation.variants 1000 → 3)"
    assert finding.what == f"1 evaluation made otherwise than today {how}: etrm/full/seed0"
    assert finding.names == ("etrm/full/seed0",)


def test_what_a_gate_stops_is_not_stale(study: Made) -> None:
    verdict = {"exact_accuracy": 0.1, "diagnosis": [], "passed": False, "threshold": 0.9}
    verdict |= {"experiment": "etrm", "seed": 0, "run_key": study.key(OVERFIT)}
    write(study.pipeline.verdict("etrm", 0), json.dumps(verdict))
    path = study.pipeline.folder(RUN) / "run.json"
    write(path, json.dumps({**json.loads(path.read_text()), "code_digest": "earlier"}))
    assert not examine().findings


# --- the command ---


def test_the_command_lists_the_most_urgent_first(
    study: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--configfile", CONFIG]) == 0
    assert capsys.readouterr().out == "Study tiny: nothing to mend\n"
    study.save("0123456789abcdef")
    squeue(study, job(study, 12), job(study, 13, state="PENDING|PartitionTimeLimit"))
    lock(study)
    study.lease("etrm/full/seed0", start=1)
    Path(study.pipeline.run_files(OVERFIT)[0]).unlink()
    Path(study.pipeline.run_files(RUN)[0]).write_text("no weights", encoding="utf-8")
    change(study, "trm_strict", halting={"max_steps": 2})
    assert main(["doctor", "--configfile", CONFIG]) == 1
    lines = capsys.readouterr().out.splitlines()
    heads = [line for line in lines if line and not line.startswith(" ")]
    assert heads == [*(kind.capitalize() for kind in KINDS), heads[-1]]
    assert heads[-1].startswith("On a cluster,")
    for line, command in pairwise(lines):
        if line.startswith("  ") and not line.startswith("   "):
            assert command.startswith("      "), "every finding has its command below it"


def test_as_json_it_has_all_names(study: Made, capsys: pytest.CaptureFixture[str]) -> None:
    lock(study)
    study.lease("etrm/full/seed0", key=study.key(RUN))
    assert main(["doctor", "--configfile", CONFIG, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"study", "findings", "notes"}
    assert document["study"] == "tiny"
    (finding,), (note,) = document["findings"], document["notes"]
    assert set(finding) == set(note) == {"kind", "what", "mend", "names"}
    assert finding["kind"] == "locked"
    assert finding["names"] == [".snakemake/locks/0.output.lock"]
    assert (note["kind"], note["mend"], note["names"]) == ("running", None, ["etrm/full/seed0"])


def test_a_study_that_is_not_there_is_an_error(
    study: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--configfile", "none.yaml"]) == 1
    assert "none.yaml" in capsys.readouterr().err


def test_it_needs_no_tool_of_the_pipeline(study: Made) -> None:
    code = (
        "import sys; from etrm.cli import main; main(['doctor', '--configfile', 'mine.yaml']);"
        " print(*{'snakemake', 'pandas', 'wandb'} & set(sys.modules))"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "Study tiny: nothing to mend\n\n"
