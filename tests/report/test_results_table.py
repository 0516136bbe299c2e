"""The results table: its rows, and that all its files say the same."""

from __future__ import annotations

import dataclasses
import html
import re
from pathlib import Path
from typing import Any

import fake
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etrm.config.load import read_study
from etrm.evaluation.statistics import clopper_pearson, mean_interval, share_interval
from etrm.report.formats import Table, escape_latex, to_latex, to_markdown, write_table
from etrm.report.run_view import RunView
from etrm.report.tables import outcome, rendered, results, results_table, to_text

PAPER = Path(__file__).parents[2] / "config" / "paper.yaml"
STOPPED = "stopped: gradient_starvation, exact match 12.5 % < 90 %"


def row_of(table: pd.DataFrame, experiment: str) -> pd.Series:
    rows = table[table.iloc[:, 0] == experiment]
    assert len(rows) == 1
    return rows.iloc[0]


def evaluated(folder: Path, seed: int = 0, split: str = "strict", **score: Any) -> RunView:
    """A full run with a score."""
    scored = fake.score(**score)
    return fake.run(folder, seed=seed, stage="full", steps=200, split=split, scored=scored)


def test_every_experiment_has_its_row_the_stopped_one_too(views: list[RunView]) -> None:
    table = results_table(views)
    names = ["trm", "trm_strict", "etrm_standard_h16", "etrm_standard_h8", "etrm_cached_control"]
    assert table["experiment"].tolist() == names
    assert table["stage"].tolist() == ["pretrain", "pretrain", "full", "full", "overfit"]
    assert row_of(table, "etrm_cached_control")["status"] == STOPPED
    text = rendered(table)
    assert row_of(text, "etrm_cached_control")["Gate"] == "stopped"
    assert row_of(table, "trm_strict")["status"] == "initialises decoders"
    assert row_of(text, "etrm_standard_h8")["Gate"] == "passed"


def test_numbers_come_from_verdict_score_and_metrics(views: list[RunView]) -> None:
    row = row_of(results_table(views), "etrm_standard_h16")
    full = next(v for v in views if v.experiment == row["experiment"] and v.stage == "full")
    assert row["overfit_exact"] == 0.95
    assert row["gate_threshold"] == 0.9
    assert row["train_exact"] == full.series("all.exact_accuracy").iloc[-1]
    assert row["pass@1_task_fraction"] == 1 / 20
    assert (row["pass@2_all_tests_numerators"], row["pass@2_all_tests_denominator"]) == ("1", 20)
    assert (row["tasks"], row["variants"], row["seeds"]) == (20, 8, 1)
    interval = row[["pass@1_task_fraction_low", "pass@1_task_fraction_high"]].tolist()
    assert interval == pytest.approx(clopper_pearson(1, 20))
    assert row["pass@1_task_fraction_method"] == "Clopper-Pearson"
    assert (row["test_exact"], row["test_token_accuracy"]) == (0.05, 0.75)
    text = row_of(rendered(results_table(views)), "etrm_standard_h16")
    assert text["pass@1"] == "5.0 % [0.1, 24.9] (1 of 20)"
    assert text["Overfit exact match"] == "95.0 %"
    assert text["Test token accuracy"] == "75.0 %"
    assert text["Parameters"] == "412,345"


def test_several_seeds_give_an_interval_and_every_numerator(tmp_path: Path) -> None:
    counts = (1, 0, 2)
    views = [
        evaluated(tmp_path, seed, solved=count, tasks=400) for seed, count in enumerate(counts)
    ]
    table = results(views)
    row = table.numbers.iloc[0]
    name = "pass@2_task_fraction"
    assert row[name] == pytest.approx(1 / 400)
    assert row[f"{name}_numerators"] == "1, 0, 2"
    credits = np.array([np.arange(400) < count for count in counts], dtype=float)
    interval = [row[f"{name}_low"], row[f"{name}_high"]]
    assert interval == pytest.approx(mean_interval(credits))
    assert "Korn-Graubard" in row[f"{name}_method"]
    assert any(row[f"{name}_method"] in note for note in table.notes)
    assert table.text["pass@2"][0] == "0.2 % [0.0, 1.4] (1, 0, 2 of 400)"


