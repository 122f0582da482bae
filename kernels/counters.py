"""Random numbers of zoneout.py as kernels compute them, for a tile of rows and units."""

import triton
import triton.language as tl

from . import zoneout

_STEP, _FIRST, _SECOND = tl.constexpr(zoneout.STEP), tl.constexpr(zoneout.FIRST), tl.constexpr(zoneout.SECOND)
_DROPPED = tl.constexpr(32 - zoneout.DIGITS)


@triton.jit
def _lowbias32(x):
    x = (x ^ (x >> 16)) * _FIRST
    x = (x ^ (x >> 15)) * _SECOND
    return x ^ (x >> 16)


@triton.jit
def renewed(seed, row, b, j, below):
    """Which units j are renewed at rows row + b; b and j along one axis each, of a tile. below: see
    `zoneout.threshold`."""
    counter = seed + row + b
    low = _lowbias32(counter.to(tl.uint32))
    high = _lowbias32((counter >> 32).to(tl.uint32) ^ low)
    x = j.to(tl.uint32) * _STEP + low
    x = ((x ^ (x >> 16)) * _FIRST) ^ high
    x = (x ^ (x >> 15)) * _SECOND
    return (x >> _DROPPED).to(tl.int32) >= below
