"""The trainer: exact resumption, slots and lanes, clipping, freezing, logged rows."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_corpus, make_run, make_trainer, questions_of, rows_of, two_lanes
from torch import Tensor

from etrm.config.registry import CONTEXT_SOURCES
from etrm.data.episodes import Sampler
from etrm.data.host_copies import HostCopies
from etrm.evaluation.decode import all_variants, thin_out
from etrm.models.build import build_model
from etrm.models.compute import Compute
from etrm.storage.checkpoint import load_state, save_state
from etrm.training.optim import averaged_weights
from etrm.training.slots import HostSlotTracker, SlotError, apportion_slots
from etrm.training.trainer import Trainer

GOLDEN_LOSSES = Path(__file__).parent / "golden_losses.json"
SOURCES = ("embedding", "standard")
# The experiment guide's names, of runs with an encoder and of runs with embeddings.
COMMON = {
    *("train/accuracy", "train/exact_accuracy", "train/lm_loss", "train/q_halt_loss"),
    *("train/q_halt_accuracy", "train/steps", "train/lr", "train/count", "train/decoder_frozen"),
    *("grad/inner_norm", "grad/total_norm", "num_params"),
}
OF_ENCODERS = {
    *("train/encoder_cross_sample_var", "train/encoder_output_mean", "train/encoder_output_norm"),
    *("train/encoder_output_std", "train/encoder_token_std"),
    *("grad/encoder_norm", "grad/encoder_share"),
}
EVALUATED = ("accuracy", "exact_accuracy", "lm_loss", "q_halt_accuracy", "q_halt_loss", "steps")
ALL = {f"all.{name}" for name in (*EVALUATED, "count")}


def trainer_of(source: str = "standard", **blocks: Any) -> Trainer:
    return make_trainer(make_run(source, **blocks), make_corpus(two_lanes()))


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """A nested state with one entry for each tensor or number."""
    if isinstance(value, dict):
        return {k: v for key, each in value.items() for k, v in flat(each, f"{name}.{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, each in enumerate(value) for k, v in flat(each, f"{name}.{i}").items()}
    return {name: value}


def assert_equal(first: Any, second: Any) -> None:
    first, second = flat(first), flat(second)
    assert set(first) == set(second)
    for name, value in first.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, second[name]), name
        else:
            assert value == second[name], name


# --- exact resumption ---


def check_resumption(
    source: str, blocks: dict[str, Any], steps: int, saved: int, folder: Path
) -> None:
    """A run that saves on the way, and another trainer that resumes there, end equal."""
    whole = trainer_of(source, **blocks)
    rows_of(whole, saved)
    save_state(folder, saved, {"trainer": whole.state_dict()})
    loaded = load_state(folder)
    second = trainer_of(source, **blocks)
    second.load_state_dict(loaded["trainer"])
    assert rows_of(second, steps - saved) == rows_of(whole, steps - saved)
    assert_equal(second.state_dict(), whole.state_dict())


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("log_every", "cached"), [(1, False), (4, True)])
def test_two_runs_of_n_steps_equal_one_of_2n(
    source: str, log_every: int, cached: bool, tmp_path: Path
) -> None:
    blocks = {
        "episodes": {"canvas": [3, [4, 5]]},
        "train": {"log_every": log_every, "cache_context": cached},
        "halting": {"max_steps": 4},
        "decoder": {"frozen_steps": 8},
    }
    check_resumption(source, blocks, 12, 6, tmp_path)


@pytest.mark.parametrize("source", sorted(set(CONTEXT_SOURCES) - set(SOURCES)))
def test_every_context_source_resumes_exactly(source: str, tmp_path: Path) -> None:
    """States of encoders, noise, keys of the contrastive loss, a probe in between, rectangles."""
    blocks = {
        "episodes": {"canvas": [3, [4, 5]]},
        "train": {"probe_every": 2, "log_every": 2},
        "halting": {"max_steps": 4},
        "context": {"contrastive_weight": 0.1},
    }
    check_resumption(source, blocks, 4, 2, tmp_path)


@pytest.mark.parametrize("source", SOURCES)
def test_evaluating_and_saving_change_nothing(source: str) -> None:
    first, second = trainer_of(source), trainer_of(source)
    for step in range(6):
        first.step()
        second.step()
        if step % 2:
            second.evaluate()
            second.state_dict()
    assert_equal(first.state_dict(), second.state_dict())
    assert second.model.training


def test_the_global_generator_plays_no_part() -> None:
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        trainer = trainer_of()
        for _ in range(4):
            trainer.step()
            torch.rand(3)
        states.append(trainer.state_dict())
    assert_equal(*states)


def test_another_seed_is_another_run() -> None:
    first, second = trainer_of(seed=0), trainer_of(seed=1)
    for each in (first, second):
        each.step()
    assert not torch.equal(first.model.decoder.lm_head.weight, second.model.decoder.lm_head.weight)
    batches = [each.lane_slots[0].sampler.batch(1) for each in (first, second)]
    assert not torch.equal(batches[0].inputs, batches[1].inputs)


# --- golden losses ---


def twenty_losses(source: str) -> list[float]:
    trainer = trainer_of(
        source,
        train={"steps": 20, "batch_size": 8, "lr": 3e-3},
        context={"pairing": "aligned"} if source == "standard" else {},
    )
    return [row["train/lm_loss"] + 0.5 * row["train/q_halt_loss"] for row in rows_of(trainer, 20)]


@pytest.mark.parametrize("source", SOURCES)
def test_twenty_losses_are_those_on_record(source: str) -> None:
    """A change that moves them says why. To record: `python tests/training/test_trainer.py`."""
    recorded = json.loads(GOLDEN_LOSSES.read_text())
    assert twenty_losses(source) == pytest.approx(recorded[source], rel=1e-5)
    assert recorded[source][-1] < recorded[source][0]


# --- slots and lanes ---


def apportioned(sizes: Sequence[int], slots: int) -> list[int]:
    return apportion_slots([SimpleNamespace(total_weight=n) for n in sizes], slots)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=6), st.integers(0, 300))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_slots_are_apportioned_in_proportion(sizes: list[int], extra: int) -> None:
    slots = len(sizes) + extra
    found = apportioned(sizes, slots)
    assert sum(found) == slots
    assert min(found) >= 1
    exact = [slots * n / sum(sizes) for n in sizes]
    if min(exact) >= 1:
        assert all(abs(a - b) < 1 for a, b in zip(found, exact, strict=True))


def test_slots_are_apportioned_by_largest_remainders() -> None:
    assert apportioned([1, 1], 4) == [2, 2]
    assert apportioned([10, 70, 20], 10) == [1, 7, 2]
    assert apportioned([1, 999], 4) == [1, 3]
    assert apportioned([26, 26, 48], 10) in ([3, 2, 5], [2, 3, 5])


def test_fewer_slots_than_lanes_and_no_question_at_all_are_errors() -> None:
    with pytest.raises(SlotError, match=r"train\.batch_size: found 1, .* lanes \[3, 4\]"):
        trainer_of(train={"batch_size": 1})
    with pytest.raises(SlotError, match="no training question"):
        apportioned([], 4)


def test_slots_of_all_lanes_have_numbers_of_their_own() -> None:
    trainer = trainer_of(train={"batch_size": 11})
    assert len(trainer.lane_slots) == 2
    numbers = torch.cat([lane.slots for lane in trainer.lane_slots])
    assert numbers.tolist() == list(range(11))
    assert all(torch.equal(lane.sampler.slots, lane.slots) for lane in trainer.lane_slots)


def test_batches_come_in_the_order_of_steps() -> None:
    """The batch of step n is f(seed, n): slots that are free at step n hold it."""
    trainer = trainer_of(halting={"max_steps": 1})
    for step in range(1, 6):
        trainer.step()
        for lane in trainer.lane_slots:
            expected = lane.sampler.batch(step).tensors()
            for name, tensor in lane.carry.batch.tensors().items():
                assert torch.equal(tensor, expected[name])


def test_gradients_of_all_lanes_make_one_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is the mean over all slots, whatever their lanes."""
    trainer, apart = trainer_of(), trainer_of()
    apart.step_number = 1
    parts = []
    for lane in apart.lane_slots:
        apart.updater.parameters.gradient.zero_()
        apart._forward_backward(lane)
        parts.append({n: p.grad.clone() for n, p in apart.model.named_parameters()})
    found: list[dict[str, Tensor]] = []
    names = dict(trainer.model.named_parameters())
    monkeypatch.setattr(
        trainer, "_update", lambda: found.append({n: p.grad.clone() for n, p in names.items()})
    )
    trainer.step()
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, parts[0][name] + parts[1][name], atol=1e-6), name


