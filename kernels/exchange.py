"""The exchange between the programs of a batch tile: publish and await. The only home of a wait.

Protocol ("data that validate themselves"). Every value that programs exchange has a place in memory of its own for
every time step. Before the launch the host fills these places with a reserved pattern, all bits set: a NaN whose
payload no arithmetic produces.

Who writes, who reads. Each element is written once, by the one program that owns its hidden unit; every program of the
batch tile reads it.
Visible. A store goes through to L2 and a look reads L2 (`volatile`, never L1), so a stored value is seen after a finite
time. Nothing else has to be visible with it: an element tells for itself, by not being the pattern, that it has
arrived. So there is no flag, no fence and no order between elements that an interleaving could break.
Never stale, never torn. A place holds the pattern or its one final value, and an element of 2 or 4 bytes, aligned, is
read and written whole. A wait ends only when no element that it looked at is the pattern, and returns exactly the
values it looked at: none is from another step, because no place serves two steps.
A genuine NaN. It is stored with another payload (`publish`), which no reader mistakes for the pattern; it travels on.
No deadlock. The launch is cooperative, so all programs run; a program publishes a step before it waits for values that
need that step, so the program that is furthest behind never waits.
Bounded. A wait that has looked SPINS times sets the error word; every other wait looks at the error word now and then
and stops waiting too. A program that stopped waiting runs its remaining steps on what it has, without waiting: all
leave. The host then raises `KernelTimeout` (see watch.py). The error word costs nothing while values arrive.

Fragments. On NVIDIA a wait is per thread, in inline assembly: each thread looks at the 16-byte chunks that it
multiplies, and no program-wide reduction or barrier is needed. The chunk's elements are then the thread's operand
registers of `mma`, because the columns of both operands of the product are permuted alike (`columns`): a sum does
not mind. Triton assigns the layout; an assembly that finds its elements in another order than assumed traps, it never
computes on them. Elsewhere, and where rows are not multiples of 16 bytes, all programs look at the whole tile until
nothing is missing.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.target_info import cuda_capability_geq, is_hip

from .config import waits_by_thread

_BY_THREAD = tl.constexpr(waits_by_thread())
ERROR_WORD = 4  # index in the status buffer; the words before it are zeros, and stay so
STATUS_WORDS = 8
SPINS = 1 << 22  # looks before a wait gives up; a look takes about a microsecond
_LOOKS_PER_CHECK = 64  # of the error word


def new_status(like: Tensor) -> Tensor:
    """A launch's status buffer: 16 bytes of zeros for loads that are masked off, then the error word."""
    return torch.zeros(STATUS_WORDS, dtype=torch.int32, device=like.device)


def reserve(*buffers: Tensor) -> None:
    """Fill buffers with the reserved pattern, on the current stream."""
    for buffer in buffers:
        buffer.view(torch.int32 if buffer.element_size() == 4 else torch.int16).fill_(-1)


def canonical_nan(x: Tensor) -> Tensor:
    """x with every NaN in a payload that is not the reserved pattern."""
    return torch.where(x == x, x, torch.full_like(x, float("nan")))


