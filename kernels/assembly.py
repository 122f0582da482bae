"""The texts of the inline assembly with which threads wait and publish; what they mean is said in exchange.py."""

import triton
import triton.language as tl

from .config import words_of_a_lane

ERROR_WORD = 4  # index in the status buffer; the words before it are zeros, and stay so
TICK = tl.constexpr(20)  # waits count in 2^20 ns, in 32 bits
_LOOKS_PER_CHECK = 64  # of the error word and the clock
_KEPT = 16  # chunks of which a wait keeps what it found, for a look again; of more, registers do not suffice
_REGISTERS = tl.constexpr((".reg .pred p;", ".reg .b32 m, n, t, u, since, again;", ".reg .b64 now;"))  # of a wait
# Of each word of a chunk: its half, and its number there; see fragments.py.
_PLACES = tl.constexpr(((0, 0), (0, 1), (1, 0), (1, 1)) if words_of_a_lane() == 2 else ((0, 0), (1, 0), (0, 1), (1, 1)))


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
        f"shr.u64 now, now, {TICK.value};",
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
def flag_assembly(timeout):
    """Look at the counter $1 until it is at least $2. Result: 0, for the addresses of loads that must come later."""
    text = ["{", *_REGISTERS.value, "mov.b32 n, 0;", "LOOK:", "ld.acquire.gpu.global.b32 t, [$1];"]
    text += ["setp.ge.s32 p, t, $2;", "@p bra DONE;", *_look_again("LOOK", timeout, "$3")]
    return "\n".join([*text, "DONE:", "mov.b32 $0, 0;", "}"])


@triton.constexpr_function
def _words(tiles, chunks):
    """Operands of the results of a look, in the order in which they lie in memory: for each tile and chunk, four."""
    return [
        f"${4 * chunks * t + 2 * chunks * half + 2 * c + number}"
        for t in range(tiles)
        for c in range(chunks)
        for half, number in _PLACES.value
    ]


@triton.constexpr_function
def glance_assembly(tiles, chunks, bits):
    """The loads of a first look, without a wait for them. Results: words, in the registers in which `look_assembly` has
    its results. Operands: for each tile the address of its chunk, for every element."""
    words, pack = _words(tiles, chunks), chunks * 64 // bits
    return "\n".join(
        f"ld.relaxed.gpu.global.v4.b32 {{{', '.join(words[4 * i : 4 * i + 4])}}}, "
        f"[${4 * chunks * tiles + i // chunks * pack + i % chunks * (64 // bits)}];"
        for i in range(tiles * chunks)
    )


