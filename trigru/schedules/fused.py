"""One layer in one direction by Triton kernels: the GEMMs without recurrence around a schedule's loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels import persistent, resident, stepwise
from ..kernels.errors import DoesNotFit
from ..kernels.recurrence import Gradients as Upstreams
from ..kernels.recurrence import Kept, Operands, Recurrence
from ..layer import Weights
from ..planning.plan import Plan, instead, precision_of
from .part import Gradients, Part, Run, Upstream
from .projections import final_state, gradients, project_input, state_into
from .recompute import chunk_length, gates_again

# Each has a `forward` and a `backward` of the same signature (see kernels/recurrence.py).
SCHEDULES = {"stepwise": stepwise, "resident": resident, "persistent": persistent}


def forward(part: Part, weights: Weights, run: Run) -> Tensor | None:
    """One layer in one direction; the results go where `run` says.

    Returns:
        The gates of every row, flat, if part.keep."""
    assert run.h_n is not None
    gates_in, b_hn = project_input(run.rows, weights, part.variant)
    operands = Operands(gates_in, run.h0.contiguous(), weights.hh.contiguous(), b_hn, run.steps, run.output)
    kept = _by_plan("forward", part, run, operands, part.keep)
    if kept.output is not run.output:
        run.output.copy_(kept.output)
    final_state(run.output, run.steps, part.reverse, out=run.h_n)
    return None if kept.reserve is None else kept.reserve.view(-1)


def _by_plan(direction: str, part: Part, run: Run, operands: Operands, *given: Any) -> Any:
    """By the plan's schedule, or by another one where its programs do not fit on the device together."""
    try:
        return _by(part.plan, direction, part, run, operands, *given)
    except DoesNotFit as error:
        plan = instead(part.plan, error, operands.h0, part.variant, direction)
    return _by(plan, direction, part, run, operands, *given)


def _by(plan: Plan, direction: str, part: Part, run: Run, operands: Operands, *given: Any) -> Any:
    recurrence = Recurrence(part.variant, part.reverse, precision_of(run.output.dtype), plan.config)
    return getattr(SCHEDULES[plan.schedule], direction)(recurrence, operands, *given)


def backward(part: Part, weights: Weights, run: Run, gates: Tensor, upstream: Upstream) -> Gradients:
    """Back-propagation through time of `forward`.

    Where forward kept no gates, they are computed again, a chunk of steps at a time, before the reverse loop reaches
    it: with every state known, the recurrent products of a chunk are one GEMM."""
    rows = run.output
    num_rows, hidden_size = rows.shape
    d_rows = torch.zeros_like(rows) if upstream.output is None else upstream.output.reshape(rows.shape).contiguous()
    need_input, need_h0, *need_weights = upstream.needs
    if not gates.numel() and num_rows:
        return _by_chunks(part, weights, run, d_rows, upstream)
    operands = Operands(None, run.h0.contiguous(), weights.hh.contiguous(), None, run.steps)
    kept = Kept(rows, gates.view(num_rows, -1 if num_rows else hidden_size))
    x = run.rows if need_weights[0] else None
    d_gates, d_state, d_weights = _loop(part, run, operands, kept, Upstreams(d_rows, upstream.h_n), x, need_weights)
    return Gradients(
        torch.mm(d_gates, weights.ih).view(run.input.shape) if need_input else None,
        d_state.to(rows.dtype) if need_h0 else None,
        *d_weights,
    )


def _loop(
    part: Part,
    run: Run,
    operands: Operands,
    kept: Kept,
    upstreams: Upstreams,
    inputs: Tensor | None,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
    """The reverse loop over the operands' steps: derivatives by pre-activations, first state and weights."""
    assert kept.reserve is not None
    h0, steps = operands.h0, operands.steps
    d_gates, d_an, d_start = _by_plan("backward", part, run, operands, kept, upstreams)
    r = kept.reserve.narrow(1, 0, h0.shape[1])
    found = gradients(d_gates, d_an, r, inputs, h0, kept.output, steps, reverse=part.reverse, needs=needs)
    return d_gates, d_start, found


def _by_chunks(part: Part, weights: Weights, run: Run, d_rows: Tensor, upstream: Upstream) -> Gradients:
    """`backward` where gates are computed again."""
    steps, rows, reverse, x, h0 = run.steps, run.output, part.reverse, run.rows, run.h0.contiguous()
    need_input, need_h0, *need_weights = upstream.needs
    d_state = h0.new_zeros(h0.shape, dtype=torch.float32)
    if upstream.h_n is not None:
        d_state.copy_(upstream.h_n)
    d_input = x.new_empty(x.shape) if need_input else None
    totals: list[Tensor | None] = [None] * 4
    length = chunk_length(steps, rows.shape[1])
    starts = range(0, steps.seq_len, length)
    for first in starts if reverse else reversed(starts):  # against the direction in which forward ran
        last = min(first + length, steps.seq_len)
        chunk, here = steps.part(first, last), slice(steps.offsets[first], steps.offsets[last])
        start = state_into(first, last, rows, h0, steps, reverse)
        kept = Kept(rows[here], gates_again(Run(x[here], start, chunk, rows[here]), weights, part.variant, reverse))
        operands = Operands(None, start, weights.hh.contiguous(), None, chunk)
        upstreams = Upstreams(d_rows[here], d_state[: chunk.batch])
        d_gates, d_start, found = _loop(part, run, operands, kept, upstreams, x[here], need_weights)
        d_state[: chunk.batch] = d_start
        for i, new in enumerate(found):  # summed over chunks in float32
            total = totals[i]
            totals[i] = new if new is None else new.float() if total is None else total.add_(new)
        if d_input is not None:
            torch.mm(d_gates, weights.ih, out=d_input[here])
    return Gradients(
        None if d_input is None else d_input.view(run.input.shape),
        d_state.to(h0.dtype) if need_h0 else None,
        *(None if d is None else d.to(rows.dtype) for d in totals),
    )
