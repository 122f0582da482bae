"""Tiles of row-major matrices: where they lie, and the loads that several schedules share."""

import triton
import triton.language as tl


@triton.jit
def tile(rows, row_stride, columns, H):
    """Offsets of a (columns, rows) tile of a row-major matrix, in 64 bits, and where the columns are inside H."""
    return rows.to(tl.int64)[None, :] * row_stride + columns[:, None], columns[:, None] < H


@triton.jit
def load_state(output_ptr, h0_ptr, b, k, row_before, carried, count, H):
    """A (k, b) tile of the state before the step: output of the step before, or h0 for sequences that start here."""
    before, inside = tile(row_before + b, H, k, H)
    x = tl.load(output_ptr + before, mask=inside & (b < carried)[None, :], other=0.0)
    start, _ = tile(b, H, k, H)
    return x + tl.load(h0_ptr + start, mask=inside & ((b >= carried) & (b < count))[None, :], other=0.0)


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


@triton.jit
def rows_of(offsets_ptr, t, B, PACKED: tl.constexpr):
    """Step t's first row, in 64 bits, and how many sequences are alive at it."""
    if PACKED:
        row = tl.load(offsets_ptr + t)
        count = (tl.load(offsets_ptr + t + 1) - row).to(tl.int32)
    else:
        row = t.to(tl.int64) * B
        count = B
    return row, count
