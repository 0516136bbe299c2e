"""Tiny sizes, at which every part of the command ends in a second or two on a CPU."""

from __future__ import annotations

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
    """Let this process trace modules as for the compiler, or not at all; and generate no code.

    Shapes are traced as they come: dynamic ones take the tracer several times as long.
    """
    compile_module = nn.Module.compile

    def simplified(self: nn.Module, *, dynamic: bool) -> None:
        if trace:
            compile_module(self, backend="eager", dynamic=False)

    nn.Module.compile = simplified  # type: ignore[method-assign]
