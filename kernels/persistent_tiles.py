"""What the persistent kernels of both directions of time have in common: which tile is a program's own, the weights
that it keeps, where a step's values lie, and the waits for them.

Tiles are (BLOCK_B, BLOCK_H), hidden units fastest, as in memory. Offsets within a step are counted in 32 bits.

A tile that the batch does not fill has sequences that do not exist. In a padded sequence they read the last one's rows
instead, and compute what it computes, so that no load and no wait has a mask for them; what they have is not stored.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .exchange import await_tile, await_tiles, by_thread, first_flag, glance_at_tiles
from .fetched import slice_of
from .fetched_products import coming, glance_at_first
from .fragments import load_weights
from .loop import before_first, rows_of_all
from .per_step import Place, absent, begin_back, done, row_of
from .tiles import either, read, write

# They change from launch to launch: specialising on them would compile the kernel again and again.
PER_LAUNCH = ["T", "B", "first_tile", "direction", "number", "tiles", "zoneout_below", "dropped_below"]


class Shape(NamedTuple):
    """What a kernel is compiled for, but for what only it has."""

    SIDES: tl.constexpr  # directions of time in the launch
    H: tl.constexpr
    ADDED: tl.constexpr  # of the H hidden units, the last so many (see widen.py)
    PACKED: tl.constexpr
    EVEN_H: tl.constexpr  # all hidden units of all tiles exist
    EVEN_K: tl.constexpr  # all columns of all warps' parts exist
    PROTOCOL: tl.constexpr
    TIMEOUT: tl.constexpr
    SPLIT: tl.constexpr
    DEPTH: tl.constexpr
    BLOCK_H: tl.constexpr
    BLOCK_B: tl.constexpr
    FETCHED: tl.constexpr  # pieces of columns that registers do not hold (see fetched.py)


class Own(NamedTuple):
    """What a program has for itself."""

    group: tl.tensor  # number of the programs that wait for each other: of its batch tile and direction
    j: tl.tensor  # its hidden units, (BLOCK_H,)
    b: tl.tensor  # its sequences, (BLOCK_B,)
    row: tl.tensor  # where their rows lie within a step, (BLOCK_B,)
    status_ptr: tl.tensor  # see exchange.py
    packed_ptr: tl.tensor  # see fetched.py, where columns are fetched
    nothing_ptr: tl.tensor  # (H,) zeros, where columns are fetched and the batch is packed


class Side(NamedTuple):
    """A program's direction of time, of those that its launch has. Where tensors hold one behind the other, so much
    lies before its own; nothing where one runs."""

    number: tl.tensor  # 0 or 1
    rows: tl.tensor  # of all steps
    sequences: tl.tensor
    direction: tl.tensor  # see loop.py


@triton.jit
def own_tile(first_tile, B, status_ptr, S: tl.constexpr, layers=None, tiles=None, packed_ptr=None,
             nothing_ptr=None):  # fmt: skip
    """What this program owns. first_tile: number of the launch's first group, of batch tiles in one direction, or of
    batch tiles and both directions of each; where a launch has several layers, of batch tiles and the layers of
    each. tiles: how many a program takes, one after the other, or None: one; it owns the first of them."""
    group = tl.program_id(1) + first_tile
    together = S.SIDES if layers is None else layers
    tile = group if together == 1 else group // together
    if tiles is not None:
        group += tile * (tiles - 1) * together
        tile *= tiles
    j = tl.program_id(0) * S.BLOCK_H + tl.arange(0, S.BLOCK_H)
    b = tile * S.BLOCK_B + tl.arange(0, S.BLOCK_B)
    row = b if S.PACKED else tl.minimum(b, B - 1)
    # Before 3.6 Triton returns no tuple with None in it.
    packed = status_ptr if packed_ptr is None else packed_ptr
    nothing = status_ptr if nothing_ptr is None else nothing_ptr
    return Own(group, j, b, row, status_ptr, packed, nothing)


@triton.jit
def number_of_tiles(own, tiles, B, S: tl.constexpr):
    """How many of the batch tiles that a program takes exist; own: of the first."""
    return tl.minimum(tiles, tl.cdiv(B, S.BLOCK_B) - own.group // S.SIDES)


@triton.jit
def tile_of(own, k, B, S: tl.constexpr):
    """What a program owns of its batch tile number k; own: of the first."""
    b = own.b + k * S.BLOCK_B
    at = b if S.PACKED else tl.minimum(b, B - 1)
    return Own(own.group + k * S.SIDES, own.j, b, at, own.status_ptr, own.packed_ptr, own.nothing_ptr)


@triton.jit
def own_side(own, offsets_ptr, T, B, direction, S: tl.constexpr):
    """A Side. direction: of a single one."""
    if S.SIDES == 1:
        none = tl.full((), 0, tl.int64)
        return Side(none, none, none, direction)
    else:
        side = own.group % 2
        rows, number = side * rows_of_all(offsets_ptr, T, B, S.PACKED), side.to(tl.int64)
        return Side(number, rows, number * B, 1 - 2 * side)


@triton.jit
def of_side(side, first, second):
    """What is the first direction's, or the second's, or None: one runs."""
    return first if second is None else either(side.number, first, second)


@triton.jit
def flags_of(own, exchange, T, B, S: tl.constexpr):
    """The counters of an exchange, one for each step as the launch takes them (see exchange.py)."""
    return first_flag(own.status_ptr, exchange, own.group, S.SIDES * tl.cdiv(B, S.BLOCK_B), T)


@triton.jit
def there(own, count, S: tl.constexpr):
    """Which elements of the own tile exist, and are stored."""
    return (own.b < count)[:, None] & _units(own, S)


@triton.jit
def readable(own, count, S: tl.constexpr):
    """Which elements of the own tile are loaded; a constant where all are, which leaves loads without a mask."""
    rows = (own.b < count)[:, None] if S.PACKED else tl.full((S.BLOCK_B, 1), True, tl.int1)
    return rows & _units(own, S)


@triton.jit
def own_place(own, B, S: tl.constexpr):
    """The own tile for the loads of per_step.py, which are of padded sequences."""
    alive = tl.full((S.BLOCK_B,), True, tl.int1)
    return Place(own.j[None, :], own.row[:, None], own.row, alive, readable(own, B, S), S.H)


@triton.jit
def _units(own, S: tl.constexpr):
    return tl.full((1, S.BLOCK_H), True, tl.int1) if S.EVEN_H else (own.j < S.H)[None, :]


@triton.jit
def units_only(x, own, S: tl.constexpr):
    """x, with zeros in the place of added units: before they are published or lead to what is, for zero weights make
    NaN of what is infinite."""
    return x if S.ADDED == 0 else tl.where((own.j < S.H - S.ADDED)[None, :], x, 0.0)


@triton.jit
def where_alive(own, step, new, old, S: tl.constexpr):
    """`new` for sequences that are alive at a step, `old` for the others."""
    return tl.where((own.b < step.count)[:, None], new, old) if S.PACKED else new


@triton.jit
def rows_at(pointer, row, own, VALUES: tl.constexpr, S: tl.constexpr):
    """Where the rows of the own sequences begin, (BLOCK_B,), in a tensor of so many values of each unit; `row`: first
    row of the step."""
    return pointer + row * (VALUES * S.H) + own.row * (VALUES * S.H)


@triton.jit
def tile_at(pointer, row, own, VALUES: tl.constexpr, S: tl.constexpr, NUMBER: tl.constexpr = 0):
    """Addresses of the own tile's values of that number. What is one for the tile is summed first: the other way round
    a step took up to 5 % more instructions."""
    return pointer + row * (VALUES * S.H) + NUMBER * S.H + (own.row[:, None] * (VALUES * S.H) + own.j[None, :])


@triton.jit
def state_rows(output_ptr, h0_ptr, own, here, before, first, S: tl.constexpr):
    """Where the rows of the state before a step begin: in the output, or in h0 for sequences that start here."""
    rows = output_ptr + before.row * (S.SIDES * S.H)
    if S.PACKED:
        carried = tl.minimum(here.count, before.count)
        return tl.where(own.b < carried, rows + own.row * (S.SIDES * S.H), h0_ptr + own.row * S.H)
    elif S.SIDES == 1:
        return tl.where(first, h0_ptr, rows) + own.row * S.H
    else:
        return tl.where(first, h0_ptr, rows) + own.row * tl.where(first, S.H, S.SIDES * S.H)


@triton.jit
def _awaited(own, step, S: tl.constexpr):
    """Which of the own sequences' rows are waited for."""
    return own.b < step.count if S.PACKED else tl.full((S.BLOCK_B,), True, tl.int1)


