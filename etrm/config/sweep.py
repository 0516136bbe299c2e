"""Sweeps: an experiment with axes, expanded into one named experiment for each point.

    etrm:
      sweep:
        steps: {key: halting.max_steps, values: [8, 16]}
        explore: {key: halting.exploration_prob, values: {0: 0.0, 30: 0.3}}

gives `etrm_steps8_explore0`, ..., `etrm_steps16_explore30`. A point's name is made of its own
labels and of nothing else: an axis that grows adds points, and the old ones keep their runs.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from etrm.config.entry import Choice, Entry
from etrm.config.merging import REMOVED, merge, nested
from etrm.config.registry import encoders
from etrm.config.rules import MAX_NAME, NAME, Rule
from etrm.config.schema import ConfigProblem, option, parse_dataclass, unknown_key
from etrm.config.text import brief, join, show

LABEL = Rule(
    "a label of letters, digits, - and _: it is a part of the names of folders",
    lambda v: re.fullmatch(r"[A-Za-z0-9_-]+", v) is not None,
)


@dataclass(frozen=True)
class AxisConfig:
    """One axis of a sweep. A point takes one value of each."""

    values: Any = option(
        "a list, whose values are their own labels, or a block `label: value`; with `every`,"
        " differences of some of its points",
        None,
    )
    key: str | None = option(
        "the key of an experiment that takes the values, with dots for the blocks around it; null:"
        " each value is a block of differences",
        None,
        rule=Rule("a dotted path, as halting.max_steps", lambda v: all(v.split("."))),
    )
    every: str | None = option(
        "`encoder`: a value for each registered encoder, as `context: {source: <label>}`; one that"
        " is added to the registry takes part by itself",
        None,
        choices=("encoder",),
    )
    prefix: str | None = option(
        "stands before the label in the names of points; null: the name of the axis",
        None,
        rule=Rule("letters, digits, - and _", lambda v: re.sub(r"[\w-]", "", v, flags=re.A) == ""),
    )

    def problems(self) -> Iterator[ConfigProblem]:
        """Yield the problem of a key beside `every`."""
        if self.every is not None and self.key is not None:
            expected = "null: `every` gives blocks of differences"
            yield ConfigProblem("key", repr(self.key), expected)


@dataclass
class Expansion:
    """The experiments of a document, their sweeps expanded."""

    entries: dict[str, Entry] = field(default_factory=dict)
    sweeps: dict[str, list[str]] = field(default_factory=dict)  # names of points by sweep
    incomplete: set[str] = field(default_factory=set)  # sweeps with problems: points may be missing
    templates: set[str] = field(default_factory=set)  # experiments in whose place others stand

    def may_have(self, name: str) -> bool:
        """Return whether this could be a point of a sweep that cannot be read."""
        return name not in self.entries and any(
            name == sweep or name.startswith(f"{sweep}_") for sweep in self.incomplete
        )


def expand(experiments: Mapping[Any, Any], problems: list[ConfigProblem]) -> Expansion:
    """Return experiments as they were written, with the points of a sweep in its place.

    An entry that has the name of a point is merged over that point; `REMOVED` takes it away.
    Experiments that cannot be read are left out, and added to `problems`.
    """
    result = Expansion()
    removed = {name for name, content in experiments.items() if content is REMOVED}
    written = {k: None if k in removed else v for k, v in experiments.items()}
    readable = {k: v or {} for k, v in written.items() if _readable(k, v, problems)}
    points = _all_points(readable, result, problems)  # first, since entries may precede their sweep
    for names in result.sweeps.values():
        names[:] = (point for point in names if point not in removed)
    for name, content in readable.items():
        for point in result.sweeps.get(name, ()):
            result.entries[point] = points[point].changed(readable.get(point, {}))
        if name not in result.sweeps and name not in points:
            result.entries[name] = Entry(name, name, content)
            problems += _no_point(name, result, readable)
    return result


def _all_points(
    readable: Mapping[str, Any], result: Expansion, problems: list[ConfigProblem]
) -> dict[str, Entry]:
    """Return the points of all sweeps by name; note the sweeps themselves in `result`."""
    points: dict[str, Entry] = {}
    for name, content in readable.items():
        if "sweep" in content:
            before = len(problems)
            mine = list(_points(name, content, problems))
            problems += _bad_names(name, mine, points)
            added = {point.name: point for point in mine if point.name not in points}
            points.update(added)
            result.sweeps[name] = list(added)
            if len(problems) > before:
                result.incomplete.add(name)
    for name in list(result.sweeps):
        if name in points:
            expected = f"no sweep: {name!r} is a point of the sweep {points[name].origin!r}"
            problems.append(ConfigProblem(f"experiments.{name}.sweep", "a sweep", expected))
            result.incomplete.add(name)
            for point in result.sweeps.pop(name):
                del points[point]
    return points


def _readable(name: Any, content: Any, problems: list[ConfigProblem]) -> bool:
    path = join("experiments", name)
    if not isinstance(name, str) or not NAME.holds(name):
        problems.append(ConfigProblem(path, f"the name {brief(name)}", NAME.text))
    elif content is not None and not isinstance(content, Mapping):
        problems.append(ConfigProblem(path, show(content), "a block of differences to defaults"))
    else:
        return True
    return False


def _points(
    name: str, content: Mapping[str, Any], problems: list[ConfigProblem]
) -> Iterator[Entry]:
    """Yield the points of one sweep: the last axis varies fastest."""
    path, sweep = f"experiments.{name}.sweep", content["sweep"]
    if not isinstance(sweep, Mapping) or not sweep:
        problems.append(ConfigProblem(path, show(sweep), "a block of axes, at least one"))
        return
    axes = [_choices(path, axis, given, problems) for axis, given in sweep.items()]
    shared = {key: value for key, value in content.items() if key != "sweep"}
    for choices in itertools.product(*axes):  # the last axis varies fastest
        yield Entry("_".join([name, *(each.part for each in choices)]), name, shared, choices)


def _choices(path: str, axis: Any, given: Any, problems: list[ConfigProblem]) -> list[Choice]:
    """Return the values of one axis that can be read.

    Where there is none, one that changes nothing stands for them, so that other axes are checked.
    """
    path = join(path, axis)
    before, found = len(problems), []
    if not isinstance(axis, str) or not NAME.holds(axis):
        problems.append(ConfigProblem(path, f"the name {brief(axis)}", NAME.text))
    config = parse_dataclass(AxisConfig, given, path, problems)
    if config is not None and len(problems) == before:
        values = dict(_labelled(config, f"{path}.values", problems))
        if config.every:
            names = encoders()
            unknown = [label for label in values if label not in names]
            problems += [unknown_key(f"{path}.values.{x}", x, names, "encoder") for x in unknown]
            values = {n: merge({"context": {"source": n}}, values.get(n) or {}) for n in names}
        prefix = axis if config.prefix is None else config.prefix
        for label, value in values.items():
            difference = value or {} if config.key is None else nested(config.key, value)
            found.append(Choice(axis, label, prefix + label, config.key, difference, path))
    return found or [Choice(str(axis), "?", "?", None, {}, path)]


def _labelled(
    config: AxisConfig, path: str, problems: list[ConfigProblem]
) -> Iterator[tuple[str, Any]]:
    """Yield the written values of an axis that can be read, each with its label."""
    values, blocks, seen = config.values, config.key is None, set()
    named = isinstance(values, Mapping)  # else a list, whose values are labels
    if config.every and values is None:
        return
    if not isinstance(values, (list, tuple, Mapping)) or not values or (blocks and not named):
        expected = "a list of values or a block `label: value`, at least one"
        if blocks:
            expected = "a block `label: differences`, because the axis has no `key`"
        problems.append(ConfigProblem(path, show(values), expected))
        return
    for i, written in enumerate(values):
        value = values[written] if named else written
        label = label_of(written)
        here = f"{path}[{i}]" if label is None else join(path, label)
        if label is None or not LABEL.holds(label):
            hint = "" if named else "write the values as a block, `label: value`"
            problems.append(ConfigProblem(here, show(written), LABEL.text, hint))
        elif label in seen:
            problems.append(ConfigProblem(here, f"the label {label!r} twice", "labels that differ"))
        elif blocks and not isinstance(value, (Mapping, type(None))):
            expected = "a block of differences, because the axis has no `key`"
            problems.append(ConfigProblem(here, show(value), expected))
        else:
            yield label, value
        seen.add(label)  # equal numbers have one label: 2 and 2.0


def label_of(value: Any) -> str | None:
    """Return the label of a value: its text, with `p` for the dot and `m` for the minus.

    Numbers that are equal have one label, all others differ. None for all but scalars.
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if not isinstance(value, (int, float)):
        return value if isinstance(value, str) else None
    text = str(value)
    if isinstance(value, float) and math.isfinite(value):
        exact = Decimal(repr(value))  # the digits that tell it from all other numbers
        text = f"{exact:f}" if abs(value) >= 1e-3 else f"{exact:e}"
        text = str(int(value)) if value.is_integer() else text  # 2.0 is 2
    return text.replace(".", "p").replace("-", "m")


