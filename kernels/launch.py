"""The only code that starts a kernel, so that one place decides how it runs.

A starter is a callable with the parameters of `launch`. Without one, the kernel goes to Triton, which needs tensors on
a GPU, or `TRITON_INTERPRET=1` in the environment before Triton is imported. With one (`using`), it gets every kernel
instead: tests execute the compiled kernel on the CPU that way, `trigru inspect` records what would be launched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import torch
import triton

Starter = Callable[..., None]

# Triton's options of every launch. A product and the sum that it goes into are rounded once: its default, which 3.10
# changes.
EVERY: dict[str, Any] = {"enable_fp_fusion": True}

# Those of a cooperative launch. Its programs may take all registers that a thread can have: left alone, the
# assembler makes room for several programs on a multiprocessor, and spilled a few registers for it.
COOPERATIVE: dict[str, Any] = {"launch_cooperative_grid": True, "maxnreg": 255}

_starter: ContextVar[Starter | None] = ContextVar("trigru_kernel_starter", default=None)


@contextlib.contextmanager
def using(starter: Starter) -> Iterator[None]:
    """Within the block, and in this thread only, `launch` calls `starter` instead of Triton."""
    token = _starter.set(starter)
    try:
        yield
    finally:
        _starter.reset(token)


def replaced() -> bool:
    """Whether a starter given by `using` is in force."""
    return _starter.get() is not None


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on CPU tensors."""
    return bool(triton.knobs.runtime.interpret)


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    args: Mapping[str, Any],
    constexprs: Mapping[str, Any],
    *,
    num_warps: int,
    num_stages: int,
    cooperative: bool = False,
) -> None:
    """Start `kernel` on `grid`, on the current stream of the device of its first tensor argument.

    Args:
        kernel: a `triton.jit` function.
        grid: number of programs along each axis.
        args: run-time arguments by the kernel's argument names: tensors and numbers.
        constexprs: compile-time arguments by the kernel's argument names.
        num_warps, num_stages: Triton's launch options.
        cooperative: all programs must be on the device together, because they wait for each other.
    """
    if 0 in grid:  # an empty batch: a driver takes no empty grid
        return
    starter = _starter.get()
    if starter is not None:
        starter(kernel, grid, args, constexprs, num_warps=num_warps, num_stages=num_stages, cooperative=cooperative)
        return
    device = next(value.device for value in args.values() if isinstance(value, torch.Tensor))
    options: dict[str, Any] = {"num_warps": num_warps, "num_stages": num_stages, **EVERY}
    if cooperative:
        options |= COOPERATIVE
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](**args, **constexprs, **options)
