"""Losses and metrics against plain references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny import make_run, make_trainer
from torch import Tensor

from etrm.evaluation.metrics import EvaluationSums
from etrm.models.act import StepOutput
from etrm.models.encoders.base import Encoded, Representation
from etrm.models.losses import SampleLoss, contrastive_loss, log_stablemax, sample_losses
from etrm.training.metrics import EncoderStatistics, Window

B, S, V = 6, 9, 12


def output_of(
    logits: Tensor,
    q_halt: Tensor,
    losses: dict[str, Tensor] | None = None,
    kind: str = "stablemax_cross_entropy",
) -> StepOutput:
    context = torch.zeros(len(q_halt), 1, 1)
    encoded = torch.ones(len(q_halt)).bool()
    return StepOutput(logits, q_halt, losses or {}, encoded, Encoded(context), kind)


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Tensor]:
    """Logits, q_halt and labels; sample 4 is exactly right, sample 5 has no label."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(B, S, V, generator=generator) * 5
    q_halt = torch.randn(B, generator=generator)
    labels = torch.randint(0, V, (B, S), generator=generator)
    labels[4] = logits[4].argmax(dim=-1)
    labels[4, 0], labels[5] = 0, 0
    return logits, q_halt, labels


def stablemax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    s = np.where(x < 0, 1 / (1 - x + 1e-30), x + 1)
    return s / s.sum(axis=-1, keepdims=True)


def softmax(logits: np.ndarray) -> np.ndarray:
    s = np.exp(logits.astype(np.float64))
    return s / s.sum(axis=-1, keepdims=True)


# --- losses ---