def _bad_names(
    name: str, mine: list[Entry], others: Mapping[str, Entry]
) -> Iterator[ConfigProblem]:
    """Yield names of several points (labels with `_` make them, or two sweeps), and too long ones.

    Of names that are too long for files, the longest stands for all.
    """
    path = f"experiments.{name}.sweep"
    expected = "names that differ: rename an axis, a label or the experiment"
    names = Counter(entry.name for entry in mine)
    for point, count in names.items():
        if count > 1:
            yield ConfigProblem(path, f"{count} points named {point!r}", expected)
        if point in others:
            found = f"the point {point!r}, which the sweep {others[point].origin!r} has too"
            yield ConfigProblem(path, found, expected)
    longest = max(names, key=len, default="")  # one problem, for the worst
    if len(longest) > MAX_NAME:
        found = f"the point {longest!r} of {len(longest)} letters"
        expected = f"names of up to {MAX_NAME}: shorten a label, an axis or {name!r}"
        yield ConfigProblem(path, found, expected)


def _no_point(name: str, result: Expansion, readable: Mapping[str, Any]) -> Iterator[ConfigProblem]:
    """Yield a problem of an entry that is named as the points of a sweep, and is none of them.

    It would run with the defaults under a name that says otherwise: a label that was mistyped, or
    has been taken out of its axis.
    """
    for sweep, points in result.sweeps.items():
        if sweep not in result.incomplete:
            axes = readable[sweep]["sweep"].items()
            prefixes = [axis if (p := given.get("prefix")) is None else p for axis, given in axes]
            parts = "".join(f"_{re.escape(each)}[A-Za-z0-9-]+" for each in prefixes)
            if re.fullmatch(re.escape(sweep) + parts, name):
                yield unknown_key(f"experiments.{name}", name, points, noun="point")
