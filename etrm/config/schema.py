"""A strict loader from plain YAML values to typed dataclasses.

Every problem of a document is collected, each with its dotted path, the value found and the values
allowed. Nothing is coerced silently: `1e-4` without a dot is a text in YAML, and the error says so.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import os
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar

from etrm.config.rules import PATH, Rule
from etrm.config.text import brief, join, nearest, printable, show
from etrm.errors import UserError

REQUIRED = dataclasses.MISSING
# A tagged union is resolved through a function, so that registries load only the classes named.
Variants = Callable[[], Mapping[str, Callable[[], type]]]


class ConfigError(UserError):
    """All problems of a configuration, one line each."""

    def __init__(self, problems: list[ConfigProblem], name: str = "configuration") -> None:
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{name}: {count}", *(f"  {each}" for each in problems)]))


@dataclass(frozen=True)
class ConfigProblem:
    """One problem: its dotted path, the value found, the values allowed, and a way out."""

    path: str
    found: str
    expected: str
    hint: str = ""

    def __str__(self) -> str:
        text = f"{printable(self.path)}: found {self.found}, expected {self.expected}"
        return f"{text} ({self.hint})" if self.hint else text

    def under(self, path: str) -> ConfigProblem:
        """Return the problem with its path below `path`."""
        return dataclasses.replace(self, path=join(path, self.path))


class Written(ABC):
    """A value that a study writes in a form of its own, and that is an object in the program."""

    kind: ClassVar[str]  # the form in words, and its limits
    limits: ClassVar[str]
    schema: ClassVar[Mapping[str, Any]]  # the same as JSON Schema

    @classmethod
    @abstractmethod
    def read(cls, value: Any) -> Written | str:
        """Return the object; the expectation as text where the value is another."""

    @abstractmethod
    def plain(self) -> Any:
        """Return the value as a study writes it."""


# A bound by its name: the comparison that holds, its sign, its keyword of JSON Schema.
BOUNDS: dict[str, tuple[Callable[[Any, Any], bool], str, str]] = {
    "ge": (operator.ge, "≥", "minimum"),
    "gt": (operator.gt, ">", "exclusiveMinimum"),
    "le": (operator.le, "≤", "maximum"),
    "lt": (operator.lt, "<", "exclusiveMaximum"),
}
SCALARS = {bool: "true or false", int: "an integer", float: "a finite number", str: "text"}


def option(
    help: str,
    default: Any = REQUIRED,
    unit: str = "",
    *,
    choices: tuple[Any, ...] | None = None,
    rule: Rule | None = None,
    path: bool = False,
    factory: Any = REQUIRED,
    **bounds: float,
) -> Any:
    """Return a dataclass field with its meaning, unit and bounds (`ge`, `gt`, `le`, `lt`).

    Without `default` and `factory` the key is required. Bounds and choices of a list hold for its
    elements, `rule` for the list. A `path` follows the rule PATH, and the home directory takes the
    place of its `~`.
    """
    metadata: dict[str, Any] = {"help": help, "unit": unit, "choices": choices, "path": path}
    metadata |= {"rule": PATH if path else rule, "bounds": bounds}
    if unknown := bounds.keys() - BOUNDS.keys():
        raise TypeError(f"option: found the bounds {sorted(unknown)}, expected {', '.join(BOUNDS)}")
    if factory is not REQUIRED:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def tagged(help: str, tag: str, variants: Variants, factory: Any = REQUIRED) -> Any:
    """Return a field whose type is chosen by the value of its key `tag` (see `Tagged`)."""
    return field(default_factory=factory, metadata={"help": help, "tagged": Tagged(tag, variants)})


@dataclass(frozen=True)
class Tagged:
    """A union of dataclasses told apart by the key `tag`."""

    tag: str
    variants: Variants

    @property
    def expected(self) -> str:
        """The blocks that are allowed, in words."""
        return f"a block with `{self.tag}:` one of {', '.join(sorted(self.variants()))}"


@dataclass(frozen=True)
class Key:
    """One key of a block: the one description that loader, reference and JSON Schema share."""

    name: str
    type: Any  # of the value; of an element of a list; of an entry of named ones
    shape: str  # "one", "list" or "named"
    nullable: bool
    required: bool
    default: Any  # None where required
    help: str = ""
    unit: str = ""
    choices: tuple[Any, ...] | None = None
    rule: Rule | None = None
    path: bool = False
    bounds: Mapping[str, float] = field(default_factory=dict)
    tagged: Tagged | None = None

    @property
    def block(self) -> Any:
        """The dataclass of a block or of named blocks, else None."""
        is_block = dataclasses.is_dataclass(self.type) and not self.written
        return self.type if is_block else None

    @property
    def written(self) -> type[Written] | None:
        """The class of values with a form of their own, else None."""
        is_class = isinstance(self.type, type) and issubclass(self.type, Written)
        return self.type if is_class else None

    @property
    def limits(self) -> str:
        """The bounds in words; empty without any."""
        if self.written:
            return self.written.limits
        numbers = {k: v if isinstance(v, int) else f"{v:g}" for k, v in self.bounds.items()}
        return " and ".join(f"{BOUNDS[k][1]} {number}" for k, number in numbers.items())

    @property
    def allowed(self) -> str:
        """The scalars that are allowed, in words."""
        names = ", ".join(map(str, self.choices or ()))
        text = f"one of {names}" if names else SCALARS[self.type]
        limits = f" {self.limits}" if self.bounds else ""
        return text + limits + (", or null" if self.nullable else "")


@functools.cache
def keys_of(cls: type) -> dict[str, Key]:
    """Return the keys of a block by name, in the order of its dataclass."""
    hints = typing.get_type_hints(cls)
    return {each.name: _key(each, hints[each.name]) for each in dataclasses.fields(cls)}


def _key(declared: dataclasses.Field[Any], hint: Any) -> Key:
    nullable = typing.get_origin(hint) in (typing.Union, types.UnionType)
    if nullable:  # of one type and None
        hint = next(each for each in typing.get_args(hint) if each is not type(None))
    shape = {tuple: "list", dict: "named"}.get(typing.get_origin(hint), "one")
    if shape != "one":
        hint = typing.get_args(hint)[shape == "named"]  # tuple[T, ...], dict[str, T]
    default, required = declared.default, False
    if declared.default_factory is not REQUIRED:
        default = declared.default_factory()  # for pages only: every parse makes its own
    elif default is REQUIRED:
        default, required = None, True
    return Key(declared.name, hint, shape, nullable, required, default, **declared.metadata)


def parse(cls: type, value: Any, path: str = "") -> Any:
    """Return `value` as an instance of the dataclass `cls`.

    Raises `ConfigError` with all problems.
    """
    problems: list[ConfigProblem] = []
    result = parse_dataclass(cls, value, path, problems)
    if problems:
        raise ConfigError(problems)
    return result


def parse_dataclass(cls: type, value: Any, path: str, problems: list[ConfigProblem]) -> Any:
    """Parse as `parse` does, but add to `problems`; return None where there were any."""
    if not isinstance(value, Mapping):
        problems.append(ConfigProblem(path or "(top level)", show(value), "a block of keys"))
        return None
    before, keys, arguments = len(problems), keys_of(cls), {}
    problems += [unknown_key(join(path, name), name, keys) for name in value if name not in keys]
    for name, key in keys.items():
        if name in value:
            arguments[name] = _read(key, value[name], join(path, name), problems)
        elif key.required:
            expected = key.tagged.expected if key.tagged else f"a value: {key.help}"
            problems.append(ConfigProblem(join(path, name), "nothing", expected))
    if len(problems) > before:  # an incomplete instance would fail in its own checks
        return None
    result = cls(**arguments)  # then the checks of how values fit together
    check = getattr(result, "problems", None)
    if callable(check):  # a field of this name is an option as any other
        problems += [each.under(path) for each in check()]
    return result if len(problems) == before else None


def unknown_key(path: str, key: Any, known: Iterable[str], noun: str = "key") -> ConfigProblem:
    """Return the problem of a name that is not among `known`, with the nearest known one."""
    names = sorted(known)  # keys, kinds, stages, points: any set of names
    expected = f"one of {', '.join(names)}" if names else f"no {noun}: there is none to name"
    return ConfigProblem(path, f"the unknown {noun} {key!r}", expected, nearest(key, names))


def expand_home(value: str, path: str, problems: list[ConfigProblem]) -> str | None:
    """Return a path with the home directory for its `~` or `~user`; None after a problem."""
    with suppress(ValueError):  # a name that no user can have
        expanded = os.path.expanduser(value)
        if not expanded.startswith("~"):
            return expanded
    expected = f"~ or ~ and a user of this machine; ./{printable(value)} is the file of this name"
    found = f"{brief(value)}, but no home directory for it"
    problems.append(ConfigProblem(path, found, expected))
    return None


def not_text(value: Any, path: str = "") -> Iterator[ConfigProblem]:
    """Yield the keys and values below `value` that hold halves of characters, as no file can."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from not_text(key, join(path, key))
            yield from not_text(inner, join(path, key))
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from not_text(inner, f"{path}[{i}]")
    elif isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
        yield ConfigProblem(path, brief(value), "whole characters: none of U+D800 to U+DFFF")


