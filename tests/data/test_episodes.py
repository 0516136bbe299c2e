"""The questions that are asked, their lanes, and the content of training batches."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from tiny import (
    demos_of,
    grid,
    lanes_of,
    make_corpus,
    make_task,
    make_tasks,
    make_variants,
    recolour,
)

from etrm.arc.augment import Augmentation
from etrm.arc.grid import PAD, choose_lane
from etrm.arc.task import Pair, Task
from etrm.config.data import EpisodesConfig
from etrm.data.corpus import Corpus
from etrm.data.episodes import (
    CanvasError,
    Sampler,
    group_by_lane,
    held_out_questions,
    training_questions,
)

CONFIG = EpisodesConfig(canvas=lanes_of(3, 4))


def sampler(
    corpus: Corpus,
    sides: tuple[int, ...] = (4,),
    slots: torch.Tensor | None = None,
    seed: int = 0,
    held_out: tuple[str, ...] = (),
    **config: object,
) -> Sampler:
    settings = EpisodesConfig(canvas=lanes_of(*sides), **config)  # type: ignore[arg-type]
    questions = training_questions(corpus, held_out, settings, needs_demos=True)
    (episodes,) = group_by_lane(corpus, questions, settings.canvas, see_answers=True)
    slots = torch.arange(16) if slots is None else slots
    return Sampler(corpus, episodes, slots, seed, settings)


def big_task(name: str, height: int, width: int, out: tuple[int, int]) -> Task:
    rng = np.random.default_rng(height)
    demo, query = (Pair(grid(rng, height, width), grid(rng, *out)) for _ in range(2))
    return Task(name, (demo,), (query,))


def lone_task(demos: int) -> Task:
    rng = np.random.default_rng(0)
    return make_task("a", recolour(rng), rng, demos=demos)


# --- questions ---


def test_leave_one_out_asks_every_pair_about_the_others() -> None:
    corpus = make_corpus()
    questions = training_questions(corpus, (), CONFIG, needs_demos=True)
    for task in range(len(corpus.tasks)):
        every = {*corpus.demo_pairs[task], *corpus.query_pairs[task]}
        mine = [q for q in questions if q.task == task]
        assert [q.query for q in mine] == sorted(every)
        assert all(set(q.demos) == every - {q.query} for q in mine)
        assert all(len(q.demos) == len(every) - 1 for q in mine)


def test_test_pairs_and_evaluation_ask_the_test_pairs_about_the_demos() -> None:
    corpus = make_corpus()
    expected = [
        (task, query, tuple(corpus.demo_pairs[task]))
        for task, queries in enumerate(corpus.query_pairs)
        for query in queries
    ]
    config = dataclasses.replace(CONFIG, queries="test_pairs")
    training = training_questions(corpus, (), config, needs_demos=True)
    for questions in (training, held_out_questions(corpus)):
        assert [(q.task, q.query, q.demos) for q in questions] == expected


@pytest.mark.parametrize("queries", ["leave_one_out", "test_pairs"])
def test_test_pairs_of_held_out_tasks_are_neither_asked_nor_shown(queries: str) -> None:
    corpus = make_corpus()
    config = dataclasses.replace(CONFIG, queries=queries)
    questions = training_questions(corpus, [corpus.tasks[1].id], config, needs_demos=False)
    secret = set(corpus.query_pairs[1])
    assert not any(secret & {q.query, *q.demos} for q in questions)
    asked = [q.query for q in questions if q.task == 1]
    assert asked == ([*corpus.demo_pairs[1]] if queries == "leave_one_out" else [])


def test_pairs_without_an_output_are_neither_asked_nor_shown() -> None:
    task = lone_task(demos=2)
    corpus = make_corpus([Task("a", task.demos, (Pair(task.queries[0].input, None),))])
    questions = training_questions(corpus, (), CONFIG, needs_demos=True)
    assert [(q.query, q.demos) for q in questions] == [(0, (1,)), (1, (0,))]


def test_a_lone_pair_is_asked_only_where_no_demo_is_needed() -> None:
    corpus = make_corpus([lone_task(demos=1)])
    assert training_questions(corpus, ["a"], CONFIG, needs_demos=True) == []
    (question,) = training_questions(corpus, ["a"], CONFIG, needs_demos=False)
    assert question.demos == ()


# --- lanes ---


def test_questions_stand_on_the_smallest_lane_that_holds_them() -> None:
    tasks = [big_task("a", 2, 3, (3, 3)), big_task("b", 4, 2, (2, 2)), big_task("c", 3, 3, (3, 3))]
    corpus = make_corpus(tasks)
    found = group_by_lane(corpus, held_out_questions(corpus), lanes_of(3, 4, 30))
    expected = zip(lanes_of(3, 4), ([0, 2], [1]), strict=True)
    assert [(lane.lane, lane.task.tolist()) for lane in found] == [*expected]
    corpus, sides = make_corpus(make_tasks(6, side=6)), lanes_of(3, 4, 5, 6, 12, 30)
    for lane in group_by_lane(corpus, held_out_questions(corpus), sides):
        for task, query in zip(lane.task.tolist(), lane.query.tolist(), strict=True):
            demos = corpus.tasks[task].demos
            assert lane.lane == choose_lane(demos, corpus.pairs[query].input, sides)


def test_the_lane_of_evaluation_does_not_look_at_the_answer() -> None:
    task = big_task("a", 2, 2, (2, 2))
    large = grid(np.random.default_rng(0), 5, 5)
    corpus = make_corpus([Task("a", task.demos, (Pair(task.queries[0].input, large),))])
    for see_answers, expected in ((False, (3, [False])), (True, (6, [True]))):
        (lane,) = group_by_lane(
            corpus, held_out_questions(corpus), lanes_of(3, 6), None, see_answers
        )
        assert (lane.lane.rows, lane.fits.tolist()) == expected


def test_grids_larger_than_the_largest_lane_are_an_error_that_names_their_tasks() -> None:
    sizes = {"fine": (2, 2), "tall": (7, 2), "wide": (2, 9)}
    corpus = make_corpus([big_task(name, *size, (2, 2)) for name, size in sizes.items()])
    with pytest.raises(CanvasError, match=r"\[3, 6\].*tall \(7x2 cells\), wide \(2x9 cells\)"):
        group_by_lane(corpus, held_out_questions(corpus), lanes_of(3, 6))
    corpus = make_corpus([big_task("grows", 2, 2, (5, 5))])  # a training answer
    questions = training_questions(corpus, (), CONFIG, needs_demos=True)
    with pytest.raises(CanvasError, match="grows"):
        group_by_lane(corpus, questions, lanes_of(3, 4), see_answers=True)


def test_max_demos_keeps_the_first() -> None:
    corpus = make_corpus()
    (lane,) = group_by_lane(corpus, held_out_questions(corpus), lanes_of(4), max_demos=2)
    expected = [[*corpus.demo_pairs[task]][:2] for task in lane.task.tolist()]
    assert demos_of(lane).tolist() == expected


# --- batches ---


def assert_equal_batches(one: Sampler, two: Sampler, steps: range) -> None:
    for step in steps:
        tensors = one.batch(step).tensors(), two.batch(step).tensors()
        assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


@pytest.mark.parametrize("draw", ["question", "task"])
def test_a_batch_is_a_function_of_seed_and_step(draw: str) -> None:
    first = sampler(make_corpus(), draw=draw)
    assert_equal_batches(first, sampler(make_corpus(), draw=draw), range(0, 999, 333))
    other = sampler(make_corpus(), seed=1, draw=draw)
    assert not torch.equal(other.batch(1).inputs, first.batch(1).inputs)
    assert not torch.equal(first.batch(2).inputs, first.batch(1).inputs)


@pytest.mark.parametrize("draw", ["question", "task"])
def test_a_batch_does_not_depend_on_how_slots_are_split(draw: str) -> None:
    corpus, slots = make_corpus(), torch.arange(12)
    whole = sampler(corpus, slots=slots, draw=draw)
    parts = [sampler(corpus, slots=part, draw=draw) for part in (slots[0::2], slots[1::2])]
    order = torch.cat([part.slots for part in parts]).argsort()
    for step in (1, 2):
        pieces = [part.batch(step).tensors() for part in parts]
        for name, tensor in whole.batch(step).tensors().items():
            assert torch.equal(torch.cat([piece[name] for piece in pieces])[order], tensor)


def test_every_question_and_variant_is_drawn_about_equally_often() -> None:
    corpus = make_corpus()
    drawn = sampler(corpus, slots=torch.arange(64), translate=False)
    episodes = drawn.episodes

    def looks(batch) -> list[tuple]:
        rows = zip(batch.puzzle.tolist(), batch.inputs.tolist(), batch.labels.tolist(), strict=True)
        return [(puzzle, *inputs, *labels) for puzzle, inputs, labels in rows]

    known = {}  # the look of a sample → its question and variant
    for e in range(len(episodes)):
        variants = torch.arange(int(corpus.variant_count[episodes.task[e]]))
        found = looks(corpus.assemble(episodes, torch.full_like(variants, e), variants))
        known |= {look: (e, v) for v, look in enumerate(found)}
    seen = Counter(known[look] for step in range(200) for look in looks(drawn.batch(step)))
    assert set(seen) == set(known.values())
    by_episode = Counter(e for e, _ in seen.elements())
    mean = sum(by_episode.values()) / len(episodes)
    assert all(abs(n - mean) < 6 * mean**0.5 for n in by_episode.values())
    for e, total in by_episode.items():
        counts = [n for (episode, _), n in seen.items() if episode == e]
        share = total / len(counts)
        assert all(abs(n - share) < 6 * share**0.5 for n in counts)


@pytest.mark.parametrize(("draw", "expected"), [("task", [0.25] * 4), ("question", None)])
def test_tasks_are_drawn_alike_or_in_proportion_to_their_pairs(
    draw: str, expected: list[float] | None
) -> None:
    """Over all lanes, each with its weight; the questions of a task are as likely as each other."""
    rng = np.random.default_rng(0)
    sizes = [3, 4, 8, 60]
    tasks = [make_task(f"t{n}", recolour(rng), rng, demos=n - 1) for n in sizes[:3]]
    # Its questions are on two lanes: a larger input could grow threefold as well.
    small = [Pair(grid(rng, 1, 1), grid(rng, 3, 3)) for _ in range(20)]
    large = [Pair(grid(rng, 2, 2), grid(rng, 2, 2)) for _ in range(40)]
    corpus = make_corpus([*tasks, Task("many", (*small, *large[1:]), (large[0],))], variants=1)
    config = EpisodesConfig(canvas=lanes_of(3, 6), draw=draw)
    questions = training_questions(corpus, (), config, needs_demos=True)
    lanes = group_by_lane(corpus, questions, config.canvas, see_answers=True)
    assert [len(lane) for lane in lanes] == [35, 40]
    total = sum(lane.total_weight for lane in lanes)
    assert total == pytest.approx(4 if draw == "task" else sum(sizes))
    drawn = torch.zeros(len(corpus.pairs), dtype=torch.float64)
    steps, slots = 200, torch.arange(256)
    for lane in lanes:
        asks = Sampler(corpus, lane, slots, 0, config)
        for step in range(steps):
            query = lane.query[asks._choose(step, slots)[0]]
            share = lane.total_weight / total / (steps * len(slots))
            drawn.index_add_(0, query, torch.full((len(slots),), share, dtype=torch.float64))
    own = [drawn[[*d, *q]] for d, q in zip(corpus.demo_pairs, corpus.query_pairs, strict=True)]
    expected = [n / sum(sizes) for n in sizes] if expected is None else expected
    assert [float(each.sum()) for each in own] == pytest.approx(expected, rel=0.02)
    for each in own:
        assert each.tolist() == pytest.approx([float(each.mean())] * len(each), rel=0.2)


def content(tokens: torch.Tensor) -> tuple[tuple[int, int], np.ndarray]:
    """Row and column where the colours on a canvas begin, and the grid."""
    side = int(len(tokens) ** 0.5)
    canvas = tokens.numpy().reshape(side, side)
    rows, columns = np.nonzero(canvas > 1)
    top, left = int(rows.min()), int(columns.min())
    cells = canvas[top : rows.max() + 1, left : columns.max() + 1] - 2
    return (top, left), cells.astype(np.uint8)


def test_translation_moves_whole_pairs_and_stays_on_the_canvas() -> None:
    corpus, offsets = make_corpus(variants=1), set()
    known = {(p.input.tobytes(), p.input.shape): p.output for p in corpus.pairs}
    drawn = sampler(corpus, sides=(6,), slots=torch.arange(64))
    for step in range(8):
        batch = drawn.batch(step)
        demos = batch.demo_inputs[batch.demo_mask], batch.demo_outputs[batch.demo_mask]
        inputs, outputs = torch.cat([batch.inputs, demos[0]]), torch.cat([batch.labels, demos[1]])
        for left, right in zip(inputs, outputs, strict=True):
            place, found = content(left)
            out_place, out = content(right)
            assert np.array_equal(out, known[found.tobytes(), found.shape])
            assert place == out_place
            offsets.add(place)
    assert offsets == {(r, c) for r in range(5) for c in range(5)}


def test_query_and_demos_move_independently_or_not_at_all() -> None:
    corpus = make_corpus(variants=1)
    batch = sampler(corpus, sides=(30,), slots=torch.arange(32)).batch(1)
    query = [content(tokens)[0] for tokens in batch.inputs]
    first = [content(tokens)[0] for tokens in batch.demo_inputs[:, 0]]
    assert sum(a == b for a, b in zip(query, first, strict=True)) < 5
    assert len(set(query)) > 20
    batch = sampler(corpus, sides=(30,), translate=False).batch(1)
    for tokens in (*batch.inputs, *batch.labels, *batch.demo_inputs[batch.demo_mask]):
        assert content(tokens)[0] == (0, 0)


def test_more_demos_than_the_most_are_a_random_subset() -> None:
    corpus = make_corpus([lone_task(demos=5)], variants=1)
    known = {p.input.tobytes(): i for i, p in enumerate(corpus.pairs)}
    drawn = sampler(corpus, max_demos=2, translate=False, slots=torch.arange(64))
    seen = set()
    for step in range(10):
        batch = drawn.batch(step)
        assert batch.demo_mask.shape == (64, 2)
        assert bool(batch.demo_mask.all())
        for shown in torch.cat([batch.inputs[:, None], batch.demo_inputs], dim=1):
            query, *demos = (known[content(tokens)[1].tobytes()] for tokens in shown)
            assert len({query, *demos}) == 3
            seen.add((query, tuple(sorted(demos))))
    assert len(seen) == 6 * 10  # each query with each two of the five others


def test_a_subset_prefers_demos_that_exist_and_never_holds_the_query() -> None:
    drawn = sampler(make_corpus(variants=2), max_demos=2, translate=False)  # 3 to 6 pairs a task
    for step in range(20):
        batch = drawn.batch(step)
        assert bool(batch.demo_mask.all())
        assert not bool((batch.demo_inputs == batch.inputs[:, None]).all(dim=-1).any())


def test_poisoned_hidden_outputs_change_no_training_batch() -> None:
    """Whatever the test outputs of a held-out task are, training sees the same."""
    tasks = make_tasks()
    hidden, variants = tasks[1], make_variants(tasks)
    poison = np.full((3, 3), 9, dtype=np.uint8)
    queries = tuple(Pair(query.input, poison) for query in hidden.queries)
    other = [Task(hidden.id, hidden.demos, queries) if t is hidden else t for t in tasks]
    corpora = Corpus(tasks, variants), Corpus(other, variants)
    for mode in ("leave_one_out", "test_pairs"):
        safe = [sampler(corpus, held_out=(hidden.id,), queries=mode) for corpus in corpora]
        assert_equal_batches(*safe, range(30))
    with pytest.raises(AssertionError):  # where it is not held out
        assert_equal_batches(*map(sampler, corpora), range(30))


def test_input_and_output_of_a_pair_are_transformed_alike() -> None:
    """Undoing a puzzle's recipe on both gives a pair of the task."""
    corpus = make_corpus()
    known = {(p.input.tobytes(), p.output.tobytes()) for p in corpus.pairs if p.output is not None}
    batch = sampler(corpus).batch(3)
    for i, puzzle in enumerate(batch.puzzle.tolist()):
        recipe = Augmentation(int(corpus.dihedral[puzzle]), corpus.permutation[puzzle].tolist())
        grids = [content(tokens)[1] for tokens in (batch.inputs[i], batch.labels[i])]
        assert tuple(recipe.inverse(grid).tobytes() for grid in grids) in known
    assert int((batch.labels == PAD).sum()) > 0
