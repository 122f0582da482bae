"""Tiles of hidden units by sequences, (BLOCK_H, BLOCK_B): where they lie, and what several schedules do with them.

`j` are a tile's hidden units, `b` its sequences, `k` the columns that a product sums over. Arithmetic is in float32.
"""

import triton
import triton.language as tl
from triton.language.target_info import is_hip


@triton.jit
def at(pointer, row, b, j, width):
    """Addresses of a (j, b) tile in rows of `width` elements, of which `row` is the first; counted in 64 bits."""
    return pointer + ((row + b).to(tl.int64)[None, :] * width + j[:, None])


@triton.jit
def unknown_zero():
    """0, which no compiler knows: grids have no third axis. An address that has it as a part, made behind a loop, is
    not kept in registers through the loop."""
    return tl.program_id(2)


@triton.jit
def there(j, b, H, count):
    """Which elements of a (j, b) tile exist."""
    return (j < H)[:, None] & (b < count)[None, :]


@triton.jit
def read(pointers, mask):
    """Elements in float32; 0 where there is none."""
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_gates(pointers, mask, H):
    """Three values of each unit, H apart, as they lie in memory."""
    r = tl.load(pointers, mask=mask, other=0.0)
    z = tl.load(pointers + H, mask=mask, other=0.0)
    n = tl.load(pointers + 2 * H, mask=mask, other=0.0)
    return r, z, n


@triton.jit
def read_gates(pointers, mask, H):
    """Three values of each unit, H apart."""
    return read(pointers, mask), read(pointers + H, mask), read(pointers + 2 * H, mask)


@triton.jit
def write(pointers, x, mask):
    """Store in the memory's dtype."""
    tl.store(pointers, x.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def write_gates(pointers, values, mask, H):
    """Store several values of each unit, H apart."""
    for g in tl.static_range(len(values)):
        write(pointers + g * H, values[g], mask)


@triton.jit
def either(side, first, second):
    """What is the first direction's, or the second's."""
    return tl.where(side == 0, first, second)


@triton.jit
def load_state(output_ptr, h0_ptr, b, k, here, before, H, width, live=None):
    """A (k, b) tile of the state before the step `here`: output, in rows of `width` elements, of the step before, of
    which `before` counts those sequences that are alive here too, or h0 for sequences that start here. One load from
    either: of two that are summed, a pipeline would copy neither to shared memory. Triton's compiler for AMD's GPUs
    fails at addresses that are chosen. live: of the elements, those to be loaded; None: all that exist."""
    mask = there(k, b, H, here.count) if live is None else live
    if is_hip():
        carried = (b < before.count)[None, :]
        x = tl.load(at(output_ptr, before.row, b, k, width), mask=mask & carried, other=0.0)
        x += tl.load(at(h0_ptr, 0, b, k, H), mask=mask & ~carried, other=0.0)
    else:
        row = output_ptr + (before.row + b).to(tl.int64) * width
        rows = tl.where(b < before.count, row, h0_ptr + b.to(tl.int64) * H)
        x = tl.load(rows[None, :] + k[:, None], mask=mask, other=0.0)
    return x


@triton.jit
def load_weight(w_hh_ptr, gate, j, k, H):
    """The (j, k) tile of one gate's recurrent weights."""
    at = (gate * H + j).to(tl.int64)[:, None] * H + k[None, :]
    return tl.load(w_hh_ptr + at, mask=(j < H)[:, None] & (k < H)[None, :], other=0.0)


@triton.jit
def load_weight_transposed(w_hh_ptr, gate, k, j, H):
    """The (j, k) tile of the transpose of one gate's recurrent weights."""
    at = (gate * H + k).to(tl.int64)[None, :] * H + j[:, None]
    return tl.load(w_hh_ptr + at, mask=(j < H)[:, None] & (k < H)[None, :], other=0.0)
