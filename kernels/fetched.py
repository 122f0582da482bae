"""Columns of W_hh that registers do not hold: a program loads them again in every step.

Where hidden_size is so large that a program's slice of W_hh does not fit its registers, its columns are cut into pieces
of SPLIT * DEPTH, DEPTH of them a warp. The first pieces stay in registers, as elsewhere; of the last FETCHED the host
makes a copy in the order in which threads multiply them (`packed`), which a program reads in every step, and finds in
the L1 cache: nothing else that a step loads stays there, for looks go to L2. The loads wait for no other program. Those
of the first piece are made before the wait, the others one piece ahead of its product.

A lane's load is the four registers of a left operand of `mma`, so that none has to be moved, and a warp's 512 bytes in
a row, so that no two lanes want the same bank.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .config import PersistentConfig
from .fragments import left_operand, load_weights, numbers

_GATES = tl.constexpr(3)


class Slice(NamedTuple):
    """The own units' part of W_hh, of one gate or several."""

    kept: tuple  # for each piece in registers, each gate's left operand
    packed: tl.tensor  # where the others lie


def packed(w_hh: Tensor, config: PersistentConfig, transposed: bool) -> Tensor:
    """Copy the columns of W_hh, or `transposed` its rows, that programs fetch: by program, piece, warp, gate, `mma`,
    lane and what that multiplies.

    Args:
        w_hh: (3H, H), contiguous.

    Raises:
        ValueError: its columns are no whole pieces, of which one at least stays in registers.
    """
    hidden_size, chunk, units = w_hh.shape[-1], 16 // w_hh.element_size(), config.block_h
    each = config.piece(w_hh.dtype)
    first = hidden_size - config.fetched * each
    if first <= 0 or hidden_size % each:
        raise ValueError(
            f"{config.fetched} pieces of {each} columns are fetched: expected more of them in hidden_size and nothing "
            f"else, got hidden_size {hidden_size}"
        )
    # piece, warp, lane, and a chunk's halves of two words each (see fragments.py); program, and rows of an `mma`
    parts, rows = (config.fetched, config.num_warps, 4, 2, 2, chunk // 4), (-1, units // 16, 2, 8)
    if transposed:
        split = w_hh.view(3, hidden_size, hidden_size).narrow(1, first, hidden_size - first)
        split = split.unflatten(2, rows).unflatten(1, parts).permute(7, 1, 2, 0, 8, 5, 10, 3, 4, 9, 6)
    else:
        split = w_hh.view(3, hidden_size, hidden_size).narrow(2, first, hidden_size - first)
        split = split.unflatten(2, parts).unflatten(1, rows).permute(1, 5, 6, 0, 2, 9, 4, 7, 8, 3, 10)
    return split.contiguous()


@triton.jit
def slice_of(w_hh_ptr, first, GATES: tl.constexpr, TRANSPOSED: tl.constexpr, own, S: tl.constexpr):
    """That of so many gates from number `first` on."""
    PIECE: tl.constexpr = S.SPLIT * S.DEPTH
    ROW: tl.constexpr = 1 if TRANSPOSED else S.H
    COLUMN: tl.constexpr = S.H if TRANSPOSED else 1
    kept = ()
    for p in tl.static_range(S.H // PIECE - S.FETCHED):
        gates = ()
        for g in tl.static_range(GATES):
            rows = w_hh_ptr + (first + g) * S.H * S.H + p * PIECE * COLUMN + own.j * ROW
            x = load_weights(rows, own.status_ptr, own.j < S.H, S.H, COLUMN, S.SPLIT, S.DEPTH, S.BLOCK_H, False)
            gates = gates + (x,)  # type: ignore[assignment]  # noqa: RUF005, Triton knows no unpacking
        kept = kept + (gates,)  # type: ignore[assignment]  # noqa: RUF005
    program = tl.program_id(0).to(tl.int64)
    if S.SIDES == 2:
        program += own.group % 2 * (S.H // S.BLOCK_H)
    at = program * (S.FETCHED * PIECE * _GATES) + first * S.DEPTH
    return Slice(kept, own.packed_ptr + at * S.BLOCK_H)


@triton.constexpr_function
def _elements(bits):
    """Of a half of a chunk."""
    return 64 // bits


@triton.constexpr_function
def _fetch_assembly(bits):
    """What two of `mma` multiply. Results: of one half of two rows' chunks the words, each of both rows (see
    fragments.py), then the other half. Operands: where what its `mma` multiplies lies, for every element of a half;
    the elements' numbers, 16 more in the second row."""
    pack = 2 * _elements(bits)
    expected = ("0x11100100", "0x13120302") if bits == 16 else ("0x00100000", "0x00110001")
    text = ["{", ".reg .pred p;", f"setp.ne.b32 p, ${8 + pack}, {expected[0]};"]
    text += [f"setp.ne.or.b32 p, ${9 + pack}, {expected[1]}, p;", "@p trap;"]
    for n in range(2):
        words = f"${2 * n}, ${2 * n + 1}, ${2 * n + 4}, ${2 * n + 5}"
        text.append(f"ld.global.L1::evict_last.v4.b32 {{{words}}}, [${8 + n * pack // 2}];")
    return "\n".join([*text, "}"])


@triton.constexpr_function
def _fetch_constraints(bits):
    return ",".join(["=&r"] * 8 + ["l"] * (2 * _elements(bits)) + ["r"] * 2)


@triton.jit
def _fetch(packed_ptr, piece, GATE: tl.constexpr, S: tl.constexpr):
    """A piece of a gate, counted from those of a slice: the (SPLIT, BLOCK_H, DEPTH) left operand."""
    BITS: tl.constexpr = packed_ptr.dtype.element_ty.primitive_bitwidth
    CHUNK: tl.constexpr = 128 // BITS
    tl.static_assert(S.BLOCK_H % 16 == 0 and S.DEPTH == 4 * CHUNK)
    EACH: tl.constexpr = S.BLOCK_H // 16 * 2  # of `mma`, for a warp's part of a gate
    part = tl.arange(0, S.SPLIT)[:, None, None, None, None, None]
    lane = tl.arange(0, 4)[None, None, :, None, None, None]
    unit = tl.arange(0, S.BLOCK_H)[None, None, None, :, None, None]
    mma = part * (_GATES * EACH) + unit // 16 * 2 + tl.arange(0, 2)[None, None, None, None, :, None]
    # The lanes' places are the same for all pieces and gates: compilers make them once.
    rows = packed_ptr + (piece * (S.SPLIT * _GATES) + GATE) * (EACH * 32 * CHUNK)
    number = numbers(BITS)
    number = number + (unit // 8 % 2 * 16).to(number.dtype)
    low, high = tl.inline_asm_elementwise(
        _fetch_assembly(BITS), _fetch_constraints(BITS),
        [rows + (mma * 32 + unit % 8 * 4 + lane) * CHUNK, number],
        (tl.int16, tl.int16) if BITS == 16 else (tl.int32, tl.int32), is_pure=True, pack=2 * _elements(BITS),
    )  # fmt: skip
    x = left_operand(low, high, S.SPLIT, S.DEPTH, S.BLOCK_H)
    return x.to(packed_ptr.dtype.element_ty, bitcast=True)


@triton.jit
def _fetch_gates(packed_ptr, piece, GATES: tl.constexpr, S: tl.constexpr):
    found = ()
    for g in tl.static_range(GATES):
        found = found + (_fetch(packed_ptr, piece, g, S),)  # type: ignore[assignment]  # noqa: RUF005
    return found


@triton.constexpr_function
def _boundary(programs):
    """The pointer $1 as $0, where a warp is together; where so many programs share the hidden units, at the end of a
    loop that is run once: compilers do not know how many there are, and move no load across it. 0: no loop."""
    if not programs:
        return "bar.warp.sync 0xffffffff;\nmov.b64 $0, $1;"
    text = ["{", ".reg .pred p;", ".reg .b32 n, most;", ".reg .b64 by;", "mov.b32 n, 0;", "mov.u32 most, %nctaid.x;"]
    text += [f"sub.u32 most, most, {programs - 1};", "AGAIN:", "add.u32 n, n, 1;", "setp.lt.u32 p, n, most;"]
    text += ["@p bra AGAIN;", "sub.u32 n, n, 1;", "cvt.u64.u32 by, n;", "add.u64 $0, $1, by;", "}"]
    return "\n".join(text)


@triton.jit
def no_earlier(pointer, LOOP: tl.constexpr, S: tl.constexpr):
    """The same pointer, by which nothing is loaded earlier than here. Left to themselves, compilers make a step's loads
    all at once, or all steps' before the loop, and there are not as many registers. LOOP: with a loop in their way,
    which takes some 80 cycles."""
    return tl.inline_asm_elementwise(
        _boundary(S.H // S.BLOCK_H if LOOP else 0), "=l,l", [pointer], pointer.dtype, is_pure=False, pack=1
    )


@triton.jit
def fetch_ahead(w, S: tl.constexpr, LOOP: tl.constexpr = False):
    """Begin to load what a product will: the first piece that is fetched. Where registers hold all, nothing. LOOP: as
    for `no_earlier`, where registers are scarce; of three gates they are."""
    if S.FETCHED == 0:
        return 0
    else:
        GATES: tl.constexpr = len(w.kept[0])
        return _fetch_gates(no_earlier(w.packed, GATES == 3 or LOOP, S), 0, GATES, S)


@triton.jit
def _multiply_gates(w, x, sums, PRECISION: tl.constexpr):
    """Each gate's product, added to its sum where there is one."""
    GATES: tl.constexpr = len(w)
    found = ()
    for g in tl.static_range(GATES):
        a = tl.dot(w[g], x, None if sums is None else sums[g], input_precision=PRECISION)
        found = found + (a,)  # type: ignore[assignment]  # noqa: RUF005
    return found


@triton.jit
def stacked(sums):
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
def multiply_piece(w, PIECE: tl.constexpr, x, fetched, sums, PRECISION: tl.constexpr, S: tl.constexpr,
                   LOOP: tl.constexpr = False):  # fmt: skip
    """Each gate's sum after the piece of that number, and what is fetched for the next one. fetched: what was for this
    one, where it is not kept."""
    KEPT: tl.constexpr = len(w.kept)
    GATES: tl.constexpr = len(w.kept[0])
    if PIECE < KEPT:
        return _multiply_gates(w.kept[PIECE], x, sums, PRECISION), fetched
    else:
        this = fetched
        NEXT: tl.constexpr = PIECE + 1 - KEPT
        if NEXT < S.FETCHED:
            fetched = _fetch_gates(no_earlier(w.packed, GATES == 3 or LOOP, S), NEXT, GATES, S)
        return _multiply_gates(this, x, sums, PRECISION), fetched


@triton.jit
def multiply(w, x, ahead, PRECISION: tl.constexpr, S: tl.constexpr):
    """The parts of the product of W_hh with a tile that was awaited before. w: a left operand, or a Slice where columns
    are fetched and x is the tile's pieces. ahead: of `fetch_ahead`."""
    if S.FETCHED == 0:
        return tl.dot(w, x, input_precision=PRECISION)
    else:
        fetched, sums = ahead, None
        for p in tl.static_range(len(x)):
            sums, fetched = multiply_piece(w, p, x[p], fetched, sums, PRECISION, S)
        return stacked(sums)
