"""Several batch tiles in one program: what the loops of both directions of time have in common.

A program that takes several batch tiles goes over them within each step, one after the other, in turns of one loop.
W_hh stays where it is; what else goes from step to step lies in float32 memory of the program's own elements, (B, H).
While a tile's exchange is on its way, the others are worked at.

So all that a turn waits for, as a rule, are its loads. They are made in the turn before it, behind the product, which
frees registers; a first look at what it will wait for is among them (`glance_at_rows`).
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .loop import Step, row_after, step_at, time_of


class Turn(NamedTuple):
    """Which step, and which of the program's batch tiles."""

    i: tl.tensor  # number of the step, as the launch takes them
    k: tl.tensor
    here: tl.tensor  # the step
    before: tl.tensor  # the one that the launch took before it


@triton.jit
def turn_after(turn, count, offsets_ptr, T, B, direction, PACKED: tl.constexpr):
    """The next one, of so many tiles a step. Behind the last stands one at rows that exist, for loads that nothing
    uses. direction: in which the launch takes the steps, see loop.py."""
    last = turn.k + 1 == count
    i, here = tl.where(last, turn.i + 1, turn.i), turn.here
    if PACKED:
        following = step_at(offsets_ptr, time_of(tl.minimum(i, T - 1), T, direction), B, PACKED)
    else:
        following = Step(tl.where(last, row_after(here, turn.i, T, B, direction), here.row), here.count)
    before = Step(tl.where(last, here.row, turn.before.row), tl.where(last, here.count, turn.before.count))
    return Turn(i, tl.where(last, 0, turn.k + 1), following, before)
