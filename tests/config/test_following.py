"""Experiments after a selection: one for each candidate, what they inherit, and every mistake."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from etrm.config.load import load_study, to_yaml
from etrm.config.merging import merge
from etrm.config.schema import ConfigError
from etrm.config.study import StudyConfig


def document(**changes: Any) -> dict[str, Any]:
    """A screen of three, halved twice, and finals."""
    given = {
        "study": "s",
        "data": {"validation_tasks": 4},
        "selections": {
            "half": {"of": ["screen"], "best": 2},
            "best": {"of": ["second"], "best": 1},
        },
        "defaults": {"context": {"source": "standard"}, "train": {"steps": 10}},
        "experiments": {
            "plain": {"group": "screen", "description": "Plain"},
            "deep": {
                "group": "screen",
                "sweep": {"layers": {"key": "context.layers", "values": [3, 4], "prefix": ""}},
            },
            "second": {
                "group": "second",
                "after": "half",
                "continues": True,
                "train": {"steps": 20},
                "description": "{candidate}, longer",
            },
            "final": {"after": "best", "seeds": [0, 1], "train": {"steps": 40}},
        },
    }
    return merge(given, changes)


def study(**changes: Any) -> StudyConfig:
    return load_study(document(**changes))


def wrong(**changes: Any) -> str:
    with pytest.raises(ConfigError) as error:
        study(**changes)
    return str(error.value)


def test_there_is_one_experiment_for_each_candidate_with_its_keys() -> None:
    found = study().experiments
    assert list(found) == [
        *("plain", "deep_3", "deep_4", "second_plain", "second_deep_3", "second_deep_4"),
        *("final_second_plain", "final_second_deep_3", "final_second_deep_4"),
    ]
    second, final = found["second_deep_4"], found["final_second_deep_4"]
    assert second.context.layers == final.context.layers == 4
    assert (second.train.steps, final.train.steps) == (20, 40)
    assert (second.candidate, final.candidate) == ("deep_4", "second_deep_4")
    assert second.description == "deep_4, longer"
    # A group and a continuation are no keys of the candidate that a follower inherits.
    assert (second.group, final.group) == ("second", None)
    assert (second.continues, final.continues) == (True, False)
    assert final.stage_names == ("full",)


def test_the_order_of_the_file_does_not_matter() -> None:
    given = document()
    backwards = dict(reversed(given["experiments"].items()))
    found = load_study({**given, "experiments": backwards})
    assert found.experiments == study().experiments
    assert list(found.experiments)[:2] == ["final_second_deep_3", "final_second_deep_4"]


def test_candidates_that_follow_each_other_are_refused() -> None:
    circle = {"half": {"of": ["finals"]}, "best": {"of": ["second"]}}
    text = wrong(selections=circle, experiments={"final": {"group": "finals"}})
    assert "second, final follow each other" in text


def test_the_resolved_study_is_the_same_study() -> None:
    found = study()
    assert load_study(yaml.safe_load(to_yaml(found))) == found
    assert found.candidates("best") == ["second_plain", "second_deep_3", "second_deep_4"]


def test_one_follower_can_be_changed_by_its_name() -> None:
    own = {"final_second_plain": {"seeds": [7]}}
    found = study(experiments=own).experiments
    assert found["final_second_plain"].seeds == (7,)
    assert found["final_second_plain"].train.steps == 40
    assert found["final_second_deep_3"].seeds == (0, 1)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"selections": {"half": {"of": ["nobody"]}}}, "selections.half.of[0]"),
        ({"selections": {"half": {"at_most": 1}}}, "selections.half.at_most"),
        ({"experiments": {"second": {"group": "screen"}}}, "experiments"),
        ({"experiments": {"deep": {"after": "half", "candidate": "plain"}}}, "selections.half.of"),
        ({"experiments": {"final": {"after": "other"}}}, "experiments.final.after"),
        ({"experiments": {"plain": {"candidate": "deep_3"}}}, "experiments.plain.candidate"),
        ({"experiments": {"plain": {"context": {"source": "embedding"}}}}, "selections.half.of"),
        ({"data": {"validation_tasks": 0}}, "data.validation_tasks"),
        ({"experiments": {"second": {"train": {"lr": 0.5}}}}, "second_plain.train.lr"),
        ({"experiments": {"second": {"train": {"steps": 5}}}}, "second_plain.stages.full.steps"),
        ({"experiments": {"second": {"seeds": [3]}}}, "second_plain.seeds"),
        ({"experiments": {"second": {"halting": {"max_steps": 2}}}}, "second_plain.halting"),
    ],
)
def test_mistakes_are_said_at_their_place(changes: dict[str, Any], place: str) -> None:
    assert f"{place}: found" in wrong(**changes)
