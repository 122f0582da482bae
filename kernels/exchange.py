"""The exchange between the programs of a batch tile: publish and await. The only home of a wait.

Protocol "data": the data validate themselves. Every value that programs exchange has a place in memory of its own for
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
that need that step, so the program that is furthest behind never waits. Bounded: a wait that has lasted TIMEOUT ticks
of the GPU's clock sets the error word; every other wait looks at the error word now and then and stops waiting too. A
program that stopped waiting runs its remaining steps on what it has, without waiting: all leave, and tell the host as
they do (`report`), which raises `KernelTimeout` (see watch.py). Clock and error word are read only after many looks in
vain. Why time, not looks: a wait is also slow where another kernel holds back this launch's programs, or a debugger.

Who waits. On NVIDIA a wait is per thread, in inline assembly: in "data" each thread looks at the chunks that it
multiplies (see fragments.py), and no program-wide reduction or barrier is needed; the host gives it rows of whole
chunks. Where Triton's layout is not known (`by_thread`), a program looks at the whole tile until nothing is missing.
"""

import functools
import os

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import num_warps
from triton.language.target_info import cuda_capability_geq, is_hip

from .config import Protocol, waits_by_thread, words_of_a_lane
from .fragments import columns, in_fragment_order, numbers, per_thread, right_operand

_WORDS_OF_A_LANE = tl.constexpr(words_of_a_lane())
_BY_THREAD = tl.constexpr(waits_by_thread())
ERROR_WORD = 4  # index in the status buffer; the words before it are zeros, and stay so
STATUS_WORDS = tl.constexpr(8)
SECONDS = 60.0  # that a wait goes on without what it waits for; TRIGRU_TIMEOUT in the environment replaces them
_TICK = tl.constexpr(20)  # waits count in 2^20 ns, in 32 bits
_LOOKS_PER_CHECK = 64  # of the error word and the clock


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
    return max(1, int(seconds * 1e9) >> _TICK.value)


def new_buffer(like: Tensor, rows: int, columns: int, protocol: Protocol) -> Tensor:
    """A (rows, columns) buffer of the dtype and on the device of `like`, through which values are exchanged: in "data"
    full of the reserved pattern. Rows have whole words of 32 bits."""
    if protocol != "data":
        return like.new_empty(rows, columns)
    words = columns * like.element_size() // 4
    return torch.full((rows, words), -1, dtype=torch.int32, device=like.device).view(like.dtype)


def canonical_nan(x: Tensor) -> Tensor:
    """x with every NaN in a payload that is not the reserved pattern."""
    return x.nan_to_num(float("nan"), float("inf"), -float("inf"))


_REGISTERS = tl.constexpr((".reg .pred p;", ".reg .b32 m, n, t, since, again;", ".reg .b64 now;"))  # of a wait


@triton.constexpr_function
def _look_again(label, timeout, status):
    """Lines that end a look in vain: back to the label, or on to what follows where the wait has been given up. `n` (0
    at first), `t` and `since` are 32-bit registers, `now` a 64-bit one, `p` a predicate; `status`: operand that holds
    the status buffer's address."""
    return [
        "add.u32 n, n, 1;",
        f"and.b32 t, n, {_LOOKS_PER_CHECK - 1};",
        "setp.ne.b32 p, t, 0;",
        f"@p bra {label};",
        f"ld.relaxed.gpu.global.b32 t, [{status}+{4 * ERROR_WORD}];",
        "setp.ne.b32 p, t, 0;",
        "@p bra DONE;",
        "mov.u64 now, %globaltimer;",
        f"shr.u64 now, now, {_TICK.value};",
        "cvt.u32.u64 t, now;",
        f"setp.eq.b32 p, n, {_LOOKS_PER_CHECK};",
        "@p mov.b32 since, t;",
        "sub.u32 t, t, since;",
        f"setp.lt.u32 p, t, {timeout};",
        f"@p bra {label};",
        "mov.b32 t, 1;",
        f"st.relaxed.gpu.global.b32 [{status}+{4 * ERROR_WORD}], t;",
    ]


@triton.constexpr_function
def _flag_assembly(timeout):
    """Look at the counter $1 until it is at least $2. Result: 0, for the addresses of loads that must come later."""
    text = ["{", *_REGISTERS.value, "mov.b32 n, 0;", "LOOK:", "ld.acquire.gpu.global.b32 t, [$1];"]
    text += ["setp.ge.s32 p, t, $2;", "@p bra DONE;", *_look_again("LOOK", timeout, "$3")]
    return "\n".join([*text, "DONE:", "mov.b32 $0, 0;", "}"])


