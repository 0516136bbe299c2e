"""One update of all weights from a step's gradients: freezing, clipping, warm-up, averaging."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from etrm.config.study import RunConfig
from etrm.models.act import Model
from etrm.models.encoders.embedding import PuzzleEmbedding
from etrm.runtime.distributed import Ranks
from etrm.training.optim import EMA, AdamATan2, FlatParameters, SignSGD, warmup_factor


class Updater:
    """The optimizers of a model; every rank makes the same update.

    Two optimizer groups account for every parameter: the `decoder`, and the `context` source where
    it has any. A table of puzzle embeddings is no parameter and has an optimizer of its own.
    """

    def __init__(self, run: RunConfig, model: Model, ranks: Ranks) -> None:
        self.run, self.train, self.model, self.ranks = run, run.train, model, ranks
        train, scales = run.train, {"decoder": 1.0, "context": run.train.context_lr_scale}
        self.ema = EMA(model, train.ema_decay)
        parts = {name: list(model.get_submodule(name).parameters()) for name in scales}
        grouped = {id(p) for part in parts.values() for p in part}
        missing = [name for name, p in model.named_parameters() if id(p) not in grouped]
        assert not missing, f"found parameters in no optimizer group: {missing}"
        self.parameters = FlatParameters(parts)
        flat = self.parameters.flat  # one tensor a group
        self.has_encoder = "context" in flat
        groups = [{"params": [flat[name]], "scale": scales[name]} for name in flat]
        betas = train.betas[0], train.betas[1]
        self.optimizer = AdamATan2(groups, train.lr, betas, train.weight_decay)
        table = model.context if isinstance(model.context, PuzzleEmbedding) else None
        self.embedding = SignSGD(table, train.embedding_weight_decay) if table else None

    def apply(self, step: int, weights: Tensor) -> dict[str, Tensor]:
        """Make update `step` (from 1), set gradients to zero, and return norms for the metrics.

        `weights`: of all slots, with which they are in the gradients.
        """
        self.ranks.sum_(self.parameters.gradient)  # the loss is a mean over the slots of all ranks
        norms = self._clip(step)
        factor = warmup_factor(step, self.train.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.train.lr * factor * group["scale"]
        with self._without_frozen(step):
            self.optimizer.step()
        if self.embedding is not None:
            lr = self.train.embedding_lr * factor
            self.embedding.step(lr, weights, self.ranks)
        self.parameters.gradient.zero_()
        self.ema.update(self.model)
        return norms

    def frozen(self, step: int) -> set[str]:
        """Return the parts that `step` does not train."""
        decoder = self.run.decoder.frozen or step <= self.run.decoder.frozen_steps
        frozen = {"decoder"} if decoder else set()
        return frozen | ({"context"} if step <= self.train.context_frozen_steps else set())

    @contextmanager
    def _without_frozen(self, step: int) -> Iterator[None]:
        """Take the gradients of frozen parts away within the block, so that no update moves them.

        Neither weight decay nor moments touch a parameter without a gradient.
        """
        flat = self.parameters.flat
        gradients = {name: flat[name].grad for name in self.frozen(step) if name in flat}
        for name in gradients:
            flat[name].grad = None
        yield
        for name, gradient in gradients.items():
            flat[name].grad = gradient

    def _clip(self, step: int) -> dict[str, Tensor]:
        """Clip to `train.grad_clip`; return norms after it, those before it, and the share.

        The total after clipping is that of the trained parts, all others are of all gradients:
        those of frozen parts are measured, but must not shrink the others.
        """
        norms = {n: self.parameters.gradient_of(n).norm() for n in ("context", "decoder")}
        total = torch.stack(list(norms.values())).norm()
        frozen = self.frozen(step)
        used = [norm * (name not in frozen) for name, norm in norms.items()]
        trained, factor = torch.stack(used).norm() if frozen else total, total.new_ones(())
        if self.train.grad_clip is not None:
            factor = (self.train.grad_clip / (trained + 1e-6)).clamp(max=1.0)  # no host sync
            self.parameters.gradient.mul_(factor)
        found = {"grad/total_norm": trained * factor, "grad/total_norm_unclipped": total}
        names = {"inner": "decoder"} | ({"encoder": "context"} if self.has_encoder else {})
        for name, part in names.items():
            found[f"grad/{name}_norm"] = norms[part] * factor
            found[f"grad/{name}_norm_unclipped"] = norms[part]
        if self.has_encoder:
            found["grad/encoder_share"] = norms["context"] / total.clamp(min=1e-12)
        return found
