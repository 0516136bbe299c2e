"""Paths, parents, gates and the command line, without running anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from etrm.cli import main
from etrm.config.load import load_study, plain
from etrm.config.schema import ConfigError
from etrm.study.gate import GateError, describe, judge, require_passed
from etrm.study.layout import Pipeline, Run

SMALL = {"width": 16, "heads": 2}


def study(tmp_path: Path, **etrm: Any) -> Pipeline:
    document = {
        "study": "s",
        "results": str(tmp_path),
        "defaults": {"model": SMALL, "context": {"source": "standard", **SMALL}},
        "experiments": {
            "trm": {"split": "transductive", "context": {"source": "embedding"}},
            "strict": {"context": {"source": "embedding"}, "seeds": [3, 4]},
            "etrm": {"decoder": {"init": "strict"}, "seeds": [0, 4], **etrm},
        },
    }
    return Pipeline(load_study(document))


def verdict(exact: float = 0.95, findings: list[tuple[str, str]] | None = None) -> dict[str, Any]:
    diagnosis = [{"finding": name, "severity": severity} for name, severity in findings or []]
    passed = exact >= 0.9 and all(s != "fail" for _, s in findings or [])
    return {
        "experiment": "etrm",
        "seed": 0,
        "passed": passed,
        "exact_accuracy": exact,
        "threshold": 0.9,
        "diagnosis": diagnosis,
    }


def test_runs_and_what_is_scored(tmp_path: Path) -> None:
    pipeline = study(tmp_path)
    assert pipeline.runs("pretrain") == [
        Run("trm", "pretrain", 0),
        Run("strict", "pretrain", 3),
        Run("strict", "pretrain", 4),
    ]
    assert pipeline.runs("full") == [Run("etrm", "full", 0), Run("etrm", "full", 4)]
    # A strict table of embeddings has no row for a held-out task, so it cannot be scored.
    assert {run.experiment for run in pipeline.scored()} == {"trm", "etrm"}


def test_a_parent_depends_on_no_other_seed_of_it(tmp_path: Path) -> None:
    """More seeds of a pretraining retrain no child that is there."""
    pipeline = study(tmp_path)
    assert pipeline.parent(Run("etrm", "overfit", 4)) == Run("strict", "pretrain", 3)
    assert pipeline.parent(Run("etrm", "full", 0)) == Run("strict", "pretrain", 3)
    assert pipeline.parent(Run("trm", "pretrain", 0)) is None
    same = {"init": "strict", "init_seed": "same"}
    pipeline = study(tmp_path, decoder=same, seeds=[4])
    assert pipeline.parent(Run("etrm", "overfit", 4)) == Run("strict", "pretrain", 4)
    with pytest.raises(ConfigError, match="'strict' has no seed 0, 5, expected first, or these"):
        study(tmp_path, decoder=same, seeds=[0, 4, 5])


@pytest.mark.parametrize(
    ("exact", "findings", "passes"),
    [
        (0.9, [], True),
        (0.899, [], False),
        (1.0, [("gradient_starvation", "fail")], False),
        (0.95, [("unsure_halting", "warn")], True),
    ],
)
def test_gate(tmp_path: Path, exact: float, findings: list, passes: bool) -> None:
    gate = study(tmp_path).study.experiments["etrm"].gate
    content = verdict(exact, findings)
    assert judge(content, gate) is passes
    path = tmp_path / "verdict.json"
    path.write_text(json.dumps({**content, "run_key": "k"}))
    write_run(tmp_path, {})
    if passes:
        require_passed(path)
    else:
        with pytest.raises(GateError, match=r"etrm, seed 0: the full run does not start") as error:
            require_passed(path)
        assert f"{exact:.1%}" in str(error.value)
        assert str(path) in str(error.value)
        assert all(name in str(error.value) for name, _ in findings)


def write_run(folder: Path, config: Any, key: str = "k") -> None:
    """The record of the ETRM's overfit run."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        **{"experiment": "etrm", "stage": "overfit", "seed": 0, "kind": "etrm", "split": "strict"},
        **{"config": config, "key": key, "weights_sha256": "w", "code_digest": "c"},
        **{"steps_done": 1, "device": "cpu"},
    }
    (folder / "run.json").write_text(json.dumps(record))


