"""wgmma: matrix products of four warps, operands in shared memory (or A in registers).

A product is computed when it is issued. Until a wait_group retires it, machine.py refuses any other use of its
registers and SharedMemory refuses writes to its operands.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from .isa_bits import nothing
from .isa_warp import elements
from .memory import Fault
from .parse import Instruction, Vec
from .program import Op, Program, decoder

GROUP = 128  # threads


def _pattern(mn: int, k_bytes: int, item: int, mn_major: bool, swizzle: int, lbo: int, sbo: int) -> np.ndarray:
    """Byte offsets (before swizzling) of the 16-byte units of one operand.

    K-major: (mn, units along k); a unit holds 16 / item numbers along k.
    MN-major: (units along mn, k); a unit holds 16 / item numbers along mn.
    `swizzle`: width in 16-byte units, 8, 4, 2 or 1; lbo and sbo: the descriptor's two strides in bytes."""
    if not mn_major:
        i = np.arange(mn)[:, None]
        u = np.arange(k_bytes // 16)[None, :]
        return (i // 8) * sbo + (i % 8) * 16 * swizzle + u * (16 if swizzle > 1 else lbo)
    u = np.arange(mn * item // 16)[:, None]
    k = np.arange(k_bytes // item)[None, :]
    if swizzle == 1:
        return u * sbo + (k // 8) * lbo + (k % 8) * 16
    return (u % swizzle) * 16 + (u // swizzle) * lbo + (k // 8) * sbo + (k % 8) * 16 * swizzle


def _operand(
    cta: Any, descriptor: int, mn: int, k_bytes: int, item: int, mn_major: bool, kind: str
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (mn, k) as f32 behind a shared memory descriptor, and the 16-byte units read."""
    start = (descriptor & 0x3FFF) << 4
    lbo, sbo = (descriptor >> 16 & 0x3FFF) << 4, (descriptor >> 32 & 0x3FFF) << 4
    if descriptor >> 49 & 7:
        raise Fault("wgmma descriptor with a base offset is not supported")
    swizzle = (1, 8, 4, 2)[descriptor >> 62 & 3]
    at = start + _pattern(mn, k_bytes, item, mn_major, swizzle, lbo, sbo)
    if swizzle > 1:
        at = at ^ ((at >> 7 & swizzle - 1) << 4)
    idx = cta.shared.index(at.reshape(-1).astype(np.uint32), 16)
    words = cta.shared.view(4, 4).take(idx, axis=0)
    if not mn_major:
        return elements(words.reshape(mn, k_bytes // 4), kind), idx
    units = elements(words.reshape((*at.shape, 4)), kind)  # unit along mn, k, number
    return units.transpose(0, 2, 1).reshape(mn, -1), idx


@decoder("wgmma")
def _wgmma(ins: Instruction, p: Program) -> Op:
    if ins.parts[1] == "fence":
        return Op(nothing, nothing, GROUP)
    if ins.parts[1] == "commit_group":
        return Op(None, None, GROUP, "wgmma", lambda cta, R, m: [cta.wgmma[g].commit() for g in cta.warp_groups(m)])
    if ins.parts[1] == "wait_group":
        keep = ins.operands[0].value
        return Op(
            None, None, GROUP, "wgmma", lambda cta, R, m: [cta.wgmma[g].wait(cta, keep) for g in cta.warp_groups(m)]
        )
    if "sp" in ins.parts or ins.parts[1] != "mma_async":
        raise NotImplementedError("wgmma form")
    shape = re.fullmatch(r"m64n(\d+)k(\d+)", ins.parts[4])
    if not shape:
        raise NotImplementedError("wgmma shape")
    n, k = int(shape[1]), int(shape[2])
    td, ta, tb = ins.parts[5:8]
    if td != "f32" and td != "s32":
        raise NotImplementedError("wgmma accumulator")
    item = {"f16": 2, "bf16": 2, "tf32": 4, "e4m3": 1, "e5m2": 1, "s8": 1, "u8": 1}[ta]
    o = ins.operands
    d = [p.dst(x, td) for x in o[0].items]
    if len(d) != n // 2:
        raise NotImplementedError("wgmma accumulator registers")
    in_registers = isinstance(o[1], Vec)
    a = [p.src(x, "u32") for x in o[1].items] if in_registers else p.src(o[1], "u64")
    b = p.src(o[2], "u64")
    scale_d = p.predicate(o[3])
    flags = [x.value for x in o[4:]]
    scale_a, scale_b = (flags[0], flags[1]) if td == "f32" else (1, 1)
    trans = flags[2:] if td == "f32" else []
    trans_a = bool(trans[0]) if len(trans) == 2 else False
    trans_b = bool(trans[-1]) if trans else False
    names = frozenset(x.name for x in o[0].items)
    a_names = frozenset(x.name for x in o[1].items) if in_registers else frozenset()

    def run(cta, R, m):
        for g in cta.warp_groups(m):
            lanes = slice(g * GROUP, (g + 1) * GROUP)
            read = []
            if in_registers:
                words = np.stack([R[s][lanes] for s in a]).reshape(2, 2, 4, 8, 4)  # k half, row half, warp, row, pair
                A = elements(np.ascontiguousarray(words.transpose(2, 1, 3, 0, 4)).reshape(64, 8), ta)
            else:
                A, idx = _operand(cta, _uniform(R[a][lanes]), 64, k * item, item, trans_a, ta)
                read.append(idx)
            B, idx = _operand(cta, _uniform(R[b][lanes]), n, k * item, item, trans_b, tb)
            read.append(idx)
            product = A.astype(np.float64) @ B.astype(np.float64).T * (scale_a * scale_b)
            fragment = product.reshape(4, 2, 8, n // 8, 4, 2).transpose(3, 1, 5, 0, 2, 4).reshape(n // 2, GROUP)
            if td == "s32":
                fragment = fragment.astype(np.int64)
            keep = scale_d(R)[lanes]
            if keep.any():
                for i, s in enumerate(d):
                    fragment[i] += R[s][lanes]
            for i, s in enumerate(d):
                R[s][lanes] = fragment[i]
            units = np.concatenate(read)
            cta.wgmma[g].issue(names, a_names, cta.shared.start_wgmma(units))
            cta.counts["mma"] += 4
            cta.counts["wgmma_shared_bytes"] += 16 * units.size

    return Op(None, None, GROUP, "wgmma", run)


def _uniform(values: np.ndarray) -> int:
    if (values != values[0]).any():
        raise Fault("wgmma descriptor differs between threads")
    return int(values[0])


class WarpGroup:
    """Products under way of four warps: groups of (accumulators, A registers, shared memory read)."""

    def __init__(self) -> None:
        self.open: list[tuple] = []
        self.groups: list[list[tuple]] = []
        self.pending: frozenset = frozenset()  # accumulators
        self.sources: frozenset = frozenset()  # A registers, which may be read but not written

    def issue(self, names: frozenset, a_names: frozenset, units: np.ndarray | None) -> None:
        """A product has begun."""
        self.open.append((names, a_names, units))
        self._refresh()

    def commit(self) -> None:
        """The products begun since form a group."""
        self.groups.append(self.open)
        self.open = []

    def wait(self, cta: Any, keep: int) -> None:
        """All groups but the last `keep` have ended."""
        while len(self.groups) > keep:
            for _, _, units in self.groups.pop(0):
                cta.shared.end_wgmma(units)
        self._refresh()

    def _refresh(self) -> None:
        under_way = [x for g in self.groups for x in g] + self.open
        self.pending = frozenset().union(*(x[0] for x in under_way))
        self.sources = frozenset().union(*(x[1] for x in under_way))
