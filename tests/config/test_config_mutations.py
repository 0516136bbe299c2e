"""Whatever stands where it should not is a ConfigError that names its path, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from documents import document, problems
from hypothesis import given, settings
from hypothesis import strategies as st

from etrm.config.load import load_study, plain

Keys = tuple[str | int, ...]


def leaves(node: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, (*keys, key))
    elif isinstance(node, list) and node:
        for i, value in enumerate(node):
            yield from leaves(value, (*keys, i))
    else:
        yield keys, node


def dotted(keys: Keys) -> str:
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}"
    return text.lstrip(".")


def replaced(keys: Keys, value: Any, **changes: Any) -> dict[str, Any]:
    content = document(**changes)
    node: Any = content
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    return content


SWEEP = {
    "description": "at most {steps} steps of {encoder}",
    "sweep": {
        "steps": {"key": "halting.max_steps", "values": [8, 16]},
        "encoder": {"values": {"lpn": {"context": {"source": "lpn"}}, "plain": {"seeds": [1]}}},
    },
}
LEAVES = list(leaves(document()))
SWEEP_LEAVES = list(leaves({"experiments": {"grid": SWEEP}}))
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.dates()
    | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4) | st.integers() | st.booleans(), inner, max_size=3)
    ),
    max_leaves=5,
)


def kind(value: Any) -> str:
    """Values of one kind may stand for each other: integers for numbers, too."""
    if isinstance(value, bool):
        return "bool"
    return "number" if isinstance(value, (int, float)) else type(value).__name__


@settings(deadline=None, max_examples=150)
@given(leaf=st.sampled_from(LEAVES), value=JUNK)
def test_a_leaf_of_another_type_is_named(leaf: tuple[Keys, Any], value: Any) -> None:
    keys, old = leaf
    if kind(value) == kind(old) or value is None:
        return
    if keys == ("experiments", "trm", "decoder", "init") and isinstance(value, str):
        return  # null there may be a name
    path = dotted(keys)
    found = problems(replaced(keys, value))
    assert found, f"{path}: {value!r} was accepted"
    # A tag that is none is reported at its block where the block was replaced with it.
    assert any(p == path or p.startswith((f"{path}.", f"{path}[")) for p in found), found


@settings(deadline=None, max_examples=150)
@given(leaf=st.sampled_from(LEAVES), value=JUNK, depth=st.integers(1, 4))
def test_nothing_but_a_config_error_ever_comes(leaf: tuple[Keys, Any], value: Any, depth: int):
    assert loads_or_is_refused(replaced(leaf[0][:depth], value))


@settings(deadline=None, max_examples=150)
@given(leaf=st.sampled_from(SWEEP_LEAVES), value=JUNK, depth=st.integers(2, 9))
def test_nothing_but_a_config_error_ever_comes_of_a_sweep(
    leaf: tuple[Keys, Any], value: Any, depth: int
):
    changed = replaced(leaf[0][:depth], value, experiments__grid=deepcopy(SWEEP))
    assert loads_or_is_refused(changed)


def loads_or_is_refused(content: Any) -> bool:
    """Return whether a study has problems, or is the same when it is written and read again."""
    if problems(content):
        return True
    study = load_study(content)
    return load_study(plain(study)) == study


@settings(deadline=None, max_examples=100)
@given(content=JUNK)
def test_any_document_at_all_is_loaded_or_refused(content: Any) -> None:
    assert problems(content)
