"""The exchange between the programs of a batch tile: publish and await. The only home of a wait.

Protocol "data": the data validate themselves. Every value that programs exchange has a place in memory of its own for
every time step. Before the launch these places are filled with a reserved pattern, all bits set: a NaN whose
payload no arithmetic produces.

Who writes, who reads. Each element is written once, by the one program that owns its hidden unit (where that has more
threads than elements, by two of them, with the same value); every program of the batch tile reads it, and where several
layers run together (stacked.py), every program of the layer beside its own.
In words of 32 bits. Values of 16 bits are stored two at once, neighbours of a row (`publish`), and looked at in vectors
of words. Where a store and a look race, the rules of PTX's memory consistency model (PTX ISA, chapter 8) hold:
- A vector access is one access for each of its elements, in no order (8.2, vector data types): so a look is loads of
  words, as a publish is stores of words.
- `st.relaxed` and `ld.relaxed` are strong operations (8.4); with scope .gpu, which has all threads of the device (8.5),
  through the generic proxy, and of the same word, the two are morally strong to each other (8.7).
- So they are no data race, neither of different sizes, of which the model says nothing (8.7, mixed-size data races).
- Such a pair is atomic, as a single copy (8.10, axiom of atomicity): the bytes of a word are all from before the store
  or all from it.
- Looks at one word in turn never go back (8.10, axiom of coherence, and sequential consistency for each location).
- The pattern is what the first look may see, for the fill ended before the launch began, on the same stream.
Visible. The model does not say when; on the GPU such a store goes through to L2 and such a look is served by L2, so a
stored value is seen after a finite time. Nothing else has to be visible with it: an element tells for itself, by not
being the pattern, that it has arrived. So there is no flag, no fence and no order between elements that an interleaving
could break.
Never stale, never torn. A place holds the pattern or its one final value, by the rules above. A wait ends only when no
element that it looked at is the pattern, and returns exactly the values it looked at: none is from another step,
because no place serves two steps. A look in vain is repeated only where something was missing.
A genuine NaN. It is stored with another payload (`publish`), which no reader mistakes for the pattern; it travels on.

Protocol "flags": a counter says that the data are there. Each exchange of each step of a batch tile has a counter of
its own, zero before the launch (`new_status`). A program stores its part, meets its warps at a barrier, and one thread
then adds 1 with release semantics; a reader looks at the counter with acquire semantics until all programs have added
theirs, and then reads.
Visible. The barrier orders every warp's stores before the one release, and release and acquire on the same counter
order them before the reader's loads (PTX memory model, causality order).
Never stale, never torn. No place and no counter serves two steps, so a full counter means final values, whatever their
bits: any NaN may travel. The cost is a barrier, an atomic operation, and a second round trip: a reader that sees the
counter has yet to load. The gain is that nothing is compared and nothing has to be filled before the launch.

Both. No deadlock: the launch is cooperative, so all programs run; a program publishes a step before it waits for values
that need that step, so the program that is furthest behind never waits. Where a layer waits for the one below it too,
at the same step, that is the one whose step and layer have the smallest sum, and among those the lowest: what it waits
for, the own layer's step before and the lower layer's step, has a smaller sum, and so has been published. Going back,
steps and layers are counted from their other ends. No layer waits for a place that is written before it has read it,
for no place serves two steps: layers may drift apart as far as they like. Where a program takes several batch tiles
(several.py), those of a group take the same ones in the same order, in turns: each step's tiles, one after the other.
What a turn waits for is its own tile's step before, which each program published in a turn of an earlier step: so the
program at the lowest turn finds all that it waits for published, and never waits. A tile's places and counters are its
own, and no program of another group waits for them. A look that is made before its wait (`glance_at_tiles`), by a turn
for the next one, or at one half of a tile before the other is multiplied, waits for nothing. It is a first look at the
same words: what it missed is looked at again, and what it found is final, by the rules above, however long it lay in
registers. Bounded: a wait that has lasted TIMEOUT ticks
of the GPU's clock sets the error word; every other wait looks at the error word now and then and stops waiting too. A
program that stopped waiting runs its remaining steps on what it has, without waiting: all leave. Told: they tell the
host as they do (`report`), which raises `KernelTimeout` (see watch.py): a program that stopped waiting does so whether
or not the others have seen the error word by then. Clock and error word are read only after many looks in vain. Why
time, not looks: a wait is also slow where another kernel holds back this launch's programs, or a debugger.
Of these names, "never stale", "never torn", "no deadlock", "bounded" and "told" are properties of the model in
tests/exchange_model.py, which goes through every state of small launches by both protocols; tests/test_late_stores.py
asks them of the compiled kernels, executed with stores that are seen late and in any order.

Who waits. On NVIDIA a wait is per thread, in inline assembly: in "data" each thread looks at the chunks that it
multiplies (see fragments.py), and no program-wide reduction or barrier is needed; the host gives it rows of whole
chunks. Where Triton's layout is not known (`by_thread`), a program looks at the whole tile until nothing is missing,
and its accesses are Triton's own: the same ones to the hardware, but weak or of 16 bits, so outside of the model.
"""