@triton.jit
def glance_at_rows(tiles, own, step, S: tl.constexpr):
    """A first look at rows of one tile or several that will be awaited later; where columns are fetched, at a part of
    the first."""
    if S.FETCHED:
        return glance_at_first(tiles[0], own, step, S)
    else:
        MASKED: tl.constexpr = S.PACKED or not S.EVEN_K
        return glance_at_tiles(
            tiles, _awaited(own, step, S), own.status_ptr, S.PROTOCOL, S.H, S.SPLIT, S.DEPTH, S.BLOCK_B, MASKED
        )


@triton.jit
def _await(rows, own, step, flag, arrivals, S: tl.constexpr, glance=None):
    if S.FETCHED:
        return coming(rows, own, step, flag, arrivals, glance, S)
    else:
        MASKED: tl.constexpr = S.PACKED or not S.EVEN_K
        return await_tile(
            rows, _awaited(own, step, S), own.status_ptr, flag, arrivals, S.PROTOCOL, S.H, S.SPLIT, S.DEPTH, S.BLOCK_B,
            MASKED, S.TIMEOUT, glance,
        )  # fmt: skip


@triton.jit
def await_rows(rows, own, step, flag, S: tl.constexpr, arrivals=None, glance=None):
    """Wait for the H columns of the own sequences' rows, from all programs of the tile: a right operand (see
    exchange.py); where columns are fetched, rows that are yet to come (see fetched_products.py). arrivals: of programs,
    where not all are awaited."""
    if arrivals is None:
        arrivals = tl.cdiv(S.H, S.BLOCK_H)
    return _await(rows, own, step, flag, arrivals, S, glance)


