"""The discussion's claims: each is decided by its rule, both ways, and never by missing runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import fake
import numpy as np
import pandas as pd
import pytest

from etrm.report.claims.case import CONTRADICTED, OPEN, SUPPORTED, VERDICTS, Case
from etrm.report.claims.generalisation import (
    all_families_fail,
    collapsed_answers,
    generalisation_gap,
    guided_refinement,
    ignored_encoder,
    low_variance,
    no_few_shot,
    trm_as_published,
    trm_is_often_right,
    unguided_iteration,
    updates_per_puzzle,
    variance_is_not_enough,
    variational_memory,
    variational_variance,
)
from etrm.report.claims.remedies import pretraining_helps, search_helps
from etrm.report.claims.table import CLAIMS, claims, decide
from etrm.report.claims.training import cached_encodings_starve, clipping, encoding_anew
from etrm.report.run_view import RunView, StudyView

EQUAL = {"decoder": {"init": "trm_strict"}, "train": {"steps": 100, "batch_size": 8}}


def full(folder: Path, name: str, solved: int = 0, tasks: int = 400, **more: Any) -> RunView:
    source = more.pop("source", "standard")
    config = {**EQUAL, "context": {"source": source}, **more.pop("config", {})}
    scored = fake.score(solved=solved, tasks=tasks, seen=more.pop("seen", 0))
    given: dict[str, Any] = {"stage": "full", "steps": 100, "reached": 0.95, "scored": scored}
    return fake.run(folder, experiment=name, config=config, **{**given, **more})


def with_metric(view: RunView, **values: float) -> RunView:
    names = {
        "variance": "train/encoder_cross_sample_var",
        "swap": "encoder/context_swap_drop",
        "coverage": "grad/encoder_coverage",
        "exact": "all.exact_accuracy",
    }
    metrics = view.metrics.assign(**{names[key]: value for key, value in values.items()})
    return dataclasses.replace(view, metrics=metrics)


def test_nothing_is_decided_without_runs_and_the_lack_is_named() -> None:
    for claim, found in decide([], "etrm_standard"):
        assert found.verdict == OPEN, claim.text
        assert found.evidence.startswith("this study has no ")


def test_every_claim_has_a_verdict_and_evidence_in_a_study_that_went_wrong(
    synthetic_study: StudyView,
) -> None:
    table = claims(synthetic_study.runs, "etrm_standard")
    assert len(table.numbers) == len(CLAIMS) > 20
    assert set(table.numbers["verdict"]) == set(VERDICTS)
    assert (table.numbers["evidence"].str.len() > 5).all()
    counts = table.numbers["verdict"].value_counts()
    assert table.notes[0].startswith(f"Of {len(CLAIMS)} claims")
    assert all(f"{counts[verdict]} {verdict}" in table.notes[0] for verdict in VERDICTS)


@pytest.mark.parametrize(
    ("solved", "tasks", "verdict"), [(0, 400, SUPPORTED), (40, 400, CONTRADICTED), (0, 20, OPEN)]
)
def test_next_to_none_is_said_by_the_interval(
    tmp_path: Path, solved: int, tasks: int, verdict: str
) -> None:
    view = with_metric(full(tmp_path, "a", solved, tasks), variance=0.5)
    case = Case([view])
    found = generalisation_gap(case)
    assert found.verdict == verdict
    assert f"of {tasks} tasks" in found.evidence
    assert variance_is_not_enough(case).verdict == verdict
    assert no_few_shot(case).verdict == verdict


def test_a_control_on_other_tasks_decides_nothing(tmp_path: Path) -> None:
    failed = full(tmp_path, "a", 0)
    control = full(tmp_path, "b", 400, config={"sources": ["world", "world_unseen"]})
    first = CLAIMS[0].text
    for views, verdict in (([failed], SUPPORTED), ([control], CONTRADICTED)):
        assert {c.text: f.verdict for c, f in decide(views)}[first] == verdict
    assert {c.text: f.verdict for c, f in decide([failed, control], "a")}[first] == SUPPORTED


def test_a_run_whose_held_out_tasks_were_seen_decides_nothing(tmp_path: Path) -> None:
    assert no_few_shot(Case([full(tmp_path, "a", 0, seen=400)])).verdict == OPEN


def test_families_are_three_kinds_of_encoder(tmp_path: Path) -> None:
    runs = [full(tmp_path, name, source=name) for name in ("standard", "lpn", "recurrent")]
    assert all_families_fail(Case(runs[:2])).verdict == OPEN
    assert all_families_fail(Case(runs)).verdict == SUPPORTED
    solves = full(tmp_path, "other", 40, source="hybrid")
    assert all_families_fail(Case([*runs, solves])).verdict == CONTRADICTED


@pytest.mark.parametrize(
    ("base", "recurrent", "verdict"), [(8, 8, SUPPORTED), (8, 60, CONTRADICTED), (8, 12, OPEN)]
)
def test_iteration_is_judged_against_the_baseline(
    tmp_path: Path, base: int, recurrent: int, verdict: str
) -> None:
    runs = [full(tmp_path, "base", base), full(tmp_path, "r", recurrent, source="recurrent")]
    assert unguided_iteration(Case(runs, "base")).verdict == verdict
    assert unguided_iteration(Case(runs, None)).verdict == OPEN


def refined(view: RunView, **solved: int) -> RunView:
    """The view with refinement of 400 tasks: 20 right without a step, `solved` after ten."""

    def after(right: int) -> dict[str, Any]:
        return {"ranks": {f"t{i}": [1 if i < right else None] for i in range(400)}}

    methods = {name: {"0": after(20), "10": after(n)} for name, n in solved.items()}
    return dataclasses.replace(view, refinement={"methods": methods})


@pytest.mark.parametrize(
    ("search", "control", "helps", "guided"),
    [
        (60, 20, SUPPORTED, SUPPORTED),
        (60, 60, SUPPORTED, CONTRADICTED),
        (20, 20, CONTRADICTED, CONTRADICTED),
        (24, 20, OPEN, OPEN),
    ],
)
def test_search_is_judged_against_no_step_and_against_its_controls(
    tmp_path: Path, search: int, control: int, helps: str, guided: str
) -> None:
    view = refined(full(tmp_path, "a"), search=search, random=control, act_steps=control)
    assert search_helps(Case([view])).verdict == helps
    assert guided_refinement(Case([view])).verdict == guided
    alone = refined(full(tmp_path, "b"), search=search)
    assert guided_refinement(Case([alone])).verdict == OPEN


@pytest.mark.parametrize(
    ("plain", "sampled", "ratio", "low"),
    [(0.3, 3.0, SUPPORTED, SUPPORTED), (0.5, 0.6, CONTRADICTED, CONTRADICTED)],
)
def test_variances_of_twins(
    tmp_path: Path, plain: float, sampled: float, ratio: str, low: str
) -> None:
    runs = [
        with_metric(full(tmp_path, "plain"), variance=plain, exact=0.8),
        with_metric(full(tmp_path, "v", source="variational"), variance=sampled, exact=0.4),
    ]
    case = Case(runs)
    assert case.variational_pairs() == [("plain", "v")]
    assert variational_variance(case).verdict == ratio
    assert variational_memory(case).verdict == SUPPORTED
    assert low_variance(case).verdict == low


def test_contexts_that_can_be_exchanged_are_ignored(tmp_path: Path) -> None:
    runs = [with_metric(full(tmp_path, n), swap=s, exact=0.9) for n, s in (("a", 0.0), ("b", 0.3))]
    assert ignored_encoder(Case(runs[:1])).verdict == SUPPORTED
    assert ignored_encoder(Case(runs[1:])).verdict == CONTRADICTED
    assert ignored_encoder(Case(runs)).verdict == OPEN


def test_cached_encodings_and_encoding_anew(tmp_path: Path) -> None:
    cached = {"train": {"cache_context": True}}
    starves = fake.run(tmp_path, experiment="c", reached=0.4, starved=True, config=cached)
    learns = fake.run(tmp_path, experiment="a", reached=0.95)
    assert cached_encodings_starve(Case([starves, learns])).verdict == SUPPORTED
    assert encoding_anew(Case([starves, learns])).verdict == SUPPORTED
    assert encoding_anew(Case([learns])).verdict == OPEN
    passes = fake.run(tmp_path, experiment="d", reached=0.95, config=cached)
    assert cached_encodings_starve(Case([passes])).verdict == CONTRADICTED
    assert encoding_anew(Case([passes, learns])).verdict == CONTRADICTED


@pytest.mark.parametrize(
    ("solid", "outputs", "verdict"), [(60, 200, SUPPORTED), (0, 400, CONTRADICTED), (1, 5, OPEN)]
)
def test_collapsed_answers_are_counted_over_outputs(
    tmp_path: Path, solid: int, outputs: int, verdict: str
) -> None:
    grids = [bytes([3, 3, 3, 3] if i < solid else [1, 2, 3, 4]) for i in range(outputs)]
    rows = {"task": [f"t{i}" for i in range(outputs)], "query": 0, "grid": grids, "correct": False}
    frame = pd.DataFrame(rows)
    right = frame.assign(correct=True, grid=bytes(4))  # right ones do not count
    pd.concat([frame, right]).to_parquet(tmp_path / "predictions.parquet")
    view = full(tmp_path, "a")
    view = dataclasses.replace(view, predictions=tmp_path / "predictions.parquet")
    found = collapsed_answers(Case([view]))
    assert found.verdict == verdict
    assert found.evidence.endswith(f"over {outputs} test outputs")
    assert found.evidence.startswith(f"{100 * solid / outputs:.1f} % [")


def test_clipping_needs_runs_of_both_kinds(tmp_path: Path) -> None:
    def run(name: str, clip: float | None, stopped: str | None = None) -> RunView:
        config = {"train": {"grad_clip": clip}}
        return fake.run(tmp_path, experiment=name, stopped_early=stopped, config=config)

    stable, free = run("stable", 1.0), run("free", None)
    diverges = run("diverges", None, "divergence")
    assert clipping(Case([stable])).verdict == OPEN
    assert clipping(Case([stable, diverges])).verdict == SUPPORTED
    assert clipping(Case([stable, free])).verdict == CONTRADICTED


def test_trm_is_compared_with_the_published_score_on_as_many_tasks(tmp_path: Path) -> None:
    given: dict[str, Any] = {"kind": "trm", "stage": "pretrain", "split": "transductive"}
    as_published = full(tmp_path, "trm", 167, seen=400, source="embedding", **given)
    as_published.run["puzzles"] = 10
    case = Case([as_published])
    assert trm_as_published(case).verdict == SUPPORTED
    assert trm_is_often_right(case).verdict == SUPPORTED
    found = updates_per_puzzle(case)
    assert (found.verdict, found.evidence) == (CONTRADICTED, "0 of 1: trm 80 updates a puzzle")
    worse = full(tmp_path, "worse", 20, seen=400, source="embedding", **given)
    assert trm_as_published(Case([worse])).verdict == CONTRADICTED
    assert trm_is_often_right(Case([worse])).verdict == CONTRADICTED
    few = full(tmp_path, "few", 8, 20, seen=20, source="embedding", **given)
    assert trm_as_published(Case([few])).verdict == OPEN


def test_an_effect_is_of_twins_alone(tmp_path: Path) -> None:
    scratch = full(tmp_path, "scratch", 4, config={"decoder": {"init": None}})
    given = full(tmp_path, "given", 40)
    assert pretraining_helps(Case([scratch, given])).verdict == SUPPORTED
    other = {"train": {"steps": 100, "batch_size": 16}}
    apart = full(tmp_path, "apart", 40, config=other)
    assert pretraining_helps(Case([scratch, apart])).verdict == OPEN


def test_rules_need_no_order_of_runs(synthetic_study: StudyView) -> None:
    rng = np.random.default_rng(0)
    order = rng.permutation(len(synthetic_study.runs))
    shuffled = [synthetic_study.runs[i] for i in order]
    first = [found.verdict for _, found in decide(synthetic_study.runs, "etrm_standard")]
    assert [found.verdict for _, found in decide(shuffled, "etrm_standard")] == first
