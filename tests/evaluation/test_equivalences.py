"""The same question gives the same answer however it is batched, ordered or put on lanes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import make_corpus, make_run, make_tasks, questions_of

from etrm.arc.grid import tokenize
from etrm.config.lanes import Lane
from etrm.data.corpus import Corpus, Episodes
from etrm.evaluation.decode import decode
from etrm.models.build import build_model


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return make_corpus([*make_tasks(2, side=2), *make_tasks(3, seed=1, side=4, prefix="large")])


def answers(
    source: str, corpus: Corpus, episodes: Episodes, index: torch.Tensor, variant: torch.Tensor
) -> torch.Tensor:
    """Logits [B, S, V] and halting logits as one tensor."""
    run = make_run(source)
    model = build_model(run, corpus.num_puzzles).eval()
    if source == "embedding":
        generator = torch.Generator().manual_seed(3)
        model.context.weights.copy_(torch.randn(model.context.weights.shape, generator=generator))
    with torch.no_grad():
        output, _ = decode(model, corpus.assemble(episodes, index, variant), run.halting)
    return torch.cat([output.logits.flatten(1), output.q_halt[:, None]], dim=1)


@pytest.mark.parametrize("source", ["embedding", "standard"])
def test_a_lane_is_the_padded_canvas_of_its_side(source: str, corpus: Corpus) -> None:
    """On lanes 2 and 4, questions of lane 4 are answered as with a canvas of 4 for everything."""
    lanes = questions_of(make_run(source, episodes={"canvas": [2, 4]}), corpus)
    [padded] = questions_of(make_run(source, episodes={"canvas": [4]}), corpus)
    [large] = [lane for lane in lanes if lane.lane == Lane(4, 4)]
    assert 0 < len(large) < len(padded)
    where = [padded.query.tolist().index(query) for query in large.query.tolist()]
    ours, theirs = torch.arange(len(large)), torch.tensor(where)
    variant = ours % 4
    torch.testing.assert_close(
        answers(source, corpus, large, ours, variant),
        answers(source, corpus, padded, theirs, variant),
        rtol=0,
        atol=1e-4,
    )


@pytest.mark.parametrize("source", ["embedding", "standard"])
def test_the_order_of_a_batch_changes_nothing(source: str, corpus: Corpus) -> None:
    [episodes] = questions_of(make_run(source, episodes={"canvas": [4]}), corpus)
    index = torch.arange(len(episodes))
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(episodes)))
    straight = answers(source, corpus, episodes, index, index % 4)
    mixed = answers(source, corpus, episodes, index[order], index[order] % 4)
    torch.testing.assert_close(mixed, straight[order], rtol=0, atol=1e-4)
    alone = [answers(source, corpus, episodes, i[None], i[None] % 4) for i in index]
    torch.testing.assert_close(torch.cat(alone), straight, rtol=0, atol=1e-4)


def test_a_canvas_of_30_is_the_official_layout(corpus: Corpus) -> None:
    [episodes] = questions_of(make_run(episodes={"canvas": [30]}), corpus)
    index = torch.arange(len(episodes))
    batch = corpus.assemble(episodes, index, torch.zeros_like(index))
    assert batch.inputs.shape == (len(episodes), 900)
    for i, query in enumerate(episodes.query.tolist()):
        pair = corpus.pairs[query]
        assert pair.output is not None
        np.testing.assert_array_equal(batch.inputs[i].numpy(), tokenize(pair.input, Lane(30, 30)))
        np.testing.assert_array_equal(batch.labels[i].numpy(), tokenize(pair.output, Lane(30, 30)))