# --- host slot tracker ---


def tracking(**blocks: Any) -> Trainer:
    """A trainer that packs demos as it does for a GPU."""
    run, corpus = make_run(halting={"max_steps": 3}, **blocks), make_corpus(two_lanes())
    model, episodes = build_model(run, corpus.num_puzzles), questions_of(run, corpus)
    return Trainer(run, model, corpus, episodes, compute=Compute(packing="bounds"))


def check_tracked(trainer: Trainer) -> None:
    """The host knows the demos that slots hold, and they are within its bounds."""
    for lane in trainer.lane_slots:
        batch, tracker, bounds = lane.carry.batch, lane.host_tracker, lane.carry.batch.token_bounds
        cells = (batch.demo_inputs > 0).sum(dim=-1) + (batch.demo_outputs > 0).sum(dim=-1)
        assert (cells.numpy() <= bounds.concat).all()
        assert torch.equal(tracker.held >= 0, batch.demo_mask)
        pairs, every = lane.sampler.episodes.pairs(tracker.held), trainer.corpus
        for task, shown in zip(batch.task.tolist(), pairs.tolist(), strict=True):
            known = {*every.demo_pairs[task], *every.query_pairs[task], -1}
            assert set(shown) <= known


def test_the_host_tracks_the_questions_of_slots() -> None:
    """Also after a resumption."""
    trainer = tracking(episodes={"max_demos": 2})
    with torch.no_grad():
        trainer.model.decoder.q_head.bias.fill_(0.5)  # some halt by themselves
    held: list[int] = []
    for step in range(8):
        if step == 5:
            state = trainer.state_dict()
            trainer = tracking(episodes={"max_demos": 2})
            trainer.load_state_dict(state)
        trainer.step()
        check_tracked(trainer)
        held += [int(lane.carry.steps.max()) for lane in trainer.lane_slots]
    assert max(held) > 1


