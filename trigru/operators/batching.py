"""The operators under `torch.func.vmap`, and under the older one by which autograd batches gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..layer import NOTHING, Call
from ..schedules.reserve import shares_output
from .plain import is_legacy_batched
from .schema import Backward, Recorded, flat, flat_backward, recorded, recorded_backward


def _move(x: Tensor, dim: int | None, to: int, size: int) -> Tensor:
    """`x` with its batched dimension at `to`; expanded where it has none."""
    if dim is not None:
        return x.movedim(dim, to)
    return x.unsqueeze(to).expand(*x.shape[:to], size, *x.shape[to:])


def _select(args: Sequence[Any], in_dims: Sequence[Any], index: int) -> list[Any]:
    """The arguments of one sample of a vmap."""
    return [
        _select(x, dim, index)
        if isinstance(dim, (list, tuple))
        else x.select(dim, index)
        if isinstance(dim, int) and isinstance(x, Tensor)
        else x
        for x, dim in zip(args, in_dims, strict=True)
    ]


def _stacked(samples: Sequence[Sequence[Any]]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The results of all samples, and where their batched dimension is."""
    parts, dims = [], []
    for values in zip(*samples, strict=True):
        many = isinstance(values[0], (list, tuple))
        parts.append([torch.stack(one) for one in zip(*values, strict=True)] if many else torch.stack(values))
        dims.append([0] * len(values[0]) if many else 0)
    return tuple(parts), tuple(dims)


def forward(info, in_dims, *args):  # type: ignore[no-untyped-def]
    """vmap over input and hx is one call with a larger batch; over anything else, a call a sample."""
    layer, weights, call, first_kept = recorded(*args)
    if layer.dropout:
        raise NotImplementedError("torch.ops.trigru.gru with dropout has no vmap; trigru.GRU has")
    # Batched tensors hide whether what they hold requires a gradient, so what is kept is settled here.
    given = (call.input, call.hx, *weights, *call.given, call.gain)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in given):
        first_kept = 0
    count, (dim_input, dim_hx, dims_of_weights, dim_sizes) = info.batch_size, in_dims[:4]
    by_sample = call.given is not NOTHING or not (call.gain is call.batch_sizes is dim_sizes is None)
    if by_sample or any(dim is not None for dim in dims_of_weights):
        args = flat(Recorded(layer, weights, call, first_kept))
        dims = (*in_dims, *(None for _ in args[len(in_dims) :]))
        samples = [torch.ops.trigru.gru(*_select(args, dims, i)) for i in range(count)]
        return _stacked(samples)
    at = 0 if layer.batch_first else 1
    input = _move(call.input, dim_input, at, count).flatten(at, at + 1)
    hx = _move(call.hx, dim_hx, 1, count)
    split = (count, hx.shape[2])
    whole = Recorded(layer, weights, Call(input, hx.flatten(1, 2)), first_kept)
    output, h_n, reserve = torch.ops.trigru.gru(*flat(whole))
    # What lies where in the reserve is the schedule's own business, so it stays whole, for no sample alone.
    return (output.unflatten(at, split), h_n.unflatten(1, split), reserve), (at, 1, [None] * len(reserve))


def backward(info, in_dims, *args):  # type: ignore[no-untyped-def]
    """A call a sample."""
    samples, dims_of_reserve = [], in_dims[6]
    for i in range(info.batch_size):
        one = recorded_backward(*_select(args, in_dims, i))
        if any(dim is None for dim in dims_of_reserve):  # the reserve of all samples: see `forward`
            call = one.forward.call
            output, _, reserve = torch.ops.trigru.gru(*flat(one.forward))
            states = [output] if shares_output(call.input.device) else []
            one = one._replace(reserve=[*reserve, *states])
        samples.append(torch.ops.trigru.gru_backward(*flat_backward(one)))
    return _stacked(samples)


def backward_of_each(backward: Backward) -> list[Tensor]:
    """Derivatives by input, hx and the weights under autograd's older vmap over gradients (`is_grads_batched`), which
    has no fallback for operators with lists of tensors: a call a gradient."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    grads = {"grad_output": backward.grad_output, "grad_h_n": backward.grad_h_n}
    stacked = {
        name: torch._remove_batch_dim(x, level, 1, 0)
        for name, x in grads.items()
        if x is not None and is_legacy_batched(x)
    }
    samples = []
    for i in range(next(iter(stacked.values())).shape[0]):
        one = backward._replace(**{name: x[i] for name, x in stacked.items()})  # type: ignore[arg-type]
        d_input, d_hx, d_weights = torch.ops.trigru.gru_backward(*flat_backward(one))
        samples.append([d_input, d_hx, *d_weights])
    return [torch._add_batch_dim(torch.stack(parts), 0, level) for parts in zip(*samples, strict=True)]
