"""Durations of calls that take turns, so that what disturbs one disturbs the other.

A timer has `durations(calls, rounds)`: seconds of each call in each round. Everything else of the suite sees only that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

Call = Callable[[], Any]
FLUSHED_BYTES = 256 << 20  # more than the L2 of any GPU so far (B200: 126 MiB)
ROUNDS = (3, 100)


class Timer(Protocol):
    """See the module."""

    def durations(self, calls: Sequence[Call], rounds: int) -> list[tuple[float, ...]]:
        """Seconds that each call took, a tuple a round, in the order of `calls`."""
        ...


def _order(count: int, turn: int) -> list[int]:
    """Who goes first alternates, for whoever follows finds the caches as the other left them."""
    return list(range(count)) if turn % 2 == 0 else list(reversed(range(count)))


class HostTimer:
    """The host's clock: for calls that are done when they return."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock

    def durations(self, calls: Sequence[Call], rounds: int) -> list[tuple[float, ...]]:
        """See `Timer`."""
        taken = []
        for turn in range(rounds):
            times = [0.0] * len(calls)
            for i in _order(len(calls), turn):
                start = self.clock()
                calls[i]()
                times[i] = self.clock() - start
            taken.append(tuple(times))
        return taken


class CudaTimer:
    """Events on the current stream around each call, after a write that pushes everything else out of L2.

    The write also keeps the GPU busy while the host enqueues the call, so short calls are not measured by how fast the
    host is; a call that takes the host longer than the GPU still is, and that is what an eager user sees.

    Args:
        event: makes an event with `record()` and `elapsed_time(end)` in milliseconds.
        flush: writes the L2 full.
        synchronize: waits for the GPU.
    """

    def __init__(
        self,
        event: Callable[[], Any] | None = None,
        flush: Call | None = None,
        synchronize: Call | None = None,
    ) -> None:
        self.event = event or (lambda: torch.cuda.Event(enable_timing=True))
        self.flush = flush or torch.empty(FLUSHED_BYTES, dtype=torch.int8, device="cuda").zero_
        self.synchronize = synchronize or torch.cuda.synchronize

    def durations(self, calls: Sequence[Call], rounds: int) -> list[tuple[float, ...]]:
        """See `Timer`. Nothing waits for the GPU before the last call has been enqueued."""
        events = []
        for turn in range(rounds):
            pairs = [(self.event(), self.event()) for _ in calls]
            for i in _order(len(calls), turn):
                self.flush()
                pairs[i][0].record()
                calls[i]()
                pairs[i][1].record()
            events.append(pairs)
        self.synchronize()
        return [tuple(start.elapsed_time(end) / 1e3 for start, end in pairs) for pairs in events]


def timer_for(device: str) -> Timer:
    """The timer for calls on "cpu" or "cuda"."""
    return CudaTimer() if device == "cuda" else HostTimer()


def rounds_within(budget_s: float, round_s: float) -> int:
    """How many rounds fit, within ROUNDS."""
    least, most = ROUNDS
    return min(most, max(least, int(budget_s / max(round_s, 1e-9))))


def in_turns(
    timer: Timer, calls: Sequence[Call], budget_s: float, clock: Callable[[], float] = time.perf_counter
) -> list[tuple[float, ...]]:
    """Durations for about `budget_s` seconds of rounds; a first round warms up, a second says how long one takes."""
    timer.durations(calls, 1)
    start = clock()
    timer.durations(calls, 1)
    return timer.durations(calls, rounds_within(budget_s, clock() - start))
