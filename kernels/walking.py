"""The walking schedule: one cooperative launch for the sequence, W_hh from L2, for any hidden_size and precision.

What the stepwise schedule does in a launch a step, its programs do one step after another; they meet by counters. The
running state and its derivative are float32. The kernels: walking_kernels.py.
"""

from __future__ import annotations

from typing import Any

import torch

from . import exchange, per_launch
from .config import WalkingConfig
from .launch import launch
from .recurrence import Derivatives, Gradients, Kept, Operands, Recurrence
from .walking_kernels import walk_back, walk_reset_first, walk_torch
from .watch import watch


def forward(run: Recurrence[WalkingConfig], operands: Operands, save: bool) -> Kept:
    """As `stepwise.forward`. All programs must be on the device together.

    Raises:
        KernelTimeout: a program waited in vain (see watch.py for when it is raised).
    """
    operands = per_launch.with_masks(operands)
    h0, kept = operands.h0, Kept.empty(run, operands, save)
    args = kept.arguments(operands) | {"h0_ptr": h0} | per_launch.forward_arguments(operands)
    args["state_ptr"] = state = per_launch.first_state(operands, run.reverse)
    if run.variant == "torch":
        args |= {"b_hn_ptr": operands.b_hn, "b_hn_back_ptr": operands.b_hn_back}
        _start(walk_torch, args, {}, 1, run, operands)
    else:
        args |= {"update_ptr": torch.empty_like(state), "reset_state_ptr": torch.empty_like(h0)}
        _start(walk_reset_first, args, {"VARIANT": run.variant}, 2, run, operands)
    return kept._replace(h_n=per_launch.last_state(state, operands))


def backward(run: Recurrence[WalkingConfig], operands: Operands, kept: Kept, gradients: Gradients) -> Derivatives:
    """As `stepwise.backward`, with what `forward` says here."""
    operands = per_launch.with_masks(operands)
    derivatives = Derivatives.empty(run, operands, gradients)
    args = derivatives.arguments(operands, kept)
    args |= {"grad_output_ptr": gradients.output, "d_an_ptr": derivatives.d_an}
    args |= per_launch.backward_arguments(operands, derivatives)
    _start(walk_back, args, {"VARIANT": run.variant}, 1 if run.variant == "torch" else 2, run, operands)
    return derivatives


def _start(
    kernel: Any,
    args: dict[str, Any],
    constexprs: dict[str, Any],
    exchanges: int,
    run: Recurrence[WalkingConfig],
    operands: Operands,
) -> None:
    """Launch with what all kernels share; exchanges: of a step."""
    config, steps, h0 = run.config, operands.steps, operands.h0
    *_, batch, hidden_size = h0.shape
    if not batch:
        return
    units, batch_tiles = config.grid(hidden_size, batch)
    sides, programs = operands.sides, units * batch_tiles
    if config.programs is not None:
        programs = min(programs, max(1, config.programs // sides))
    watched = watch(h0.device, kernel.__name__, programs, sides, steps.seq_len, batch, hidden_size)
    timeout = exchange.default_timeout() if config.timeout is None else config.timeout
    args |= {
        "offsets_ptr": steps.row_offsets(h0.device),
        "status_ptr": exchange.new_status(h0, exchanges * steps.seq_len * sides * batch_tiles),
        "host_ptr": watched.word,
        "T": steps.seq_len,
        "B": batch,
        "direction": -1 if run.reverse else 1,
        "number": watched.number,
        "H": hidden_size,
    }
    constexprs |= (
        config.constexprs()
        | per_launch.constexprs(operands)
        | {
            "PACKED": steps.packed,
            "PRECISION": run.precision,
            "TIMEOUT": exchange.ticks(timeout),
        }
    )
    launch(
        kernel,
        (programs, sides),
        args,
        constexprs,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        cooperative=1,
    )
    watched.launched()
