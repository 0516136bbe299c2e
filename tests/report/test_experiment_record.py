"""Experiment records, after the experiment guide's tracking template."""

from __future__ import annotations

import re
from pathlib import Path

import fake
import pytest

from etrm.config.compare import changes
from etrm.report.experiment_record import YOURS, Baseline, record, write_record
from etrm.report.run_view import RunView, distinct
from etrm.report.tables import results_table


def of(views: list[RunView], name: str) -> list[RunView]:
    return [view for view in views if view.experiment == name]


def test_a_record_has_every_part_of_the_template(views: list[RunView]) -> None:
    text = record(of(views, "etrm_standard_h16"), goal="Does it generalise?")
    for part in (
        "# Experiment: etrm_standard_h16",
        "**Date**: 2026-01-09",
        "**Goal**: Does it generalise?",
        "**Changes from baseline**",
        "- Encoder: `standard`",
        "- Pre-trained decoder: yes, `trm_strict`",
        "- halt_max_steps: 16",
        "- halt_exploration_prob: 0.5",
        "## Phase 1 results (overfit)",
        "- Exact match over the episodes: 95.0 % (gate: 90.0 %)",
        "- Issues encountered: none",
        "- Status: passed",
        "- Criterion 1: ✅ pass",
        "## Phase 2 results (full dataset)",
        "- Test pass@2 (all tests right): 5.0 % (1/20), 95 % interval 0.1 % to 24.9 %"
        " (Clopper-Pearson)",
        "- Test token accuracy: 75.0 %",
        "- Status: evaluated",
        "- Criterion 2: ✅ pass (test exact match 5.0 % ≥ 5.0 %",
        "## W&B runs",
        "| overfit | 0 | 2026-01-09T10:00:00+00:00 | cpu | 512 MiB | 0123456789ab |",
        "\nEnvironment: venv .venv, as locked\n",
    ):
        assert part in text
    assert "Pretraining results" not in text


def test_steps_to_the_gate_are_those_of_the_first_evaluation_there(views: list[RunView]) -> None:
    run = next(view for view in of(views, "etrm_standard_h16") if view.stage == "overfit")
    exact = run.series("all.exact_accuracy")
    first = exact.index[exact >= 0.9][0]
    assert f"- Steps to reach the gate: {first}\n" in record([run])


def test_a_stopped_run_tells_its_finding(views: list[RunView]) -> None:
    text = record(of(views, "etrm_cached_control"))
    assert "fail: gradient_starvation. The encoder gets next to no gradient." in text
    assert "`grad/encoder_norm` is 0, the bound 0.05, at step 500" in text
    assert "- Status: stopped: gradient_starvation, exact match 12.5 % < 90 %\n" in text
    assert "- Criterion 1: ❌ fail\n" in text
    assert "not reached at an evaluation" in text
    assert "Phase 2" not in text


@pytest.mark.parametrize(
    ("solved", "words"),
    [(0, "❌ fail (test exact match 0.0 % < 5.0 %"), (1, "⚠️ some generalisation"), (5, "✅ pass")],
)
def test_phase_2_is_judged_as_the_guide_does(tmp_path: Path, solved: int, words: str) -> None:
    scored = fake.score(solved=solved, tasks=100)
    view = fake.run(tmp_path, stage="full", steps=200, scored=scored)
    assert f"- Criterion 2: {words}" in record([view])


def test_phase_2_is_judged_by_exact_match_not_by_the_vote(tmp_path: Path) -> None:
    """As the guide does; the votes are told beside it."""
    scored = fake.score(solved=9, tasks=100, exact=0.03)
    text = record([fake.run(tmp_path, stage="full", steps=200, scored=scored)])
    [judged] = re.findall(r"- Criterion 2: (⚠️.*)", text)
    assert "test exact match 3.0 % < 5.0 %" in judged
    assert "pass@1 9.0 %" in judged


