"""Zoneout's masks from counters: the bit of a unit at a step is a function of the call's seed and of its place, so that
backward asks again for what forward had, and nothing is stored.

The function is splitmix64's, of Steele, Lea and Flood 2014 (Fast splittable pseudorandom number generators): a step of
the golden ratio for each place, then two multiplications with shifts between.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN, _FIRST, _SECOND = (x - (1 << 64) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_DIGITS = 24


def _shifted(x: Tensor, by: int) -> Tensor:
    """x, int64, shifted right as if it had no sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def renewed(seed: Tensor, part: int, rows: int, hidden_size: int, rate: float) -> Tensor:
    """(rows, hidden_size) bool: which units of a layer's direction are renewed at each step, each with a probability of
    1 - rate. seed: (), int64. part: the layer's and direction's number."""
    first = part * rows * hidden_size
    x = torch.arange(first, first + rows * hidden_size, device=seed.device).mul_(_GOLDEN).add_(seed)
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    x = _shifted(x ^ _shifted(x, 31), 64 - _DIGITS)
    return (x >= round(rate * (1 << _DIGITS))).view(rows, hidden_size)


def skipped(seed: Tensor, parts: int, rows: int, hidden_size: int) -> Tensor:
    """The seed by which part 0 has the masks that by this one part number `parts` has."""
    step = (parts * rows * hidden_size * _GOLDEN + (1 << 63)) % (1 << 64) - (1 << 63)
    return seed + step
