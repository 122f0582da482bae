"""Run every kernel that the package launches through its PTX, on CPU tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from trigru.kernels.launch import cooperation

from .execution import emulate_ptx
from .machine import PtxError


class PtxLauncher:
    """A starter for `trigru.kernels.launch.using`; see `ptx_launcher`.

    Attributes:
        launches: one entry for each launch that ended well: kernel (its name), grid, num_warps, num_stages,
            cooperative, and what `emulate_ptx` returns.
    """

    def __init__(
        self,
        arch: int,
        seed: int | str | None,
        sequential: bool,
        resident_programs: int | None,
        options: dict[str, Any],
    ):
        self.arch, self.seed, self.sequential = arch, seed, sequential
        self.resident_programs, self.options = resident_programs, options
        self.launches: list[dict[str, Any]] = []

    def __call__(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        args: Mapping[str, Any],
        constexprs: Mapping[str, Any],
        *,
        num_warps: int,
        num_stages: int,
        cooperative: int = 0,
    ) -> None:
        """Compile and run one kernel."""
        programs, most = math.prod(grid), self.resident_programs
        if cooperative and most is not None and programs > most:
            raise PtxError(
                f"cooperative launch too large: {programs} programs, at most {most} fit on the device at once"
            )
        seed = "round-robin" if cooperative and self.seed is None and not self.sequential else self.seed
        more = cooperation(num_warps, cooperative)
        stats = emulate_ptx(
            kernel,
            args,
            constexprs,
            grid,
            num_warps,
            seed,
            self.arch,
            resident_programs=most,
            num_stages=num_stages,
            **more,
            **self.options,
        )
        self.launches.append(
            {
                "kernel": kernel.__name__,
                "grid": tuple(grid),
                "num_warps": num_warps,
                "num_stages": num_stages,
                "cooperative": cooperative,
                **stats,
            }
        )

    def total(self, counter: str) -> int:
        """The sum of a counter over all launches."""
        return sum(launch[counter] for launch in self.launches)


def ptx_launcher(
    arch: int = 90,
    seed: int | str | None = None,
    *,
    sequential: bool = False,
    starve: int | None = None,
    behind: tuple[int, int] | None = None,
    resident_programs: int | None = None,
    quantum: int = 200,
    max_instructions: int = 50_000_000,
    checks: bool = True,
    races: bool = True,
    strong: bool = False,
    late: int | None = None,
) -> PtxLauncher:
    """A starter for `trigru.kernels.launch.using` that executes the compiled kernels on CPU tensors.

    Args:
        arch: compute capability to compile for, 80, 90 or 100.
        seed: order of the programs: an integer draws them at random (the same order at every launch), "round-robin"
            takes them in turn. None takes them in turn in cooperative launches and one after another in others, so that
            a kernel that waits for other programs without a cooperative launch never ends.
        sequential: one after another in cooperative launches, too: to count the work of kernels that are given what
            they would wait for.
        starve: index, in launch order, of a program that runs only when the others seem to wait for it.
        behind: index of a program and the number of instructions by which it comes late, whenever it has stored
            something; all run in turn.
        resident_programs: how many programs fit on the device at once. A cooperative launch of more is an error, as
            with the driver; in other launches later programs start when earlier ones have ended, as on hardware.
        quantum: instructions of a program's turn.
        max_instructions: more warp-instructions than these in a launch are an error.
        checks: check accesses.
        races: check for races.
        strong: and let programs that race use strong accesses of one size only.
        late: a seed, by which stores become visible to other programs late and in an odd order, see late.py; None: at
            once and in order.
    """
    if sequential and (seed is not None or starve is not None):
        raise ValueError("sequential excludes seed and starve")
    options = {
        "starve": starve,
        "behind": behind,
        "quantum": quantum,
        "max_instructions": max_instructions,
        "checks": checks,
        "races": races,
        "strong": strong,
        "late": late,
    }
    return PtxLauncher(arch, seed, sequential, resident_programs, options)
