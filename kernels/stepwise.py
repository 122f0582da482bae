"""The stepwise schedule: one launch a time step ("torch"), two for "cho" and "chung".

W_hh comes from L2 every step. It works for any shape on any device that Triton knows, and its launches can be captured
in a CUDA graph. The running state and its derivative are float32; what is multiplied is rounded to the tensors' dtype,
in backward exactly as in forward. The kernels: stepwise_forward.py, stepwise_backward.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .config import StepwiseConfig
from .launch import prepare
from .recurrence import Derivatives, Gradients, Kept, Operands, Recurrence
from .stepwise_backward import bptt_reset_step, bptt_step
from .stepwise_forward import candidate_step, forward_step, reset_update_step


def forward(run: Recurrence[StepwiseConfig], operands: Operands, save: bool) -> Kept:
    """All steps of one layer in one direction. save: also keep what `backward` needs."""
    config, h0 = run.config, operands.h0
    kept = Kept.empty(run, operands, save)
    state = h0.clone() if h0.dtype == torch.float32 else h0.float()
    args, constexprs = kept.arguments(operands), _constexprs(run)
    args |= {"state_ptr": state, "H": h0.shape[1]}
    # What no step changes is put together before them: this is done in the time that a step takes on the device.
    if run.variant == "torch":
        starts = [_prepare(forward_step, args | {"h0_ptr": h0, "b_hn_ptr": operands.b_hn}, constexprs, 4, config)]
    else:
        args |= {"update_ptr": torch.empty_like(state), "reset_state_ptr": torch.empty_like(h0)}
        starts = [
            _prepare(reset_update_step, args | {"h0_ptr": h0}, constexprs, 4, config),
            _prepare(candidate_step, args, constexprs | {"VARIANT": run.variant}, 4, config),
        ]
    grid, sequences = (0, 0), 0
    for row, count, row_before, carried in operands.steps.walk(run.reverse):
        if count != sequences:
            grid, sequences = config.grid(h0.shape[1], count), count
        for start in starts:
            start(grid, row, count, row_before, carried)
    return kept


def backward(run: Recurrence[StepwiseConfig], operands: Operands, kept: Kept, gradients: Gradients) -> Derivatives:
    """Back-propagation through time of `forward`."""
    config, hidden_size = run.config, operands.h0.shape[1]
    derivatives = Derivatives.empty(run, operands, gradients)
    args, constexprs = derivatives.arguments(operands, kept) | {"H": hidden_size}, _constexprs(run)
    first = args | {"grad_output_ptr": gradients.output, "d_an_ptr": derivatives.d_an}
    start = _prepare(bptt_step, first, constexprs | {"VARIANT": run.variant}, 7, config)
    finish = None if run.variant == "torch" else _prepare(bptt_reset_step, args, constexprs, 4, config)
    grid, sequences = (0, 0), 0
    row_after = count_after = 0
    for row, count, row_before, carried in [*reversed(list(operands.steps.walk(run.reverse))), (0, 0, 0, 0)]:
        if max(count, count_after) != sequences:
            sequences = max(count, count_after)
            grid = config.grid(hidden_size, sequences)
        start(grid, row, count, row_before, carried, row_after, count_after, hidden_size if count_after else 0)
        if finish is not None and count:
            finish(config.grid(hidden_size, count), row, count, row_before, carried)
        row_after, count_after = row, count
    return derivatives


def _constexprs(run: Recurrence[StepwiseConfig]) -> dict[str, Any]:
    return run.config.constexprs() | {"PRECISION": run.precision}


# In the order in which the kernels take them.
_PER_STEP = ("row", "count", "row_before", "carried", "row_after", "count_after", "extent")


def _prepare(
    kernel: Any, args: dict[str, Any], constexprs: dict[str, Any], per_step: int, config: StepwiseConfig
) -> Callable[..., None]:
    """A function that starts the kernel on a grid with the first `per_step` of what changes from step to step."""
    varying = _PER_STEP[:per_step]
    return prepare(kernel, args, constexprs, varying, num_warps=config.num_warps, num_stages=config.num_stages)
