"""`config/README.md`: every key of a study, from the dataclasses that validate it.

`python -m etrm.config.reference` prints the page, and writes it to a path that is given.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from etrm.config.health import HealthRule, guide_rules
from etrm.config.load import plain
from etrm.config.schema import Key, keys_of
from etrm.config.study import ExperimentConfig, StudyConfig
from etrm.config.sweep import AxisConfig
from etrm.config.text import join, write_page

OPENING = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")  # stands before the keys
TYPES = {bool: "true/false", int: "integer", float: "number", str: "text", Any: "list or block"}
EXPERIMENT = "One experiment"
# Keys that shape the document rather than the study.
DOCUMENT_ROWS = (
    ("`extends`", "text", "", "none", "", "a YAML file to start from"),
    (
        *("`defaults`", "block", "", "none", ""),
        "keys that all experiments share: those of [one experiment](#one-experiment)",
    ),
)
SWEEP_ROW = (
    *("`sweep`", "blocks by name", "", "none", ""),
    "[axes](#sweepaxis) that make this one experiment several, as said in [Sweeps](#sweeps)",
)


def render() -> str:
    """Return the page."""
    keys = keys_of(StudyConfig)
    parts = [OPENING, _section(2, "Study", StudyConfig, "", DOCUMENT_ROWS)]
    parts += _block(2, "data", keys["data"])
    parts.append(_section(2, EXPERIMENT, ExperimentConfig, "", [SWEEP_ROW]))
    parts.append(_section(3, "`sweep.<axis>`", AxisConfig, "sweep.<axis>"))
    parts += _children(3, "", ExperimentConfig)
    parts += _block(2, "selections", keys["selections"])
    for name in ("tracking", "execution", "figures"):
        parts += _block(2, name, keys[name])
    return "\n".join(parts).rstrip() + "\n"


def _children(level: int, path: str, cls: type) -> Iterator[str]:
    """Yield the sections of the blocks inside `cls`."""
    for key in keys_of(cls).values():
        yield from _block(level, join(path, key.name), key)


def _block(level: int, path: str, key: Key) -> Iterator[str]:
    """Yield the section of a block, of named ones or of a tagged union, and of those inside."""
    path += ".<name>" if key.shape == "named" else ""
    if key.tagged:
        yield from _union(level, path, key, key.tagged.tag)
    elif key.block:
        yield _section(level, f"`{path}`", key.block, path)
        if key.block is HealthRule:  # the one default too large for a cell
            yield _rules()
        yield from _children(level + 1, path, key.block)


def _union(level: int, path: str, key: Key, tag: str) -> Iterator[str]:
    """Yield a section for every member of a tagged union."""
    assert key.tagged is not None
    opening = f"{key.help[:1].upper()}{key.help[1:]}. `{tag}` chooses among:"
    lines = [f"{'#' * level} `{path}`", "", opening, ""]
    titles = {name: f"`{path}` with `{tag}: {name}`" for name in key.tagged.variants()}
    members = [(name, load()) for name, load in key.tagged.variants().items()]
    lines += [f"- [`{name}`]({_anchor(titles[name])}): {_doc(cls)}" for name, cls in members]
    if not key.required:
        value = yaml.safe_dump(plain(key.default), sort_keys=False)
        lines += ["", "The default:", "", "```yaml", value.rstrip(), "```"]
    yield "\n".join([*lines, ""])
    for name, cls in members:
        yield _section(level + 1, titles[name], cls, path)


def _section(
    level: int, heading: str, cls: type, path: str, extra: Sequence[tuple[str, ...]] = ()
) -> str:
    head = ("key", "type", "unit", "default", "allowed", "meaning")
    rows = [*extra, *(_row(key, path) for key in keys_of(cls).values())]
    return "\n".join([f"{'#' * level} {heading}", "", _doc(cls), "", *_table(head, rows), ""])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [[cell.replace("|", "\\|") for cell in row] for row in rows]  # cells end at a bar
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)]


def _row(key: Key, path: str) -> tuple[str, ...]:
    block = key.tagged or key.block
    kind = "block" if block else key.written.kind if key.written else TYPES[key.type]
    kind = {"list": f"list of {kind}", "named": "blocks by name", "one": kind}[key.shape]
    kind += " or null" if key.nullable else ""
    choices = ", ".join(f"`{choice}`" for choice in key.choices or ())
    rule = key.rule.text if key.rule else ""
    allowed = "; ".join(filter(None, [choices, key.limits, rule]))
    default = "none" if key.default == {} else f"`{literal(plain(key.default))}`"
    if block:
        title = f"{join(path, key.name)}{'.<name>' if key.shape == 'named' else ''}"
        title = EXPERIMENT if key.name == "experiments" else title
        default = f"[its keys]({_anchor(title)})"
    if key.required or key.name == "experiments":
        default = "**required**" + (f", {default}" if block else "")
    return (f"`{key.name}`", kind, key.unit, default, allowed, key.help)


def literal(value: Any) -> str:
    """Return a value as one writes it in a study file."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(literal(v) for v in value)}]"
    if isinstance(value, float) and 0 < abs(value) < 1e-3:
        mantissa, exponent = f"{value:e}".split("e")  # 1.0e-4: YAML needs the dot
        return f"{float(mantissa)}e{int(exponent)}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return '""' if value == "" else str(value)


def _rules() -> str:
    """Return the table of the rules that hold unless a study changes them."""
    names = [f.name for f in fields(HealthRule)]
    opening = (
        "These rules of the experiment guide hold unless a study changes them. A study's own rules"
        " come beside them; `warn`, `fail` and `stop` of null switch a rule off."
    )
    rows = []
    for name, rule in guide_rules().items():
        cells = ["" if (v := getattr(rule, n)) is None else f"`{literal(v)}`" for n in names]
        rows.append([f"`{name}`", *cells])
    return "\n".join([opening, "", *_table(["rule", *names], rows), ""])


def _doc(cls: type) -> str:
    return " ".join((cls.__doc__ or "").split("\n\n")[0].split())


def _anchor(heading: str) -> str:
    """Return the link to a heading, as Markdown viewers make it."""
    return "#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


if __name__ == "__main__":
    write_page(render(), sys.argv[1:])
