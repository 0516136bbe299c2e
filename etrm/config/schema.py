"""A strict loader from plain YAML values to typed dataclasses.

Every problem of a document is collected, each with its dotted path, the value found and what is
allowed; nothing is coerced silently (`1e-4` without a dot is a string to YAML, and is said so).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import types
import typing
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from etrm.errors import UserError

REQUIRED = dataclasses.MISSING
# A tagged union is resolved through a function, so that registries load only what is named.
Variants = Callable[[], Mapping[str, Callable[[], type]]]


class ConfigError(UserError):
    """All problems of a configuration, one line each."""

    def __init__(self, problems: list[Problem], name: str = "configuration") -> None:
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "\n".join(f"  {problem}" for problem in problems)
        super().__init__(f"{name}: {count}\n{lines}")


@dataclass(frozen=True)
class Problem:
    """One problem: the dotted path, what was found there, what is allowed, and a way out."""

    path: str
    found: str
    expected: str
    hint: str = ""

    def __str__(self) -> str:
        text = f"{printable(self.path)}: found {self.found}, expected {self.expected}"
        return f"{text} ({self.hint})" if self.hint else text


@dataclass(frozen=True)
class Rule:
    """A condition on the whole value of a field, and how it is said to people."""

    text: str
    holds: Callable[[Any], bool]


DISTINCT = Rule("at least one, none twice", lambda v: 0 < len(v) == len(set(v)))
ASCENDING = Rule(
    "at least one, in ascending order, none twice", lambda v: v and list(v) == sorted(set(v))
)
TWO = Rule("two of them", lambda v: len(v) == 2)
# Letters of a name. It stands in names of files that a file system bounds at 255 bytes, the longest
# `.<name>-pretrain-seed2147483647-<SLURM job>.json.<process>.tmp`, and of W&B, which takes 128.
MAX_NAME = 100
MAX_SEED = 2**31 - 1  # it stands there, too
NAME = Rule(
    f"letters, digits, - and _, beginning with a letter, up to {MAX_NAME}: it names folders",
    lambda v: re.fullmatch(rf"[A-Za-z][A-Za-z0-9_-]{{0,{MAX_NAME - 1}}}", v) is not None,
)
SIGNS = "{}<>"  # Snakemake takes what is between them for wildcards and variables
# Cc, Zl, Zp: control characters and line breaks.
PATH = Rule(
    "a path on this machine without { } < >, control characters and names of over 255 bytes",
    lambda v: (
        bool(v)
        and "://" not in v
        and not any(c in SIGNS or unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in v)
        and max(len(name.encode(errors="surrogatepass")) for name in v.split("/")) <= 255
    ),
)
# Targets of the workflow, which a group of experiments cannot be named after.
TARGETS = (
    *("all", "tasks", "augment", "pretrain", "overfit", "gate", "full", "evaluate", "figures"),
    *("tables", "record", "records", "report", "train_pretrain", "train_overfit", "train_full"),
    *("verdict", "evaluate_shard", "evaluate_run", "merge_shards", "resolved_config"),
)
GROUP = Rule(
    f"a name of letters, digits, - and _, up to {MAX_NAME}, that is no other target"
    f" ({', '.join(TARGETS)})",
    lambda v: v is None or (NAME.holds(v) and v not in TARGETS),
)


def option(
    help: str,
    default: Any = REQUIRED,
    *,
    unit: str = "",
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: tuple[Any, ...] | None = None,
    rule: Rule | None = None,
    path: bool = False,
    factory: Callable[[], Any] | None = None,
) -> Any:
    """A dataclass field with its meaning, unit and bounds; without `default` it is required.

    Bounds and choices of a list hold for its elements, `rule` for the list. A `path` follows the
    rule PATH, and the home directory takes the place of its `~`.
    """
    metadata: dict[str, Any] = {"help": help, "unit": unit, "choices": choices, "rule": rule}
    metadata["path"] = path
    metadata["bounds"] = {k: v for k, v in (("ge", ge), ("gt", gt), ("le", le), ("lt", lt))}
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def tagged(
    help: str, tag: str, variants: Variants, factory: Callable[[], Any] | None = None
) -> Any:
    """A field whose type is chosen by the value of its key `tag` (see `Tagged`)."""
    metadata = {"help": help, "tagged": Tagged(tag, variants)}
    if factory is None:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default_factory=factory, metadata=metadata)


@dataclass(frozen=True)
class Tagged:
    """A union of dataclasses told apart by the key `tag`."""

    tag: str
    variants: Variants

    @property
    def expected(self) -> str:
        """What an error says is allowed."""
        return f"a block with `{self.tag}:` one of {', '.join(sorted(self.variants()))}"


def printable(text: str) -> str:
    """Return `text` with escapes for what no terminal or log shows, as `\\x00` and `\\ud800`."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def parse(cls: type, value: Any, path: str = "") -> Any:
    """`value` as an instance of the dataclass `cls`; raises `ConfigError` with all problems."""
    problems: list[Problem] = []
    result = parse_dataclass(cls, value, path, problems)
    if problems:
        raise ConfigError(problems)
    return result


