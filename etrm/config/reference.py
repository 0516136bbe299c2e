"""`config/README.md`: every key of a study, from the dataclasses that validate it.

`python -m etrm.config.reference` prints the page, and writes it to a path that is given.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from etrm.config.health import HealthRule, guide_rules
from etrm.config.load import plain
from etrm.config.schema import PATH, REQUIRED, Tagged, bounds
from etrm.config.study import ExperimentConfig, StudyConfig
from etrm.config.sweep import AxisConfig

# What stands before the keys.
OPENING = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")

TYPES = {bool: "true/false", int: "integer", float: "number", str: "text", Any: "list or block"}
# Keys of the top level that shape the document rather than the study.
DOCUMENT_KEYS = (
    ("extends", "text", "none", "a YAML file to start from"),
    ("defaults", "block", "none", "what all experiments share: keys of [one experiment]({link})"),
)
SWEEP_ROW = (
    *("`sweep`", "blocks by name", "", "none", ""),
    "[axes](#sweepaxis) that make this one experiment several, as said in [Sweeps](#sweeps)",
)


def render() -> str:
    """The page."""
    parts = [OPENING, *_study()]
    return "\n".join(parts).rstrip() + "\n"


def _study() -> Iterator[str]:
    yield _section(2, "study", StudyConfig, title="Study", extra=_document_rows())
    fields = {field.name: field for field in dataclasses.fields(StudyConfig)}
    hints = typing.get_type_hints(StudyConfig)
    yield from _block(2, "data", fields["data"], hints["data"])
    yield _section(2, "", ExperimentConfig, title="One experiment", extra=[SWEEP_ROW])
    yield _section(3, "sweep.<axis>", AxisConfig)
    yield from _children(3, "", ExperimentConfig)
    for name in ("tracking", "execution", "figures"):
        yield from _block(2, name, fields[name], hints[name])


def _document_rows() -> list[tuple[str, ...]]:
    link = _anchor("One experiment")
    return [
        (f"`{key}`", kind, "", default, "", meaning.format(link=link))
        for key, kind, default, meaning in DOCUMENT_KEYS
    ]


def _children(level: int, path: str, cls: type) -> Iterator[str]:
    """The sections of the blocks inside `cls`."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        yield from _block(level, _join(path, field.name), field, hints[field.name])


def _block(level: int, path: str, field: dataclasses.Field[Any], hint: Any) -> Iterator[str]:
    union: Tagged | None = field.metadata.get("tagged")
    inner = _inner(hint)
    if union is not None:
        yield from _union(level, path, field, union)
    elif inner is not None:
        named = typing.get_origin(hint) is dict
        path = f"{path}.<name>" if named else path
        yield _section(level, path, inner, default=_rules if inner is HealthRule else None)
        yield from _children(level + 1, path, inner)


def _union(level: int, path: str, field: dataclasses.Field[Any], union: Tagged) -> Iterator[str]:
    """A section for every member of a tagged union."""
    help = field.metadata["help"]
    if field.default_factory is not REQUIRED:
        path += ".<name>"
    lines = [f"{'#' * level} `{path}`", "", f"{_sentence(help)} `{union.tag}` chooses among:", ""]
    variants = {name: load() for name, load in union.variants().items()}
    titles = {name: f"{path}` with `{union.tag}: {name}" for name in variants}
    lines += [f"- [`{n}`]({_anchor(titles[n])}): {_doc(c)}" for n, c in variants.items()]
    if field.default_factory is not REQUIRED:
        value = yaml.safe_dump(plain(field.default_factory()), sort_keys=False)
        lines += ["", "The default:", "", "```yaml", value.rstrip(), "```"]
    yield "\n".join([*lines, ""])
    for name, cls in variants.items():
        yield _section(level + 1, titles[name], cls)


