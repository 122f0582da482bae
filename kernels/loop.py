"""The loop over time as a kernel counts it: which step comes when, where its rows lie, and which step ran before it.

A kernel names the step that it is at `here`, the one that forward took before it `before`.
"""

from typing import NamedTuple

import triton
import triton.language as tl


class Step(NamedTuple):
    """A time step within a kernel."""

    row: tl.tensor  # its first row
    count: tl.tensor  # sequences alive at it


@triton.jit
def time_of(i, T, REVERSE: tl.constexpr):
    """The time step that forward takes as number i."""
    t = T - 1 - i if REVERSE else i
    return t


@triton.jit
def step_at(offsets_ptr, t, B, PACKED: tl.constexpr):
    """Step t; its row in 64 bits."""
    if PACKED:
        row = tl.load(offsets_ptr + t)
        count = (tl.load(offsets_ptr + t + 1) - row).to(tl.int32)
    else:
        row = t.to(tl.int64) * B
        count = B
    return Step(row, count)


@triton.jit
def step_or_none(offsets_ptr, t, T, B, PACKED: tl.constexpr):
    """Step t; where there is none, one at a row that exists, and in a packed sequence without any sequence alive.

    A persistent kernel's loop takes fewer instructions with it than with `step_at`, even where the step exists."""
    step = step_at(offsets_ptr, tl.minimum(tl.maximum(t, 0), T - 1), B, PACKED)
    count = tl.where((t >= 0) & (t < T), step.count, 0) if PACKED else step.count
    return Step(step.row, count)
