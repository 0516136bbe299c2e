"""Ask a finished run about tasks of your own: from files, from dictionaries, from arrays.

    python solve_own_tasks.py results/mini/runs/world_in_context/full/seed0 [TASK.json …]

The run folder is all that is needed. Without files, two tasks that are made here are asked about.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

import etrm
from etrm.arc.task import Task


def own_tasks() -> list[Task]:
    """Return a task of rows whose colours change, as arrays, and the same one from a dictionary."""
    rng = np.random.default_rng(0)
    becomes = rng.permutation(10)  # becomes[c]: the colour that c becomes
    grids = [rng.integers(0, 10, (1, 6)) for _ in range(6)]
    demos = [(grid, becomes[grid]) for grid in grids]
    seen = np.unique(np.concatenate(grids))
    question = rng.choice(seen, (1, 6))
    entry = {
        "train": [{"input": x.tolist(), "output": y.tolist()} for x, y in demos],
        "test": [{"input": question.tolist(), "output": becomes[question].tolist()}],
    }
    return [etrm.make_task(demos, [question], "arrays"), *etrm.read_tasks({"dictionary": entry})]


def main(run: str, files: list[str]) -> None:
    """Print the answers, their votes and contexts, and write submission.json."""
    solver = etrm.load(run)
    tasks = etrm.read_tasks(files) if files else own_tasks()
    submission = {}
    for solution in solver.stream(tasks, variants=8):
        solution.show()
        print(solution.votes[["query", "rank", "votes", "q_mean"]].head(3), "\n")
        submission |= solution.submission()
    Path("submission.json").write_text(json.dumps(submission), encoding="utf-8")
    demos = [(pair.input, pair.output) for pair in tasks[0].demos]
    print("context tokens", solver.encode(demos).shape)
    print("logits", solver.logits(demos, tasks[0].queries[0].input).shape)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
