"""All layers and directions as the plan's stages run them, one after another; dropout between layers.

What forward keeps for backward is laid out as reserve.py says.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ..blocks import narrow, whole_weights
from ..checks import batch_sizes_of
from ..kernels.steps import Steps
from ..layer import Call, Layer, Weights, time_major
from ..planning.stages import TAKES_HEADS, Plan, Stage
from . import cudnn
from .pages import in_large_pages
from .part import Part, Run, Together, Upstream
from .per_step import Sums, before_their_ends, of_stage
from .reserve import Reserve, draw_masks, dropout_mask, scaled, shares_output


class Result(NamedTuple):
    """Of forward."""

    output: Tensor  # (T, B, D * H), (B, T, D * H) with batch_first, or (N, D * H) packed; a view of nothing
    h_n: Tensor  # (L * D, B, H)
    reserve: list[Tensor]


class Wanted(NamedTuple):
    """What backward is given, and which derivatives are asked for: by the input, hx and each of the weights."""

    grad_output: Tensor | None
    grad_h_n: Tensor | None
    needs: Sequence[bool]
    given: Sequence[bool] = ()  # by fresh, decay and amount of the call's `given`, and by its gain; empty: none


@functools.cache  # an import statement costs some 0.5 us a call
def _module_for(schedule: str, several: bool) -> ModuleType:
    if schedule == "eager":
        from . import eager

        return eager
    if several:
        from . import together

        return together
    from . import fused

    return fused


def _module_of(stage: Stage) -> ModuleType:
    return _module_for(stage.choice.schedule, len(stage.layers) > 1)


def steps_of(layer: Layer, call: Call) -> Steps:
    """Where the rows of each step lie. Raises RuntimeError for batch_sizes that do not fit."""
    if call.batch_sizes is None:
        batch, seq_len = call.hx.shape[1], call.input.shape[1 if layer.batch_first else 0]
        return Steps.padded(seq_len, batch)
    return Steps.of_batch_sizes(batch_sizes_of(call))


def as_rows(layer: Layer, call: Call, states: Tensor) -> Tensor:
    """States that may be the call's output as (N, D * H)."""
    return states if states.dim() == 2 else time_major(layer, call, states).reshape(-1, states.shape[-1])


def _narrow(layer: Layer, found: list[Tensor | None]) -> list[Tensor | None]:
    """What `backward` finds of whole matrices, as the layer's weights are."""
    width = 4 if layer.bias else 2
    last = 2 + width * layer.parts
    return [
        narrow(d, layer.num_heads) if d is not None and i in range(3, last, width) else d for i, d in enumerate(found)
    ]


def new_output(layer: Layer, call: Call, features: int) -> Tensor:
    """Memory for an output of so many features: steps outermost, whatever its shape, and no view."""
    *sizes, _ = call.input.shape
    if not layer.batch_first or call.batch_sizes is not None:
        return in_large_pages(call.input.new_empty(*sizes, features))
    batch, seq_len = sizes
    strides = features, batch * features, 1
    by_steps = (batch, seq_len, features), strides
    return in_large_pages(torch.empty_strided(*by_steps, dtype=call.input.dtype, device=call.input.device))


def heads_of(layer: Layer, call: Call, plan: Plan) -> int:
    """Of which the plan's schedule takes the weights as they are; 1 where it takes whole matrices, as where products
    are normalised: over all heads."""
    return layer.num_heads if plan.schedule in TAKES_HEADS and call.gain is None else 1


def part_of(layer: Layer, stage: Stage, heads: int) -> Part:
    """What the stage's schedule is told."""
    return Part(stage.choice, layer.variant, layer.runs_backwards(stage.directions[0]), heads)


def share_of(layer: Layer, directions: Sequence[int], x: Tensor, dim: int) -> Tensor:
    """What belongs to some directions of a layer's tensor: they lie one behind the other (dim 0), or columns of one
    beside those of the other (dim -1)."""
    if len(directions) == layer.directions:
        return x.squeeze(0) if dim == 0 and layer.directions == 1 else x
    (direction,) = directions
    return x.select(0, direction) if dim == 0 else x.chunk(2, -1)[direction]


def state_of(layer: Layer, stage: Stage, x: Tensor) -> Tensor:
    """What belongs to a stage of a tensor laid out as hx: (B, H), or (P, B, H) where it runs P layers or
    directions."""
    first, *others = _parts_of(layer, stage)
    return x.narrow(0, first, 1 + len(others)) if others else x.select(0, first)


