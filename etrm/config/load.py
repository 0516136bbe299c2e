"""Study configuration: load, merge, validate, resolve.

A document is `extends` (a base file) + `defaults` (shared by all experiments) + `experiments`
(named differences, or sweeps of them). `load_study` gives a validated `StudyConfig` or raises
`ConfigError` with every problem at once; `run_config` gives the part that one training run depends
on, and nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from etrm.config.data import DataConfig, unknown_sources
from etrm.config.entry import Entry
from etrm.config.files import read_file
from etrm.config.following import follow, selection_problems
from etrm.config.health import HealthConfig
from etrm.config.merging import REMOVED, merge
from etrm.config.parents import parent_problems, unknown_experiment, unknown_parent
from etrm.config.schema import (
    ConfigError,
    ConfigProblem,
    Written,
    expand_home,
    keys_of,
    not_text,
    parse,
    parse_dataclass,
    unknown_key,
)
from etrm.config.study import (
    STAGES,
    EvaluationConfig,
    ExperimentConfig,
    ExperimentSources,
    RunConfig,
    StudyConfig,
    TrainConfig,
)
from etrm.config.sweep import Expansion, expand
from etrm.config.text import join, show


def read_study(path: str | Path, overrides: Mapping[str, Any] | None = None) -> StudyConfig:
    """Return the study of a YAML or JSON file, with `overrides` merged over it."""
    return load_study(merge(_read_document(Path(path)), overrides or {}), name=str(path))


def load_study(document: Mapping[str, Any], name: str = "configuration") -> StudyConfig:
    """Return the study of a merged document; raises `ConfigError` with all of its problems."""
    if not isinstance(document, Mapping):
        raise ConfigError([ConfigProblem("(top level)", show(document), "a block of keys")], name)
    document = _extended(document)  # from here on nothing is read from disk
    problems = list(not_text(document))
    data = document.get("data")
    if isinstance(data, Mapping) and isinstance(data.get("sources"), Mapping):
        sources = merge(plain(DataConfig().sources), data["sources"])  # those by default stay
        document["data"] = {**data, "sources": sources}
    own = set(keys_of(StudyConfig)) - {"experiments"}  # those need the defaults
    content = {k: v for k, v in document.items() if k in own}
    study = parse_dataclass(StudyConfig, content, "", problems)
    known = own | {"defaults", "experiments"}
    unknown = (key for key in document if key not in known)
    problems += [unknown_key(join("", key), key, known | {"extends"}) for key in unknown]
    experiments = _experiments(document, problems)
    if study is not None:
        problems += _unusable_sources(study.data, experiments)
        problems += selection_problems(study, experiments)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)), name)
    assert study is not None
    return _with_all_sources(dataclasses.replace(study, experiments=experiments))


def run_config(study: StudyConfig, experiment: str, stage: str, seed: int) -> RunConfig:
    """Return everything that can change the result of one run of `experiment`."""
    config = study.experiments[experiment]
    shared = {k: getattr(config, k) for k in keys_of(RunConfig) if k in keys_of(ExperimentConfig)}
    own = config.sources
    shared["sources"] = None if own.training is None else (*own.training, *(own.evaluation or ()))
    shared["train"] = parse(TrainConfig, merge(plain(config.train), config.stages.get(stage, {})))
    return RunConfig(experiment=experiment, stage=stage, seed=seed, **shared)


def evaluation_settings(config: EvaluationConfig) -> dict[str, Any]:
    """Return everything that can change the result of an evaluation: not the number of jobs."""
    return {key: value for key, value in plain(config).items() if key != "jobs"}


def validation_settings(config: EvaluationConfig) -> dict[str, Any]:
    """Return everything that can change the result of a validation."""
    return {
        key: getattr(config, key) for key in ("variants", "batch_size", "weights", "halt_early")
    }


def result_settings(config: ExperimentConfig, stage: str) -> dict[str, Any]:
    """Return the settings of an experiment's `evaluation`, `refinement` or `validation`."""
    if stage == "refinement":
        return dict(plain(config.refinement))
    of = validation_settings if stage == "validation" else evaluation_settings
    return of(config.evaluation)