def _read(key: Key, value: Any, path: str, problems: list[ConfigProblem]) -> Any:
    """Return the value of one key: a list, named entries, or one of them."""
    before = len(problems)
    if value is None and key.nullable:  # rules never see it
        return None
    if key.shape == "one":
        value = _one(key, value, path, problems)
    elif key.shape == "named" and isinstance(value, Mapping):
        value = {str(k): _one(key, v, join(path, k), problems) for k, v in value.items()}
    elif key.shape == "list" and isinstance(value, (list, tuple)):
        value = tuple(_one(key, v, f"{path}[{i}]", problems) for i, v in enumerate(value))
    else:
        expected = "a block of named entries" if key.shape == "named" else "a list"
        problems.append(ConfigProblem(path, show(value), expected))
    if len(problems) > before:
        return None
    if key.rule and not key.rule.holds(value):
        found = brief(list(value) if isinstance(value, tuple) else value)
        problems.append(ConfigProblem(path, found, key.rule.text))
        return None
    return expand_home(value, path, problems) if key.path else value  # after the rule PATH


def _one(key: Key, value: Any, path: str, problems: list[ConfigProblem]) -> Any:
    if key.tagged:
        return _tagged(key.tagged, value, path, problems)
    if key.block:
        return parse_dataclass(key.block, value, path, problems)
    if key.written:
        found = key.written.read(value)
        if not isinstance(found, str):
            return found
        problems.append(ConfigProblem(path, brief(value), found))
        return None
    return value if key.type is Any else _scalar(key, value, path, problems)


