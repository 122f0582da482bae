"""What the operators compute: a layer by the plan's schedules, or by the reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from ..checks import batch_sizes_of
from ..layer import Call, Layer
from ..planning.plan import Site, plan
from ..schedules import stack
from .schema import Backward, Recorded


def site_of(layer: Layer, call: Call, *, recording: bool = False, plain: bool = False) -> Site:
    """Where and how the layer is called."""
    input, hx, batch_sizes = call
    seq_len = input.shape[1 if layer.batch_first else 0] if batch_sizes is None else batch_sizes.shape[0]
    return Site(input.device, input.dtype, seq_len, hx.shape[1], batch_sizes is not None, recording, plain)


def forward(recorded: Recorded) -> stack.Result:
    """By the schedules that the plan takes."""
    layer, weights, call, first_kept = recorded
    return stack.forward(layer, weights, call, plan(layer, site_of(layer, call)), first_kept)


def backward(backward: Backward) -> list[Tensor | None]:
    """Derivatives by input, hx and the weights, as far as they are asked for."""
    layer, weights, call, first_kept = backward.forward
    plans = plan(layer, site_of(layer, call), "backward")
    wanted = stack.Wanted(backward.grad_output, backward.grad_h_n, backward.needs)
    return stack.backward(layer, weights, call, plans, first_kept, backward.reserve, wanted)


def by_reference(
    layer: Layer, weights: Sequence[Tensor], call: Call, masks: Sequence[Tensor | None] = ()
) -> tuple[Tensor, Tensor]:
    """(output, h_n) by the reference implementation; `masks` as `reference.stack` takes them."""
    if call.batch_sizes is not None:
        batch_sizes_of(call)
    output, h_n = reference.stack(
        stack.time_major(layer, call, call.input),
        call.hx,
        [layer.weights_of(weights, part) for part in range(layer.parts)],
        variant=layer.variant,
        bidirectional=layer.bidirectional,
        reverse=layer.reverse,
        batch_sizes=call.batch_sizes,
        masks=masks,
    )
    return stack.time_major(layer, call, output), h_n


def by_torch(layer: Layer, weights: Sequence[Tensor], call: Call) -> tuple[Tensor, Tensor]:
    """(output, h_n) of a padded call by torch's own GRU, variant "torch"."""
    dim = 1 if layer.batch_first else 0
    x = call.input.flip(dim) if layer.reverse else call.input
    output, h_n = torch.gru(
        x,
        call.hx,
        list(weights),
        layer.bias,
        layer.num_layers,
        layer.dropout,
        layer.dropout > 0,
        layer.bidirectional,
        layer.batch_first,
    )
    return output.flip(dim) if layer.reverse else output, h_n