def test_a_partial_score_is_not_judged(tmp_path: Path) -> None:
    """A subset is."""
    partial = fake.score(solved=9, tasks=100, evaluated=90)
    text = record([fake.run(tmp_path, stage="full", steps=200, scored=partial)])
    assert "- Status: partial: 90 of 100 tasks\n- Criterion 2: not judged" in text
    assert "- Evaluated: 90 of 100 tasks asked for (**partial**), 8 variants" in text
    subset = fake.score(solved=9, tasks=32, of_split=100)
    text = record([fake.run(tmp_path, seed=1, stage="full", steps=200, scored=subset)])
    assert "- Status: subset: 32 of 100 tasks\n- Criterion 2: ✅ pass" in text
    assert "- Evaluated: 32 of 32 tasks asked for (**subset** of 100), 8 variants" in text


def test_transductive_trm_is_not_judged_as_generalisation(views: list[RunView]) -> None:
    text = record(of(views, "trm"))
    assert "its embeddings have seen the evaluation demos" in text
    assert "- Embedding: `embedding`" in text


@pytest.mark.parametrize(
    ("seen", "answers", "words"),
    [
        (0, 0, "none of 100 has touched a weight, by id or content\n"),
        (3, 0, "3 of 100 were seen in training, by id or content\n"),
        (3, 1, "3 of 100 were seen in training, by id or content, test outputs of 1 too\n"),
    ],
)
def test_a_record_shows_the_status_of_the_score(
    tmp_path: Path, seen: int, answers: int, words: str
) -> None:
    """A strict run that has seen held-out tasks is not judged by them."""
    scored = fake.score(solved=50, tasks=100, seen=seen, answers=answers)
    text = record([fake.run(tmp_path, stage="full", steps=200, scored=scored)])
    assert f"- Held-out tasks: {words}" in text
    assert ("✅ pass (test exact match" in text) is (seen == 0)
    assert ("no measure of generalisation" in text) is (seen > 0)


def test_changes_from_a_baseline_are_dotted_keys(views: list[RunView], tmp_path: Path) -> None:
    config = {"halting": {"max_steps": 8, "exploration_prob": 0.5}}
    other = fake.run(tmp_path, experiment="shorter", steps=1000, config=config)
    baseline = next(view for view in of(views, "etrm_standard_h16") if view.stage == "overfit")
    text = record([other], baseline=Baseline("etrm_standard_h16", baseline))
    assert "Against `etrm_standard_h16` (overfit" in text
    assert ":\n\n- `halting.max_steps`: 16 → 8\n\n" in text
    own = record([baseline], baseline=Baseline("etrm_standard_h16"))
    assert "`etrm_standard_h16` is the baseline" in own


def test_a_baseline_without_a_run_to_compare_with_is_named(views: list[RunView]) -> None:
    assert "`trm` has no finished run of overfit" in record(
        [view for view in of(views, "etrm_cached_control")], baseline=Baseline("trm")
    )


def test_changes_name_what_only_one_side_has() -> None:
    assert changes({"a": {"b": 1}, "c": 2}, {"a": {"b": 1, "d": 3}}) == [
        ("a.d", 3, "–"),
        ("c", "–", 2),
    ]


def test_runs_of_two_experiments_are_no_record(views: list[RunView]) -> None:
    with pytest.raises(ValueError, match=r"one experiment.*trm_strict"):
        record(views)
    with pytest.raises(ValueError, match="none"):
        record([])


def test_a_record_is_written_whole(views: list[RunView], tmp_path: Path) -> None:
    path = write_record(tmp_path / "records" / "trm.md", of(views, "trm"))
    assert path.read_text().startswith(record(of(views, "trm")))
    parts = re.findall("^### (Key observations|Why it .*|Next steps)$", path.read_text(), re.M)
    assert len(parts) == 3
    assert [file.name for file in path.parent.iterdir()] == ["trm.md"]


