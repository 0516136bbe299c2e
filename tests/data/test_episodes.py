"""Which questions are asked, on which lane, and what a training batch may show."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from tiny import grid, make_corpus, make_task, make_tasks, make_variants, recolour

from etrm.arc.augment import DIHEDRAL_INVERSE, apply_dihedral
from etrm.arc.grid import PAD, canvas_side
from etrm.arc.task import Pair, Task
from etrm.config.study import EpisodesConfig
from etrm.data.corpus import Corpus
from etrm.data.episodes import (
    CanvasError,
    Sampler,
    group_by_lane,
    held_out_questions,
    training_questions,
)

CONFIG = EpisodesConfig(canvas=(3, 4))


def sampler(
    corpus: Corpus,
    lanes: tuple[int, ...] = (4,),
    slots: torch.Tensor | None = None,
    seed: int = 0,
    held_out: tuple[str, ...] = (),
    **config: object,
) -> Sampler:
    settings = EpisodesConfig(canvas=lanes, **config)  # type: ignore[arg-type]
    questions = training_questions(corpus, held_out, settings, needs_demos=True)
    (episodes,) = group_by_lane(corpus, questions, lanes, see_answers=True)
    slots = torch.arange(16) if slots is None else slots
    return Sampler(corpus, episodes, slots, seed, settings)


def big_task(name: str, height: int, width: int, out: tuple[int, int], demos: int = 1) -> Task:
    rng = np.random.default_rng(height)
    pairs = [Pair(grid(rng, height, width), grid(rng, *out)) for _ in range(demos + 1)]
    return Task(name, tuple(pairs[:-1]), (pairs[-1],))


# --- questions ---


def test_leave_one_out_asks_every_pair_about_the_others() -> None:
    corpus = make_corpus()
    questions = training_questions(corpus, (), CONFIG, needs_demos=True)
    for task, (demos, queries) in enumerate(
        zip(corpus.demo_pairs, corpus.query_pairs, strict=True)
    ):
        every = [*demos, *queries]
        mine = [q for q in questions if q.task == task]
        assert [q.query for q in mine] == every
        for question in mine:
            assert question.query not in question.demos
            assert sorted((question.query, *question.demos)) == every


def test_test_pairs_asks_only_the_test_pairs_about_the_demos() -> None:
    corpus = make_corpus()
    config = dataclasses.replace(CONFIG, queries="test_pairs")
    questions = training_questions(corpus, (), config, needs_demos=True)
    expected = [
        (task, query, tuple(corpus.demo_pairs[task]))
        for task, queries in enumerate(corpus.query_pairs)
        for query in queries
    ]
    assert [(q.task, q.query, q.demos) for q in questions] == expected


@pytest.mark.parametrize("queries", ["leave_one_out", "test_pairs"])
def test_test_pairs_of_held_out_tasks_are_neither_asked_nor_shown(queries: str) -> None:
    corpus = make_corpus()
    hidden = corpus.tasks[1].id
    config = dataclasses.replace(CONFIG, queries=queries)
    questions = training_questions(corpus, [hidden], config, needs_demos=False)
    secret = set(corpus.query_pairs[1])
    assert not any(secret & {q.query, *q.demos} for q in questions)
    asked = [q.query for q in questions if q.task == 1]
    assert asked == ([*corpus.demo_pairs[1]] if queries == "leave_one_out" else [])


def test_pairs_without_an_output_are_neither_asked_nor_shown() -> None:
    rng = np.random.default_rng(0)
    task = make_task("a", recolour(rng), rng, demos=2)
    task = Task("a", task.demos, (Pair(task.queries[0].input, None),))
    corpus = make_corpus([task])
    questions = training_questions(corpus, (), CONFIG, needs_demos=True)
    assert [q.query for q in questions] == [0, 1]
    assert {d for q in questions for d in q.demos} == {0, 1}


def test_a_lone_pair_is_asked_only_where_no_demo_is_needed() -> None:
    rng = np.random.default_rng(0)
    task = make_task("a", recolour(rng), rng, demos=1)
    corpus = make_corpus([task])
    assert training_questions(corpus, ["a"], CONFIG, needs_demos=True) == []
    (question,) = training_questions(corpus, ["a"], CONFIG, needs_demos=False)
    assert question.demos == ()


def test_evaluation_asks_each_test_input_with_all_demos() -> None:
    corpus = make_corpus()
    questions = held_out_questions(corpus)
    asked = [(q.task, q.query) for q in questions]
    assert asked == [(t, q) for t, pairs in enumerate(corpus.query_pairs) for q in pairs]
    assert all(q.demos == tuple(corpus.demo_pairs[q.task]) for q in questions)


# --- lanes ---


def test_questions_stand_on_the_smallest_lane_that_holds_them() -> None:
    tasks = [big_task("a", 2, 3, (3, 3)), big_task("b", 4, 2, (2, 2)), big_task("c", 3, 3, (3, 3))]
    corpus = make_corpus(tasks)
    lanes = group_by_lane(corpus, held_out_questions(corpus), (3, 4, 30))
    assert [(lane.side, lane.task.tolist()) for lane in lanes] == [(3, [0, 2]), (4, [1])]


def test_the_lane_of_evaluation_does_not_look_at_the_answer() -> None:
    task = big_task("a", 2, 2, (2, 2))
    large = grid(np.random.default_rng(0), 5, 5)
    answered = Task("a", task.demos, (Pair(task.queries[0].input, large),))
    corpus = make_corpus([answered])
    (blind,) = group_by_lane(corpus, held_out_questions(corpus), (3, 6))
    assert (blind.side, blind.fits.tolist()) == (3, [False])
    (seeing,) = group_by_lane(corpus, held_out_questions(corpus), (3, 6), see_answers=True)
    assert (seeing.side, seeing.fits.tolist()) == (6, [True])


def test_lanes_are_those_of_the_canvas_rule() -> None:
    corpus = make_corpus(make_tasks(6, side=6))
    for lane in group_by_lane(corpus, held_out_questions(corpus), (3, 4, 5, 6, 12, 30)):
        for task, query in zip(lane.task.tolist(), lane.query.tolist(), strict=True):
            demos = corpus.tasks[task].demos
            expected = canvas_side(demos, corpus.pairs[query].input, (3, 4, 5, 6, 12, 30))
            assert lane.side == expected


def test_grids_larger_than_the_largest_lane_are_an_error_that_names_their_tasks() -> None:
    tasks = [
        big_task("fine", 2, 2, (2, 2)),
        big_task("tall", 7, 2, (2, 2)),
        big_task("wide", 2, 9, (2, 2)),
    ]
    corpus = make_corpus(tasks)
    with pytest.raises(CanvasError, match=r"lanes \[3, 6\].*tall \(7 cells\), wide \(9 cells\)"):
        group_by_lane(corpus, held_out_questions(corpus), (3, 6))


def test_a_training_answer_larger_than_the_largest_lane_is_an_error() -> None:
    corpus = make_corpus([big_task("grows", 2, 2, (5, 5))])
    questions = training_questions(corpus, (), CONFIG, needs_demos=True)
    with pytest.raises(CanvasError, match="grows"):
        group_by_lane(corpus, questions, (3, 4), see_answers=True)


def test_max_demos_keeps_the_first() -> None:
    corpus = make_corpus()
    (lane,) = group_by_lane(corpus, held_out_questions(corpus), (4,), max_demos=2)
    assert lane.demos.shape[1] == 2
    for task, demos in zip(lane.task.tolist(), lane.demos.tolist(), strict=True):
        assert demos == [*corpus.demo_pairs[task]][:2]


# --- batches ---


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    first, again = sampler(make_corpus()), sampler(make_corpus())
    for step in (0, 1, 999):
        one, two = first.batch(step).tensors(), again.batch(step).tensors()
        assert all(torch.equal(one[name], two[name]) for name in one)
    other = sampler(make_corpus(), seed=1).batch(1)
    assert not torch.equal(other.inputs, first.batch(1).inputs)
    assert not torch.equal(first.batch(2).inputs, first.batch(1).inputs)


def test_a_batch_does_not_depend_on_how_slots_are_split() -> None:
    corpus = make_corpus()
    whole = sampler(corpus, slots=torch.arange(12))
    parts = [
        sampler(corpus, slots=slots) for slots in (torch.arange(12)[0::2], torch.arange(12)[1::2])
    ]
    order = torch.cat([part.slots for part in parts]).argsort()
    for step in (1, 2):
        pieces = [part.batch(step).tensors() for part in parts]
        for name, tensor in whole.batch(step).tensors().items():
            assert torch.equal(torch.cat([piece[name] for piece in pieces])[order], tensor)


def test_every_question_and_variant_is_drawn_about_equally_often() -> None:
    corpus = make_corpus()
    drawn = sampler(corpus, slots=torch.arange(64), translate=False)
    episodes, seen = drawn.episodes, Counter()
    labels = {}
    for e in range(len(episodes)):
        for v in range(int(corpus.variant_count[episodes.task[e]])):
            one = corpus.assemble(episodes, torch.tensor([e]), torch.tensor([v]))
            labels[(*one.puzzle.tolist(), *one.inputs[0].tolist(), *one.labels[0].tolist())] = (
                e,
                v,
            )
    for step in range(200):
        batch = drawn.batch(step)
        for row in zip(
            batch.puzzle.tolist(), batch.inputs.tolist(), batch.labels.tolist(), strict=True
        ):
            seen[labels[(row[0], *row[1], *row[2])]] += 1
    assert set(seen) == set(labels.values())
    by_episode = Counter(e for e, _ in seen.elements())
    mean = sum(by_episode.values()) / len(episodes)
    assert all(abs(n - mean) < 6 * mean**0.5 for n in by_episode.values())
    for e, total in by_episode.items():
        counts = [n for (episode, _), n in seen.items() if episode == e]
        share = total / len(counts)
        assert all(abs(n - share) < 6 * share**0.5 for n in counts)


def content(tokens: torch.Tensor, side: int) -> tuple[tuple[int, int], np.ndarray]:
    """Where the colours on a canvas begin, and the grid."""
    canvas = tokens.numpy().reshape(side, side)
    rows, columns = np.nonzero(canvas > 1)
    top, left = int(rows.min()), int(columns.min())
    return (top, left), canvas[top : rows.max() + 1, left : columns.max() + 1] - 2


def test_translation_moves_whole_pairs_and_stays_on_the_canvas() -> None:
    side, offsets = 6, set()
    corpus = make_corpus(variants=1)
    known = {(p.input.tobytes(), p.input.shape): p for p in corpus.pairs}
    drawn = sampler(corpus, lanes=(side,), slots=torch.arange(64))
    for step in range(8):
        batch = drawn.batch(step)
        for i in range(len(batch)):
            shown = [(batch.inputs[i], batch.labels[i])]
            for k in torch.nonzero(batch.demo_mask[i]).flatten().tolist():
                shown.append((batch.demo_inputs[i, k], batch.demo_outputs[i, k]))
            for left, right in shown:
                place, found = content(left, side)
                pair = known[found.astype(np.uint8).tobytes(), found.shape]
                out_place, out = content(right, side)
                assert pair.output is not None
                assert np.array_equal(out, pair.output)
                assert place == out_place
                offsets.add(place)
    reach = {(r, c) for r in range(5) for c in range(5)}
    assert offsets == reach


def test_query_and_demos_move_independently() -> None:
    corpus = make_corpus(variants=1)
    batch = sampler(corpus, lanes=(30,), slots=torch.arange(32)).batch(1)
    query = [content(tokens, 30)[0] for tokens in batch.inputs]
    first = [content(tokens, 30)[0] for tokens in batch.demo_inputs[:, 0]]
    same = sum(a == b for a, b in zip(query, first, strict=True))
    assert same < 5
    assert len(set(query)) > 20


def test_nothing_moves_where_translation_is_off() -> None:
    batch = sampler(make_corpus(), lanes=(30,), translate=False).batch(1)
    for tokens in (*batch.inputs, *batch.labels, *batch.demo_inputs[batch.demo_mask]):
        assert content(tokens, 30)[0] == (0, 0)


def test_more_demos_than_the_most_are_a_random_subset() -> None:
    rng = np.random.default_rng(0)
    corpus = make_corpus([make_task("a", recolour(rng), rng, demos=5)], variants=1)
    known = {p.input.tobytes(): i for i, p in enumerate(corpus.pairs)}
    drawn = sampler(corpus, max_demos=2, translate=False, slots=torch.arange(64))
    seen = Counter()
    for step in range(10):
        batch = drawn.batch(step)
        assert batch.demo_mask.shape == (64, 2)
        assert bool(batch.demo_mask.all())
        for i in range(len(batch)):
            query = known[content(batch.inputs[i], 4)[1].astype(np.uint8).tobytes()]
            demos = [
                known[content(tokens, 4)[1].astype(np.uint8).tobytes()]
                for tokens in batch.demo_inputs[i]
            ]
            assert len({query, *demos}) == 3
            seen[query, tuple(sorted(demos))] += 1
    assert len(seen) == 6 * 10  # each query with each two of the five others


def test_a_subset_prefers_demos_that_exist() -> None:
    corpus = make_corpus()  # tasks with three to six pairs
    batch = sampler(corpus, max_demos=2).batch(1)
    assert bool(batch.demo_mask.all())


def test_poisoned_hidden_outputs_change_no_training_batch() -> None:
    """Whatever the test outputs of a held-out task are, training sees the same."""
    tasks = make_tasks()
    hidden = tasks[1]
    poison = np.full((3, 3), 9, dtype=np.uint8)
    queries = tuple(Pair(query.input, poison) for query in hidden.queries)
    other = [Task(hidden.id, hidden.demos, queries) if t is hidden else t for t in tasks]
    variants = make_variants(tasks)
    for queries_mode in ("leave_one_out", "test_pairs"):
        pair = [
            sampler(Corpus(each, variants), held_out=(hidden.id,), queries=queries_mode)
            for each in (tasks, other)
        ]
        for step in range(30):
            one, two = (each.batch(step).tensors() for each in pair)
            assert all(torch.equal(one[name], two[name]) for name in one)
    leaky = [sampler(Corpus(each, variants)) for each in (tasks, other)]
    assert any(
        not torch.equal(leaky[0].batch(step).labels, leaky[1].batch(step).labels)
        for step in range(30)
    )


def test_a_query_is_never_among_its_own_demos() -> None:
    corpus = make_corpus(variants=2)
    drawn = sampler(corpus, max_demos=2, translate=False)
    for step in range(20):
        batch = drawn.batch(step)
        same = (batch.demo_inputs == batch.inputs[:, None]).all(dim=-1)
        assert not bool((same & batch.demo_mask).any())


def test_input_and_output_of_a_pair_are_transformed_alike() -> None:
    """Undoing a puzzle's recipe on both gives a pair of the task."""
    corpus = make_corpus()
    known = {(p.input.tobytes(), p.output.tobytes()) for p in corpus.pairs if p.output is not None}
    batch = sampler(corpus).batch(3)
    for i, puzzle in enumerate(batch.puzzle.tolist()):
        inverse = np.argsort(corpus.permutation[puzzle].numpy()).astype(np.uint8)
        back = DIHEDRAL_INVERSE[int(corpus.dihedral[puzzle])]
        grids = [content(t, 4)[1] for t in (batch.inputs[i], batch.labels[i])]
        undone = tuple(
            np.ascontiguousarray(apply_dihedral(inverse[g], back)).tobytes() for g in grids
        )
        assert undone in known
    assert int((batch.labels == PAD).sum()) > 0
