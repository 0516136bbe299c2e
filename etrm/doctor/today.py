"""What the runs and evaluations on disk are, against what would be made today.

The only place of this package that compares.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from etrm.config import plain
from etrm.keep import RUN_FILES, SCORE_FILES
from etrm.pipeline import Pipeline, Run
from etrm.provenance import code_digest, digest, file_digest, train_code

STATES = "step*.state"  # as `etrm.checkpoint` names them


class Today:
    """Runs and evaluations of a study; files are read once."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self._keys: dict[Run, str | None] = {}

    def key(self, run: Run) -> str | None:
        """The key that the run would have now; None where what it depends on is not there yet."""
        if run not in self._keys:
            self._keys[run] = self._key(run)
        return self._keys[run]

    def missing(self, run: Run) -> list[str]:
        """Files of its run folder that are not there."""
        return [name for name in RUN_FILES if not (self.pipeline.folder(run) / name).is_file()]

    def missing_score(self, run: Run) -> list[str]:
        """Files of its evaluation that are not there."""
        paths = map(Path, self.pipeline.score_files(run))
        return [path.name for path in paths if not path.is_file()]

    def differences(self, run: Run) -> list[str]:
        """What differs of a finished run: configuration, code, or what it was trained from."""
        record = self.record(run)
        if record is None:
            return []
        found = []
        if record["config"] != plain(self.pipeline.config_of(run)):
            found.append("configuration")
        if record["code_digest"] != self._code(run):
            found.append("code")
        if not found and self.key(run) not in (None, record["key"]):
            found.append("data or first weights")
        return found

    def score_differences(self, run: Run) -> list[str]:
        """What differs of an evaluation."""
        score, record = _json(self._score(run)), self.record(run)
        if score is None:
            return []
        today = plain(self.pipeline.study.experiments[run.experiment].evaluation)
        found = ["configuration"] if score["evaluation"] != today else []
        if record is not None and score["run_key"] != record["key"]:
            found.append("run")
        return found

    def record(self, run: Run) -> dict[str, Any] | None:
        """Its `run.json`; None where there is none."""
        return _json(self.pipeline.folder(run) / "run.json")

    def step(self, run: Run) -> int | None:
        """The step of the newest state from which the run would go on."""
        key = self.key(run)
        states = [] if key is None else list((self.pipeline.state / key[:16]).glob(STATES))
        return max((int(path.stem.removeprefix("step")) for path in states), default=None)

    def _score(self, run: Run) -> Path:
        return Path(self.pipeline.score_files(run)[SCORE_FILES.index("score.json")])

    def _code(self, run: Run) -> str:
        source = self.pipeline.study.experiments[run.experiment].context.source
        return code_digest(*train_code(source))

    def _key(self, run: Run) -> str | None:
        tables = (self.pipeline.tasks, self.pipeline.augmentations)
        if not all(path.is_file() for path in tables):
            return None
        files = [_file_digest(path) for path in tables]
        if self.pipeline.parent_path(run) is not None:
            weights = self._first_weights(run)
            if weights is None:
                return None
            files.append(weights)
        return digest([plain(self.pipeline.config_of(run)), files, self._code(run)])

    def _first_weights(self, run: Run) -> str | None:
        """SHA-256 of what a run starts from; None where that is to be trained first."""
        parent, path = self.pipeline.parent(run), self.pipeline.parent_path(run)
        if parent is not None and (self.missing(parent) or self.differences(parent)):
            return None
        assert path is not None  # of a run that starts from something
        if path.is_dir():
            record = _json(path / "run.json")
            return None if record is None else str(record["weights_sha256"])
        return _file_digest(path) if path.is_file() else None


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content


@cache
def _file_digest(path: Path) -> str:
    return file_digest(path)
