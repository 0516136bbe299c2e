"""What a study has on disk, compared with what its configuration and code would make today.

`run.json` and `score.json` are the record: each says which configuration, code, tables and first
weights it was made with. Nothing else is read of a result, so that hundreds are told in seconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from etrm.config.compare import changes, in_words
from etrm.config.load import evaluation_settings, plain
from etrm.config.merging import TAGS
from etrm.config.text import first_few
from etrm.storage.digests import (
    code_digest,
    code_digests,
    evaluation_key,
    run_key,
    score_code,
    source_file,
    train_code,
)
from etrm.storage.files import file_digest
from etrm.storage.finished import LIST, RUN_FILES, SCORE_FILES
from etrm.storage.records import RUN, SCORE, DamagedFileError, Keys, read_record
from etrm.study.gate import GateError, require_passed
from etrm.study.layout import Pipeline, Run

STATES = "step*.state"  # as `etrm.storage.checkpoint` names them
TABLES = ("tasks", "augmentations")
SHOWN = 3  # differences of a kind in `why`


@dataclass(frozen=True)
class Status:
    """A run or an evaluation, and how it differs from what would be made today.

    What a record does not say counts as equal: a difference that is named is one.
    """

    record: dict[str, Any] | None = None  # run.json or score.json; None: there is none, or damaged
    files: tuple[str, ...] = ()  # of its files, those that are there
    missing: tuple[str, ...] = ()
    config: tuple[tuple[str, Any, Any], ...] = ()  # (dotted key, value then, value now)
    code: tuple[str, ...] = ()  # files of the package; ("",): some, the record does not say which
    data: tuple[str, ...] = ()  # tables that are others now
    origin: str | None = None  # what it was made from is another now, in words
    step: int | None = None  # a run of today's configuration was interrupted there, and goes on
    kept: bool = False  # finished before, as it would be today: it is taken back, not made again

    @property
    def exists(self) -> bool:
        """Is there anything of it?"""
        return bool(self.files)

    @property
    def whole(self) -> bool:
        """All files are there, and the record can be read."""
        return self.record is not None and not self.missing

    @property
    def current(self) -> bool:
        """Whole, and what would be made today."""
        return self.whole and not self.differences()

    def differences(self) -> list[str]:
        """How it differs from today's, in words; the configuration first."""
        found = first_few(map(in_words, self.config), SHOWN)
        found += first_few((f"code {name}".rstrip() for name in self.code), SHOWN)
        found += [f"new data ({name})" for name in self.data]
        return found + ([self.origin] if self.origin else [])


class StudyStatus:
    """Statuses of the runs and evaluations of a study; each record is read once."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self._runs: dict[Run, Status] = {}

    def run(self, run: Run) -> Status:
        """A training run."""
        if run not in self._runs:
            self._runs[run] = self._run(run)
        return self._runs[run]

    def score(self, run: Run) -> Status:
        """The evaluation of a run."""
        pipeline, config = self.pipeline, self.pipeline.study.experiments[run.experiment]
        paths, code = pipeline.score_files(run), score_code(config.context.source)
        files, missing, record = _read(paths, "score.json", SCORE)
        today = evaluation_settings(config.evaluation)
        trained = self.run(run).record
        return Status(
            record,
            files,
            missing,
            **_compared(record, "evaluation", today, code, self._tables()),
            origin=_other_run(record, trained),
            kept=self._score_kept(run, today, code),
        )

    def weights(self, run: Run) -> str | None:
        """SHA-256 that a run's weights have, or will have where they are taken back."""
        status, key = self.run(run), self.key(run)
        if key is None:
            return None
        if status.whole and status.record is not None and status.record["key"] == key:
            return str(status.record["weights_sha256"])
        kept = _kept(self._store(run, run.stage), key, RUN_FILES)
        return str(kept["model.safetensors"]) if kept else None

    def _run(self, run: Run) -> Status:
        today = plain(self.pipeline.config_of(run))
        code = train_code(today["context"]["source"])
        files, missing, record = _read(self.pipeline.run_files(run), "run.json", RUN)
        then, now = _origin(record), self._first_weights(run)
        key = self.key(run)
        return Status(
            record,
            files,
            missing,
            **_compared(record, "config", today, code, self._tables()),
            origin="other first weights" if then and now and then != now else None,
            step=_newest_step(self.pipeline.state / key[:16]) if key else None,
            kept=bool(key and _kept(self._store(run, run.stage), key, RUN_FILES)),
        )

    def _store(self, run: Run, name: str) -> Path:
        return self.pipeline.state / "finished" / run.experiment / name / f"seed{run.seed}"

    def _tables(self) -> dict[str, str]:
        """Digests of the tables that are there."""
        paths = (self.pipeline.tasks, self.pipeline.augmentations)
        return {path.stem: found for path in paths if (found := _digest(path))}

    def key(self, run: Run) -> str | None:
        """Key of the run as it would be made now; None where what it depends on is missing."""
        tables, has_parent = self._tables(), self.pipeline.parent_path(run) is not None
        if len(tables) < len(TABLES):
            return None
        weights = self._first_weights(run, read=True)
        if has_parent and weights is None:
            return None
        today = plain(self.pipeline.config_of(run))
        code = code_digest(*train_code(today["context"]["source"]))
        return run_key(today, list(tables.values()), weights, code)

    def _first_weights(self, run: Run, read: bool = False) -> str | None:
        """SHA-256 of what a run starts from; an official checkpoint is large: only if to `read`."""
        parent, path = self.pipeline.parent(run), self.pipeline.parent_path(run)
        if parent is not None:
            return self.weights(parent)
        if path is None:
            return None
        if path.is_dir():
            record = _json(path / "run.json") or {}
            return record.get("weights_sha256")
        return _digest(path) if read else None

    def _score_kept(self, run: Run, today: Any, code: Sequence[str]) -> bool:
        key, weights, tables = self.key(run), self.weights(run), self._tables()
        if key is None or weights is None:
            return False
        wanted = evaluation_key(today, key, weights, list(tables.values()), code_digest(*code))
        return _kept(self._store(run, "evaluation"), wanted, SCORE_FILES) is not None


