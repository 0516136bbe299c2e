"""Runs by name, two of them side by side, and one at a glance."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import fake
import pytest
import yaml
from small_study import STUDY

from etrm.cli import main
from etrm.errors import UserError
from etrm.report.side_by_side import Side, side_by_side, to_text
from etrm.study.views import find_views

TASKS = 20


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study with two experiments, of which the first has two seeds."""
    folder = tmp_path_factory.mktemp("study")
    document = json.loads(json.dumps(STUDY))
    document["experiments"]["one"]["seeds"] = [0, 1]
    document["results"] = str(folder / "results")
    (folder / "study.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    root = folder / "results/tiny"
    for name, stage, seed, steps, solved, first in (
        ("one", "full", 0, 1000, 6, 0),
        ("one", "full", 1, 1000, 8, 0),
        ("one", "overfit", 0, 500, None, 0),
        ("two", "full", 0, 2000, 9, 3),
    ):
        scored = None if solved is None else fake.score(solved=solved, tasks=TASKS, first=first)
        if name == "two" and scored is not None:
            scored["by_step"] = {"exact_accuracy": [0.125, 0.25, 0.375]}
        config = {"halting": {"max_steps": 8}} if name == "two" else None
        more: dict[str, Any] = {"seed": seed, "steps": steps, "config": config}
        fake.run(folder / "made", experiment=name, stage=stage, scored=scored, **more)
        made, place = (
            folder / f"made/{name}-{stage}-{seed}",
            root / f"runs/{name}/{stage}/seed{seed}",
        )
        shutil.copytree(made, place)
        record = json.loads((place / "run.json").read_text(encoding="utf-8"))
        (place / "run.json").write_text(json.dumps(record | {"key": "k"}), encoding="utf-8")
        (place / "model.safetensors").write_bytes(b"weights")
        if scored is not None:
            evaluation = root / f"evaluation/{name}/seed{seed}"
            evaluation.mkdir(parents=True)
            (place / "score.json").rename(evaluation / "score.json")
    return root


def study_of(root: Path) -> str:
    return str(root.parents[1] / "study.yaml")


def names_of(root: Path, name: str) -> list[str]:
    views = find_views(name, study_of(root)).values()
    return [f"{v.experiment} {v.stage} {v.seed} {v.score is not None}" for v in views]


def test_a_run_has_many_names(root: Path, tmp_path: Path) -> None:
    run, evaluation = root / "runs/one/full/seed1", root / "evaluation/one/seed1"
    for name in (run, evaluation, "one/full/seed1"):
        assert names_of(root, str(name)) == ["one full 1 True"]
    assert names_of(root, "one") == ["one full 0 True", "one full 1 True"]
    assert names_of(root, "one/overfit") == ["one overfit 0 False"]
    # A score of other weights is none of this run, and the run none of that score.
    other = tmp_path / "study"
    shutil.copytree(root, other)
    record = json.loads((other / "runs/one/full/seed1/run.json").read_text(encoding="utf-8"))
    text = json.dumps(record | {"key": "another"})
    (other / "runs/one/full/seed1/run.json").write_text(text, encoding="utf-8")
    assert names_of(root, str(other / "runs/one/full/seed1")) == ["one full 1 False"]
    (view,) = find_views(str(other / "evaluation/one/seed1"), "").values()
    assert view.score is not None
    assert len(view.metrics) == 0
    for name in (str(tmp_path), "three", "two/overfit"):
        with pytest.raises(UserError):
            find_views(name, study_of(root))


def sides(root: Path, a: str, b: str) -> tuple[Side, Side]:
    found = [Side(name, list(find_views(name, study_of(root)).values())) for name in (a, b)]
    return found[0], found[1]


def test_two_runs_side_by_side(root: Path) -> None:
    a, b = sides(root, "one/full/seed0", "two")
    found = side_by_side(a, b)
    changed = {key: (old, new) for key, old, new in found["configuration"]}
    assert changed["halting.max_steps"] == (16, 8)
    assert ("steps_done", 1000, 2000) in found["made_with"]
    loss = next(row for row in found["curves"] if row["metric"] == "train/lm_loss")
    assert list(loss["steps"]) == ["250", "500", "1000"]
    # Both as far as A has come: B has had half of its steps, so its loss is higher than A's.
    assert loss["steps"]["1000"] == [a.views[0].final("train/lm_loss"), loss["steps"]["1000"][1]]
    assert loss["steps"]["1000"][1] > loss["steps"]["1000"][0]
    assert loss["end"] == [v.views[0].final("train/lm_loss") for v in (a, b)]
    score = found["scores"]["pass@2"]
    assert score["difference"] == pytest.approx((9 - 6) / TASKS)
    assert score["difference_low"] < score["difference"] < score["difference_high"]
    assert score["tasks"] == TASKS
    named = {key: sorted(int(name[1:]) for name in names) for key, names in found["tasks"].items()}
    assert named == {"both": [3, 4, 5], "only_a": [0, 1, 2], "only_b": [6, 7, 8, 9, 10, 11]}
    back = side_by_side(b, a)["scores"]["pass@2"]
    assert back["difference"] == -score["difference"]
    assert back["p"] == score["p"]


def test_experiments_are_compared_over_their_seeds(root: Path) -> None:
    found = side_by_side(*sides(root, "one", "two"))
    assert found["a"]["seeds"] == [0, 1]
    assert found["scores"]["pass@1"]["baseline_pass"] == pytest.approx((6 + 8) / 2 / TASKS)
    assert not [key for key, _, _ in found["configuration"] if key == "seed"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_comparison_and_a_run_fit_the_terminal(
    width: int, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.chdir(root)  # short names
    for arguments in (
        ["compare", "runs/one/full/seed0", "evaluation/two/seed0"],
        ["compare", "runs/one/full/seed0", "runs/one/overfit/seed0"],
        ["show", "runs/one/full/seed0"],
        ["show", "runs/one/overfit/seed0"],
    ):
        assert main(arguments) == 0
        printed = capsys.readouterr().out
        assert max(map(len, printed.splitlines())) <= width, printed
        assert "412,345" in printed or "max_steps" in printed or "no evaluation of B" in printed


def test_a_comparison_for_programs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(root / "runs/one/full/seed0"), str(root / "runs/one/overfit/seed0")]
    assert main(["compare", *names, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["a"]["scores"], found["b"]["scores"]) == (1, 0)
    assert found["tasks"] is None
    assert "B" in to_text(found, 80)


def test_a_run_at_a_glance(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "one/overfit", "--configfile", study_of(root)]) == 0
    printed = capsys.readouterr().out
    for part in ("412,345", "standard", "trm_strict", "max_steps 16", "500 of 500", "512 MiB"):
        assert part in printed
    assert "passed" in printed  # the verdict
    assert main(["show", "two", "--configfile", study_of(root)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"pass@2 {100 * 9 / TASKS:.1f} %" in printed
    assert "12.5 % after the first, 37.5 % after the last" in printed
    assert "model.safetensors 7 bytes" in printed
