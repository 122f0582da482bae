"""The resident schedule: one launch for the whole sequence, one program for a batch tile, all of W_hh on chip.

For hidden sizes at which W_hh fits one multiprocessor. Nothing is exchanged between programs: a program's state never
leaves it, except as output. What is rounded is as in stepwise.py. The kernels: resident_forward.py,
resident_backward.py.
"""

from __future__ import annotations

from typing import Any

from . import norm, per_launch, tile_words, widen
from .config import ResidentConfig, power_of_two
from .launch import launch
from .recurrence import Derivatives, Gradients, Kept, Operands, Recurrence
from .resident_backward import bptt_kernel
from .resident_forward import forward_kernel

_ALIGNED = 16  # hidden units: rows at which Triton loads whole chunks, which takes half of the registers


def forward(run: Recurrence[ResidentConfig], operands: Operands, save: bool) -> Kept:
    """As `stepwise.forward`, but `begins` is left as it is."""
    if operands.per_step is not None:
        operands = operands._replace(per_step=operands.per_step._replace(begins=None))
    if more := widen.missing(operands.h0.shape[-1], _ALIGNED):
        return widen.forward(forward, run, operands, save, more)
    kept = Kept.empty(run, operands, save)._replace(h_n=operands.h_n)
    args = (
        kept.arguments(operands)
        | {"h0_ptr": operands.h0, "h_n_ptr": operands.h_n}
        | per_launch.alone_arguments(operands)
        | tile_words.arguments(operands, run.config.block_b, _ways(run, operands))
    )
    args |= {"b_hn_ptr": operands.b_hn, "b_hn_back_ptr": operands.b_hn_back} | norm.forward_arguments(operands)
    _start(forward_kernel, args, run, operands)
    return kept


def backward(run: Recurrence[ResidentConfig], operands: Operands, kept: Kept, gradients: Gradients) -> Derivatives:
    """As `stepwise.backward`."""
    if more := widen.missing(operands.h0.shape[-1], _ALIGNED):
        return widen.backward(backward, run, operands, kept, gradients, more)
    derivatives = Derivatives.empty(run, operands, gradients)
    args = derivatives.arguments(operands, kept)
    args |= {"grad_output_ptr": gradients.output, "d_an_ptr": derivatives.d_an}
    args |= per_launch.backward_arguments(operands, derivatives) | tile_words.arguments(operands, run.config.block_b)
    args |= norm.backward_arguments(operands)
    _start(bptt_kernel, args, run, operands)
    return derivatives


def _ways(run: Recurrence[ResidentConfig], operands: Operands) -> tuple[int, ...]:
    """Of each direction's heads, 1 or -1, as forward takes the steps."""
    return (-1 if run.reverse else 1,) * operands.heads + (-1,) * (operands.sides - operands.heads)


def _start(kernel: Any, args: dict[str, Any], run: Recurrence[ResidentConfig], operands: Operands) -> None:
    """Launch with what forward and backward share."""
    config, steps = run.config, operands.steps
    *_, batch, hidden_size = operands.h0.shape
    args |= {"offsets_ptr": steps.row_offsets(operands.h0.device), "T": steps.seq_len, "B": batch, "H": hidden_size}
    args["units"] = hidden_size - operands.added
    args["lengths_ptr"] = None if operands.per_step is None else operands.per_step.lengths
    args["direction"] = -1 if run.reverse else 1
    args |= per_launch.of_masks(operands)
    constexprs = per_launch.constexprs(operands) | {
        "VARIANT": run.variant,
        "PACKED": steps.packed,
        "PRECISION": run.precision,
        "HIDDEN": power_of_two(hidden_size),
        "EXACT": args["units"] == power_of_two(hidden_size),
        "BLOCK_B": config.block_b,
        "HEADS": operands.heads if operands.heads > 1 else None,
    }
    grid = (config.programs(batch), operands.sides)
    launch(kernel, grid, args, constexprs, num_warps=config.num_warps, num_stages=config.num_stages)