def test_the_analysis_is_kept_when_the_numbers_change(tmp_path: Path) -> None:
    first = fake.run(tmp_path / "1", stage="full", steps=200, scored=fake.score(solved=1, tasks=50))
    then = fake.run(tmp_path / "2", stage="full", steps=200, scored=fake.score(solved=9, tasks=50))
    path = write_record(tmp_path / "record.md", [first])
    above, _, analysis = path.read_text().partition(YOURS)
    mine = analysis.replace(
        "### Next steps\n", "### Next steps\n\nMore data.\n\n## A table\n| a |\n"
    )
    assert mine != analysis
    path.write_text(f"{above}{YOURS}{mine}", encoding="utf-8")
    write_record(path, [then])
    again = path.read_text()
    assert again.partition(YOURS)[2] == mine
    assert "18.0 % (9/50)" in again
    assert "2.0 % (1/50)" not in again
    assert write_record(path, [then]).read_text() == again


def test_a_status_is_the_same_in_the_record_and_in_the_table(views: list[RunView]) -> None:
    table = results_table(views).set_index("experiment")
    for name in distinct(view.experiment for view in views):
        assert f"- Status: {table.loc[name, 'status']}\n" in record(of(views, name))


def test_issues_of_a_full_run_are_its_findings(tmp_path: Path) -> None:
    view = fake.run(tmp_path, stage="full", steps=110, stopped_early=fake.EVENT["finding"])
    assert "- Issues encountered:\n  - stop: gradient_starvation." in record([view])


def test_wandb_runs_are_linked_or_where_they_can_be_sent_from(tmp_path: Path) -> None:
    views = [fake.run(tmp_path, seed=seed, steps=100) for seed in range(3)]
    views = [RunView(v.run | {"key": f"{v.seed}" * 64}, v.metrics, v.verdict) for v in views]
    folder = tmp_path / "logs of W&B"
    (folder / "wandb/offline-run-20260101_000000-1111111111111111").mkdir(parents=True)
    (folder / "0000000000000000.url").write_text("https://example.org/runs/0\n", encoding="utf-8")
    lines = [line for line in record(views, wandb=folder).splitlines() if line.startswith("- seed")]
    assert "- seed 0, overfit: <https://example.org/runs/0>" in lines
    assert any(
        "seed 1" in x and "offline-run-20260101_000000-1111111111111111`" in x for x in lines
    )
    assert "- seed 2, overfit: –" in lines


def test_a_sparse_run_still_has_a_record(views: list[RunView]) -> None:
    keep = ("experiment", "stage", "seed", "kind", "split")
    view = views[0]
    text = record([RunView({key: view.run[key] for key in keep}, view.metrics[["step"]])])
    assert "- Train exact match at the end: –" in text
    assert "Versions: –" in text
    assert "Environment: –" in text


def test_provenance_names_parents_as_runs_and_says_what_is_unknown(tmp_path: Path) -> None:
    text = record([fake.run(tmp_path, experiment="e", unproven=["data/x.pt"])])
    assert "| trm_strict/pretrain/seed0, data/x.pt |" in text


@pytest.mark.parametrize(
    ("differing", "words"),
    [(1, "conda etrm, not as locked: p0 missing (2)"), (6, "p3 1 (2), p4 1 (2), and 1 more")],
)
def test_an_environment_that_is_not_the_locked_one_says_what_differs(
    differing: int, words: str, tmp_path: Path
) -> None:
    differs = {f"p{i}": ["1" if i else None, "2"] for i in range(differing)}
    place = {"kind": "conda", "name": "etrm", "locked": False, "differs": differs}
    assert f"{words}\n" in record([fake.run(tmp_path, environment=place)])


def test_every_environment_of_an_experiment_is_named_once(tmp_path: Path) -> None:
    image = {"kind": "container", "name": "etrm.sif", "locked": None}
    views = [
        fake.run(tmp_path, seed=0),
        fake.run(tmp_path, seed=1),
        fake.run(tmp_path, seed=2, environment=image),
        fake.run(tmp_path, seed=3, environment={"kind": None, "error": "not found out"}),
    ]
    container = "container etrm.sif, no lock file to compare it with"
    assert f"Environment: venv .venv, as locked; {container}\n" in record(views)
