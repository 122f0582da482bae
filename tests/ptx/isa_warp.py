"""Instructions that a whole warp executes together: shuffles, votes, reductions, mma.sync, ldmatrix, stmatrix.

They are computed for all warps at once, on arrays of shape (warps, 32); machine.py sees to it that no part of a warp is
missing (Op.sync)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .formats import E4M3, E5M2
from .isa_bits import nothing
from .memory import Fault
from .parse import Imm, Instruction, Pair
from .program import Op, Program, alu, decoder, memory

WARP = 32


def _full_mask(operand: Any) -> None:
    if isinstance(operand, Imm) and int(operand.value) & 0xFFFFFFFF != 0xFFFFFFFF:
        raise NotImplementedError("a member mask that leaves lanes out")


def _warp_op(fn: Callable, *dsts: int) -> Op:
    op = alu(fn, *dsts)
    op.sync = WARP
    return op


@decoder("shfl")
def _shfl(ins: Instruction, p: Program) -> Op:
    mode = ins.parts[2]
    _full_mask(ins.operands[4])
    to = ins.operands[0]
    d = p.dst(to.first if isinstance(to, Pair) else to, "u32")
    q = p.dst(to.second, "pred") if isinstance(to, Pair) else None
    a, b, c = (p.src(o, "u32") for o in ins.operands[1:4])
    lane = np.arange(p.lanes, dtype=np.int64) % WARP
    base = np.arange(p.lanes, dtype=np.int64) - lane

    def source(R):
        bv, cv = R[b].astype(np.int64) & 31, R[c].astype(np.int64)
        clamp, seg = cv & 31, (cv >> 8) & 31
        top = (lane & seg) | (clamp & ~seg)
        if mode == "up":
            j = lane - bv
            ok = j >= top
        elif mode == "down":
            j = lane + bv
            ok = j <= top
        elif mode == "bfly":
            j = lane ^ bv
            ok = j <= top
        else:
            j = (lane & seg) | (bv & ~seg & 31)
            ok = j <= top
        return base + np.where(ok, j, lane), ok

    if all(isinstance(o, Imm) for o in ins.operands[2:4]) and q is None:
        fixed = source({b: p.slots[b][1], c: p.slots[c][1]})[0]
        return _warp_op(lambda cta, R: np.copyto(R[d], R[a].take(fixed)), d)

    def run(cta, R):
        j, ok = source(R)
        R[d][:] = R[a].take(j)
        if q is not None:
            R[q][:] = ok

    return _warp_op(run, *([d] if q is None else [d, q]))


@decoder("redux")
def _redux(ins: Instruction, p: Program) -> Op:
    name, kind = ins.parts[2], ins.parts[-1]
    _full_mask(ins.operands[2])
    k = kind if kind[0] != "b" else "u32"
    ufunc = {
        "add": np.add,
        "min": np.minimum,
        "max": np.maximum,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }[name]
    if kind == "f32":
        raise NotImplementedError("redux of floats")
    d, a = p.dst(ins.operands[0], k), p.src(ins.operands[1], k)
    return _warp_op(
        lambda cta, R: np.copyto(
            R[d].reshape(-1, WARP), ufunc.reduce(R[a].reshape(-1, WARP), axis=1, keepdims=True, dtype=R[a].dtype)
        ),
        d,
    )


@decoder("vote", "activemask", "match")
def _vote(ins: Instruction, p: Program) -> Op:
    if ins.parts[0] != "vote":
        raise NotImplementedError(ins.parts[0])
    mode = ins.parts[2]
    _full_mask(ins.operands[2])
    test = p.predicate(ins.operands[1])
    if mode == "ballot":
        d = p.dst(ins.operands[0], "u32")
        weight = (np.uint32(1) << np.arange(WARP, dtype=np.uint32))[None, :]
        return _warp_op(
            lambda cta, R: np.copyto(
                R[d].reshape(-1, WARP), (test(R).reshape(-1, WARP) * weight).sum(1, keepdims=True, dtype=np.uint32)
            ),
            d,
        )
    d = p.dst(ins.operands[0], "pred")
    fn = {
        "any": lambda v: v.any(1, keepdims=True),
        "all": lambda v: v.all(1, keepdims=True),
        "uni": lambda v: v.all(1, keepdims=True) | ~v.any(1, keepdims=True),
    }[mode]
    return _warp_op(lambda cta, R: np.copyto(R[d].reshape(-1, WARP), fn(test(R).reshape(-1, WARP))), d)


@decoder("elect")
def _elect(ins: Instruction, p: Program) -> Op:
    to = ins.operands[0]
    q = p.dst(to.second, "pred")
    d = p.dst(to.first, "u32")
    first = np.arange(p.lanes) % WARP == 0

    def run(cta, R):
        R[q][:] = first
        R[d][:] = 0

    return _warp_op(run, d, q)


def warp_barrier(ins: Instruction, p: Program) -> Op:
    """bar.warp.sync: nothing but that the warp is together."""
    return Op(nothing, nothing, WARP)


# -- matrices --------------------------------------------------------------------------------------------------------

_F16 = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)


def elements(words: np.ndarray, kind: str) -> np.ndarray:
    """uint32 words (..., n) -> float32 numbers (..., n * 4 / size of kind); tf32 drops the low 13 bits."""
    if kind == "tf32":
        return (words & np.uint32(0xFFFFE000)).view(np.float32)
    if kind == "bf16":
        out = np.empty((*words.shape, 2), np.uint32)
        np.left_shift(words, np.uint32(16), out[..., 0])
        np.bitwise_and(words, np.uint32(0xFFFF0000), out[..., 1])
        return out.view(np.float32).reshape((*words.shape[:-1], -1))
    if kind == "f16":
        return _F16.take(words.view(np.uint16))
    if kind in ("e4m3", "e5m2"):
        return (E4M3 if kind == "e4m3" else E5M2).take(words.view(np.uint8))
    if kind in ("s8", "u8"):
        return words.view(np.int8 if kind == "s8" else np.uint8).astype(np.float32)
    raise NotImplementedError(f"matrices of {kind}")


@decoder("mma")
def _mma(ins: Instruction, p: Program) -> Op:
    """mma.sync m16n8: products are exact, sums in f64, one rounding to f32 (the device's own sums round more often)."""
    shape, (td, ta, tb, tc) = ins.parts[3], ins.parts[-4:]
    if ins.parts[4:6] != ["row", "col"] or not shape.startswith("m16n8") or "sp" in ins.parts:
        raise NotImplementedError("mma shape")
    integer = ta in ("s8", "u8")
    if td != tc or td not in (("s32",) if integer else ("f32",)):
        raise NotImplementedError("mma accumulator")
    dk = "s32" if integer else "f32"
    d = [p.dst(o, dk) for o in ins.operands[0].items]
    a = [p.src(o, "u32") for o in p.items(ins.operands[1])]
    b = [p.src(o, "u32") for o in p.items(ins.operands[2])]
    c = [p.src(o, dk) for o in p.items(ins.operands[3])]
    chunks = len(b)  # of 16 bytes along k
    if len(a) != 2 * chunks or len(d) != 4 or len(c) != 4:
        raise NotImplementedError("mma fragments")
    warps = p.num_warps

    def run(cta, R):
        A = (
            np.stack([R[s] for s in a])
            .reshape(chunks, 2, warps, 8, 4)
            .transpose(2, 1, 3, 0, 4)
            .reshape(warps, 16, 4 * chunks)
        )
        B = np.stack([R[s] for s in b]).reshape(chunks, warps, 8, 4).transpose(1, 2, 0, 3).reshape(warps, 8, 4 * chunks)
        product = np.matmul(elements(A, ta).astype(np.float64), elements(B, tb).astype(np.float64).transpose(0, 2, 1))
        fragment = (
            product.reshape(warps, 2, 8, 4, 2).transpose(1, 4, 0, 2, 3).reshape(4, -1)
        )  # (half, pair, warp, row, column)
        if integer:
            fragment = fragment.astype(np.int64)
        for i in range(4):
            fragment[i] += R[c[i]]
        for i in range(4):
            np.copyto(R[d[i]], fragment[i], casting="unsafe")
        cta.counts["mma"] += warps

    op = _warp_op(run, *d)
    plain = op.slow

    def masked(cta, R, m):
        plain(cta, R, m)
        cta.counts["mma"] -= warps - len(cta.warps(m))

    op.slow = masked
    return op


def _rows(
    cta: Any, R: list, m: np.ndarray | None, address: Callable, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each warp that takes part, the addresses of its 8 n rows: (k, 8 n) flattened; the warps; the threads that gave
    them."""
    warps = np.array(cta.warps(m))
    lanes = (warps[:, None] * WARP + np.arange(8 * n)).reshape(-1)
    return address(R)[lanes], warps, lanes


def _matrix_op(address: Callable, n: int, body: Callable) -> Op:
    """body(cta, R, m, addresses, warps), its faults laid to the thread that gave the address."""

    def run(cta, R, m):
        a, warps, lanes = _rows(cta, R, m, address, n)
        try:
            body(cta, R, m, a, warps)
        except Fault as f:
            f.at_lane(lanes)
            raise

    return memory(run, WARP)


@decoder("ldmatrix")
def _ldmatrix(ins: Instruction, p: Program) -> Op:
    n = int(next(x for x in ins.parts if x in ("x1", "x2", "x4"))[1:])
    if "m8n8" not in ins.parts or ins.parts[-1] != "b16":
        raise NotImplementedError("ldmatrix shape")
    trans = "trans" in ins.parts
    ds = [p.dst(o, "u32") for o in ins.operands[0].items]
    address = p.address(ins.operands[1], "u32")

    def run(cta, R, m, a, warps):
        sm = cta.shared
        idx = sm.index(a, 16)
        sm.check_read(idx, 16, np.repeat(warps, 8 * n).astype(np.int32))
        cta.counts["shared_load_bytes"] += 16 * a.size
        words = sm.view(4, 4).take(idx, axis=0).reshape(-1, n, 8, 4)  # warp, matrix, row, pair of columns
        if trans:
            halves = words.view(np.uint16).reshape(-1, n, 8, 8).transpose(0, 1, 3, 2)
            words = np.ascontiguousarray(halves).view(np.uint32)
        words = words.reshape(-1, n, WARP)
        for i, d in enumerate(ds):
            if m is None:
                R[d].reshape(-1, WARP)[:] = words[:, i]
            else:
                R[d].reshape(-1, WARP)[warps] = words[:, i]

    return _matrix_op(address, n, run)


@decoder("stmatrix")
def _stmatrix(ins: Instruction, p: Program) -> Op:
    n = int(next(x for x in ins.parts if x in ("x1", "x2", "x4"))[1:])
    if "m8n8" not in ins.parts or ins.parts[-1] != "b16":
        raise NotImplementedError("stmatrix shape")
    trans = "trans" in ins.parts
    ss = [p.src(o, "u32") for o in p.items(ins.operands[1])]
    address = p.address(ins.operands[0], "u32")

    def run(cta, R, m, a, warps):
        sm = cta.shared
        idx = sm.index(a, 16)
        words = np.stack([R[s].reshape(-1, WARP)[warps] for s in ss], 1).reshape(-1, n, 8, 4)
        if trans:
            halves = words.view(np.uint16).reshape(-1, n, 8, 8).transpose(0, 1, 3, 2)
            words = np.ascontiguousarray(halves).view(np.uint32)
        words = np.ascontiguousarray(words.reshape(-1, 4))
        sm.check_write(idx, 16, np.repeat(warps, 8 * n).astype(np.int32), words.view(np.uint8).reshape(-1, 16))
        cta.counts["shared_store_bytes"] += 16 * a.size
        sm.view(4, 4)[idx] = words

    return _matrix_op(address, n, run)