@triton.constexpr_function
def _look_assembly(tiles, chunks, bits, timeout, packed_max, compared):
    """Look at `chunks` chunks in each of `tiles` tiles, then again at those that miss something, until no element is
    the reserved pattern; just once, where they are not `compared` with it.

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
    load = "ld.relaxed.gpu" if compared else "ld"
    expected = "0x03020100" if bits == 16 else "0x00010000"
    text = ["{", *_REGISTERS.value, ".reg .b16 lo, hi;"]
    for c in range(chunks):
        text.append(f"setp.ne.{'or.' if c else ''}b32 p, ${first_number + c}, {expected}{', p' if c else ''};")
    loads = []
    for t in range(tiles):
        for c in range(chunks):
            at = 4 * (t * chunks + c)
            chunk = ", ".join(words[at : at + 4])
            loads.append(f"{load}.global.v4.b32 {{{chunk}}}, [${first_address + t * pack + c * per_half}];")
    text += ["@p trap;", "mov.b32 n, 0;", *loads]
    if not compared:
        return "\n".join([*text, "}"])
    text += [*_is_missing(words, bits, packed_max), "@!p bra DONE;", "MORE:", "mov.b32 again, 0;"]
    for i, load in enumerate(loads):  # in vain: what has arrived is not looked at again
        text += [*_is_missing(words[4 * i : 4 * i + 4], bits, packed_max), "@p mov.b32 again, 1;", f"@p {load}"]
    text += ["setp.eq.b32 p, again, 0;", "@p bra DONE;", *_look_again("MORE", timeout, f"${status}"), "DONE:", "}"]
    return "\n".join(text)


@triton.constexpr_function
def _is_missing(words, bits, packed_max):
    """Lines that set `p` where an element of the words is the reserved pattern; `m`, `t`, `lo` and `hi` are used."""
    if bits == 32 or packed_max:  # the pattern is the largest unsigned number
        largest = "max.u32" if bits == 32 else "max.u16x2"
        text = [f"{largest} m, {words[0]}, {words[1]};", *(f"{largest} m, m, {word};" for word in words[2:])]
        if bits == 32:
            return [*text, "setp.eq.b32 p, m, 0xFFFFFFFF;"]
        return [*text, "mov.b32 {lo, hi}, m;", "max.u16 lo, lo, hi;", "setp.eq.u16 p, lo, 0xFFFF;"]
    # w has a half of all ones where ~w has a half of zeros: (~w - 0x00010001) & w & 0x80008000
    text = ["mov.b32 m, 0;"]
    for word in words:
        text += [f"sub.u32 t, 0xFFFEFFFE, {word};", f"lop3.b32 m, t, {word}, m, 0xEA;"]
    return [*text, "and.b32 m, m, 0x80008000;", "setp.ne.b32 p, m, 0;"]


@triton.constexpr_function
def _look_constraints(tiles, chunks, bits):
    pack = chunks * (64 // bits)
    return ",".join(["=&r"] * (4 * chunks * tiles) + ["l"] * (pack * tiles) + ["r"] * chunks + ["l"] * pack)


@triton.constexpr_function
def _words(tiles, bits):
    """Types of the results: two halves for each tile."""
    return (tl.int16 if bits == 16 else tl.int32,) * (2 * tiles)


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
    k = columns(SPLIT, DEPTH, BITS)
    at = pointers[None, None, None, :] + k
    if MASKED:
        at = tl.where(present[None, None, None, :] & (k < limit), at, status_ptr.to(pointers.dtype.scalar))
    return at[:, :, :, :, None, None]


@triton.jit
def first_flag(status_ptr, exchange, tile, T, B, BLOCK_B: tl.constexpr):
    """Where the counters of a batch tile begin, one for each step in the order in which the launch takes them."""
    return status_ptr + STATUS_WORDS + (exchange * tl.cdiv(B, BLOCK_B) + tile) * T


@triton.jit
def _await_flag(flag, arrivals, status_ptr, TIMEOUT: tl.constexpr):
    """Wait until so many programs have published. Returns 0, from which the addresses of the loads that follow are
    made: none can move before the wait."""
    tl.static_assert(not is_hip(), "the flag protocol is written for NVIDIA")
    return tl.inline_asm_elementwise(
        _flag_assembly(TIMEOUT), "=&r,l,r,l", [flag, arrivals, status_ptr], tl.int32, is_pure=False, pack=1
    )


@triton.jit
def await_tile(pointers, present, status_ptr, flag, arrivals, PROTOCOL: tl.constexpr, limit: tl.constexpr,
               SPLIT: tl.constexpr, DEPTH: tl.constexpr, BLOCK_B: tl.constexpr, MASKED: tl.constexpr,
               TIMEOUT: tl.constexpr):  # fmt: skip
    """Wait for rows of `limit` columns and return them as a (SPLIT, DEPTH, BLOCK_B) right operand.

    `pointers`: address of each row's column 0, (BLOCK_B,); rows that are not `present` are zero and not waited for.
    `flag`: in protocol "flags" the counter to reach `arrivals`, or None where an earlier wait was for these rows too.
    """
    BITS: tl.constexpr = pointers.dtype.element_ty.primitive_bitwidth
    if PROTOCOL == "flags" and flag is not None:
        pointers += _await_flag(flag, arrivals, status_ptr, TIMEOUT)
    if by_thread(BITS, limit, SPLIT):
        CHUNKS: tl.constexpr = _chunks(DEPTH, BLOCK_B, BITS)
        at = _chunk_pointers(pointers, present, status_ptr, limit, SPLIT, DEPTH, BLOCK_B, MASKED)
        low, high = tl.inline_asm_elementwise(
            _look_assembly(1, CHUNKS, BITS, TIMEOUT, cuda_capability_geq(9, 0), PROTOCOL == "data"),
            _look_constraints(1, CHUNKS, BITS),
            [at, numbers(BITS), status_ptr.to(pointers.dtype.scalar)],
            _words(1, BITS),
            is_pure=True,  # lets Triton move it between layouts; an inline assembly stays where it is, and waits there
            pack=_pack(CHUNKS, BITS),
        )
        return right_operand(low, high, pointers.dtype.element_ty, SPLIT, DEPTH, BLOCK_B)
    else:
        return _await_by_program(pointers, present, status_ptr, PROTOCOL, limit, SPLIT, DEPTH, BLOCK_B, TIMEOUT)


@triton.jit
def await_three(first, second, third, present, status_ptr, flag, arrivals, PROTOCOL: tl.constexpr, limit: tl.constexpr,
                SPLIT: tl.constexpr, DEPTH: tl.constexpr, BLOCK_B: tl.constexpr, MASKED: tl.constexpr,
                TIMEOUT: tl.constexpr):  # fmt: skip
    """`await_tile` for three tiles with one look at all of them."""
    BITS: tl.constexpr = first.dtype.element_ty.primitive_bitwidth
    if by_thread(BITS, limit, SPLIT):
        if PROTOCOL == "flags":
            arrived = _await_flag(flag, arrivals, status_ptr, TIMEOUT)
            first, second, third = first + arrived, second + arrived, third + arrived
        CHUNKS: tl.constexpr = _chunks(DEPTH, BLOCK_B, BITS)
        at1 = _chunk_pointers(first, present, status_ptr, limit, SPLIT, DEPTH, BLOCK_B, MASKED)
        at2 = _chunk_pointers(second, present, status_ptr, limit, SPLIT, DEPTH, BLOCK_B, MASKED)
        at3 = _chunk_pointers(third, present, status_ptr, limit, SPLIT, DEPTH, BLOCK_B, MASKED)
        l1, h1, l2, h2, l3, h3 = tl.inline_asm_elementwise(
            _look_assembly(3, CHUNKS, BITS, TIMEOUT, cuda_capability_geq(9, 0), PROTOCOL == "data"),
            _look_constraints(3, CHUNKS, BITS),
            [at1, at2, at3, numbers(BITS), status_ptr.to(first.dtype.scalar)],
            _words(3, BITS),
            is_pure=True,
            pack=_pack(CHUNKS, BITS),
        )
        x1 = right_operand(l1, h1, first.dtype.element_ty, SPLIT, DEPTH, BLOCK_B)
        x2 = right_operand(l2, h2, first.dtype.element_ty, SPLIT, DEPTH, BLOCK_B)
        x3 = right_operand(l3, h3, first.dtype.element_ty, SPLIT, DEPTH, BLOCK_B)
        return x1, x2, x3
    else:
        tl.static_assert(False, "a look at three tiles is a thread's, not a program's")


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
    return tl.max(now >> _TICK, 0)


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


@triton.constexpr_function
def _publish_assembly(tiles, bits, each, pair):
    """Store, of each of `tiles` tiles, the `each` neighbours of a row that a thread holds, in words of 32 bits; where
    it holds a single element of 16 bits, every other thread stores its own and the one of the thread after it.

    Operands: for each tile `each` addresses; then their values in float32; the elements' numbers; the thread's lane. A
    thread stores where it has the elements that it was meant to have: where numbers are consecutive or, for a single
    element of 16 bits, equal to the lane. Others store nothing, so that an order of threads that is not the one assumed
    ends as a timeout.
    """
    numbers = each * (1 + 2 * tiles)
    words = max(1, each * bits // 32)
    text = ["{", ".reg .pred p;", f".reg .b32 t, {', '.join(f'w{i}' for i in range(words))};"]
    if each > 1:
        text += [f"sub.u32 t, ${numbers + each - 1}, ${numbers};", f"setp.eq.b32 p, t, {each - 1};"]
    elif bits == 32:
        text.append(f"setp.ge.s32 p, ${numbers}, 0;")
    else:
        text.append(f"setp.eq.b32 p, ${numbers}, ${numbers + 1};")
    for tile in range(tiles):
        values = [f"${each * (1 + tiles + tile) + i}" for i in range(each)]
        if bits == 16 and each == 1:
            text.append(f"shfl.sync.bfly.b32 t, {values[0]}, 1, 31, -1;")
            values.append("t")
        if bits == 16:
            text += [f"cvt.rn.{pair}.f32 w{i}, {values[2 * i + 1]}, {values[2 * i]};" for i in range(words)]
            values = [f"w{i}" for i in range(words)]
        stored = f".v{words}.b32 [${each * (1 + tile)}], {{{', '.join(values)}}};"
        text.append(
            "@p st.relaxed.gpu.global" + (stored if words > 1 else f".b32 [${each * (1 + tile)}], {values[0]};")
        )
    return "\n".join([*text, "}"])


@triton.constexpr_function
def _publish_constraints(tiles, each):
    kinds = ["=r", *["l"] * tiles, *["r"] * tiles, "r", "r"]  # nothing is returned, but Triton wants a result
    return ",".join(kind for kind in kinds for _ in range(each))


@triton.constexpr_function
def _each(tile, num_warps):
    """Elements of a tile that a thread holds."""
    return max(1, tile // (32 * num_warps))


@triton.constexpr_function
def _pair(dtype):
    """What PTX calls two of them."""
    return "bf16x2" if dtype == tl.bfloat16 else "f16x2"


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
        EACH: tl.constexpr = _each(x.shape[0] * x.shape[1], num_warps())
        number = _numbers_of(mask, x.shape[0], x.shape[1], BITS == 16 and EACH == 1)
        tl.inline_asm_elementwise(
            _publish_assembly(1, BITS, EACH, _pair(dtype)),
            _publish_constraints(1, EACH),
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
        tl.debug_barrier()
        tl.atomic_add(flag, 1, sem="release", scope="gpu")


@triton.jit
def publish_two(first, x, second, y, mask, flag, PROTOCOL: tl.constexpr):
    """`publish` of two tiles, whose elements are in the same places of both."""
    dtype: tl.constexpr = first.dtype.element_ty
    BITS: tl.constexpr = dtype.primitive_bitwidth
    if PROTOCOL == "data" and layout_known(num_warps()):
        EACH: tl.constexpr = _each(x.shape[0] * x.shape[1], num_warps())
        number = _numbers_of(mask, x.shape[0], x.shape[1], BITS == 16 and EACH == 1)
        tl.inline_asm_elementwise(
            _publish_assembly(2, BITS, EACH, _pair(dtype)),
            _publish_constraints(2, EACH),
            [first, second, _prepared(x, BITS), _prepared(y, BITS), number, _lane()],
            tl.int32,
            is_pure=False,
            pack=EACH,
        )
    else:
        publish(first, x, mask, None, PROTOCOL)
        publish(second, y, mask, flag, PROTOCOL)