import functools
import os

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import num_warps
from triton.language.target_info import cuda_capability_geq, is_hip

from .assembly import (
    TICK,
    elements_each,
    flag_assembly,
    glance_assembly,
    glance_constraints,
    later_assembly,
    look_assembly,
    look_constraints,
    pair_of,
    publish_assembly,
    publish_constraints,
    types_of_glance,
    types_of_words,
)
from .config import Protocol, waits_by_thread, words_of_a_lane
from .fragments import columns, in_fragment_order, numbers, per_thread, right_operand
from .prologue import prologue

_WORDS_OF_A_LANE = tl.constexpr(words_of_a_lane())
_BY_THREAD = tl.constexpr(waits_by_thread())
STATUS_WORDS = tl.constexpr(8)
# A look at several tiles is worth putting off by so many cycles: where it comes too early, which it then does in most
# steps, it keeps the way back from L2 busy for longer than this, and what it missed is seen late.
EARLY_CYCLES = tl.constexpr(240)
SECONDS = 60.0  # that a wait goes on without what it waits for; TRIGRU_TIMEOUT in the environment replaces them


def new_status(like: Tensor, flags: int = 0) -> Tensor:
    """A launch's status buffer: 16 bytes of zeros for loads that are masked off, then the error word; from
    STATUS_WORDS on the counters of protocol "flags"."""
    return torch.zeros(STATUS_WORDS.value + flags, dtype=torch.int32, device=like.device)


@functools.cache
def default_timeout() -> float:
    """Seconds that a wait may last: those of TRIGRU_TIMEOUT as it was at the first call, or SECONDS.

    Raises:
        ValueError: TRIGRU_TIMEOUT is not a positive number of at most a million.
    """
    given = os.environ.get("TRIGRU_TIMEOUT", str(SECONDS))
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds <= 1e6:
        raise ValueError(f"TRIGRU_TIMEOUT: expected a number of seconds above 0 and at most 1000000, got {given!r}")
    return seconds


def ticks(seconds: float) -> int:
    """The same time as kernels count it."""
    return max(1, int(seconds * 1e9) >> TICK.value)


def reserve(buffer: Tensor, protocol: Protocol) -> None:
    """Before a launch, what its protocol asks of a buffer through which values are exchanged: in "data" that it is full
    of the reserved pattern. Rows have whole words of 32 bits."""
    if protocol == "data":
        prologue(patterns=[buffer])


@triton.constexpr_function
def layout_known(num_warps):
    """Whether threads have what they are assumed to have. From Triton 3.8 on, operands of fewer than 8 warps pass
    through shared memory."""
    return _BY_THREAD and (num_warps == 8 or _WORDS_OF_A_LANE == 2) and not is_hip()


@triton.constexpr_function
def by_thread(element_bits, hidden_size, num_warps):
    """Whether threads wait, each for its own chunks; else programs do."""
    return layout_known(num_warps) and per_thread(element_bits, hidden_size)


