"""The stepwise schedule: one launch a time step ("torch"), two for "cho" and "chung".

W_hh comes from L2 every step. It works for any shape on any device that Triton knows, and its launches can be captured
in a CUDA graph. The running state and its derivative are float32; what is multiplied is rounded to the tensors' dtype,
in backward exactly as in forward. The kernels: stepwise_forward.py, stepwise_backward.py.
"""

from __future__ import annotations

from typing import Any

import torch

from .config import StepwiseConfig
from .launch import launch
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
        kernels = [(forward_step, args | {"h0_ptr": h0, "b_hn_ptr": operands.b_hn}, constexprs)]
    else:
        args |= {"update_ptr": torch.empty_like(state), "reset_state_ptr": torch.empty_like(h0)}
        kernels = [
            (reset_update_step, args | {"h0_ptr": h0}, constexprs),
            (candidate_step, args, constexprs | {"VARIANT": run.variant}),
        ]
    grid, sequences = (0, 0), 0
    for row, count, row_before, carried in operands.steps.walk(run.reverse):
        if count != sequences:
            grid, sequences = config.grid(h0.shape[1], count), count
        here = {"row": row, "count": count, "row_before": row_before, "carried": carried}
        for kernel, fixed, tiles in kernels:
            _start(kernel, grid, fixed | here, tiles, config)
    return kept


def backward(run: Recurrence[StepwiseConfig], operands: Operands, kept: Kept, gradients: Gradients) -> Derivatives:
    """Back-propagation through time of `forward`."""
    config, hidden_size = run.config, operands.h0.shape[1]
    derivatives = Derivatives.empty(run, operands, gradients)
    args, constexprs = derivatives.arguments(operands, kept) | {"H": hidden_size}, _constexprs(run)
    first = args | {"grad_output_ptr": gradients.output, "d_an_ptr": derivatives.d_an}
    first_tiles = constexprs | {"VARIANT": run.variant}
    grid, sequences = (0, 0), 0
    row_after = count_after = 0
    for row, count, row_before, carried in [*reversed(list(operands.steps.walk(run.reverse))), (0, 0, 0, 0)]:
        here = {"row": row, "count": count, "row_before": row_before, "carried": carried}
        after = {"row_after": row_after, "count_after": count_after, "extent": hidden_size if count_after else 0}
        if max(count, count_after) != sequences:
            sequences = max(count, count_after)
            grid = config.grid(hidden_size, sequences)
        _start(bptt_step, grid, first | here | after, first_tiles, config)
        if run.variant != "torch" and count:
            _start(bptt_reset_step, config.grid(hidden_size, count), args | here, constexprs, config)
        row_after, count_after = row, count
    return derivatives


def _constexprs(run: Recurrence[StepwiseConfig]) -> dict[str, Any]:
    return run.config.constexprs() | {"PRECISION": run.precision}


def _start(kernel, grid: tuple[int, int], args: dict, constexprs: dict, config: StepwiseConfig) -> None:
    launch(kernel, grid, args, constexprs, num_warps=config.num_warps, num_stages=config.num_stages)
