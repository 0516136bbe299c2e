"""Rules on whole values: names that become folders, paths, lists without repetition."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Rule:
    """A condition on the whole value of a key, its text for people, and its JSON Schema."""

    text: str
    holds: Callable[[Any], bool]
    schema: Mapping[str, Any] = field(default_factory=dict)


DISTINCT = Rule(
    "at least one, none twice",
    lambda v: 0 < len(v) == len(set(v)),
    {"minItems": 1, "uniqueItems": True},
)
NONE_TWICE = Rule("none twice", lambda v: len(v) == len(set(v)), {"uniqueItems": True})
ASCENDING = Rule(
    "at least one, in ascending order, none twice",
    lambda v: v and list(v) == sorted(set(v)),
    DISTINCT.schema,
)
TWO = Rule("two of them", lambda v: len(v) == 2, {"minItems": 2, "maxItems": 2})
RANGE = Rule(
    "two of them, the smaller one first", lambda v: len(v) == 2 and v[0] <= v[1], TWO.schema
)
# Letters of a name. It stands in names of files that a file system bounds at 255 bytes, the longest
# `.<name>-pretrain-seed2147483647-<SLURM job>.json.<process>.tmp`, and of W&B, which takes 128.
MAX_NAME = 100
MAX_SEED = 2**31 - 1  # it stands there, too
NAME_PATTERN = f"^[A-Za-z][A-Za-z0-9_-]{{0,{MAX_NAME - 1}}}$"
NAME = Rule(
    f"letters, digits, - and _, beginning with a letter, up to {MAX_NAME}: it names folders",
    lambda v: re.fullmatch(NAME_PATTERN[1:-1], v) is not None,
    {"pattern": NAME_PATTERN},
)
SIGNS = "{}<>"  # Snakemake takes the text between them for wildcards and variables
PATH = Rule(
    "a path on this machine without { } < >, control characters and names of over 255 bytes",
    lambda v: (
        bool(v)
        and "://" not in v
        # Cc, Zl, Zp: control characters and line breaks.
        and not any(c in SIGNS or unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in v)
        and max(len(name.encode(errors="surrogatepass")) for name in v.split("/")) <= 255
    ),
    {"minLength": 1, "pattern": "^[^{}<>]*$"},
)
# Targets of the workflow, which a group of experiments cannot be named after.
TARGETS = (
    *("all", "generate", "tasks", "augment", "pretrain", "overfit", "gate", "full", "evaluate"),
    *("figures", "tables", "record", "records", "page", "paper", "report"),
    *("train_pretrain", "train_overfit", "train_full"),
    *("verdict", "evaluate_shard", "evaluate_run", "merge_shards", "resolved_config"),
    *("refine", "refine_run", "validate", "validate_run", "select"),
)
GROUP = Rule(
    f"a name of letters, digits, - and _, up to {MAX_NAME}, that is no other target"
    f" ({', '.join(TARGETS)})",
    lambda v: NAME.holds(v) and v not in TARGETS,
    {"pattern": NAME_PATTERN, "not": {"enum": list(TARGETS)}},
)
