"""Decoding: questions × variants through a trained model, for scores and for metrics of training.

Shapes: B samples of a batch, N questions of a lane, S tokens of its canvas, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from etrm.arc.augment import Augmentation
from etrm.arc.grid import crop
from etrm.config.lanes import Lane
from etrm.config.study import EvaluationConfig, HaltingConfig
from etrm.data import counter_random as random
from etrm.data.batch import Batch
from etrm.data.corpus import Corpus, Episodes
from etrm.data.host_copies import HostCopies
from etrm.errors import UserError
from etrm.evaluation.metrics import EvaluationSums
from etrm.models.act import Carry, Model, StepOutput, act_step, empty_carry
from etrm.models.compute import Compute, computing
from etrm.models.losses import SampleLoss, right_cells, sample_losses
from etrm.models.memory import activation_budget, decoding_bytes
from etrm.runtime.distributed import Ranks

ONE = Ranks()

# Questions of one lane: its episodes, and index [N] and variant [N] of those that are asked.
LaneQuestions = tuple[Episodes, Tensor, Tensor]

COLUMNS = {
    "task": (pa.string(), "task id"),
    "query": (pa.int32(), "test input of the task, from 0"),
    "variant": (pa.int32(), "augmentation, 0 is the identity"),
    "height": (pa.uint8(), "rows of the predicted grid"),
    "width": (pa.uint8(), "columns of the predicted grid"),
    "grid": (pa.binary(), "its colours row by row, augmentation undone"),
    "q_halt": (pa.float32(), "halting logit"),
    "steps": (pa.int32(), "ACT steps used"),
    "fits": (pa.bool_(), "the true output fits the canvas"),
    "correct": (pa.bool_(), "equals the true output"),
    "token_accuracy": (pa.float32(), "share of right output tokens"),
    "lm_loss": (pa.float32(), "cross-entropy, mean over output tokens"),
    "q_halt_loss": (pa.float32(), "binary cross-entropy of the halting logit"),
    "q_halt_right": (pa.bool_(), "the halting logit's sign agrees with the output's correctness"),
    "accuracy_by_step": (pa.list_(pa.float32()), "token accuracy after each ACT step"),
}
PREDICTIONS = pa.schema(
    [pa.field(name, kind, metadata={"doc": doc}) for name, (kind, doc) in COLUMNS.items()]
)
ORDER = [(name, "ascending") for name in ("task", "query", "variant")]  # of their rows


class NotFiniteError(UserError):
    """Answers that are not finite: the weights are damaged, or their run diverged."""


@dataclass
class Decoded:
    """The answers of one batch: B samples of a lane."""

    index: Tensor  # [B] int64: episode
    variant: Tensor  # [B] int64
    batch: Batch
    output: StepOutput  # of each sample's last ACT step
    losses: SampleLoss
    steps: Tensor  # [B] int64: ACT steps used
    by_step: Tensor | None = None  # [B, max_steps]: token accuracy after each ACT step


@torch.no_grad()
def decode(
    model: Model,
    batch: Batch,
    halting: HaltingConfig,
    dtype: torch.dtype = torch.float32,
    halt_early: bool = False,
    by_step: list[Tensor] | None = None,
) -> tuple[StepOutput, Tensor]:
    """Run ACT for `max_steps`; return the answers and the steps used, int64 [B].

    With `halt_early` a sample keeps the answer of the first step at which its q-head says stop. The
    context is encoded once where the source has no state of its own. The token accuracy [B] of the
    answers after each of `max_steps` is appended to `by_step`, where it is given.
    """
    carry: Carry = empty_carry(model, batch, dtype)
    encoded = model.context(batch, None) if carry.state is None else None
    answer: StepOutput | None = None
    done = torch.zeros(len(batch), dtype=torch.bool, device=batch.inputs.device)
    steps = torch.zeros_like(carry.steps)
    for _ in range(halting.max_steps):
        carry, output = act_step(model, carry, batch, encoded=encoded)
        # Or the next step would start the sample anew.
        carry.halted = torch.zeros_like(carry.halted)
        steps = steps + ~done  # of those that had not stopped before this step
        if answer is None or not halt_early:
            answer = output
        else:
            answer.logits = torch.where(done[:, None, None], answer.logits, output.logits)
            answer.q_halt = torch.where(done, answer.q_halt, output.q_halt)
        if by_step is not None:
            right, count = right_cells(answer.logits, batch.labels)
            by_step.append(right.sum(dim=-1) / count.clamp(min=1))
        if halt_early:
            done = done | (output.q_halt > 0)  # sigmoid(q_halt) > 0.5
            if bool(done.all()):
                break
    assert answer is not None
    if by_step:  # all answers stand since the last step that was computed
        by_step += [by_step[-1]] * (halting.max_steps - len(by_step))
    return answer, steps


def decode_all(
    model: Model,
    corpus: Corpus,
    lanes: Sequence[LaneQuestions],
    halting: HaltingConfig,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
    halt_early: bool = False,
    by_step: bool = False,
    memory: float | None = None,
) -> Iterator[tuple[Episodes, Decoded]]:
    """Yield the answers to each (episode index, variant) of each lane exactly once, in batches.

    A batch that takes more than `memory`, in bytes (None: the share of the machine's that
    activations may take), is decoded in pieces.
    """
    budget = activation_budget(corpus.device) if memory is None else memory
    pieces = cut_to_memory(model, in_batches(lanes, batch_size), dtype.itemsize, budget)
    training = model.training  # the mode to restore
    model.eval()
    try:
        for episodes, i, v, batch in batches(corpus, pieces, batch_size):
            accuracies: list[Tensor] | None = [] if by_step else None
            with computing(model, Compute(dtype)):
                output, steps = decode(model, batch, halting, dtype, halt_early, accuracies)
            losses = sample_losses(output, batch.labels)
            each = torch.stack(accuracies, dim=1) if accuracies else None
            yield episodes, Decoded(i, v, batch, output, losses, steps, each)
    finally:
        model.train(training)


def batches(
    corpus: Corpus, lanes: Sequence[LaneQuestions], batch_size: int
) -> Iterator[tuple[Episodes, Tensor, Tensor, Batch]]:
    """Yield the questions of each lane in batches: the lane, episodes [B], variants [B], samples.

    All of a batch are of one lane.
    """
    asked = in_batches(lanes, batch_size)
    on_host = [i.cpu() for _, i, _ in asked]  # now: a copy waits for all that is queued before it
    for (episodes, i, v), index in zip(asked, on_host, strict=True):
        batch = corpus.assemble(episodes, i, v)
        batch.token_bounds = episodes.token_bounds(episodes.members(index))
        if batch.token_bounds is not None:
            batch.most_cells = batch.token_bounds.most_cells()
        yield episodes, i, v, batch


def in_batches(lanes: Sequence[LaneQuestions], batch_size: int) -> list[LaneQuestions]:
    """Return the questions of each batch, lane after lane."""
    return [
        (episodes, i, v)
        for episodes, index, variant in lanes
        for i, v in zip(index.split(batch_size), variant.split(batch_size), strict=True)
    ]


def cut_to_memory(
    model: Model, asked: Sequence[LaneQuestions], item: int, budget: float
) -> list[LaneQuestions]:
    """Return batches in equal pieces, of which each takes at most `budget` bytes, or is of one.

    `item`: bytes of a number.
    """
    pieces: list[LaneQuestions] = []
    for episodes, index, variant in asked:
        fitting = max(1, int(budget / decoding_bytes(model, episodes, index.cpu(), item)))
        count = -(-len(index) // fitting)  # rounded up
        parts = zip(index.tensor_split(count), variant.tensor_split(count), strict=True)
        pieces += [(episodes, *part) for part in parts]
    return pieces


def all_variants(
    corpus: Corpus, episodes: Sequence[Episodes], limit: int | None = None
) -> list[LaneQuestions]:
    """Return every episode of each lane in every variant of its task, or in the first `limit`."""
    lanes = []
    for lane in episodes:
        counts = corpus.variant_count[lane.task]
        counts = counts if limit is None else counts.clamp(max=limit)
        index = torch.arange(len(lane), device=corpus.device).repeat_interleave(counts)  # [N]
        # Of each episode in `index`.
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)[:-1]])
        variant = torch.arange(len(index), device=corpus.device) - starts[index]
        lanes.append((lane, index, variant))
    return lanes


def thin_out(lanes: list[LaneQuestions], most: int | None, seed: int) -> list[LaneQuestions]:
    """Return at most `most` of all (episode, variant) pairs, the same for the same seed.

    Systematic sampling: one of each total / most in a row, lane after lane, shuffled within a lane.
    So each pair is as likely as any other, and each lane has its share of them, to less than one.
    """
    total = sum(len(index) for _, index, _ in lanes)
    if most is None or total <= most:
        return lanes
    device = lanes[0][1].device
    start = random.uniform(seed, len(lanes), random.SUBSET, torch.zeros(1, device=device))[:, 0]
    taken = ((torch.arange(most, device=device) + start) * (total / most)).long()  # [most]
    kept, first = [], 0
    for number, (episodes, index, variant) in enumerate(lanes):
        slots = torch.arange(len(index), device=device)
        order = random.uniform(seed, number, random.SUBSET, slots)[:, 0].argsort()  # a permutation
        of_lane = taken[(taken >= first) & (taken < first + len(index))] - first
        chosen = order[of_lane].sort().values
        if len(chosen):
            kept.append((episodes, index[chosen], variant[chosen]))
        first += len(index)
    return kept


def mean_metrics(
    model: Model,
    corpus: Corpus,
    lanes: list[LaneQuestions],
    halting: HaltingConfig,
    batch_size: int,
    dtype: torch.dtype,
    ranks: Ranks = ONE,
    memory: float | None = None,
) -> dict[str, float]:
    """Return means over the questions, and their number; a rank decodes each `world_size`-th.

    `memory`: see `decode_all`.
    """
    sums = EvaluationSums()
    lanes = [
        (e, i[ranks.rank :: ranks.world_size], v[ranks.rank :: ranks.world_size])
        for e, i, v in lanes
    ]
    given = model, corpus, lanes, halting, batch_size, dtype
    for episodes, d in decode_all(*given, memory=memory):
        # Cut off outputs are wrong.
        sums.add(d.losses, d.losses.exact & episodes.fits[d.index], d.steps)
    return sums.means(ranks)


def predict(
    model: Model,
    corpus: Corpus,
    lanes: Sequence[LaneQuestions],
    halting: HaltingConfig,
    config: EvaluationConfig,
    dtype: torch.dtype,
) -> pa.Table:
    """Return `predictions.parquet`: one row per (task, test input, variant), augmentation undone.

    Raises `NotFiniteError` as `predict_batches` does.
    """
    return in_order(list(predict_batches(model, corpus, lanes, halting, config, dtype)))


def in_order(tables: Sequence[pa.Table]) -> pa.Table:
    """Return the rows of several tables of predictions by task, test input and variant."""
    rows = pa.concat_tables([PREDICTIONS.empty_table(), *tables])
    columns = rows.sort_by(ORDER).combine_chunks().columns  # one chunk, however many tables
    return pa.table(columns, schema=PREDICTIONS)


def predict_batches(
    model: Model,
    corpus: Corpus,
    lanes: Sequence[LaneQuestions],
    halting: HaltingConfig,
    config: EvaluationConfig,
    dtype: torch.dtype,
) -> Iterator[pa.Table]:
    """Yield the predictions of each batch, in the order of the questions.

    Raises `NotFiniteError` for logits that are not finite, of which argmax would make an answer.
    """
    early, size = config.halt_early, config.batch_size
    done = decode_all(model, corpus, lanes, halting, size, dtype, early, by_step=True)
    tables = _read_behind(Answers(corpus, episodes, decoded) for episodes, decoded in done)
    for _, index, _ in in_batches(lanes, size):
        pieces = [next(tables)]
        while sum(map(len, pieces)) < len(index):
            pieces.append(next(tables))
        yield pa.concat_tables(pieces)


def _read_behind(answers: Iterable[Answers]) -> Iterator[pa.Table]:
    """Yield the tables of answers, each read while the device is at work on the next batch."""
    before: Answers | None = None
    for queued in answers:
        if before is not None:
            yield before.table()
        before = queued
    if before is not None:
        yield before.table()


class Answers:
    """The answers of one batch, on their way to the host."""

    def __init__(self, corpus: Corpus, episodes: Episodes, decoded: Decoded) -> None:
        output, losses, batch = decoded.output, decoded.losses, decoded.batch
        self.corpus, self.lane = corpus, batch.lane
        finite = output.logits.isfinite().all(dim=-1).all(dim=-1) & output.q_halt.isfinite()
        sent: dict[str, Tensor | None] = {
            **_canvases(corpus, batch, output.logits.argmax(dim=-1)),
            "finite": finite,
            "task": batch.task,
            "query": episodes.query[decoded.index],  # number of the pair in the corpus
            "variant": decoded.variant,
            "fits": episodes.fits[decoded.index],
            "q_halt": output.q_halt,
            "steps": decoded.steps,
            "labelled": losses.labelled,  # False where the true output is unknown
            "token_accuracy": losses.accuracy,
            "lm_loss": losses.lm,
            "q_halt_loss": losses.q_halt,
            "q_halt_right": losses.q_right,
            "accuracy_by_step": decoded.by_step,
        }
        self.sent = HostCopies({name: t for name, t in sent.items() if t is not None})

    def table(self) -> pa.Table:
        """Return their rows of predictions; raises `NotFiniteError` as `predict_batches` does."""
        sent = self.sent.read()
        finite = sent["finite"]
        if wrong := int((~finite).sum()):
            raise NotFiniteError(
                f"found logits that are not finite numbers in {wrong} of {len(finite)} answers,"
                " expected numbers: the weights are damaged, or their run diverged; train it again"
            )
        return pa.table(_rows(self.corpus, self.lane, sent), schema=PREDICTIONS)


def read_grids(corpus: Corpus, batch: Batch, tokens: Tensor) -> list[np.ndarray]:
    """Return the grid on each canvas of `tokens` [B, S], augmentation undone."""
    return _grids(batch.lane, HostCopies(_canvases(corpus, batch, tokens)).read())


def _canvases(corpus: Corpus, batch: Batch, tokens: Tensor) -> dict[str, Tensor]:
    """Return canvases of `tokens` [B, S], and the recipes of their variants."""
    return {
        "tokens": tokens.to(torch.uint8),
        "dihedral": corpus.dihedral_on(batch.lane, batch.puzzle),  # [B], 0-7
        "permutation": corpus.permutation[batch.puzzle].to(torch.uint8),  # [B, 10]
    }


def _grids(lane: Lane, sent: Mapping[str, Tensor]) -> list[np.ndarray]:
    """Return the grids of `_canvases`, on the host."""
    grids = crop(sent["tokens"].numpy().reshape(-1, lane.rows, lane.columns))
    recipes = zip(sent["dihedral"].tolist(), sent["permutation"].numpy(), strict=True)
    return [Augmentation(*r).inverse(g) for r, g in zip(recipes, grids, strict=True)]


def _rows(corpus: Corpus, lane: Lane, sent: Mapping[str, Tensor]) -> dict[str, list[object]]:
    """Return the columns of the answers to one batch, on the host."""
    rows: dict[str, list[object]] = {name: [] for name in COLUMNS}
    grids = _grids(lane, sent)
    task, query, fits = (sent[name].tolist() for name in ("task", "query", "fits"))
    for i, grid in enumerate(grids):
        truth = corpus.pairs[query[i]].output
        rows["task"].append(corpus.tasks[task[i]].id)
        rows["query"].append(query[i] - corpus.query_pairs[task[i]].start)
        rows["height"].append(grid.shape[0])
        rows["width"].append(grid.shape[1])
        rows["grid"].append(np.ascontiguousarray(grid, dtype=np.uint8).tobytes())
        rows["fits"].append(None if truth is None else fits[i])
        rows["correct"].append(None if truth is None else np.array_equal(grid, truth))
    for name in ("variant", "q_halt", "steps"):
        rows[name] += sent[name].tolist()
    labelled = sent["labelled"].tolist()
    for name in (*("token_accuracy", "lm_loss", "q_halt_loss", "q_halt_right"), "accuracy_by_step"):
        each = sent[name].tolist() if name in sent else [None] * len(grids)
        rows[name] += [v if k else None for v, k in zip(each, labelled, strict=True)]
    return rows
