"""Sweeps: names, order and content of points, what an axis that grows keeps, and every mistake."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from documents import document, study, wrong
from hypothesis import given, settings
from hypothesis import strategies as st

from etrm.config.load import load_study, plain, read_study, run_config
from etrm.config.registry import encoders
from etrm.config.rules import NAME
from etrm.config.schema import ConfigProblem
from etrm.config.sweep import LABEL, expand, label_of

HALT = "halting.max_steps"
STEPS = {"key": HALT, "values": [8, 16]}
EXPLORE = {"key": "halting.exploration_prob", "values": {0: 0.0, 30: 0.3, 70: 0.7}}
EVERY = {"every": "encoder", "prefix": ""}
ENCODERS = {
    "values": {
        "plain": None,
        "lpn": {"context": {"source": "lpn", "width": 32, "heads": 4}},
        "none": {"context": {"source": "embedding"}, "decoder": {"init": None}},
    }
}


def swept(sweep: Any, **others: Any) -> dict[str, Any]:
    return {"sweep": sweep, **others}


def one(**axes: Any) -> dict[str, Any]:
    return swept(axes)


def axis(key: str, values: Any) -> dict[str, Any]:
    return {"key": key, "values": values}


def names(**changes: Any) -> list[str]:
    return list(study(**changes).experiments)


# --- names, order, content ---


def test_points_stand_in_the_place_of_the_sweep_the_last_axis_fastest() -> None:
    content = document()
    content["experiments"] = {
        "trm": content["experiments"]["trm"],
        "grid": swept({"steps": STEPS, "explore": EXPLORE}),
        "other": None,
    }
    points = [f"grid_steps{s}_explore{e}" for s in (8, 16) for e in (0, 30, 70)]
    assert list(load_study(content).experiments) == ["trm", *points, "other"]


def test_a_point_is_the_experiment_with_a_value_of_every_axis() -> None:
    grid = swept({"steps": STEPS, "explore": EXPLORE}, seeds=[3, 4], train={"lr": 0.5})
    found = study(experiments__grid=grid).experiments
    for steps, (label, explore) in itertools.product((8, 16), EXPLORE["values"].items()):
        point = found[f"grid_steps{steps}_explore{label}"]
        assert (point.halting.max_steps, point.halting.exploration_prob) == (steps, explore)
        assert (point.seeds, point.train.lr) == ((3, 4), 0.5)
        assert point.context == found["etrm"].context  # of the defaults


def test_a_point_is_what_it_would_be_if_written_out() -> None:
    halting = {"max_steps": 16, "exploration_prob": 0.3}
    written = study(experiments__x={"halting": halting, "description": "16 and 30"})
    grid = swept({"steps": STEPS, "explore": EXPLORE}, description="{steps} and {explore}")
    point = study(experiments__g=grid).experiments["g_steps16_explore30"]
    assert point == written.experiments["x"]


@pytest.mark.parametrize(
    ("value", "label"),
    [
        *((8, "8"), (-1, "m1"), (2.0, "2"), (-0.0, "0"), (1.0e16, "1" + 16 * "0"), (-2.5, "m2p5")),
        *((0.3, "0p3"), (0.1 + 0.2, "0p30000000000000004"), (0.001, "0p001"), (1.0e-4, "1em4")),
        *((2.5e-4, "2p5em4"), (1.23456789e-7, "1p23456789em7"), (True, "true"), (False, "false")),
        *((None, "null"), ("lpn_deep", "lpn_deep"), ("1e-4", "1e-4")),
    ],
)
def test_the_values_of_a_list_are_their_own_labels(value: Any, label: str) -> None:
    assert label_of(value) == label
    assert LABEL.holds(label)


@pytest.mark.parametrize("value", [[], {}, b"x", (1,)])
def test_what_is_no_scalar_has_no_label(value: Any) -> None:
    assert label_of(value) is None


def test_labels_of_a_block_are_read_as_the_values_of_a_list_are() -> None:
    clip = axis("train.grad_clip", {0.5: 0.5, True: 1.0, None: None, "x-y_z": 2})
    labels = ["0p5", "true", "null", "x-y_z"]
    assert names(experiments__g=one(clip=clip))[3:] == [f"g_clip{label}" for label in labels]


def test_two_labels_may_have_the_same_value() -> None:
    found = study(experiments__g=one(steps=axis(HALT, {"a": 3, "b": 3}))).experiments
    assert found["g_stepsa"] == found["g_stepsb"]


def test_keys_go_as_deep_as_wanted() -> None:
    axes = {
        "steps": axis("stages.full.steps", [7]),
        "pool": axis("context.pooling", ["mean"]),
        "stuck": axis("health.rules.collapse.fail", [0.2]),
        "seed": axis("seeds", {"three": [0, 1, 2]}),
    }
    point = study(experiments__g=swept(axes)).experiments["g_steps7_poolmean_stuck0p2_seedthree"]
    assert point.stages["full"] == {"steps": 7}
    assert point.stages["overfit"]["tasks"] == 4  # of the defaults
    assert point.context.pooling == "mean"
    assert point.health.rules["collapse"].fail == 0.2
    assert point.seeds == (0, 1, 2)


def test_an_axis_of_blocks_merges_as_differences_do() -> None:
    found = study(experiments__g=swept({"encoder": ENCODERS, "steps": STEPS})).experiments
    assert list(found)[3:] == [
        f"g_encoder{name}_steps{steps}" for name in ENCODERS["values"] for steps in (8, 16)
    ]
    assert found["g_encoderplain_steps8"].context == found["etrm"].context
    assert found["g_encoderlpn_steps16"].context.source == "lpn"
    assert found["g_encodernone_steps8"].is_trm
    assert found["g_encoderlpn_steps16"].decoder.init == "trm"


def test_axes_go_over_each_other_in_their_order() -> None:
    """Over the defaults one after another: a source that changes there and back keeps nothing."""
    context = {"source": "standard", "width": 32, "heads": 4, "layers": 3}
    grid = swept({"encoder": {"values": {"back": {"context": context}}}}, context={"source": "lpn"})
    assert study(experiments__g=grid).experiments["g_encoderback"].context.pooling == "mean"


def test_the_description_says_the_labels() -> None:
    said = "{steps} and {explore} %, {steps}"
    grid = swept({"steps": STEPS, "explore": EXPLORE}, description=said)
    found = study(experiments__g=grid).experiments
    assert found["g_steps16_explore30"].description == "16 and 30 %, 16"
    blocks = {"values": {"a": {"description": "{steps} of a"}, "b": {}}}
    found = study(experiments__g=swept({"x": blocks, "steps": STEPS}, description="b")).experiments
    assert found["g_xa_steps8"].description == "8 of a"
    assert found["g_xb_steps8"].description == "b"


def test_braces_mean_nothing_where_there_is_no_sweep() -> None:
    assert study(experiments__etrm__description="{x}").experiments["etrm"].description == "{x}"


def test_an_axis_of_every_encoder_has_a_point_for_each_and_differences_of_some() -> None:
    values = {"lpn": {"context": {"layers": 3}}, "standard": None}
    pairing = {"key": "context.pairing", "values": ["aligned", "concat"], "prefix": "by-"}
    grid = swept({"encoder": {**EVERY, "values": values}, "pairing": pairing})
    grid["context"] = {"width": 64, "output_scale": 1.0}  # of every encoder, whatever its source
    found = study(experiments__g=grid).experiments
    assert list(found)[3:] == [f"g_{n}_by-{p}" for n in encoders() for p in ("aligned", "concat")]
    for name in encoders():
        context = found[f"g_{name}_by-aligned"].context
        assert (context.source, context.pairing) == (name, "aligned")
        assert (context.width, context.output_scale) == (64, 1.0)
    assert found["g_lpn_by-aligned"].context.layers == 3
    assert found["g_standard_by-aligned"].context.pooling == "max"  # of the defaults


def test_a_sweep_that_names_a_source_shares_its_options_with_that_one_only() -> None:
    grid = swept({"encoder": EVERY}, context={"source": "lpn", "layers": 3})
    found = study(experiments__g=grid).experiments
    assert found["g_lpn"].context.layers == 3
    assert found["g_recurrent"].context.layers == 1


# --- entries of points ---


@pytest.mark.parametrize("first", [True, False])
def test_an_entry_with_the_name_of_a_point_changes_that_point_only(first: bool) -> None:
    own = {"g_steps8": {"description": "mine", "seeds": [5], "halting": {"loss_weight": 1.0}}}
    grid = {"g": swept({"steps": STEPS}, description="{steps}", seeds=[1])}
    content = document()
    content["experiments"] |= own | grid if first else grid | own
    found = load_study(content).experiments
    assert list(found) == ["trm", "etrm", "other", "g_steps8", "g_steps16"]
    point = found["g_steps8"]
    assert (point.description, point.seeds) == ("mine", (5,))
    assert (point.halting.max_steps, point.halting.loss_weight) == (8, 1.0)
    assert (found["g_steps16"].description, found["g_steps16"].seeds) == ("16", (1,))
    assert found["g_steps16"].halting.loss_weight == 0.5


def test_an_empty_entry_leaves_its_point_as_it_is() -> None:
    grid = swept({"steps": STEPS})
    assert study(experiments__g=grid) == study(experiments__g=grid, experiments__g_steps8=None)


def test_an_entry_may_mend_what_a_value_breaks_in_one_point() -> None:
    grid = swept({"heads": axis("model.heads", [4, 5])}, decoder={"init": None})
    assert list(wrong(experiments__g=grid)) == ["experiments.g.sweep.heads.values.5"]
    mended = {"model": {"width": 40}}
    assert wrong(experiments__g=grid, experiments__g_heads5=mended) == {}


# --- growing ---


@pytest.mark.parametrize(
    "axes",
    [
        {"steps": {**STEPS, "values": [4, 16, 32, 8]}, "explore": EXPLORE},
        {"steps": STEPS, "explore": {**EXPLORE, "values": {5: 0.05, **EXPLORE["values"]}}},
    ],
    ids=["more values", "more labels"],
)
def test_an_axis_that_grows_leaves_old_runs_what_they_are(axes: dict[str, Any]) -> None:
    before = study(experiments__g=swept({"steps": STEPS, "explore": EXPLORE}))
    after = study(experiments__g=swept(axes))
    assert len(after.experiments) > len(before.experiments)
    for name, config in before.experiments.items():
        assert after.experiments[name] == config
        for stage in config.stage_names:
            old, new = (plain(run_config(s, name, stage, 0)) for s in (before, after))
            assert old == new


def test_the_resolved_study_has_the_points_and_gives_itself_again() -> None:
    grid = swept({"encoder": ENCODERS, "steps": STEPS}, description="{encoder}, {steps}")
    content = document(experiments__g=grid, experiments__g_encoderlpn_steps8={"seeds": [1]})
    same = yaml.safe_load(yaml.safe_dump(content))
    before = load_study(content)
    assert content == same  # loading does not change it
    resolved = yaml.safe_load(yaml.safe_dump(plain(before), sort_keys=False))
    assert "g_encoderlpn_steps8" in resolved["experiments"]
    assert "sweep" not in yaml.safe_dump(resolved)
    assert load_study(resolved) == before


# --- files that extend another ---


def extended(tmp_path: Path, base: dict[str, Any], experiments: dict[str, Any]) -> list[str]:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(yaml.safe_dump(base, sort_keys=False))
    second.write_text(yaml.safe_dump({"extends": str(first), "experiments": experiments}))
    return list(read_study(second).experiments)


def test_a_file_that_extends_grows_an_axis(tmp_path: Path) -> None:
    base = document(experiments__g=swept({"steps": STEPS, "explore": EXPLORE}))
    change = {"steps": {"values": [16, 32]}, "explore": {"values": {70: 0.6, 90: 0.9}}}
    found = extended(tmp_path, base, {"g": {"sweep": change}})
    assert found[3:] == [
        f"g_steps{steps}_explore{label}" for steps in (16, 32) for label in (0, 30, 70, 90)
    ]


def test_a_file_that_extends_changes_a_point(tmp_path: Path) -> None:
    base = document(experiments__g=swept({"steps": STEPS}), experiments__g_steps8={"seeds": [1]})
    found = extended(tmp_path, base, {"g_steps8": {"description": "mine"}})
    assert found[3:] == ["g_steps8", "g_steps16"]
    point = read_study(tmp_path / "second.yaml").experiments["g_steps8"]
    assert (point.description, point.seeds, point.halting.max_steps) == ("mine", (1,), 8)


@pytest.mark.parametrize("axis", ["source", "kind"])
def test_an_axis_that_is_named_as_a_tag_merges_as_any_other(tmp_path: Path, axis: str) -> None:
    base = document(experiments__g=swept({"steps": STEPS, axis: EXPLORE}))
    found = extended(tmp_path, base, {"g": {"sweep": {axis: {"values": {30: 0.4}}}}})
    assert len(found) == 3 + 6


# --- mistakes: the path, and the line ---

TWICE = {"1_b2": 1, "1": 2}, {"3": 0.1, "2_b3": 0.2}

# A sweep, the path of its problem below the experiment, and a distinctive part of the line.
LINES: list[tuple[dict[str, Any], str, str]] = [
    # the sweep and its axes
    (swept(None), "sweep", "found None (null), expected a block of axes, at least one"),
    (swept({}), "sweep", "found {} (block)"),
    (swept([STEPS]), "sweep", "(list), expected a block of axes"),
    (one(steps=8), "sweep.steps", "found 8 (integer), expected a block of keys"),
    (swept({"8s": STEPS}), "sweep.8s", "the name '8s', expected letters, digits, - and _"),
    (swept({8: STEPS}), "sweep.8", "the name 8,"),
    (one(steps={**STEPS, "value": [8]}), "sweep.steps.value", "did you mean 'values'?"),
    (one(steps={**STEPS, "prefix": "a b"}), "sweep.steps.prefix", "letters, digits"),
    # values
    (one(steps={"key": HALT}), "sweep.steps.values", "found None (null), expected a list"),
    *(
        (one(steps=axis(HALT, values)), "sweep.steps.values", "or a block `label: value`, at least")
        for values in ([], {}, 8)
    ),
    (one(steps={"values": [8]}), "sweep.steps.values", "`label: differences`, because the axis"),
    (one(steps={"values": {"x": 8}}), "sweep.steps.values.x", "8 (integer), expected a block of"),
    (one(e={"every": "encoders"}), "sweep.e.every", "one of encoder, or null"),
    (one(e={**EVERY, "key": "seeds"}), "sweep.e.key", "'seeds', expected null"),
    (one(e={**EVERY, "values": {"lnp": {}}}), "sweep.e.values.lnp", "did you mean 'lpn'?"),
    (one(e={**EVERY, "values": ["lpn"]}), "sweep.e.values", "because the axis has no `key`"),
    (
        one(e={**EVERY, "values": {"lpn": {"context": {"layer": 1}}}}),
        *("sweep.e.values.lpn.context.layer", "did you mean 'layers'?"),
    ),
    # labels
    (one(p=axis("context.pooling", ["a b"])), "sweep.p.values.a b", "write the values as a block"),
    (one(p=axis("context.pooling", {"": "max"})), "sweep.p.values.''", "a label of letters"),
    (one(seeds=axis("seeds", [[0]])), "sweep.seeds.values[0]", "[0] (list), expected a label of"),
    (one(steps=axis(HALT, [8, "8"])), "sweep.steps.values.8", "the label '8' twice"),
    (one(s=axis(HALT, {1: 4, "1": 5})), "sweep.s.values.1", "the label '1' twice"),
    # keys
    (one(steps={**STEPS, "key": 3}), "sweep.steps.key", "3 (integer), expected text, or null"),
    (one(steps=axis("halting..max_steps", [8])), "sweep.steps.key", "a dotted path"),
    (one(steps=axis("haltin.max_steps", [8])), "sweep.steps.key", "did you mean 'halting'?"),
    (one(steps=axis("halting.max_step", [8])), "sweep.steps.key", "did you mean 'max_steps'?"),
    (one(steps=axis("stages.ful.steps", [8])), "sweep.steps.key", "the unknown stage 'ful'"),
    (one(steps=axis("stages.full.step", [8])), "sweep.steps.key", "the unknown key 'step'"),
    (
        one(steps=axis("halting.max_steps.full", [8])),
        *(
            "sweep.steps.key",
            "which goes below halting.max_steps, expected halting.max_steps to be",
        ),
    ),
    # values that the experiment refuses: once each, whatever the other axes
    (one(steps=axis(HALT, [8, 0]), explore=EXPLORE), "sweep.steps.values.0", "an integer ≥ 1"),
    (one(explore=EXPLORE, lr=axis("train.lr", ["1e-4", 0.1])), "sweep.lr.values.1e-4", "1.0e-4"),
    (
        one(explore=EXPLORE, b=axis("train.betas", {"x": [0.9, 2.0]})),
        *("sweep.b.values.x[1]", "found 2.0, expected a finite number ≥ 0 and < 1"),
    ),
    (
        one(h=axis("halting", {"x": {"max_steps": 0}}), explore=EXPLORE),
        *("sweep.h.values.x.max_steps", "found 0"),
    ),
    (one(e=axis("context.source", ["lpnn"]), explore=EXPLORE), "sweep.e.values.lpnn", "'lpnn'"),
    (
        one(e={"values": {"x": {"halting": {"max_step": 3}}}}, explore=EXPLORE),
        *("sweep.e.values.x.halting.max_step", "the unknown key 'max_step'"),
    ),
    (
        one(heads=axis("model.heads", [4, 5]), explore=EXPLORE),
        *("sweep.heads.values.5", "width 32 with 5 heads at model.width"),
    ),
    (
        one(width=axis("model.width", [32, 64]), explore=EXPLORE),
        *("sweep.width.values.64", "width 32 there and 64 here at decoder.init"),
    ),
    (
        one(init=axis("decoder.init", ["tmr", None]), explore=EXPLORE),
        *("sweep.init.values.tmr", "the unknown pretraining experiment 'tmr', expected one of trm"),
    ),
    # keys that all points share
    (swept({"steps": STEPS}, seeds=[]), "seeds", "found [], expected at least one, none twice"),
    (swept({"steps": STEPS}, sead=[]), "sead", "the unknown key 'sead'"),
    (swept({"steps": STEPS}, decoder={"init": "tmr"}), "decoder.init", "'tmr', expected one of"),
    (swept({"steps": STEPS}, description="{step}"), "description", "did you mean 'steps'?"),
    (
        one(x={"values": {"a": {"description": "{y}"}}}, steps=STEPS),
        *("sweep.x.values.a.description", "the unknown axis 'y', expected one of steps, x"),
    ),
    # axes that do not go together
    (one(steps=STEPS, again=axis(HALT, [9])), "sweep.steps", "values that the axis 'again' repl"),
    (one(n=axis("context.layers", [1]), encoder=ENCODERS), "sweep.n", "the axis 'encoder' repl"),
    (
        one(a=axis(HALT, TWICE[0]), b=axis("halting.exploration_prob", TWICE[1])),
        *("sweep", "2 points named 'g_a1_b2_b3', expected names that differ"),
    ),
]


@pytest.mark.parametrize(
    ("grid", "path", "line"), LINES, ids=[f"{p}-{t}"[:70] for _, p, t in LINES]
)
def test_a_mistake_is_reported_once_where_it_was_written(grid, path: str, line: str) -> None:
    found = wrong(experiments__g=grid)
    assert list(found) == [f"experiments.g.{path}"]
    text = found[f"experiments.g.{path}"]
    assert line in text
    assert "\n" not in text


def test_mistakes_of_all_axes_are_reported_together() -> None:
    axes = {
        "a": {"values": [1]},
        "b": 3,
        "steps": {**STEPS, "values": [0, 8]},
        "c": {"key": "haltin", "values": [1, 2]},
    }
    found = wrong(experiments__g=swept(axes, seeds=[], description="{a} {b}"), threads=0)
    assert set(found) == {
        "experiments.g.sweep.a.values",
        "experiments.g.sweep.b",
        "experiments.g.sweep.steps.values.0",
        "experiments.g.sweep.c.key",
        "experiments.g.seeds",
        "threads",
    }


def test_what_comes_of_two_values_is_said_of_their_points() -> None:
    width = {"key": "context.width", "values": [32, 48]}
    heads = {"key": "context.heads", "values": [4, 8]}
    found = wrong(experiments__g=swept({"width": width, "heads": heads, "steps": STEPS}))
    assert set(found) == {
        f"experiments.g_width48_heads8_steps{steps}.context.width" for steps in (8, 16)
    }


def test_an_option_that_one_encoder_lacks_is_said_of_its_points() -> None:
    pool = {"key": "context.pooling", "values": ["mean"]}
    found = wrong(experiments__g=swept({"encoder": ENCODERS, "pool": pool}))
    assert set(found) == {
        "experiments.g_encoderlpn_poolmean.context.pooling",
        "experiments.g_encodernone_poolmean.context.pooling",
    }


def test_a_problem_of_the_defaults_is_not_one_of_every_point() -> None:
    found = wrong(experiments__g=swept({"explore": EXPLORE}), defaults__halting__max_steps=0)
    assert list(found) == ["defaults.halting.max_steps"]


def test_a_mistake_in_the_entry_of_a_point_is_reported_there() -> None:
    found = wrong(
        experiments__g=swept({"steps": STEPS}),
        experiments__g_steps8={"seeds": []},
        experiments__g_steps16=[1],
    )
    assert set(found) == {"experiments.g_steps8.seeds", "experiments.g_steps16"}
    assert "a block of differences to defaults" in found["experiments.g_steps16"]


def test_the_defaults_take_no_sweep() -> None:
    found = wrong(defaults__sweep={"steps": STEPS})
    assert list(found) == ["defaults.sweep"]
    assert "it stands in the experiment that it expands" in found["defaults.sweep"]


def test_the_entry_of_a_point_takes_no_sweep() -> None:
    found = wrong(
        experiments__g_steps8=swept({"explore": EXPLORE}), experiments__g=swept({"steps": STEPS})
    )
    assert list(found) == ["experiments.g_steps8.sweep"]
    assert "'g_steps8' is a point of the sweep 'g'" in found["experiments.g_steps8.sweep"]


def test_a_misspelt_sweep_is_recognised() -> None:
    line = wrong(experiments__etrm__sweeps={"steps": STEPS})["experiments.etrm.sweeps"]
    assert "stages, sweep, train (did you mean 'sweep'?)" in line


def test_two_sweeps_may_not_share_a_point() -> None:
    found = wrong(
        experiments__g=swept({"a": STEPS, "b": EXPLORE}), experiments__g_a8=swept({"b": EXPLORE})
    )
    assert list(found) == ["experiments.g_a8.sweep"]
    line = found["experiments.g_a8.sweep"].splitlines()[0]
    assert "the point 'g_a8_b0', which the sweep 'g' has too" in line


def test_an_entry_that_is_named_as_a_point_and_is_none_is_refused() -> None:
    grid = swept({"steps": STEPS, "explore": EXPLORE})
    found = wrong(experiments__g=grid, experiments__g_steps8_explore31={"seeds": [1]})
    assert list(found) == ["experiments.g_steps8_explore31"]
    line = found["experiments.g_steps8_explore31"]
    assert "the unknown point 'g_steps8_explore31', expected one of g_steps16_explore0" in line
    assert "did you mean 'g_steps8_explore30'?" in line


@pytest.mark.parametrize("name", ["g_steps8", "g_steps8_explore30_frozen", "g_frozen", "gg_steps8"])
def test_other_experiments_may_be_named_after_a_sweep(name: str) -> None:
    grid = swept({"steps": STEPS, "explore": EXPLORE})
    assert name in names(experiments__g=grid, **{f"experiments__{name}": {"seeds": [1]}})


# --- decoder.init ---

TRM = {"context": {"source": "embedding"}, "decoder": {"init": None}}


def test_the_decoder_starts_from_a_point() -> None:
    found = study(
        experiments__p=swept({"steps": STEPS}, **TRM),
        experiments__etrm__decoder={"init": "p_steps8"},
    )
    assert found.experiments["etrm"].decoder.init == "p_steps8"


def test_a_sweep_to_start_from_is_refused_with_its_points() -> None:
    pretraining = swept({"steps": STEPS}, **TRM)
    line = "decoder.init: found the sweep 'p', expected one of its points: p_steps8, p_steps16"
    found = wrong(experiments__p=pretraining, experiments__etrm__decoder={"init": "p"})
    assert found == {"experiments.etrm.decoder.init": f"experiments.etrm.{line}"}
    # Also where the experiment has other problems.
    bad = {"decoder": {"init": "p"}, "seeds": []}
    found = wrong(experiments__p=pretraining, experiments__etrm=bad)
    assert found["experiments.etrm.decoder.init"] == f"experiments.etrm.{line}"


def test_a_sweep_that_cannot_be_read_is_not_called_unknown() -> None:
    broken = swept({"steps": {**STEPS, "values": []}}, **TRM)
    for init in ("p_steps8", "p"):
        found = wrong(experiments__p=broken, experiments__etrm__decoder={"init": init})
        assert list(found) == ["experiments.p.sweep.steps.values"]


def test_a_point_cannot_start_from_itself() -> None:
    pretraining = swept({"steps": STEPS}, **{**TRM, "decoder": {"init": "p_steps8"}})
    found = wrong(experiments__p=pretraining)
    assert list(found) == ["experiments.p.decoder.init"]
    assert "found a circle back to 'p_steps8'" in found["experiments.p.decoder.init"]


# --- names never collide ---

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
FREE = st.text("abp-01m", min_size=1, max_size=4)  # no `_`: never ambiguous


@given(SCALARS, SCALARS)
def test_numbers_have_one_label_if_and_only_if_they_are_equal(a: Any, b: Any) -> None:
    same = a == b and isinstance(a, bool) == isinstance(b, bool)
    assert (label_of(a) == label_of(b)) == same
    assert LABEL.holds(label_of(a))


def expanded(sweep: dict[str, set[str]]) -> tuple[set[str], list[ConfigProblem]]:
    """Names of the points of a sweep with these labels, and the problems of their names."""
    axes = {
        axis: {"key": f"k.{axis}", "values": dict.fromkeys(labels)}
        for axis, labels in sweep.items()
    }
    found: list[ConfigProblem] = []
    return set(expand({"x": {"sweep": axes}}, found).entries), found


AXES = st.sampled_from(["a", "ab", "b", "a_b", "p0"])


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(AXES, st.sets(FREE, min_size=1, max_size=4), min_size=1, max_size=4))
def test_labels_without_an_underscore_never_collide(sweep: dict[str, set[str]]) -> None:
    names, found = expanded(sweep)
    assert found == []
    assert len(names) == math.prod(len(labels) for labels in sweep.values())
    assert all(NAME.holds(name) for name in names)


@settings(deadline=None, max_examples=300)
@given(st.tuples(*[st.sets(st.text("a_1", min_size=1, max_size=5), min_size=1)] * 3))
def test_labels_that_collide_are_refused(labels: tuple[set[str], ...]) -> None:
    names, found = expanded(dict(zip(("a", "a_a", "b"), labels, strict=True)))
    collide = len(names) < math.prod(len(each) for each in labels)
    assert collide == bool(found)
    assert {problem.path for problem in found} <= {"experiments.x.sweep"}