def parse_dataclass(cls: type, value: Any, path: str, problems: list[Problem]) -> Any:
    """As `parse`, but adds to `problems`; returns None where there were any."""
    if not isinstance(value, Mapping):
        problems.append(Problem(path or "(top level)", show(value), "a block of keys"))
        return None
    before = len(problems)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in value:
        if key not in fields:
            problems.append(unknown_key(join(path, key), key, fields))
    arguments = {}
    for name, field in fields.items():
        here = join(path, name)
        if name in value:
            arguments[name] = _field(field, hints[name], value[name], here, problems)
        elif field.default is REQUIRED and field.default_factory is REQUIRED:
            union = field.metadata.get("tagged")
            expected = union.expected if union else f"a value: {field.metadata.get('help', '')}"
            problems.append(Problem(here, "nothing", expected))
    if len(problems) > before:
        return None
    result = cls(**arguments)
    for check in getattr(result, "problems", lambda: [])():
        problems.append(dataclasses.replace(check, path=join(path, check.path)))
    return result if len(problems) == before else None


def unknown_key(path: str, key: Any, known: typing.Iterable[str], what: str = "key") -> Problem:
    """The problem of a name that is not among `known`, with the nearest known one."""
    names = sorted(known)
    expected = f"one of {', '.join(names)}" if names else f"no {what}: there is none to name"
    return Problem(path, f"the unknown {what} {key!r}", expected, _nearest(key, names))


