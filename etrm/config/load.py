"""Study configuration: load, merge, validate, resolve.

A document is `extends` (a base file) + `defaults` (shared by all experiments) + `experiments`
(named differences, or sweeps of them). `load_study` gives a validated `StudyConfig` or raises
`ConfigError` with every problem at once; `run_config` gives what one training run depends on, and
nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from etrm.config.entry import Entry, under
from etrm.config.files import check_files, read_file
from etrm.config.health import HealthConfig
from etrm.config.merging import merge
from etrm.config.schema import (
    ConfigError,
    ConfigProblem,
    expand_home,
    not_text,
    parse,
    parse_dataclass,
    unknown_key,
)
from etrm.config.study import (
    STAGES,
    EvaluationConfig,
    ExperimentConfig,
    RunConfig,
    StudyConfig,
    TrainConfig,
)
from etrm.config.sweep import Expansion, expand
from etrm.config.text import join, show

__all__ = [
    "DECODER_SIZES",
    "STAGES",
    "ConfigError",
    "ExperimentConfig",
    "RunConfig",
    "StudyConfig",
    "check_files",
    "evaluation_settings",
    "load_study",
    "names_file",
    "parse",
    "plain",
    "read_study",
    "run_config",
    "to_yaml",
]

# What a decoder must share with the one whose weights it starts from: everything but the number of
# context tokens, which no weight depends on and which is an encoder's to choose.
DECODER_SIZES = (
    "width",
    "heads",
    "layers",
    "expansion",
    "H_cycles",
    "L_cycles",
    "positions",
    "rope_theta",
)


def read_study(path: str | Path, overrides: Mapping[str, Any] | None = None) -> StudyConfig:
    """The study of a YAML or JSON file, with `overrides` merged over it."""
    return load_study(merge(_read_document(Path(path)), overrides or {}), name=str(path))


def load_study(document: Mapping[str, Any], name: str = "configuration") -> StudyConfig:
    """The study of a merged document; raises `ConfigError` with all of its problems."""
    if not isinstance(document, Mapping):
        raise ConfigError([ConfigProblem("(top level)", show(document), "a block of keys")], name)
    document = _extended(document)
    problems = list(not_text(document))
    fields = {field.name for field in dataclasses.fields(StudyConfig)} - {"experiments"}
    study = parse_dataclass(
        StudyConfig, {k: v for k, v in document.items() if k in fields}, "", problems
    )
    for key in document:
        if key not in fields and key not in ("defaults", "experiments"):
            problems.append(
                unknown_key(join("", key), key, {*fields, "extends", "defaults", "experiments"})
            )
    experiments = _experiments(document, problems)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)), name)
    assert study is not None
    return dataclasses.replace(study, experiments=experiments)


def run_config(study: StudyConfig, experiment: str, stage: str, seed: int) -> RunConfig:
    """Everything that can change the result of one run of `experiment`."""
    config = study.experiments[experiment]
    train = parse(TrainConfig, merge(plain(config.train), config.stages.get(stage, {})))
    names = {field.name for field in dataclasses.fields(RunConfig)}
    shared = {k: getattr(config, k) for k in names & {f.name for f in dataclasses.fields(config)}}
    shared["train"] = train
    return RunConfig(experiment=experiment, stage=stage, seed=seed, **shared)


def evaluation_settings(config: EvaluationConfig) -> dict[str, Any]:
    """Everything that can change the result of an evaluation: not how many jobs share it."""
    return {key: value for key, value in plain(config).items() if key != "jobs"}


def to_yaml(study: StudyConfig) -> str:
    """The study with nothing left to merge, as a study file that gives the same study again."""
    return yaml.safe_dump(plain(study), sort_keys=False, allow_unicode=True)


def plain(value: Any) -> Any:
    """A dataclass, with all that it holds, as dictionaries, lists and scalars."""
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
    if base in seen:
        chain = " → ".join((*seen, base))
        raise ConfigError([ConfigProblem("extends", f"a circle: {chain}", "a chain that ends")])
    return merge(_extended(_read_document(Path(base)), (*seen, base)), document)


def _experiments(
    document: Mapping[str, Any], problems: list[ConfigProblem]
) -> dict[str, ExperimentConfig]:
    given = document.get("experiments")
    if not isinstance(given, Mapping) or not given:
        problems.append(ConfigProblem("experiments", show(given), "a block of named experiments"))
        return {}
    defaults = document.get("defaults")
    if defaults is not None and not isinstance(defaults, Mapping):
        problems.append(ConfigProblem("defaults", show(defaults), "a block of keys"))
        return {}
    inherited = merge({"health": plain(HealthConfig())}, defaults or {})
    if "sweep" in inherited:
        expected = "no sweep: it stands in the experiment that it expands"
        problems.append(ConfigProblem("defaults.sweep", show(inherited.pop("sweep")), expected))
    _, shared = _experiment(inherited)
    expansion = expand(given, problems)
    problems += _one_folder(expansion.entries)
    known = {*given, *expansion.entries} - set(expansion.sweeps)
    experiments: dict[str, ExperimentConfig] = {}
    for name, entry in expansion.entries.items():
        problems += entry.problems(inherited)
        merged = entry.over(inherited)
        config, found = _experiment(merged)
        for problem in found:
            # What is wrong with the defaults alone is said once, where it was written.
            theirs = problem in shared and problem.path.split(".")[0] in inherited
            placed = entry.placed(problem, inherited, _problems)
            problems.append(under("defaults", problem) if theirs else placed)
        if config is not None and not found:
            experiments[name] = config
        else:
            check = functools.partial(_unknown_parent, known=known, expansion=expansion)
            problems += [entry.placed(p, inherited, check) for p in check(merged)]
    problems += _parents(experiments, inherited, expansion, broken=known - set(experiments))
    return experiments


def _one_folder(entries: Mapping[str, Entry]) -> Iterator[ConfigProblem]:
    """Names that differ by case only, those of two sweeps once."""
    first: dict[str, Entry] = {}
    said = set()
    for name, entry in entries.items():
        other = first.setdefault(name.lower(), entry)
        if other is not entry and (entry.origin, other.origin) not in said:
            said.add((entry.origin, other.origin))
            path = f"experiments.{entry.origin}{'.sweep' if entry.choices else ''}"
            found = f"the name {name!r} beside {other.name!r}"
            expected = "names that differ by more than case: some file systems have one folder for"
            yield ConfigProblem(path, found, f"{expected} both")


def _problems(merged: Mapping[str, Any]) -> list[ConfigProblem]:
    return _experiment(merged)[1]


def _unknown_parent(
    merged: Mapping[str, Any], known: Iterable[Any], expansion: Expansion
) -> list[ConfigProblem]:
    """`decoder.init` of an experiment with other problems, where it names none at all."""
    decoder = merged.get("decoder")
    init = decoder.get("init") if isinstance(decoder, Mapping) else None
    if not isinstance(init, str) or not init or init in known or names_file(init):
        return []
    if expansion.may_have(init):
        return []
    return [_no_parent(init, map(str, known), expansion, what="experiment")]


def _no_parent(init: str, known: Iterable[str], expansion: Expansion, what: str) -> ConfigProblem:
    names = list(known)
    points = [point for point in expansion.sweeps.get(init, ()) if point in names]
    if points:
        expected = f"one of its points: {', '.join(points)}"
        return ConfigProblem("decoder.init", f"the sweep {init!r}", expected)
    return unknown_key("decoder.init", init, names, what=what)


def _experiment(merged: Mapping[str, Any]) -> tuple[ExperimentConfig | None, list[ConfigProblem]]:
    """One experiment and its problems, stage by stage too."""
    found: list[ConfigProblem] = []
    config = parse_dataclass(ExperimentConfig, merged, "", found)
    stages, train = merged.get("stages", {}), merged.get("train", {})
    if not isinstance(stages, Mapping):
        return config, found
    base: list[ConfigProblem] = []
    parse_dataclass(TrainConfig, train, "", base)
    for stage, difference in stages.items():
        path = join("stages", stage)
        if stage not in STAGES:
            found.append(unknown_key(path, stage, STAGES, what="stage"))
        elif not isinstance(difference, Mapping):
            found.append(ConfigProblem(path, show(difference), "a block of differences to train"))
        elif isinstance(train, Mapping):
            mine: list[ConfigProblem] = []
            parse_dataclass(TrainConfig, merge(train, difference), "", mine)
            found += [under(path, p) for p in mine if p not in base]
    return config, found


def _parents(
    experiments: Mapping[str, ExperimentConfig],
    inherited: Mapping[str, Any],
    expansion: Expansion,
    broken: set[Any],
) -> list[ConfigProblem]:
    """The problems of `decoder.init` in all experiments, each where it was written."""
    found = []
    for name in experiments:

        def check(merged: Mapping[str, Any], name: str = name) -> list[ConfigProblem]:
            config, problems = _experiment(merged)
            if config is None or problems:
                return []
            return _parent(name, {**experiments, name: config}, expansion, broken)

        entry = expansion.entries[name]
        for problem in _parent(name, experiments, expansion, broken):
            found.append(entry.placed(problem, inherited, check))
    return found


def _parent(
    name: str, experiments: Mapping[str, ExperimentConfig], expansion: Expansion, broken: set[Any]
) -> list[ConfigProblem]:
    """`decoder.init` must name a pretraining with a decoder of the same sizes and cycles.

    Whether its weights have seen held-out tasks is checked where the tasks are known: before
    training.
    """
    config = experiments[name]
    parent = config.decoder.init
    if parent is None or parent in broken or names_file(parent) or expansion.may_have(parent):
        return []
    known = [other for other, config in experiments.items() if config.is_trm]
    if parent not in known:
        return [_no_parent(parent, known, expansion, what="pretraining experiment")]
    found = []
    theirs = experiments[parent]
    differ = [k for k in DECODER_SIZES if _differ(k, config.model, theirs.model)]
    if differ:
        ours, other = plain(config.model), plain(theirs.model)
        text = ", ".join(f"{k} {ours[k]} here and {other[k]} there" for k in differ)
        expected = f"the decoder sizes of {parent!r}, whose weights it starts from"
        found.append(ConfigProblem("decoder.init", text, expected))
    absent = [str(seed) for seed in config.seeds if seed not in theirs.seeds]
    if config.decoder.init_seed == "same" and absent:
        text = f"same, but {parent!r} has no seed {', '.join(absent)}"
        found.append(ConfigProblem("decoder.init_seed", text, "first, or these among its seeds"))
    if _circle(name, experiments):
        expected = "null, or a pretraining that does not start from this one"
        found.append(ConfigProblem("decoder.init", f"a circle back to {name!r}", expected))
    return found


def names_file(init: str) -> bool:
    """Does `decoder.init` name a file or folder, rather than an experiment?"""
    return "/" in init or init[:1] == "~" or Path(init).suffix in (".pt", ".safetensors")


def _differ(key: str, ours: Any, theirs: Any) -> bool:
    return bool(getattr(ours, key) != getattr(theirs, key))


def _circle(name: str, experiments: Mapping[str, ExperimentConfig]) -> bool:
    """Does following `decoder.init` from this experiment lead back to it?"""
    parents = {n: config.decoder.init for n, config in experiments.items()}
    at = parents[name]
    for _ in parents:
        if at == name or at is None:
            break
        at = parents.get(at)
    return at == name
