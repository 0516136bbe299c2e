"""Colours, names, and files that are whole and always the same."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from readable import assert_whole

from etrm.config.execution import FigureStyle
from etrm.report.style import ARC_COLOURS, ARC_MAP, ARC_NORM, INK, PALETTE, looks, save, theme, wrap


def figure() -> Figure:
    with theme(FigureStyle()):
        fig = Figure(figsize=(2, 2))
        fig.subplots().plot([1, 2], label="a")
    return fig


def test_colours_of_grids_are_the_official_ones() -> None:
    assert ARC_COLOURS[:3] == ("#000000", "#0074D9", "#FF4136")
    shown = [mpl.colors.to_hex(ARC_MAP(ARC_NORM(value))) for value in range(10)]
    assert shown == [colour.lower() for colour in ARC_COLOURS]


@given(st.sets(st.text("abcdef_123", min_size=1), max_size=30))
@settings(max_examples=30, deadline=None)
def test_looks_are_distinct_and_do_not_depend_on_the_order(names: set[str]) -> None:
    chosen = looks(names)
    assert len(set(chosen.values())) == len(names)
    assert chosen == looks(sorted(names, reverse=True))


@given(st.sets(st.text("abcdef_123", min_size=1), max_size=30), st.text("abc_", min_size=1))
@settings(max_examples=30, deadline=None)
def test_a_name_keeps_its_colour_whatever_else_there_is(others: set[str], name: str) -> None:
    assert looks({*others, name})[name].colour == looks([name])[name].colour


def test_trm_is_dark_in_every_study_and_nothing_else_is() -> None:
    dark = ("trm", "trm_strict", "world_trm")
    chosen = looks([*dark, "etrm", "etrm_trm", "etrm_standard", "strm"])
    assert {name for name, look in chosen.items() if look.colour == INK} == set(dark)
    assert len({chosen[name].marker for name in dark}) == 3
    assert chosen["trm"].marker == ""


def test_colours_differ_to_the_eye() -> None:
    rgb = np.array([mpl.colors.to_rgb(colour) for colour in (*PALETTE, INK)])
    apart = np.linalg.norm(rgb[:, None] - rgb[None], axis=-1) + np.eye(len(rgb))
    assert apart.min() > 0.14
    assert (rgb @ [0.2126, 0.7152, 0.0722]).max() < 0.8  # none too pale for a line on white


def test_more_experiments_than_looks_still_get_one() -> None:
    assert len(looks(f"e{i}" for i in range(60))) == 60


@given(st.text("abc_- ", max_size=60), st.integers(3, 20))
@settings(max_examples=60, deadline=None)
def test_wrapped_names_are_narrow_and_complete(name: str, width: int) -> None:
    """A line is wider only where it is one word."""
    lines = wrap(name, width).split("\n")
    assert all(len(line) <= width or not re.search(r"[ _-].", line) for line in lines)
    assert max(map(len, lines)) <= max(width, 16)
    assert "".join(lines).replace(" ", "") == name.replace(" ", "")


def test_words_are_not_broken() -> None:
    assert wrap("etrm_set_transformer", 9) == "etrm_set_\ntransformer"
    assert wrap("train/encoder_cross_sample_var", 12) == "train/\nencoder_\ncross_\nsample_var"
    assert wrap("above 90\u00a0% of cells", 9) == "above\n90\u00a0% of\ncells"


def test_a_broken_word_would_be_found() -> None:
    for text in ("etrm_set_trans\nformer", "trm\netr\nm_set_transformer"):
        with pytest.raises(AssertionError, match="breaks 'etrm_set_transformer'"):
            assert_whole(text, "etrm_set_transformer")
    assert_whole("trm\netrm_\nset_\ntransformer (partial)", "etrm_set_transformer")


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_the_same_figure_gives_the_same_bytes(tmp_path: Path, kind: str) -> None:
    (first,) = save(figure(), tmp_path / "new" / "one", [kind], 100)
    (second,) = save(figure(), tmp_path / "two", [kind], 100)
    assert first.name == f"one.{kind}"
    assert first.read_bytes() == second.read_bytes()
    assert b"CreationDate" not in first.read_bytes()


def test_a_name_with_dots_keeps_them(tmp_path: Path) -> None:
    assert [path.name for path in save(figure(), tmp_path / "v1.2", ["png"], 50)] == ["v1.2.png"]


def test_a_failed_save_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    (path,) = save(figure(), tmp_path / "fig", ["png"], 50)
    before = path.read_bytes()
    broken = figure()
    broken.axes[0].set_title("$\\notacommand$")
    with pytest.raises(ValueError, match="notacommand"):
        save(broken, tmp_path / "fig", ["png"], 50)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["fig.png"]


def test_the_theme_leaves_the_global_settings_alone() -> None:
    before = dict(mpl.rcParams)
    with theme(FigureStyle(font_scale=2.0)):
        assert mpl.rcParams["axes.titlesize"] == 17.0
    after = dict(mpl.rcParams)
    assert all(np.array_equal(before[key], after[key]) for key in before)
