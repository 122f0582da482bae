"""Products whose inner dimension is split over the warps of a program.

The weights of a program are few rows (hidden units) of many columns. Cut into SPLIT parts of DEPTH columns, one part a
warp, they stay in that warp's registers for the whole sequence, and nothing is multiplied twice. What remains is to add
the parts: they go through shared memory once, into the layout in which a thread has one element of the (batch, hidden)
tile and all its parts, so the sum and everything after it (gates, loads, stores) needs no exchange between threads.
"""

import triton
import triton.language as tl


@triton.constexpr_function
def _halvings(parts):
    """That leave one of a power of two."""
    return parts.bit_length() - 1


@triton.jit
def sum_parts(a, SPLIT: tl.constexpr, GATES: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr):
    """(SPLIT, GATES * BLOCK_H, BLOCK_B) -> (GATES, BLOCK_B, BLOCK_H), summed over the parts.

    `tl.split` wants the parts that it separates in one thread: it is what makes Triton choose that layout here. Where
    there are more threads than elements, or few parts, `tl.sum` would have several threads share an element's parts,
    and add their sums in two more rounds through shared memory: there it is splits alone.
    """
    if SPLIT <= 4 or GATES * BLOCK_H * BLOCK_B < 32 * SPLIT:
        a = tl.permute(tl.reshape(a, (SPLIT, GATES, BLOCK_H, BLOCK_B)), (1, 3, 2, 0))
        for n in tl.static_range(_halvings(SPLIT)):
            even, odd = tl.split(tl.reshape(a, (GATES, BLOCK_B, BLOCK_H, SPLIT >> (n + 1), 2)))
            a = even + odd
        return tl.reshape(a, (GATES, BLOCK_B, BLOCK_H))
    else:
        a = tl.reshape(a, (SPLIT // 2, 2, GATES, BLOCK_H, BLOCK_B))
        even, odd = tl.split(tl.permute(a, (0, 2, 4, 3, 1)))
        return tl.sum(even + odd, 0)


@triton.jit
def one_gate(a, SPLIT: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr):
    """The sum of the parts of a single gate, (BLOCK_B, BLOCK_H)."""
    return tl.reshape(sum_parts(a, SPLIT, 1, BLOCK_H, BLOCK_B), (BLOCK_B, BLOCK_H))


@triton.jit
def two_gates(a, SPLIT: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr):
    """The sums of the parts of two stacked gates, (BLOCK_B, BLOCK_H) each."""
    return tl.split(tl.permute(sum_parts(a, SPLIT, 2, BLOCK_H, BLOCK_B), (1, 2, 0)))


@triton.jit
def four_gates(a, SPLIT: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr):
    """The sums of the parts of four stacked gates, (BLOCK_B, BLOCK_H) each."""
    a = sum_parts(a, SPLIT, 4, BLOCK_H, BLOCK_B)
    a = tl.permute(tl.reshape(a, (2, 2, BLOCK_B, BLOCK_H)), (2, 3, 0, 1))
    even, odd = tl.split(a)
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth
