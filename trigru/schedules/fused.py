"""One layer, in one direction of time or in both together, by Triton kernels: the GEMMs without recurrence around a
schedule's loop.

What runs together, the directions of time and the heads of each, lies one behind the other. `weights` has an entry for
each; of heads `part.heads` to a direction (`heads.apart`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels import persistent, resident, stepwise, walking
from ..kernels.config import kept_values
from ..kernels.errors import DoesNotFit
from ..kernels.recurrence import Gradients as Upstreams
from ..kernels.recurrence import Kept, Normalised, Operands, PerStep, Recurrence
from ..layer import Weights
from ..planning import invariant
from ..planning.plan import instead, precision_of
from ..planning.stages import Choice
from .heads import apart, final_states, together, upstream_of
from .norm import Normed
from .part import Found, Gradients, Part, Run, Upstream
from .per_step import by_given, joined
from .projections import (
    by_rows,
    final_state,
    gradients,
    gradients_of_few,
    have_few,
    project_input,
    state_into,
)
from .recompute import chunk_length, gates_again, seen_before

# Each has a `forward` and a `backward` of the same signature (see kernels/recurrence.py).
SCHEDULES = {"stepwise": stepwise, "walking": walking, "resident": resident, "persistent": persistent}


def forward(part: Part, weights: Sequence[Weights], run: Run) -> None:
    """One layer; the results go where `run` says."""
    assert run.h_n is not None
    last, zeros = run.h_n, run.h0 if run.zeros else None
    if part.heads > 1:
        weights, run = apart(weights, run, part.heads)
    x = run.rows
    if len(weights) == 1:
        gates_in, *b_hn = project_input(x, weights[0], part.variant, zeros=zeros)
    else:
        gates_in = x.new_empty(len(weights), x.shape[0], weights[0].ih.shape[0])
        b_hn = [
            project_input(x, one, part.variant, out, zeros if one is weights[0] else None)[1]
            for one, out in zip(weights, gates_in.unbind(0), strict=True)
        ]
    operands = _operands(part, weights, run)._replace(gates_in=gates_in, b_hn=b_hn[0])
    if part.heads > 1:
        known = [b for b in b_hn if b is not None]
        operands = operands._replace(b_hn=torch.stack(known) if known else None)
    elif len(b_hn) == 2:
        operands = operands._replace(b_hn_back=b_hn[1])
    if (per_step := operands.per_step) is not None and per_step.carries:
        begins = operands.new(operands.h0.shape[-1])
        operands = operands._replace(per_step=per_step._replace(begins=begins))
    operands = operands._replace(h_n=run.h_n)  # of heads apart it is None
    if _by_plan("forward", part, run, operands, run.gates is not None).h_n is not None:
        return
    places = final_states(last, part.heads) if part.heads > 1 else _behind(last, weights)
    for reverse, output, place in zip(_directions(part, weights), _beside(run.output, weights), places, strict=True):
        final_state(output, run.steps, reverse, out=place)


def _operands(part: Part, weights: Sequence[Weights], run: Run) -> Operands:
    """What every loop reads and writes."""
    h0, per_step, back = run.h0.contiguous(), run.per_step, None
    if part.heads > 1:
        w_hh = torch.stack([one.hh for one in weights])
    else:
        w_hh, *others = (one.hh.contiguous() for one in weights)
        back = others[0] if others else None
    if per_step is not None:
        per_step = PerStep._make(x.contiguous() if isinstance(x, Tensor) else x for x in per_step)
    gains, normalised = [one.gain[1] for one in weights if one.gain is not None], None
    if gains:
        normalised = Normalised(gains[0].contiguous() if len(gains) == 1 else torch.stack(gains))
    more: dict[str, Any] = {"w_hh_back": back, "per_step": per_step, "normalised": normalised, "heads": part.heads}
    return Operands(None, h0, w_hh, None, run.steps, run.output, run.gates, **more)


def _directions(part: Part, weights: Sequence[Weights]) -> tuple[bool, ...]:
    """Whether each goes from the last step to the first."""
    directions = len(weights) // part.heads
    return tuple(part.reverse if directions == 1 else i >= part.heads for i in range(len(weights)))


def _behind(x: Tensor, weights: Sequence[Weights]) -> Sequence[Tensor]:
    """Each one's own of a tensor that has one behind the other, where there are several."""
    return (x,) if len(weights) == 1 else x.unbind(0)