def test_seeds_that_have_all_solved_nothing_have_an_interval(tmp_path: Path) -> None:
    views = [evaluated(tmp_path, seed, solved=0, tasks=400) for seed in range(3)]
    text = rendered(results_table(views)).iloc[0]
    assert text["pass@1"] == "0.0 % [0.0, 0.9] (0, 0, 0 of 400)"


def test_other_means_over_seeds_have_their_range(seeded: list[RunView]) -> None:
    row = row_of(results_table(seeded), "etrm_standard_h16")
    assert row["seeds"] == 3
    assert row["overfit_exact"] == pytest.approx(0.96)
    assert (row["overfit_exact_min"], row["overfit_exact_max"]) == (0.95, 0.97)
    text = row_of(rendered(results_table(seeded)), "etrm_standard_h16")
    assert text["Overfit exact match"] == "96.0 % (95.0–97.0)"


def validated(view: RunView, shares: list[float], count: float | None) -> RunView:
    """The view with an evaluation on validation tasks at each of its last steps."""
    metrics = view.metrics.copy()
    rows = metrics.index[-len(shares) :]
    metrics.loc[rows, "validation.exact_accuracy"] = shares
    if count is not None:
        metrics.loc[rows, "validation.tasks"] = count
    return dataclasses.replace(view, metrics=metrics)


def test_the_last_exact_match_on_validation_is_shown(tmp_path: Path) -> None:
    views = [fake.run(tmp_path, seed=seed, stage="full", steps=200) for seed in range(2)]
    uncounted = rendered(results_table([validated(views[0], [0.1, 0.3], None)]))
    assert uncounted["Validation exact match"][0] == "30.0 %"
    counted = [validated(views[0], [0.1, 0.3], 60), validated(views[1], [0.5, 0.4], 60)]
    row = results_table(counted).iloc[0]
    assert row["validation_exact"] == pytest.approx(0.35)
    interval = [row["validation_exact_low"], row["validation_exact_high"]]
    assert interval == pytest.approx(share_interval(np.array([0.3, 0.4]), 60))
    assert "Valid. %" in to_text(results(counted))
    assert "Valid. %" not in to_text(results(views))
    assert rendered(results_table(views))["Validation exact match"][0] == "–"


def test_the_table_says_how_many_have_looked_at_test(views: list[RunView]) -> None:
    table = results(views)
    assert set(table.numbers["scored_on_test"]) == {3}  # trm and two of the ETRM
    assert any("3 of 5 experiments" in note for note in table.notes)


def test_a_mean_over_survivors_is_marked(tmp_path: Path) -> None:
    views = [
        fake.run(tmp_path, seed=seed, steps=200, reached=reached)
        for seed, reached in enumerate((0.95, 0.96, 0.5))
    ]
    views += [evaluated(tmp_path, seed, solved=4, tasks=400) for seed in (0, 1)]
    table = results(views)
    full, overfit = (row for _, row in table.numbers.iterrows())
    assert full[["seeds", "gate_passed", "gate_seeds"]].tolist() == [2, 2, 3]
    assert overfit[["seeds", "gate_passed", "gate_seeds"]].tolist() == [1, 2, 3]
    assert table.text["Seeds"].tolist() == ["2 of 3", "1"]
    assert table.text["Gate"].tolist() == ["2 of 3 seeds passed"] * 2
    assert table.text["pass@2"][0].startswith("1.0 %† [")
    assert table.text["Overfit exact match"].tolist() == ["95.5 %† (95.0–96.0)", "50.0 %"]
    assert sum(note.startswith("†") for note in table.notes) == 1
    whole = results(views[:2] + views[3:])  # both of two have passed
    assert "†" not in to_markdown(whole) + to_text(whole)


