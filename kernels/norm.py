"""Products that are normalised before the gates see them: see Normalised in recurrence.py.

A product's tiles are (hidden units, sequences), a tile for each gate that is normalised with it; means and deviations
are along the units of all of them. Of units that are not the layer's (see widen.py) values are zero, and `units` does
not count them.

Forward computes the statistics from float32 sums, and keeps no more than without: what backward takes of them its
caller computes anew, one matrix product for all steps. A resident program has whole rows. A stepwise one needs all
units of a row, so a launch of its own makes the products, and the next one reads them whole. The walking and the
persistent schedule have none of this: their programs would exchange the statistics, once more in each step of variant
"torch", twice more in one of the others. What an exchange adds, a model of the machine code tells (nobody has measured
it): H100, bfloat16, 16 sequences, hidden_size 512, a step of "chung", which has two, against one of "torch" with one:
3,654 cycles against 2,527 forward, 3,604 against 2,494 backward.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .recurrence import Operands
from .tiles import at, read, there

EPS = tl.constexpr(1e-5)  # of trigru/reference.py


def forward_arguments(operands: Operands) -> dict[str, Any]:
    """What every kernel of forward that runs gates takes of it, by name. All None where nothing is normalised."""
    return {"gain_ptr": None if operands.normalised is None else operands.normalised.gain}


def backward_arguments(operands: Operands) -> dict[str, Any]:
    """What every kernel of back-propagation takes of it."""
    given = operands.normalised
    hats, rstd = (None, None) if given is None else (given.hats, given.rstd)
    return forward_arguments(operands) | {"hats_ptr": hats, "rstd_ptr": rstd}


class Norm(NamedTuple):
    """A kernel's arguments of it, pointers to what is its own direction's; None: nothing is normalised."""

    gain: Any = None  # (3H,)
    units: Any = None
    hats: Any = None  # (N, 3H)
    rstd: Any = None  # (N, PRODUCTS) float32
    PRODUCTS: Any = None  # not None: two, of r and z and of n
    products: Any = None  # (B, 3H) float32: those of a step, where another kernel has made them


@triton.jit
def gain_of(norm, gate, j, H):
    """Of a gate's units, (units, 1)."""
    return read(norm.gain + gate * H + j, j < H)[:, None]


@triton.jit
def moments(norm, parts, j):
    """The mean of a product of several gates, and one by its deviation, (1, sequences) each."""
    total = tl.zeros_like(parts[0])
    for g in tl.static_range(len(parts)):
        total += parts[g]
    number = len(parts) * norm.units
    mean = (tl.sum(total, 0) / number)[None, :]
    squares = tl.zeros_like(total)
    for g in tl.static_range(len(parts)):
        far = tl.where((j < norm.units)[:, None], parts[g] - mean, 0.0)
        squares += far * far
    return mean, tl.rsqrt((tl.sum(squares, 0) / number)[None, :] + EPS)


@triton.jit
def normalised(norm, x, gate, mean, rstd, j, H):
    """A gate's share of a product of these moments, normalised, with the gain."""
    return (x - mean) * rstd * gain_of(norm, gate, j, H)


@triton.jit
def slopes(norm, parts, first, row, b, j, count, H):
    """Of a product of several gates, from `first` on, whose normalised shares have the derivatives `parts`: the mean of
    what the gain makes of them, and along what was normalised, (1, sequences) each."""
    total, along = tl.zeros_like(parts[0]), tl.zeros_like(parts[0])
    for g in tl.static_range(len(parts)):
        d = parts[g] * gain_of(norm, first + g, j, H)
        total += d
        along += d * _hat(norm, first + g, row, b, j, count, H)
    number = len(parts) * norm.units
    return (tl.sum(total, 0) / number)[None, :], (tl.sum(along, 0) / number)[None, :]


@triton.jit
def unnormalised(norm, d, gate, mean, along, row, b, j, count, H):
    """The derivative by a gate's share of a product, from that by the normalised one; the moments from `slopes`."""
    at_row = (row + b).to(tl.int64)
    if norm.PRODUCTS is not None:
        at_row = 2 * at_row + (gate == 2)
    rstd = tl.load(norm.rstd + at_row, mask=b < count, other=0.0)[None, :]
    hat = _hat(norm, gate, row, b, j, count, H)
    return rstd * (d * gain_of(norm, gate, j, H) - mean - hat * along)


@triton.jit
def load_normalised(norm, gate, mean, rstd, b, j, count, H):
    """`normalised`, of a product that lies in memory."""
    share = read(at(norm.products, 0, b, j, 3 * H) + gate * H, there(j, b, H, count))
    return normalised(norm, share, gate, mean, rstd, j, H)


@triton.jit
def load_moments(norm, b, count, FIRST: tl.constexpr, LAST: tl.constexpr, H, BLOCK_K: tl.constexpr):
    """`moments` of a product of the gates from FIRST up to, not with, LAST that lies in memory."""
    width = (LAST - FIRST) * H
    total, squares = tl.zeros((BLOCK_K, b.shape[0]), tl.float32), tl.zeros((BLOCK_K, b.shape[0]), tl.float32)
    first = at(norm.products + FIRST * H, 0, b, tl.arange(0, BLOCK_K), 3 * H)
    for k in range(0, width, BLOCK_K):
        total += read(first + k, there(k + tl.arange(0, BLOCK_K), b, width, count))
    mean = (tl.sum(total, 0) / width)[None, :]
    for k in range(0, width, BLOCK_K):
        known = there(k + tl.arange(0, BLOCK_K), b, width, count)
        far = tl.where(known, read(first + k, known) - mean, 0.0)
        squares += far * far
    return mean, tl.rsqrt((tl.sum(squares, 0) / width)[None, :] + EPS)


@triton.jit
def load_slopes(norm, d_gates_ptr, d_an_ptr, step, b, FIRST: tl.constexpr, LAST: tl.constexpr, extent, H,
                BLOCK_K: tl.constexpr):  # fmt: skip
    """`slopes` of a product of the gates from FIRST up to, not with, LAST, whose derivatives at a step lie in memory.
    extent: H, or 0 where there are none."""
    total, along = tl.zeros((BLOCK_K, b.shape[0]), tl.float32), tl.zeros((BLOCK_K, b.shape[0]), tl.float32)
    for first in range(0, extent, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        known = there(k, b, H, step.count)
        for gate in tl.static_range(FIRST, LAST):
            if gate == 2 and d_an_ptr is not None:
                d = read(at(d_an_ptr, step.row, b, k, H), known)
            else:
                d = read(at(d_gates_ptr, step.row, b, k, 3 * H) + gate * H, known)
            d *= gain_of(norm, gate, k, H)
            total += d
            along += d * _hat(norm, gate, step.row, b, k, step.count, H)
    number = (LAST - FIRST) * H
    return (tl.sum(total, 0) / number)[None, :], (tl.sum(along, 0) / number)[None, :]


@triton.jit
def own_norm(side, behind, gain_ptr, hats_ptr, rstd_ptr, H, PRODUCTS):
    """`gain`, `hats` and `rstd` of a direction, before which so many rows lie."""
    return gain_ptr + side * (3 * H), hats_ptr + behind * (3 * H), rstd_ptr + behind * (1 if PRODUCTS is None else 2)


@triton.jit
def _hat(norm, gate, row, b, j, count, H):
    return read(at(norm.hats, row, b, j, 3 * H) + gate * H, there(j, b, H, count))