def to_yaml(study: StudyConfig) -> str:
    """Return the study with nothing left to merge, as a study file that gives it again."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # of libyaml, in half the time
    return yaml.dump(plain(study), Dumper=dumper, sort_keys=False, allow_unicode=True)


def plain(value: Any) -> Any:
    """Return a dataclass, with all that it holds, as dictionaries, lists and scalars."""
    if isinstance(value, Written):
        return value.plain()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _read_document(path: Path) -> dict[str, Any]:
    document = read_file(path)
    if not isinstance(document, dict):
        raise ConfigError([ConfigProblem(str(path), show(document), "a block of keys")])
    return document


def _extended(document: Mapping[str, Any], seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a document merged over the file that it extends."""
    document = dict(document)
    base = document.pop("extends", None)
    if base is None:
        return document
    if not isinstance(base, str):
        raise ConfigError([ConfigProblem("extends", show(base), "the path of a YAML file")])
    problems: list[ConfigProblem] = []
    base = expand_home(base, "extends", problems)
    if base is None:
        raise ConfigError(problems)
    if base in seen:  # paths as written: a circle repeats one
        chain = " → ".join((*seen, base))
        raise ConfigError([ConfigProblem("extends", f"a circle: {chain}", "a chain that ends")])
    inherited = _extended(_read_document(Path(base)), (*seen, base))
    merged = merge(inherited, document)
    old, new = inherited.get("experiments"), document.get("experiments")
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in [name for name, content in new.items() if content is None]:
            merged["experiments"][name] = REMOVED  # in the base itself, null is the defaults
            if name in old:
                del merged["experiments"][name]
    return merged


def _experiments(
    document: Mapping[str, Any], problems: list[ConfigProblem]
) -> dict[str, ExperimentConfig]:
    """Return the valid experiments of a document by name; add the problems of all others."""
    given, defaults = document.get("experiments"), document.get("defaults")
    if not isinstance(given, Mapping) or not given:
        problems.append(ConfigProblem("experiments", show(given), "a block of named experiments"))
        return {}
    if defaults is not None and not isinstance(defaults, Mapping):
        problems.append(ConfigProblem("defaults", show(defaults), "a block of keys"))
        return {}
    inherited = merge({"health": plain(HealthConfig())}, defaults or {})
    if "sweep" in inherited:
        expected = "no sweep: it stands in the experiment that it expands"
        problems.append(ConfigProblem("defaults.sweep", show(inherited.pop("sweep")), expected))
    _, shared = _experiment(inherited)  # problems that no experiment adds
    expansion = expand(given, problems)
    follow(expansion, document.get("selections"), inherited, problems)
    problems += _one_folder(expansion.entries)  # macOS and Windows fold case
    # A sweep itself is no experiment, nor is one that stands for many.
    known = {*given, *expansion.entries} - set(expansion.sweeps) - expansion.templates
    experiments: dict[str, ExperimentConfig] = {}
    for name, entry in expansion.entries.items():
        problems += entry.problems(inherited)
        merged = entry.over(inherited)
        config, found = _experiment(merged)
        for problem in found:
            # A problem of the defaults alone is reported once, at the place where it was written.
            if problem in shared and problem.path.split(".")[0] in inherited:
                problems.append(problem.under("defaults"))
            else:
                problems.append(entry.placed(problem, inherited, lambda m: _experiment(m)[1]))
        if config is not None and not found:
            experiments[name] = config
        else:
            check = partial(unknown_parent, known=set(map(str, known)), expansion=expansion)
            problems += [entry.placed(each, inherited, check) for each in check(merged)]
    problems += _unusable_names(document, known, experiments, expansion)
    unread = known - set(experiments)  # reported already: no parent to complain about
    for name in experiments:
        check = partial(_parents, name, experiments, expansion, unread)
        for problem in parent_problems(name, experiments, expansion, unread):
            problems.append(expansion.entries[name].placed(problem, inherited, check))
    return experiments


def _unusable_names(
    document: Mapping[str, Any],
    known: set[Any],
    experiments: Mapping[str, ExperimentConfig],
    expansion: Expansion,
) -> Iterator[ConfigProblem]:
    """Yield names in `baseline` and `finalists` of no experiment, or of one without a score."""
    finalists = document.get("finalists")
    listed = finalists if isinstance(finalists, list | tuple) else ()
    named = {"baseline": document.get("baseline")}
    groups = {config.group for config in experiments.values()}
    named |= {f"finalists[{i}]": name for i, name in enumerate(listed) if name not in groups}
    for path, name in named.items():
        if not isinstance(name, str) or expansion.may_have(name):
            continue
        if name not in known:
            yield unknown_experiment(path, name, known, expansion)
        elif path != "baseline" and name in experiments and not experiments[name].scored_stage:
            found = f"{name!r}, whose embeddings are of no held-out task"
            yield ConfigProblem(path, found, "an experiment that can be evaluated on them")


