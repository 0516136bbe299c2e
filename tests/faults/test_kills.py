"""A job that is killed again and again gives what an undisturbed one gives, and harms no other."""

from __future__ import annotations

import random
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import yaml
from jobs import Job, Server, Stall, Study, assert_same_run, content, make_study, wait_for

Moment = float | tuple[str, int]  # seconds, or the call of a function

# Calls during which nothing may be lost: those of a save, and those that finish a run.
SAVING = [
    ("etrm.storage.checkpoint:_HashingWriter.write", 3),
    ("etrm.storage.checkpoint:_HashingWriter.write", 150),
    ("etrm.storage.files:_flush", 1),
    ("os:replace", 1),
    ("os:replace", 2),
    ("etrm.storage.checkpoint:_drop_all_but", 2),
    ("etrm.training.recorder:load_state", 1),
    ("etrm.training.trainer:Trainer.evaluate", 1),
]
FINISHING = [
    ("etrm.training.outputs:save_weights", 1),
    ("etrm.tracking.tracker:Tracker.write", 1),
    ("etrm.training.outputs:write_json_atomic", 1),
    ("etrm.training.outputs:cache_result", 1),
    ("etrm.storage.result_cache:_link", 2),
    ("pathlib:Path.rename", 1),
    ("etrm.training.outputs:clear_states", 1),
]


def test_a_job_killed_at_many_moments_gives_the_same_run(
    server: Server, kills: int, tmp_path: Path
) -> None:
    study = make_study(tmp_path / "study", 6 * kills)
    expected = make_study(tmp_path / "undisturbed", 6 * kills)
    for each, experiment in ((study, "other"), (expected, "etrm")):
        server.run(each.command(experiment))
    before = earlier_run(server, study)
    killed = sum(kill(server, study, moment, tmp_path / "stalled") for moment in moments(kills))
    assert killed == kills
    server.run(study.command())
    assert_same_run(study.out(), expected.out())
    assert not study.states()
    assert not [path for path in study.root.rglob(".*") if path.is_file()]
    after = content(study.root)
    assert {name: after[name] for name in before} == before


def moments(kills: int) -> list[Moment]:
    """As many, in the order of a run: after a while, or in a save; last those in its results."""
    rng, middle = random.Random(0), range(kills - len(FINISHING))
    mixed = [rng.uniform(0.0, 0.3) if i % 2 else SAVING[i // 2 % len(SAVING)] for i in middle]
    return [*mixed, *FINISHING]


def kill(server: Server, study: Study, moment: Moment, marker: Path) -> bool:
    """Run the job to that moment, and kill it; False where it was done before."""
    newest = study.newest()
    job = start(server, study, moment, marker)
    job.kill()
    killed, log = job.wait() == -9, job.log.read_text()
    going_on = re.search(r"resuming from step (\d+)", log)
    assert going_on is None or int(going_on[1]) == newest, log
    assert study.newest() >= newest
    return killed


def start(server: Server, study: Study, moment: Moment, marker: Path) -> Job:
    """A job that has come to the moment at which it is to be killed."""
    if isinstance(moment, float):
        job = server.start(study.command())
        time.sleep(moment)
        return job
    job = server.start(study.command(), Stall(*moment, marker))
    wait_for(marker.exists, f"{moment}, {job.log}")
    return job


def earlier_run(server: Server, study: Study) -> dict[str, bytes]:
    """Another configuration of the experiment has been run; all that there is before the kills.

    The workflow has deleted its outputs since: what is left of it is the copy that is kept.
    """
    document = yaml.safe_load(study.config.read_text())
    document["experiments"]["etrm"] = {"train": {"steps": 8}}
    config = study.folder / "earlier.yaml"
    config.write_text(yaml.safe_dump(document))
    server.run(replace(study, name=config.name).command())
    shutil.rmtree(study.out())
    return content(study.root)
