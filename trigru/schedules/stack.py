"""All layers and directions as the plan's stages run them, one after another; dropout between layers.

What forward keeps for backward, the reserve, is a list of tensors, in this order, for the layers from `first_kept` on
(nothing below them takes a gradient):

    the input of that layer, where it is not the call's own
    for each layer: the mask of the dropout before it (above first_kept), the gates of its directions, one behind the
    other (empty where they are computed again), and their states (N, D * H), which are the next layer's input

cuDNN, which runs all layers or none, keeps something else: see `trigru.schedules.cudnn`.

The states of the last layer are the call's output where `shares_output` says so; they are then not in the list, but
`backward` wants them at its end.
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
from ..kernels.config import kept_values
from ..kernels.steps import Steps
from ..layer import Call, Layer, Weights
from ..planning.stages import TAKES_HEADS, Plan, Stage
from . import cudnn
from .part import Part, Run, Upstream
from .per_step import Sums, before_their_ends, of_stage


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
def _module_of(schedule: str) -> ModuleType:
    if schedule == "eager":
        from . import eager

        return eager
    from . import fused

    return fused


def shares_output(device: torch.device) -> bool:
    """Whether the last layer's states are the call's output. On a CPU they are not: nn.GRU lets its output be modified
    in place there."""
    return device.type != "cpu"


def steps_of(layer: Layer, call: Call) -> Steps:
    """Where the rows of each step lie. Raises RuntimeError for batch_sizes that do not fit."""
    if call.batch_sizes is None:
        batch, seq_len = call.hx.shape[1], call.input.shape[1 if layer.batch_first else 0]
        return Steps.padded(seq_len, batch)
    return Steps.of_batch_sizes(batch_sizes_of(call))


def time_major(layer: Layer, call: Call, x: Tensor) -> Tensor:
    """A tensor shaped as the call's input or output, steps first."""
    return x.transpose(0, 1) if layer.batch_first and call.batch_sizes is None else x


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
        return call.input.new_empty(*sizes, features)
    batch, seq_len = sizes
    return torch.empty_strided(
        (batch, seq_len, features),
        (features, batch * features, 1),
        dtype=call.input.dtype,
        device=call.input.device,
    )


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
    """What belongs to a stage of a tensor laid out as hx: (B, H), or (2, B, H) where it runs both directions."""
    first = stage.layers[0] * layer.directions + stage.directions[0]
    return x.select(0, first) if len(stage.directions) == 1 else x.narrow(0, first, 2)


def forward(layer: Layer, weights: Sequence[Tensor], call: Call, plan: Plan, first_kept: int) -> Result:
    """The results, and what backward needs of the layers from `first_kept` on (num_layers: of none)."""
    heads = heads_of(layer, call, plan)
    if heads < layer.num_heads:
        layer, weights = replace(layer, num_heads=1), whole_weights(layer, weights)
    if plan.schedule == "cudnn":
        return Result(*cudnn.forward(layer, weights, call, plan.stages[0].choice, first_kept))
    call = before_their_ends(layer, call)
    steps, directions = steps_of(layer, call), layer.directions
    x, width = time_major(layer, call, call.input), layer.hidden_size * directions
    h_n = call.hx.new_empty(call.hx.shape)
    shares = shares_output(x.device) or first_kept == layer.num_layers
    output = new_output(layer, call, width)
    reserve: list[Tensor] = []
    for index, stages in groupby(plan.stages, key=_layer_of):
        kept, last = index >= first_kept, index + 1 == layer.num_layers
        if kept and index == first_kept and index:
            reserve.append(x)
        in_place = last and shares
        states = x.new_empty(steps.num_rows, width) if not in_place else time_major(layer, call, output).view(-1, width)
        gates = _new_gates(layer, weights[0], steps.num_rows) if kept else None
        planes = planes_of(layer, gates, steps.num_rows, 1 if plan.schedule == "eager" else heads)
        for stage in stages:
            run = Run(
                x,
                state_of(layer, stage, call.hx),
                steps,
                share_of(layer, stage.directions, states, -1),
                None if planes is None else share_of(layer, stage.directions, planes, 0),
                state_of(layer, stage, h_n),
                of_stage(layer, call, stage),
            )
            schedule = _module_of(stage.choice.schedule)
            schedule.forward(part_of(layer, stage, heads), _weights_of(layer, weights, call, stage), run)
        if gates is not None:
            reserve.append(gates)
            if not in_place:
                reserve.append(states)
        if not last:
            x = shaped(states, steps)
            if layer.dropout:
                mask = dropout_mask(x, layer.dropout)
                x = x * _scaled(mask, layer.dropout, x.dtype)
                if kept:
                    reserve.append(mask)
        elif not shares:
            time_major(layer, call, output).copy_(shaped(states, steps))
    return Result(output, h_n, reserve)


