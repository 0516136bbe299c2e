"""Study configuration: load, merge, validate, resolve.

A document is `extends` (a base file) + `defaults` (shared by all experiments) + `experiments`
(named differences). `load_study` gives a validated `StudyConfig` or raises `ConfigError` with
every problem at once; `run_config` gives what one training run depends on, and nothing else.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from etrm.config.schema import (
    ConfigError,
    Problem,
    join,
    parse,
    parse_dataclass,
    show,
    unknown_key,
)
from etrm.config.study import (
    STAGES,
    ExperimentConfig,
    HealthConfig,
    RunConfig,
    StudyConfig,
    TrainConfig,
)

__all__ = [
    "STAGES",
    "ConfigError",
    "ExperimentConfig",
    "RunConfig",
    "StudyConfig",
    "load_study",
    "parse",
    "plain",
    "read_study",
    "run_config",
]

# A block whose tag changes is another type: it replaces the inherited block instead of merging.
TAGS = ("source", "kind")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def read_study(path: str | Path, overrides: Mapping[str, Any] | None = None) -> StudyConfig:
    """The study of a YAML file, with `overrides` merged over it."""
    return load_study(merge(_read_yaml(Path(path)), overrides or {}), name=str(path))


def load_study(document: Mapping[str, Any], name: str = "configuration") -> StudyConfig:
    """The study of a merged document; raises `ConfigError` with all of its problems."""
    document = _extended(document)
    problems: list[Problem] = []
    top = {k: v for k, v in document.items() if k not in ("defaults", "experiments")}
    study = parse_dataclass(StudyConfig, top, "", problems)
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


def plain(value: Any) -> Any:
    """A dataclass, with all that it holds, as dictionaries, lists and scalars."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def merge(base: Mapping[str, Any], difference: Mapping[str, Any]) -> dict[str, Any]:
    """`difference` over `base`, block by block; a block with another tag replaces the old one."""
    result = dict(base)
    for key, value in difference.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not _retagged(old, value):
            result[key] = merge(old, value)
        else:
            result[key] = value
    return result


def _retagged(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return any(tag in old and tag in new and old[tag] != new[tag] for tag in TAGS)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        expected = "the path of a YAML file, from the folder of the Snakefile"
        raise ConfigError([Problem(str(path), "no such file", expected)]) from None
    except yaml.YAMLError as error:
        found = "no YAML: " + " ".join(str(error).split())
        raise ConfigError([Problem(str(path), found, "a YAML document")]) from None
    if not isinstance(document, dict):
        raise ConfigError([Problem(str(path), show(document), "a block of keys")])
    return document


def _extended(document: Mapping[str, Any], seen: tuple[str, ...] = ()) -> dict[str, Any]:
    document = dict(document)
    base = document.pop("extends", None)
    if base is None:
        return document
    if not isinstance(base, str):
        raise ConfigError([Problem("extends", show(base), "the path of a YAML file")])
    if base in seen:
        chain = " → ".join((*seen, base))
        raise ConfigError([Problem("extends", f"a circle: {chain}", "a chain that ends")])
    return merge(_extended(_read_yaml(Path(base)), (*seen, base)), document)


def _experiments(
    document: Mapping[str, Any], problems: list[Problem]
) -> dict[str, ExperimentConfig]:
    given = document.get("experiments")
    if not isinstance(given, Mapping) or not given:
        problems.append(Problem("experiments", show(given), "a block of named experiments"))
        return {}
    defaults = document.get("defaults") or {}
    if not isinstance(defaults, Mapping):
        problems.append(Problem("defaults", show(defaults), "a block of keys"))
        return {}
    inherited = merge({"health": plain(HealthConfig())}, defaults)
    experiments = {}
    for name, difference in given.items():
        path = join("experiments", name)
        if not NAME.fullmatch(str(name)):
            expected = "letters, digits, - and _, beginning with a letter: it names folders"
            problems.append(Problem(path, f"the name {name!r}", expected))
        elif not isinstance(difference or {}, Mapping):
            problems.append(Problem(path, show(difference), "a block of differences to defaults"))
        else:
            found = _experiment(path, inherited, difference or {}, problems)
            if found is not None:
                experiments[str(name)] = found
    if len(experiments) == len(given):
        problems += _parents(experiments)
    return experiments


def _experiment(
    path: str, inherited: Mapping[str, Any], difference: Mapping[str, Any], problems: list[Problem]
) -> ExperimentConfig | None:
    merged = merge(inherited, difference)
    found: list[Problem] = []
    config = parse_dataclass(ExperimentConfig, merged, "", found)
    found += _stage_problems(merged, config)
    problems += [
        dataclasses.replace(p, path=join(_origin(p.path, path, difference), p.path)) for p in found
    ]
    return None if found else config


def _origin(key: str, path: str, difference: Mapping[str, Any]) -> str:
    """Where a key was written: in the experiment, or in the defaults that it inherits."""
    first = key.split(".")[0].split("[")[0]
    node: Any = difference
    for part in key.split("."):
        part = part.split("[")[0]
        if not isinstance(node, Mapping) or part not in node:
            return path if node is not difference and first in difference else "defaults"
        node = node[part]
    return path


def _stage_problems(merged: Mapping[str, Any], config: ExperimentConfig | None) -> list[Problem]:
    """Unknown stages, and stage differences that make no valid training."""
    found: list[Problem] = []
    stages = merged.get("stages") or {}
    if not isinstance(stages, Mapping):
        return found
    for stage, difference in stages.items():
        path = join("stages", stage)
        if stage not in STAGES:
            found.append(unknown_key(path, stage, STAGES, what="stage"))
        elif not isinstance(difference, Mapping):
            found.append(Problem(path, show(difference), "a block of differences to train"))
        elif config is not None:
            parse_dataclass(TrainConfig, merge(plain(config.train), difference), path, found)
    return found


def _parents(experiments: Mapping[str, ExperimentConfig]) -> list[Problem]:
    """`decoder.init` must name a pretraining experiment with a decoder of the same sizes."""
    found = []
    known = [name for name, config in experiments.items() if config.is_trm]
    for name, config in experiments.items():
        parent, path = config.decoder.init, f"experiments.{name}.decoder.init"
        if parent is None:
            continue
        if parent not in known:
            found.append(unknown_key(path, parent, known, what="pretraining experiment"))
        elif experiments[parent].model != config.model:
            ours, theirs = plain(config.model), plain(experiments[parent].model)
            differ = [k for k in ours if ours[k] != theirs[k]]
            text = ", ".join(f"{k} {ours[k]} here and {theirs[k]} there" for k in differ)
            expected = f"the decoder sizes of {parent!r}, whose weights it starts from"
            found.append(Problem(path, text, expected))
    return found