def _unusable_sources(
    data: DataConfig, experiments: Mapping[str, ExperimentConfig]
) -> Iterator[ConfigProblem]:
    """Yield the sources of experiments that do not exist, or are trained on by others."""
    trained_on = {*data.training}.union(*(e.sources.training or () for e in experiments.values()))
    for name, config in experiments.items():
        for key in ("training", "evaluation"):
            path, given = f"experiments.{name}.sources.{key}", getattr(config.sources, key)
            yield from unknown_sources(path, given or (), data.sources)
            for source in given or ():
                if key == "evaluation" and source in trained_on & data.sources.keys():
                    expected = "a source that no experiment trains on: its tasks are held out"
                    yield ConfigProblem(path, repr(source), expected)


def _with_all_sources(study: StudyConfig) -> StudyConfig:
    """Return a study whose data are of all experiments, where some have sources of their own.

    Every experiment then names its sources. The result of a study without such is the study.
    """
    data, experiments = study.data, study.experiments
    if all(config.sources == ExperimentSources() for config in experiments.values()):
        return study
    named: dict[str, ExperimentConfig] = {}
    training, evaluation = dict.fromkeys(data.training), dict.fromkeys(data.evaluation)
    for name, config in experiments.items():
        trained_on = config.sources.training or data.training
        held_out = config.sources.evaluation or data.evaluation
        own = ExperimentSources(trained_on, held_out)
        named[name] = dataclasses.replace(config, sources=own)
        training |= dict.fromkeys(trained_on)
        evaluation |= dict.fromkeys(held_out)
    data = dataclasses.replace(data, training=tuple(training), evaluation=tuple(evaluation))
    return dataclasses.replace(study, data=data, experiments=named)


def _parents(
    name: str,
    experiments: Mapping[str, ExperimentConfig],
    expansion: Expansion,
    unread: set[Any],
    merged: Mapping[str, Any],
) -> list[ConfigProblem]:
    """Return the problems of the parent of an experiment if it were this one."""
    config, found = _experiment(merged)
    if config is None or found:
        return []
    return list(parent_problems(name, {**experiments, name: config}, expansion, unread))


def _one_folder(entries: Mapping[str, Entry]) -> Iterator[ConfigProblem]:
    """Yield names that differ by case only, those of two sweeps once."""
    first: dict[str, Entry] = {}
    reported = set()
    for name, entry in entries.items():
        other = first.setdefault(name.lower(), entry)
        if other is not entry and (entry.origin, other.origin) not in reported:
            reported.add((entry.origin, other.origin))
            path = f"experiments.{entry.origin}{'.sweep' if entry.choices else ''}"
            found = f"the name {name!r} beside {other.name!r}"
            expected = "names that differ by more than case: some file systems have one folder for"
            yield ConfigProblem(path, found, f"{expected} both")


def _experiment(merged: Mapping[str, Any]) -> tuple[ExperimentConfig | None, list[ConfigProblem]]:
    """Return one experiment and its problems, also those of each stage."""
    found: list[ConfigProblem] = []
    config = parse_dataclass(ExperimentConfig, merged, "", found)  # None where there are problems
    stages, train = merged.get("stages", {}), merged.get("train", {})
    if not isinstance(stages, Mapping):
        return config, found
    base: list[ConfigProblem] = []
    parse_dataclass(TrainConfig, train, "", base)  # problems of train itself, said once
    for stage, difference in stages.items():
        path = join("stages", stage)
        if stage not in STAGES:
            found.append(unknown_key(path, stage, STAGES, noun="stage"))
        elif not isinstance(difference, Mapping):
            found.append(ConfigProblem(path, show(difference), "a block of differences to train"))
        elif isinstance(train, Mapping):
            mine: list[ConfigProblem] = []
            parse_dataclass(TrainConfig, merge(train, difference), "", mine)
            found += [each.under(path) for each in mine if each not in base]
    return config, found
