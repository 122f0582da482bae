"""Modules, inputs, errors and times of the first minutes on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import trigru

from ..measuring.timers import Call, CudaTimer, in_turns
from .shapes import Shape

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}
TOLERANCE = {"bf16": 4e-2, "fp16": 6e-3, "tf32": 6e-3, "fp32": 1e-4}  # gradients too; a peer is near a fourth of it
CHECKED_STEPS, CHECKED_BATCH = 16, 32
SECONDS = 0.25  # for the rounds of one row, about


def modules(shape: Shape, schedule: str = "auto") -> tuple[nn.Module, nn.Module]:
    """trigru's module and torch's, of the same weights."""
    torch.manual_seed(0)
    sizes = shape.input_size, shape.hidden_size, shape.layers
    kind: dict[str, Any] = {"bidirectional": shape.both, "device": "cuda", "dtype": DTYPES[shape.numbers]}
    theirs = nn.GRU(*sizes, **kind)
    ours = trigru.GRU(*sizes, variant=shape.variant, schedule=schedule, **kind)  # type: ignore[arg-type]
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def inputs(shape: Shape, batch: int, steps: int) -> tuple[Tensor, Tensor]:
    """An input and an output's gradient."""
    torch.manual_seed(1)
    kind: dict[str, Any] = {"device": "cuda", "dtype": DTYPES[shape.numbers]}
    x = torch.randn(steps, batch, shape.input_size, **kind)
    return x.requires_grad_(), torch.randn(steps, batch, shape.hidden_size * (2 if shape.both else 1), **kind)


def results(module: nn.Module, x: Tensor, grad: Tensor) -> list[Tensor]:
    """Output and all gradients."""
    output, _ = module(x)
    return [output, *torch.autograd.grad(output, [x, *module.parameters()], grad)]


def error(module: nn.Module, shape: Shape, variant: str) -> float:
    """The largest relative error of output and gradients over the first steps, against float64 on the CPU."""
    exact = trigru.GRU(
        shape.input_size,
        shape.hidden_size,
        shape.layers,
        bidirectional=shape.both,
        variant=variant,  # type: ignore[arg-type]  # checked when it is called
        schedule="eager",
        dtype=torch.float64,
    )
    exact.load_state_dict(module.state_dict())
    x, grad = inputs(shape, min(shape.batch, CHECKED_BATCH), min(shape.steps, CHECKED_STEPS))
    got = results(module, x, grad)
    want = results(exact, x.detach().cpu().double().requires_grad_(), grad.cpu().double())
    errors = [
        ((a.double().cpu() - b).norm() / b.norm().clamp_min(1e-30)).item() for a, b in zip(got, want, strict=True)
    ]
    return max(errors) if all(e == e for e in errors) else float("nan")


def forward(module: nn.Module, x: Tensor) -> Callable[[], Any]:
    """A call without gradients."""

    def call() -> Any:
        with torch.no_grad():
            return module(x)

    return call


def training(module: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], Any]:
    """A call forward and backward."""
    return lambda: results(module, x, grad)


def times(calls: Sequence[Call], seconds: float = SECONDS) -> list[float]:
    """Median seconds of each call, taken in turns."""
    timer = CudaTimer(flush=lambda: None)
    taken = in_turns(timer, calls, seconds)
    return [median(row[i] for row in taken) for i in range(len(calls))]