def _tagged(union: Tagged, value: Any, path: str, problems: list[ConfigProblem]) -> Any:
    """Return one member of a tagged union; the tag itself stays a field of the result."""
    known = union.variants()  # names only: the class named is loaded below
    if not isinstance(value, Mapping) or union.tag not in value:
        problems.append(ConfigProblem(path, show(value), union.expected))
        return None
    tag = value[union.tag]
    if not isinstance(tag, str) or tag not in known:
        problems.append(unknown_key(join(path, union.tag), tag, known, noun=union.tag))
        return None
    return parse_dataclass(known[tag](), value, path, problems)


def _scalar(key: Key, value: Any, path: str, problems: list[ConfigProblem]) -> Any:
    if key.type is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**1000 else math.inf  # beyond 2**1024 float() raises
    found, hint = brief(value), ""
    if not isinstance(value, key.type) or (isinstance(value, bool) and key.type is not bool):
        found = show(value)
        if key.type is float and _numeric(value):  # YAML 1.1 reads 1e-4 as text
            hint = "write it with a dot, as in 1.0e-4"
    elif key.choices and value not in key.choices:
        hint = nearest(value, key.choices)
    elif isinstance(value, (bool, str)) or (
        (isinstance(value, int) or math.isfinite(value))
        and all(BOUNDS[k][0](value, bound) for k, bound in key.bounds.items())
    ):
        return value
    problems.append(ConfigProblem(path, found, key.allowed, hint))
    return None


def _numeric(value: Any) -> bool:
    with suppress(ValueError):
        return isinstance(value, str) and math.isfinite(float(value))
    return False
