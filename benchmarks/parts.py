"""Time of a training step by part: a step with clocks around its real functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import etrm.training.trainer
from benchmarks.clock import Stopwatch
from etrm.models.act import StepOutput
from etrm.models.encoders.base import Encoded
from etrm.models.losses import SampleLoss
from etrm.training.metrics import EncoderStatistics
from etrm.training.trainer import Trainer

STEPS = 2
OTHER = "other: carry, halting, casts of weights"


def time_parts(trainer: Trainer, steps: int | None = None) -> dict[str, float]:
    """Return the seconds of one step by part.

    The device is waited for between them, so the sum is an upper bound of an ordinary step's. A
    backward pass is told apart by when gradients reach the logits and the context.
    """
    steps = steps or (STEPS if trainer.corpus.device.type == "cpu" else 5 * STEPS)
    watch = Stopwatch(trainer.corpus.device)
    with _instrumented(trainer, watch):
        for _ in range(steps):
            with watch.part(OTHER):
                trainer.step()
            with watch.part("metrics"):
                trainer.row()
    return {name: seconds / steps for name, seconds in watch.seconds.items() if seconds}


@contextmanager
def _instrumented(trainer: Trainer, watch: Stopwatch) -> Iterator[None]:
    """Within the block, the parts of a step are timed."""
    context, decoder = trainer.model.context, trainer.model.decoder
    with ExitStack() as stack:

        def put(owner: Any, name: str, function: Callable[..., Any]) -> None:
            stack.enter_context(patch.object(owner, name, function))

        for sampler in {id(lane.sampler): lane.sampler for lane in trainer.lane_slots}.values():
            put(sampler, "batch", watch.timed("data", sampler.batch))
        put(context, "forward", watch.timed("encode, forward", _encode(context.forward, watch)))
        put(decoder, "forward", watch.timed("recursion, embed and heads", decoder.forward))
        put(decoder, "_cycle", _cycle(decoder._cycle, watch))
        losses = _losses(etrm.training.trainer.sample_losses, watch)
        put(etrm.training.trainer, "sample_losses", watch.timed("loss, forward", losses))
        # What is patched on a class passes the tensor on.
        put(Tensor, "backward", _method(watch.timed("loss, backward", Tensor.backward)))
        put(trainer, "_update", watch.timed("optimizer", trainer._update))
        put(trainer.window, "add_samples", watch.timed("metrics", trainer.window.add_samples))
        for name in ("add", "values"):
            timed = watch.timed("metrics", getattr(EncoderStatistics, name))
            put(EncoderStatistics, name, _method(timed))
        yield


def _method(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self, *args, **kwargs)

    return method


def _encode(forward: Callable[..., Encoded], watch: Stopwatch) -> Callable[..., Encoded]:
    """When its gradient is known, the backward pass of the decoder is done."""

    def encode(*args: Any) -> Encoded:
        encoded = forward(*args)
        if encoded.tokens.requires_grad:
            encoded.tokens.register_hook(lambda _: watch.switch("encode, backward"))
        return encoded

    return encode


def _losses(losses: Callable[..., SampleLoss], watch: Stopwatch) -> Callable[..., SampleLoss]:
    """When the gradient of the logits is known, that of the loss is done."""

    def measured(output: StepOutput, labels: Tensor) -> SampleLoss:
        output.logits.register_hook(lambda _: watch.switch("recursion, backward"))
        return losses(output, labels)

    return measured


def _cycle(cycle: Callable[..., Any], watch: Stopwatch) -> Callable[..., Any]:
    def measured(*args: Any) -> Any:
        kind = "last cycle" if torch.is_grad_enabled() else "cycles without gradient"
        with watch.part(f"recursion, {kind}"):
            return cycle(*args)

    return measured
