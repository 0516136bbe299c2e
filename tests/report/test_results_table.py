"""The results table: its rows, and that all its files say the same."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import fake
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etrm.report.run_view import RunView
from etrm.report.tables import (
    escape_latex,
    outcome,
    rendered,
    results_table,
    to_latex,
    to_markdown,
    to_text,
    write_table,
)

STOPPED = "stopped: gradient_starvation, exact match 12.5 % < 90 %"


def row_of(table: pd.DataFrame, experiment: str) -> pd.Series:
    rows = table[table.iloc[:, 0] == experiment]
    assert len(rows) == 1
    return rows.iloc[0]


def test_every_experiment_has_its_row_the_stopped_one_too(views: list[RunView]) -> None:
    table = results_table(views)
    names = ["trm", "trm_strict", "etrm_standard_h16", "etrm_standard_h8", "etrm_cached_control"]
    assert table["experiment"].tolist() == names
    assert table["stage"].tolist() == ["pretrain", "pretrain", "full", "full", "overfit"]
    assert row_of(table, "etrm_cached_control")["status"] == STOPPED
    assert row_of(table, "etrm_cached_control")["gate"] == "stopped"
    assert row_of(table, "trm_strict")["status"] == "initialises decoders"
    assert row_of(table, "etrm_standard_h8")["gate"] == "passed"


def test_numbers_come_from_verdict_score_and_metrics(views: list[RunView]) -> None:
    row = row_of(results_table(views), "etrm_standard_h16")
    full = next(v for v in views if v.experiment == row["experiment"] and v.stage == "full")
    assert row["overfit_exact"] == 0.95
    assert row["gate_threshold"] == 0.9
    assert row["train_exact"] == full.series("all.exact_accuracy").iloc[-1]
    assert row["pass@1_task_fraction"] == 1 / 20
    assert (row["pass@2_all_tests_numerator"], row["pass@2_all_tests_denominator"]) == (1, 20)
    assert (row["tasks"], row["variants"], row["seeds"]) == (20, 8, 1)
    assert row[["pass@1_task_fraction_low", "pass@1_task_fraction_high"]].tolist() == [0.0, 0.1]
    text = row_of(rendered(results_table(views)), "etrm_standard_h16")
    assert text["pass@1"] == "5.0 % (1/20) [0.0, 10.0]"
    assert text["Overfit exact match"] == "95.0 %"
    assert text["Parameters"] == "412,345"


def test_several_seeds_give_mean_and_spread(seeded: list[RunView]) -> None:
    row = row_of(results_table(seeded), "etrm_standard_h16")
    assert row["seeds"] == 3
    assert row["overfit_exact"] == pytest.approx(0.96)
    assert row["overfit_exact_sd"] == pytest.approx(0.01)
    assert pd.isna(row["pass@1_task_fraction_low"])  # an interval is of one seed
    text = row_of(rendered(results_table(seeded)), "etrm_standard_h16")
    assert text["pass@1"] == "5.0 % ± 0.0 (1/20)"
    assert text["Overfit exact match"] == "96.0 % ± 1.0"


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
    assert table["gate"].tolist() == ["passed", "passed 1 of 2"]
    assert table["status"].tolist() == [
        "not evaluated",
        "stopped: exact match 80.0 % < 90 %; passed, full run not finished",
    ]


def test_a_partial_score_says_so(tmp_path: Path) -> None:
    scored = fake.score(solved=3, tasks=400, evaluated=32)
    view = fake.run(tmp_path, stage="full", steps=200, scored=scored)
    text = rendered(results_table([view])).iloc[0]
    assert text["Status"] == "partial: 32 of 400 tasks"
    assert text["Tasks"] == "32 of 400"
    assert text["pass@1"].startswith("0.8 % (3/400, partial)")


def test_no_runs_give_an_empty_table_with_its_columns(tmp_path: Path) -> None:
    table = results_table([])
    assert table.empty
    assert "Experiment" in to_text(table)
    csv, markdown, latex, page = write_table(table, rendered(table), tmp_path / "results")
    assert "<table" in page.read_text()
    assert pd.read_csv(csv).columns.tolist() == table.columns.tolist()
    assert markdown.read_text().count("\n") == 2
    assert r"\midrule" in latex.read_text()


def test_status_of_a_verdict_that_failed_for_its_health_alone(tmp_path: Path) -> None:
    view = fake.run(tmp_path, reached=0.95, starved=True, steps=200)
    assert outcome(view) == "stopped: gradient_starvation, exact match 95.0 % ≥ 90 %"
    early = fake.run(tmp_path, stage="full", steps=200, stopped_early="collapse at step 120")
    assert outcome(early) == "stopped: collapse at step 120"


def latex_cells(line: str) -> list[str]:
    line = line.removesuffix(r" \\")
    undo = {r"\%": "%", r"\_": "_", r"\textless{}": "<", "--": "–", r"$\pm$": "±"}
    for escaped, plain in undo.items():
        line = line.replace(escaped, plain)
    return [cell.strip() for cell in line.split(" & ")]


@pytest.mark.parametrize("which", ["views", "seeded"])
def test_the_three_files_say_the_same(
    which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    table = results_table(request.getfixturevalue(which))
    paths = write_table(table, rendered(table), tmp_path / "results")
    kinds = ("csv", "md", "tex", "html")
    assert [path.name for path in paths] == [f"results.{kind}" for kind in kinds]
    csv, markdown, latex, page = paths
    again = pd.read_csv(csv)
    pd.testing.assert_frame_equal(rendered(again), rendered(table))
    text = rendered(table)
    cells = [line.strip("| ").split(" | ") for line in markdown.read_text().splitlines()]
    assert cells[0] == text.columns.tolist()
    assert cells[2:] == text.to_numpy().tolist()
    lines = [line for line in latex.read_text().splitlines() if line.endswith(r" \\")]
    assert [latex_cells(line) for line in lines] == [cells[0], *cells[2:]]
    shown = [html.unescape(c) for c in re.findall(r"<t[hd]>(.*?)</t[hd]>", page.read_text())]
    assert shown == [cell for line in (cells[0], *cells[2:]) for cell in line]


def test_the_files_are_whole_tables(views: list[RunView]) -> None:
    table = results_table(views)
    latex = to_latex(rendered(table))
    body = latex.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == len(table)
    columns = re.search(r"\\begin\{tabular\}\{(l+)\}", latex)
    assert columns is not None
    assert all(len(line.split(" & ")) == len(columns[1]) for line in body)
    assert latex.count("{") == latex.count("}")
    assert "etrm\\_cached\\_control" in latex
    pipes = {line.count("|") for line in to_markdown(rendered(table)).splitlines()}
    assert pipes == {len(columns[1]) + 1}


def test_a_pipe_in_a_name_does_not_break_markdown(tmp_path: Path) -> None:
    view = fake.run(tmp_path, stage="full", steps=200, experiment="a|b")
    assert "a\\|b" in to_markdown(rendered(results_table([view])))


def test_the_terminal_shows_aligned_columns(views: list[RunView]) -> None:
    lines = to_text(results_table(views)).splitlines()
    start = lines[0].index("Status")
    assert [line[start:] for line in lines[2:]][-1] == STOPPED
    assert all(line[start - 2 : start] == "  " for line in lines)
    assert len(lines) == 2 + 5
    assert "Overfit EM" in lines[0]


@given(st.text(max_size=20))
def test_escaped_text_has_no_bare_special_character(text: str) -> None:
    escaped = escape_latex(text)
    known = (
        r"\\textbackslash\{\}|\\textasciitilde\{\}|\\textasciicircum\{\}|\\text(less|greater)\{\}"
    )
    rest = re.sub(known + r"|\$\\(pm|geq)\$|\\[&%$#_{}]", "", escaped)
    assert not set(rest) & set("\\&%$#_{}~^<>")


def test_missing_ks_are_tolerated(tmp_path: Path) -> None:
    scored: dict[str, Any] = fake.score(solved=1, tasks=4)
    del scored["pass"]["2"]
    view = fake.run(tmp_path, stage="full", steps=200, scored=scored)
    text = rendered(results_table([view])).iloc[0]
    assert text["pass@2"] == "–"
    assert text["pass@1"].startswith("25.0 % (1/4)")


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
    for text in (to_markdown(rendered(table)), to_latex(rendered(table)), to_text(table)):
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
    scored = fake.score(solved=1, tasks=20, seen=seen, answers=answers)
    view = fake.run(tmp_path, stage="full", steps=200, split=split, scored=scored)
    table = results_table([view])
    assert rendered(table)["Split"].tolist() == [words]
    paths = write_table(table, rendered(table), tmp_path / "results")
    assert rendered(pd.read_csv(paths[0]))["Split"].tolist() == [words]
    assert all(words in path.read_text() for path in paths[1:])
    assert f"  {brief or words}  " in to_text(table)
    assert ("strict: held out" in to_markdown(rendered(table))) is (words == "strict: held out")


def test_the_seed_that_saw_most_speaks_for_all(tmp_path: Path) -> None:
    scores = [fake.score(solved=1, tasks=20, seen=seen) for seen in (0, 2)]
    views = [
        fake.run(tmp_path, seed=seed, stage="full", steps=200, scored=scored)
        for seed, scored in enumerate(scores)
    ]
    assert rendered(results_table(views))["Split"][0] == "strict, 2 of 20 held-out tasks seen"


def test_a_run_without_a_score_claims_nothing(tmp_path: Path) -> None:
    table = results_table([fake.run(tmp_path, stage="full", steps=200)])
    assert rendered(table)["Split"].tolist() == ["strict"]
    assert "  strict  " in to_text(table)


def test_a_score_from_before_answers_were_counted_is_shown(tmp_path: Path) -> None:
    scored = fake.score(solved=1, tasks=20, seen=2)
    del scored["held_out"]["answers"]
    table = results_table([fake.run(tmp_path, stage="full", steps=200, scored=scored)])
    assert rendered(table)["Split"].tolist() == ["strict, 2 of 20 held-out tasks seen"]