@triton.jit
def await_state(output_ptr, h0_ptr, own, here, before, i, flags, S: tl.constexpr, glance=None):
    """Wait for the state before step number i; at the first it is there."""
    rows = state_rows(output_ptr, h0_ptr, own, here, before, i == 0, S)
    arrivals = tl.where(i == 0, 0, tl.cdiv(S.H, S.BLOCK_H))
    return _await(rows, own, here, flags + tl.maximum(i - 1, 0), arrivals, S, glance)


@triton.constexpr_function
def one_look(bits, S):
    """Whether a program looks at several tiles at once: with masks that takes more registers than there are, and
    waiting as a whole has no such look."""
    masked = S.PACKED or not S.EVEN_K
    return S.FETCHED == 0 and not (masked and S.DEPTH * bits > 1024) and by_thread(bits, S.H, S.SPLIT)


@triton.jit
def await_rows_of(tiles, own, step, flag, S: tl.constexpr, arrivals=None, glance=None):
    """`await_rows` for several tiles with one look at all of them. arrivals: of programs, where not all are awaited."""
    MASKED: tl.constexpr = S.PACKED or not S.EVEN_K
    if arrivals is None:
        arrivals = tl.cdiv(S.H, S.BLOCK_H)
    return await_tiles(
        tiles, _awaited(own, step, S), own.status_ptr, flag, arrivals, S.PROTOCOL, S.H, S.SPLIT, S.DEPTH,
        S.BLOCK_B, MASKED, S.TIMEOUT, glance,
    )  # fmt: skip


