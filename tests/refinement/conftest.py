"""A task whose answer is one cell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from tiny import make_tasks

from etrm.arc.task import Task


@pytest.fixture
def relabel() -> Callable[[str], Task]:
    """The first tiny task with one test input, whose output is one cell of the given byte."""

    def make(cell: str) -> Task:
        (task,) = make_tasks(1)
        output = np.frombuffer(cell.encode(), dtype=np.uint8).reshape(1, 1)
        return replace(task, queries=(replace(task.queries[0], output=output),))

    return make
