"""Random numbers of masks.py as kernels compute them, for a tile of rows and units."""

import triton
import triton.language as tl

from . import masks

_STEP, _FIRST, _SECOND = tl.constexpr(masks.STEP), tl.constexpr(masks.FIRST), tl.constexpr(masks.SECOND)
_DROPPED = tl.constexpr(32 - masks.DIGITS)
_ALL = tl.constexpr(1 << masks.DIGITS)


@triton.jit
def _lowbias32(x):
    x = (x ^ (x >> 16)) * _FIRST
    x = (x ^ (x >> 15)) * _SECOND
    return x ^ (x >> 16)


@triton.jit
def renewed(seed, row, b, j, below):
    """Which units j are renewed, or left in, at rows row + b; b and j along one axis each, of a tile. below: see
    `masks.threshold`."""
    counter = seed + row + b
    low = _lowbias32(counter.to(tl.uint32))
    high = _lowbias32((counter >> 32).to(tl.uint32) ^ low)
    x = j.to(tl.uint32) * _STEP + low
    x = ((x ^ (x >> 16)) * _FIRST) ^ high
    x = (x ^ (x >> 15)) * _SECOND
    return (x >> _DROPPED).to(tl.int32) >= below


@triton.jit
def factors(seed, row, b, j, below):
    """What is left in, times `masks.scale`; 0 elsewhere."""
    all = tl.full((), _ALL, tl.float32)
    return tl.where(renewed(seed, row, b, j, below), tl.div_rn(all, all - below), 0.0)
