"""Random numbers of masks.py as kernels compute them, for a tile of rows and units; and a launch that writes a call's
masks down, for kernels that have nothing from one tile and step to the next."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import masks
from .config import cdiv
from .launch import launch

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


BLOCK, WARPS = 512, 4


@triton.jit(do_not_specialize=["values", "H", "below"])
def masks_kernel(
    seeds_ptr,  # (sides,) int64
    out_ptr,  # (sides, B, H) float32, out: `factors`
    values,  # of a side, B * H
    H,
    below,
    BLOCK: tl.constexpr,
):
    """A block of one side's."""
    side = tl.program_id(1)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    found = factors(tl.load(seeds_ptr + side), 0, i // H, i % H, below)
    tl.store(out_ptr + side.to(tl.int64) * values + i, found, mask=i < values)


def written(seeds: Tensor, batch: int, hidden_size: int, rate: float) -> Tensor:
    """What recurrent_dropout multiplies states with, as `masks.factors` has it: (B, H) float32, or (sides, B, H) where
    seeds is (sides,), int64."""
    out = torch.empty((*seeds.shape, batch, hidden_size), dtype=torch.float32, device=seeds.device)
    values = batch * hidden_size
    args = {"seeds_ptr": seeds, "out_ptr": out, "values": values, "H": hidden_size, "below": masks.threshold(rate)}
    grid = (cdiv(values, BLOCK), max(seeds.numel(), 1))
    launch(masks_kernel, grid, args, {"BLOCK": BLOCK}, num_warps=WARPS, num_stages=1)
    return out