@triton.constexpr_function
def _pack(chunks, bits):
    return chunks * (64 // bits)


@triton.constexpr_function
def _chunks(depth, block_b, bits):
    """Chunks of a tile that a thread holds, at most 8 in one assembly; a warp holds one of the parts."""
    return max(1, min(8, depth * block_b * bits // (128 * 32)))


@triton.jit
def _chunk_pointers(pointers, present, status_ptr, limit, SPLIT: tl.constexpr, DEPTH: tl.constexpr,
                    BLOCK_B: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Addresses of all chunks of a tile, those of absent ones leading to zeros; with room for the elements of a
    half."""
    BITS: tl.constexpr = pointers.dtype.element_ty.primitive_bitwidth
    k = columns(SPLIT, DEPTH, BITS)[:, :, :, :, None, None]
    # `[None, None, None, :, None, None]` would be five operations, and what Triton's passes take grows with the square.
    at = tl.reshape(pointers, (1, 1, 1, BLOCK_B, 1, 1)) + k
    if MASKED:
        there = tl.reshape(present, (1, 1, 1, BLOCK_B, 1, 1)) & (k < limit)
        at = tl.where(there, at, status_ptr.to(pointers.dtype.scalar))
    return at


@triton.jit
def first_flag(status_ptr, exchange, group, groups, T):
    """Where the counters of one of so many groups of programs begin, one for each step in the order in which the launch
    takes them."""
    return status_ptr + STATUS_WORDS + (exchange * groups + group) * T


@triton.jit
def arrive(flag):
    """Add this program to a counter, once all of its warps have stored what it speaks for."""
    tl.debug_barrier()
    tl.atomic_add(flag, 1, sem="release", scope="gpu")


@triton.jit
def await_flag(flag, arrivals, status_ptr, TIMEOUT: tl.constexpr):
    """Wait until so many programs have published. Returns 0, from which the addresses of the loads that follow are
    made: none can move before the wait."""
    tl.static_assert(not is_hip(), "the flag protocol is written for NVIDIA")
    return tl.inline_asm_elementwise(
        flag_assembly(TIMEOUT), "=&r,l,r,l", [flag, arrivals, status_ptr], tl.int32, is_pure=False, pack=1
    )


@triton.jit
def later(pointer, CYCLES: tl.constexpr = EARLY_CYCLES):
    """The same pointer, for looks that are worth putting off by so many cycles."""
    return tl.inline_asm_elementwise(later_assembly(CYCLES), "=l,l", [pointer], pointer.dtype, is_pure=False, pack=1)


@triton.jit
def glance_at_tiles(tiles, present, status_ptr, PROTOCOL: tl.constexpr, limit: tl.constexpr, SPLIT: tl.constexpr,
                    DEPTH: tl.constexpr, BLOCK_B: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """The first look of `await_tiles`, or with one tile of `await_tile`, long before it, so that what it finds is there
    when it is waited for. The empty tuple where no look can be made without its wait."""
    BITS: tl.constexpr = tiles[0].dtype.element_ty.primitive_bitwidth
    if PROTOCOL == "flags" or not by_thread(BITS, limit, SPLIT):
        return ()
    else:
        TILES: tl.constexpr = len(tiles)
        CHUNKS: tl.constexpr = _chunks(DEPTH, BLOCK_B, BITS)
        operands = ()
        for t in tl.static_range(TILES):
            at = _chunk_pointers(tiles[t], present, status_ptr, limit, SPLIT, DEPTH, BLOCK_B, MASKED)
            at, _ = tl.broadcast(at, numbers(BITS))
            operands = operands + (at,)  # type: ignore[assignment]  # noqa: RUF005
        words = tl.inline_asm_elementwise(
            glance_assembly(TILES, CHUNKS, BITS), glance_constraints(TILES, CHUNKS, BITS), operands,
            types_of_glance(TILES, BITS), is_pure=False, pack=_pack(CHUNKS, BITS),
        )  # fmt: skip
        return words


@triton.jit
def await_tile(pointers, present, status_ptr, flag, arrivals, PROTOCOL: tl.constexpr, limit: tl.constexpr,
               SPLIT: tl.constexpr, DEPTH: tl.constexpr, BLOCK_B: tl.constexpr, MASKED: tl.constexpr,
               TIMEOUT: tl.constexpr, glance=None):  # fmt: skip
    """Wait for rows of `limit` columns and return them as a (SPLIT, DEPTH, BLOCK_B) right operand.

    `pointers`: address of each row's column 0, (BLOCK_B,); rows that are not `present` are zero and not waited for.
    `flag`: in protocol "flags" the counter to reach `arrivals`, or None where an earlier wait was for these rows too.
    `glance`: of `glance_at_tiles` at the same rows.
    """
    BITS: tl.constexpr = pointers.dtype.element_ty.primitive_bitwidth
    if PROTOCOL == "flags" and flag is not None:
        pointers += await_flag(flag, arrivals, status_ptr, TIMEOUT)
    if by_thread(BITS, limit, SPLIT):
        CHUNKS: tl.constexpr = _chunks(DEPTH, BLOCK_B, BITS)
        at = _chunk_pointers(pointers, present, status_ptr, limit, SPLIT, DEPTH, BLOCK_B, MASKED)
        GLANCED: tl.constexpr = glance is not None and len(glance) > 0
        operands = (at, numbers(BITS), status_ptr.to(pointers.dtype.scalar))
        if GLANCED:
            operands = glance + operands
        low, high = tl.inline_asm_elementwise(
            look_assembly(1, CHUNKS, BITS, TIMEOUT, cuda_capability_geq(9, 0), PROTOCOL == "data", glanced=GLANCED),
            look_constraints(1, CHUNKS, BITS, GLANCED),
            operands,
            types_of_words(1, BITS),
            is_pure=True,  # lets Triton move it between layouts; an inline assembly stays where it is, and waits there
            pack=_pack(CHUNKS, BITS),
        )
        return right_operand(low, high, pointers.dtype.element_ty, SPLIT, DEPTH, BLOCK_B)
    else:
        return _await_by_program(pointers, present, status_ptr, PROTOCOL, limit, SPLIT, DEPTH, BLOCK_B, TIMEOUT)


@triton.jit
def await_tiles(tiles, present, status_ptr, flag, arrivals, PROTOCOL: tl.constexpr, limit: tl.constexpr,
                SPLIT: tl.constexpr, DEPTH: tl.constexpr, BLOCK_B: tl.constexpr, MASKED: tl.constexpr,
                TIMEOUT: tl.constexpr, glance=None, EARLY: tl.constexpr = EARLY_CYCLES):  # fmt: skip
    """`await_tile` for several tiles, published one after the other, with one look at all of them. `tiles`: what is
    `pointers` there, for each. EARLY: cycles by which the look is put off."""
    BITS: tl.constexpr = tiles[0].dtype.element_ty.primitive_bitwidth
    TILES: tl.constexpr = len(tiles)
    tl.static_assert(by_thread(BITS, limit, SPLIT), "a look at several tiles is a thread's, not a program's")
    arrived = 0
    if PROTOCOL == "flags" and flag is not None:
        arrived = await_flag(flag, arrivals, status_ptr, TIMEOUT)
    CHUNKS: tl.constexpr = _chunks(DEPTH, BLOCK_B, BITS)
    operands = ()
    for t in tl.static_range(TILES):
        at = _chunk_pointers(tiles[t] + arrived, present, status_ptr, limit, SPLIT, DEPTH, BLOCK_B, MASKED)
        operands = operands + (at,)  # type: ignore[assignment]  # noqa: RUF005, Triton knows no unpacking
    GLANCED: tl.constexpr = glance is not None and len(glance) > 0
    if GLANCED:
        operands = glance + operands
    words = tl.inline_asm_elementwise(
        look_assembly(TILES, CHUNKS, BITS, TIMEOUT, cuda_capability_geq(9, 0), PROTOCOL == "data", EARLY, GLANCED),
        look_constraints(TILES, CHUNKS, BITS, GLANCED),
        operands + (numbers(BITS), status_ptr.to(tiles[0].dtype.scalar)),  # noqa: RUF005
        types_of_words(TILES, BITS),
        is_pure=True,
        pack=_pack(CHUNKS, BITS),
    )
    found = ()
    for t in tl.static_range(TILES):
        x = right_operand(words[2 * t], words[2 * t + 1], tiles[0].dtype.element_ty, SPLIT, DEPTH, BLOCK_B)
        found = found + (x,)  # type: ignore[assignment]  # noqa: RUF005
    return found


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
def _clock(lanes):
    """The time in ticks, the same in all threads; `lanes`: a tensor with an element for each of them."""
    if is_hip():
        now = tl.inline_asm_elementwise(
            "s_memrealtime $0\ns_waitcnt lgkmcnt(0)", "=s,v", [lanes], tl.int64, is_pure=False, pack=1
        )
        now = now * 10  # a hundred million a second
    else:
        now = tl.inline_asm_elementwise("mov.u64 $0, %globaltimer;", "=l,r", [lanes], tl.int64, is_pure=False, pack=1)
    return tl.max(now >> TICK, 0)


@triton.jit
def _after_a_look(looks, since, status_ptr, TIMEOUT: tl.constexpr, THREADS: tl.constexpr):
    """How many looks were in vain, -1 where the wait has been given up, and when the first were counted."""
    looks += 1
    if looks % 64 == 0:
        lanes = tl.arange(0, THREADS)
        now = _clock(lanes)
        since = tl.where(looks == 64, now, since)
        # All threads must come to the same end: one value of the error word for all.
        expired = tl.max(tl.load(status_ptr + 4 + lanes * 0, volatile=True), 0) != 0
        if now - since >= TIMEOUT:
            tl.store(status_ptr + 4, 1)
            expired = True
        looks = tl.where(expired, -1, looks)
    return looks, since


@triton.jit
def _await_by_program(pointers, present, status_ptr, PROTOCOL: tl.constexpr, limit: tl.constexpr, SPLIT: tl.constexpr,
                      DEPTH: tl.constexpr, BLOCK_B: tl.constexpr, TIMEOUT: tl.constexpr):  # fmt: skip
    """`await_tile` with a look of the whole program, in memory order, the permutation afterwards."""
    BITS: tl.constexpr = pointers.dtype.element_ty.primitive_bitwidth
    WORD: tl.constexpr = 32 // BITS
    k = tl.arange(0, SPLIT * DEPTH)[:, None]
    at = pointers[None, :] + k
    mask = present[None, :] & (k < limit)
    if PROTOCOL == "flags":
        x = tl.load(at, mask=mask, other=0.0)
    else:
        x = _peek(at, mask)
        looks = tl.zeros((), tl.int32)
        since = tl.zeros((), tl.int64)
        while _missing(x) & (looks >= 0):
            x = _peek(at, mask)
            looks, since = _after_a_look(looks, since, status_ptr, TIMEOUT, 32 * SPLIT)
    GROUPS: tl.constexpr = SPLIT * DEPTH * BITS // 512
    x = tl.reshape(x, (GROUPS, 4, 2, 2, WORD, BLOCK_B))  # group, lane, word's high bit, word's low bit, element, b
    return in_fragment_order(x, SPLIT, DEPTH, BLOCK_B)


@triton.jit
def report(status_ptr, host_ptr, number):
    """At a program's end: if a wait of this launch was given up, its number goes to the host's word (see watch.py)."""
    if tl.load(status_ptr + 4, volatile=True) != 0:
        tl.store(host_ptr, number)


@triton.jit
def _numbers_of(mask, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SINGLE: tl.constexpr):
    """The numbers of a tile's elements, as the assembly of a store checks them; -1 for those that are not stored."""
    number = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    if SINGLE:
        return tl.where(mask & (number % 2 == 0), number % 32, -1)
    else:
        return tl.where(mask, number, -1)


@triton.jit
def _lane():
    return tl.inline_asm_elementwise("mov.u32 $0, %laneid;", "=r", [], tl.int32, is_pure=True, pack=1)


@triton.jit
def _prepared(x, BITS: tl.constexpr):
    """Values as they are stored. NVIDIA's conversion to 16 bits gives one NaN only, 0x7FFF."""
    if BITS == 32:
        x = tl.where(x == x, x, float("nan"))
    return x.to(tl.int32, bitcast=True)


@triton.jit
def publish(pointers, x, mask, flag, PROTOCOL: tl.constexpr):
    """Store this program's part of an exchanged tile. Nothing must be read through these pointers before.

    `flag`: in protocol "flags" the counter to add this program to, or None where a later `publish` does so for both.
    """
    dtype: tl.constexpr = pointers.dtype.element_ty
    BITS: tl.constexpr = dtype.primitive_bitwidth
    if PROTOCOL == "data" and layout_known(num_warps()):
        EACH: tl.constexpr = elements_each(x.shape[0] * x.shape[1], num_warps())
        number = _numbers_of(mask, x.shape[0], x.shape[1], BITS == 16 and EACH == 1)
        tl.inline_asm_elementwise(
            publish_assembly(1, BITS, EACH, pair_of(dtype)),
            publish_constraints(1, EACH),
            [pointers, _prepared(x, BITS), number, _lane()],
            tl.int32,
            is_pure=False,
            pack=EACH,
        )
    else:
        if PROTOCOL == "data":
            x = tl.where(x == x, x, float("nan"))
        tl.store(pointers, x.to(dtype), mask=mask, cache_modifier=".cg")
    if PROTOCOL == "flags" and flag is not None:
        arrive(flag)


@triton.jit
def publish_two(first, x, second, y, mask, flag, PROTOCOL: tl.constexpr):
    """`publish` of two tiles, whose elements are in the same places of both."""
    dtype: tl.constexpr = first.dtype.element_ty
    BITS: tl.constexpr = dtype.primitive_bitwidth
    if PROTOCOL == "data" and layout_known(num_warps()):
        EACH: tl.constexpr = elements_each(x.shape[0] * x.shape[1], num_warps())
        number = _numbers_of(mask, x.shape[0], x.shape[1], BITS == 16 and EACH == 1)
        tl.inline_asm_elementwise(
            publish_assembly(2, BITS, EACH, pair_of(dtype)),
            publish_constraints(2, EACH),
            [first, second, _prepared(x, BITS), _prepared(y, BITS), number, _lane()],
            tl.int32,
            is_pure=False,
            pack=EACH,
        )
    else:
        publish(first, x, mask, None, PROTOCOL)
        publish(second, y, mask, flag, PROTOCOL)
