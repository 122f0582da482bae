"""Several layers of a stack in one launch, in one direction of time: the GEMMs that are left around it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels import stacked
from ..kernels.errors import DoesNotFit
from ..kernels.recurrence import Recurrence
from ..layer import Weights
from ..planning.plan import instead, precision_of
from . import fused
from .part import Gradients, Part, Run, Together, Upstream
from .projections import final_state, folded, gradients, project_input
from .recompute import seen_before
from .reserve import scaled


def forward(part: Part, weights: Sequence[Weights], run: Run) -> None:
    """All of them; the results go where `run` says."""
    assert run.h_n is not None
    if run.zeros:
        run.h0.zero_()
    gates_in, first = project_input(run.rows, weights[0], part.variant)
    biases, others = zip(*(folded(one, part.variant) for one in weights[1:]), strict=True)
    layers = _layers(weights, run)._replace(
        gates_in=gates_in,
        bias=None if biases[0] is None else torch.stack(biases),
        b_hn=None if first is None else torch.stack([first, *others]),
    )
    try:
        stacked.forward(_recurrence(part, run), layers)
    except DoesNotFit as error:
        _forward_apart(_other(part, run, error, "forward"), weights, run)
        return
    for states, h_n in zip(_states(run), run.h_n.unbind(0), strict=True):
        final_state(states, run.steps, part.reverse, out=h_n)


def backward(part: Part, weights: Sequence[Weights], run: Run, upstream: Upstream) -> Gradients:
    """Back-propagation through time of `forward`, which has kept the gates."""
    rows = run.output
    d_rows = torch.zeros_like(rows) if upstream.output is None else upstream.output.reshape(rows.shape).contiguous()
    try:
        found = stacked.backward(_recurrence(part, run), _layers(weights, run), d_rows, upstream.h_n)
    except DoesNotFit as error:
        return _backward_apart(_other(part, run, error, "backward"), weights, run, upstream)
    need_input, need_h0, *need_weights = upstream.needs
    d_weights: list[Tensor | None] = []
    for i, own in enumerate(_apart(run)):
        asked = need_weights[5 * i : 5 * i + 5]
        assert own.gates is not None
        d_weights += gradients(
            found.d_gates.select(0, i),
            None if found.d_an is None else found.d_an.select(0, i),
            own.gates.narrow(1, 0, rows.shape[1]),
            _input_of(run, i).reshape(rows.shape[0], -1) if asked[0] else None,
            seen_before(own, part.reverse) if asked[1] else None,
            asked,
        )
    return Gradients(
        torch.mm(found.d_gates.select(0, 0), weights[0].ih).view(run.input.shape) if need_input else None,
        found.d_state.to(rows.dtype) if need_h0 else None,
        tuple(d_weights),
    )


def _recurrence(part: Part, run: Run) -> Recurrence[Any]:
    return Recurrence(part.variant, part.reverse, precision_of(run.output.dtype), part.choice.config)


def _between(run: Run) -> Together:
    assert run.together is not None
    return run.together


def _layers(weights: Sequence[Weights], run: Run) -> stacked.Layers:
    """What both passes read and write."""
    between = _between(run)
    return stacked.Layers(
        None,
        run.h0.contiguous(),
        torch.stack([one.ih for one in weights[1:]]),
        torch.stack([one.hh for one in weights]),
        None,
        None,
        run.steps,
        between.states,
        run.output,
        run.gates,
        None if between.masks is None else between.masks.view(between.states.shape),
        1.0 if between.masks is None else _scale(between.dropout, run.output.dtype),
    )


@functools.cache
def _scale(p: float, dtype: torch.dtype) -> float:
    """What stays is multiplied by."""
    return scaled(torch.ones((), dtype=torch.bool, device="cpu"), p, dtype).item()


def _states(run: Run) -> list[Tensor]:
    """(N, H) of each layer."""
    return [*_between(run).states.unbind(0), run.output]


def _input_of(run: Run, index: int) -> Tensor:
    """(T, B, features) of a layer, as it saw it."""
    between = _between(run)
    if index == 0:
        return run.input
    x = between.states.select(0, index - 1).view(run.steps.seq_len, run.steps.batch, -1)
    return x if between.masks is None else x * scaled(between.masks.select(0, index - 1), between.dropout, x.dtype)


def _apart(run: Run) -> list[Run]:
    """Each layer's own, without its input."""
    nothing = [None] * run.h0.shape[0]
    h_n = nothing if run.h_n is None else run.h_n.unbind(0)
    gates = nothing if run.gates is None else run.gates.unbind(0)
    each = zip(run.h0.unbind(0), _states(run), gates, h_n, strict=True)
    return [Run(run.input, h0, run.steps, states, own, last) for h0, states, own, last in each]


def _other(part: Part, run: Run, error: DoesNotFit, direction: str) -> Part:
    """What runs the layers one after another where they do not fit on the device together."""
    return part._replace(choice=instead(part.choice, error, run.h0[0], part.variant, direction))


def _forward_apart(part: Part, weights: Sequence[Weights], run: Run) -> None:
    for i, own in enumerate(_apart(run)):
        fused.forward(part, weights[i : i + 1], own._replace(input=_input_of(run, i)))


def _backward_apart(part: Part, weights: Sequence[Weights], run: Run, upstream: Upstream) -> Gradients:
    need_input, need_h0, *need_weights = upstream.needs
    masks, d_output = _between(run).masks, upstream.output
    d_h0: list[Tensor] = []
    d_weights = []
    for i, own in reversed(list(enumerate(_apart(run)))):
        needs = (i > 0 or need_input, need_h0, *need_weights[5 * i : 5 * i + 5])
        d_h_n = None if upstream.h_n is None else upstream.h_n[i]
        own = own._replace(input=_input_of(run, i))
        found = fused.backward(part, weights[i : i + 1], own, Upstream(d_output, d_h_n, needs))
        d_output = found.input
        if i and masks is not None:
            assert d_output is not None
            d_output = d_output * scaled(masks[i - 1], _between(run).dropout, d_output.dtype)
        if found.h0 is not None:
            d_h0.append(found.h0)
        d_weights.append(found.weights)
    return Gradients(
        d_output if need_input else None,
        torch.stack(d_h0[::-1]) if need_h0 else None,
        tuple(d for own in reversed(d_weights) for d in own),
    )