def _section(
    level: int,
    path: str,
    cls: type,
    *,
    title: str = "",
    extra: Sequence[tuple[str, ...]] = (),
    default: typing.Callable[[], str] | None = None,
) -> str:
    heading = title or f"`{path}`"
    hints = typing.get_type_hints(cls)
    inside = "" if title else path
    rows = [*extra, *(_row(f, hints[f.name], inside) for f in dataclasses.fields(cls))]
    intro = _doc(cls)
    text = [f"{'#' * level} {heading}", "", intro, "", _table(rows), ""]
    return "\n".join([*text, default(), ""] if default else text)


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = ("key", "type", "unit", "default", "allowed", "meaning")
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def _row(field: dataclasses.Field[Any], hint: Any, path: str) -> tuple[str, ...]:
    metadata = field.metadata
    meaning = metadata["help"]
    return (
        f"`{field.name}`",
        _type(hint, metadata),
        metadata.get("unit", ""),
        _default(field, hint, _join(path, field.name)),
        _allowed(metadata),
        meaning,
    )


def _type(hint: Any, metadata: Mapping[str, Any]) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if metadata.get("tagged") is not None and origin is not dict:
        return "block"
    if origin in (typing.Union, types.UnionType):
        kinds = [_type(a, {}) for a in arguments if a is not type(None)]
        return f"{kinds[0]} or null"
    if origin is tuple:
        return f"list of {_type(arguments[0], {})}"
    if origin is dict:
        return "blocks by name"
    return TYPES.get(hint, "block")


def _default(field: dataclasses.Field[Any], hint: Any, path: str) -> str:
    union = field.metadata.get("tagged")
    required = field.default is REQUIRED and field.default_factory is REQUIRED
    if union is not None or _inner(hint) is not None:
        named = ".<name>" if typing.get_origin(hint) is dict else ""
        # Experiments have a section of their own name.
        title = "One experiment" if path == "experiments" else f"{path}{named}"
        link = f"[its keys]({_anchor(title)})"
        return f"**required**, {link}" if required or path == "experiments" else link
    if required:
        return "**required**"
    value = field.default if field.default is not REQUIRED else _made(field)
    return "none" if value == {} else f"`{literal(value)}`"


def _made(field: dataclasses.Field[Any]) -> Any:
    assert field.default_factory is not REQUIRED
    return field.default_factory()


def literal(value: Any) -> str:
    """A value as one writes it in a study file."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(literal(v) for v in value)}]"
    if isinstance(value, float) and 0 < abs(value) < 1e-3:
        mantissa, exponent = f"{value:e}".split("e")
        return f"{float(mantissa)}e{int(exponent)}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return '""' if value == "" else str(value)


def _allowed(metadata: Mapping[str, Any]) -> str:
    """Choices, bounds and rule of a field."""
    choices = ", ".join(f"`{c}`" for c in metadata.get("choices") or ())
    rule = PATH if metadata.get("path") else metadata.get("rule")
    return "; ".join(part for part in (choices, bounds(metadata), rule and rule.text) if part)


def _inner(hint: Any) -> type | None:
    """The dataclass of a block or of named blocks."""
    arguments = typing.get_args(hint)
    inner = arguments[1] if typing.get_origin(hint) is dict else hint
    return inner if isinstance(inner, type) and dataclasses.is_dataclass(inner) else None


def _rules() -> str:
    """The rules that hold unless a study changes them."""
    names = [f.name for f in dataclasses.fields(HealthRule)]
    lines = [
        "These rules of the experiment guide hold unless a study changes them. A study's own rules"
        " come beside them; `warn`, `fail` and `stop` of null switch a rule off.",
        "",
        f"| rule | {' | '.join(names)} |",
        f"|{' --- |' * (len(names) + 1)}",
    ]
    for name, rule in guide_rules().items():
        cells = ["" if (v := getattr(rule, n)) is None else f"`{literal(v)}`" for n in names]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _doc(cls: type) -> str:
    return " ".join((cls.__doc__ or "").split("\n\n")[0].split())


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _anchor(heading: str) -> str:
    """The link to a heading, as Markdown viewers make it."""
    return "#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def main(arguments: Sequence[str]) -> None:
    """Print the page, in UTF-8 as the file is, or write it to the path that is given."""
    if arguments:
        Path(arguments[0]).write_text(render(), encoding="utf-8")
    else:
        sys.stdout.buffer.write(render().encode())


if __name__ == "__main__":
    main(sys.argv[1:])
