"""Runs, parents and parameters of a study, and its gates, without running anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from planning import SMALL, verdict, write

from etrm.cli import main
from etrm.config.load import load_study, plain
from etrm.config.schema import ConfigError
from etrm.study.gate import GateError, describe, judge, require_passed
from etrm.study.layout import Layout, Run
from etrm.study.stale import StudyStatus


def study(
    tmp_path: Path, baseline: str | None = None, finalists: list[str] | None = None, **etrm: Any
) -> Layout:
    document = {
        "study": "s",
        "results": str(tmp_path),
        "baseline": baseline,
        "finalists": finalists,
        "defaults": {"model": SMALL, "context": {"source": "standard", **SMALL}},
        "experiments": {
            "trm": {"split": "transductive", "context": {"source": "embedding"}},
            "strict": {"context": {"source": "embedding"}, "seeds": [3, 4]},
            "etrm": {"decoder": {"init": "strict"}, "seeds": [0, 4], **etrm},
        },
    }
    return Layout(load_study(document))


def test_runs_and_which_are_scored(tmp_path: Path) -> None:
    layout = study(tmp_path)
    pretrained = [("trm", 0), ("strict", 3), ("strict", 4)]
    assert layout.runs("pretrain") == [Run(name, "pretrain", seed) for name, seed in pretrained]
    assert layout.runs("full") == [Run("etrm", "full", 0), Run("etrm", "full", 4)]
    # A strict table of embeddings has no row for a held-out task, so it cannot be scored.
    assert {run.experiment for run in layout.scored()} == {"trm", "etrm"}


def test_finalists_alone_are_scored(tmp_path: Path) -> None:
    """Named experiments or points of a sweep; what can be scored stays known."""
    sweep = {"halting": {"max_steps": 2}, "sweep": {"lr": {"key": "train.lr", "values": [1.0e-3]}}}
    layout = study(tmp_path, finalists=["trm", "etrm_lr0p001"], **sweep)
    assert {run.experiment for run in layout.scorable()} == {"trm", "etrm_lr0p001"}
    assert {run.experiment for run in layout.scored()} == {"trm", "etrm_lr0p001"}
    layout = study(tmp_path, finalists=["etrm"])
    assert layout.scored() == [Run("etrm", "full", 0), Run("etrm", "full", 4)]
    assert layout.scored("trm") == study(tmp_path, finalists=[]).scored() == []
    assert {run.experiment for run in layout.scorable()} == {"trm", "etrm"}
    with pytest.raises(ConfigError, match=r"the sweep 'etrm'.*one of its points: etrm_lr0p001"):
        study(tmp_path, finalists=["etrm"], **sweep)


def test_records_compare_with_the_baseline_that_the_study_names(tmp_path: Path) -> None:
    assert all(study(tmp_path).baseline(name) == [] for name in ("trm", "strict", "etrm"))
    named = study(tmp_path, baseline="trm")
    assert named.baseline("strict") == [Run("trm", "pretrain", 0)]
    assert named.baseline("trm") == named.baseline("etrm") == []  # itself; no stage in common


def test_a_parent_depends_on_no_other_seed_of_it(tmp_path: Path) -> None:
    """More seeds of a pretraining retrain no child that is there."""
    layout = study(tmp_path)
    assert layout.parent(Run("etrm", "overfit", 4)) == Run("strict", "pretrain", 3)
    assert layout.parent(Run("etrm", "full", 0)) == Run("strict", "pretrain", 3)
    assert layout.parent(Run("trm", "pretrain", 0)) is None
    same = {"init": "strict", "init_seed": "same"}
    layout = study(tmp_path, decoder=same, seeds=[4])
    assert layout.parent(Run("etrm", "overfit", 4)) == Run("strict", "pretrain", 4)
    with pytest.raises(ConfigError, match="'strict' has no seed 0, 5"):
        study(tmp_path, decoder=same, seeds=[0, 4, 5])


def write_run(folder: Path, config: Any, key: str = "k") -> None:
    """The record of the ETRM's overfit run."""
    record = {
        **{"experiment": "etrm", "stage": "overfit", "seed": 0, "kind": "etrm", "split": "strict"},
        **{"config": config, "key": key, "weights_sha256": "w", "code_digest": "c"},
        **{"steps_done": 1, "device": "cpu"},
    }
    write(folder / "run.json", json.dumps(record))


