"""Decoding: everything once, whatever the batches; augmentation undone; halting early."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny import (
    grid,
    lanes_of,
    make_corpus,
    make_run,
    make_task,
    make_tasks,
    make_variants,
    recolour,
)

import etrm.evaluation.decode
from etrm.arc.augment import Augmentation
from etrm.arc.grid import COLOR_OFFSET, EOS, crop
from etrm.arc.task import Pair, Task
from etrm.config.study import EvaluationConfig, HaltingConfig
from etrm.data.batch import Batch
from etrm.data.corpus import Corpus, Episodes
from etrm.data.episodes import group_by_lane, held_out_questions
from etrm.data.host_copies import HostCopies
from etrm.evaluation.decode import (
    PREDICTIONS,
    Answers,
    Decoded,
    all_variants,
    cut_to_memory,
    decode,
    decode_all,
    in_batches,
    mean_metrics,
    predict,
    predict_batches,
)
from etrm.evaluation.metrics import EvaluationSums, means_by_step
from etrm.models.act import Model, StepOutput, act_step, empty_carry
from etrm.models.build import build_model
from etrm.models.encoders.base import Encoded
from etrm.models.losses import SampleLoss, sample_losses
from etrm.models.memory import decoding_bytes

HALTING = HaltingConfig(max_steps=3)
F32 = torch.float32


def held_out(corpus: Corpus, sides: tuple[Any, ...] = (3, 4)) -> list[Episodes]:
    return group_by_lane(corpus, held_out_questions(corpus), lanes_of(*sides))


def tasks_of_two_lanes() -> list[Task]:
    return [*make_tasks(4, side=3), *make_tasks(3, seed=1, side=4, prefix="larger")]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return make_corpus(tasks_of_two_lanes())


def model_of(source: str, corpus: Corpus, **blocks: Any) -> Model:
    """A model whose q-heads disagree about when to stop."""
    model = build_model(make_run(source, **blocks), corpus.num_puzzles)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.decoder.q_head.weight.normal_(generator=generator)
        model.decoder.q_head.bias.zero_()
        if source == "embedding":
            model.context.weights.normal_(generator=generator)
    return model.eval()


def table_of(
    model: Model,
    corpus: Corpus,
    lanes: list[Episodes] | None = None,
    limit: int | None = None,
    halting: HaltingConfig = HALTING,
    **config: Any,
) -> pa.Table:
    settings = EvaluationConfig(**config)
    chosen = all_variants(corpus, held_out(corpus) if lanes is None else lanes, limit)
    return predict(model, corpus, chosen, halting, settings, F32)


def steps_of(model: Model, batch: Batch, max_steps: int) -> list[StepOutput]:
    carry = empty_carry(model, batch, F32)
    outputs = []
    for _ in range(max_steps):
        with torch.no_grad():
            carry, output = act_step(model, carry, batch)
        carry.halted = torch.zeros_like(carry.halted)
        outputs.append(output)
    return outputs


def undecided(model: Model, corpus: Corpus, max_steps: int) -> tuple[tuple[Any, ...], Batch]:
    """Questions of a lane, and their batch, of which about half of all ACT steps say stop."""
    episodes = held_out(corpus)[0]
    (chosen,) = all_variants(corpus, [episodes])
    batch = corpus.assemble(*chosen)
    with torch.no_grad():
        states = torch.stack([out.q_halt for out in steps_of(model, batch, max_steps)])
        model.decoder.q_head.bias -= states.median()
    return chosen, batch


# --- everything exactly once ---


@pytest.mark.parametrize("source", ["embedding", "standard"])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_every_task_query_and_variant_is_answered_once(
    source: str, batch_size: int, corpus: Corpus
) -> None:
    assert len(held_out(corpus)) == 2
    table = table_of(model_of(source, corpus), corpus, batch_size=batch_size)
    found = Counter(
        (row["task"], row["query"], row["variant"])
        for row in table.select(["task", "query", "variant"]).to_pylist()
    )
    expected = {
        (task.id, query, variant)
        for number, task in enumerate(corpus.tasks)
        for query in range(len(task.queries))
        for variant in range(int(corpus.variant_count[number]))
    }
    assert set(found) == expected
    assert set(found.values()) == {1}
    assert table.schema.equals(PREDICTIONS)


def test_tasks_with_different_numbers_of_variants() -> None:
    tasks = make_tasks(3)
    variants = make_variants(tasks, 5)
    few = make_variants(tasks, 2)
    corpus = Corpus(tasks, {**variants, tasks[1].id: few[tasks[1].id]})
    lanes = held_out(corpus, (4,))
    for limit, expected in ((None, [5, 2, 5]), (3, [3, 2, 3]), (1, [1, 1, 1])):
        ((episodes, index, variant),) = all_variants(corpus, lanes, limit)
        pairs = list(zip(index.tolist(), variant.tolist(), strict=True))
        assert pairs == [
            (e, v) for e in range(len(episodes)) for v in range(expected[int(episodes.task[e])])
        ]


@pytest.mark.parametrize("source", ["embedding", "standard"])
@pytest.mark.parametrize("halt_early", [False, True])
def test_batches_of_one_and_of_64_agree(source: str, halt_early: bool, corpus: Corpus) -> None:
    model = model_of(source, corpus)
    one, many = (
        table_of(model, corpus, batch_size=size, halt_early=halt_early) for size in (1, 64)
    )
    for name in PREDICTIONS.names:
        first, second = (t.column(name).to_pylist() for t in (one, many))
        if name in ("q_halt", "token_accuracy", "lm_loss", "q_halt_loss"):
            assert first == pytest.approx(second, abs=1e-3)
        else:
            assert first == second


def test_answers_are_read_when_the_next_batch_is_queued(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing waits for a batch before: the device has always one to work on."""
    done: list[str] = []
    run, read = etrm.evaluation.decode.decode, HostCopies.read

    def queue(*args: Any) -> Any:
        done.append("queue")
        return run(*args)

    def wait(copies: HostCopies) -> dict[str, torch.Tensor]:
        done.append("read")
        return read(copies)

    monkeypatch.setattr(etrm.evaluation.decode, "decode", queue)
    monkeypatch.setattr(HostCopies, "read", wait)
    lanes = all_variants(corpus, held_out(corpus))
    config = EvaluationConfig(batch_size=16)
    tables = predict_batches(model_of("standard", corpus), corpus, lanes, HALTING, config, F32)
    count = len(in_batches(lanes, 16))
    assert count > 2
    next(tables)
    assert done == ["queue", "queue", "read"]
    assert len([*tables]) == count - 1
    assert done == ["queue", *["queue", "read"] * (count - 1), "read"]


