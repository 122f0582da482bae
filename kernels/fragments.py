"""Fragments: the operands of a product in the layout that a thread's 16-byte loads give.

A chunk is 16 bytes of a row, the most that a thread loads at once. Its elements are the thread's operand registers of
`mma` as they come, with no trip through shared memory, when the columns of both operands of the product are permuted
alike (`columns`, and the order of a chunk's words among lanes): a sum does not mind. Triton assigns the layout, to the
operand first: before 3.8 it gives a lane two words of 4 bytes in a row, because the operand is joined from two tensors,
later one. An assembly that finds its elements in another order than assumed traps, it never computes on them.
"""

import triton
import triton.language as tl
from triton.language.target_info import is_hip

from .config import words_of_a_lane

_TWO_WORDS = tl.constexpr(words_of_a_lane() == 2)  # in a row, in a lane
# A chunk's words in its two halves: two words that meet in one register pair of `mma` stand next to each other, as the
# load leaves them, so that none has to be moved. Steps from a word to the next of its half, and to that of the other.
_WITHIN = tl.constexpr(1 if _TWO_WORDS else 2)
_ACROSS = tl.constexpr(2 if _TWO_WORDS else 1)


@triton.constexpr_function
def per_thread(element_bits, hidden_size):
    """Whether rows of this many elements consist of chunks of 16 bytes."""
    return hidden_size % (128 // element_bits) == 0


@triton.jit
def columns(SPLIT: tl.constexpr, DEPTH: tl.constexpr, BITS: tl.constexpr):
    """First column of every chunk, (SPLIT, DEPTH // (4 * chunk), 4, 1): part, group, lane."""
    CHUNK: tl.constexpr = 128 // BITS
    GROUPS: tl.constexpr = DEPTH // (4 * CHUNK)
    part = tl.arange(0, SPLIT)[:, None, None, None]
    group = tl.arange(0, GROUPS)[None, :, None, None]
    lane = tl.arange(0, 4)[None, None, :, None]
    return part * DEPTH + group * (4 * CHUNK) + lane * CHUNK


@triton.jit
def half(BITS: tl.constexpr):
    """Within a chunk: the element numbers of its first half, (1, 1, 1, 1, 2, elements of a word); those of the other
    follow by _ACROSS words."""
    WORD: tl.constexpr = 32 // BITS
    word = tl.arange(0, 2)[None, None, None, None, :, None] * (_WITHIN * WORD)
    return word + tl.arange(0, WORD)[None, None, None, None, None, :]


@triton.jit
def numbers(BITS: tl.constexpr):
    """Consecutive numbers of the elements of a half, as the assembly checks them."""
    WORD: tl.constexpr = 32 // BITS
    word = tl.arange(0, 2)[None, None, None, None, :, None] * WORD
    number = word + tl.arange(0, WORD)[None, None, None, None, None, :]
    return number.to(tl.int8) if BITS == 16 else number.to(tl.int16)


@triton.jit
def right_operand(low, high, dtype: tl.constexpr, SPLIT: tl.constexpr, DEPTH: tl.constexpr, BLOCK_B: tl.constexpr):
    """The (SPLIT, DEPTH, BLOCK_B) operand from both halves of its chunks."""
    x = tl.join(low, high).to(dtype, bitcast=True)  # part, group, lane, b, word of its half, element, half
    x = tl.permute(x, (0, 1, 4, 2, 6, 5, 3)) if _TWO_WORDS else tl.permute(x, (0, 1, 4, 6, 2, 5, 3))
    return tl.reshape(x, (SPLIT, DEPTH, BLOCK_B))


@triton.jit
def in_fragment_order(x, SPLIT: tl.constexpr, DEPTH: tl.constexpr, BLOCK_B: tl.constexpr):
    """The same operand from a whole tile, (groups, lanes, word's high bit, word's low bit, elements of a word,
    BLOCK_B)."""
    x = tl.permute(x, (0, 3, 1, 2, 4, 5)) if _TWO_WORDS else tl.permute(x, (0, 2, 3, 1, 4, 5))
    return tl.reshape(x, (SPLIT, DEPTH, BLOCK_B))


@triton.jit
def left_operand(low, high, SPLIT: tl.constexpr, DEPTH: tl.constexpr, ROWS: tl.constexpr):
    """The (SPLIT, ROWS, DEPTH) operand from both halves of its chunks, given as bits."""
    x = tl.join(low, high)
    x = tl.permute(x, (0, 3, 1, 4, 2, 6, 5)) if _TWO_WORDS else tl.permute(x, (0, 3, 1, 4, 6, 2, 5))
    return tl.reshape(x, (SPLIT, ROWS, DEPTH))


@triton.constexpr_function
def _load_assembly(bits):
    """Two elements (16 bits) or one (32 bits) of either half."""
    if bits == 32:
        return "ld.global.b32 $0, [$2];\nld.global.b32 $1, [$3];"
    one = ".reg .b16 a, b;\n" + "".join(
        f"ld.global.b16 a, [${2 + 2 * half}];\nld.global.b16 b, [${3 + 2 * half}];\nmov.b32 ${half}, {{a, b}};\n"
        for half in range(2)
    )
    return "{\n" + one + "}"


@triton.jit
def load_weights(pointers, status_ptr, row, limit, COLUMN_STRIDE: tl.constexpr, SPLIT: tl.constexpr,
                 DEPTH: tl.constexpr, ROWS: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """A (SPLIT, ROWS, DEPTH) left operand whose columns are permuted as those of an awaited tile.

    `pointers`: address of column 0 in each row, (ROWS,); `row`: whether a row exists, (ROWS,); columns from `limit` on
    are zero.
    """
    BITS: tl.constexpr = pointers.dtype.element_ty.primitive_bitwidth
    k = columns(SPLIT, DEPTH, BITS)[:, :, :, :, None, None] + half(BITS)
    WORD: tl.constexpr = 32 // BITS
    # By `reshape`, as in `_chunk_pointers` of exchange.py: five operations less.
    base = tl.reshape(pointers, (1, 1, 1, ROWS, 1, 1))
    low = base + k * COLUMN_STRIDE
    high = low + _ACROSS * WORD * COLUMN_STRIDE
    if MASKED:
        there = tl.reshape(row, (1, 1, 1, ROWS, 1, 1))
        zero = status_ptr.to(pointers.dtype.scalar)
        low = tl.where(there & (k < limit), low, zero)
        high = tl.where(there & (k + _ACROSS * WORD < limit), high, zero)
    if is_hip():
        low, high = tl.load(low), tl.load(high)
    elif BITS == 16:
        low, high = tl.inline_asm_elementwise(
            _load_assembly(16), "=&r,=&r,l,l,l,l", [low, high], (tl.int16, tl.int16), is_pure=True, pack=2
        )
    else:
        low, high = tl.inline_asm_elementwise(
            _load_assembly(32), "=&r,=&r,l,l", [low, high], (tl.int32, tl.int32), is_pure=True, pack=1
        )
    x = left_operand(low, high, SPLIT, DEPTH, ROWS)
    return x.to(pointers.dtype.element_ty, bitcast=True)
