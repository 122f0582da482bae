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
from .launch import launch
from .recurrence import (
    Derivatives,
    Gradients,
    Kept,
    Operands,
    Recurrence,
    backward_arguments,
    forward_arguments,
    new_derivatives,
    new_kept,
    taken_by,
)
from .stepwise_backward import bptt_reset_step, bptt_step
from .stepwise_forward import candidate_step, forward_step, reset_update_step


def forward(run: Recurrence[StepwiseConfig], operands: Operands, save: bool) -> Kept:
    """All steps of one layer in one direction. save: also keep what `backward` needs."""
    h0, kept = operands.h0, new_kept(run, operands, save)
    state = h0.clone() if h0.dtype == torch.float32 else h0.float()
    args = forward_arguments(operands, kept)
    args["state_ptr"] = state
    if run.variant == "torch":
        starts = [_starter(forward_step, args, run, operands)]
    else:
        args |= {"update_ptr": torch.empty_like(state), "reset_state_ptr": torch.empty_like(h0)}
        starts = [_starter(kernel, args, run, operands) for kernel in (reset_update_step, candidate_step)]
    for row, count, row_before, count_before in operands.steps.walk(run.reverse):
        here = {"row": row, "count": count, "row_before": row_before, "count_before": count_before}
        for start in starts:
            start(count, here)
    return kept


def backward(run: Recurrence[StepwiseConfig], operands: Operands, kept: Kept, gradients: Gradients) -> Derivatives:
    """Back-propagation through time of `forward`."""
    derivatives = new_derivatives(run, operands, gradients)
    args = backward_arguments(operands, kept, gradients, derivatives)
    start = _starter(bptt_step, args, run, operands)
    start_reset = None if run.variant == "torch" else _starter(bptt_reset_step, args, run, operands)
    hidden_size = operands.h0.shape[1]
    row_after = count_after = 0
    for row, count, row_before, count_before in [*reversed(list(operands.steps.walk(run.reverse))), (0, 0, 0, 0)]:
        here = {"row": row, "count": count, "row_before": row_before, "count_before": count_before}
        after = {"row_after": row_after, "count_after": count_after, "extent": hidden_size if count_after else 0}
        start(max(count, count_after), here | after)
        if start_reset is not None and count:
            start_reset(count, here)
        row_after, count_after = row, count
    return derivatives


def _starter(
    kernel: Any, args: dict[str, Any], run: Recurrence[StepwiseConfig], operands: Operands
) -> Callable[[int, dict[str, int]], None]:
    """A function that launches `kernel` for so many sequences of a step. What no step changes is put together before
    them: this is done in the time that a step takes on the device."""
    config, hidden_size = run.config, operands.h0.shape[1]
    fixed = taken_by(kernel, args | {"H": hidden_size})
    constexprs = taken_by(kernel, config.constexprs() | {"VARIANT": run.variant, "PRECISION": run.precision})

    def start(sequences: int, step: dict[str, int]) -> None:
        grid = config.grid(hidden_size, sequences)
        launch(kernel, grid, fixed | step, constexprs, num_warps=config.num_warps, num_stages=config.num_stages)

    return start
