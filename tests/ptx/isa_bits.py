"""Moves, comparisons, selections, logic, shifts and bit fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .isa_arith import is_float, loader
from .parse import Imm, Instruction, Pair, Sym, Vec
from .program import Op, Program, alu, decoder, unsigned, width

_CLOCKS = ("%clock", "%clock64")
_TIMERS = ("%globaltimer", "%globaltimer_lo")


@decoder("mov")
def _mov(ins: Instruction, p: Program) -> Op:
    kind = ins.parts[-1]
    to, source = ins.operands
    if isinstance(to, Vec):  # unpack
        part = f"u{8 * width(kind) // len(to.items)}"
        s = p.src(source, unsigned(kind))
        ds = [p.dst(o, part) for o in to.items]
        dtype = np.dtype(f"u{int(part[1:]) // 8}")

        def unpack(cta, R):
            cols = R[s].copy().view(dtype).reshape(-1, len(ds))
            for i, d in enumerate(ds):
                R[d][:] = cols[:, i]

        return alu(unpack, *ds)
    if isinstance(source, Vec):  # pack
        part = f"u{8 * width(kind) // len(source.items)}"
        ss = [p.src(o, part) for o in source.items]
        d = p.dst(to, unsigned(kind))

        def pack(cta, R):
            R[d][:] = np.stack([R[s] for s in ss], 1).view(R[d].dtype)[:, 0] if len(ss) > 1 else R[ss[0]]

        return alu(pack, d)
    if isinstance(source, Sym) and source.name in _CLOCKS:
        d = p.dst(to, unsigned(kind))

        def clock(cta, R):
            cta.clock += 256  # a program that waits by the clock does not spend its turn on it
            R[d][:] = np.uint64(cta.clock).astype(R[d].dtype)

        return alu(clock, d)
    if isinstance(source, Sym) and source.name in _TIMERS:
        d = p.dst(to, unsigned(kind))

        def timer(cta, R):
            R[d][:] = np.uint64(cta.timer.read(cta.number)).astype(R[d].dtype)

        return alu(timer, d)
    k = unsigned(kind)
    d, s = p.dst(to, k), p.src(source, k)
    return alu(lambda cta, R: np.copyto(R[d], R[s]), d)


@decoder("cvta", "isspacep", "mapa")
def _cvta(ins: Instruction, p: Program) -> Op:
    if ins.parts[0] != "cvta":
        raise NotImplementedError("generic addresses")
    k = unsigned(ins.parts[-1])
    d, s = p.dst(ins.operands[0], k), p.src(ins.operands[1], k)
    return alu(lambda cta, R: np.copyto(R[d], R[s]), d)


_ORDERED: dict[str, Callable] = {
    "eq": np.equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_UNORDERED: dict[str, Callable] = {
    "equ": lambda a, b: ~((a < b) | (a > b)),
    "neu": np.not_equal,
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "nan": lambda a, b: np.isnan(a) | np.isnan(b),
}
_BOOL = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _comparison(op: str, kind: str) -> Callable:
    if is_float(kind):
        if op == "ne":
            return lambda a, b: (a < b) | (a > b)
        return _ORDERED.get(op) or _UNORDERED[op]
    operations: dict[str, Callable] = {
        "ne": np.not_equal,
        "lo": np.less,
        "ls": np.less_equal,
        "hi": np.greater,
        "hs": np.greater_equal,
        **_ORDERED,
    }
    return operations[op]


@decoder("setp", "set")
def _setp(ins: Instruction, p: Program) -> Op:
    kind = ins.parts[-1]
    parts = [x for x in ins.parts[1:-1] if x != "ftz"]
    if ins.parts[0] == "set":
        raise NotImplementedError("set")
    op = _comparison(parts[0], kind)
    combine = _BOOL[parts[1]] if len(parts) > 1 else None
    if is_float(kind):
        a, b = loader(p, ins.operands[1], kind), loader(p, ins.operands[2], kind)
    else:
        k = kind if kind[0] != "b" else unsigned(kind)
        sa, sb = p.src(ins.operands[1], k), p.src(ins.operands[2], k)
        if not isinstance(ins.operands[0], Pair) and combine is None and isinstance(op, np.ufunc):
            d = p.dst(ins.operands[0], "pred")
            return alu(lambda cta, R: op(R[sa], R[sb], R[d]), d)
        a, b = (lambda R: R[sa]), (lambda R: R[sb])
    to = ins.operands[0]
    if kind.endswith("x2"):
        first, second = p.dst(to.first, "pred"), p.dst(to.second, "pred")

        def both(cta, R):
            r = op(a(R), b(R))
            R[first][:], R[second][:] = r[0::2], r[1::2]

        if combine:
            raise NotImplementedError("combined packed comparison")
        return alu(both, first, second)
    d = p.dst(to.first if isinstance(to, Pair) else to, "pred")
    q: int | None = p.dst(to.second, "pred") if isinstance(to, Pair) else None
    c = p.predicate(ins.operands[3]) if combine else None

    def compare(cta, R):
        r = op(a(R), b(R))
        other = c(R) if combine else None
        if q is not None:
            R[q][:] = combine(~r, other) if combine else ~r
        R[d][:] = combine(r, other) if combine else r

    return alu(compare, d) if q is None else alu(compare, d, q)


@decoder("selp")
def _selp(ins: Instruction, p: Program) -> Op:
    k = unsigned(ins.parts[-1])
    d, a, b = p.dst(ins.operands[0], k), p.src(ins.operands[1], k), p.src(ins.operands[2], k)
    test = p.predicate(ins.operands[3])
    return alu(lambda cta, R: np.copyto(R[d], np.where(test(R), R[a], R[b])), d)


@decoder("slct")
def _slct(ins: Instruction, p: Program) -> Op:
    k, ck = unsigned(ins.parts[-2]), ins.parts[-1]
    d, a, b, c = (
        p.dst(ins.operands[0], k),
        p.src(ins.operands[1], k),
        p.src(ins.operands[2], k),
        p.src(ins.operands[3], ck),
    )
    return alu(lambda cta, R: np.copyto(R[d], np.where(R[c] >= 0, R[a], R[b])), d)


@decoder("and", "or", "xor", "not", "cnot")
def _logic(ins: Instruction, p: Program) -> Op:
    kind = ins.parts[-1]
    name = ins.parts[0]
    if kind == "pred":
        d = p.dst(ins.operands[0], "pred")
        a = p.predicate(ins.operands[1])
        if name == "not":
            return alu(lambda cta, R: np.logical_not(a(R), R[d]), d)
        b, combine = p.predicate(ins.operands[2]), _BOOL[name]
        return alu(lambda cta, R: combine(a(R), b(R), R[d]), d)
    k = unsigned(kind)
    d, s = p.dst(ins.operands[0], k), p.src(ins.operands[1], k)
    if name == "not":
        return alu(lambda cta, R: np.invert(R[s], R[d]), d)
    if name == "cnot":
        return alu(lambda cta, R: np.copyto(R[d], (R[s] == 0).astype(R[d].dtype)), d)
    t, op = p.src(ins.operands[2], k), {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[name]
    return alu(lambda cta, R: op(R[s], R[t], R[d]), d)


@decoder("shl", "shr")
def _shift(ins: Instruction, p: Program) -> Op:
    kind = ins.parts[-1]
    k = kind if kind[0] == "s" and ins.parts[0] == "shr" else unsigned(kind)
    op = np.left_shift if ins.parts[0] == "shl" else np.right_shift  # numpy's shifts clamp as PTX's do
    d, a = p.dst(ins.operands[0], k), p.src(ins.operands[1], k)
    amount = ins.operands[2]
    if isinstance(amount, Imm) or width(k) == 4:
        b = p.src(Imm(min(amount.value, 8 * width(k))) if isinstance(amount, Imm) else amount, k)
        return alu(lambda cta, R: op(R[a], R[b], R[d]), d)
    b, top, dtype = p.src(amount, "u32"), np.uint32(8 * width(k)), f"{'i' if k[0] == 's' else 'u'}{width(k)}"
    return alu(lambda cta, R: op(R[a], np.minimum(R[b], top).astype(dtype), R[d]), d)


@decoder("shf")
def _funnel(ins: Instruction, p: Program) -> Op:
    left, wrap = ins.parts[1] == "l", ins.parts[2] == "wrap"
    d, a, b, c = (f(o, "u32") for f, o in zip((p.dst, p.src, p.src, p.src), ins.operands, strict=False))

    def run(cta, R):
        pair = R[a].astype(np.uint64) | (R[b].astype(np.uint64) << np.uint64(32))
        n = (R[c] & np.uint32(31) if wrap else np.minimum(R[c], np.uint32(32))).astype(np.uint64)
        R[d][:] = ((pair << n) >> np.uint64(32) if left else pair >> n) & np.uint64(0xFFFFFFFF)

    return alu(run, d)


@decoder("bfe")
def _bfe(ins: Instruction, p: Program) -> Op:
    kind = ins.parts[-1]
    bits = 8 * width(kind)
    d, a = p.dst(ins.operands[0], kind), p.src(ins.operands[1], kind)
    if isinstance(ins.operands[2], Imm) and isinstance(ins.operands[3], Imm):
        pos, n = int(ins.operands[2].value) & 255, int(ins.operands[3].value) & 255
        if n and pos + n <= bits:
            up = p.const(bits - pos - n, kind)
            down = p.const(bits - n, kind)
            return alu(lambda cta, R: np.right_shift(np.left_shift(R[a], R[up]), R[down], R[d]), d)
    if bits != 32:
        raise NotImplementedError("64-bit field at a position that varies")
    b, c = p.src(ins.operands[2], "u32"), p.src(ins.operands[3], "u32")

    def run(cta, R):
        x = R[a].astype(np.int64)  # sign-extended for s32
        pos, n = (R[b] & np.uint32(255)).astype(np.int64), (R[c] & np.uint32(255)).astype(np.int64)
        field = (x >> np.minimum(pos, 63)) & ((np.int64(1) << np.minimum(n, 32)) - 1)
        if kind[0] == "s":
            sign = (x >> np.minimum(pos + n - 1, 31).clip(0)) & 1
            field = np.where((n > 0) & (n < 32) & (sign == 1), field | (np.int64(-1) << np.minimum(n, 32)), field)
            field = np.where(n == 0, 0, field)
        R[d][:] = (field & 0xFFFFFFFF).astype(np.uint32).view(R[d].dtype)

    return alu(run, d)


@decoder("bfi")
def _bfi(ins: Instruction, p: Program) -> Op:
    if width(ins.parts[-1]) != 4:
        raise NotImplementedError("64-bit bfi")
    d = p.dst(ins.operands[0], "u32")
    a, b, c, n = (p.src(o, "u32") for o in ins.operands[1:])

    def run(cta, R):
        pos, length = (R[c] & np.uint32(255)).astype(np.uint64), (R[n] & np.uint32(255)).astype(np.uint64)
        one = np.uint64(1)
        mask = (((one << np.minimum(length, np.uint64(32))) - one) << np.minimum(pos, np.uint64(32))) & np.uint64(
            0xFFFFFFFF
        )
        R[d][:] = (R[b].astype(np.uint64) & ~mask) | ((R[a].astype(np.uint64) << np.minimum(pos, np.uint64(32))) & mask)

    return alu(run, d)


def _highest(x: np.ndarray) -> np.ndarray:
    """Index of the highest set bit of uint32/uint64, -1 for 0."""
    r = np.full(x.shape, -1, np.int64)
    for i in range(8 * x.dtype.itemsize):
        r[(x >> x.dtype.type(i)) & x.dtype.type(1) == 1] = i
    return r


@decoder("clz")
def _clz(ins: Instruction, p: Program) -> Op:
    k = unsigned(ins.parts[-1])
    d, a, top = p.dst(ins.operands[0], "u32"), p.src(ins.operands[1], k), 8 * width(k) - 1
    return alu(lambda cta, R: np.copyto(R[d], (top - _highest(R[a])).astype(np.uint32)), d)


@decoder("bfind")
def _bfind(ins: Instruction, p: Program) -> Op:
    kind = ins.parts[-1]
    amount = "shiftamt" in ins.parts
    d, a = p.dst(ins.operands[0], "u32"), p.src(ins.operands[1], kind)
    top = 8 * width(kind) - 1

    def run(cta, R):
        x = R[a]
        if kind[0] == "s":
            x = np.where(x < 0, ~x, x)
        h = _highest(x.astype(f"u{width(kind)}"))
        R[d][:] = np.where(h < 0, -1, top - h if amount else h) & 0xFFFFFFFF

    return alu(run, d)


@decoder("popc")
def _popc(ins: Instruction, p: Program) -> Op:
    k = unsigned(ins.parts[-1])
    d, a = p.dst(ins.operands[0], "u32"), p.src(ins.operands[1], k)
    return alu(lambda cta, R: np.copyto(R[d], np.bitwise_count(R[a])), d)


@decoder("brev")
def _brev(ins: Instruction, p: Program) -> Op:
    k = unsigned(ins.parts[-1])
    d, a, n = p.dst(ins.operands[0], k), p.src(ins.operands[1], k), width(k)
    table = np.array([int(f"{i:08b}"[::-1], 2) for i in range(256)], np.uint8)
    return alu(
        lambda cta, R: np.copyto(
            R[d],
            np.ascontiguousarray(table[np.ascontiguousarray(R[a]).view(np.uint8).reshape(-1, n)[:, ::-1]]).view(
                R[d].dtype
            )[:, 0],
        ),
        d,
    )


@decoder("prmt")
def _prmt(ins: Instruction, p: Program) -> Op:
    if len(ins.parts) != 2:
        raise NotImplementedError("prmt mode")
    d, a, b = p.dst(ins.operands[0], "u32"), p.src(ins.operands[1], "u32"), p.src(ins.operands[2], "u32")
    if isinstance(ins.operands[3], Imm):
        sel = int(ins.operands[3].value) & 0xFFFF
        low, sixteen, high = np.uint32(0xFFFF), np.uint32(16), np.uint32(0xFFFF0000)
        if sel == 0x5410:
            return alu(lambda cta, R: np.bitwise_or(R[a] & low, R[b] << sixteen, R[d]), d)
        if sel == 0x7632:
            return alu(lambda cta, R: np.bitwise_or(R[a] >> sixteen, R[b] & high, R[d]), d)
    c = p.src(ins.operands[3], "u32")

    def run(cta, R):
        source = np.concatenate([R[a].view(np.uint8).reshape(-1, 4), R[b].view(np.uint8).reshape(-1, 4)], 1)
        nibble = (R[c][:, None] >> np.array([0, 4, 8, 12], np.uint32)) & np.uint32(15)
        r = np.take_along_axis(source, (nibble & np.uint32(7)).astype(np.int64), 1)
        r = np.where(nibble & np.uint32(8), (r.view(np.int8) >> 7).view(np.uint8), r)
        R[d][:] = np.ascontiguousarray(r).view(np.uint32)[:, 0]

    return alu(run, d)


@decoder("lop3")
def _lop3(ins: Instruction, p: Program) -> Op:
    if len(ins.parts) != 2:
        raise NotImplementedError("lop3 with a predicate")
    d, a, b, c = p.dst(ins.operands[0], "u32"), *(p.src(o, "u32") for o in ins.operands[1:4])
    table = ins.operands[4].value

    def run(cta, R):
        x, y, z = R[a], R[b], R[c]
        r = np.zeros_like(x)
        for i in range(8):
            if table >> i & 1:
                r |= (x if i & 4 else ~x) & (y if i & 2 else ~y) & (z if i & 1 else ~z)
        R[d][:] = r

    return alu(run, d)


def nothing(cta: Any, R: list, m: np.ndarray | None = None) -> None:
    """Hints, and instructions whose effect this machine has anyway."""


@decoder(
    "createpolicy",
    "prefetch",
    "prefetchu",
    "discard",
    "applypriority",
    "nanosleep",
    "griddepcontrol",
    "setmaxnreg",
    "pmevent",
    "nop",
)
def _nop(ins: Instruction, p: Program) -> Op:
    return Op(nothing, nothing)