def test_stablemax_is_that_of_its_paper_in_float64() -> None:
    logits = torch.tensor([[-1e6, -3.0, -1e-7, 0.0, 1e-7, 2.5, 1e6]])
    found = log_stablemax(logits)
    assert found.dtype == torch.float64
    assert np.allclose(found.exp().numpy(), stablemax(logits.numpy()), rtol=1e-12)
    assert float(found.exp().sum()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("kind", ["stablemax_cross_entropy", "softmax_cross_entropy"])
def test_losses_are_means_over_labelled_cells(
    case: tuple[Tensor, Tensor, Tensor], kind: str
) -> None:
    logits, q_halt, labels = case
    losses = sample_losses(output_of(logits, q_halt, kind=kind), labels)
    assert losses.labelled.tolist() == [True] * 5 + [False]
    assert losses.exact.tolist() == [False] * 4 + [True, False]  # no label, nothing right
    p = {"stablemax_cross_entropy": stablemax, "softmax_cross_entropy": softmax}[kind](
        logits.numpy()
    )
    for b in range(B - 1):
        cells = [s for s in range(S) if labels[b, s] != 0]
        terms = [-math.log(p[b, s, int(labels[b, s])]) for s in cells]
        right = [int(logits[b, s].argmax()) == int(labels[b, s]) for s in cells]
        assert float(losses.lm[b]) == pytest.approx(float(np.mean(terms)))
        assert float(losses.accuracy[b]) == pytest.approx(float(np.mean(right)))
        target, q = float(all(right)), 1 / (1 + math.exp(-float(q_halt[b])))
        expected = -(target * math.log(q) + (1 - target) * math.log(1 - q))
        assert float(losses.q_halt[b]) == pytest.approx(expected, rel=1e-5)
        assert bool(losses.q_right[b]) == ((float(q_halt[b]) >= 0) == all(right))
    assert float(losses.lm[B - 1]) == float(losses.accuracy[B - 1]) == 0.0


def test_logits_of_unlabelled_cells_are_ignored(case: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, q_halt, labels = case
    other = torch.where((labels == 0)[..., None], -logits, logits)
    first, second = (sample_losses(output_of(x, q_halt), labels) for x in (logits, other))
    for name in ("lm", "q_halt", "accuracy", "exact", "q_right"):
        assert torch.equal(getattr(first, name), getattr(second, name))


def test_gradients_are_those_of_the_mean(case: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, q_halt, labels = case
    logits.requires_grad_()
    q_halt.requires_grad_()
    sample_losses(output_of(logits, q_halt), labels).total(0.5, {}).sum().backward()
    assert logits.grad is not None
    assert q_halt.grad is not None
    assert not logits.grad[labels == 0].any()
    assert bool((logits.grad[labels != 0].abs().sum(dim=-1) > 0).all())
    exact = torch.tensor([0.0, 0, 0, 0, 1])
    expected = 0.5 * (torch.sigmoid(q_halt.detach()[:5]) - exact)
    assert torch.allclose(q_halt.grad[:5], expected, atol=1e-6)


def test_the_total_weighs_terms_by_name(case: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, q_halt, labels = case
    extra = {"kl": torch.arange(6.0), "contrastive": torch.ones(6)}
    losses = sample_losses(output_of(logits, q_halt, extra), labels)
    total = losses.total(0.25, {"kl": 0.1, "contrastive": 2.0})
    expected = losses.lm + 0.25 * losses.q_halt + 0.1 * torch.arange(6.0) + 2.0
    assert torch.allclose(total, expected)
    with pytest.raises(KeyError, match="kl"):
        losses.total(0.5, {})


# --- contrastive ---


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed))


def test_the_contrastive_loss_is_its_formula() -> None:
    x, keys, bank = vectors(3), vectors(3, seed=1), vectors(5, seed=2)
    positive = torch.tensor([[0, 0, 0, 0, 0], [1, 0, 0, 1, 0], [0, 0, 0, 0, 0]]).bool()
    negative = torch.tensor([[1, 1, 0, 1, 1], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]).bool()
    found = contrastive_loss(x, keys, bank, positive, negative, temperature=0.5)
    for i in range(3):
        pulled = torch.stack([keys[i], *bank[positive[i]]])
        every = torch.cat([pulled, bank[negative[i]]])
        logits = [torch.cosine_similarity(x[i], each) / 0.5 for each in (pulled, every)]
        expected = logits[1].exp().mean().log() - logits[0].mean()
        assert float(found[i]) == pytest.approx(float(expected), abs=1e-5)
    assert float(found[2]) == 0.0  # nothing to tell the positive from


@pytest.mark.parametrize("size", [0, 4, 400])
def test_contexts_that_are_all_alike_have_no_contrastive_loss(size: int) -> None:
    bank, every = torch.ones(size, 3), torch.ones(2, size, dtype=torch.bool)
    found = contrastive_loss(torch.ones(2, 3), torch.ones(2, 3), bank, ~every, every, 0.1)
    assert torch.allclose(found, torch.zeros(2), atol=1e-5)


def test_the_contrastive_loss_pulls_anchor_and_key_together() -> None:
    x, keys, bank = vectors(4).requires_grad_(), vectors(4, seed=1).requires_grad_(), vectors(6)
    every = torch.ones(4, 6, dtype=torch.bool)
    loss = contrastive_loss(x, keys, bank, ~every, every, 0.5).sum()
    by_anchor, by_key = torch.autograd.grad(loss, (x, keys))
    usual = torch.cosine_similarity(x, keys)
    assert bool((torch.cosine_similarity(x - 0.05 * by_anchor, keys) > usual).all())
    assert bool((torch.cosine_similarity(x, keys - 0.05 * by_key) > usual).all())


# --- metrics ---


def fake_losses(generator: torch.Generator, size: int) -> SampleLoss:
    def draw() -> Tensor:
        return torch.rand(size, generator=generator, dtype=torch.float64)

    return SampleLoss(
        lm=draw(),
        q_halt=draw(),
        context={"kl": draw()},
        accuracy=draw(),
        exact=draw() < 0.5,
        q_right=draw() < 0.5,
        labelled=draw() < 0.8,
    )


def test_a_window_averages_over_halted_samples_and_all_slots() -> None:
    generator = torch.Generator().manual_seed(0)
    window, parts = Window(), []
    for _step in range(5):
        for size in (4, 2):
            losses = fake_losses(generator, size)
            halted = torch.rand(size, generator=generator) < 0.5
            steps = torch.randint(1, 9, (size,), generator=generator)
            window.add_samples(losses, halted, steps, share=size / 6)
            right = (losses.accuracy, losses.exact, losses.q_right, steps)
            counted = halted & losses.labelled, losses.labelled
            terms = (losses.lm, losses.q_halt, losses.context["kl"], *counted)
            parts.append(torch.stack([x.double() for x in (*right, *terms)]))
    every = torch.cat(parts, dim=1)  # [9, slots of all steps]
    counted = every[7] > 0
    accuracy, exact, q_right, steps = every[:4, counted].mean(dim=1).tolist()
    lm, q_halt, kl = every[4:7].mean(dim=1).tolist()
    expected = {
        "train/accuracy": accuracy,
        "train/exact_accuracy": exact,
        "train/q_halt_accuracy": q_right,
        "train/steps": steps,
        "train/exact_accuracy_all": float(every[1].mean()),
        "train/lm_loss": lm,
        "train/q_halt_loss": q_halt,
        "train/kl_loss": kl,
        "train/count": int(every[8].sum()) / 5,
        "train/halted": int(counted.sum()) / 5,
    }
    assert window.row() == pytest.approx(expected)
    assert window.row() == {}


def test_nothing_halted_gives_no_number() -> None:
    losses = fake_losses(torch.Generator().manual_seed(0), 4)
    window = Window()
    window.add_samples(losses, torch.zeros(4, dtype=torch.bool), torch.ones(4), share=1.0)
    row = window.row()
    assert "train/exact_accuracy" not in row
    assert row["train/halted"] == 0
    assert row["train/count"] == int(losses.labelled.sum())
    assert row["train/lm_loss"] == pytest.approx(float(losses.lm.mean()))


def test_sums_are_detached_and_in_float64() -> None:
    window = Window()
    window.add("a", torch.tensor(16_777_217, dtype=torch.int64))  # not a float32
    window.add("b", torch.ones(1, requires_grad=True).sum())
    assert not window.sums["b"].requires_grad
    assert window.row() == {"a": 16_777_217.0, "b": 1.0}


def statistics(*parts: Representation) -> dict[str, float]:
    found = EncoderStatistics()
    for part in parts:
        found.add(part)
    return {name.removeprefix("train/encoder_"): float(v) for name, v in found.values().items()}


def test_encoder_statistics_against_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    x, raw = (torch.randn(5, 3, 8, generator=generator) * 2 + 1 for _ in range(2))
    n, r = x.double().numpy(), raw.double().numpy()
    expected = {
        "cross_sample_var": n.var(axis=0).mean(),
        "output_mean": n.mean(),
        "output_norm": np.linalg.norm(n, axis=-1).mean(),
        "output_std": n.std(),
        "token_std": n.std(axis=1).mean(),
        "raw_std": r.std(),
        "raw_norm": np.linalg.norm(r, axis=-1).mean(),
    }
    micro_batches = [Representation(x[i], raw[i]) for i in (slice(0, 2), slice(2, 5))]
    assert statistics(*micro_batches) == pytest.approx(expected, rel=1e-5)
    for constant in (x[:1].expand(5, -1, -1), x[:1]):
        found = statistics(Representation(constant, constant))
        assert found["cross_sample_var"] == pytest.approx(0.0, abs=1e-9)
    assert EncoderStatistics().values() == {}


def test_sets_of_vectors_are_compared_vector_by_vector() -> None:
    """Sets that have the same mean are not the same; what is not real counts nowhere."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 8, generator=generator)
    x = torch.cat([x, -x], dim=1)  # every set has the mean 0
    real = torch.ones(4, 6, dtype=torch.bool)
    real[0, 3:] = False
    x[0, 3:] = torch.nan
    rows = x[real].double().numpy()
    expected = {
        "cross_sample_var": rows.var(axis=0).mean(),
        "output_mean": rows.mean(),
        "output_norm": np.linalg.norm(rows, axis=-1).mean(),
        "output_std": rows.std(),
        "token_std": np.mean([x[i][real[i]].double().numpy().std(axis=0).mean() for i in range(4)]),
        "raw_std": 2 * rows.std(),
        "raw_norm": 2 * np.linalg.norm(rows, axis=-1).mean(),
    }
    parts = [Representation(x[i], 2 * x[i], real[i]) for i in (slice(0, 1), slice(1, 4))]
    assert statistics(*parts) == pytest.approx(expected, rel=1e-5)


def test_evaluation_sums_are_means_over_labelled_samples() -> None:
    generator = torch.Generator().manual_seed(1)
    sums, parts = EvaluationSums(), []
    for size in (3, 1, 7):
        losses = fake_losses(generator, size)
        steps = torch.randint(1, 9, (size,), generator=generator)
        exact = losses.exact & (torch.rand(size, generator=generator) < 0.7)
        sums.add(losses, exact, steps)
        values = (losses.accuracy, exact, losses.lm, losses.q_right, losses.q_halt, steps)
        parts.append(torch.stack([x.double() for x in values])[:, losses.labelled])
    names = ("accuracy", "exact_accuracy", "lm_loss", "q_halt_accuracy", "q_halt_loss", "steps")
    labelled = torch.cat(parts, dim=1)
    means = dict(zip(names, labelled.mean(dim=1).tolist(), strict=True))
    expected = {**means, "count": float(labelled.shape[1])}
    assert sums.means() == pytest.approx(expected)
    assert EvaluationSums().means() == {}


def test_the_share_of_steps_is_of_halted_samples() -> None:
    trainer = make_trainer(make_run(halting={"max_steps": 4, "exploration_prob": 1.0}))
    steps = []
    for _ in range(8):
        trainer.step()
        steps += [lane.carry.steps[lane.carry.halted] for lane in trainer.lane_slots]
    halted, row = torch.cat(steps).double(), trainer.row()
    assert row["train/steps"] == pytest.approx(float(halted.mean()))
    assert row["train/steps_share"] == pytest.approx(float(halted.mean()) / 4)
    assert row["train/halted"] == pytest.approx(len(halted) / 8)
    assert row["train/count"] == trainer.train.batch_size
