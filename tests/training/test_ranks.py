"""Two ranks do what one does: the same samples, sums, updates and rows; states know of no ranks."""

from __future__ import annotations

import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import UnevenHalting, make_corpus, make_run, questions_of, rows_of, two_lanes
from torch import Tensor

from etrm.models.build import build_model
from etrm.runtime.distributed import RankError, Ranks, ranks_of_this_run
from etrm.training.slots import SlotError
from etrm.training.trainer import Trainer

SOURCES = ("embedding", "standard")
STEPS, HALF = 12, 6
FAR = 2 * 1e-3 * STEPS  # two runs apart by their whole rate at every step
RANKS = 2


def trainer_of(source: str, ranks: Ranks, **train: Any) -> Trainer:
    """Seven slots in two lanes: neither the slots of a lane nor all of them come out even."""
    corpus = make_corpus(two_lanes())
    train = {"steps": STEPS, "batch_size": 7, "log_every": 3, "grad_clip": 0.5, **train}
    if source == "standard":
        train |= {"search_from": 8}  # after what is resumed
    draw = {"embedding": "question", "standard": "task"}[source]
    episodes = {"draw": draw, "canvas": [3, [4, 5]]}
    blocks: dict[str, Any] = {"halting": {"max_steps": 4}, "episodes": episodes}
    run = make_run(source, train=train, context=context_of(source), **blocks)
    model = build_model(run, corpus.num_puzzles)
    return UnevenHalting(run, model, corpus, questions_of(run, corpus), ranks)


def context_of(source: str) -> dict[str, Any]:
    contrast = {"contrastive_weight": 0.1, "contrastive_positives": "task"}
    return {"pairing": "aligned", **contrast} if source == "standard" else {}


def whole(source: str, ranks: Ranks, out: Path) -> None:
    """A run of all steps; its state at half time and at the end, its rows, its evaluation."""
    trainer = trainer_of(source, ranks)
    rows = rows_of(trainer, HALF)
    half = trainer.state_dict()
    if half is not None:
        torch.save(half, out / f"{source}_half{ranks.world_size}.pt")
    rows += rows_of(trainer, STEPS - HALF)
    evaluated, state = trainer.evaluate(), trainer.state_dict()
    assert (state is None) == (not ranks.is_rank_zero)
    if state is not None:
        result = {"rows": rows, "evaluated": evaluated, "state": state}
        torch.save(result, out / f"{source}_whole{ranks.world_size}.pt")


def resumed(source: str, ranks: Ranks, folder: Path, of: int) -> Trainer:
    """The second half, from a state that `of` ranks have saved."""
    trainer = trainer_of(source, ranks)
    trainer.load_state_dict(torch.load(folder / f"{source}_half{of}.pt"))
    rows_of(trainer, STEPS - HALF)
    return trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one rank and two ranks have made of the same runs."""
    out = tmp_path_factory.mktemp("ranks")
    for source in SOURCES:
        whole(source, Ranks(), out)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")  # all is imported already
    processes = [fork.Process(target=one_of_two, args=(rank, port, out)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=240)
    assert [process.exitcode for process in processes] == [0] * RANKS
    return out


def one_of_two(rank: int, port: int, out: Path) -> None:
    """A rank, in its process: the runs as one rank trains them, and second halves of both."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{k: str(v) for k, v in place.items()}}
    with ranks_of_this_run("cpu") as ranks:
        for source in SOURCES:
            whole(source, ranks, out)
            for of in (1, RANKS):
                ranks.barrier()
                state = resumed(source, ranks, out, of).state_dict()
                if state is not None:
                    torch.save(state, out / f"{source}_resumed{of}.pt")


def close(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Equal up to rounding, but for one number of a tensor in a thousand.

    A weight whose gradient is rounding alone moves by its whole rate: the optimizer has no scale.
    """
    assert set(first) == set(second)
    for name, tensor in first.items():
        far = ~torch.isclose(tensor, second[name], atol=tolerance, rtol=tolerance)
        assert int(far.sum()) <= tensor.numel() / 1000, name
        assert torch.allclose(tensor, second[name], atol=FAR), name


@pytest.mark.parametrize("source", SOURCES)
def test_two_ranks_equal_one(source: str, folder: Path) -> None:
    one, two = (torch.load(folder / f"{source}_whole{n}.pt") for n in (1, RANKS))
    close(one["state"]["model"], two["state"]["model"])
    close(one["state"]["ema"], two["state"]["ema"])
    for first, second in zip(*(each["state"]["bank"] for each in (one, two)), strict=True):
        assert torch.allclose(first, second, atol=1e-3)
        assert len(first) == (7 if source == "standard" else 0)  # keys of all slots, in their order
    shares = [each["state"]["lane_weights"]["share"] for each in (one, two)]
    assert torch.equal(*shares)
    assert float(shares[0][1]) > 0.7  # the lanes have weights
    assert [row["step"] for row in two["rows"]] == [3, 6, 9, 12]
    for first, second in zip(one["rows"], two["rows"], strict=True):
        assert second == pytest.approx(first, rel=1e-3, abs=1e-5)
    assert two["evaluated"] == pytest.approx(one["evaluated"], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("source", SOURCES)
def test_every_slot_takes_the_same_samples_on_two_ranks(source: str, folder: Path) -> None:
    """No sample is repeated, none is left out, each is in its place."""
    for name in ("half", "whole"):
        one, two = (torch.load(folder / f"{source}_{name}{n}.pt") for n in (1, RANKS))
        one, two = (found.get("state", found) for found in (one, two))
        assert [lane["side"] for lane in one["lanes"]] == [3, [4, 5]]
        for first, second in zip(one["lanes"], two["lanes"], strict=True):
            for key, tensor in first["batch"].items():
                assert torch.equal(tensor, second["batch"][key]), key
            assert torch.equal(first["steps"], second["steps"])


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("saved", "goes_on"), [(1, 2), (2, 1), (2, 2)])
def test_a_state_of_any_ranks_goes_on_with_any(
    source: str, saved: int, goes_on: int, folder: Path
) -> None:
    one = torch.load(folder / f"{source}_whole1.pt")["state"]
    if goes_on == 1:
        state: Any = resumed(source, Ranks(), folder, saved).state_dict()
    else:
        state = torch.load(folder / f"{source}_resumed{saved}.pt")
    close(state["model"], one["model"])
    assert state["window"] == one["window"]  # empty after a row on both


def test_more_ranks_than_slots_are_an_error() -> None:
    with pytest.raises(SlotError, match=r"batch_size: found 7, .* each of the 8 ranks"):
        trainer_of("embedding", Ranks(0, 8))


def test_slots_are_dealt_to_ranks() -> None:
    slots = torch.arange(3, 14)
    dealt = [Ranks(rank, 4).own(slots) for rank in range(4)]
    assert torch.cat(dealt).sort().values.tolist() == slots.tolist()
    assert {len(part) for part in dealt} == {2, 3}


def test_fewer_gpus_than_ranks_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(RankError, match=r"found 1 GPUs on this node, .*execution\.gpus"),
        ranks_of_this_run("cuda"),
    ):
        raise AssertionError("not reached")