def require_gate(pipeline: Pipeline, run: Run) -> None:
    """Raise `GateError` unless a full run may start, by a verdict on today's overfit run.

    Raises `DamagedFileError` where a record cannot be read.
    """
    overfit = Run(run.experiment, "overfit", run.seed)
    path, name = pipeline.verdict(run.experiment, run.seed), f"{run.experiment}, seed {run.seed}"
    seed = f" --seed {run.seed}" if run.seed else ""
    for needed, command in (
        (pipeline.folder(overfit) / "run.json", f"run {run.experiment} overfit{seed}"),
        (path, f"gate {run.experiment}{seed}"),
    ):
        if not needed.is_file():
            raise GateError(
                f"{name}: the full run does not start, because there is no {needed}:"
                f" `etrm {command}` makes it, or `snakemake` does, as part of the study"
            )
    require_up_to_date(pipeline, overfit)
    require_passed(path, pipeline.study.experiments[run.experiment].gate)


def require_up_to_date(pipeline: Pipeline, run: Run) -> None:
    """Raise `GateError` where an overfit run is stale: no verdict on it opens the gate."""
    differences = StudyStatus(pipeline).run(run).differences()
    if differences:
        raise GateError(
            f"{run.experiment}, seed {run.seed}: the overfit run in {pipeline.folder(run)} is stale"
            f" ({'; '.join(differences)}): run the overfit stage and the gate again"
        )


def _compared(
    record: Mapping[str, Any] | None,
    name: str,
    today: Mapping[str, Any],
    code: Sequence[str],
    tables: Mapping[str, str],
) -> dict[str, Any]:
    """The fields `config`, `code` and `data` of a status; `name` is the config's in the record."""
    if record is None:
        return {}
    # The block of an evaluation is named as the study has it; that of a run is the whole.
    prefix = "" if name == "config" else f"{name}."
    found = [(prefix + key, then, now) for key, then, now in changes(today, record[name])]
    config = sorted(found, key=lambda change: not _is_tag(change[0]))
    data = record.get("data", {})
    return {
        "config": tuple(config),
        "code": _changed_code(record, code),
        "data": tuple(n for n, found in tables.items() if data.get(n, found) != found),
    }


def _changed_code(record: Mapping[str, Any], code: Sequence[str]) -> tuple[str, ...]:
    now, then = _digests(tuple(code)), record.get("code")
    if then is None:
        old = record.get("code_digest")
        return ("",) if old not in (None, code_digest(*code)) else ()
    changed = [name for name in {**now, **then} if now.get(name) != then.get(name)]
    return tuple(sorted(map(source_file, changed)))


@cache
def _digests(code: tuple[str, ...]) -> dict[str, str]:
    return code_digests(*code)


def _is_tag(key: str) -> bool:
    """A tag, such as context.source, explains the changes of its block."""
    return key.rpartition(".")[2] in TAGS


def _other_run(score: Mapping[str, Any] | None, trained: Mapping[str, Any] | None) -> str | None:
    """Is a score of another run, or of other weights, than those that are there?"""
    if score is None or trained is None:
        return None
    if score["run_key"] != trained["key"]:
        return "of another run"
    weights = trained["weights_sha256"]
    return "of other weights" if score.get("weights_sha256", weights) != weights else None


def _origin(record: Mapping[str, Any] | None) -> str | None:
    """SHA-256 of the weights that a run started from."""
    found = ((record or {}).get("init") or {}).get("sha256")
    return None if found is None else str(found)


def _read(
    paths: Sequence[str], name: str, keys: Keys
) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, Any] | None]:
    """Files that are there, that are missing, and the record: None for one that is damaged."""
    there = [Path(path) for path in paths if Path(path).is_file()]
    names = tuple(path.name for path in there)
    missing = tuple(n for path in paths if (n := Path(path).name) not in names)
    path = next((path for path in there if path.name == name), None)
    try:
        record = None if path is None else read_record(path, keys, "a record")
    except (DamagedFileError, FileNotFoundError):
        record = None
    return names, missing, record


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _kept(store: Path, key: str, names: Sequence[str]) -> dict[str, str] | None:
    """Digests of the files that are kept under this key (`etrm.storage.finished`)."""
    folder = store / key[:16]
    kept = _json(folder / LIST)
    if kept is None or kept.get("key") != key or not all((folder / n).is_file() for n in names):
        return None
    digests: dict[str, str] = kept["sha256"]
    return digests


def _newest_step(folder: Path) -> int | None:
    """The step of the newest state of an interrupted run."""
    names = [path.name.removeprefix("step").removesuffix(".state") for path in folder.glob(STATES)]
    return max((int(name) for name in names if name.isdecimal()), default=None)


def _digest(path: Path) -> str | None:
    """SHA-256 of a file, taken once while it stays as it is; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return _taken(path, found.st_mtime_ns, found.st_size)


@cache
def _taken(path: Path, time: int, size: int) -> str:
    return file_digest(path)
