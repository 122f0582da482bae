"""Loads, stores, atomics, asynchronous copies, fences; and calls of the runtime's assert."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .formats import bf16_to_f32, f32_to_bf16, f32_to_f16
from .isa_bits import nothing
from .memory import Fault
from .parse import Instruction, Mem
from .program import Op, Program, alu, decoder, memory, unsigned, width


def _space(ins: Instruction) -> str:
    for x in ins.parts[1:]:
        if x in ("global", "local", "param", "const"):
            return x
        if x.startswith("shared"):
            if "cluster" in x:
                raise NotImplementedError("shared memory of a cluster")
            return "shared"
    return "global"  # generic addresses: Triton forms none outside global memory


def _shape(ins: Instruction) -> tuple[str, int]:
    """Type of the items and how many."""
    count = next((int(x[1:]) for x in ins.parts if x in ("v2", "v4", "v8")), 1)
    return ins.parts[-1], count


def _load_slots(p: Program, operand: Any, kind: str, count: int) -> list[int]:
    """Destination slots; a narrow item fills a wider register, with its sign for s8 and s16."""
    out = []
    for o in p.items(operand):
        cls = p.module.registers.get(getattr(o, "name", ""), "b" + str(max(8 * width(kind), 16)))
        bits = max(int(cls[1:]), 8 * width(kind))
        out.append(p.dst(o, ("s" if kind[0] == "s" else "u") + str(bits)))
    if len(out) != count:
        raise NotImplementedError("vector length")
    return out


@decoder("ld", "ldu")
def _ld(ins: Instruction, p: Program) -> Op:
    space = _space(ins)
    kind, count = _shape(ins)
    if space == "param":
        mem = ins.operands[1]
        d = p.dst(ins.operands[0], unsigned(kind))
        if mem.base.name in p.module.registers:
            return _ld_param_at(mem, p, unsigned(kind), d)
        s = p.param(mem.base.name, mem.offset, unsigned(kind))
        return alu(lambda cta, R: np.copyto(R[d], R[s]), d)
    ds = _load_slots(p, ins.operands[0], kind, count)
    item = width(kind)
    nbytes = item * count
    signed = np.dtype(f"i{item}") if kind[0] == "s" else None
    counter = f"{space}_load_bytes"
    address = p.address(ins.operands[1], "u32" if space == "shared" else "u64")
    single = ds[0] if count == 1 else None
    strong = bool(set(ins.parts) & {"volatile", "relaxed", "acquire", "mmio"})
    fresh = strong or bool(set(ins.parts) & {"cv", "cg"})  # weak, too, but not out of a stale cache line
    acquire = "acquire" in ins.parts

    def run(cta, R, m):
        if m is None:
            lanes, a, warp = None, address(R), cta.warp_of
        else:
            lanes = np.flatnonzero(m)
            a, warp = address(R)[lanes], cta.warp_of[lanes]
        if space == "global":
            idx = cta.memory.index(a, nbytes)
            view = cta.memory.view(item, count)
            if not (strong if cta.memory.strong else fresh):
                cta.memory.check_weak(idx, nbytes, cta)
            else:
                if acquire:
                    cta.memory.order(cta, True, False)
                cta.memory.check_strong(idx, nbytes, cta, item)
        elif space == "shared":
            sm = cta.shared
            idx = sm.index(a, nbytes)
            sm.check_read(idx, nbytes, warp)
            view = sm.view(item, count)
        else:
            idx, view = cta.local_index(a, nbytes, lanes), cta.local_view(item, count)
        cta.counts[counter] += nbytes * a.size
        values = view.take(idx, axis=0)
        if signed is not None:
            values = values.view(signed)
        if single is not None:
            if lanes is None:
                R[single][:] = values
            else:
                R[single][lanes] = values
        elif lanes is None:
            for i, d in enumerate(ds):
                R[d][:] = values[:, i]
        else:
            for i, d in enumerate(ds):
                R[d][lanes] = values[:, i]

    return memory(run)


def _ld_param_at(mem: Mem, p: Program, kind: str, d: int) -> Op:
    """A parameter of the kernel whose address is in a register: one of several, as the compiler selects pointers."""
    address = p.address(mem, "u64")
    there = {
        p.param_addresses[name]: p.param(name, 0, kind) for name, of in p.module.params if width(of) == width(kind)
    }

    def load(cta, R, m):
        lanes = cta.all_lanes if m is None else np.flatnonzero(m)
        at = address(R)[lanes]
        for where in np.unique(at):
            if int(where) not in there:
                raise Fault("an address that is no parameter's", int(np.flatnonzero(at == where)[0]))
            chosen = lanes[at == where]
            R[d][chosen] = R[there[int(where)]][chosen]

    return memory(load)


@decoder("st")
def _st(ins: Instruction, p: Program) -> Op:
    space = _space(ins)
    kind, count = _shape(ins)
    if space == "param":
        return _st_param(ins, p, kind)
    item = width(kind)
    nbytes = item * count
    part = f"u{8 * item}"
    ss = [p.src(o, part) for o in p.items(ins.operands[1])]
    if len(ss) != count:
        raise NotImplementedError("vector length")
    counter = f"{space}_store_bytes"
    address = p.address(ins.operands[0], "u32" if space == "shared" else "u64")
    dtype = np.dtype(f"u{item}")
    release = "release" in ins.parts
    strong = item if set(ins.parts) & {"volatile", "relaxed", "release", "mmio"} else 0

    def run(cta, R, m):
        if m is None:
            lanes, a, warp = None, address(R), cta.warp_of
        else:
            lanes = np.flatnonzero(m)
            a, warp = address(R)[lanes], cta.warp_of[lanes]
        if count == 1:
            values = R[ss[0]] if lanes is None else R[ss[0]][lanes]
        else:
            values = np.empty((a.size, count), dtype)
            for i, s in enumerate(ss):
                values[:, i] = R[s] if lanes is None else R[s][lanes]
        if space == "global":
            idx, view = cta.memory.index(a, nbytes), cta.memory.view(item, count)
            if release:
                cta.memory.order(cta, False, True)
            cta.memory.note_write(idx, nbytes, cta.number, strong)
            if cta.memory.late is not None:
                cta.memory.late.store(cta.number, idx * nbytes, np.ascontiguousarray(values).reshape(-1, count))
        elif space == "shared":
            sm = cta.shared
            idx = sm.index(a, nbytes)
            sm.check_write(idx, nbytes, warp, np.ascontiguousarray(values).view(np.uint8).reshape(-1, nbytes))
            view = sm.view(item, count)
        else:
            idx, view = cta.local_index(a, nbytes, lanes), cta.local_view(item, count)
        cta.counts[counter] += nbytes * a.size
        view[idx] = values

    return memory(run)


# -- calls: only the runtime's assert and printf ---------------------------------------------------------------------


def _st_param(ins: Instruction, p: Program, kind: str) -> Op:
    s = p.src(ins.operands[1], unsigned(kind))
    name = ins.operands[0].base.name
    return memory(
        lambda cta, R, m: cta.call_params.__setitem__(name, int(R[s][0 if m is None else int(np.flatnonzero(m)[0])]))
    )


@decoder("call")
def _call(ins: Instruction, p: Program) -> Op:
    if "__assertfail" in ins.operands:
        names = [o for o in ins.operands if o.startswith("param")]

        def fail(cta, R, m):
            values = [cta.call_params.get(n, 0) for n in names]
            message, file = (cta.memory.read_string(v) for v in values[:2])
            raise Fault(f"device_assert failed: {message!r} ({file.rsplit('/', 1)[-1]}:{values[2]})", 0)

        return memory(fail)
    if "vprintf" in ins.operands:
        return Op(nothing, nothing)
    raise NotImplementedError("call")


# -- atomics ---------------------------------------------------------------------------------------------------------


def _add_float(kind: str) -> Callable:
    if kind in ("f32", "f64"):
        return lambda old, b, c: old + b
    if kind.startswith("bf16"):
        return lambda old, b, c: f32_to_bf16(bf16_to_f32(old) + bf16_to_f32(b))
    return lambda old, b, c: f32_to_f16(old.view(np.float16).astype(np.float32) + b.view(np.float16).astype(np.float32))


_ATOMIC = {
    "exch": lambda old, b, c: b,
    "cas": lambda old, b, c: np.where(old == b, c, old),
    "and": lambda old, b, c: old & b,
    "or": lambda old, b, c: old | b,
    "xor": lambda old, b, c: old ^ b,
    "min": lambda old, b, c: np.minimum(old, b),
    "max": lambda old, b, c: np.maximum(old, b),
    "add": lambda old, b, c: old + b,
    "inc": lambda old, b, c: np.where(old >= b, 0, old + 1).astype(old.dtype),
    "dec": lambda old, b, c: np.where((old == 0) | (old > b), b, old - 1).astype(old.dtype),
}


@decoder("atom", "red")
def _atom(ins: Instruction, p: Program) -> Op:
    space = _space(ins)
    name = next(x for x in ins.parts[1:] if x in _ATOMIC)
    kind, count = _shape(ins)
    half = kind in ("f16", "bf16", "f16x2", "bf16x2")
    fn = _add_float(kind) if name == "add" and "f" in kind else _ATOMIC[name]
    if half and name != "add":
        raise NotImplementedError("atomic on half precision")
    k = ("u32" if kind.endswith("x2") else "u16") if half else unsigned(kind) if kind[0] == "b" else kind
    item = width(k)
    number = (
        np.dtype(np.uint16)
        if half
        else {"u": np.dtype(f"u{item}"), "s": np.dtype(f"i{item}"), "f": np.dtype(f"f{item}")}[k[0]]
    )
    returns = ins.parts[0] == "atom"
    ds = [p.dst(o, k) for o in p.items(ins.operands[0])] if returns else []
    rest = ins.operands[1:] if returns else ins.operands
    bs = [p.src(o, k) for o in p.items(rest[1])]
    c = p.src(rest[2], k) if name == "cas" else None
    address = p.address(rest[0], "u32" if space == "shared" else "u64")
    nbytes = item * count
    acquire, release = ("acq_rel" in ins.parts or x in ins.parts for x in ("acquire", "release"))

    def run(cta, R, m):
        lanes = cta.all_lanes if m is None else np.flatnonzero(m)
        a = address(R)[lanes]
        if space == "global":
            idx, view = cta.memory.index(a, nbytes), cta.memory.view(item, count)
            cta.memory.order(cta, acquire, release)
            cta.memory.note_write(idx, nbytes, cta.number, item)
            if cta.memory.late is not None:
                cta.memory.late.show(cta.number, idx * nbytes, nbytes)
        else:
            sm = cta.shared
            idx = sm.index(a, nbytes)
            sm.check_read(idx, nbytes, cta.warp_of[lanes], atomic=True)
            sm.check_write(idx, nbytes, cta.warp_of[lanes], None, atomic=True)
            view = sm.view(item, count)
        cta.counts["atomics"] += int(np.count_nonzero(np.bincount(cta.warp_of[lanes])))
        table = view.reshape(-1, count)
        new = np.stack([R[b][lanes] for b in bs], 1)
        third = R[c][lanes][:, None] if c is not None else None
        old = np.empty_like(table, shape=(lanes.size, count))

        def apply(rows):
            before = table[idx[rows]]
            old[rows] = before
            after = fn(
                before.view(number),
                np.ascontiguousarray(new[rows]).view(number),
                None if third is None else third[rows].view(number),
            )
            table[idx[rows]] = np.ascontiguousarray(after).view(table.dtype).reshape(before.shape)

        if np.unique(idx).size == idx.size:
            apply(slice(None))
        else:  # lane by lane where several meet
            for i in range(lanes.size):
                apply(slice(i, i + 1))
        for i, d in enumerate(ds):
            R[d][lanes] = old[:, i].view(R[d].dtype)

    return memory(run)


# -- asynchronous copies and fences ----------------------------------------------------------------------------------


@decoder("cp")
def _cp(ins: Instruction, p: Program) -> Op:
    """cp.async global -> shared. The bytes arrive at the last moment the code allows: at wait_group."""
    if ins.parts[1] != "async" or "bulk" in ins.parts or "mbarrier" in ins.parts:
        raise NotImplementedError("bulk copy")
    if "commit_group" in ins.parts:
        return memory(lambda cta, R, m: cta.copies.commit(cta, m))
    if "wait_group" in ins.parts:
        n = ins.operands[0].value
        return memory(lambda cta, R, m: cta.copies.wait(cta, m, n))
    if "wait_all" in ins.parts:
        return memory(lambda cta, R, m: (cta.copies.commit(cta, m), cta.copies.wait(cta, m, 0)))
    to, source, size = p.address(ins.operands[0], "u32"), p.address(ins.operands[1], "u64"), ins.operands[2].value
    have = p.src(ins.operands[3], "u32") if len(ins.operands) > 3 else p.const(size, "u32")
    l1 = "ca" in ins.parts  # .cg goes past the first cache

    def run(cta, R, m):
        lanes = cta.all_lanes if m is None else np.flatnonzero(m)
        real = R[have][lanes]
        if ((real != 0) & (real != size)).any():
            raise NotImplementedError("cp.async with a partial source")
        idx = cta.shared.index(to(R)[lanes], size)
        warp = cta.warp_of[lanes]
        cta.shared.check_write(idx, size, warp, None, asynchronous=True)
        full = real != 0
        where = np.zeros(lanes.size, np.int64)
        if full.any():
            at = np.flatnonzero(full)
            try:
                where[at] = cta.memory.index(source(R)[lanes][at], size)
                if l1:
                    cta.memory.check_weak(where[at], size, cta)
            except Fault as f:
                raise Fault(f.message, None if f.index is None else int(at[f.index])) from None
        cta.counts["global_load_bytes"] += int(full.sum()) * size
        cta.counts["shared_store_bytes"] += lanes.size * size
        cta.copies.add(cta, idx, size, warp, where, full)

    return memory(run)


class Copies:
    """Groups of cp.async under way, for each warp: a list of committed groups and the open one."""

    def __init__(self, warps: int):
        self.open: list[list[tuple]] = [[] for _ in range(warps)]
        self.groups: list[list[list[tuple]]] = [[] for _ in range(warps)]

    def add(self, cta: Any, idx: np.ndarray, size: int, warp: np.ndarray, where: np.ndarray, full: np.ndarray) -> None:
        """A copy of units `where` of global memory, or of zeros where not `full`, to units `idx` of shared memory."""
        cta.shared.in_flight += 1
        parts = np.unique(warp)
        for w in parts:
            pick = slice(None) if parts.size == 1 else warp == w
            self.open[w].append((idx[pick], size, warp[pick], where[pick], full[pick]))
        cta.shared.in_flight += len(parts) - 1

    def commit(self, cta: Any, m: np.ndarray | None) -> None:
        """The open copies form a group."""
        for w in cta.warps(m):
            self.groups[w].append(self.open[w])
            self.open[w] = []

    def wait(self, cta: Any, m: np.ndarray | None, keep: int) -> None:
        """Finish all groups but the last `keep`."""
        for w in cta.warps(m):
            while len(self.groups[w]) > keep:
                for idx, size, warp, where, full in self.groups[w].pop(0):
                    item, count = (size, 1) if size < 8 else (8, size // 8)
                    values = cta.memory.view(item, count).take(where, axis=0)
                    values[~full] = 0
                    cta.shared.view(item, count)[idx] = values
                    cta.shared.land(idx, size, warp)
                    cta.shared.in_flight -= 1


@decoder("fence", "membar")
def _fence(ins: Instruction, p: Program) -> Op:
    if "proxy" in ins.parts:
        if any(x.startswith("async") for x in ins.parts):
            return memory(lambda cta, R, m: cta.shared.fence(np.array(cta.warps(m))))
        return Op(nothing, nothing)
    if {"cta", "mbarrier_init"} & set(ins.parts):
        return Op(nothing, nothing)
    return memory(lambda cta, R, m: cta.memory.order(cta, True, True))


@decoder("mbarrier")
def _mbarrier(ins: Instruction, p: Program) -> Op:
    """Counting barriers in shared memory, without transaction counts. State: [expected, pending, phase]."""
    what = ins.parts[1]
    if what in ("expect_tx", "complete_tx") or "expect_tx" in ins.parts:
        raise NotImplementedError("mbarrier transactions")
    if what == "init":
        address, count = p.address(ins.operands[0], "u32"), p.src(ins.operands[1], "u32")

        def init(cta, R, m):
            i = 0 if m is None else int(np.flatnonzero(m)[0])
            n = int(R[count][i])
            cta.mbarriers[int(address(R)[i])] = [n, n, 0]

        return memory(init)
    if what == "inval":
        return Op(nothing, nothing)
    if what == "arrive":
        mem = next(o for o in ins.operands if isinstance(o, Mem))
        address = p.address(mem, "u32")
        last = ins.operands[-1]
        count = p.src(last, "u32") if last is not mem else p.const(1, "u32")

        def arrive(cta, R, m):
            for i in range(cta.lanes) if m is None else np.flatnonzero(m):
                state = cta.mbarriers[int(address(R)[i])]
                state[1] -= int(R[count][i])
                if state[1] == 0:
                    state[1], state[2] = state[0], state[2] + 1

        return memory(arrive)
    if what in ("try_wait", "test_wait") and "parity" in ins.parts:
        d, address, parity = (
            p.dst(ins.operands[0], "pred"),
            p.address(ins.operands[1], "u32"),
            p.src(ins.operands[2], "u32"),
        )

        def test(cta, R, m):
            a = address(R)
            for i in range(cta.lanes) if m is None else np.flatnonzero(m):
                R[d][i] = (cta.mbarriers[int(a[i])][2] & 1) != (int(R[parity][i]) & 1)

        return memory(test)
    raise NotImplementedError("mbarrier operation")
