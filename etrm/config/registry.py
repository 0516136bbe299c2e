"""Context sources: what stands before the query in place of TRM's puzzle embedding.

A source is a file of this package and a line of `CONTEXT_SOURCES`. Modules are loaded when they
are named, so a study imports, and depends on, only the sources that it uses.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

CONTEXT_SOURCES = {
    "embedding": "etrm.models.encoders.embedding:PuzzleEmbedding",
    "standard": "etrm.models.encoders.standard:StandardEncoder",
    "variational": "etrm.models.encoders.standard:VariationalEncoder",
    "lpn": "etrm.models.encoders.lpn:LpnEncoder",
    "lpn_variational": "etrm.models.encoders.lpn:LpnVariationalEncoder",
    "lpn_deep": "etrm.models.encoders.lpn:LpnDeepEncoder",
    "lpn_deep_variational": "etrm.models.encoders.lpn:LpnDeepVariationalEncoder",
    "hybrid": "etrm.models.encoders.hybrid:HybridEncoder",
    "hybrid_variational": "etrm.models.encoders.hybrid:HybridVariationalEncoder",
    "cross_attention": "etrm.models.encoders.cross_attention:CrossAttentionEncoder",
    "hierarchical": "etrm.models.encoders.hierarchical:HierarchicalEncoder",
    "set_transformer": "etrm.models.encoders.set_transformer:SetTransformerEncoder",
    "recurrent": "etrm.models.encoders.recurrent:RecurrentEncoder",
    "recurrent_trm": "etrm.models.encoders.recurrent:RecurrentTrmEncoder",
    "in_context": "etrm.models.encoders.in_context:InContextEncoder",
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
