"""`config/schema.json`: the JSON Schema of a study file, from the dataclasses that validate it.

`python -m etrm.config.json_schema` prints it, and writes it to a path that is given. By the line
`# yaml-language-server: $schema=schema.json` of a study file, editors complete its keys, show their
meaning, and mark mistakes. The loader stays the judge: it also checks how values fit together,
after merging.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from etrm.config.load import plain
from etrm.config.rules import NAME
from etrm.config.schema import BOUNDS, Key, Tagged, keys_of
from etrm.config.study import STAGES, ExperimentConfig, StudyConfig
from etrm.config.sweep import AxisConfig
from etrm.config.text import write_page

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SCALARS = {bool: "boolean", int: "integer", float: "number", str: "string"}


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a study file, which may extend another: no key is required."""
    study, defaults = _block(StudyConfig), _block(ExperimentConfig)
    train = {"$ref": "#/properties/defaults/properties/train"}
    defaults["properties"]["stages"] |= _object(dict.fromkeys(STAGES, train))
    point = _object(
        {
            name: {"$ref": f"#/properties/defaults/properties/{name}"}
            for name in defaults["properties"]
        }
    )
    # An empty experiment is the defaults, and empty defaults are none.
    point["type"] = defaults["type"] = ["object", "null"]
    point["properties"]["sweep"] = _named(
        "axes that make this one experiment several", _block(AxisConfig)
    )
    study["properties"] |= {
        "extends": {"type": "string", "description": "a study file to start from"},
        "defaults": {"description": "keys that all experiments share", **defaults},
        "experiments": _named("experiments by name", point),
    }
    return {"$schema": DIALECT, "title": "A study of ETRM", **study}


def render() -> str:
    """Return the text of the file."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "additionalProperties": False}


def _named(meaning: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a block whose keys are names, at least one."""
    names = {"propertyNames": NAME.schema, "minProperties": 1}
    return {"description": meaning, "type": "object", **names, "additionalProperties": entry}


def _block(cls: type) -> dict[str, Any]:
    return _object({name: _key(key) for name, key in keys_of(cls).items()})


def _key(key: Key) -> dict[str, Any]:
    """Return the schema of one key; bounds and choices of a list hold for its elements."""
    one = _union(key.tagged) if key.tagged else _block(key.block) if key.block else _scalar(key)
    if key.shape == "list":
        one = {"type": "array", "items": one}
    elif key.shape == "named":
        one = {"type": "object", "additionalProperties": one}
    if key.rule:
        one |= key.rule.schema
    if key.nullable:
        one["type"] = [one["type"], "null"]  # all nullable keys are scalars
        one |= {"enum": [*one["enum"], None]} if "enum" in one else {}
    meaning = f"{key.help} [{key.unit}]" if key.unit else key.help
    default = {} if key.required or key.block or key.tagged else {"default": plain(key.default)}
    return {"description": meaning, **default, **one}


def _scalar(key: Key) -> dict[str, Any]:
    if key.written:
        return dict(key.written.schema)
    found: dict[str, Any] = {} if key.type is Any else {"type": SCALARS[key.type]}  # anything
    if key.choices:
        found["enum"] = list(key.choices)
    return found | {BOUNDS[name][2]: bound for name, bound in key.bounds.items()}


def _union(union: Tagged) -> dict[str, Any]:
    """Return the schema of a tagged union.

    The tag decides which keys are allowed; a block without it is a difference to an inherited one,
    in which the keys of any member may stand.
    """
    members = {name: _block(load()) for name, load in union.variants().items()}
    keys: dict[str, Any] = {k: {} for each in members.values() for k in each["properties"]}
    keys[union.tag] = {"enum": list(members)}
    whole = [
        {"if": {"properties": {union.tag: {"const": n}}, "required": [union.tag]}, "then": member}
        for n, member in members.items()
    ]
    return {**_object(keys), "allOf": whole}


if __name__ == "__main__":
    write_page(render(), sys.argv[1:])
