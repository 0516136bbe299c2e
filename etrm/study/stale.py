"""Status of runs and evaluations: missing, incomplete, stale (and why), up to date, or cached.

This is the one place that decides it; the rules, the plan, the doctor and the gate ask here.
`run.json` and `score.json` are the evidence: each records the configuration, code, tables and first
weights of its result. Nothing else is read, so that hundreds are compared in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from etrm.config.compare import changes, summary
from etrm.config.load import plain, result_settings
from etrm.config.merging import TAGS
from etrm.config.text import first_few
from etrm.storage import records
from etrm.storage.digests import (
    code_digest,
    code_digests,
    evaluation_key,
    run_code,
    run_key,
    score_code,
    source_file,
)
from etrm.storage.files import file_digest, read_once, table_digest, truth_digest
from etrm.storage.first_weights import ParentError
from etrm.storage.result_cache import RESULT_FILES, RUN_FILES, cached_digests
from etrm.study.gate import GateError, judge, require_passed
from etrm.study.layout import Layout, Run
from etrm.study.selection import require_chosen

STATES = "step*.state"  # as `etrm.storage.checkpoint` names them
RECORDS = {  # the keys of each record, among them the block of its settings
    "run.json": (records.RUN, "config"),
    "score.json": (records.SCORE, "evaluation"),
    "refinement.json": (records.REFINEMENT, "refinement"),
    "validation.json": (records.VALIDATION, "validation"),
}
SHOWN = 3  # differences of a kind in `differences`


@dataclass(frozen=True)
class Status:
    """Status of one run or evaluation: its files, and how it differs from the current study.

    A field that a record lacks counts as equal, so that older records stay valid.
    """

    record: dict[str, Any] | None = None  # run.json or score.json; None: missing or damaged
    files: tuple[str, ...] = ()  # names of its files that are there
    missing: tuple[str, ...] = ()
    config: tuple[tuple[str, Any, Any], ...] = ()  # (dotted key, value then, value now)
    code: tuple[str, ...] = ()  # changed files; ("",): some, the record does not say which
    data: tuple[str, ...] = ()  # changed tables
    origin: str | None = None  # in words: other first weights, or of another run
    step: int | None = None  # of the newest state that the current run would resume from
    cached: bool = False  # the current result is in the cache: restored, not computed again

    @property
    def complete(self) -> bool:
        """Return whether all files are there and the record can be read."""
        return self.record is not None and not self.missing

    @property
    def stale(self) -> bool:
        """Return whether it was made with another configuration, code, data or first weights."""
        return bool(self.config or self.code or self.data or self.origin)

    @property
    def up_to_date(self) -> bool:
        """Return whether it is complete and not stale."""
        return self.complete and not self.stale

    def differences(self) -> list[str]:
        """Return why it is stale, in words; the configuration first."""
        found = summary(self.config, SHOWN)
        found += first_few((f"code {name}".rstrip() for name in self.code), SHOWN)
        found += [f"new data ({name})" for name in self.data]
        return found + ([self.origin] if self.origin else [])

    def reasons(self) -> list[str]:
        """Return why it is not up to date: missing files, a damaged record, differences."""
        found = [f"{name} is missing" for name in self.missing]
        if self.record is None and not self.missing:
            [name] = RECORDS.keys() & {*self.files}
            found.append(f"{name} cannot be read: `etrm doctor` says how to mend it")
        return found + self.differences()


class StudyStatus:
    """Statuses of the runs and evaluations of a study; each record of a run is read once."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._runs: dict[Run, Status] = {}

    def run(self, run: Run) -> Status:
        """Return the status of a training run."""
        if run not in self._runs:
            self._runs[run] = self._run(run)
        return self._runs[run]

    def _run(self, run: Run) -> Status:
        config, key = self.layout.config_of(run), self.key(run)
        files, code = self.layout.run_files(run), run_code(config)
        found = self._compared(files, "run.json", plain(config), code)
        then, now = ((found.record or {}).get("init") or {}).get("sha256"), self.first_weights(run)
        states = (self.layout.state / key[:16]).glob(STATES) if key else ()
        steps = [path.stem.removeprefix("step") for path in states]
        return replace(
            found,
            origin="other first weights" if then and now and then != now else None,
            step=max((int(step) for step in steps if step.isdecimal()), default=None),
            cached=bool(key and self._cached_run(run, key)),
        )

    def score(self, run: Run, stage: str = "evaluation") -> Status:
        """Return the status of a run's evaluation, refinement or validation."""
        config, layout = self.layout.study.experiments[run.experiment], self.layout
        today, code = result_settings(config, stage), score_code(config.context.source, stage)
        name = layout.score(run, stage).name
        found = self._compared(layout.score_files(run, stage), name, today, code)
        trained, record, origin = self.run(run).record, found.record, None
        if record is not None and trained is not None:
            weights = trained["weights_sha256"]
            if record["run_key"] != trained["key"]:
                origin = "of another run"
            elif record.get("weights_sha256", weights) != weights:
                origin = "of other weights"
        key, own, cached = self.key(run), self.weights(run), False
        if key is not None and own is not None:
            tables = list(self._tables(truth=True).values())
            wanted = evaluation_key(today, key, own, tables, code_digest(*code), stage)
            cached = bool(cached_digests(RESULT_FILES[stage], layout.cache(run, stage), wanted))
        return replace(found, origin=origin, cached=cached)

    def _compared(
        self, paths: Sequence[str], name: str, today: Mapping[str, Any], code: tuple[str, ...]
    ) -> Status:
        """Return files and record of a result, and how its settings, code and tables differ."""
        there = tuple(Path(path).name for path in paths if Path(path).is_file())
        missing = tuple(n for path in paths if (n := Path(path).name) not in there)
        keys, block = RECORDS[name]
        # The block of an evaluation is named as the study has it; that of a run is the whole.
        prefix = "" if name == "run.json" else f"{block}."
        try:
            record = records.read_record(Path(paths[0]).with_name(name), keys, "a record")
        except (records.DamagedFileError, FileNotFoundError):
            return Status(None, there, missing)
        found = [(prefix + key, then, now) for key, then, now in changes(today, record[block])]
        # Tags first: a tag, such as context.source, explains the other changes of its block.
        found.sort(key=lambda change: change[0].rpartition(".")[2] not in TAGS)
        data = record.get("data", {})  # SHA-256 of tables
        current = self._tables(truth=name != "run.json")
        tables = tuple(n for n, now in current.items() if data.get(n, now) != now)
        return Status(record, there, missing, tuple(found), _changed_code(record, code), tables)

    def key(self, run: Run) -> str | None:
        """Return the key of the current run; None where its tables or its parent are missing."""
        tables, weights = self._tables(), self.first_weights(run)
        if len(tables) < 2 or (weights is None and self.layout.parent_path(run) is not None):
            return None
        config = self.layout.config_of(run)
        code = code_digest(*run_code(config))
        return run_key(plain(config), list(tables.values()), weights, code)

    def weights(self, run: Run) -> str | None:
        """Return the SHA-256 of the current run's weights, in its folder or in the cache."""
        status, key = self.run(run), self.key(run)
        if key is None:
            return None
        if status.complete and status.record is not None and status.record["key"] == key:
            return str(status.record["weights_sha256"])
        cached = self._cached_run(run, key)
        return cached["model.safetensors"] if cached else None

    def _cached_run(self, run: Run, key: str) -> dict[str, str] | None:
        return cached_digests(RUN_FILES, self.layout.cache(run, run.stage), key)

    def first_weights(self, run: Run) -> str | None:
        """Return the SHA-256 of a run's first weights; None from scratch, and for missing ones."""
        parent = self.layout.parent(run)
        return self.outside_weights(run) if parent is None else self.weights(parent)

    def outside_weights(self, run: Run) -> str | None:
        """Return the SHA-256 of first weights from outside the study; None for any others.

        Their content decides, not their time: a file may be replaced by one of the same age.
        """
        first = self.layout.outside(run)
        if first is None:
            return None
        with suppress(records.DamagedFileError, FileNotFoundError):
            if first.run is not None:
                keys = {"weights_sha256": str}
                return str(records.read_run(first.run, keys)["weights_sha256"])
        return _digest(first.file)

    def verdict(self, experiment: str, seed: int) -> dict[str, Any] | None:
        """Return the verdict on the overfit run that is there.

        None where it is missing, on an earlier run, or on a run of another configuration. Read anew
        by each call, since a running study replaces it. Raises `DamagedFileError`.
        """
        run, path = Run(experiment, "overfit", seed), self.layout.verdict(experiment, seed)
        if not (path.is_file() and path.with_name("run.json").is_file()):
            return None
        verdict, record = records.read_verdict(path), records.read_run(path.parent)
        same = verdict.get("run_key") == record["key"]
        today = plain(self.layout.config_of(run))
        return verdict if same and not changes(today, record["config"]) else None

    def expects_full(self, experiment: str, seed: int) -> bool:
        """Return whether the full run is expected to start; raises as `verdict` does.

        A known verdict is judged by the current threshold; without one, a pass is expected.
        """
        verdict = self.verdict(experiment, seed)
        return verdict is None or judge(verdict, self.layout.study.experiments[experiment].gate)

    def _tables(self, truth: bool = False) -> dict[str, str]:
        """Return the digests of the tables that are there, and of the ground truth in them."""
        tables = self.layout.tasks, self.layout.augmentations
        taken = {path.stem: _digest(path, table_digest) for path in tables}
        if truth:
            taken["ground_truth"] = _digest(self.layout.tasks, truth_digest)
        return {name: found for name, found in taken.items() if found}