def test_a_verdict_on_an_earlier_run_opens_no_gate(tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    path.write_text(json.dumps({**verdict(), "run_key": "k"}))
    write_run(tmp_path, {})
    require_passed(path)
    write_run(tmp_path, {}, key="another")
    with pytest.raises(GateError, match="the verdict on an earlier overfit run"):
        require_passed(path)


def test_describe_names_warnings_only_where_nothing_failed() -> None:
    assert describe(verdict(0.95)) == "exact match 95.0% ≥ 90%"
    text = describe(verdict(0.5, [("stuck", "warn")]))
    assert text == "exact match 50.0% < 90% (stuck)"
    text = describe(verdict(0.5, [("collapse", "fail"), ("stuck", "warn")]))
    assert text == "exact match 50.0% < 90%, failed collapse"


def test_projection_goes_by_the_verdict_on_todays_configuration(tmp_path: Path) -> None:
    pipeline = study(tmp_path)
    run = Run("etrm", "overfit", 0)
    assert pipeline.projected("etrm", 0), "nothing is known yet"
    config = plain(pipeline.config_of(run))
    write_run(pipeline.folder(run), config)
    pipeline.verdict("etrm", 0).write_text(json.dumps({**verdict(0.7), "run_key": "k"}))
    assert not pipeline.projected("etrm", 0)
    assert study(tmp_path, gate={"exact_accuracy": 0.6}).projected("etrm", 0)
    changed = study(tmp_path, halting={"max_steps": 3})
    assert changed.projected("etrm", 0), "the verdict is on another configuration"
    write_run(pipeline.folder(run), config, key="another")
    assert pipeline.projected("etrm", 0), "the verdict is on another run"


def test_only_sources_in_use_are_parameters(tmp_path: Path) -> None:
    pipeline = study(tmp_path)
    assert set(pipeline.data_params()["sources"]) == {"arc1_training", "arc1_evaluation"}
    assert "variants" not in pipeline.data_params()
    assert pipeline.source_files() == []


def test_command_line_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["summary", "--configfile", str(tmp_path / "none.yaml")]) == 1
    assert "no such file" in capsys.readouterr().err
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps({"study": "s", "results": str(tmp_path), "experiments": {"a": {}}}))
    assert main(["summary", "--configfile", str(path)]) == 1
    assert "context" in capsys.readouterr().err
    path.write_text(
        json.dumps(
            {
                "study": "s",
                "results": str(tmp_path),
                "experiments": {"a": {"context": {"source": "embedding"}}},
            }
        )
    )
    assert main(["summary", "--configfile", str(path)]) == 0
    assert "no run has finished yet" in capsys.readouterr().out
    assert main(["run", "b", "pretrain", "--configfile", str(path)]) == 1
    assert "a pretrain --seed 0" in capsys.readouterr().err
    assert main(["evaluate", "a", "--seed", "1", "--configfile", str(path)]) == 1
    assert "evaluates no run of a with seed 1, but no other" in capsys.readouterr().err
    block = {"context": {"source": "embedding"}, "split": "transductive"}
    path.write_text(
        json.dumps({"study": "s", "results": str(tmp_path), "experiments": {"a": block}})
    )
    assert main(["evaluate", "b", "--configfile", str(path)]) == 1
    assert "evaluates no run of b with seed 0, but a --seed 0" in capsys.readouterr().err
    assert main(["evaluate", "a", "--configfile", str(path)]) == 1
    error = capsys.readouterr().err
    assert "model.safetensors: no such file, expected a finished run" in error
    assert "`etrm run a pretrain --seed 0`" in error