def forward(layer: Layer, weights: Sequence[Tensor], call: Call, plan: Plan, first_kept: int) -> Result:
    """The results, and what backward needs of the layers from `first_kept` on (num_layers: of none)."""
    heads = heads_of(layer, call, plan)
    if heads < layer.num_heads:
        layer, weights = replace(layer, num_heads=1), whole_weights(layer, weights)
    if plan.schedule == "cudnn":
        return Result(*cudnn.forward(layer, weights, call, plan.stages[0].choice, first_kept))
    call = before_their_ends(layer, call)
    steps = steps_of(layer, call)
    x, width = time_major(layer, call, call.input), layer.hidden_size * layer.directions
    h_n = call.hx.new_empty(call.hx.shape)
    kept = None if first_kept == layer.num_layers else Reserve.empty(layer, x, first_kept)
    shares = shares_output(x.device) or kept is None
    output = new_output(layer, call, width)
    last_states = time_major(layer, call, output).view(-1, width) if shares else None
    for layers, stages in groupby(_apart(plan.stages, first_kept), key=_layers_of):
        own = kept if layers[0] >= first_kept else None
        if kept is not None and layers[0] == first_kept and first_kept:
            kept = kept._replace(entry=x)
        is_last = layers[-1] + 1 == layer.num_layers
        states = last_states if is_last else None
        if states is None:
            states = in_large_pages(x.new_empty(steps.num_rows, width)) if own is None else own.states_of(layers[-1])
        gates = None if own is None else own.gates_of(layer, layers)
        together = _together(layer, layers, own, x, states, steps)
        for stage in stages:
            run = Run(
                x,
                state_of(layer, stage, call.hx),
                steps,
                share_of(layer, stage.directions, states, -1),
                None if gates is None else _gates_of(layer, stage, gates, heads),
                state_of(layer, stage, h_n),
                of_stage(layer, call, stage),
                together,
                call.zeros,
            )
            schedule = _module_of(stage)
            schedule.forward(part_of(layer, stage, heads), _weights_of(layer, weights, call, stage), run)
        if not is_last:
            x = shaped(states, steps)
            if layer.dropout:
                mask = dropout_mask(x, layer.dropout, None if own is None else own.mask_behind(layers[-1]))
                x = x * scaled(mask, layer.dropout, x.dtype)
        elif not shares:
            time_major(layer, call, output).copy_(shaped(states, steps))
    return Result(output, h_n, [] if kept is None else kept.tensors)


def _apart(stages: Sequence[Stage], first: int) -> Iterator[Stage]:
    """The stages, none of which has layers both below `first` and from it on."""
    for stage in stages:
        below = tuple(index for index in stage.layers if index < first)
        for layers in (below, stage.layers[len(below) :]):
            if layers:
                yield stage if layers == stage.layers else replace(stage, layers=layers)


def _together(
    layer: Layer, layers: Sequence[int], kept: Reserve | None, x: Tensor, states: Tensor, steps: Steps
) -> Together | None:
    """Of several layers that run together; dropout's masks between them are drawn."""
    if len(layers) == 1:
        return None
    inner = states.new_empty(len(layers) - 1, *states.shape) if kept is None else kept.inner(layers)
    assert inner is not None
    masks = None if kept is None else kept.masks_in(layers)
    if layer.dropout:
        if masks is None:
            masks = x.new_empty(len(layers) - 1, *shaped(states, steps).shape, dtype=torch.bool)
        draw_masks(masks, layer.dropout, states.dtype)
    return Together(inner, masks, layer.dropout)


def _layers_of(stage: Stage) -> tuple[int, ...]:
    return stage.layers


