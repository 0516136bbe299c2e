"""One experiment as it was written, and where a problem of it was written."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from etrm.config.merging import merge
from etrm.config.schema import ConfigProblem, unknown_key
from etrm.config.study import ExperimentConfig
from etrm.config.text import join

# The problems of an experiment, given with the defaults merged in.
Check = Callable[[Mapping[str, Any]], list[ConfigProblem]]


def under(path: str, problem: ConfigProblem) -> ConfigProblem:
    """The problem with its path below `path`."""
    return dataclasses.replace(problem, path=join(path, problem.path))


def _with_sweep(problem: ConfigProblem) -> ConfigProblem:
    """A key that no experiment has: what is allowed where it was written, a sweep included."""
    key = problem.path
    if problem.found != unknown_key("", key, ()).found:
        return problem
    return unknown_key(key, key, (*(f.name for f in dataclasses.fields(ExperimentConfig)), "sweep"))


@dataclass(frozen=True)
class Choice:
    """One value of one axis of a sweep."""

    axis: str
    label: str
    key: str | None  # None: the value is a block of differences
    difference: Mapping[str, Any]  # to the experiment
    path: str  # of the axis

    @property
    def value_path(self) -> str:
        """Where the value was written."""
        return join(f"{self.path}.values", self.label)

    def placed(self, problem: ConfigProblem) -> ConfigProblem:
        """A problem that this value makes, at the value or, where that is wrong, at the key."""
        if self.key is None:
            return under(self.value_path, problem)
        last = self.key.rpartition(".")[2]
        above = self.key.startswith(f"{problem.path}.")
        if problem.found == unknown_key("", last, ()).found and problem.path == self.key:
            return dataclasses.replace(problem, path=f"{self.path}.key")
        if above and problem.found.startswith("the unknown "):
            return dataclasses.replace(problem, path=f"{self.path}.key")
        if above:
            found = f"{self.key!r}, which goes below {problem.path}"
            return ConfigProblem(
                f"{self.path}.key", found, f"{problem.path} to be {problem.expected}"
            )
        if re.match(rf"{re.escape(self.key)}(?![^.\[])", problem.path):
            path = self.value_path + problem.path.removeprefix(self.key)
            return dataclasses.replace(problem, path=path)
        found = f"{problem.found} at {problem.path}"
        return dataclasses.replace(problem, path=self.value_path, found=found)


@dataclass(frozen=True)
class Entry:
    """An experiment as differences to the defaults, of which later ones go over earlier ones.

    A point of a sweep has what its sweep shares, one choice of every axis, and what an entry of
    its own name changes.
    """

    name: str
    origin: str  # the sweep of a point, else the experiment itself
    shared: Mapping[str, Any]
    choices: tuple[Choice, ...] = ()
    own: Mapping[str, Any] = field(default_factory=dict)

    def changed(self, own: Mapping[str, Any]) -> Entry:
        """The same point with an entry of its own; a sweep in there is none."""
        content = {key: value for key, value in own.items() if key != "sweep"}
        return dataclasses.replace(self, own=content)

    def over(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """The whole experiment; `{axis}` in the description of a sweep becomes the label."""
        result = self._chosen(defaults)
        labels = {choice.axis: choice.label for choice in self.choices}
        text = result.get("description")
        if labels and isinstance(text, str):
            for axis, label in labels.items():
                text = text.replace(f"{{{axis}}}", label)
            result["description"] = text
        return merge(result, self.own)

    def _chosen(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        differences = [self.shared, *(choice.difference for choice in self.choices)]
        return reduce(merge, differences, dict(defaults))

    def placed(
        self, problem: ConfigProblem, defaults: Mapping[str, Any], check: Check
    ) -> ConfigProblem:
        """A problem of the whole experiment, where it was written.

        What the sweep alone has is said of the sweep, what a value makes alone is said of the
        value: once, not for every point. What comes of several is said of the point.
        """
        base = merge(defaults, self.shared)
        if not self.choices or problem in check(base):
            return under(f"experiments.{self.origin}", _with_sweep(problem))
        for choice in reversed(self.choices):
            if problem in check(merge(base, choice.difference)):
                return choice.placed(problem)
        return under(f"experiments.{self.name}", problem)

    def problems(self, defaults: Mapping[str, Any]) -> Iterator[ConfigProblem]:
        """What is wrong with a point, though it makes a valid experiment."""
        yield from self._unknown_axes(defaults)
        at = merge(defaults, self.shared)
        for i, choice in enumerate(self.choices):
            at = merge(at, choice.difference)
            for earlier in self.choices[:i]:
                if merge(at, earlier.difference) != at:
                    found = f"values that the axis {choice.axis!r} replaces"
                    expected = "every axis to vary something that no later axis sets"
                    yield ConfigProblem(earlier.path, found, expected)
                    return

    def _unknown_axes(self, defaults: Mapping[str, Any]) -> Iterator[ConfigProblem]:
        axes = [choice.axis for choice in self.choices]
        text = self._chosen(defaults).get("description")
        writers = [c.value_path for c in self.choices if "description" in c.difference]
        path = join((writers or [f"experiments.{self.origin}"])[-1], "description")
        for name in re.findall(r"\{([^{}]*)\}", text) if axes and isinstance(text, str) else ():
            if name not in axes:
                yield unknown_key(path, name, axes, what="axis")
