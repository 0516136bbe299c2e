"""Experiments that follow a selection: one for each candidate, trained where that is chosen.

    selections:
      best: {of: [screen], best: 2}
    experiments:
      final:
        after: best
        stages: {full: {steps: 175_000}}

gives one experiment `final_X` for each candidate X, with the keys of X and the differences of
`final`. It has no overfit run and no gate of its own: it is trained where X is chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from etrm.config.entry import Entry
from etrm.config.merging import merge
from etrm.config.rules import MAX_NAME, NAME
from etrm.config.schema import ConfigProblem, unknown_key
from etrm.config.study import BESIDE_STEPS, ExperimentConfig, StudyConfig, candidates_of
from etrm.config.sweep import Expansion
from etrm.config.text import brief


def follow(
    expansion: Expansion,
    selections: Any,
    defaults: Mapping[str, Any],
    problems: list[ConfigProblem],
) -> None:
    """Put one experiment for each candidate in the place of an experiment that has `after`.

    One that names its `candidate` is written out already. Candidates of a selection may follow
    another: those are expanded first, wherever they stand.
    """
    written = expansion.entries
    whole = {name: entry.over(defaults) for name, entry in written.items()}
    waiting = {
        name: _of(name, block, selections, problems)
        for name, block in whole.items()
        if block.get("after") is not None and block.get("candidate") is None
    }
    expansion.templates |= waiting.keys()
    places = {name: {} if name in waiting else {name: e} for name, e in written.items()}
    while waiting:
        ready = [n for n, of in waiting.items() if not any(_in(m, whole[m], of) for m in waiting)]
        if not ready:
            names = ", ".join(waiting)
            found = f"a circle: candidates of {names} follow each other"
            problems.append(ConfigProblem("experiments", found, "selections one after the other"))
            break
        for name in ready:
            of, known = waiting.pop(name), _joined(places)
            candidates = [e for n, e in known.items() if _in(n, e.over(defaults), of)]
            places[name] = _followers(name, written, candidates, problems)
    expansion.entries = _joined(places)


def _joined(places: Mapping[str, Mapping[str, Entry]]) -> dict[str, Entry]:
    """Return all experiments in order; one that a template has changed is not there twice."""
    changed = {n for name, own in places.items() for n in own if n != name}
    return {
        n: entry
        for name, own in places.items()
        for n, entry in own.items()
        if n != name or n not in changed
    }


def _of(
    name: str, block: Mapping[str, Any], selections: Any, problems: list[ConfigProblem]
) -> list[str]:
    """Return the names that a template's selection chooses from; none without such a selection."""
    known = selections if isinstance(selections, Mapping) else {}
    selection = known.get(block["after"])
    of = selection.get("of") if isinstance(selection, Mapping) else None
    if block["after"] not in known:
        path = f"experiments.{name}.after"
        problems.append(unknown_key(path, str(block["after"]), known, "selection"))
    return list(of) if isinstance(of, list | tuple) else []


def _followers(
    name: str,
    written: Mapping[str, Entry],
    candidates: Sequence[Entry],
    problems: list[ConfigProblem],
) -> dict[str, Entry]:
    """Return the experiments in the place of a template, by their names."""
    difference, found = merge(written[name].shared, written[name].own), dict[str, Entry]()
    for candidate in candidates:
        added = _following(name, difference, candidate)
        if added.name in written:  # changes to this one
            added = replace(added, own=merge(added.own, written[added.name].shared))
        found[added.name] = added
    longest = max(found, key=len, default="")
    if len(longest) > MAX_NAME:
        text = f"the name {longest!r} of {len(longest)} letters"
        expected = f"names of up to {MAX_NAME}: a shorter one for {name!r}"
        problems.append(ConfigProblem(f"experiments.{name}", text, expected))
    return found


def _in(name: str, whole: Mapping[str, Any], of: Sequence[str]) -> bool:
    return name in of or whole.get("group") in of


