"""Programs of the grid, their warps, divergence, barriers, and the order in which they run."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from .isa_mem import Copies
from .isa_wgmma import WarpGroup
from .memory import Fault, GlobalMemory
from .program import Op, Program
from .shared import SharedMemory

RUN, BARRIER, SYNC = "runs", "waits at a barrier", "waits for the rest of its warp"
_PATIENCE = 2048  # instructions a part of a program may run while another part could run, too


class PtxError(RuntimeError):
    """An error of the kernel, with the place where it happened."""


class Group:
    """Threads of one program that stand at the same instruction. mask: (threads,) bool, None for all of them."""

    __slots__ = ("age", "barrier", "mask", "pc", "size", "state", "warps", "whole")

    def __init__(self, cta: Cta, pc: int, mask: np.ndarray | None):
        self.pc, self.state, self.age = pc, RUN, 0
        self.barrier: int | None = None  # the one it waits at
        self.size = cta.lanes if mask is None else int(np.count_nonzero(mask))
        self.mask = None if self.size == cta.lanes else mask
        if mask is None or self.mask is None:
            self.whole, self.warps = 128, cta.all_warps
            return
        rows, alive = mask.reshape(-1, 32), cta.alive.reshape(-1, 32)
        present: Any = rows.any(1)
        self.warps = np.flatnonzero(present).tolist()
        self.whole = 1
        if (rows[present] == alive[present]).all():
            self.whole = 32
            quads = present.reshape(-1, 4) if present.size % 4 == 0 else present[None, :]
            if (quads.all(1) | ~quads.any(1)).all():
                self.whole = 128


class Timer:
    """%globaltimer, in nanoseconds: every instruction of the grid takes one. Where a program asks again and again, and
    nothing has been stored since it began to, it waits for what is slow to come: the time jumps, twice as far each
    time, so that a wait that is in vain ends soon."""

    PATIENCE = 24  # times that a program asks before; meanwhile another may be in the middle of a long product

    def __init__(self, counts: dict[str, int]):
        self.counts, self.jumped = counts, 1_750_000_000 * 10**9  # a Unix clock
        self.asked: dict[int, tuple[int, int]] = {}  # by program: bytes stored until then, how often in a row

    def read(self, program: int) -> int:
        """The time that this program is given."""
        stored = self.counts["global_store_bytes"]
        before, times = self.asked.get(program, (-1, 0))
        times = times + 1 if stored == before else 0
        self.asked[program] = stored, times
        if times > self.PATIENCE:
            self.jumped += 1 << (20 + times - self.PATIENCE)
        return self.counts["instructions"] + self.jumped


class Cta:
    """One program of the grid."""

    def __init__(
        self,
        program: Program,
        memory: GlobalMemory,
        params: dict[str, bytes],
        number: int,
        ident: tuple[int, int, int],
        grid: tuple[int, int, int],
        counts: dict[str, int],
        timer: Timer,
        checks: bool,
        races: bool,
    ):
        self.program, self.memory, self.ident, self.counts, self.timer = program, memory, ident, counts, timer
        self.number, self.acquired = number, 0  # 1, 2, ... in the grid; memory.clock when it last acquired
        self.lanes = program.lanes
        self.R = program.build_slots(
            params,
            {
                f"%{name}.{axis}": int(v)
                for name, values in (("ctaid", ident), ("nctaid", grid))
                for axis, v in zip("xyz", values, strict=True)
            },
        )
        self.shared = SharedMemory(
            program.shared_bytes, program.granule, checks, races and program.races, program.wgmma
        )
        self.all_lanes = np.arange(self.lanes)
        self.warp_of = (self.all_lanes // 32).astype(np.int32)
        self.all_warps = list(range(program.num_warps))
        self.alive = np.ones(self.lanes, bool)
        self.groups = [Group(self, 0, None)]
        self.barriers: dict[int, tuple] = {}
        self.copies = Copies(program.num_warps)
        self.wgmma = [WarpGroup() for _ in range(max(program.num_warps // 4, 1))]
        self.mbarriers: dict[int, list] = {}
        self.call_params: dict[str, int] = {}
        self.clock = 0
        self.per_warp = np.zeros(program.num_warps, np.int64)
        self.local = np.zeros(self.lanes * max(program.local_bytes, 16) // 8 * 8, np.uint8)
        self.checks = checks

    # -- what instructions ask for -----------------------------------------------------------------------------------

    def warps(self, mask: np.ndarray | None) -> list[int]:
        """Warps with a thread in the mask."""
        return self.all_warps if mask is None else np.flatnonzero(mask.reshape(-1, 32).any(1)).tolist()

    def warp_groups(self, mask: np.ndarray | None) -> list[int]:
        """Groups of four warps in the mask."""
        return sorted({w // 4 for w in self.warps(mask)})

    def local_index(self, address: np.ndarray, width: int, lanes: np.ndarray | None) -> np.ndarray:
        """Local memory: every thread has its own bytes; index of `width`-byte units."""
        per = self.local.size // self.lanes
        offset = address.astype(np.int64)
        if ((offset < 0) | (offset + width > per) | (offset % width != 0)).any():
            raise Fault(
                "local memory access out of range",
                int(np.flatnonzero((offset < 0) | (offset + width > per) | (offset % width != 0))[0]),
            )
        return ((self.all_lanes if lanes is None else lanes) * per + offset) // width

    def local_view(self, item: int, count: int) -> np.ndarray:
        """Local memory as (n,) items of `item` bytes, or (n, count)."""
        v = self.local.view(f"u{item}")
        return v.reshape(-1, count) if count > 1 else v

    # -- running -----------------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether all threads have ended."""
        return not self.groups

    def turn(self, limit: int, rng: random.Random | None = None) -> int:
        """Run up to `limit` instructions; returns how many warp-instructions that were."""
        before = self.counts["instructions"]
        chosen = None
        if (
            rng
            and len(self.groups) == 1
            and self.groups[0].mask is None
            and len(self.all_warps) > 1
            and rng.random() < 0.25
        ):
            chosen = self._split_warps(rng)
        spent = 0
        while spent < limit and self.groups:
            g = chosen if chosen in self.groups and chosen.state == RUN else None if chosen else self._pick()
            if g is None:
                break
            spent += max(self._run(g, min(limit - spent, _PATIENCE if len(self.groups) > 1 else limit)), 1)
        return self.counts["instructions"] - before

    def _split_warps(self, rng: random.Random) -> Group:
        some = rng.sample(self.all_warps, rng.randint(1, len(self.all_warps) - 1))
        if self.program.wgmma:
            some = [w for w in self.all_warps if w // 4 in {s // 4 for s in some}]
        mask = np.isin(self.warp_of, some)
        if mask.all():
            return self.groups[0]
        pc = self.groups[0].pc
        self.groups = [Group(self, pc, mask), Group(self, pc, ~mask)]
        return self.groups[0]

    def _pick(self) -> Group:
        """The part that is furthest behind, unless it has run for long without being joined."""
        if len(self.groups) > 1:
            self._merge()
        ready = [g for g in self.groups if g.state == RUN]
        if not ready:
            self._stuck()
        return min(ready, key=lambda g: (g.age // _PATIENCE, g.pc))

    def _merge(self) -> None:
        at: dict = {}
        for g in self.groups:
            key = g.pc if g.state != BARRIER else (g.pc, g.barrier)
            at.setdefault(key, []).append(g)
        if len(at) == len(self.groups):
            return
        self.groups = []
        for gs in at.values():
            if len(gs) == 1:
                self.groups += gs
                continue
            joined = Group(self, gs[0].pc, np.logical_or.reduce([g.mask for g in gs]))
            if gs[0].state == BARRIER:
                joined.state, joined.barrier = BARRIER, gs[0].barrier
            joined.age = min(g.age for g in gs)
            self.groups.append(joined)

    def _stuck(self) -> None:
        lines = [f"warps {g.warps} ({g.size} threads) {self._waits(g)}" for g in self.groups]
        raise PtxError(f"program {self.ident} cannot go on: " + "; ".join(lines))

    def _waits(self, g: Group) -> str:
        at = g.pc - 1 if g.state == BARRIER else g.pc
        name = f"{g.state} {g.barrier}" if g.state == BARRIER else g.state
        return f"{name} at {self.place(at)}"

    def place(self, pc: int) -> str:
        """An instruction in words."""
        ins = self.program.module.instructions[min(pc, len(self.program.module.instructions) - 1)]
        source = f", {ins.loc}" if ins.loc else ""
        return f"PTX line {ins.line}{source}: {' '.join(ins.text.split())[:120]}"

    def _charge(self, g: Group, n: int) -> None:
        """n instructions were executed by the warps of g."""
        if n:
            self.counts["instructions"] += n * len(g.warps)
            self.per_warp[g.warps] += n
            self.clock += n
            g.age += n

    def _run(self, g: Group, limit: int) -> int:
        """Run the group until it meets another, waits, splits, ends, or has spent the limit."""
        program, n, pc = self.program, 0, g.pc
        several = len(self.groups) > 1
        try:
            while n < limit:
                stop = (
                    min((o.pc for o in self.groups if o is not g and o.state != BARRIER and o.pc > pc), default=-1)
                    if several
                    else -1
                )
                end = program.end[pc]
                upto = min(end, pc + limit - n)
                if stop > 0:
                    upto = min(upto, stop)
                if upto > pc:
                    start = pc
                    g.pc = pc
                    pc = self._straight(g, pc, upto)
                    n += pc - start
                    if g.state == SYNC:
                        break
                if pc == stop or pc != end:
                    break
                if program.sync[pc] > g.whole:
                    g.state = SYNC
                    break
                g.pc = pc
                n += 1
                pc = self._control(g, program.ops[pc], pc)
                if pc < 0:  # the group waits, has split or has ended
                    return n
                if several and any(o.pc < pc and o.state == RUN for o in self.groups if o is not g):
                    break
            g.pc = pc
            return n
        finally:
            self._charge(g, n)

    def _straight(self, g: Group, pc: int, upto: int) -> int:
        """Execute instructions pc..upto-1, which are straight code; returns the pc reached."""
        program, R, m = self.program, self.R, g.mask
        i = pc
        try:
            if m is None and not self._pending():
                for fn in program.fast[pc:upto]:
                    fn(self, R)
                    i += 1
                return upto
            pending, sources = self._registers_under_way(g)
            whole, sync, fast, slow, ops = g.whole, program.sync, program.fast, program.slow, program.ops
            while i < upto:
                if sync[i] > whole:
                    g.state = SYNC
                    return i
                if pending and not (pending.isdisjoint(ops[i].uses) and sources.isdisjoint(ops[i].writes)):
                    raise Fault("uses registers of a wgmma that is still under way (no wgmma.wait_group yet)")
                if m is None:
                    fast[i](self, R)
                else:
                    slow[i](self, R, m)
                i += 1
            return upto
        except Fault as f:
            raise self._error(f, g, i) from None

    def _pending(self) -> bool:
        return self.checks and self.program.wgmma and any(w.pending for w in self.wgmma)

    def _registers_under_way(self, g: Group) -> tuple[frozenset, frozenset]:
        if not self._pending():
            return frozenset(), frozenset()
        groups = [self.wgmma[i] for i in self.warp_groups(g.mask)]
        return frozenset().union(*(w.pending for w in groups)), frozenset().union(*(w.sources for w in groups))

    def _error(self, f: Fault, g: Group, pc: int) -> PtxError:
        who = f"warp {f.lane // 32}, lane {f.lane % 32}" if f.lane is not None else f"warps {g.warps}"
        return PtxError(f"{f.message}\n  program {self.ident}, {who}, {self.place(pc)}")

    # -- control -----------------------------------------------------------------------------------------------------

    def _control(self, g: Group, op: Op, pc: int) -> int:
        """Carry out a control instruction; returns the next pc, or -1 when the group does not simply go on."""
        R, m = self.R, g.mask
        kind = op.control
        if kind == "bra":
            test, target = op.data
            if test is None:
                return target
            p = test(R) if m is None else test(R) & m
            taken = int(np.count_nonzero(p))
            if taken == 0:
                return pc + 1
            if taken == g.size:
                return target
            self._split(g, p.copy(), target, pc + 1)
            return -1
        if kind == "bar":
            return self._barrier(g, op, pc)
        if kind == "wgmma":
            try:
                op.data(self, R, m)
            except Fault as f:
                raise self._error(f, g, pc) from None
            return pc + 1
        p = op.data(R) if op.data is not None else np.ones(self.lanes, bool)
        p = p if m is None else p & m
        if not p.any():
            return pc + 1
        if kind == "trap":
            raise self._error(Fault("trap", lane=int(np.flatnonzero(p)[0])), g, pc)
        self.alive = self.alive & ~p
        if np.count_nonzero(p) == g.size:
            self.groups.remove(g)
        else:
            rest = ~p if m is None else m & ~p
            self.groups.remove(g)
            self.groups.append(Group(self, pc + 1, rest))
        for number in list(self.barriers):
            self._release(number)
        if not self.groups and self.checks and self.shared.in_flight:
            raise self._error(Fault("the program ends with a cp.async under way (no cp.async.wait_group)"), g, pc)
        return -1

    def _split(self, g: Group, mask: np.ndarray, target: int, fall: int) -> None:
        rest = ~mask if g.mask is None else g.mask & ~mask
        self.groups.remove(g)
        for pc, part in ((target, mask), (fall, rest)):
            new = Group(self, pc, part)
            new.age = g.age
            self.groups.append(new)

    def _barrier(self, g: Group, op: Op, pc: int) -> int:
        ident, fixed, count, waits = op.data
        number = ident if fixed else int(self.R[ident][0 if g.mask is None else int(np.flatnonzero(g.mask)[0])])
        self.counts["barriers"] += len(g.warps)
        if g.mask is None and waits and (count is None or count == self.lanes) and number not in self.barriers:
            self.shared.epoch += 1
            return pc + 1
        arrived, _ = self.barriers.get(number, (np.zeros(self.lanes, bool), count))
        self.barriers[number] = (arrived | (g.mask if g.mask is not None else True), count)
        g.pc = pc + 1
        if waits:
            g.state, g.barrier = BARRIER, number
        self._release(number)
        return -1 if waits else pc + 1

    def _release(self, number: int) -> None:
        """Let the warps at a barrier go if all that it expects have arrived."""
        arrived, count = self.barriers[number]
        missing = count - np.count_nonzero(arrived) if count else np.count_nonzero(self.alive & ~arrived)
        if missing > 0:
            return
        del self.barriers[number]
        if not (self.alive & ~arrived).any():
            self.shared.epoch += 1
        for g in self.groups:
            if g.state == BARRIER and g.barrier == number:
                g.state, g.barrier = RUN, None
