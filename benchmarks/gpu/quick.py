"""Tiny sizes, at which every part of the command ends in a second or two on a CPU."""

from __future__ import annotations

from functools import partialmethod
from typing import Any

from torch import nn

SIZES = {"width": 16, "heads": 2, "layers": 1}
QUICK: dict[str, Any] = {
    "blocks": {
        "model": {**SIZES, "context_tokens": 2, "H_cycles": 1, "L_cycles": 1},
        "context": {**SIZES, "set_layers": 1},
        "halting": {"max_steps": 3},
        "train": {"log_every": 2},
    },
    "slots": 4,
    "matmul_side": 16,
}


def simplify_compilation(trace: bool) -> None:
    """Let this process trace modules as for the compiler, or not at all; and generate no code."""

    def ignore(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        """Leave a module as it is."""

    traced = partialmethod(nn.Module.compile, backend="eager")
    nn.Module.compile = traced if trace else ignore  # type: ignore[method-assign, assignment]
