"""The order in which the programs of a grid run.

A policy says whose turn it is. No policy changes what a correct kernel computes: together they try interleavings under
which an incorrect one fails.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from .machine import Cta, PtxError, Timer
from .memory import GlobalMemory
from .program import Program

Turn = tuple[Cta, int, "random.Random | None"]


class Policy(Protocol):
    """Says whose turn it is."""

    def turn(self, live: Sequence[Cta]) -> Turn:
        """A program out of `live` (those on the device that have not ended, in launch order), how many instructions it
        may run, and what draws the warps that run alone for a while (None: all warps keep pace)."""
        ...


class Sequential:
    """One program after another. A program that waits for a later one waits for ever."""

    def turn(self, live: Sequence[Cta]) -> Turn:
        """The first program."""
        return live[0], 10_000, None


class RoundRobin:
    """Every program in turn, `quantum` instructions each."""

    def __init__(self, quantum: int):
        self.quantum, self.last = quantum, 0

    def turn(self, live: Sequence[Cta]) -> Turn:
        """The program after the last one."""
        cta = next((c for c in live if c.number > self.last), live[0])
        self.last = cta.number
        return cta, self.quantum, None


class Random:
    """Programs drawn at random for up to `quantum` instructions, one turn in four for some warps only."""

    def __init__(self, seed: int, quantum: int):
        self.rng, self.quantum = random.Random(seed), quantum

    def turn(self, live: Sequence[Cta]) -> Turn:
        """A program drawn at random."""
        cta = self.rng.choice(live)
        return cta, self.rng.randint(1, self.quantum), self.rng


class Starve:
    """Program number `index` (in launch order, from 0) runs only when the others seem to be unable to go on without it:
    none of them has stored anything for a while. Then it runs until it has stored something, or for a few turns."""

    ROUNDS = 4  # rounds of the others without a store, after which they are taken to be waiting
    AT_MOST = 256  # rounds after which the program gets a turn even if the others store all the time
    TURNS = 16  # that the program gets in a row at most: it may itself be waiting for the others

    def __init__(self, index: int, others: Policy, quantum: int):
        self.number, self.others, self.quantum = index + 1, others, quantum
        self.stored = self.idle = self.since = self.own = 0

    def turn(self, live: Sequence[Cta]) -> Turn:
        """One of the others, as long as they get somewhere."""
        starved = next((c for c in live if c.number == self.number), None)
        rest = [c for c in live if c is not starved]
        if starved is None or not rest:
            return self.others.turn(live)
        stored = starved.counts["global_store_bytes"]
        if stored != self.stored:
            self.stored, self.idle, self.own = stored, 0, 0
        if self.idle < self.ROUNDS * len(rest) and self.since < self.AT_MOST * len(rest):
            self.idle, self.since = self.idle + 1, self.since + 1
            return self.others.turn(rest)
        self.since, self.own = 0, self.own + 1
        if self.own >= self.TURNS:
            self.idle = self.own = 0
        return starved, self.quantum, None


class Behind:
    """All programs in turn, `quantum` instructions each, but number `index` (from 0): whenever it has stored something,
    it stands still until each of the others has had turns of `cycles` instructions. Every step it is that much late."""

    def __init__(self, index: int, cycles: int, quantum: int):
        self.number, self.turns, self.others = index + 1, cycles // quantum, RoundRobin(quantum)
        self.stored = self.left = 0

    def turn(self, live: Sequence[Cta]) -> Turn:
        """The next one, without the one that stands still."""
        late = next((c for c in live if c.number == self.number), None)
        if late is not None and self.others.last == self.number and late.counts["global_store_bytes"] != self.stored:
            self.left = self.turns * (len(live) - 1)
        rest = [c for c in live if c is not late]
        if self.left and rest:
            self.left -= 1
            live = rest
        turn = self.others.turn(live)
        self.stored = turn[0].counts["global_store_bytes"]
        return turn


def make_policy(
    seed: int | str | None,
    quantum: int = 200,
    starve: int | None = None,
    behind: tuple[int, int] | None = None,
) -> Policy:
    """The policy for `seed`: None (one program after another), "round-robin", or an integer (at random).

    With `starve`, the policy orders all programs but the one of this index; None then means "round-robin". `behind`:
    all in turn, the program of this index so many instructions late."""
    if behind is not None:
        return Behind(*behind, quantum)
    if isinstance(seed, str) and seed != "round-robin":
        raise ValueError(f"a schedule is None, an integer or 'round-robin', not {seed!r}")
    if seed is None and starve is None:
        return Sequential()
    policy: Policy = RoundRobin(quantum) if seed is None or isinstance(seed, str) else Random(seed, quantum)
    return policy if starve is None else Starve(starve, policy, quantum)


_COUNTERS = (
    "instructions",
    "global_load_bytes",
    "global_store_bytes",
    "shared_load_bytes",
    "shared_store_bytes",
    "local_load_bytes",
    "local_store_bytes",
    "barriers",
    "atomics",
    "mma",
    "wgmma_shared_bytes",
)


def run_grid(
    program: Program,
    memory: GlobalMemory,
    params: dict[str, bytes],
    grid: tuple[int, ...],
    policy: Policy,
    resident: int | None,
    max_instructions: int,
    checks: bool,
    races: bool,
) -> dict[str, int]:
    """Run all programs, at most `resident` at a time: a later one starts when an earlier one has ended.

    Returns the counters."""
    x, y, z = (*grid, 1, 1)[:3]
    ids = [(i, j, k) for k in range(z) for j in range(y) for i in range(x)]
    counts = dict.fromkeys(_COUNTERS, 0)
    path = turns = started = 0
    if isinstance(policy, Sequential):
        resident = 1  # the same order, and less memory
    if checks and races and len(ids) > 1:
        memory.track(program.global_granule, ids)
    live: list[Cta] = []
    timer = Timer(counts)
    with np.errstate(all="ignore"):
        while live or started < len(ids):
            while started < len(ids) and (resident is None or len(live) < resident):
                started += 1
                ident = ids[started - 1]
                live.append(Cta(program, memory, params, started, ident, (x, y, z), counts, timer, checks, races))
            cta, limit, rng = policy.turn(live)
            if memory.late is None:
                cta.turn(limit, rng)
            else:
                with memory.late.turn(cta.number):
                    cta.turn(limit, rng)
            turns += 1
            if cta.done:
                live.remove(cta)
                path = max(path, int(cta.per_warp.max()))
            if counts["instructions"] > max_instructions and (live or started < len(ids)):
                raise _endless(live, len(ids) - started, max_instructions)
    return {**counts, "turns": turns, "programs": len(ids), "critical_path": path}


def _endless(live: Sequence[Cta], waiting: int, max_instructions: int) -> PtxError:
    where = "; ".join(
        f"program {c.ident}: " + ", ".join(f"warps {g.warps} {g.state} at {c.place(g.pc)}" for g in c.groups[:2])
        for c in live[:4]
    )
    more = f" ({waiting} of them never began)" if waiting else ""
    ended = f"{len(live) + waiting} programs did not end within {max_instructions} instructions"
    return PtxError(f"{ended}{more}: {where}")
