"""`etrm solve`: text, pictures and files of the answers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import etrm
from etrm.arc.task import Task, task_to_json
from etrm.cli import main
from etrm.evaluation.voting import vote
from etrm.solve.solution import Solution
from etrm.solve.terminal import ARROW, CODES, GAP

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
SIZE = re.compile(rb"IHDR(....)(....)", re.DOTALL)
TASK = etrm.make_task(
    [([[0, 1], [2, 3]], [[4, 5, 6]]), ([[7]], [[8], [9]]), ([[0] * 20], [[1] * 20])],
    [[[1, 2, 3]], [[4]]],
    "mine",
)


def answers(*grids: tuple[int, list[list[int]]]) -> pd.DataFrame:
    """Predictions of the first test input: each grid by so many variants."""
    voted = [np.array(grid, dtype=np.uint8) for votes, grid in grids for _ in range(votes)]
    cells = [(*grid.shape, grid.tobytes()) for grid in voted]
    frame = pd.DataFrame(cells, columns=["height", "width", "grid"])
    return frame.assign(task="mine", query=0, variant=range(len(voted)), q_halt=0.0)


ROWS = answers((2, [[3, 2, 1]]), (5, [[6], [6]]), (1, [[0]]))
SOLUTION = Solution(TASK, ROWS, vote(ROWS))


def test_votes_and_attempts() -> None:
    votes = SOLUTION.votes
    assert votes["votes"].tolist() == [5, 2, 1]
    assert votes["share"].tolist() == [5 / 8, 2 / 8, 1 / 8]
    assert [grid.tolist() for grid in votes["grid"]] == [[[6], [6]], [[3, 2, 1]], [[0]]]
    [first, second] = SOLUTION.attempts
    assert [grid.tolist() for grid in first] == [[[6], [6]], [[3, 2, 1]]]
    assert [grid.tolist() for grid in second] == [[[0]], [[0]]]  # no answer: Kaggle's stand-in
    assert SOLUTION.correct == [None, None]
    assert SOLUTION.predictions["grid"][2].tolist() == [[6], [6]]


def test_text_has_every_grid_and_vote() -> None:
    lines = SOLUTION.text(width=60).splitlines()
    assert max(map(len, lines)) <= 60
    row = next(line for line in lines if line.startswith("test 1   "))
    assert "5 of 8" in row
    assert "2 of 8" in row
    under = lines[lines.index(row) + 1]
    assert [found.group() for found in re.finditer(r"\d+", under)] == ["123", "6", "321"]
    assert lines[2].split() == ["demo", "1", "demo", "2"]
    assert lines[3].split() == ["01", "→", "456", "7", "→", "8"]
    assert lines[4].split() == ["23", "9"]
    assert any("0" * 20 + " → " + "1" * 20 in line for line in lines)
    assert "test 2: no answer" in lines
    assert "\x1b" not in "".join(lines)


def test_colours_only_paint_the_cells() -> None:
    text = SOLUTION.text(width=100, colour=True)
    for colour in range(10):
        assert f"\x1b[48;5;{CODES[colour]}m  " in text
    assert len(set(CODES)) == 10
    plain = [COLOURS.sub("", line) for line in text.splitlines()]
    assert max(map(len, plain)) <= 100
    assert not re.search(r"\d", plain[3])
    # Two letters a cell: of 2 and 3 cells, then of 1 and 1; titles are six letters wide.
    places = [found.start() for found in re.finditer("→", plain[3])]
    assert places == [6 + 1, 6 + len(ARROW) + 6 + len(GAP) + 6 + 1]


def test_the_picture_is_a_png_and_the_same_every_time(tmp_path: Path) -> None:
    SOLUTION.picture(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    assert content == SOLUTION._repr_png_()
    assert content.startswith(b"\x89PNG")
    width, height = (int.from_bytes(each) for each in SIZE.search(content).groups())
    assert 500 < width < 2000
    assert 200 < height < 2000


@pytest.fixture
def asked(
    run_folder: Callable[[str], Path], held_out: list[Task], tmp_path: Path, monkeypatch: Any
) -> list[str]:
    """Two task files in the current folder, and the command that asks about them."""
    monkeypatch.chdir(tmp_path)
    for task in held_out[:2]:
        Path(f"{task.id}.json").write_text(json.dumps(task_to_json(task)), encoding="utf-8")
    names = [f"{task.id}.json" for task in held_out[:2]]
    return ["solve", *names, "--run", str(run_folder("etrm")), "--device", "cpu"]


def test_the_command_prints_and_writes(
    asked: list[str], held_out: list[Task], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*asked, "--variants", "3"]) == 0
    printed = capsys.readouterr().out
    ids = [task.id for task in held_out[:2]]
    assert {path.name for path in Path("solved").iterdir()} == {
        *("submission.json", "solve.json"),
        *(f"{name}.png" for name in ids),
    }
    submission = json.loads(Path("solved/submission.json").read_text(encoding="utf-8"))
    assert [len(submission[task.id]) for task in held_out[:2]] == [
        len(task.queries) for task in held_out[:2]
    ]
    solver = etrm.load(asked[4])
    for task in held_out[:2]:
        solution = solver.solve(task, variants=3)
        assert solution.submission()[task.id] == submission[task.id]
        assert str(solution) in printed
    record = json.loads(Path("solved/solve.json").read_text(encoding="utf-8"))
    assert (record["variants"], record["tasks"]) == (3, ids)
    assert record["run_key"] == solver.record["key"]
    assert main([asked[0], *asked[2:], "--variants", "1"]) == 0  # its own files are replaced
    assert json.loads(Path("solved/solve.json").read_text(encoding="utf-8"))["variants"] == 1


def test_without_matplotlib_the_answers_are_written_all_the_same(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("etrm.solve.command.find_spec", lambda name: None)
    assert main([*asked, "--variants", "1", "--search", "1"]) == 0
    assert {path.name for path in Path("solved").iterdir()} == {"submission.json", "solve.json"}
    assert "matplotlib" in capsys.readouterr().out
    record = json.loads(Path("solved/solve.json").read_text(encoding="utf-8"))
    assert (record["variants"], record["search"]) == (1, 1)


def test_files_of_others_are_not_replaced(
    asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("submission.json", "solve.json", "held_out0.png"):
        file = Path(name[:5], name)
        file.parent.mkdir()
        file.write_text("{}", encoding="utf-8")
        assert main([*asked, "--out", str(file.parent)]) == 1
        assert str(file) in capsys.readouterr().err
        assert file.read_text(encoding="utf-8") == "{}"
        assert len([*file.parent.iterdir()]) == 1


def test_tasks_that_are_too_large_are_refused_or_left_out(
    asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    large = {"train": [{"input": [[1] * 9], "output": [[1]]}], "test": [{"input": [[1]]}]}
    Path("large.json").write_text(json.dumps(large), encoding="utf-8")
    asked.insert(1, "large.json")
    assert main(asked) == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert "task large" in error[0]
    assert not Path("solved").exists()
    assert main([*asked, "--skip"]) == 1
    assert "left out: task large" in capsys.readouterr().err
    submission = json.loads(Path("solved/submission.json").read_text(encoding="utf-8"))
    assert submission["large"] == [{"attempt_1": [[0]], "attempt_2": [[0]]}]
    assert len(submission) == 3


def test_a_bad_task_is_told_before_torch_is_loaded(asked: list[str]) -> None:
    """And the command line itself loads neither torch nor anything that draws."""
    Path("bad.json").write_text('{"train": [', encoding="utf-8")
    heavy = ("torch", "pandas", "matplotlib", "snakemake")
    code = f"from etrm.cli import main; import sys; main({['solve', 'bad.json', *asked[3:]]})"
    code += f"; print([m for m in {heavy} if m in sys.modules])"
    environment = {"PYTHONPATH": str(Path(etrm.__file__).parents[1]), "PATH": ""}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert found.stdout.strip() == "[]", found.stderr
    assert "bad.json: found truncated JSON" in found.stderr
