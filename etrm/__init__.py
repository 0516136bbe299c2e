"""ETRM: an encoder of demonstrations in place of TRM's puzzle embedding, on ARC-AGI.

The calls that the command line makes, for notebooks and scripts (`etrm.api` documents each):

    import etrm

    study = etrm.read_study("config/config.yaml")
    etrm.train(study, "trm_strict", "pretrain")
    verdict = etrm.gate(study, "etrm_act4")
    score = etrm.evaluate(study, "etrm_act4")
    solver = etrm.load("results/mini/runs/etrm_act4/full/seed0")
    solver.solve("task.json").show()

`__all__` lists the stable names. Rooms, bottom up; each imports from those before it: `config`,
`worlds`, `arc`, `storage`, `runtime`, `tracking`, `data`, `models`, `evaluation`, `refinement`,
`training`, `launch`, `report`, `study`, `solve`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from etrm.api import *

__all__ = [
    "evaluate",
    "gate",
    "load",
    "load_model",
    "make_task",
    "metrics",
    "plan",
    "predictions",
    "prepare",
    "read_study",
    "read_tasks",
    "refine",
    "register_encoder",
    "score",
    "train",
    "train_all",
]


def __getattr__(name: str) -> Any:
    """Import the API when it is first used, so that `import etrm` loads nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'etrm' has no attribute {name!r}")
    from etrm import api

    return getattr(api, name)
