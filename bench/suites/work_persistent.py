"""Work of a step of the persistent kernels. A sequence is one launch, so a step is the difference of two runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from trigru.kernels import launch, persistent
from trigru.kernels.config import persistent_config
from trigru.kernels.recurrence import Gradients, Operands, Recurrence
from trigru.kernels.steps import Steps

LENGTHS = (2, 3)
_COUNTS = ("critical_path", "instructions", "barriers", "global_load_bytes", "global_store_bytes", "atomics")


class Twice:
    """A starter that runs each launch interleaved, and again over what it left, one program after another: nothing
    waits in the second run, so its counts are the work alone.

    `launcher` makes a starter that executes compiled kernels, such as `ptx.ptx_launcher`."""

    def __init__(self, launcher: Callable[..., Any], arch: int):
        self.first, self.second = launcher(arch, seed=0), launcher(arch, sequential=True)

    def __call__(self, kernel: Any, grid: tuple[int, ...], args: Mapping[str, Any], constexprs: Any, **options: Any):
        """As `trigru.kernels.launch.launch`."""
        again = {name: x.clone() if name == "d_state_ptr" else x for name, x in args.items()}
        self.first(kernel, grid, args, constexprs, **options)
        self.second(kernel, grid, again, constexprs, **options)


def floor(kernel: str, hidden_size: int, batch: int, element: int, block_h: int) -> tuple[int, int]:
    """The fewest bytes to load and to store in a step: what each program owns, once, and the exchanged tiles, once a
    program; W_hh never.

    Own loads: forward, three gate inputs; backward, the gradient of the output, the state before and the reserve.
    Exchanged: the state, and r * h; the derivatives of three gates. Own stores: output, reserve, r * h; derivatives."""
    own = {"forward_torch": 3, "forward_reset_first": 3, "backward_torch": 6, "backward_reset_first": 5}[kernel]
    exchanged = {"forward_torch": 1, "forward_reset_first": 2, "backward_torch": 3, "backward_reset_first": 3}[kernel]
    stored = {"forward_torch": 5, "forward_reset_first": 5, "backward_torch": 4, "backward_reset_first": 3}[kernel]
    units = batch * hidden_size * element
    return (own + exchanged * (hidden_size // block_h)) * units, stored * units


def difference(fewer: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, int]:
    """Counts of one step from the statistics of two launches, one step apart; barriers are those of one program."""
    step = {name: more[name] - fewer[name] for name in _COUNTS}
    step["barriers"] //= more["programs"] * more["num_warps"]
    return step


def both_ways(schedule: Any, run: Recurrence, seq_len: int, dtype: torch.dtype, hidden_size: int, batch: int) -> None:
    """Forward and backward of a schedule's module on random numbers."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape).to(dtype)

    rows = seq_len * batch
    operands = Operands(
        gates_in=random(rows, 3 * hidden_size),
        h0=random(batch, hidden_size),
        w_hh=random(3 * hidden_size, hidden_size) / hidden_size**0.5,
        b_hn=random(hidden_size) if run.variant == "torch" else None,
        steps=Steps.padded(seq_len, batch),
    )
    kept = schedule.forward(run, operands, True)
    schedule.backward(run, operands, kept, Gradients(random(rows, hidden_size), random(batch, hidden_size)))


def measure(
    launcher: Callable[..., Any],
    arch: int,
    variant: str,
    dtype: torch.dtype,
    precision: str,
    hidden_size: int,
    batch: int,
) -> list[dict[str, Any]]:
    """Forward and backward on random numbers: for each kernel its name, launch options and counts of one step."""
    run = Recurrence(variant, False, precision, persistent_config(dtype, batch, hidden_size))
    runs = []
    for seq_len in LENGTHS:
        twice = Twice(launcher, arch)
        with launch.using(twice):
            both_ways(persistent, run, seq_len, dtype, hidden_size, batch)
        runs.append(twice.second.launches)
    kept = ("kernel", "programs", "num_warps")
    return [{name: more[name] for name in kept} | difference(fewer, more) for fewer, more in zip(*runs, strict=True)]
