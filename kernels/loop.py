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
def time_of(i, T, direction):
    """The time step that forward takes as number i; direction: 1, or -1 where it runs from the last to the first."""
    return tl.where(direction > 0, 0, T - 1) + i * direction


@triton.jit
def rows_of_all(offsets_ptr, T, B, PACKED: tl.constexpr):
    """Rows of all steps together; in 64 bits."""
    if PACKED:
        return tl.load(offsets_ptr + T)
    else:
        return T.to(tl.int64) * B


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
    """Step t; where there is none, one at a row that exists, and in a packed sequence without any sequence alive."""
    step = step_at(offsets_ptr, tl.minimum(tl.maximum(t, 0), T - 1), B, PACKED)
    count = tl.where((t >= 0) & (t < T), step.count, 0) if PACKED else step.count
    return Step(step.row, count)


@triton.jit
def before_first(T, B, direction):
    """What stands for the step before the first, for `step_after`: no sequence is alive."""
    return Step(time_of(-1, T, direction).to(tl.int64) * B, B * 0)


@triton.jit
def step_after(before, offsets_ptr, i, T, B, direction, PACKED: tl.constexpr):
    """The step that forward takes as number i, after `before`: in a padded sequence one addition leads to it."""
    if PACKED:
        return step_at(offsets_ptr, time_of(i, T, direction), B, PACKED)
    else:
        return Step(before.row + direction.to(tl.int64) * B, B)


@triton.jit
def row_after(here, i, T, B, direction):
    """In a padded sequence, first row of the step that forward takes after `here`, its number i; behind the last that
    of the last itself, for loads that nothing uses."""
    return here.row + tl.where(i + 1 < T, direction.to(tl.int64) * B, 0)


@triton.jit
def step_ahead(here, offsets_ptr, i, T, B, direction, PACKED: tl.constexpr):
    """The step that forward takes after `here`, its number i; behind the last that itself, for loads that nothing
    uses."""
    if PACKED:
        return step_at(offsets_ptr, time_of(tl.minimum(i + 1, T - 1), T, direction), B, PACKED)
    else:
        return Step(row_after(here, i, T, B, direction), B)


@triton.jit
def steps_back(offsets_ptr, i, T, B, direction, PACKED: tl.constexpr):
    """For a loop against forward: the time step that forward takes as number i, that step, and the one before it, or as
    `step_or_none` where there is none."""
    t = time_of(i, T, direction)
    return t, step_or_none(offsets_ptr, t, T, B, PACKED), step_or_none(offsets_ptr, t - direction, T, B, PACKED)


@triton.jit
def last_steps(offsets_ptr, T, B, direction, PACKED: tl.constexpr):
    """The same of forward's last step."""
    return steps_back(offsets_ptr, T - 1, T, B, direction, PACKED)


@triton.jit
def next_steps(offsets_ptr, i, t, here, before, T, B, direction, PACKED: tl.constexpr):
    """The same a turn of the loop later; i: its number. Behind the last stands that itself, for loads that nothing
    uses."""
    if PACKED:
        last = i + 1 == T
        following = Step(tl.where(last, here.row, before.row), tl.where(last, here.count, before.count))
        return t - direction, following, step_or_none(offsets_ptr, t - 2 * direction, T, B, PACKED)
    else:  # an addition to what is there: `before` stops at the first step
        row = tl.where(i + 2 < T, before.row - direction.to(tl.int64) * B, before.row)
        return t, before, Step(row, B)