def test_means_of_an_evaluation_stay_on_the_device_until_they_are_asked_for(corpus: Corpus) -> None:
    lanes = all_variants(corpus, held_out(corpus))
    _, decoded = next(decode_all(model_of("standard", corpus), corpus, lanes, HALTING, 16))
    fields = {f.name: getattr(decoded.losses, f.name) for f in dataclasses.fields(SampleLoss)}
    on_meta = {n: v.to("meta") for n, v in fields.items() if isinstance(v, torch.Tensor)}
    losses = dataclasses.replace(decoded.losses, **on_meta)
    sums = EvaluationSums()
    for _ in range(2):
        sums.add(losses, losses.exact, decoded.steps.to("meta"))
    assert sums.sums.device.type == "meta"


@pytest.mark.parametrize("source", ["embedding", "standard"])
def test_a_batch_that_memory_does_not_hold_is_decoded_in_pieces(
    source: str, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And there is a table for each batch all the same, as parts on disk count them."""
    model, lanes = model_of(source, corpus), all_variants(corpus, held_out(corpus))
    asked, config = in_batches(lanes, 16), EvaluationConfig(batch_size=16)
    whole = [*predict_batches(model, corpus, lanes, HALTING, config, F32)]
    episodes, index, _ = asked[0]
    memory = 5.5 * decoding_bytes(model, episodes, index, 4)
    pieces = cut_to_memory(model, asked, 4, memory)
    assert len(pieces) > len(asked)
    assert all(len(i) * decoding_bytes(model, e, i, 4) <= memory for e, i, _ in pieces)
    monkeypatch.setattr(etrm.evaluation.decode, "activation_budget", lambda _: memory)
    cut = [*predict_batches(model, corpus, lanes, HALTING, config, F32)]
    for name in ("task", "query", "variant", "steps"):
        assert [t[name].to_pylist() for t in cut] == [t[name].to_pylist() for t in whole]
    for first, second in zip(cut, whole, strict=True):
        losses = (t["lm_loss"].to_pylist() for t in (first, second))
        assert next(losses) == pytest.approx(next(losses), rel=1e-4)
    assert len(cut_to_memory(model, asked, 4, 1.0)) == sum(len(i) for _, i, _ in lanes)


def test_lanes_are_decoded_on_their_own_canvas(corpus: Corpus) -> None:
    model = model_of("standard", corpus)
    lanes = all_variants(corpus, held_out(corpus))
    sides = {
        (str(episodes.lane), decoded.batch.inputs.shape[1])
        for episodes, decoded in decode_all(model, corpus, lanes, HALTING, 8)
    }
    assert sides == {("3", 9), ("4", 16)}


def test_the_model_is_left_in_its_mode(corpus: Corpus) -> None:
    model = model_of("standard", corpus)
    lanes = all_variants(corpus, held_out(corpus))
    for training in (True, False):
        model.train(training)
        for _ in decode_all(model, corpus, lanes, HALTING, 64):
            assert not model.training
            break
        assert model.training == training


# --- the augmentation undone ---


@pytest.mark.usefixtures("oracle")
def test_true_answers_are_correct_in_every_variant() -> None:
    rng = np.random.default_rng(0)
    task = Task(
        "wide",
        (Pair(grid(rng, 2, 4), grid(rng, 2, 4)),),
        (Pair(grid(rng, 2, 4), grid(rng, 1, 3)), Pair(grid(rng, 3, 3), grid(rng, 4, 4))),
    )
    corpus = make_corpus([task, *make_tasks(2)], variants=40)
    frame = table_of(model_of("standard", corpus), corpus, held_out(corpus, (4,))).to_pandas()
    assert len(set(corpus.dihedral.tolist())) == 8
    assert frame["correct"].all()
    assert frame["fits"].all()
    assert (frame["token_accuracy"] == 1.0).all()
    for row in frame.itertuples():
        tasks = {t.id: t for t in corpus.tasks}
        truth = tasks[row.task].queries[row.query].output
        assert (row.height, row.width) == truth.shape
        assert row.grid == np.ascontiguousarray(truth).tobytes()


def test_the_recipe_that_is_undone_is_that_of_the_variant() -> None:
    """The same answers read with the recipes of other variants are wrong."""
    rng = np.random.default_rng(0)
    corpus = make_corpus([make_task("a", recolour(rng), rng, side=3)], variants=8)
    ((episodes, index, variant),) = all_variants(corpus, held_out(corpus))
    batch = corpus.assemble(episodes, index, variant)
    logits = torch.nn.functional.one_hot(batch.labels, 12).float()
    encoded = torch.ones(len(batch)).bool()
    output = StepOutput(
        logits, torch.zeros(len(batch)), {}, encoded, Encoded(logits), "stablemax_cross_entropy"
    )
    losses, steps = sample_losses(output, batch.labels), torch.ones(len(batch)).long()
    correct = []
    for puzzle in (batch.puzzle, batch.puzzle.roll(1)):
        batch.puzzle = puzzle
        decoded = Decoded(index, variant, batch, output, losses, steps)
        rows = Answers(corpus, episodes, decoded).table()
        correct.append(sum(map(bool, rows["correct"].to_pylist())))
    assert correct[0] == len(batch)
    assert correct[1] < len(batch) / 2


@pytest.mark.usefixtures("oracle")
def test_outputs_that_do_not_fit_are_wrong() -> None:
    rng = np.random.default_rng(0)
    small = grid(rng, 2, 2)
    task = Task(
        "grows", (Pair(small, small),), (Pair(small, grid(rng, 5, 2)), Pair(small, grid(rng, 2, 2)))
    )
    corpus = make_corpus([task], variants=8)
    lanes = held_out(corpus, (3,))
    model = model_of("standard", corpus)
    frame = table_of(model, corpus, lanes).to_pandas()
    assert not frame.loc[frame["query"] == 0, "correct"].any()
    assert not frame.loc[frame["query"] == 0, "fits"].any()
    assert frame.loc[frame["query"] == 1, "correct"].all()
    found = mean_metrics(model, corpus, all_variants(corpus, lanes), HALTING, 8, F32)
    assert found["exact_accuracy"] == 0.5
    assert found["accuracy"] == 1.0


def test_unknown_outputs_are_neither_right_nor_wrong() -> None:
    rng = np.random.default_rng(0)
    task = make_task("a", recolour(rng), rng)
    task = Task("a", task.demos, (Pair(task.queries[0].input, None), *task.queries))
    corpus = make_corpus([task])
    model = model_of("standard", corpus)
    frame = table_of(model, corpus).to_pandas()
    unknown = frame[frame["query"] == 0]
    assert len(unknown) > 0
    for name in ("fits", "correct", "token_accuracy", "lm_loss", "q_halt_loss", "q_halt_right"):
        assert unknown[name].isna().all()
        assert frame.loc[frame["query"] == 1, name].notna().all()
    lanes = all_variants(corpus, held_out(corpus))
    found = mean_metrics(model, corpus, lanes, HALTING, 3, F32)
    (labelled,) = group_by_lane(corpus, held_out_questions(corpus)[1:], lanes_of(4))
    again = group_by_lane(corpus, held_out_questions(corpus)[1:], lanes_of(3, 4))
    assert len(labelled) == 1
    only = mean_metrics(model, corpus, all_variants(corpus, again), HALTING, 3, F32)
    assert found == pytest.approx(only)


def test_predictions_are_the_answers_of_the_model(corpus: Corpus) -> None:
    """Rebuilt by hand from one question at a time."""
    model = model_of("standard", corpus)
    frame = table_of(model, corpus).to_pandas().set_index(["task", "query", "variant"])
    for episodes, index, variant in all_variants(corpus, held_out(corpus)):
        for e, v in zip(index.tolist(), variant.tolist(), strict=True):
            task, lane = int(episodes.task[e]), episodes.lane
            batch = corpus.assemble(episodes, torch.tensor([e]), torch.tensor([v]))
            output = steps_of(model, batch, HALTING.max_steps)[-1]
            tokens = output.logits.argmax(dim=-1).reshape(1, lane.rows, lane.columns).numpy()
            puzzle = int(corpus.first_puzzle[task]) + v
            colours = tuple(corpus.permutation[puzzle].tolist())
            expected = Augmentation(int(corpus.dihedral[puzzle]), colours).inverse(crop(tokens)[0])
            query = int(episodes.query[e])
            row = frame.loc[(corpus.tasks[task].id, query - corpus.query_pairs[task].start, v)]
            assert (row["height"], row["width"]) == expected.shape
            assert row["grid"] == expected.tobytes()
            assert row["q_halt"] == pytest.approx(float(output.q_halt), abs=1e-3)
            assert row["correct"] == np.array_equal(expected, corpus.pairs[query].output)


# --- metrics ---


def test_metrics_are_means_over_all_questions(corpus: Corpus) -> None:
    model = model_of("standard", corpus)
    lanes = all_variants(corpus, held_out(corpus))
    found = [mean_metrics(model, corpus, lanes, HALTING, size, F32) for size in (5, 64)]
    assert found[0] == pytest.approx(found[1], rel=1e-6, abs=1e-6)
    frame = table_of(model, corpus).to_pandas()
    # Held-out answers have the columns of the same means.
    columns = {"accuracy": "token_accuracy", "lm_loss": "lm_loss", "q_halt_loss": "q_halt_loss"}
    for name, column in (columns | {"q_halt_accuracy": "q_halt_right"}).items():
        assert found[0][f"{name}"] == pytest.approx(frame[column].mean(), rel=1e-6, abs=1e-6), name
    assert found[0]["steps"] == HALTING.max_steps


@pytest.mark.usefixtures("oracle")
def test_exact_means_every_token_and_correct_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong EOS costs exactness of tokens, not of the grid that is read off."""
    rng = np.random.default_rng(0)
    corpus = make_corpus([make_task("a", recolour(rng), rng, side=2)])
    told = etrm.evaluation.decode.decode

    def wrong_eos(*arguments: Any) -> Any:
        output, steps = told(*arguments)
        answer = output.logits.argmax(dim=-1)
        first = (answer == EOS).float().argmax(dim=1)
        output.logits[torch.arange(len(first)), first] = 0.0
        return output, steps

    monkeypatch.setattr("etrm.evaluation.decode.decode", wrong_eos)
    lanes = held_out(corpus, (4,))
    model = model_of("standard", corpus)
    frame = table_of(model, corpus, lanes).to_pandas()
    assert frame["correct"].all()
    assert (frame["token_accuracy"] < 1).all()
    found = mean_metrics(model, corpus, all_variants(corpus, lanes), HALTING, 8, F32)
    assert found["exact_accuracy"] == 0.0


# --- embeddings ---


def test_embeddings_are_looked_up_by_puzzle(corpus: Corpus) -> None:
    """One row of the table changes the answers about its task and variant only."""
    model = model_of("embedding", corpus)
    before = table_of(model, corpus).to_pandas()
    task, variant = 2, 1
    with torch.no_grad():
        model.context.weights[int(corpus.first_puzzle[task]) + variant] += 5.0
    after = table_of(model, corpus).to_pandas()
    changed = before["q_halt"] != after["q_halt"]
    expected = (before["task"] == corpus.tasks[task].id) & (before["variant"] == variant)
    assert expected.any()
    assert changed.tolist() == expected.tolist()


# --- halting early ---


@pytest.mark.parametrize("source", ["embedding", "standard"])
def test_halting_early_keeps_the_answer_of_the_first_stop(source: str, corpus: Corpus) -> None:
    halting = HaltingConfig(max_steps=6)
    model = model_of(source, corpus)
    _, batch = undecided(model, corpus, 6)
    outputs = steps_of(model, batch, 6)
    answer, steps = decode(model, batch, halting, F32, halt_early=True)
    seen = set()
    for i in range(len(batch)):
        stops = [n for n, out in enumerate(outputs) if float(out.q_halt[i]) > 0]
        last = stops[0] if stops else 5
        seen.add(last)
        assert int(steps[i]) == last + 1
        assert torch.allclose(answer.logits[i], outputs[last].logits[i], atol=1e-4)
        assert float(answer.q_halt[i]) == pytest.approx(float(outputs[last].q_halt[i]), abs=1e-4)
    assert len(seen) > 1
    full, every = decode(model, batch, halting, F32)
    assert every.tolist() == [6] * len(batch)
    assert torch.allclose(full.logits, outputs[-1].logits, atol=1e-4)


def test_halting_early_ends_when_all_have_stopped(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("standard", corpus)
    with torch.no_grad():
        model.decoder.q_head.bias += 100.0
    calls: list[int] = []
    step = act_step
    monkeypatch.setattr(
        "etrm.evaluation.decode.act_step", lambda *a, **k: (calls.append(1), step(*a, **k))[1]
    )
    table = table_of(model, corpus, batch_size=1000, halt_early=True)
    assert set(table.column("steps").to_pylist()) == {1}
    assert len(calls) == 2  # one for each lane


@pytest.mark.parametrize("halt_early", [False, True])
def test_every_act_step_has_its_accuracy(halt_early: bool, corpus: Corpus) -> None:
    """From the same pass: of the answer that stands after each step."""
    halting = HaltingConfig(max_steps=5)
    model = model_of("standard", corpus)
    chosen, batch = undecided(model, corpus, 5)
    outputs = steps_of(model, batch, 5)
    shown = batch.labels != 0
    each = torch.stack([((o.logits.argmax(-1) == batch.labels) & shown).sum(1) for o in outputs], 1)
    expected = each / shown.sum(1, keepdim=True)  # [B, 5]
    if halt_early:
        stops = [
            [n for n in range(5) if float(outputs[n].q_halt[i]) > 0] for i in range(len(batch))
        ]
        for row, found in zip(expected, stops, strict=True):
            row[(found or [4])[0] :] = row[(found or [4])[0]].clone()
    config = EvaluationConfig(halt_early=halt_early, batch_size=1000)
    (table,) = predict_batches(model, corpus, [chosen], halting, config, F32)
    found = np.array(table["accuracy_by_step"].to_pylist())
    assert found == pytest.approx(expected.numpy(), abs=1e-6)
    assert found[:, -1] == pytest.approx(table["token_accuracy"].to_numpy())
    means = means_by_step(table)
    assert means["accuracy"] == pytest.approx(found.mean(0))
    assert len(set(means["accuracy"])) > 1, "steps differ"


def test_exact_by_step_is_of_known_outputs_that_fit() -> None:
    """Of five predictions one has no known output, and one a true output larger than its canvas."""
    rows = {
        "accuracy_by_step": [[0.5, 1.0], [1.0, 1.0], [0.0, 0.25], [1.0, 1.0], None],
        "fits": [True, True, True, False, None],
    }
    kinds = {name: PREDICTIONS.field(name).type for name in rows}
    table = pa.table({name: pa.array(values, kinds[name]) for name, values in rows.items()})
    found = means_by_step(table)
    assert found == {"accuracy": [0.625, 0.8125], "exact_accuracy": [0.25, 0.5]}
    assert means_by_step(table.slice(4)) == {}


def test_demos_are_encoded_once(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("standard", corpus)
    calls: list[int] = []
    forward = model.context.forward
    monkeypatch.setattr(
        model.context, "forward", lambda b, s: (calls.append(len(b)), forward(b, s))[1]
    )
    table = table_of(model, corpus, batch_size=5)
    assert sum(calls) == len(table)


def test_colours_of_answers_are_undone_with_their_offset() -> None:
    """Token ids are colours + 2; a canvas of PAD is an empty grid."""
    canvas = np.full((1, 2, 2), COLOR_OFFSET + 3)
    assert crop(canvas)[0].tolist() == [[3, 3], [3, 3]]
    assert Augmentation(1, tuple(range(10))).inverse(crop(canvas * 0)[0]).shape == (0, 0)
