"""One step of latent search in training: the decoder learns to read contexts that were searched.

The Latent Program Network (2411.08706) is trained with a few steps of gradient ascent on its
latent, through which no gradient flows: the loss at the searched latent trains the decoder there,
and the encoder to be a start from which the search gets far. Here it is the first step of the
search of `etrm.refinement.search`, from the encoder's context.

Shape suffixes: B samples, K demos, P context tokens, D width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from etrm.data.batch import Batch
from etrm.models.act import Model
from etrm.models.encoders.base import Encoded
from etrm.refinement.demos import demo_likelihood, left_out
from etrm.refinement.search import Adam
from etrm.refinement.spaces import TokenSpace


def search_step(
    model: Model, batch: Batch, encoded: Encoded, lr: float, dtype: torch.dtype
) -> Tensor:
    """Return the shift [B, P, D] of the contexts `encoded` of `batch` by a first step of search.

    `lr`: its RMS, in units of that of the context, or of 1 where that is smaller. A demo is
    answered in one ACT step from the context of the others, its state a new one. No weight gets a
    gradient. One demo of all samples after the other, so the pass needs the memory of that of the
    queries, and no shape depends on values on the device.
    """
    assert model.context.needs_demos, "found a source without demos, expected one that reads them"
    encoded = replace(encoded, tokens=encoded.tokens.detach())
    with torch.no_grad():
        demos = [left_out(batch, number) for number in range(batch.demo_mask.shape[1])]
        spaces = [TokenSpace(model, batch, each, 1, encoded=encoded) for each in demos]
    point = torch.zeros_like(spaces[0].origin, requires_grad=True)
    gradient, count = torch.zeros_like(point), batch.demo_mask.sum(dim=1).clamp(min=1)
    for space in spaces:
        score, _ = demo_likelihood(model, space.demos, space.contexts(point), 1, dtype)
        gradient += torch.autograd.grad((score / count).sum(), point)[0]
    return Adam(lr * spaces[0].unit).step(gradient)
