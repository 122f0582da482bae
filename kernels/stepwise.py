"""The stepwise schedule: one launch a time step ("torch"), two for "cho" and "chung"; forward as many more where
products are normalised, for what normalises one needs the whole of it. Backward finds the statistics of the step after
by itself: its products read all of that step's derivatives.

W_hh comes from L2 every step. It works for any shape on any device that Triton knows, and its launches can be captured
in a CUDA graph. The running state and its derivative are float32; what is multiplied is rounded to the tensors' dtype,
in backward exactly as in forward. The kernels: stepwise_forward.py, stepwise_backward.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import norm, per_launch
from .config import StepwiseConfig
from .launch import prepare
from .recurrence import Derivatives, Gradients, Kept, Operands, Recurrence
from .stepwise_backward import bptt_reset_step, bptt_step
from .stepwise_forward import candidate_step, forward_step, product_step, reset_update_step


def forward(run: Recurrence[StepwiseConfig], operands: Operands, save: bool) -> Kept:
    """All steps of one layer. save: also keep what `backward` needs."""
    operands = per_launch.with_masks(operands)
    config, h0 = run.config, operands.h0
    kept = Kept.empty(run, operands, save)
    beside, shapes = per_launch.forward_arguments(operands), per_launch.constexprs(operands)
    state = per_launch.first_state(operands, run.reverse)
    args, constexprs = kept.arguments(operands) | _sizes(operands) | {"state_ptr": state}, _constexprs(run)
    beside["direction"] = None if beside["begins_ptr"] is None else -1 if run.reverse else 1
    normalised = operands.normalised is not None
    products = h0.new_empty(*h0.shape[:-1], 3 * h0.shape[-1], dtype=torch.float32) if normalised else None
    read = {name: args[name] for name in ("w_hh_ptr", "w_hh_back_ptr", "output_ptr", "H", "rows", "batch")}
    read |= {"h0_ptr": h0, "begins_ptr": beside["begins_ptr"], "products_ptr": products}
    args |= norm.forward_arguments(operands) | {"products_ptr": products}
    # What no step changes is put together before them: this is done in the time that a step takes on the device.
    if run.variant == "torch":
        first = args | beside | {"h0_ptr": h0, "b_hn_ptr": operands.b_hn, "b_hn_back_ptr": operands.b_hn_back}
        starts = [_prepare(forward_step, first, constexprs | shapes, _OF_A_STEP, operands, config)]
        multiplied = [{"reset_state_ptr": None}]
    else:
        args |= {"update_ptr": torch.empty_like(state), "reset_state_ptr": torch.empty_like(h0)}
        first = args | {"h0_ptr": h0} | {name: beside[name] for name in ("dropped_ptr", "begins_ptr")}
        shapes |= {"VARIANT": run.variant}
        starts = [
            _prepare(reset_update_step, first, constexprs, _OF_A_STEP, operands, config),
            _prepare(candidate_step, args | beside, constexprs | shapes, _OF_A_STEP, operands, config),
        ]
        multiplied = [{"reset_state_ptr": None}, {"reset_state_ptr": args["reset_state_ptr"]}]
    if normalised:
        fixed = constexprs | {"GATES": 3 if run.variant == "torch" else 2}
        before = [_prepare(product_step, read | own, fixed, _OF_A_STEP, operands, config) for own in multiplied]
        starts = [start for pair in zip(before, starts, strict=True) for start in pair]
    grid = _Grids(operands, config)
    for step in _walk(run, operands):
        for start in starts:
            start(grid(step[1::4]), *step)
    return kept._replace(h_n=per_launch.last_state(state, operands))


def backward(run: Recurrence[StepwiseConfig], operands: Operands, kept: Kept, gradients: Gradients) -> Derivatives:
    """Back-propagation through time of `forward`."""
    operands = per_launch.with_masks(operands)
    config, hidden_size = run.config, operands.h0.shape[-1]
    derivatives = Derivatives.empty(run, operands, gradients)
    args, constexprs = derivatives.arguments(operands, kept) | _sizes(operands), _constexprs(run)
    args |= norm.backward_arguments(operands)
    shapes = per_launch.constexprs(operands)
    first = args | {"grad_output_ptr": gradients.output, "d_an_ptr": derivatives.d_an}
    first |= per_launch.backward_arguments(operands, derivatives)
    of_two = (*_OF_A_STEP, "row_after", "count_after")
    start = _prepare(
        bptt_step, first, constexprs | shapes | {"VARIANT": run.variant}, of_two, operands, config, "extent"
    )
    finish = None
    if run.variant != "torch":
        args |= per_launch.arguments(operands)
        given = [args.pop(name) for name in ("amount_ptr", "seed_ptr", "zoneout_below")]
        shapes["HAS_AMOUNT"] = any(x is not None for x in given) or None
        del shapes["AMOUNT_BY_UNIT"]
        finish = _prepare(bptt_reset_step, args, constexprs | shapes, _OF_A_STEP, operands, config)
    grid, none = _Grids(operands, config), (0, 0, 0, 0) * operands.sides
    after = none
    for step in [*reversed(list(_walk(run, operands))), none]:
        extent = hidden_size if after[1] else 0
        start(grid(step[1::4], after[1::4]), *step[:4], *after[:2], extent, *step[4:], *after[4:6])
        if finish is not None and step[1]:
            finish(grid(step[1::4]), *step)
        after = step
    return derivatives


def _walk(run: Recurrence[StepwiseConfig], operands: Operands) -> Iterator[tuple[int, ...]]:
    """What kernels take of each step, as _OF_A_STEP names it; of both directions one behind the other."""
    steps = operands.steps
    if operands.sides == 1:
        return steps.walk(run.reverse)
    return (ahead + back for ahead, back in zip(steps.walk(False), steps.walk(True), strict=True))


class _Grids:
    """The grids of a run's launches, by the sequences that are alive."""

    def __init__(self, operands: Operands, config: StepwiseConfig) -> None:
        self.config, self.hidden_size, self.sides = config, operands.h0.shape[-1], operands.sides
        self.known: dict[int, tuple[int, int, int]] = {}

    def __call__(self, *counts: tuple[int, ...]) -> tuple[int, int, int]:
        """For the largest number of them."""
        most = max(map(max, counts))
        if most not in self.known:
            self.known[most] = (*self.config.grid(self.hidden_size, most), self.sides)
        return self.known[most]