def _nearest(value: Any, known: typing.Iterable[Any]) -> str:
    near = difflib.get_close_matches(str(value), [str(name) for name in known], n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def join(path: str, key: Any) -> str:
    """The dotted path of `key` under `path`."""
    name = str(key) or "''"
    return f"{path}.{name}" if path else name


def show(value: Any) -> str:
    """A value as an error message shows it: with its YAML kind where that is the problem."""
    kind = {bool: "true/false", str: "text", int: "integer", float: "number", type(None): "null"}
    kind[list] = "list"
    kind[dict] = "block"
    return f"{brief(value)} ({kind.get(type(value), type(value).__name__)})"


def brief(value: Any) -> str:
    """The beginning of a long value; of a text, its length too."""
    text = repr(value)
    if len(text) <= 60:
        return text
    return f"{text[:57]}...{f' of {len(value)} letters' if isinstance(value, str) else ''}"


def expand_home(value: str, path: str, problems: list[Problem]) -> str | None:
    """A path with the home directory for its `~` or `~user`; None after a problem."""
    with suppress(ValueError):  # a name that no user can have
        expanded = os.path.expanduser(value)
        if not expanded.startswith("~"):
            return expanded
    expected = f"~ or ~ and a user of this machine; ./{printable(value)} is the file of this name"
    problems.append(Problem(path, f"{brief(value)}, but no home directory for it", expected))
    return None


def not_text(value: Any, path: str = "") -> Iterator[Problem]:
    """Keys and values below `value` that hold halves of characters, which no file can."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from not_text(key, join(path, key))
            yield from not_text(inner, join(path, key))
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from not_text(inner, f"{path}[{i}]")
    elif isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
        yield Problem(path, brief(value), "whole characters: none of U+D800 to U+DFFF")


def _field(
    field: dataclasses.Field[Any], hint: Any, value: Any, path: str, problems: list[Problem]
) -> Any:
    union = field.metadata.get("tagged")
    if union is None:
        before = len(problems)
        result = _value(hint, value, path, field.metadata, problems)
        rule = field.metadata.get("rule")
        if rule and len(problems) == before and not rule.holds(result):
            problems.append(
                Problem(
                    path, brief(list(result) if isinstance(result, tuple) else result), rule.text
                )
            )
        return result
    if typing.get_origin(hint) is dict:
        if not isinstance(value, Mapping):
            problems.append(Problem(path, show(value), "a block of named entries"))
            return None
        return {str(k): parse_tagged(union, v, join(path, k), problems) for k, v in value.items()}
    return parse_tagged(union, value, path, problems)


def parse_tagged(union: Tagged, value: Any, path: str, problems: list[Problem]) -> Any:
    """One member of a tagged union; the tag itself stays a field of the result."""
    known = union.variants()
    if not isinstance(value, Mapping) or union.tag not in value:
        problems.append(Problem(path, show(value), union.expected))
        return None
    tag = value[union.tag]
    if not isinstance(tag, str) or tag not in known:
        problems.append(unknown_key(join(path, union.tag), tag, known, what=union.tag))
        return None
    return parse_dataclass(known[tag](), value, path, problems)


def _value(
    hint: Any, value: Any, path: str, metadata: Mapping[str, Any], problems: list[Problem]
) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in arguments if a is not type(None)]
        nullable = {**metadata, "null": True}
        return None if value is None else _value(inner[0], value, path, nullable, problems)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            problems.append(Problem(path, show(value), "a list"))
            return None
        return tuple(
            _value(arguments[0], item, f"{path}[{i}]", metadata, problems)
            for i, item in enumerate(value)
        )
    if origin is dict:
        if not isinstance(value, Mapping):
            problems.append(Problem(path, show(value), "a block of named entries"))
            return None
        return {
            str(k): _value(arguments[1], v, join(path, k), metadata, problems)
            for k, v in value.items()
        }
    if dataclasses.is_dataclass(hint):
        return parse_dataclass(typing.cast(type, hint), value, path, problems)
    if hint is Any:
        return value
    return _scalar(hint, value, path, metadata, problems)


def _scalar(
    hint: type, value: Any, path: str, metadata: Mapping[str, Any], problems: list[Problem]
) -> Any:
    right = isinstance(value, hint) and not (hint is not bool and isinstance(value, bool))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value, right = _float(value), True
    fix = ""
    if not right:
        if hint is float and _numeric(value):
            fix = "write it with a dot, as in 1.0e-4"
        problems.append(Problem(path, show(value), allowed(hint, metadata), fix))
        return None
    choices = metadata.get("choices")
    if choices and value not in choices:
        fix = _nearest(value, choices)
    elif not _out_of_bounds(value, metadata):
        return _path(value, path, problems) if metadata.get("path") else value
    problems.append(Problem(path, brief(value), allowed(hint, metadata), fix))
    return None


def _path(value: str, path: str, problems: list[Problem]) -> str | None:
    if PATH.holds(value):
        return expand_home(value, path, problems)
    problems.append(Problem(path, brief(value), PATH.text))
    return None


def _numeric(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return isinstance(value, str)


def _float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _out_of_bounds(value: Any, metadata: Mapping[str, Any]) -> bool:
    if isinstance(value, (bool, str)):
        return False
    if isinstance(value, float) and not math.isfinite(value):
        return True
    tests = {
        "ge": lambda b: value < b,
        "gt": lambda b: value <= b,
        "le": lambda b: value > b,
        "lt": lambda b: value >= b,
    }
    limits = metadata.get("bounds", {})
    return any(b is not None and tests[name](b) for name, b in limits.items())


def allowed(hint: type, metadata: Mapping[str, Any]) -> str:
    """What a scalar of type `hint` may be, in words."""
    names = {bool: "true or false", int: "an integer", float: "a finite number", str: "text"}
    text = names[hint]
    if metadata.get("choices"):
        text = "one of " + ", ".join(str(c) for c in metadata["choices"])
    limits = bounds(metadata)
    text += f" {limits}" if limits else ""
    return f"{text}, or null" if metadata.get("null") else text


def bounds(metadata: Mapping[str, Any]) -> str:
    """The bounds of a field in words; empty without any."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    given = metadata.get("bounds", {})
    return " and ".join(
        f"{signs[k]} {v if isinstance(v, int) else f'{v:g}'}"
        for k, v in given.items()
        if v is not None
    )
