"""The registry of context sources: encoders, and TRM's puzzle embedding.

To add an encoder:

1. Write its file in `etrm/models/encoders/`: a frozen dataclass of options that extends
   `shared.EncoderOptions` and declares its `source` (`option("the source", "mine",
   choices=("mine",))`), and a class that extends `shared.Encoder` with `Options: ClassVar[type]`,
   and `forward(batch, state) -> Encoded`. The smallest example is `set_transformer.py`.
2. Add its line to `CONTEXT_SOURCES`: `"mine": "etrm.models.encoders.mine:MineEncoder"`.

It is then a value of `context.source` in every study, its options are checked and documented
(`make docs-generated` writes the pages again), the contract tests in `tests/models/encoders` hold
it, and the study `config/encoders.yaml` trains it beside the others. No other file names it.

One from outside this package is named by `register_encoder`, in every process that trains or asks
it: scripts and notebooks, see `examples/own_encoder.py`.

The registry holds names only: a module is imported when a study names its source, so that a study
imports, and its results depend on, only the sources that it uses.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from etrm.errors import UserError

OURS = __name__.partition(".")[0]
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
    "perceiver": "etrm.models.encoders.perceiver:PerceiverEncoder",
    "in_context": "etrm.models.encoders.in_context:InContextEncoder",
}

# The step of search in training: runs that take none do not depend on its code.
SEARCH_STEP = "etrm.refinement.step:search_step"


def register_encoder(name: str, place: str) -> None:
    """Let `context.source: name` mean an encoder outside this package, in this process.

    `place` is "module:Class", of a module that can be imported. The code of the top-level package
    of that module is part of the key of runs, as ours is. Raises `UserError` for a name in use.
    """
    if CONTEXT_SOURCES.get(name, place) != place:
        raise UserError(f"encoder {name!r}: found {CONTEXT_SOURCES[name]} of this name already")
    module, _, attribute = place.partition(":")
    if not (module and attribute):
        raise UserError(f"encoder {name!r}: found {place!r}, expected module:Class")
    CONTEXT_SOURCES[name] = place


def outside_packages() -> set[str]:
    """Return the top-level packages of encoders that are not ours."""
    modules = (place.partition(":")[0] for place in CONTEXT_SOURCES.values())
    return {module.partition(".")[0] for module in modules} - {OURS}


def outside_file(package: str) -> Path | None:
    """Return the file of a top-level package or module that is not ours; None where none is."""
    spec = importlib.util.find_spec(package)
    return None if spec is None or spec.origin is None else Path(spec.origin)


def encoders() -> list[str]:
    """Return the names of the sources that read demos: all but the embedding."""
    return [name for name in CONTEXT_SOURCES if name != "embedding"]


def context_source(name: str) -> Any:
    """Return the class of a context source; its `Options` are its config block."""
    return load_definition(CONTEXT_SOURCES[name])


def load_definition(place: str) -> Any:
    """Return the class or function at a `place`, "package.module:name"."""
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


def context_options() -> dict[str, Callable[[], type]]:
    """Return a loader of the options dataclass of every source, by name."""
    return {name: partial(_options, name) for name in CONTEXT_SOURCES}


def _options(name: str) -> type:
    options: type = context_source(name).Options
    return options