def test_the_row_of_the_baseline_says_so(views: list[RunView]) -> None:
    table = results(views, "etrm_standard_h8")
    assert row_of(table.numbers, "etrm_standard_h8")["status"] == "evaluated; baseline"
    assert row_of(table.numbers, "etrm_standard_h16")["status"] == "evaluated"


def test_seeds_that_did_not_pass_have_a_row_of_their_own(tmp_path: Path) -> None:
    views = [
        fake.run(tmp_path, seed=0, steps=200),
        fake.run(tmp_path, seed=0, steps=200, stage="full"),
        fake.run(tmp_path, seed=1, steps=200, reached=0.8),
        fake.run(tmp_path, seed=2, steps=200),
    ]
    table = results_table(views)
    assert table["stage"].tolist() == ["full", "overfit"]
    assert table["seeds"].tolist() == [1, 2]
    assert table["gate_passed"].tolist() == [2, 2]
    assert table["gate_seeds"].tolist() == [3, 3]
    assert table["status"].tolist() == [
        "not evaluated",
        "stopped: exact match 80.0 % < 90 %; passed, full run not finished",
    ]


def test_a_partial_score_says_so(tmp_path: Path) -> None:
    view = evaluated(tmp_path, solved=3, tasks=400, evaluated=32)
    text = rendered(results_table([view])).iloc[0]
    assert text["Status"] == "partial: 32 of 400 tasks"
    assert text["Tasks"] == "partial: 32 of 400"
    assert text["pass@1"] == "0.8 % [0.2, 2.2] (3 of 400, partial)"


def test_a_subset_is_no_partial_score(tmp_path: Path) -> None:
    table = results_table([evaluated(tmp_path, solved=3, tasks=32, of_split=400)])
    row, text = table.iloc[0], rendered(table).iloc[0]
    assert (row["partial"], row["subset"], row["tasks"], row["tasks_of_split"]) == (
        *(False, True, 32, 400),
    )
    assert text["Status"] == "subset: 32 of 400 tasks"
    assert text["Tasks"] == "subset: 32 of 400"
    assert text["pass@1"] == "9.4 % [2.0, 25.0] (3 of 32)"


def test_no_runs_give_an_empty_table_with_its_columns(tmp_path: Path) -> None:
    table = results([])
    assert table.numbers.empty
    assert "Experiment" in to_text(table)
    csv, markdown, latex, page = write_table(table, tmp_path / "results")
    assert "<table" in page.read_text()
    assert pd.read_csv(csv).columns.tolist() == table.numbers.columns.tolist()
    assert markdown.read_text().count("\n") == 2
    assert r"\midrule" in latex.read_text()


def test_status_of_a_verdict_that_failed_for_its_health_alone(tmp_path: Path) -> None:
    view = fake.run(tmp_path, reached=0.95, starved=True, steps=200)
    assert outcome(view) == "stopped: gradient_starvation, exact match 95.0 % ≥ 90 %"
    early = fake.run(tmp_path, stage="full", steps=200, stopped_early="collapse at step 120")
    assert outcome(early) == "stopped: collapse at step 120"


def latex_cells(line: str) -> list[str]:
    line = line.removesuffix(r" \\")
    undo = {
        r"\allowbreak{}": "",
        r"\%": "%",
        r"\_": "_",
        r"\textless{}": "<",
        "--": "–",
        r"\dag{}": "†",
    }
    for escaped, plain in undo.items():
        line = line.replace(escaped, plain)
    return [cell.strip() for cell in line.split(" & ")]