@pytest.mark.parametrize(
    ("exact", "diagnosis", "passes"),
    [
        (0.9, [], True),
        (0.899, [], False),
        (1.0, [("gradient_starvation", "fail")], False),
        (0.95, [("unsure_halting", "warn")], True),
    ],
)
def test_the_expecteds_for_a_pass(
    tmp_path: Path, exact: float, diagnosis: list[tuple[str, str]], passes: bool
) -> None:
    content = verdict(exact, *diagnosis)
    assert judge(content, study(tmp_path).study.experiments["etrm"].gate) is passes
    path = write(tmp_path / "verdict.json", json.dumps(content))
    write_run(tmp_path, {})
    if passes:
        require_passed(path)
        write_run(tmp_path, {}, key="another")
        with pytest.raises(GateError, match="earlier overfit run"):
            require_passed(path)
    else:
        with pytest.raises(GateError, match="etrm, seed 0") as error:
            require_passed(path)
        for part in (f"{exact:.1%}", str(path), *(name for name, _ in diagnosis)):
            assert part in str(error.value)


def test_a_verdict_names_warnings_only_where_nothing_failed() -> None:
    assert describe(verdict(0.95)) == "exact match 95.0% ≥ 90%"
    assert describe(verdict(0.5, ("stuck", "warn"))).endswith("50.0% < 90% (stuck)")
    text = describe(verdict(0.5, ("collapse", "fail"), ("stuck", "warn")))
    assert text.endswith("failed collapse")


def test_a_gate_is_open_unless_the_current_run_has_not_passed(tmp_path: Path) -> None:
    def is_open(**etrm: Any) -> bool:
        return StudyStatus(study(tmp_path, **etrm)).expects_full("etrm", 0)

    layout, run = study(tmp_path), Run("etrm", "overfit", 0)
    assert is_open(), "nothing is known yet"
    config = plain(layout.config_of(run))
    write_run(layout.folder(run), config)
    write(layout.verdict("etrm", 0), json.dumps(verdict(0.7)))
    assert not is_open()
    assert is_open(gate={"exact_accuracy": 0.6})
    assert is_open(halting={"max_steps": 3}), "the verdict is on another configuration"
    write_run(layout.folder(run), config, key="another")
    assert is_open(), "the verdict is on another run"


def test_only_sources_in_use_are_parameters(tmp_path: Path) -> None:
    layout = study(tmp_path)
    assert set(layout.data_params()["sources"]) == {"arc1_training", "arc1_evaluation"}
    assert "variants" not in layout.data_params()
    assert layout.source_files() == []


def test_the_command_line_says_which_runs_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "study.yaml"

    def said(code: int, *command: str, **experiment: Any) -> str:
        content = {"study": "s", "results": str(tmp_path), "experiments": {"a": experiment}}
        write(path, json.dumps(content))
        assert main([*command, "--configfile", str(path)]) == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    block = {"context": {"source": "embedding"}}
    assert "context" in said(1, "summary")
    assert "no run has finished yet" in " ".join(said(0, "summary", **block).split())
    assert "a pretrain --seed 0" in said(1, "run", "b", "pretrain", **block)
    assert "no run of a with seed 1" in said(1, "evaluate", "a", "--seed", "1", **block)
    block["split"] = "transductive"
    assert "a --seed 0" in said(1, "evaluate", "b", **block)
    error = said(1, "evaluate", "a", **block)
    assert "model.safetensors" in error
    assert "`etrm run a pretrain --seed 0`" in error
    path.unlink()
    assert main(["summary", "--configfile", str(path)]) == 1
    assert "no such file" in capsys.readouterr().err