def _beside(x: Tensor, weights: Sequence[Weights]) -> Sequence[Tensor]:
    """Each one's own columns."""
    return (x,) if len(weights) == 1 else x.chunk(len(weights), 1)


def _by_plan(direction: str, part: Part, run: Run, operands: Operands, *given: Any) -> Any:
    """By the plan's schedule, or by another one where its programs do not fit on the device together."""
    try:
        return _by(part.choice, direction, part, run, operands, *given)
    except DoesNotFit as error:
        choice = instead(part.choice, error, operands.h0, part.variant, direction)
    return _by(choice, direction, part, run, operands, *given)


def _by(choice: Choice, direction: str, part: Part, run: Run, operands: Operands, *given: Any) -> Any:
    recurrence = Recurrence(part.variant, part.reverse, precision_of(run.output.dtype), choice.config)
    return getattr(SCHEDULES[choice.schedule], direction)(recurrence, operands, *given)


def backward(part: Part, weights: Sequence[Weights], run: Run, upstream: Upstream) -> Gradients:
    """Back-propagation through time of `forward`.

    Where forward kept no gates, they are computed again, a chunk of steps at a time, before the reverse loop reaches
    it: with every state known, the recurrent products of a chunk are one GEMM. Both directions go together where one
    chunk has all steps; in several chunks they are at different steps, and go one after the other."""
    if part.heads > 1:
        weights, run = apart(weights, run, part.heads)
        return together(_backward(part, weights, run, upstream_of(upstream, part.heads)), part.heads)
    return _backward(part, weights, run, upstream)


def _backward(part: Part, weights: Sequence[Weights], run: Run, upstream: Upstream) -> Gradients:
    """`backward`, of heads that are apart."""
    rows, steps = run.output, run.steps
    d_rows = torch.zeros_like(rows) if upstream.output is None else upstream.output.reshape(rows.shape).contiguous()
    need_input, need_h0, *need_weights = upstream.needs
    if run.gates is None:
        if chunk_length(steps, rows.shape[1]) < steps.seq_len:
            return _each_by_chunks(part, weights, run, d_rows, upstream)
        run = run._replace(gates=_gates_again(part, weights, run))
    x = run.rows if any(need_weights[::5]) or weights[0].gain is not None else None
    d_products, d_state, d_weights, given = _loop(
        part, weights, run, d_rows, upstream.h_n, x, need_weights, upstream.given
    )
    return Gradients(
        _d_input(d_products, weights).view(run.input.shape) if need_input else None,
        d_state.to(rows.dtype) if need_h0 else None,
        d_weights,
        given,
    )


def _d_input(d_products: Sequence[Tensor], weights: Sequence[Weights], out: Tensor | None = None) -> Tensor:
    """The derivative by the input's rows, from those by each direction's products with it: summed as they are made."""
    first, *others = d_products
    if invariant.is_on():
        for d, one in zip((first, *others), weights, strict=True):
            out = by_rows(d, one.ih, base=None if d is first else out, out=out)
        assert out is not None
        return out
    d_input = torch.mm(first, weights[0].ih) if out is None else torch.mm(first, weights[0].ih, out=out)
    for d, one in zip(others, weights[1:], strict=True):
        d_input.addmm_(d, one.ih)
    return d_input


def _own(per_step: PerStep | None, weights: Sequence[Weights], side: int) -> PerStep | None:
    """Each direction's own."""
    return per_step if per_step is None or len(weights) == 1 else per_step.side(side)


