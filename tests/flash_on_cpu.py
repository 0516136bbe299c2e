"""PyTorch's `varlen_attn` on a CPU, where it has no kernel: a plain one, sequence by sequence."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from etrm.models import decoder, layers
from etrm.models.encoders import pairs


def use_flash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let models compute as on a GPU with flash kernels, in every number format."""
    _register()
    for module in (layers, pairs):
        monkeypatch.setattr(module, "has_flash", lambda *_: True)
    assert decoder.layers is layers


Sequence = tuple[slice, slice]  # of queries, of keys


def sequences(ends_q: Tensor, ends_k: Tensor) -> list[Sequence]:
    q, k = ([slice(*each) for each in pairwise(ends.tolist())] for ends in (ends_q, ends_k))
    return list(zip(q, k, strict=True))


def weights(q: Tensor, k: Tensor) -> Tensor:
    """Weights [H, queries, keys] of attention within one sequence."""
    return (torch.einsum("qhd,khd->hqk", q, k).float() / q.shape[-1] ** 0.5).softmax(dim=-1)


@cache
def _register() -> None:
    """Give the operators behind `varlen_attn` a kernel for CPUs, once in a process."""
    import torch.nn.attention.varlen

    def forward(
        q: Tensor, k: Tensor, v: Tensor, ends_q: Tensor, ends_k: Tensor, *_: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert ends_q.dtype == ends_k.dtype == torch.int32
        assert (int(ends_q[-1]), int(ends_k[-1])) == (len(q), len(k))
        out = torch.full_like(q, torch.nan)  # of tokens in no sequence: a kernel sets none
        for i, j in sequences(ends_q, ends_k):
            out[i] = torch.einsum("hqk,khd->qhd", weights(q[i], k[j]).to(v.dtype), v[j])
        unused = q.new_zeros(q.shape[1], len(q), dtype=torch.float)
        return out, unused, torch.zeros(2, dtype=torch.uint64)

    def backward(
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        ends_q: Tensor,
        ends_k: Tensor,
        *_: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dq, dk, dv = (torch.full_like(t, torch.nan) for t in (q, k, v))
        for i, j in sequences(ends_q, ends_k):
            p = weights(q[i], k[j])
            dp = torch.einsum("qhd,khd->hqk", grad[i], v[j]).float()
            ds = p * (dp - (dp * p).sum(dim=-1, keepdim=True)) / q.shape[-1] ** 0.5
            dq[i] = torch.einsum("hqk,khd->qhd", ds.to(k.dtype), k[j])
            dk[j] = torch.einsum("hqk,qhd->khd", ds.to(q.dtype), q[i])
            dv[j] = torch.einsum("hqk,qhd->khd", p.to(grad.dtype), grad[i])
        return dq, dk, dv

    torch.library.register_kernel("torch_attn::_varlen_attn", "cpu", forward)
    torch.library.register_kernel("torch_attn::_varlen_attn_backward", "cpu", backward)
