"""Products with awaited rows where columns of W_hh are fetched (see fetched.py): the rows come in parts.

A whole tile takes as long to come from L2 as its product takes, or longer, and registers hold no more than one. So a
tile is looked at in halves, each of several pieces, or whole where it has 8 sequences, or a program more hidden units
and fewer pieces: while one such part is multiplied, the next one is on its way, be it of the same tile or of the next.
A look ahead of its wait is a first look (`glance_at_tiles` of exchange.py): what it missed is looked at again before
its product. It is made behind the wait before it, not earlier: compilers give all loads that are under way across a
wait the same scoreboard, so that the wait would be for all of them. By counters ("flags"), which say that all of a tile
is there, parts are loaded where they are multiplied.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .exchange import await_flag, await_tiles, glance_at_tiles, later
from .fetched import fetch_ahead, multiply_piece, no_earlier, stacked


class Coming(NamedTuple):
    """Rows that are yet to be waited for."""

    rows: tl.tensor  # where column 0 of each lies, (BLOCK_B,)
    flag: tl.tensor  # as for `await_tile`
    arrivals: tl.tensor
    status_ptr: tl.tensor
    glance: tl.tensor  # at the first part: the words, or the empty tuple: none was made


@triton.jit
def coming(rows, own, step, flag, arrivals, glance, S: tl.constexpr):
    """The own sequences' rows. Those that do not exist are zeros of as many columns: a mask for each chunk would take
    more registers than there are."""
    rows = _existing(rows, own, step, S)
    return Coming(rows, flag, arrivals, own.status_ptr, () if glance is None else glance)


@triton.jit
def _existing(rows, own, step, S: tl.constexpr):
    return tl.where(own.b < step.count, rows, own.nothing_ptr) if S.PACKED else rows


@triton.constexpr_function
def _parts(S):
    """Of a tile: as many as keep a part to so many registers."""
    return 1 if S.BLOCK_B == 8 or S.BLOCK_H > 16 else 2


@triton.constexpr_function
def _first_piece(part, S):
    """Number of the first piece of a part."""
    pieces = S.H // (S.SPLIT * S.DEPTH)
    return min(part * -(-pieces // _parts(S)), pieces)


@triton.jit
def _part(rows, PART: tl.constexpr, S: tl.constexpr):
    """Where its pieces begin."""
    tiles = ()
    for p in tl.static_range(_first_piece(PART, S), _first_piece(PART + 1, S)):
        tiles = tiles + (rows + p * (S.SPLIT * S.DEPTH),)  # type: ignore[assignment]  # noqa: RUF005
    return tiles


@triton.jit
def _glance(rows, status_ptr, PART: tl.constexpr, S: tl.constexpr):
    """A first look. Not earlier than here, or else what is fetched behind it would wait for it."""
    present = tl.full((S.BLOCK_B,), True, tl.int1)
    rows += no_earlier(status_ptr, False, S).to(tl.int64) - status_ptr.to(tl.int64)
    return glance_at_tiles(
        _part(rows, PART, S), present, status_ptr, S.PROTOCOL, S.H, S.SPLIT, S.DEPTH, S.BLOCK_B, False
    )


@triton.jit
def glance_at_first(rows, own, step, S: tl.constexpr):
    """A first look at the first part of rows that will be waited for later."""
    return _glance(_existing(rows, own, step, S), own.status_ptr, 0, S)


@triton.jit
def product(w, x, ahead, PRECISION: tl.constexpr, S: tl.constexpr, a=None):
    """The parts of the product of W_hh with an awaited tile, added to `a` where given, and that tile as
    `fetched.multiply` takes it. w: a left operand, or a Slice where columns are fetched and x is yet to come. ahead: of
    `fetch_ahead`."""
    if S.FETCHED == 0:
        return tl.dot(w, x, a, input_precision=PRECISION), x
    else:
        return sum_of_products((w,), (x,), ahead, PRECISION, S, a)


@triton.jit
def sum_of_products(weights, xs, ahead, PRECISION: tl.constexpr, S: tl.constexpr, a=None, LOOP: tl.constexpr = False,
                    STACK: tl.constexpr = True):  # fmt: skip
    """The sum of `product` over several tiles that are yet to come, and the pieces of all. The first one's flag is for
    all of them. LOOP: as for `fetch_ahead`. STACK: several gates as one; else each by itself."""
    EACH: tl.constexpr = _parts(S)
    PARTS: tl.constexpr = EACH * len(xs)
    first = xs[0]
    wait = tl.full((), 0, tl.int64)  # a zero of which the addresses of all that must come later are made
    if S.PROTOCOL == "flags" and first.flag is not None:
        wait += await_flag(first.flag, first.arrivals, first.status_ptr, S.TIMEOUT)
    glance = first.glance
    if S.PROTOCOL == "data" and len(glance) == 0:
        if first.flag is not None:
            wait += later(first.status_ptr).to(tl.int64) - first.status_ptr.to(tl.int64)
        glance = _glance(first.rows + wait, first.status_ptr, 0, S)
    present = tl.full((S.BLOCK_B,), True, tl.int1)
    sums = None if a is None else (a,)
    fetched, found = ahead, ()
    for n in tl.static_range(PARTS):
        part = _part(xs[n // EACH].rows + wait, n % EACH, S)
        x = await_tiles(
            part, present, first.status_ptr, None, 0, S.PROTOCOL, S.H, S.SPLIT, S.DEPTH, S.BLOCK_B, False, S.TIMEOUT,
            glance, 0,
        )  # fmt: skip
        found = found + x
        if n + 1 < PARTS:
            glance = _glance(xs[(n + 1) // EACH].rows, first.status_ptr, (n + 1) % EACH, S)
        for p in tl.static_range(len(x)):
            sums, fetched = multiply_piece(
                weights[n // EACH], _first_piece(n % EACH, S) + p, x[p], fetched, sums, PRECISION, S, LOOP
            )  # fmt: skip
        if n % EACH == EACH - 1 and n + 1 < PARTS:
            fetched = fetch_ahead(weights[n // EACH + 1], S, LOOP)
    return stacked(sums) if STACK else sums, found
