"""A linear read-out (Alain and Bengio, 2016): the rule of a task, from its context.

Held-out tasks of a known rule are encoded. For each label (the rule's name, each of its parameters)
a ridge regression on its classes is fitted to the contexts of most tasks, and asked about the rest.
High accuracy says that the encoder finds the rule of tasks that it was not trained on, in a form
that a linear map can use; not that the decoder uses it.

T tasks, F features of a context, C classes of a label.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from etrm.arc.task import Rule, Task
from etrm.config.study import RunConfig
from etrm.evaluation.contexts import encode_tasks
from etrm.models.act import Model
from etrm.models.build import build_model
from etrm.storage.digests import digest

RULE = "rule"  # the label that is the rule's name
MOST = 1000  # tasks that are encoded, the same for every run
FOLDS = 5  # each is asked once, of a read-out that was fitted to the others
PER_CLASS = 4  # tasks of a class, on average; a label with fewer is left out
PENALTIES = np.logspace(-4, 4, 17)  # of ridge, a task
CONSTANT = 1e-6  # of a feature's size: a deviation that is rounding alone
# Of each label: right by contexts, by contexts of untrained weights, and of classes that were
# shuffled among tasks; tasks of the largest class; tasks.
COUNTS = ("right", "untrained", "shuffled", "chance", "of")


@dataclass(frozen=True)
class Label:
    """A property of rules, of the tasks that have it."""

    rows: np.ndarray  # [n] their numbers, below T
    classes: np.ndarray  # [n] below C
    fold: np.ndarray  # [n] below FOLDS: each class has about as many tasks in each


def read_out(model: Model, run: RunConfig, tasks: Sequence[Task]) -> dict[str, Any] | None:
    """Return the accuracy of read-outs from the contexts of `model`; None without ground truth.

    `rule`, and `parameters` over all of them, are accuracies with counts: `untrained` by the run's
    first weights, `shuffled` of classes that were shuffled among tasks, `chance` the share of the
    largest class. `labels` has the counts of each. All on the CPU, in float32.
    """
    known = sorted((t for t in tasks if t.rule), key=lambda t: digest([RULE, t.id]))[:MOST]
    labels = labels_of([task.rule for task in known if task.rule])
    if not labels:
        return None
    trained, untrained = (encode_tasks(each, run, known) for each in (model, build_model(run, 1)))
    if not np.isfinite(trained).all():
        return None
    counts = {}
    for name, label in labels.items():
        right, shuffled = right_answers(trained, label)
        floor, _ = right_answers(untrained, label)
        sizes = np.bincount(label.classes)
        numbers = (right, floor, shuffled, int(sizes.max()), len(label.rows))
        counts[name] = dict(zip(COUNTS, numbers, strict=True)) | {"classes": len(sizes)}
    found: dict[str, Any] = {"tasks": len(known), "labels": counts}
    for kind, chosen in ((RULE, {RULE} & counts.keys()), ("parameters", counts.keys() - {RULE})):
        if chosen:
            total = {each: sum(counts[name][each] for name in chosen) for each in COUNTS}
            shares = {each: total[each] / total["of"] for each in COUNTS[:-1]}
            accuracy = {"accuracy": shares.pop("right"), "right": total["right"]}
            found[kind] = {**accuracy, "of": total["of"], **shares}
    return found


def labels_of(rules: Sequence[Rule]) -> dict[str, Label]:
    """Return the labels that these rules have enough tasks of, by name."""
    values: dict[str, dict[int, str]] = {}
    for row, rule in enumerate(rules):
        for name, value in properties(rule).items():
            values.setdefault(name, {})[row] = value
    labels = {}
    for name, of_row in sorted(values.items()):
        known, classes = np.unique(list(of_row.values()), return_inverse=True)
        if len(known) > 1 and len(classes) >= PER_CLASS * len(known):
            fold = np.empty_like(classes)
            fold[classes.argsort(kind="stable")] = np.arange(len(classes)) % FOLDS
            labels[name] = Label(np.array(list(of_row)), classes, fold)
    return labels


def properties(rule: Rule) -> dict[str, str]:
    """Return the properties of a rule: its name, and `primitive.parameter` of each primitive.

    A map of colours has a parameter for each colour in use: the one that replaces it.
    """
    found, parts = {RULE: rule.name}, json.loads(rule.parameters)
    parts = parts if isinstance(parts, list) else [parts]
    for name, values in zip(rule.name.split("+"), parts, strict=True):
        if values.keys() == {"used", "becomes"}:
            values = dict(zip(values["used"], values["becomes"], strict=True))
        found |= {f"{name}.{key}": json.dumps(value) for key, value in values.items()}
    return found


def right_answers(x: np.ndarray, label: Label) -> tuple[int, int]:
    """Return how many classes are read from contexts `x` [T, F], and how many of shuffled ones."""
    x, classes = x[label.rows], label.classes
    shuffled = classes[np.random.default_rng(0).permutation(len(classes))]
    right = [0, 0]
    for fold in range(FOLDS):
        asked = label.fold == fold
        ridge = Ridge(x[~asked])
        for i, truth in enumerate((classes, shuffled)):
            y = np.eye(classes.max() + 1)[truth[~asked]]  # [n, C]
            right[i] += int((ridge.predict(y, x[asked]).argmax(axis=1) == truth[asked]).sum())
    return right[0], right[1]


class Ridge:
    """Ridge regression from `x` [n, F], decomposed once for all targets.

    The penalty is the one of the least squared error of tasks that are left out one at a time,
    which has a closed form (Golub, Heath and Wahba, 1979).
    """

    def __init__(self, x: np.ndarray) -> None:
        size = np.sqrt((x**2).mean(axis=0))
        self.mean, scale = x.mean(axis=0), x.std(axis=0)
        self.scale = np.where(scale > CONSTANT * size, scale, np.inf)
        z = (x - self.mean) / self.scale
        tall = z.shape[0] > z.shape[1]
        spectrum, vectors = np.linalg.eigh(z.T @ z if tall else z @ z.T)
        kept = spectrum > 1e-10 * max(spectrum[-1], 1.0)
        self.spectrum, vectors = spectrum[kept], vectors[:, kept]
        other = (z if tall else z.T) @ vectors / np.sqrt(self.spectrum)
        self.left: np.ndarray = other if tall else vectors  # [n, R]
        self.right: np.ndarray = vectors if tall else other  # [F, R]: z = left · s · right'

    def predict(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return predictions [m, C] for `x` [m, F] after a fit to the targets `y` [n, C]."""
        n, middle = len(y), y.mean(axis=0)
        parts = self.left.T @ (y - middle)  # [R, C], of as many directions as there are
        best, least = np.zeros_like(self.spectrum), np.inf
        for penalty in n * PENALTIES:
            kept = self.spectrum / (self.spectrum + penalty)  # [R], of each direction
            leverage = 1 / n + self.left**2 @ kept  # [n]
            rest = y - middle - self.left @ (kept[:, None] * parts)
            error = ((rest / (1 - leverage).clip(1e-12)[:, None]) ** 2).sum()
            if error < least:
                best, least = kept, error
        weights = self.right @ ((best / np.sqrt(self.spectrum))[:, None] * parts)
        predicted: np.ndarray = (x - self.mean) / self.scale @ weights + middle
        return predicted
