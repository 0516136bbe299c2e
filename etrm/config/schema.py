"""A strict loader from plain YAML values to typed dataclasses.

Every problem of a document is collected, each with its dotted path, the value found and what is
allowed; nothing is coerced silently (`1e-4` without a dot is a string to YAML, and is said so).
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

REQUIRED = dataclasses.MISSING
# A tagged union is resolved through a function, so that registries load only what is named.
Variants = Callable[[], Mapping[str, Callable[[], type]]]


class ConfigError(ValueError):
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
        text = f"{self.path}: found {self.found}, expected {self.expected}"
        return f"{text} ({self.hint})" if self.hint else text


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
    factory: Callable[[], Any] | None = None,
) -> Any:
    """A dataclass field with its meaning, unit and bounds; without `default` it is required.

    Bounds and choices of a list hold for its elements.
    """
    metadata: dict[str, Any] = {"help": help, "unit": unit, "choices": choices}
    metadata["bounds"] = {k: v for k, v in (("ge", ge), ("gt", gt), ("le", le), ("lt", lt))}
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def tagged(help: str, tag: str, variants: Variants, factory: Callable[[], Any]) -> Any:
    """A field whose type is chosen by the value of its key `tag` (see `Tagged`)."""
    return dataclasses.field(
        default_factory=factory, metadata={"help": help, "tagged": Tagged(tag, variants)}
    )


@dataclass(frozen=True)
class Tagged:
    """A union of dataclasses told apart by the key `tag`."""

    tag: str
    variants: Variants


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
            problems.append(Problem(here, "nothing", f"a value: {field.metadata.get('help', '')}"))
    if len(problems) > before:
        return None
    result = cls(**arguments)
    for check in getattr(result, "problems", lambda: [])():
        problems.append(dataclasses.replace(check, path=join(path, check.path)))
    return result if len(problems) == before else None


def unknown_key(path: str, key: Any, known: typing.Iterable[str], what: str = "key") -> Problem:
    """The problem of a name that is not among `known`, with the nearest known one."""
    names = sorted(known)
    near = difflib.get_close_matches(str(key), names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else ""
    return Problem(path, f"the unknown {what} {key!r}", f"one of {', '.join(names)}", hint)


def join(path: str, key: Any) -> str:
    """The dotted path of `key` under `path`."""
    return ".".join(part for part in (path, str(key)) if part)


def show(value: Any) -> str:
    """A value as an error message shows it: with its YAML kind where that is the problem."""
    kind = {bool: "true/false", str: "text", int: "integer", float: "number", type(None): "null"}
    kind[list] = "list"
    kind[dict] = "block"
    text = repr(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return f"{text} ({kind.get(type(value), type(value).__name__)})"


def _field(
    field: dataclasses.Field[Any], hint: Any, value: Any, path: str, problems: list[Problem]
) -> Any:
    union = field.metadata.get("tagged")
    if union is None:
        return _value(hint, value, path, field.metadata, problems)
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
        expected = f"a block with `{union.tag}:` one of {', '.join(sorted(known))}"
        problems.append(Problem(path, show(value), expected))
        return None
    tag = value[union.tag]
    if tag not in known:
        problems.append(unknown_key(join(path, union.tag), tag, known, what=union.tag))
        return None
    return parse_dataclass(known[tag](), value, path, problems)


def _value(
    hint: Any, value: Any, path: str, metadata: Mapping[str, Any], problems: list[Problem]
) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in arguments if a is not type(None)]
        return None if value is None else _value(inner[0], value, path, metadata, problems)
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
    names = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
    right = isinstance(value, hint) and not (hint is not bool and isinstance(value, bool))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value, right = float(value), True
    if not right:
        fix = "write it with a dot, as in 1.0e-4" if hint is float and _numeric(value) else ""
        problems.append(Problem(path, show(value), names[hint] + _allowed(metadata), fix))
        return None
    choices = metadata.get("choices")
    if choices and value not in choices:
        near = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1)
        fix = f"did you mean {near[0]!r}?" if near else ""
        problems.append(Problem(path, repr(value), _allowed(metadata).lstrip(", "), fix))
    elif _out_of_bounds(value, metadata):
        problems.append(Problem(path, repr(value), names[hint] + _allowed(metadata)))
    return value


def _numeric(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return isinstance(value, str)


def _out_of_bounds(value: Any, metadata: Mapping[str, Any]) -> bool:
    if isinstance(value, (bool, str)):
        return False
    if isinstance(value, float) and value != value:
        return True
    tests = {
        "ge": lambda b: value < b,
        "gt": lambda b: value <= b,
        "le": lambda b: value > b,
        "lt": lambda b: value >= b,
    }
    bounds = metadata.get("bounds", {})
    return any(b is not None and tests[name](b) for name, b in bounds.items())


def _allowed(metadata: Mapping[str, Any]) -> str:
    if metadata.get("choices"):
        return ", one of " + ", ".join(str(c) for c in metadata["choices"])
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [f"{signs[k]} {v:g}" for k, v in metadata.get("bounds", {}).items() if v is not None]
    return " " + " and ".join(bounds) if bounds else ""
