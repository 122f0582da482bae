"""One layer in one direction by Triton kernels: the GEMMs without recurrence around a schedule's loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels import persistent, resident, stepwise
from ..kernels.errors import DoesNotFit
from ..kernels.steps import Steps
from ..planning.plan import Plan, instead, precision_of
from .projections import final_state, gradients, project_input, state_into
from .recompute import chunk_length, gates_again

Gradients = tuple[Tensor | None, ...]

# Each has a `forward` and a `backward` of the same signature.
SCHEDULES = {"stepwise": stepwise, "resident": resident, "persistent": persistent}


def steps_of(input: Tensor, batch_sizes: Tensor | None) -> Steps:
    """Where the rows of each step lie, for a padded (T, B, I) or packed (N, I) input."""
    if batch_sizes is None:
        return Steps.padded(input.shape[0], input.shape[1])
    return Steps.of_batch_sizes(batch_sizes.tolist())


def _run(direction: str, plan: Plan, state: Tensor, given: tuple, *, variant: str, **options):
    """The plan's schedule, or another one where its programs do not fit on the device together."""
    try:
        return getattr(SCHEDULES[plan.schedule], direction)(*given, variant=variant, config=plan.config, **options)
    except DoesNotFit as error:
        plan = instead(plan, error, state, variant, direction)
    return getattr(SCHEDULES[plan.schedule], direction)(*given, variant=variant, config=plan.config, **options)


def forward(
    plan: Plan,
    input: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    batch_sizes: Tensor | None,
    *,
    variant: str,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(output, h_n, reserve); see `trigru.operators` for shapes. No reserve unless `save`."""
    steps = steps_of(input, batch_sizes)
    *sizes, features = input.shape
    rows = input if batch_sizes is not None else input.reshape(-1, features)
    gates_in, b_hn = project_input(rows, w_ih, b_ih, b_hh, variant)
    given = (gates_in, h0.contiguous(), w_hh.contiguous(), b_hn, steps)
    options: dict[str, Any] = {"reverse": reverse, "precision": precision_of(input.dtype)}
    output, reserve = _run("forward", plan, h0, given, variant=variant, save=save, **options)
    h_n = final_state(output, steps, reverse)
    if batch_sizes is None:
        output = output.view(*sizes, h0.shape[1])
    return output, h_n, None if reserve is None else reserve.view(-1)


def backward(
    plan: Plan,
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    input: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    batch_sizes: Tensor | None,
    output: Tensor,
    reserve: Tensor,
    *,
    variant: str,
    reverse: bool,
    needs: Sequence[bool],
) -> Gradients:
    """Derivatives by input, h0, w_ih, w_hh, b_ih, b_hh; None for those that `needs` does not ask for.

    Where forward kept no gates (an empty reserve), they are computed again, a chunk of steps at a time, before the
    reverse loop reaches it: with every state known, the recurrent products of a chunk are one GEMM."""
    steps = steps_of(input, batch_sizes)
    hidden_size = h0.shape[1]
    rows = output.reshape(-1, hidden_size)
    x = input.reshape(-1, input.shape[-1])
    h0 = h0.contiguous()
    d_rows = torch.zeros_like(rows) if grad_output is None else grad_output.reshape(-1, hidden_size).contiguous()
    d_state = (torch.zeros_like(h0) if grad_h_n is None else grad_h_n).to(torch.float32, copy=True)
    weights = (w_ih, w_hh, b_ih, b_hh)
    need_input, need_h0, *need_weights = needs
    d_input = torch.empty_like(x) if need_input else None
    d_weights: list[Tensor | None] = [None] * 4

    whole = reserve.numel() > 0 or rows.numel() == 0
    length = steps.seq_len if whole else chunk_length(steps, hidden_size)
    starts = range(0, steps.seq_len, length)
    for first in starts if reverse else reversed(starts):  # against the direction in which forward ran
        last = min(first + length, steps.seq_len)
        part, here = steps.part(first, last), slice(steps.offsets[first], steps.offsets[last])
        start = state_into(first, last, rows, h0, steps, reverse)
        if whole:
            kept = reserve.view(rows.shape[0], -1)
        else:
            kept = gates_again(x[here], rows[here], start, part, weights, variant, reverse)
        given = (d_rows[here], d_state[: part.batch], start, w_hh.contiguous(), part, rows[here], kept)
        options: dict[str, Any] = {"reverse": reverse, "precision": precision_of(input.dtype)}
        d_gates, d_an, d_start = _run("backward", plan, start, given, variant=variant, **options)
        d_state[: part.batch] = d_start
        r = kept[:, :hidden_size]
        found = gradients(d_gates, d_an, r, x[here], start, rows[here], part, reverse=reverse, needs=need_weights)
        if whole:
            d_weights = list(found)
        else:  # summed over chunks in float32
            for i, new in enumerate(found):
                total = d_weights[i]
                d_weights[i] = new if new is None else new.float() if total is None else total.add_(new)
        if d_input is not None:
            torch.mm(d_gates, w_ih, out=d_input[here])
    d_input = None if d_input is None else d_input.view(input.shape)
    d_weights = [None if d is None else d.to(input.dtype) for d in d_weights]
    return d_input, d_state.to(h0.dtype) if need_h0 else None, *d_weights