def _layer_of(stage: Stage) -> int:
    (index,) = stage.layers
    return index


def _weights_of(layer: Layer, weights: Sequence[Tensor], call: Call, stage: Stage) -> list[Weights]:
    """Of each of its directions."""
    first = stage.layers[0] * layer.directions
    return [layer.weights_of(weights, first + direction, call.gain) for direction in stage.directions]


def shaped(states: Tensor, steps: Steps) -> Tensor:
    """(N, D * H) as the next layer's input."""
    return states if steps.packed else states.view(steps.seq_len, steps.batch, states.shape[1])


def _new_gates(layer: Layer, like: Tensor, rows: int) -> Tensor:
    """Memory for a layer's gates, flat; empty where they are computed again."""
    kept = layer.memory == "keep"
    return like.new_empty(layer.directions * rows * kept_values(layer.variant) * layer.hidden_size if kept else 0)


def planes_of(layer: Layer, gates: Tensor | None, rows: int, heads: int = 1) -> Tensor | None:
    """The same as (D * heads, N, values * H / heads), or None where none are kept. heads: taken as they are."""
    if gates is None or layer.memory != "keep":
        return None
    return gates.view(layer.directions * heads, rows, kept_values(layer.variant) * layer.hidden_size // heads)


def dropout_mask(x: Tensor, p: float) -> Tensor:
    """Which elements stay, drawn as torch's dropout on a CPU draws for a contiguous tensor of this shape and dtype."""
    if p == 1:
        return x.new_zeros(x.shape, dtype=torch.bool)
    return x.new_empty(x.shape).bernoulli_(1 - p).bool()


def _scaled(mask: Tensor, p: float, dtype: torch.dtype) -> Tensor:
    """What a mask multiplies by."""
    return mask.to(dtype) if p == 1 else mask.to(dtype).div_(1 - p)


def empty_reserve(layer: Layer, call: Call, first_kept: int) -> list[Tensor]:
    """Memory of the shapes of the reserve that forward returns."""
    if layer.schedule == "cudnn":
        return []
    x = call.input
    *sizes, _ = time_major(layer, call, x).shape
    rows, features = sizes[0] * (sizes[1] if len(sizes) == 2 else 1), layer.hidden_size * layer.directions
    reserve = []
    for index in range(first_kept, layer.num_layers):
        if index > first_kept and layer.dropout:
            reserve.append(x.new_empty(*sizes, features, dtype=torch.bool))
        elif index == first_kept and index:
            reserve.append(x.new_empty(*sizes, features))
        reserve.append(_new_gates(layer, x, rows))
        if index + 1 < layer.num_layers or not shares_output(x.device):
            reserve.append(x.new_empty(rows, features))
    return reserve


class _Kept(NamedTuple):
    """The reserve of one layer."""

    mask: Tensor | None  # of the dropout before it
    gates: Tensor  # flat
    states: Tensor  # (N, D * H)


def _unfold(layer: Layer, reserve: Sequence[Tensor], first_kept: int) -> tuple[Tensor | None, dict[int, _Kept]]:
    """The reserve (with the last layer's states at its end) by layers, and the input of the first of them."""
    left: Iterator[Tensor] = iter(reserve)
    entry = next(left) if first_kept else None
    kept = {}
    for index in range(first_kept, layer.num_layers):
        mask = next(left) if layer.dropout and index > first_kept else None
        kept[index] = _Kept(mask, next(left), next(left))
    return entry, kept


def kept_rows(layer: Layer, call: Call, result: Result) -> Iterator[tuple[Tensor, Tensor]]:
    """Of a forward that kept all layers: what goes into each, (N, features), and its states (N, D * H)."""
    reserve = list(result.reserve)
    if shares_output(call.input.device):
        reserve.append(as_rows(layer, call, result.output))
    _, kept = _unfold(layer, reserve, 0)
    x = as_rows(layer, call, call.input)
    for index in range(layer.num_layers):
        states = kept[index].states
        yield x, states
        if index + 1 < layer.num_layers:
            mask = kept[index + 1].mask
            x = states if mask is None else states * _scaled(mask, layer.dropout, states.dtype).view_as(states)


def masks_of(layer: Layer, reserve: Sequence[Tensor], first_kept: int, dtype: torch.dtype) -> list[Tensor | None]:
    """What the output of each layer but the last was multiplied with, as far as the reserve holds it."""
    if not layer.dropout:
        return [None] * (layer.num_layers - 1)
    _, kept = _unfold(layer, reserve, first_kept)
    masks = [kept[index].mask if index in kept else None for index in range(1, layer.num_layers)]
    return [None if mask is None else _scaled(mask, layer.dropout, dtype) for mask in masks]


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
    heads = heads_of(layer, call, plan)
    if heads < layer.num_heads:
        found = backward(
            replace(layer, num_heads=1), whole_weights(layer, weights), call, plan, first_kept, reserve, wanted
        )
        return _narrow(layer, found)
    if plan.schedule == "cudnn" or cudnn.is_own(reserve):  # which nothing else can read
        return cudnn.backward(layer, weights, call, reserve, wanted)
    steps, directions = steps_of(layer, call), layer.directions
    if shares_output(call.input.device):
        *others, output = reserve
        reserve = [*others, as_rows(layer, call, output)]
    entry, kept = _unfold(layer, reserve, first_kept)
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
    for index, stages in groupby(plan.stages, key=_layer_of):
        if index < lowest:
            break
        mine, scale = kept[index], None
        if index == first_kept:
            x = time_major(layer, call, call.input) if entry is None else entry
        else:
            x = shaped(kept[index - 1].states, steps)
            if mine.mask is not None:
                scale = _scaled(mine.mask, layer.dropout, x.dtype)
                x = x * scale
        below = index > lowest or need_input
        d_x: Tensor | None = None
        planes = planes_of(layer, mine.gates, steps.num_rows, 1 if plan.schedule == "eager" else heads)
        for stage in stages:
            own = stage.directions
            places = [slice((index * directions + i) * width, (index * directions + i + 1) * width) for i in own]
            found = _module_of(stage.choice.schedule).backward(
                part_of(layer, stage, heads),
                _weights_of(layer, weights, call, stage),
                Run(
                    x,
                    state_of(layer, stage, call.hx),
                    steps,
                    share_of(layer, own, mine.states, -1),
                    None if planes is None else share_of(layer, own, planes, 0),
                    per_step=of_stage(layer, call, stage),
                ),
                Upstream(
                    None if grad is None else share_of(layer, own, grad, -1),
                    None if wanted.grad_h_n is None else state_of(layer, stage, wanted.grad_h_n),
                    (below, need_hx, *(need for place in places for need in (*need_weights[place], *rest))),
                    sums.needs,
                ),
            )
            for direction, of_given in zip(own, found.given, strict=False):
                sums.add(index * directions + direction, of_given)
            for i, (direction, place) in enumerate(zip(own, places, strict=True)):
                d_weights[place] = found.weights[5 * i : 5 * i + width]
                if d_gain is not None:
                    d_gain[index * directions + direction] = found.weights[5 * i + 4]
            if d_hx is not None:
                state_of(layer, stage, d_hx).copy_(found.h0)
            if below:
                d_x = found.input if d_x is None else d_x.add_(found.input)
        grad = d_x if scale is None or d_x is None else d_x.mul_(scale)
    d_input = None if grad is None or not need_input else time_major(layer, call, grad)
    return [d_input, d_hx, *d_weights, *((*sums.in_all(), d_gain) if wanted.given else ())]
