"""Masks from counters: whether a unit carries its state over a step (zoneout), or is left out of the recurrent products
of a call (recurrent_dropout), is a function of the call's seed and of its place, so that backward asks again for what
forward had, and nothing is kept. Kernels compute it for their tile, or a launch for all of a call's (counters.py), the
schedules of torch operations for all rows (`renewed`): the same bits.

A row, of zoneout a sequence at a step of a layer's direction, of recurrent_dropout a sequence, has a number of 64 bits:
the seed and its place added; each of the two has a seed of its own. The number's halves go through Wellons's
`lowbias32` (Hash Prospector, 2018), a bijection of 32 bits, so that no two rows have the same pair of keys. A unit goes
through lowbias32 too, with one key before its first multiplication and the other before its second. All of it in 32
bits, as GPUs multiply; a schedule with a tile of rows computes their keys once for all units.
"""

from __future__ import annotations

import torch
from torch import Tensor

STEP = 0x9E3779B9  # the golden ratio: from unit to unit
FIRST, SECOND = 0x7FEB352D, 0x846CA68B  # lowbias32's
DIGITS = 24
"""Bits of the number that is compared with the rate."""


def threshold(rate: float) -> int:
    """A unit carries its state over, or is left out, where its number is below this."""
    return round(rate * (1 << DIGITS))


def scale(rate: float) -> float:
    """What is left in is multiplied with: 1 / (1 - rate), of the rate that masks have; 0 where nothing is left."""
    left = (1 << DIGITS) - threshold(rate)
    return (1 << DIGITS) / left if left else 0.0


def _signed(x: int) -> int:
    return x - (1 << 32) if x >> 31 else x


def _shifted(x: Tensor, by: int) -> Tensor:
    """x, int32, shifted right as if it had no sign."""
    return (x >> by).bitwise_and_((1 << (32 - by)) - 1)


def _lowbias32(x: Tensor) -> Tensor:
    """In place, int32."""
    for by, factor in ((16, FIRST), (15, SECOND)):
        x.bitwise_xor_(_shifted(x, by)).mul_(_signed(factor))
    return x.bitwise_xor_(_shifted(x, 16))


def renewed(seed: Tensor, rows: int, hidden_size: int, rate: float) -> Tensor:
    """(rows, hidden_size) bool: which units are renewed, or left in, at each row, each with a probability of 1 - rate.
    seed: (), int64, with the number of the first row added."""
    counter = torch.arange(rows, device=seed.device).add_(seed)
    low = _lowbias32(counter.to(torch.int32))
    high = _lowbias32((counter >> 32).to(torch.int32).bitwise_xor_(low))
    x = torch.arange(hidden_size, dtype=torch.int32, device=seed.device).mul_(_signed(STEP)) + low.unsqueeze(1)
    x.bitwise_xor_(_shifted(x, 16)).mul_(_signed(FIRST)).bitwise_xor_(high.unsqueeze(1))
    x.bitwise_xor_(_shifted(x, 15)).mul_(_signed(SECOND))
    return _shifted(x, 32 - DIGITS) >= threshold(rate)


def factors(seed: Tensor, batch: int, hidden_size: int, rate: float, dtype: torch.dtype) -> Tensor:
    """(batch, hidden_size): what recurrent_dropout multiplies the state with that the products see; seed as above."""
    return renewed(seed, batch, hidden_size, rate).to(dtype).mul_(scale(rate))