@triton.constexpr_function
def per_thread(element_bits, hidden_size):
    """Whether rows of this many elements consist of chunks of 16 bytes."""
    return hidden_size % (128 // element_bits) == 0


@triton.constexpr_function
def _look_assembly(tiles, chunks, bits, spins, packed_max):
    """Look at `chunks` chunks in each of `tiles` tiles until no element is the reserved pattern.

    Results: for each tile, the words 0 and 2 of every chunk, then the words 1 and 3. Operands: for each tile the
    address of its chunk, for every element; the elements' numbers within a half of a chunk; the status buffer's
    address.
    """
    per_half = 64 // bits
    pack = chunks * per_half
    words = [
        f"${4 * chunks * t + 2 * chunks * (w % 2) + 2 * c + w // 2}"
        for t in range(tiles)
        for c in range(chunks)
        for w in range(4)
    ]
    first_address = 4 * chunks * tiles
    first_number = first_address + pack * tiles
    status = first_number + chunks
    expected = "0x03020100" if bits == 16 else "0x00010000"
    text = ["{", ".reg .pred p;", ".reg .b32 m, n, t;", ".reg .b16 lo, hi;"]
    for c in range(chunks):
        text.append(f"setp.ne.{'or.' if c else ''}b32 p, ${first_number + c}, {expected}{', p' if c else ''};")
    text += ["@p trap;", "mov.b32 n, 0;", "LOOK:"]
    for t in range(tiles):
        for c in range(chunks):
            at = 4 * (t * chunks + c)
            chunk = ", ".join(words[at : at + 4])
            text.append(f"ld.volatile.global.v4.b32 {{{chunk}}}, [${first_address + t * pack + c * per_half}];")
    if bits == 32 or packed_max:  # the pattern is the largest unsigned number
        largest = "max.u32" if bits == 32 else "max.u16x2"
        text.append(f"{largest} m, {words[0]}, {words[1]};")
        text += [f"{largest} m, m, {word};" for word in words[2:]]
        if bits == 32:
            text.append("setp.eq.b32 p, m, 0xFFFFFFFF;")
        else:
            text += ["mov.b32 {lo, hi}, m;", "max.u16 lo, lo, hi;", "setp.eq.u16 p, lo, 0xFFFF;"]
    else:  # w has a half of all ones where ~w has a half of zeros: (~w - 0x00010001) & w & 0x80008000
        text.append("mov.b32 m, 0;")
        for word in words:
            text += [f"sub.u32 t, 0xFFFEFFFE, {word};", f"lop3.b32 m, t, {word}, m, 0xEA;"]
        text += ["and.b32 m, m, 0x80008000;", "setp.ne.b32 p, m, 0;"]
    text += [
        "@!p bra DONE;",
        "add.u32 n, n, 1;",
        f"and.b32 t, n, {_LOOKS_PER_CHECK - 1};",
        "setp.ne.b32 p, t, 0;",
        "@p bra LOOK;",
        f"ld.volatile.global.b32 t, [${status}+{4 * ERROR_WORD}];",
        "setp.ne.b32 p, t, 0;",
        "@p bra DONE;",
        f"setp.lt.u32 p, n, {spins};",
        "@p bra LOOK;",
        "mov.b32 t, 1;",
        f"st.volatile.global.b32 [${status}+{4 * ERROR_WORD}], t;",
        "DONE:",
        "}",
    ]
    return "\n".join(text)


@triton.constexpr_function
def _look_constraints(tiles, chunks, bits):
    pack = chunks * (64 // bits)
    return ",".join(["=&r"] * (4 * chunks * tiles) + ["l"] * (pack * tiles) + ["r"] * chunks + ["l"] * pack)


@triton.constexpr_function
def _words(tiles, bits):
    """Types of the results: two halves for each tile."""
    return (tl.int16 if bits == 16 else tl.int32,) * (2 * tiles)


@triton.constexpr_function
def _pack(chunks, bits):
    return chunks * (64 // bits)


@triton.constexpr_function
def _chunks(split, depth, block_b, bits, num_warps):
    """Chunks of a tile that a thread holds, at most 8 in one assembly."""
    return max(1, min(8, split * depth * block_b * bits // (128 * 32 * num_warps)))


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
def _half(BITS: tl.constexpr):
    """Within a chunk: the element numbers of its words 0 and 2, (1, 1, 1, 1, 2, elements of a word); those of its words
    1 and 3 follow by one word."""
    WORD: tl.constexpr = 32 // BITS
    word = tl.arange(0, 2)[None, None, None, None, :, None] * (2 * WORD)
    return word + tl.arange(0, WORD)[None, None, None, None, None, :]


@triton.jit
def _numbers(BITS: tl.constexpr):
    """Consecutive numbers of the elements of a half, as the assembly checks them."""
    WORD: tl.constexpr = 32 // BITS
    word = tl.arange(0, 2)[None, None, None, None, :, None] * WORD
    number = word + tl.arange(0, WORD)[None, None, None, None, None, :]
    if BITS == 16:
        return number.to(tl.int8)
    else:
        return number.to(tl.int16)


@triton.jit
def _right_operand(low, high, dtype: tl.constexpr, SPLIT: tl.constexpr, DEPTH: tl.constexpr, BLOCK_B: tl.constexpr):
    """The (SPLIT, DEPTH, BLOCK_B) operand from both halves of its chunks."""
    x = tl.join(low, high).to(dtype, bitcast=True)  # part, group, lane, b, word's high bit, element, word's low bit
    return tl.reshape(tl.permute(x, (0, 1, 4, 2, 6, 5, 3)), (SPLIT, DEPTH, BLOCK_B))


@triton.jit
def left_operand(low, high, SPLIT: tl.constexpr, DEPTH: tl.constexpr, ROWS: tl.constexpr):
    """The (SPLIT, ROWS, DEPTH) operand from both halves of its chunks, given as bits."""
    x = tl.join(low, high)
    return tl.reshape(tl.permute(x, (0, 3, 1, 4, 2, 6, 5)), (SPLIT, ROWS, DEPTH))


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
    k = columns(SPLIT, DEPTH, BITS)[:, :, :, :, None, None] + _half(BITS)
    WORD: tl.constexpr = 32 // BITS
    base = pointers[None, None, None, :, None, None]
    low = base + k * COLUMN_STRIDE
    high = low + WORD * COLUMN_STRIDE
    if MASKED:
        there = row[None, None, None, :, None, None]
        zero = status_ptr.to(pointers.dtype.scalar)
        low = tl.where(there & (k < limit), low, zero)
        high = tl.where(there & (k + WORD < limit), high, zero)
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


@triton.jit
def _chunk_pointers(pointers, present, status_ptr, limit, SPLIT: tl.constexpr, DEPTH: tl.constexpr,
                    BLOCK_B: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Addresses of all chunks of a tile, those of absent ones leading to zeros; with room for the elements of a
    half."""
    BITS: tl.constexpr = pointers.dtype.element_ty.primitive_bitwidth
    k = columns(SPLIT, DEPTH, BITS)
    at = pointers[None, None, None, :] + k
    if MASKED:
        at = tl.where(present[None, None, None, :] & (k < limit), at, status_ptr.to(pointers.dtype.scalar))
    return at[:, :, :, :, None, None]


@triton.jit
def await_tile(pointers, present, status_ptr, limit: tl.constexpr, SPLIT: tl.constexpr, DEPTH: tl.constexpr,
               BLOCK_B: tl.constexpr, MASKED: tl.constexpr, SPINS: tl.constexpr, NUM_WARPS: tl.constexpr):  # fmt: skip
    """Wait for rows of `limit` columns and return them as a (SPLIT, DEPTH, BLOCK_B) right operand.

    `pointers`: address of each row's column 0, (BLOCK_B,); rows that are not `present` are zero and not waited for.
    """
    BITS: tl.constexpr = pointers.dtype.element_ty.primitive_bitwidth
    if _BY_THREAD and not is_hip() and per_thread(BITS, limit):
        CHUNKS: tl.constexpr = _chunks(SPLIT, DEPTH, BLOCK_B, BITS, NUM_WARPS)
        at = _chunk_pointers(pointers, present, status_ptr, limit, SPLIT, DEPTH, BLOCK_B, MASKED)
        low, high = tl.inline_asm_elementwise(
            _look_assembly(1, CHUNKS, BITS, SPINS, cuda_capability_geq(9, 0)),
            _look_constraints(1, CHUNKS, BITS),
            [at, _numbers(BITS), status_ptr.to(pointers.dtype.scalar)],
            _words(1, BITS),
            is_pure=True,  # lets Triton move it between layouts; an inline assembly stays where it is, and waits there
            pack=_pack(CHUNKS, BITS),
        )
        return _right_operand(low, high, pointers.dtype.element_ty, SPLIT, DEPTH, BLOCK_B)
    else:
        return _await_by_program(pointers, present, status_ptr, limit, SPLIT, DEPTH, BLOCK_B, SPINS)


@triton.jit
def await_three(first, second, third, present, status_ptr, limit: tl.constexpr, SPLIT: tl.constexpr,
                DEPTH: tl.constexpr, BLOCK_B: tl.constexpr, MASKED: tl.constexpr, SPINS: tl.constexpr,
                NUM_WARPS: tl.constexpr):  # fmt: skip
    """`await_tile` for three tiles with one look at all of them."""
    BITS: tl.constexpr = first.dtype.element_ty.primitive_bitwidth
    if _BY_THREAD and not is_hip() and per_thread(BITS, limit):
        CHUNKS: tl.constexpr = _chunks(SPLIT, DEPTH, BLOCK_B, BITS, NUM_WARPS)
        at1 = _chunk_pointers(first, present, status_ptr, limit, SPLIT, DEPTH, BLOCK_B, MASKED)
        at2 = _chunk_pointers(second, present, status_ptr, limit, SPLIT, DEPTH, BLOCK_B, MASKED)
        at3 = _chunk_pointers(third, present, status_ptr, limit, SPLIT, DEPTH, BLOCK_B, MASKED)
        l1, h1, l2, h2, l3, h3 = tl.inline_asm_elementwise(
            _look_assembly(3, CHUNKS, BITS, SPINS, cuda_capability_geq(9, 0)),
            _look_constraints(3, CHUNKS, BITS),
            [at1, at2, at3, _numbers(BITS), status_ptr.to(first.dtype.scalar)],
            _words(3, BITS),
            is_pure=True,
            pack=_pack(CHUNKS, BITS),
        )
        x1 = _right_operand(l1, h1, first.dtype.element_ty, SPLIT, DEPTH, BLOCK_B)
        x2 = _right_operand(l2, h2, first.dtype.element_ty, SPLIT, DEPTH, BLOCK_B)
        x3 = _right_operand(l3, h3, first.dtype.element_ty, SPLIT, DEPTH, BLOCK_B)
    else:
        x1 = _await_by_program(first, present, status_ptr, limit, SPLIT, DEPTH, BLOCK_B, SPINS)
        x2 = _await_by_program(second, present, status_ptr, limit, SPLIT, DEPTH, BLOCK_B, SPINS)
        x3 = _await_by_program(third, present, status_ptr, limit, SPLIT, DEPTH, BLOCK_B, SPINS)
    return x1, x2, x3


@triton.jit
def _peek(pointers, mask):
    """A look that is served by L2: AMD's compiler drops `volatile`, NVIDIA's `.cv` has been seen to return stale
    data."""
    if is_hip():
        return tl.load(pointers, mask=mask, other=0.0, cache_modifier=".cv")
    else:
        return tl.load(pointers, mask=mask, other=0.0, volatile=True)


@triton.jit
def _missing(x):
    """Whether an element is the reserved pattern, the largest unsigned number."""
    SIZE: tl.constexpr = x.shape[0] * x.shape[1]
    if x.dtype.primitive_bitwidth == 16:
        bits = tl.reshape(x.to(tl.uint16, bitcast=True).to(tl.int32), (SIZE,), can_reorder=True)
        return tl.max(bits, 0) == 0xFFFF
    else:
        bits = tl.reshape(x.to(tl.uint32, bitcast=True), (SIZE,), can_reorder=True)
        return tl.max(bits, 0) == 0xFFFFFFFF


@triton.jit
def _give_up(spins, status_ptr, SPINS: tl.constexpr):
    """The spins to go on with: none where another wait has expired, or this one, which then sets the error word."""
    if spins >= SPINS:
        tl.store(status_ptr + 4, 1)
    if spins % 64 == 0 and tl.load(status_ptr + 4, volatile=True) != 0:
        spins = SPINS
    return spins


@triton.jit
def _await_by_program(pointers, present, status_ptr, limit: tl.constexpr, SPLIT: tl.constexpr, DEPTH: tl.constexpr,
                      BLOCK_B: tl.constexpr, SPINS: tl.constexpr):  # fmt: skip
    """`await_tile` with a look of the whole program, in memory order, the permutation afterwards."""
    BITS: tl.constexpr = pointers.dtype.element_ty.primitive_bitwidth
    WORD: tl.constexpr = 32 // BITS
    k = tl.arange(0, SPLIT * DEPTH)[:, None]
    at = pointers[None, :] + k
    mask = present[None, :] & (k < limit)
    spins = 0
    x = _peek(at, mask)
    while _missing(x) & (spins < SPINS):
        x = _peek(at, mask)
        spins = _give_up(spins + 1, status_ptr, SPINS)
    GROUPS: tl.constexpr = SPLIT * DEPTH * BITS // 512
    x = tl.reshape(x, (GROUPS, 4, 2, 2, WORD, BLOCK_B))  # group, lane, word's high bit, word's low bit, element, b
    return tl.reshape(tl.permute(x, (0, 2, 1, 3, 4, 5)), (SPLIT, DEPTH, BLOCK_B))


@triton.jit
def publish(pointers, x, mask):
    """Store this program's part of an exchanged tile. Nothing must be read through these pointers before."""
    dtype: tl.constexpr = pointers.dtype.element_ty
    if dtype.primitive_bitwidth == 32 or is_hip():  # NVIDIA's conversion to 16 bits gives one NaN only, 0x7FFF
        x = tl.where(x == x, x, float("nan"))
    tl.store(pointers, x.to(dtype), mask=mask, cache_modifier=".cg")
