"""cvt: every conversion between integers, f64, f32, f16, bf16, tf32 and fp8 that Triton's code needs."""

from __future__ import annotations

from typing import Any

import numpy as np

from .formats import (
    E4M3,
    E5M2,
    bf16_to_f32,
    f32_to_bf16,
    f32_to_f16,
    f32_to_fp8,
    f32_to_tf32,
    ftz,
    round_f32,
    saturating_int,
    to_integral,
)
from .parse import Instruction
from .program import KINDS, Op, Program, alu, decoder, unsigned

_FLOATS = ("f16", "bf16", "f32", "f64")


@decoder("cvt")
def _cvt(ins: Instruction, p: Program) -> Op:
    to, source = ins.parts[-2], ins.parts[-1]
    flags = ins.parts[1:-2]
    mode = next((m for m in flags if m in ("rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi")), "rn")
    relu, flush, sat = "relu" in flags, "ftz" in flags, "sat" in flags
    if to.endswith("x2") or source.endswith("x2"):
        return _packed(ins, p, to, source, mode, relu)
    if to == "tf32":
        d, a = p.dst(ins.operands[0], "f32"), p.src(ins.operands[1], "f32")
        return alu(lambda cta, R: np.copyto(R[d], f32_to_tf32(R[a], mode)), d)
    if to in _FLOATS or source in _FLOATS:
        return _with_floats(ins, p, to, source, mode, relu, flush, sat)
    return _integers(ins, p, to, source, sat)


def _register_kind(p: Program, operand: Any, kind: str) -> str:
    """The destination of a narrow integer may be a wider register: sign- or zero-extend into all of it."""
    cls = p.module.registers.get(getattr(operand, "name", ""), None)
    return kind[0] + cls[1:] if cls and cls != "pred" and int(cls[1:]) > int(kind[1:]) else kind


def _integers(ins: Instruction, p: Program, to: str, source: str, sat: bool) -> Op:
    a = p.src(ins.operands[1], source if source[0] != "b" else unsigned(source))
    d = p.dst(ins.operands[0], _register_kind(p, ins.operands[0], to))
    if sat:
        info = np.iinfo(KINDS[to])

        def saturate(cta, R):
            x = R[a]
            lo = max(info.min, int(np.iinfo(x.dtype).min))
            hi = min(info.max, int(np.iinfo(x.dtype).max))
            np.copyto(R[d], np.clip(x, lo, hi), casting="unsafe")

        return alu(saturate, d)
    dtype = KINDS[to]
    return alu(lambda cta, R: np.copyto(R[d], R[a].astype(dtype), casting="unsafe"), d)


def _with_floats(
    ins: Instruction, p: Program, to: str, source: str, mode: str, relu: bool, flush: bool, sat: bool
) -> Op:
    if source in ("f16", "bf16"):
        s = p.src(ins.operands[1], "u16")
        load = (
            (lambda R: bf16_to_f32(R[s])) if source == "bf16" else (lambda R: R[s].view(np.float16).astype(np.float32))
        )
    else:
        s = p.src(ins.operands[1], source)
        load = lambda R: R[s]  # noqa: E731
    if to in ("f16", "bf16"):
        d = p.dst(ins.operands[0], "u16")
        narrow = mode if mode in ("rn", "rz") else "rn"
        pack = f32_to_f16 if to == "f16" else f32_to_bf16
        if source == "f64" and to == "bf16":
            raise NotImplementedError("f64 to bf16")

        def store(R, v):
            R[d][:] = pack(v if v.dtype.kind == "f" else v.astype(np.float64 if to == "f16" else np.float32), narrow)
    elif to in _FLOATS:
        d = p.dst(ins.operands[0], to)
        directed = to == "f32" and mode in ("rz", "rm", "rp")

        def store(R, v):
            if directed:
                v = round_f32(v.astype(np.float64), mode)
            R[d][:] = v
    else:
        d = p.dst(ins.operands[0], _register_kind(p, ins.operands[0], to))
        dtype = KINDS[to]
        integral = mode if mode.endswith("i") else {"rn": "rni", "rz": "rzi", "rm": "rmi", "rp": "rpi"}[mode]

        def store(R, v):
            np.copyto(R[d], saturating_int(to_integral(v, integral), dtype), casting="unsafe")

    def run(cta, R):
        v = load(R)
        if flush and v.dtype == np.float32:
            v = ftz(v)
        if mode.endswith("i") and to in _FLOATS and v.dtype.kind == "f":
            v = to_integral(v, mode)
        if sat and to in _FLOATS:
            v = np.where(np.isnan(v), 0, np.clip(v, 0, 1))
        if relu:
            v = np.maximum(v, 0)
        if flush and to == "f32" and v.dtype == np.float64:
            v = ftz(v.astype(np.float32))
        store(R, v)

    return alu(run, d)


def _packed(ins: Instruction, p: Program, to: str, source: str, mode: str, relu: bool) -> Op:
    """cvt.rn.{f16x2,bf16x2,e4m3x2,e5m2x2}.f32 d, a, b (a to the upper half), and fp8 pairs to f16x2."""
    if source == "f32":
        a, b = p.src(ins.operands[1], "f32"), p.src(ins.operands[2], "f32")
        fp8 = to[0] == "e"
        d = p.dst(ins.operands[0], "u16" if fp8 else "u32")
        if fp8:
            pack = lambda x: f32_to_fp8(x, to[:4])  # noqa: E731
        else:
            pack = lambda x: (f32_to_f16 if to == "f16x2" else f32_to_bf16)(x, mode)  # noqa: E731

        def run(cta, R):
            half = R[d].view(np.uint8 if fp8 else np.uint16)
            hi, lo = R[a], R[b]
            if relu:
                hi, lo = np.maximum(hi, 0), np.maximum(lo, 0)
            hi, lo = pack(hi), pack(lo)  # the destination may be a source
            half[0::2], half[1::2] = lo, hi

        return alu(run, d)
    if to == "f16x2" and source in ("e4m3x2", "e5m2x2"):
        a, d = p.src(ins.operands[1], "u16"), p.dst(ins.operands[0], "u32")
        table = E4M3 if source == "e4m3x2" else E5M2
        return alu(lambda cta, R: np.copyto(R[d].view(np.uint16), f32_to_f16(table[R[a].copy().view(np.uint8)])), d)
    if source == "f16x2" and to in ("e4m3x2", "e5m2x2"):
        a, d = p.src(ins.operands[1], "u32"), p.dst(ins.operands[0], "u16")
        return alu(
            lambda cta, R: np.copyto(R[d].view(np.uint8), f32_to_fp8(R[a].view(np.float16).astype(np.float32), to[:4])),
            d,
        )
    raise NotImplementedError("conversion")
