"""All layers and directions, one after another, each by its schedule; dropout between layers.

What forward keeps for backward, the reserve, is a list of tensors, in this order, for the layers from `first_kept` on
(nothing below them takes a gradient):

    the input of that layer, where it is not the call's own
    for each layer: the mask of the dropout before it (above first_kept), then for each direction its gates (empty where
    they are computed again) and its states (N, H)

cuDNN, which runs all layers or none, keeps something else: see `trigru.schedules.cudnn`.

The states of the last layer are the call's output where `shares_output` says so; they are then not in the list, but
`backward` wants them at its end.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import batch_sizes_of
from ..kernels.config import kept_values
from ..kernels.steps import Steps
from ..layer import Call, Layer
from ..planning.plan import Plan
from .part import Part, Run, Upstream


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


@functools.cache  # an import statement costs some 0.5 us a call
def _module_of(schedule: str) -> ModuleType:
    if schedule == "eager":
        from . import eager

        return eager
    if schedule == "cudnn":
        from . import cudnn

        return cudnn
    from . import fused

    return fused


def shares_output(layer: Layer, device: torch.device) -> bool:
    """Whether the last layer's states are the call's output. On a CPU they are not: nn.GRU lets its output be modified
    in place there."""
    return not layer.bidirectional and device.type != "cpu"


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
    """States that may be the call's output as (N, H)."""
    return states if states.dim() == 2 else time_major(layer, call, states).reshape(-1, layer.hidden_size)


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


def forward(layer: Layer, weights: Sequence[Tensor], call: Call, plans: Sequence[Plan], first_kept: int) -> Result:
    """The results, and what backward needs of the layers from `first_kept` on (num_layers: of none).

    plans: of each layer."""
    if plans[0].schedule == "cudnn":
        return Result(*_module_of("cudnn").forward(layer, weights, call, plans[0], first_kept))
    steps = steps_of(layer, call)
    hidden_size, directions, packed = layer.hidden_size, layer.directions, call.batch_sizes is not None
    x = time_major(layer, call, call.input)
    states_before, h_n = call.hx.unbind(0), call.hx.new_empty(call.hx.shape)
    finals = h_n.unbind(0)
    recorded = first_kept < layer.num_layers
    shares = shares_output(layer, x.device) or (not recorded and directions == 1)
    output = new_output(layer, call, hidden_size * directions)
    reserve: list[Tensor] = []
    for index, plan in enumerate(plans):
        kept, last = index >= first_kept, index + 1 == layer.num_layers
        if kept and index == first_kept and index:
            reserve.append(x)
        outputs = []
        for direction in range(directions):
            part = index * directions + direction
            if last and shares:
                states = time_major(layer, call, output).view(steps.num_rows, hidden_size)
            else:
                states = x.new_empty(steps.num_rows, hidden_size)
            gates = _module_of(plan.schedule).forward(
                Part(plan, layer.variant, layer.runs_backwards(direction), kept and layer.memory == "keep"),
                layer.weights_of(weights, part),
                Run(x, states_before[part], steps, states, finals[part]),
            )
            if kept:
                reserve.append(x.new_empty(0) if gates is None else gates)
                if not (last and shares):
                    reserve.append(states)
            outputs.append(states)
        if not last:
            x = _beside_each_other(outputs, steps)
            if layer.dropout:
                mask = dropout_mask(x, layer.dropout)
                x = x * _scaled(mask, layer.dropout, x.dtype)
                if kept:
                    reserve.append(mask)
        elif not shares:
            shaped = [states if packed else states.view(steps.seq_len, steps.batch, hidden_size) for states in outputs]
            whole = time_major(layer, call, output)
            for states, place in zip(shaped, whole.split(hidden_size, -1), strict=True):
                place.copy_(states)
    return Result(output, h_n, reserve)


def _beside_each_other(outputs: Sequence[Tensor], steps: Steps) -> Tensor:
    """The next layer's input, from the states of each direction."""
    x = outputs[0] if len(outputs) == 1 else torch.cat(list(outputs), 1)
    return x if steps.packed else x.view(steps.seq_len, steps.batch, x.shape[1])


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
    rows = sizes[0] * (sizes[1] if len(sizes) == 2 else 1)
    hidden_size, features = layer.hidden_size, layer.hidden_size * layer.directions
    gates = rows * hidden_size * kept_values(layer.variant) if layer.memory == "keep" else 0
    reserve = []
    for index in range(first_kept, layer.num_layers):
        if index > first_kept and layer.dropout:
            reserve.append(x.new_empty(*sizes, features, dtype=torch.bool))
        elif index == first_kept and index:
            reserve.append(x.new_empty(*sizes, features))
        for _ in range(layer.directions):
            reserve.append(x.new_empty(gates))
            if index + 1 < layer.num_layers or not shares_output(layer, x.device):
                reserve.append(x.new_empty(rows, hidden_size))
    return reserve