@pytest.mark.parametrize("which", ["views", "seeded"])
def test_the_three_files_say_the_same(
    which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    whole = results(request.getfixturevalue(which))
    table = whole.numbers
    paths = write_table(whole, tmp_path / "results")
    kinds = ("csv", "md", "tex", "html")
    assert [path.name for path in paths] == [f"results.{kind}" for kind in kinds]
    csv, markdown, latex, page = paths
    again = pd.read_csv(csv)
    pd.testing.assert_frame_equal(rendered(again), rendered(table))
    text = rendered(table)
    cells = [line.strip("| ").split(" | ") for line in markdown.read_text().splitlines()]
    assert cells[0] == text.columns.tolist()
    cells = cells[: 2 + len(table)]  # without the notes
    assert cells[2:] == text.to_numpy().tolist()
    lines = [line for line in latex.read_text().splitlines() if line.endswith(r" \\")]
    assert [latex_cells(line) for line in lines] == [cells[0], *cells[2:]]
    shown = [html.unescape(c) for c in re.findall(r"<t[hd]>(.*?)</t[hd]>", page.read_text())]
    assert shown == [cell for line in (cells[0], *cells[2:]) for cell in line]
    assert whole.notes
    for note in whole.notes:
        assert note in markdown.read_text()
        assert note in html.unescape(page.read_text())
        assert escape_latex(note) in latex.read_text()


def test_the_files_are_whole_tables(views: list[RunView]) -> None:
    whole = results(views)
    table, latex = whole.numbers, to_latex(whole)
    body = latex.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == len(table)
    columns = re.search(r"\\begin\{tabular\}\{(.+)\}", latex)
    assert columns is not None
    count = len(re.sub(r">\{.*?\}p\{16em\}", "p", columns[1]))
    assert count == len(whole.text.columns)
    assert all(len(line.split(" & ")) == count for line in body)
    assert latex.count("{") == latex.count("}")
    assert "etrm\\_cached\\_control" in latex
    pipes = {line.count("|") for line in to_markdown(whole).splitlines() if line[:1] == "|"}
    assert pipes == {count + 1}


def test_a_pipe_in_a_name_does_not_break_markdown(tmp_path: Path) -> None:
    view = fake.run(tmp_path, stage="full", steps=200, experiment="a|b")
    assert "a\\|b" in to_markdown(results([view]))


def test_the_terminal_shows_aligned_columns(views: list[RunView]) -> None:
    lines = to_text(results(views)).splitlines()
    lines = lines[: lines.index("")]  # without the notes
    start = lines[0].index("Status")
    last = next(i for i, line in enumerate(lines) if line.startswith("etrm_cached_control"))
    assert " ".join(line[start:] for line in lines[last:]) == STOPPED
    assert all(line[start - 2 : start] == "  " for line in lines)
    assert sum(line[:1].isalpha() for line in lines) == 1 + 5
    assert "Overfit %" in lines[0]


def test_the_terminal_is_wide_enough_for_the_paper_study(tmp_path: Path) -> None:
    name = max(read_study(PAPER).experiments, key=len)
    views = [
        fake.run(tmp_path, experiment=name, seed=seed, steps=200, reached=reached)
        for seed, reached in enumerate((0.95, 0.95, 0.5))
    ]
    scored = fake.score(solved=150, tasks=400)
    for seed in (0, 1):
        full = fake.run(
            tmp_path, experiment=name, seed=seed, steps=200, stage="full", scored=scored
        )
        views.append(validated(full, [0.31], 120))
    trm = {"stage": "pretrain", "kind": "trm", "split": "transductive"}
    views.append(fake.run(tmp_path, experiment="trm", steps=200, scored=scored, **trm))
    for width in (160, 80):
        text = to_text(results(views, name), width)
        assert max(map(len, text.splitlines())) <= width
        assert "37.5 [" in text


@given(st.text(max_size=20))
def test_escaped_text_has_no_bare_special_character(text: str) -> None:
    escaped = escape_latex(text)
    known = (
        r"\\text(backslash|asciitilde|asciicircum|less|greater|bar)\{\}|\\(dag|ldots)\{\}"
        r"|\$\\(geq|leq|to|times|pm|cdot|sigma|mu|surd|approx)\$|\$-\$|\$\^2\$"
    )
    rest = re.sub(known + r"|\\[&%$#_{}]", "", escaped)
    assert not set(rest) & set("\\&%$#_{}~^<>")


def test_missing_ks_are_tolerated(tmp_path: Path) -> None:
    scored: dict[str, Any] = fake.score(solved=1, tasks=4)
    del scored["pass"]["2"]
    view = fake.run(tmp_path, stage="full", steps=200, scored=scored)
    text = rendered(results_table([view])).iloc[0]
    assert text["pass@2"] == "–"
    assert text["pass@1"].endswith("(1 of 4)")


def test_an_ancestor_of_unknown_origin_takes_the_proof_away(tmp_path: Path) -> None:
    scored = fake.score(solved=1, tasks=20)
    scored["held_out"] = {"status": "not proven", "seen": 0, "of": 20, "unproven": ["x.pt"]}
    views = [
        fake.run(tmp_path, experiment="known", stage="full", scored=fake.score(solved=1, tasks=20)),
        fake.run(tmp_path, experiment="alien", stage="full", scored=scored, unproven=["x.pt"]),
    ]
    table = results_table(views)
    assert row_of(table, "known")["held_out"] == "proven"
    assert row_of(table, "alien")["held_out"] == "not proven"
    whole = Table(table, rendered(table))
    for text in (to_markdown(whole), to_latex(whole), to_text(whole)):
        assert text.count("held-out: not proven") == 1


@pytest.mark.parametrize(
    ("split", "seen", "answers", "words", "brief"),
    [
        ("strict", 0, 0, "strict: held out", "strict"),
        ("strict", 3, 0, "strict, 3 of 20 held-out tasks seen", None),
        ("strict", 3, 2, "strict, 3 of 20 held-out tasks seen, test outputs of 2 seen", None),
        ("transductive", 20, 0, "transductive: evaluation demos seen", "transductive"),
        (
            "transductive",
            20,
            1,
            "transductive: evaluation demos seen, test outputs of 1 seen",
            "transductive, test outputs of 1 seen",
        ),
        ("transductive", 0, 0, "transductive: no held-out task seen", "transductive"),
    ],
)
def test_every_rendering_shows_the_status_of_the_score(
    tmp_path: Path, split: str, seen: int, answers: int, words: str, brief: str | None
) -> None:
    """A strict run that has seen held-out tasks is not called held out, whatever was meant."""
    view = evaluated(tmp_path, split=split, solved=1, tasks=20, seen=seen, answers=answers)
    table = results_table([view])
    assert rendered(table)["Split"].tolist() == [words]
    whole = results([view])
    paths = write_table(whole, tmp_path / "results")
    assert rendered(pd.read_csv(paths[0]))["Split"].tolist() == [words]
    assert all(words in path.read_text() for path in paths[1:])
    assert f"  {brief or words}  " in to_text(whole)
    assert ("strict: held out" in to_markdown(whole)) is (words == "strict: held out")


def test_the_seed_that_saw_most_speaks_for_all(tmp_path: Path) -> None:
    views = [evaluated(tmp_path, seed, solved=1, tasks=20, seen=2 * seed) for seed in (0, 1)]
    assert rendered(results_table(views))["Split"][0] == "strict, 2 of 20 held-out tasks seen"


def test_a_run_without_a_score_claims_nothing(tmp_path: Path) -> None:
    table = results([fake.run(tmp_path, stage="full", steps=200)])
    assert table.text["Split"].tolist() == ["strict"]
    assert "  strict  " in to_text(table)


def test_an_earlier_score_is_shown_without_what_it_lacks(tmp_path: Path) -> None:
    scored = fake.score(solved=1, tasks=20, seen=2)
    del scored["held_out"]["answers"], scored["ranks"], scored["tasks_of_split"]
    table = results_table([fake.run(tmp_path, stage="full", steps=200, scored=scored)])
    assert rendered(table)["Split"].tolist() == ["strict, 2 of 20 held-out tasks seen"]
    assert rendered(table)["pass@1"].tolist() == ["5.0 % (1 of 20)"]
