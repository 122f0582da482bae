"""Arithmetic on integers and floats. f32 results are rounded to f32.

fma goes through f64 (a double rounding once in 2**29).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .formats import bf16_to_f32, f32_to_bf16, f32_to_f16, ftz, round_f32
from .parse import Instruction
from .program import Op, Program, alu, decoder, unsigned

_ROUND = ("rn", "rz", "rm", "rp")


def is_float(kind: str) -> bool:
    """Whether f32, bf16x2, ..."""
    return "f" in kind


def loader(p: Program, operand: Any, kind: str) -> Callable:
    """R -> array to compute with: f32 for f32, f16 and bf16 (2 entries a thread for x2), f64 for f64."""
    if kind in ("f32", "f64"):
        s = p.src(operand, kind)
        return lambda R: R[s]
    if kind == "f32x2":
        s = p.src(operand, "u64")
        return lambda R: R[s].view(np.float32)
    if kind not in ("f16", "f16x2", "bf16", "bf16x2"):
        raise NotImplementedError(kind)
    s = p.src(operand, "u32" if kind.endswith("x2") else "u16")
    if kind.startswith("bf16"):
        return lambda R: bf16_to_f32(R[s].view(np.uint16))
    return lambda R: R[s].view(np.float16).astype(np.float32)


def storer(p: Program, operand: Any, kind: str) -> tuple[Callable, int]:
    """(R, array) -> rounds into the register; returns (function, slot)."""
    if kind in ("f32", "f64"):
        d = p.dst(operand, kind)

        def store(R, v):
            np.copyto(R[d], v, casting="same_kind")
    elif kind == "f32x2":
        d = p.dst(operand, "u64")

        def store(R, v):
            R[d].view(np.float32)[:] = v
    else:
        d = p.dst(operand, "u32" if kind.endswith("x2") else "u16")
        pack = f32_to_bf16 if kind.startswith("bf16") else f32_to_f16

        def store(R, v):
            R[d].view(np.uint16)[:] = pack(v)

    return store, d


def _mixed(ins: Instruction) -> str | None:
    """The type of an addend or of factors, where the result and the other addend are f32 (from sm_100 on)."""
    return ins.parts[-1] if ins.parts[-1] in ("f16", "bf16") and ins.parts[-2] == "f32" else None


def float_op(ins: Instruction, p: Program, kind: str, fn: Callable, sources: int) -> Op:
    """A float operation fn(arrays) -> array with .ftz, .sat and .relu. Where it is mixed, its last source is f32."""
    narrow = _mixed(ins)
    kinds = [kind] * sources
    if narrow is not None:
        kind, kinds = "f32", [narrow] * (sources - 1) + ["f32"]
    loads = [loader(p, o, own) for o, own in zip(ins.operands[1 : 1 + sources], kinds, strict=True)]
    store, d = storer(p, ins.operands[0], kind)
    flush = "ftz" in ins.parts and kind.startswith("f32")
    sat, relu = "sat" in ins.parts, "relu" in ins.parts

    def run(cta, R):
        v = [load(R) for load in loads]
        if flush:
            v = [ftz(x) for x in v]
        r = fn(*v)
        if flush:
            r = ftz(r if r.dtype == np.float32 else r.astype(np.float32))
        if sat:
            r = np.where(np.isnan(r), 0, np.clip(r, 0, 1))
        if relu:
            r = np.maximum(r, 0)
        store(R, r)

    return alu(run, d)


def _binary_ufunc(ins: Instruction, p: Program, kind: str, ufunc: np.ufunc) -> Op:
    d, a, b = p.dst(ins.operands[0], kind), p.src(ins.operands[1], kind), p.src(ins.operands[2], kind)
    return alu(lambda cta, R: ufunc(R[a], R[b], R[d]), d)


def _mode(ins: Instruction) -> str:
    return next((x for x in ins.parts if x in _ROUND), "rn")


def _wide(kind: str) -> str:
    return kind[0] + str(2 * int(kind[1:]))


@decoder("add", "sub")
def _add(ins: Instruction, p: Program) -> Op:
    kind = ins.parts[-1]
    ufunc = np.add if ins.parts[0] == "add" else np.subtract
    if is_float(kind):
        mode = _mode(ins)
        if kind in ("f32", "f64") and mode == "rn" and not {"ftz", "sat"} & set(ins.parts):
            return _binary_ufunc(ins, p, kind, ufunc)
        if mode != "rn":
            if not kind.startswith("f32") and _mixed(ins) is None:
                raise NotImplementedError("rounding mode")
            return float_op(
                ins, p, kind, lambda x, y: round_f32(ufunc(x.astype(np.float64), y.astype(np.float64)), mode), 2
            )
        return float_op(ins, p, kind, ufunc, 2)
    if kind in ("s16x2", "u16x2"):
        d, a, b = p.dst(ins.operands[0], "u32"), p.src(ins.operands[1], "u32"), p.src(ins.operands[2], "u32")
        return alu(lambda cta, R: ufunc(R[a].view(np.uint16), R[b].view(np.uint16), R[d].view(np.uint16)), d)
    if "sat" in ins.parts:
        d, a, b = (f(o, "s32") for f, o in zip((p.dst, p.src, p.src), ins.operands, strict=False))
        return alu(
            lambda cta, R: np.copyto(
                R[d], np.clip(ufunc(R[a], R[b], dtype=np.int64), -(2**31), 2**31 - 1), casting="same_kind"
            ),
            d,
        )
    if "cc" in ins.parts:
        return _carry(ins, p, ufunc is np.subtract, False)
    return _binary_ufunc(ins, p, unsigned(kind), ufunc)


@decoder("addc", "subc")
def _addc(ins: Instruction, p: Program) -> Op:
    return _carry(ins, p, ins.parts[0] == "subc", True)


def _carry_slot(p: Program) -> int:
    p.module.registers.setdefault("%cc", "pred")
    return p.reg("%cc", "pred")


def _carry(ins: Instruction, p: Program, subtract: bool, carry_in: bool) -> Op:
    kind = unsigned(ins.parts[-1])
    if kind != "u32":
        raise NotImplementedError("carry of this width")
    d, a, b = p.dst(ins.operands[0], kind), p.src(ins.operands[1], kind), p.src(ins.operands[2], kind)
    cc, out = _carry_slot(p), "cc" in ins.parts

    def run(cta, R):
        x, y = R[a].astype(np.int64), R[b].astype(np.int64)
        r = x - y if subtract else x + y
        if carry_in:
            r = r - R[cc] if subtract else r + R[cc]
        R[d][:] = r & 0xFFFFFFFF
        if out:
            R[cc][:] = (r < 0) if subtract else (r >> 32) != 0

    return alu(run, d, cc)


def _high(x: np.ndarray, y: np.ndarray, kind: str) -> np.ndarray:
    """The upper half of a product."""
    if kind in ("u32", "s32", "u16", "s16"):
        bits = int(kind[1:])
        return np.multiply(x, y, dtype=np.int64 if kind[0] == "s" else np.uint64) >> bits
    lo32 = np.uint64(0xFFFFFFFF)
    s = np.uint64(32)
    a, b = x.view(np.uint64), y.view(np.uint64)
    a0, a1, b0, b1 = a & lo32, a >> s, b & lo32, b >> s
    mid = a1 * b0 + ((a0 * b0) >> s)
    mid2 = a0 * b1 + (mid & lo32)
    h = a1 * b1 + (mid >> s) + (mid2 >> s)
    if kind == "s64":
        h = h - np.where(x < 0, b, 0).astype(np.uint64) - np.where(y < 0, a, 0).astype(np.uint64)
    return h


def _product(ins: Instruction, p: Program, kind: str, add: bool) -> Op:
    """mul and mad of integers: .lo, .hi, .wide."""
    how = next((x for x in ins.parts if x in ("lo", "hi", "wide")), "lo")
    if how == "wide":
        w = _wide(kind)
        d, a, b = p.dst(ins.operands[0], w), p.src(ins.operands[1], kind), p.src(ins.operands[2], kind)
        dtype = {"u32": np.uint32, "s32": np.int32, "u64": np.uint64, "s64": np.int64}[w]
        if not add:
            return alu(lambda cta, R: np.multiply(R[a], R[b], R[d], dtype=dtype), d)
        c = p.src(ins.operands[3], w)
        return alu(lambda cta, R: np.add(np.multiply(R[a], R[b], dtype=dtype), R[c], R[d]), d)
    if how == "hi":
        d, a, b = p.dst(ins.operands[0], kind), p.src(ins.operands[1], kind), p.src(ins.operands[2], kind)
        addend = p.src(ins.operands[3], kind) if add else None

        def run(cta, R):
            np.copyto(R[d], _high(R[a], R[b], kind), casting="unsafe")
            if addend is not None:
                np.add(R[d], R[addend], R[d])

        if addend == d:
            raise NotImplementedError("mad.hi onto its addend")
        return alu(run, d)
    kind = unsigned(kind)
    d, a, b = p.dst(ins.operands[0], kind), p.src(ins.operands[1], kind), p.src(ins.operands[2], kind)
    if not add:
        return alu(lambda cta, R: np.multiply(R[a], R[b], R[d]), d)
    c = p.src(ins.operands[3], kind)
    return alu(lambda cta, R: np.add(R[a] * R[b], R[c], R[d]), d)


@decoder("mul")
def _mul(ins: Instruction, p: Program) -> Op:
    kind = ins.parts[-1]
    if not is_float(kind):
        return _product(ins, p, kind, False)
    mode = _mode(ins)
    if kind in ("f32", "f64") and mode == "rn" and not {"ftz", "sat"} & set(ins.parts):
        return _binary_ufunc(ins, p, kind, np.multiply)
    if mode != "rn":
        return float_op(ins, p, kind, lambda x, y: round_f32(x.astype(np.float64) * y, mode), 2)
    return float_op(ins, p, kind, np.multiply, 2)


@decoder("mad", "madc")
def _mad(ins: Instruction, p: Program) -> Op:
    kind = ins.parts[-1]
    if is_float(kind):
        return _fma(ins, p)
    if "cc" not in ins.parts and ins.parts[0] == "mad":
        return _product(ins, p, kind, True)
    if kind not in ("u32", "s32"):
        raise NotImplementedError("carry of this width")
    d, a, b, c = (f(o, "u32") for f, o in zip((p.dst, p.src, p.src, p.src), ins.operands, strict=False))
    cc, out, high, carry_in = _carry_slot(p), "cc" in ins.parts, "hi" in ins.parts, ins.parts[0] == "madc"
    if kind == "s32" and high:
        raise NotImplementedError("signed high product with carry")

    def run(cta, R):
        product = np.multiply(R[a], R[b], dtype=np.uint64)
        r = (product >> np.uint64(32) if high else product & np.uint64(0xFFFFFFFF)) + R[c]
        if carry_in:
            r = r + R[cc]
        R[d][:] = r & np.uint64(0xFFFFFFFF)
        if out:
            R[cc][:] = r >> np.uint64(32) != 0

    return alu(run, d, cc)


@decoder("fma")
def _fma(ins: Instruction, p: Program) -> Op:
    kind = ins.parts[-1]
    mode = _mode(ins)
    if kind == "f32" and mode == "rn" and not {"ftz", "sat", "relu"} & set(ins.parts):
        d, a, b, c = (f(o, "f32") for f, o in zip((p.dst, p.src, p.src, p.src), ins.operands, strict=False))

        def run(cta, R):
            x = R[a].astype(np.float64)
            x *= R[b]
            x += R[c]
            R[d][:] = x

        return alu(run, d)
    if kind == "f64":
        return float_op(ins, p, kind, _fma64, 3)

    to_f32 = kind.startswith("f32") or _mixed(ins) is not None

    def fma(x, y, z):
        r = x.astype(np.float64) * y + z
        return round_f32(r, mode) if to_f32 else r if kind.startswith("f16") else _odd(r)

    return float_op(ins, p, kind, fma, 3)


def _odd(r: np.ndarray) -> np.ndarray:
    """f64 -> f32, keeping a sticky last bit so that a second rounding to bf16 is right."""
    y = r.astype(np.float32)
    inexact = (y.astype(np.float64) != r) & np.isfinite(y)
    toward = np.where(np.abs(y.astype(np.float64)) > np.abs(r), np.nextafter(y, np.float32(0)), y)
    return np.where(inexact, (toward.view(np.uint32) | np.uint32(1)).view(np.float32), y)


def _fma64(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """f64 fma in extended precision (exact enough on x86, not bit for bit)."""
    return (x.astype(np.longdouble) * y + z).astype(np.float64)


@decoder("div")
def _div(ins: Instruction, p: Program) -> Op:
    kind = ins.parts[-1]
    if is_float(kind):
        return float_op(ins, p, kind, np.divide, 2)
    d, a, b = p.dst(ins.operands[0], kind), p.src(ins.operands[1], kind), p.src(ins.operands[2], kind)

    def run(cta, R):
        x, y = R[a], R[b]
        zero = y == 0
        y = np.where(zero, 1, y).astype(x.dtype)
        q = x // y
        if kind[0] == "s":
            q = q + ((q < 0) & (q * y != x)).astype(x.dtype)
        R[d][:] = np.where(zero, np.array(-1).astype(x.dtype), q)

    return alu(run, d)


@decoder("rem")
def _rem(ins: Instruction, p: Program) -> Op:
    kind = ins.parts[-1]
    d, a, b = p.dst(ins.operands[0], kind), p.src(ins.operands[1], kind), p.src(ins.operands[2], kind)

    def run(cta, R):
        x, y = R[a], R[b]
        zero = y == 0
        R[d][:] = np.where(zero, x, np.fmod(x, np.where(zero, 1, y).astype(x.dtype)))

    return alu(run, d)


@decoder("abs", "neg")
def _sign(ins: Instruction, p: Program) -> Op:
    kind = ins.parts[-1]
    if not is_float(kind):
        d, a = p.dst(ins.operands[0], kind), p.src(ins.operands[1], kind)
        ufunc = np.abs if ins.parts[0] == "abs" else np.negative
        return alu(lambda cta, R: ufunc(R[a], R[d]), d)
    if "ftz" in ins.parts:
        return float_op(ins, p, kind, np.abs if ins.parts[0] == "abs" else np.negative, 1)
    bits = {"f16": 0x8000, "bf16": 0x8000, "f16x2": 0x80008000, "bf16x2": 0x80008000, "f32": 1 << 31, "f64": 1 << 63}[
        kind
    ]
    u = {"f16": "u16", "bf16": "u16", "f64": "u64"}.get(kind, "u32")
    d, a = p.dst(ins.operands[0], u), p.src(ins.operands[1], u)
    if ins.parts[0] == "abs":
        mask = np.array(~bits & ((1 << int(u[1:])) - 1)).astype(f"u{int(u[1:]) // 8}")
        return alu(lambda cta, R: np.bitwise_and(R[a], mask, R[d]), d)
    mask = np.array(bits, dtype=np.uint64).astype(f"u{int(u[1:]) // 8}")
    return alu(lambda cta, R: np.bitwise_xor(R[a], mask, R[d]), d)


def _packed_minmax(ins: Instruction, p: Program, ufunc: np.ufunc, bias: int) -> Op:
    """min/max of two 16-bit integers packed in a register; `bias` makes signed halves compare as unsigned ones."""
    if len(ins.operands) != 3 or ins.parts[-2] not in ("min", "max"):
        raise NotImplementedError("packed integers")
    d, a, b = p.dst(ins.operands[0], "u32"), p.src(ins.operands[1], "u32"), p.src(ins.operands[2], "u32")
    low, high, flip = np.uint32(0xFFFF), np.uint32(0xFFFF0000), np.uint32(bias)

    def run(cta, R):
        x, y = R[a] ^ flip, R[b] ^ flip
        R[d][...] = (ufunc(x & low, y & low) | ufunc(x & high, y & high)) ^ flip

    return alu(run, d)


@decoder("min", "max")
def _minmax(ins: Instruction, p: Program) -> Op:
    kind = ins.parts[-1]
    least = ins.parts[0] == "min"
    if not is_float(kind):
        if kind.endswith("x2"):
            return _packed_minmax(
                ins, p, np.minimum if least else np.maximum, bias=0x80008000 if kind == "s16x2" else 0
            )
        return _binary_ufunc(ins, p, kind, np.minimum if least else np.maximum)
    if "xorsign" in ins.parts:
        raise NotImplementedError("xorsign")
    nan = "NaN" in ins.parts
    ufunc = (np.minimum if nan else np.fmin) if least else (np.maximum if nan else np.fmax)
    if len(ins.operands) == 4:
        return float_op(ins, p, kind, lambda x, y, z: ufunc(ufunc(x, y), z), 3)
    return float_op(ins, p, kind, ufunc, 2)


@decoder("copysign")
def _copysign(ins: Instruction, p: Program) -> Op:
    return float_op(ins, p, ins.parts[-1], lambda x, y: np.copysign(y, x), 2)


def _f64(fn: Callable) -> Callable:
    """Compute an f32 function in f64 and round once."""
    return lambda x: fn(x.astype(np.float64)) if x.dtype == np.float32 else fn(x)


_UNARY = {
    "sqrt": _f64(np.sqrt),
    "rcp": _f64(lambda x: 1 / x),
    "rsqrt": _f64(lambda x: 1 / np.sqrt(x)),
    "sin": _f64(np.sin),
    "cos": _f64(np.cos),
    "lg2": _f64(np.log2),
    "ex2": _f64(np.exp2),
    "tanh": _f64(np.tanh),
}


@decoder(*_UNARY)
def _unary(ins: Instruction, p: Program) -> Op:
    return float_op(ins, p, ins.parts[-1], _UNARY[ins.parts[0]], 1)


@decoder("testp")
def _testp(ins: Instruction, p: Program) -> Op:
    kind, test = ins.parts[-1], ins.parts[1]
    if test not in ("finite", "infinite", "notanumber", "number"):
        raise NotImplementedError(test)
    tests: dict[str, Callable] = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "notanumber": np.isnan,
        "number": lambda x: ~np.isnan(x),
    }
    fn = tests[test]
    d, a = p.dst(ins.operands[0], "pred"), p.src(ins.operands[1], kind)
    return alu(lambda cta, R: np.copyto(R[d], fn(R[a])), d)
