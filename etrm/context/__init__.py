"""Context sources: what stands before the query in place of TRM's puzzle embedding.

A source is a file of this package and a line of `CONTEXT_SOURCES`. Modules are loaded when they
are named, so a study imports, and depends on, only the sources that it uses.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

CONTEXT_SOURCES = {
    "embedding": "etrm.context.embedding:PuzzleEmbedding",
    "standard": "etrm.context.standard:StandardEncoder",
    "variational": "etrm.context.standard:VariationalEncoder",
    "lpn": "etrm.context.lpn:LpnEncoder",
    "lpn_variational": "etrm.context.lpn:LpnVariationalEncoder",
    "lpn_deep": "etrm.context.lpn:LpnDeepEncoder",
    "lpn_deep_variational": "etrm.context.lpn:LpnDeepVariationalEncoder",
    "hybrid": "etrm.context.hybrid:HybridEncoder",
    "hybrid_variational": "etrm.context.hybrid:HybridVariationalEncoder",
    "cross_attention": "etrm.context.cross_attention:CrossAttentionEncoder",
    "hierarchical": "etrm.context.hierarchical:HierarchicalEncoder",
    "set_transformer": "etrm.context.set_transformer:SetTransformerEncoder",
    "recurrent": "etrm.context.recurrent:RecurrentEncoder",
    "recurrent_trm": "etrm.context.recurrent:RecurrentTrmEncoder",
    "in_context": "etrm.context.in_context:InContextEncoder",
}


def context_source(name: str) -> Any:
    """The class of a context source; its `Options` are its config block."""
    module, _, attribute = CONTEXT_SOURCES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def context_options() -> dict[str, Callable[[], type]]:
    """The options dataclass of every source, by name, each loaded when called."""

    def loader(name: str) -> Callable[[], type]:
        return lambda: context_source(name).Options

    return {name: loader(name) for name in CONTEXT_SOURCES}
