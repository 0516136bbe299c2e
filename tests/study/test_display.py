"""The display of a study in the place of Snakemake's listings, fed with Snakemake's messages."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from etrm.runtime import terminal
from etrm.runtime.logs import job_log, say
from etrm.study.terminal import display as module
from etrm.study.terminal.display import CHOICE, REPLACED, Display, end, show
from etrm.study.terminal.dry_run import DryRun
from etrm.study.terminal.jobs import Job, failure

STAMP = "2026-01-01 12:00:00,123"
TRAINING = {"experiment": "an_experiment_with_a_long_name", "seed": "0"}


class Scene:
    """A logger as Snakemake has it, with the display in it, and what it has printed."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder, self.stream = folder, io.StringIO()
        self.logger = logging.Logger("snakemake.logging", logging.INFO)
        handler = logging.StreamHandler(self.stream)
        handler.name = REPLACED
        self.logger.addHandler(handler)
        plain = {"verbose": False, "debug_dag": False, "dryrun": False, "quiet": None}
        given = SimpleNamespace(**{**plain, "nocolor": False, **settings})
        self.display = show(self.logger, given, "a study", lambda: "THE SUMMARY")

    def say(self, text: str, level: int = logging.INFO) -> None:
        self.logger.log(level, text)

    def tell(self, event: str, **fields: Any) -> None:
        self.logger.info(f"about {event}", extra={"event": event, **fields})

    def start(self, number: int, rule: str, output: str = "", **wildcards: str) -> Path:
        """A job begins; returns its log."""
        log = self.folder / f"{rule}{number}.log"
        known = {"jobid": number, "rule_name": rule, "wildcards": wildcards, "reason": "Forced"}
        self.tell("job_info", output=[output] if output else [], log=[str(log)], **known)
        return log

    def fail(self, number: int, rule: str, *logs: Path, end: str = "") -> None:
        end = end or "returned non-zero exit status 1"
        text = f"RuleException:\nCalledProcessError in file x.smk:\nCommand 'x' {end}."
        self.logger.error(text, extra={"event": "error"})
        self.tell("job_error", jobid=number, rule_name=rule, output=[], log=list(map(str, logs)))

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()

    @property
    def text(self) -> str:
        return " ".join(self.stream.getvalue().split())


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restored afterwards, also what the display itself puts there."""
    for name in (CHOICE, terminal.DISPLAY, "COLUMNS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    found = Scene(tmp_path)
    found.tell("run_info", stats={"train_full": 1, "all": 1, "total": 12})
    yield found
    assert found.display is not None
    found.display.close()


def record(folder: Path, **fields: Any) -> Path:
    """The record of a run."""
    identity = {"experiment": "e", "stage": "full", "seed": 0, "kind": "etrm", "split": "strict"}
    config = {"config": {"train": {"steps": 800}}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({**identity, **config, **fields}))
    return folder / "model.safetensors"


def test_what_says_nothing_of_the_study_is_left_out_and_all_fits(scene: Scene) -> None:
    for text in ("Building DAG of jobs...", "Using shell: /bin/bash", "Select jobs to execute..."):
        scene.say(text)
    scene.say("something that nobody has foreseen " * 9)
    assert scene.text.count("something") == 9
    assert not {"DAG", "shell:", "Select"} & set(scene.text.split())
    assert max(map(len, scene.lines)) <= 80
    assert "12 jobs" in scene.text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"steps_done": 800, "stopped_early": None}, "all 800 steps"),
        ({"steps_done": 250, "stopped_early": "target"}, "its target is reached at step 250"),
        ({"steps_done": 30, "stopped_early": "divergence"}, "stopped early at step 30 of 800"),
    ],
)
def test_a_run_ends_in_words(scene: Scene, fields: dict[str, Any], words: str) -> None:
    output = record(scene.folder / "run", **fields)
    scene.start(3, "train_full", str(output), **TRAINING)
    scene.tell("job_finished", job_id=3)
    assert f"[ 1/12] full {TRAINING['experiment']}, seed 0: {words}" in scene.text


@pytest.mark.parametrize(("passed", "word"), [(True, "passed"), (False, "STOPPED")])
def test_a_verdict_is_said_when_it_is_made(scene: Scene, passed: bool, word: str) -> None:
    finding = {"finding": "collapse", "severity": "fail"}
    numbers = {"exact_accuracy": 0.5, "threshold": 0.9, "diagnosis": [finding]}
    path = scene.folder / "verdict.json"
    path.write_text(json.dumps({"experiment": "e", "seed": 0, "passed": passed, **numbers}))
    scene.start(4, "verdict", str(path), **TRAINING)
    scene.tell("job_finished", job_id=4)
    assert word in scene.text
    assert "collapse" in scene.text
    assert "50.0%" in scene.text


def test_warnings_of_a_job_are_told_once_and_those_of_an_earlier_one_not(scene: Scene) -> None:
    log = scene.folder / "train_full5.log"
    log.write_text(f"{STAMP} WARNING of yesterday\n")
    os.utime(log, (1, 1))
    assert scene.start(5, "train_full", **TRAINING) == log
    display = scene.display
    assert display is not None
    display._look()
    assert "yesterday" not in scene.text
    log.write_text(
        f"{STAMP} WARNING stopped at step 30: divergence\n"
        f"{STAMP} WARNING /lib/x.py:3: UserWarning: of a library\n"
        f"{STAMP} INFO study/e/full/seed0: step 30/800: 01:20 left, loss 1.5, exact 3.0%\n"
        f"{STAMP} WARNING half a li"
    )
    display._look()
    display._look()
    assert scene.text.count("stopped at step 30: divergence") == 1
    assert "of a library" not in scene.text
    assert "half" not in scene.text
    reading = display.jobs[5].reading
    assert reading is not None
    assert (reading.done, reading.of, reading.left) == (30, 800, "01:20")


def test_without_a_terminal_a_line_every_so_often(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = scene.start(5, "train_full", **TRAINING)
    log.write_text(f"{STAMP} INFO e: step 30/800: 01:20 left, loss 1.5\n")
    assert scene.display is not None
    before = len(scene.lines)
    scene.display._look()
    assert len(scene.lines) == before
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", -1.0)
    scene.display._look()
    assert "step 30/800" in scene.text
    assert "01:20 left" in scene.text


def test_a_failed_job_names_its_error_and_its_log(scene: Scene) -> None:
    log = scene.start(6, "train_full", **TRAINING)
    log.write_text(
        f"{STAMP} INFO begins\n{STAMP} ERROR data/x.json: found no task\n  expected one\n"
    )
    scene.fail(6, "train_full", log)
    assert "RuleException" not in scene.text
    failed = scene.lines.index(next(x for x in scene.lines if x.startswith("FAILED")))
    assert "an_experiment_with_a_long_name, seed 0" in scene.lines[failed]
    assert "data/x.json: found no task" in scene.lines[failed + 1]
    assert "expected one" in scene.lines[failed + 2]
    assert str(log) in scene.text
    scene.logger.error("At least one job did not complete", extra={"event": "error"})
    assert "1 failed: full an_experiment_with_a_long_name, seed 0" in scene.text


def test_a_job_that_is_tried_again_has_not_failed(scene: Scene) -> None:
    log = scene.start(6, "train_full", **TRAINING)
    scene.fail(6, "train_full", log, end="died with <Signals.SIGKILL: 9>")
    assert "exit SIGKILL" in scene.text
    assert "RuleException" not in scene.text
    scene.start(6, "train_full", **TRAINING)
    assert scene.display is not None
    assert scene.display.failed == {}
    assert "again: full" in scene.text


@pytest.mark.parametrize(
    ("contents", "error", "which"),
    [
        (["{} ERROR first\n{} ERROR second\n{} INFO then\n"], "second", 0),
        (["{} ERROR unexpected error\nTraceback\n  x\nValueError: odd\n"], "ValueError: odd", 0),
        (["{} INFO step 3\n", "slurmstepd: error: killed by OOM\n"], "killed by OOM", 1),
        (["{} INFO step 3\n"], "step 3", 0),
    ],
)
def test_the_last_error_of_a_log(
    tmp_path: Path, contents: list[str], error: str, which: int
) -> None:
    logs = [tmp_path / f"{n}.log" for n in range(len(contents))]
    for log, content in zip(logs, contents, strict=True):
        log.write_text(content.replace("{}", STAMP))
    told, log = failure(logs)
    assert told.splitlines()[0].endswith(error) or error in told
    assert log == logs[which]
    assert failure([tmp_path / "none.log"])[1] == tmp_path / "none.log"


def test_an_interruption_says_where_it_resumes(scene: Scene) -> None:
    log = scene.start(7, "train_full", **TRAINING)
    scene.say("Terminating processes on user request, this might take some time.")
    log.write_text(f"{STAMP} WARNING SIGINT: saved step 37; run the same command again\n")
    text = "RuleException:\nCalledProcessError in x: Command … returned non-zero exit status 75."
    scene.logger.error(text, extra={"event": "error"})
    scene.logger.error(
        "WorkflowError: At least one job did not complete successfully.", extra={"event": "error"}
    )
    assert "RuleException" not in scene.text
    assert "WorkflowError" not in scene.text
    assert "saved step 37" in scene.text
    assert "0 of 12 jobs are done" in scene.text
    assert "Run the same command again" in scene.text
    assert "these begin with it: full an_experiment_with_a_long_name, seed 0" in scene.text


@pytest.mark.parametrize("asked", [True, False])
def test_an_interrupted_job_has_not_failed(scene: Scene, asked: bool) -> None:
    """By Ctrl-C, or by a signal to the job alone, which then ends with exit code 75."""
    log = scene.start(7, "train_full", **TRAINING)
    if asked:
        scene.say("Terminating processes on user request, this might take some time.")
    log.write_text(f"{STAMP} WARNING SIGTERM: saved step 37\n")
    scene.fail(7, "train_full", log, end="returned non-zero exit status 75")
    scene.logger.error("At least one job did not complete", extra={"event": "error"})
    words = "Exiting because a job execution failed. Look above for error messages"
    scene.logger.error(words)
    assert "FAILED" not in scene.text
    assert "failed" not in scene.text
    assert "saved step 37" in scene.text
    assert "these begin with it: full an_experiment_with_a_long_name" in scene.text


def test_other_errors_are_shown_whole(scene: Scene) -> None:
    scene.logger.error("WorkflowError: the full run does not start", extra={"event": "error"})
    assert "the full run does not start" in scene.text


def test_a_dry_run_is_a_line_for_each_rule(tmp_path: Path) -> None:
    scene = Scene(tmp_path, dryrun=True)
    counts = {"train_full": 40, "tasks": 1, "total": 41}
    scene.tell("run_info", stats=counts)
    for number in range(40):
        scene.start(number, "train_full", experiment=f"an_experiment_of_many_{number}", seed="0")
    scene.start(40, "tasks")
    scene.tell("run_info", stats=counts)
    assert scene.lines == [], "at the end: the jobs of a dry run are listed twice"
    assert scene.display is not None
    scene.display.close()
    assert len(scene.lines) < 10
    assert max(map(len, scene.lines)) <= 80
    assert "41 jobs would run" in scene.text
    assert "train_full 40 an_experiment_of_many_0" in scene.text
    assert "37 more" in scene.text
    assert terminal.DISPLAY not in os.environ, "jobs of this process write as ever"


def test_a_dry_run_tells_what_a_selection_will_choose() -> None:
    plan = DryRun()
    plan.counts = {"select": 1, "total": 1}
    for _ in range(2):  # jobs of a dry run are listed twice
        plan.add(
            Job("select", {"selection": "best"}, (), ()), "Missing output files: a", "best 2 of 8"
        )
    assert [line.strip() for line in plan.lines(80)][1:3] == [
        "select     1  missing output files",
        "best 2 of 8",
    ]


def test_a_finished_study_ends_with_its_summary(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    scene.say("Nothing to be done (all requested files are present and up to date).")
    assert "Nothing to be done" in scene.text
    assert capsys.readouterr().out == "THE SUMMARY\n"
    end(scene.display, lambda: "AT THE END")
    end(None, lambda: "WITHOUT A DISPLAY")
    assert capsys.readouterr().out == "AT THE END\nWITHOUT A DISPLAY\n"


@pytest.mark.parametrize("how", ["variable", "verbose", "plugin"])
def test_snakemakes_own_output_where_it_is_asked_for(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "variable":
        monkeypatch.setenv(CHOICE, "snakemake")
    if how == "plugin":
        monkeypatch.setattr(module, "REPLACED", "another")
    scene = Scene(tmp_path, verbose=how == "verbose")
    assert scene.display is None
    scene.say("Building DAG of jobs...")
    assert scene.lines == ["Building DAG of jobs..."]


def test_jobs_under_a_display_write_to_their_logs_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "job.log"
    with job_log(log):
        say("seen on the terminal")
    assert "seen" in capfd.readouterr().err
    terminal.take()
    with job_log(log):
        say("in the log")
    with pytest.raises(SystemExit), job_log(log):
        raise ZeroDivisionError("a defect")
    assert capfd.readouterr().err == ""
    assert "in the log" in log.read_text()
    assert failure([log])[0] == "ZeroDivisionError: a defect"
    os.environ[terminal.DISPLAY] = "0:0"  # of a job whose stderr is another file, as on a cluster
    with job_log(log):
        say("seen again")
    assert "seen again" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        ("train_pretrain", "pretrain e, seed 1"),
        ("merge_shards", "evaluate e, seed 1"),
        ("refine_run", "refine e, seed 1"),
    ],
)
def test_names_of_jobs(rule: str, name: str) -> None:
    assert Job(rule, {"experiment": "e", "seed": "1"}, [], []).name == name
    shard = {"experiment": "e", "seed": "1", "shard": "0", "shards": "4"}
    assert Job("evaluate_shard", shard, [], []).name == "evaluate e, seed 1, shard 1 of 4"
    assert Job("resolved_config", {}, [], []).name == "resolved config"


def test_the_live_view_is_no_wider_than_the_terminal(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    display = scene.display
    assert isinstance(display, Display)
    for number in range(30):
        wildcards = {"experiment": f"{TRAINING['experiment']}_{number}", "seed": "0"}
        log = scene.start(number, "train_full", **wildcards)
        log.write_text(
            f"{STAMP} INFO e: step 30/800: 01:20 left, loss 1.5, exact 3.0%, 9 examples/s\n"
        )
    display._look()
    display.console.print(display._view())
    assert max(map(len, scene.lines)) <= 80 - len("^C") - 1
    assert len(scene.lines) < 20
    assert "30 running" in scene.text
    assert "18 more" in scene.text
    assert "30/800" in scene.text
    display.close()
