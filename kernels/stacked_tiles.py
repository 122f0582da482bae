"""What the kernels of several layers have in common beside `persistent_tiles`: a program's layer, and the waits for the
layers beside it.

A layer that has no layer below it (forward) or above it (backward) waits for a row of zeros, at every step the same:
all layers run one code, and no wait is a branch.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .parts import one_gate
from .per_step import absent
from .persistent_tiles import await_rows, await_rows_of, load_columns, one_look, own_tile, readable, state_rows, tile_at


class Level(NamedTuple):
    """Which of the launch's layers is a program's."""

    number: tl.tensor  # from the lowest, in 64 bits
    is_lowest: tl.tensor
    has_above: tl.tensor
    plane: tl.tensor  # elements of a tensor of one layer, for each value of a unit
    behind: tl.tensor  # elements before its own in a tensor that the last layer has no part in


@triton.jit
def _level_of(own, layers, T, B, S: tl.constexpr):
    """The own layer: batch tiles lie behind each other, the layers of each beside each other."""
    number = (own.group % layers).to(tl.int64)
    has_above, plane = number + 1 < layers, T.to(tl.int64) * B * S.H
    return Level(number, number == 0, has_above, plane, tl.where(has_above, number, 0) * plane)


@triton.jit
def own_level(first_tile, layers, T, B, status_ptr, S: tl.constexpr):
    """What this program owns, and its layer."""
    own = own_tile(first_tile, B, status_ptr, S, layers)
    return own, _level_of(own, layers, T, B, S)


@triton.jit
def load_stays(stays_ptr, own, here, S: tl.constexpr):
    """Which units' states pass the dropout behind their layer, as it lies in memory; see `absent`."""
    if stays_ptr is None:
        return ()
    else:
        return tl.load(tile_at(stays_ptr, here.row, own, 1, S), mask=readable(own, here.count, S), other=0)


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


@triton.jit
def load_columns_of(w_ptr, own, S: tl.constexpr):
    """The own units' columns of the three gates' weights: left operands."""
    return load_columns(w_ptr, 0, own, S), load_columns(w_ptr, 1, own, S), load_columns(w_ptr, 2, own, S)


@triton.jit
def rows_of_gates(pointer, own, here, moves, S: tl.constexpr):
    """`rows_or_zeros` of the derivatives by three gates."""
    rows = rows_or_zeros(pointer, own, here, moves, 3, S)
    return rows, rows + S.H, rows + 2 * S.H


@triton.constexpr_function
def _at_once(tiles, bits):
    """How many of so many tiles, whose parts have rows of so many bits, a program looks at together: registers
    hold four of 64 columns of 16 bits."""
    return tiles if tiles * bits <= 4096 or tiles < 4 else tiles // 2


@triton.jit
def await_all(tiles, own, here, S: tl.constexpr):
    """Wait for several tiles, with as few looks as registers allow."""
    BITS: tl.constexpr = tiles[0].dtype.element_ty.primitive_bitwidth
    found = ()
    if one_look(BITS, S):
        AT_ONCE: tl.constexpr = _at_once(len(tiles), S.DEPTH * BITS)
        for first in tl.static_range(0, len(tiles), AT_ONCE):
            some = await_rows_of(tiles[first : first + AT_ONCE], own, here, None, S)
            found = found + some  # type: ignore[assignment]
    else:
        for i in tl.static_range(len(tiles)):
            found = found + (await_rows(tiles[i], own, here, None, S),)  # type: ignore[assignment]  # noqa: RUF005
    return found


@triton.jit
def share_of_gates(weights, tiles, PRECISION: tl.constexpr, S: tl.constexpr):
    """The sum of the products of three gates' weights and derivatives."""
    a = tl.dot(weights[0], tiles[0], input_precision=PRECISION)
    a = tl.dot(weights[1], tiles[1], a, input_precision=PRECISION)
    a = tl.dot(weights[2], tiles[2], a, input_precision=PRECISION)
    return one_gate(a, S.SPLIT, S.BLOCK_H, S.BLOCK_B)


@triton.jit
def passed_down(d, stays, scale):
    """A derivative by what the layer above saw, as one by the state."""
    return d if absent(stays) else d * tl.where(stays != 0, scale, 0.0)