def check_records(layout: Layout) -> None:
    """Raise for a file that the study needs and that cannot be used.

    `DamagedFileError` for a record of a run, a result or a selection; `ParentError` for first
    weights from outside the study that are missing.
    """
    for run in layout.runs():
        folders = [layout.folder(run)]
        try:
            first = layout.outside(run)
        except ParentError as error:
            raise ParentError(f"experiments.{run.experiment}.decoder.init: {error}") from None
        missing = [path for path in (first.files if first else ()) if not path.is_file()]
        if missing:
            raise ParentError(
                f"experiments.{run.experiment}.decoder.init: found no file {missing[0]}, expected"
                " a run folder of another study, or a checkpoint of official TRM"
            )
        folders += [first.run] if first and first.run else []
        for folder in folders:
            if (folder / "run.json").is_file():
                records.read_run(folder)
    for run, stage in layout.results():
        if (path := layout.score(run, stage)).is_file():
            records.READERS[path.name](path)
    for name in layout.study.selections:
        if (path := layout.selection(name)).is_file():
            records.read_selection(path)


def require_gate(layout: Layout, run: Run) -> None:
    """Raise `GateError` unless a full run may start, by a verdict on an up-to-date overfit run.

    Raises `DamagedFileError` where a record cannot be read.
    """
    if layout.study.experiments[run.experiment].after is not None:
        require_chosen(layout, run.experiment)
        return
    overfit = Run(run.experiment, "overfit", run.seed)
    path, name = layout.verdict(run.experiment, run.seed), f"{run.experiment}, seed {run.seed}"
    seed = f" --seed {run.seed}" if run.seed else ""
    for needed, command in (
        (layout.folder(overfit) / "run.json", f"run {run.experiment} overfit{seed}"),
        (path, f"gate {run.experiment}{seed}"),
    ):
        if not needed.is_file():
            raise GateError(
                f"{name}: the full run does not start, because there is no {needed}:"
                f" `etrm {command}` makes it, or `snakemake` does, as part of the study"
            )
    require_up_to_date(layout, overfit, "the full run does not start")
    require_passed(path, layout.study.experiments[run.experiment].gate)


def require_up_to_date(layout: Layout, run: Run, refused: str) -> None:
    """Raise `GateError` where an overfit run is stale: no verdict on it opens the gate."""
    differences = StudyStatus(layout).run(run).differences()
    if differences:
        raise GateError(
            f"{run.experiment}, seed {run.seed}: {refused}, because the overfit run in"
            f" {layout.folder(run)} is stale ({'; '.join(differences)}): run the overfit stage and"
            " the gate again"
        )


def _changed_code(record: Mapping[str, Any], code: tuple[str, ...]) -> tuple[str, ...]:
    now, then = _digests(code), record.get("code")  # digests by module
    if then is None:
        old = record.get("code_digest")  # of all modules together
        return ("",) if old not in (None, code_digest(*code)) else ()
    changed = [name for name in {**now, **then} if now.get(name) != then.get(name)]
    return tuple(sorted(map(source_file, changed)))


@cache
def _digests(code: tuple[str, ...]) -> dict[str, str]:
    return code_digests(*code)


def _digest(path: Path, of: Callable[[Path], str | None] = file_digest) -> str | None:
    """Return the digest of a file, computed once while it is unchanged; None where missing."""
    with suppress(OSError):  # a folder, too
        return read_once(path, of)
    return None
