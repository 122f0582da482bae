"""Decoded programs: instructions become Python functions over a list of numpy arrays.

Every operand is a slot: an index into the list R that each program of the grid builds once. R[slot] is an array with
one entry for each thread of the program: a register seen as some type, a constant, a parameter of the kernel, or a
special register. So `add.s32` is `np.add(R[a], R[b], R[d])`, for all warps at once.

A decoder (registered with @decoder) gets an Instruction and the Program and returns an Op.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .memory import SHARED_BASE, Fault
from .parse import Imm, Instruction, Mem, Module, Pair, Reg, Sym, Vec, float_of

KINDS = {
    "pred": np.bool_,
    "u8": np.uint8,
    "s8": np.int8,
    "u16": np.uint16,
    "s16": np.int16,
    "f16": np.float16,
    "u32": np.uint32,
    "s32": np.int32,
    "f32": np.float32,
    "u64": np.uint64,
    "s64": np.int64,
    "f64": np.float64,
}
_BYTES = {"pred": 1, "b16": 2, "b32": 4, "b64": 8}
_STORE = {"pred": np.bool_, "b16": np.uint16, "b32": np.uint32, "b64": np.uint64}
DECODERS: dict[str, Callable] = {}


def decoder(*names: str) -> Callable[[Callable], Callable]:
    """Register the function as the decoder of these opcodes."""

    def register(fn):
        for n in names:
            DECODERS[n] = fn
        return fn

    return register


def unsigned(kind: str) -> str:
    """b32, s32, f32 -> u32"""
    return "u" + kind[1:] if kind != "pred" else kind


def width(kind: str) -> int:
    """Bytes of b32, u16x2, f64, ..."""
    if kind == "pred":
        return 1
    if kind.endswith("x2"):
        return 2 * width(kind[:-2])
    return int(kind.lstrip("bsuf")) // 8


@dataclass
class Op:
    """A decoded instruction.

    fast(cta, R): all threads take part. slow(cta, R, m): the threads of the mask m. sync: how many threads must take
    part together (1, 32: a warp, 128: a warp group). control: "" for straight code, else how machine.py treats it."""

    fast: Callable | None
    slow: Callable | None = None
    sync: int = 1
    control: str = ""
    data: Any = None
    uses: frozenset = frozenset()  # names of all its registers
    writes: frozenset = frozenset()  # names of its destinations


def alu(fn: Callable, *dsts: int) -> Op:
    """An operation without side effects: fn(cta, R) writes the slots `dsts`; under a mask the other threads get them
    back."""

    def slow(cta, R, m):
        old = [R[d].copy() for d in dsts]
        fn(cta, R)
        keep = ~m
        for d, o in zip(dsts, old, strict=True):
            np.copyto(R[d], o, where=keep)

    return Op(fn, slow)


def memory(fn: Callable, sync: int = 1) -> Op:
    """An operation with side effects: fn(cta, R, m), m None when all threads take part."""

    def fast(cta, R):
        try:
            fn(cta, R, None)
        except Fault as f:
            f.at_lane(cta.all_lanes)
            raise

    def slow(cta, R, m):
        try:
            fn(cta, R, m)
        except Fault as f:
            f.at_lane(np.flatnonzero(m))
            raise

    return Op(fast, slow, sync)


def _registers(operand: Any) -> Iterator[str]:
    if isinstance(operand, Reg):
        yield operand.name
    elif isinstance(operand, Vec):
        for o in operand.items:
            yield from _registers(o)
    elif isinstance(operand, Mem):
        yield from _registers(operand.base)
    elif isinstance(operand, Pair):
        yield from _registers(operand.first)
        yield from _registers(operand.second)


_PARAMS = 0xF000_0000  # no address of memory; in 32 bits, as Triton 3.9 takes it


class Program:
    """One module for a number of warps, its parameters and its constants in global memory."""

    def __init__(self, module: Module, num_warps: int, symbols: dict[str, int], shared_bytes: int):
        self.module, self.num_warps, self.lanes = module, num_warps, num_warps * 32
        self.symbols = dict(symbols)
        self.slots: list = []  # see build_slots
        self._known: dict = {}
        self._rows: dict[str, dict[str, int]] = {c: {} for c in _BYTES}
        at = 0
        for name, (align, nbytes) in module.shared.items():  # static arrays, then the dynamic one
            if nbytes is not None:
                at = (at + align - 1) // align * align
                self.symbols[name] = SHARED_BASE + at
                at += nbytes
        dynamic = [n for n, (_, nbytes) in module.shared.items() if nbytes is None]
        at = (at + 1023) // 1024 * 1024 if at else 0
        for name in dynamic:
            self.symbols[name] = SHARED_BASE + at
        self.shared_bytes = at + shared_bytes
        self.local_bytes = 0
        for name, (_, nbytes) in module.local.items():
            at = (self.local_bytes + 15) // 16 * 16
            self.symbols[name] = at
            self.local_bytes = at + nbytes
        opcodes = {i.opcode for i in module.instructions}
        self.wgmma = any(o.startswith("wgmma") for o in opcodes)
        self.granule, self.global_granule = self._granule("shared"), self._granule("global")
        self.races = not any(
            o.startswith(("mbarrier", "bar.arrive", "barrier.arrive", "barrier.cta.arrive")) for o in opcodes
        ) and not any(
            i.parts[0] in ("bar", "barrier")
            and "warp" not in i.parts
            and (len(i.operands) > 1 or i.operands[:1] != [Imm(0)])
            for i in module.instructions
        )
        self.ops = [self._decode(i) for i in module.instructions]
        self.fast: list[Any] = [o.fast for o in self.ops]
        self.slow: list[Any] = [o.slow for o in self.ops]
        self.sync = [o.sync for o in self.ops]
        n = len(self.ops)
        self.end = [n] * (n + 1)  # for each pc, the next instruction that is not straight code
        for i in range(n - 1, -1, -1):
            self.end[i] = i if self.ops[i].control else self.end[i + 1]

    def _granule(self, space: str) -> int:
        """Smallest access to this memory in the code, at most 4 bytes."""
        least = 4
        for i in self.module.instructions:
            if i.parts[0] in ("ld", "ldu", "st", "atom", "red"):
                spaces = [p for p in i.parts if p.startswith(("shared", "global", "local", "param"))] or ["global"]
                if spaces[0].startswith(space):
                    least = min(least, width(i.parts[-1]))
        return least

    # -- slots -------------------------------------------------------------------------------------------------------

    def _slot(self, key: tuple, spec: tuple) -> int:
        if key not in self._known:
            self._known[key] = len(self.slots)
            self.slots.append(spec)
        return self._known[key]

    def reg(self, name: str, kind: str) -> int:
        """The slot of a register seen as `kind`."""
        cls = self.module.registers[name]
        if (cls != "pred" and width(kind) > _BYTES[cls]) or (cls == "pred") != (kind == "pred"):
            raise NotImplementedError(f"register {name} ({cls}) used as {kind}")
        row = self._rows[cls].setdefault(name, len(self._rows[cls]))
        return self._slot((name, kind), ("reg", cls, row, kind))

    def const(self, value: Any, kind: str) -> int:
        """The slot of a constant."""
        dtype = KINDS[kind]
        if isinstance(value, Imm):
            if kind[0] == "f":
                value = float_of(value)
            elif isinstance(value.value, float):
                raise NotImplementedError(f"the number {value.value} as {kind}")
            else:
                value = value.value
        if kind == "pred":
            value = bool(value)
        elif kind[0] != "f":
            bits = 8 * width(kind)
            value &= (1 << bits) - 1
            if kind[0] == "s" and value >> (bits - 1):
                value -= 1 << bits
        array: np.ndarray = np.full(self.lanes, value, dtype)
        return self._slot((array.tobytes()[: array.itemsize], kind), ("const", array))

    def param(self, name: str, offset: int, kind: str) -> int:
        """A value inside the kernel's parameter `name`; it is known only when the program runs."""
        return self._slot(("param", name, offset, kind), ("param", name, offset, kind))

    @property
    def param_addresses(self) -> dict[str, int]:
        """Where the kernel's parameters lie, for those that are read through a register: at numbers of their own."""
        return {name: _PARAMS + 64 * i for i, (name, _) in enumerate(self.module.params)}

    def array(self, values: np.ndarray, key: tuple) -> int:
        """A constant with a value for each thread."""
        return self._slot(("array", key), ("const", values))

    def src(self, operand: Any, kind: str) -> int:
        """The slot to read `operand` as `kind` (u8 ... f64, pred)."""
        if isinstance(operand, Reg) and not operand.negated:
            return self.reg(operand.name, kind)
        if isinstance(operand, Imm):
            return self.const(operand, kind)
        if isinstance(operand, Sym):
            if operand.name in self.symbols:
                return self.const(Imm(self.symbols[operand.name] + operand.offset), kind)
            if operand.name in self.param_addresses:
                return self.const(Imm(self.param_addresses[operand.name] + operand.offset), kind)
            if operand.name.startswith("%"):
                return self.special(operand.name, kind)
        raise NotImplementedError(f"operand {operand}")

    def special(self, name: str, kind: str) -> int:
        """The slot of a special register."""
        thread = np.arange(self.lanes, dtype=np.uint32)
        fixed = {
            "%tid.x": thread,
            "%tid.y": 0,
            "%tid.z": 0,
            "%ntid.x": self.lanes,
            "%ntid.y": 1,
            "%ntid.z": 1,
            "%laneid": thread % 32,
            "%warpid": thread // 32,
            "%nwarpid": self.num_warps,
            "WARP_SZ": 32,
            "%lanemask_lt": (1 << (thread % 32)) - 1,
            "%cluster_ctaid.x": 0,
            "%cluster_ctarank": 0,
            "%cluster_nctaid.x": 1,
            "%dynamic_smem_size": self.shared_bytes,
            "%lanemask_eq": 1 << (thread % 32),
            "%smid": 0,
        }
        if name in fixed:
            return self.array(
                np.broadcast_to(np.asarray(fixed[name]).astype(KINDS[kind]), (self.lanes,)).copy(), (name, kind)
            )
        if name.startswith(("%ctaid.", "%nctaid.", "%clusterid.", "%nclusterid.")):
            return self._slot((name, kind), ("special", name.replace("cluster", "cta"), kind))
        raise NotImplementedError(f"special register {name}")

    def dst(self, operand: Any, kind: str) -> int:
        """The slot to write `operand` as `kind`."""
        if isinstance(operand, Reg):
            return self.reg(operand.name, kind)
        if isinstance(operand, Sym) and operand.name == "_":
            name = f"_{kind}"
            self.module.registers.setdefault(name, "pred" if kind == "pred" else f"b{max(8 * width(kind), 16)}")
            return self.reg(name, kind)
        raise NotImplementedError(f"destination {operand}")

    def items(self, operand: Any) -> list:
        """The operands of a vector, or the one operand."""
        return list(operand.items) if isinstance(operand, Vec) else [operand]

    def address(self, operand: Any, kind: str) -> Callable:
        """A function R -> addresses (u32 or u64) of a memory operand."""
        if not isinstance(operand, Mem):
            operand = Mem(operand)
        if isinstance(operand.base, (Sym, Imm)):
            base = operand.base.value if isinstance(operand.base, Imm) else self.symbols[operand.base.name]
            fixed: np.ndarray = np.full(self.lanes, base + operand.offset, KINDS[kind])
            return lambda R: fixed
        cls = self.module.registers[operand.base.name]
        if kind == "u64" and cls == "b32":
            s = self.reg(operand.base.name, "u32")
            extra = np.uint64(operand.offset)
            return lambda R: R[s].astype(np.uint64) + extra
        s = self.reg(operand.base.name, kind)
        if not operand.offset:
            return lambda R: R[s]
        add: np.ndarray = np.full(self.lanes, operand.offset & (2**64 - 1 if kind == "u64" else 2**32 - 1), KINDS[kind])
        return lambda R: R[s] + add

    def predicate(self, operand: Any) -> Callable:
        """A function R -> bool array for %p, !%p or an immediate."""
        if isinstance(operand, Imm):
            value = np.full(self.lanes, bool(operand.value))
            return lambda R: value
        s = self.reg(operand.name, "pred")
        if operand.negated:
            return lambda R: ~R[s]
        return lambda R: R[s]

    # -- decoding ----------------------------------------------------------------------------------------------------

    def _decode(self, ins: Instruction) -> Op:
        fn = DECODERS.get(ins.parts[0])
        try:
            if fn is None:
                raise NotImplementedError("unknown instruction")
            op = fn(ins, self)
        except NotImplementedError as e:
            raise NotImplementedError(f"line {ins.line}: {ins.text}   ({e})") from None
        except (KeyError, IndexError, ValueError, TypeError, AttributeError) as e:
            raise NotImplementedError(f"line {ins.line}: {ins.text}   (cannot decode: {type(e).__name__} {e})") from e
        names = [n for o in ins.operands if not isinstance(o, str) for n in _registers(o)]
        if ins.guard:
            names.append(ins.guard.name)
            if not op.control:
                op = self._guarded(op, ins.guard)
        op.uses = frozenset(names)
        if (
            ins.operands
            and not isinstance(ins.operands[0], str)
            and ins.parts[0] not in ("st", "red", "cp", "stmatrix", "bra")
        ):
            op.writes = frozenset(_registers(ins.operands[0]))
        return op

    def _guarded(self, op: Op, guard: Reg) -> Op:
        test, fast, slow, n = self.predicate(guard), op.fast, op.slow, self.lanes

        def guarded(cta, R):
            p = test(R)
            k = np.count_nonzero(p)
            if k == n:
                fast(cta, R)
            elif k:
                slow(cta, R, p.copy())

        def guarded_slow(cta, R, m):
            p = test(R) & m
            if np.count_nonzero(p):
                slow(cta, R, p)

        return Op(guarded, guarded_slow, op.sync)

    def build_slots(self, params: dict[str, bytes], specials: dict[str, int]) -> list:
        """The list R for one program of the grid, from the launch's parameters; registers start as zero."""
        n = self.lanes
        store: dict[str, np.ndarray] = {
            c: np.zeros((max(len(rows), 1), n), _STORE[c]) for c, rows in self._rows.items()
        }
        views: dict = {}
        out = []
        for spec in self.slots:
            if spec[0] == "const":
                out.append(spec[1])
            elif spec[0] == "param":
                _, name, offset, kind = spec
                dtype = np.dtype(KINDS[kind])
                out.append(np.full(n, np.frombuffer(params[name], dtype, 1, offset)[0], dtype))
            elif spec[0] == "special":
                out.append(np.full(n, specials[spec[1]], KINDS[spec[2]]))
            else:
                _, cls, row, kind = spec
                v = views.get((cls, kind))
                if v is None:
                    v = store[cls].view(KINDS[kind])
                    views[cls, kind] = v = v[:, :: _BYTES[cls] // width(kind)] if cls != "pred" else v
                out.append(v[row])
        return out