def _sizes(operands: Operands) -> dict[str, int | None]:
    h0, per = operands.h0, operands.per_step
    known = operands.sides == 2 or (per is not None and per.begins is not None)
    return {
        "H": h0.shape[-1],
        "rows": operands.steps.num_rows if known else None,
        "batch": h0.shape[-2] if known else None,
    }


def _constexprs(run: Recurrence[StepwiseConfig]) -> dict[str, Any]:
    return run.config.constexprs() | {"PRECISION": run.precision}


# What changes from step to step, in the order in which the kernels take it.
_OF_A_STEP = ("row", "count", "row_before", "carried")


def _prepare(
    kernel: Any,
    args: dict[str, Any],
    constexprs: dict[str, Any],
    varying: tuple[str, ...],
    operands: Operands,
    config: StepwiseConfig,
    *more: str,
) -> Callable[..., None]:
    """A function that starts the kernel on a grid with what changes from step to step: `varying` and `more`, then what
    of `varying` is the second direction's, where both run."""
    of_second = tuple(f"{name}_back" for name in varying)
    varying += more
    if operands.sides == 2:
        varying += of_second
    else:
        args = args | dict.fromkeys(of_second)
    return prepare(kernel, args, constexprs, varying, num_warps=config.num_warps, num_stages=config.num_stages)
