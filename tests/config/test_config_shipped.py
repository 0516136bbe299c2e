"""The study files that come with the project."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml
from documents import ROOT, shipped

from etrm.config.load import load_study, plain, read_study
from etrm.config.registry import encoders
from etrm.config.schema import ConfigError
from etrm.config.study import StudyConfig

FILES = [path.name for path in shipped("config/*.yaml")]
GRID = {(steps, share) for steps in (8, 16, 32) for share in (0.0, 0.3, 0.5, 0.7)}


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # `extends` is seen from there


def study(name: str) -> StudyConfig:
    return read_study(Path("config") / name)


def test_the_three_studies_are_there() -> None:
    assert {"config.yaml", "paper.yaml", "smoke.yaml"} <= set(FILES)
    names = [study(file).study for file in FILES]
    assert len(names) == len(set(names)), "two studies would share a folder of results"


@pytest.mark.parametrize("file", FILES)
def test_it_loads_again_from_its_resolved_form(file: str) -> None:
    config = study(file)
    assert load_study(yaml.safe_load(yaml.safe_dump(plain(config)))) == config


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
    assert config.data.variants == 1000
    assert config.data.training == ("arc1_training", "concept")
    assert config.data.evaluation == ("arc1_evaluation",)
    for name, experiment in config.experiments.items():
        model, train = experiment.model, experiment.train
        assert (model.width, model.heads, model.layers) == (512, 8, 2), name
        assert (model.context_tokens, model.H_cycles, model.L_cycles) == (16, 3, 6), name
        assert train.lr == 1e-4 or name == "etrm_standard_lr3"
        assert (train.embedding_lr, train.weight_decay) == (1e-2, 0.1), name
        assert (train.warmup_steps, train.ema_decay, train.dtype) == (2000, 0.999, "bf16"), name
        assert experiment.episodes.canvas == tuple(range(6, 31, 2)), name
        assert experiment.evaluation.pass_k == (1, 2, 5, 10, 100, 1000), name
        assert experiment.halting.exploration_prob == 0.1 or not experiment.is_trm, name
        claims_a_number = not train.cache_context
        assert len(experiment.seeds) >= 3 or not claims_a_number, name


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
            assert len(differ) <= 1, experiment.description
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
    assert any(getattr(e.context, "contrastive_weight", 0) for e in experiments.values())
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
