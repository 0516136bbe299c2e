"""Counter-based random numbers: a value is a function of (seed, step, purpose, slot, column).

Nothing has a state: a run that resumes, another number of ranks, or another order of slots sees
the same numbers, on any device. The mixing is SplitMix64's finaliser (Steele, Lea and Flood, 2014).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: the increment of SplitMix64
MIX_1, MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

# The purposes of numbers: streams never share numbers.
EPISODE, VARIANT, DEMOS, OFFSET, EXPLORE, MINIMUM, SUBSET, NOISE, PROBE = range(9)
ORDER, PLACE, UNMOVED, NUMBER, SEARCH = range(9, 14)


def uniform(seed: int, step: int, stream: int, slots: Tensor, columns: int = 1) -> Tensor:
    """Return [len(slots), columns] float64 in [0, 1); `slots` are int64 counters on any device."""
    key = 0
    for part in (seed, step, stream):
        x = (key + part + 1) * GOLDEN & MASK  # Python's integers have no 64 bits: they are masked
        x = ((x ^ (x >> 30)) * MIX_1) & MASK
        x = ((x ^ (x >> 27)) * MIX_2) & MASK
        key = x ^ (x >> 31)
    bits = _mix(slots.to(torch.int64)[:, None] * _signed(GOLDEN) + _signed(key))
    column = torch.arange(1, columns + 1, dtype=torch.int64, device=slots.device)
    bits = _mix(bits + column * _signed(GOLDEN))
    return _shift(bits, 11).to(torch.float64) * 2.0**-53  # 53 bits are exact in float64


def normal(seed: int, step: int, stream: int, slots: Tensor, columns: int = 1) -> Tensor:
    """Return [len(slots), columns] float32 of mean 0 and variance 1 (Box and Muller, 1958)."""
    u, v = uniform(seed, step, stream, slots, 2 * columns).chunk(2, dim=1)
    radius = (-2.0 * torch.log1p(-u)).sqrt()  # 1 - u is never 0
    return (radius * torch.cos(2.0 * math.pi * v)).to(torch.float32)


def integers(u: Tensor, bound: Tensor | int) -> Tensor:
    """Return uniform numbers `u` in [0, 1) as int64 in [0, bound)."""
    return (u * bound).to(torch.int64)


def weighted(u: Tensor, ends: Tensor) -> Tensor:
    """Return for uniform numbers `u` the index of a weight, each as likely as its weight says.

    `ends`: cumulative sums of the weights, float64.
    """
    found = torch.searchsorted(ends, u * ends[-1], right=True)
    return found.clamp(max=len(ends) - 1)  # where the product is rounded up to the last


def subsets(u: Tensor, size: Tensor, bound: Tensor) -> Tensor:
    """Return `size` [n] ≤ K different numbers below `bound` [n], ascending, then -1: [n, K].

    Each subset is as likely, from uniform numbers `u` [n, K]: Floyd's algorithm (Bentley and
    Floyd, 1987), whose cost does not depend on `bound`.
    """
    absent = torch.iinfo(torch.int64).max  # sorted behind the others
    chosen = torch.full(u.shape, absent, device=u.device)
    for k in range(u.shape[1]):
        last = bound - size + k
        number = integers(u[:, k], last + 1)
        number = torch.where((chosen == number[:, None]).any(dim=1), last, number)
        chosen[:, k] = number.masked_fill(size <= k, absent)
    chosen = chosen.sort(dim=1).values
    return chosen.masked_fill(chosen == absent, -1)


def _signed(value: int) -> int:
    """Return 64 bits as torch's int64, whose overflow wraps around."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift int64 to the right, with zeros instead of the sign from the left."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(MIX_1)
    x = (x ^ _shift(x, 27)) * _signed(MIX_2)
    return x ^ _shift(x, 31)