def _following(name: str, difference: Mapping[str, Any], candidate: Entry) -> Entry:
    """Return the experiment that follows a candidate: its keys, and the differences over them."""
    own = merge(
        candidate.own,
        {"group": None, "continues": False, **difference, "candidate": candidate.name},
    )
    if isinstance(own.get("description"), str):
        own["description"] = own["description"].replace("{candidate}", candidate.name)
    return replace(candidate, name=f"{name}_{candidate.name}", origin=name, own=own)


def selection_problems(
    study: StudyConfig, experiments: Mapping[str, ExperimentConfig]
) -> Iterator[ConfigProblem]:
    """Yield selections that cannot be made, and experiments that cannot follow them."""
    groups = {config.group for config in experiments.values()} - {None}
    for name, selection in study.selections.items():
        path = f"selections.{name}"
        if not NAME.holds(name):
            yield ConfigProblem(path, f"the name {brief(name)}", NAME.text)
        for i, each in enumerate(selection.of):
            if each not in groups and each not in experiments:
                known = [*map(str, sorted(map(str, groups))), *experiments]
                yield unknown_key(f"{path}.of[{i}]", each, known, "group or experiment")
        found = candidates_of(selection.of, experiments)
        for candidate in found:
            config = experiments[candidate]
            if config.is_trm:
                expected = "experiments with an encoder: a table of embeddings has no validation"
                yield ConfigProblem(f"{path}.of", f"{candidate!r}", expected)
            if config.after == name:
                expected = "other candidates than those that follow it"
                yield ConfigProblem(f"{path}.of", f"{candidate!r}, which is after it", expected)
        if study.data.validation_tasks == 0:
            expected = "some: candidates are chosen by their answers to them"
            yield ConfigProblem("data.validation_tasks", "0", expected)
    for name, config in experiments.items():
        yield from _following_problems(name, config, study, experiments)


def _following_problems(
    name: str,
    config: ExperimentConfig,
    study: StudyConfig,
    experiments: Mapping[str, ExperimentConfig],
) -> Iterator[ConfigProblem]:
    path = f"experiments.{name}"
    if config.after is None:
        for key, given in (("candidate", config.candidate), ("continues", config.continues)):
            if given:
                yield ConfigProblem(f"{path}.{key}", repr(given), "`after`, a selection, as well")
        return
    selection = study.selections.get(config.after)
    if selection is None:
        yield unknown_key(f"{path}.after", config.after, study.selections, "selection")
        return
    known = candidates_of(selection.of, experiments)
    if config.candidate not in known:
        expected = f"a candidate of {config.after}: {', '.join(known) or 'it has none'}"
        yield ConfigProblem(f"{path}.candidate", repr(config.candidate), expected)
    elif config.continues:
        yield from _not_continued(path, config, experiments[str(config.candidate)])


def _not_continued(
    path: str, config: ExperimentConfig, candidate: ExperimentConfig
) -> Iterator[ConfigProblem]:
    """Yield the differences for which a run cannot continue another that has ended."""
    from etrm.config.load import plain

    mine, theirs = plain(config), plain(candidate)
    for key in ("split", "sources", "episodes", "model", "context", "decoder", "halting"):
        if mine[key] != theirs[key]:
            expected = f"the same as in {config.candidate}, whose state it continues from"
            yield ConfigProblem(f"{path}.{key}", "another", expected)
    here, there = (merge(c["train"], c["stages"].get("full", {})) for c in (mine, theirs))
    for key in here:
        if key not in BESIDE_STEPS and here[key] != there[key]:
            expected = f"{there[key]}, as in {config.candidate}, whose state it continues from"
            yield ConfigProblem(f"{path}.train.{key}", str(here[key]), expected)
    if here["steps"] <= there["steps"]:
        expected = f"more than the {there['steps']} of {config.candidate}, which it continues"
        yield ConfigProblem(f"{path}.stages.full.steps", str(here["steps"]), expected)
    if missing := [seed for seed in config.seeds if seed not in candidate.seeds]:
        expected = f"seeds of {config.candidate}: {', '.join(map(str, candidate.seeds))}"
        yield ConfigProblem(f"{path}.seeds", ", ".join(map(str, missing)), expected)