def test_the_next_batch_is_prepared_during_the_backward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The host asks who halted when it has drawn all samples, and knows it before the pass ends."""
    trainer = tracking()
    done: list[str] = []

    def note(owner: Any, name: str, say: str) -> None:
        function = getattr(owner, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            done.append(say)
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, noted)

    note(torch.Tensor, "backward", "backward")
    note(HostSlotTracker, "record_halted", "begin to copy")
    note(HostCopies, "read", "read")
    note(Sampler, "_members", "draw")
    for _ in range(2):
        done.clear()
        trainer.step()
        of_lane = ["draw", "draw", "read", "begin to copy", "backward"]
        assert done == of_lane * len(trainer.lane_slots)


def test_a_state_from_a_cpu_resumes_where_bounds_are_needed() -> None:
    first, second = trainer_of(halting={"max_steps": 3}), tracking()
    rows_of(first, 2)
    state = first.state_dict()
    second.load_state_dict(state)
    rows_of(second, 1)
    check_tracked(second)


def test_bounds_and_looking_give_the_same_run() -> None:
    states = []
    for trainer in (trainer_of(halting={"max_steps": 3}), tracking()):
        rows_of(trainer, 3)
        states.append(trainer.state_dict())
    for name, value in states[0]["model"].items():
        assert torch.allclose(value, states[1]["model"][name], atol=1e-5), name


# --- clipping, freezing, learning rates ---


def test_norms_are_logged_before_and_after_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(train={"grad_clip": 0.01})
    norms: dict[str, float] = {}
    clip = trainer.updater._clip

    def norm() -> float:
        gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        return math.sqrt(sum(float(g.double().square().sum()) for g in gradients))

    def listen(step: int) -> dict[str, Tensor]:
        norms["before"] = norm()
        found = clip(step)
        norms["after"] = norm()
        return found

    monkeypatch.setattr(trainer.updater, "_clip", listen)
    trainer.step()
    row = trainer.row()
    assert norms["after"] == pytest.approx(0.01, rel=1e-3)
    assert norms["before"] > 0.1
    assert row["grad/total_norm"] == pytest.approx(norms["after"], rel=1e-4)
    assert row["grad/total_norm_unclipped"] == pytest.approx(norms["before"], rel=1e-4)
    for end in ("", "_unclipped"):
        parts = row[f"grad/encoder_norm{end}"], row[f"grad/inner_norm{end}"]
        total = row[f"grad/total_norm{end}"]
        assert math.hypot(*parts) == pytest.approx(total, rel=1e-5)
        assert row["grad/encoder_share"] == pytest.approx(parts[0] / total, rel=1e-5)


@pytest.mark.parametrize("clip", [None, 1e9])
def test_small_gradients_are_not_scaled(clip: float | None) -> None:
    (row,) = rows_of(trainer_of(train={"grad_clip": clip}), 1)
    for part in ("encoder", "inner", "total"):
        assert row[f"grad/{part}_norm"] == row[f"grad/{part}_norm_unclipped"]


def changed(trainer: Trainer, steps: int) -> set[str]:
    """The first parts of the names of parameters that training moves."""
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    for _ in range(steps):
        trainer.step()
    moved = (n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n]))
    return {name.split(".")[0] for name in moved}


@pytest.mark.parametrize(
    ("blocks", "frozen", "trained"),
    [
        ({"decoder": {"frozen_steps": 3}}, "decoder", "context"),
        ({"train": {"context_frozen_steps": 3}}, "encoder", "decoder"),
        ({"decoder": {"frozen": True}}, "decoder", "context"),
    ],
)
def test_a_frozen_part_stays_for_its_steps_and_then_moves(
    blocks: dict[str, Any], frozen: str, trained: str
) -> None:
    train = {"weight_decay": 0.5, **blocks.get("train", {})}
    trainer, flags = trainer_of(**{**blocks, "train": train}), ("decoder", "encoder")
    assert changed(trainer, 3) == {trained}
    row = trainer.row()
    assert [row[f"train/{part}_frozen"] for part in flags] == [part == frozen for part in flags]
    assert row["grad/inner_norm"] > 0.0  # gradients of a frozen decoder are still measured
    throughout = "frozen" in blocks.get("decoder", {})
    assert changed(trainer, 1) == ({trained} if throughout else {"context", "decoder"})
    row = trainer.row()
    assert max(row[f"train/{part}_frozen"] for part in flags) == float(throughout)


def test_a_frozen_decoder_does_not_clip_the_encoder() -> None:
    """Only gradients that are used count in the norm that is clipped."""
    clip = 1e-3
    rows = []
    for frozen in (0, 9):
        trainer = trainer_of(decoder={"frozen_steps": frozen}, train={"grad_clip": clip})
        trainer.step()
        m = trainer.updater.optimizer.state[trainer.updater.parameters.flat["context"]]["m"]
        rows.append((trainer.row(), float(m.norm()) / 0.1))  # m is a tenth of the first gradient
    (free, of_free), (row, of_frozen) = rows
    share = free["grad/encoder_share"]
    assert 0.0 < share < 0.9
    assert of_free == pytest.approx(clip * share, rel=0.01)
    assert of_frozen == pytest.approx(clip, rel=0.01)
    assert row["grad/total_norm"] == row["grad/encoder_norm"] == pytest.approx(clip, rel=0.01)
    for name in ("inner_norm", "total_norm", "encoder_norm"):
        assert row[f"grad/{name}_unclipped"] == free[f"grad/{name}_unclipped"]
    assert row["grad/encoder_share"] == share


def test_the_context_source_has_its_own_learning_rate() -> None:
    trainer = trainer_of(train={"context_lr_scale": 0.25, "warmup_steps": 4, "lr": 0.1})
    rates = []
    for _ in range(5):
        trainer.step()
        rates.append([group["lr"] for group in trainer.updater.optimizer.param_groups])
        assert trainer.row()["train/lr"] == pytest.approx(rates[-1][0])
    expected = [[0.1 * f, 0.025 * f] for f in (0.25, 0.5, 0.75, 1.0, 1.0)]
    assert rates == [pytest.approx(each) for each in expected]


def test_every_parameter_is_optimized_once() -> None:
    def extent(p: Tensor) -> tuple[int, int]:
        return p.data_ptr(), p.data_ptr() + 4 * p.numel()

    for source in SOURCES:
        trainer = trainer_of(source)
        optimizer, parameters = trainer.updater.optimizer, list(trainer.model.parameters())
        groups = [extent(p) for group in optimizer.param_groups for p in group["params"]]
        assert sum(end - start for start, end in groups) == 4 * sum(p.numel() for p in parameters)
        for start, end in map(extent, parameters):
            assert [first <= start and end <= last for first, last in groups].count(True) == 1


def test_a_parameter_outside_the_optimizer_groups_is_named() -> None:
    run, corpus = make_run(), make_corpus()
    model = build_model(run, corpus.num_puzzles)
    model.register_parameter("stray", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(AssertionError, match="stray"):
        Trainer(run, model, corpus, questions_of(run, corpus))


def test_the_embedding_warms_up_too(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of("embedding", train={"warmup_steps": 4, "embedding_lr": 0.1})
    rates: list[float] = []
    step = trainer.updater.embedding.step
    monkeypatch.setattr(
        trainer.updater.embedding, "step", lambda lr, *other: (rates.append(lr), step(lr, *other))
    )
    for _ in range(5):
        trainer.step()
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])


# --- averaged weights and evaluation ---


def test_averaged_weights_are_used_inside_the_block_only() -> None:
    trainer = trainer_of()
    rows_of(trainer, 3)
    raw = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    ema = {n: t.clone() for n, t in trainer.ema.values.items()}
    with averaged_weights(trainer.model, trainer.ema):
        inside = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    assert all(torch.equal(tensor, ema[name]) for name, tensor in inside.items())
    assert any(not torch.equal(tensor, raw[name]) for name, tensor in inside.items())
    with pytest.raises(ZeroDivisionError), averaged_weights(trainer.model, trainer.ema):
        _ = 1 / 0
    for name, p in trainer.model.named_parameters():
        assert torch.equal(p, raw[name])
        assert torch.equal(trainer.ema.values[name], ema[name])


def test_evaluation_is_over_every_question_in_every_variant() -> None:
    trainer = trainer_of(train={"eval_episodes": None})
    lanes = all_variants(trainer.corpus, trainer.episodes)
    counts = [int(trainer.corpus.variant_count[t]) for lane in trainer.episodes for t in lane.task]
    assert sum(len(index) for _, index, _ in lanes) == sum(counts)
    found = trainer.evaluate()
    assert set(found) == ALL
    assert found["all.steps"] == trainer.halting.max_steps


def test_a_part_of_the_evaluation_is_the_same_for_the_same_seed() -> None:
    trainer = trainer_of(train={"eval_episodes": 20})
    lanes = all_variants(trainer.corpus, trainer.episodes)
    total = sum(len(index) for _, index, _ in lanes)
    assert total > 60

    def drawn(most: int | None, seed: int) -> list[tuple[int, int, int]]:
        return [
            (lane.lane.rows, i, v)
            for lane, index, variant in thin_out(lanes, most, seed)
            for i, v in zip(index.tolist(), variant.tolist(), strict=True)
        ]

    assert drawn(20, 0) == drawn(20, 0)
    assert drawn(20, 0) != drawn(20, 1)
    assert len(set(drawn(20, 0))) == len(drawn(20, 0)) == 20
    assert len(drawn(None, 0)) == len(drawn(total, 0)) == total
    assert set(drawn(20, 0)) <= set(drawn(None, 0))
    # Each lane has its share, whatever its size: on average exactly that.
    small = [lane for lane, *_ in drawn(None, 0)].count(3)
    found = [lane for seed in range(300) for lane, *_ in drawn(7, seed)].count(3) / 300
    assert found == pytest.approx(7 * small / total, rel=0.02)


def test_evaluation_during_training_shows_at_most_max_demos(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = trainer_of(episodes={"max_demos": 2})
    shown: list[int] = []
    forward = trainer.model.context.forward
    monkeypatch.setattr(
        trainer.model.context,
        "forward",
        lambda batch, state: (shown.append(batch.demo_mask.shape[1]), forward(batch, state))[1],
    )
    trainer.step()
    trainer.evaluate()
    assert set(shown) == {2}


# --- rows ---


@pytest.mark.parametrize("source", SOURCES)
def test_rows_have_the_names_of_the_guide(source: str) -> None:
    trainer = trainer_of(source, halting={"max_steps": 1})
    (row,) = rows_of(trainer, 1)
    assert row["step"] == 1
    assert set(row) >= COMMON
    assert (set(row) >= OF_ENCODERS) == (source == "standard")
    assert not (set(row) & OF_ENCODERS) or source == "standard"
    assert all(math.isfinite(value) for value in row.values())
    assert set(trainer.evaluate()) == ALL


def test_the_last_row_has_the_encoder_statistics_too() -> None:
    trainer = trainer_of(train={"steps": 5, "log_every": 3})
    for _ in range(5):
        trainer.step()
        if trainer.step_number == 3:
            trainer.row()
    assert set(trainer.row()) >= OF_ENCODERS


def test_throughput_is_counted_from_the_last_row(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("etrm.training.trainer.time.perf_counter", lambda: clock[0])
    trainer = trainer_of(train={"batch_size": 6})
    for seconds in (2.0, 4.0):
        for _ in range(4):
            trainer.step()
        clock[0] += seconds
        assert trainer.row()["perf/examples_per_second"] == pytest.approx(24 / seconds)


if __name__ == "__main__":
    torch.set_num_threads(1)
    losses = {source: twenty_losses(source) for source in SOURCES}
    GOLDEN_LOSSES.write_text(json.dumps(losses, indent=1) + "\n")
