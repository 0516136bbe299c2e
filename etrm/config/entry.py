"""One experiment as it was written, and the place where a problem of it was written."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from etrm.config.merging import has_tag, merge, retagged
from etrm.config.schema import ConfigProblem, keys_of, unknown_key
from etrm.config.study import ExperimentConfig
from etrm.config.text import join

# Return the problems of an experiment, given with the defaults merged in.
Check = Callable[[Mapping[str, Any]], list[ConfigProblem]]


@dataclass(frozen=True)
class Choice:
    """One value of one axis of a sweep."""

    axis: str
    label: str
    part: str  # of the names of points
    key: str | None  # None: the value is a block of differences
    difference: Mapping[str, Any]  # to the experiment
    path: str  # of the axis

    @property
    def value_path(self) -> str:
        """The path at which the value was written."""
        return join(f"{self.path}.values", self.label)

    def placed(self, problem: ConfigProblem) -> ConfigProblem:
        """Return a problem of this value at the value or, where the key is wrong, at the key."""
        if self.key is None:
            return problem.under(self.value_path)
        key, unknown = f"{self.path}.key", problem.found.startswith("the unknown ")
        last = self.key.rpartition(".")[2]  # as an unknown key is reported
        itself = unknown_key("", last, ()).found == problem.found and problem.path == self.key
        above = self.key.startswith(f"{problem.path}.")  # a block on the way is wrong
        if itself or (above and unknown):
            return dataclasses.replace(problem, path=key)
        if above:
            found = f"{self.key!r}, which goes below {problem.path}"
            return ConfigProblem(key, found, f"{problem.path} to be {problem.expected}")
        if re.match(rf"{re.escape(self.key)}(?![^.\[])", problem.path):
            path = self.value_path + problem.path.removeprefix(self.key)
            return dataclasses.replace(problem, path=path)
        found = f"{problem.found} at {problem.path}"
        return dataclasses.replace(problem, path=self.value_path, found=found)


@dataclass(frozen=True)
class Entry:
    """An experiment as differences to the defaults, of which later ones go over earlier ones.

    A point of a sweep has the keys that its sweep shares, one choice of every axis, and the changes
    of an entry of its own name.
    """

    name: str
    origin: str  # the sweep of a point, else the experiment itself
    shared: Mapping[str, Any]
    choices: tuple[Choice, ...] = ()
    own: Mapping[str, Any] = field(default_factory=dict)

    def changed(self, own: Mapping[str, Any]) -> Entry:
        """Return the same point with an entry of its own, without a sweep in there."""
        return dataclasses.replace(self, own={k: v for k, v in own.items() if k != "sweep"})

    def over(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Return the whole experiment; `{axis}` in the description of a sweep becomes the label."""
        result = self._chosen(defaults, self.choices)
        if isinstance(result.get("description"), str):
            for choice in self.choices:
                result["description"] = result["description"].replace(
                    f"{{{choice.axis}}}", choice.label
                )
        return merge(result, self.own)

    def _chosen(self, defaults: Mapping[str, Any], choices: Sequence[Choice]) -> dict[str, Any]:
        return reduce(self._choose, choices, merge(defaults, self.shared))

    def _choose(self, at: Mapping[str, Any], choice: Choice) -> dict[str, Any]:
        """Merge one choice over `at`.

        A choice of another `context.source` replaces the context of the defaults, and leaves that
        of the sweep, unless the sweep names a source itself.
        """
        shared = {k: v for k, v in self.shared.items() if not has_tag(v)}
        new = choice.difference
        lost = {key: shared.get(key, {}) for key in new if retagged(at.get(key), new[key])}
        return merge({**at, **lost}, new)

    def placed(
        self, problem: ConfigProblem, defaults: Mapping[str, Any], check: Check
    ) -> ConfigProblem:
        """Return a problem of the whole experiment at the place where it was written.

        A problem of the sweep alone is said of the sweep, one that a value makes alone of the
        value: once, not for every point. One that several make together is said of the point.
        """
        if not self.choices or problem in check(self._chosen(defaults, ())):
            if problem.found == unknown_key("", problem.path, ()).found:  # here a sweep is allowed
                known = [*keys_of(ExperimentConfig), "sweep"]
                problem = unknown_key(problem.path, problem.path, known)
            return problem.under(f"experiments.{self.origin}")
        for choice in reversed(self.choices):  # later ones win
            if problem in check(self._chosen(defaults, (choice,))):
                return choice.placed(problem)
        return problem.under(f"experiments.{self.name}")  # several values together

    def problems(self, defaults: Mapping[str, Any]) -> Iterator[ConfigProblem]:
        """Yield the faults of a point that still makes a valid experiment."""
        yield from self._unknown_axes(defaults)
        at = self._chosen(defaults, ())
        for i, choice in enumerate(self.choices):
            at = self._choose(at, choice)
            for earlier in self.choices[:i]:
                if merge(at, earlier.difference) != at:  # the earlier value is no longer in force
                    found = f"values that the axis {choice.axis!r} replaces"
                    expected = "every axis to vary something that no later axis sets"
                    yield ConfigProblem(earlier.path, found, expected)
                    return

    def _unknown_axes(self, defaults: Mapping[str, Any]) -> Iterator[ConfigProblem]:
        axes = [choice.axis for choice in self.choices]
        text = self._chosen(defaults, self.choices).get("description")
        writers = [c.value_path for c in self.choices if "description" in c.difference]
        path = join((writers or [f"experiments.{self.origin}"])[-1], "description")
        for name in re.findall(r"\{([^{}]*)\}", text) if axes and isinstance(text, str) else ():
            if name not in axes:
                yield unknown_key(path, name, axes, noun="axis")
