"""What the kernels of several layers have in common beside `persistent_tiles`: a program's layer, and the waits for the
layers beside it.

A layer that has no layer below it (forward) or above it (backward) waits for a row of zeros, at every step the same:
all layers run one code, and no wait is a branch.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .persistent_tiles import await_rows, await_rows_of, one_look, readable, rows_at, state_rows, tile_at


class Level(NamedTuple):
    """Which of the launch's layers is a program's."""

    number: tl.tensor  # from the lowest, in 64 bits
    is_lowest: tl.tensor
    has_above: tl.tensor
    plane: tl.tensor  # elements of a tensor of one layer, for each value of a unit


@triton.jit
def level_of(own, layers, T, B, S: tl.constexpr):
    """The own layer: batch tiles lie behind each other, the layers of each beside each other."""
    number = (own.group % layers).to(tl.int64)
    return Level(number, number == 0, number + 1 < layers, T.to(tl.int64) * B * S.H)


@triton.jit
def load_stays(stays_ptr, own, here, S: tl.constexpr):
    """Which units' states pass the dropout behind their layer, as it lies in memory; None without any."""
    if stays_ptr is not None:
        return tl.load(tile_at(stays_ptr, here.row, own, 1, S), mask=readable(own, here.count, S), other=0)
    else:
        return None


@triton.jit
def rows_or_zeros(pointer, own, here, moves, VALUES: tl.constexpr, S: tl.constexpr):
    """`rows_at` of a step; where it does not move, `pointer` for all rows and steps."""
    return pointer + (here.row * (VALUES * S.H) + own.row * (VALUES * S.H)) * moves.to(tl.int32)


@triton.jit
def await_pair(output_ptr, h0_ptr, below, own, here, before, i, S: tl.constexpr):
    """Wait for the own layer's state before step number i, and for the layer below's after it, whose rows are at
    `below`."""
    rows = state_rows(output_ptr, h0_ptr, own, here, before, i == 0, S)
    if one_look(output_ptr.dtype.element_ty.primitive_bitwidth, S):
        return await_rows_of((rows, below), own, here, None, S)
    else:
        return await_rows(rows, own, here, None, S), await_rows(below, own, here, None, S)