@triton.jit
def load_rows(w_hh_ptr, FIRST: tl.constexpr, GATES: tl.constexpr, own, S: tl.constexpr, ABSENT: tl.constexpr = None):
    """The own units' rows of W_hh, so many gates from number FIRST on stacked in one left operand. Beyond n it is n
    again: a fourth gate makes three a power of two. Zeros in place number ABSENT."""
    if S.FETCHED:
        return slice_of(w_hh_ptr, FIRST, 3 if GATES == 4 else GATES, False, own, S)
    else:
        line = tl.arange(0, GATES * S.BLOCK_H)
        unit = tl.program_id(0) * S.BLOCK_H + line % S.BLOCK_H
        rows = w_hh_ptr + (tl.minimum(FIRST + line // S.BLOCK_H, 2) * S.H + unit) * S.H
        MASKED: tl.constexpr = ABSENT is not None or not (S.EVEN_H and S.EVEN_K)
        exists = unit < S.H
        if ABSENT is not None:
            exists = exists & (line // S.BLOCK_H != ABSENT)
        return load_weights(
            rows, own.status_ptr, exists, S.H, 1, S.SPLIT, S.DEPTH, GATES * S.BLOCK_H, MASKED
        )  # fmt: skip


@triton.jit
def load_columns(w_hh_ptr, gate, own, S: tl.constexpr):
    """The own units' columns of a gate's W_hh: a left operand."""
    if S.FETCHED:
        return slice_of(w_hh_ptr, gate, 1, True, own, S)
    else:
        columns = w_hh_ptr + gate * S.H * S.H + own.j
        MASKED: tl.constexpr = not (S.EVEN_H and S.EVEN_K)
        return load_weights(columns, own.status_ptr, own.j < S.H, S.H, S.H, S.SPLIT, S.DEPTH, S.BLOCK_H, MASKED)


@triton.jit
def load_start(h0_ptr, own, T, B, direction, S: tl.constexpr):
    """The own tile of h0, and what stands for the step before the first."""
    h = read(tile_at(h0_ptr, 0, own, 1, S), there(own, B, S))
    return h, before_first(T, B, direction)


@triton.jit
def load_inputs(gates_in_ptr, own, here, S: tl.constexpr):
    """The input's share of the pre-activations of r, z, n, as it lies in memory: a conversion would wait for it."""
    gates, mask = tile_at(gates_in_ptr, here.row, own, 3, S), readable(own, here.count, S)
    r = tl.load(gates, mask=mask, other=0.0)
    z = tl.load(gates + S.H, mask=mask, other=0.0)
    n = tl.load(gates + 2 * S.H, mask=mask, other=0.0)
    return r, z, n


@triton.jit
def keep(reserve_ptr, own, here, values, S: tl.constexpr):
    """Store what backward needs of a step."""
    VALUES: tl.constexpr = len(values)
    for g in tl.static_range(VALUES):
        write(tile_at(reserve_ptr, here.row, own, VALUES, S, g), values[g], there(own, here.count, S))


@triton.jit
def load_step(kept, own, here, before, first, GATES: tl.constexpr, S: tl.constexpr, is_last=None, words=None,
              Z: tl.constexpr = 1.0):  # fmt: skip
    """What a step's derivatives need, as it lies in memory: dy, the state before, r, z, n and for "torch" W_hn h + b_hn
    (else n again). kept: pointers to the output's derivative, h0, the output and the reserve. is_last: where a launch
    has several layers, whether the own layer's output is the last one's; of others dy is 0. words: as `load_words` has
    them; where they carry the state on, gates are those that do: Z for z, 0 for the others."""
    grad_output_ptr, h0_ptr, output_ptr, reserve_ptr = kept
    mask = readable(own, here.count, S)
    has_dy = mask if is_last is None else mask & is_last
    dy = tl.load(tile_at(grad_output_ptr, here.row, own, S.SIDES, S), mask=has_dy, other=0.0)
    state = state_rows(output_ptr, h0_ptr, own, here, before, first, S)
    h = tl.load(state[:, None] + own.j[None, :], mask=mask, other=0.0)
    reserve = tile_at(reserve_ptr, here.row, own, GATES, S)
    COUNTED: tl.constexpr = words is not None and not absent(words)
    if COUNTED:
        mask &= done(words)
    r = tl.load(reserve, mask=mask, other=0.0)
    z = tl.load(reserve + S.H, mask=mask, other=Z if COUNTED else 0.0)
    n = tl.load(reserve + 2 * S.H, mask=mask, other=0.0)
    an = tl.load(reserve + (GATES - 1) * S.H, mask=mask, other=0.0)
    return dy, h, r, z, n, an


@triton.jit
def in_float32(step):
    """`load_step`'s values for arithmetic: not before they are used, for a conversion waits for its load."""
    dy, h, r, z, n, an = step
    return dy.to(tl.float32), h.to(tl.float32), r.to(tl.float32), z.to(tl.float32), n.to(tl.float32), an.to(tl.float32)


@triton.jit
def before_step(beside, d_begin, beginning, own, step, exists, S: tl.constexpr):
    """From the derivative by the state that a step begins from, which is kept where asked for of what `exists`, that by
    the state before it."""
    if beside.d_begin is not None:
        write(tile_at(beside.d_begin, row_of(beside, step.row), own, 1, S), d_begin, exists)
    return begin_back(d_begin, beginning)
