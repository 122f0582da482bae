"""Columns of W_hh that registers do not hold: a program loads them again in every step.

Where hidden_size is so large that a program's slice of W_hh does not fit its registers, its columns are cut into pieces
of SPLIT * DEPTH, DEPTH of them a warp. The first pieces stay in registers, as elsewhere; of the last FETCHED the host
makes a copy in the order in which threads multiply them (`packed`), which a program reads in every step, and finds in
the L1 cache: nothing else that a step loads stays there, for looks go to L2. The loads wait for no other program. Those
of the first piece are made before the wait, the others one piece ahead of its product.

A warp's load is 512 bytes in a row: 8 rows of 4 chunks (see fragments.py), so that no two lanes want the same bank.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .config import PersistentConfig
from .fragments import left_operand, load_weights, numbers

_GATES = tl.constexpr(3)
_ROWS = tl.constexpr(2)  # of a thread, 8 rows apart, in one assembly


class Slice(NamedTuple):
    """The own units' part of W_hh, of one gate or several."""

    kept: tuple  # for each piece in registers, each gate's left operand
    packed: tl.tensor  # where the others lie


def packed(w_hh: Tensor, config: PersistentConfig, transposed: bool) -> Tensor:
    """Copy the columns of W_hh, or `transposed` its rows, that programs fetch: (programs, pieces, warps, gates and
    their units, elements), chunks of 16 bytes in the order of lanes.

    Args:
        w_hh: (3H, H), contiguous, H a multiple of a piece.
    """
    hidden_size, chunk, units = w_hh.shape[-1], 16 // w_hh.element_size(), config.block_h
    each = config.piece(w_hh.dtype)
    first = hidden_size - config.fetched * each
    parts = (config.fetched, config.num_warps, each // config.num_warps // (4 * chunk), 4, chunk)
    if transposed:
        rows = w_hh.view(3, hidden_size, hidden_size).narrow(1, first, hidden_size - first)
        split = rows.unflatten(2, (-1, units)).unflatten(1, parts)  # gate, piece, warp, group, lane, element, j, unit
        return split.permute(6, 1, 2, 3, 0, 7, 4, 5).contiguous()
    split = w_hh.view(3, -1, units, hidden_size).narrow(3, first, hidden_size - first).unflatten(3, parts)
    return split.permute(1, 3, 4, 5, 0, 2, 6, 7).contiguous()


@triton.jit
def slice_of(w_hh_ptr, packed_ptr, FIRST: tl.constexpr, GATES: tl.constexpr, TRANSPOSED: tl.constexpr, j, status_ptr,
             S: tl.constexpr):  # fmt: skip
    """That of units j, of so many gates from number FIRST on."""
    PIECE: tl.constexpr = S.SPLIT * S.DEPTH
    ROW: tl.constexpr = 1 if TRANSPOSED else S.H
    COLUMN: tl.constexpr = S.H if TRANSPOSED else 1
    kept = ()
    for p in tl.static_range(S.H // PIECE - S.FETCHED):
        gates = ()
        for g in tl.static_range(GATES):
            rows = w_hh_ptr + (FIRST + g) * S.H * S.H + p * PIECE * COLUMN + j * ROW
            x = load_weights(rows, status_ptr, j < S.H, S.H, COLUMN, S.SPLIT, S.DEPTH, S.BLOCK_H, False)
            gates = gates + (x,)  # noqa: RUF005, Triton knows no unpacking
        kept = kept + (gates,)  # noqa: RUF005
    own = tl.program_id(0).to(tl.int64) * (S.FETCHED * PIECE * _GATES * S.BLOCK_H)
    CHUNKS: tl.constexpr = 4 * (128 // w_hh_ptr.dtype.element_ty.primitive_bitwidth)
    return Slice(kept, packed_ptr + own + FIRST * S.BLOCK_H * CHUNKS)


@triton.constexpr_function
def _elements(bits):
    """Of a half of a chunk."""
    return 64 // bits


@triton.constexpr_function
def _fetch_assembly(bits):
    """The chunks of two rows. Results: one half of both chunks, word by word, then the other (see fragments.py).
    Operands: the address of its chunk, for every element of a half; the elements' numbers, 16 more in the second
    row."""
    pack, word = 2 * _elements(bits), 32 // bits
    expected = ("0x11100100", "0x13120302") if bits == 16 else ("0x00100000", "0x00110001")
    text = ["{", ".reg .pred p;", f"setp.ne.b32 p, ${8 + pack}, {expected[0]};"]
    text += [f"setp.ne.or.b32 p, ${9 + pack}, {expected[1]}, p;", "@p trap;"]
    for row in range(2):
        words = ", ".join(f"${row + 2 * n}" for n in range(4))
        text.append(f"ld.global.L1::evict_last.v4.b32 {{{words}}}, [${8 + row * word}];")
    return "\n".join([*text, "}"])


@triton.constexpr_function
def _fetch_constraints(bits):
    return ",".join(["=&r"] * 8 + ["l"] * (2 * _elements(bits)) + ["r"] * 2)


@triton.jit
def _fetch(packed_ptr, piece, GATE: tl.constexpr, S: tl.constexpr):
    """A piece of a gate, counted from those of a slice: the (SPLIT, BLOCK_H, DEPTH) left operand."""
    BITS: tl.constexpr = packed_ptr.dtype.element_ty.primitive_bitwidth
    CHUNK: tl.constexpr = 128 // BITS
    GROUPS: tl.constexpr = S.DEPTH // (4 * CHUNK)
    ROWS: tl.constexpr = _GATES * S.BLOCK_H
    part = piece * S.SPLIT + tl.arange(0, S.SPLIT)[:, None, None, None]
    group = part * GROUPS + tl.arange(0, GROUPS)[None, :, None, None]
    unit = tl.arange(0, S.BLOCK_H)[None, None, None, :]
    row = group * ROWS + GATE * S.BLOCK_H + unit
    at = packed_ptr + (row * 4 + tl.arange(0, 4)[None, None, :, None]) * CHUNK
    number = numbers(BITS)
    number = number + (unit % 16 // 8 * 16).to(number.dtype)[:, :, :, :, None, None]
    low, high = tl.inline_asm_elementwise(
        _fetch_assembly(BITS), _fetch_constraints(BITS), [at[:, :, :, :, None, None], number],
        (tl.int16, tl.int16) if BITS == 16 else (tl.int32, tl.int32), is_pure=True, pack=2 * _elements(BITS),
    )  # fmt: skip
    x = left_operand(low, high, S.SPLIT, S.DEPTH, S.BLOCK_H)
    return x.to(packed_ptr.dtype.element_ty, bitcast=True)


@triton.jit
def _fetch_gates(packed_ptr, piece, GATES: tl.constexpr, S: tl.constexpr):
    found = ()
    for g in tl.static_range(GATES):
        found = found + (_fetch(packed_ptr, piece, g, S),)  # noqa: RUF005
    return found


@triton.jit
def fetch_ahead(w, i, S: tl.constexpr):
    """Begin, in step number i, to load what `multiply` will: where the slice's other columns lie, and a piece of them.
    Where registers hold all columns, nothing."""
    if S.FETCHED == 0:
        return 0
    else:
        # 0, of which no compiler knows that it is the same in every step.
        zero = tl.inline_asm_elementwise("mov.b32 $0, 0;", "=r,r", [i], tl.int32, is_pure=False, pack=1)
        at = w.packed + zero
        GATES: tl.constexpr = len(w.kept[0])
        return at, _fetch_gates(at, 0, GATES, S)


@triton.jit
def _multiply_gates(w, x, sums, PRECISION: tl.constexpr):
    """Each gate's product, added to its sum where there is one."""
    GATES: tl.constexpr = len(w)
    found = ()
    for g in tl.static_range(GATES):
        found = found + (tl.dot(w[g], x, None if sums is None else sums[g], input_precision=PRECISION),)  # noqa: RUF005
    return found


@triton.jit
def _stacked(sums):
    """The sums of several gates as those of one product of stacked gates; of three, the last one twice."""
    GATES: tl.constexpr = len(sums)
    if GATES == 1:
        return sums[0]
    elif GATES == 2:
        a = tl.permute(tl.join(sums[0], sums[1]), (0, 3, 1, 2))
        return tl.reshape(a, (a.shape[0], 2 * a.shape[2], a.shape[3]))
    else:
        a = tl.join(tl.join(sums[0], sums[2]), tl.join(sums[1], sums[2]))
        a = tl.permute(a, (0, 3, 4, 1, 2))
        return tl.reshape(a, (a.shape[0], 4 * a.shape[3], a.shape[4]))


@triton.jit
def multiply(w, x, ahead, PRECISION: tl.constexpr, S: tl.constexpr, a=None):
    """The parts of the product of W_hh with an awaited tile, added to `a` where given. w: a left operand, or a Slice
    where columns are fetched. ahead: of `fetch_ahead`."""
    if S.FETCHED == 0:
        return tl.dot(w, x, a, input_precision=PRECISION)
    else:
        KEPT: tl.constexpr = len(w.kept)
        GATES: tl.constexpr = len(w.kept[0])
        at, fetched = ahead
        sums = _multiply_gates(w.kept[0], x[0], None if a is None else (a,), PRECISION)
        for p in tl.static_range(1, KEPT):
            sums = _multiply_gates(w.kept[p], x[p], sums, PRECISION)
        for p in tl.static_range(S.FETCHED):
            this = fetched
            if p + 1 < S.FETCHED:
                fetched = _fetch_gates(at, p + 1, GATES, S)
            sums = _multiply_gates(this, x[KEPT + p], sums, PRECISION)
        return _stacked(sums)
