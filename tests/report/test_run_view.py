"""Reading run folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from etrm.report.run_view import RunView, load_run

RUN = {"experiment": "e", "stage": "overfit", "seed": 0, "kind": "etrm", "split": "strict"}


def view(metrics: dict[str, list[float]], **run: object) -> RunView:
    return RunView({**RUN, **run}, pd.DataFrame(metrics))


def write(folder: Path, run: dict[str, object]) -> None:
    (folder / "run.json").write_text(json.dumps(run))
    pd.DataFrame({"step": [1]}).to_parquet(folder / "metrics.parquet")


def test_a_run_is_read_with_what_is_given(tmp_path: Path) -> None:
    write(tmp_path, RUN)
    verdict = {"experiment": "e", "seed": 0, "passed": True, "diagnosis": []}
    verdict |= {"exact_accuracy": 1.0, "threshold": 0.9}
    (tmp_path / "v.json").write_text(json.dumps(verdict))
    loaded = load_run(tmp_path, verdict=tmp_path / "v.json", predictions=tmp_path / "p.parquet")
    assert (loaded.experiment, loaded.stage, loaded.seed, loaded.is_trm) == (
        "e",
        "overfit",
        0,
        False,
    )
    assert loaded.verdict == verdict
    assert loaded.score is None
    assert loaded.predictions == tmp_path / "p.parquet"


def test_incomplete_runs_are_errors_that_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run\.json"):
        load_run(tmp_path)
    write(tmp_path, {key: value for key, value in RUN.items() if key not in ("seed", "split")})
    with pytest.raises(ValueError, match=r"run\.json: found no seed, split"):
        load_run(tmp_path)
    write(tmp_path, {**RUN, "stage": "warmup"})
    with pytest.raises(ValueError, match="stage 'warmup', expected one of pretrain, overfit, full"):
        load_run(tmp_path)


def test_the_end_of_a_metric_is_a_mean_over_samples() -> None:
    steps = list(range(1, 21))
    exact = [0.0] * 18 + [1.0, 0.5]
    count = [1.0] * 18 + [1.0, 3.0]
    found = view({"step": steps, "train/exact_accuracy": exact, "train/halted": count})
    assert found.final("train/exact_accuracy") == pytest.approx((1.0 + 3 * 0.5) / 4)
    assert found.final("grad/encoder_norm") is None


def test_a_metric_without_a_finite_value_is_empty() -> None:
    found = view({"step": [1, 2], "a": [np.nan, np.inf], "train/exact_accuracy": [1.0, 1.0]})
    assert found.series("a").empty
    assert found.series("missing").empty
    assert len(found.series("train/exact_accuracy")) == 2  # no train/halted: all count
    none = view({"step": [1, 2], "train/exact_accuracy": [1.0, 1.0], "train/halted": [0.0, np.nan]})
    assert none.final("train/exact_accuracy") is None


@pytest.mark.parametrize(
    ("reason", "verdict", "stopped"),
    [
        (None, None, False),
        ("gradient_starvation", None, True),
        ("reached the target exact accuracy 0.95", None, False),
        ("gradient_starvation", {"passed": False}, True),
        (None, {"passed": False}, True),
        ("collapse", {"passed": True}, False),
    ],
)
def test_stopped(reason: str | None, verdict: dict[str, bool] | None, stopped: bool) -> None:
    run = RunView({**RUN, "stopped_early": reason}, pd.DataFrame({"step": [1]}), verdict)
    assert run.stopped is stopped