def _sides(part: Part, weights: Sequence[Weights], run: Run) -> list[tuple[bool, Run]]:
    """Each direction's own run, its input as (N, I), and whether it goes from the last step to the first."""
    given: Sequence[Any] = [None] * len(weights) if run.gates is None else _behind(run.gates, weights)
    states = zip(_behind(run.h0, weights), _beside(run.output, weights), given, strict=True)
    runs = [
        Run(run.rows, h0, run.steps, output, gates, per_step=_own(run.per_step, weights, side))
        for side, (h0, output, gates) in enumerate(states)
    ]
    return list(zip(_directions(part, weights), runs, strict=True))


def _gates_again(part: Part, weights: Sequence[Weights], run: Run) -> Tensor:
    """What forward would have kept."""
    rows, hidden_size = run.steps.num_rows, run.h0.shape[-1]
    gates = run.output.new_empty(*run.h0.shape[:-2], rows, kept_values(part.variant) * hidden_size)
    for (reverse, own), one, place in zip(_sides(part, weights, run), weights, _behind(gates, weights), strict=True):
        gates_again(own, one, part.variant, reverse, place)
    return gates


def _loop(
    part: Part,
    weights: Sequence[Weights],
    run: Run,
    d_rows: Tensor,
    d_h_n: Tensor | None,
    inputs: Tensor | None,
    needs: Sequence[bool],
    given: Sequence[bool],
) -> tuple[list[Tensor], Tensor, tuple[Tensor | None, ...], tuple[Found, ...]]:
    """The reverse loop over the run's steps: derivatives by each direction's products with the input, by first state,
    weights and what was given for each step."""
    assert run.gates is not None
    operands, kept = _operands(part, weights, run), Kept(run.output, run.gates)
    normed = _normed(part, weights, run, inputs)
    if operands.normalised is not None:
        pairs = [(one.hats.to(run.output.dtype), one.rstd) for one in normed if one is not None]
        hats, rstd = pairs[0] if len(pairs) == 1 else map(torch.stack, zip(*pairs, strict=True))
        operands = operands._replace(normalised=operands.normalised._replace(hats=hats, rstd=rstd))
    if (per_step := operands.per_step) is not None:
        operands = operands._replace(per_step=per_step._replace(wants_d_begin=any(given)))
    d_gates, d_an, d_start, d_begin = _by_plan("backward", part, run, operands, kept, Upstreams(d_rows, d_h_n))
    nothing = (None,) * len(weights)
    sides = zip(
        _sides(part, weights, run),
        _behind(d_gates, weights),
        nothing if d_an is None else _behind(d_an, weights),
        nothing if d_begin is None else _behind(d_begin, weights),
        _beside(d_rows, weights),
        nothing if d_h_n is None else _behind(d_h_n, weights),
        normed,
        strict=True,
    )
    found: list[Tensor | None] = []
    of_input, of_given = [], []
    for i, ((reverse, own_run), d, d_n, d_own_begin, d_output, d_own_h_n, own_normed) in enumerate(sides):
        assert own_run.gates is not None
        asked = needs[5 * i : 5 * i + 5]
        if own_normed is None and have_few(own_run):
            of_input.append(d)
            found += gradients_of_few(d, d_n, own_run, reverse, inputs, asked)
            continue
        r = own_run.gates.narrow(1, 0, own_run.h0.shape[1])
        before = seen_before(own_run, reverse) if asked[1] else None
        unnormed = None if own_normed is None else own_normed.back(d, d_n)
        of_input.append(d if unnormed is None else unnormed.input)
        found += gradients(d, d_n, r, inputs, before, asked, unnormed)
        if d_own_begin is not None:
            of_given.append(by_given(part.variant, reverse, own_run, d_own_begin, d_output, d_own_h_n, given))
    return of_input, d_start, tuple(found), tuple(of_given)


