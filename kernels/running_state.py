"""The state that runs from step to step of the persistent forward kernels: how it begins, what is awaited of it, and
what a step passes on. Where a step begins from something else than the state before, `begins` is exchanged instead;
see persistent_forward.py and per_step.py.
"""

import triton
import triton.language as tl

from .exchange import publish
from .per_step import begun, load_beginning, load_dropped, row_of, seen
from .persistent_tiles import (
    await_rows,
    await_state,
    flags_of,
    glance_at_rows,
    own_place,
    rows_at,
    state_rows,
    there,
    tile_at,
    tile_of,
    where_alive,
)
from .tiles import read, write


@triton.jit
def await_seen(beside, output_ptr, h0_ptr, own, here, before, i, flags, S: tl.constexpr, glance=None):
    """Wait for what the products of step number i see."""
    if beside.begins is None:
        return await_state(output_ptr, h0_ptr, own, here, before, i, flags, S, glance)
    else:
        return await_rows(
            rows_at(beside.begins, row_of(beside, here.row), own, 1, S), own, here, flags + i, S, None, glance
        )


@triton.jit
def glance_at_seen(beside, output_ptr, h0_ptr, own, here, before, i, S: tl.constexpr):
    """A first look at the same."""
    if beside.begins is None:
        return glance_at_rows((state_rows(output_ptr, h0_ptr, own, here, before, i == 0, S),), own, here, S)
    else:
        return glance_at_rows((rows_at(beside.begins, row_of(beside, here.row), own, 1, S),), own, here, S)


@triton.jit
def begin_from(beside, h, row, beginning, dropped, own, exists, flag, S: tl.constexpr):
    """After the state h, the one that the step at that row begins from; what its products see is published."""
    if beside.begins is not None:
        h = begun(h, beginning)
        to = tile_at(beside.begins, row_of(beside, row), own, 1, S)
        publish(to, seen(h, dropped), exists, flag, S.PROTOCOL)
    return h


@triton.jit
def pass_on(beside, output_ptr, h, new, row, beginning, dropped, own, here, i, T, flags, S: tl.constexpr):
    """The running state after step number i, which ended with `new`; what the next step, at `row`, needs of it is
    published, and the output is written."""
    if beside.begins is None:
        publish(tile_at(output_ptr, here.row, own, S.SIDES, S), new, there(own, here.count, S), flags + i, S.PROTOCOL)
        return where_alive(own, here, new, h, S)
    else:  # behind the last step nothing begins: nothing is stored, and a counter that nobody awaits any more counts on
        exists, flag = there(own, here.count, S), flags + tl.minimum(i + 1, T - 1)
        begin = begin_from(beside, new, row, beginning, dropped, own, exists & (i + 1 < T), flag, S)
        write(tile_at(output_ptr, here.row, own, S.SIDES, S), new, exists)
        return begin


@triton.jit
def first_state(beside, h0_ptr, own, B, row, flags, S: tl.constexpr):
    """The running state before the first step, which is at `row`, and what of it the products of all steps see."""
    place, exists = own_place(own, B, S), there(own, B, S)
    h, dropped = read(tile_at(h0_ptr, 0, own, 1, S), exists), load_dropped(beside, place)
    return begin_from(beside, h, row, load_beginning(beside, row, place), dropped, own, exists, flags, S), dropped


@triton.jit
def first_states(beside, h0_ptr, state_ptr, first, count, row, T, B, S: tl.constexpr):
    """`first_state` for so many batch tiles, into the memory of the running states."""
    for k in range(count):
        own = tile_of(first, k, B, S)
        h, _ = first_state(beside, h0_ptr, own, B, row, flags_of(own, 0, T, B, S), S)
        write(tile_at(state_ptr, 0, own, 1, S), h, there(own, B, S))
