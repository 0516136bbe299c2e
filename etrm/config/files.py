"""Configuration files, YAML or JSON, read strictly.

Of two equal keys in a block, YAML and JSON keep the last and say nothing: an experiment would
vanish. Here that is an error, which names the file, the key and its lines.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from etrm.config.schema import ConfigError, ConfigProblem
from etrm.config.text import join

MERGE = "tag:yaml.org,2002:merge"  # of the key `<<`
CHECKOUT = Path(__file__).resolve().parents[2]  # of this package, where it runs from one
A_PATH = "the path of a YAML file, from the working directory or from the folder of the Snakefile"


def read_file(path: Path, expected: str = A_PATH) -> Any:
    """Return the content of a YAML or JSON file; None for an empty one.

    Raises `ConfigError` where the file is missing (`expected`: the file that it should be),
    unreadable, neither YAML nor JSON, or has a key twice in one block.
    """
    try:
        return _parse(located(path).read_text(encoding="utf-8"), str(path))
    except ConfigError:
        raise
    except FileNotFoundError:
        raise ConfigError([ConfigProblem(str(path), "no such file", expected)]) from None
    except (OSError, UnicodeDecodeError) as error:
        found = f"a file that cannot be read: {error}"
        raise ConfigError([ConfigProblem(str(path), found, "a YAML file in UTF-8")]) from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date with no such day
        found = "no YAML: " + " ".join(str(error).split())
        raise ConfigError([ConfigProblem(str(path), found, "a YAML document")]) from None


def located(path: Path) -> Path:
    """Return the file of the checkout where a relative path leads to none from here.

    So that `config/config.yaml` means the same in whatever folder a study is run.
    """
    ours = CHECKOUT / path
    return ours if not path.exists() and ours.is_file() else path


def check_files(paths: Iterable[str | Path]) -> None:
    """Raise `ConfigError` for the first of these files that `read_file` refuses.

    For files that Snakemake has read and merged before this package sees their content.
    """
    here = Path.cwd()
    for path in map(Path, paths):
        read_file(path.relative_to(here) if path.is_relative_to(here) else path)


def with_types(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `--config` of Snakemake with the types that YAML gives to its nested values.

    Snakemake reads `data={variants: 8}` with a text "8"; values that are not nested have types.
    """
    return {k: v if isinstance(v, str) else _typed(v) for k, v in config.items()}


def _typed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _typed(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_typed(v) for v in value]
    if not isinstance(value, str):
        return value
    loader = yaml.SafeLoader("")
    node = yaml.ScalarNode(loader.resolve(yaml.ScalarNode, value, (True, False)), value)
    with suppress(ValueError):  # a date with no such day
        return loader.construct_object(node)
    return value


def _parse(text: str, name: str) -> Any:
    """Return the content of a file's text. JSON is tried first, as Snakemake does."""
    try:
        content = json.loads(text)
        text = text.replace("\t", " ")  # tabs stand between the tokens only, and YAML takes none
    except ValueError:
        content = None
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()  # the tree, in which keys still repeat
        if root is None:
            return None
        problems = list(_duplicates(root, "", loader, set()))
        if problems:
            raise ConfigError(problems, name)
        return loader.construct_document(root) if content is None else content
    finally:
        loader.dispose()


def _duplicates(
    node: yaml.Node, path: str, loader: yaml.SafeLoader, seen: set[int]
) -> Iterator[ConfigProblem]:
    """Yield a problem for each key that stands more than once in its block, at any depth."""
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _duplicates(item, f"{path}[{number}]", loader, seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[Hashable, list[int]] = {}
        for key, value in node.value:
            name = "<<" if key.tag == MERGE else loader.construct_object(key, deep=True)
            if isinstance(name, Hashable):  # another is an error when the block is made
                lines.setdefault(name, []).append(key.start_mark.line + 1)
            yield from _duplicates(value, join(path, name), loader, seen)
        yield from (_twice(join(path, n), at) for n, at in lines.items() if len(at) > 1)


def _twice(path: str, lines: list[int]) -> ConfigProblem:
    times = "twice" if len(lines) == 2 else f"{len(lines)} times"
    *before, last = dict.fromkeys(map(str, lines))
    places = f"lines {', '.join(before)} and {last}" if before else f"line {last}"
    hint = "the last one would replace the others: rename it, or make one block of them"
    return ConfigProblem(path, f"the key {times}, on {places}", "it once in its block", hint)
