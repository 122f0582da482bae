"""Who computes tanh for the eager schedule: numpy where torch can share a CPU tensor's memory with it, else torch.

A step waits for its tanh, and torch's is slow on a CPU: 2.6 ns an element in float32 (AMD EPYC, Zen 5, one thread), six
times its sigmoid; numpy's takes 0.5 ns, and no time to start threads. The way by sigmoid, 2 sigmoid(2 x) - 1, would
cancel near 0. Largest errors over float32, in units in the last place: numpy 1.4, torch 0.6.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from .eager_products import is_intel

TORCH_ELEMENTS = 1 << 15
"""Elements side by side in memory from which torch's is the faster one on an Intel CPU, where MKL computes it: as fast
as numpy's with one thread, and with two 1.2 to 1.8 times (Xeon, float32)."""


@functools.cache
def _numpy_tanh() -> Callable[..., Any] | None:
    """numpy's tanh, or None where there is no numpy or this torch cannot reach it."""
    try:
        import numpy

        torch.zeros(1, device="cpu").numpy()
    except (ImportError, RuntimeError):
        return None
    return numpy.tanh


def tanh_in_steps(x: Tensor, out: Tensor, sizes: Sequence[int]) -> tuple[Callable[..., Any], Sequence[tuple[Any, Any]]]:
    """A function `tanh` and pairs of operands for the steps of x and out, `sizes` rows each: tanh(a, out=b) puts the
    tanh of a step of x into `out`."""
    tanh = _numpy_tanh() if x.device.type == "cpu" else None
    if tanh is None:
        return torch.tanh, list(zip(x.split_with_sizes(list(sizes)), out.split_with_sizes(list(sizes)), strict=True))
    source = x.numpy()
    spans = [slice(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]
    if out is x:
        return tanh, [(step, step) for step in map(source.__getitem__, spans)]
    target = out.numpy()
    return tanh, [(source[span], target[span]) for span in spans]


def tanh_in_place(x: Sequence[Tensor]) -> tuple[Callable[..., Any], Sequence[tuple[Any, Any]]]:
    """The same of steps that lie in memory of their own each, where torch's may be the faster one."""
    fast = is_intel() and all(step.numel() >= TORCH_ELEMENTS for step in x)
    tanh = None if fast or not x or x[0].device.type != "cpu" else _numpy_tanh()
    if tanh is None:
        return torch.tanh, [(step, step) for step in x]
    return tanh, [(step, step) for step in (step.numpy() for step in x)]


def tanh_(x: Tensor) -> None:
    """x = tanh(x)."""
    tanh, ((source, target),) = tanh_in_steps(x, x, x.shape[:1])
    tanh(source, out=target)