class _Kept(NamedTuple):
    """The reserve of one layer."""

    mask: Tensor | None  # of the dropout before it
    gates: list[Tensor]  # of each direction
    states: list[Tensor]


def _unfold(layer: Layer, reserve: Sequence[Tensor], first_kept: int) -> tuple[Tensor | None, dict[int, _Kept]]:
    """The reserve (with the last layer's states at its end) by layers, and the input of the first of them."""
    left: Iterator[Tensor] = iter(reserve)
    entry = next(left) if first_kept else None
    kept = {}
    for index in range(first_kept, layer.num_layers):
        mask = next(left) if layer.dropout and index > first_kept else None
        pairs = [(next(left), next(left)) for _ in range(layer.directions)]
        kept[index] = _Kept(mask, [gates for gates, _ in pairs], [states for _, states in pairs])
    return entry, kept


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
    plans: Sequence[Plan],
    first_kept: int,
    reserve: Sequence[Tensor],
    wanted: Wanted,
) -> list[Tensor | None]:
    """Derivatives by the input, hx and each of the weights; None for those that are not asked for.

    call.input is read only where a weight of the first layer needs a gradient or its gates were not kept."""
    if plans[0].schedule == "cudnn" or (reserve and reserve[0].dtype == torch.uint8):  # which only cuDNN can read
        return _module_of("cudnn").backward(layer, weights, call, reserve, wanted)
    steps, directions = steps_of(layer, call), layer.directions
    if shares_output(layer, call.input.device):
        *others, output = reserve
        reserve = [*others, as_rows(layer, call, output)]
    entry, kept = _unfold(layer, reserve, first_kept)
    need_input, need_hx, *need_weights = wanted.needs
    width = 4 if layer.bias else 2
    asked = [need_input or need_hx or need for need in need_weights]
    lowest = asked.index(True) // (width * directions) if any(asked) else layer.num_layers
    d_hx = torch.empty(call.hx.shape, dtype=call.hx.dtype, device=call.hx.device) if need_hx else None
    d_weights: list[Tensor | None] = [None] * len(need_weights)
    grad = None if wanted.grad_output is None else time_major(layer, call, wanted.grad_output)
    grad_h_n = None if wanted.grad_h_n is None else wanted.grad_h_n.unbind(0)
    states_before = call.hx.unbind(0)
    for index in range(layer.num_layers - 1, lowest - 1, -1):
        mine = kept[index]
        if index == first_kept:
            x = time_major(layer, call, call.input) if entry is None else entry
        else:
            x = _beside_each_other(kept[index - 1].states, steps)
            if mine.mask is not None:
                scale = _scaled(mine.mask, layer.dropout, x.dtype)
                x = x * scale
        below = index > lowest or need_input
        d_x: Tensor | None = None
        shares = [grad] * directions if grad is None or directions == 1 else grad.split(layer.hidden_size, -1)
        for direction in range(directions):
            part = index * directions + direction
            place = slice(part * width, (part + 1) * width)
            biases = () if layer.bias else (False, False)
            found = _module_of(plans[index].schedule).backward(
                Part(plans[index], layer.variant, layer.runs_backwards(direction), layer.memory == "keep"),
                layer.weights_of(weights, part),
                Run(x, states_before[part], steps, mine.states[direction]),
                mine.gates[direction],
                Upstream(
                    shares[direction],
                    None if grad_h_n is None else grad_h_n[part],
                    (below, need_hx, *need_weights[place], *biases),
                ),
            )
            d_weights[place] = found[2 : 2 + width]
            if d_hx is not None:
                d_hx[part] = found.h0
            if below:
                d_x = found.input if d_x is None else d_x.add_(found.input)
        if below and index > 0 and mine.mask is not None and d_x is not None:
            d_x = d_x.mul_(scale)
        grad = d_x
    d_input = None if grad is None or not need_input else time_major(layer, call, grad)
    return [d_input, d_hx, *d_weights]
