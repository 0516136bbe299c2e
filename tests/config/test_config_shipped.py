"""The study files that come with the project."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import yaml
from documents import ROOT, shipped
from documents import shipped_study as study

from etrm.config.lanes import Lane
from etrm.config.load import load_study, plain, to_yaml
from etrm.config.registry import encoders
from etrm.config.schema import ConfigError
from etrm.study.layout import Layout

FILES = [path.name for path in shipped("config/*.yaml")]
FAST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
GRID = {(steps, share) for steps in (8, 16, 32) for share in (0.0, 0.3, 0.5, 0.7)}


def test_the_three_studies_are_there() -> None:
    assert {"config.yaml", "paper.yaml", "smoke.yaml"} <= set(FILES)
    names = [study(file).study for file in FILES]
    assert len(names) == len(set(names)), "two studies would share a folder of results"


@pytest.mark.parametrize("file", FILES)
def test_it_loads_again_from_its_resolved_form(file: str) -> None:
    config = study(file)
    assert load_study(yaml.load(to_yaml(config), Loader=FAST)) == config


@pytest.mark.parametrize("file", FILES)
def test_every_experiment_says_its_question_in_one_line(file: str) -> None:
    said = {n: e.description for n, e in study(file).experiments.items()}
    bad = {name: text for name, text in said.items() if not 10 <= len(text) <= 110 or "\n" in text}
    assert bad == {}


@pytest.mark.parametrize("file", ["config.yaml", "smoke.yaml", "paper.yaml"])
def test_it_has_both_baselines_encoders_and_a_negative_control(file: str) -> None:
    experiments = study(file).experiments.values()
    assert {e.split for e in experiments if e.is_trm} == {"strict", "transductive"}
    trained = [e for e in experiments if not e.is_trm and not e.train.cache_context]
    assert len({(e.halting.max_steps, e.halting.exploration_prob) for e in trained}) >= 2
    assert all(e.split == "strict" for e in trained)
    assert any(e.train.cache_context for e in experiments)


def test_the_smoke_study_has_the_experiments_of_the_mini_study() -> None:
    assert list(study("smoke.yaml").experiments) == list(study("config.yaml").experiments)
    assert study("smoke.yaml").tracking.wandb == "disabled"


def test_the_paper_study_has_the_published_sizes() -> None:
    config = study("paper.yaml")
    assert config.data.training == ("arc1_training", "concept")
    assert config.data.evaluation == ("arc1_evaluation",)
    for name, experiment in config.experiments.items():
        model, train = experiment.model, experiment.train
        held_out = experiment.group == "finals" or name == "trm"  # others are of the screen
        assert train.variants == 1000 < config.data.variants
        assert experiment.evaluation.variants == (1000 if held_out else 16)
        assert (model.width, model.heads, model.layers) == (512, 8, 2), name
        assert (model.context_tokens, model.H_cycles, model.L_cycles) == (16, 3, 6), name
        assert train.lr == 1e-4 or name.endswith("etrm_standard_lr3")
        assert (train.embedding_lr, train.weight_decay) == (1e-2, 0.1), name
        assert (train.warmup_steps, train.ema_decay, train.dtype) == (2000, 0.999, "bf16"), name
        assert experiment.episodes.canvas == tuple(Lane(n, n) for n in range(6, 31, 2)), name
        assert experiment.evaluation.pass_k == (1, 2, 5, 10, 100, 1000), name
        assert experiment.halting.exploration_prob == 0.1 or not experiment.is_trm, name
        assert len(experiment.seeds) == (3 if held_out else 1), name


def test_the_paper_study_chooses_by_validation_what_is_asked_about_held_out_tasks() -> None:
    config = study("paper.yaml")
    layout, experiments = Layout(config), config.experiments
    screened = {name for name, e in experiments.items() if e.group in SCREEN}
    assert config.all_candidates == screened
    asked = {run.experiment for run in layout.scored()}
    assert asked == {"trm", *(name for name, e in experiments.items() if e.group == "finals")}
    assert {e.candidate for e in experiments.values() if e.after} == screened
    for name, e in experiments.items():
        if e.after:  # all but the length, the seeds and the evaluation is the candidate's
            mine, theirs = plain(e), plain(experiments[str(e.candidate)])
            differ = {key for key in mine if mine[key] != theirs[key]}
            beside = {"description", "group", "after", "candidate"}
            assert differ == {*beside, "seeds", "stages", "evaluation"}, name


SCREEN = (
    "immediate",
    "short_term",
    "halting",
    "encoders",
    "no_bottleneck",
    "training",
    "recommended",
)

# The official ARC-AGI-1 command (TinyRecursiveModels, e7b6871): README, and what it overrides in
# cfg_pretrain.yaml, arch/trm.yaml and build_arc_dataset.py. The comments are the names there.
PUBLISHED = {
    "split": "transductive",  # demos of the test set are in the training set
    "context.source": "embedding",
    "model.width": 512,  # hidden_size
    "model.heads": 8,  # num_heads
    "model.layers": 2,  # L_layers=2
    "model.expansion": 4.0,
    "model.context_tokens": 16,  # puzzle_emb_len
    "model.H_cycles": 3,  # H_cycles=3
    "model.L_cycles": 4,  # L_cycles=4
    "model.positions": "rope",  # pos_encodings
    "model.rope_theta": 10000.0,
    "decoder.init": None,
    "halting.max_steps": 16,  # halt_max_steps
    "halting.exploration_prob": 0.1,  # halt_exploration_prob
    "halting.loss_weight": 0.5,  # losses.py
    "episodes.queries": "leave_one_out",  # every pair of the training set is a question
    "episodes.canvas": [30],  # ARCMaxGridSize
    "episodes.order": "epochs",  # puzzle_dataset.py
    "episodes.translate": True,  # build_arc_dataset.py
    "episodes.translate_once": True,
    "train.tasks": None,
    "train.variants": 1001,  # the task itself and num_aug = 1000
    "train.lr": 1e-4,
    "train.warmup_steps": 2000,  # lr_warmup_steps; then constant: lr_min_ratio is 1.0
    "train.betas": [0.9, 0.95],
    "train.weight_decay": 0.1,
    "train.embedding_lr": 1e-2,  # puzzle_emb_lr
    "train.embedding_weight_decay": 0.1,  # puzzle_emb_weight_decay
    "train.grad_clip": None,
    "train.ema_decay": 0.999,  # ema=True, ema_rate
    "train.dtype": "bf16",  # forward_dtype
    "train.hoist_casts": False,  # CastedLinear
    "stages.pretrain.batch_size": 768,  # global_batch_size
    "stages.pretrain.steps": 518_071,  # epochs=100000; the step of the released checkpoint
    "evaluation.variants": 1001,
    "evaluation.weights": "ema",
    "evaluation.halt_early": False,
    "evaluation.pass_k": [1, 2, 5, 10, 100, 1000],  # pass_Ks
}
# One deviation each, from the official command to ours (docs/deviations.md).
LADDER = {
    "trm_published": set(),
    "ladder_1_hoisted_casts": {"train.hoist_casts"},
    "ladder_2_1000_variants": {"train.variants", "evaluation.variants"},
    "ladder_3_translation": {"episodes.translate_once"},
    "ladder_4_replacement": {"episodes.order"},
    "ladder_5_lanes": {"episodes.canvas"},
    "ladder_6_clipping": {"train.grad_clip"},
    "trm": {"model.L_cycles"},
}


def flat(block: Any, path: str = "") -> dict[str, Any]:
    """The values of a document by their dotted keys."""
    if not isinstance(block, dict) or not block:
        return {path: block}
    values = (flat(value, f"{path}.{key}".strip(".")) for key, value in block.items())
    return {key: value for found in values for key, value in found.items()}


def test_trm_published_is_the_official_command() -> None:
    config = study("trm.yaml")
    values = flat(plain(config.experiments["trm_published"]))
    assert {key: values[key] for key in PUBLISHED} == PUBLISHED
    assert config.data.variants == 1001
    sources = [config.data.sources[name] for name in ("arc1_training", "arc1_evaluation")]
    assert [source.subset for source in sources] == ["training", "evaluation"]
    assert (config.data.training, config.data.evaluation) == (
        ("arc1_training", "concept"),
        ("arc1_evaluation",),
    )
    assert (config.data.training_tasks, config.data.max_side) == (None, None)


def test_each_rung_of_the_ladder_is_one_deviation_more() -> None:
    experiments = study("trm.yaml").experiments
    assert {n for n, e in experiments.items() if e.group == "ladder"} == {*LADDER} - {"trm"}
    rungs = [flat(plain(experiments[name])) for name in LADDER]
    beside = {"description", "group", "seeds"}
    for (name, expected), before, after in zip(
        [*LADDER.items()][1:], rungs[:-1], rungs[1:], strict=True
    ):
        differ = {key for key in before | after if before.get(key) != after.get(key)}
        assert differ - beside == expected, name


def test_only_the_official_command_is_called_published() -> None:
    """Descriptions are titles in figures and tables."""
    for file in FILES:
        for name, experiment in study(file).experiments.items():
            claims = "publish" in f"{name} {experiment.description}".lower()
            assert claims == (name == "trm_published"), (file, name)


def test_every_deviation_of_the_ladder_has_a_row() -> None:
    page = (ROOT / "docs" / "deviations.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("|")]
    for name, keys in LADDER.items():
        for key in keys:
            assert [row for row in rows if f"`{name}`" in row and f"`{key}" in row], (name, key)


def test_the_paper_study_has_the_whole_grid_of_halting() -> None:
    experiments = study("paper.yaml").experiments
    base = experiments["etrm_standard_steps16_explore50"]
    found = {
        (e.halting.max_steps, e.halting.exploration_prob)
        for e in experiments.values()
        if not e.is_trm and e.context == base.context and e.train == base.train
    }
    assert found >= GRID
    for steps, share in GRID:
        halting = experiments[f"etrm_standard_steps{steps}_explore{round(100 * share)}"].halting
        assert (halting.max_steps, halting.exploration_prob) == (steps, share)


def test_the_paper_study_varies_one_thing_at_a_time() -> None:
    experiments = study("paper.yaml").experiments
    base = plain(experiments["etrm_standard_steps16_explore50"].context)
    varied = set()
    for experiment in experiments.values():
        if not experiment.is_trm and experiment.context.source == base["source"]:
            other = plain(experiment.context)
            differ = {key: other[key] for key in base if other[key] != base[key]}
            on = {"contrastive_weight"} if "contrastive_positives" in differ else set()  # beside it
            assert len(differ.keys() - on) <= 1, experiment.description
            varied |= set(differ.items())
    assert varied >= {
        *(("pairing", "aligned"), ("layers", 3), ("layers", 4), ("width", 768), ("width", 1024)),
        *(("pooling", kind) for kind in ("max", "attention", "weighted")),
    }
    assert any(e.decoder.init is None for e in experiments.values() if not e.is_trm)


def test_encoders_of_the_paper_are_run_at_the_baseline_and_at_one_of_the_guides_best() -> None:
    found: dict[str, set[tuple[int, float]]] = {}
    for e in study("paper.yaml").experiments.values():
        if not e.is_trm:
            where = (e.halting.max_steps, e.halting.exploration_prob)
            found.setdefault(e.context.source, set()).add(where)
    assert len(found) >= 14  # all that come with the project; others stand where a user wants them
    for source, settings in found.items():
        assert (16, 0.5) in settings, source
        assert settings & {(8, 0.5), (16, 0.7)}, source


def test_the_paper_study_has_every_mode_of_the_decoder_in_a_group() -> None:
    experiments = study("paper.yaml").experiments
    assert all(e.group for e in experiments.values())
    decoders = [e.decoder for e in experiments.values() if not e.is_trm]
    assert any(d.frozen for d in decoders)
    assert any(d.frozen_steps for d in decoders)
    assert any(d.init is None for d in decoders)
    trains = [e.train for e in experiments.values()]
    assert any(t.context_frozen_steps for t in trains)
    assert any(t.context_lr_scale != 1.0 for t in trains)
    contexts = [e.context for e in experiments.values()]
    contrasted = [c for c in contexts if getattr(c, "contrastive_weight", 0)]
    assert {c.contrastive_positives for c in contrasted} == {"puzzle", "task"}
    bottlenecks = {getattr(e.context, "bottleneck", None) for e in experiments.values()}
    assert bottlenecks >= {"per_demo", "aggregated"}


def test_the_encoders_study_has_every_encoder_with_both_pairings() -> None:
    found = study("encoders.yaml").experiments
    for encoder, pairing in itertools.product(encoders(), ("aligned", "concat")):
        context = found[f"encoder_{encoder}_{pairing}"].context
        assert (context.source, context.pairing, context.width) == (encoder, pairing, 64)
    assert len([name for name in found if name.startswith("encoder_")]) == 2 * len(encoders())


@pytest.mark.parametrize("file", FILES)
def test_editors_find_the_schema(file: str) -> None:
    first = (ROOT / "config" / file).read_text(encoding="utf-8").splitlines()[0]
    assert first == "# yaml-language-server: $schema=schema.json"


@pytest.mark.parametrize("group", ["full", "all", "train_full", "a group", "9lives", ""])
def test_a_group_is_not_named_after_another_target(group: str) -> None:
    experiment = {"description": "?", "context": {"source": "standard"}, "group": group}
    with pytest.raises(ConfigError, match=r"experiments\.x\.group: found .*, expected a name of"):
        load_study({"study": "s", "experiments": {"x": experiment}})
