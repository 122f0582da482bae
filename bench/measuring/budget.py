"""How long a run takes, and what is left out when it has taken long enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from ..cases.case import Case
from ..cases.grid import with_all_peers

# Guesses of seconds on an H100, generous ones, for the estimate alone. Compilation: forward with and without gates
# kept, and backward, of each of trigru's kernels, and of a peer's.
COMPILE_S, PEER_COMPILE_S, SET_UP_S = 9.0, 15.0, 1.5


class Deadline:
    """`minutes` from now; None: never."""

    def __init__(self, minutes: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.end = None if minutes is None else clock() + 60 * minutes

    def share(self, of: int) -> Deadline:
        """A deadline for the next of so many parts: an equal share of the time that is left."""
        part = Deadline(None, self.clock)
        if self.end is not None:
            now = self.clock()
            part.end = now + max(0.0, self.end - now) / of
        return part

    def passed(self) -> bool:
        """Whether the time is up."""
        return self.end is not None and self.clock() >= self.end


Each = TypeVar("Each", Case, Any)


def until(deadline: Deadline, cases: Iterable[Each], left_out: list[str]) -> Iterator[Each]:
    """The cases until the deadline passes; the others by name in `left_out`."""
    for case in cases:
        if deadline.passed():
            left_out.append(f"{case.suite}: {case}")
        else:
            yield case


def estimated_s(cases: Sequence[Case], rows_a_pair: int, budget_s: float, peers: int) -> float:
    """About how long cases take on a GPU: compilation once for each kernel, then rounds."""
    kernels = {(case.cell, case.dtype, case.variant, case.hidden_size) for case in cases}
    total = COMPILE_S * len(kernels)
    for case in cases:
        pairs = 1 + (peers - 1 if with_all_peers(case) else 0)
        total += pairs * (SET_UP_S + rows_a_pair * budget_s) + (pairs - 1) * PEER_COMPILE_S
    return total