@triton.constexpr_function
def glance_constraints(tiles, chunks, bits):
    return ",".join(["=&r"] * (4 * chunks * tiles) + ["l"] * (chunks * 64 // bits * tiles))


@triton.constexpr_function
def _put_off(delay):
    """Lines that let so many cycles pass. `since` and `t` are 32-bit registers, `p` a predicate."""
    wait = ["mov.u32 since, %clock;", "EARLY:", "mov.u32 t, %clock;", "sub.u32 t, t, since;"]
    return [*wait, f"setp.lt.u32 p, t, {delay};", "@p bra EARLY;"]


@triton.constexpr_function
def later_assembly(delay):
    """The pointer $1 as $0, so many cycles later."""
    return "\n".join(["{", ".reg .pred p;", ".reg .b32 t, since;", *_put_off(delay), "mov.b64 $0, $1;", "}"])


@triton.constexpr_function
def look_assembly(tiles, chunks, bits, timeout, packed_max, compared, delay=0, glanced=False):
    """Look at `chunks` chunks in each of `tiles` tiles, then again at those that miss something, until no element is
    the reserved pattern; just once, where they are not `compared` with it. glanced: the first look has been made.

    Results: for each tile, one half of every chunk, then the other (see fragments.py). Operands: what a glance gave;
    for each tile the address of its chunk, for every element; the elements' numbers within a half of a chunk; the
    status buffer's address.
    """
    per_half = 64 // bits
    pack = chunks * per_half
    words = _words(tiles, chunks)
    first_address = 4 * chunks * tiles * (2 if glanced else 1)
    first_number = first_address + pack * tiles
    status = first_number + chunks
    load = "ld.relaxed.gpu" if compared else "ld"
    expected = "0x03020100" if bits == 16 else "0x00010000"
    text = ["{", *_REGISTERS.value]
    for c in range(chunks):
        text.append(f"setp.ne.{'or.' if c else ''}b32 p, ${first_number + c}, {expected}{', p' if c else ''};")
    loads = []
    for t in range(tiles):
        for c in range(chunks):
            at = 4 * (t * chunks + c)
            chunk = ", ".join(words[at : at + 4])
            loads.append(f"{load}.global.v4.b32 {{{chunk}}}, [${first_address + t * pack + c * per_half}];")
    text += ["@p trap;", "mov.b32 n, 0;"]
    if compared and delay and not glanced:
        text += _put_off(delay)
    text += [f"mov.b32 ${i}, ${4 * chunks * tiles + i};" for i in range(4 * chunks * tiles)] if glanced else loads
    if not compared:
        return "\n".join([*text, "}"])
    chunks_of_words = [words[4 * i : 4 * i + 4] for i in range(len(loads))]
    if len(loads) <= (_KEPT if bits == 32 or packed_max else _KEPT // 2):
        found = [f"m{i}" for i in range(len(loads))]
        find = [line for x, m in zip(chunks_of_words, found, strict=True) for line in _find(x, m, bits, packed_max)]
        find += [*_find(found, "t", bits, packed_max, True), *_is_missing("t", bits, packed_max), "@!p bra DONE;"]
        text += [f".reg .b32 {', '.join(found)};", *find, "MORE:"]
        for m, load in zip(found, loads, strict=True):  # in vain: what has arrived is not looked at again
            text += [*_is_missing(m, bits, packed_max), f"@p {load}"]
        text += find
    else:
        text += [*_find(words, "m", bits, packed_max), *_is_missing("m", bits, packed_max), "@!p bra DONE;", "MORE:"]
        text.append("mov.b32 again, 0;")
        for x, load in zip(chunks_of_words, loads, strict=True):
            text += [*_find(x, "m", bits, packed_max), *_is_missing("m", bits, packed_max)]
            text += ["@p mov.b32 again, 1;", f"@p {load}"]
        text += ["setp.eq.b32 p, again, 0;", "@p bra DONE;"]
    return "\n".join([*text, *_look_again("MORE", timeout, f"${status}"), "DONE:", "}"])


@triton.constexpr_function
def _union(bits, packed_max):
    """The operation that puts together what was found of several words."""
    return "max.u32" if bits == 32 else "max.u16x2" if packed_max else "or.b32"


@triton.constexpr_function
def _find(words, into, bits, packed_max, found=False):
    """Lines that put together what `_is_missing` looks at, of words or of what was found of them; `u` is used."""
    if found or bits == 32 or packed_max:  # the pattern is the largest unsigned number
        union = _union(bits, packed_max)
        return [f"mov.b32 {into}, {words[0]};", *(f"{union} {into}, {into}, {x};" for x in words[1:])]
    # w has a half of all ones where ~w has a half of zeros: (~w - 0x00010001) & w & 0x80008000
    text = [f"mov.b32 {into}, 0;"]
    for word in words:
        text += [f"sub.u32 u, 0xFFFEFFFE, {word};", f"lop3.b32 {into}, u, {word}, {into}, 0xEA;"]
    return text


@triton.constexpr_function
def _is_missing(found, bits, packed_max):
    """Lines that set `p` where an element of the words is the reserved pattern, by what was found; `u` is used."""
    if bits == 32:
        return [f"setp.eq.b32 p, {found}, 0xFFFFFFFF;"]
    text = [f"and.b32 u, {found}, 0x80008000;"]
    if packed_max:
        text = [f"sub.u32 u, 0xFFFEFFFE, {found};", f"and.b32 u, u, {found};", "and.b32 u, u, 0x80008000;"]
    return [*text, "setp.ne.b32 p, u, 0;"]


@triton.constexpr_function
def look_constraints(tiles, chunks, bits, glanced=False):
    pack, words = chunks * (64 // bits), 4 * chunks * tiles
    given = ["r"] * (words if glanced else 0)
    return ",".join(["=&r"] * words + given + ["l"] * (pack * tiles) + ["r"] * chunks + ["l"] * pack)


@triton.constexpr_function
def types_of_glance(tiles, bits):
    """Types of the results: for each tile as many registers as words."""
    return (tl.int32,) * (tiles if bits == 16 else 2 * tiles)


@triton.constexpr_function
def types_of_words(tiles, bits):
    """Types of the results: two halves for each tile."""
    return (tl.int16 if bits == 16 else tl.int32,) * (2 * tiles)


@triton.constexpr_function
def publish_assembly(tiles, bits, each, pair):
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
def publish_constraints(tiles, each):
    kinds = ["=r", *["l"] * tiles, *["r"] * tiles, "r", "r"]  # nothing is returned, but Triton wants a result
    return ",".join(kind for kind in kinds for _ in range(each))


@triton.constexpr_function
def elements_each(tile, num_warps):
    """Elements of a tile that a thread holds."""
    return max(1, tile // (32 * num_warps))


@triton.constexpr_function
def pair_of(dtype):
    """What PTX calls two of them."""
    return "bf16x2" if dtype == tl.bfloat16 else "f16x2"