def _gates_of(layer: Layer, stage: Stage, gates: Tensor, heads: int) -> Tensor:
    """What is a stage's of (L, D, N, values * H); of heads by themselves (D * heads, N, values * H / heads)."""
    if heads > 1 and stage.choice.schedule != "eager":
        *_, rows, width = gates.shape
        return gates.select(0, 0).view(layer.directions * heads, rows, width // heads)
    return share_of(layer, stage.directions, gates.select(0, 0), 0) if len(stage.layers) == 1 else gates.squeeze(1)


def _weights_of(layer: Layer, weights: Sequence[Tensor], call: Call, stage: Stage) -> list[Weights]:
    """Of each of its layers and directions."""
    return [layer.weights_of(weights, part, call.gain) for part in _parts_of(layer, stage)]


def _parts_of(layer: Layer, stage: Stage) -> list[int]:
    """Numbers of its layers and directions, as in hx."""
    return [index * layer.directions + direction for index in stage.layers for direction in stage.directions]


def shaped(states: Tensor, steps: Steps) -> Tensor:
    """(N, D * H) as the next layer's input."""
    return states if steps.packed else states.view(steps.seq_len, steps.batch, states.shape[1])


def kept_rows(layer: Layer, call: Call, result: Result) -> Iterator[tuple[Tensor, Tensor]]:
    """Of a forward that kept all layers: what goes into each, (N, features), and its states (N, D * H)."""
    kept = _read(layer, call, result.reserve, result.output, 0)
    x = as_rows(layer, call, call.input)
    for index in range(layer.num_layers):
        states = kept.states_of(index)
        yield x, states
        if index + 1 < layer.num_layers:
            mask = kept.mask_behind(index)
            x = states if mask is None else states * scaled(mask, layer.dropout, states.dtype).view_as(states)


def _read(layer: Layer, call: Call, tensors: Sequence[Tensor], output: Tensor, first_kept: int) -> Reserve:
    """The reserve, with the call's output where it holds the last layer's states."""
    kept = Reserve.of(layer, tensors, first_kept)
    return kept._replace(output=as_rows(layer, call, output) if shares_output(call.input.device) else None)


def backward(
    layer: Layer,
    weights: Sequence[Tensor],
    call: Call,
    plan: Plan,
    first_kept: int,
    reserve: Sequence[Tensor],
    wanted: Wanted,
) -> list[Tensor | None]:
    """Derivatives by the input, hx and each of the weights, and where `wanted.given` asks for any by fresh, decay,
    amount and gain; None for those that are not asked for.

    call.input is read only where a weight of the first layer needs a gradient, its gates were not kept, or products are
    normalised."""
    own = cudnn.is_own(reserve)  # which nothing else can read
    heads = 1 if own else heads_of(layer, call, plan)
    if heads < layer.num_heads:
        found = backward(
            replace(layer, num_heads=1), whole_weights(layer, weights), call, plan, first_kept, reserve, wanted
        )
        return _narrow(layer, found)
    if own or plan.schedule == "cudnn":
        return cudnn.backward(layer, weights, call, reserve, wanted)
    steps, directions = steps_of(layer, call), layer.directions
    kept = _read(layer, call, reserve, reserve[-1], first_kept)
    need_input, need_hx, *need_weights = wanted.needs
    width = 4 if layer.bias else 2
    sums, call = Sums(layer, call, wanted.given[:3]), before_their_ends(layer, call)
    d_gain = None if call.gain is None or not any(wanted.given[3:]) else torch.zeros_like(call.gain)
    asked = [need_input or need_hx or any(sums.needs) or d_gain is not None or need for need in need_weights]
    lowest = asked.index(True) // (width * directions) if any(asked) else layer.num_layers
    d_hx = torch.empty(call.hx.shape, dtype=call.hx.dtype, device=call.hx.device) if need_hx else None
    d_weights: list[Tensor | None] = [None] * len(need_weights)
    grad = None if wanted.grad_output is None else time_major(layer, call, wanted.grad_output)
    rest = (d_gain is not None,) if layer.bias else (False, False, d_gain is not None)
    for layers, stages in groupby(_apart(plan.stages, lowest), key=_layers_of):
        first, scale = layers[0], None
        if first < lowest:
            continue
        if first == first_kept:
            x = time_major(layer, call, call.input) if kept.entry is None else kept.entry
        else:
            x = shaped(kept.states_of(first - 1), steps)
            if (mask := kept.mask_behind(first - 1)) is not None:
                scale = scaled(mask, layer.dropout, x.dtype)
                x = x * scale
        below = first > lowest or need_input
        d_x: Tensor | None = None
        gates, states, inner = kept.gates_of(layer, layers), kept.states_of(layers[-1]), kept.inner(layers)
        together = None if inner is None else Together(inner, kept.masks_in(layers), layer.dropout)
        for stage in stages:
            parts = _parts_of(layer, stage)
            places = [slice(part * width, (part + 1) * width) for part in parts]
            found = _module_of(stage).backward(
                part_of(layer, stage, heads),
                _weights_of(layer, weights, call, stage),
                Run(
                    x,
                    state_of(layer, stage, call.hx),
                    steps,
                    share_of(layer, stage.directions, states, -1),
                    None if gates is None else _gates_of(layer, stage, gates, heads),
                    per_step=of_stage(layer, call, stage),
                    together=together,
                ),
                Upstream(
                    None if grad is None else share_of(layer, stage.directions, grad, -1),
                    None if wanted.grad_h_n is None else state_of(layer, stage, wanted.grad_h_n),
                    (below, need_hx, *(need for place in places for need in (*need_weights[place], *rest))),
                    sums.needs,
                ),
            )
            for part, of_given in zip(parts, found.given, strict=False):
                sums.add(part, of_given)
            for i, (part, place) in enumerate(zip(parts, places, strict=True)):
                d_weights[place] = found.weights[5 * i : 5 * i + width]
                if d_gain is not None:
                    d_gain[part] = found.weights[5 * i + 4]
            if d_hx is not None:
                state_of(layer, stage, d_hx).copy_(found.h0)
            if below:
                d_x = found.input if d_x is None else d_x.add_(found.input)
        grad = d_x if scale is None or d_x is None else d_x.mul_(scale)
    d_input = None if grad is None or not need_input else time_major(layer, call, grad)
    return [d_input, d_hx, *d_weights, *((*sums.in_all(), d_gain) if wanted.given else ())]