def _normed(part: Part, weights: Sequence[Weights], run: Run, inputs: Tensor | None) -> list[Normed | None]:
    """Each direction's products anew where they were normalised, of all steps together; else None."""
    if weights[0].gain is None:
        return [None] * len(weights)
    found: list[Normed | None] = []
    for (reverse, own), one in zip(_sides(part, weights, run), weights, strict=True):
        assert own.gates is not None
        assert inputs is not None
        r = own.gates.narrow(1, 0, own.h0.shape[1])
        found.append(Normed.of(one, part.variant, inputs, seen_before(own, reverse), r))
    return found


def _each_by_chunks(part: Part, weights: Sequence[Weights], run: Run, d_rows: Tensor, upstream: Upstream) -> Gradients:
    """`backward` where gates are computed again in several chunks: each direction by itself."""
    if len(weights) == 1:
        return _by_chunks(part, weights[0], run, d_rows, upstream)
    need_input, need_h0, *need_weights = upstream.needs
    found = []
    for i, one in enumerate(weights):
        output, grad = (_beside(x, weights)[i].contiguous() for x in (run.output, d_rows))
        alone = run._replace(h0=run.h0[i], output=output, per_step=_own(run.per_step, weights, i))
        d_h_n = None if upstream.h_n is None else upstream.h_n[i]
        asked = (need_input, need_h0, *need_weights[5 * i : 5 * i + 5])
        wanted = Upstream(None, d_h_n, asked, upstream.given)
        by_itself = part._replace(reverse=_directions(part, weights)[i], heads=1)
        found.append(_by_chunks(by_itself, one, alone, grad, wanted))
    inputs, states = ([x for x in each if x is not None] for each in zip(*(one[:2] for one in found), strict=True))
    return Gradients(
        functools.reduce(Tensor.add_, inputs) if inputs else None,
        torch.stack(states) if states else None,
        tuple(d for one in found for d in one.weights),
        tuple(of_given for one in found for of_given in one.given),
    )


def _by_chunks(part: Part, weights: Weights, run: Run, d_rows: Tensor, upstream: Upstream) -> Gradients:
    """`backward` of one direction where gates are computed again in several chunks."""
    steps, rows, reverse, x, h0 = run.steps, run.output, part.reverse, run.rows, run.h0.contiguous()
    need_input, need_h0, *need_weights = upstream.needs
    d_state = h0.new_zeros(h0.shape, dtype=torch.float32)
    if upstream.h_n is not None:
        d_state.copy_(upstream.h_n)
    d_input = x.new_empty(x.shape) if need_input else None
    totals: list[Tensor | None] = [None] * 5
    by_chunk: list[tuple[slice, Found]] = []
    length = chunk_length(steps, rows.shape[1])
    starts = range(0, steps.seq_len, length)
    for first in starts if reverse else reversed(starts):  # against the direction in which forward ran
        last = min(first + length, steps.seq_len)
        chunk, here = steps.part(first, last), slice(steps.offsets[first], steps.offsets[last])
        start = state_into(first, last, rows, h0, steps, reverse)
        per_step = None if run.per_step is None else run.per_step.rows(here, steps.num_rows)
        own = Run(x[here], start, chunk, rows[here], None, per_step=per_step)
        own = own._replace(gates=_gates_again(part, [weights], own))
        d_last = d_state[: chunk.batch]
        d_products, d_start, found, given = _loop(
            part, [weights], own, d_rows[here], d_last, own.input, need_weights, upstream.given
        )
        by_chunk += [(here, of_given) for of_given in given]
        d_state[: chunk.batch] = d_start
        for i, new in enumerate(found):  # summed over chunks in float32
            total = totals[i]
            totals[i] = new if new is None else new.float() if total is None else total.add_(new)
        if d_input is not None:
            _d_input(d_products, [weights], d_input[here])
    return Gradients(
        None if d_input is None else d_input.view(run.input.shape),
        d_state.to(h0.dtype) if need_h0 else None,
        tuple(None if d is None else d.to(rows.dtype) for d in totals),
        (joined(run.per_step, by_chunk),) if by_chunk else (),
    )
